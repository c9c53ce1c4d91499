"""Rules that weigh a run's loss components one against another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.table import Chunk
from trainwatch.views.components import BLOCK, Course, Courses


@dataclass
class OfCourse(Rule):
    """A rule that judges the course of the components, as it stands when it is asked; ``kinds`` are as of Courses."""

    block: ClassVar[int] = BLOCK
    kinds: ClassVar[tuple[str, ...]] = ("loss/", "weight/")

    _courses: Courses = field(init=False)

    def __post_init__(self) -> None:
        self._courses = Courses(self.kinds)

    def start(self, header: Header) -> Findings:
        """Roles and stages."""
        self._courses.start(header)
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """Nothing is said before the course is asked for."""
        self._courses.push(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Findings:  # noqa: ARG002
        """The run as it stands."""
        course = self._courses.course(rest)
        return self.judge(course) if len(course) else ()  # none in a run that was resumed a moment ago

    def judge(self, course: Course) -> Findings:  # noqa: ARG002
        """What there is to say of a course."""
        return ()

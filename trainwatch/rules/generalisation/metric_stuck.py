"""See the rule's docstring: it is the page that `trainwatch rules metric-stuck` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk, TableName
from trainwatch.views.evaluations import Course, Evaluations

SUCCESS = re.compile(r"(^|[/_.-])(success\w*|solved|win_?rate|goal_?rate)($|[/_.-])", re.IGNORECASE)
"""Shares of episodes that reached their goal."""


@dataclass
class MetricStuck(Rule):
    """A success rate has never risen from where it began.

    What it sees:
        A share of successes in thirty evaluations and more: below a fifth all along, and in the last third no higher
        than in the first by more than three standard errors. A warning once the run is over, an info while it runs:
        rewards that are rare are found late.

    Why it matters:
        Success at the rate of chance means that nothing was learned, whatever the losses of actor and critic do: they
        measure how well each follows the other.

    What to do:
        Look at a few episodes. Usual causes: a reward or goal that is never reached by exploring, observations that are
        not normalised, actions clipped to nothing, a replay buffer that is never read, a rate far too low.

    When it is wrong:
        A task so hard that thirty evaluations are its beginning.

    References:
        Andrychowicz et al., "Hindsight Experience Replay" (2017); Henderson et al., "Deep reinforcement learning that
        matters" (2018).
    """

    reads: ClassVar[tuple[TableName, ...]] = ("train", "eval")
    needs: ClassVar[tuple[str, ...]] = ("eval:metric/<name>",)

    evaluations: int = 30  # fewer are a beginning
    low: float = 0.2  # of the episodes: above it something was learned, or the task is easy
    errors: float = 3.0  # standard errors between the means of the first and the last third

    _evaluations: Evaluations = field(default_factory=Evaluations, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Evaluations are few."""
        self._evaluations.push(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """One finding a split: the same successes often stand under several names."""
        said: set[str] = set()
        for course in self._evaluations.courses():
            if SUCCESS.search(course.name) and course.split not in said and self._stuck(course):
                said.add(course.split)
                yield self._finding(course, over=run.status() not in ("running", "stalled"))

    def _stuck(self, course: Course) -> bool:
        value, third = course.value, len(course.value) // 3
        if len(value) < self.evaluations or value.min() < 0 or value.max() >= self.low:
            return False
        first, last = value[:third], value[-third:]
        error = float(np.hypot(first.std(), last.std())) / third**0.5
        return bool(last.mean() - first.mean() <= self.errors * error)

    def _finding(self, course: Course, *, over: bool) -> Finding:
        third = len(course.value) // 3
        first, last = float(course.value[:third].mean()), float(course.value[-third:].mean())
        name = course.name.removeprefix("metric/")
        return self.finding(
            "warning" if over else "info",
            course.subject,
            (int(course.step[0]), int(course.step[-1])),
            f"The {course.split} {name} never rose in {len(course.value)} evaluations: {first:.3g} in the first third, "
            f"{last:.3g} in the last.",
            evidence={"first": first, "last": last, "most": float(course.value.max())},
            advice="Look at a few episodes: whether the goal is ever reached, and whether actions and observations are "
            "what the agent was made for.",
            confidence=0.7,
        )

"""See the rule's docstring: it is the page that `trainwatch rules all-at-once` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.bases.course import OfCourse
from trainwatch.header import Header
from trainwatch.rule import Findings
from trainwatch.schema import Finding
from trainwatch.views.components import Course


@dataclass
class AllAtOnce(OfCourse):
    """Many losses are on from the first step, without a curriculum, and they compete.

    What it sees:
        Three or more tasks have a weight in the first row, none of them is ramped, no stages are declared or recorded,
        and for half of the run one outweighs all others a hundred times, or two gradients have a cosine below -0.1.

    Why it matters:
        Nothing is wrong by itself. But where losses disagree, an order in which they enter often helps more than any
        choice of weights.

    What to do:
        Begin with the loss that the others need, and let them enter one by one, by a ramp.

    When it is wrong:
        Many recipes train all of their losses together, detection most of all: if the metrics are good, leave it.

    References:
        Bengio et al., "Curriculum Learning" (2009).
    """

    kinds: ClassVar[tuple[str, ...]] = ("loss/", "weight/", "grad_cosine/")
    needs: ClassVar[tuple[str, ...]] = ("loss/<component>", "weight/<component>")
    wants: ClassVar[tuple[str, ...]] = ("grad_cosine/<a>~<b>", "run:curriculum", "run:components")

    many: int = 3  # tasks: two are a trade, three are a choice of order
    ratio: float = 100.0  # the largest to the others together, as what is grave in loss-scale-imbalance
    cosine: float = -0.1  # as in gradient-conflict
    half: float = 0.5  # of the bins: what passes is how a run starts

    _planned: bool = field(default=False, init=False)

    def start(self, header: Header) -> Findings:
        """Whether there is a plan."""
        self._courses.start(header)
        plan = header.plan
        ramped = any(name.startswith("weight/") for name in header.schedules)
        self._planned = ramped or (plan is not None and len(plan.stages) > 1)
        return ()

    def judge(self, course: Course) -> Iterator[Finding]:
        """One info."""
        tasks = [name for name in course.names if not course.roles.aside(name)]
        if self._planned or len(course) < 20 or course.regime_begin(len(course)) or len(tasks) < self.many:
            return
        weights = np.stack([course.weight(name) for name in tasks])
        tasks = [
            name for name, weight in zip(tasks, weights, strict=True) if (weight > 0).all() and np.ptp(weight) == 0
        ]
        quarrel = self._quarrel(tasks, course) if len(tasks) >= self.many else ""
        if quarrel:
            yield self.finding(
                "info",
                "run",
                course.steps(0, len(course) - 1),
                f"{len(tasks)} losses ({', '.join(tasks)}) are trained together from the first step on, and {quarrel}.",
                evidence={"losses": len(tasks)},
                advice="Let the losses enter one by one, beginning with the one that the others need.",
                confidence=0.6,
            )

    def _quarrel(self, tasks: list[str], course: Course) -> str:
        """In what they compete, for half of the run; empty if they do not."""
        parts = np.stack([course.part(name) for name in tasks])
        largest = np.nanmax(parts, axis=0, initial=0.0)
        outweighs = largest > self.ratio * (np.nansum(parts, axis=0) - largest)
        if outweighs.mean() > self.half:
            return "one of them outweighs all others"
        for channel in course.columns:
            a, _, b = channel.removeprefix("grad_cosine/").partition("~")
            if channel.startswith("grad_cosine/") and a in tasks and b in tasks:
                known = course[channel][np.isfinite(course[channel])]
                if len(known) >= 10 and known.mean() < self.cosine and (known < self.cosine).mean() > self.half:
                    return f"the gradients of {a} and {b} pull against each other"
        return ""

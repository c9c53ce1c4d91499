"""See the rule's docstring: it is the page that `trainwatch rules gradient-dominance` prints."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.bases.course import OfCourse
from trainwatch.header import Header
from trainwatch.rule import Findings
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import median
from trainwatch.table import Chunk
from trainwatch.views.components import Course, Relapse, longest, relapse


@dataclass
class GradientDominance(OfCourse):
    """One loss component owns the gradient, and the others lose what they had learned.

    What it sees:
        A component's share of the gradient is above 95 % for a tenth of the run (20 rows at least), and in that
        time another task, whose contribution is not small, has risen from its best level by a tenth and five
        times its noise, and stays there; or its share is above 99 % for half of the planned steps in which it
        learns, and all the others that are not small, declared as tasks, gain less than a twentieth; or it is
        declared a regulariser and owns more than 60 % on average over the run; 90 %, beside a policy's surrogate,
        whose value does not tell whether it is solved, while clipping takes half of the gradient and more. Where the
        others stand still beside less, it is an info: they may be solved.

    Why it matters:
        After clipping, and in the moments of the optimiser, the others are scaled away: they are trained by
        noise.

    What to do:
        Lower the weight of the component that owns the gradient until its share is near its importance, or
        normalise its value; balance by gradients (GradNorm) where it is not clear.

    When it is wrong:
        A task that is solved owns no gradient, and one main task beside small auxiliaries owns nearly all of
        it. Where the contributions differ by more than ten times, loss-scale-imbalance says so, and this rule
        is silent.

    References:
        Chen et al., "GradNorm" (2018); Kendall et al., "Multi-Task Learning Using Uncertainty" (2018).
    """

    kinds: ClassVar[tuple[str, ...]] = ("loss/", "weight/", "grad_share/", "param_share/")
    needs: ClassVar[tuple[str, ...]] = ("grad_share/<component>|param_share/<component>", "loss/<component>")
    wants: ClassVar[tuple[str, ...]] = (
        "weight/<component>",
        "stage",
        "run:components",
        "grad_norm",
        "run:max_grad_norm",
    )
    causes: ClassVar[tuple[str, ...]] = (
        *("component-divergence", "clipping-saturated", "loss-plateau", "loss-stuck", "mode-collapse"),
    )

    share: float = 0.95  # of the sum of norms: what is left for the others is less than one batch's noise
    leads: float = 0.6  # of the gradient, on average, for a declared regulariser: where both cancel it is a half
    fraction: float = 0.1  # of the run, in a row: every component leads for a while when it enters
    rise: float = 0.1  # of the best value
    sigmas: float = 5.0  # of the noise of one row or bin, of which the levels are medians of five
    outweighed: float = 10.0  # x the others' contributions: loss-scale-imbalance's beginning
    solved: float = 0.3  # of the first value: a task this far down is done, and rightly silent
    nearly_all: float = 0.99  # of the gradient: the others' part is less than the direction of one batch is known to
    starved: float = 0.05  # relative: a task that learns gains more in half of a run; one at its floor owns more
    still: float = 0.02  # relative: less than that in half of the run is no learning
    drowns: float = 0.9  # of the gradient, on average, and
    cut: float = 2.0  # x the limit on the norm: a twentieth of a step is left; a solved task's regulariser is not cut

    _planned: int = field(default=0, init=False)  # steps
    _limit: float = field(default=np.inf, init=False)  # on the gradient's norm
    _norm: float = field(default=0.0, init=False)  # of the gradient before that, in the middle

    def start(self, header: Header) -> Findings:
        """How long the run is meant to be: at its start one component may lead while the others still find a way."""
        self._planned, self._limit = header.total_steps or 0, header.max_grad_norm or np.inf
        return super().start(header)

    def finish(self, run: Run, rest: Chunk) -> Findings:
        """How large the gradient is, as clipping finds it; on a copy, for the run may go on."""
        trial = copy(self)
        if np.isfinite(self._limit):
            trial._norm = median(run.train["grad_norm"])
        return OfCourse.finish(trial, run, rest)

    def judge(self, course: Course) -> Iterator[Finding]:
        """The longest stretch in which a component owns the gradient; a regulariser that leads needs no more proof."""
        for name in course.names if len(course.names) > 1 else ():
            leads = [*self._regulates(name, course)] if course.roles.said.get(name) == "regulariser" else []
            yield from leads
            if leads:
                continue
            share = course.share(name)
            begin, end = longest(share > self.share)
            if end - begin >= course.lasting(self.fraction):
                yield from self._judge(name, course, max(begin, course.regime_begin(end)), end)

    def _regulates(self, name: str, course: Course) -> Findings:
        """A regulariser that leads, and for how long, while there is a task that is not solved."""
        if _around_zero(course[f"loss/{name}"]):
            return  # an unbiased estimate of a divergence that is 0: the gradient is its noise, and averages out
        share, lasting = course.share(name), course.lasting(self.fraction)
        leads = np.flatnonzero(share > 0.5)
        owned = float(np.nanmean(share)) if len(leads) >= 2 * lasting else 0.0
        begin, end = (int(leads[0]), int(leads[-1]) + 1) if owned > self.leads else (0, 0)
        cut = owned > self.drowns and self._norm > self.cut * self._limit
        tasks = [
            *(other for other in course.names if other != name and self._counts(other, course, begin, end)),
            *(other for other in course.names if cut and other != name and self._surrogate(other, course)),
        ]
        if owned > self.leads and tasks:
            yield self.finding(
                "warning",
                f"component:{name}",
                course.steps(begin, end - 1),
                f"{name} is declared a regulariser and owns {owned:.1%} of the gradient; {tasks[0]} is left the rest.",
                over=len(course) - end >= lasting,
                evidence={"gradient_share": owned},
                advice=f"Lower the {name} weight, or the unit of its value: it should not lead.",
                confidence=0.8,
            )

    def _judge(self, name: str, course: Course, begin: int, end: int) -> Findings:
        """What became of the others."""
        others = [other for other in course.names if other != name and self._counts(other, course, begin, end)]
        parts = [median(course.part(other)[begin:end]) for other in others]
        if not others or median(course.part(name)[begin:end]) > self.outweighed * sum(parts):
            return
        for other in others:
            stage = course.regime_begin(end)
            found = relapse(course[f"loss/{other}"], stage, end, self.rise, self.sigmas)
            if found is not None and found.at < end - (end - begin) // 4:
                yield self._finding(name, course, (begin, end), other, found)
                return
        if 2 * (end - begin) >= len(course):
            starve = self._starve(name, course, (begin, end), others)
            if starve or all(self._stands(other, course, end, self.still) for other in others):
                yield self._finding(name, course, (begin, end), others[0], None, starve=starve)

    def _starve(self, name: str, course: Course, stretch: tuple[int, int], others: list[str]) -> bool:
        """Whether one learns on nearly all of the gradient, for half of what is planned, and no other task does."""
        begin, end = stretch
        first, last = course.steps(begin, end - 1)
        plain = np.quantile(course.share(name)[begin:end], 0.1) > self.nearly_all and course.learned(name)
        plain &= 0 < self._planned <= 2 * (last - first + 1) and all(map(course.roles.task, others))
        return bool(plain) and all(self._stands(other, course, end, self.starved) for other in others)

    def _counts(self, name: str, course: Course, begin: int, end: int) -> bool:
        """Whether it is a task with a weight, and not solved."""
        raw = course[f"loss/{name}"]
        known = raw[np.isfinite(raw)]
        if course.roles.aside(name) or not len(known) or not np.isfinite(raw[begin:end]).any():
            return False
        if not median(course.weight(name)[begin:end]) > 0:
            return False
        if _around_zero(known):
            return False
        return bool(abs(median(raw[begin:end][-10:])) > self.solved * abs(np.median(known[:5])))

    @staticmethod
    def _surrogate(name: str, course: Course) -> bool:
        """Whether it is a declared task whose value passes 0 now and then: it has a gradient, and no level."""
        there = course.roles.task(name) and bool(median(course.weight(name)[-10:]) > 0)
        return there and _around_zero(course[f"loss/{name}"])

    def _stands(self, name: str, course: Course, end: int, little: float) -> bool:
        raw = course[f"loss/{name}"][:end]
        known = raw[np.isfinite(raw)]
        first, last = np.median(known[:5]), np.median(known[-5:])
        return bool(last > first - little * abs(first))

    def _finding(
        self,
        name: str,
        course: Course,
        stretch: tuple[int, int],
        other: str,
        found: Relapse | None,
        *,
        starve: bool = False,
    ) -> Finding:
        begin, end = stretch
        share = float(median(course.share(name)[begin:end]))
        what = f"{other} rose from {found.best:,.4g} to {found.now:,.4g}" if found else "none of the others improves"
        return self.finding(
            "warning" if found or starve else "info",
            f"component:{name}",
            course.steps(begin, end - 1),
            f"The {name} loss owns {share:.1%} of the gradient, and {what}.",
            over=len(course) - end >= course.lasting(self.fraction),
            evidence={"gradient_share": share} | ({"best": found.best, "now": found.now} if found else {}),
            advice=f"Lower the {name} weight until its share of the gradient is near its importance, or normalise it.",
            confidence=0.85 if found else 0.75 if starve else 0.6,
        )


def _around_zero(values: NDArray[np.float64]) -> bool:
    """Whether a component passes zero again and again."""
    return bool(min((values > 0).sum(), (values < 0).sum()) > 0.1 * np.isfinite(values).sum())

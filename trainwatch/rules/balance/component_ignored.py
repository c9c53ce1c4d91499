"""See the rule's docstring: it is the page that `trainwatch rules component-ignored` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.bases.course import OfCourse
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import middle, noise
from trainwatch.table import Chunk
from trainwatch.views.components import LEARNED, Course

Floats = NDArray[np.float64]


@dataclass
class ComponentIgnored(OfCourse):
    """A loss component weighs next to nothing, and does not improve while the total does.

    What it sees:
        For half of the run a component's contribution (weight x raw value) is less than a thousandth of all of them
        together, its own value has not fallen, and the total has, by a tenth and more than its noise. A warning where
        its role was declared as `task`; else an info, for most terms that small are meant to be. What a component had
        learned before a resume counts; where the log holds nothing from before, it is an info.

    Why it matters:
        Its gradient drowns in the noise of the others': it is computed in every step, and trained in none.

    What to do:
        Raise its weight until its share of the gradient (grad_share) is a few percent, or bring its raw value to the
        scale of the others.

    When it is wrong:
        Regularisers, a z-loss, an entropy bonus are small by design: declare their role. Where one component outweighs
        all others by far, loss-scale-imbalance says so, and this rule is silent.

    References:
        Chen et al., "GradNorm" (2018): tasks are balanced by their gradients, not by their values.
    """

    kinds: ClassVar[tuple[str, ...]] = ("loss/", "weight/", "grad_share/", "param_share/")
    needs: ClassVar[tuple[str, ...]] = ("loss/<component>",)
    wants: ClassVar[tuple[str, ...]] = (
        "weight/<component>",
        "grad_share/<component>|param_share/<component>",
        "run:components",
    )

    small: float = 0.001  # of all contributions: below the noise of one batch in all others
    improved: float = 0.1  # of the total's first value: a run that learns something
    stands: float = 0.02  # relative: less than that is no learning
    half: float = 0.5  # of the run: every component is small for a while
    owned: float = 0.01  # of the gradient: with more than that it is trained, whatever its value
    outweighed: float = 10.0  # x all others: loss-scale-imbalance's beginning

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """A course begins with the newest process: what is small and still because it was learned before is well."""
        unseen = any(header.resumed_from is not None for header in run.headers[:1])  # the file begins in the middle
        for finding in super().finish(run, rest):
            name = finding.subject.replace("component:", "loss/")
            began = _level(run.train.column(name, 0, run.train.size), 0)
            if not began - float(finding.evidence["now"]) > (1 - LEARNED) * abs(began):
                yield replace(finding, severity="info") if unseen else finding

    def judge(self, course: Course) -> Iterator[Finding]:
        """The run as it stands."""
        parts = {name: course.part(name) for name in course.names}
        if len(course) < 20 or len(parts) < 2:
            return
        whole = np.nansum(list(parts.values()), axis=0)
        if not self._learns(whole):
            return
        for name, part in parts.items():
            ignored = not course.roles.aside(name) and self._ignored(name, course, part, whole)
            if ignored and not self._outweighed(name, course, parts):
                yield self._finding(name, course, part, whole)

    def _learns(self, whole: Floats) -> bool:
        first, last = _level(whole, 0), _level(whole, -1)
        return first - last > max(self.improved * abs(first), 3 * noise(whole))

    def _ignored(self, name: str, course: Course, part: Floats, whole: Floats) -> bool:
        """Small throughout the last half, with no gradient to speak of, and no better than it was."""
        raw, share = course[f"loss/{name}"], course.share(name)
        tail = slice(int((1 - self.half) * len(part)), None)
        there = np.isfinite(part[tail]) & (course.weight(name)[tail] > 0)
        if there.sum() < 10 or not (part[tail][there] < self.small * whole[tail][there]).all():
            return False
        probed = share[tail][np.isfinite(share[tail])]
        if (raw[np.isfinite(raw)] == 0).mean() > 0.1 or (len(probed) and np.median(probed) > self.owned):
            return False
        first, last = _level(raw, 0), _level(raw, -1)
        return last > first - max(self.stands * abs(first), 2.5 * noise(raw))  # of two medians of five

    def _outweighed(self, name: str, course: Course, parts: dict[str, Floats]) -> bool:
        """Whether one component outweighs all others together, and this one by no small weight of its own."""
        now = {other: _level(part, -1) for other, part in parts.items() if np.isfinite(part).any()}
        largest = max(now, key=lambda other: now[other])
        alone = now[largest] > self.outweighed * (sum(now.values()) - now[largest])
        return alone and course.weight(name)[-1] >= 0.01 * course.weight(largest)[-1]

    def _finding(self, name: str, course: Course, part: Floats, whole: Floats) -> Finding:
        raw, ratio = course[f"loss/{name}"], part / whole
        little = np.flatnonzero(~(ratio < self.small))
        onset = int(little[-1]) + 1 if len(little) else 0
        now, first, last = _level(ratio, -1), _level(raw, 0), _level(raw, -1)
        return self.finding(
            "warning" if course.roles.task(name) else "info",
            f"component:{name}",
            course.steps(onset, len(course) - 1),
            f"The {name} loss contributes {now:.2g} of the whole and does not improve ({first:,.4g}, now {last:,.4g}), "
            f"while the sum fell from {_level(whole, 0):,.4g} to {_level(whole, -1):,.4g}.",
            evidence={"fraction": now, "first": first, "now": last},
            advice=f"Raise the {name} weight until it owns a few percent of the gradient, or declare its role.",
            confidence=0.8,
        )


def _level(values: Floats, at: int) -> float:
    """Median of the first (0) or last (-1) twentieth, of five bins at least."""
    known = values[np.isfinite(values)]
    few = max(5, len(known) // 20)
    return middle(known[:few] if at == 0 else known[-few:]) if len(known) else np.nan

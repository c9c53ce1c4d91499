"""See the rule's docstring: it is the page that `trainwatch rules gradient-conflict` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.bases.course import OfCourse
from trainwatch.header import Header
from trainwatch.rule import Findings
from trainwatch.schema import Finding, Severity
from trainwatch.stats import median, noise
from trainwatch.views.components import LEARNED, Course, Relapse, longest, relapse, small_by_design
from trainwatch.views.games import opponent

Floats = NDArray[np.float64]


@dataclass
class GradientConflict(OfCourse):
    """Two loss components pull against each other, and one of them loses.

    What it sees:
        The cosine between two components' gradients averages below -0.1 for a fifth of the run, by more than three
        standard errors, with norms within ten times of each other; and meanwhile one of the two has risen from its best
        level by a fifth and eight times its noise; or it is below -0.5 for half of the run, and one of them is not
        learned at all while something else comes down to half. Where a pair has no cosine, its losses tell, if both are
        declared tasks: one has been learned, the other has risen by a fifth and eight times its noise, and from row to
        row one falls as the other rises (a rank correlation of their changes below -0.75, early and late, for half of
        the planned steps). Regularisers pull by design, and are left out; unless one comes down to half, against a
        declared task (a cosine below -0.5 for half of the run) that had begun to be learned, and went back to within
        5 % of where it began, at weights that no schedule changes.
        Without a loser it is an info where the cosine is below -0.3 and the total has stopped falling.

    Why it matters:
        What one step gives to a task the same step takes from the other. The sum of both stands, and both are worse
        than either would be alone.

    What to do:
        Look for two losses that contradict each other (one of them may be wrong: an offset, a padding that counts, a
        term left out). Then lower one's weight, or project the gradients (PCGrad, CAGrad).

    When it is wrong:
        Near a minimum of the sum all gradients cancel, so cosines are negative in every converged run, most of all
        between reconstruction and KL: that alone is no alarm.

    References:
        Yu et al., "Gradient Surgery for Multi-Task Learning" (2020).
    """

    kinds: ClassVar[tuple[str, ...]] = (
        "loss/",
        "weight/",
        "grad_share/",
        "param_share/",
        "grad_cosine/",
        "param_cosine/",
    )
    needs: ClassVar[tuple[str, ...]] = ("loss/<component>",)
    wants: ClassVar[tuple[str, ...]] = (
        "grad_cosine/<a>~<b>|param_cosine/<a>~<b>",
        "grad_share/<component>|param_share/<component>",
        "weight/<component>",
        "stage",
        "run:components",
    )
    causes: ClassVar[tuple[str, ...]] = ("component-divergence", "loss-plateau", "loss-oscillation", "slow-convergence")

    cosine: float = -0.1  # below it one step in ten of the smaller gradient is undone; minibatches scatter about 0
    strong: float = -0.3  # for an info without a loser: converged runs come to -0.2 by their batches' noise
    opposite: float = -0.5  # for half of the run: half of each step is undone; a task of mere noise has a cosine of 0
    errors: float = 3.0  # standard errors of the mean
    norms: float = 10.0  # x: beyond it the smaller one has no say, and there is no conflict but dominance
    fraction: float = 0.2  # of the run
    rise: float = 0.2  # of the best value of the one that loses: a healthy trade between two tasks comes to a tenth
    sigmas: float = 8.0  # of the noise of one row or bin, of which the levels are medians of five
    stopped: float = 0.1  # of the best value of a task that a regulariser holds down: it stands where it had not yet
    stops: float = 3.0  # of the noise of one row, or bin; the cosine and what was not learned say the rest
    returned: float = 0.95  # of its first value: a penalty by plan, sparsity or pruning, costs a task part of its gain
    halved: float = 0.55  # of its first value: at a floor, which falls a little yet, no component comes down so far
    stalled: float = 0.01  # of the total, over the stretch
    mirrored: float = -0.75  # rank correlation of changes: what batches share and trades between tasks come to -0.3
    begun: float = 0.1  # of what it rose to: an untrained net solves some tasks by doing nothing, and those must rise
    enough: int = 40  # bins: of 20 changes the correlation is known to a quarter

    _planned: int = field(default=0, init=False)  # steps

    def start(self, header: Header) -> Findings:
        """How long the run is meant to be: at its start one task may have to give way."""
        self._planned = header.total_steps or 0
        return super().start(header)

    def judge(self, course: Course) -> Iterator[Finding]:
        """Every pair that has a cosine; at the tensor at hand, else over the parameters."""
        infos = []
        for channel, a, b in self._pairs(course):
            found = self._judge(a, b, channel, course)
            if found is not None and found.rank:
                yield found
            elif found is not None:
                infos.append(found)
        yield from sorted(infos, key=lambda finding: finding.evidence["cosine"])[:1]
        yield from self._mirrored(course)

    @staticmethod
    def _pairs(course: Course) -> Iterator[tuple[str, str, str]]:
        """Every pair of tasks that has a cosine, and the column with it."""
        tasks = {name for name in course.names if not course.roles.regulates(name)}
        for channel in course.columns:
            kind, _, pair = channel.partition("/")
            a, _, b = pair.partition("~")
            doubled = kind == "param_cosine" and f"grad_cosine/{pair}" in course.columns
            overruled = {course.roles.said.get(a), course.roles.said.get(b)} == {"task", "regulariser"}
            overruled &= not any(small_by_design(name, ()) for name in (a, b))  # a policy's loss is no measure
            if kind.endswith("_cosine") and (overruled or (a in tasks and b in tasks)) and not doubled:
                yield channel, a, b

    def _mirrored(self, course: Course) -> Findings:
        """Pairs of declared tasks without a cosine, of which one rises whenever the other falls, and has risen."""
        begin, end = course.regime_begin(len(course)), len(course)
        first, last = course.steps(begin, end - 1)
        if end - begin < self.enough or not 0 < self._planned <= 2 * (last - first + 1):
            return
        tasks = [name for name in course.names if course.roles.task(name) and not opponent(name)]
        tasks = [name for name in tasks if not (course.weight(name)[begin:end] <= 0).any()]
        probed = {channel.partition("/")[2] for channel in course.columns}
        for loser in [name for name in tasks if self._risen(course[f"loss/{name}"][begin:end])]:
            for other in tasks:
                pairs = {f"{loser}~{other}", f"{other}~{loser}"}
                if other == loser or pairs & probed or not course.learned(other):
                    continue
                rank = _together(course[f"loss/{loser}"][begin:end], course[f"loss/{other}"][begin:end])
                if rank < self.mirrored:
                    yield self._opposed(loser, other, course, begin, rank)

    def _risen(self, values: Floats) -> bool:
        """Whether it stands plainly above where it began, which was not next to nothing."""
        known = values[np.isfinite(values)]
        if len(known) < self.enough:
            return False
        start, now = median(known[:5]), median(known[-max(5, len(known) // 10) :])
        return start > self.begun * now > 0 and now - start > max(self.rise * start, self.sigmas * noise(known))

    def _opposed(self, loser: str, other: str, course: Course, begin: int, rank: float) -> Finding:
        return self.finding(
            "warning",
            f"component:{loser}~{other}",
            course.steps(begin, len(course) - 1),
            f"{loser} rises from row to row as {other} falls (rank correlation {rank:.2f}), and is not learned.",
            evidence={"correlation": rank},
            advice=f"See whether {loser} and {other} contradict each other; then drop one, or lower its weight.",
            confidence=0.7,
        )

    def _judge(self, a: str, b: str, channel: str, course: Course) -> Finding | None:
        """The longest stretch of negative means, its scatter, and who lost in it."""
        cosine, lasting = course[channel], course.lasting(self.fraction)
        begin, end = longest(_means(cosine, max(5, lasting // 2)) < self.cosine)
        known = cosine[begin:end][np.isfinite(cosine[begin:end])]
        if end - begin < lasting or len(known) < 10:
            return None
        mean, error = float(known.mean()), float(known.std() / len(known) ** 0.5)
        sizes = [median(course.share(name)[begin:end]) for name in (a, b)]
        if mean + self.errors * error >= self.cosine or (min(sizes) > 0 and max(sizes) > self.norms * min(sizes)):
            return None
        if course.roles.regulates(a) or course.roles.regulates(b):
            task, penalty = (b, a) if course.roles.regulates(a) else (a, b)
            return self._overruled(task, penalty, course, (begin, end), mean)
        for loser, other in ((a, b), (b, a)):
            stage = course.regime_begin(end)
            found = relapse(course[f"loss/{loser}"], stage, end, self.rise, self.sigmas)
            if found is not None and self._same_weights(course, loser, other, found.at, end):
                return self._finding(loser, other, course, (begin, end), mean, found)
        lost = [name for name in (a, b) if not (course.learned(name) and _gained(name, course))]
        learns = any(self._plainly(name, course) for name in course.names)  # at a floor all gradients cancel
        if mean < self.opposite and 2 * (end - begin) >= len(course) and lost and learns:
            return self._finding(a, b, course, (begin, end), mean, None, lost[0])
        total = course["loss"][begin:end]
        half = len(total) // 2
        fell = median(total[:half]) - median(total[half:])
        if mean < self.strong and fell < self.stalled * abs(median(total[:half])):
            return self._finding(a, b, course, (begin, end), mean, None)
        return None

    def _overruled(
        self, task: str, penalty: str, course: Course, stretch: tuple[int, int], mean: float
    ) -> Finding | None:
        """A regulariser that comes down to half, and a task that had begun to be learned and is back where it began: in
        health it is the regulariser that rises, and pays for the task.
        """
        begin, end = stretch
        found = relapse(course[f"loss/{task}"], course.regime_begin(end), end, self.stopped, self.stops)
        if found is None or mean >= self.opposite or 2 * (end - begin) < len(course):
            return None
        if _gained(task, course, self.returned) or not self._plainly(penalty, course):
            return None
        if any(np.ptp(np.nan_to_num(course.weight(name))) > 0 for name in (task, penalty)):
            return None
        return self.finding(
            "warning",
            f"component:{task}~{penalty}",
            course.steps(begin, end - 1),
            f"The penalty {penalty} overrules the task {task}: their gradients pull against each other (mean cosine "
            f"{mean:.2f}), {penalty} has come down, and {task} is back at {found.now:,.4g} from {found.best:,.4g}.",
            over=len(course) - end >= course.lasting(self.fraction),
            evidence={"cosine": mean, "best": found.best, "now": found.now},
            advice=f"Lower the weight of {penalty}, or see whether it asks for what {task} cannot give.",
            confidence=0.8,
        )

    def _plainly(self, name: str, course: Course) -> bool:
        """Whether a component is learned beyond what a few batches of a run at its floor can look like."""
        known = course[f"loss/{name}"][np.isfinite(course[f"loss/{name}"])]
        now = median(known[-max(5, len(known) // 10) :])
        return course.learned(name) and bool(now < self.halved * median(known[:5]))

    def _same_weights(self, course: Course, loser: str, other: str, at: int, end: int) -> bool:
        """A loser whose weight was lowered, or whose rival's was raised, loses by plan."""
        about = slice(max(0, at - course.lasting(self.fraction)), end)
        mine, rival = course.weight(loser)[about], course.weight(other)[about]
        return bool(mine[-1] >= 0.8 * np.nanmax(mine, initial=0.0) and rival[-1] <= 1.25 * np.fmin.reduce(rival))

    def _finding(
        self,
        a: str,
        b: str,
        course: Course,
        stretch: tuple[int, int],
        mean: float,
        found: Relapse | None,
        unlearned: str = "",
    ) -> Finding:
        begin, end = stretch
        lost = f"and {unlearned} is not learned" if unlearned else "and the total stands still"
        lost = f"and {a} rose from {found.best:,.4g} to {found.now:,.4g}" if found else lost
        severity: Severity = "warning" if found or unlearned else "info"
        return self.finding(
            severity,
            f"component:{a}~{b}",
            course.steps(begin, end - 1),
            f"The gradients of {a} and {b} pull against each other (mean cosine {mean:.2f}), {lost}.",
            over=len(course) - end >= course.lasting(self.fraction),
            evidence={"cosine": mean} | ({"best": found.best, "now": found.now} if found else {}),
            advice=f"See whether {a} and {b} contradict each other; then lower one's weight, or project the gradients.",
            confidence=0.6 if severity == "info" else 0.8,
        )


def _gained(name: str, course: Course, bar: float = LEARNED) -> bool:
    """Whether it is better than untrained: one that rises at first, and comes back, has gained nothing."""
    known = course[f"loss/{name}"][np.isfinite(course[f"loss/{name}"])]
    return bool(median(known[-max(5, len(known) // 10) :]) < bar * median(known[:5]))


def _together(a: Floats, b: Floats) -> float:
    """Rank correlation of the changes of two losses: of both halves, the one nearer to 1."""
    there = np.isfinite(a) & np.isfinite(b)
    ranks = [[np.argsort(np.argsort(part)) for part in np.array_split(np.diff(one[there]), 2)] for one in (a, b)]
    return max(float(np.corrcoef(first, second)[0, 1]) for first, second in zip(*ranks, strict=True))


def _means(values: Floats, width: int) -> Floats:
    """Mean of what was probed in a window about each bin; NaN where nothing was. float64 [bins]"""
    known = np.isfinite(values)
    window = np.ones(min(width, len(values)))
    sums = np.convolve(np.where(known, values, 0.0), window, "same")
    counts = np.convolve(known.astype(np.float64), window, "same")
    return np.where(counts > 0.5, sums / np.maximum(counts, 1.0), np.nan)

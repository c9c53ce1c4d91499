"""See the rule's docstring: it is the page that `trainwatch rules loss-divergence` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.bases.curve import CurveRule
from trainwatch.header import Header
from trainwatch.rule import Findings
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity
from trainwatch.stats import median, middle, noise
from trainwatch.table import Chunk
from trainwatch.views.curve import MEDIAN, Leap, Points, leap, rise_at_once, running_median, wanders
from trainwatch.views.evaluations import held_out
from trainwatch.views.harm import (
    TWO,
    at_its_best,
    harder,
    holds_its_merit,
    keeps_its_best,
    other_answers,
    unharmed,
)

Floats = NDArray[np.float64]
SUPERVISED = ("metric/acc", "metric/accuracy", "metric/top1", "metric/perplexity", "metric/ppl")


@dataclass(frozen=True)
class Fall:
    """How a stretch of the curve went: from ``start`` down to ``best``, and where it stands ``now``."""

    start: float
    best: float
    best_step: float
    now: float
    least: float  # of the last points
    sigma: float  # noise on one point
    steady: float  # of the way down: its length as the crow flies, by that of the path
    mending: bool  # the last points fall again
    level: float  # before the sharpest rise that stands, and
    height: float  # of that rise; 0 if there is none
    flat: bool  # nothing of it came back since its first moments
    levels: Floats  # medians of eighths
    error: float  # of such a median, and
    late: float  # of one since the best: what was thrown elsewhere has another noise there

    held: float  # the lowest level of about twice as many points as best

    @property
    def progress(self) -> float:
        """What was gained."""
        return self.start - self.best


@dataclass
class LossDivergence(CurveRule):
    """The loss had come down, and went back up for good.

    What it sees:
        The total loss, smoothed, within one stage of the curriculum: it fell steadily and well beyond its noise, for
        more than a few rows, then gave back more than 40 % of what it had gained, and has stayed there without falling
        again. All of it given back is critical; what began less than twenty rows ago is an info, unless that is a
        quarter of the rows and of the plan. Of a rise that came at once and has stood for a quarter of the run, 20 %
        are enough, or 10 % if the loss has doubled. A loss that never clearly fell cannot give back: it is an alarm
        only if it doubles and stays there, clearly above where it began, in a run that is plainly supervised; or if it
        rises at once by half of its level, far beyond its noise, and both it and the validation loss stay there; or,
        whatever the run is, at a thousand times where it began, or so in the last rows before it is not finite; or if
        it came back from a hundred times its first value to just about that, and never was at half of it (from twenty
        times, if it never was below it). It is none if the second evaluation since, or a later one, is as good as any
        before it, and two are waited for; nor, where nothing is evaluated, while something other than a rate is
        scheduled to change (a teacher that lets go). What crept up to three times its lowest level, and the gradient's
        norm with it, is an info, for a weight that is annealed does so. What training made good, and validation did
        not, is data-break. A rise that recorded weights explain is none, nor is one during which the held-out loss gets
        better and better, nor one after which what validation had learned has hardly been lost, and no figure of merit
        is worse: training is asked for more (augmentation, smoothed labels, harder data); nor one since which a figure
        of merit is better than ever (a teacher that sharpens), nor a slow one of less than half of the progress during
        which none got worse; after a rise from one row to the next the next evaluation is waited for. Nor one that
        training made good while the outputs became much shorter: length-collapse tells of that.

    Why it matters:
        The weights have left the region in which they worked. What is trained from here on starts from worse than the
        checkpoint before, and usually does not find back.

    What to do:
        Take the last checkpoint before the rise. Lower the learning rate (by 3 to 10), lengthen the warm-up, clip the
        gradient's norm, and look at what changed at that step: data, labels, precision.

    When it is wrong:
        The losses of games (reinforcement learning, GANs) wander and rise in health; they are known by the names of
        their components and metrics. A change of data that is not declared can look like this until the loss falls
        again: declare it as a stage.

    References:
        Chowdhery et al., "PaLM" (2022), section 5.1, on spikes and restarts; Wortsman et al., "Small-scale proxies for
        large-scale Transformer training instabilities" (2023).
    """

    wants: ClassVar[tuple[str, ...]] = ("lr/<group>", "weight/<component>", "schedule/<name>", "stage")
    causes: ClassVar[tuple[str, ...]] = (
        *("overtraining", "loss-plateau", "mode-collapse", "repetitive-outputs", "non-finite-loss"),
        *("non-finite-gradient", "hidden-nan", "length-collapse", "invalid-outputs"),
    )

    given_back: float = 0.4  # of the progress: sharp turns of a healthy schedule give back a third at most
    broken: float = 0.2  # of the progress, if it was lost at once and has stood since: no schedule does that
    worth: float = 0.1  # of the progress, if the level has doubled
    half: float = 0.5  # of the progress: less may be the loss's meaning, where no figure of merit lost anything
    lost: float = 1.0  # of the progress: the run is where it began
    fewest: int = 8  # points: ten epochs are a log, and three of them must be bad
    enough: int = 20  # points of one stage among several, or after a resume: a short stage is mostly its beginning
    gained: float = 0.1  # of the first value: less is fine-tuning near the floor, where noise is all there is
    clear: float = 4.0  # standard deviations of one point that the progress must exceed
    steady: float = 0.7  # of the way down: a descent is nearly straight, a random walk is not
    late: float = 0.25  # of the points: three of ten epochs are bad; a few rows at the end are not judged yet
    doubled: float = 2.0  # x the lowest level, for a loss that never fell: any start-up transient is smaller
    step: float = 0.5  # of the level, if it rose by that from one row to the next, and validation with it
    plain: float = 4.0  # standard deviations of one point that such a step must exceed
    shared: float = 0.25  # of validation's best before; beside the few such steps of healthy runs it went on falling
    exploded: float = 10.0  # x the first loss, and that before the rise: there is nothing left to interpret
    beyond: float = 1000.0  # x the first loss, whatever the run may be, and
    thrown: float = 100.0  # x the first loss, in three of five points: no untrained model does so; its square in games
    unlearnt: float = 20.0  # x, where it never came below the first loss again: an overshoot of the first steps does
    crept: float = (
        3.0  # x the lowest level of an eighth of the run, of loss and norm alike: noise and a late rate do not
    )
    about: float = 3.0  # x the first loss at most, at the end: what begins at 0 by construction is far above by then
    kept: float = 0.5  # of the first loss, as the lowest level of all: what the model did not know, it does not know
    tall: float = 10.0  # in its own unit: what begins at 0 by construction, as a distance to a copy, stays small
    young: float = 0.25  # of the planned steps: a few rows may be a transient yet, however many of a short log they are

    _planned: int = field(default=0, init=False)  # steps

    def start(self, header: Header) -> Findings:
        """How long the run is meant to be."""
        self._planned = header.total_steps or 0
        return super().start(header)

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Judge each stage by itself."""
        points = self._curve.points(rest)
        yield from self._burst(run, rest, points)
        for stage in points.stages():
            alone = len(stage) > 0.9 * len(points) and not self._resumed  # the rate of a warm-up jumps in few rows
            if len(stage) < (self.fewest if alone else self.enough):
                continue
            fall, last = _fall(stage), bool(stage.step[-1] == points.step[-1])
            known = self._fell(fall) or _plain(run)
            sick = known and (self._back(fall) or self._stepped(run, fall, stage))
            sick = sick or self._beyond(fall) or (_plain(run) and self._lost(fall))
            game = wanders(run, points)
            if alone and (game or not sick) and self._thrown(points, game=game, weighed=_weighed(run)):
                yield self._finding_thrown(points)  # what it is thrown from may be a stage of two rows
            if game or not sick:
                yield from self._crept(run, rest, fall, stage) if last and not game else ()
                continue
            broke = leap(stage.loss)
            answered = broke is not None and other_answers(run, stage, broke)
            if not answered and not self._explained(run, rest, fall, stage, broke):
                yield self._finding(run, rest, fall, stage, over=not last)

    def _fell(self, fall: Fall) -> bool:
        """Whether there was progress to lose."""
        held = fall.start - fall.held > fall.progress / 2  # of losses of two kinds, a few low ones may meet
        return held and fall.progress > max(self.clear * fall.sigma, self.gained * abs(fall.start))

    def _beyond(self, fall: Fall) -> bool:
        """Whether it stands so far above its beginning that nobody need know what it measures."""
        first = float(fall.levels[:2].max())
        return first > 0 and float(fall.levels[-2:].min()) > max(self.beyond * first, self.tall)

    def _lost(self, fall: Fall) -> bool:
        """Whether what had clearly come down stands at a multiple of where it began, however it came there."""
        kept = fall.least - fall.best < self.given_back * fall.progress
        return self._fell(fall) and not kept and fall.now > self.exploded * max(fall.start, 0.0)

    def _thrown(self, stage: Points, *, game: bool, weighed: bool) -> bool:
        """Whether it was thrown beyond measure, and came back to where it began and no further: it is over, and no
        transient of a run's first steps.
        """
        first, level = float(stage.loss[0]), running_median(stage.loss, 5)
        highest, left = float(level.max()), float(level[-max(5, len(stage) // 4) :].max())
        back = self.kept * first < float(level.min()) <= float(level[-1]) < self.about * first
        never = float(level[self.fewest :].min(initial=np.inf)) > first and not weighed
        times = self.thrown**2 if game else self.unlearnt if never else self.thrown
        over = left < highest / 10 and stage.step[-1] >= self.young * self._planned
        return bool(first > 0 and back and over and highest > max(times * first, self.tall))

    def _finding_thrown(self, stage: Points) -> Finding:
        first, now, level = float(stage.loss[0]), median(stage.loss[-5:]), running_median(stage.loss, 5)
        began = int(stage.step[max(1, int(np.argmax(level > self.doubled * first)))])
        return self.finding(
            "warning",
            "run",
            (began, int(stage.step[-1])),
            f"The loss rose from {first:.4g} to {stage.loss.max():.4g}, came back to {now:.4g}, and never was at half "
            "of where it began.",
            evidence={"start": first, "highest": float(stage.loss.max()), "now": now},
            advice="Lower the learning rate tenfold and more, or lengthen the warm-up, and begin anew: what was "
            "learned after such a rise began from ruins.",
            confidence=0.8,
        )

    def _crept(self, run: Run, rest: Chunk, fall: Fall, stage: Points) -> Iterator[Finding]:
        """A loss that rises by and by to a multiple of its lowest level, and the gradient's norm with it."""
        levels, low = fall.levels, int(np.argmin(fall.levels))
        if not 0 < self.crept * levels[low] < levels[-2:].min():
            return
        norms = self._curve.raw(run, "grad_norm", rest)[self._curve.raw_steps(run, rest) >= stage.step[0]]
        norm = np.array([median(part) for part in np.array_split(norms, len(levels))])
        if norm[-2:].min() > self.crept * norm[low] and not self._explained(run, rest, fall, stage, None):
            first = int(stage.step[np.flatnonzero(stage.loss <= 2 * levels[low])[-1]])
            yield self.finding(
                "info",
                "run",
                (first, self._curve.span(run, rest)[1]),
                f"The loss has crept up from {levels[low]:.4g} to {levels[-1]:.4g}, and the gradient's norm with it, "
                f"from {norm[low]:.4g} to {norm[-1]:.4g}.",
                evidence={"best": float(levels[low]), "now": float(levels[-1])},
                advice="If no weight grows and the data are no harder, take a checkpoint from before it, and a lower "
                "learning rate.",
                confidence=0.5,
            )

    def _burst(self, run: Run, rest: Chunk, points: Points) -> Iterator[Finding]:
        """A loss that left all bounds in a few rows, and was never finite again: too short for a curve."""
        loss, steps = self._curve.raw(run, "loss", rest), self._curve.raw_steps(run, rest)
        known = np.flatnonzero(np.isfinite(loss))
        bar = max(self.beyond * float(loss[known[0]]), self.tall) if len(known) else 0.0
        blown = known[np.flatnonzero(loss[known] <= bar)[-1] + 1 :] if len(known) else known
        since, _ = run.train.nonfinite("loss")
        lost = len(known) < self.fewest and len(blown) > 1 and (since > steps[known[-1]]).sum() >= self.fewest
        if lost and loss[known[0]] > 0 and not wanders(run, points):
            first, high = float(loss[known[0]]), float(loss[blown].max())
            yield self.finding(
                "critical",
                "run",
                (int(steps[blown[0]]), int(steps[-1])),
                f"The loss rose from {first:.4g} to {high:.4g} in {len(known):,} rows, and has not been finite since.",
                evidence={"start": first, "highest": high},
                advice="Lower the learning rate tenfold and more, or lengthen the warm-up.",
                confidence=0.9,
            )

    def _back(self, fall: Fall) -> bool:
        """Whether it gave back what it had clearly gained; or never gained, and rose to a multiple."""
        if self._fell(fall):
            kept = fall.least - fall.best < self.given_back * fall.progress
            progress = fall.start - fall.level
            broke = fall.height > min(self.broken * progress, max(fall.level, self.worth * progress))
            broke &= fall.flat or fall.height > self.given_back * progress  # a small jump may be learned away yet
            rose = fall.levels[-1] - fall.levels.min()  # a few low rows of a wild loss are no level
            partly = rose > max(self.given_back * fall.progress, self.clear * fall.late) and not fall.mending
            gave = not kept and (fall.now >= fall.start or partly)
            return (gave or broke) and fall.steady >= self.steady
        levels, bar = fall.levels, self.clear * fall.error
        risen = min(levels[-2:]) > max(self.doubled * levels.min(), levels[0] + bar) and fall.now > fall.start
        stays = levels[-1] > levels[-2] - max(bar, self.clear * fall.late)
        return bool(levels.min() > 0 and risen and stays)

    def _explained(self, run: Run, rest: Chunk, fall: Fall, stage: Points, broke: Leap | None) -> bool:
        """Whether something else than worse weights makes the loss rise: what it counts, or what it is asked."""
        if self._weighted_up(run, rest, fall, stage) or harder(run, fall.best_step):
            return True
        first, rise, fell = self._onset(run, rest, fall, stage.step[-1]), fall.now - fall.best, self._fell(fall)
        steps, turns = held_out(run)[0], not fell or (broke is not None and fall.now < fall.start)
        unseen = not (steps <= fall.best_step).any()  # nobody knows what validation was at the best point
        if len(steps) and (not fell or unseen) and keeps_its_best(run, stage, first):
            return True
        if not fell and not len(steps) and self._scheduled(run, rest, fall):
            return True
        wanted = 1 if fell else TWO
        waits = turns and run.end is None and (steps >= first).sum() < wanted
        if waits and len(steps) > 1:  # the data may be others: whether the weights are worse is told by validation
            return bool(stage.step[-1] - first < (wanted + 1) * np.median(np.diff(steps)))
        slow = fell and (broke is None or broke.height < rise / 2)
        if slow and rise < self.half * fall.progress and holds_its_merit(run, fall.best_step):
            return True
        return unharmed(run, stage, first, rise) or at_its_best(run, fall.best_step, first)

    def _stepped(self, run: Run, fall: Fall, stage: Points) -> bool:
        """Whether it rose at once and stands there, and no evaluation since has come near the best one before."""
        bar = max(self.step * fall.level, self.plain * fall.sigma)
        if not (fall.flat and fall.level > 0 and fall.height > bar and fall.now > fall.start and "loss" in run.eval):
            return False
        low = np.flatnonzero(running_median(stage.loss, 5) <= fall.level + fall.height / 2)
        steps, values = run.eval.curve("loss")
        before = values[(steps >= stage.step[0]) & (steps <= stage.step[low[-1]])] if len(low) else values[:0]
        since = values[(steps > stage.step[low[-1]]) & (steps <= stage.step[-1])] if len(low) else before
        return bool(len(before) and len(since) > 1 and since.min() > before.min() + self.shared * abs(before.min()))

    def _weighted_up(self, run: Run, rest: Chunk, fall: Fall, stage: Points) -> bool:
        """Whether weights that were raised since the best point explain the rise."""
        steps = self._curve.raw_steps(run, rest)
        then, now = int(np.argmin(np.abs(steps - fall.best_step))), steps >= stage.step[-min(3, len(stage))]
        explained = 0.0
        for name in run.components():
            weight, raw = (self._curve.raw(run, f"{kind}/{name}", rest) for kind in ("weight", "loss"))
            grown = np.median(weight[now] - weight[then]) * np.median(raw[now]) if len(weight) else np.nan
            explained += float(np.nan_to_num(grown, posinf=0.0, neginf=0.0))
        return explained > 0.5 * (fall.now - fall.best)

    def _scheduled(self, run: Run, rest: Chunk, fall: Fall) -> bool:
        """Whether something that is scheduled, and is no rate, moved since the best point: a helping hand withdrawn."""
        after = self._curve.raw_steps(run, rest) >= fall.best_step
        names = [name for name in run.train.channels if name.startswith("schedule/")]
        columns = [self._curve.raw(run, name, rest)[after] for name in names]
        return any(len(np.unique(column[np.isfinite(column)])) > 1 for column in columns)

    def _finding(self, run: Run, rest: Chunk, fall: Fall, stage: Points, *, over: bool) -> Finding:
        first, fell = self._onset(run, rest, fall, stage.step[-1]), self._fell(fall)
        back = (fall.now - fall.best) / fall.progress if fell else 0.0
        since = int((stage.step >= first).sum())
        gone = max(fall.start, 0.0) < fall.now / self.exploded
        lasts, stays = since * stage.rows >= self.block, since >= self.late * len(stage)
        stays = stays and not (run.end is None and stage.step[-1] < self.young * self._planned)
        level: Severity = (
            "critical" if (gone or back >= self.lost) and lasts else "warning" if lasts or stays else "info"
        )
        went = (
            f"fell from {fall.start:.4g} to {fall.best:.4g} by step {fall.best_step:,.0f}, then rose"
            if fell
            else f"never clearly fell from its first value of {fall.start:.4g}, and rose"
        )
        lost = f": {back:.0%} of the progress is gone" if fell else ""
        return self.finding(
            level,
            "run",
            (first, int(stage.step[-1]) if over else self._curve.span(run, rest)[1]),
            f"The loss {went} to {fall.now:.4g}{lost}.",
            over=over,
            evidence={"start": fall.start, "best": fall.best, "best_step": fall.best_step, "now": fall.now},
            advice=f"Go back to the last checkpoint before step {first:,}, with a lower learning rate, a longer "
            "warm-up or a limit on the gradient's norm.",
            confidence=0.9 if fell or gone else 0.6,
        )

    def _onset(self, run: Run, rest: Chunk, fall: Fall, end: float) -> int:
        """Where the rise began: from the rows in which it left two heights for good, back along the line of both; in
        noise as high as the rise no height is left for good, and the cumulated distance from the middle turns there.
        """
        steps, loss = self._curve.raw_steps(run, rest), self._curve.raw(run, "loss", rest)
        known = np.isfinite(loss) & (steps <= end)
        steps, loss = steps[known], loss[known]
        rise = min(fall.now - fall.best, max(fall.progress, fall.sigma))  # a loss that explodes may end anywhere
        height = max(3 * noise(loss[steps <= fall.best_step]), 0.05 * rise)
        after = steps >= fall.best_step
        if 2 * height > rise or fall.now > self.exploded * max(fall.start, 0.0):
            level = fall.level if fall.height else float(fall.levels.min())
            now = min(fall.now, level + max(4 * height, self.doubled * abs(level)))  # what explodes left it long ago
            above = np.minimum(loss[after], now) - (now + level) / 2
            return int(steps[after][min(int(np.argmin(np.cumsum(above))) + 1, int(after.sum()) - 1)])
        smooth = running_median(loss, 5)
        left = [np.flatnonzero(smooth <= fall.best + times * height) for times in (1, 2)]
        if not len(left[0]):
            return int(steps[0])
        low, high = (min(int(rows[-1]) + 1, len(steps) - 1) for rows in left)
        return int(steps[max(2 * low - high, int(np.argmax(after)))])


def _fall(stage: Points) -> Fall:
    """Describe a stretch of at least a few points."""
    tail = max(3, len(stage) // 20)
    smooth = stage.smooth(tail if len(stage) >= 24 else 1)  # a skewed noise has minima far below its level
    best = int(np.argmin(smooth[:-tail]))
    start = middle(smooth[: max(1, len(smooth) // 40)])
    down = smooth[: best + 1 : max(1, best // 12)]
    path = float(np.abs(np.diff(down)).sum())
    last, now = smooth[-tail:], middle(smooth[-tail:])
    peak = float(smooth[best:-tail].max())  # a rise that goes on has its highest point at the end
    risen = max(float(smooth[best:].max()) - float(smooth[best]), 1e-300)
    level, height, flat = rise_at_once(stage.loss)
    sigma = noise(stage.loss[: max(best + 1, len(stage) // 4, 24)])  # eight skewed rows may look calm
    return Fall(
        start=start,
        best=float(smooth[best]),
        best_step=float(stage.step[best]),
        now=now,
        least=float(last.min()),
        sigma=sigma,
        steady=(start - float(smooth[best])) / path if path else 1.0,
        mending=(peak - now > 0.3 * risen and not _stands(smooth, best, start)) or last[0] - last[-1] > 0.2 * risen,
        level=level,
        height=height,
        flat=flat,
        levels=np.array([median(part) for part in np.array_split(stage.loss, 8)]),
        error=MEDIAN * sigma / max(1, len(stage) // 8) ** 0.5,
        late=MEDIAN * noise(stage.loss[best:]) / max(1, len(stage) // 8) ** 0.5,
        held=float(stage.smooth(2 * tail - 1).min()) if len(stage) >= 24 else float(smooth[best]),
    )


def _stands(smooth: Floats, best: int, start: float) -> bool:
    """Whether the last quarter of what came after the best point is flat, and where the run began: it fell from a
    peak, and no further.
    """
    late = smooth[best + 3 * (len(smooth) - best) // 4 :]
    gained, level = start - float(smooth[best]), middle(late)
    half = len(late) // 2
    falls = middle(late[:half]) - middle(late[half:]) if half else 0.0
    return len(late) >= 8 and level - smooth[best] > 0.9 * gained and falls < 0.05 * gained


def _weighed(run: Run) -> bool:
    """Whether a weight of a component moved: what it began with is not what it stands beside."""
    columns = (run.train[name] for name in run.train.channels if name.startswith("weight/"))
    return any(len(np.unique(column[np.isfinite(column)])) > 1 for column in columns)


def _plain(run: Run) -> bool:
    """Whether the run is plainly supervised: it has classes, a unit of information, or is evaluated as such."""
    units = [component.unit for component in run.header.components.values()]
    evaluated = "loss" in run.eval or any(name in run.eval for name in SUPERVISED)
    return "nat" in units or bool(run.header.raw.get("classes")) or evaluated

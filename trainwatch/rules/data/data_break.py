"""See the rule's docstring: it is the page that `trainwatch rules data-break` prints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trainwatch.bases.curve import CurveRule
from trainwatch.rule import Findings
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import Floats
from trainwatch.table import Chunk
from trainwatch.views.curve import Leap, Points, flips, leap
from trainwatch.views.evaluations import direction, held_out, scatter
from trainwatch.views.games import contested, opponent
from trainwatch.views.harm import left, less_merit, other_answers, unharmed


@dataclass
class DataBreak(CurveRule):
    """From one row to the next the loss rose, and validation has been worse ever since: the data became another.

    What it sees:
        Within one stage of the curriculum, the highest rise of the loss from one row to the next: by a quarter of its
        level, far beyond its noise; or half as far, if none of it was made good, or if validation gave back two fifths
        of what it had gained, and a figure of merit, if there is one, says the same. If validation has been a tenth
        worse ever since than at its best before, and the raw components, or a figure of merit, or training that has
        made the rise good, say the same, it is a warning. In a game both must, and only components that no player owns
        count. What recorded weights explain is none; nor is a rise after which what validation had learned has hardly
        been lost, and no figure of merit is worse: training is asked for more (augmentation, smoothed labels). Nor one
        that began with a row ten times as high as what stands of it: such a batch broke the weights. Nor one that
        training made good while the outputs became much shorter: length-collapse tells of that.

    Why it matters:
        The labels of the new data contradict what was learned, and training learns the contradiction: its own loss
        recovers, and looks well, while the model gets worse at what it is for. Weights that are only thrown off come
        back on the validation set too.

    What to do:
        Look at the data that begins at that step, its labels first: a new shard, another order of files, an index that
        is off by one. Go back to the last checkpoint before it.

    When it is wrong:
        A new task that is meant to replace the old one, of which validation still asks for the old: declare it as a
        stage.

    References:
        Northcutt et al., "Pervasive Label Errors in Test Sets" (2021); Sculley et al., "Hidden Technical Debt in
        Machine Learning Systems" (2015), section 3, on data that changes unseen.
    """

    wants: ClassVar[tuple[str, ...]] = ("eval:loss", "weight/<component>", "stage")
    causes: ClassVar[tuple[str, ...]] = (
        *("loss-divergence", "component-divergence", "overtraining", "generalisation-gap"),
        *("length-collapse", "invalid-outputs"),
    )

    enough: int = 20  # points of a stage: a short one is mostly its beginning; half of them show a loss that doubles
    much: float = 0.25  # of the level: what validation is asked to confirm
    worth: float = 0.1  # of the progress: less is the floor of what is learned
    clear: float = 8.0  # standard deviations of one point: the highest of a thousand noisy rows comes to five
    stands: float = 0.75  # of a rise that less noise-free rows must keep, in each quarter of what came after
    worse: float = 0.1  # of validation's best before; what was healthy came to 0.03 where the rise was sharp
    gone: float = 0.4  # of what validation had gained, after a rise from one row to the next; health: 0.15, sick: 0.46
    towers: float = 10.0  # x the rise that stands, in its first row: data that are others cost alike, row by row
    kept: float = 0.5  # of a rise: where training made more than that good, it is not the weights that are lost

    def finish(self, run: Run, rest: Chunk) -> Findings:
        """Judge each stage by itself; of a resumed run nobody knows what validation had come to."""
        points = self._curve.points(rest)
        if self._resumed or "loss" not in run.eval or flips(points):
            return
        for stage in points.stages():
            broke = leap(stage.loss) if len(stage) >= self.enough / 2 else None
            if broke is not None and len(stage) < self.enough and broke.height < abs(broke.level):
                continue
            if broke is not None and self._broken(run, rest, stage, broke):
                yield self._finding(run, stage, broke)

    def _broken(self, run: Run, rest: Chunk, stage: Points, broke: Leap) -> bool:
        """Whether validation has been worse ever since, and more than a new term of the total says so."""
        first, last, steps, values = stage.step[broke.row], stage.step[-1], *held_out(run)
        before = values[(steps >= stage.step[0]) & (steps < first)]
        since = values[(steps >= first) & (steps <= last)]
        if not len(before) or min((steps < first).sum(), len(since)) < 2:
            return False
        if len(since) > 2:  # at the first, little of the new data may have been learned
            since, learned = since[1:], float(steps[steps >= first][1])
        else:
            learned = first
        if stage.loss[broke.row] - broke.level > self.towers * broke.height:
            return False
        if not self._high(stage, broke, self._undone(run, learned, before, since)):
            return False
        sides = [scatter(side) for side in (before, since) if len(side) > 3]  # a steep descent looks like noise
        bar = max(self.worse * abs(before.min()), 2 * min(sides, default=0.0))
        if since.min() < before.min() + bar or (values[steps > last] < before.min()).any():
            return False
        if other_answers(run, stage, broke) or unharmed(run, stage, first, broke.height):
            return False
        if contested(run):  # its own losses rise in health, others in it do not
            given = [name for name in run.components() if not opponent(name)]
            return self._raw_rose(run, rest, first, broke.height, given) and less_merit(run, learned)
        confirmed = self._raw_rose(run, rest, first, broke.height, run.components()) or less_merit(run, learned)
        return confirmed or left(stage, broke) < self.kept

    def _undone(self, run: Run, first: float, before: Floats, since: Floats) -> bool:
        """Whether validation gave back much of what it had ever gained, and no figure of merit says otherwise."""
        gained = float(before[0] - before.min())
        lost = gained > self.worth * abs(before[0]) and since.min() - before.min() > self.gone * gained
        merits = [name for name in run.eval.channels if name.startswith("metric/") and direction(name)]
        return bool(lost) and (not merits or less_merit(run, first))

    def _high(self, stage: Points, broke: Leap, undone: bool) -> bool:
        """Whether a rise is far beyond the noise; or half as far, and no quarter of what came after is much lower, or
        what validation had learned is undone.
        """
        if broke.height < self.worth * (float(stage.loss[0]) - broke.level):
            return False
        if undone:
            return broke.height > self.much * abs(broke.level) / 2
        if broke.height > self.clear * broke.noise:
            return broke.height > self.much * abs(broke.level)
        lowest = min(float(np.median(part)) for part in np.array_split(stage.loss[broke.row :], 4))
        stood = lowest - broke.level > self.stands * broke.height
        return stood and broke.height > 1.5 * self.much * abs(broke.level)

    def _raw_rose(self, run: Run, rest: Chunk, first: float, height: float, names: Iterable[str]) -> bool:
        """Whether components, under the weights that they had before, account for half of a rise."""
        steps, rise = self._curve.raw_steps(run, rest), 0.0
        then, now = (steps < first) & (steps >= first - 5), (steps >= first) & (steps < first + 5)
        for name in names:
            weight, raw = (self._curve.raw(run, f"{kind}/{name}", rest) for kind in ("weight", "loss"))
            if np.isfinite(raw[then]).any() and np.isfinite(raw[now]).any():
                known = weight[then & np.isfinite(weight)] if len(weight) else weight
                of = float(known[-1]) if len(known) else 1.0
                rise += of * float(np.nanmedian(raw[now]) - np.nanmedian(raw[then]))
        return rise > height / 2

    def _finding(self, run: Run, stage: Points, broke: Leap) -> Finding:
        first = int(stage.step[broke.row])
        steps, values = held_out(run)
        best, now = float(values[steps < first].min()), float(values[steps <= stage.step[-1]][-1])
        return self.finding(
            "warning",
            "run",
            (first, int(max(stage.step[-1], steps[-1]))),
            f"The loss rose at once from {broke.level:.4g} to {broke.level + broke.height:.4g} at step {first:,}, and "
            f"validation, which had come to {best:.4g}, has been worse ever since and stands at {now:.4g}.",
            evidence={"level": broke.level, "height": broke.height, "validation_best": best, "validation_now": now},
            advice=f"Look at the data that begins at step {first:,}, its labels first; go back to the last checkpoint "
            "before it.",
            confidence=0.85,
        )

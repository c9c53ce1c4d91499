"""See the rule's docstring: it is the page that `trainwatch rules evaluation-unchanged` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity
from trainwatch.stats import Floats, noise
from trainwatch.table import Chunk, TableName
from trainwatch.views.evaluations import losses

UNUSED = 0x1FFF
"""Bits of a float32 that are 0 in every number that float16 or bfloat16 can hold."""
MANY = 3
"""Figures of four digits that are as good as one of five."""


@dataclass
class EvaluationUnchanged(Rule):
    """Every evaluation gives the same loss to the last digit, though steps were taken in between.

    What it sees:
        Evaluations of one split at different steps whose losses and metrics all are equal to those of the evaluation
        before: four and more, a third of all, and the last ones. The loss must be known to five digits and more, and to
        more than half precision can hold, for weights that move leave none of them; from the first evaluation on three
        figures of four digits are as good. An evaluation in every row is none: it stands there until there is another.
        Rows at the end of a schedule, whose rate is a thousandth of the highest or less, are left alone; so is a split
        beside another one that changes. What begins later is an info, unless the training loss still falls at a rate
        that is logged: it may have converged. Eight and more are critical.

    Why it matters:
        If the training loss stands too, no weight moves, and nothing is learned in the hours that are paid for. If it
        falls, what is evaluated is not what is trained: the best checkpoint, and when to stop, are chosen by a number
        that says nothing.

    What to do:
        Compare a weight of the model that is evaluated before and after a step. Usual causes: an optimiser that holds
        the parameters of another copy, a rate of 0, frozen parameters, dead units that answer everything alike;
        evaluation of a copy (an average of weights that is never updated, a model that was wrapped, compiled or loaded
        before training), or of outputs in a cache.

    When it is wrong:
        A baseline that is evaluated for comparison as the only split.

    References:
        accelerate #2665, on an optimiser that holds other tensors than the model.
    """

    reads: ClassVar[tuple[TableName, ...]] = ("eval",)
    needs: ClassVar[tuple[str, ...]] = ("eval:loss|eval:loss/<component>",)
    wants: ClassVar[tuple[str, ...]] = ("loss", "lr/<group>")
    causes: ClassVar[tuple[str, ...]] = ("loss-stuck", "loss-plateau", "slow-convergence")

    fewest: int = 4  # evaluations that are equal to the one before: three of five digits may meet at the floor
    sure: int = 8  # are no accident, and as much of a run as somebody looks at
    share: float = 1 / 3  # of all evaluations of the split
    digits: int = 5  # of the loss: a learning model does not keep them
    counted: int = 4  # of a figure, where three of them are the same
    little: float = 1e-3  # of a figure: what creeps in its last digits may stand for two evaluations
    begin: float = 0.5  # of the planned steps: a copy that is averaged later on, a value that is carried, has moved
    alive: float = 1e-3  # of the highest rate: below it rounding hides a healthy step
    fell: float = 0.05  # of the training loss, and
    clear: float = 4.0  # standard errors: so much is learned

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """All splits as they stand now."""
        series = list(_series(run))
        if not all(figures for _, figures in series):
            return  # NaN is equal to nothing
        stretches = [self._equal(*one) for one in series]
        since = max((first for first, _ in stretches), default=np.inf)
        count = min((equal for _, equal in stretches), default=0)
        rated = self._rated(run, since)
        if count < self.fewest or rated is False:
            return
        if count >= (run.train.step[run.train.live] > since).sum():
            return  # in every row: the last evaluation stands there until there is another
        fell, later = self._fell(run, since), bool((run.eval.step[run.eval.live] < since).any())
        young = run.end is None and (run.last_step or 0) < self.begin * (run.header.total_steps or np.inf)
        first = int(since) if later else run.first_step or int(since)
        stands = "the weights hardly move" if later else "no weight moves"
        means = "what is evaluated is not what is trained" if fell else stands
        severity: Severity = "critical" if count >= self.sure else "warning"
        yield self.finding(
            "info" if (later and not (rated and fell)) or young else severity,  # it may have converged, or not begun
            "run",
            (first, run.last_step or first),
            f"{count + 1} evaluations since step {int(since):,} are equal to the last digit: {means}.",
            evidence={"evaluations": count + 1},
            advice="Compare a weight of the model that is evaluated before and after a step; build the optimizer from "
            "that model's parameters.",
            confidence=0.8,
        )

    def _equal(self, steps: Floats, figures: Mapping[str, Floats]) -> tuple[float, int]:
        """Step since which nothing changes, and how many evaluations since then are equal to the one before."""
        table = np.array(list(figures.values()))
        change = np.diff(table, axis=1)
        same = ((change == 0) | np.isnan(change)).all(axis=0)
        begin = int(np.flatnonzero(~same)[-1]) + 1 if not same.all() else 0
        count = len(steps) - 1 - begin
        much = (np.ptp(table, axis=1) > self.little * np.abs(table[:, -1])).any()
        repeats = same[:begin].any() and much  # a log that writes each evaluation more than once
        exact = self._exact(figures, ever_changed=begin > 0)
        return float(steps[begin]), count if exact and not repeats and count >= self.share * len(steps) else 0

    def _exact(self, figures: Mapping[str, Floats], *, ever_changed: bool) -> bool:
        """Whether the figures have so many digits that a step of training shows in one of them, or in some together."""
        digits = {name: _digits(values[-1]) for name, values in figures.items()}
        of_losses = [count for name, count in digits.items() if name.startswith("loss")]
        several = not ever_changed and sum(count >= self.counted for count in digits.values()) >= MANY
        return bool(of_losses) and (several or max(of_losses) >= self.digits)

    def _rated(self, run: Run, since: float) -> bool | None:
        """Whether the rate since then was more than nothing; None where none is logged. One that always was 0 is."""
        rates = [run.train[name] for name in run.train.channels if name.startswith("lr/")]
        rate = np.fmax.reduce(rates) if rates else np.empty(0)
        late = rate[run.train.step > since] if rates else rate
        late, highest = late[np.isfinite(late)], np.fmax.reduce(rate, initial=0.0)
        return (not highest or bool(np.median(late) > self.alive * highest)) if len(late) else None

    def _fell(self, run: Run, since: float) -> bool:
        """Whether the training loss came down since then."""
        values = run.train["loss"][(run.train.step > since) & run.train.live]
        values = values[np.isfinite(values)]
        third = len(values) // 3
        if not third:
            return False
        early, late = float(np.median(values[:third])), float(np.median(values[-third:]))
        return bool(early - late > max(self.fell * abs(early), self.clear * noise(values) / third**0.5))


def _series(run: Run) -> Iterator[tuple[Floats, dict[str, Floats]]]:
    """Of each split that has a loss: steps, and every loss and metric as it was last known; nothing where one is not
    finite in the end. One row for one state of the weights.
    """
    rows = Chunk("eval", run.eval, 0, run.eval.size)
    names = [*losses(rows), *(name for name in rows.channels if name.startswith("metric/"))]
    broken = rows.broken(lambda name: name in names)
    measured = np.any([np.isfinite(rows[name]) for name in losses(rows)], axis=0) | broken
    splits = np.array([str(rows.text(row, "split") or "validation") for row in range(len(rows))], dtype=object)
    for split in dict.fromkeys(splits):
        every = np.flatnonzero((splits == split) & run.eval.live & ~(rows["repeat"] > 0))
        mine = measured[every]  # metrics may be logged in rows of their own
        of = np.where(np.isfinite(rows["weights_step"]), rows["weights_step"], rows.step)[every][mine]
        last = np.append(np.diff(of) != 0, True)[: len(of)]
        figures = {name: _filled(rows[name][every])[mine][last] for name in names}
        known = {name: values for name, values in figures.items() if np.isfinite(values).any()}
        if len(of):
            yield rows.step[every][mine][last].astype(np.float64), {} if broken[every][mine][-1] else known


def _filled(values: Floats) -> Floats:
    """The last finite value there was; NaN before the first. float64 [rows]"""
    return values[np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values)), 0))]


def _digits(value: float) -> int:
    """How many digits a number was written with; those of half precision, which has three or four, are 0."""
    if not np.isfinite(value) or np.float32(value).view(np.uint32) & UNUSED == 0:
        return 0
    return next((digits for digits in range(1, 17) if float(f"{value:.{digits - 1}e}") == value), 17)

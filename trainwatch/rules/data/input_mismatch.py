"""See the rule's docstring: it is the page that `trainwatch rules input-mismatch` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import middle
from trainwatch.table import Chunk, TableName
from trainwatch.views.evaluations import held_out
from trainwatch.views.games import contested

Floats = NDArray[np.float64]


@dataclass
class InputMismatch(Rule):
    """What the model reads in evaluation is scaled otherwise than what it reads in training.

    What it sees:
        Mean and spread of what the first layer reads, in training (`data/read_mean`, `data/read_std`) and in the
        evaluations (the same names there; the recorder takes both, of the first batch that the same layer reads).
        Spreads at least three times apart, or means by three spreads, in the last three evaluations and more, and alike
        in the last five. A warning if it is ten times, and the validation loss is half as high again as the training
        loss; else an info: the first batch may be the corner of an image, or the beginning of a game.

    Why it matters:
        A normalisation that one of the two loaders lacks, pixels of 0 to 255 on one side and of 0 to 1 on the other:
        what is measured is not what was trained, and what is served will not be either.

    What to do:
        Apply the same transformation to both sets, with the statistics of the training set; print one batch of each.

    When it is wrong:
        Inputs that are made harder in training by scaling them up and down, always by the same; a set for evaluation
        that is meant to be of another kind.

    References:
        Breck et al., "Data validation for machine learning" (2019): training-serving skew.
    """

    reads: ClassVar[tuple[TableName, ...]] = ("eval",)
    needs: ClassVar[tuple[str, ...]] = ("eval:data/read_std", "data/read_std")
    wants: ClassVar[tuple[str, ...]] = ("data/read_mean", "eval:data/read_mean", "loss", "eval:loss")
    causes: ClassVar[tuple[str, ...]] = (
        *("generalisation-gap", "overfitting", "overtraining", "metric-stuck", "suspicious-validation"),
        *("noisy-evaluation", "input-scale"),
    )

    apart: float = 3.0  # x the spread, or spreads between the means: a normalisation of pixels of 0 to 1 is four
    far: float = 10.0  # the same, beside a validation that is worse: the first batch alone may be another kind of data
    alike: float = 1.5  # x among the last evaluations, and the looks in training: noise levels and curricula move more
    evaluations: int = 3  # one batch each
    looks: int = 5  # in training, before each evaluation
    worse: float = 1.5  # x the training loss: a normalisation inside the model forgives the difference

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """The last evaluations beside the training before each."""
        step, spread = held_out(run, "data/read_std")
        at, trained = run.train.curve("data/read_std")
        at, trained = at[trained > 0], trained[trained > 0]  # a blank batch is no scale
        if len(spread) < self.evaluations or len(trained) < self.evaluations or not (spread > 0).all():
            return
        usual = self._before(step, at, trained)
        times = np.maximum(spread, usual) / np.minimum(spread, usual)
        shift = self._shift(run, step, np.fmax(spread, usual))
        off = np.fmax(times, shift)
        near = np.flatnonzero(~(off >= self.apart))
        since = int(near[-1]) + 1 if len(near) else 0
        recent = slice(max(since, len(off) - self.looks), None)
        if len(off) - since < self.evaluations or not (self._steady(spread[recent]) and self._steady(usual[recent])):
            return
        sick = off[since:].min() >= self.far and self._suffers(run) and not contested(run)
        yield self._finding(run, (int(step[since]), int(step[-1])), (spread[-1], usual[-1], off[-1]), sick)

    def _before(self, step: Floats, at: NDArray[np.int64], values: Floats) -> Floats:
        """The median of the last looks before each evaluation, or the first one of all. float64 [evaluations]"""
        ends = np.maximum(np.searchsorted(at, step, side="right"), 1)
        return np.array([middle(values[max(end - self.looks, 0) : end]) for end in ends])

    def _shift(self, run: Run, step: Floats, spread: Floats) -> Floats:
        """How many spreads lie between the means; NaN where they are not known. [evaluations]"""
        where, means = held_out(run, "data/read_mean")
        at, trained = run.train.curve("data/read_mean")
        if len(where) != len(step) or not len(trained):
            return np.full(len(step), np.nan)
        shift: Floats = np.abs(means - self._before(step, at, trained)) / spread
        return shift

    def _steady(self, values: Floats) -> bool:
        return bool(values.max() <= self.alike * values.min())

    def _suffers(self, run: Run) -> bool:
        """Whether validation is dearer than training by more than it need be."""
        held, trained = held_out(run)[1][-self.evaluations :], run.train.curve("loss")[1]
        if not (len(held) and len(trained)):
            return False
        return bool(np.median(held) > self.worse * middle(trained[-max(1, len(trained) // 10) :]) > 0)

    def _finding(self, run: Run, steps: tuple[int, int], read: tuple[float, float, float], sick: bool) -> Finding:
        spread, usual, off = read
        means = held_out(run, "data/read_mean")[1][-1:], run.train.curve("data/read_mean")[1][-self.looks :]
        held, trained = (f"mean {np.median(mean):.3g} and " if len(mean) else "" for mean in means)
        return self.finding(
            "warning" if sick else "info",
            "run",
            steps,
            f"The model reads inputs of {held}spread {spread:.3g} in evaluation, of {trained}spread {usual:.3g} in "
            f"training: {off:.3g} times apart.",
            evidence={"evaluation": spread, "training": usual, "apart": off},
            advice="Apply the same transformation to both sets; print one batch of each as the model gets it.",
            confidence=0.9 if off >= self.far else 0.7,
        )

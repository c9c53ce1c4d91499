"""See the rule's docstring: it is the page that `trainwatch rules loss-zero` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.copying import copied
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schedule import MOST
from trainwatch.schema import Finding, Severity
from trainwatch.stats import Streak
from trainwatch.table import Chunk
from trainwatch.views.games import plays

Floats = NDArray[np.float64]


@dataclass
class LossZero(Rule):
    """The loss is exactly zero, row after row.

    What it sees:
        The total loss at exactly 0 in five rows in a row, after it had stood well above 0 and had never been 0 before:
        it did not get there by learning. Or at exactly 0 from the first row on, with a gradient that is exactly 0 too.

    Why it matters:
        No loss is trained on. Trainers that write 0 instead of a NaN loss make a dead run look perfect; a mask that
        leaves nothing over, or a label that is ignored throughout, gives 0 as well.

    What to do:
        Print the raw loss of one batch. With the Hugging Face Trainer, set `logging_nan_inf_filter=False` and look for
        NaN. Count the positions that the mask leaves, and the labels that are not ignored.

    When it is wrong:
        Hinge and triplet losses reach 0 by learning, one row at a time; the first update of GRPO has a loss of 0 by
        construction and a gradient all the same. Both are left alone. A perceptron may be solved by its first updates:
        a gradient of exactly 0 beside a 0 that came within five rows is an info. A loss rounded to few digits may read
        as 0.

    References:
        huggingface/transformers, `logging_nan_inf_filter`; trainproof's rule TP-ZERO-LOSS-ONSET.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    wants: ClassVar[tuple[str, ...]] = ("grad_norm", "weight/<component>")
    causes: ClassVar[tuple[str, ...]] = ("loss-stuck", "gradient-vanishing", "frozen-weights")

    rows: int = 5  # in a row: one may be an empty batch
    always: int = 20  # rows, if it was never anything else: a short log is no proof
    lasting: int = 100  # rows: no accident, the run is lost
    abrupt: float = 0.01  # of the first loss: from this far up nobody learns his way to exactly 0 in one step
    clear: float = 0.2  # of its level, before: a hinge loss touches 0 now and then on its way down

    _streak: Streak = field(init=False)
    _first: float = field(default=np.nan, init=False)
    _recent: Floats = field(default_factory=lambda: np.empty(0), init=False)  # the last ones before the first zero
    _known: int = field(default=0, init=False)
    _zeros: int = field(default=0, init=False)
    _gradient: float = field(default=np.nan, init=False)  # the largest norm that was seen beside a zero
    _weight: float = field(default=np.nan, init=False)  # the largest weight that was seen beside a zero

    def __post_init__(self) -> None:
        self._streak = Streak(self.rows)

    def update(self, chunk: Chunk) -> Findings:
        """What the loss was before each zero, and how many there were."""
        there = np.isfinite(chunk["loss"])
        loss = chunk["loss"][there]
        if len(loss):
            zero = loss == 0
            zeros = self._zeros + np.cumsum(zero) - zero
            self._first = float(loss[0]) if np.isnan(self._first) else self._first
            if not self._zeros:
                self._recent = np.concatenate([self._recent, loss[: int(np.argmax(zero)) if zero.any() else None]])[
                    -20:
                ]
            self._known, self._zeros = self._known + len(loss), int(zeros[-1] + zero[-1])
            self._streak.push(zero, {"step": chunk.step[there].astype(np.float64), "zeros": zeros})
            if zero.any():
                self._beside(chunk, np.flatnonzero(there)[zero])
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Judge on a copy that has seen the rows which fill no block yet."""
        now = copied(self)
        now.update(rest)
        if now._streak.onset is not None and now._weight != 0 and not plays([*run.train.channels, *run.eval.channels]):
            yield from now._verdict(now._streak.onset)

    def _beside(self, chunk: Chunk, rows: NDArray[np.int64]) -> None:
        """What stands beside the zeros: a gradient, and weights that may all be 0 by plan."""
        weights = [name for name in chunk.channels if name.startswith("weight/")][:MOST]
        for name in weights:
            self._weight = float(np.fmax(self._weight, np.fmax.reduce(np.abs(chunk[name][rows]))))
        self._gradient = float(np.fmax(self._gradient, np.fmax.reduce(chunk["grad_norm"][rows])))

    def _verdict(self, onset: dict[str, float]) -> Iterator[Finding]:
        before = float(self._recent[-1]) if len(self._recent) else 0.0
        if not len(self._recent) and self._zeros == self._known >= self.always and not self._gradient > 0:
            told = ", and so is the gradient" if self._gradient == 0 else "; no gradient is recorded"
            severity: Severity = "warning" if self._gradient == 0 else "info"
            yield self._finding(severity, onset, f"The loss is exactly 0 in all {self._known:,} rows{told}.")
        elif onset["zeros"] == 0 and self._abrupt():
            rows = self._streak.bad
            grave: Severity = "critical" if rows >= self.lasting and not self._streak.over else "warning"
            fell = f"The loss fell from {before:.4g} to exactly 0 at step {onset['step']:,.0f}"
            if len(self._recent) < self.rows and self._gradient == 0:
                either = "either everything is solved, or nothing is left to train on"
                yield self._finding("info", onset, f"{fell}, and so did the gradient: {either}.")
            else:
                yield self._finding(grave, onset, f"{fell}, and was 0 in {rows:,} rows.")

    def _abrupt(self) -> bool:
        """Whether the loss stood well above 0 before, and never came near it."""
        sizes = np.abs(self._recent)
        far = len(sizes) > 0 and sizes[-1] > self.abrupt * abs(self._first)
        return bool(far and sizes.min() > self.clear * np.median(sizes))

    def _finding(self, severity: Severity, onset: dict[str, float], message: str) -> Finding:
        return self.finding(
            severity,
            "run",
            (int(onset["step"]), int(self._streak.latest["step"])),
            message,
            over=self._streak.over,
            evidence={"zeros": self._zeros, "rows": self._known},
            advice="Print the raw loss of one batch: it may be NaN and written as 0, or the mask leaves nothing over.",
            confidence=0.9 if severity != "info" else 0.5,
        )

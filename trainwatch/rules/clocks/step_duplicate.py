"""See the rule's docstring: it is the page that `trainwatch rules step-duplicate` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.rule import Rule
from trainwatch.schema import Finding
from trainwatch.stats import carried
from trainwatch.table import Chunk

Floats = NDArray[np.float64]


@dataclass
class StepDuplicate(Rule):
    """One step is recorded twice, with different losses.

    What it sees:
        A row that has a loss and the same step as the row with a loss before it. Where the log has done so from its
        first rows on, or the loss is the same too, it is a habit of the logger and only mentioned.

    Why it matters:
        Two losses at one step are two processes that write into one log, a counter that stands still while the training
        goes on, or micro-batches that are recorded as steps. What is drawn or judged by the step is then wrong.

    What to do:
        Let rank 0 alone write, or give each rank a file of its own; count the step up once in every optimiser step.

    When it is wrong:
        Loops that log each micro-batch of an accumulated step under one number do so from the first row on.

    References:
        wandb: "step must be monotonically increasing"; Lightning: `log` called from every rank.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("loss|loss/<component>",)
    causes: ClassVar[tuple[str, ...]] = ("throughput-drop",)

    rows: int = 5  # repeats: fewer are a stutter of the logger
    habit: int = 20  # rows, a window: what is done within the first ones is a habit
    share: float = 0.02  # of the rows since the first repeat: rarer ones do not bend a curve

    _step: float = field(default=np.nan, init=False)
    _loss: float = field(default=np.nan, init=False)
    _seen: int = field(default=0, init=False)
    _first: tuple[int, int] = field(default=(0, -1), init=False)  # step and row of the first repeat
    _last: tuple[int, int] = field(default=(0, 0), init=False)
    _repeats: int = field(default=0, init=False)
    _other: int = field(default=0, init=False)  # of these, with another loss

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """A repeat is rare: the rest costs one comparison."""
        loss = self._losses(chunk)
        told = np.flatnonzero(np.isfinite(loss))
        step, loss = chunk.step[told].astype(np.float64), loss[told]
        again = np.flatnonzero(step == carried(self._step, step)) if len(told) else told
        if len(again):
            if self._first[1] < 0:
                self._first = int(step[again[0]]), self._seen + int(again[0])
            self._last = int(step[again[-1]]), self._seen + int(again[-1])
            self._repeats += len(again)
            self._other += int((loss[again] != carried(self._loss, loss)[again]).sum())
            yield self._finding()
        if len(told):
            self._seen, self._step, self._loss = self._seen + len(told), float(step[-1]), float(loss[-1])

    @staticmethod
    def _losses(chunk: Chunk) -> Floats:
        """The total, or the first component where none is recorded. float64 [rows]"""
        first = next((name for name in chunk.channels if name.startswith("loss/")), "loss")
        return np.where(np.isnan(chunk["loss"]), chunk[first], chunk["loss"])

    def _finding(self) -> Finding:
        (first, row), (last, until) = self._first, self._last
        many = self._other >= max(self.rows, self.share * (until - row + 1))
        return self.finding(
            "warning" if many and row >= self.habit else "info",
            "run",
            (first, last),
            f"{self._repeats:,} rows repeat the step of the row before, {self._other:,} of them with another loss; the "
            f"first at step {first:,}.",
            over=not many,
            evidence={"repeats": self._repeats, "other": self._other},
            advice="Let one process write, and count the step up once in every optimiser step.",
            confidence=0.9,
        )

"""See the rule's docstring: it is the page that `trainwatch rules hidden-nan` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from trainwatch.rule import Rule
from trainwatch.schema import Finding
from trainwatch.stats import Bools, Floats, Streak, carried
from trainwatch.table import Chunk

NORMS = ("grad_norm", "grad_norm_at_step")


@dataclass
class HiddenNan(Rule):
    """The run has gone to NaN, and the log hides it behind a loss that looks healthy.

    What it sees:
        A loss that stands still to the last bit, at 0.0 or at its last good value, for 5 rows in a row while the norm
        of the gradient is no finite number on steps that the scaler did not skip. Or, where no norm is recorded, a loss
        that was positive and far from 0 and from one row to the next is exactly 0.0 and stays there. A loss that sinks
        to 0 by and by is another thing.

    Why it matters:
        The curve looks better than ever, early stopping and the best checkpoint believe it, and nothing is trained.

    What to do:
        Hugging Face: `logging_nan_inf_filter=False`, so that the log tells the truth. Elsewhere look for `nan_to_num`,
        for a mean that leaves NaN out, for a `try` around the step. Then look for what became NaN at the named step.

    When it is wrong:
        Without a recorded gradient norm a loss that is switched off, or a reward that every sample of a batch earns,
        looks the same; so its confidence is lower there.

    References:
        `logging_nan_inf_filter` of Hugging Face's Trainer, on by default (transformers #13619, trl #6702);
        trainproof TP-ZERO-LOSS-ONSET.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    wants: ClassVar[tuple[str, ...]] = ("grad_norm|grad_norm_at_step", "amp/skipped|applied")
    causes: ClassVar[tuple[str, ...]] = (
        *("loss-zero", "loss-stuck", "loss-plateau", "overtraining"),
        *("non-finite-gradient", "non-finite-weights", "non-finite-loss"),
    )

    rows: int = 5  # in a row; trainproof's number: a scaler's skips and a batch without targets come one by one
    abrupt: float = 0.25  # of the first losses: a loss that sinks to 0 by learning passes below that first
    before: int = 5  # rows before, all positive and wider from 0 than from each other: no reward or margin near 0 is

    _first: Floats = field(default_factory=lambda: np.empty(0), init=False)
    _rows: Floats = field(default_factory=lambda: np.empty(0), init=False)
    _value: float = field(default=np.nan, init=False)
    _stood: float = field(default=np.nan, init=False)
    _loss: float = field(default=np.nan, init=False)
    _dark: Streak = field(init=False)
    _zero: Streak = field(init=False)

    def __post_init__(self) -> None:
        """One streak with the norm as a witness, one without any."""
        self._dark, self._zero = Streak(self.rows), Streak(self.rows)

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Judge the rows that tell a loss; one that is NaN hides nothing."""
        known = np.isfinite(chunk["loss"])
        if not known.any():
            return
        loss = chunk["loss"][known]
        gradient = chunk.broken(lambda name: name in NORMS)
        silent = ~gradient & np.all([np.isnan(chunk[name]) for name in NORMS], axis=0)
        still = (loss == 0.0) | (loss == carried(self._loss, loss))
        columns = {"step": chunk.step[known].astype(np.float64), "loss": loss}
        columns["before"], sudden = self._fell(loss)
        changed = self._dark.push(still & (gradient & chunk.trained())[known], columns)
        changed |= self._zero.push(sudden & silent[known], columns)
        self._loss = float(loss[-1])
        if changed:
            yield from self._findings()

    def _fell(self, loss: Floats) -> tuple[Floats, Bools]:
        """The last loss that was not 0 before each row; and whether it is 0 since, from where it had stood."""
        zero = loss == 0.0
        if not zero.any() and len(loss) > 2 * self.before:  # nearly always: only the last rows can matter
            self._first = np.concatenate([self._first, loss[: self.before]])[: self.before]
            self._fell(loss[-self.before :])
            return np.full(len(loss), np.nan), zero
        self._first = np.concatenate([self._first, loss[~zero]])[: self.before]
        level = float(np.median(self._first)) if len(self._first) == self.before else np.inf
        rows = np.concatenate([self._rows, loss])
        windows = sliding_window_view(np.concatenate([np.full(self.before - 1, np.nan), rows]), self.before)
        low, high = windows.min(axis=1)[len(self._rows) :], windows.max(axis=1)[len(self._rows) :]
        stood = (level > 0) & (low > self.abrupt * level) & (low > 2 * (high - low))
        before = carried(self._value, np.where(zero, np.nan, loss))
        fell = carried(self._stood, np.where(zero, np.nan, stood))
        self._rows = rows[1 - self.before :]
        if not zero.all():
            last = np.flatnonzero(~zero)[-1]
            self._value, self._stood = float(loss[last]), float(stood[last])
        return before, zero & (fell == 1.0)

    def _findings(self) -> Iterator[Finding]:
        for streak, dark in ((self._dark, True), (self._zero, False)):
            onset = streak.onset
            if onset is None:
                continue
            first, last = int(onset["step"]), int(streak.latest["step"])
            value, rows = onset["loss"], f"{streak.bad:,} rows"
            fell = value == 0.0 and np.isfinite(onset["before"])
            was = f", after {onset['before']:.4g}" if fell else ""
            why = "while the gradient's norm is no finite number" if dark else "which no loss comes to in one step"
            yield self.finding(
                "critical" if dark else "warning",
                "run",
                (first, last),
                f"From step {first:,} on the loss stands at exactly {value:.6g} on {rows}{was}, {why}: the log hides a "
                "NaN.",
                over=streak.over,
                evidence={"loss": value, "rows": streak.bad} | ({"before": onset["before"]} if fell else {}),
                advice="Set logging_nan_inf_filter=False (Hugging Face), or take out what replaces NaN in the log; "
                f"then look for what became NaN at step {first:,}, and resume from a checkpoint before it.",
                confidence=0.95 if dark else 0.7,
            )

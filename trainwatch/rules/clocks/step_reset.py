"""See the rule's docstring: it is the page that `trainwatch rules step-reset` prints."""

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


@dataclass
class StepReset(Rule):
    """The step counter goes back, and no resume explains it.

    What it sees:
        A row whose step, or whose count of applied steps (those that the optimiser took, not those that the scaler
        skipped), is lower than that of the row before it in the same file. A recorded resume starts a new stretch and
        is none; a step that only repeats is none either.

    Why it matters:
        Two stretches of training lie over each other: the curve folds back, and everything that reads the counter
        (warm-up, annealing, the curriculum, the checkpoint's name) starts again or overwrites what was there.

    What to do:
        If the process was restarted, restore the counter from the checkpoint and open the log with `resume=`, so that
        the steps in between are superseded. If two processes write into one file, give each its own.

    When it is wrong:
        A log that is sorted by something else than time, or that several writers share, folds back without any harm to
        the training itself.

    References:
        Step axes that fold back after a restart: tensorboard purge_step, wandb "step must be monotonically increasing".
    """

    block: ClassVar[int] = 20
    wants: ClassVar[tuple[str, ...]] = ("applied",)
    causes: ClassVar[tuple[str, ...]] = (
        *("step-duplicate", "clock-desync", "schedule-desync", "lr-desync", "curriculum-weight-drift"),
    )

    told: int = 5  # findings; two writers in one file fold back at every line, and the sixth tells nothing new

    _step: float = field(default=np.nan, init=False)
    _applied: float = field(default=np.nan, init=False)
    _seen: int = field(default=0, init=False)

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """A drop is rare: only those rows are looked at one by one."""
        step, applied = chunk.step.astype(np.float64), chunk["applied"]
        before, applied_before = carried(self._step, step), carried(self._applied, applied)
        back = step < before
        applied_back = (applied < applied_before) & ~back
        for row in np.flatnonzero(back | applied_back):
            self._seen += 1
            if self._seen <= self.told:
                values = (before, step) if back[row] else (applied_before, applied)
                yield self._reset(int(chunk.step[row]), "step" if back[row] else "applied", int(row), values)
        if len(chunk):
            self._step = float(step[-1])
            self._applied = float(carried(self._applied, np.append(applied, np.nan))[-1])

    def _reset(self, at: int, counter: str, row: int, values: tuple[NDArray[np.float64], ...]) -> Finding:
        was, now = (float(column[row]) for column in values)
        name = "The step" if counter == "step" else "The count of applied steps"
        more = "; later ones are not listed" if self._seen == self.told else ""
        return self.finding(
            "warning",
            "run" if counter == "step" else "clock:applied",
            (int(was) if counter == "step" else at, int(was) if counter == "step" else at),
            f"{name} goes back from {was:,.0f} to {now:,.0f}, and no resume explains it{more}.",
            over=True,  # it happened, and the run went on from there
            evidence={"from": was, "to": now},
            advice="Restore the counter from the checkpoint, open the log with resume=, or give each process a file.",
            confidence=0.9,
        )

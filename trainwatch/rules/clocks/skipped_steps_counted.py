"""See the rule's docstring: it is the page that `trainwatch rules skipped-steps-counted` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.schema import Finding
from trainwatch.table import Chunk

Floats = NDArray[np.float64]
AROUND = 2  # rows on each side of a skipped one that tell whether a value stood still
COUNTED = 1.5  # steps' way, across a skipped one: 1 where it did not count, 2 where it did
MOST = 8  # schedules that are looked at: all are stepped by the same loop


@dataclass
class Moves:
    """Skipped steps on which one value moved, and on which it stood."""

    judged: int = 0
    moved: int = 0
    early: int = 0  # of the first few
    first: int = 0
    last: int = 0


@dataclass
class SkippedStepsCounted(Rule):
    """A scheduler advances on steps that the optimiser skipped.

    What it sees:
        Rows with `amp/skipped` between rows without, while a learning rate or a schedule is changing: from the row
        before to the row after it should come as far as in one step, and comes as far as in two. Or two skipped rows in
        a row between which it changed. It is mentioned once the first three such skips moved it, and a warning from 1 %
        of the run on.

    Why it matters:
        The schedule runs ahead of the training by one step for every overflow: warm-up ends before the weights have
        moved, and the rate is at its floor before the run is at its end.

    What to do:
        Step the scheduler only where the optimiser stepped: compare `scaler.get_scale()` before and after `update()`,
        or ask `optimizer_step_was_skipped`.

    When it is wrong:
        Schedules that are meant to follow the data instead of the weights; a few skips at the start never matter.

    References:
        torch.amp: "lr_scheduler.step() before optimizer.step()" after a skipped first step; accelerate's wrapped
        scheduler skips with the optimiser.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("amp/skipped", "lr/<group>|schedule/<name>")
    wants: ClassVar[tuple[str, ...]] = ("run:total_steps",)
    causes: ClassVar[tuple[str, ...]] = ("schedule-desync", "lr-desync")

    believed: int = 3  # skips, the first ones, that all moved it: a plateau or a corner of the schedule is no proof
    grave: float = 0.01  # of the run: as far as a schedule may be off its steps
    fewest: int = 20  # skips, where the length of the run is not known: fp16 that looks for its scale has fewer

    _total: int = field(default=0, init=False)
    _moves: dict[str, Moves] = field(default_factory=dict, init=False)
    _held: dict[str, Floats] = field(default_factory=dict, init=False)

    def start(self, header: Header) -> Findings:
        """How long the run is to be."""
        self._total = header.total_steps or 0
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Only rows around a skip are looked at."""
        names = [name for name in chunk.channels if name.startswith(("lr/", "schedule/"))][:MOST]
        fresh = {"step": chunk.step.astype(np.float64), "skipped": chunk["amp/skipped"]}
        fresh |= {name: chunk[name] for name in names}
        rows = {
            name: np.concatenate([self._held.get(name, np.full(2 * AROUND, np.nan)), values])
            for name, values in fresh.items()
        }
        self._held = {name: values[-2 * AROUND :].copy() for name, values in rows.items()}
        skips = AROUND + np.flatnonzero(rows["skipped"][AROUND:-AROUND] == 1.0)
        if len(skips):
            yield from self._judge(rows, skips, names)

    def _judge(self, rows: dict[str, Floats], skips: NDArray[np.int64], names: list[str]) -> Iterator[Finding]:
        """A skip that stands alone between four trained steps, on each of which the value changed; or one that
        follows another: nothing was applied from the one row to the other.
        """
        near = skips[:, None] + np.arange(-AROUND, AROUND + 1)
        flags, apart = rows["skipped"][near], np.diff(rows["step"][near], axis=1) == 1
        alone = (flags == [0, 0, 1, 0, 0]).all(axis=1) & apart.all(axis=1)
        second = (flags[:, 1] == 1) & apart[:, 1]
        told = False
        for name in names:
            change = np.diff(rows[name][near], axis=1)
            pace = (change[:, 0] + change[:, -1]) / 2
            even = np.abs(change[:, 0] - change[:, -1]) < 0.7 * np.abs(pace)  # no corner of the schedule is here
            lone, both = alone & even & np.isfinite(change).all(axis=1), second & (np.abs(change[:, 1]) > 0)
            moved = np.where(lone, (change[:, 1] + change[:, 2]) / np.where(lone, pace, 1.0) > COUNTED, both)
            moved, steps = moved[lone | both], rows["step"][near[lone | both][:, AROUND]]
            moves = self._moves.setdefault(name, Moves())
            moves.early += int(moved[: max(self.believed - moves.judged, 0)].sum())
            moves.judged += len(moved)
            if moved.any():
                moves.first, moves.last = moves.first or int(steps[moved][0]), int(steps[moved][-1])
                moves.moved += int(moved.sum())
            told |= bool(len(moved)) and moves.early == self.believed
        if told:
            yield self._finding()

    def _finding(self) -> Finding:
        moved = {name: moves for name, moves in self._moves.items() if moves.early == self.believed}
        name, moves = min(moved.items(), key=lambda item: item[1].first)
        others = f" (and {len(moved) - 1} more)" if len(moved) > 1 else ""
        ahead = self.grave * self._total if self._total else max(self.fewest, self.grave * moves.last)
        return self.finding(
            "warning" if moves.moved > ahead else "info",
            "run",
            (moves.first, moves.last),
            f"{name}{others} moved on at {moves.moved:,} of {moves.judged:,} steps that the optimiser skipped.",
            evidence={"moved": moves.moved, "judged": moves.judged, "planned": self._total},
            advice="Step the scheduler only where the optimiser was stepped.",
            confidence=0.9,
        )

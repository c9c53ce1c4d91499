"""See the rule's docstring: it is the page that `trainwatch rules step-gap` prints."""

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
from trainwatch.views.games import plays

Floats = NDArray[np.float64]
AFTER = 3  # strides behind a jump that tell it from a new rhythm


@dataclass
class StepGap(Rule):
    """The step counter jumps ahead, out of the log's own rhythm.

    What it sees:
        The stride from row to row against the 20 strides before it and the three behind it: a log of every 50th step
        has its rhythm, and one that changes to every 100th a new one. Where times are recorded, they tell whether rows
        are missing or the counter was moved: only that is a warning. Rows are left out by who thins, cuts or joins a
        log, and the training knows nothing of it.

    Why it matters:
        Either a stretch of the run was never written down, and whatever happened in it is invisible; or the counter
        jumped, and every schedule, stage and checkpoint that goes by it jumped with it.

    What to do:
        Look for a restart that does not open its log with `resume=`, a lost or rotated file, a counter that is set from
        something else (samples, batches of an epoch) after a restart.

    When it is wrong:
        Logs that were thinned out by a tracker, or joined from several files, have gaps that the training had not. In
        games a row may be an episode, which is as long as it was: where their strides keep changing, none is a gap.

    References:
        Sampled histories of trackers: W&B `run.history(samples=...)`, TensorBoard's reservoir.
    """

    block: ClassVar[int] = 20
    wants: ClassVar[tuple[str, ...]] = ("elapsed", "time")
    causes: ClassVar[tuple[str, ...]] = ("clock-desync", "schedule-desync", "curriculum-shock", "loss-spike")

    rhythm: int = 20  # strides: a window
    fewest: int = 5  # strides: before so many are known there is no rhythm
    jump: float = 5.0  # times the largest stride before, or more: a row that a busy logger left out is no gap
    uneven: float = 10.0  # times the median stride, where strides differ: logs by time come unevenly
    grave: float = 0.02  # of the planned steps, or of the steps so far: less than a window of the run is not missed
    grave_rows: float = 20.0  # strides: and less than a window of rows is not either
    changing: float = 0.1  # of the strides are not as the one before: jumps and left out rows are fewer, episodes more
    passed: float = 0.3  # of the time that so many steps take: if less went by, the counter was moved

    _total: int = field(default=0, init=False)
    _held: dict[str, Floats] = field(default_factory=dict, init=False)  # the last rows: before and behind a jump
    _judged: int = field(default=0, init=False)  # of the rows that are held
    _found: list[float] = field(default_factory=list, init=False)  # first step, its stride, usual stride, moved
    _count: int = field(default=0, init=False)
    _lost: float = field(default=0.0, init=False)
    _last: int = field(default=0, init=False)

    def start(self, header: Header) -> Findings:
        """How long the run is to be."""
        self._total = header.total_steps or 0
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Rows whose stride is many times the one before are looked at; in most logs there is none."""
        fresh = {"step": chunk.step.astype(np.float64), "elapsed": chunk["elapsed"], "time": chunk["time"]}
        fresh["uneven"] = self._unevenness(chunk)
        rows = {name: np.concatenate([self._held.get(name, np.empty(0)), values]) for name, values in fresh.items()}
        stride = np.diff(rows["step"], prepend=np.nan)
        until = len(stride) - AFTER
        wide = stride[1:until] >= self.jump * np.maximum(stride[: until - 1], 1.0) if until > 1 else np.zeros(0, bool)
        suspects = 1 + np.flatnonzero(wide)
        found, usual = self._jumps(stride, suspects[suspects >= self._judged])
        if plays(chunk.channels):  # a row may be an episode, which is as long as it was
            even = rows["uneven"][found - 1] <= 0
            found, usual = found[even], usual[even]
        if len(found):
            self._note(rows, stride, found, usual)
            yield self._finding()
        keep = self.rhythm + AFTER + 1
        self._judged = max(until, 0) - max(len(stride) - keep, 0)
        self._held = {name: values[-keep:].copy() for name, values in rows.items()}

    def _unevenness(self, chunk: Chunk) -> Floats:
        """For each row, by how many more than usual the strides so far were not as the one before. float64 [rows]"""
        steps = np.concatenate([[np.nan, np.nan], self._held.get("step", np.empty(0)), chunk.step])[-len(chunk) - 2 :]
        before = self._held["uneven"][-1] if self._held else 0.0
        return np.asarray(before + np.cumsum((np.abs(np.diff(steps, 2)) > 0) - self.changing))

    def _jumps(self, stride: Floats, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
        """Of the suspects, those that no stride before explains, after which it goes on as before; the usual stride."""
        index = rows[:, None] - np.arange(self.rhythm, 0, -1)
        before = np.where(index > 0, stride[np.maximum(index, 0)], np.nan)
        before[~(before > 0)] = np.nan
        known = np.isfinite(before).sum(axis=1) >= self.fewest
        rows, before = rows[known], before[known]
        if not len(rows):
            return rows, np.empty(0)
        largest, usual, least = np.nanmax(before, axis=1), np.nanmedian(before, axis=1), np.nanmin(before, axis=1)
        limit = self.jump * largest
        limit = np.where(largest > least, np.maximum(limit, self.uneven * usual), limit)
        after = stride[rows[:, None] + np.arange(1, AFTER + 1)]
        jumps = (stride[rows] >= limit) & (after <= largest[:, None]).all(axis=1)
        return rows[jumps], usual[jumps]

    def _note(self, rows: dict[str, Floats], stride: Floats, found: NDArray[np.int64], usual: Floats) -> None:
        """Count the jumps; of the widest, what it was."""
        self._count, self._last = self._count + len(found), int(rows["step"][found[-1]])
        self._lost += float((stride[found] - usual).sum())
        widest = int(np.argmax(stride[found]))
        first = self._found[0] if self._found else float(rows["step"][found[0]])
        if not self._found or stride[found[widest]] > self._found[1]:
            moved = self._moved(rows, int(found[widest]), stride)
            self._found = [first, float(stride[found[widest]]), float(usual[widest]), moved]

    def _moved(self, rows: dict[str, Floats], row: int, stride: Floats) -> float:
        """1 if no time went by that the steps between would have taken, 0 if it did, NaN where that is not known."""
        near = slice(max(row - self.rhythm, 0), row + 1)
        time = rows["elapsed"][near] if np.isfinite(rows["elapsed"][near]).all() else rows["time"][near]
        took, steps = np.diff(time), stride[near][1:]
        pace = (took / steps)[:-1][steps[:-1] > 0]
        pace = pace[np.isfinite(pace) & (pace > 0)]
        if not len(pace) or not np.isfinite(took[-1]):
            return np.nan
        return float(took[-1] < self.passed * np.median(pace) * steps[-1])

    def _finding(self) -> Finding:
        first, width, usual, moved = self._found
        missing = width - usual
        grave = missing >= self.grave_rows * usual and missing >= self.grave * (self._total or self._last)
        why = {
            1.0: "and no time went by in between: the counter was moved",
            0.0: "and the time went by: rows are missing",
        }
        many = f", the widest of {self._count:,} jumps" if self._count > 1 else ""
        return self.finding(
            "warning" if grave and moved == 1.0 else "info",
            "run",
            (int(first), self._last),
            f"The step goes on by {width:,.0f} at once where rows are {usual:,.0f} apart{many} (the first at step "
            f"{first:,.0f}){', ' + why[moved] if moved in why else ''}.",
            over=True,  # it happened, and the run went on from there
            evidence={"stride": width, "usual": usual, "jumps": self._count, "missing": self._lost},
            advice="Open the log of a restarted run with resume=, and restore its counter from the checkpoint.",
            confidence=0.9 if moved in why else 0.7,
        )

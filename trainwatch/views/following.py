"""Whether recorded values follow their declared schedules: since when not, and which clock or speed explains it.

What `schedule-desync` and `lr-desync` have in common, so that they never tell of one value by different measures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header
from trainwatch.schedule import (
    MOST,
    OTHER_UNITS,
    clock_progress,
    follows_schedule,
    schedule_band,
    schedule_channel,
    schedule_values,
)
from trainwatch.stats import Streak, carried
from trainwatch.table import Chunk

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
KEPT = 16  # rows that a speed is estimated from
ENOUGH = 20  # rows that are off, a window: then their speed is known well enough to be named
EXPLAINS = 0.9  # of the rows that are off must fit a clock before it is named: the rest are its first ones
SPEEDS = sorted(
    {Fraction(p, q) for p in range(1, 17) for q in range(1, 17)} | {Fraction(p, 1) for p in (32, 64, 128)},
    key=lambda speed: speed.numerator + speed.denominator,
)
"""What a scheduler that is stepped too often or too seldom runs at, simplest first."""


@dataclass
class Watched:
    """One schedule: since when its values are off, which clocks would explain that, and at which speed they move.

    ``speed`` is what the rows say that were off when there were enough of them: a window, and a tenth of the schedule,
    so that a warm-up alone does not decide. It stays what it was; until then it is asked of the rows there are.
    """

    declared: dict[str, Any]
    streak: Streak
    explained: dict[str, int] = field(default_factory=dict)
    decided: float = np.inf  # row at which the speed was
    _speed: float | None = None
    _kept: Floats = field(default_factory=lambda: np.empty((0, 3)))
    _stride: int = 1
    _off: int = 0

    @property
    def clock(self) -> str | None:
        """The recorded clock that explains the values, if one does."""
        clock = max(self.explained, key=lambda key: self.explained[key], default=None)
        return clock if clock is not None and self.explained[clock] >= EXPLAINS * self.streak.bad else None

    def speed(self, tolerance: float) -> float | None:
        """How fast it moves, by all rows if one speed explains them; else as it was decided."""
        return _speed(self.declared, self._kept, tolerance) or self._speed

    def settled(self, tolerance: float) -> float | None:
        """The speed as it was decided, which no later row changes; before that, as it looks now."""
        return self._speed if np.isfinite(self.decided) else _speed(self.declared, self._kept, tolerance)

    def push(self, due: Floats, values: Floats, rows: Floats, tolerance: float) -> None:
        """Rows that are off. Every ``stride``-th is kept, so few that they stay ``KEPT``."""
        enough = max(ENOUGH, 0.1 * float(self.declared.get("over_steps") or 0))
        until = enough - self._off
        if len(due) and np.isinf(self.decided) and until <= len(due):
            first = max(int(np.ceil(until)), 1)
            self._keep(due[:first], values[:first])
            self._speed, self.decided = _speed(self.declared, self._kept, tolerance), float(rows[first - 1])
            due, values = due[first:], values[first:]
        self._keep(due, values)

    def _keep(self, due: Floats, values: Floats) -> None:
        count = self._off + np.arange(len(due))
        self._off += len(due)
        kept = np.concatenate([self._kept, np.stack([count, due, values], axis=1)])
        self._kept = kept[kept[:, 0] % self._stride == 0]
        while len(self._kept) > KEPT:
            self._stride *= 2
            self._kept = self._kept[self._kept[:, 0] % self._stride == 0]


@dataclass
class Epoch:
    """The applied step at which the epoch of the last row began, and how many steps lay between that row and the one
    before: what a schedule holds that is stepped once an epoch.
    """

    number: float = np.nan
    applied: float = np.nan
    began: float = np.nan
    gap: float = 1.0

    def push(self, chunk: Chunk) -> tuple[Floats, Floats]:
        """Begin and gap for every row; NaN where no whole epoch is recorded. float64 [rows], twice"""
        epoch, applied = chunk["epoch"], chunk.applied()
        if not np.isfinite(epoch).any():
            self.applied = float(applied[-1]) if len(applied) else self.applied
            return np.full(len(epoch), np.nan), np.ones(len(epoch))
        begins = np.isfinite(epoch) & (epoch != carried(self.number, epoch))
        row = np.maximum.accumulate(np.where(begins, np.arange(1, len(epoch) + 1), 0))
        gaps = np.maximum(np.nan_to_num(np.diff(np.concatenate([[self.applied], applied])), nan=1.0), 1.0)
        began, gap = np.concatenate([[self.began], applied])[row], np.concatenate([[self.gap], gaps])[row]
        self.number = float(carried(self.number, np.append(epoch, np.nan))[-1])
        self.applied, self.began, self.gap = float(applied[-1]), float(began[-1]), float(gap[-1])
        return np.where(epoch == np.floor(epoch), began, np.nan), gap


@dataclass
class Following:
    """Every declared schedule whose channel begins with ``prefix``, against what is recorded of it."""

    rows: int  # in a row that make a streak
    tolerance: float  # relative
    drift: float  # of the schedule's length: a value that follows a clock this close to the step is forgiven
    held: float  # of the schedule's length: in longer epochs, a value held for one is not what was declared
    prefix: str = ""
    watched: dict[str, Watched] = field(default_factory=dict)
    _total: int | None = None
    _epoch: Epoch = field(default_factory=Epoch)
    _seen: int = 0

    def start(self, header: Header) -> None:
        """The schedules that have a formula."""
        known = {name: said for name, said in header.schedules.items() if schedule_values(said, 0.0) is not None}
        channels = {schedule_channel(name): said for name, said in list(known.items())[:MOST]}
        self.watched = {
            name: Watched(said, Streak(self.rows)) for name, said in channels.items() if name.startswith(self.prefix)
        }
        self._total = header.total_steps

    def push(self, chunk: Chunk) -> list[str]:
        """Add rows; the schedules that are off, and whose story these rows changed."""
        if not self.watched:
            return []
        trained, (began, gap), changed = chunk.trained(), self._epoch.push(chunk), []
        bands: dict[str, tuple[Floats, Floats]] = {}
        for name, watched in self.watched.items():
            declared, value, due = watched.declared, chunk[name], _due(name, watched.declared, chunk)
            judged = np.isfinite(value) & np.isfinite(due) & trained
            if not judged.any():
                continue
            low, high = self._band(bands, name, declared, due, chunk)
            off = judged & ((value < low) | (value > high))
            if off.any() and driven_by(declared) == "applied":
                held = due - began <= self.held * float(declared.get("over_steps") or self._total or 0)
                off &= ~(held & follows_schedule(declared, began, value, self.tolerance, gap))
                # one of several optimisers: its scheduler may be stepped with it, or with the loop
                off &= ~follows_schedule(declared, chunk.applied(), value, self.tolerance)
            following = self._forgive(chunk, watched, value, due, off)
            if self._note(chunk, watched, {"due": due, "value": value}, judged, off, following):
                changed.append(name)
        self._seen += len(chunk)
        return changed

    def _band(
        self, bands: dict[str, tuple[Floats, Floats]], name: str, declared: dict[str, Any], due: Floats, chunk: Chunk
    ) -> tuple[Floats, Floats]:
        """What may stand in these rows; once for all groups of an optimiser that are declared alike."""
        key = f"{name.partition('.')[0] if '.' in name else ''} {declared}"
        if key not in bands:
            bands[key] = schedule_band(declared, due, self.tolerance, _tick(due, chunk.applied()))
        return bands[key]

    def _forgive(self, chunk: Chunk, watched: Watched, values: Floats, due: Floats, off: Bools) -> dict[str, Bools]:
        """Take rows that follow a clock which agrees with the due one out of ``off``; tell which rows follow which."""
        following: dict[str, Bools] = {}
        rows = np.flatnonzero(off)
        if not len(rows):
            return following
        declared, value, applied = watched.declared, values[rows], chunk.applied()[rows]
        for clock in _clocks(chunk):
            reading = chunk.clock(clock)[rows]
            follows = _fits(declared, reading, value, self.tolerance, applied) & np.isfinite(reading)
            if clock == driven_by(declared) or not follows.any():
                continue
            progress = clock_progress(declared, reading, due[rows], self._total, steps=True)
            agrees = np.zeros(len(rows), bool) if progress is None else np.abs(progress[0] - progress[1]) <= self.drift
            off[rows[follows & agrees]] = False
            following[clock] = np.zeros(len(off), bool)
            following[clock][rows[follows]] = True
        return following

    def _note(
        self,
        chunk: Chunk,
        watched: Watched,
        columns: dict[str, Floats],
        judged: Bools,
        off: Bools,
        following: dict[str, Bools],
    ) -> bool:
        columns = {"step": chunk.step.astype(np.float64), "applied": chunk.applied(), **columns}
        changed = watched.streak.push(off[judged], {key: column[judged] for key, column in columns.items()})
        if off.any():
            rows = self._seen + np.flatnonzero(off).astype(np.float64)
            watched.push(columns["due"][off], columns["value"][off], rows, self.tolerance)
            for clock, follows in following.items():
                watched.explained[clock] = watched.explained.get(clock, 0) + int((follows & off).sum())
        return changed


def _due(name: str, declared: dict[str, Any], chunk: Chunk) -> Floats:
    """Where the schedule should stand: the readings of its clock, which is the applied steps if none is declared.

    One of several optimisers has a count of its own; where the values follow the run's, that is right as well.
    float64 [rows]
    """
    if driven_by(declared) != "applied":
        return chunk.clock(driven_by(declared))
    applied = chunk.applied()
    if not name.startswith("lr/") or "." not in name:
        return applied
    own = chunk[f"applied/{name.removeprefix('lr/').partition('.')[0]}"]
    return np.where(np.isnan(own), applied, own)


def driven_by(declared: dict[str, Any]) -> str:
    """The clock that a schedule declares."""
    return str(declared.get("clock", "applied"))


def _clocks(chunk: Chunk) -> list[str]:
    """Everything in these rows that a schedule might be driven by."""
    recorded = [name.removeprefix("clock/") for name in chunk.channels if name.startswith("clock/")]
    counted = [name for name in chunk.channels if name.startswith("applied/") or name in OTHER_UNITS]
    return list(dict.fromkeys([*recorded[:MOST], *counted[:MOST], "applied", "step"]))


def _fits(declared: dict[str, Any], reading: Floats, value: Floats, tolerance: float, applied: Floats) -> Bools:
    """Whether the value is the schedule's at this reading, or at the one a step ago (which may be many ticks)."""
    return follows_schedule(declared, reading, value, tolerance, _tick(reading, applied))


def _tick(reading: Floats, applied: Floats) -> Floats:
    """How much of a clock's reading is one step."""
    return np.maximum(reading / np.maximum(applied, 1.0), 1.0)


def _speed(declared: dict[str, Any], kept: Floats, tolerance: float) -> float | None:
    """The simplest constant speed at which the schedule gives all the values that were kept, else None."""
    if not len(kept):
        return None
    speeds = np.array(SPEEDS, dtype=np.float64)
    fits = _fits(declared, speeds[:, None] * kept[:, 1], kept[:, 2], tolerance, kept[:, 1]).all(axis=1)
    return float(speeds[np.argmax(fits)]) if fits.any() else None

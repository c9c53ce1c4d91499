"""See the rule's docstring: it is the page that `trainwatch rules schedule-desync` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.schema import OTHER_UNITS, Finding, clock_progress, follows_schedule, schedule_values
from trainwatch.stats import Streak
from trainwatch.table import Chunk

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
MOST = 64  # schedules, and clocks, that are looked at: more of them is a log to be distrusted
KEPT = 16  # rows that a speed is estimated from
SPEEDS = sorted(
    {Fraction(p, q) for p in range(1, 17) for q in range(1, 17)} | {Fraction(p, 1) for p in (32, 64, 128)},
    key=lambda speed: speed.numerator + speed.denominator,
)
"""What a scheduler that is stepped too often or too seldom runs at, simplest first."""


@dataclass
class Watched:
    """What is known of one schedule: since when it is off, which clocks would explain that, rows to fit a speed to."""

    streak: Streak
    explained: dict[str, int] = field(default_factory=dict)
    kept: Floats = field(default_factory=lambda: np.empty((0, 3)))
    stride: int = 1

    def keep(self, applied: Floats, values: Floats) -> None:
        """Keep every ``stride``-th bad row, so few that they stay ``KEPT``."""
        count = self.streak.bad - len(applied) + np.arange(len(applied))
        kept = np.concatenate([self.kept, np.stack([count, applied, values], axis=1)])
        self.kept = kept[kept[:, 0] % self.stride == 0]
        while len(self.kept) > KEPT:
            self.stride *= 2
            self.kept = self.kept[self.kept[:, 0] % self.stride == 0]


@dataclass
class ScheduleDesync(Rule):
    """A scheduled value is not what its declared function gives at this step.

    What it sees:
        Every recorded `schedule/<name>`, `lr/<group>` and `weight/<component>` that the header declares a schedule for,
        against that schedule at the applied step (or one step before). It names the recorded clock, or the constant
        speed, that would explain the values.

    Why it matters:
        A learning rate that decays four times too fast, or a penalty that never ramps up, leaves no mark on the loss
        curve but a worse end. Hyper-parameters are then tuned around a fault.

    What to do:
        Find the counter that the schedule is called with, and make it the applied-step counter. A speed of k usually is
        the accumulation, the number of processes, or a scheduler that is stepped in two places.

    When it is wrong:
        The declaration may be out of date instead of the run: then correct it. Schedules that answer to the loss
        (plateau) have no formula and are not judged, nor are steps that the gradient scaler skipped.

    References:
        accelerate #963 and #2142 (scheduler stepped once a process); transformers #24088.
    """

    needs: ClassVar[tuple[str, ...]] = ("run:schedules", "schedule/<name>|lr/<group>|weight/<component>")
    wants: ClassVar[tuple[str, ...]] = ("applied", "clock/<name>", "run:total_steps")
    causes: ClassVar[tuple[str, ...]] = ("lr-desync", "schedule-unfinished")

    tolerance: float = 0.01  # relative; values that are logged in three digits are within it
    rows: int = 5  # in a row: less is a value that was logged late around a boundary
    drift: float = 0.01  # of the schedule's length: a value that follows a clock this close to the step is forgiven
    explains: float = 0.9  # of the rows that are off must fit a clock before it is named: the rest are its first ones

    _schedules: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    _watched: dict[str, Watched] = field(default_factory=dict, init=False)
    _total: int | None = field(default=None, init=False)

    def start(self, header: Header) -> Findings:
        """The schedules that have a formula."""
        known = {name: said for name, said in header.schedules.items() if schedule_values(said, 0.0) is not None}
        self._schedules = {n if "/" in n else f"schedule/{n}": said for n, said in list(known.items())[:MOST]}
        self._watched = {name: Watched(Streak(self.rows)) for name in self._schedules}
        self._total = header.total_steps
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """One pass a schedule; clocks are looked at only where the value is off."""
        trained = chunk["amp/skipped"] != 1.0
        for name, declared in self._schedules.items():
            value, applied = chunk[name], _applied(name, chunk)
            judged = np.isfinite(value) & trained
            clock = declared.get("clock", "applied")
            if clock != "applied":
                judged &= np.isfinite(_reading(chunk, str(clock)))
            if judged.any():
                off = judged & ~_fits(declared, applied, value, self.tolerance, applied)
                following = self._forgive(chunk, name, applied, off)
                yield from self._judge(chunk, name, applied, judged, off, following)

    def _forgive(self, chunk: Chunk, name: str, applied: Floats, off: Bools) -> dict[str, Bools]:
        """Take rows that follow a clock which agrees with the step out of ``off``; tell which rows follow which."""
        following: dict[str, Bools] = {}
        rows = np.flatnonzero(off)
        if not len(rows):
            return following
        declared, value = self._schedules[name], chunk[name]
        for clock in _clocks(chunk):
            reading = _reading(chunk, clock)[rows]
            follows = _fits(declared, reading, value[rows], self.tolerance, applied[rows]) & np.isfinite(reading)
            if not follows.any():
                continue
            progress = clock_progress(declared, clock, reading, applied[rows], self._total)
            agrees = np.zeros(len(rows), bool) if progress is None else np.abs(progress[0] - progress[1]) <= self.drift
            off[rows[follows & agrees]] = False
            following[clock] = np.zeros(len(off), bool)
            following[clock][rows[follows]] = True
        return following

    def _judge(
        self, chunk: Chunk, name: str, applied: Floats, judged: Bools, off: Bools, following: dict[str, Bools]
    ) -> Findings:
        watched, value = self._watched[name], chunk[name]
        columns = {"step": chunk.step.astype(np.float64), "applied": applied, "value": value}
        changed = watched.streak.push(off[judged], {key: column[judged] for key, column in columns.items()})
        if off.any():
            watched.keep(applied[off], value[off])
            for clock, rows in following.items():
                watched.explained[clock] = watched.explained.get(clock, 0) + int((rows & off).sum())
        if changed:
            yield self._finding(name, watched)

    def _finding(self, name: str, watched: Watched) -> Finding:
        onset, now, declared = watched.streak.onset or {}, watched.streak.latest, self._schedules[name]
        expected = float((schedule_values(declared, now["applied"]) if declared else None) or 0.0)
        evidence: dict[str, float | str] = {"value": now["value"], "declared": expected, "applied": now["applied"]}
        why = "no recorded clock explains it"
        clock = max(watched.explained, key=lambda key: watched.explained[key], default=None)
        speed = _speed(declared, watched.kept, self.tolerance)
        if clock is not None and watched.explained[clock] >= self.explains * watched.streak.bad:
            why = f"it follows the {clock} counter instead of the applied steps"
            evidence["clock"] = clock
        elif speed is not None:
            why = f"it moves at {speed:.3g} times the declared speed"
            evidence["speed"] = speed
        return self.finding(
            "warning",
            f"component:{name.removeprefix('weight/')}" if name.startswith("weight/") else f"schedule:{name}",
            (int(onset["step"]), int(now["step"])),
            f"{name} is {now['value']:.4g} at step {now['step']:,.0f}, where its declared {declared['kind']} schedule "
            f"gives {expected:.4g}; {why}.",
            over=watched.streak.over,
            evidence=evidence,
            advice=f"Call {name}'s schedule with the applied-step counter, once a step; or correct its declaration.",
            confidence=0.9,
        )


def _clocks(chunk: Chunk) -> list[str]:
    """Everything in these rows that a schedule might be driven by."""
    recorded = [name.removeprefix("clock/") for name in chunk.channels if name.startswith("clock/")]
    counted = [name for name in chunk.channels if name.startswith("applied/") or name in OTHER_UNITS]
    return list(dict.fromkeys([*recorded[:MOST], *counted[:MOST], "step"]))


def _reading(chunk: Chunk, clock: str) -> Floats:
    """A clock's readings: its own channel, a counter of that name, or the attempted steps. float64 [rows]"""
    if clock == "step":
        return chunk.step.astype(np.float64)
    own = chunk[f"clock/{clock}"]
    return np.where(np.isnan(own), chunk[clock], own)


def _applied(name: str, chunk: Chunk) -> Floats:
    """The applied steps of the optimiser that a channel belongs to; one of several has a count of its own."""
    applied = chunk.applied()
    if not name.startswith("lr/") or "." not in name:
        return applied
    own = chunk[f"applied/{name.removeprefix('lr/').partition('.')[0]}"]
    return np.where(np.isnan(own), applied, own)


def _fits(declared: dict[str, Any], reading: Floats, value: Floats, tolerance: float, applied: Floats) -> Bools:
    """Whether the value is the schedule's at this reading, or at the one a step ago (which may be many ticks)."""
    tick = np.maximum(reading / np.maximum(applied, 1.0), 1.0)
    return follows_schedule(declared, reading, value, tolerance, tick)


def _speed(declared: dict[str, Any], kept: Floats, tolerance: float) -> float | None:
    """The simplest constant speed at which the schedule gives all the values that were kept, else None."""
    if not len(kept):
        return None
    speeds = np.array(SPEEDS, dtype=np.float64)
    fits = _fits(declared, speeds[:, None] * kept[:, 1], kept[:, 2], tolerance, kept[:, 1]).all(axis=1)
    return float(speeds[np.argmax(fits)]) if fits.any() else None

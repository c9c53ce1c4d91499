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
from trainwatch.schedule import MOST, OTHER_UNITS, clock_progress, follows_schedule, schedule_channel, schedule_values
from trainwatch.schema import Finding
from trainwatch.stats import Streak, carried
from trainwatch.table import Chunk

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
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
class ScheduleDesync(Rule):
    """A scheduled value is not what its declared function gives at this step.

    What it sees:
        Every recorded `schedule/<name>`, `lr/<group>` and `weight/<component>` that the header declares a schedule for,
        against that schedule at the reading of the clock that it declares: the applied step if it declares none, or
        one tick before. It names the recorded clock, or the constant speed, that would explain the values. Whether a
        declared clock is right is asked by `clock-desync`.

    Why it matters:
        A learning rate that decays four times too fast, or a penalty that never ramps up, leaves no mark on the loss
        curve but a worse end. Hyper-parameters are then tuned around a fault.

    What to do:
        Find the counter that the schedule is called with, and make it the applied-step counter. A speed of k usually is
        the accumulation, the number of processes, or a scheduler that is stepped in two places.

    When it is wrong:
        The declaration may be out of date instead of the run: then correct it. Schedules that answer to the loss
        (plateau) have no formula and are not judged, nor are steps that the gradient scaler skipped. A schedule that is
        stepped once an epoch is forgiven, as long as an epoch is no more than a tenth of its length.

    References:
        accelerate #963 and #2142 (scheduler stepped once a process); transformers #24088.
    """

    needs: ClassVar[tuple[str, ...]] = ("run:schedules", "schedule/<name>|lr/<group>|weight/<component>")
    wants: ClassVar[tuple[str, ...]] = ("applied", "clock/<name>", "run:total_steps")
    causes: ClassVar[tuple[str, ...]] = ("lr-desync", "schedule-unfinished")

    tolerance: float = 0.01  # relative; values that are logged in three digits are within it
    rows: int = 5  # in a row: less is a value that was logged late around a boundary
    drift: float = 0.01  # of the schedule's length: a value that follows a clock this close to the step is forgiven
    held: float = 0.1  # of the schedule's length: in longer epochs, a value held for one is not what was declared
    explains: float = 0.9  # of the rows that are off must fit a clock before it is named: the rest are its first ones

    _schedules: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    _watched: dict[str, Watched] = field(default_factory=dict, init=False)
    _total: int | None = field(default=None, init=False)
    _epoch: Epoch = field(default_factory=Epoch, init=False)

    def start(self, header: Header) -> Findings:
        """The schedules that have a formula."""
        known = {name: said for name, said in header.schedules.items() if schedule_values(said, 0.0) is not None}
        self._schedules = {schedule_channel(n): said for n, said in list(known.items())[:MOST]}
        self._watched = {name: Watched(Streak(self.rows)) for name in self._schedules}
        self._total = header.total_steps
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """One pass a schedule; clocks are looked at only where the value is off."""
        trained, (began, gap) = chunk.trained(), self._epoch.push(chunk)
        for name, declared in self._schedules.items():
            value, due = chunk[name], self._due(name, declared, chunk)
            judged = np.isfinite(value) & np.isfinite(due) & trained
            if judged.any():
                off = judged & ~_fits(declared, due, value, self.tolerance, chunk.applied())
                if off.any() and _clock(declared) == "applied":
                    held = due - began <= self.held * float(declared.get("over_steps") or self._total or 0)
                    off &= ~(held & follows_schedule(declared, began, value, self.tolerance, gap))
                following = self._forgive(chunk, name, due, off)
                yield from self._judge(chunk, name, due, judged, off, following)

    @staticmethod
    def _due(name: str, declared: dict[str, Any], chunk: Chunk) -> Floats:
        """Where the schedule should stand: the readings of its clock, which is the applied steps if none is declared.

        One of several optimisers has a count of its own. float64 [rows]
        """
        if _clock(declared) != "applied":
            return chunk.clock(_clock(declared))
        applied = chunk.applied()
        if not name.startswith("lr/") or "." not in name:
            return applied
        own = chunk[f"applied/{name.removeprefix('lr/').partition('.')[0]}"]
        return np.where(np.isnan(own), applied, own)

    def _forgive(self, chunk: Chunk, name: str, due: Floats, off: Bools) -> dict[str, Bools]:
        """Take rows that follow a clock which agrees with the due one out of ``off``; tell which rows follow which."""
        following: dict[str, Bools] = {}
        rows = np.flatnonzero(off)
        if not len(rows):
            return following
        declared, value, applied = self._schedules[name], chunk[name][rows], chunk.applied()[rows]
        for clock in _clocks(chunk):
            reading = chunk.clock(clock)[rows]
            follows = _fits(declared, reading, value, self.tolerance, applied) & np.isfinite(reading)
            if clock == _clock(declared) or not follows.any():
                continue
            progress = clock_progress(declared, reading, due[rows], self._total, steps=True)
            agrees = np.zeros(len(rows), bool) if progress is None else np.abs(progress[0] - progress[1]) <= self.drift
            off[rows[follows & agrees]] = False
            following[clock] = np.zeros(len(off), bool)
            following[clock][rows[follows]] = True
        return following

    def _judge(
        self, chunk: Chunk, name: str, due: Floats, judged: Bools, off: Bools, following: dict[str, Bools]
    ) -> Findings:
        watched, value = self._watched[name], chunk[name]
        columns = {"step": chunk.step.astype(np.float64), "applied": chunk.applied(), "due": due, "value": value}
        changed = watched.streak.push(off[judged], {key: column[judged] for key, column in columns.items()})
        if off.any():
            watched.keep(due[off], value[off])
            for clock, rows in following.items():
                watched.explained[clock] = watched.explained.get(clock, 0) + int((rows & off).sum())
        if changed:
            yield self._finding(name, watched)

    def _finding(self, name: str, watched: Watched) -> Finding:
        onset, now, declared = watched.streak.onset or {}, watched.streak.latest, self._schedules[name]
        expected = float((schedule_values(declared, now["due"]) if declared else None) or 0.0)
        meant = "the applied steps" if _clock(declared) == "applied" else f"the {_clock(declared)} counter"
        evidence: dict[str, float | str] = {"value": now["value"], "declared": expected, "applied": now["applied"]}
        why = "no recorded clock explains it"
        clock = max(watched.explained, key=lambda key: watched.explained[key], default=None)
        speed = _speed(declared, watched.kept, self.tolerance)
        if clock is not None and watched.explained[clock] >= self.explains * watched.streak.bad:
            follows = "the applied steps" if clock == "applied" else f"the {clock} counter"
            why = f"it follows {follows} instead of {meant}"
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
            advice=f"Call {name}'s schedule with {meant}, once a step; or correct its declaration.",
            confidence=0.9,
        )


def _clocks(chunk: Chunk) -> list[str]:
    """Everything in these rows that a schedule might be driven by."""
    recorded = [name.removeprefix("clock/") for name in chunk.channels if name.startswith("clock/")]
    counted = [name for name in chunk.channels if name.startswith("applied/") or name in OTHER_UNITS]
    return list(dict.fromkeys([*recorded[:MOST], *counted[:MOST], "applied", "step"]))


def _clock(declared: dict[str, Any]) -> str:
    """The clock that a schedule declares."""
    return str(declared.get("clock", "applied"))


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

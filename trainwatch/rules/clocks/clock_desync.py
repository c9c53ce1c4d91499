"""See the rule's docstring: it is the page that `trainwatch rules clock-desync` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header, mapping
from trainwatch.rule import Findings, Rule
from trainwatch.schedule import MOST, OTHER_UNITS, clock_progress, follows_schedule, schedule_channel
from trainwatch.schema import Finding
from trainwatch.stats import Streak
from trainwatch.table import Chunk

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass
class Unit:
    """What a clock's readings say of its unit: whether each of its first rows came along as the applied steps did."""

    reading: float
    applied: float
    rows: int = 0
    steps: bool = True

    def push(self, reading: Floats, applied: Floats, enough: int) -> Bools:
        """For each row whether ``enough`` rows up to it have shown that the clock counts steps. bool [rows]"""
        rows = np.flatnonzero(np.isfinite(reading))
        count = np.full(len(reading), self.rows)
        count[rows] += np.arange(1, len(rows) + 1)
        apart = np.abs((reading - self.reading) - (applied - self.applied)) > 1
        self.steps &= not (apart[rows] & (count[rows] <= enough)).any() and self.reading <= self.applied + 1
        self.rows += len(rows)
        shown: Bools = count >= enough
        return shown & self.steps


@dataclass
class ClockDesync(Rule):
    """A counter that drives a schedule has drifted from the steps that were really taken.

    What it sees:
        A recorded `clock/<name>` that a schedule declares as its clock, or whose readings its values follow although it
        declares another, against the applied steps (those that the optimiser took, not those that the scaler skipped):
        at step 5,000 the counter reads 1,200, so the schedule takes the run to be at 1.2 % and it is at 5 %. Counters
        that drive nothing are left alone. A declared clock is held against the steps if it was seen to count them, if
        its schedule is as long as the run is in steps, or if it comes so slowly that the schedule would not get through
        four fifths of its length. It is also named where it falls back.

    Why it matters:
        Annealing that never arrives, or arrives too early, looks like a bad choice of the method. The loss curve shows
        nothing; the run ends in the middle of its own plan.

    What to do:
        Drive the schedule by the trainer's one counter of applied steps. If the part has to count for itself, store its
        counter in the checkpoint, and advance it exactly once a step.

    When it is wrong:
        A clock that counts something of its own (samples, frames, micro-batches) may be ahead of the run, for its
        schedule may be short: one that is stepped too often from the start is not told apart from that. A slow counter
        that begins late, after a phase of its own, is named until it has caught up.

    References:
        accelerate #963, #2142, #2926; diffusers #3954; transformers #24088: schedulers stepped by another clock.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("run:schedules", "clock/<name>|samples|tokens|epoch")
    wants: ClassVar[tuple[str, ...]] = ("applied", "run:total_steps", "schedule/<name>|lr/<group>|weight/<component>")
    causes: ClassVar[tuple[str, ...]] = (
        *("schedule-desync", "lr-desync", "schedule-unfinished"),
        *("curriculum-weight-drift", "curriculum-stuck"),  # the same counter picks the stage
    )

    drift: float = 0.01  # of the schedule's length: as far as rounding and a late first step bring a healthy clock
    grave_drift: float = 0.25  # of the schedule's length: beyond that the run trains by another recipe
    rows: int = 5  # in a row: one stray reading is no drift
    tolerance: float = 0.01  # relative; values that are logged in three digits are within it
    unit_rows: int = 20  # a window: a clock of another unit does not come along with the steps for so long

    _schedules: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    _streaks: dict[tuple[str, str], Streak] = field(default_factory=dict, init=False)
    _units: dict[str, Unit] = field(default_factory=dict, init=False)
    _highest: dict[str, tuple[float, float]] = field(default_factory=dict, init=False)
    _parted: dict[str, int] = field(default_factory=dict, init=False)
    _total: int | None = field(default=None, init=False)
    _patches: dict[str, str] = field(default_factory=dict, init=False)
    _seen: int = field(default=0, init=False)

    def start(self, header: Header) -> Findings:
        """Which schedules there are, and where the config itself names their clocks."""
        self._schedules, self._total = dict(list(header.schedules.items())[:MOST]), header.total_steps
        written = mapping(header.config.get("schedules"))
        self._patches = {n: f"schedules.{n}.clock" for n, said in written.items() if "clock" in mapping(said)}
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Every clock against every schedule that it drives; one finding a clock, about the first that it misleads."""
        names = [name.removeprefix("clock/") for name in chunk.channels if name.startswith("clock/")]
        strange = {name: self._strange(chunk, name, said) for name, said in self._schedules.items()}
        for clock in dict.fromkeys([*names[:MOST], *sorted(OTHER_UNITS.intersection(chunk.channels))]):
            yield from self._judge(chunk, clock, chunk.clock(clock), strange)
        self._seen += len(chunk)

    def _strange(self, chunk: Chunk, name: str, declared: dict[str, Any]) -> Bools:
        """Values that are not what the applied step gives them: some other clock may drive them. bool [rows]"""
        if declared.get("clock", "applied") != "applied":
            return np.zeros(len(chunk), dtype=bool)
        value = chunk[schedule_channel(name)]
        return np.isfinite(value) & ~follows_schedule(declared, chunk.applied(), value, self.tolerance)

    def _judge(self, chunk: Chunk, clock: str, reading: Floats, strange: dict[str, Bools]) -> Findings:
        applied, there = chunk.applied(), np.flatnonzero(np.isfinite(reading))
        if not len(there):
            return
        unit = self._units.setdefault(clock, Unit(reading[there[0]], applied[there[0]]))
        steps, fell = unit.push(reading, applied, self.unit_rows), self._fell_from(clock, reading, applied)
        apart = np.flatnonzero(np.abs(reading - applied) > 1)
        if len(apart):
            self._parted.setdefault(clock, int(chunk.step[apart[0]]))
        elif clock not in self._parted:
            return
        seen = (clock, reading, steps, fell)
        news = [name for name in self._schedules if self._misled(chunk, seen, name, strange[name])]
        known = [(key[1], streak) for key, streak in self._streaks.items() if key[0] == clock and streak.believed]
        if news and known:
            yield self._finding(clock, *min(known, key=lambda item: item[1].believed["row"]))

    def _fell_from(self, clock: str, reading: Floats, applied: Floats) -> Floats:
        """Where a clock fell back while the run went on, what it had read before; elsewhere NaN. float64 [rows]"""
        high, latest = self._highest.get(clock, (-np.inf, -np.inf))
        known = np.isfinite(reading)
        highest = np.maximum.accumulate(np.concatenate([[high], np.where(known, reading, -np.inf)]))
        before = np.maximum.accumulate(np.concatenate([[latest], np.where(known, applied, -np.inf)]))
        self._highest[clock] = (float(highest[-1]), float(before[-1]))
        return np.where((reading < highest[:-1]) & (applied > before[:-1]), highest[:-1], np.nan)

    def _misled(self, chunk: Chunk, seen: tuple[str, Floats, Bools, Floats], name: str, off: Bools) -> bool:
        """Whether this clock drives that schedule and is off, and these rows say so."""
        clock, reading, steps, fell = seen
        applied, judged, declared = chunk.applied(), np.isfinite(reading), self._schedules[name]
        own = declared.get("clock", "applied")
        if own not in (clock, "applied") or (own != clock and (clock, name) not in self._streaks and not off.any()):
            return False
        if declared.get("kind") == "constant" or (own != clock and clock in OTHER_UNITS):
            return False
        progress = self._progress(declared, reading, applied, steps | (own != clock), fell)
        if progress is None:
            return False
        at, due = progress
        drifted = judged & (np.abs(at - due) > self.drift) & (np.abs(reading - applied) > 1)
        if own != clock:
            value = chunk[schedule_channel(name)]
            judged &= np.isfinite(value)
            drifted &= off & follows_schedule(declared, reading, value, self.tolerance)
        streak = self._streaks.get((clock, name)) or Streak(self.rows)
        columns = {"row": self._seen + np.arange(len(chunk), dtype=np.float64), "step": chunk.step.astype(np.float64)}
        columns |= {"clock": reading, "applied": applied, "at": at, "due": due}
        changed = streak.push(drifted[judged], {name: values[judged] for name, values in columns.items()})
        if streak.bad:
            self._streaks[clock, name] = streak
        return changed

    def _progress(
        self, declared: dict[str, Any], reading: Floats, applied: Floats, steps: Bools, fell: Floats
    ) -> tuple[Floats, Floats] | None:
        """:func:`clock_progress`, row by row by what is known of the unit; where the clock fell back, from where."""
        sure = clock_progress(declared, reading, applied, self._total, steps=True)
        if sure is None:
            return None
        guess = clock_progress(declared, reading, applied, self._total) or (sure[0], sure[0])
        at, due = np.where(steps, sure[0], guess[0]), np.where(steps, sure[1], guess[1])
        back = clock_progress(declared, reading, fell, self._total, steps=True)
        lost = ~steps & np.isfinite(fell)
        return (at, due) if back is None else (np.where(lost, back[0], at), np.where(lost, back[1], due))

    def _finding(self, clock: str, schedule: str, streak: Streak) -> Finding:
        onset, now = streak.onset or {}, streak.latest
        took = now["applied"] - onset["applied"]
        speed = (now["clock"] - onset["clock"]) / took if took else now["clock"] / max(now["applied"], 1.0)
        gap, patch = abs(now["at"] - now["due"]), self._patches.get(schedule)
        declared = self._schedules[schedule].get("clock", "applied") == clock
        evidence = {"clock": now["clock"], "applied": now["applied"], "progress": now["at"], "due": now["due"]}
        return self.finding(
            "critical" if gap > self.grave_drift else "warning",
            f"clock:{clock}",
            (int(onset["step"]), int(now["step"])),
            f"The {clock} counter reads {now['clock']:,.6g} at step {now['applied']:,.0f}: {schedule}, which it drives"
            f"{'' if declared else ' though it is not declared'}, takes the run to be at {now['at']:.1%} and it is at "
            f"{now['due']:.1%}.",
            over=streak.over,
            evidence=evidence | {"speed": speed, "parted_step": self._parted[clock], "schedule": schedule},
            advice=f"Drive {schedule} by the applied steps, or restore and advance {clock} with every step.",
            patch={patch: "applied"} if patch and declared else {},
            confidence=0.9 if self._total else 0.7,
        )

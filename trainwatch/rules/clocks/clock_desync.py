"""See the rule's docstring: it is the page that `trainwatch rules clock-desync` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header, mapping
from trainwatch.rule import Findings, Rule
from trainwatch.schema import OTHER_UNITS, Finding, clock_progress, follows_schedule
from trainwatch.stats import Streak
from trainwatch.table import Chunk

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
MOST = 64  # schedules, and clocks, that are looked at: more of them is a log to be distrusted


@dataclass
class ClockDesync(Rule):
    """A counter that drives a schedule has drifted from the steps that were really taken.

    What it sees:
        A recorded `clock/<name>` that a schedule declares as its clock, or whose readings its values follow although it
        declares another, against the applied steps: at step 5,000 the counter reads 1,200, so the schedule takes the
        run to be at 1.2 % and it is at 5 %. Counters that drive nothing are left alone.

    Why it matters:
        Annealing that never arrives, or arrives too early, looks like a bad choice of the method. The loss curve shows
        nothing; the run ends in the middle of its own plan.

    What to do:
        Drive the schedule by the trainer's one applied-step counter. If the part has to count for itself, store its
        counter in the checkpoint, and advance it exactly once a step.

    When it is wrong:
        A clock that counts something of its own on purpose is right as long as it comes along its own `over_steps` as
        far as the run comes along `total_steps`. A schedule that should end early by its own counter is not told apart.

    References:
        accelerate #963, #2142, #2926; diffusers #3954; transformers #24088: schedulers stepped by another clock.
    """

    needs: ClassVar[tuple[str, ...]] = ("run:schedules", "clock/<name>|samples|tokens|epoch")
    wants: ClassVar[tuple[str, ...]] = ("applied", "run:total_steps", "schedule/<name>|lr/<group>|weight/<component>")
    causes: ClassVar[tuple[str, ...]] = ("schedule-desync", "lr-desync", "schedule-unfinished")

    drift: float = 0.01  # of the schedule's length: as far as rounding and a late first step bring a healthy clock
    grave_drift: float = 0.25  # of the schedule's length: beyond that the run trains by another recipe
    rows: int = 5  # in a row: one stray reading is no drift
    tolerance: float = 0.01  # relative; values that are logged in three digits are within it

    _schedules: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    _streaks: dict[tuple[str, str], Streak] = field(default_factory=dict, init=False)
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
            own = chunk[f"clock/{clock}"]
            yield from self._judge(chunk, clock, np.where(np.isnan(own), chunk[clock], own), strange)
        self._seen += len(chunk)

    def _strange(self, chunk: Chunk, name: str, declared: dict[str, Any]) -> Bools:
        """Values that are not what the applied step gives them: some other clock may drive them. bool [rows]"""
        if declared.get("clock", "applied") != "applied":
            return np.zeros(len(chunk), dtype=bool)
        value = chunk[_channel(name)]
        return np.isfinite(value) & ~follows_schedule(declared, chunk.applied(), value, self.tolerance)

    def _judge(self, chunk: Chunk, clock: str, reading: Floats, strange: dict[str, Bools]) -> Findings:
        apart = np.flatnonzero(np.abs(reading - chunk.applied()) > 1)
        if len(apart):
            self._parted.setdefault(clock, int(chunk.step[apart[0]]))
        elif clock not in self._parted:
            return
        news = [name for name in self._schedules if self._misled(chunk, clock, reading, name, strange[name])]
        known = [(key[1], streak) for key, streak in self._streaks.items() if key[0] == clock and streak.believed]
        if news and known:
            yield self._finding(clock, *min(known, key=lambda item: item[1].believed["row"]))

    def _misled(self, chunk: Chunk, clock: str, reading: Floats, name: str, off: Bools) -> bool:
        """Whether this clock drives that schedule and is off, and these rows say so."""
        applied, judged, declared = chunk.applied(), np.isfinite(reading), self._schedules[name]
        own = declared.get("clock", "applied")
        if own not in (clock, "applied") or (own != clock and (clock, name) not in self._streaks and not off.any()):
            return False
        progress = clock_progress(declared, clock, reading, applied, self._total)
        if declared.get("kind") == "constant" or progress is None:
            return False
        at, due = progress
        drifted = judged & (np.abs(at - due) > self.drift) & (np.abs(reading - applied) > 1)
        if own != clock:
            value = chunk[_channel(name)]
            judged &= np.isfinite(value)
            drifted &= off & follows_schedule(declared, reading, value, self.tolerance)
        streak = self._streaks.get((clock, name)) or Streak(self.rows)
        columns = {"row": self._seen + np.arange(len(chunk), dtype=np.float64), "step": chunk.step.astype(np.float64)}
        columns |= {"clock": reading, "applied": applied, "at": at, "due": due}
        changed = streak.push(drifted[judged], {name: values[judged] for name, values in columns.items()})
        if streak.bad:
            self._streaks[clock, name] = streak
        return changed

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


def _channel(schedule: str) -> str:
    """The channel that a declared schedule's values are recorded under."""
    return schedule if "/" in schedule else f"schedule/{schedule}"

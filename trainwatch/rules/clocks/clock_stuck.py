"""See the rule's docstring: it is the page that `trainwatch rules clock-stuck` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header, mapping, number
from trainwatch.rule import Findings, Rule
from trainwatch.schedule import MOST
from trainwatch.schema import Finding
from trainwatch.table import Chunk

Floats = NDArray[np.float64]


@dataclass
class Clock:
    """What is known of one clock: how long it has stood, and how long it ever stood before."""

    arrives: float  # reading at which every schedule that it drives is at its end
    reading: float = np.nan
    since: tuple[int, int] = (0, 0)  # row and step in which it should have moved on
    rows: int = 0
    last: int = 0  # step of the last of them
    ticks: int = 0
    longest: int = 0  # rows between two ticks
    stuck: tuple[int, int, float] | None = None  # row, step and reading of the first stand that was too long
    stood: int = 0  # rows of it
    until: int = 0  # the last of its steps, once it went on
    moved: bool = False  # it went on


@dataclass
class ClockStuck(Rule):
    """A counter that drives a schedule does not move, although steps are taken.

    What it sees:
        A recorded clock that a schedule declares as its own, and that has stood for ten times as long as ever between
        two of its ticks, and for a window; or that never moved within a fifth of the run. A clock that has brought its
        schedules to their ends may rest. A declared clock that drives no schedule drives the curriculum, if the stage
        that is taken is the one at its reading while a later one is due. `applied`, the applied steps (those that the
        optimiser took, not those that the scaler skipped), is held against the rows that were not skipped.

    Why it matters:
        Whatever it drives stays where it is: a penalty that is never annealed, an exploration that never ends. The
        value itself looks sound in every row.

    What to do:
        Look for what counts it up: a branch that is no longer taken, a copy in another process, an object that was
        built anew. Better, drive the schedule by the trainer's applied steps.

    When it is wrong:
        A part that is paused on purpose for long, or that begins after a fifth of the run; once it moves, that is only
        mentioned.

    References:
        accelerate #2926; a counter of a DQN head that was kept by the dataset's copy in a worker.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = (
        "run:schedules|run:curriculum|run:curriculum_running",
        "clock/<name>|samples|tokens|epoch|applied",
    )
    wants: ClassVar[tuple[str, ...]] = ("amp/skipped", "run:total_steps", "run:clocks", "stage")
    causes: ClassVar[tuple[str, ...]] = (
        *("clock-desync", "schedule-desync", "lr-desync", "schedule-unfinished", "curriculum-stuck"),
        *("curriculum-weight-drift", "stale-data"),
    )

    times: int = 10  # the longest stand so far: a counter of episodes or epochs comes unevenly
    fewest: int = 3  # ticks: before so many its rhythm is not known
    never: float = 0.2  # of the run, or of its schedule: a part that fills a buffer first begins earlier
    grave: float = 0.25  # of the run: then it trains by another recipe

    _clocks: dict[str, Clock] = field(default_factory=dict, init=False)
    _stages: Floats = field(default_factory=lambda: np.empty(0), init=False)  # steps at which they begin
    _free: set[str] = field(default_factory=set, init=False)  # clocks that drive no schedule
    _epoch: float = field(default=np.inf, init=False)  # steps of one, as far as that is known
    _length: float = field(default=0.0, init=False)
    _window: int = field(default=20, init=False)  # steps

    def start(self, header: Header) -> Findings:
        """Which clocks drive schedules, and where those end."""
        self._window, horizon = header.window(), mapping(header.raw.get("horizon"))
        driven = [said for said in header.schedules.values() if said.get("kind") != "constant"]
        for said in driven[:MOST]:
            name = str(said.get("clock", "applied"))
            clock = self._clocks.setdefault(name, Clock(0.0))
            clock.arrives = max(clock.arrives, _end(said))
        plan, told = header.plan, header.raw.get("clocks")
        self._stages = np.array([stage.start for stage in plan.stages] if plan else [])
        named = [name for name in told if isinstance(name, str)] if isinstance(told, list) else []
        if "step" not in named:
            self._clocks.pop("step", None)  # the rows themselves
        self._free = {name for name in named[:MOST] if name not in self._clocks} if len(self._stages) > 1 else set()
        self._clocks |= {name: Clock(float(self._stages[-1])) for name in sorted(self._free)}
        self._length = float(header.total_steps or max(map(_end, driven), default=0.0))
        if header.total_steps:
            self._epoch = header.total_steps / max(number(horizon.get("epochs")) or 1.0, 1.0)
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """One comparison a clock and row; stands are looked at as a whole."""
        skipped = chunk["amp/skipped"]
        for name, clock in self._clocks.items():
            reading = chunk["applied"] if name == "applied" else chunk.clock(name)
            judged = np.isfinite(reading)
            if name == "applied":
                judged &= skipped == 0.0  # where nothing is said of skips, a step that does not count was one
            stuck = judged.any() and self._note(name, clock, reading[judged], chunk.step[judged])
            if stuck and (name not in self._free or self._holds_back(clock, chunk)):
                yield self._finding(name, clock, int(chunk.step[judged][-1]))

    def _holds_back(self, clock: Clock, chunk: Chunk) -> bool:
        """Whether the stage that is taken is the one at the clock's reading, and not the one that is due."""
        stage = chunk["stage"][np.isfinite(chunk["stage"])]
        at, due = np.searchsorted(self._stages, [clock.reading, chunk.applied()[-1]], side="right") - 1
        return bool(len(stage) and stage[-1] == at < due)

    def _note(self, name: str, clock: Clock, reading: Floats, step: NDArray[np.int64]) -> bool:
        """Take in readings; True if there is a stand that is too long, or was."""
        ticked = reading != np.concatenate([[clock.reading], reading[:-1]])
        ends = np.flatnonzero(ticked)  # a row with a tick ends the stand before it
        begins = np.concatenate([[clock.since[0]], clock.rows + ends + 1])
        lengths = np.concatenate([clock.rows + ends, [clock.rows + len(reading)]]) - begins
        before = np.concatenate([[clock.reading], reading[ends]])
        ticks = clock.ticks + np.arange(len(begins)) - np.isnan(clock.reading)
        longest = np.maximum.accumulate(np.concatenate([[clock.longest], lengths[:-1]]))
        steps = np.concatenate([[clock.since[1]], np.append(step, step[-1] + 1)[ends + 1]])
        took = np.concatenate([step[ends], [step[-1]]]) - steps
        never = (ticks < self.fewest) & (took < self._patience(name))
        limits = np.maximum(self.times * np.maximum(longest, 1), np.where(ticks < self.fewest, 0, self.block))
        short = (ticks >= self.fewest) & (took < self._window)
        long = np.flatnonzero((lengths > limits) & ~never & ~short & (before < clock.arrives))
        untils = np.concatenate([[clock.last], step[:-1]])[ends]
        if clock.stuck is not None and not clock.moved:
            clock.moved = bool(len(ends))
            clock.stood += int(ends[0]) if clock.moved else len(reading)
            clock.until = int(untils[0]) if clock.moved else 0
        elif clock.stuck is None and len(long):
            which = int(long[0])
            clock.stuck = (int(begins[which]), int(steps[which]), float(before[which]))
            clock.stood, clock.moved = int(lengths[which]), which < len(ends)
            clock.until = int(untils[which]) if clock.moved else 0
        clock.reading, clock.rows, clock.last = float(reading[-1]), clock.rows + len(reading), int(step[-1])
        clock.since = int(begins[-1]), int(steps[-1])
        clock.ticks, clock.longest = int(ticks[-1]), int(longest[-1])
        return clock.stuck is not None

    def _patience(self, name: str) -> float:
        """Steps that a clock may take before it moves at all."""
        never = self.never * self._length if self._length else np.inf
        return max(never, 1.5 * self._epoch) if name in ("epoch", "epochs") else never

    def _finding(self, name: str, clock: Clock, step: int) -> Finding:
        _, began, reading = clock.stuck or (0, 0, 0.0)
        grave = self._length and step - began > self.grave * self._length
        since = "and went on after" if clock.moved else "and has stood for"
        driven = "the stages" if name in self._free else "a schedule"
        return self.finding(
            "info" if clock.moved else "critical" if grave else "warning",
            f"clock:{name}",
            (began, clock.until if clock.moved else step),
            f"The {name} counter, which drives {driven}, stayed at {reading:,.6g} from step {began:,} on, {since} "
            f"{clock.stood:,} rows.",
            over=clock.moved,
            evidence={"clock": reading, "rows": clock.stood, "arrives": clock.arrives},
            advice=f"Find what should count {name} up, or drive its schedule by the applied steps.",
            confidence=0.9 if clock.ticks >= self.fewest else 0.8,
        )


def _end(said: dict[str, Any]) -> float:
    """The reading at which a schedule is at its end; infinite where it does not say."""
    over = number(said.get("over_steps"))
    return (number(said.get("begin")) or 0.0) + over if over else np.inf

"""See the rule's docstring: it is the page that `trainwatch rules schedule-unfinished` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from trainwatch.header import Header, mapping, number, settings
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schedule import MOST, OTHER_UNITS, schedule_channel, schedule_values
from trainwatch.schema import Finding
from trainwatch.table import Chunk

STEPS = ("applied", "step")


@dataclass
class ScheduleUnfinished(Rule):
    """A schedule is far too long for the run, or takes the learning rate to zero far too early.

    What it sees:
        The length of every declared schedule (`begin` + `over_steps`) against the planned steps, or epochs, or samples,
        before the first step; where no length is planned, against the steps of a run that finished. A schedule on a
        counter of the user's own is judged once that was seen to count steps, and one that runs ahead of them at a
        constant pace (frames, samples) by where that takes it, from a fifth of the run on. A learning rate that is down
        to 1 % before half of the run is the same mistake the other way round.

    Why it matters:
        50,000 steps of annealing in a 10,000-step run get a fifth of the way: the penalty is never there, the smoothing
        never gone. A rate at zero makes the rest of the run a waste.

    What to do:
        Give the length as a share of the run, not in steps of another one.

    When it is wrong:
        A cosine that is longer than the run on purpose, so that the rate stays high; a run that is one part of many.

    References:
        Annealing over the 80,000 steps of a published 100,000-step run, kept in runs of every length.
    """

    needs: ClassVar[tuple[str, ...]] = ("run:schedules",)
    wants: ClassVar[tuple[str, ...]] = ("run:total_steps", "run:horizon", "clock/<name>")
    block: ClassVar[int] = 20
    causes: ClassVar[tuple[str, ...]] = ("loss-plateau", "slow-convergence", "lr-zero", "lr-too-low")

    reach: float = 0.5  # of its length: less than that and what was annealed is nearer to where it began
    told: float = 0.95  # of its length: rounding of epochs and batches leaves a healthy one nearer to its end
    spent: float = 0.01  # of its start: a rate that low moves nothing; 10 % is a usual floor
    settled: float = 0.2  # of the planned steps: batches that are warmed up to their size have come to it

    _planned: dict[str, float] = field(default_factory=dict, init=False)
    _open: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    _owned: dict[str, list[list[str]]] = field(default_factory=dict, init=False)  # schedules by a clock not known yet
    _first: dict[str, tuple[float, float]] = field(default_factory=dict, init=False)  # readings, at which applied step
    _header: Header | None = field(default=None, init=False)

    def start(self, header: Header) -> Iterator[Finding]:
        """A plan that cannot fit is told before the first step; schedules that are declared alike are told as one."""
        self._planned = _lengths(header)
        alike: dict[str, list[str]] = {}
        for name, said in list(header.schedules.items())[:MOST]:
            if said.get("kind") != "constant" and schedule_values(said, 0.0) is not None:
                alike.setdefault(json.dumps(said, sort_keys=True, default=str), []).append(name)
        for names in alike.values():
            said = header.schedules[names[0]]
            clock = str(said.get("clock", "applied"))
            if clock in self._planned:
                yield from self._judge(header, names, self._planned[clock])
            elif clock in STEPS:
                self._open[names[0]] = said
            elif "applied" in self._planned:
                self._owned.setdefault(clock, []).append(names)
        self._header = header

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """A block tells at which pace a counter goes: as steps do, or ahead of them; then its end is known."""
        for clock in list(self._owned):
            due = self._arrival(clock, chunk)
            for names in self._owned.pop(clock) if due is not None else ():
                if due and self._header is not None:
                    yield from self._judge(self._header, names, due)

    def _arrival(self, clock: str, chunk: Chunk) -> float | None:
        """What a counter will read at the planned end; 0 where it keeps no pace, or a slower one than steps; None while
        that is open: one that is ahead of steps is asked late, for batches may begin small.
        """
        planned, reading, applied = self._planned["applied"], chunk.clock(clock), chunk.applied()
        known = np.isfinite(reading) & np.isfinite(applied)
        reading, applied = reading[known], applied[known]
        if len(reading) < self.block or np.ptp(reading) == 0 or np.ptp(applied) == 0:
            return None
        begun, since = self._first.setdefault(clock, (float(reading[0]), float(applied[0])))
        pace = (reading[-1] - begun) / max(applied[-1] - since, 1.0)
        if pace < 1 or not np.allclose(reading, begun + pace * (applied - since), rtol=1e-6, atol=0.0):
            return 0.0
        if pace == 1:
            return planned if 0 <= since - begun <= 1 else 0.0
        return float(begun + pace * (planned - since)) if applied[-1] >= self.settled * planned else None

    def _judge(self, header: Header, names: list[str], planned: float) -> Findings:
        said, length = header.schedules[names[0]], _length(header.schedules[names[0]])
        which = schedule_channel(names[0]) + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
        unit = str(said.get("clock", "applied"))
        own = unit not in STEPS and planned != self._planned.get("applied")
        unit = unit if unit in OTHER_UNITS else f"ticks of {unit}" if own else "steps"
        evidence = {"length": length, "planned": planned, "reached": min(planned / length, 1.0)}
        paths = [path for path in settings(header.config, names[0].rpartition("/")[2], length) if "schedule" in path]
        at = header.resumed_from or 0
        if planned < self.told * length:
            yield self.finding(
                "warning" if planned < self.reach * length else "info",
                f"schedule:{schedule_channel(names[0])}",
                (at, at),
                f"{which} is to change over {length:,.0f} {unit} and the run has {planned:,.0f}: it gets "
                f"{100 * planned / length:.2g}% of the way.",
                evidence=evidence,
                advice=f"Give {names[0]}'s length as a share of the run: at most {planned:,.0f} {unit}.",
                patch={paths[0]: int(planned)} if len(paths) == 1 and planned == int(planned) else {},
            )
        elif names[0].startswith("lr/") and length < self.reach * planned and self._spends(said):
            yield self.finding(
                "warning",
                f"schedule:{names[0]}",
                (at, at),
                f"{which} is at its end after {length:,.0f} of {planned:,.0f} {unit}, and stays there: "
                f"{1 - length / planned:.0%} of the run has next to no learning rate.",
                evidence=evidence,
                advice=f"Build the schedule of {names[0]} for {planned:,.0f} {unit}.",
            )

    def _spends(self, said: dict[str, Any]) -> bool:
        """Whether nothing is left of a rate at the end of its schedule."""
        first, last = number(said.get("start")) or 0.0, schedule_values(said, _length(said) + 1.0)
        return first > 0 and last is not None and float(last) <= self.spent * first

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Where the planned steps are not known: what a run that ended came to."""
        if len(rest) and self._owned:
            yield from self.ahead(rest)
        if run.end is None or run.end.get("status") not in ("finished", "stopped") or not run.train.size:
            return
        applied, ended = run.train.column("applied", run.train.size - 1, run.train.size)[0], run.last_step or 0
        ended = int(applied) if np.isfinite(applied) else ended
        whole = run.end["status"] == "finished" and not run.end.get("reason") and not run.eval.size
        for name, said in self._open.items():
            length = _length(said)
            if 0 < ended < self.reach * length:
                yield self.finding(
                    "warning" if whole else "info",  # evaluations may have stopped it early
                    f"schedule:{schedule_channel(name)}",
                    (0, ended),
                    f"{schedule_channel(name)} was to change over {length:,.0f} steps and the run ended at "
                    f"{ended:,}: it got {100 * ended / length:.2g}% of the way.",
                    evidence={"length": length, "planned": ended, "reached": ended / length},
                    advice=f"Give {name}'s length as a share of the run.",
                    confidence=0.7,
                )


def _length(said: dict[str, Any]) -> float:
    """Where a schedule ends on its clock."""
    return (number(said.get("begin")) or 0.0) + (number(said.get("over_steps")) or 0.0)


def _lengths(header: Header) -> dict[str, float]:
    """How long the run is planned to be, by every clock that it says so of."""
    horizon = mapping(header.raw.get("horizon"))
    epochs, samples = number(horizon.get("epochs")) or 0.0, number(horizon.get("samples")) or 0.0
    total = float(header.total_steps or 0)
    known = {"applied": total, "step": total, "epoch": epochs, "epochs": epochs, "samples": epochs * samples}
    return {clock: length for clock, length in known.items() if length > 0}

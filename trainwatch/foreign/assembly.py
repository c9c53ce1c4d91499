"""Rows of somebody else's log become a :class:`Run`, the same that our own recorder's file becomes.

A reader of a foreign format only says what stands on a line: names, values, and the split that the surroundings tell.
Here the names get their channels, the counters become one step that only goes up, what was evaluated is parted from
what was trained, and a log in which several trainings stand behind each other is taken apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainwatch.foreign import sums
from trainwatch.foreign.channels import Naming
from trainwatch.foreign.counters import LIMIT, Row, Steps, counted, episode_lengths, trained
from trainwatch.foreign.grid import Grid
from trainwatch.foreign.mapping import COUNTERS
from trainwatch.foreign.numbers import flattened
from trainwatch.foreign.unmade import SAID, unmade
from trainwatch.run import Event, Run
from trainwatch.schema import NONFINITE
from trainwatch.table import TableName

RESUMES = 20  # of one run: more steps back than that are two writers in one file, and the rows say so themselves

NO_CHANNELS = ("step", "batch", "planned", "ignored")
SHOWING = 200  # rows of a table that show what its counters mean
FEW = 8  # rows that are not worth a table


class About(NamedTuple):
    """What a tracker says of a run: its name, its settings, and how it ended (None while it goes on)."""

    name: str
    config: dict[str, Any]
    end: Event | None = None


@dataclass
class _Waiting:
    """Values of one step, or of one evaluation, that may come on several lines."""

    table: TableName
    step: int
    split: str = ""
    values: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # of lines that were averaged


class Assembler:
    """Puts the rows of one log together; ``runs`` grows with every :meth:`add`."""

    def __init__(self, source: Path, format_: str, proof: sums.Proof = sums.NOTHING) -> None:
        self.source, self.format, self.proof = source, format_, proof
        self.better: sums.Proof | None = None  # found when rows were taken in already: the log is to be read again
        self.runs: list[Run] = []
        self.naming = Naming()
        self.config: dict[str, Any] = {}
        self.name = source.stem
        self._steps: Steps | None = None
        self._first_rows: list[Row] = []  # until there are enough to prove something
        self._waiting: list[_Waiting] = []
        self._carried: dict[str, float] = {}
        self._last, self._first, self._stride, self._epoch = -1, 0, 0, -1.0

    def add(self, items: Iterable[Row | Event]) -> None:
        """What was read next, in file order. What the counters mean is decided on the first rows that come.

        The last row waits for values of its step that are still to come, until nothing new was read.
        """
        items = list(items)
        rows = [item for item in items if isinstance(item, Row)]
        for some in ([row for row in rows if counted(row)], rows):  # a setting's name must not take a measurement's
            self.naming.learn((name, row.split) for row in some for name in row.values)
        if self._steps is None and any(trained(row) for row in rows):
            self._steps = Steps.seen(rows, lengths=self.proof.lengths or episode_lengths(rows))
        if self._steps is not None and rows and len(self._first_rows) < SHOWING:
            self._prove(rows)
        self.naming.prove_components(self.proof.components)
        self.naming.prove_weights(self.proof.weights)
        if self.proof.lengths:
            self.naming.prove_lengths()
        for item in items:
            if isinstance(item, Row):
                self._row(item)
            else:
                self._event(item)
        self._flush(wait=bool(items))
        if rows and (self.runs or self._waiting):
            self.run().named = self.naming.explained()

    def _prove(self, rows: Sequence[Row]) -> None:
        """What the first rows show of sums and steps. The rows of a log that is still written come one by one."""
        begun = bool(self._first_rows)
        self._first_rows += rows
        components = sums.components(self._first_rows, self.naming.places)
        if not begun:
            self.naming.prove_components(components)
        weights = sums.weights(self._first_rows, self.naming.places)
        found = self.proof.with_more(components, weights, lengths=episode_lengths(self._first_rows))
        if not begun:
            self.proof = found
        elif found != self.proof:
            self.better = found
        del self._first_rows[SHOWING:]

    def saved(self, record: Event) -> None:
        """A checkpoint of the newest run; one whose step cannot be told from its counters is left out."""
        row, steps = Row(dict(flattened(record))), self._steps or Steps()
        step = row.counter("step") if steps.mode == "row" else steps.of(row, self._last)
        if step is not None:
            self.run().add_event({**record, "step": int(step)})

    def add_grid(self, grid: Grid) -> None:
        """The same for many rows at once. The first ones show how the counters move; the last one waits."""
        self.naming.learn((name, "") for name in grid.names)
        size = len(grid.step)
        begun = int(np.searchsorted(grid.step, self._last, side="right"))
        if self._steps is None:
            begun = min(max(begun, SHOWING), size)
        self.add(grid.rows(0, begun))
        if begun == size:
            return
        if self._steps is None or self._steps.mode != "step":
            self.add(grid.rows(begun, size))
            return
        for start, stop in grid.stretches():
            self._stretch(grid, max(start, begun), min(stop, size - 1))
        self.add(grid.rows(size - 1, size))

    def _stretch(self, grid: Grid, start: int, stop: int) -> None:
        """Rows with the same names written: all at once where they are of training alone."""
        if start >= stop:
            return
        names = [name for name, there in zip(grid.names, grid.written[start], strict=True) if there]
        places = {name: self.naming.places[name, ""] for name in names}
        known = {name: place for name, place in places.items() if place.role not in NO_CHANNELS}
        channels = [place.channel for place in known.values()]
        steps = self._steps or Steps()
        lossy = not steps.by_loss or any(name == "loss" or name.startswith("loss/") for name in channels)
        alone = len(set(channels)) == len(channels) and not any(place.split for place in known.values())
        if stop - start < FEW or not (alone and lossy and set(channels) - {"epoch"}) or self._carried:
            for row in grid.rows(start, stop):
                self._row(row)
            return
        self._flush()
        step, columns = grid.step[start:stop], [grid.names.index(name) for name in known]
        self._store("train", step, channels, grid.values[start:stop, columns])
        if self._last < 0:
            self._first = int(step[0])
        strides = np.diff(step, prepend=[self._last] if self._last >= 0 else step[:1])
        self._stride = min([self._stride or LIMIT, *strides[strides > 0].tolist()])
        self._last = int(step[-1])
        if "epoch" in channels:
            self._epoch = grid.row(stop - 1).counter("epoch") or 0.0

    def run(self) -> Run:
        """The newest run."""
        if not self.runs:
            self._begin()
        return self.runs[-1]

    def note(self, said: str) -> None:
        """Something to know of how the log was read."""
        self.run().notes.append(said)

    def close(self) -> None:
        """Nothing more comes. Trainings of one file that all ended at the same step are folds, not a restart."""
        self._flush()
        if self.runs:
            self.run().named = self._held(self.run().named)
        ends = {run.last_step for run in self.runs}
        if len(self.runs) > 2 and len(ends) == 1:
            for run in self.runs:
                run.nth = 1

    def _held(self, named: dict[str, str]) -> dict[str, str]:
        """Names and what they were taken for, where a row holds it: what gave none was a setting, or stood alone."""
        tables = [table for run in self.runs for table in (run.train, run.eval)]
        channels = {*COUNTERS, *(channel for table in tables for channel in table.channels)}
        return {name: told if told.rpartition(":")[2] in channels else "none" for name, told in named.items()}

    def _begin(self) -> None:
        run = Run(self.source, format=self.format, tells_end=False)
        self.runs.append(run)
        total = self._steps.total if self._steps else None
        header = {"run": self.name, "total_steps": total, "config": self.config}
        run.add_header({"kind": "run"} | {key: value for key, value in header.items() if value})

    def _event(self, event: Event) -> None:
        self._flush()
        if event.get("kind") == "run":  # another attempt at the same
            self.run().add_header({**self.run().header.raw, **event})
        else:
            self.run().add_event(event)

    def _row(self, row: Row) -> None:
        here: dict[str, dict[str, float]] = {}
        for name, value in row.values.items():
            place = self.naming.places[name, row.split]
            if place.role not in NO_CHANNELS:
                here.setdefault(place.split, {})[place.channel] = value
        training = here.pop("", {})
        if set(training) - {"epoch"}:
            self._training(row, training)
        for split, values in here.items():
            values.pop("epoch", None)
            self._evaluation(split, values, partial=row.partial, step=self._own_step(row))

    def _own_step(self, row: Row) -> int:
        """The step of an evaluation: its own where it counts steps as the training does, else the last one."""
        mode = self._steps.mode if self._steps else "none"
        said = row.counter("step") if mode in ("step", "none") else None
        if said is None and mode in ("epoch", "none"):
            said = row.counter("epoch")
        return max(self._last, 0) if said is None else int(said)

    def _training(self, row: Row, values: dict[str, float]) -> None:
        steps = self._steps or Steps()
        steps.learn(row, self._last, self._stride, self._epoch)
        step = steps.of(row, self._last)
        losses = {name: value for name, value in values.items() if name == "loss" or name.startswith("loss/")}
        own = step is not None and (step == self._last or row.whole) and steps.mode != "row"
        if steps.by_loss and not (losses or row.rounded or own):
            self._carried |= values
            return
        if step is None:
            if losses and self._last >= 0:
                self._evaluation("train", losses, partial=False, step=self._last)
            return
        if step < self._last:
            self._fell(step, row, steps)
        elif self._last < 0:
            self._first = step
        if step > self._last >= 0:
            self._stride = min(self._stride or step - self._last, step - self._last)
        self._last, self._epoch = step, row.counter("epoch") or 0.0
        self._wait("train", step, "", self._carried | values, average=False)
        self._carried = {}

    def _fell(self, step: int, row: Row, steps: Steps) -> None:
        """The counter went back: another training begins, or the same is taken up from a checkpoint."""
        self._flush()
        if step > self._first and not steps.anew:
            if len(self.run().headers) > RESUMES:
                return
            steps.lengthen(row, row.counter("epoch") or 0.0)
            self.run().add_header({**self.run().header.raw, "resumed_from": max(step - self._stride, 0)})
            return
        complete = steps.epochs is not None and self._epoch + 1 >= steps.epochs
        steps.begin(row)
        count = len(self.runs) + 1
        self._begin()
        if complete:
            self.runs[-1].notes.append(f"training {count} of several in {self.source.name}, each to its end")
        else:
            self.runs[-1].nth = count
            self.runs[-1].notes.append(f"run {count} of several that were written into {self.source.name}")
        self._first, self._last = step, -1

    def _evaluation(self, split: str, values: dict[str, float], *, partial: bool, step: int) -> None:
        if values and not unmade(values):
            self._wait("eval", step, split, values, average=partial)
        elif values and SAID not in self.run().notes:
            self.note(SAID)

    def _wait(self, table: TableName, step: int, split: str, values: dict[str, float], *, average: bool) -> None:
        """Values of the same step that come line by line are one row; a value that comes again begins the next."""
        last = self._waiting[-1] if self._waiting else None
        if last == _Waiting(table, step, split, values) and not average:
            return  # the same line again: a progress bar that was drawn anew, or another process of the same run
        same = last is not None and (last.table, last.step, last.split) == (table, step, split)
        if last is None or not same or (not average and (last.values.keys() & values.keys()) - {"epoch"}):
            last = _Waiting(table, step, split)
            self._waiting.append(last)
        for name, value in values.items():
            count = last.counts.get(name, 0)
            last.values[name] = (last.values.get(name, 0.0) * count + value) / (count + 1) if count else value
            if average:
                last.counts[name] = count + 1

    def _flush(self, *, wait: bool = False) -> None:
        """Rows with the same names are stored together; the last one may ``wait``."""
        ready, self._waiting = (self._waiting[:-1], self._waiting[-1:]) if wait else (self._waiting, [])
        for _, group in groupby(ready, key=lambda item: (item.table, tuple(item.values))):
            self._append(list(group))

    def _append(self, group: list[_Waiting]) -> None:
        names = list(group[0].values)
        matrix = np.array([[item.values[name] for name in names] for item in group], dtype=np.float64)
        step = np.array([item.step for item in group], dtype=np.int64)
        first = self._store(group[0].table, step, names, matrix)
        for row, item in enumerate(group, first):
            if item.split:
                self.run().table(item.table).text.setdefault("split", {})[row] = item.split

    def _store(self, table: TableName, step: NDArray[np.int64], names: list[str], matrix: NDArray[np.float64]) -> int:
        """Rows of the newest run; returns the number of the first."""
        run = self.run()
        finite = np.where(np.isfinite(matrix), matrix, np.nan)
        first = run.add_rows(table, step, {name: finite[:, index] for index, name in enumerate(names)})
        run.records += len(step)
        for row, index in np.argwhere(~np.isfinite(matrix)):
            run.table(table).mark(first + int(row), names[index], _code(matrix[row, index]))
        return first


def _code(value: float) -> int:
    return NONFINITE["nan" if math.isnan(value) else "inf" if value > 0 else "-inf"]

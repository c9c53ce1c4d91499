"""Rows of somebody else's log become a :class:`Run`, the same that our own recorder's file becomes.

A reader of a foreign format only says what stands on a line: names, values, and the split that the surroundings tell.
Here the names get their channels, the counters become one step that only goes up, what was evaluated is parted from
what was trained, and a log in which several trainings stand behind each other is taken apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainwatch.channels import Naming, recognise
from trainwatch.run import Event, Run
from trainwatch.schema import NONFINITE
from trainwatch.table import TableName

Mode = Literal["step", "batch", "epoch", "row"]

LIMIT = 2**53


@dataclass(slots=True)
class Row:
    """What a line says. ``totals`` has the ends of counters (``Batch 30/173``); ``partial`` is one of the lines of an
    evaluation that goes on (they are averaged).
    """

    values: dict[str, float]
    split: str = ""
    totals: dict[str, float] = field(default_factory=dict)
    partial: bool = False

    def counter(self, role: str) -> float | None:
        """The reading of a counter, None if the row has none."""
        found = (self.values[name] for name in self.values if recognise(name).role == role)
        return next((value for value in found if math.isfinite(value) and 0 <= value < LIMIT), None)

    def planned(self, role: str) -> float | None:
        """Where a counter is to end, None if the row does not say."""
        ends = (end for name, end in self.totals.items() if recognise(name).role == role)
        return next((end for end in ends if 0 < end < LIMIT), None)


COUNTERS = ("step", "epoch", "batch", "planned", "ignored")


def trained(row: Row) -> list[str]:
    """The names in a row that tell of training."""
    if row.split:
        return []
    read = ((name, recognise(name)) for name in row.values)
    return [name for name, reading in read if not reading.split and reading.role not in COUNTERS]


@dataclass
class Steps:
    """Turns a log's counters into one step. What the counters mean is seen from how they move."""

    mode: Mode = "row"
    by_loss: bool = False  # only rows with a loss count; others tell something of the next one
    length: float = 0.0  # batches of an epoch
    epochs: float | None = None  # that are planned
    counted_from: int = 0  # the first epoch's number
    total: int | None = None  # steps that are planned

    @classmethod
    def seen(cls, rows: Sequence[Row]) -> Steps:
        """How the counters of a log move in its first rows."""
        training = [row for row in rows if trained(row)]
        counted = [row for row in training if _counts(row)] or training
        with_loss = [row for row in counted if any(recognise(name).role == "loss" for name in trained(row))]
        chosen = with_loss or counted
        steps = cls(_mode(chosen), by_loss=bool(with_loss))
        planned = [end for row in rows if (end := row.planned("epoch"))]
        steps.epochs = planned[0] if planned else None
        first = next((epoch for row in chosen if (epoch := row.counter("epoch")) is not None), 0.0)
        steps.counted_from = int(first == 1)
        if steps.mode == "batch":
            steps.length = _epoch_length(chosen)
        steps.total = steps._planned(chosen)
        return steps

    def _planned(self, rows: Sequence[Row]) -> int | None:
        """The steps that are planned, as far as the rows say so."""
        if self.mode == "step":
            ends = (row.planned("step") or row.counter("planned") or row.planned("batch") for row in rows)
            return next((int(end) for end in ends if end), None)
        if self.epochs is None or self.mode == "row":
            return None
        return int(self.epochs * (self.length if self.mode == "batch" else 1))

    def of(self, row: Row, last: int) -> int | None:
        """The step of a training row, None if the row tells of more than one step (the mean of an epoch)."""
        step, epoch, batch = row.counter("step"), row.counter("epoch"), row.counter("batch")
        if self.mode == "step":
            value = step if step is not None else batch
            return None if value is None else int(value)
        if self.mode == "batch":
            within = batch if batch is not None else step
            return None if within is None or epoch is None else int((math.floor(epoch) - self.counted_from) * self.length + within)
        if self.mode == "epoch":
            return None if epoch is None else int(epoch)
        return last + 1


def _counts(row: Row) -> bool:
    return any(row.counter(role) is not None for role in ("step", "batch", "epoch"))


def _mode(rows: Sequence[Row]) -> Mode:
    steps = [row.counter("step") for row in rows]
    epochs = [row.counter("epoch") for row in rows]
    batches = [row.counter("batch") for row in rows]
    for counts in (steps, batches):
        if _mostly(counts):
            return "batch" if _within_epochs(counts, epochs) else "step"
    known = [epoch for epoch in epochs if epoch is not None]
    whole = all(epoch == int(epoch) for epoch in known)
    return "epoch" if _mostly(epochs) and whole and len(set(known)) * 3 > len(known) * 2 else "row"


def _mostly(values: Sequence[float | None]) -> bool:
    return sum(value is not None for value in values) * 2 > len(values)


def _within_epochs(steps: Sequence[float | None], epochs: Sequence[float | None]) -> bool:
    """Whether a counter falls where the epoch rises, and nearly nowhere else."""
    pairs = [(s, e) for s, e in zip(steps, epochs, strict=True) if s is not None and e is not None]
    falls = [(a, b) for a, b in pairwise(pairs) if b[0] < a[0] or (b[0] == a[0] and b[1] > a[1])]
    return bool(falls) and sum(b[1] > a[1] for a, b in falls) * 2 > len(falls)


def _epoch_length(rows: Sequence[Row]) -> float:
    """Batches of an epoch: as the log says, else one stride beyond the last that was ever printed."""
    said = Counter(end for row in rows if (end := row.planned("batch") or row.planned("step")))
    if said:
        return said.most_common(1)[0][0]
    batches = [value for row in rows if (value := _within(row)) is not None]
    strides = Counter(b - a for a, b in pairwise(batches) if b > a)
    stride = strides.most_common(1)[0][0] if strides else 1.0
    return max(batches, default=0.0) + stride


def _within(row: Row) -> float | None:
    batch = row.counter("batch")
    return batch if batch is not None else row.counter("step")


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

    def __init__(self, source: Path, format_: str, *, chosen: Mapping[str, str] | None = None) -> None:
        self.source, self.format = source, format_
        self.runs: list[Run] = []
        self.naming = Naming(chosen or {})
        self.config: dict[str, Any] = {}
        self.name = source.stem
        self._steps: Steps | None = None
        self._waiting: list[_Waiting] = []
        self._carried: dict[str, float] = {}
        self._last, self._first, self._stride, self._epoch = -1, 0, 1, -1.0

    def add(self, items: Iterable[Row | Event]) -> None:
        """What was read next, in file order. What the counters mean is decided on the first rows that come."""
        items = list(items)
        rows = [item for item in items if isinstance(item, Row)]
        for some in ([row for row in rows if _counts(row)], rows):  # a setting's name must not take a measurement's
            self.naming.learn((name, row.split) for row in some for name in row.values)
        if self._steps is None and any(trained(row) for row in rows):
            self._steps = Steps.seen(rows)
        for item in items:
            if isinstance(item, Row):
                self._row(item)
            else:
                self._event(item)
        self._flush()

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
        ends = {run.last_step for run in self.runs}
        if len(self.runs) > 2 and len(ends) == 1:
            for run in self.runs:
                run.nth = 1

    def _begin(self) -> None:
        run = Run(self.source, format=self.format, tells_end=False)
        self.runs.append(run)
        total = self._steps.total if self._steps else None
        header = {"run": self.name, "total_steps": total, "config": self.config}
        run.add_header({"kind": "run"} | {key: value for key, value in header.items() if value})

    def _event(self, event: Event) -> None:
        self._flush()
        self.run().add_event(event)

    def _row(self, row: Row) -> None:
        here: dict[str, dict[str, float]] = {}
        for name, value in row.values.items():
            place = self.naming.places[name, row.split]
            if place.role not in ("step", "batch", "planned", "ignored"):
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
        if steps.by_loss and not any(name == "loss" or name.startswith("loss/") for name in values):
            self._carried |= values
            return
        step = steps.of(row, self._last)
        if step is None:
            losses = {name: value for name, value in values.items() if name == "loss" or name.startswith("loss/")}
            if losses and self._last >= 0:
                self._evaluation("train", losses, partial=False, step=self._last)
            return
        if step < self._last:
            self._fell(step)
        elif self._last < 0:
            self._first = step
        if step > self._last >= 0:
            self._stride = step - self._last
        self._last, self._epoch = step, row.counter("epoch") or 0.0
        self._wait("train", step, "", self._carried | values, average=False)
        self._carried = {}

    def _fell(self, step: int) -> None:
        """The counter went back: another training begins, or the same is taken up from a checkpoint."""
        self._flush()
        if step > self._first + self._stride:
            self.run().add_header({**self.run().header.raw, "resumed_from": max(step - self._stride, 0)})
            return
        planned = self._steps.epochs if self._steps else None
        complete = planned is not None and self._epoch + 1 >= planned
        count = len(self.runs) + 1
        self._begin()
        if complete:
            self.runs[-1].notes.append(f"training {count} of several in {self.source.name}, each to its end")
        else:
            self.runs[-1].nth = count
            self.runs[-1].notes.append(f"run {count} of several that were written into {self.source.name}")
        self._first, self._last = step, -1

    def _evaluation(self, split: str, values: dict[str, float], *, partial: bool, step: int) -> None:
        if values:
            self._wait("eval", step, split, values, average=partial)

    def _wait(self, table: TableName, step: int, split: str, values: dict[str, float], *, average: bool) -> None:
        """Values of the same step that come line by line are one row; a value that comes again begins the next."""
        last = self._waiting[-1] if self._waiting else None
        same = last is not None and (last.table, last.step, last.split) == (table, step, split)
        if last is None or not same or (not average and last.values.keys() & values.keys()):
            last = _Waiting(table, step, split)
            self._waiting.append(last)
        for name, value in values.items():
            count = last.counts.get(name, 0) if average else 0
            last.values[name] = (last.values.get(name, 0.0) * count + value) / (count + 1)
            last.counts[name] = count + 1

    def _flush(self) -> None:
        """Rows with the same names are stored together."""
        shape: tuple[Any, ...] | None = None
        group: list[_Waiting] = []
        for item in self._waiting:
            key = (item.table, tuple(item.values))
            if key != shape and group:
                self._append(group)
                group = []
            shape = key
            group.append(item)
        if group:
            self._append(group)
        self._waiting = []

    def _append(self, group: list[_Waiting]) -> None:
        run, table = self.run(), group[0].table
        names = list(group[0].values)
        matrix = np.array([[item.values[name] for name in names] for item in group], dtype=np.float64)
        finite = np.where(np.isfinite(matrix), matrix, np.nan)
        columns = {name: finite[:, index] for index, name in enumerate(names)}
        first = run.add_rows(table, np.array([item.step for item in group], dtype=np.int64), columns)
        run.records += len(group)
        for row, index in np.argwhere(~np.isfinite(matrix)):
            run.table(table).mark(first + int(row), names[index], _code(matrix[row, index]))
        for row, item in enumerate(group):
            if item.split:
                run.table(table).text.setdefault("split", {})[first + row] = item.split


def _code(value: float) -> int:
    return NONFINITE["nan" if math.isnan(value) else "inf" if value > 0 else "-inf"]

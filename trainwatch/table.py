"""Rows as columns: the tables of a run that grow, and the chunks of them that rules are fed with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainwatch.schema import NONFINITE_NAMES

Floats = NDArray[np.float64]
Codes = NDArray[np.int8]
TableName = Literal["train", "eval", "sample"]

RECENT = 1024  # rows that are searched first for a newest value: what is probed now and then stands in them too
CHANNEL_LIMIT = 4096  # a log with more columns is broken or hostile, and would cost gigabytes as columns


class Table:
    """Rows of one kind as columns of float64. A NaN is *absent*, unless the column's code says that it was written."""

    def __init__(self) -> None:
        self.size = 0
        self.dropped: set[str] = set()
        self._capacity = 0
        self._values: dict[str, Floats] = {}
        self._kinds: dict[str, tuple[str, ...]] = {}
        self._codes: dict[str, Codes] = {}
        self._absent: Floats = np.zeros(0)  # NaN: what every column is that there is not
        self._live: NDArray[np.bool_] = np.zeros(0, dtype=bool)
        self._step: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.text: dict[str, dict[int, Any]] = {}
        self._reach: tuple[int, int] | None = None
        self._reached = 0  # rows that it covers

    @property
    def channels(self) -> list[str]:
        """Names of all numeric columns, in order of appearance."""
        return list(self._values)

    def kind(self, beginning: str) -> tuple[str, ...]:
        """Names of the numeric columns that begin so, in order of appearance: asked for a hundred times a look."""
        if beginning not in self._kinds:
            self._kinds[beginning] = tuple(name for name in self._values if name.startswith(beginning))
        return self._kinds[beginning]

    @property
    def step(self) -> NDArray[np.int64]:
        """The step of every row, in file order."""
        return self._step[: self.size]

    @property
    def live(self) -> NDArray[np.bool_]:
        """Which rows belong to the curve; the others were superseded by a resume."""
        return self._live[: self.size]

    @property
    def reach(self) -> tuple[int, int] | None:
        """Smallest and largest step of the curve, None before its first row; only new rows are looked at."""
        fresh = slice(self._reached, self.size)
        steps = self._step[fresh][self._live[fresh]]
        if len(steps):
            known = self._reach or (int(steps[0]), int(steps[0]))
            self._reach = min(known[0], int(steps.min())), max(known[1], int(steps.max()))
        self._reached = self.size
        return self._reach

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Floats:
        """A column, float64 [rows]; NaN where absent or non-finite."""
        return self.column(name, 0, self.size)

    def column(self, name: str, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop`` of a column; all NaN if there is no such column."""
        return self._values.get(name, self._absent)[start:stop]

    def codes(self, name: str, start: int = 0, stop: int | None = None) -> Codes:
        """0 finite or absent, 1 NaN, 2 Inf, 3 -Inf; int8 [rows]."""
        stop = self.size if stop is None else stop
        codes = self._codes.get(name)
        return np.zeros(stop - start, dtype=np.int8) if codes is None else codes[start:stop]

    def nonfinite_channels(self) -> list[str]:
        """Columns in which at least one value was not finite."""
        return list(self._codes)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What :meth:`of_arrays` makes the same rows of: steps, which live, columns and codes by their number."""
        columns = {f"value{index}": self[name] for index, name in enumerate(self._values)}
        codes = {f"code{index}": self.codes(name) for index, name in enumerate(self._codes)}
        return {"step": self.step, "live": self.live, **columns, **codes}

    @classmethod
    def of_arrays(cls, channels: list[str], broken: list[str], arrays: Mapping[str, NDArray[Any]]) -> Table:
        """The rows that :meth:`arrays` told of, which are taken and not copied. Raises ValueError."""
        table = cls()
        table._step, table._live = arrays["step"], arrays["live"]
        table._values = {name: arrays[f"value{index}"] for index, name in enumerate(channels)}
        table._codes = {name: arrays[f"code{index}"] for index, name in enumerate(broken)}
        table.size = table._capacity = len(table._step)
        table._absent = np.full(table.size, np.nan)
        kinds = ((np.int64, [table._step]), (np.bool_, [table._live]))
        for kind, parts in (*kinds, (np.float64, table._values.values()), (np.int8, table._codes.values())):
            if any(part.dtype != kind or part.shape != (table.size,) for part in parts):
                raise ValueError("no columns of one table")
        return table

    def append(self, step: NDArray[np.int64], columns: Mapping[str, Floats]) -> None:
        """Add rows. ``columns`` are float64 [rows], NaN where absent or not finite (then :meth:`mark` says so)."""
        first, self.size = self.size, self.size + len(step)
        self._reserve(self.size)
        self._step[first : self.size] = step
        self._live[first : self.size] = True
        for name, values in columns.items():
            column = self._column(name)
            if column is not None:
                column[first : self.size] = values

    def mark(self, row: int, name: str, code: int) -> None:
        """Say that the value in ``row`` was written, and was not finite."""
        if self._column(name) is None:
            return
        if name not in self._codes:
            self._codes[name] = np.zeros(self._capacity, dtype=np.int8)
        self._codes[name][row] = code

    def supersede(self, above: int) -> None:
        """Take every row with a step above ``above`` out of the curve."""
        self.live[self.step > above] = False
        self._reach, self._reached = None, 0

    def curve(self, name: str) -> tuple[NDArray[np.int64], Floats]:
        """Steps and values of the rows in which ``name`` is finite and that no resume superseded."""
        values = self[name]
        there = self.live & np.isfinite(values)
        return (self.step, values) if there.all() else (self.step[there], values[there])

    def last(self, name: str) -> float | None:
        """The newest value of the curve, NaN or an infinity if that is what was written; None if there is none."""
        for start in (max(self.size - RECENT, 0), 0):
            values, codes = self.column(name, start, self.size), self.codes(name, start)
            rows = np.flatnonzero(self.live[start:] & ((codes > 0) | np.isfinite(values)))
            if len(rows):
                code = int(codes[rows[-1]])
                return float(NONFINITE_NAMES[code]) if code else float(values[rows[-1]])
        return None

    def nonfinite(self, name: str) -> tuple[NDArray[np.int64], Codes]:
        """Steps and codes of the rows in which ``name`` was written and is not finite."""
        codes = self.codes(name)
        there = self.live & (codes > 0)
        return self.step[there], codes[there]

    def _column(self, name: str) -> Floats | None:
        column = self._values.get(name)
        if column is None:
            if len(self._values) >= CHANNEL_LIMIT:
                if len(self.dropped) < CHANNEL_LIMIT:
                    self.dropped.add(name)
                return None
            column = self._values[name] = np.full(self._capacity, np.nan)
            self._kinds = {}
        return column

    def _reserve(self, rows: int) -> None:
        """Make room; growing by half keeps the memory below twice the columns and the copies below thrice."""
        if rows <= self._capacity:
            return
        self._capacity = max(rows, 64, self._capacity + self._capacity // 2)
        self._step = _grown(self._step, self._capacity, 0)
        self._live = _grown(self._live, self._capacity, False)
        self._absent = np.full(self._capacity, np.nan)
        for name, values in self._values.items():
            self._values[name] = _grown(values, self._capacity, np.nan)
        for name, codes in self._codes.items():
            self._codes[name] = _grown(codes, self._capacity, 0)


def _grown(old: NDArray[Any], capacity: int, fill: Any) -> NDArray[Any]:
    new = np.full(capacity, fill, dtype=old.dtype)
    new[: len(old)] = old
    return new


@dataclass(frozen=True)
class Chunk:
    """The next rows of one table, as columns; what a rule is fed with."""

    table: TableName
    rows: Table
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def step(self) -> NDArray[np.int64]:
        """int64 [rows]"""
        return self.rows.step[self.start : self.stop]

    @property
    def channels(self) -> list[str]:
        """Columns known so far; one may be absent in every row of this chunk."""
        return self.rows.channels

    def kind(self, beginning: str) -> tuple[str, ...]:
        """Those of the columns whose names begin so."""
        return self.rows.kind(beginning)

    def __getitem__(self, name: str) -> Floats:
        """float64 [rows], NaN where the value is absent or not finite."""
        return self.rows.column(name, self.start, self.stop)

    def nonfinite(self, name: str) -> Codes:
        """int8 [rows]: 0 none, 1 NaN, 2 Inf, 3 -Inf."""
        return self.rows.codes(name, self.start, self.stop)

    def nonfinite_channels(self) -> list[str]:
        """Columns that hold a value that is not finite somewhere in the run so far."""
        return self.rows.nonfinite_channels()

    def broken(self, wanted: Callable[[str], bool]) -> NDArray[np.bool_]:
        """bool [rows]: a value of one of the wanted channels was written, and is not finite."""
        found = np.zeros(len(self), dtype=bool)
        for name in self.nonfinite_channels():
            if wanted(name):
                found |= self.nonfinite(name) > 0
        return found

    def loss_broken(self) -> NDArray[np.bool_]:
        """bool [rows]: the loss is not finite; the total, or a component where no total says otherwise."""
        return self.broken(lambda name: name == "loss") | (
            self.broken(lambda name: name.startswith("loss/")) & ~np.isfinite(self["loss"])
        )

    def present(self, name: str) -> NDArray[np.bool_]:
        """bool [rows]: the value was written, finite or not."""
        return ~np.isnan(self[name]) | (self.nonfinite(name) > 0)

    def applied(self) -> Floats:
        """The applied step of each row; the attempted step where the trainer does not tell it. float64 [rows]"""
        applied = self["applied"]
        return np.where(np.isnan(applied), self.step, applied)

    def clock(self, name: str) -> Floats:
        """A counter's readings: ``clock/<name>``, else the column of that name; ``step`` and ``applied`` are always
        there. float64 [rows]

        A program's own counter may be called step, and is not the row's.
        """
        if name == "applied":
            return self.applied()
        own = self[f"clock/{name}"]
        return np.where(np.isnan(own), self.step if name == "step" else self[name], own)

    def trained(self) -> NDArray[np.bool_]:
        """bool [rows]: the optimiser took the step.

        ``amp/skipped`` says so; where it is not written, a step is skipped on which ``applied`` stood still.
        """
        before = max(self.start - 1, 0)  # the row before: how the log is cut must not show
        applied, step = self.rows.column("applied", before, self.stop), self.rows.step[before : self.stop]
        if before == self.start:
            applied, step = np.concatenate([[0.0], applied]), np.concatenate([[-1], step])
        stands = (np.diff(applied) == 0) & (np.diff(step) > 0)
        flag = self["amp/skipped"]
        trained: NDArray[np.bool_] = np.where(np.isnan(flag), ~stands, flag != 1.0)
        return trained

    def text(self, row: int, name: str) -> Any:
        """What was written under ``name`` in the chunk's row ``row`` if it was no number, else None."""
        return self.rows.text.get(name, {}).get(self.start + row)

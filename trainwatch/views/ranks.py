"""The ranks of a run side by side: what every rank has written of the same steps, in the order of the file.

A step is shown once all ranks have written it, so a file that lags by seconds is only waited for; how the files are
read never changes what is shown. Each process of a run (its header, and every resume) is walked through by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import number
from trainwatch.run import Run
from trainwatch.table import Floats, Table

Rows = NDArray[np.intp]

PATIENCE = 200  # rows of rank 0: a rank whose file is not there by then is not waited for
AT_ONCE = 65536  # rows that are shown together


def members(run: Run) -> dict[int, Run]:
    """The run on every rank; a file that an earlier run left beside it is none of its."""
    known = run.header.id
    others = {rank: one for rank, one in run.ranks.items() if None in (known, one.header.id) or one.header.id == known}
    return dict(sorted({0: run, **others}.items()))


@dataclass(frozen=True)
class Abreast:
    """The next steps that all ranks have written."""

    ranks: tuple[int, ...]
    step: NDArray[np.int64]
    _tables: tuple[Table, ...]
    _rows: tuple[Rows, ...]

    def __len__(self) -> int:
        return len(self.step)

    def __contains__(self, name: object) -> bool:
        """Whether every rank has such a column."""
        return all(name in table for table in self._tables)

    def __getitem__(self, name: str) -> Floats:
        """A channel of every rank, NaN where it is absent or not finite; float64 [ranks, rows]"""
        return np.stack([table[name][rows] for table, rows in zip(self._tables, self._rows, strict=True)])


@dataclass
class Alignment:
    """How far the ranks of a run have been walked through together."""

    _process: int = -1
    _at: dict[int, int] = field(default_factory=dict)

    def advance(self, run: Run, process: int) -> Iterator[Abreast]:
        """What all ranks have written of the run's ``process``-th process (from 0) since the last call."""
        if process != self._process:
            self._process, self._at = process, {}
        spans = _spans(run, process)
        if not (self._at.keys() <= spans.keys() if self._at else _complete(run, process, spans)):
            return
        self._at = self._at or {rank: start for rank, (start, _) in spans.items()}
        runs = members(run)
        tables = tuple(runs[rank].train for rank in self._at)
        while (rows := self._next(tables, [spans[rank][1] for rank in self._at])) is not None:
            if len(rows[0]):
                yield Abreast(tuple(self._at), tables[0].step[rows[0]], tables, rows)

    def _next(self, tables: tuple[Table, ...], stops: list[int]) -> tuple[Rows, ...] | None:
        """For each rank the rows of the steps that all ranks have among their next ones; None if one has no more."""
        starts = list(self._at.values())
        steps = [
            table.step[at : min(stop, at + AT_ONCE)] for table, at, stop in zip(tables, starts, stops, strict=True)
        ]
        if not all(len(one) for one in steps):
            return None
        reached = [np.maximum.accumulate(one) for one in steps]  # a log may go backwards
        limit = min(int(one[-1]) for one in reached)
        counts = [int(np.searchsorted(one, limit, side="right")) for one in reached]
        self._at = {rank: at + count for (rank, at), count in zip(self._at.items(), counts, strict=True)}
        found = _shared([one[:count] for one, count in zip(steps, counts, strict=True)])
        return tuple(at + rows for at, rows in zip(starts, found, strict=True))


def _shared(steps: list[NDArray[np.int64]]) -> list[Rows]:
    """For each rank the positions of the steps that all ranks have."""
    if all(np.array_equal(one, steps[0]) for one in steps[1:]):
        return [np.arange(len(one)) for one in steps]
    shared = reduce(np.intersect1d, steps)
    order = [np.argsort(one, kind="stable") for one in steps]
    return [rows[np.searchsorted(one[rows], shared)] for one, rows in zip(steps, order, strict=True)]


def _complete(run: Run, process: int, spans: dict[int, tuple[int, int]]) -> bool:
    """Whether all ranks are there, or no more are to be waited for."""
    header = run.headers[process] if process < len(run.headers) else run.header
    size = number(header.raw.get("world_size")) or 0
    start, stop = spans.get(0, (0, 0))
    late = run.end is not None or process + 1 < len(run.headers) or stop - start >= PATIENCE
    return len(spans) > 1 and (len(spans) >= size or late)


def _spans(run: Run, process: int) -> dict[int, tuple[int, int]]:
    """The rows of each rank that were written by the process, first and last + 1."""
    wanted = _keys(run)[process : process + 1]
    found = {}
    for rank, one in members(run).items():
        keys = _keys(one)
        if wanted and wanted[0] in keys:
            index = keys.index(wanted[0])
            begins = [*one.begins, one.train.size]
            found[rank] = (begins[index], begins[index + 1])
    return found


def _keys(run: Run) -> list[tuple[int | None, int]]:
    """What names each process of a run on every rank: the step it was resumed from, and how often that was."""
    steps = [header.resumed_from for header in run.headers]
    return [(step, steps[:index].count(step)) for index, step in enumerate(steps)]

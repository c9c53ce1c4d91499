"""Streaming statistics that rules are made of. How the rows are cut into chunks never changes what they give.

That is why nothing here accumulates over a chunk's border: rows are held until a block of a fixed number of rows,
counted from the first one, is whole, and a block is judged as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass
class Blocks:
    """Cuts a stream of columns into blocks of ``size`` rows; holds what does not fill a block yet."""

    size: int
    _held: dict[str, Floats] = field(default_factory=dict)
    _rows: int = 0

    def push(self, columns: Mapping[str, Floats]) -> dict[str, Floats]:
        """Every block that these rows complete: float64 [blocks, size] a column; no columns if there is none.

        A column that was absent until now is NaN in the rows before it.
        """
        fresh = len(next(iter(columns.values()), ()))
        rows = self._rows + fresh
        joined = {
            name: np.concatenate([self._column(self._held, name, self._rows), self._column(columns, name, fresh)])
            for name in dict.fromkeys([*self._held, *columns])
        }
        whole = rows // self.size
        self._rows = rows - whole * self.size
        self._held = {name: values[whole * self.size :].copy() for name, values in joined.items()}
        if not whole:
            return {}
        return {name: values[: whole * self.size].reshape(whole, self.size) for name, values in joined.items()}

    @staticmethod
    def _column(columns: Mapping[str, Floats], name: str, rows: int) -> Floats:
        return columns[name] if name in columns else np.full(rows, np.nan)


def medians(blocks: Floats) -> Floats:
    """Median of the finite values of each row of [blocks, size]; NaN for a row without any. float64 [blocks]"""
    ordered = np.sort(np.where(np.isfinite(blocks), blocks, np.nan), axis=1)  # NaN sorts to the end
    count = np.isfinite(ordered).sum(axis=1)
    row = np.arange(len(ordered))
    middle = (
        ordered[row, np.maximum(count - 1, 0) // 2] + ordered[row, np.minimum(count // 2, blocks.shape[1] - 1)]
    ) / 2
    return np.where(count > 0, middle, np.nan)


def carried(previous: float, values: Floats) -> Floats:
    """For each value the last finite one *before* it, beginning with ``previous`` (NaN for none). float64 [rows]"""
    known = np.concatenate([[previous], values])
    index = np.where(np.isfinite(known), np.arange(len(known)), 0)
    return known[np.maximum.accumulate(index)][:-1]


@dataclass
class Streak:
    """A condition that counts once it has held for ``rows`` judged rows in a row; its onset is the first of those.

    ``onset``, ``believed`` and ``latest`` are whatever columns came with the first row of the first such streak, with
    the row that made it one, and with the last row in which the condition held.
    """

    rows: int  # in a row, for a streak to be believed
    bad: int = 0  # rows in which the condition held, in all
    onset: dict[str, float] | None = None
    believed: dict[str, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    good_since: int = 0  # rows since the condition held last
    _length: int = 0  # of the streak that the last row belongs to
    _began: dict[str, float] = field(default_factory=dict)  # the first row of that streak

    @property
    def over(self) -> bool:
        """Whether it has not held for as many rows as it took to be believed."""
        return self.good_since >= self.rows

    def push(self, holds: Bools, columns: Mapping[str, Floats]) -> bool:
        """Add judged rows; True if there is a streak whose story these rows changed."""
        if not len(holds):
            return False
        last_good, lengths = self._lengths(holds)
        if self.onset is None:
            self._believe(lengths, columns)
        if holds[-1] and (last_good >= 0 or not self._length):
            self._began = _row(columns, last_good + 1)
        self._length = int(lengths[-1])
        where = np.flatnonzero(holds)
        self.good_since += len(holds)
        if len(where):
            self.bad, self.good_since = self.bad + len(where), len(holds) - 1 - int(where[-1])
            self.latest = _row(columns, int(where[-1]))
        return self.onset is not None

    def _lengths(self, holds: Bools) -> tuple[int, NDArray[np.int64]]:
        """The last row in which the condition does not hold (-1 for none), and how long it has held at each row."""
        row = np.arange(len(holds))
        good = np.maximum.accumulate(np.where(holds, -1, row))  # the last such row up to each row
        return int(good[-1]), row - good + np.where(good < 0, self._length, 0)

    def _believe(self, lengths: NDArray[np.int64], columns: Mapping[str, Floats]) -> None:
        """Note the first streak that is long enough; its onset may lie in rows that were pushed before."""
        enough = np.flatnonzero(lengths >= self.rows)
        if len(enough):
            first = int(enough[0]) - self.rows + 1
            self.onset = _row(columns, first) if first >= 0 else dict(self._began)
            self.believed = _row(columns, int(enough[0]))


def _row(columns: Mapping[str, Floats], index: int) -> dict[str, float]:
    return {name: float(values[index]) for name, values in columns.items()}

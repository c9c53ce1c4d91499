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

    rows: int
    bad: int = 0
    onset: dict[str, float] | None = None
    believed: dict[str, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    good_since: int = 0
    _running: int = 0
    _began: dict[str, float] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether it has not held for as many rows as it took to be believed."""
        return self.good_since >= self.rows

    def push(self, holds: Bools, columns: Mapping[str, Floats]) -> bool:
        """Add judged rows; True if there is a streak whose story these rows changed."""
        rows = len(holds)
        where = np.flatnonzero(holds)
        if not len(where):
            self._running, self.good_since = (0 if rows else self._running), self.good_since + rows
            return self.onset is not None and rows > 0
        index = np.arange(rows)
        last_good = np.maximum.accumulate(np.where(holds, -1, index))
        length = index - last_good + np.where(last_good < 0, self._running, 0)
        enough = np.flatnonzero(holds & (length >= self.rows))
        if self.onset is None and len(enough):
            start = int(enough[0]) - self.rows + 1
            self.onset = _row(columns, start) if start >= 0 else dict(self._began)
            self.believed = _row(columns, int(enough[0]))
        if holds[-1] and (last_good[-1] >= 0 or not self._running):
            self._began = _row(columns, int(last_good[-1]) + 1)
        self._running = int(length[-1]) if holds[-1] else 0
        self.bad += len(where)
        self.latest, self.good_since = _row(columns, int(where[-1])), rows - 1 - int(where[-1])
        return self.onset is not None


def _row(columns: Mapping[str, Floats], index: int) -> dict[str, float]:
    return {name: float(values[index]) for name, values in columns.items()}

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

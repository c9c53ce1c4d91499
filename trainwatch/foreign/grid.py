"""Many points of many names as one table: a row a step, a column a name, and what was written in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trainwatch.foreign.counters import LIMIT, Row

ROOM = 16  # cells for each point: where there are more, the points are better read row by row
SMALL = 1 << 20  # cells that are always worth it


@dataclass
class Grid:
    """``values`` float64 and ``written`` bool [steps, names]; ``step`` int64 [steps], each once, rising."""

    names: list[str]
    step: NDArray[np.int64]
    values: NDArray[np.float64]
    written: NDArray[np.bool_]

    @classmethod
    def of(
        cls, step: NDArray[np.int64], name: NDArray[np.int64], value: NDArray[np.float64], names: list[str]
    ) -> Grid | None:
        """The table of points with the numbers of their names; None where one comes twice, or it would be too wide."""
        if step.min() < 0 or step.max() >= LIMIT or "step" in names:
            return None
        steps, row = np.unique(step, return_inverse=True)
        if len(steps) * len(names) > max(ROOM * len(step), SMALL):
            return None
        values = np.full((len(steps), len(names)), np.nan)
        written = np.zeros(values.shape, dtype=bool)
        values[row, name] = value
        written[row, name] = True
        return cls(names, steps, values, written) if int(written.sum()) == len(step) else None

    def row(self, index: int) -> Row:
        """One row as a reader of lines would give it."""
        there = np.flatnonzero(self.written[index])
        return Row({"step": float(self.step[index]), **{self.names[i]: float(self.values[index, i]) for i in there}})

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Some of them."""
        return (self.row(index) for index in range(start, stop))

    def stretches(self) -> Iterator[tuple[int, int]]:
        """Where rows with the same names written begin and end, in order."""
        cuts = np.flatnonzero((self.written[1:] != self.written[:-1]).any(axis=1)) + 1
        edges = [0, *cuts.tolist(), len(self.step)]
        return pairwise(edges)

"""A curve in one line of blocks. What is not finite is a mark at its place, never a gap and never a healthy block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from trainwatch.table import Floats, Table

BLOCKS = "▁▂▃▄▅▆▇█"
MARK = "✖"
DECADES = 30.0  # a curve of positive values that spans more than this factor is drawn by its logarithm

FLAT = 1e-9  # of its values: so little is the rounding of a mean


@dataclass(frozen=True)
class Curve:
    """Values at their steps, and the steps at which something was written that is not finite."""

    steps: NDArray[np.int64]
    values: Floats
    broken: NDArray[np.int64]

    @classmethod
    def of(cls, table: Table, name: str, rows: NDArray[np.bool_] | None = None) -> Curve:
        """A channel's curve; of some ``rows`` alone, where a table holds several."""
        there = table.live if rows is None else table.live & rows
        values = table[name]
        finite = there & np.isfinite(values)
        return cls(table.step[finite], values[finite], table.step[there & (table.codes(name) > 0)])

    def __bool__(self) -> bool:
        return bool(len(self.steps) or len(self.broken))


def sparkline(curve: Curve, first: int, last: int, width: int) -> Text:
    """The curve from step ``first`` to ``last`` in at most ``width`` cells: each the mean of its steps, on a scale of
    the curve's own.

    A value that is recorded now and then stands until the next one; a cell with something not finite is marked.
    """
    width = max(min(width, last - first + 1), 1)
    means = _means(_cells(curve.steps, first, last, width), curve.values, width)
    signs = [" " if level < 0 else BLOCKS[level] for level in _levels(means)]
    marked = np.unique(_cells(curve.broken, first, last, width)).tolist()
    for cell in marked:
        signs[cell] = MARK
    line = Text("".join(signs), style="cyan")
    for cell in marked:
        line.stylize("bold red", cell, cell + 1)
    return line


def _cells(steps: NDArray[np.int64], first: int, last: int, width: int) -> NDArray[np.int64]:
    """The cell of each step. int64 [steps]"""
    at = (steps.astype(np.float64) - first) / (last - first + 1) * width
    return np.clip(at.astype(np.int64), 0, width - 1)


def _means(cells: NDArray[np.int64], values: Floats, width: int) -> Floats:
    """The mean of each cell, carried over the empty cells between two; NaN before the first and after the last."""
    counts = np.bincount(cells, minlength=width)
    means = np.bincount(cells, weights=values / counts[cells], minlength=width)  # divided first: no sum overflows
    filled = np.flatnonzero(counts)
    carried = np.full(width, np.nan)
    if len(filled):
        inner = np.arange(filled[0], filled[-1] + 1)
        carried[inner] = means[filled[np.searchsorted(filled, inner, side="right") - 1]]
    return carried


def _levels(means: Floats) -> list[int]:
    """0 to 7 for each cell, -1 for one without a value; a flat curve runs in the middle."""
    known = means[np.isfinite(means)]
    if not len(known):
        return [-1] * len(means)
    if known.min() > 0 and known.max() / known.min() > DECADES:
        means, known = np.log(means), np.log(known)
    half = known / 2  # the span of the largest floats would overflow
    low, span = half.min(), half.max() - half.min()
    if span <= FLAT * np.abs(half).max():
        return [3 if finite else -1 for finite in np.isfinite(means)]
    scaled = (means / 2 - low) / span * len(BLOCKS)
    return [-1 if np.isnan(value) else min(int(value), len(BLOCKS) - 1) for value in scaled]

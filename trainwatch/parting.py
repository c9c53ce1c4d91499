"""When two noisy curves part: the one statistic behind `compare`. NumPy in, plain data out; nothing of ours is needed.

Two runs of one configuration differ in every row, and drift apart and back; two settings that differ in effect stay
apart. So the curves are aligned on their common steps and cut into blocks of max(20, 2 % of these) rows, and

* **noise** of a curve in a block is what it does from step to step, ``1.4826 MAD(diff) / sqrt(2)``, which neither a
  trend nor a few outliers move. To it comes how the block's median itself wanders around its neighbours (robust as
  well: the MAD of second differences), and 1 % of the level: less than that matters to nobody.
* **apart** is a block in which each curve's median lies outside of everything the other's median was in this block and
  its two neighbours (one run may learn a little earlier), by more than 3 times the noise of both, ``sqrt(a^2 + b^2)``.
* **parted** are two curves from the first block on that is apart as its successor is, and as at least half of all
  blocks up to the end are, on the same side: a spike that healed, or one run learning later, is no parting.

The step is dated by Page's CUSUM: from the row after the last one at which the sum of (difference / noise - 1) was 0.
Where one curve goes non-finite and stays so while the other is finite, they part at that row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]

SMALLEST = 20  # rows: the median of fewer is moved by a handful of outliers
SHARE = 0.02  # of the common rows
NOISES = 3.0  # a block's median leaves 3 standard deviations of a single row by chance in none of a million runs
FEW = 10  # blocks: of fewer, how the medians wander is mostly the curve's bend
FLOOR = 0.01  # of the level
SAME = 1e-6  # relative: float32 prints seven digits


@dataclass(frozen=True)
class Parting:
    """From ``step`` on the second curve differs by ``difference`` (its median less the first's), noise ``noise``."""

    step: int
    difference: float
    noise: float


@dataclass(frozen=True)
class Pair:
    """What became of two curves: ``same_until`` is the last step up to which they agree number by number."""

    rows: int
    same_until: int | None
    parting: Parting | None
    differs: bool = True


def part(step: Steps, a: Floats, b: Floats, *, exact: bool = False) -> Pair:
    """Compare two curves on their common steps; float64 [rows], NaN where a value was written and is not finite.

    ``exact`` curves are planned and have no noise: they part at the first row in which they differ.
    """
    differs = ~np.isclose(a, b, rtol=SAME, atol=0.0, equal_nan=True)
    first = int(np.argmax(differs)) if differs.any() else len(step)
    same_until = int(step[first - 1]) if first else None
    if first == len(step):
        return Pair(len(step), same_until, None, differs=False)
    if exact:
        return Pair(len(step), same_until, Parting(int(step[first]), float(b[first] - a[first]), 0.0))
    candidates = [_broken(step, a, b), _apart(step, a, b)]
    found = min((item for item in candidates if item), key=lambda item: item.step, default=None)
    return Pair(len(step), same_until, found)


def _window(rows: int) -> int:
    return max(SMALLEST, round(SHARE * rows))


def _broken(step: Steps, a: Floats, b: Floats) -> Parting | None:
    """The row from which one curve, and one alone, is not finite in most of a window."""
    alone = np.isnan(a) != np.isnan(b)
    window = min(_window(len(step)), len(step))
    ahead = np.convolve(alone, np.ones(window), "full")[window - 1 :]
    reach = np.minimum(window, len(step) - np.arange(len(step)))
    stays = np.flatnonzero(alone & (ahead > reach / 2))
    return Parting(int(step[stays[0]]), math.nan, math.nan) if len(stays) else None


def _apart(step: Steps, a: Floats, b: Floats) -> Parting | None:
    finite = np.isfinite(a) & np.isfinite(b)
    step, a, b = step[finite], a[finite], b[finite]
    window = _window(len(step))
    if len(step) < 2 * window:
        return None
    edges = np.append(np.arange(0, len(step) - window + 1, window), len(step))[: len(step) // window]
    edges = np.append(edges, len(step))
    medians = [np.array([np.median(x[i:j]) for i, j in pairwise(edges)]) for x in (a, b)]
    noise = np.hypot(_noise(a, edges, medians[0]), _noise(b, edges, medians[1]))
    noise = np.maximum(noise, FLOOR * np.minimum(np.abs(medians[0]), np.abs(medians[1])))
    side = _side(medians[0], medians[1], noise)
    block = next((int(index) for index in np.flatnonzero(side) if _stays(side[index:])), None)
    if block is None:
        return None
    onset = _onset(a, b, side[block], noise[block], (int(edges[max(block - 2, 0)]), int(edges[block + 1])))
    difference = float(medians[1][block] - medians[0][block])
    return Parting(int(step[onset]), difference, float(noise[block]))


def _stays(side: NDArray[np.int64]) -> bool:
    """Whether the curves are apart as in the first block in the next one, and in at least half of all."""
    same = side == side[0]
    return bool(same[:2].all() and same.mean() >= 0.5)


def _noise(values: Floats, edges: NDArray[np.int64], medians: Floats) -> Floats:
    """A curve's noise in each block: from step to step, and of the block's median around its neighbours."""
    steps = np.array([_spread(np.diff(values[i:j])) for i, j in pairwise(edges)])
    wander = _spread(np.diff(medians, 2)) / math.sqrt(3.0) if len(medians) >= FEW else 0.0
    smooth = np.array([np.median(steps[max(i - 1, 0) : i + 2]) for i in range(len(steps))])
    noise: Floats = np.hypot(smooth, wander) / math.sqrt(2.0)
    return noise


def _spread(values: Floats) -> float:
    """A standard deviation that half of the values may be outliers of; it takes the trend for no spread."""
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if len(values) else 0.0


def _side(a: Floats, b: Floats, noise: Floats) -> NDArray[np.int64]:
    """For each block 1 where b is above a beyond noise, -1 below, 0 where their neighbourhoods touch."""
    low_a, high_a = _neighbourhood(a)
    low_b, high_b = _neighbourhood(b)
    room = NOISES * noise
    above = (b > high_a + room) & (a < low_b - room)
    below = (b < low_a - room) & (a > high_b + room)
    return above.astype(np.int64) - below.astype(np.int64)


def _neighbourhood(medians: Floats) -> tuple[Floats, Floats]:
    padded = np.pad(medians, 1, mode="edge")
    three = np.stack([padded[:-2], padded[1:-1], padded[2:]])
    return three.min(axis=0), three.max(axis=0)


def _onset(a: Floats, b: Floats, side: int, noise: float, rows: tuple[int, int]) -> int:
    """The row from which the difference adds up, by Page's CUSUM over ``rows``."""
    start, stop = rows
    excess = side * (b[start:stop] - a[start:stop]) / max(noise, np.finfo(float).tiny) - 1.0
    total = np.cumsum(excess)
    return start + int(np.argmin(np.append(0.0, total[:-1])))

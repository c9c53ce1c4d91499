"""When two noisy curves part: the one statistic behind `compare`. NumPy in, plain data out; nothing of ours is needed.

Two runs of one configuration differ in every row, and drift apart and back; two settings that differ in effect stay
apart. What is judged is the **difference curve** on the steps that both have: log(b / a) where both curves are positive
throughout, so that a loss 1.3 times as high is the same difference while it falls and once it is flat; b - a elsewhere.
It is cut into blocks of max(20, 2 % of these) rows.

* **noise** in a block is what the difference does from row to row, ``1.4826 MAD(diff) / sqrt(2)``, which neither a
  trend nor a few outliers move; to it comes how far the blocks' medians wander, the largest such spread of their
  changes over 1, 2, ... blocks up to a fifth of all. It is 1 % of the level at least: less matters to nobody.
* where **repeats** of one setting are known, the noise is how far their own blocks' medians lie apart there, if that is
  more: a seed that settles on another level for good is seen in no single pair of curves. With three repeats 1 of 144
  pairs of seeds of one setting parts (the corpus of ``benchmarks/diagnosis``), 7 of them without any.
* **apart** is a block whose median difference is more than 3 times the noise, and more than either curve moves within
  a block there: one run may learn a little earlier.
* **parted** are two curves from the first block on that is apart as its successor is, and as half or more of the
  blocks up to each later one are, on the same side: a spike that healed, or one run learning later, is no parting.

Whether they part is so decided with caution; since when is then read off the whole difference curve: it is the row at
which the sum of (difference - half of that of the first blocks apart), each term cut at plus and minus this half so
that an earlier spike has no say, is smallest: Page's CUSUM, the likeliest place of a step in noise.
Where one curve goes non-finite and stays so while the other is finite, they part at that row.
Fewer than two blocks of rows are too few to judge, and the answer says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]

SMALLEST = 20  # rows: the median of fewer is moved by a handful of outliers
ENOUGH = 2 * SMALLEST  # rows: a block that is apart needs a successor that is
SHARE = 0.02  # of the common rows
NOISES = 3.0  # of a single row; the median of 20 rows, were they independent, has less than a third of it
FEW = 10  # blocks: how the medians of fewer wander cannot be told
LAGS = 5  # the wandering is looked at over up to a fifth of the blocks, so that a step in it stays an outlier
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
    """What became of two curves: ``same_until`` is the last step up to which they agree number by number.

    ``finite`` are the rows in which both are; two that are finite in none agree in nothing. ``too_few``: they differ,
    and have too few rows in common to say whether beyond noise. ``unseen`` is the part of the level by which they could
    differ throughout without being told apart, if no parting was found.
    """

    rows: int
    same_until: int | None
    parting: Parting | None
    differs: bool = True
    too_few: bool = False
    unseen: float | None = None
    finite: int = 0


def part(step: Steps, a: Floats, b: Floats, *, exact: bool = False, repeats: Sequence[Floats] = ()) -> Pair:
    """Compare two curves on their common steps; float64 [rows], NaN where a value was written and is not finite.

    ``exact`` curves are planned and have no noise: they part at the first row in which they differ. ``repeats`` are
    the curves of repeated settings at these rows, float64 [runs, rows] for each setting, NaN where unknown.
    """
    differs = ~np.isclose(a, b, rtol=SAME, atol=0.0, equal_nan=True)
    first = int(np.argmax(differs)) if differs.any() else len(step)
    same_until = int(step[first - 1]) if first else None
    finite = int(np.count_nonzero(np.isfinite(a) & np.isfinite(b)))
    if first == len(step):
        return Pair(len(step), same_until, None, differs=False, finite=finite)
    if exact:
        return Pair(len(step), same_until, Parting(int(step[first]), float(b[first] - a[first]), 0.0), finite=finite)
    apart, unseen = _apart(step, a, b, repeats)
    candidates = [item for item in (_broken(step, a, b), apart) if item]
    found = min(candidates, key=lambda item: item.step, default=None)
    few = found is None and finite < ENOUGH
    return Pair(len(step), same_until, found, too_few=few, unseen=None if found else unseen, finite=finite)


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


def _apart(step: Steps, a: Floats, b: Floats, repeats: Sequence[Floats]) -> tuple[Parting | None, float | None]:
    finite = np.isfinite(a) & np.isfinite(b)
    step, a, b, repeats = step[finite], a[finite], b[finite], [group[:, finite] for group in repeats]
    window = _window(len(step))
    if len(step) < 2 * window:
        return None, None
    edges = np.append(np.arange(0, len(step) - window + 1, window), len(step))[: len(step) // window]
    edges = np.append(edges, len(step))
    gap, level, (like_a, like_b) = _difference(a, b, edges)
    medians = _medians(gap, edges)
    between = _between(repeats, edges, ratio=bool(np.all(level == 1.0)))
    noise = np.maximum.reduce([_noise(gap, edges, medians), between, FLOOR * level])
    room = np.maximum.reduce([NOISES * noise, _moves(like_a), _moves(like_b)])
    side = np.where(np.abs(medians) > room, np.sign(medians), 0.0).astype(np.int64)
    block = next((int(index) for index in np.flatnonzero(side) if _stays(side[index:])), None)
    if block is None:
        return None, _unseen(room, level)
    onset = _onset(side[block] * gap[: edges[block + 1]], float(np.abs(medians[block : block + 2]).min()))
    rows = slice(edges[block], edges[block + 1])
    middle = np.array([np.median(a[rows]), np.median(b[rows])])
    # in the curves' own unit, also where the ratio was judged
    unit = float(np.abs(middle).min()) if np.all(level == 1.0) else 1.0
    return Parting(int(step[onset]), float(middle[1] - middle[0]), float(noise[block] * unit)), None


def _unseen(room: Floats, level: Floats) -> float | None:
    """The room for differences as a part of the level, its median over the blocks; None where the level is zero."""
    ratio = bool(np.all(level == 1.0))
    share = np.expm1(room) if ratio else room / np.where(level > 0.0, level, np.nan)
    finite = share[np.isfinite(share)]
    return float(np.median(finite)) if len(finite) else None


def _difference(a: Floats, b: Floats, edges: NDArray[np.int64]) -> tuple[Floats, Floats, tuple[Floats, Floats]]:
    """The difference curve, what counts as 1 in it in each block, and both curves' medians in its unit."""
    medians = _medians(a, edges), _medians(b, edges)
    if a.min() > 0.0 and b.min() > 0.0:
        gap: Floats = np.log(b) - np.log(a)
        return gap, np.ones(len(edges) - 1), (np.log(medians[0]), np.log(medians[1]))
    return b - a, np.minimum(np.abs(medians[0]), np.abs(medians[1])), medians


def _medians(values: Floats, edges: NDArray[np.int64]) -> Floats:
    return np.array([np.median(values[i:j]) for i, j in pairwise(edges)])


def _moves(medians: Floats) -> Floats:
    """How far a curve comes in a block: half of the way between the neighbours of each."""
    moves: Floats = np.abs(np.gradient(medians))
    return moves


def _stays(side: NDArray[np.int64]) -> bool:
    """Whether the curves are apart as in the first block in the next one, and in half or more up to every later one."""
    same = side == side[0]
    return bool(same[:2].all() and np.all(2 * np.cumsum(same) >= np.arange(1, len(same) + 1)))


def _noise(gap: Floats, edges: NDArray[np.int64], medians: Floats) -> Floats:
    """The noise in each block: of its rows, and of all the blocks' medians as they wander."""
    rows = np.array([_spread(np.diff(gap[i:j])) for i, j in pairwise(edges)]) / math.sqrt(2.0)
    lags = range(1, len(medians) // LAGS + 1) if len(medians) >= FEW else ()
    wander = max((_spread(medians[lag:] - medians[:-lag]) for lag in lags), default=0.0) / math.sqrt(2.0)
    smooth = np.array([np.median(rows[max(i - 1, 0) : i + 2]) for i in range(len(rows))])
    noise: Floats = np.hypot(smooth, wander)
    return noise


def _spread(values: Floats) -> float:
    """A standard deviation that half of the values may be outliers of; it takes the trend for no spread."""
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if len(values) else 0.0


def _between(repeats: Sequence[Floats], edges: NDArray[np.int64], *, ratio: bool) -> Floats:
    """How far two repeats of one setting lie apart in each block, as a standard deviation; 0 where none is known."""
    squares, free = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    for group in repeats:
        with np.errstate(invalid="ignore", divide="ignore"):
            levels = np.log(group) if ratio else group
        medians = np.array([_medians(one, edges) for one in levels])
        known = np.isfinite(medians)
        count = known.sum(axis=0)
        mean = np.where(known, medians, 0.0).sum(axis=0) / np.maximum(count, 1)
        squares += np.where(known, (medians - mean) ** 2, 0.0).sum(axis=0)
        free += np.maximum(count - 1, 0)
    around, counted = (np.convolve(sums, np.ones(3))[1:-1] for sums in (squares, free))
    spread: Floats = np.sqrt(2.0 * around / np.maximum(counted, 1.0))
    return spread


def _onset(gap: Floats, height: float) -> int:
    """The row from which ``gap``, 0 before and ``height`` after it, adds up."""
    total = np.cumsum(np.clip(gap, 0.0, height) - height / 2)
    return int(np.argmin(np.append(0.0, total[:-1])))

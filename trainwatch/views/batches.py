"""What the loss of each step tells of the batches, where no fingerprint of them is logged: it is higher on a new one.

One that comes again at once is known already: the loss falls smoothly while it does, and leaps where the next one
comes, by as much as batches differ.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST = 4  # copies of a batch: of fewer nobody can say whether the falls are even
MOST = 16
BLOCKS = 10  # of copies, at the least
ROWS = 480  # the last ones, at the most: a long run's early ones tell of the descent
SURE = 5.5  # standard deviations: leaps that are the highest step of their block, beyond chance; healthy runs come to 4
MOSTLY = 0.6  # of the leaps, the even ones and the odd ones (otherwise they are those of twice as many rows); of falls
EVEN = 0.4  # of the largest fall: a state that is carried on settles, and the loss falls less and less with it
ALIKE = 0.75  # correlation of neighbouring rows of a block; of batches of their own 0, where they are sorted to 0.7
SMOOTH = 1.8  # x: how much further the leaps scatter than the steps between copies; healthy runs that leap come to 1.2
CLEAR = 1.15  # x: and further than the steps at any one place, beside which one noisy source among several stands
RECURS = 0.2  # of the difference between two leaps is left between those from the same source to the same


def copies(loss: Floats) -> int:
    """How often each batch comes in a row, 4 to 16 times; 1 where it does not show. ``loss`` is that of each step."""
    late = loss[-ROWS:]
    most = min(MOST, (len(late) - 1) // BLOCKS) if np.isfinite(late).all() else 1
    return max((count for count in range(LEAST, most + 1) if _leaps(late, count)), default=1)


def _leaps(loss: Floats, count: int) -> bool:
    """Whether one of so many steps is the leap to a new batch, and all others are falls on a known one."""
    steps = np.diff(loss)
    begin = len(steps) % count
    blocks = steps[begin:].reshape(-1, count)
    middle = np.median(blocks, axis=0)
    off = np.abs(blocks - middle)
    new = int(np.argmax(middle))
    old = np.arange(count) != new
    scatter, chance = np.median(off, axis=0), 1 / count
    smooth = scatter[new] > SMOOTH * np.median(off[:, old]) and scatter[new] > CLEAR * scatter[old].max()
    leaps = blocks[:, new] > blocks[:, old].max(axis=1)
    highest = min(leaps.mean(), leaps[::2].mean(), leaps[1::2].mean())
    sure = highest > max(MOSTLY, chance + SURE * np.sqrt(chance * (1 - chance) / len(blocks)))
    even = middle[old].max() < EVEN * middle[old].min() and (blocks[:, old] < 0).mean(axis=0).min() > MOSTLY
    falls = bool(even and middle[new] > 0)
    return falls and bool(smooth and sure) and _alike(loss[begin + new + 1 :], count) and not _recurs(blocks[:, new])


def _alike(loss: Floats, count: int) -> bool:
    """Whether rows of one block are high or low together: an easy batch stays one. The descent is taken out."""
    rows = np.diff(loss[: len(loss) // count * count].reshape(-1, count), n=2, axis=0)
    ranks = rows.argsort(axis=0).argsort(axis=0)
    return float(np.median([np.corrcoef(ranks[:, at], ranks[:, at + 1])[0, 1] for at in range(count - 1)])) > ALIKE


def _recurs(leaps: Floats) -> bool:
    """Whether the same leaps come again and again: those from source to source, where several are read by turns."""
    lags = range(1, min(MOST, len(leaps) // 2) + 1)
    apart = [float(np.median(np.abs(leaps[lag:] - leaps[:-lag]))) for lag in lags]
    return min(apart) < RECURS * max(apart)

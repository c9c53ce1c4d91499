"""Whether samples that a model is evaluated on are trained on as well, and how often the same ones are: hashes of
samples, compared on the host.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from itertools import islice
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from trainwatch.recorder.inputs import PARTS, parts

Hashes = NDArray[np.uint64]

KEPT: Final = 4096  # samples of a split: a validation set, or enough of one
EACH: Final = 8  # samples of a training batch: 20 to 40 us
ENOUGH: Final = 65_536  # training samples: what was not found in so many is not there
NUMBERS: Final = 1024  # of each tensor of a sample
FEWEST: Final = 8  # numbers that a sample is known by: an index, or a user and an item, say nothing of what it is
FACTORS: Final = np.random.default_rng(0).integers(1, 2**63, (PARTS, NUMBERS), dtype=np.uint64) | np.uint64(1)


class Overlap:
    """The samples of each split's evaluation, and how many of those that are trained on since are there.

    A sample is all that the loader gives of it, bit by bit: one that is augmented, masked or moved is another one.
    What a split has twice is left out; how much of it that is tells how often two samples are equal by nature. Where
    an evaluation brings others than the one before (another fold, a random part) the count begins anew. A loader is
    what it was first used for: training data may be evaluated on, and a validation set be looked at between two steps.
    """

    def __init__(self) -> None:
        self._training: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # each loader: whether it is for training
        self._held: dict[int, list[Hashes]] = {}  # of the evaluation that goes on, by loader
        self._splits: dict[str, Split] = {}
        self._drawn = 0  # training samples, since there is something to compare them with
        self._distinct: set[int] = set()  # of those

    def see(self, batch: Any, loader: Any, training: bool) -> None:
        """A batch of a loader, in training or in an evaluation."""
        with suppress(TypeError):  # a list or a generator: it has no name to be known by
            if self._training.setdefault(loader, training) != training:
                return
        if training:
            self._trained(batch)
        else:
            held = self._held.setdefault(id(loader), [])
            room = KEPT - sum(map(len, held))
            if room > 0:
                held.append(samples(batch, room))

    def forget(self) -> None:
        """A step was taken: what was walked through before it is no part of the next evaluation."""
        self._held.clear()

    def _trained(self, batch: Any) -> None:
        """A batch that is trained on."""
        splits = [split for split in self._splits.values() if split.looked < ENOUGH]
        few = samples(batch, EACH).tolist() if splits else []
        for split in splits:
            split.look(few)
        if few and len(self._distinct) < ENOUGH:
            self._drawn += len(few)
            self._distinct.update(few)

    def collect(self, split: str) -> dict[str, int]:
        """What is known of a split whose evaluation has ended; nothing before it is evaluated again.

        With several loaders since the last evaluation nobody knows whose samples this split's are.
        """
        held, self._held = [*self._held.values()], {}
        hashes = np.concatenate(held[0]).tolist() if len(held) == 1 else []
        known = self._splits.get(split)
        if known is not None and len(held) < 2 and known.same(hashes):
            return known.told() | {"overlap/drawn": self._drawn, "overlap/distinct": len(self._distinct)}
        if hashes:
            self._splits[split] = Split(hashes)
        return {}


class Split:
    """The samples of one split."""

    def __init__(self, hashes: list[int]) -> None:
        self._counts = Counter(hashes)
        self._once = {sample for sample, count in self._counts.items() if count == 1}
        self.looked = self._hits = 0
        self._found: set[int] = set()

    def same(self, hashes: list[int]) -> bool:
        """Whether most of these are known; none are where a repeated evaluation does not go through the loader."""
        return 2 * sum(sample in self._counts for sample in hashes) >= len(hashes)

    def look(self, trained: list[int]) -> None:
        """Whether some of these are here."""
        hits = self._once.intersection(trained)
        self.looked += len(trained)
        self._hits += len(hits)
        self._found |= hits

    def told(self) -> dict[str, int]:
        """The counts of an evaluation's row."""
        counts = {
            "samples": len(self._once),
            "copies": self._counts.total() - len(self._once),
            "looked": self.looked,
            "hits": self._hits,
            "found": len(self._found),
        }
        return {f"overlap/{name}": count for name, count in counts.items()}


def samples(batch: Any, most: int) -> Hashes:
    """A hash of each of up to so many samples of a batch, spread over it; none where samples cannot be told apart.

    Zeros add nothing, so that a sequence is the same one however far it is padded with them.
    """
    arrays = [plain for part in islice(parts(batch), PARTS) if (plain := _plain(part)) is not None]
    count = len(arrays[0]) if arrays else 0
    arrays = [array for array in arrays if len(array) == count]
    if not count or sum(array.size for array in arrays) < FEWEST * count:
        return np.zeros(0, np.uint64)
    rows = np.linspace(0, count - 1, min(count, most)).astype(int)
    hashes = np.zeros(len(rows), np.uint64)
    for array, factors in zip(arrays, FACTORS, strict=False):
        stride = -(-array.size // count // NUMBERS) | 1  # an odd one does not fall into step with rows and columns
        bits = _bits(array.reshape(count, -1)[:, ::stride][rows])
        hashes = hashes * factors[0] + (bits * factors[: bits.shape[1]]).sum(axis=1, dtype=np.uint64)
    return hashes


def _plain(part: NDArray[Any]) -> NDArray[Any] | None:
    """Numbers that lie one after the other, sample by sample: to bring them into that order would be to copy them."""
    if part.ndim > 2 and not part.flags.c_contiguous:
        part = np.moveaxis(part, 1, -1)  # channels last
    return part if part.ndim and part.flags.c_contiguous and part.dtype.kind in "biufc" else None


def _bits(rows: NDArray[Any]) -> Hashes:
    """The numbers as integers: floats by their bits."""
    if rows.dtype.kind in "fc":
        rows = np.ascontiguousarray(rows).view(f"u{min(rows.dtype.itemsize, 8)}")
    return rows.astype(np.uint64)[:, :NUMBERS]

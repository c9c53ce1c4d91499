"""Whether samples that a model is evaluated on are trained on as well: hashes of samples, compared on the host."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trainwatch.recorder.inputs import PARTS, parts

Hashes = NDArray[np.uint64]

KEPT: Final = 4096  # samples of a split: a validation set, or enough of one
EACH: Final = 8  # samples of a training batch: 20 us
ENOUGH: Final = 65_536  # training samples: what was not found in so many is not there
NUMBERS: Final = 1024  # of each tensor of a sample
FEWEST: Final = 8  # numbers that a sample is known by: an index, or a user and an item, say nothing of what it is
FACTORS: Final = np.random.default_rng(0).integers(1, 2**63, (PARTS, NUMBERS), dtype=np.uint64) | np.uint64(1)


class Overlap:
    """The samples of each split's evaluation, and how many of those that are trained on since are there.

    A sample is all that the loader gives of it, bit by bit: one that is augmented, masked or moved is another one.
    What a split has twice is left out; how much of it that is tells how often two samples are equal by nature. Where
    an evaluation brings others than the one before (another fold, a random part) the count begins anew.
    """

    def __init__(self) -> None:
        self._held: list[Hashes] = []  # of the evaluation that goes on
        self._splits: dict[str, Split] = {}
        self._looked = 0

    def evaluated(self, batch: Any) -> None:
        """A batch of an evaluation."""
        room = KEPT - sum(map(len, self._held))
        if room > 0:
            self._held.append(samples(batch, room))

    def trained(self, batch: Any) -> None:
        """A batch that is trained on."""
        if self._splits and self._looked < ENOUGH:
            few = samples(batch, EACH).tolist()
            self._looked += len(few)
            for split in self._splits.values():
                split.look(few)

    def collect(self, split: str) -> dict[str, int]:
        """What is known of a split whose evaluation has ended; nothing before it is evaluated again."""
        held, self._held = np.concatenate([*self._held, np.zeros(0, np.uint64)]).tolist(), []
        known = self._splits.get(split)
        if known is not None and known.same(held):
            return known.told()
        if held:
            self._splits[split] = Split(held)
        return {}


class Split:
    """The samples of one split."""

    def __init__(self, hashes: list[int]) -> None:
        self._counts = Counter(hashes)
        self._once = {sample for sample, count in self._counts.items() if count == 1}
        self._looked = self._hits = 0
        self._found: set[int] = set()

    def same(self, hashes: list[int]) -> bool:
        """Whether most of these are known; none are where a repeated evaluation does not go through the loader."""
        return 2 * sum(sample in self._counts for sample in hashes) >= len(hashes)

    def look(self, trained: list[int]) -> None:
        """Whether some of these are here."""
        hits = self._once.intersection(trained)
        self._looked += len(trained)
        self._hits += len(hits)
        self._found |= hits

    def told(self) -> dict[str, int]:
        """The counts of an evaluation's row."""
        counts = {
            "samples": len(self._once),
            "copies": self._counts.total() - len(self._once),
            "looked": self._looked,
            "hits": self._hits,
            "found": len(self._found),
        }
        return {f"overlap/{name}": count for name, count in counts.items()}


def samples(batch: Any, most: int) -> Hashes:
    """A hash of each of up to so many samples of a batch, spread over it; none where samples cannot be told apart.

    Zeros add nothing, so that a sequence is the same one however far it is padded with them.
    """
    arrays = [part for _, part in zip(range(PARTS), parts(batch), strict=False) if part.ndim]
    count = len(arrays[0]) if arrays else 0
    arrays = [array for array in arrays if len(array) == count]
    if not count or sum(array.size for array in arrays) < FEWEST * count:
        return np.zeros(0, np.uint64)
    rows = np.linspace(0, count - 1, min(count, most)).astype(int)
    hashes = np.zeros(len(rows), np.uint64)
    for array, factors in zip(arrays, FACTORS, strict=False):
        stride = (array.size // count // NUMBERS) | 1
        plain = array.flags.c_contiguous  # then it is thinned before it is copied
        bits = _bits(_flat(array)[:, ::stride][rows] if plain else _flat(array[rows])[:, ::stride])
        hashes = hashes * factors[0] + (bits * factors[: bits.shape[1]]).sum(axis=1, dtype=np.uint64)
    return hashes


def _flat(rows: NDArray[Any]) -> NDArray[Any]:
    return rows.reshape(len(rows), -1)


def _bits(rows: NDArray[Any]) -> Hashes:
    """The numbers as integers: floats by their bits."""
    if rows.dtype.kind in "fc":
        rows = np.ascontiguousarray(rows).view(f"u{min(rows.dtype.itemsize, 8)}")
    return rows.astype(np.uint64)[:, :NUMBERS]

"""What the labels of a batch are, where they lie on the host: whether any of them counts, and whether they differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from trainwatch.recorder.inputs import parts

IGNORED: Final = -100  # what PyTorch's losses leave out, unless they are told another number
NAMES: Final = ("labels", "label", "targets", "target", "y")
SAMPLES: Final = 256  # numbers that are looked at first, and
MOST: Final = 65_536  # where those are one: 10 us
FEWEST: Final = 8  # samples of a step: fewer of one class are chance


class Labels:
    """Of the micro-batches of one step, until its row is complete."""

    def __init__(self) -> None:
        self._kinds: set[int] = set()
        self._mixed = False  # more kinds than one, though the sample has one
        self._seen = self._batches = self._ignored = 0
        self._ever_ignored = False
        self._looks = True

    def see(self, batch: Any) -> None:
        """The loop got a batch. After a fault labels are given up."""
        if self._looks:
            self._looks = False
            if (found := labels_of(batch)) is not None:
                self._take(found)
            self._looks = True

    def _take(self, found: Any) -> None:
        flat = found.ravel(order="K")
        sample = set(flat[:: (flat.size // SAMPLES) | 1].tolist())
        alike = len(sample) == 1 and bool((flat[:: (flat.size // MOST) | 1] == flat[0]).all())
        if found.ndim == 1:
            self._seen += flat.size
            self._mixed |= len(self._kinds | sample) > 1 or not alike
            self._kinds |= sample if len(self._kinds) < SAMPLES else set()
        self._ever_ignored |= IGNORED in sample
        self._batches += 1
        self._ignored += alike and IGNORED in sample

    def collect(self, fields: dict[str, Any]) -> None:
        """Add it to the step's row."""
        if self._seen >= FEWEST:
            fields["data/label_kinds"] = max(len(self._kinds), 1 + self._mixed)
            if not self._mixed:
                fields["data/label"] = next(iter(self._kinds))
        if self._ever_ignored and self._batches:
            fields["data/labels_ignored"] = self._ignored / self._batches
        self._kinds, self._mixed, self._seen, self._batches, self._ignored = set(), False, 0, 0, 0


def labels_of(batch: Any) -> Any:
    """The integers that a batch calls its labels, or the second of a pair; None if there are none on the host."""
    named: Any = None
    if isinstance(batch, Mapping):
        named = next((batch[name] for name in NAMES if name in batch), None)
    elif isinstance(batch, list | tuple) and len(batch) == 2:
        named = batch[1]
    found = None if named is None else next(parts(named, 0), None)
    return found if found is not None and found.ndim and found.size and found.dtype.kind in "iu" else None

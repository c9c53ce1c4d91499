"""What the labels of a batch are, where they lie on the host: whether any of them counts, and whether they differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from trainwatch.recorder.inputs import parts

IGNORED: Final = -100  # what PyTorch's losses leave out, unless they are told another number
NAMES: Final = ("labels", "label", "targets", "target", "y")
SAMPLES: Final = 256  # numbers that are looked at; all of them only where these are one
FEWEST: Final = 8  # samples: fewer of one class in a batch are chance


class Labels:
    """Of the micro-batches of one step, until its row is complete."""

    def __init__(self) -> None:
        self._kinds: set[int] = set()
        self._seen = 0
        self._ignored: list[bool] = []
        self._ever_ignored = False

    def see(self, batch: Any) -> None:
        """The loop got a batch."""
        found = labels(batch)
        if found is None:
            return
        flat = found.ravel(order="K")
        sample = set(flat[:: (flat.size // SAMPLES) | 1].tolist())
        if found.ndim == 1:
            self._seen += flat.size
            self._kinds |= sample if len(sample) > 1 or (flat == flat[0]).all() else {*sample, IGNORED - 1}
        self._ever_ignored |= IGNORED in sample
        if self._ever_ignored:
            self._ignored.append(sample == {IGNORED} and bool((flat == IGNORED).all()))

    def collect(self, fields: dict[str, Any]) -> None:
        """Add it to the step's row."""
        if self._seen >= FEWEST:
            fields["data/label_kinds"] = len(self._kinds)
            if len(self._kinds) == 1:
                fields["data/label"] = next(iter(self._kinds))
        if self._ignored:
            fields["data/labels_ignored"] = sum(self._ignored) / len(self._ignored)
        self._kinds, self._seen, self._ignored = set(), 0, []


def labels(batch: Any) -> Any:
    """The integers that a batch calls its labels, or the second of a pair; None if there are none on the host."""
    named: Any = None
    if isinstance(batch, Mapping):
        named = next((batch[name] for name in NAMES if name in batch), None)
    elif isinstance(batch, list | tuple) and len(batch) == 2:
        named = batch[1]
    found = None if named is None else next(parts(named, 0), None)
    whole = found is not None and found.ndim and found.size and found.dtype.kind in "iu"
    return found if whole else None

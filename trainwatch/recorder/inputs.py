"""What the loop feeds its model: a fingerprint of each batch, and the scale of what the model reads."""

from __future__ import annotations

import math
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trainwatch.recorder.rows import Say
from trainwatch.recorder.values import is_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from trainwatch.recorder.transfer import Part

SAMPLES = 1024  # numbers of a tensor that are hashed: two batches that agree in so many are one, and it takes 20 us
WHOLE, SOME = 65_536, 8192  # numbers of a tensor among which one that is not finite is looked for: all, or some: 20 us
DESIGN = 3  # batches with such numbers, and a tenth of all: there they stand for what is missing
PARTS = 8  # tensors or arrays of a batch that are looked at
FAR = 64  # batches: what was not in so many is new
DEPTH = 3  # lists and mappings within each other
NAMES = ("data/input_mean", "data/input_std", "data/input_absmax", "bad/input")


class Inputs:
    """What the micro-batches of one step were, until its row is complete."""

    def __init__(self) -> None:
        self._print: int | None = None
        self._bad = self._seen = self._ill = 0
        self._last: deque[int] = deque(maxlen=FAR)
        self._batches = self._again = self._new = 0
        self._prints = True
        self._scales: list[Tensor] = []

    def see(self, batch: Any) -> None:
        """The loop got a batch. After a fault fingerprints are given up."""
        if self._prints:
            self._prints = False
            own, bad = fingerprint(batch)
            self._seen, self._ill = self._seen + 1, self._ill + (bad > 0)
            by_design = self._ill >= DESIGN and 10 * self._ill > self._seen
            self._bad += 0 if by_design else bad
            if own is not None:
                self._print = own if self._print is None else zlib.crc32(b"%d %d" % (self._print, own))
                self._count(own)
            self._prints = True

    def _count(self, own: int) -> None:
        """Whether a batch is the one just before, or one that has not been for long."""
        self._batches += 1
        self._again += bool(self._last) and own == self._last[-1]
        self._new += own not in self._last
        self._last.append(own)

    def read(self, values: Any, say: Say) -> None:
        """The model reads this tensor."""
        if is_tensor(values) and (values.is_floating_point() or values.is_complex()) and values.numel():
            self._scales.append(scale(values))
        else:
            say("inputs", "inputs(): not a tensor of floats (labels and tokens have no scale); it is not recorded")

    def collect(self, fields: dict[str, Any], parts: list[Part]) -> None:
        """Add it to the step's row; what the loop logged itself counts more."""
        if self._print is not None:
            fields.setdefault("data/fingerprint", self._print)
            if self._batches > 1:  # of one the fingerprint tells as much
                fields |= {"data/batches": self._batches, "data/again": self._again, "data/new": self._new}
            self._print, self._batches, self._again, self._new = None, 0, 0, 0
        if self._scales:
            parts += together(self._scales)
            self._scales = []
        elif self._bad:
            fields.setdefault("bad/input", self._bad)
        self._bad = 0


def fingerprint(batch: Any) -> tuple[int | None, int]:
    """A hash of a batch on the host, and how many numbers in it are not finite, as far as was looked.

    None where nothing in it can be read for nothing: what lies on a device is left alone, for to read it would be to
    wait for it.
    """
    before: int | None = None
    bad = 0
    for _, part in zip(range(PARTS), parts(batch), strict=False):
        flat = part.ravel(order="K")
        sample = flat[:: (flat.size // SAMPLES) | 1]  # an odd stride does not fall into step with rows and columns
        shape = zlib.crc32(repr((part.shape, part.dtype.str)).encode(), before or 0)
        before = zlib.crc32(sample.tobytes(), shape)
        bad += _bad(flat)
    return before, bad


def _bad(flat: Any) -> int:
    """How many of the numbers are NaN or +inf; -inf is a mask's."""
    if flat.dtype.kind != "f":
        return 0
    looked = flat if flat.size <= WHOLE else flat[:: (flat.size // SOME) | 1]
    with sys.modules["numpy"].errstate(over="ignore", invalid="ignore"):
        fine = float(looked.sum(dtype="f8")) < math.inf  # a single pass, without a copy
    return 0 if fine else int(looked.size - (looked < math.inf).sum())


def parts(batch: Any, depth: int = DEPTH) -> Iterator[Any]:
    """Every array in a batch, and every dense tensor on the host as one."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(batch, torch.Tensor):
        dense = batch.layout == torch.strided and batch.device.type == "cpu" and not batch.is_quantized
        numpy_has_it = not (batch.is_conj() or batch.is_neg() or batch.is_nested or "float8" in str(batch.dtype))
        if (
            dense
            and numpy_has_it
            and (batch.is_contiguous() or batch.is_contiguous(memory_format=_channels_last(batch.dim())))
        ):
            bare = batch.detach()
            yield (bare.view(torch.int16) if bare.dtype == torch.bfloat16 else bare).numpy()
    elif type(batch).__module__ == "numpy" and hasattr(batch, "flags"):
        if batch.dtype.kind != "O" and batch.flags.forc:
            yield batch
    elif depth and isinstance(batch, Mapping | list | tuple):
        members: Iterable[Any] = batch.values() if isinstance(batch, Mapping) else batch
        for member in members:
            yield from parts(member, depth - 1)


def _channels_last(dimensions: int) -> Any:
    torch = sys.modules["torch"]
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return formats.get(dimensions, torch.contiguous_format)


def scale(values: Tensor) -> Tensor:
    """Mean, spread, largest magnitude, number of values that are not finite; on their device. float32 [4]"""
    import torch

    with torch.no_grad():
        real = torch.view_as_real(values) if values.is_complex() else values.detach()
        real = real.float() if real.dtype.itemsize < 4 else real  # a spread of 256 is a variance beyond float16
        spread, mean = torch.var_mean(real, correction=0)
        most = torch.linalg.vector_norm(real, float("inf"))
        bad = real.numel() - torch.isfinite(real).sum()
        return torch.stack([mean.float(), spread.sqrt().float(), most.float(), bad.float()])


def together(scales: list[Tensor]) -> list[Part]:
    """Of a step's micro-batches: the means of mean and spread, the largest magnitude, the sum of what is not finite."""
    import torch

    from trainwatch.recorder.transfer import capture

    with torch.no_grad():
        each = torch.stack(scales)
        values = [each[:, 0].mean(), each[:, 1].mean(), each[:, 2].amax(), each[:, 3].sum()]
    return capture("value", NAMES, values)

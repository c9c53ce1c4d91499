"""How device values reach the host without a synchronisation. Loads torch; so it is imported where a tensor is met.

``capture`` copies values at once, on the current stream, so that what the loop does to them later does not matter.
``Ring.ship`` sends all that one record captured to the host: one row, copied non-blocking into a pinned slot with an
event behind it. The writer's thread asks the event whether it is done, and reads the slot; it never waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Role = Literal["value", "mean", "gram", "skip"]


@dataclass(slots=True)
class Part:
    """Values captured together: what they are (``role``), whose, and over how many micro-batches they were added up."""

    role: Role
    names: tuple[str, ...]
    values: Tensor
    count: int = 1


def capture(role: Role, names: Sequence[str], values: Sequence[Tensor]) -> Iterator[Part]:
    """Copies of scalar tensors, one stacked tensor for each device and dtype (in practice: one)."""
    first = values[0]
    device, dtype = first.device, first.dtype
    with torch.no_grad():
        if all(value.dtype is dtype and value.device == device for value in values):
            yield Part(role, tuple(names), torch.stack(list(values)))
            return
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, value in enumerate(values):
            groups.setdefault((value.device, value.dtype), []).append(index)
        for indices in groups.values():
            yield Part(role, tuple(names[i] for i in indices), torch.stack([values[i] for i in indices]))


def scalar(value: Tensor) -> Tensor | None:
    """A tensor of one element as a 0-d tensor, detached; None if it has several."""
    if value.requires_grad:
        value = value.detach()
    if value.dim() == 0:
        return value
    return value.reshape(()) if value.numel() == 1 else None


def summable(values: Tensor) -> Tensor:
    """Half-precision values as float32, so that micro-batches add up without losing digits."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def finest(device: torch.device) -> torch.dtype:
    """The widest float a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


class Cargo:
    """What one record has on its way from one device to the host."""

    def __init__(self, parts: list[Part], row: Tensor, slot: Slot | None = None) -> None:
        self.parts, self._row, self._slot = parts, row, slot

    def ready(self) -> bool:
        """Whether the copy has arrived; asks, never waits."""
        return self._slot is None or bool(self._slot.arrived.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Wait for the copy: only for ``durable=True`` and at the very end."""
        if self._slot is not None:
            self._slot.arrived.synchronize()

    def unload(self) -> Iterator[tuple[Part, list[float]]]:
        """Each part with its numbers; frees the slot."""
        numbers: list[float] = self._row.tolist()
        if self._slot is not None:
            self._slot.release()
        start = 0
        for part in self.parts:
            end = start + part.values.numel()
            yield part, numbers[start:end]
            start = end


class Slot:
    """A pinned buffer and the event that says when the copy into it is done."""

    def __init__(self, size: int, free: deque[Slot]) -> None:
        self.buffer = torch.empty(size, dtype=torch.float64, pin_memory=True)
        self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._free = free

    def release(self) -> None:
        """Back into the ring."""
        self._free.append(self)


class Ring:
    """The ring of pinned slots. When the writer is slow it grows; it never blocks and never drops."""

    def __init__(self, slots: int = 8, size: int = 256) -> None:
        self._free: deque[Slot] = deque()
        self._slots, self._size = slots, size

    def ship(self, parts: Iterable[Part]) -> list[Cargo]:
        """Send captured parts to the host, one row for each device they are on."""
        fleets: dict[torch.device, list[Part]] = {}
        for part in parts:
            fleets.setdefault(part.values.device, []).append(part)
        return [self._send(device, fleet) for device, fleet in fleets.items()]

    def _send(self, device: torch.device, parts: list[Part]) -> Cargo:
        with torch.no_grad():
            row = _one_row([part.values for part in parts], device)
            if device.type != "cuda":
                return Cargo(parts, row)
            row = row.double()
            slot = self._slot(row.numel())
            view = slot.buffer[: row.numel()]
            view.copy_(row, non_blocking=True)
            slot.arrived.record(torch.cuda.current_stream(device))
            return Cargo(parts, view, slot)

    def _slot(self, size: int) -> Slot:
        """A free slot that is large enough; the first call fills the ring, so that pinning costs nothing later."""
        if size > self._size or self._slots:
            self._size = max(self._size, size)
            self._free = deque()
            for _ in range(max(self._slots, 1)):
                self._free.append(Slot(self._size, self._free))
            self._slots = 0
        try:
            return self._free.popleft()
        except IndexError:
            return Slot(self._size, self._free)


def _one_row(values: list[Tensor], device: torch.device) -> Tensor:
    """The parts' values one after another. Integers go through the widest float: exact below 2^53."""
    if len(values) == 1:
        return values[0]
    wide = finest(device)
    return torch.cat([value if value.is_floating_point() else value.to(wide) for value in values])

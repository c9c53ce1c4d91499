"""How device values reach the host without a synchronisation. Loads torch; so it is imported where a tensor is met.

``capture`` copies values at once, on the current stream, so that what the loop does to them later does not matter.
``Ring.ship`` sends all that one record captured to the host: one row, copied non-blocking into a pinned slot with an
event behind it. The writer's thread asks the event whether it is done, and reads the slot; it never waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Role = Literal["value", "mean", "gram", "param_gram", "skip"]


@dataclass(slots=True)
class Part:
    """Values captured together: what they are (``role``), whose, and the sum of the shares they were added up with."""

    role: Role
    names: tuple[str, ...]
    values: Tensor
    count: float = 1.0


def capture(role: Role, names: Sequence[str], values: Sequence[Tensor]) -> list[Part]:
    """Copies of 0-d tensors, one stacked tensor for each device and dtype (in practice: one kernel)."""
    first = values[0]
    dtype, device = first.dtype, first.get_device()
    with torch.no_grad():
        if not [value for value in values if value.dtype is not dtype or value.get_device() != device]:
            return [Part(role, tuple(names), torch.stack(tuple(values)))]
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, value in enumerate(values):
            groups.setdefault((value.device, value.dtype), []).append(index)
        return [Part(role, tuple(names[i] for i in g), torch.stack([values[i] for i in g])) for g in groups.values()]


def scalar(value: Tensor) -> Tensor | None:
    """A real tensor of one element as a 0-d tensor; None if it is no number."""
    if value.dim() == 0:
        return None if value.is_complex() else value
    return value.detach().reshape(()) if value.numel() == 1 and not value.is_complex() else None


def summable(values: Tensor) -> Tensor:
    """Half-precision values as float32, so that micro-batches add up without losing digits."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def finest(device: torch.device) -> torch.dtype:
    """The widest float a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


class Cargo:
    """What one record has on its way from one device to the host; on the CPU it has arrived already."""

    def __init__(self, parts: list[Part], slot: Slot | None = None) -> None:
        self.parts, self._slot = parts, slot

    def ready(self) -> bool:
        """Whether the copy has arrived; asks, never waits."""
        return self._slot is None or bool(self._slot.arrived.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Wait for the copy: only for ``durable=True`` and at the very end."""
        if self._slot is not None:
            self._slot.arrived.synchronize()

    def unload(self) -> Iterator[tuple[Part, list[float]]]:
        """Each part with its numbers; frees the slot."""
        if self._slot is None:
            yield from ((part, part.values.tolist()) for part in self.parts)
            return
        numbers: list[float] = self._slot.buffer.tolist()
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
        self._free: dict[torch.device, deque[Slot]] = {}  # an event belongs to one device
        self._slots, self._size = slots, size

    def ship(self, parts: list[Part]) -> list[Cargo]:
        """Send captured parts to the host, one row for each device they are on."""
        if len(parts) == 1:
            return [self._send(parts[0].values.device, parts)]
        fleets: dict[torch.device, list[Part]] = {}
        for part in parts:
            fleets.setdefault(part.values.device, []).append(part)
        return [self._send(device, fleet) for device, fleet in fleets.items()]

    def _send(self, device: torch.device, parts: list[Part]) -> Cargo:
        if device.type != "cuda":
            return Cargo(parts)
        row = _one_row([part.values for part in parts], finest(device))
        slot = self._slot(device, row.numel())
        slot.buffer[: row.numel()].copy_(row, non_blocking=True)
        slot.arrived.record(torch.cuda.current_stream(device))
        return Cargo(parts, slot)

    def _slot(self, device: torch.device, size: int) -> Slot:
        """A free slot that is large enough; the first call fills a ring, so that pinning costs nothing later."""
        if size > self._size:
            self._size, self._slots = size, 1
            self._free = {}
        free = self._free.get(device)
        if free is None:
            free = self._free[device] = deque()
            free.extend(Slot(self._size, free) for _ in range(self._slots))
        try:
            return free.popleft()
        except IndexError:
            return Slot(self._size, free)


def _one_row(values: list[Tensor], wide: torch.dtype) -> Tensor:
    """The parts' values one after another. Integers go through the widest float: exact below 2^53."""
    floats = [value if value.is_floating_point() else value.to(wide) for value in values]
    return (floats[0] if len(floats) == 1 else torch.cat(floats)).to(wide)

"""What the loop may log as a channel's value: numbers, and tensors of one element."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psutil

from trainwatch.recorder.rows import Say

if TYPE_CHECKING:
    from trainwatch.recorder.transfer import Part

PLAIN = frozenset((int, float))
"""Types that need no look at all: what a loop without tensors logs."""


def is_tensor(value: object) -> bool:
    """Whether it is a torch tensor; torch is not loaded to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def sort(values: Mapping[str, Any], fields: dict[str, Any], parts: list[Part], say: Say, where: str = "log()") -> None:
    """Numbers go into ``fields``, device values, captured now, into ``parts``; None is no value; no other is."""
    torch = sys.modules.get("torch")
    if torch is not None and {torch.Tensor}.issuperset(map(type, values.values())):
        parts += _captured(values, say, where)
        return
    tensors: dict[str, Any] = {}
    for name, value in values.items():
        if type(value) in PLAIN:
            fields[name] = value
        elif is_tensor(value):
            tensors[name] = value
        elif value is not None:
            number = to_number(value)
            if number is None:
                say(f"value {name}", f"{where}: {name!r} is a {type(value).__name__}, no number; it is not recorded")
            else:
                fields[name] = number
    parts += _captured(tensors, say, where)


def to_number(value: Any) -> float | int | None:
    """A bool, NumPy scalar, fraction or decimal as int or float; None if it is no number."""
    if isinstance(value, bool):
        return int(value)
    if type(value).__module__ == "numpy" and getattr(value, "size", 0) == 1 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) or type(value).__name__ == "Decimal":
        return float(value)
    return None


def is_number(value: Any) -> bool:
    """Whether ``sort`` takes it: a number, or a tensor."""
    return is_tensor(value) or to_number(value) is not None


def memory(parameters: list[Any]) -> dict[str, int]:
    """Bytes in use: resident in the process, and by torch's allocator on the model's GPU, now and at most."""
    sizes = {"memory/rss": psutil.Process().memory_info().rss}
    device = parameters[0].device if parameters else None
    if device is not None and device.type == "cuda":
        cuda = sys.modules["torch"].cuda
        sizes["memory/cuda"] = cuda.memory_allocated(device)
        sizes["memory/cuda_peak"] = cuda.max_memory_allocated(device)
    return sizes


def _captured(tensors: Mapping[str, Any], say: Say, where: str) -> list[Part]:
    """Tensors of one element, captured; most are 0-d, and then there is nothing to look at one by one."""
    if not tensors:
        return []
    from trainwatch.recorder.transfer import capture, scalar

    values = tuple(tensors.values())
    if not [value for value in values if value.dim() or value.is_complex()]:
        return capture("value", tuple(tensors), values)
    scalars = {name: value for name, tensor in tensors.items() if (value := scalar(tensor)) is not None}
    for name in tensors.keys() - scalars.keys():
        shape = tuple(tensors[name].shape)
        say(f"value {name}", f"{where}: {name!r} has shape {shape}, no number; log its mean, or another one figure")
    return capture("value", tuple(scalars), tuple(scalars.values())) if scalars else []

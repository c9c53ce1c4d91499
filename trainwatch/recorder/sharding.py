"""Weights that are spread over processes (DTensors, as FSDP2 makes them): the slice that is here, and who has the rest.

Norms of slices become norms of the whole in one reduction of one small vector; no weight, no gradient is gathered.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from trainwatch.recorder.transfer import finest


def is_sharded(tensor: Tensor) -> bool:
    """Whether only a part of it may be here; the module that could have made it so is not loaded to find out."""
    home = sys.modules.get("torch.distributed.tensor")
    return home is not None and isinstance(tensor, home.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The slice that is in this process, which may be empty; the tensor itself if it is not spread."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def group_of(tensors: Iterable[Tensor]) -> Any:
    """The process group whose members hold the other slices; None if all is here.

    Raises ValueError where tensors are spread in different ways, whose norms would take more than one reduction.
    """
    groups = {id(group): group for group in map(_group, tensors)}
    if len(groups) > 1:
        raise ValueError("the parameters are spread over processes in more than one way")
    return next(iter(groups.values()), None)


def _group(tensor: Tensor) -> Any:
    if not is_sharded(tensor):
        return None
    spread = [dim for dim, placement in enumerate(tensor.placements) if not placement.is_replicate()]  # type: ignore[attr-defined]
    if len(spread) > 1:
        raise ValueError("the parameters are spread over processes along more than one dimension")
    return tensor.device_mesh.get_group(spread[0]) if spread else None  # type: ignore[attr-defined]


def whole(norms: Tensor, group: Any) -> Tensor:
    """2-norms of slices -> those of whole tensors. Every member of the group calls it, with as many of them."""
    if group is None:
        return norms
    squares = norms.to(finest(norms.device)).square()  # in float32 the square of a large norm is infinite
    torch.distributed.all_reduce(squares, group=group)
    return squares.sqrt().to(norms.dtype)

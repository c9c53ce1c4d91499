"""What a network learns before its record begins, for runs that go on from trained weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def school(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    peak: float | list[float],
    clip: float,
) -> dict[str, Tensor]:
    """The weights after `steps` of one cycle of the rate, up to `peak` (of each group) and down."""
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, steps, pct_start=0.1)
    for number in range(steps):
        optimizer.zero_grad()
        loss(number).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        rate.step()
    return model.state_dict()


def taught(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    peak: float,
    clip: float = math.inf,
) -> dict[str, Tensor]:
    """The weights after `steps` at a rate that falls from `peak` to 0 in a line."""
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * (1.0 - number / steps)
        optimizer.zero_grad()
        loss(number).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return model.state_dict()

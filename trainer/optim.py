"""The optimiser, its learning rate, mixed precision, and how many of the attempted steps were applied."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from trainer.config import OptimizerConfig

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW in two named groups: `hidden` (matrices, decayed) and `other` (gains and embeddings, not decayed).

    Fused, so that one kernel does the step and a gradient scaler can skip it without asking the host.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    hidden = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in embeddings]
    chosen = {id(p) for p in hidden}
    other = [p for p in model.parameters() if id(p) not in chosen]
    groups = [
        {"params": hidden, "name": "hidden", "weight_decay": config.weight_decay},
        {"params": other, "name": "other", "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same learning rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@dataclass
class Precision:
    """How the forward pass computes; weights, losses and the optimiser stay in float32."""

    name: str
    device: torch.device
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        if self.name == "auto":  # a CPU without matrix units is 80 times slower in bfloat16
            self.name = "bf16" if self.device.type == "cuda" else "fp32"
        if self.name not in PRECISIONS:
            raise ValueError(f"precision '{self.name}' does not exist; choose auto or one of {', '.join(PRECISIONS)}")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        return PRECISIONS[self.name]

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the forward pass."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


class AppliedSteps:
    """Counts the steps that the gradient scaler did not skip, which drive every schedule.

    On a GPU a skip is known on the device first. Its flag is copied while the next step runs and read a step later,
    when the copy is long done: the host never waits for the step in flight, and a schedule is one step ahead in the
    one step that follows a skip. `settle`, before a checkpoint, waits.
    """

    def __init__(self, precision: Precision, applied: int = 0) -> None:
        self._can_skip = precision.scaler.is_enabled()
        self._applied, self._flags = applied, list[tuple[Tensor, torch.cuda.Event]]()

    @property
    def next(self) -> int:
        """The number that the step about to be taken will have, as far as the host knows."""
        while len(self._flags) > 1:
            self._read()
        return self._applied + len(self._flags) + 1

    def took(self, norm: Tensor) -> None:
        """A step was attempted, with this gradient norm (a device scalar): it was skipped if that is not finite."""
        if not self._can_skip:
            self._applied += 1
            return
        if not norm.is_cuda:
            self._applied += int(norm.isfinite())
            return
        flag = norm.isfinite()
        host = torch.empty((), dtype=torch.bool, pin_memory=True)
        host.copy_(flag, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        self._flags.append((host, done))

    def settle(self) -> int:
        """Applied steps, exactly."""
        while self._flags:
            self._read()
        return self._applied

    def _read(self) -> None:
        flag, done = self._flags.pop(0)
        done.synchronize()
        self._applied += int(flag)

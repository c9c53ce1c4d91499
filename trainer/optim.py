"""The optimiser and its parameter groups, clipping, mixed precision, and which of the attempted steps were applied."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from trainer.config import OptimizerConfig
    from trainer.schedules import Schedule
    from trainwatch import Recorder

OPTIMIZERS = ("adamw", "muon")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MUON_MOMENTUM = 0.95  # Jordan et al. 2024


def parameter_groups(model: nn.Module, inner: tuple[type[nn.Module], ...]) -> dict[str, list[nn.Parameter]]:
    """Every parameter in exactly one group.

    `hidden`: the matrices inside modules of the `inner` classes. `projections`: all other matrices, which lead into
    those and out to the heads. `other`: gains, biases and embeddings, which no decay should pull to 0.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    inside = {id(p) for m in model.modules() if isinstance(m, inner) for p in m.parameters()}
    groups: dict[str, list[nn.Parameter]] = {"hidden": [], "projections": [], "other": []}
    for parameter in model.parameters():
        if parameter.ndim < 2 or id(parameter) in embeddings:
            groups["other"].append(parameter)
        else:
            groups["hidden" if id(parameter) in inside else "projections"].append(parameter)
    return groups


def peak_rates(config: OptimizerConfig) -> dict[str, float]:
    """The highest learning rate of each group; all follow one shape. Muon's is the spectral norm of an update."""
    return {
        "hidden": config.muon_lr if config.name == "muon" else config.lr,
        "projections": config.lr,
        "other": config.lr,
    }


def optimizer(model: nn.Module, inner: tuple[type[nn.Module], ...], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon for `hidden` and AdamW for the rest. Raises ValueError for an unknown name.

    AdamW is fused, so that one kernel does the step and a gradient scaler can skip it without asking the host.
    """
    if config.name not in OPTIMIZERS:
        raise ValueError(f"optimizer.name '{config.name}' does not exist; choose one of {', '.join(OPTIMIZERS)}")
    rates, decay = peak_rates(config), {"other": 0.0}
    groups: list[dict[str, Any]] = [
        {"params": own, "name": name, "lr": rates[name], "weight_decay": decay.get(name, config.weight_decay)}
        for name, own in parameter_groups(model, inner).items()
    ]
    betas = (config.beta1, config.beta2)
    if config.name == "muon":
        return MuonAdamW(groups[0], groups[1:], betas)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for one group of matrices and AdamW for the others, as one optimiser.

    Both halves are torch's own and work on this one's groups and state, so its state_dict is an ordinary flat one, and
    whoever skips a step skips both. In fp16 a gradient scaler asks the host whether to skip, since torch's Muon cannot
    be told on the device: a wait in every step, which bf16 and plain AdamW do not have.
    """

    def __init__(self, matrices: dict[str, Any], others: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        self._muon = torch.optim.Muon([matrices], momentum=MUON_MOMENTUM, nesterov=True, adjust_lr_fn="original")
        self._adamw = torch.optim.AdamW(others, betas=betas, fused=True)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})
        self._join()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None if closure is None else closure()
        self._muon.step()  # type: ignore[no-untyped-call]
        self._adamw.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What `load_state_dict` ends in: groups and state are new objects, and shared again."""
        super().__setstate__(state)
        self._join()

    def _join(self) -> None:
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self._muon.state = self._adamw.state = self.state


def set_rates(
    optimizer: torch.optim.Optimizer, rates: Mapping[str, Schedule], readings: Mapping[str, float], scale: float
) -> None:
    """The learning rate of every group: `scale` times what its schedule gives at the reading of its clock."""
    for group in optimizer.param_groups:
        schedule = rates[group["name"]]
        group["lr"] = scale * schedule.at(readings[schedule.clock])


def clipping(model: nn.Module, limit: float, unseen: bool = False) -> Callable[[Recorder], Tensor]:
    """What clips the gradient to norm `limit` and gives its norm before, a device scalar, as the record holds it.

    With `unseen` it makes the mistake of clipping first: what is recorded is then what clipping left.
    """

    def clip(watch: Recorder) -> Tensor:
        return watch.gradients(max_norm=limit)

    def clip_unseen(watch: Recorder) -> Tensor:
        torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        return watch.gradients()

    return clip_unseen if unseen else clip


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

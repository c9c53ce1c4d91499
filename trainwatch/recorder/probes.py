"""The torch-aware half: norms, shares, update ratios, AMP state; all on the device, and no value is looked at here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainwatch.recorder.header import unwrapped
from trainwatch.recorder.rows import TAKEN, clean_name
from trainwatch.recorder.sharding import group_of, is_sharded, local, whole
from trainwatch.recorder.transfer import Part, capture

HALVES = (torch.float16, torch.bfloat16)
_MIX = 0x9E3779B97F4A7C15 - 2**64  # the golden ratio as int64: gives every tensor of a hash an odd factor of its own
Fault = Callable[[str, Exception], None]


def norms(tensors: list[Tensor]) -> list[Tensor]:
    """The 2-norm of each tensor, one foreach call for each device and dtype; half precision sums in float32."""
    first = tensors[0]
    dtype, device = first.dtype, first.get_device()
    if not [tensor for tensor in tensors if tensor.dtype is not dtype or tensor.get_device() != device]:
        wide = torch.float32 if dtype in HALVES else None
        return list(torch._foreach_norm(tensors, 2.0, dtype=wide))
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    found = [first] * len(tensors)
    for indices in groups.values():
        for index, value in zip(indices, norms([tensors[i] for i in indices]), strict=True):
            found[index] = value
    return found


def gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients there are; a sparse one by its values, one that is spread over processes by the slice here."""
    grads = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    return [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]


def together(parts: list[Tensor]) -> Tensor:
    """Norms as one vector, on the device of the first."""
    device = parts[0].device
    return torch.stack([part if part.device == device else part.to(device, non_blocking=True) for part in parts])


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all tensors as one vector."""
    norm: Tensor = torch.linalg.vector_norm(together(norms(tensors)))
    return norm


def param_hash(parameters: Iterable[Tensor]) -> Tensor:
    """An integer of 53 bits that differs where a bit of a weight does (all but surely); computed on the device.

    Bit patterns are summed as integers, whose order does not matter: equal weights give equal sums on any device.
    """
    with torch.no_grad():
        sums = [_bits(parameter.detach()).sum(dtype=torch.int64) for parameter in parameters]
        index = torch.arange(1, len(sums) + 1, device=sums[0].device) * _MIX
        return (together(sums) * ((index ^ (index >> 32)) | 1)).sum() & (2**53 - 1)


def _bits(tensor: Tensor) -> Tensor:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size(), torch.uint8)
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).view(integer)


class ModelProbe:
    """A model's parameters, grouped by its direct children; a parameter of its own is its own group."""

    def __init__(self, model: nn.Module) -> None:
        self.model = inner = unwrapped(model)
        self.groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in inner.named_parameters():
            self.groups.setdefault(clean_name(name.split(".", 1)[0]), []).append(parameter)
        self.parameters = [parameter for group in self.groups.values() for parameter in group]
        self.sharded = any(is_sharded(parameter) for parameter in self.parameters)

    @cached_property
    def _group(self) -> Any:
        return group_of(self.parameters)

    def norms(self) -> tuple[list[str], list[Tensor], Tensor] | None:
        """Name and gradient norm of each module, and the norm of the whole gradient; None if there is no gradient."""
        names, sizes, grads = [], [], []
        for name, parameters in self.groups.items():
            own = gradients(parameters)
            if own:
                names.append(name)
                sizes.append(len(own))
                grads += own
        if not grads:
            return None
        with torch.no_grad():
            each = together(norms(grads))
            modules = list(torch._foreach_norm(list(torch.split(each, sizes)), 2.0))
            if self.sharded:
                each = whole(torch.stack(modules), self._group)
                modules = list(each.unbind())
            return names, modules, torch.linalg.vector_norm(each)


class OptimizerProbe:
    """What an optimiser's step hooks see: rates as used, gradient norm, AMP state, and how far the weights moved."""

    def __init__(self, prefix: str, optimizer: Optimizer, scaler: Any, fault: Fault) -> None:
        self.prefix, self.optimizer, self.scaler, self._fault = prefix, optimizer, scaler, fault
        self.name = prefix.rstrip(".") or "optimizer"
        self.labels = self._labels()
        self.sampling, self.norm_wanted = True, True
        # a slice says nothing, and not every rank may have a recorder to join in a reduction
        self.sharded = any(is_sharded(p) for group in getattr(optimizer, "param_groups", []) for p in group["params"])
        self.called = self.ever_called = self.began_empty = False
        self._taken = 0  # steps since the last row
        self._counted: dict[str, Any] = {}
        self._before: list[tuple[list[Tensor], list[Tensor]]] = []
        self._closure = False  # whether the step computes its gradient itself
        self._parts: list[Part] = []
        self._fields: dict[str, Any] = {}
        self._hooks: list[Any] = []
        with contextlib.suppress(Exception):  # a wrapper that never called super().__init__() takes no hooks
            self._hooks.append(optimizer.register_step_pre_hook(self._guarded(self._before_step)))
            self._hooks.append(optimizer.register_step_post_hook(self._guarded(self._after_step)))

    @property
    def hooked(self) -> bool:
        """Whether the optimiser tells when it steps."""
        return bool(self._hooks)

    def _labels(self) -> list[str]:
        groups = getattr(self.optimizer, "param_groups", [])
        return [self.prefix + clean_name(str(group.get("name", i))) for i, group in enumerate(groups)]

    def detach(self) -> None:
        """Take the hooks off again."""
        for hook in self._hooks:
            hook.remove()

    def collect(self, fields: dict[str, Any], parts: list[Part]) -> None:
        """Add this step's values to the row; rates are read here only if no hook saw the step."""
        if not self.called:
            self._read_rates()
            if self.sampling and self.ever_called and not self.sharded:
                fields.update({f"update_ratio/{label}": 0 for label in self.labels})
        fields.update(self._fields | self._counted)
        parts += self._parts
        if self._hooks and (TAKEN in fields or self.ever_called or self.scaler is not None):
            fields.setdefault(TAKEN, {})[self.name] = self._taken
        self.called, self._taken, self._before = False, 0, []
        self._counted, self._fields, self._parts = {}, {}, []

    def _guarded(self, hook: Callable[[], None]) -> Callable[..., None]:
        def run(_optimizer: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            try:
                self._closure = any(map(callable, [*arguments, *named.values()]))
                hook()
            except Exception as error:
                self._fault(f"the hook of optimizer {self.name!r}", error)

        return run

    @property
    def forgot(self) -> bool:
        """Whether its first step here made the state (moments) that a checkpoint would have brought."""
        return self.began_empty and bool(self.optimizer.state)

    def _before_step(self) -> None:
        if not self.ever_called:
            self.began_empty = not self.optimizer.state
        self.called = self.ever_called = True
        self._taken += 1
        self._fields, self._parts, self._before = {}, [], []
        if self.sampling:
            self._count_state()
        self._read_rates()
        found_inf = getattr(self.optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor):
            self._parts += capture("skip", [self.name], [found_inf.reshape(())])
        if self.norm_wanted and not self.sharded and not self._closure:
            self._read_norm()
        if self.sampling and not self.sharded:
            self._copy_weights()

    def _count_state(self) -> None:
        """How many steps the optimiser's own state counts, where that is known on the host: a resume brings them."""
        counts = (state.get("step") for state in self.optimizer.state.values() if isinstance(state, Mapping))
        known = [int(n) for n in counts if isinstance(n, int | float) or (isinstance(n, Tensor) and n.is_cpu)]
        if known:
            self._counted = {f"state_steps/{self.name}": max(known)}

    def _read_rates(self) -> None:
        """Rates and the scaler's factor, as they are now."""
        names, values = [], []
        if len(self.labels) != len(self.optimizer.param_groups):
            self.labels = self._labels()
        for label, group in zip(self.labels, self.optimizer.param_groups, strict=False):
            rate = group.get("lr")
            if isinstance(rate, Tensor):
                names.append(f"lr/{label}")
                values.append(rate.detach().reshape(()))
            elif rate is not None:
                self._fields[f"lr/{label}"] = float(rate)
        scale = getattr(self.scaler, "_scale", None)
        if isinstance(scale, Tensor):
            names.append("amp/scale")
            values.append(scale.reshape(()))
        if values:
            self._parts += capture("value", names, values)

    def _read_norm(self) -> None:
        grads = gradients(p for group in self.optimizer.param_groups for p in group["params"])
        if grads:
            with torch.no_grad():
                norm, scale = total_norm(grads), getattr(self.optimizer, "grad_scale", None)
                norm = norm if scale is None else norm / scale.reshape(())
            self._parts += capture("value", ["grad_norm_at_step" + (f"/{self.name}" if self.prefix else "")], [norm])

    def _copy_weights(self) -> None:
        groups = [
            [p for p in group["params"] if (p.requires_grad if self._closure else p.grad is not None)]
            for group in self.optimizer.param_groups
        ]
        if not any(groups) and any(p.requires_grad for group in self.optimizer.param_groups for p in group["params"]):
            self._fields.update({f"update_ratio/{label}": 0 for label in self.labels})  # it has nothing to step by
        elif fits(groups):
            self._before = [(group, [p.detach().clone() for p in group]) for group in groups]

    def _after_step(self) -> None:
        """Norm of the weights before, and of the update over it; both on the device."""
        if self._closure and self.norm_wanted and not self.sharded:
            self._read_norm()
        before, self._before = self._before, []
        for label, (moved, old) in zip(self.labels, before, strict=False):
            if old:
                with torch.no_grad():
                    new = [p.detach() for p in moved]
                    weight = total_norm(old)
                    torch._foreach_sub_(old, new)
                    ratio = total_norm(old) / weight
                self._parts += capture("value", [f"update_ratio/{label}", f"weight_norm/{label}"], [ratio, weight])


def fits(groups: Iterable[list[Tensor]]) -> bool:
    """Whether a copy leaves the device half of what is free: a measurement must not be what runs it out of memory."""
    needed: dict[torch.device, int] = {}
    for tensor in (tensor for group in groups for tensor in group):
        needed[tensor.device] = needed.get(tensor.device, 0) + tensor.numel() * tensor.element_size()
    return all(
        size * 2 < torch.cuda.mem_get_info(device)[0] for device, size in needed.items() if device.type == "cuda"
    )

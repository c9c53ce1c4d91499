"""The torch-aware half: norms, shares, update ratios, AMP state; all on the device, and no value is looked at here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainwatch.recorder.header import unwrapped
from trainwatch.recorder.rows import SKIPS, clean_name
from trainwatch.recorder.transfer import Part, capture, finest

HALVES = (torch.float16, torch.bfloat16)
_LIFT = 1024.0  # a power of two that lifts gradients in float16 off its underflow; divided out in float32
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
    """The gradients there are; a sparse one by its values."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]


def together(parts: list[Tensor]) -> Tensor:
    """Norms as one vector, on the device of the first."""
    device = parts[0].device
    return torch.stack([part if part.device == device else part.to(device, non_blocking=True) for part in parts])


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all tensors as one vector."""
    norm: Tensor = torch.linalg.vector_norm(together(norms(tensors)))
    return norm


def gram(terms: Mapping[str, Tensor], at: Tensor) -> tuple[Part | None, list[str]]:
    """Gram matrix of the terms' gradients at ``at`` (upper triangle), and the terms that do not depend on it."""
    rows: dict[str, Tensor] = {}
    for name, term in terms.items():
        if term.requires_grad:
            seed = None if at.dtype is not torch.float16 else torch.full_like(term, _LIFT)
            (row,) = torch.autograd.grad(term, at, seed, retain_graph=True, allow_unused=True)
            if row is not None:
                rows[name] = row.reshape(-1).float() if row.dtype in HALVES else row.reshape(-1)
                rows[name] = rows[name] if seed is None else rows[name] / _LIFT
    outside = [name for name in terms if name not in rows]
    if not rows:
        return None, outside
    vectors = list(rows.values())
    dots = [torch.dot(vector, other) for i, vector in enumerate(vectors) for other in vectors[i:]]
    return Part("gram", tuple(rows), torch.stack(dots).to(finest(at.device))), outside


class ModelProbe:
    """A model's parameters, grouped by its direct children; a parameter of its own is its own group."""

    def __init__(self, model: nn.Module) -> None:
        self.model = inner = unwrapped(model)
        self.groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in inner.named_parameters():
            self.groups.setdefault(clean_name(name.split(".", 1)[0]), []).append(parameter)
        self.parameters = [parameter for group in self.groups.values() for parameter in group]

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
            return names, list(torch._foreach_norm(list(torch.split(each, sizes)), 2.0)), torch.linalg.vector_norm(each)


class OptimizerProbe:
    """What an optimiser's step hooks see: rates as used, gradient norm, AMP state, and how far the weights moved."""

    def __init__(self, prefix: str, optimizer: Optimizer, scaler: Any, fault: Fault) -> None:
        self.prefix, self.optimizer, self.scaler, self._fault = prefix, optimizer, scaler, fault
        self.name = prefix.rstrip(".") or "optimizer"
        self.labels = self._labels()
        self.sampling, self.norm_wanted = True, True
        self.called = self.ever_called = False
        self._before: list[list[Tensor]] = []
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
            if self.sampling and self.ever_called:
                fields.update({f"update_ratio/{label}": 0 for label in self.labels})
        fields.update(self._fields)
        parts += self._parts
        if self._hooks and (SKIPS in fields or self.ever_called or self.scaler is not None):
            fields.setdefault(SKIPS, {})[self.name] = int(not self.called)
        self.called, self._fields, self._parts, self._before = False, {}, [], []

    def _guarded(self, hook: Callable[[], None]) -> Callable[..., None]:
        def run(*_: Any) -> None:
            try:
                hook()
            except Exception as error:
                self._fault(f"the hook of optimizer {self.name!r}", error)

        return run

    def _before_step(self) -> None:
        self.called = self.ever_called = True
        self._fields, self._parts, self._before = {}, [], []
        self._read_rates()
        found_inf = getattr(self.optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor):
            self._parts += capture("skip", [self.name], [found_inf.reshape(())])
        if self.norm_wanted:
            self._read_norm()
        if self.sampling:
            self._copy_weights()

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
        groups = [[p.detach() for p in group["params"] if p.grad is not None] for group in self.optimizer.param_groups]
        if _fits(groups):
            self._before = [[weight.clone() for weight in group] for group in groups]

    def _after_step(self) -> None:
        """Norm of the weights before, and of the update over it; both on the device."""
        before, self._before = self._before, []
        for label, group, old in zip(self.labels, self.optimizer.param_groups, before, strict=False):
            if old:
                with torch.no_grad():
                    new = [p.detach() for p in group["params"] if p.grad is not None]
                    weight = total_norm(old)
                    torch._foreach_sub_(old, new)
                    ratio = total_norm(old) / weight
                self._parts += capture("value", [f"update_ratio/{label}", f"weight_norm/{label}"], [ratio, weight])


def _fits(groups: Iterable[list[Tensor]]) -> bool:
    """Whether a copy leaves the device half of what is free: a measurement must not be what runs it out of memory."""
    needed: dict[torch.device, int] = {}
    for tensor in (tensor for group in groups for tensor in group):
        needed[tensor.device] = needed.get(tensor.device, 0) + tensor.numel() * tensor.element_size()
    return all(
        size * 2 < torch.cuda.mem_get_info(device)[0] for device, size in needed.items() if device.type == "cuda"
    )

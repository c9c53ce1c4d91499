"""Whether dropout draws and batch norm learns while a model is evaluated, since nobody called eval(); loads torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_pre_hook

from trainwatch.recorder.header import unwrapped
from trainwatch.recorder.probes import Fault

WHERE = "the look at what is in training mode"


class Modes:
    """Of one or several models, in one evaluation after the other.

    While one goes on, a hook of torch's own sees every module that data passes; nothing is put on a module, so that it
    can be copied, saved and scripted. Where this process compiles anything there is no such hook, for what it compiled
    would be compiled again: then only a model that was given compiled is seen, from outside.

    What is in training mode below something that is in eval mode was switched on by somebody who wants it so (Monte
    Carlo dropout): it does not count.
    """

    def __init__(self, models: Iterable[nn.Module], fault: Fault) -> None:
        self._models, self._fault = [*models], fault
        self._hooks: list[Any] = []
        self._by_mode: dict[int, tuple[nn.Module, list[nn.Module]]] = {}  # what differs by mode, and what it is part of
        self._on: dict[int, bool] = {}  # of each that data passed: whether it was in training mode each time

    def begin(self) -> None:
        """An evaluation begins."""
        self.forget()
        try:
            found = (each for model in self._models for each in differing(model))
            self._by_mode = {id(module): (module, above) for module, above in found}  # not every module has a hash
            if not compiles():
                self._hooks = [register_module_forward_pre_hook(self._passed)] if self._by_mode else []
                return
            for model in self._models:
                if hasattr(model, "_orig_mod"):  # what torch.compile returns runs its hooks outside of what is compiled
                    self._hooks.append(model.register_forward_pre_hook(_Outside(self._all_passed)))
        except Exception as fault:
            self._fault(WHERE, fault)

    def end(self) -> None:
        """It is over."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def forget(self) -> None:
        """What is evaluated from now on is another matter."""
        self._on = {}

    def collect(self) -> dict[str, int]:
        """How many modules were in training mode in this evaluation, by kind; nothing where none of a kind is seen."""
        kinds = [(kind_of(self._by_mode[module][0]), on) for module, on in self._on.items()]
        return {f"training_mode/{kind}": sum(on for of, on in kinds if of == kind) for kind, _ in kinds}

    def _passed(self, module: nn.Module, _data: Any) -> None:
        """Data enters a module. One pass in eval mode is enough: a pass beside it may be there for its own reason."""
        if not torch.compiler.is_compiling() and id(module) in self._by_mode:
            module, above = self._by_mode[id(module)]
            training = module.training and all(one.training for one in above)
            self._on[id(module)] = self._on.get(id(module), True) and training

    def _all_passed(self, model: nn.Module) -> None:
        for module in unwrapped(model).modules():
            self._passed(module, None)


class _Outside:
    """A hook of a compiled model. A copy of the model, or a file of it, gets one that does nothing."""

    def __init__(self, passed: Callable[[nn.Module], None]) -> None:
        self._passed = passed

    def __call__(self, model: nn.Module, _data: Any) -> None:
        self._passed(model)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Outside, (id,)  # which takes a module, and does nothing to it


def differing(model: nn.Module) -> Iterable[tuple[nn.Module, list[nn.Module]]]:
    """What in a model differs between training and evaluation, each with the modules that it lies in."""
    named = dict(model.named_modules())
    for name, module in named.items():
        if kind_of(module):
            parts = name.split(".") if name else []
            yield module, [named[".".join(parts[:depth])] for depth in range(len(parts))]


def kind_of(module: nn.Module) -> str:
    """What of it differs between training and evaluation: dropout, batch_norm, or nothing."""
    if isinstance(module, _NormBase):
        return "batch_norm" if module.track_running_stats else ""
    if isinstance(module, nn.RNNBase) and module.num_layers == 1:
        return ""
    rate = getattr(module, _rate(module), 0)
    return "dropout" if isinstance(rate, int | float) and rate > 0 else ""


def _rate(module: nn.Module) -> str:
    """The attribute in which it would keep the probability of dropping something."""
    if isinstance(module, _DropoutNd):
        return "p"
    return "dropout" if isinstance(module, nn.MultiheadAttention | nn.RNNBase) else "drop_prob"


def compiles() -> bool:
    """Whether this process compiles anything: a hook in what is compiled would have it compiled again."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return any(backend is not None for backend in getattr(dynamo, "cached_backends", {}).values())

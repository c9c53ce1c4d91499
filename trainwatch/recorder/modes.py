"""Whether dropout draws and batch norm learns while a model is evaluated, since nobody called eval(); loads torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from trainwatch.recorder.header import unwrapped
from trainwatch.recorder.probes import Fault

WHERE = "the look at what is in training mode"
FUSED = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""These leave their faster path where a hook is in them, and are then evaluated by other sums: none is put there."""


class Modes:
    """Of one or several models, in one evaluation after the other. Its hooks are there only while one goes on.

    A dropout that is on while the model as a whole is in eval mode was switched on by somebody who wants it so (Monte
    Carlo dropout): it does not count. A model that was given compiled is seen from outside; parts of one are not seen.
    """

    def __init__(self, models: Iterable[nn.Module], fault: Fault) -> None:
        self._models = [(model, unwrapped(model)) for model in models]
        self._fault = fault
        self._hooks: list[Any] = []
        self._on: dict[nn.Module, bool] = {}  # of each that data passed: whether it was in training mode each time

    def begin(self) -> None:
        """An evaluation begins."""
        self.forget()
        try:
            for given, model in self._models:
                random = [module for module in model.modules() if _kind(module)]
                for door in _doors(given, model) if random else ():
                    inside = [door] if door in random else random  # data may enter by a part's own method
                    self._hooks.append(door.register_forward_pre_hook(_Hook(self._passed, model, inside)))
        except Exception as fault:
            self._fault(WHERE, fault)

    def end(self) -> None:
        """It is over: the models are as they were."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def forget(self) -> None:
        """What is evaluated from now on is another matter."""
        self._on = {}

    def collect(self) -> dict[str, int]:
        """How many modules were in training mode in this evaluation, by kind; nothing where none of a kind is seen."""
        kinds = [(_kind(module), on) for module, on in self._on.items()]
        return {f"training_mode/{kind}": sum(on for of, on in kinds if of == kind) for kind, _ in kinds}

    def _passed(self, model: nn.Module, inside: list[nn.Module]) -> None:
        """Data enters. One pass in eval mode is enough: a pass beside it may be there for its own reason."""
        try:
            for module in inside:
                self._on[module] = self._on.get(module, True) and module.training and model.training
        except Exception as fault:
            self._fault(WHERE, fault)


class _Hook:
    """A forward pre-hook. A copy of the model, or a file of it, gets one that does nothing."""

    def __init__(self, passed: Callable[..., None], *about: Any) -> None:
        self._passed, self._about = passed, about

    def __call__(self, *_: Any) -> None:
        if not torch.compiler.is_compiling():
            self._passed(*self._about)

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()


def _nothing() -> Callable[..., None]:
    return _ignored


def _ignored(*_: Any) -> None:
    """What a copied hook does."""


def _kind(module: nn.Module) -> str:
    """What of it differs between training and evaluation: dropout, batch_norm, or nothing."""
    if isinstance(module, _NormBase):
        return "batch_norm" if module.track_running_stats else ""
    if isinstance(module, nn.RNNBase) and module.num_layers == 1:
        return ""
    rate = next((value for name in _rates(module) if isinstance(value := getattr(module, name, 0), int | float)), 0)
    return "dropout" if rate > 0 else ""


def _rates(module: nn.Module) -> tuple[str, ...]:
    """The attributes in which it keeps the probability of dropping something."""
    if isinstance(module, _DropoutNd):
        return ("p",)
    return ("dropout",) if isinstance(module, nn.MultiheadAttention | nn.RNNBase) else ("drop_prob",)


def _doors(given: nn.Module, model: nn.Module) -> Iterator[nn.Module]:
    """Where data is seen to enter: the model as it was given and as it is, and each module that is random itself."""
    if hasattr(given, "_orig_mod"):
        yield given  # what torch.compile returns runs its hooks outside of what it compiled
    elif not _compiles():
        modules = [*model.modules()]
        fused = {inner for module in modules if isinstance(module, FUSED) for inner in module.modules()}
        yield from {given, model, *filter(_kind, modules)} - fused


def _compiles() -> bool:
    """Whether this process compiles anything: a hook in a compiled module would have it compiled again."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return any(backend is not None for backend in getattr(dynamo, "cached_backends", {}).values())

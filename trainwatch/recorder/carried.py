"""Whether an optimiser's gradient holds that of its step before, because nothing set that to zero; loads torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import unserializable_hook

from trainwatch.recorder.probes import Fault

FEW: Final = 4  # parameters are looked at: all are set to zero, or none is


class Carried:
    """Of one optimiser. No value is read: a tensor's storage and version tell whether it was written.

    ``zero_grad`` drops the gradients: then nothing is carried on. A gradient that is there when each backward since the
    optimiser's step begins, and that nobody but these wrote, holds the last step's. Of one that somebody else wrote
    nothing is known: it may be zeros (``set_to_none=False``). What another model's loss leaves here is no matter, as
    long as it is dropped before this optimiser steps.
    """

    def __init__(self, name: str, optimizer: Optimizer, fault: Fault) -> None:
        self.name, self._fault = name, fault
        held = (parameter for group in optimizer.param_groups for parameter in group["params"])
        self._watched = [parameter for parameter in held if parameter.requires_grad and parameter.is_leaf][-FEW:]
        self._left: dict[int, tuple[int, int]] = {}  # as the optimiser's step, or the last backward, left a gradient
        self._kept: dict[int, bool | None] = {}  # whether backward after backward began on it; None: nobody knows
        self._added: set[int] = set()  # to which a backward added
        self._found: set[bool] = set()  # in this row's steps
        self._dropped = False  # in a step since that was told last
        self._hooks: list[Any] = []
        with contextlib.suppress(Exception):  # a wrapper that never called super().__init__() takes no hooks
            self._hooks.append(optimizer.register_step_post_hook(self._guarded(self._stepped)))
            for index, parameter in enumerate(self._watched):
                self._hooks.append(parameter.register_hook(self._guarded(self._begins, index)))
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._guarded(self._ends, index)))

    def detach(self) -> None:
        """Leave optimiser and parameters as they were."""
        for hook in self._hooks:
            hook.remove()

    def collect(self, fields: dict[str, Any], sampling: bool) -> None:
        """Every gradient that was carried on is told; that none was, now and then."""
        found, self._found = self._found, set()
        self._dropped |= False in found
        if found == {True} or (self._dropped and sampling):
            fields["grad_carried" + (f"/{self.name}" if self.name else "")] = int(found == {True})
            self._dropped = False

    def _guarded(self, look: Callable[..., None], *which: int) -> Callable[..., None]:
        def run(*_: Any) -> None:
            try:
                look(*which)
            except Exception as fault:
                self._fault("the look at what is left in the gradients", fault)

        unserializable_hook(run)  # type: ignore[no-untyped-call]
        return run

    def _stepped(self) -> None:
        """What the backwards since the last step tell, and where the next ones begin."""
        told = {self._kept[index] for index in self._added if index in self._kept}
        self._found |= {one for one in told if one is not None} if len(told) == 1 else set()
        self._left = {i: _written(one.grad) for i, one in enumerate(self._watched) if one.grad is not None}
        self._kept, self._added = {}, set()

    def _begins(self, index: int) -> None:
        """A dropped gradient settles it until the optimiser's next step."""
        gradient, left = self._watched[index].grad, self._left.get(index)
        if left is not None and self._kept.get(index, True) is not False:
            same = gradient is not None and _written(gradient) == left
            unknown = gradient is not None and not same
            self._kept[index] = False if gradient is None else None if unknown else self._kept.get(index, True)

    def _ends(self, index: int) -> None:
        gradient = self._watched[index].grad
        self._added.add(index)
        if gradient is not None and index in self._left:
            self._left[index] = _written(gradient)


def _written(gradient: Tensor) -> tuple[int, int]:
    """Where it lies, and how often that was written to in place."""
    return gradient.data_ptr(), gradient._version

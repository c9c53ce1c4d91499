"""Whether a backward adds to the gradient of the step before, because nothing set that to zero; loads torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, Final

from torch import Tensor, nn
from torch.optim import Optimizer

from trainwatch.recorder.probes import Fault

FEW: Final = 4  # parameters are looked at: all are set to zero, or none is


class Carried:
    """Of one model with one optimiser. No value is read: a tensor's storage and version tell whether it was written.

    ``zero_grad`` drops the gradients: then nothing is carried on. A gradient that is there when the backward begins,
    and that nobody wrote since the optimiser's step, is the last step's. Of one that was written nothing is known: by
    zeros (``set_to_none=False``), or by another backward. Over micro-batches the first backward tells.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], optimizer: Optimizer, fault: Fault) -> None:
        self._watched = [parameter for parameter in parameters if parameter.requires_grad][-FEW:]
        self._left: list[tuple[Tensor, tuple[int, int]]] = []  # parameters, and what the step left in their gradients
        self._found: bool | None = None
        self._fault = fault
        self._hook: Any = None
        with contextlib.suppress(Exception):  # a wrapper that never called super().__init__() takes no hooks
            self._hook = optimizer.register_step_post_hook(self._stepped)

    def detach(self) -> None:
        """Leave the optimiser as it was."""
        if self._hook is not None:
            self._hook.remove()

    def expect(self, total: Tensor) -> None:
        """Look when the backward from this loss begins, if it is the first one after a step."""
        if self._left and total.requires_grad:
            total.register_hook(self._begins)  # type: ignore[no-untyped-call]

    def collect(self, fields: dict[str, Any], sampling: bool) -> None:
        """Every gradient that was carried on is told; that none was, now and then."""
        if self._found or (self._found is not None and sampling):
            fields["grad_carried"] = int(self._found)
        self._found = None

    def _stepped(self, *_: Any) -> None:
        try:
            self._left = [(one, _written(one.grad)) for one in self._watched if one.grad is not None]
        except Exception as fault:
            self._fault("the look at what an optimiser leaves in the gradients", fault)

    def _begins(self, _: Tensor) -> None:
        try:
            left, self._left = self._left, []
            there = [(one.grad, written) for one, written in left if one.grad is not None]
            kept = len(there) == len(left) and all(_written(gradient) == written for gradient, written in there)
            self._found = kept if left and (kept or not there) else self._found
        except Exception as fault:
            self._fault("the look at the gradients before a backward", fault)


def _written(gradient: Tensor) -> tuple[int, int]:
    """Where it lies, and how often that was written to in place."""
    return gradient.data_ptr(), gradient._version

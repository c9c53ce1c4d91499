"""Which weights an optimiser holds that no gradient has ever reached: whether there is one, not its value; loads torch.

A head whose loss is detached, a layer that the forward pass leaves out, a module that a typing error put aside: each
has no gradient at all, step after step, and nothing in a curve shows it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from trainwatch.recorder.probes import Fault

SURE: Final = 20  # steps with a gradient elsewhere: experts and layers that are dropped at random have had one by then
SELDOM: Final = 50  # steps between two looks from then on
TOLD: Final = 16  # modules by name


class Unreached:
    """Of one optimiser. What had a gradient once is not looked at any more: soon, as a rule, nothing is."""

    def __init__(self, names: Mapping[int, str], optimizer: Optimizer, fault: Fault) -> None:
        self._names, self._fault = names, fault
        held = (parameter for group in optimizer.param_groups for parameter in group["params"])
        self._waiting = [one for one in held if one.requires_grad and one.numel() and id(one) in names]
        self._witness: nn.Parameter | None = None  # one that had a gradient
        self._taken = self._steps = 0  # steps, and those of them that tell
        self.sizes: dict[str, int] = {}  # module and number of its parameters without a gradient, once that is sure
        self._hook: Any = None
        with contextlib.suppress(Exception):  # a wrapper that never called super().__init__() takes no hooks
            self._hook = optimizer.register_step_pre_hook(self._stepping)

    def detach(self) -> None:
        """Leave the optimiser as it was."""
        if self._hook is not None:
            self._hook.remove()

    def _stepping(self, *_: Any) -> None:
        self._taken += 1
        if self._waiting and (self._steps < SURE or self._taken % SELDOM == 0):
            try:
                self._look()
            except Exception as fault:
                self._waiting = []
                self._fault("the look for weights without a gradient", fault)

    def _look(self) -> None:
        """A step that computes its gradient itself (a closure) begins without any, and tells nothing."""
        still = [parameter for parameter in self._waiting if parameter.grad is None]
        if len(still) < len(self._waiting):
            self._witness = next(parameter for parameter in self._waiting if parameter.grad is not None)
        elif self._witness is None or self._witness.grad is None:
            return
        self._waiting, self._steps = still, self._steps + 1
        self.sizes = self._by_module() if self._steps >= SURE else {}

    def _by_module(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for parameter in self._waiting:
            if parameter.requires_grad:
                module = self._names[id(parameter)].rpartition(".")[0] or self._names[id(parameter)]
                sizes[module] = sizes.get(module, 0) + parameter.numel()
        return sizes


def event(sizes: Mapping[str, int]) -> dict[str, Any]:
    """What the run file says of these modules."""
    listed = sorted(sizes, key=lambda name: (-sizes[name], name))[:TOLD]
    text = f"no gradient has reached {', '.join(listed)}" if sizes else "a gradient has reached all weights now"
    return {"event": "monitor", "message": text, "unreached": listed, "unreached_parameters": sum(sizes.values())}

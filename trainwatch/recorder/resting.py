"""Whether a model is trained in eval mode, since nobody called train() again: by its own flags; loads torch."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from trainwatch.recorder.modes import differing, kind_of
from trainwatch.recorder.probes import Fault

SURE: Final = 5  # steps in a row: one or two may be taken on purpose


class Resting:
    """Of one optimiser and the models whose weights it holds.

    A model rests that is in eval mode as a whole, with every dropout and batch norm in it: who freezes his batch norm
    leaves the model itself in training mode.
    """

    def __init__(self, models: Iterable[nn.Module], optimizer: Optimizer, fault: Fault) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self._models = [model for model in models if any(id(one) in held for one in model.parameters())]
        self._fault = fault
        self._row = 0  # steps in eval mode up to now
        self._trained = False  # whether a step was taken in training mode
        self.since = 0  # the row in which it came to rest
        self.kinds: dict[str, int] = {}  # what rests, once that is sure
        self._hook: Any = None
        with contextlib.suppress(Exception):  # a wrapper that never called super().__init__() takes no hooks
            self._hook = optimizer.register_step_pre_hook(self._stepping)

    def detach(self) -> None:
        """Leave the optimiser as it was."""
        if self._hook is not None:
            self._hook.remove()

    def _stepping(self, *_: Any) -> None:
        """The loss that is followed now was computed in this mode."""
        try:
            self._look()
        except Exception as fault:
            self._models = []
            self._fault("the look at what is in eval mode", fault)

    def _look(self) -> None:
        if any(model.training for model in self._models):
            self._row, self._trained, self.kinds = 0, True, {}
        elif self._models:
            self._row += 1
            self.kinds = self._resting() if self._row == SURE else self.kinds

    def told(self, row: int) -> tuple[dict[str, int], int, bool]:
        """What rests as a row is complete, since which row, and whether it was trained in training mode before."""
        self.since = 0 if not self._row else self.since or row
        return self.kinds, self.since, self._trained

    def _resting(self) -> dict[str, int]:
        found = [module for model in self._models for module, _ in differing(model)]
        return {} if any(module.training for module in found) else dict(Counter(map(kind_of, found)))


def event(kinds: Mapping[str, int], since: int, trained: bool) -> dict[str, Any]:
    """What the run file says of it; ``trained``: in training mode before."""
    if not kinds:
        return {"event": "monitor", "message": "the model is trained in training mode again", "resting": {}}
    listed = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(kinds.items()))
    told = {"message": f"trained in eval mode: {listed}", "resting": dict(kinds), "since": since, "trained": trained}
    return {"event": "monitor", **told}

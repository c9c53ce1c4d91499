"""The exponential moving average of the weights: what a user would deploy, beside the weights that are trained.

torch's `AveragedModel` would do, but its `update_parameters` asks the device how often it was called, once a step.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn


class MovingAverage:
    """One averaged tensor a parameter, on its device; with `decay` 0 there is none, and nothing costs anything."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live: dict[str, Tensor] = dict(model.named_parameters()) if decay else {}
        self._averages = {name: live.detach().clone() for name, live in self._live.items()}

    def update(self, updates: int) -> None:
        """Take the weights in, after `updates` earlier times. Does not wait for the device.

        The decay is warmed up, as in TensorFlow: min(decay, (1 + t) / (10 + t)), so that the untrained weights are
        forgotten within a few steps.
        """
        if self._averages:
            decay = min(self.decay, (1 + updates) / (10 + updates))
            average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            average(list(self._averages.values()), list(self._live.values()), updates)

    def splits(self) -> dict[str, AbstractContextManager[None]]:
        """What is evaluated, and the context in which the model has those weights; what would be deployed is last.

        Both are evaluated: an average hides it for a while that the weights beneath it diverge.
        """
        live: dict[str, AbstractContextManager[None]] = {"validation": nullcontext()}
        return live | {"validation_ema": self._deployed()} if self._averages else live

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Its entry in a checkpoint: `ema`, in the form of the model's state_dict; none where no average is kept."""
        return {"ema": self._averages} if self._averages else {}

    def load(self, averages: dict[str, Tensor] | None) -> None:
        """Go on from a checkpoint's `ema`; where it has none, begin anew from the weights as they are."""
        self._copy(self._averages, self._live if averages is None else averages)

    @contextmanager
    def _deployed(self) -> Iterator[None]:
        """The model with the averages for weights; in place, so that a compiled or wrapped model has them too."""
        held = {name: live.detach().clone() for name, live in self._live.items()}
        self._copy(self._live, self._averages)
        try:
            yield
        finally:
            self._copy(self._live, held)

    @torch.no_grad()
    def _copy(self, into: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        for name, tensor in into.items():
            tensor.copy_(values[name])

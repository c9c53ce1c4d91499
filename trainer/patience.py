"""What a run does when its validation loss gets no better: lower the learning rate, or end."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Patience:
    """Counts evaluations in a row whose loss did not undercut the best one by more than `min_delta`.

    `most` of them exhaust it; 0 is never. A loss that is not finite is no better than any other.
    """

    most: int
    min_delta: float = 0.0
    best: float = math.inf
    since: int = 0

    def seen(self, loss: float) -> None:
        """One more evaluation gave this loss."""
        better = loss < self.best - self.min_delta
        self.best, self.since = (loss, 0) if better else (self.best, self.since + 1)

    @property
    def exhausted(self) -> bool:
        """Whether it is."""
        return 0 < self.most <= self.since

    def state(self) -> dict[str, float]:
        """What a checkpoint has to hold; the settings are the config's."""
        return {"best": self.best, "since": self.since}

    def load(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint's state."""
        self.best, self.since = state["best"], int(state["since"])


@dataclass
class Plateau:
    """The `scale` of the learning rate: multiplied by `factor` whenever patience is exhausted, but never below `least`.

    As torch's ReduceLROnPlateau, except that it touches no optimiser, so a warm-up and rates by group go together with
    it, and that `patience.most` bad evaluations are enough instead of one more.
    """

    patience: Patience
    factor: float
    least: float
    scale: float = 1.0

    def seen(self, loss: float) -> None:
        """One more evaluation gave this loss."""
        self.patience.seen(loss)
        if self.patience.exhausted:
            self.scale = max(self.scale * self.factor, self.least)
            self.patience.since = 0

    def state(self) -> dict[str, float]:
        """What a checkpoint has to hold."""
        return {"scale": self.scale, **self.patience.state()}

    def load(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint's state."""
        self.scale = state["scale"]
        self.patience.load(state)

"""Values that change over a run. Every one is a pure function of a clock; the clock is the applied optimiser step, or
the epoch for a learning rate that moves between epochs.

A schedule reaches both end points exactly: `1 - exp(-5 p)` alone, as it is often written, stops 0.7 % short.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

KINDS = ("constant", "linear", "cosine", "exponential")
EXPONENTIAL_RATE = 5.0
"""How sharply `exponential` bends: the share that is left after the first fifth of the way is about 1/e."""


@dataclass(frozen=True)
class Schedule:
    """A value from `start` to `end` over `over_steps` ticks of its clock, the first `warmup` of them rising from 0.

    `clock` names the counter that drives it: `applied`, `epoch` (see `epoch_reading`), or `local`, which is the mistake
    that a fault re-enacts.
    Raises ValueError for a kind that does not exist or a warm-up that leaves no room.
    """

    kind: str
    start: float
    end: float
    over_steps: int
    warmup: float = 0
    clock: str = "applied"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"schedule kind '{self.kind}' does not exist; choose one of {', '.join(KINDS)}")
        if self.warmup < 0 or (self.kind != "constant" and self.over_steps <= self.warmup):
            raise ValueError(
                f"a warm-up of {self.warmup:g} does not fit into a schedule of {self.over_steps:g} ({self.clock})"
            )

    def at(self, tick: float) -> float:
        """The value at reading `tick` of the clock; `end`, exactly, from `over_steps` on."""
        if tick < self.warmup:
            return self.start * max(tick, 0.0) / self.warmup
        if self.kind == "constant":
            return self.start
        progress = min(max((tick - self.warmup) / (self.over_steps - self.warmup), 0.0), 1.0)
        done = _shape(self.kind, progress)
        return self.start * (1.0 - done) + self.end * done

    def declaration(self) -> dict[str, Any]:
        """The schedule as the run's header declares it."""
        rate = {"rate": EXPONENTIAL_RATE} if self.kind == "exponential" else {}
        return asdict(self) | rate


def _shape(kind: str, progress: float) -> float:
    """How far the value has come from start (0) to end (1); exact at both."""
    if kind == "linear":
        return progress
    if kind == "cosine":
        return (1.0 - math.cos(math.pi * progress)) / 2.0
    return math.expm1(-EXPONENTIAL_RATE * progress) / math.expm1(-EXPONENTIAL_RATE)


def epoch_reading(epoch: int, applied: int, steps_per_epoch: int, warmup: float) -> float:
    """What the clock `epoch` reads in step `applied`, which is of `epoch` (counted from 0).

    The number of the epoch, so that a value holds for all of it; but fractions of epochs while `warmup` of them last,
    so that a warm-up rises by the step even where it is shorter than an epoch.
    """
    return max(float(epoch), min(applied / steps_per_epoch, warmup))


def ramp_share(kind: str, progress: float) -> float:
    """How much of a change is in force after `progress` (0 to 1) of the time it takes; `step` is there at once."""
    return 1.0 if kind == "step" else _shape(kind, min(max(progress, 0.0), 1.0))

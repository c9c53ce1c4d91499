"""The arithmetic of a run's length, in this one place: batches, groups, epochs, steps, and which samples are whose."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Micro:
    """One rank's part of a micro-batch: `size` samples from global index `first`, for optimiser step `step` (from 1).

    `share` is its part of the step's samples, which scales its mean loss; `closes` marks the last one of the step.
    `seen` is how many samples the run has come to with it, on all ranks. A part without samples (`size` and `share` 0)
    names the micro-batch's last one: who takes part in a reduction has to compute something.
    """

    first: int
    size: int
    step: int
    share: float
    closes: bool
    seen: int = 0


@dataclass(frozen=True)
class Horizon:
    """How long a run is: `epochs` of `samples`, in batches of `batch_size`, `accumulation` of them a step.

    Samples and batches are those of all `processes` together, which split each batch as evenly as can be. An epoch's
    incomplete last group is stepped, not dropped; its incomplete last batch is dropped with `drop_last`.
    """

    epochs: int
    samples: int
    batch_size: int
    accumulation: int = 1
    drop_last: bool = False
    processes: int = 1

    @classmethod
    def of_steps(cls, steps: int, batch_size: int, accumulation: int, processes: int = 1) -> Horizon:
        """One epoch of exactly `steps` optimiser steps."""
        return cls(1, steps * batch_size * accumulation, batch_size, accumulation, processes=processes)

    @property
    def batches(self) -> int:
        """Micro-batches an epoch."""
        return self.samples // self.batch_size if self.drop_last else -(-self.samples // self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch."""
        return -(-self.batches // self.accumulation)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def micros(self) -> int:
        """Micro-batches of the whole run."""
        return self.epochs * self.batches

    def micro(self, index: int, rank: int = 0) -> Micro:
        """What `rank` has of micro-batch `index` of the run, both counted from 0: a contiguous slice."""
        epoch, batch = divmod(index, self.batches)
        group, place = divmod(batch, self.accumulation)
        begin = group * self.accumulation * self.batch_size
        usable = self.batches * self.batch_size if self.drop_last else self.samples
        in_group = min(usable - begin, self.accumulation * self.batch_size)
        size = min(self.batch_size, usable - batch * self.batch_size)
        closes = place == self.accumulation - 1 or batch == self.batches - 1
        step = epoch * self.steps_per_epoch + group + 1
        first = epoch * self.samples + batch * self.batch_size
        each, over = divmod(size, self.processes)
        own = each + (rank < over)
        start = first + min(rank * each + min(rank, over), size - 1)
        return Micro(start, own, step, own / in_group, closes, first + size)

    def first_micro(self, steps_done: int) -> int:
        """Index of the first micro-batch after `steps_done` optimiser steps."""
        epoch, group = divmod(steps_done, self.steps_per_epoch)
        return epoch * self.batches + group * self.accumulation

    def declaration(self) -> dict[str, Any]:
        """The horizon as the run's header holds it."""
        return asdict(self)

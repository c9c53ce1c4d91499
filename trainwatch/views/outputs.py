"""What the rules know that judge generated outputs: since when they are bad, for how long, and how they were before.

Outputs are bad in every run's beginning, and a sample of a few dozen scatters. So one bad sample says nothing: what
counts is a part of the run, and whether it had been better. Where it never had, a loss that has come down tells a sick
model from a young one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from trainwatch.schema import Finding
from trainwatch.table import Chunk
from trainwatch.views.evaluations import TrainingMeans

ROWS = 3  # samples in a row: a smaller number is chance
UNPLANNED = 6  # samples in a row, where nobody knows how long the run is meant to be
BETTER = 2  # samples in a row that end it: one may be luck
GROWN = 0.5  # of the loss before the first sample: who has come so far is not young any more
GAIN = 0.1  # of what is measured, from the first bad samples to the last: it is getting better


@dataclass
class Decline:
    """A measure of the outputs from sample to sample."""

    was_good: bool = False
    first: int = 0  # step of the first bad sample of those that are not over
    last: int = 0
    rows: int = 0  # bad samples since
    told: Finding | None = None
    _good: int = 0  # good samples in a row
    _better: int = 0  # samples in a row that are not bad
    _early: list[float] = field(default_factory=list)  # merit of the first bad samples
    _late: list[float] = field(default_factory=list)  # and of the last ones

    def push(self, step: int, good: bool, bad: bool, merit: float = 0.0) -> Finding | None:
        """Add a sample; gives back what was told of the decline if it is over with this one."""
        self._good = self._good + 1 if good else 0
        self.was_good |= self._good >= ROWS
        self._better = 0 if bad else self._better + 1
        if bad:
            self.first = self.first if self.rows else step
            self._early, self._late = [*self._early, merit][:ROWS], [*self._late, merit][-ROWS:]
            self.last, self.rows = step, self.rows + 1
        elif self._better == BETTER and self.rows:
            told, self.told, self.rows = self.told, None, 0
            self._early, self._late = [], []
            return told
        return None

    @property
    def stands(self) -> bool:
        """Whether the last bad samples are no better than the first ones."""
        return bool(self._early) and float(np.mean(self._late) - np.mean(self._early)) <= GAIN

    def lasts(self, total: int | None, fraction: float) -> bool:
        """Whether it has been bad for a `fraction` of the planned steps, and for some samples in a row."""
        if not total:
            return self.rows >= UNPLANNED
        return self.rows >= ROWS and self.last - self.first >= fraction * total


@dataclass
class Growth:
    """Whether the model has learned since its first sample, by its training loss."""

    _means: TrainingMeans = field(default_factory=TrainingMeans)
    _first: float = np.nan

    def push(self, chunk: Chunk) -> None:
        """More training rows; they are only added up."""
        self._means.add(chunk)

    def sampled(self) -> bool:
        """A sample comes: whether the mean loss before it is half of the one before the first sample."""
        now = self._means["loss"]
        self._means.evaluated()
        self._first = now if np.isnan(self._first) else self._first
        return bool(0 < now < GROWN * self._first)

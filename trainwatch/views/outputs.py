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
from trainwatch.views.games import plays

ROWS = 3  # samples in a row: a smaller number is chance
UNPLANNED = 6  # samples in a row, where nobody knows how long the run is meant to be
BETTER = 2  # samples in a row that end it: one may be luck
START = 5  # rows: the loss that a run begins with
GROWN = 0.4  # of that loss: who has come so far is not young any more
GAIN = 0.4  # of the way from the first bad samples to good ones: it is getting better, even if too late
SLOW = 0.15  # of it: it is getting better, and the run goes on
TWICE, QUARTER = 2.0, 0.25  # as many as at first, and so many of them: few samples are getting better by that, too
THROUGH = 0.9  # of the planned steps: who is not good by then will not be


@dataclass
class Decline:
    """A measure of the outputs from sample to sample."""

    was_good: bool = False
    first: int = 0  # step of the first bad sample of those that are not over
    since: int = 0  # step of the first one after the last sample that was not bad
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
        was_better, self._better = self._better > 0, 0 if bad else self._better + 1
        if bad:
            self.first = self.first if self.rows else step
            self.since = step if self.rows == 0 or was_better else self.since
            self._early, self._late = [*self._early, merit][:ROWS], [*self._late, merit][-ROWS:]
            self.last, self.rows = step, self.rows + 1
        elif self._better == BETTER and self.rows:
            told, self.told, self.rows = self.told, None, 0
            self._early, self._late = [], []
            return told
        return None

    def stands(self, good: float, gain: float) -> bool:
        """Whether the last bad samples have not come so far from the first ones, of the way to ``good`` ones."""
        some = max(1, min(ROWS, self.rows // 2))  # so that no sample is both
        early, late = (float(np.mean(part)) if part else good for part in (self._early[:some], self._late[-some:]))
        grows = self.rows < 2 * ROWS and late > TWICE * early and late > QUARTER * good
        return late - early < gain * (good - early) and not grows

    def lasts(self, total: int | None, fraction: float, least: int = ROWS) -> bool:
        """Whether it has been bad for a `fraction` of the planned steps, and for some samples in a row."""
        if not total:
            return self.rows >= UNPLANNED
        return self.rows >= least and self.last - self.first >= fraction * total


@dataclass
class Growth:
    """How far the model has come, by its training loss; that of a game, a policy's surrogate say, does not tell."""

    _means: TrainingMeans = field(default_factory=TrainingMeans)
    _first: list[float] = field(default_factory=list)
    _channels: int = 0  # that were known when the game was looked for
    _plays: bool = False

    def push(self, chunk: Chunk) -> None:
        """More training rows; they are only added up."""
        if len(chunk.channels) != self._channels:
            self._channels, self._plays = len(chunk.channels), plays(chunk.channels)
        self._means.add(chunk)
        if len(self._first) < START:
            loss = chunk["loss"]
            self._first = [*self._first, *loss[np.isfinite(loss)].tolist()][:START]

    def sampled(self) -> float:
        """A sample comes: what is left, before it, of the loss that the run began with; NaN if that is not known."""
        now = self._means["loss"]
        self._means.evaluated()
        first = float(np.mean(self._first)) if self._first else 0.0
        return now / first if first > 0 and now > 0 and not self._plays else np.nan

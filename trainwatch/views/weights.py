"""A run's weights as they were sampled: their norms, and how long the updates were beside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trainwatch.stats import Floats
from trainwatch.table import Chunk


@dataclass(frozen=True)
class Weights:
    """The groups of which norms were sampled, each and all together."""

    rows: Chunk
    groups: tuple[str, ...]

    def norm(self, group: str) -> Floats:
        """NaN where it was not sampled. float64 [rows]"""
        return self.rows[f"weight_norm/{group}"]

    def ratio(self, group: str) -> Floats:
        """Of an update's norm to that of the weights. float64 [rows]"""
        return self.rows[f"update_ratio/{group}"]

    @cached_property
    def together(self) -> Floats:
        """The norm of all weights. float64 [rows]"""
        norms = [np.square(self.norm(group)) for group in self.groups]
        total: Floats = np.sqrt(np.sum(norms, axis=0)) if norms else np.empty(0)
        return total

    @cached_property
    def at(self) -> NDArray[np.int64]:
        """The rows in which all weights were sampled."""
        return np.flatnonzero(np.isfinite(self.together) & (self.together > 0))

    @cached_property
    def grew(self) -> Floats:
        """By what all weights together grew from each sample to the next. float64 [samples - 1]"""
        total = self.together[self.at]
        grew: Floats = total[1:] / total[:-1]
        return grew

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """From each sample to the next."""
        return np.maximum(np.diff(self.rows.step[self.at]), 1)

    @cached_property
    def length(self) -> Floats:
        """Of each sampled update of all weights, by their norm; of all samples but the last. float64 [samples - 1]"""
        moved = [np.square(self.norm(group) * self.ratio(group)) for group in self.groups]
        length: Floats = (np.sqrt(np.sum(moved, axis=0)) / self.together)[self.at[:-1]]
        return length

    def swells(self, group: str, along: float) -> bool:
        """Whether between any two samples so much of the updates' length went along the weights."""
        norm, ratio = self.norm(group), self.ratio(group)
        at = np.flatnonzero(np.isfinite(ratio) & (norm > 0))
        grown, went = growth(norm[at], ratio[at], self.rows.step[at])
        return bool(len(at) > 2 and (grown > along * went).all())


def growth(norm: Floats, ratio: Floats, step: Floats | NDArray[np.int64]) -> tuple[Floats, Floats]:
    """How much a norm grew from each sample to the next, in logarithms, and how long the updates' way was, in norms of
    the weights: both are alike where each update only blows the weights up. float64 [samples - 1] each
    """
    return np.diff(np.log(norm)), (ratio[1:] + ratio[:-1]) / 2 * np.diff(step)

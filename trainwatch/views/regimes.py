"""Where a run begins anew by its own plan, so that what was before says nothing of what comes after.

A new stage, a warm restart, a weight that enters: a loss or a gradient may jump there, and nothing is wrong. A resume
needs no word here: it gives every rule a fresh start by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Curriculum, Header
from trainwatch.stats import carried
from trainwatch.table import Chunk

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

OFTEN, CALM = 3, 20  # changes in so many rows: what is toggled from batch to batch begins nothing until it stands still
JUMP = 1.5  # x: a weight or a rate that rises so far from one row to the next is set anew; ramps are gentler
MOST = 64  # columns of a kind that are looked at: more of them is a log to be distrusted


@dataclass(frozen=True)
class Recent:
    """The rows of a channel's last two changes, and whether it changed too often to begin anything."""

    rows: tuple[int, int] = (-(2**31), -(2**31))
    restless: bool = False


@dataclass
class Regimes:
    """Follows a run's rows and says with which of them a new regime begins. How they are cut does not matter."""

    _curriculum: Curriculum | None = None
    _last: dict[str, float] = field(default_factory=dict)
    _recent: dict[str, Recent] = field(default_factory=dict)
    _rows: int = 0

    def start(self, header: Header) -> None:
        """What the run declares."""
        self._curriculum = header.plan

    def begins(self, chunk: Chunk) -> Bools:
        """Whether a row is the first of a new stage, of a warm restart, or under another weight. bool [rows]"""
        fresh = self._changed("stage", self._stage(chunk), lambda before, now: before != now)
        for name in chunk.kind("lr/")[:MOST]:
            fresh |= self._changed(name, chunk[name], lambda before, now: now > JUMP * before)
        for name in chunk.kind("weight/")[:MOST]:
            fresh |= self._changed(name, chunk[name], _set_anew)
        self._rows += len(chunk)
        return fresh

    def _stage(self, chunk: Chunk) -> Floats:
        """As recorded, else as declared."""
        stage = chunk["stage"]
        if self._curriculum is not None and self._curriculum.stages:
            begins = np.array([item.start for item in self._curriculum.stages])
            declared = np.searchsorted(begins, chunk.applied(), side="right") - 1.0
            stage = np.where(np.isnan(stage), declared, stage)
        return stage

    def _changed(self, name: str, values: Floats, changed: Callable[[Floats, Floats], Bools]) -> Bools:
        """Where a value has changed since the last row that had one. bool [rows]"""
        last = self._last.get(name, np.nan)
        if np.all(values == last):
            return np.zeros(len(values), dtype=bool)  # a weight stands still most of the time
        before = carried(last, values)
        known = np.flatnonzero(np.isfinite(values))
        if len(known):
            self._last[name] = float(values[known[-1]])
        found: Bools = np.isfinite(before) & np.isfinite(values) & changed(before, values)
        return self._begun(name, found) if found.any() else found

    def _begun(self, name: str, changed: Bools) -> Bools:
        """The changes that begin a regime: not those of a channel that has changed ``OFTEN`` times in ``CALM`` rows,
        until it has stood still for as many. bool [rows]
        """
        recent, found = self._recent.get(name, Recent()), np.zeros(len(changed), dtype=bool)
        where = np.flatnonzero(changed)
        rows = np.concatenate([recent.rows, self._rows + where])
        number = np.arange(1, len(where) + 1)
        calmed = np.maximum.accumulate(np.where(np.diff(rows)[1:] > CALM, number, 0))  # the last one after a pause
        dense = np.where(rows[2:] - rows[: 1 - OFTEN] < CALM, number, 0 if recent.restless else -1)
        often = np.maximum.accumulate(np.concatenate([[0 if recent.restless else -1], dense]))
        found[where[often[:-1] < calmed]] = True
        self._recent[name] = Recent((int(rows[-2]), int(rows[-1])), bool(often[-1] >= calmed[-1]))
        return found


def _set_anew(before: Floats, now: Floats) -> Bools:
    """Up or down by more than a half: from 0 as well, and to it."""
    larger, smaller = np.maximum(np.abs(before), np.abs(now)), np.minimum(np.abs(before), np.abs(now))
    found: Bools = larger > JUMP * smaller
    return found

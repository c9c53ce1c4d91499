"""Streaming statistics that rules are made of. How the rows are cut into chunks never changes what they give.

That is why nothing here accumulates over a chunk's border: rows are held until a block of a fixed number of rows,
counted from the first one, is whole, and a block is judged as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass
class Blocks:
    """Cuts a stream of columns into blocks of ``size`` rows; holds what does not fill a block yet."""

    size: int
    _held: dict[str, Floats] = field(default_factory=dict)
    _rows: int = 0

    def push(self, columns: Mapping[str, Floats]) -> dict[str, Floats]:
        """Every block that these rows complete: float64 [blocks, size] a column; no columns if there is none.

        A column that was absent until now is NaN in the rows before it.
        """
        fresh = len(next(iter(columns.values()), ()))
        rows = self._rows + fresh
        joined = {
            name: np.concatenate([self._column(self._held, name, self._rows), self._column(columns, name, fresh)])
            for name in dict.fromkeys([*self._held, *columns])
        }
        whole = rows // self.size
        self._rows = rows - whole * self.size
        self._held = {name: values[whole * self.size :].copy() for name, values in joined.items()}
        if not whole:
            return {}
        return {name: values[: whole * self.size].reshape(whole, self.size) for name, values in joined.items()}

    @staticmethod
    def _column(columns: Mapping[str, Floats], name: str, rows: int) -> Floats:
        return columns[name] if name in columns else np.full(rows, np.nan)


def in_blocks(values: Floats, size: int) -> Floats:
    """A column as blocks of ``size`` rows; the last one is filled up with NaN. float64 [blocks, size]"""
    missing = -len(values) % size
    padded = np.concatenate([values, np.full(missing, np.nan)]) if missing else values
    return padded.reshape(-1, size)


def medians(blocks: Floats) -> Floats:
    """Median of the finite values of each row of [blocks, size]; NaN for a row without any. float64 [blocks]"""
    known, width = np.isfinite(blocks), blocks.shape[1]
    if width and known.all():  # most are
        ordered = np.sort(blocks, axis=1)
        return (ordered[:, (width - 1) // 2] + ordered[:, width // 2]) / 2
    ordered = np.sort(np.where(known, blocks, np.nan), axis=1)  # NaN sorts to the end
    count, row = known.sum(axis=1), np.arange(len(ordered))
    middle = (ordered[row, np.maximum(count - 1, 0) // 2] + ordered[row, np.minimum(count // 2, width - 1)]) / 2
    return np.where(count > 0, middle, np.nan)


def median(values: Floats) -> float:
    """Median of the finite values; NaN if there is none."""
    known = values[np.isfinite(values)]
    return middle(known) if len(known) else np.nan


def middle(values: Floats) -> float:
    """Median of values that are all finite, one at least: what numpy gives, in a fifth of its time for a few."""
    low, high = (len(values) - 1) // 2, len(values) // 2
    ordered = np.partition(values, (low, high))
    return float(ordered[low] + ordered[high]) / 2 if low < high else float(ordered[low])


def running_medians(values: Floats, width: int) -> Floats:
    """Median of the finite values in a window about each value; narrower at both ends. float64 [rows]"""
    padded = np.concatenate([np.full(width // 2, np.nan), values, np.full(width - 1 - width // 2, np.nan)])
    return medians(np.lib.stride_tricks.sliding_window_view(padded, width)) if len(values) else values


def spreads(blocks: Floats, middles: Floats) -> Floats:
    """Standard deviation of each row of [blocks, size] about its median, from the median deviation, which forgives
    outliers up to half of the rows; NaN for a row without a finite value. float64 [blocks]
    """
    return SIGMA * medians(np.abs(blocks - middles[:, None]))


SIGMA = 1.4826
"""Standard deviations in a median absolute deviation, for normal noise."""


def noise(values: Floats) -> float:
    """Standard deviation of the noise on a series, however it drifts: from the differences of neighbours.

    Zero for fewer than three finite values.
    """
    known = values[np.isfinite(values)]
    steps = known[1:] - known[:-1]  # np.diff takes four times as long for a few
    return SIGMA * middle(np.abs(steps - middle(steps))) / 2**0.5 if len(steps) > 1 else 0.0


def carried(previous: float, values: Floats) -> Floats:
    """For each value the last finite one *before* it, beginning with ``previous`` (NaN for none). float64 [rows]"""
    known = np.concatenate([[previous], values])
    there = np.isfinite(known)
    if there[1:].all():  # as in most channels
        return known[:-1]
    index = np.where(there, np.arange(len(known)), 0)
    return known[np.maximum.accumulate(index)][:-1]


@dataclass
class Streak:
    """A condition that counts once it has held for ``rows`` judged rows in a row, and for ``steps`` of the column
    ``step`` (up to ``last``, where a row is a block and has both); its onset is the first of those.

    ``onset``, ``believed`` and ``latest`` are whatever columns came with the first row of the first such streak, with
    the row that made it one, and with the last row in which the condition held.
    """

    rows: int  # in a row, for a streak to be believed
    steps: int = 0  # from its first row to its last
    bad: int = 0  # rows in which the condition held, in all
    onset: dict[str, float] | None = None
    believed: dict[str, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    good_since: int = 0  # rows since the condition held last
    _length: int = 0  # of the streak that the last row belongs to
    _began: dict[str, float] = field(default_factory=dict)  # the first row of that streak

    @property
    def over(self) -> bool:
        """Whether it has not held for as many rows as it took to be believed."""
        return self.good_since >= self.rows

    def push(self, holds: Bools, columns: Mapping[str, Floats]) -> bool:
        """Add judged rows; True if there is a streak whose story these rows changed."""
        if not len(holds):
            return False
        if not holds.any():  # as in most chunks
            self._length, self.good_since = 0, self.good_since + len(holds)
            return self.onset is not None
        last_good, lengths = self._lengths(holds)
        if self.onset is None:
            self._believe(lengths, columns)
        if holds[-1] and (last_good >= 0 or not self._length):
            self._began = _row(columns, last_good + 1)
        self._length = int(lengths[-1])
        where = np.flatnonzero(holds)
        self.good_since += len(holds)
        if len(where):
            self.bad, self.good_since = self.bad + len(where), len(holds) - 1 - int(where[-1])
            self.latest = _row(columns, int(where[-1]))
        return self.onset is not None

    def _lengths(self, holds: Bools) -> tuple[int, NDArray[np.int64]]:
        """The last row in which the condition does not hold (-1 for none), and how long it has held at each row."""
        row = np.arange(len(holds))
        good = np.maximum.accumulate(np.where(holds, -1, row))  # the last such row up to each row
        return int(good[-1]), row - good + np.where(good < 0, self._length, 0)

    def _believe(self, lengths: NDArray[np.int64], columns: Mapping[str, Floats]) -> None:
        """Note the first streak that is long enough; its onset may lie in rows that were pushed before."""
        enough = np.flatnonzero(lengths >= self.rows)
        if self.steps and len(enough):
            begins = enough - lengths[enough] + 1
            began = np.where(begins < 0, self._began.get("step", np.nan), columns["step"][np.maximum(begins, 0)])
            enough = enough[columns.get("last", columns["step"])[enough] - began + 1 >= self.steps]
        if len(enough):
            first = int(enough[0] - lengths[enough[0]]) + 1
            self.onset = _row(columns, first) if first >= 0 else dict(self._began)
            self.believed = _row(columns, int(enough[0]))


@dataclass
class Probes:
    """Since when what is probed now and then may be as it was found: from the row after the probe before it on, or
    from the first row of all.
    """

    _step: float = np.nan
    _probed: bool = True  # the row before

    def since(self, probed: Bools, step: Floats) -> Floats:
        """For each row the step of the row after the last probe before it. float64 [rows]"""
        after = np.concatenate([[self._probed], probed[:-1]])
        found = carried(self._step, np.append(np.where(after, step, np.nan), np.nan))[1:]
        if len(step):
            self._step, self._probed = float(found[-1]), bool(probed[-1])
        return found[: len(step)]


def _row(columns: Mapping[str, Floats], index: int) -> dict[str, float]:
    return {name: float(values[index]) for name, values in columns.items()}


@dataclass
class Baseline:
    """What a statistic of blocks used to be: over the ``memory`` blocks before each one, in the same regime.

    A regime begins where ``fresh`` says so (a stage, a warm restart): what was before it does not count.
    """

    memory: int = 10  # blocks: five sick ones are outvoted
    fewest: int = 3  # blocks: the median of three forgives one
    _values: dict[str, Floats] = field(default_factory=dict)
    _regime: Floats = field(default_factory=lambda: np.empty(0))

    def push(self, columns: Mapping[str, Floats], fresh: Bools) -> dict[str, Floats]:
        """For each block the median of each column over the blocks before it; NaN where those are too few. [blocks]"""
        held, new = len(self._regime), len(fresh)
        regime = np.concatenate([self._regime, (self._regime[-1] if held else 0.0) + np.cumsum(fresh)])
        joined = {
            name: np.concatenate(
                [self._values.get(name, np.full(held, np.nan)), columns.get(name, np.full(new, np.nan))]
            )
            for name in dict.fromkeys([*self._values, *columns])
        }
        index = np.arange(held, held + new)[:, None] - np.arange(self.memory, 0, -1)  # [blocks, memory]
        same = (index >= 0) & (regime[np.maximum(index, 0)] == regime[held:, None])
        before = {name: np.where(same, values[np.maximum(index, 0)], np.nan) for name, values in joined.items()}
        self._values = {name: values[-self.memory :] for name, values in joined.items()}
        self._regime = regime[-self.memory :]
        enough = {name: np.isfinite(values).sum(axis=1) >= self.fewest for name, values in before.items()}
        return {name: np.where(enough[name], medians(values), np.nan) for name, values in before.items()}


WAITING = 32  # pushes: a numpy call costs as much for one row as for so many


@dataclass
class History:
    """Whole columns at bounded resolution: at most ``most`` bins of equal width, which doubles when they are full.

    A bin is the median of its rows; when the width doubles, two neighbours become their mean. So an outlier stays in
    its bin, short runs are kept row by row, and the memory does not grow with the run.
    """

    most: int = 256  # bins, an even number: no eye sees more of a curve
    width: int = 1  # rows a bin
    _bins: dict[str, Floats] = field(default_factory=dict)
    _held: dict[str, Floats] = field(default_factory=dict)
    _count: int = 0  # bins
    _rows: int = 0  # held, which fill no bin yet
    _waiting: list[Mapping[str, Floats]] = field(default_factory=list)  # pushed row by row, as evaluations come

    def push(self, columns: Mapping[str, Floats]) -> None:
        """Add rows; a column that was absent until now is NaN in the bins before them."""
        self._waiting.append(columns)
        if len(self._waiting) == WAITING or len(next(iter(columns.values()), ())) > 1:
            self._fold()

    def _fold(self) -> None:
        """Add what waits."""
        columns, self._waiting = _joined(self._waiting), []
        rows = len(next(iter(columns.values()), ()))
        done = 0
        while done < rows:
            take = min(rows - done, (self.most - self._count) * self.width - self._rows)
            self._take({name: values[done : done + take] for name, values in columns.items()}, take)
            done += take
            if self._count == self.most:
                self._bins = {name: _merged(values) for name, values in self._bins.items()}
                self._count, self.width = self.most // 2, self.width * 2

    def _take(self, columns: Mapping[str, Floats], rows: int) -> None:
        """Rows that do not overfill the bins."""
        names = dict.fromkeys([*self._bins, *self._held, *columns])
        held = {name: self._held.get(name, np.full(self._rows, np.nan)) for name in names}
        joined = {name: np.concatenate([held[name], columns.get(name, np.full(rows, np.nan))]) for name in names}
        whole = (self._rows + rows) // self.width
        cut = whole * self.width
        for name, values in joined.items():
            fresh = values[:cut].reshape(whole, self.width)
            bins = self._bins.get(name, np.full(self._count, np.nan))
            self._bins[name] = np.concatenate([bins, medians(fresh) if self.width > 1 else fresh[:, 0]])
        self._held = {name: values[cut:].copy() for name, values in joined.items()}
        self._count, self._rows = self._count + whole, self._rows + rows - cut

    def series(self, rest: Mapping[str, Floats] | None = None) -> dict[str, Floats]:
        """Every column from its first row to its last, and on through ``rest``; float64 [bins], for all alike.

        The last bin may be of fewer rows. A value that is not finite does not count; a bin without any is NaN.
        """
        if self._waiting:
            return self.whole().series(rest)
        rest = rest or {}
        rows = len(next(iter(rest.values()), ()))
        names = list(dict.fromkeys([*self._bins, *rest]))
        if not names:
            return {}
        tails = np.full((len(names), -(-(self._rows + rows) // self.width) * self.width), np.nan)
        for tail, name in zip(tails, names, strict=True):
            tail[: self._rows] = self._held.get(name, np.nan)
            tail[self._rows : self._rows + rows] = rest.get(name, np.nan)
        late = medians(tails.reshape(-1, self.width)).reshape(len(names), -1)  # numpy costs the same for one as for all
        early = [self._bins.get(name, np.full(self._count, np.nan)) for name in names]
        return {name: np.concatenate(parts) for name, *parts in zip(names, early, late, strict=True)}

    def whole(self) -> History:
        """The same with nothing waiting: this one, or a copy, which shares the columns that it leaves as they are."""
        if not self._waiting:
            return self
        other = replace(self, _bins=dict(self._bins), _held=dict(self._held))
        other._fold()
        return other


def _joined(parts: Sequence[Mapping[str, Floats]]) -> Mapping[str, Floats]:
    """Columns one after the other; NaN where a part has not got one."""
    if len(parts) == 1:
        return parts[0]
    rows = [len(next(iter(part.values()), ())) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part)
    filled = {count: np.full(count, np.nan) for count in rows}
    return {
        name: np.concatenate([part.get(name, filled[count]) for part, count in zip(parts, rows, strict=True)])
        for name in names
    }


def _merged(bins: Floats) -> Floats:
    """Means of neighbours; of one, where the other is NaN."""
    return medians(bins.reshape(-1, 2))


def fall(values: Floats) -> float:
    """How far a series came down from its first tenth to its last, as a share of the larger of both; below 0 it rose.

    0 where that is within the noise of the two medians; NaN for fewer than six finite values.
    """
    known = values[np.isfinite(values)]
    tenth = max(3, len(known) // 10)
    if len(known) < 2 * tenth:
        return np.nan
    first, last = middle(known[:tenth]), middle(known[-tenth:])
    doubt = 3 * 1.2533 * 2**0.5 * noise(known) / tenth**0.5  # three standard errors of a difference of medians
    return 0.0 if abs(first - last) <= doubt else (first - last) / max(abs(first), abs(last))

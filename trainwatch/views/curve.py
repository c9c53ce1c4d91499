"""The course of the total loss, as the rules of its family look at it: few points, and what each was taken under."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from trainwatch.copying import copied
from trainwatch.header import Header
from trainwatch.run import Run
from trainwatch.stats import History, medians, middle, noise
from trainwatch.table import Chunk
from trainwatch.views.games import contested
from trainwatch.views.regimes import MOST, Regimes

Floats = NDArray[np.float64]

FLIPS = 0.1  # of the points: a loss that changes its sign so often is a surrogate whose value means nothing


@dataclass(frozen=True)
class Points:
    """A curve: steps, losses, the largest learning rate (NaN if none is recorded), and the regime. float64 [points]"""

    step: Floats
    loss: Floats
    lr: Floats
    regime: Floats
    rows: int  # a point is the median of so many

    def __len__(self) -> int:
        return len(self.step)

    def part(self, which: NDArray[np.bool_] | slice) -> Points:
        """Some of the points."""
        return Points(self.step[which], self.loss[which], self.lr[which], self.regime[which], self.rows)

    def stages(self) -> Iterator[Points]:
        """The points of each regime; one that a change runs through belongs to none."""
        for regime in np.unique(self.regime[self.regime % 1 == 0]):
            yield self.part(self.regime == regime)

    def smooth(self, width: int) -> Floats:
        """Running median of the loss over ``width`` points, shorter at both ends. float64 [points]"""
        return running_median(self.loss, width)

    @property
    def noise(self) -> float:
        """Standard deviation of the noise on one point."""
        return noise(self.loss)

    @property
    def rate_holds(self) -> bool:
        """Whether the learning rate is recorded and stays the same within 1 %."""
        return bool(np.isfinite(self.lr).all() and len(self) and np.ptp(self.lr) <= 0.01 * np.max(self.lr))


def running_median(values: Floats, width: int) -> Floats:
    """Median over ``width`` neighbours of each value, fewer at both ends; NaN does not count. float64 [values]"""
    half = width // 2
    if not half or not len(values):
        return values
    padded = np.concatenate([np.full(half, np.nan), values, np.full(half, np.nan)])
    return medians(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1))


_POINTS: WeakKeyDictionary[Chunk, dict[tuple[int, int], Points]] = WeakKeyDictionary()


@dataclass
class Curve:
    """Gathers the total loss of one process in constant memory."""

    first_row: int = -1  # of this process, in the run's table
    rows: int = 0
    _history: History = field(default_factory=History)
    _regimes: Regimes = field(default_factory=Regimes)
    _regime: float = 0.0

    def start(self, header: Header) -> None:
        """What the run declares."""
        self._regimes.start(header)

    def push(self, chunk: Chunk) -> None:
        """Add rows."""
        if self.first_row < 0:
            self.first_row = chunk.start
        self.rows += len(chunk)
        self._history.push(self._columns(chunk))

    def points(self, rest: Chunk) -> Points:
        """The whole curve, on through ``rest``; taken once for all rules that ask for it."""
        known = _POINTS.setdefault(rest, {})
        process = self.first_row, self.rows
        if process not in known:
            known[process] = self._points(rest)
        return known[process]

    def _points(self, rest: Chunk) -> Points:
        history = self._history.whole()
        trial = replace(self, _regimes=copied(self._regimes))
        columns = history.series(trial._columns(rest) if len(rest) else {})
        if not columns:
            nothing = np.empty(0)
            return Points(nothing, nothing, nothing, nothing, 1)
        known = np.isfinite(columns["loss"])
        step, loss, lr, regime = (columns[name][known] for name in ("step", "loss", "lr", "regime"))
        return Points(step, loss, lr, regime, history.width)

    def raw(self, run: Run, name: str, rest: Chunk) -> Floats:
        """A channel row by row, from this process's first row on: for the few runs that deserve a close look."""
        return run.train.column(name, self.first_row if self.first_row >= 0 else rest.start, rest.stop)

    def raw_steps(self, run: Run, rest: Chunk) -> NDArray[np.int64]:
        """The steps of those rows."""
        return run.train.step[self.first_row if self.first_row >= 0 else rest.start : rest.stop]

    def span(self, run: Run, rest: Chunk) -> tuple[int, int]:
        """The first and the last of them."""
        steps = self.raw_steps(run, rest)
        return int(steps[0]), int(steps[-1])

    def _columns(self, chunk: Chunk) -> dict[str, Floats]:
        regime = self._regime + np.cumsum(self._regimes.begins(chunk))
        self._regime = float(regime[-1]) if len(regime) else self._regime
        rate = np.full(len(chunk), np.nan)
        for name in chunk.kind("lr/")[:MOST]:
            rate = np.fmax(rate, chunk[name])
        return {"step": chunk.step.astype(np.float64), "loss": chunk["loss"], "lr": rate, "regime": regime}


def wanders(run: Run, points: Points) -> bool:
    """Whether the loss belongs to a game, or flips its sign all the time."""
    return contested(run) or flips(points)


def flips(points: Points) -> bool:
    """Whether the loss changes its sign all the time."""
    signs = np.sign(points.loss[points.loss != 0])
    return len(signs) > 1 and float(np.mean(signs[1:] != signs[:-1])) > FLIPS


MEDIAN = 1.25  # x that of a mean: the standard error of a median


def rise_at_once(loss: Floats) -> tuple[float, float, bool]:
    """The level before the last rise that came at once and has stood for a quarter of the points, its height, and
    whether it stood there from the first.
    """
    quarter, moment = len(loss) // 4, max(5, len(loss) // 20)
    now = middle(loss[-quarter:])
    smooth = running_median(loss, 5)
    low = np.flatnonzero(smooth <= (smooth[:-quarter].min(initial=now) + now) / 2)
    at = int(low[-1]) if len(low) else 0
    before, after = loss[max(0, at - quarter) : at - 1], loss[at + 3 :]
    if len(before) < 2 * moment or len(after) < max(quarter, 4 * moment):
        return now, 0.0, False
    level = middle(before)
    height = now - level
    sharp = middle(before[-moment:]) < level + height / 4 < now - height / 4 < middle(after[:moment])
    _, second, third, last = (middle(part) for part in np.array_split(after, 4))
    stands = third - last < height / 5
    clear = sharp and stands and height > 8 * (MEDIAN * noise(before) / len(before) ** 0.5)
    return level, height if clear else 0.0, second - last < height / 5


MOMENT, BEFORE, FEWEST = 5, 20, 10  # rows that must stand above those before; those; and how many there are
PLAIN = 4.0  # standard deviations of one row, for the height of such a rise


@dataclass(frozen=True)
class Leap:
    """A rise from one row to the next, whatever came of it."""

    row: int
    level: float  # before
    height: float
    noise: float  # before, standard deviation of one row


def leap(loss: Floats) -> Leap | None:
    """The highest rise from one row to the next: four of the five rows from there on are above all of the twenty
    before, and their median is clearly above the last of them. Of fewer rows, the last fifth of a short log, which may
    have come all its way in twenty, it must be plain beside what they did before. float64 [rows]
    """
    best: Leap | None = None
    if len(loss) < 2 * MOMENT:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(loss, MOMENT)
    middle, second = np.median(windows, axis=1), np.partition(windows, 1, axis=1)[:, 1]
    padded = np.concatenate([np.full(FEWEST - MOMENT, -np.inf), loss])
    highest = np.max(np.lib.stride_tricks.sliding_window_view(padded, FEWEST), axis=1)
    rows, back = np.arange(MOMENT, len(windows)), min(BEFORE, max(FEWEST, len(loss) // 5))
    high = (second[rows] > highest[rows - MOMENT]) & (loss[rows] > (middle[rows] + middle[rows - MOMENT]) / 2)
    for row in rows[high].tolist():
        before, level = loss[max(0, row - BEFORE) : row], float(middle[row - MOMENT])
        height, sigma = float(middle[row]) - level, noise(before)
        few = row < FEWEST or second[row] <= before.max()
        plain = max(PLAIN * sigma, _plain(before, level) if few else 0.0)
        if second[row] > before[-back:].max() and height > plain and (best is None or height > best.height):
            best = Leap(row, level, height, sigma)
    return best


def _plain(before: Floats, level: float) -> float:
    """How high a rise must be that few rows tell of: twice as clear, and far beyond what they rose by before, which
    in noise that wanders is more than neighbours differ by; fewer than ten must double, too.
    """
    if len(before) < FEWEST:
        return max(2 * PLAIN * noise(before), 2 * float(np.ptp(before)), abs(level))
    levels = np.median(np.lib.stride_tricks.sliding_window_view(before, MOMENT), axis=1)
    rise = float((levels[MOMENT:] - levels[:-MOMENT]).max())
    return max(2 * PLAIN * noise(before), 3 * rise)

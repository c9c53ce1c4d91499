"""A loss as a line of some 40 points, small enough for a cell of a table. No Dash in here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dashboards.words import number
from trainwatch.figures.plot import LOG_SPREAD
from trainwatch.run import Run
from trainwatch.schema import NONFINITE_NAMES

WIDTH: Final = 120
HEIGHT: Final = 30
MARGIN: Final = 4
BUCKETS: Final = 22  # of each its lowest and its highest value is kept, so that a spike of one step is seen

Steps = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spark:
    """A line in a box of WIDTH x HEIGHT: ``lines`` as SVG points, broken where a value was not finite.

    ``bad`` are (x, kind) of those values, at their place; ``said`` is the same in words.
    """

    lines: tuple[str, ...] = ()
    bad: tuple[tuple[int, str], ...] = ()
    said: str = "no loss in this log"

    @classmethod
    def of(cls, run: Run, name: str | None) -> Spark:
        """The curve of a channel; an empty line where there is none."""
        if name is None:
            return cls()
        steps, values = _ordered(*run.train.curve(name))
        bad_steps, codes = _ordered(*run.train.nonfinite(name))
        if not len(steps) and not len(bad_steps):
            return cls()
        ends = [part[end] for part in (steps, bad_steps) if len(part) for end in (0, -1)]
        first, last = int(min(ends)), int(max(ends))
        kept = _kept(_bucket(steps, first, last), values)
        log = bool(len(values) and values.min() > 0 and values.max() > LOG_SPREAD * values.min())
        lines = _lines(steps[kept], values[kept], bad_steps, (first, last), log)
        return cls(lines, _marks(bad_steps, codes, (first, last)), _said(name, values, bad_steps, codes, log))


def _ordered(steps: Steps, other: Any) -> tuple[Steps, Any]:
    if len(steps) > 1 and (np.diff(steps) < 0).any():
        order = np.argsort(steps, kind="stable")
        return steps[order], other[order]
    return steps, other


def _bucket(steps: Steps, first: int, last: int) -> NDArray[np.int64]:
    return ((steps - first).astype(np.float64) * BUCKETS / (last - first + 1)).astype(np.int64)


def _kept(bucket: NDArray[np.int64], values: Floats) -> NDArray[np.int64]:
    """Indices of the first, the last, and of every bucket's lowest and highest value."""
    if not len(values):
        return np.empty(0, dtype=np.int64)
    kept = {0, len(values) - 1}
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        part = values[start:stop]
        kept |= {int(start + part.argmin()), int(start + part.argmax())}
    return np.array(sorted(kept), dtype=np.int64)


def _lines(steps: Steps, values: Floats, bad: Steps, ends: tuple[int, int], log: bool) -> tuple[str, ...]:
    if not len(values):
        return ()
    levels = np.log(values) if log else values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        low, spread = levels.min(), levels.max() - levels.min()
        height = (levels - low) / spread if np.isfinite(spread) and spread > 0 else np.full(len(levels), 0.5)
    y = np.rint(HEIGHT - MARGIN - height * (HEIGHT - 2 * MARGIN)).astype(int)
    points = [f"{x},{level}" for x, level in zip(_across(steps, ends), y, strict=True)]
    broken = np.searchsorted(bad, steps)  # how many bad steps came before each point
    cuts = [0, *(np.flatnonzero(np.diff(broken)) + 1), len(points)]
    parts = [points[start:stop] for start, stop in pairwise(cuts)]
    return tuple(" ".join(part if len(part) > 1 else part * 2) for part in parts)  # a point alone is a dot


def _across(steps: Steps, ends: tuple[int, int]) -> list[int]:
    share = (steps - ends[0]) / max(ends[1] - ends[0], 1)
    return [int(x) for x in np.rint(MARGIN + share * (WIDTH - 2 * MARGIN))]


def _marks(steps: Steps, codes: Any, ends: tuple[int, int]) -> tuple[tuple[int, str], ...]:
    pairs = zip(_across(steps, ends), codes, strict=True)
    return tuple(dict.fromkeys((x // 3 * 3, NONFINITE_NAMES[int(code)]) for x, code in pairs))


def _said(name: str, values: Floats, bad: Steps, codes: Any, log: bool) -> str:
    parts = []
    if len(values):
        parts.append(f"{name} from {number(float(values[0]))} to {number(float(values[-1]))}")
        parts.append(f"between {number(float(values.min()))} and {number(float(values.max()))}")
    for code, kind in NONFINITE_NAMES.items():
        at = bad[codes == code]
        if len(at):
            many = f"{len(at):,} times, first " if len(at) > 1 else ""
            parts.append(f"{number(kind)} {many}at step {int(at[0]):,}")
    return ", ".join(parts) + (" (log scale)" if log else "")

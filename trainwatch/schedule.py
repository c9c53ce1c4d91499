"""Declared schedules and the clocks they are driven by: what a value should be, and how far a clock says the run is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from trainwatch.schema import SCHEDULE_KINDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


def schedule_value(declared: Mapping[str, Any], at: float) -> float | None:
    """What a declared schedule gives at reading ``at`` of its clock; None if the declaration cannot be evaluated.

    ``warmup`` steps rise linearly from 0 to ``start``; they begin at ``begin`` and count within ``over_steps``, at
    whose end the value is ``end``. Between them, with p in 0..1 (``restarts`` makes it run ``restarts + 1`` times):

    * linear       start + (end - start) p
    * cosine       end + (start - end) (1 + cos(pi p)) / 2
    * exponential  start + (end - start) (1 - exp(-rate p)) / (1 - exp(-rate)), ``rate`` 5 if unsaid
    * constant     start

    ``floor`` is the smallest value after the warm-up.
    """
    values = schedule_values(declared, [at])
    return None if values is None else float(values[0])


def schedule_values(declared: Mapping[str, Any], at: ArrayLike, *, held: bool = True) -> NDArray[np.float64] | None:
    """:func:`schedule_value` for many readings at once. float64 [readings]

    ``held`` is whether it stays where its declared steps end; else an exponential goes on falling, and cycles go on,
    each of whole steps, as schedulers count them.
    """
    import numpy as np

    kind = declared.get("kind")
    try:
        start = float(declared["start"])
        end = float(declared.get("end", start))
        begin, warmup = float(declared.get("begin") or 0), float(declared.get("warmup") or 0)
        over = float(declared.get("over_steps") or 0)
        cycles = int(declared.get("restarts") or 0) + 1
        rate = float(declared.get("rate") or 5.0)
        floor = -math.inf if declared.get("floor") is None else float(declared["floor"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if kind not in SCHEDULE_KINDS or (kind != "constant" and over <= warmup) or cycles < 1:
        return None
    if not all(map(math.isfinite, (start, end, begin, warmup, over, rate))):
        return None
    since = np.asarray(at, dtype=np.float64) - begin
    with np.errstate(all="ignore"):  # a hostile declaration may overflow: that is a value like any other
        if kind == "constant":
            values = np.full(since.shape, start)
        else:
            if cycles > 1 and not held:
                progress = np.maximum(since - warmup, 0.0) / max((over - warmup) // cycles, 1.0) % 1.0
            else:
                last = 1.0 if held or kind != "exponential" else np.inf
                progress = np.clip((since - warmup) / (over - warmup), 0.0, last)
                progress = np.where(progress < 1.0, (progress * cycles) % 1.0, progress)
            done = _shape(str(kind), progress, rate)
            values = start * (1.0 - done) + end * done  # exact at both ends, which start + (end - start) is not
        values = np.maximum(values, floor)
        if warmup:
            values = np.where(since < warmup, start * np.maximum(since, 0.0) / warmup, values)
    return values


def _shape(kind: str, progress: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """How far the value has come from start (0) to end (1)."""
    import numpy as np

    if kind == "linear":
        return progress
    if kind == "cosine":
        return (1.0 - np.cos(np.pi * progress)) / 2.0
    shape: NDArray[np.float64] = np.expm1(-rate * progress) / np.expm1(-rate)
    return shape


def follows_schedule(
    declared: Mapping[str, Any],
    at: NDArray[np.float64],
    values: NDArray[np.float64],
    tolerance: float,
    tick: NDArray[np.float64] | float = 1.0,
) -> NDArray[np.bool_]:
    """Which values are what the schedule gives at ``at`` or one ``tick`` before it; all, if it cannot be evaluated."""
    low, high = schedule_band(declared, at, tolerance, tick)
    near: NDArray[np.bool_] = ~((values < low) | (values > high))
    return near


def schedule_band(
    declared: Mapping[str, Any], at: NDArray[np.float64], tolerance: float, tick: NDArray[np.float64] | float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and largest value that :func:`follows_schedule` lets pass; NaN where any does.

    ``tolerance`` is relative to the value, and a tenth of it to the schedule's span, where values come near 0.
    """
    import numpy as np

    ticks = np.stack([at, at - tick])
    both = schedule_values(declared, ticks)
    goes_on = declared.get("kind") == "exponential" or declared.get("restarts")  # a decay by a factor has no end
    further = schedule_values(declared, ticks, held=False) if goes_on else both
    if both is None or further is None:
        nothing = np.full(at.shape, np.nan)
        return nothing, nothing
    now, before = both
    start = float(declared["start"])
    slack = tolerance * np.maximum(np.abs(now), 0.1 * max(abs(start), abs(float(declared.get("end", start)))))
    slack = np.where(np.isfinite(now), slack, np.nan)  # a declaration that overflows accuses nobody
    every = (now, before, *np.where(np.isfinite(further), further, now))
    return np.minimum.reduce(every) - slack, np.maximum.reduce(every) + slack


MOST: Final = 64
"""Schedules, clocks, splits and components that a rule follows: more of them is a log to be distrusted."""


def schedule_channel(name: str) -> str:
    """The channel that a declared schedule's values are recorded under."""
    return name if "/" in name else f"schedule/{name}"


OTHER_UNITS: Final = frozenset(
    ("epoch", "epochs", "samples", "sample", "tokens", "token", "images", "frames", "seconds")
)
"""Names of clocks that are known to count something else than optimiser steps."""


def clock_progress(
    declared: Mapping[str, Any],
    reading: NDArray[np.float64],
    applied: NDArray[np.float64],
    total_steps: float | None,
    steps: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """How far along its schedule a clock is, and how far it should be at ``applied``; fractions, float64 [rows].

    A clock that counts steps (``steps``: it was seen to) should read what ``applied`` reads. Of any other the unit is
    not known. It may be ahead: its schedule is short. It may come faster than steps, at a pace that changes. It is
    behind only where it comes slower than steps, by more than one tick of its own, and

    * its length is the run's length in steps, so that it was meant to count them, or
    * it comes along its own ``over_steps`` at less than ``PACE`` of the pace at which the run comes along
      ``total_steps``, and lags behind the steps as well.

    None where no length is known, or neither the run's length nor the unit.
    """
    import numpy as np

    over, begin = (_length(declared.get(name)) for name in ("over_steps", "begin"))
    over = over or total_steps or 0.0
    if over <= 0 or not (steps or total_steps):
        return None
    at, due = np.clip((reading - begin) / over, 0.0, 1.0), np.clip((applied - begin) / over, 0.0, 1.0)
    if steps or not total_steps:
        return at, due
    own, own_due = np.clip(reading / (begin + over), 0.0, 1.0), np.clip(applied / total_steps, 0.0, 1.0)
    meant = abs(begin + over - total_steps) <= 0.01 * total_steps
    behind = (reading + 1.0 < applied) & (own + 1.0 / (begin + over) < own_due * (1.0 if meant else PACE)) & (at < due)
    nearer = own_due - own < due - at
    return np.where(nearer, own, at), np.where(behind, np.where(nearer, own_due, due), np.where(nearer, own, at))


PACE: Final = 0.8  # of the pace that it needs to arrive: a clock of another unit that comes slower was meant for steps


def _length(value: Any) -> float:
    """A length in ticks; 0 if it is none."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e18
    return float(value) if known else 0.0

"""How figures are looked at: which steps, against what they are drawn, on which scale, and how smoothed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trainwatch.axis import Span

POINTS: Final = 300  # a plot is some 600 pixels wide: a minimum and a maximum for every fourth one


@dataclass(frozen=True)
class Look:
    """One look for all figures of a run. ``span`` are steps, first and last; None: the whole run.

    ``log`` is the scale of the y axis; None lets the values choose. ``smooth`` is the half-life of an exponential
    average in rows, 0 for none; the raw curve stays behind it, and what was declared is never smoothed. ``points`` is
    what is drawn of a curve at most; None: every one. ``log_x`` asks for a log axis across, and gets it unless
    something that is to be seen stands at 0 or less: then the axis is linear and says why.
    """

    span: Span | None = None
    against: str = "step"
    log: bool | None = None
    smooth: int = 0
    points: int | None = POINTS
    log_x: bool = False


WHOLE: Final = Look()

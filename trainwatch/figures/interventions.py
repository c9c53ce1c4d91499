"""Somebody laid a hand on the run: what was asked, by whom and at which step; in words, and as marks of a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainwatch.axis import Span
from trainwatch.figures import style
from trainwatch.figures.style import safe
from trainwatch.header import number, text
from trainwatch.run import Event, Run

MOST: Final = 40  # of a run: more would hide its curves
NEAR: Final = 1_000  # steps that a run may do before its first row
LONGEST: Final = 800  # characters that are told of one
DETAIL: Final = 200  # characters of one thing that is told of it
ASIDE: Final = frozenset(["kind", "event", "time", "elapsed", "step"])


@dataclass(frozen=True)
class Intervention:
    """One request; ``stop`` is whether it asks the run to end."""

    step: int
    said: str
    stop: bool


def interventions(run: Run) -> list[Intervention]:
    """The newest of a run's interventions, in the order in which they were written."""
    asked = [event for event in run.events if event.get("event") == "intervention"]
    return [Intervention(step_of(run, event), said(event), _stops(event)) for event in asked[-MOST:]]


def said(event: Event) -> str:
    """``stop asked by trainwatch watch --stop-on critical, for non-finite-loss (run): the loss became NaN.``"""
    if not _stops(event):
        told = ", ".join(f"{key} {str(value)[:DETAIL]}" for key, value in event.items() if key not in ASIDE and value)
        return told[:LONGEST] or "asked"
    by, why, rule, subject = (text(event.get(name)) or "" for name in ("by", "why", "rule", "subject"))
    found = f", for {rule}{f' ({subject})' if subject else ''}" if rule else ""
    return f"stop asked by {by or 'somebody'}{found}{f': {why}' if why else ''}"[:LONGEST]


def _stops(event: Event) -> bool:
    return event.get("action") == "stop"


def step_of(run: Run, event: Event) -> int:
    """The step that an event names; the run's last one where it names none that could be.

    A request may come a little after the last row, never twice as far on: such a step would squeeze every curve.
    """
    step, last = number(event.get("step")), run.last_step or 0
    return int(step) if step is not None and 0 <= step <= max(2 * last, NEAR) else last


def shown(run: Run, span: Span | None) -> list[Intervention]:
    """Those that lie in a span; None: all."""
    return [one for one in interventions(run) if span is None or span[0] <= one.step <= span[1]]


def lines(asked: Sequence[Intervention]) -> list[dict[str, Any]]:
    """A line down the plot at each step at which somebody asked for something."""
    drawn = {"color": style.GREY, "width": 1.4, "dash": "dashdot"}
    steps = dict.fromkeys(one.step for one in asked)
    return [{"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper", "line": drawn} for at in steps]


def marks(asked: Sequence[Intervention]) -> list[dict[str, Any]]:
    """A mark at the upper edge for each, an octagon where the run was asked to stop; hovering tells who and why."""
    told = [f"<b>intervention at step {one.step:,}</b><br>{safe(one.said, 70)}" for one in asked]
    symbols = ["octagon" if one.stop else "square" for one in asked]
    return style.edge_marks("interventions", [one.step for one in asked], told, symbols, style.GREY)

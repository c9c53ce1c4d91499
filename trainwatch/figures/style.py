"""What every figure looks like: colours that eyes with few colours tell apart, on a light page and on a dark one."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from typing import Any, Final

PALETTE: Final = ("#2f86d6", "#e0702a", "#119c84", "#c558a8", "#8a77e0", "#b0891f", "#4fa3c0", "#d0545f")
DASHES: Final = ("solid", "10px,2px", "4px,2px", "12px,3px,3px,3px")  # the second cue beside colour
GREY: Final = "#868e96"
TINY: Final = 1e-3
DECLARED: Final = "5px,4px"
SEVERITY_COLOURS: Final = {"info": "#4a90c2", "warning": "#d9820f", "critical": "#e03131"}
SEVERITY_SYMBOLS: Final = {"info": "circle", "warning": "triangle-down", "critical": "diamond"}
CODE_SYMBOLS: Final = {"nan": "x", "inf": "triangle-up", "-inf": "triangle-down"}

HOVER: Final = "%{y:.5g} at step %{x:,}<extra>%{fullData.name}</extra>"
HOVER_PLACED: Final = "%{y:.5g} at step %{customdata:,}<extra>%{fullData.name}</extra>"
AXIS: Final[dict[str, Any]] = {
    "gridcolor": "rgba(134,142,150,.22)",
    "zeroline": False,
    "automargin": True,
    "ticklabeloverflow": "allow",  # to measure each label would take half of the time that a zoom takes
}
LAYOUT: Final[dict[str, Any]] = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"color": GREY, "size": 12, "family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif"},
    "margin": {"l": 8, "r": 14, "t": 34, "b": 8},
    "legend": {
        "orientation": "h",
        "x": 0,
        "y": 1.03,
        "yanchor": "bottom",
        "traceorder": "normal",
        "font": {"size": 11},
    },
    "showlegend": True,
    "hovermode": "closest",
    "hoverdistance": 30,
    "hoverlabel": {"bgcolor": "#25292e", "bordercolor": "#25292e", "font": {"color": "#ffffff"}, "align": "left"},
    "dragmode": "zoom",
    "uirevision": "keep",
    "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
}


def line(index: int, width: float = 1.6) -> dict[str, Any]:
    """The line of the ``index``-th curve of a figure; no two of the first 32 are alike."""
    dash = DASHES[(index + index // len(PALETTE)) % len(DASHES)]
    return {"color": PALETTE[index % len(PALETTE)], "dash": dash, "width": width}


def solid(index: int, width: float = 1.8) -> dict[str, Any]:
    """What was observed, where a dashed line of the same colour stands for what was declared."""
    return {**line(index, width), "dash": "solid"}


def declared(index: int) -> dict[str, Any]:
    """What was declared."""
    return {**line(index, 1.4), "dash": DECLARED}


def axis(unit: str, log: bool, largest: float = 1.0) -> dict[str, Any]:
    """A y axis; where even the largest value is tiny, its ticks are powers of ten and not rows of zeros."""
    title = {"text": ", ".join(part for part in (safe(unit), "log" * log) if part)}
    if log:
        # more ticks would be every digit of a decade, and the upper ones would lie on each other
        return {**AXIS, "title": title, "tickformat": "~g", "type": "log", "nticks": 5}
    return {**AXIS, "title": title, **({"exponentformat": "e"} if largest < TINY else {"tickformat": "~g"})}


def edge_marks(
    name: str, steps: Sequence[int], told: Sequence[str], symbols: Sequence[str], colours: str | Sequence[str]
) -> list[dict[str, Any]]:
    """A trace of marks at the upper edge, one a step, whose hover tells what happened there; the last lies on top."""
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": list(steps),
        "y": [1.0] * len(steps),
        "yaxis": "y2",
        "hovertext": list(told),
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {"symbol": list(symbols), "color": colours, "size": 11},
        "name": name,
        "meta": name,
        "showlegend": False,
        "cliponaxis": False,
    }
    return [trace] if steps else []


def safe(text: str, width: int = 0) -> str:
    """Text for plotly, which renders some HTML: escaped, and broken into lines of ``width`` if that is not 0."""
    lines = textwrap.wrap(text, width) if width else [text]
    return "<br>".join(escape(line, quote=False) for line in lines)

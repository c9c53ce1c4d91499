"""A plotly figure -> what a static picture of it consists of, as plain data; the template writes it as SVG.

Across, everything is a fraction of the width and so fits any page; down, it is pixels. Curves lie in a view box of
their own that is stretched, with strokes that are not: text and marks keep their form on a telephone and on paper.
"""

from __future__ import annotations

import base64
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from trainwatch.figures.style import GREY

Floats = NDArray[np.float64]

ACROSS: Final = 1000  # units of the view box: a page is not wider in pixels
TALL, ROW = 230, 26  # pixels of a plot; of a row where each row has a name
MARKS: Final = 60  # of one curve that are shapes of their own; beyond, each is a stroke
LEVELS: Final = 20  # colours of a heat map
LETTER, NARROWEST, WIDEST = 6.6, 44, 185  # pixels that a letter takes; of the room left of a plot
NAME: Final = 40  # letters of a name in a legend or beside a row
SYMBOLS: Final = {
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "diamond": "M0-5.5L5 0L0 5.5L-5 0Z",
    "triangle-up": "M0-5L5 4H-5Z",
    "triangle-down": "M0 5L5-4H-5Z",
    "square": "M-4-4H4V4H-4Z",
    "octagon": "M-2-5H2L5-2V2L2 5H-2L-5 2V-2Z",
    "x": "M-4-4L4 4M4-4L-4 4",
    "line-ew-open": "M-4 0H4",
    "line-ns-open": "M0-5V5",
    "dot": "M-2.2 0a2.2 2.2 0 1 0 4.4 0a2.2 2.2 0 1 0-4.4 0",
}


@dataclass(frozen=True)
class Path:
    """A curve or an area in the stretched view box."""

    d: str
    stroke: str
    width: float = 1.6
    dash: str = ""
    fill: str = "none"
    opacity: float = 1.0


@dataclass(frozen=True)
class Mark:
    """A sign that keeps its form: ``x`` in percent, ``y`` in pixels."""

    x: float
    y: float
    shape: str
    colour: str
    title: str = ""


@dataclass(frozen=True)
class Label:
    """Text at a place; ``at`` is in percent across or in pixels down."""

    at: float
    text: str


@dataclass(frozen=True)
class Band:
    """A stretch from left to right, in percent."""

    left: float
    width: float
    fill: str
    text: str = ""


@dataclass(frozen=True)
class Key:
    """A line of the legend."""

    name: str
    colour: str
    dash: str


@dataclass(frozen=True)
class Drawing:
    """A whole picture. ``left`` is the room for labels beside it in pixels, ``unit`` what is told along the y axis."""

    height: int
    left: int
    unit: str
    across: str
    xticks: tuple[Label, ...]
    yticks: tuple[Label, ...]
    bands: tuple[Band, ...]
    lines: tuple[Band, ...]
    paths: tuple[Path, ...]
    marks: tuple[Mark, ...]
    keys: tuple[Key, ...]

    @property
    def weight(self) -> int:
        """About the bytes that it takes in a page."""
        return 2500 + sum(len(path.d) + 110 for path in self.paths) + sum(130 + len(mark.title) for mark in self.marks)


def drawing(figure: go.Figure) -> Drawing:
    """The static picture of one of ``trainwatch.figures``."""
    plain = figure.to_plotly_json()
    traces, layout = plain["data"], plain["layout"]
    return _Canvas(traces, layout).drawing()


class _Canvas:
    """The scales of one figure, and everything that is placed by them."""

    def __init__(self, traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> None:
        self.traces = [dict(trace) for trace in traces if trace.get("visible") != "legendonly"]
        self.layout = layout
        _stack(self.traces)
        self.xaxis, self.yaxis = layout.get("xaxis", {}), layout.get("yaxis", {})
        self.log = self.yaxis.get("type") == "log"
        self.rows = self._names()
        self.height = ROW * len(self.rows) if self.rows else TALL  # a row is as high as its cells, marks and name
        self.x = self._x_range()
        self.y = self._y_range()

    def drawing(self) -> Drawing:
        paths, marks = list[Path](), list[Mark]()
        for trace in self.traces:
            if trace.get("type") == "heatmap":
                paths += self._heat(trace)
            else:
                paths += self._curve(trace)
                strokes, signs = self._marks(trace)
                paths, marks = paths + strokes, marks + signs
        yticks = tuple(self._yticks())
        longest = max((len(tick.text) for tick in yticks), default=0)
        return Drawing(
            height=self.height,
            left=int(min(max(12 + LETTER * longest, NARROWEST), WIDEST)),
            unit=_plain(self.yaxis.get("title", {}).get("text", "")),
            across=_plain(self.xaxis.get("title", {}).get("text", "")),
            xticks=tuple(self._xticks()),
            yticks=yticks,
            bands=tuple(self._bands("rect")),
            lines=tuple(self._bands("line")),
            paths=tuple(paths),
            marks=tuple(marks),
            keys=tuple(_keys(self.traces)),
        )

    def _names(self) -> list[str]:
        """What the rows are called, where the figure has rows and no scale."""
        if "ticktext" in self.yaxis:
            return [_plain(name) for name in self.yaxis["ticktext"]]
        heat = next((trace for trace in self.traces if trace.get("type") == "heatmap"), None)
        return [_plain(name) for name in heat["y"]] if heat else []

    def _x_range(self) -> tuple[float, float]:
        given = self.xaxis.get("range")
        if given is None:
            every = np.concatenate([_numbers(trace.get("x", ())) for trace in self.traces] or [np.zeros(1)])
            every = every[np.isfinite(every)]
            given = (every.min(), every.max()) if len(every) else (0.0, 1.0)
        low, high = float(given[0]), float(given[1])
        return (low, high) if high > low else (low - 0.5, low + 0.5)

    def _y_range(self) -> tuple[float, float]:
        """Lower and upper edge, as logarithms on a log axis."""
        if self.rows:
            return len(self.rows) - 0.5, -0.5
        if self.yaxis.get("range") is not None:
            low, high = self.yaxis["range"]
            return float(low), float(high)
        seen = [self._scaled(_numbers(trace["y"])) for trace in self.traces if _on_scale(trace)]
        every = np.concatenate(seen) if seen else np.zeros(0)
        every = every[np.isfinite(every)]
        low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
        room = 0.06 * (high - low) or (0.3 if self.log else abs(high) * 0.1 or 1.0)
        return low - room, high + room

    def _scaled(self, values: Floats) -> Floats:
        if not self.log:
            return values
        with np.errstate(divide="ignore", invalid="ignore"):
            logs: Floats = np.log10(values)
        return logs

    def _across(self, x: Any) -> Floats:
        low, high = self.x
        return (_numbers(x) - low) / (high - low)

    def _down(self, trace: Mapping[str, Any]) -> Floats:
        """Pixels from the top."""
        if trace.get("yaxis") == "y2":
            return self.height * (1 - _numbers(trace["y"]))
        low, high = self.y
        return self.height * (1 - (self._scaled(_numbers(trace["y"])) - low) / (high - low))

    def _curve(self, trace: Mapping[str, Any]) -> Iterator[Path]:
        if "lines" not in trace.get("mode", "lines"):
            return
        line = trace.get("line", {})
        x, y = ACROSS * self._across(trace["x"]), self._down(trace)
        stairs = line.get("shape") == "hv"
        look = {
            "stroke": line.get("color", GREY),
            "width": float(line.get("width", 1.6)),
            "dash": _dashes(line.get("dash", "solid")),
            "opacity": float(trace.get("opacity") or 1.0),
        }
        if "floor" in trace:
            under = self._down({**trace, "y": trace["floor"]})
            around = _way(np.concatenate([x, x[::-1]]), np.concatenate([y, under[::-1]]), stairs=False)
            yield Path(around + "Z", "none", fill=trace["fillcolor"])
        if look["width"] and (way := _way(x, y, stairs=stairs)):
            yield Path(way, **look)

    def _marks(self, trace: Mapping[str, Any]) -> tuple[list[Path], list[Mark]]:
        """Signs of their own, or where there are too many to tell apart, strokes."""
        if "markers" not in trace.get("mode", "lines"):
            return [], []
        x, y = self._across(trace["x"]), self._down(trace)
        there = np.flatnonzero(np.isfinite(x) & np.isfinite(y) & (x >= 0) & (x <= 1))
        there = there[_first_of_each(x[there], y[there])]
        marker, line = trace.get("marker", {}), trace.get("line", {})
        if len(there) > MARKS:
            strokes = "".join(f"M{ACROSS * x[at]:.0f} {y[at] - 4:.0f}v8" for at in there)
            colour = marker.get("color", line.get("color", GREY))
            return [Path(strokes, colour if isinstance(colour, str) else GREY, 1.2)], []
        told = trace.get("hovertext")
        signs = []
        for at in there.tolist():
            symbol = _nth(marker.get("symbol", "dot"), at)
            colour = _nth(marker.get("color", line.get("color", GREY)), at)
            title = _plain(_nth(told, at)) if told is not None else ""
            signs.append(Mark(round(100 * float(x[at]), 2), round(float(y[at]), 1), SYMBOLS[symbol], colour, title))
        return [], signs

    def _heat(self, trace: Mapping[str, Any]) -> Iterator[Path]:
        """One path for each row and colour: neighbours of one colour are one rectangle."""
        edges = _edges(self._across(trace["x"]))
        low, high = float(trace["zmin"]), float(trace["zmax"])
        for row, values in enumerate(_numbers(trace["z"])):
            levels = np.where(
                np.isfinite(values), np.clip(np.nan_to_num((values - low) / (high - low)), 0, 1) * LEVELS, -1
            )
            levels = np.round(levels).astype(int)
            cuts = np.concatenate([[0], np.flatnonzero(np.diff(levels)) + 1, [len(levels)]])
            ways: dict[int, str] = {}
            for first, last in itertools.pairwise(cuts):
                left, right = ACROSS * edges[first], ACROSS * edges[last]
                box = f"M{left:.0f} {row * ROW + 2}H{right:.0f}V{(row + 1) * ROW - 2}H{left:.0f}Z"
                ways[int(levels[first])] = ways.get(int(levels[first]), "") + box
            for level, way in ways.items():
                if level >= 0:
                    yield Path(way, "none", fill=_colour(trace["colorscale"], level / LEVELS))

    def _bands(self, kind: str) -> Iterator[Band]:
        for shape in self.layout.get("shapes", ()):
            if shape["type"] != kind:
                continue
            left, right = np.clip(self._across([shape["x0"], shape["x1"]]), 0, 1)
            colour = shape["fillcolor"] if kind == "rect" else shape["line"]["color"]
            said = _plain(shape.get("label", {}).get("text", ""))
            # a telephone is half as wide as the page that the figure left room for
            said = said if len(said) <= 40 * (right - left) else ""
            yield Band(round(100 * float(left), 2), round(100 * float(right - left), 2), colour, said)

    def _xticks(self) -> Iterator[Label]:
        low, high = self.x
        for value in _nice(low, high, 5, whole=self.xaxis.get("tickformat") == ",d"):
            yield Label(round(100 * float(self._across([value])[0]), 2), _number(value))

    def _yticks(self) -> Iterator[Label]:
        if self.rows:
            for row, name in enumerate(self.rows):
                yield Label(ROW * (row + 0.5), _short(name, int((WIDEST - 12) / LETTER)))
            return
        low, high = self.y
        values = _decades(low, high) if self.log else [(value, value) for value in _nice(low, high, 5)]
        for place, value in values:
            yield Label(round(self.height * (1 - (place - low) / (high - low)), 1), _number(value))


def _stack(traces: list[dict[str, Any]]) -> None:
    """Areas on each other: each begins on the sum of those below."""
    below: Floats | None = None
    for trace in traces:
        if trace.get("stackgroup"):
            own = _numbers(trace["y"])
            floor = np.zeros(len(own)) if below is None or len(below) != len(own) else below
            trace["floor"], trace["y"] = floor, floor + own
            below = floor + own
    for under, trace in itertools.pairwise(traces):
        if trace.get("fill") == "tonexty":  # a band: it begins on the curve before it
            trace["floor"] = np.interp(_numbers(trace["x"]), _numbers(under["x"]), _numbers(under["y"]))


def _on_scale(trace: Mapping[str, Any]) -> bool:
    return trace.get("type") != "heatmap" and trace.get("yaxis") != "y2"


def _numbers(values: Any) -> Floats:
    """float64 [points], or [rows, cells] of a heat map; plotly packs arrays as base64."""
    if isinstance(values, Mapping):
        packed = np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"]).astype(np.float64)
        shape = values.get("shape")
        return packed.reshape([int(part) for part in shape.split(",")]) if shape else packed
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _nth(value: Any, at: int) -> Any:
    return value if isinstance(value, str) else value[at]


def _way(x: Floats, y: Floats, *, stairs: bool) -> str:
    """The commands of a path; a value that is missing parts it, and what falls on the same pixel is told once."""
    said, pen, last = list[str](), False, ("", "")
    for one, other in zip(np.clip(x, -ACROSS, 2 * ACROSS), y, strict=True):
        if not (math.isfinite(one) and math.isfinite(other)):
            pen = False
            continue
        at = (f"{one:.1f}".removesuffix(".0"), f"{other:.1f}".removesuffix(".0"))
        if not pen:
            said.append(f"M{at[0]} {at[1]}")
        elif stairs:
            said.append((f"H{at[0]}" if at[0] != last[0] else "") + (f"V{at[1]}" if at[1] != last[1] else ""))
        elif at != last:
            said.append(f"L{at[0]} {at[1]}")
        pen, last = True, at
    return "".join(said)


def _first_of_each(x: Floats, y: Floats) -> NDArray[np.int64]:
    """The two ends of a stretch of one step are one mark."""
    places = np.stack([np.round(x * ACROSS), np.round(y)], axis=1) if len(x) else np.zeros((0, 2))
    first: NDArray[np.int64] = np.sort(np.unique(places, axis=0, return_index=True)[1])
    return first


def _dashes(dash: str) -> str:
    named = {"solid": "", "dash": "6 4", "dot": "2 3"}
    return named.get(dash, dash.replace("px", "").replace(",", " "))


def _edges(middles: Floats) -> Floats:
    """Where the cells end whose middles these are."""
    if len(middles) < 2:
        return np.array([0.0, 1.0])
    inner = (middles[1:] + middles[:-1]) / 2
    edges: Floats = np.concatenate([[2 * middles[0] - inner[0]], inner, [2 * middles[-1] - inner[-1]]])
    return np.clip(edges, 0, 1)


def _colour(scale: Sequence[Sequence[Any]], at: float) -> str:
    places = [float(place) for place, _ in scale]
    parts = [[int(colour[start : start + 2], 16) for start in (1, 3, 5)] for _, colour in scale]
    mixed = [round(float(np.interp(at, places, [part[index] for part in parts]))) for index in range(3)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _nice(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round numbers between two ends."""
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [(first + index) * step for index in range(count + 2) if (first + index) * step <= high + 1e-9 * step]


def _decades(low: float, high: float) -> list[tuple[float, float]]:
    """Places (logarithms) and values of the ticks of a log axis."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    if last - first < 1:
        values = _nice(10.0**low, 10.0**high, 4)
        return [(math.log10(value), value) for value in values if value > 0]
    stride = -(-(last - first + 1) // 6)
    return [(float(power), 10.0**power) for power in range(first, last + 1, stride)]


def _number(value: float) -> str:
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        head, _, power = f"{value:.2e}".partition("e")
        return f"{float(head):g}e{int(power)}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.6g}"


def _keys(traces: Sequence[Mapping[str, Any]]) -> Iterator[Key]:
    for trace in traces:
        if trace.get("showlegend") is not False and trace.get("type") != "heatmap" and trace.get("name"):
            line = trace.get("line", {})
            name = _short(_plain(trace["name"]), NAME)
            yield Key(name, line.get("color", GREY), _dashes(line.get("dash", "solid")))


def _short(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _plain(text: Any) -> str:
    """Figures escape text for plotly, which renders some HTML; here it is plain until the template escapes it."""
    return unescape(re.sub(r"</?b>", "", str(text).replace("<br>", " ")))

"""A figure in the making: curves that are sampled for the eye, and beside them what no sampling may lose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from tsdownsample import NaNMinMaxLTTBDownsampler

from trainwatch.axis import Axis, Span, Steps, axis
from trainwatch.figures import interventions, style
from trainwatch.figures.look import POINTS, WHOLE, Look
from trainwatch.figures.style import safe
from trainwatch.run import Run
from trainwatch.schema import NONFINITE_NAMES, Finding
from trainwatch.table import Codes, Floats, Table

SERIES: Final = 12  # more lines than this are not told apart
MARKS: Final = 500  # edge marks that a screen can part
LETTERS: Final = 60  # of a stage's name that fit across half a page; one that would run into the next is its number
LEVEL: Final = 20  # a curve with fewer equal neighbours, one in so many, is noise and no staircase
LINES: Final = 100  # stages, and lines of findings: beyond, they would hide the curves
LOG_SPREAD: Final = 20.0  # from this ratio on, the smaller curve of a linear plot lies flat on its floor

Findings = Sequence[Finding]
Along = Callable[[Steps], Floats] | None


@dataclass
class Series:
    """Steps and values of one whole curve; ``bad`` names what is not finite, and at which steps."""

    steps: Steps
    values: Floats
    bad: list[tuple[str, Steps]] = field(default_factory=list)

    @classmethod
    def of(cls, table: Table, name: str, rows: NDArray[np.bool_] | None = None) -> Series:
        """The curve of a column, or of those of its rows that ``rows`` selects."""
        use = table.live if rows is None else table.live & rows
        return cls.from_rows(table, table[name], table.codes(name), use)

    @classmethod
    def from_rows(cls, table: Table, values: Floats, codes: Codes, use: NDArray[np.bool_]) -> Series:
        """The curve of values with their codes, one for each row of the table; copied only where rows are left out."""
        fine = use & np.isfinite(values)
        broken = [code for code in NONFINITE_NAMES if code and (codes == code).any()] if codes.any() else []
        bad = [(NONFINITE_NAMES[code], table.step[use & (codes == code)]) for code in broken]
        return cls(table.step, values, bad) if fine.all() else cls(table.step[fine], values[fine], bad)


@dataclass
class Plot:
    """Collects curves, edge marks and bands of one figure; :meth:`done` adds what every figure has."""

    run: Run
    findings: Findings
    look: Look = WHOLE
    log: bool = False
    free: bool = True  # whether the look may choose the scale
    curves: list[dict[str, Any]] = field(default_factory=list)
    edge: list[dict[str, Any]] = field(default_factory=list)
    shapes: list[dict[str, Any]] = field(default_factory=list)
    across: Axis | None = field(init=False)
    log_x: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.free and self.look.log is not None:
            self.log = self.look.log
        self.across = axis(self.run, self.look.against)
        self.log_x = self.look.log_x and self._leftmost() > 0

    @property
    def span(self) -> Span | None:
        """The steps that are asked for; None: all."""
        return self.look.span

    @property
    def reach(self) -> Span:
        """First and last step that the figure shows."""
        return self.span or (self.run.first_step or 0, self.run.last_step or 0)

    def _leftmost(self) -> float:
        """Where the first of all rows stands that the figure may show."""
        reached = [table.reach for table in (self.run.train, self.run.eval, self.run.sample)]
        first = self.span[0] if self.span else min((reach[0] for reach in reached if reach), default=0)
        return float(self.across.at(first)) if self.across else float(first)

    @property
    def along(self) -> Along:
        """Leads steps to where they stand on the screen, in any unit; None where they stand evenly."""
        return self._log_positions if self.log_x else None

    def _log_positions(self, steps: Any) -> Floats:
        positions = self.across.at(steps) if self.across else np.asarray(steps, dtype=np.float64)
        return np.log(np.maximum(positions, np.finfo(np.float64).tiny))

    def _width(self, first: int, last: int) -> float:
        """How far two steps stand apart, as a part of the figure's width."""
        low, high = self.reach
        if not self.log_x:
            return (last - first) / max(high - low, 1)
        start, stop, left, right = self._log_positions([first, last, low, high])
        return float((stop - start) / max(right - left, np.finfo(np.float64).tiny))

    def curve(self, series: Series, label: str, line: dict[str, Any], **more: Any) -> None:
        """What was observed, as smooth as the look asks, and at the edge what of it no curve can show."""
        if self.look.smooth and len(series.steps) > 2:
            faint = {**line, "width": 1, "dash": "solid"}
            self.plain(series, label, faint, opacity=0.3, showlegend=False, hoverinfo="skip", hovertemplate=None)
            series = Series(series.steps, smoothed(series.steps, series.values, self.look.smooth))
            label = f"{label}, smoothed over {self.look.smooth}"
        self.plain(series, label, line, **more)

    def plain(self, series: Series, label: str, line: dict[str, Any], **more: Any) -> None:
        """A curve as it stands: one that was declared, or stacked on others."""
        steps, values = series.steps, series.values
        if self.log:
            above = values > 0
            if not above.all():
                self.at_edge("0 or less, below any log axis", steps[~above], label, line["color"], "line-ew-open")
                steps, values = steps[above], values[above]
        x, y = sampled(steps, values, self.span, self.look.points, self.along)
        if len(x):
            trace = {"mode": "lines", "x": x, "y": y, "name": safe(label), "line": line}
            self.curves.append({"type": "scatter", **trace, "hovertemplate": style.HOVER, **more})
        self.bad(series, label, line["color"])

    def bad(self, series: Series, label: str, colour: str) -> None:
        """The values of a series that are not finite, each kind at the edge."""
        for name, steps in series.bad:
            self.at_edge(name, steps, label, colour, style.CODE_SYMBOLS[name])

    def at_edge(self, what: str, steps: Steps, label: str, colour: str, symbol: str, **more: Any) -> None:
        """Marks at the lower edge (or at ``y`` of the axis ``yaxis``): exact steps, whatever the sampling."""
        low, high = self.reach
        inside = np.sort(steps[(steps >= low) & (steps <= high)]) if self.span else np.sort(steps)
        stretches = _stretches(inside, self._parted(inside))
        height = more.pop("y", 0.025)
        texts = [_edge_text(label, what, stretch) for stretch in stretches]
        if stretches:
            x = [step for first, last, _ in stretches for step in (first, last, None)]
            y = [height, height, None] * len(stretches)
            trace = {"mode": "lines+markers", "x": x, "y": y, "yaxis": "y2", "name": safe(f"{label}: {what}")}
            self.edge.append({**trace, **_edge_style(colour, symbol, texts), **more})

    def _parted(self, steps: Steps) -> NDArray[np.bool_]:
        """Whether a screen parts each of these sorted steps from the one before it."""
        if self.look.points is None:
            return np.diff(steps) > 0
        low, high = self.reach
        if self.log_x:
            left, right = self._log_positions([low, high])
            return np.asarray(np.diff(self._log_positions(steps)) > (right - left) / MARKS)
        return np.diff(steps) > max(1, (high - low) // MARKS)

    def bands(self) -> None:
        """The declared curriculum's stages as alternating background, with their names."""
        curriculum = self.run.header.curriculum
        low, high = self.reach
        for index, stage in enumerate(curriculum.stages[:LINES] if curriculum else ()):
            first, last = max(step_at(self.run, stage.start), low), min(step_at(self.run, stage.end), high)
            if first < last:
                room = LETTERS * self._width(first, last)
                short = str(index + 1) if room >= 2 else ""
                self.shapes.append(_band(first, last, stage.name if len(stage.name) <= room else short, index))

    def _largest(self) -> float:
        """The largest magnitude on the plot; 1 where there is no number."""
        sizes = [np.abs(curve["y"]).max() for curve in self.curves if curve["type"] == "scatter" and len(curve["y"])]
        return float(max(sizes, default=1.0))

    def done(self, unit: str) -> go.Figure | None:
        """The figure, or None if there is nothing on it."""
        if not (self.curves or self.edge):
            return None
        marks = [one for one in self.findings if self.span is None or self.span[0] <= one.first_step <= self.span[1]]
        if self.log_x:  # what is wrong with a header is so from step 0 on, which has no place here
            marks = [replace(one, first_step=max(one.first_step, self.reach[0])) for one in marks]
        asked = interventions.shown(self.run, self.span)
        if self.log_x:
            asked = [replace(one, step=max(one.step, self.reach[0])) for one in asked]
        shapes = self.shapes + interventions.lines(asked) + _finding_lines(marks)
        layout = {**style.LAYOUT, "shapes": shapes}
        layout["yaxis"] = style.axis(unit, self.log, self._largest())
        layout["xaxis"] = _x_axis(self.span, self.reach, self.across)
        if self.look.log_x:
            layout["xaxis"] = log_across(layout["xaxis"], self._leftmost())
        traces = self.curves + self.edge + interventions.marks(asked) + _finding_marks(marks)
        if self.across:
            traces, layout["shapes"] = placed(traces, self.across), _shapes_placed(shapes, self.across)
        return bare(go.Figure({"data": traces, "layout": layout}))


def blank(words: str, span: Span | None, across: Axis | None = None) -> go.Figure:
    """A plot without a curve, and why."""
    told = {"text": safe(words), "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
    axes = {"xaxis": _x_axis(span, span, across), "yaxis": {"visible": False}}
    return bare(go.Figure({"data": [], "layout": {**style.LAYOUT, **axes, "annotations": [told]}}))


def bare(figure: go.Figure) -> go.Figure:
    """The figure without plotly's own look."""
    figure.layout.template = None  # plotly's default look would add 7 kB to every update of a page
    return figure


def _x_axis(span: Span | None, reach: Span | None, across: Axis | None) -> dict[str, Any]:
    # another span is another axis to plotly, and replaces the range that a hand had zoomed to; the y axis keeps it
    title = across.title if across else "step"
    shown = {**style.AXIS, "title": {"text": title}, "uirevision": f"{title} {span}"}
    if not across:
        shown["tickformat"] = ",d"
    if not reach or reach[0] >= reach[1]:
        return shown
    return {**shown, "range": across.at(reach).tolist() if across else list(reach)}


def log_across(shown: dict[str, Any], least: float) -> dict[str, Any]:
    """The x axis on a log scale; as it is, with the reason in its title, where ``least`` would be lost there."""
    title = shown["title"]["text"]
    if least <= 0:
        return {**shown, "title": {"text": f"{title}<br>(linear: a log axis would lose {least:g})"}}
    logged = {
        **shown,
        "title": {"text": f"{title}, log"},
        "type": "log",
        "nticks": 8,
        "uirevision": f"{shown['uirevision']} log",
    }
    return {**logged, **({"range": np.log10(shown["range"]).tolist()} if "range" in shown else {})}


def placed(traces: list[dict[str, Any]], across: Axis) -> list[dict[str, Any]]:
    """The traces at another axis' positions; hovering still tells the step."""
    moved = []
    for trace in traces:
        steps = np.array([np.nan if step is None else step for step in trace["x"]], dtype=np.float64)
        more = {"customdata": trace["x"], "hovertemplate": style.HOVER_PLACED} if _says_step(trace) else {}
        moved.append({**trace, "x": across.at(steps).astype(np.float32), **more})  # a NaN parts lines as None does
    return moved


def _says_step(trace: dict[str, Any]) -> bool:
    return trace.get("hovertemplate") == style.HOVER


def _shapes_placed(shapes: list[dict[str, Any]], across: Axis) -> list[dict[str, Any]]:
    ends = [across.at([shape["x0"], shape["x1"]]).tolist() for shape in shapes]
    return [{**shape, "x0": first, "x1": last} for shape, (first, last) in zip(shapes, ends, strict=True)]


def smoothed(steps: Steps, values: Floats, half_life: int) -> Floats:
    """An exponential average that looks back only, without the pull of its first value; float64 [rows]."""
    ordered = np.argsort(steps, kind="stable")
    averaged = pd.Series(values[ordered]).ewm(halflife=half_life).mean().to_numpy()
    back = np.empty_like(averaged)
    back[ordered] = averaged
    return back


def sampled(
    steps: Steps, values: Floats, span: Span | None, points: int | None = POINTS, along: Along = None
) -> tuple[Steps, Any]:
    """What is drawn of a curve: its part in ``span`` with a neighbour on each side, extremes kept.

    ``along`` leads steps to where they stand on the screen, so that each part of it gets its points.
    """
    if (steps[1:] < steps[:-1]).any():
        order = np.argsort(steps, kind="stable")
        steps, values = steps[order], values[order]
    if span is not None:
        first = max(int(np.searchsorted(steps, span[0])) - 1, 0)
        last = int(np.searchsorted(steps, span[1], side="right")) + 1
        steps, values = steps[first:last], values[first:last]
    if points is not None and len(steps) > points:
        # what lies on a level between two equals draws nothing: a staircase keeps its exact steps
        level = values[1:] == values[:-1]
        if np.count_nonzero(level) > len(level) // LEVEL:
            corner = ~(np.append(level, False) & np.append(False, level))
            steps, values = steps[corner], values[corner]
    if points is not None and len(steps) > points:
        across = np.ascontiguousarray(along(steps) if along else steps)
        kept = NaNMinMaxLTTBDownsampler().downsample(across, np.ascontiguousarray(values), n_out=points)
        steps, values = steps[kept], values[kept]
    return _small(steps), _light(values)


def _small(steps: Steps) -> Any:
    """Half the bytes on the way to the browser, where they fit."""
    return steps.astype(np.int32) if not len(steps) or steps.max() < 2**31 else steps.astype(np.float64)


def _light(values: Floats) -> Any:
    """Half the bytes of values as well, unless one is beyond what single precision holds."""
    with np.errstate(over="ignore"):
        light = values.astype(np.float32)
    return light if np.array_equal(np.isfinite(light), np.isfinite(values)) else values


def step_at(run: Run, applied: float) -> int:
    """The step at which the applied step reaches ``applied``; beyond the last row, counted on from there."""
    steps, at = run.train.curve("applied")
    if not len(steps):
        return int(min(applied, 2**53))
    row = int(np.searchsorted(np.maximum.accumulate(at), applied))
    return int(steps[row]) if row < len(steps) else int(min(steps[-1] + applied - at[-1], 2**53))


def family(table: Table, *prefixes: str) -> list[str]:
    """Channels that begin with one of the prefixes; if too many, those that hold a non-finite value come first."""
    names = [name for name in table.channels if name.startswith(prefixes)]
    broken = set(table.nonfinite_channels())
    return names if len(names) <= SERIES else sorted(names, key=lambda name: name not in broken)[:SERIES]


def each(run: Run, findings: Findings, look: Look, prefix: str, unit: str) -> go.Figure | None:
    """A curve for each channel of training with this prefix, on a log axis; None if there is none."""
    plot = Plot(run, findings, look, log=True)
    for index, name in enumerate(family(run.train, prefix)):
        plot.curve(Series.of(run.train, name), name.removeprefix(prefix), style.line(index))
    return plot.done(unit)


def far_apart(series: Iterable[Series]) -> bool:
    """Whether curves that are all positive differ so much that only a log axis shows them together."""
    values = [one.values for one in series if len(one.values)]
    low, high = min((part.min() for part in values), default=0.0), max((part.max() for part in values), default=0.0)
    return bool(low > 0 and high > LOG_SPREAD * low)


def _stretches(steps: Steps, parted: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Sorted steps as (first, last, count): only what no screen can part is joined, and its ends stay exact."""
    if not len(steps):
        return []
    cuts = np.flatnonzero(parted) + 1
    firsts, lasts = np.concatenate(([0], cuts)), np.concatenate((cuts, [len(steps)])) - 1
    return [(int(steps[a]), int(steps[b]), int(b - a + 1)) for a, b in zip(firsts, lasts, strict=True)]


def _edge_text(label: str, what: str, stretch: tuple[int, int, int]) -> str:
    first, last, count = stretch
    where = f"at step {first:,}" if first == last else f"in {count:,} steps from {first:,} to {last:,}"
    return safe(f"{label}: {what} {where}", 70)


def _edge_style(colour: str, symbol: str, texts: list[str]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "hovertext": [part for text in texts for part in (text, text, "")],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {"symbol": symbol, "size": 9, "color": colour, "line": {"width": 1.5, "color": colour}},
        "line": {"color": colour, "width": 2},
        "meta": "edge",
        "showlegend": False,
        "cliponaxis": False,
    }


def _whole_height(first: int, last: int) -> dict[str, Any]:
    return {"x0": first, "x1": last, "y0": 0, "y1": 1, "yref": "paper"}


def _band(first: int, last: int, name: str, index: int) -> dict[str, Any]:
    return {
        "type": "rect",
        "layer": "below",
        **_whole_height(first, last),
        "line": {"width": 0},
        "fillcolor": f"rgba(134,142,150,{0.14 if index % 2 else 0.05})",
        "label": {"text": safe(name), "textposition": "top left", "font": {"size": 10, "color": style.GREY}},
    }


def _finding_lines(findings: list[Finding]) -> list[dict[str, Any]]:
    """A line down the plot for every step at which something began that is no mere info."""
    worst = {one.first_step: one.severity for one in sorted(findings, key=lambda one: one.rank) if one.rank}
    return [
        {
            "type": "line",
            **_whole_height(step, step),
            "line": {"color": style.SEVERITY_COLOURS[severity], "width": 1, "dash": "dot"},
        }
        for step, severity in list(worst.items())[-LINES:]
    ]


def _finding_marks(findings: list[Finding]) -> list[dict[str, Any]]:
    """A mark at the upper edge for every finding; hovering tells its message. The gravest is drawn last, on top."""
    findings = sorted(findings, key=lambda one: one.rank)
    told = [f"<b>{one.severity}: {safe(one.rule)}</b><br>{safe(one.message, 70)}" for one in findings]
    symbols = [style.SEVERITY_SYMBOLS[one.severity] for one in findings]
    colours = [style.SEVERITY_COLOURS[one.severity] for one in findings]
    return style.edge_marks("findings", [one.first_step for one in findings], told, symbols, colours)

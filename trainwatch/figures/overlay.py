"""One channel of several runs in one figure: laid over each other, as differences to one of them, or as mean and band.

What holds for every figure holds here. Each run's steps are drawn at its own positions on the common axis, and are
sampled by themselves; what is not finite stands at its exact step, in the colour of its run. A difference, or a mean of
several runs, takes the other runs' values between their rows on a straight line, never beyond a run's ends and never
across a value that is not finite: there it has none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from trainwatch.axis import Axis, Steps, axes
from trainwatch.figures import style
from trainwatch.figures.health import splits
from trainwatch.figures.look import POINTS, Look
from trainwatch.figures.plot import Plot, Series, bare, far_apart, log_across, placed
from trainwatch.figures.style import safe
from trainwatch.run import Run
from trainwatch.table import Floats

LEGEND: Final = 8  # runs: the names of more would cover the curves
POINTS_IN_ALL: Final = 3000  # of all curves of a figure: what a page takes in with every update
FEWEST_POINTS: Final = 120
FEW: Final = 100  # rows that are shown as such

USUAL: Final = {
    "Losses": (("loss", "loss/"), 9),
    "Gradients and learning rate": (("grad_norm", "lr/"), 5),
    "Evaluation": (("loss", "loss/", "metric/"), 8),
}
"""What is overlaid unasked where two runs have it: channels and families of them, and how many at most."""

Ends = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """From ``step`` on, run number ``run`` parts from the baseline; the ``first`` of all partings is named."""

    run: int
    step: int
    text: str
    first: bool = False


@dataclass(frozen=True)
class Overlay:
    """How runs are laid over each other. ``ends`` are positions on the axis; None: all of it.

    ``difference`` draws each curve less that of run number ``baseline``; the runs of a group are drawn as their mean,
    with a band from the least to the most of them.
    """

    against: str = "step"
    ends: Ends | None = None
    log: bool | None = None
    smooth: int = 0
    baseline: int = 0
    difference: bool = False
    groups: tuple[tuple[int, ...], ...] = ()
    log_x: bool = False


@dataclass
class _Line:
    """A curve to be: where it stands on the common axis, and the least and most of what it is the mean of."""

    members: tuple[int, ...]
    label: str
    run: Run
    across: Axis | None
    series: Series
    band: tuple[Floats, Floats] | None = None

    @property
    def index(self) -> int:
        """The number of its (first) run, which gives it colour and dash."""
        return self.members[0]

    @property
    def positions(self) -> Floats:
        """Where the values stand; float64 [rows]"""
        return _at(self.across, self.series.steps)

    def value(self, positions: Floats) -> Floats:
        """The curve at other positions; NaN beyond its ends and beside what was not finite. float64 [positions]"""
        broken = [steps for _, steps in self.series.bad]
        where = np.concatenate([self.positions, *(_at(self.across, steps) for steps in broken)])
        values = np.concatenate([self.series.values, np.full(len(where) - len(self.series.values), np.nan)])
        if not len(where):
            return np.full(len(positions), np.nan)
        order = np.argsort(where, kind="stable")
        found: Floats = np.interp(positions, where[order], values[order], left=np.nan, right=np.nan)
        return found


def channels(run: Run) -> list[str]:
    """What can be overlaid of a run: the columns of its steps, and of each evaluated split (``valid loss``)."""
    named = [f"{split} {name}".strip() for split in splits(run) for name in run.eval.channels]
    return list(dict.fromkeys([*run.train.channels, *named]))


def having(runs: Sequence[Run]) -> dict[str, tuple[int, ...]]:
    """Every channel that can be overlaid, and which runs have it."""
    where: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        for name in channels(run):
            where.setdefault(name, []).append(index)
    return {name: tuple(have) for name, have in where.items()}


def evaluated(where: Iterable[str], runs: Sequence[Run]) -> frozenset[str]:
    """The channels that no run has in its steps, but in an evaluation."""
    return frozenset(name for name in where if not any(name in run.train for run in runs))


def usual(where: Mapping[str, Sequence[int]], from_evaluation: frozenset[str]) -> dict[str, list[str]]:
    """The channels that are overlaid unasked, under what they belong to."""
    common = [name for name, runs in where.items() if len(runs) > 1]
    found = {}
    for head, (wanted, most) in USUAL.items():
        own = [name for name in common if (name in from_evaluation) == (head == "Evaluation")]
        named = [name for name in own if _family(name.rpartition(" ")[2]) in wanted]
        found[head] = sorted(named, key=lambda name: name not in wanted)[:most]
    return found


def _family(name: str) -> str:
    head, slash, _ = name.partition("/")
    return head + slash


def series(run: Run, channel: str) -> Series | None:
    """The curve that :func:`channels` calls so; None if the run has no such channel, or nothing in it."""
    found = None
    if channel in run.train:
        found = Series.of(run.train, channel)
    else:
        for split, rows in splits(run).items():
            name = channel.removeprefix(f"{split} ") if split else channel
            if (split == "" or name != channel) and name in run.eval:
                found = Series.of(run.eval, name, rows)
    return found if found and (len(found.steps) or found.bad) else None


def _at(across: Axis | None, steps: Steps) -> Floats:
    return across.at(steps) if across else np.asarray(steps, dtype=np.float64)


def overlay(
    channel: str, runs: Sequence[Run], labels: Sequence[str], how: Overlay, marks: Sequence[Mark] = ()
) -> go.Figure | None:
    """The figure of a channel; a run without it, or without the axis, is not on it. None if no run is."""
    single = _single(channel, runs, labels, how)
    lines = _grouped(single, how.groups)
    base = next((one for one in lines if how.baseline in one.members), None)
    if how.difference:
        if base is None:
            return None
        lines = [_less(one, base) for one in lines if one is not base or one.band]
    chosen = far_apart([one.series for one in lines]) if how.log is None else how.log
    least = _least(single, how.ends)
    log_x = how.log_x and least > 0
    look = Look(log=chosen and not how.difference, smooth=how.smooth, points=_points(len(lines)), log_x=log_x)
    traces = [trace for one in lines for trace in _traces(one, how.ends, look)]
    for one in single:
        if not any(one.index == line.index and not line.band for line in lines):  # in a mean, or the zero line itself
            traces += _broken(one, how.ends, look)
    reach = _reach(single, how.ends)
    if base and how.difference and not base.band:
        traces.insert(0, _zero(base, reach))
    if not traces:
        return None
    parted = _placed_marks(marks, single) if how.baseline in {one.index for one in single} else []
    unit = f"less {base.label}" if base and how.difference else channel
    layout: dict[str, Any] = {
        "xaxis": _x_axis(single, how, reach, least),
        "shapes": [_parting_line(mark, at) for mark, at in parted],
    }
    layout["yaxis"] = {**style.axis(unit, bool(look.log)), "uirevision": safe(f"{unit} {look.log}")}
    named = sum(bool(trace.get("showlegend", True)) for trace in traces)
    traces += _parting_marks(parted)
    return bare(go.Figure({"data": traces, "layout": {**style.LAYOUT, **layout, "showlegend": named <= LEGEND}}))


def _single(channel: str, runs: Sequence[Run], labels: Sequence[str], how: Overlay) -> list[_Line]:
    """A line for each run that has the channel and tells the axis."""
    lines = []
    for index, across in enumerate(axes(runs, how.against)):
        found = series(runs[index], channel) if across or how.against == "step" else None
        if found is not None:
            lines.append(_Line((index,), labels[index], runs[index], across, found))
    return lines


def _grouped(lines: list[_Line], groups: tuple[tuple[int, ...], ...]) -> list[_Line]:
    """The lines, those of a group as one: their mean at the rows of its first, where all of them have a value."""
    left = {line.index: line for line in lines}
    found = []
    for group in groups:
        members = [left.pop(index) for index in group if index in left]
        found += [_mean(members)] if len(members) > 1 else members
    return sorted([*found, *left.values()], key=lambda line: line.index)


def _mean(members: list[_Line]) -> _Line:
    first = members[0]
    at = first.positions
    values = np.stack([one.value(at) for one in members])
    there = np.isfinite(values).all(axis=0)
    values, steps = values[:, there], first.series.steps[there]
    band = values.min(axis=0), values.max(axis=0)
    indices = tuple(one.index for one in members)
    label = f"mean of {len(members)}, as {first.label}"
    return _Line(indices, label, first.run, first.across, Series(steps, values.mean(axis=0)), band)


def _less(line: _Line, base: _Line) -> _Line:
    """The line as a difference to the baseline's; without the rows at which that has no value."""
    under = base.value(line.positions)
    there = np.isfinite(under)
    kept = Series(line.series.steps[there], (line.series.values - under)[there], line.series.bad)
    band = ((line.band[0] - under)[there], (line.band[1] - under)[there]) if line.band else None
    return replace(line, series=kept, band=band)


def _points(lines: int) -> int:
    return min(POINTS, max(FEWEST_POINTS, POINTS_IN_ALL // max(lines, 1)))


def _plot(line: _Line, ends: Ends | None, look: Look) -> Plot:
    """A plot of the line's own run, over those of its steps that are asked for."""
    span = None
    if ends:
        span = line.across.span(*ends) if line.across else (math.floor(ends[0]), math.ceil(ends[1]))
    return Plot(line.run, (), replace(look, span=span))


def _traces(line: _Line, ends: Ends | None, look: Look) -> list[dict[str, Any]]:
    """A line as plotly draws it, at its positions on the common axis."""
    plot = _plot(line, ends, look)
    drawn = style.line(line.index)
    if line.band:
        quiet = {"showlegend": False, "hoverinfo": "skip", "hovertemplate": None}
        fill = {"fill": "tonexty", "fillcolor": _faint(drawn["color"])}
        for values, more in zip(line.band, ({}, fill), strict=True):
            edge = Series(line.series.steps, values)
            plot.plain(edge, f"{line.label}, least and most", {**drawn, "width": 0}, **quiet, **more)
    few = {"mode": "lines+markers", "marker": {"size": 5}} if len(line.series.steps) <= FEW else {}
    plot.curve(line.series, line.label, drawn, **few)
    return _moved(plot, line.across)


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},.18)"


def _broken(line: _Line, ends: Ends | None, look: Look) -> list[dict[str, Any]]:
    """What of a run is not finite, where its own curve is not drawn."""
    plot = _plot(line, ends, look)
    plot.bad(line.series, line.label, style.line(line.index)["color"])
    return _moved(plot, line.across)


def _moved(plot: Plot, across: Axis | None) -> list[dict[str, Any]]:
    traces = plot.curves + plot.edge
    return placed(traces, across) if across else traces


def _zero(base: _Line, reach: Ends) -> dict[str, Any]:
    line = {"color": style.line(base.index)["color"], "width": 1.2, "dash": style.DECLARED}
    named = {"name": safe(f"{base.label} (baseline)"), "hoverinfo": "skip"}
    return {"type": "scatter", "mode": "lines", "x": list(reach), "y": [0.0, 0.0], "line": line, **named}


def _reach(lines: list[_Line], ends: Ends | None) -> Ends:
    """The positions that the figure shows: what is asked for, else from the first row of all to the last."""
    if ends:
        return ends
    found = [_at(one.across, np.array([one.run.first_step or 0, one.run.last_step or 0])) for one in lines]
    return min((float(one[0]) for one in found), default=0.0), max((float(one[1]) for one in found), default=0.0)


def _least(lines: list[_Line], ends: Ends | None) -> float:
    """The position of the first row that is drawn."""
    if ends:
        return ends[0]
    first = [_at(one.across, np.array([one.run.first_step or 0])) for one in lines]
    found = [_at(one.across, np.array([part.min()])) for one in lines for part in _drawn(one.series)]
    return min((float(one[0]) for one in [*first, *found]), default=0.0)


def _drawn(series: Series) -> list[Steps]:
    return [steps for steps in (series.steps, *(steps for _, steps in series.bad)) if len(steps)]


def _placed_marks(marks: Sequence[Mark], lines: list[_Line]) -> list[tuple[Mark, float]]:
    """The partings of runs that are on the figure, each at its place."""
    across = {one.index: one.across for one in lines}
    there = [mark for mark in marks if mark.run in across]
    return [(mark, float(_at(across[mark.run], np.array([mark.step]))[0])) for mark in there]


def _x_axis(lines: list[_Line], how: Overlay, reach: Ends, least: float) -> dict[str, Any]:
    title = next((one.across.title for one in lines if one.across), how.against)
    # another range is another axis to plotly, and replaces the one that a hand had zoomed to
    across: dict[str, Any] = {**style.AXIS, "title": {"text": title}, "uirevision": f"{title} {how.ends}"}
    across |= {"tickformat": ",d"} if how.against == "step" else {}
    across |= {"range": list(reach)} if reach[0] < reach[1] else {}
    return log_across(across, least) if how.log_x else across


def _parting_line(mark: Mark, at: float) -> dict[str, Any]:
    """A line down the plot; that of the first parting is heavier, and says so."""
    line = {"color": style.line(mark.run)["color"], "width": 2 if mark.first else 1, "dash": "dot"}
    shape: dict[str, Any] = {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper", "line": line}
    if mark.first:
        where = {"textposition": "end", "textangle": 0, "xanchor": "left", "yanchor": "top", "padding": 4}
        shape["label"] = {"text": "first to part", "font": {"size": 11, "color": style.GREY}, **where}
    return shape


def _parting_marks(marks: list[tuple[Mark, float]]) -> list[dict[str, Any]]:
    """A mark at the upper edge for each parting; hovering tells it."""
    if not marks:
        return []
    colours = [style.line(mark.run)["color"] for mark, _ in marks]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [at for _, at in marks],
            "y": [1.0] * len(marks),
            "yaxis": "y2",
            "hovertext": [safe(mark.text, 70) for mark, _ in marks],
            "hovertemplate": "%{hovertext}<extra></extra>",
            "marker": {"symbol": "diamond", "size": 11, "color": colours},
            "name": "partings",
            "meta": "partings",
            "showlegend": False,
            "cliponaxis": False,
        }
    ]

"""What each loss component is, weighs, and takes of the gradient; and how large the gradient is."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from trainwatch.axis import Span
from trainwatch.figures import style
from trainwatch.figures.look import WHOLE, Look
from trainwatch.figures.plot import SERIES, Findings, Plot, Series, family, far_apart, sampled
from trainwatch.figures.style import safe
from trainwatch.run import Run

CELLS: Final = 160  # of a heat map across: some four pixels each
HEAT: Final[dict[str, Any]] = {  # orange to violet: no eye confuses them
    "type": "heatmap",
    "zmin": -1,
    "zmax": 1,
    "colorscale": [
        [0, "#b35806"],
        [0.25, "#f1a340"],
        [0.5, "#d8dadd"],
        [0.75, "#998ec3"],
        [1, "#542788"],
    ],  # no red-green
    "colorbar": {"thickness": 8, "len": 0.9, "outlinewidth": 0, "tickvals": [-1, 0, 1]},
    "hovertemplate": "%{y}: cosine %{z:.2f} around step %{x:,.0f}<extra></extra>",
    "hoverongaps": False,
}


def components(run: Run) -> list[tuple[int, str]]:
    """The components that a figure shows; the number gives each its colour in every figure."""
    return list(enumerate(run.components()))[:SERIES]


def loss(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """Each component's raw loss in its own unit, and the weighted sum."""
    named = [(index, name, Series.of(run.train, f"loss/{name}")) for index, name in components(run)]
    total = Series.of(run.train, "loss")
    plot = Plot(run, findings, look, far_apart([total, *(series for _, _, series in named)]))
    plot.bands()
    plot.curve(total, "loss (weighted sum)", {"color": style.GREY, "width": 1.2, "dash": "solid"})
    for index, name, series in named:
        plot.curve(series, _with_unit(run, name), style.line(index))
    return plot.done("raw loss")


def _with_unit(run: Run, name: str) -> str:
    declared = run.header.components.get(name)
    return f"{name} [{declared.unit}]" if declared and declared.unit else name


def contribution(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """Weight x raw: what each component adds to the loss that is differentiated."""
    plot = Plot(run, findings, look, log=True)
    plot.bands()
    for index, name in components(run):
        if f"weight/{name}" in run.train and f"loss/{name}" in run.train:
            plot.curve(_contribution(run, name), name, style.line(index))
    return plot.done("weight x raw loss")


def _contribution(run: Run, name: str) -> Series:
    table = run.train
    values = table[f"loss/{name}"] * table[f"weight/{name}"]
    codes = np.maximum(table.codes(f"loss/{name}"), table.codes(f"weight/{name}"))
    return Series.from_rows(table, values, codes, table.live)


def gradient_share(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """Each component's share of the gradient, stacked to 1."""
    named = [(index, name) for index, name in components(run) if f"grad_share/{name}" in run.train]
    plot = Plot(run, findings, look, free=False)
    columns = [run.train[f"grad_share/{name}"] for _, name in named]
    # one set of steps for all areas, or they would not stack; an absent share is a component at weight 0
    any_share = run.train.live & np.logical_or.reduce([np.isfinite(column) for column in columns], initial=False)
    broken = np.logical_or.reduce([run.train.codes(f"grad_share/{name}") > 0 for _, name in named], initial=False)
    rows = np.flatnonzero(any_share & ~broken)
    shares = {name: (index, np.nan_to_num(column[rows])) for (index, name), column in zip(named, columns, strict=True)}
    _stack(plot, run.train.step[rows], shares)
    for index, name in named:
        plot.bad(Series.of(run.train, f"grad_share/{name}"), name, style.line(index)["color"])
    return _to_one(plot.done("share of the gradient"))


def _stack(plot: Plot, steps: np.ndarray, shares: dict[str, tuple[int, np.ndarray]]) -> None:
    """Areas on each other; each name with the index of its colour and its share of each step."""
    kept = _common(steps, [share for _, share in shares.values()], plot)
    for name, (index, share) in shares.items():
        fill = {"stackgroup": "share", "fillcolor": _translucent(style.PALETTE[index % len(style.PALETTE)])}
        plot.plain(Series(steps[kept], share[kept]), name, style.line(index, 1.0), **fill)


def _near(steps: np.ndarray, span: Span | None) -> slice:
    """The stretch of rows that holds every step of the span, and a neighbour on each side."""
    if span is None:
        return slice(None)
    inside = np.flatnonzero((steps >= span[0]) & (steps <= span[1]))
    return slice(max(int(inside[0]) - 1, 0), int(inside[-1]) + 2) if len(inside) else slice(None)


def _to_one(figure: go.Figure | None) -> go.Figure | None:
    return figure.update_yaxes(range=[0, 1], selector={"overlaying": None}) if figure else None


def _common(steps: np.ndarray, shares: list[np.ndarray], plot: Plot) -> np.ndarray:
    """Rows at which every area is drawn: each one's extremes, together as many as one curve has points."""
    points = max(plot.look.points // max(len(shares), 1), 50) if plot.look.points else None
    drawn = [sampled(steps, share, plot.span, points, plot.along)[0] for share in shares]
    kept = [np.searchsorted(steps, one) for one in drawn]
    return np.unique(np.concatenate(kept)) if kept else np.zeros(0, dtype=np.int64)


def _translucent(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},.45)"


def loss_share(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """Each component's share of the loss that is differentiated, by magnitude, stacked to 1."""
    named = [(index, name) for index, name in components(run) if f"weight/{name}" in run.train]
    parts = {name: _contribution(run, name) for _, name in named if f"loss/{name}" in run.train}
    if len(parts) < 2:
        return None
    at = _near(run.train.step, look.span)
    columns = [run.train[f"loss/{name}"][at] * run.train[f"weight/{name}"][at] for name in parts]
    rows = np.nan_to_num(np.abs(np.stack(columns)), copy=False)
    broken = np.logical_or.reduce(
        [run.train.codes(f"{kind}/{name}")[at] > 0 for name in parts for kind in ("loss", "weight")]
    )
    sums = rows.sum(axis=0)
    whole = run.train.live[at] & ~broken & (sums > 0)
    shares = rows[:, whole] / sums[whole]
    plot = Plot(run, findings, look, free=False)
    colours = {name: index for index, name in named}
    _stack(
        plot,
        run.train.step[at][whole],
        {name: (colours[name], share) for name, share in zip(parts, shares, strict=True)},
    )
    for name, part in parts.items():
        plot.bad(part, name, style.line(colours[name])["color"])
    return _to_one(plot.done("share of the loss"))


def gradient_cosine(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """How far the components' gradients agree: 1 the same direction, -1 against each other."""
    names = family(run.train, "grad_cosine/", "param_cosine/")
    known = [name for name in names if np.isfinite(run.train[name][run.train.live]).any()]
    plot = Plot(run, findings, look, free=False)
    low, high = plot.reach
    even = np.geomspace if plot.log_x else np.linspace
    edges = np.unique(even(low, high + 1, CELLS + 1).astype(np.int64))
    if known and len(edges) > 1:
        rows = [_means(*run.train.curve(name), edges) for name in known]
        labels = [safe(name.partition("/")[2].replace("~", " and ")) for name in known]
        middles = (edges[:-1] + edges[1:] - 1) / 2
        plot.curves.append({"x": middles, "y": labels, "z": np.array(rows, dtype=np.float32), **HEAT})
    figure = plot.done("")
    return figure.update_yaxes(tickformat=None, selector={"overlaying": None}) if figure else None


def _means(steps: np.ndarray, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The mean between each two edges, NaN where nothing was measured; float64 [cells]"""
    counts, sums = np.histogram(steps, edges)[0], np.histogram(steps, edges, weights=values)[0]
    means: np.ndarray = np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return means


def gradient_norm(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """The gradient's norm before clipping, whole and by module, against the limit."""
    plot = Plot(run, findings, look, log=True)
    for index, name in enumerate(family(run.train, "grad_norm/")):
        plot.curve(Series.of(run.train, name), name.removeprefix("grad_norm/"), style.line(index + 1, 1.2))
    for name, label in (("grad_norm", "whole"), ("grad_norm_at_step", "whole, as the optimiser saw it")):
        if name in run.train:
            plot.curve(Series.of(run.train, name), label, style.solid(0))
    limit = run.header.max_grad_norm
    if limit and limit > 0 and plot.curves:
        ends = np.array(plot.reach)
        plot.plain(
            Series(ends, np.full(2, limit)), f"limit {limit:g}", {"color": style.GREY, "dash": "dash", "width": 1.5}
        )
    return plot.done("norm before clipping")

"""What each loss component is, weighs, and takes of the gradient; and how large the gradient is."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from trainwatch.figures import style
from trainwatch.figures.plot import POINTS, SERIES, Findings, Plot, Series, Span, family, far_apart, sampled
from trainwatch.run import Run
from trainwatch.schema import NONFINITE_NAMES


def components(run: Run) -> list[tuple[int, str]]:
    """The components that a figure shows; the number gives each its colour in every figure."""
    return list(enumerate(run.components()))[:SERIES]


def loss(run: Run, findings: Findings, *, span: Span | None = None) -> go.Figure | None:
    """Each component's raw loss in its own unit, and the weighted sum."""
    named = [(index, name, Series.of(run.train, f"loss/{name}")) for index, name in components(run)]
    total = Series.of(run.train, "loss")
    plot = Plot(run, findings, span, far_apart([total, *(series for _, _, series in named)]))
    plot.bands()
    plot.curve(total, "loss (weighted sum)", {"color": style.GREY, "width": 1.2, "dash": "solid"})
    for index, name, series in named:
        plot.curve(series, _with_unit(run, name), style.line(index))
    return plot.done("raw loss")


def _with_unit(run: Run, name: str) -> str:
    declared = run.header.components.get(name)
    return f"{name} [{declared.unit}]" if declared and declared.unit else name


def contribution(run: Run, findings: Findings, *, span: Span | None = None) -> go.Figure | None:
    """Weight x raw: what each component adds to the loss that is differentiated."""
    plot = Plot(run, findings, span, log=True)
    plot.bands()
    for index, name in components(run):
        if f"weight/{name}" in run.train and f"loss/{name}" in run.train:
            plot.curve(_contribution(run, name), name, style.line(index))
    return plot.done("weight x raw loss")


def _contribution(run: Run, name: str) -> Series:
    table = run.train
    values = table[f"loss/{name}"] * table[f"weight/{name}"]
    there = table.live & np.isfinite(values)
    codes = np.maximum(table.codes(f"loss/{name}"), table.codes(f"weight/{name}"))
    bad = [(NONFINITE_NAMES[code], table.step[table.live & (codes == code)]) for code in np.unique(codes) if code]
    return Series(table.step[there], values[there], bad)


def gradient_share(run: Run, findings: Findings, *, span: Span | None = None) -> go.Figure | None:
    """Each component's share of the gradient, stacked to 1."""
    named = [(index, name) for index, name in components(run) if f"grad_share/{name}" in run.train]
    plot = Plot(run, findings, span)
    columns = [run.train[f"grad_share/{name}"] for _, name in named]
    series = [Series.of(run.train, f"grad_share/{name}") for _, name in named]
    # one set of steps for all areas, or they would not stack; an absent share is a component at weight 0
    any_share = run.train.live & np.logical_or.reduce([np.isfinite(column) for column in columns], initial=False)
    broken = np.logical_or.reduce([run.train.codes(f"grad_share/{name}") > 0 for _, name in named], initial=False)
    rows = np.flatnonzero(any_share & ~broken)
    shares = [np.nan_to_num(column[rows]) for column in columns]
    kept = _common(run.train.step[rows], shares, span)
    for (index, name), share, one in zip(named, shares, series, strict=True):
        whole = Series(run.train.step[rows][kept], share[kept], one.bad)
        fill = {"stackgroup": "share", "fillcolor": _translucent(style.PALETTE[index % len(style.PALETTE)])}
        plot.curve(whole, name, style.line(index, 1.0), **fill)
    figure = plot.done("share of the gradient")
    return figure.update_yaxes(range=[0, 1], selector={"overlaying": None}) if figure else None


def _common(steps: np.ndarray, shares: list[np.ndarray], span: Span | None) -> np.ndarray:
    """Rows at which every area is drawn: each one's extremes, together as many as one curve has points."""
    points = max(POINTS // max(len(shares), 1), 50)
    kept = [np.searchsorted(steps, sampled(steps, share, span, points)[0]) for share in shares]
    return np.unique(np.concatenate(kept)) if kept else np.zeros(0, dtype=np.int64)


def _translucent(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},.45)"


def gradient_norm(run: Run, findings: Findings, *, span: Span | None = None) -> go.Figure | None:
    """The gradient's norm before clipping, whole and by module, against the limit."""
    plot = Plot(run, findings, span, log=True)
    for index, name in enumerate(family(run.train, "grad_norm/")):
        plot.curve(Series.of(run.train, name), name.removeprefix("grad_norm/"), style.line(index + 1, 1.2))
    for name, label in (("grad_norm", "whole"), ("grad_norm_at_step", "whole, as the optimiser saw it")):
        if name in run.train:
            plot.curve(Series.of(run.train, name), label, style.solid(0))
    limit = run.header.max_grad_norm
    if limit and limit > 0 and plot.curves:
        ends = np.array(plot.reach)
        plot.curve(
            Series(ends, np.full(2, limit)), f"limit {limit:g}", {"color": style.GREY, "dash": "dash", "width": 1.5}
        )
    return plot.done("norm before clipping")

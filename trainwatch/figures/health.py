"""Evaluations, what was not finite and when, and where the seconds go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from trainwatch.figures import style
from trainwatch.figures.plot import SERIES, Findings, Plot, Series, Span, family, far_apart
from trainwatch.figures.style import safe
from trainwatch.run import Run
from trainwatch.schema import NONFINITE


def evaluation_loss(run: Run, findings: Findings, *, span: Span | None = None) -> go.Figure | None:
    """The loss of every split, and the training loss behind it."""
    return _evaluated(run, findings, span, lambda name: name.startswith("loss"), "loss")


def evaluation_metrics(run: Run, findings: Findings, *, span: Span | None = None) -> go.Figure | None:
    """The figures of merit of every split."""
    return _evaluated(run, findings, span, lambda name: name.startswith("metric/"), "metric")


def _evaluated(
    run: Run, findings: Findings, span: Span | None, wanted: Callable[[str], bool], unit: str
) -> go.Figure | None:
    names = [name for name in run.eval.channels if wanted(name)]
    curves = [(name, split, rows) for name in names for split, rows in _splits(run).items()][:SERIES]
    series = [Series.of(run.eval, name, rows) for name, _, rows in curves]
    plot = Plot(run, findings, span, far_apart(series))
    for index, ((name, split, _), one) in enumerate(zip(curves, series, strict=True)):
        label = " ".join(part for part in (name.removeprefix("metric/"), f"({split})" if split else "") if part)
        more = {"mode": "lines+markers", "marker": {"size": 5}} if len(one.steps) <= 100 else {}
        plot.curve(one, label, style.line(index), **more)
    return plot.done(unit)


def _splits(run: Run) -> dict[str, NDArray[np.bool_]]:
    """Which rows of the evaluation belong to each split."""
    written = run.eval.text.get("split", {})
    names = np.array([str(written.get(row, "")) for row in range(run.eval.size)], dtype=object)
    return {split: names == split for split in dict.fromkeys(names.tolist())}


def nonfinite(run: Run, findings: Findings, *, span: Span | None = None) -> go.Figure | None:
    """Every value that was not finite: which channel, which kind, at which step."""
    first = {name: steps.min() for name in run.train.nonfinite_channels() if len(steps := run.train.nonfinite(name)[0])}
    names = sorted(first, key=lambda name: first[name])[: 2 * SERIES]
    plot = Plot(run, findings, span)
    for row, name in enumerate(names):
        for index, (kind, steps) in enumerate(Series.of(run.train, name).bad):
            colour = style.PALETTE[(NONFINITE[kind] - 1) % len(style.PALETTE)]
            height = row + 0.16 * index
            plot.at_edge(kind, steps, name, colour, style.CODE_SYMBOLS[kind], yaxis="y", y=height)
    figure = plot.done("")
    if figure is None:
        return None
    ticks = {"tickvals": list(range(len(names))), "ticktext": [safe(name) for name in names]}
    return figure.update_layout(yaxis={**ticks, "range": [len(names) - 0.4, -0.6]}, showlegend=False)


def seconds(run: Run, findings: Findings, *, span: Span | None = None) -> go.Figure | None:
    """Where a step's time goes: the wait for data, the work, the wait for other ranks."""
    names = family(run.train, "time/")
    plot = Plot(run, findings, span, log=True)
    for index, name in enumerate(names):
        plot.curve(Series.of(run.train, name), name.removeprefix("time/"), style.line(index, 1.3))
    return plot.done("seconds a step")

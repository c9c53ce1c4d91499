"""How good the answers are on short inputs and on long ones: an evaluation's figures of merit by bins of length."""

from __future__ import annotations

from typing import Any, NamedTuple

import plotly.graph_objects as go

from trainwatch.figures import style
from trainwatch.figures.health import BINNED, dotted, splits
from trainwatch.figures.look import WHOLE, Look
from trainwatch.figures.plot import SERIES, Findings, Plot, Series, far_apart
from trainwatch.run import Run


class Bin(NamedTuple):
    """A channel that tells a figure of merit of one bin of lengths."""

    metric: str
    low: int
    high: int
    channel: str


def bins(run: Run) -> list[Bin]:
    """The evaluation's channels by length: metrics in the order in which they came, each from short to long."""
    found = [(match, name) for name in run.eval.channels if (match := BINNED.fullmatch(name))]
    order = list(dict.fromkeys(match[1] for match, _ in found))
    told = [Bin(match[1], int(match[2]), int(match[3]), name) for match, name in found]
    return sorted(told, key=lambda one: (order.index(one.metric), one.low, one.high))


def by_length(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """A curve for each bin: its colour is the bin's, its dashes are the split's.

    The first metric is drawn; a click in the legend shows the others.
    """
    told, parts = bins(run), splits(run)
    first = told[0].metric if told else ""
    colours = {ends: index for index, ends in enumerate(sorted({(one.low, one.high) for one in told}))}
    drawn = [(one, split, rows) for one in told for split, rows in parts.items()]
    drawn = sorted(drawn, key=lambda item: item[0].metric != first)[:SERIES]
    series = [Series.of(run.eval, one.channel, rows) for one, _, rows in drawn]
    plot = Plot(run, findings, look, far_apart(series))
    for (one, split, _), curve in zip(drawn, series, strict=True):
        dash = style.DASHES[list(parts).index(split) % len(style.DASHES)]
        colour = style.PALETTE[colours[one.low, one.high] % len(style.PALETTE)]
        hidden: dict[str, Any] = {} if one.metric == first else {"visible": "legendonly"}
        plot.plain(curve, _label(one, split), {"color": colour, "dash": dash, "width": 1.6}, **dotted(curve), **hidden)
    return plot.done(first.replace("_", " "))


def _label(one: Bin, split: str) -> str:
    return f"{one.metric.replace('_', ' ')} {one.low}-{one.high}" + (f" ({split})" if split else "")

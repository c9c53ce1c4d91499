"""How good the answers are on short inputs and on long ones: an evaluation's figures of merit by bins of length."""

from __future__ import annotations

from typing import Any, NamedTuple

import plotly.graph_objects as go

from trainwatch.figures import style
from trainwatch.figures.health import binned, dotted, splits
from trainwatch.figures.look import WHOLE, Look
from trainwatch.figures.plot import SERIES, Findings, Plot, Series
from trainwatch.figures.style import safe
from trainwatch.run import Run


class Bin(NamedTuple):
    """A channel that tells a figure of merit of one bin of lengths."""

    metric: str
    low: int
    high: int
    channel: str


def bins(run: Run) -> list[Bin]:
    """The evaluation's channels by length: metrics in the order in which they came, each from short to long."""
    found = [(match, name) for name in run.eval.channels if (match := binned(name))]
    order = list(dict.fromkeys(match[1] for match, _ in found))
    told = [Bin(match[1], int(match[2]), int(match[3]), name) for match, name in found]
    return sorted(told, key=lambda one: (order.index(one.metric), one.low, one.high))


def by_length(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """A curve for each bin: its colour is the bin's, its dashes are the split's.

    The first metric is drawn; each other one is an entry of the legend, and a click there shows all of its curves.
    """
    told, parts = bins(run), splits(run)
    first = told[0].metric if told else ""
    colours = {ends: index for index, ends in enumerate(sorted({(one.low, one.high) for one in told}))}
    plot, entries = Plot(run, findings, look), set[str]()
    drawn = [(one, split) for one in told for split in parts]
    for one, split in drawn[: 2 * SERIES]:
        curve = Series.of(run.eval, one.channel, parts[split])
        dash = style.DASHES[list(parts).index(split) % len(style.DASHES)]
        line = {"color": style.PALETTE[colours[one.low, one.high] % len(style.PALETTE)], "dash": dash, "width": 1.6}
        aside: dict[str, Any] = {}
        if one.metric != first:
            aside = {"visible": "legendonly", "legendgroup": safe(one.metric), "showlegend": one.metric not in entries}
            entries.add(one.metric)
        plot.plain(
            curve, _label(one, split if len(parts) > 1 else "", one.metric != first), line, **dotted(curve), **aside
        )
    return plot.done(_spelt(first))


def _label(one: Bin, split: str, named: bool) -> str:
    """``7-10``, ``7-10, validation``, ``sequence accuracy 7-10``."""
    ends = f"{one.low}-{one.high}"
    return ", ".join(part for part in (f"{_spelt(one.metric)} {ends}" if named else ends, split) if part)


def _spelt(metric: str) -> str:
    return metric.replace("_", " ")

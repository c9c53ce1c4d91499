"""How far a step moves the parameters, and how large they are: whether the learning rate does its work."""

from __future__ import annotations

import plotly.graph_objects as go

from trainwatch.figures import style
from trainwatch.figures.look import WHOLE, Look
from trainwatch.figures.plot import Findings, Plot, Series, family
from trainwatch.run import Run


def update_ratio(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """The norm of a step over the norm of what it moves, by parameter group."""
    return _groups(run, findings, look, "update_ratio/", "|step| / |weights|")


def weight_norm(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """The norm of the parameters, by group."""
    return _groups(run, findings, look, "weight_norm/", "norm of the weights")


def _groups(run: Run, findings: Findings, look: Look, prefix: str, unit: str) -> go.Figure | None:
    plot = Plot(run, findings, look, log=True)
    for index, name in enumerate(family(run.train, prefix)):
        plot.curve(Series.of(run.train, name), name.removeprefix(prefix), style.line(index))
    return plot.done(unit)

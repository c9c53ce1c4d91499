"""How far a step moves the parameters, and how large they are: whether the learning rate does its work."""

from __future__ import annotations

import plotly.graph_objects as go

from trainwatch.figures.look import WHOLE, Look
from trainwatch.figures.plot import Findings, each
from trainwatch.run import Run


def update_ratio(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """The norm of a step over the norm of what it moves, by parameter group."""
    return each(run, findings, look, "update_ratio/", "|step| / |weights|")


def weight_norm(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """The norm of the parameters, by group."""
    return each(run, findings, look, "weight_norm/", "norm of the weights")

"""The controls above a run's plots: against what, on which scale, how smoothed; the same for all of them."""

from __future__ import annotations

from typing import Any, Final

import dash_mantine_components as dmc
from dash import dcc, html

from dashboards.asked import SCALES, SMOOTH, X_SCALES, Asked

LABELS: Final = {"time": "wall clock", "0": "off"}


def controls(asked: Asked, axes: tuple[str, ...], *more: Any) -> Any:
    """The bar above the plots: one axis, one scale, one smoothing and one range for all of them, and what else."""
    look, span = asked.kept
    return html.Div(
        [
            html.H2("Plots"),
            html.Span(id="span-text", className="dim", children="whole run"),
            html.Button("Whole run", id="whole", className="button", hidden=span is None),
            html.Div(
                [
                    _choice("against", "Against", offered(axes), look["against"]),
                    _choice("x_scale", "X axis", offered(tuple(X_SCALES)), look["x_scale"]),
                    _choice("scale", "Y axis", offered(tuple(SCALES)), look["scale"]),
                    _choice("smooth", "Smooth", offered(SMOOTH), look["smooth"]),
                    *more,
                ],
                className="choices",
            ),
        ],
        className="toolbar",
    )


def offered(values: tuple[str, ...]) -> list[dict[str, str]]:
    """Values as a control takes them."""
    return [{"value": value, "label": LABELS.get(value, value)} for value in values]


def _choice(name: str, label: str, data: list[dict[str, str]], value: str) -> Any:
    said = html.Span(label, className="dim", id=f"{name}-label")
    labelled = {"aria-labelledby": f"{name}-label"}
    return html.Label([said, dmc.SegmentedControl(id=name, data=data, value=value, size="xs", **labelled)])


def stores(asked: Asked) -> list[Any]:
    """What the page keeps of it."""
    look, span = asked.kept
    return [dcc.Store(id="look", data=look), dcc.Store(id="span", data=span)]

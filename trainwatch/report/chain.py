"""The chain of events as a figure: each finding from its first step to its last, over stages and checkpoints."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from trainwatch.diagnosis import Diagnosis
from trainwatch.figures import style
from trainwatch.figures.plot import Plot
from trainwatch.figures.style import safe
from trainwatch.header import number
from trainwatch.report.moments import checkpoints, role
from trainwatch.run import Run
from trainwatch.schema import Finding

LANES = 14  # findings that are drawn; the table below has them all
EVENTS = 500
AROUND = ("stage", "monitor", "note", "warning")  # events that are no incident

TITLE = "The chain of events"
ABOUT = "Each bar is a finding, from its first step to its last; the cause stands above what follows from it."


def draw(run: Run, said: Diagnosis) -> go.Figure | None:
    """The chain, or None where there is nothing to put in order."""
    shown = said.findings[:LANES]
    if not shown or run.first_step is None:
        return None
    plot = Plot(run, ())
    plot.bands()
    for lane, finding in enumerate(shown):
        plot.curves.append(_bar(lane, finding))
    plot.curves.append(_begins(shown))
    names = [("↳ " if role(said, one).startswith("follows") else "") + one.rule for one in shown]
    for name, steps, symbol in _ticks(run):
        plot.curves.append(_row(len(names), name, steps, symbol))
        names.append(name)
    figure = plot.done("")
    if figure is None:
        return None
    first = min(run.first_step, *(finding.first_step for finding in shown))
    last = max(run.last_step or 0, run.first_step + 1, *(finding.last_step for finding in shown))
    ticks = {"tickvals": list(range(len(names))), "ticktext": [safe(name) for name in names]}
    figure.update_layout(yaxis={**ticks, "range": [len(names) - 0.4, -0.6]}, showlegend=False)
    return figure.update_xaxes(range=[first, last])


def _bar(lane: int, finding: Finding) -> dict[str, Any]:
    colour = style.SEVERITY_COLOURS[finding.severity]
    ends = [finding.first_step, max(finding.last_step, finding.first_step)]
    line = {"color": colour, "width": 7}
    return {
        "type": "scatter", "mode": "lines", "x": ends, "y": [lane, lane], "line": line, "opacity": 0.55,
        "name": safe(finding.rule), "showlegend": False, "hovertext": safe(finding.message, 70), "hoverinfo": "text",
    }  # fmt: skip


def _begins(findings: tuple[Finding, ...]) -> dict[str, Any]:
    marker = {
        "symbol": [style.SEVERITY_SYMBOLS[one.severity] for one in findings],
        "color": [style.SEVERITY_COLOURS[one.severity] for one in findings],
        "size": 11,
    }
    told = [safe(f"{one.rule}, since step {one.first_step:,}: {one.message}", 70) for one in findings]
    return {
        "type": "scatter", "mode": "markers", "x": [one.first_step for one in findings],
        "y": list(range(len(findings))), "marker": marker, "hovertext": told, "hoverinfo": "text",
        "name": "findings", "showlegend": False, "cliponaxis": False,
    }  # fmt: skip


def _ticks(run: Run) -> list[tuple[str, list[int], str]]:
    """Checkpoints, resumes and other events, each as a row of marks."""
    written = [step for event in checkpoints(run)[-EVENTS:] if (step := _step(event)) is not None]
    resumed = [header.resumed_from for header in run.headers if header.resumed_from is not None]
    events = [event for event in run.events[-EVENTS:] if event.get("kind") == "event"]
    others = [step for event in events if event.get("event") not in AROUND and (step := _step(event)) is not None]
    found = [("checkpoints", written, "line-ns-open"), ("resumes", resumed, "triangle-up"), ("events", others, "x")]
    return [item for item in found if item[1]]


def _step(event: dict[str, Any]) -> int | None:
    step = number(event.get("step"))
    return int(step) if step is not None and abs(step) < 2**53 else None


def _row(lane: int, name: str, steps: list[int], symbol: str) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "x": steps, "y": [lane] * len(steps), "name": name, "showlegend": False,
        "marker": {"symbol": symbol, "color": style.GREY, "size": 9, "line": {"width": 1.5, "color": style.GREY}},
        "hovertext": [f"{name}: step {step:,}" for step in steps], "hoverinfo": "text",
    }  # fmt: skip

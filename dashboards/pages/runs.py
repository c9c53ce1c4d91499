"""Every run below the folder, the newest first."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import quote

import dash
import dash_ag_grid as dag
from dash import dcc, html
from dash.dependencies import Input, Output, State

from dashboards.live import Live, View
from dashboards.words import STATES, SYMBOLS, WORDS, age, broken, health, newest

EVERY = 2000  # ms between two looks at the folder
COLUMNS: list[dict[str, Any]] = [
    {
        "field": "health",
        "headerName": "Health",
        "cellRenderer": "Health",
        "width": 136,
        "comparator": {"function": "byRank"},
    },
    {"field": "run", "headerName": "Run", "cellRenderer": "RunLink", "minWidth": 190, "flex": 2},
    {"field": "state", "headerName": "State", "cellRenderer": "State", "width": 138},
    {"field": "cause", "headerName": "Root cause", "minWidth": 260, "flex": 4, "tooltipField": "cause"},
    {"field": "steps", "headerName": "Steps", "width": 138, "type": "rightAligned"},
    {"field": "loss", "headerName": "Last loss", "width": 106, "type": "rightAligned"},
    {"field": "speed", "headerName": "Speed", "width": 126, "type": "rightAligned"},
    {"field": "age", "headerName": "Last row", "width": 112, "type": "rightAligned"},
]


def layout(live: Live) -> Any:
    """The page as it stands now."""
    rows = [_row(view) for view in live.views()]
    grid = dag.AgGrid(
        id="runs",
        columnDefs=COLUMNS,
        rowData=rows,
        getRowId="params.data.key",
        className="ag-theme-quartz runs",
        defaultColDef={"sortable": True, "resizable": True, "suppressHeaderMenuButton": True},
        dashGridOptions={
            "domLayout": "autoHeight",
            "rowHeight": 46,
            "suppressCellFocus": False,
            "enableCellTextSelection": True,
            "animateRows": False,
            "theme": {"function": "trainwatchTheme(agGrid)"},
        },
        style={"height": None},
    )
    return [
        dcc.Interval(id="runs-tick", interval=EVERY),
        dcc.Store(id="runs-seen", data=_digest(rows)),
        dcc.Store(id="runs-pulse"),
        dcc.Store(id="face", data={"title": "Runs - trainwatch", "icon": "none"}),
        dcc.Store(id="runs-busy", data=False),
        html.Div([html.H1("Runs"), html.Span(_count(rows), id="runs-count", className="dim")], className="heading"),
        html.Div(grid, id="runs-table", style=_shown(bool(rows))),
        html.Div(_empty(live), id="runs-empty", style=_shown(not rows)),
    ]


def _shown(there: bool) -> dict[str, str]:
    return {} if there else {"display": "none"}


def _count(rows: list[dict[str, Any]]) -> str:
    running = sum(row["state"] == "running" for row in rows)
    return f"{len(rows)} in all" + (f", {running} running" if running else "")


def _row(view: View) -> dict[str, Any]:
    """One run as plain text; what cannot be read is a row that says why."""
    shared = {"key": view.key, "href": f"/run?path={quote(view.key, safe='')}", "file": view.key}
    told, facts = view.diagnosis, view.facts
    if told is None or facts is None:
        state, why = ("unreadable", view.error.partition(": ")[2] or view.error) if view.error else ("reading", "")
        return {**shared, **_health("unknown"), "run": view.key, "state": state, "cause": why}
    root = told.root_cause or (told.findings[0] if told.findings else None)
    return {
        **shared,
        **_health(health(told)),
        "run": told.run,
        "file": view.key + newest(view.runs),
        "state": STATES[told.status],
        "cause": root.message if root else broken(told),
        "steps": facts.steps,
        "loss": facts.loss,
        "speed": facts.speed,
        "age": age(facts.touched),
    }


def _health(level: str) -> dict[str, str]:
    return {"level": level, "symbol": SYMBOLS[level], "health": WORDS[level]}


def _empty(live: Live) -> Any:
    return html.Div(
        [
            html.H2("No run here yet"),
            html.P(["Nothing below ", html.Code(live.where), " is a run file. Record one in your training loop:"]),
            html.Pre(_EXAMPLE),
            html.P("It appears here by itself as soon as its first line is written."),
        ],
        className="empty card",
    )


_EXAMPLE = """import trainwatch

with trainwatch.Recorder("logs/first.jsonl", config=config) as watch:
    ...                       # in the loop:
    watch.log({"loss": loss})
    watch.step()"""


def _digest(rows: list[dict[str, Any]]) -> str:
    return hashlib.sha1(json.dumps(rows).encode()).hexdigest()[:12]


def register(app: dash.Dash, live: Live) -> None:
    """The page's callbacks."""
    app.clientside_callback(  # a tab that nobody looks at, or one that still waits for an answer, asks for nothing
        dash.ClientsideFunction("trainwatch", "pulse_runs"),
        Output("runs-pulse", "data"),
        Input("runs-tick", "n_intervals"),
        State("runs-busy", "data"),
        prevent_initial_call=True,
    )

    @app.callback(  # type: ignore[untyped-decorator]
        Output("runs", "rowData"),
        Output("runs-count", "children"),
        Output("runs-table", "style"),
        Output("runs-empty", "style"),
        Output("runs-seen", "data"),
        Input("runs-pulse", "data"),
        State("runs-seen", "data"),
        prevent_initial_call=True,
        running=[(Output("runs-busy", "data"), True, False)],
    )
    def tick(_: int, seen: str) -> Any:
        rows = [_row(view) for view in live.views()]
        digest = _digest(rows)
        if digest == seen:
            raise dash.exceptions.PreventUpdate
        return rows, _count(rows), _shown(bool(rows)), _shown(not rows), digest

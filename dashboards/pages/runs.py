"""Every run below the folder: one table to find the run that needs somebody."""

from __future__ import annotations

import time
from typing import Any

import dash
import dash_ag_grid as dag
from dash import dcc, html
from dash.dependencies import Input, Output, State

from dashboards.listing import Listing, Row, Seen
from dashboards.notes import TEXT_LENGTH
from dashboards.words import SYMBOLS, WORDS

PACES = (1000, 2000, 5000)  # ms between two looks at the folder
COST_FACTOR = 5  # a look at the folder takes at most a fifth of the time
LIVE = ("running", "stalled", "reading")  # where none is in these states, news are seldom
AT_ONCE = 0.05  # seconds that a new page waits for files to be read: it is better to see rows that fill
ROW_HEIGHT = 52
SORTS = {
    "touched:desc": "newest",
    "health:desc": "worst health",
    "run:asc": "name",
    "loss:asc": "lowest loss",
    "steps:desc": "most steps",
}  # what a narrow screen offers, as it has no heads to press
GROUPS = {"none": "nothing", "folder": "folder", "state": "state", "health": "health", "tags": "tag"}
TEXT: dict[str, Any] = {"filter": "agTextColumnFilter"}
NUMBER: dict[str, Any] = {
    "filter": "agNumberColumnFilter",
    "type": "rightAligned",
    "getQuickFilterText": {"function": "''"},
}
ALWAYS = {"function": "false"}  # these cells show more than their own field, so an equal value says nothing
COLUMNS: list[dict[str, Any]] = [
    {"colId": "group", "headerName": "Group", "cellRenderer": "Group", "width": 104, "hide": True, "sortable": False},
    {
        "colId": "stack",  # on a narrow screen the whole row stands in this cell, and no other column is shown
        "field": "run",
        "headerName": "Run",
        "cellRenderer": "Stack",
        "flex": 1,
        "hide": True,
        "sortable": False,
        "equals": ALWAYS,
        "getQuickFilterText": {"function": "''"},
    },
    {
        "field": "health",
        "headerName": "Health",
        "cellRenderer": "Health",
        "width": 118,
        "comparator": {"function": "byRank"},
        "sortingOrder": ["desc", "asc", None],
        **TEXT,
    },
    {
        "field": "run",
        "headerName": "Run",
        "cellRenderer": "RunLink",
        "minWidth": 170,
        "flex": 3,
        "equals": ALWAYS,
        "filterValueGetter": {"function": "`${params.data.run} ${params.data.key}`"},
        "getQuickFilterText": {"function": "`${params.data.run} ${params.data.key}`"},
        **TEXT,
    },
    {"field": "state", "headerName": "State", "cellRenderer": "State", "width": 126, **TEXT},
    {
        "field": "cause",
        "headerName": "Worst finding",
        "cellRenderer": "Cause",
        "minWidth": 200,
        "flex": 6,
        "equals": ALWAYS,
        **TEXT,
    },
    {
        "field": "loss",
        "headerName": "Loss",
        "cellRenderer": "Loss",
        "width": 186,
        "equals": ALWAYS,
        "comparator": {"function": "byLoss"},
        "filter": "agNumberColumnFilter",
        "getQuickFilterText": {"function": "''"},
    },
    {"field": "steps", "headerName": "Steps", "cellRenderer": "Steps", "width": 128, "equals": ALWAYS, **NUMBER},
    {"field": "speed", "headerName": "Speed", "cellRenderer": "Speed", "width": 128, "equals": ALWAYS, **NUMBER},
    {
        "field": "touched",
        "headerName": "Age",
        "headerTooltip": "How long ago its last row was written.",
        "cellRenderer": "Age",
        "width": 76,
        "type": "rightAligned",
        "comparator": {"function": "byAge"},
        "sortingOrder": ["desc", "asc", None],
        "initialSort": "desc",
        "getQuickFilterText": {"function": "''"},
    },
    {
        "field": "tags",
        "headerName": "Tags",
        "cellRenderer": "Tags",
        "minWidth": 86,
        "flex": 1,
        "editable": True,
        "headerTooltip": "Enter or a double click edits; commas part the tags.",
        **TEXT,
    },
    {
        "field": "note",
        "headerName": "Note",
        "cellRenderer": "Note",
        "minWidth": 86,
        "flex": 2,
        "editable": True,
        "cellEditor": "agLargeTextCellEditor",
        "cellEditorPopup": True,
        "cellEditorParams": {"maxLength": TEXT_LENGTH},
        "headerTooltip": "Enter or a double click edits; Shift+Enter begins a line.",
        **TEXT,
    },
]


def layout(listing: Listing) -> Any:
    """The page as it stands now."""
    news = listing.news(None, AT_ONCE)
    rows = news["rows"]
    return [
        dcc.Interval(id="runs-tick", interval=PACES[0]),
        dcc.Store(id="runs-seen", data=news["seen"]),
        *(dcc.Store(id=f"runs-{name}") for name in ("pulse", "mounted", "applied", "edited", "restored")),
        dcc.Store(id="runs-news", data={**news, "rows": []}),
        dcc.Store(id="runs-busy", data=False),
        dcc.Store(id="face", data=face(rows)),
        html.Div([html.H1("Runs"), html.Span(id="runs-count", className="dim", role="status")], className="heading"),
        html.Div(_progress(), id="runs-reading", hidden=True),
        html.Div(news["trouble"], id="runs-trouble", role="alert", className="trouble", hidden=not news["trouble"]),
        html.Div(_tools(), id="runs-tools", style=_shown(bool(rows))),
        html.Div(_grid(rows), id="runs-table", style={"--rows": len(rows), **_shown(bool(rows))}),
        html.Div(_empty(listing.live.where), id="runs-empty", style=_shown(not rows)),
        html.Div(id="runs-said", role="status", hidden=True),
    ]


def _shown(there: bool) -> dict[str, str]:
    return {} if there else {"display": "none"}


def _progress() -> list[Any]:
    """How far the first reading is; assets/runs.js fills it."""
    return [html.Progress(id="runs-read", **{"aria-label": "Files read"}), html.Span(id="runs-read-said")]


def _tools() -> list[Any]:
    """Search, groups, what is chosen; the rest is in assets/runs.js."""
    field = dcc.Input(type="search", id="runs-search", placeholder="Search runs ( / )")
    search = html.Label([html.Span("Search runs", className="unseen"), field], className="runs-search")
    options = [html.Option(label, value=name) for name, label in GROUPS.items()]
    groups = html.Label([html.Span("Group by", className="dim"), html.Select(options, id="runs-group")])
    orders = [html.Option(label, value=name) for name, label in SORTS.items()]
    sort = html.Label([html.Span("Sort by", className="dim"), html.Select(orders, id="runs-sort")], className="slim")
    whole = html.Button("Show all", id="runs-whole", className="button", hidden=True)
    compare = html.Button("Compare", id="runs-compare", className="button", disabled=True)
    chips = html.Div(id="runs-chips", role="group", **{"aria-label": "Show only"})
    return [html.Div([search, groups, sort, whole, compare], className="runs-bar"), chips]


def _grid(rows: list[Row]) -> Any:
    return dag.AgGrid(
        id="runs",
        columnDefs=COLUMNS,
        rowData=rows,
        getRowId="params.data.key",
        className="ag-theme-quartz runs",
        defaultColDef={
            "sortable": True,
            "resizable": True,
            "suppressHeaderMenuButton": True,
            "filterParams": {"maxNumConditions": 1, "buttons": ["reset"]},
        },
        dashGridOptions={
            "rowHeight": ROW_HEIGHT,
            "rowSelection": {"mode": "multiRow", "selectAll": "filtered", "enableClickSelection": False},
            "selectionColumnDef": {"width": 46, "pinned": None},
            "suppressColumnVirtualisation": True,
            "includeHiddenColumnsInQuickFilter": True,  # a narrow screen hides columns and searches them all the same
            "suppressCellFocus": False,
            "enableCellTextSelection": True,
            "animateRows": False,
            "stopEditingWhenCellsLoseFocus": True,
            "tooltipShowDelay": 400,
            "localeText": {"noRowsToShow": "No run matches.", "noMatchingRows": "No run matches."},
            "postSortRows": {"function": "runsGrouped(params)"},
            "isExternalFilterPresent": {"function": "runsNarrowed()"},
            "doesExternalFilterPass": {"function": "runsPass(params)"},
            "theme": {"function": "trainwatchTheme(agGrid)"},
        },
        style={"height": None},
    )


def face(rows: list[Row]) -> dict[str, str]:
    """What the browser's tab says: the worst health of those that run."""
    running = [row for row in rows if row["state"] in ("running", "stalled")]
    if not running:
        return {"title": "Runs - trainwatch", "icon": "none"}
    worst = next((level for level in SYMBOLS if any(row["level"] == level for row in running)), "unknown")
    count = sum(row["level"] == worst for row in running)
    icon = "none" if worst == "unknown" else worst
    return {"title": f"{SYMBOLS[worst]} {WORDS[worst]}: {count} of {len(running)} running - trainwatch", "icon": icon}


def _empty(where: str) -> Any:
    return html.Div(
        [
            html.H2("No run here yet"),
            html.P(["Nothing below ", html.Code(where), " is a run file. Record one in your training loop:"]),
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


def register(app: dash.Dash, listing: Listing) -> None:
    """The page's callbacks."""
    _register_browser(app)

    @app.callback(  # type: ignore[untyped-decorator]
        Output("runs-news", "data"),
        Output("runs-seen", "data"),
        Output("runs-tick", "interval"),
        Output("face", "data"),
        Input("runs-pulse", "data"),
        State("runs-seen", "data"),
        State("runs-tick", "interval"),
        State("face", "data"),
        prevent_initial_call=True,
        running=[(Output("runs-busy", "data"), True, False)],
    )
    def tick(_: int, seen: Any, pace: Any, shown: Any) -> Any:
        return update(listing, seen, pace, shown)

    @app.callback(  # type: ignore[untyped-decorator]
        Output("runs-edited", "data"),
        Input("runs", "cellValueChanged"),
        prevent_initial_call=True,
    )
    def edit(changes: Any) -> Any:
        return edited(listing, changes)


def update(listing: Listing, seen: Any, pace: Any, shown: Any) -> Any:
    """What has changed for a tab that has ``seen`` a revision, asks every ``pace`` ms, and whose face is ``shown``."""
    began = time.monotonic()
    news = listing.news(Seen.of(seen))
    rows = listing.now()
    least = PACES[0] if any(row["state"] in LIVE for row in rows) else PACES[1]
    cost = 1000 * COST_FACTOR * (time.monotonic() - began)
    wanted = next((pace for pace in PACES if pace >= max(cost, least)), PACES[-1])
    paced = dash.no_update if wanted == pace else wanted
    if news["new"]:
        now = face(rows)
        return news, news["seen"], paced, dash.no_update if now == shown else now
    if paced is dash.no_update:
        raise dash.exceptions.PreventUpdate
    return dash.no_update, dash.no_update, paced, dash.no_update


def edited(listing: Listing, changes: Any) -> dict[str, Any]:
    """Keep what somebody typed into cells; answers with those rows as they are now, and with what came of it."""
    rows, words = [], []
    listed = changes if isinstance(changes, list) else []
    for change in (one for one in listed if isinstance(one, dict)):
        key, name = str(change.get("rowId")), str(change.get("colId"))
        value, before = (str(change.get(part) or "") for part in ("value", "oldValue"))
        row, said = listing.edit(key, name, value, before)
        rows += [row] if row else []
        words.append(said)
    return {"rows": rows, "said": " ".join(dict.fromkeys(words))}


def _register_browser(app: dash.Dash) -> None:
    """What happens in the browser alone (assets/runs.js, and the pulse in assets/live.js)."""
    here, busy = State("runs-seen", "data"), State("runs-busy", "data")
    for where, function, output, inputs, later in (
        ("trainwatch", "pulse_runs", Output("runs-pulse", "data"), [Input("runs-tick", "n_intervals"), busy], True),
        ("trainwatchRuns", "mount", Output("runs-mounted", "data"), [Input("runs", "id"), here], False),
        ("trainwatchRuns", "apply", Output("runs-applied", "data"), [Input("runs-news", "data")], False),
        ("trainwatchRuns", "edited", Output("runs-restored", "data"), [Input("runs-edited", "data")], True),
        ("trainwatchRuns", "compare", Output("where", "href"), [Input("runs-compare", "n_clicks")], True),
    ):
        called = dash.ClientsideFunction(where, function)
        app.clientside_callback(called, output, *inputs, prevent_initial_call=later)

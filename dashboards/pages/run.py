"""One run: the verdict and its root cause first, then the findings, the plots, and what could not be judged."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any
from urllib.parse import urlencode

import dash
from dash import dcc, html
from dash.dependencies import ALL, Input, Output, State
from plotly.io.json import to_json_plotly

from dashboards.asked import WHOLE, Asked
from dashboards.live import PROOF, Live, View, Watched
from dashboards.pages.below import below
from dashboards.pages.look import controls, offered, stores
from dashboards.pages.verdict import findings, title, verdict
from trainwatch.figures import FIGURES, Look

PACES = (500, 1000, 2000, 5000, 10_000)  # ms between two looks; few values, as each change restarts the clock
WHEN_OVER = 5000  # ms between two looks at a run that is over: its file may be written anew, or the run resumed
BELOW_SECONDS = 10.0  # what stands below ends in the log's last lines: as large as the plots, and new with every row
COST_FACTOR = 4  # a page spends at most a fourth of its time on updates
GRAPH: dict[str, Any] = {
    "displaylogo": False,
    "responsive": True,
    "doubleClick": "autosize",
    # named one by one: plotly adds buttons that send a chart to its cloud
    "modeBarButtons": [["zoom2d", "pan2d", "autoScale2d", "toImage"]],
    "toImageButtonOptions": {"format": "png", "scale": 2},
}
NAMES = (PROOF, *FIGURES)
AT_ONCE = 4  # plots that a new page brings; the browser draws the others when they come on screen
LATER = "later"
PROOF_SAYS = ("Where it began", "The figure that shows the root cause.")
BLANK: dict[str, Any] = {"data": [], "layout": {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}}


def layout(live: Live, key: str, asked: Asked = WHOLE) -> Any:
    """The page as it stands now, with the look that its address asks for."""
    view, file = live.view(key), live.file(key)
    if view is None or file is None:
        return _unknown(live, key)
    look = file.look(asked)
    seen: dict[str, Any] = {}
    proof, *plots = [_panel(key, name, *_drawn(file, name, look, seen)) for name in NAMES]
    _put_off(plots, seen)
    said, told, rest, face = _texts(view, file, seen)
    return [
        dcc.Interval(id="tick", interval=WHEN_OVER if view.over else PACES[0]),
        dcc.Store(id="key", data=key),
        dcc.Store(id="pulse"),
        dcc.Store(id="busy", data=False),
        *stores(asked),
        dcc.Store(id="shown", data=None),
        dcc.Store(id="seen", data=seen),
        dcc.Store(id="face", data=face),
        html.Div([html.Div(said, id="verdict"), proof], className="top"),
        html.Div(told, id="findings"),
        controls(asked, view.facts.axes if view.facts else ("step",)),
        html.Section(_grouped(plots), **{"aria-label": "Plots"}),
        html.Div(rest, id="below"),
    ]


def _unknown(live: Live, key: str) -> Any:
    return html.Div(
        [
            html.H1("There is no such run"),
            html.P(["Nothing that is called ", html.Code(key or "(nothing)"), " lies in ", html.Code(live.where), "."]),
            dcc.Link("All runs", href="/", className="button"),
        ],
        className="empty card",
    )


def _grouped(plots: list[Any]) -> list[Any]:
    """The plots under the headings of what they belong to; one without a plot is hidden by the style sheet."""
    groups: dict[str, list[Any]] = {}
    for name, plot in zip(FIGURES, plots, strict=True):
        groups.setdefault(FIGURES[name].group, []).append(plot)
    return [
        html.Section([html.H3(group, className="group-head"), html.Div(members, className="plots")], className="group")
        for group, members in groups.items()
    ]


def _put_off(plots: list[Any], seen: dict[str, Any]) -> None:
    """Leave the plots below the first ones blank: twenty that nobody sees yet would hold the browser up."""
    there = [(name, plot) for name, plot in zip(FIGURES, plots, strict=True) if seen[name]]
    for name, plot in there[AT_ONCE:]:
        plot.children[1].figure = BLANK
        seen[name] = LATER


def _panel(key: str, name: str, figure: dict[str, Any] | None, hidden: bool) -> Any:
    head, about = (FIGURES[name].title, FIGURES[name].about) if name in FIGURES else PROOF_SAYS
    graph = dcc.Graph(
        id={"type": "graph", "name": name},
        figure=figure or BLANK,
        config=GRAPH,
        style={"height": "var(--graph)"},
        responsive=True,
        clear_on_unhover=True,
    )
    words = html.Div([html.H3(head), html.P(about, className="dim"), _tools(key, name, head)], className="panel-head")
    return html.Figure(
        [words, graph],
        id={"type": "panel", "name": name},
        className="card panel",
        hidden=hidden,
        **{"data-name": name, "aria-label": f"{head}: {about}"},
    )


def _tools(key: str, name: str, head: str) -> Any:
    """What can be done with one plot; assets/plots.js enlarges it."""
    csv = html.A("CSV", href=f"/take/csv?{urlencode({'path': key, 'figure': name})}", className="tool", download=True)
    large = html.Button("⤢", className="tool enlarge", title="Full screen", **{"aria-label": f"{head}: full screen"})
    return html.Span([csv if name != PROOF else None, large], className="tools")


def _drawn(file: Watched, name: str, look: Look, seen: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """A figure and whether its panel is hidden; notes the figure's digest in ``seen``."""
    drawn = file.draw(name, look)
    seen[name] = drawn.digest if drawn else ""
    return (json.loads(drawn.json), False) if drawn else (None, True)


def register(app: dash.Dash, live: Live) -> None:
    """The page's callbacks."""
    _register_browser(app)

    @app.callback(  # type: ignore[untyped-decorator]
        Output("verdict", "children"),
        Output("findings", "children"),
        Output("below", "children"),
        Output("face", "data"),
        Output("tick", "interval"),
        Output("against", "data"),
        Output("seen", "data"),
        Output({"type": "graph", "name": ALL}, "figure"),
        Output({"type": "panel", "name": ALL}, "hidden"),
        Input("pulse", "data"),
        State("key", "data"),
        State("seen", "data"),
        prevent_initial_call=True,
        running=[(Output("busy", "data"), True, False)],
    )
    def tick(pulse: dict[str, Any], key: str, seen: dict[str, Any]) -> Any:
        return update(live, pulse or {}, key, seen or {})


def update(live: Live, pulse: dict[str, Any], key: str, seen: dict[str, Any]) -> Any:
    """What has changed for a page that has ``seen`` these digests; PreventUpdate if nothing has."""
    began = time.thread_time()  # waiting for the reader, or for a processor that others hold, is no cost of a page
    view, file = live.view(key), live.file(key)
    if view is None or file is None:
        raise dash.exceptions.PreventUpdate
    now = dict(seen)
    look = file.look(Asked.of(pulse.get("look"), pulse.get("span")))
    graphs, panels = _changed(file, look, pulse.get("shown"), now)
    axes = _axes(view, now)
    texts = _texts(view, file, now)
    if now == seen:
        raise dash.exceptions.PreventUpdate
    cost = 1000 * COST_FACTOR * (time.thread_time() - began)
    pace = next((pace for pace in PACES if pace >= cost), PACES[-1])
    return (*texts, max(pace, WHEN_OVER) if view.over else pace, axes, now, graphs, panels)


def _axes(view: View, seen: dict[str, Any]) -> Any:
    """What the plots can be drawn against, if the run tells more than it did."""
    axes = list(view.facts.axes) if view.facts else ["step"]
    known = seen.get("axes")
    seen["axes"] = axes
    return dash.no_update if axes == known else offered(tuple(axes))


def _texts(view: View, file: Watched, seen: dict[str, Any]) -> list[Any]:
    """Verdict, findings, what stands below, and the tab's title: each only if it reads differently now."""
    if seen.get("version") == view.version:
        return [dash.no_update] * 4
    seen["version"] = view.version
    made = {
        "verdict": verdict(view),
        "findings": findings(view, file.spot),
        "below": below(view, file.story()) if _is_due(view, seen) else dash.no_update,
        "face": title(view),
    }
    changed = []
    for name, content in made.items():
        if content is dash.no_update:
            changed.append(content)
            continue
        held = digest(content)
        changed.append(content if seen.get(f"text {name}") != held else dash.no_update)
        seen[f"text {name}"] = held
    return changed


def _is_due(view: View, seen: dict[str, Any]) -> bool:
    """Whether what stands below is made anew: at every state of the run, and now and then while it goes on."""
    told, now = view.diagnosis, time.time()
    state, before = told.status if told else "", seen.get("below at")
    if state == seen.get("state") and isinstance(before, int | float) and 0 <= now - before < BELOW_SECONDS:
        return False
    seen["state"], seen["below at"] = state, now
    return True


def digest(content: Any) -> str:
    """Names what a page holds, so that what it shows already is not sent again."""
    return hashlib.sha1(to_json_plotly(content).encode()).hexdigest()[:12]


def _changed(file: Watched, look: Look, shown: Any, seen: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The figures that are on screen (if that is not known, all that ever were) and differ from what the page has."""
    graphs: list[Any] = []
    panels: list[Any] = []
    for name in NAMES:
        before = seen.get(name)
        # a figure that was absent has no place on screen yet, so nobody can tell whether it would be seen
        wanted = not before or (name in shown if isinstance(shown, list) else before != LATER)
        figure, hidden = _drawn(file, name, look, seen) if wanted else (None, True)
        changed = wanted and seen[name] != before
        graphs.append(figure if changed and figure else dash.no_update)
        panels.append(hidden if changed else dash.no_update)
    return graphs, panels


def _register_browser(app: dash.Dash) -> None:
    """What happens in the browser alone (assets/live.js)."""
    here = [State("busy", "data")]
    graphs, buttons = (
        {"type": "graph", "name": ALL},
        {"type": "zoom", **dict.fromkeys(("index", "first", "last", "figure"), ALL)},
    )
    for function, outputs, inputs in (
        (
            "pulse",
            [Output("pulse", "data")],
            [Input("tick", "n_intervals"), *(Input(name, "data") for name in ("span", "look", "shown")), *here],
        ),
        (
            "zoom",
            [Output("span", "data")],
            [
                Input(graphs, "relayoutData"),
                Input(buttons, "n_clicks"),
                Input("whole", "n_clicks"),
                State("span", "data"),
                State("look", "data"),
            ],
        ),
        (
            "look",
            [Output("look", "data")],
            [Input(name, "value") for name in ("against", "x_scale", "scale", "smooth")],
        ),
        (
            "range",
            [Output("span-text", "children"), Output("whole", "hidden")],
            [Input("span", "data"), Input("look", "data")],
        ),
        ("face", [Output("face", "modified_timestamp")], [Input("face", "data")]),
    ):
        app.clientside_callback(
            dash.ClientsideFunction("trainwatch", function),
            *outputs,
            *inputs,
            prevent_initial_call=function in ("pulse", "zoom", "look"),
        )

"""One run: the verdict and its root cause first, then the findings, the plots, and what could not be judged."""

from __future__ import annotations

import hashlib
import json
import re
import time
from typing import Any

import dash
from dash import dcc, html
from dash.dependencies import ALL, Input, Output, State
from plotly.io.json import to_json_plotly

from dashboards.live import PROOF, Live, View, Watched
from dashboards.pages.verdict import below, findings, title, verdict
from trainwatch.figures import FIGURES, Span
from trainwatch.header import number

PACES = (500, 1000, 2000, 5000, 10_000)  # ms between two looks; few values, as each change restarts the clock
WHEN_OVER = 5000  # ms between two looks at a run that is over: its file may be written anew, or the run resumed
COST_FACTOR = 4  # a page spends at most a fourth of its time on updates
GRAPH: dict[str, Any] = {
    "displaylogo": False,
    "responsive": True,
    "doubleClick": "autosize",
    # named one by one: plotly adds buttons that send a chart to its cloud
    "modeBarButtons": [["zoom2d", "pan2d", "autoScale2d", "toImage"]],
    "toImageButtonOptions": {"format": "svg"},
}
NAMES = (PROOF, *FIGURES)
PROOF_SAYS = ("Where it began", "The figure that shows the root cause.")
BLANK: dict[str, Any] = {"data": [], "layout": {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}}


def layout(live: Live, key: str, steps: str = "") -> Any:
    """The page as it stands now; ``steps`` is a range from the address: ``331-505``."""
    view, file = live.view(key), live.file(key)
    if view is None or file is None:
        return _unknown(live, key)
    span = parse_span(steps)
    seen: dict[str, Any] = {}
    proof, *plots = [_panel(name, *_drawn(file, name, span, seen)) for name in NAMES]
    said, told, rest, face = _texts(view, file, seen)
    return [
        dcc.Interval(id="tick", interval=WHEN_OVER if view.over else PACES[0]),
        dcc.Store(id="key", data=key),
        dcc.Store(id="pulse"),
        dcc.Store(id="busy", data=False),
        dcc.Store(id="span", data=span),
        dcc.Store(id="shown", data=None),
        dcc.Store(id="seen", data=seen),
        dcc.Store(id="face", data=face),
        html.Div([html.Div(said, id="verdict"), proof], className="top"),
        html.Div(told, id="findings"),
        _toolbar(span),
        html.Section(plots, className="plots", **{"aria-label": "Plots"}),
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


def _toolbar(span: Span | None) -> Any:
    """Which steps the plots show; every plot shows the same ones."""
    return html.Div(
        [
            html.H2("Plots"),
            html.Span(id="span-text", className="dim", children="whole run"),
            html.Button("Whole run", id="whole", className="button", hidden=span is None),
        ],
        className="toolbar",
    )


def _panel(name: str, figure: dict[str, Any] | None, style: dict[str, str]) -> Any:
    head, about = (FIGURES[name].title, FIGURES[name].about) if name in FIGURES else PROOF_SAYS
    graph = dcc.Graph(
        id={"type": "graph", "name": name},
        figure=figure or BLANK,
        config=GRAPH,
        style={"height": "var(--graph)"},
        responsive=True,
        clear_on_unhover=True,
    )
    words = html.Div([html.H3(head), html.P(about, className="dim")], className="panel-head")
    return html.Figure(
        [words, graph],
        id={"type": "panel", "name": name},
        className="card panel",
        style=style,
        **{"data-name": name, "aria-label": f"{head}: {about}"},
    )


def _drawn(
    file: Watched, name: str, span: Span | None, seen: dict[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """A figure and whether its panel is shown; notes the figure's digest in ``seen``."""
    drawn = file.draw(name, span)
    seen[name] = drawn.digest if drawn else ""
    return (json.loads(drawn.json), {}) if drawn else (None, {"display": "none"})


def parse_span(text: str) -> Span | None:
    """``331-505`` as two steps; None for anything else."""
    found = re.fullmatch(r"(\d{1,15})-(\d{1,15})", text or "")
    return as_span([int(found[1]), int(found[2])]) if found else None


def as_span(value: Any) -> Span | None:
    """What the page sent as its range of steps, if it is one."""
    ends = [number(item) for item in value] if isinstance(value, list | tuple) else []
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return None
    first, last = (int(min(max(end, -(2**53)), 2**53)) for end in (ends[0], ends[1]))
    return (first, last) if first < last else None


def register(app: dash.Dash, live: Live) -> None:
    """The page's callbacks."""
    _register_browser(app)

    @app.callback(  # type: ignore[untyped-decorator]
        Output("verdict", "children"),
        Output("findings", "children"),
        Output("below", "children"),
        Output("face", "data"),
        Output("tick", "interval"),
        Output("seen", "data"),
        Output({"type": "graph", "name": ALL}, "figure"),
        Output({"type": "panel", "name": ALL}, "style"),
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
    began = time.monotonic()
    view, file = live.view(key), live.file(key)
    if view is None or file is None:
        raise dash.exceptions.PreventUpdate
    now = dict(seen)
    graphs, panels = _changed(file, as_span(pulse.get("span")), pulse.get("shown"), now)
    texts = _texts(view, file, now)
    if now == seen:
        raise dash.exceptions.PreventUpdate
    cost = 1000 * COST_FACTOR * (time.monotonic() - began)
    pace = next((pace for pace in PACES if pace >= cost), PACES[-1])
    return (*texts, max(pace, WHEN_OVER) if view.over else pace, now, graphs, panels)


def _texts(view: View, file: Watched, seen: dict[str, Any]) -> list[Any]:
    """Verdict, findings, what stands below, and the tab's title: each only if it reads differently now."""
    if seen.get("version") == view.version:
        return [dash.no_update] * 4
    seen["version"] = view.version
    made = {"verdict": verdict(view), "findings": findings(view, file.spot), "below": below(view), "face": title(view)}
    changed = []
    for name, content in made.items():
        digest = _digest(content)
        changed.append(content if seen.get(f"text {name}") != digest else dash.no_update)
        seen[f"text {name}"] = digest
    return changed


def _digest(content: Any) -> str:
    return hashlib.sha1(to_json_plotly(content).encode()).hexdigest()[:12]


def _changed(file: Watched, span: Span | None, shown: Any, seen: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The figures that are on screen (all, if that is not known) and differ from what the page has."""
    graphs: list[Any] = []
    panels: list[Any] = []
    for name in NAMES:
        before = seen.get(name)
        # a figure that was absent has no place on screen yet, so nobody can tell whether it would be seen
        wanted = not isinstance(shown, list) or name in shown or not before
        figure, style = _drawn(file, name, span, seen) if wanted else (None, {})
        changed = wanted and seen[name] != before
        graphs.append(figure if changed and figure else dash.no_update)
        panels.append(style if changed else dash.no_update)
    return graphs, panels


def _register_browser(app: dash.Dash) -> None:
    """What happens in the browser alone (assets/live.js)."""
    here = [State("busy", "data"), State("span", "data"), State("shown", "data")]
    graphs, buttons = (
        {"type": "graph", "name": ALL},
        {"type": "zoom", **dict.fromkeys(("index", "first", "last", "figure"), ALL)},
    )
    for function, outputs, inputs in (
        (
            "pulse",
            [Output("pulse", "data")],
            [Input("tick", "n_intervals"), Input("span", "data"), Input("shown", "data"), *here],
        ),
        (
            "zoom",
            [Output("span", "data")],
            [
                Input(graphs, "relayoutData"),
                Input(buttons, "n_clicks"),
                Input("whole", "n_clicks"),
                State("span", "data"),
            ],
        ),
        ("range", [Output("span-text", "children"), Output("whole", "hidden")], [Input("span", "data")]),
        ("face", [Output("face", "modified_timestamp")], [Input("face", "data")]),
    ):
        app.clientside_callback(
            dash.ClientsideFunction("trainwatch", function),
            *outputs,
            *inputs,
            prevent_initial_call=function in ("pulse", "zoom"),
        )

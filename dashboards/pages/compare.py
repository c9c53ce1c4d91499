"""Several runs on one page: where they part first, how they stand, and their curves over each other."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from typing import Any, Final

import dash
import dash_mantine_components as dmc
from dash import Patch, dcc, html
from dash.dependencies import ALL, Input, Output, State

from dashboards.asked import Asked
from dashboards.live import Live, View
from dashboards.pages import sides
from dashboards.pages.look import controls, offered, stores
from dashboards.pages.run import BLANK, COST_FACTOR, GRAPH, PACES, WHEN_OVER, digest
from dashboards.together import FEWEST, MORE, MOST, READING, Bench, Chosen, Together
from trainwatch.axis import ALIGNED
from trainwatch.figures import blank
from trainwatch.text.wording import clean

FIRST: Final = 4  # plots that come with the page; the others when they are on screen
OFFERED: Final = 1000  # channels and runs that a list offers
ADDED: Final = "Added"
PARTS: Final = ("verdict", "runs", "settings", "note", "below")
TEXTS: Final = (*(f"compare-{part}" for part in PARTS), "findings")
Drawing = tuple[Together, Bench, Chosen, Asked]


def layout(together: Together, search: str) -> Any:
    """The page as it stands now, with the runs and the look that its address asks for."""
    chosen, asked = Chosen.at(search), Asked.at(search, ALIGNED)
    bench, left_out = together.gather(chosen)
    axes, face = _axes(bench, asked), sides.title(bench)
    made = _made(bench, left_out, chosen, asked)
    seen: dict[str, Any] = {"axes": digest(axes), "offered": digest(_channels(bench, chosen)), "face": digest(face)}
    seen |= {f"text {name}": digest(content) for name, content in made.items()}
    plots = _plots((together, bench, chosen, _possible(asked, bench)), seen)
    part = {name: html.Div(made[name], id=name) for name in TEXTS}
    baseline = bench.views[bench.baseline].key if bench.views else chosen.baseline or next(iter(chosen.keys), "")
    table = dmc.RadioGroup(part["compare-runs"], id="compare-baseline", value=baseline)
    shown = _switch("settings", "all, not only what differs", chosen.settings)
    return [
        *_stores(chosen, asked, WHEN_OVER if _over(bench, left_out) else PACES[0]),
        dcc.Store(id="compare-seen", data=seen),
        dcc.Store(id="face", data=face),
        part["compare-verdict"],
        _section("Runs", table),
        _choice(together.live, chosen),
        _section("Settings", part["compare-settings"], shown),
        _section("Findings", part["findings"]),
        controls(asked, axes, *_options(bench, chosen)),
        part["compare-note"],
        html.Section(plots, id="compare-plots", **{"aria-label": "Plots"}),
        part["compare-below"],
    ]


def _axes(bench: Bench, asked: Asked) -> tuple[str, ...]:
    """What the plots can be drawn against, and what is asked for although the runs do not tell it (yet)."""
    return tuple(name for name in ALIGNED if name in (*bench.axes, asked.against))


def _stores(chosen: Chosen, asked: Asked, pace: int) -> list[Any]:
    return [
        dcc.Interval(id="compare-tick", interval=pace),
        dcc.Store(id="compare-keys", data=list(chosen.keys)),
        dcc.Store(id="compare-options", data=chosen.kept),
        dcc.Store(id="compare-pulse"),
        dcc.Store(id="compare-busy", data=False),
        dcc.Store(id="shown", data=None),
        *stores(asked),
    ]


def _over(bench: Bench, left_out: dict[str, str]) -> bool:
    """Whether nothing more is expected of any run; one that is not there may come, but nobody waits for it."""
    return READING not in left_out.values() and all(view.over for view in bench.views)


def _possible(asked: Asked, bench: Bench) -> Asked:
    """What is asked for, on an axis that these runs have."""
    against = asked.against if asked.against in bench.axes else "step"
    unit, ends = (asked.unit, asked.ends) if asked.unit in bench.axes else ("step", None)
    return replace(asked, against=against, unit=unit, ends=ends)


def _section(head: str, content: Any, *more: Any) -> Any:
    words = html.Div([html.H2(head), *more], className="toolbar plain")
    return html.Section([words, html.Div(content, className="card side")], **{"aria-label": head})


def _switch(name: str, label: str, on: bool) -> Any:
    return dmc.Switch(id=f"compare-{name}", label=label, checked=on, size="xs")


def _choice(live: Live, chosen: Chosen) -> Any:
    """Which runs are compared; the page is made anew for others."""
    known = sorted(file.key for file in live.files())[:OFFERED]
    keys = dict.fromkeys([*chosen.keys, *known])
    select = dmc.MultiSelect(
        id="compare-choice",
        data=[{"value": key, "label": key} for key in keys],
        value=list(chosen.keys),
        maxValues=MOST,
        searchable=True,
        clearable=True,
        size="xs",
        label=f"Choose {FEWEST} to {MOST} runs",
    )
    go = html.Button("Compare", id="compare-go", className="button")
    return html.Details(
        [html.Summary("Choose other runs"), html.Div([select, go], className="choice")],
        className="card choose",
        open=len(chosen.keys) < FEWEST,
    )


def _options(bench: Bench, chosen: Chosen) -> list[Any]:
    more = dmc.MultiSelect(
        id="compare-more",
        data=_channels(bench, chosen),
        value=list(chosen.more),
        maxValues=MORE,
        searchable=True,
        clearable=True,
        size="xs",
        placeholder="add a channel",
        **{"aria-label": "Add a channel"},
    )
    return [
        _switch("difference", "difference to the baseline", chosen.difference),
        _switch("seeds", "seeds as mean and band", chosen.seeds),
        more,
    ]


def _channels(bench: Bench, chosen: Chosen) -> list[dict[str, str]]:
    """What may be overlaid besides the usual: what somebody has chosen, then what most runs have."""
    usual = {name for names in bench.usual().values() for name in names}
    others = sorted((name for name in bench.where if name not in usual), key=lambda name: -len(bench.where[name]))
    names = dict.fromkeys([*chosen.more, *others[:OFFERED]])
    have = {name: f"{len(bench.where.get(name, ()))} of {len(bench.views)} runs" for name in names}
    return [{"value": name, "label": f"{clean(name, 80)} ({have[name]})"} for name in names]


def _made(bench: Bench, left_out: dict[str, str], chosen: Chosen, asked: Asked) -> dict[str, Any]:
    """The words and tables of the page, by the id of their place."""
    return {
        "compare-verdict": sides.verdict(bench, left_out),
        "compare-runs": sides.runs(bench),
        "compare-settings": sides.settings(bench, chosen),
        "compare-note": _note(bench, asked),
        "compare-below": sides.below(bench),
        "findings": sides.findings(bench),
    }


def _note(bench: Bench, asked: Asked) -> Any:
    """Who cannot be drawn against what is asked for."""
    if asked.against == "step":
        return None
    pairs = enumerate(zip(bench.labels, bench.views, strict=True))
    without = [name for index, (name, view) in pairs if not _tells(bench, index, view, asked.against)]
    if not without:
        return None
    return html.P(f"Not in the plots, as {asked.against} is not in their logs: {', '.join(without)}.", className="dim")


def _tells(bench: Bench, index: int, view: View, against: str) -> bool:
    if against == "stage":
        return index in bench.where.get("stage", ())
    return view.facts is not None and against in view.facts.axes


def _plan(bench: Bench, chosen: Chosen) -> dict[str, list[str]]:
    """The channels to overlay, under what they belong to."""
    usual = bench.usual()
    known = {name for names in usual.values() for name in names}
    added = [name for name in chosen.more if name in bench.where and name not in known]
    return {head: names for head, names in {ADDED: added, **usual}.items() if names}


def _names(plan: dict[str, list[str]]) -> dict[str, str]:
    """Each channel by the name that its plot has on the page: no text of a log becomes part of an id."""
    return {hashlib.sha1(one.encode("utf-8", "replace")).hexdigest()[:10]: one for own in plan.values() for one in own}


def _plots(drawing: Drawing, seen: dict[str, Any]) -> list[Any]:
    """All the plots; those that are likely on screen with their figures. Notes in ``seen`` what is there."""
    _, bench, chosen, _ = drawing
    plan = _plan(bench, chosen)
    names = _names(plan)
    seen["names"], seen["figures"] = list(names), {}
    figures = {name: _figure(drawing, one, name, seen) for name, one in list(names.items())[:FIRST]}
    groups = []
    for head, own in plan.items():
        panels = [_panel(name, one, figures.get(name)) for name, one in names.items() if one in own]
        heading = html.H3(head, className="group-head")
        groups.append(html.Section([heading, html.Div(panels, className="plots")], className="group"))
    return groups


def _panel(name: str, channel: str, figure: dict[str, Any] | None) -> Any:
    graph = dcc.Graph(
        id={"type": "graph", "name": name},
        figure=figure or BLANK,
        config=GRAPH,
        style={"height": "var(--graph)"},
        responsive=True,
        clear_on_unhover=True,
    )
    said = clean(channel, 80)
    large = html.Button("⤢", className="tool enlarge", title="Full screen", **{"aria-label": f"{said}: full screen"})
    head = html.Div([html.H3(said), html.Span(large, className="tools")], className="panel-head")
    return html.Figure(
        [head, graph], className="card panel", **{"data-name": name, "aria-label": f"{said} of the runs"}
    )


def _figure(drawing: Drawing, channel: str, name: str, seen: dict[str, Any]) -> Any:
    """What the page does not have yet of a figure, else None."""
    together, bench, chosen, asked = drawing
    state = digest([bench.versions, bench.stamp, bench.baseline, chosen.difference, chosen.seeds, repr(asked)])
    before, shown = seen["figures"].get(name, ("", ""))
    if state == before:
        return None
    drawn = together.draw(bench, channel, chosen, asked)
    text = drawn.json if drawn else str(blank(_why_blank(bench, channel, chosen), None).to_json())
    content = drawn.digest if drawn else digest(text)
    seen["figures"] = {**seen["figures"], name: (state, content)}
    return _changes(together.sent(shown), json.loads(text)) if content != shown else None


def _changes(before: str | None, figure: dict[str, Any]) -> Any:
    """What has changed of a figure that the page has; the whole of it if it has no such curves."""
    old = json.loads(before) if before else {"data": []}
    pairs = list(zip(old["data"], figure["data"], strict=False))
    if len(old["data"]) != len(figure["data"]) or any(a.get("name") != b.get("name") for a, b in pairs):
        return figure
    patch = Patch()
    for index, (a, b) in enumerate(pairs):
        if a != b:
            patch["data"][index] = b
    if old["layout"] != figure["layout"]:
        patch["layout"] = figure["layout"]
    return patch


def _why_blank(bench: Bench, channel: str, chosen: Chosen) -> str:
    lacks = chosen.difference and bench.baseline not in bench.where.get(channel, ())
    return "the baseline has no such channel" if lacks else "no value to show"


def register(app: dash.Dash, together: Together) -> None:
    """The page's callbacks."""
    _register_browser(app)
    again = {"allow_duplicate": True}  # the run's page has parts of the same names

    @app.callback(  # type: ignore[untyped-decorator]
        *(Output(name, "children", **(again if name == "findings" else {})) for name in TEXTS),
        Output("face", "data", **again),
        Output("compare-tick", "interval"),
        Output("against", "data", **again),
        Output("compare-more", "data"),
        Output("compare-plots", "children"),
        Output("compare-seen", "data"),
        Output({"type": "graph", "name": ALL}, "figure", **again),
        Input("compare-pulse", "data"),
        State("compare-keys", "data"),
        State("compare-seen", "data"),
        State({"type": "graph", "name": ALL}, "id"),
        prevent_initial_call=True,
        running=[(Output("compare-busy", "data"), True, False)],
    )
    def tick(pulse: dict[str, Any], keys: list[str], seen: dict[str, Any], graphs: list[dict[str, str]]) -> Any:
        return update(together, pulse or {}, keys, seen or {}, [one["name"] for one in graphs])


def update(together: Together, pulse: dict[str, Any], keys: Any, seen: dict[str, Any], graphs: list[str]) -> Any:
    """What has changed for a page that has ``seen`` these digests; PreventUpdate if nothing has."""
    began = time.monotonic()
    chosen = Chosen.of(keys, pulse.get("options"))
    bench, left_out = together.gather(chosen)
    asked = Asked.of(pulse.get("look"), pulse.get("span"), ALIGNED)
    now = {**seen}
    told = _told(bench, left_out, chosen, asked, now)
    plots, figures = _drawn((together, bench, chosen, _possible(asked, bench)), now, pulse.get("shown"), graphs)
    if now == seen:
        raise dash.exceptions.PreventUpdate
    cost = 1000 * COST_FACTOR * (time.monotonic() - began)
    pace = next((pace for pace in PACES if pace >= cost), PACES[-1])
    pace = max(pace, WHEN_OVER) if _over(bench, left_out) else pace
    *texts, face, axes, offer = told
    return (*texts, face, pace, axes, offer, plots, now, figures)


def _told(bench: Bench, left_out: dict[str, str], chosen: Chosen, asked: Asked, seen: dict[str, Any]) -> list[Any]:
    """The words, the tab's title, and what the controls offer: each only if it is not what the page has."""
    state = digest([bench.versions, bench.stamp, bench.baseline, chosen.kept, left_out, repr(asked)])
    if seen.get("state") == state:
        return [dash.no_update] * (len(TEXTS) + 3)
    seen["state"] = state
    made = _made(bench, left_out, chosen, asked)
    axes = _news(seen, "axes", _axes(bench, asked))
    return [
        *(_news(seen, f"text {name}", made[name]) for name in TEXTS),
        _news(seen, "face", sides.title(bench)),
        axes if axes is dash.no_update else offered(axes),
        _news(seen, "offered", _channels(bench, chosen)),
    ]


def _news(seen: dict[str, Any], name: str, content: Any) -> Any:
    """The content if it is not what the page has."""
    known, seen[name] = seen.get(name), digest(content)
    return dash.no_update if known == seen[name] else content


def _drawn(drawing: Drawing, seen: dict[str, Any], shown: Any, graphs: list[str]) -> tuple[Any, list[Any]]:
    """The plots anew if there are others now, else the figures on screen (all, if that is not known) that differ."""
    _, bench, chosen, _ = drawing
    names = _names(_plan(bench, chosen))
    if list(names) != seen.get("names"):
        return _plots(drawing, seen), [dash.no_update] * len(graphs)
    figures = []
    for name in graphs:
        wanted = name in names and (not isinstance(shown, list) or name in shown)
        figure = _figure(drawing, names[name], name, seen) if wanted else None
        figures.append(dash.no_update if figure is None else figure)
    return dash.no_update, figures


def _register_browser(app: dash.Dash) -> None:
    """What happens in the browser alone (assets/compare.js)."""
    controls_ = [Input("compare-baseline", "value")]
    controls_ += [Input(f"compare-{name}", "checked") for name in ("difference", "seeds", "settings")]
    app.clientside_callback(
        dash.ClientsideFunction("compare", "options"),
        Output("compare-options", "data"),
        *controls_,
        Input("compare-more", "value"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        dash.ClientsideFunction("compare", "pulse"),
        Output("compare-pulse", "data"),
        Input("compare-tick", "n_intervals"),
        *(Input(name, "data") for name in ("span", "look", "shown", "compare-options")),
        State("compare-busy", "data"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        dash.ClientsideFunction("compare", "go"),
        Output("where", "search"),
        Input("compare-go", "n_clicks"),
        State("compare-choice", "value"),
        prevent_initial_call=True,
    )

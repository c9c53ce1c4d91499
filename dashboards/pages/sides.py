"""The words and tables of a comparison: the verdict, the runs, their settings, findings and values side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, urlencode

import dash_mantine_components as dmc
from dash import dcc, html

from dashboards.live import View
from dashboards.pages.finding import severity
from dashboards.together import FEWEST, READING, Bench, Chosen
from dashboards.words import STATES, SYMBOLS, WORDS, health, newest, number
from trainwatch.compare import ABSENT, Found
from trainwatch.figures import style
from trainwatch.text import partings
from trainwatch.text.comparison import sections, setting
from trainwatch.views.evaluations import TRAINING

SETTINGS = 500  # rows of a table: beyond, it is data and not settings
FINDINGS = 100
NAMED = 3  # channels and suspects that the verdict names
OWN = ("Runs", "Settings that differ", "Findings")  # sections of a comparison that have a table of their own here
RANKS = ("critical", "warning", "info", "unknown", "ok")


def verdict(bench: Bench, left_out: dict[str, str]) -> Any:
    """Where the runs part first and which setting is suspect, in one sentence; and who is not here."""
    parted = bench.first() is not None
    missing = [html.Li([html.Code(key), f": {why}"]) for key, why in left_out.items()]
    waits = len(bench.views) < FEWEST and READING in left_out.values()
    lead = (
        "Reading: the first reading of a long log takes a while; the page fills by itself."
        if waits
        else sentence(bench)
    )
    sure = partings.certainty(bench.said) if bench.said and len(bench.views) >= FEWEST else ()
    heads = [html.H1(_heading(bench)), html.P(lead, className="lead", role="status")]
    heads += [html.P(line, className="dim") for line in sure]
    told = html.Ul(missing, className="left-out", **{"aria-label": "Runs that are not compared"}) if missing else None
    return html.Section([*heads, told], className=f"card verdict {'info' if parted else 'unknown'}")


def _heading(bench: Bench) -> str:
    return f"{len(bench.views)} runs compared" if len(bench.views) >= FEWEST else "Nothing to compare yet"


def sentence(bench: Bench) -> str:
    """The verdict as text."""
    if bench.said is None or len(bench.views) < FEWEST:
        return "A comparison needs at least two runs that can be read."
    return partings.verdict(bench.said)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def runs(bench: Bench) -> Any:
    """A row for each run: its line in the plots, how it is, and whether it is the baseline."""
    heads = ("Baseline", "Run", "State", "Health", "Steps", "Last loss", "Best validation", "Speed")
    rows = [_run(bench, index, view) for index, view in enumerate(bench.views)]
    return _table(heads, rows, "Runs")


def _run(bench: Bench, index: int, view: View) -> Any:
    told, facts = view.diagnosis, view.facts
    if told is None or facts is None:
        return None
    name, level = bench.labels[index], health(told)
    state = html.Span(
        [html.Span(className="dot", **{"aria-hidden": "true"}), STATES[told.status]], className=f"state {told.status}"
    )
    link = dcc.Link(name, href=f"/run?path={quote(view.key, safe='')}", className="run-name")
    file = html.Div(view.key + newest(view.runs), className="dim file")
    root = told.root_cause or (told.findings[0] if told.findings else None)
    cause = html.Div(root.rule, className="dim") if root else None
    radio = dmc.Radio(value=view.key, size="xs", **{"aria-label": f"{name} is the baseline"})
    cells = [html.Td(radio), html.Td([html.Div([swatch(index), link]), file]), html.Td(state)]
    cells += [html.Td([severity(level), cause]), html.Td(facts.steps, className="number")]
    cells += [html.Td(facts.loss, className="number"), html.Td(_best(bench, index)), html.Td(facts.speed)]
    return html.Tr(cells, className="baseline" if index == bench.baseline else "")


def swatch(index: int) -> Any:
    """The line of a run as the plots draw it: colour and dashes."""
    line = style.line(index)
    colour, lengths = line["color"], [part.removesuffix("px") for part in line["dash"].split(",")]
    stops, at = [], 0
    for number_, length in enumerate(lengths if line["dash"] != "solid" else ()):
        shown = colour if number_ % 2 == 0 else "transparent"
        stops.append(f"{shown} {at}px {at + int(length)}px")
        at += int(length)
    painted = f"repeating-linear-gradient(90deg, {', '.join(stops)})" if stops else colour
    return html.Span(className="swatch", style={"background": painted}, **{"aria-hidden": "true"})


def _best(bench: Bench, index: int) -> list[Any]:
    """The best validation loss, else the best of another figure of merit, and where."""
    at = bench.order.index(index)
    splits = [item for item in bench.said.values if item.channel.strip() in bench.evaluated] if bench.said else []
    there = [one for one in splits if one.best[at] is not None and one.channel.partition(" ")[0] not in TRAINING]
    best = min(there, key=lambda one: not one.channel.endswith(" loss"), default=None)
    if best is None:
        return ["n/a"]
    where = html.Div(f"{best.channel.strip()}, step {best.best_step[at] or 0:,}", className="dim")
    return [number(best.best[at] or 0.0), where]


def settings(bench: Bench, chosen: Chosen) -> Any:
    """The settings that differ, or all of them; those that differ carry a sign."""
    if bench.said is None:
        return None
    differing = {item.path: item.values for item in bench.said.config}
    shown = differing
    if chosen.settings:
        own = [bench.settings[index] for index in bench.order]
        paths = dict.fromkeys(path for one in own for path in one if path)
        shown = {path: tuple(one.get(path, ABSENT) for one in own) for path in paths}
    if not shown:
        known = any(bench.settings)
        return html.P("No setting differs." if known else "No run recorded its settings.", className="dim")
    suspects = {item.path for item in bench.said.suspects}
    rows = [
        _setting(path, values, path in differing, path in suspects) for path, values in list(shown.items())[:SETTINGS]
    ]
    cut = (
        html.P(f"The first {SETTINGS} of {len(shown):,} are shown.", className="dim") if len(shown) > SETTINGS else None
    )
    return [_table(("Setting", *_heads(bench)), rows, "Settings"), cut]


def _setting(path: str, values: tuple[Any, ...], differs: bool, suspect: bool) -> Any:
    sign = html.Span("≠ ", className="differs", title="differs") if differs else None
    chip = html.Span("suspect", className="chip role warning") if suspect else None
    cells = [html.Td(setting(value), className="other" if value != values[0] else "") for value in values]
    return html.Tr([html.Th([sign, html.Code(path), " ", chip], scope="row"), *cells])


def _heads(bench: Bench) -> list[Any]:
    """The runs as heads of columns, the baseline first."""
    names = [[swatch(index), bench.labels[index]] for index in bench.order]
    names[0] += [html.Div("baseline", className="dim")]
    return names


def findings(bench: Bench) -> Any:
    """Which run has which finding, and since when."""
    if bench.said is None or not bench.said.findings:
        return html.P("No run has a finding.", className="dim")
    ordered = sorted(bench.said.findings, key=lambda one: min(step for step in one.first_step if step is not None))
    rows = [_finding(bench, one) for one in ordered[:FINDINGS]]
    cut = f"The first {FINDINGS} of {len(ordered):,} are shown."
    table = _table(("Finding", *_heads(bench)), rows, "Findings")
    return [table, html.P(cut, className="dim") if len(ordered) > FINDINGS else None]


def _finding(bench: Bench, found: Found) -> Any:
    head = html.Th([html.Strong(found.rule), html.Div(found.subject, className="dim")], scope="row")
    steps = zip(bench.order, found.first_step, strict=True)
    return html.Tr([head, *(html.Td(_since(bench.views[index], found, step)) for index, step in steps)])


def _since(view: View, found: Found, step: int | None) -> Any:
    """A cell: since when a run has a finding; a dash where it has not, and a word where nobody could tell."""
    told = view.diagnosis
    if step is None or told is None:
        unknown = told is None or found.rule in told.withheld or found.rule in told.failed
        return html.Span("not judged" if unknown else "-", className="dim")
    own = next((one for one in told.findings if (one.rule, one.subject) == (found.rule, found.subject)), None)
    at = urlencode({"path": view.key})
    return dcc.Link(
        [severity(own.severity if own else "info"), f" step {step:,}"], href=f"/run?{at}", className="since"
    )


def below(bench: Bench) -> Any:
    """What `trainwatch compare` says besides: pair by pair, last and best values, where every channel parts."""
    if bench.said is None or len(bench.views) < FEWEST:
        return None
    folds = [_fold("Pair by pair", [html.Ul([html.Li(one) for one in partings.summary(bench.said)])])]
    for section in sections(bench.said):
        if section.title not in OWN:
            rows = [html.Tr([html.Th(row[0], scope="row"), *map(html.Td, row[1:])]) for row in section.rows[:SETTINGS]]
            folds.append(_fold(section.title, [_table(section.head, rows, section.title)]))
    return html.Section(folds, className="below")


def _fold(name: str, content: list[Any]) -> Any:
    return html.Details([html.Summary(name), html.Div(content)], className="card")


def _table(heads: Iterable[Any], rows: list[Any], name: str) -> Any:
    head = html.Thead(html.Tr([html.Th(one, scope="col") for one in heads]))
    table = html.Table([head, html.Tbody(rows)], **{"aria-label": name})
    return html.Div(table, className="scroll", tabIndex="0", role="region", **{"aria-label": name})


def title(bench: Bench) -> dict[str, str]:
    """What the browser's tab says: the worst severity of all first."""
    levels = [health(view.diagnosis) for view in bench.views if view.diagnosis]
    level = min(levels, key=RANKS.index, default="unknown")
    word = f"{SYMBOLS[level]} {WORDS[level]}: " if level in RANKS[:3] else ""
    names = _listed(list(bench.labels)) or "runs"
    return {"title": f"{word}{names} compared - trainwatch", "icon": level if level != "unknown" else "none"}

"""The words of a run's page above its plots: the verdict, and the findings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from dash import html

from dashboards.facts import Facts
from dashboards.live import View
from dashboards.pages.finding import as_yaml, card, nested, severity
from dashboards.words import STATES, SYMBOLS, WORDS, age, broken, health, newest
from trainwatch.diagnosis import Diagnosis
from trainwatch.engine import catalogue
from trainwatch.figures import Span
from trainwatch.schema import Finding

OPEN = 5  # findings that are not folded away: the root cause and two rows, so that the plots are near
CARDS = 60  # findings that become cards at all; a run with more is not read one by one

ICONS = ("critical", "warning", "info", "ok")  # assets/icon-*.svg

Spot = Callable[[Finding], tuple[Span, str | None]]


def title(view: View) -> dict[str, str]:
    """What the browser's tab says: the worst severity first."""
    told = view.diagnosis
    if told is None:
        return {"title": f"{view.key} - trainwatch", "icon": "none"}
    level = health(told)
    word = f"{SYMBOLS[level]} {WORDS[level]}: " if told.worst else ""
    return {"title": f"{word}{told.run} - trainwatch", "icon": level if level in ICONS else "none"}


def verdict(view: View) -> Any:
    """What is wrong, in one sentence; and how far the run is."""
    told, facts = view.diagnosis, view.facts
    if told is None or facts is None:
        return _unread(view)
    root = told.root_cause or (told.findings[0] if told.findings else None)
    level = health(told)
    return html.Section(
        [
            html.Div(
                [html.H1(told.run), _state(told.status), html.Span(view.key + newest(view.runs), className="dim file")],
                className="run-head",
            ),
            html.Div(_headline(told, root, level), className="headline", role="status"),
            html.P(root.message if root else _nothing_found(told), className="lead"),
            _facts(facts, going=told.status == "running"),
            _take(view),
        ],
        className=f"card verdict {level}",
    )


def _unread(view: View) -> Any:
    if view.error:
        head, said = "This file cannot be read", view.error
    else:
        head, said = "Reading …", "The first reading of a long log takes a while; the page fills by itself."
    return html.Section([html.H1(view.key), html.H2(head), html.P(said)], className="card verdict unknown")


def _state(status: Any) -> Any:
    return html.Span(
        [html.Span(className="dot", **{"aria-hidden": "true"}), STATES[status]], className=f"state {status}"
    )


def _headline(told: Diagnosis, root: Finding | None, level: str) -> list[Any]:
    if root is None:
        return [severity(level, "A rule broke" if told.failed else "Nothing found")]
    label = "root cause" if told.root_cause else "first finding"
    since = f"since step {root.first_step:,}"
    return [severity(level), html.Span([f"{label} ", html.Strong(root.rule), f" ({root.subject}), {since}"])]


def _nothing_found(told: Diagnosis) -> str:
    judged = len(catalogue()) - len(told.withheld.keys() | told.failed.keys())
    if not judged and not told.failed:
        return "No rule could judge this run: the channels that they need were not recorded."
    silent = f"; {len(told.withheld)} could not judge it, see below" if told.withheld else ""
    broke = f"; {broken(told)}" if told.failed else ""
    return f"{judged} rules looked at every step and have nothing to say{silent}{broke}."


def _facts(facts: Facts, *, going: bool) -> Any:
    told = {"steps": facts.steps, "last loss": facts.loss, "speed": facts.speed, "last row": age(facts.touched)}
    told |= {"time left": facts.left} if facts.left and going else {}
    rows = [html.Div([html.Dt(name), html.Dd(value)]) for name, value in (told | facts.about).items()]
    return html.Div([_progress(facts), html.Dl(rows, className="facts")])


def _take(view: View) -> Any:
    """The post-mortem to take along, and a word from the browser when the run turns worse."""
    at = urlencode({"path": view.key})
    post_mortem = html.A("Post-mortem", href=f"/take/post-mortem.html?{at}", className="button", download=True)
    notify = html.Button("Notify me", id="notify", className="button", hidden=True) if not view.over else None
    return html.Div([post_mortem, notify], className="take")


def _progress(facts: Facts) -> Any:
    if facts.progress is None:
        return None
    done = f"{100 * facts.progress:.1f}"
    bar = html.Div(style={"width": f"{done}%"}, className="done")
    values = {"aria-valuenow": done, "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": "steps done"}
    return html.Div(bar, className="progress", role="progressbar", **values)


def findings(view: View, spot: Spot) -> Any:
    """The findings as cards, from cause to effect."""
    told = view.diagnosis
    if told is None or not told.findings:
        return None
    cards = [card(one, index, spot(one), _role(told, one)) for index, one in enumerate(told.findings[:CARDS])]
    rest = html.Details([html.Summary(f"{len(cards) - OPEN} more"), html.Div(cards[OPEN:], className="cards")])
    shown = [*cards[:OPEN], html.Div(rest, className="more") if len(cards) > OPEN else None]
    head = html.Div([html.H2("Findings"), html.Span(_counted(told), className="dim")], className="toolbar plain")
    return html.Section([head, _prescription(told), html.Div(shown, className="cards")], **{"aria-label": "Findings"})


def _counted(told: Diagnosis) -> str:
    counts = {level: sum(one.severity == level for one in told.findings) for level in ("critical", "warning", "info")}
    cut = f"; the first {CARDS} are shown" if len(told.findings) > CARDS else ""
    return ", ".join(f"{count} {level}" for level, count in counts.items() if count) + cut


def _role(told: Diagnosis, finding: Finding) -> str:
    if told.root_cause is not None and finding.key == told.root_cause.key:
        return "root cause"
    return "follows from the root cause" if finding.key in told.explained else ""


def _prescription(told: Diagnosis) -> Any:
    patch = told.prescription.patch
    if not patch or (told.root_cause and patch == told.root_cause.patch):
        return None  # the root cause's card shows it already
    return html.Pre(as_yaml(nested(patch)), className="card")

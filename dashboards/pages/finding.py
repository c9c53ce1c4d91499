"""A finding as a card: what, since when, the evidence, what to do, and the rule's own page."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import flask
import yaml
from dash import dcc, html

from dashboards.words import SYMBOLS, WORDS, number
from trainwatch.engine import catalogue
from trainwatch.figures import Span
from trainwatch.rule import Rule, page
from trainwatch.schema import Finding

PLAIN = re.compile(r"`([^`]+)`")


def card(finding: Finding, index: int, spot: tuple[Span, str | None], role: str = "") -> Any:
    """One finding; ``spot`` is where the plots show it, ``role`` says what it is to the root cause."""
    return html.Article(
        [
            html.Div(
                [
                    severity(finding.severity),
                    html.H3(finding.rule, className="rule"),
                    html.Span(finding.subject, className="chip"),
                    html.Span(role, className="chip role") if role else None,
                    html.Span(_when(finding), className="when"),
                ],
                className="card-head",
            ),
            html.P(finding.message, className="message"),
            _evidence(finding),
            html.P([html.Strong("What to do: "), *plain(finding.advice)], className="advice")
            if finding.advice
            else None,
            _patch(finding, index),
            html.Div([_show(finding, index, spot), _page(finding)], className="card-foot"),
        ],
        className=f"card finding {finding.severity}" + " first" * (index == 0),
    )


def severity(level: str, word: str | None = None) -> Any:
    """Symbol and word in one colour; neither says it alone."""
    symbol = html.Span(SYMBOLS[level], className="symbol", **{"aria-hidden": "true"})
    return html.Span([symbol, word or WORDS[level]], className=f"severity {level}")


def _when(finding: Finding) -> str:
    if finding.first_step == finding.last_step and finding.state == "over":
        return f"at step {finding.first_step:,}, over"
    if finding.state == "over":
        return f"steps {finding.first_step:,} to {finding.last_step:,}, over"
    return f"since step {finding.first_step:,}"


def _evidence(finding: Finding) -> Any:
    told = [html.Div([html.Dt(_words(name)), html.Dd(number(value))]) for name, value in finding.evidence.items()]
    sure = html.Div([html.Dt("confidence"), html.Dd(f"{finding.confidence:.0%}")])
    return html.Dl([*told[:12], sure], className="evidence")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _patch(finding: Finding, index: int) -> Any:
    if not finding.patch:
        return None
    text = as_yaml(nested(finding.patch))
    copy = dcc.Clipboard(content=text, title="Copy the patch", className="copy", id={"type": "copy", "index": index})
    return html.Div([html.Span("config patch", className="label"), copy, html.Pre(text)], className="patch")


def nested(patch: dict[str, Any]) -> dict[str, Any]:
    """Dotted config paths as the tree that a config file is."""
    tree: dict[str, Any] = {}
    for path, value in patch.items():
        *folders, leaf = str(path).split(".")
        place = tree
        for folder in folders:
            inner = place.setdefault(folder, {})
            if not isinstance(inner, dict):
                return dict(patch)  # one path goes through another's value: a tree cannot say it
            place = inner
        place[leaf] = value
    return tree


def as_yaml(value: Any) -> str:
    """YAML as the trainer takes it."""
    try:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()
    except yaml.YAMLError:
        return str(value)


def _show(finding: Finding, index: int, spot: tuple[Span, str | None]) -> Any:
    (first, last), figure = spot
    where = {"type": "zoom", "index": index, "first": first, "last": last, "figure": figure or ""}
    label = f"Show in the plots: {finding.rule} at step {finding.first_step}"
    return html.Button("Show in the plots", id=where, className="button", **{"aria-label": label})


def _page(finding: Finding) -> Any:
    """Where the rule's page unfolds; assets/live.js asks for it (:func:`register`) when somebody does."""
    if finding.rule not in catalogue():
        return None
    place = html.Div(className="page", **{"data-rule": finding.rule})
    return html.Details([html.Summary("About this rule"), place], className="rule-page")


def register(server: flask.Flask) -> None:
    """The rules' own pages, which a browser asks for when somebody unfolds one.

    They are no part of a Dash page: each of some 2,600 elements would be looked at again whenever anything changes.
    """

    @server.get("/rule/<name>")
    def about(name: str) -> flask.Response:
        if name not in catalogue():
            flask.abort(404, "there is no such rule.")
        return flask.jsonify(rule_page(catalogue()[name]))


def rule_page(rule: type[Rule]) -> list[dict[str, Any]]:
    """A rule's docstring as parts with a head and paragraphs; of a paragraph's pieces every other one is code."""
    parts = {name: text for name, text in page(rule).items() if text.strip()}
    return [{"head": name, "paragraphs": paragraphs(text)} for name, text in parts.items()]


def paragraphs(text: str) -> list[list[str]]:
    """A docstring's part as paragraphs, parted where code begins and where it ends."""
    blocks = (" ".join(block.split()) for block in textwrap.dedent(text).split("\n\n"))
    return [PLAIN.split(block) for block in blocks if block]


def plain(text: str) -> list[Any]:
    """Text with what stands between backticks as code; everything else stays text."""
    return [html.Code(part) if at % 2 else part for at, part in enumerate(PLAIN.split(text)) if part]

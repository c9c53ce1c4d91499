"""The words of a run's page below its plots: what happened, what the model said, how the log ends, the settings."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from dashboards.live import View
from dashboards.pages.finding import as_yaml, severity
from dashboards.story import Story
from trainwatch.diagnosis import Diagnosis
from trainwatch.report.moments import Moment

CONFIG_LIMIT = 100_000  # characters of a config that are shown; a longer one is data, not settings
CONFIG_LINES = 3_000  # lines that can be searched; beyond, the text stands as one


def below(view: View, story: Story) -> Any:
    """Each part folded away, but what somebody must not miss."""
    told, facts = view.diagnosis, view.facts
    if told is None or facts is None:
        return None
    config = as_yaml(facts.config)[:CONFIG_LIMIT] if facts.config else ""
    return html.Section(
        [
            _fold("Notes about the file", len(told.notes), [html.Ul([html.Li(note) for note in told.notes])], True),
            _fold("Traceback", len(story.traceback.splitlines()), [html.Pre(story.traceback)], True),
            _fold("What happened", len(story.moments), [_moments(story.moments)], False),
            _fold("Checkpoints", len(story.checkpoints), _checkpoints(story), False),
            _fold("Samples", len(story.samples), _samples(story) if story.samples else [], False),
            _fold("End of the log", len(story.tail), [html.Pre("\n".join(story.tail))], False),
            _fold("What could not be checked", len(told.withheld), _withheld(told), False),
            _fold("Configuration", len(facts.config), _config(config), False),
            _fold("Environment", len(story.environment), [_pairs(story.environment)], False),
        ],
        className="below",
    )


def _fold(name: str, count: int, content: list[Any], opened: bool) -> Any:
    if not count:
        return None
    return html.Details(
        [html.Summary([name, html.Span(f" {count}", className="dim")]), html.Div(content)],
        className="card",
        open=opened,
    )


def _moments(moments: tuple[Moment, ...]) -> Any:
    rows = [
        html.Tr(
            [
                html.Td(f"{one.step:,}", className="number"),
                html.Td(severity(one.severity, one.kind) if one.severity else one.kind, className="whole"),
                html.Td(one.text, className="said"),
                html.Td(one.when, className="dim whole"),
            ]
        )
        for one in moments
    ]
    return _table(("step", "what", "", "when"), rows)


def _checkpoints(story: Story) -> list[Any]:
    rows = [
        html.Tr(
            [
                html.Td(step, className="number"),
                html.Td(html.Code(path)),
                html.Td(metric, className="number"),
                html.Td("best" if best else ""),
            ]
        )
        for step, path, metric, best in story.checkpoints
    ]
    said = html.P(story.good_checkpoint) if story.good_checkpoint else None
    return [said, _table(("step", "file", "metric", ""), rows)]


def _samples(story: Story) -> list[Any]:
    return [
        html.P(f"What the model said at step {story.sampled:,}.", className="dim"),
        html.Ol([html.Li(html.Code(one)) for one in story.samples], className="samples"),
    ]


def _table(heads: tuple[str, ...], rows: list[Any]) -> Any:
    head = html.Thead(html.Tr([html.Th(name, scope="col") for name in heads]))
    return html.Div(html.Table([head, html.Tbody(rows)]), className="scroll", tabIndex="0")


def _pairs(pairs: tuple[tuple[str, str], ...]) -> Any:
    return _table(("", ""), [html.Tr([html.Td(name, className="dim"), html.Td(value)]) for name, value in pairs])


def _withheld(told: Diagnosis) -> list[Any]:
    # an element each: whenever anything on the page changes, Dash looks at all of its elements again
    rows = [html.Li(f"{rule} needs {_channels(missing)}") for rule, missing in sorted(told.withheld.items())]
    return [html.P("These rules wait for channels that the run does not record:"), html.Ul(rows)]


def _channels(names: list[str]) -> str:
    return " and ".join(name.replace("|", " or ") for name in names)


def _config(text: str) -> list[Any]:
    copy = dcc.Clipboard(content=text, title="Copy the configuration", className="copy", id="copy-config")
    lines = text.splitlines()
    if len(lines) > CONFIG_LINES:
        return [html.Div([copy, html.Pre(text)], className="patch")]
    search = dcc.Input(
        type="search", placeholder="search the settings", className="search-lines", id="config-search", debounce=False
    )
    shown = html.Pre([html.Span(line + "\n", className="line") for line in lines])
    return [search, html.Div([copy, shown], className="patch")]

"""The post-mortem as one HTML file that needs no network: what it runs is named by its hash, what it tells is text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from trainwatch.figures import FIGURES, Look, for_finding, proof, span_of
from trainwatch.report import chain, svg, templates
from trainwatch.report.content import SUMMARY, Content, summary
from trainwatch.report.markdown import together
from trainwatch.report.redaction import Redactor
from trainwatch.report.section import Section
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.text import wording
from trainwatch.text.wording import SYMBOLS

ROOM = 620_000  # bytes for all pictures: with the text the page stays below 1 MB
EMBEDDED = 24  # interactive figures of findings: each takes up to 100 kB
MOST_RAW = 700  # rows in a zoom that are all drawn: as many as a plot has pixels
ROWS_IN_ALL = 1200  # of each kind of table in all runs of a page together

DRAW = """
"use strict";
const draw = node => {
  if (node.dataset.drawn) return;
  node.dataset.drawn = "yes";
  const figure = JSON.parse(node.querySelector("script").textContent);
  Plotly.newPlot(node, figure.data, figure.layout, {displaylogo: false, displayModeBar: false});
  new ResizeObserver(() => Plotly.Plots.resize(node)).observe(node);
};
const nodes = [...document.querySelectorAll("[data-figure]")];
const seen = new IntersectionObserver(
  found => found.filter(item => item.isIntersecting).forEach(item => draw(item.target)), {rootMargin: "600px"});
nodes.forEach(node => seen.observe(node));
addEventListener("beforeprint", () => nodes.forEach(draw));
"""


@dataclass(frozen=True)
class Plot:
    """A figure and what stands beside it: a static drawing, or JSON for plotly."""

    title: str
    about: str
    drawing: svg.Drawing | None = None
    json: str = ""


@dataclass(frozen=True)
class Sheet:
    """One run's part of the page. ``undrawn`` are figures for which the page had no room."""

    content: Content
    findings: tuple[tuple[Finding, Plot | None], ...]
    chain: Plot | None
    sections: tuple[tuple[Section, tuple[Plot, ...]], ...]
    undrawn: int


def document(contents: Sequence[Content], redactor: Redactor | None = None, *, interactive: bool = False) -> str:
    """The whole page."""
    sheets = [_sheet(content, _Drawer(ROOM // len(contents), redactor, interactive)) for content in contents]
    scripts = _scripts() if interactive else []
    runs = [content.diagnosis.to_dict() for content in contents]
    return templates.page(
        "page.html.j2",
        scripts,
        sheets=sheets,
        together=together(contents, redactor) if len(contents) > 1 else [],
        summary=[SUMMARY, *summary(contents)],
        rows=max(20, ROWS_IN_ALL // len(contents)),
        data=_harmless(json.dumps(wording.strict({"version": 1, "runs": runs}), allow_nan=False)),
        wording=wording,
        symbols=SYMBOLS,
    )


class _Drawer:
    """Turns figures into what the page shows, as long as there is room."""

    def __init__(self, room: int, redactor: Redactor | None, interactive: bool) -> None:
        self.room, self.redactor, self.interactive = room, redactor, interactive
        self.undrawn = 0

    def plot(self, figure: go.Figure | None, title: str, about: str) -> Plot | None:
        if figure is None:
            return None
        if self.interactive:
            return Plot(title, about, json=_harmless(self._redacted(figure).to_json()))
        drawing = svg.drawing(figure)
        if drawing.weight > self.room:
            self.undrawn += 1
            return None
        self.room -= drawing.weight
        return Plot(title, about, self._told(drawing))

    def _redacted(self, figure: go.Figure) -> go.Figure:
        if self.redactor is None:
            return figure
        return go.Figure(self.redactor.tree(figure.to_plotly_json()), skip_invalid=True)

    def _told(self, drawing: svg.Drawing) -> svg.Drawing:
        """The drawing with its words redacted; its lines say nothing."""
        if self.redactor is None:
            return drawing
        hide = self.redactor.tree
        return replace(
            drawing,
            unit=hide(drawing.unit),
            yticks=hide(drawing.yticks),
            bands=hide(drawing.bands),
            marks=hide(drawing.marks),
            keys=hide(drawing.keys),
        )


def _sheet(content: Content, drawer: _Drawer) -> Sheet:
    """What matters most is drawn first, so that it is there when the room is used up."""
    run, said = content.run, content.diagnosis
    row = drawer.plot(chain.draw(run, said), chain.TITLE, chain.ABOUT)
    # a redacted finding may have another subject than the one that its figure is found by
    proofs = [_proof(run, finding, index, drawer) for index, finding in enumerate(content.originals)]
    sections = []
    for section in content.sections:
        drawn = (
            drawer.plot(FIGURES[name].draw(run, content.originals), FIGURES[name].title, FIGURES[name].about)
            for name in section.figures
        )
        plots = tuple(plot for plot in drawn if plot is not None)
        if plots or section.rows or (section.about and not section.figures):
            sections.append((section, plots))
    return Sheet(content, tuple(zip(said.findings, proofs, strict=True)), row, tuple(sections), drawer.undrawn)


def _proof(run: Run, finding: Finding, index: int, drawer: _Drawer) -> Plot | None:
    """The figure that proves a finding, raw, around its first step."""
    name = proof(run, finding)
    if name is None or (drawer.interactive and index >= EMBEDDED):
        return None
    span = _span(run, finding) or span_of(run, finding)
    inside = int(((run.train.step >= span[0]) & (run.train.step <= span[1]) & run.train.live).sum())
    raw = inside <= MOST_RAW
    figure = for_finding(run, finding, (finding,), Look(span, points=None if raw else MOST_RAW))
    rows = f"each of the {inside:,} rows" if raw else f"extremes of {inside:,} rows kept"
    about = f"{FIGURES[name].about} {wording.steps(*span).capitalize()}, {rows}, not smoothed."
    return drawer.plot(figure, FIGURES[name].title, about)


def _span(run: Run, finding: Finding) -> tuple[int, int] | None:
    """A finding about the header is shown on the whole run, for the damage is still to come; None: around its steps."""
    if run.first_step is None or run.last_step is None or finding.first_step > run.first_step:
        return None
    return (run.first_step, max(run.last_step, run.first_step + 1))


def _scripts() -> list[str]:
    from plotly.offline import get_plotlyjs

    return [get_plotlyjs(), DRAW]


def _harmless(text: str) -> str:
    """JSON that no HTML parser sees the end of a script in."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")

"""The post-mortem as one HTML file that needs no network: what it runs is named by its hash, what it tells is text."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from trainwatch.figures import FIGURES, Look, for_finding, proof
from trainwatch.report.content import Content
from trainwatch.report.markdown import value_rows
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.text import wording
from trainwatch.text.wording import SYMBOLS

FINDING_FIGURES = 12  # each takes about 100 kB: what follows from the twelfth finding is told, and not drawn

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
    """A figure and what stands beside it."""

    title: str
    about: str
    json: str


def document(content: Content) -> str:
    """The whole page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainwatch", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    overview = _overview(content)
    proofs = _proofs(content)
    scripts = [get_plotlyjs(), DRAW] if overview or any(proofs) else []
    page: str = environment.get_template("page.html.j2").render(
        content=content,
        said=content.diagnosis,
        findings=list(zip(content.diagnosis.findings, proofs, strict=True)),
        overview=overview,
        value_rows=value_rows(content),
        scripts=scripts,
        policy=_policy(scripts),
        data=_json(wording.strict({"version": 1, "runs": [content.diagnosis.to_dict()]})),
        wording=wording,
        symbols=SYMBOLS,
        clean=wording.clean,
    )
    return page


def _proofs(content: Content) -> list[Plot | None]:
    """For each finding the figure that proves it."""
    said = content.diagnosis
    plots: list[Plot | None] = []
    for index, finding in enumerate(said.findings):
        name = proof(content.run, finding) if index < FINDING_FIGURES else None
        figure = for_finding(content.run, finding, said.findings, Look(_span(content.run, finding))) if name else None
        plots.append(_plot(figure, name) if figure is not None and name else None)
    return plots


def _span(run: Run, finding: Finding) -> tuple[int, int] | None:
    """A finding about the header is shown on the whole run, for the damage is still to come; None: around its steps."""
    if run.first_step is None or run.last_step is None or finding.first_step > run.first_step:
        return None
    return (run.first_step, max(run.last_step, run.first_step + 1))


def _overview(content: Content) -> list[Plot]:
    drawn = ((figure.draw(content.run, content.diagnosis.findings), name) for name, figure in FIGURES.items())
    return [_plot(figure, name) for figure, name in drawn if figure is not None]


def _plot(figure: go.Figure, name: str) -> Plot:
    return Plot(FIGURES[name].title, FIGURES[name].about, _harmless(figure.to_json()))


def _json(value: Any) -> str:
    return _harmless(json.dumps(value, allow_nan=False))


def _harmless(text: str) -> str:
    """JSON that no HTML parser sees the end of a script in."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _policy(scripts: list[str]) -> str:
    """Nothing is loaded, and only what was written here runs."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"

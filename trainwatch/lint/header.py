"""A config as the header that a run of it would write: so that every rule which judges headers judges it too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from trainwatch.engine import Settings
from trainwatch.header import Header
from trainwatch.lint.check import point
from trainwatch.lint.horizon import Plan, plan
from trainwatch.lint.tree import Config, Node
from trainwatch.schema import Finding

STAGES = re.compile(r"curriculum|stages|phases|curriculum_stages|curriculum_phases", re.IGNORECASE)
START = ("start", "start_step", "begin", "from_step", "at_step", "step")
END = ("end", "end_step", "until", "to_step", "until_step")


def judge(config: Config, settings: Settings) -> Iterator[Finding]:
    """What the rules say of a run before its first step, each at the setting that it speaks of."""
    said = plan(config)
    raw: dict[str, Any] = {"run": config.file, "horizon": said.parts}
    if said.total is not None and said.total.number:
        raw["total_steps"] = int(said.total.number)
    elif said.computed:
        raw["total_steps"] = said.computed
    stages = _stages(config.root)
    if stages is not None:
        raw["curriculum"] = {"name": stages.dotted, "stages": list(_read(stages))}
    header = Header.parse(raw)
    for rule in settings.rules():
        for finding in rule.start(header):
            node = _node(finding, config, said, stages)
            patch = {said.total.dotted: finding.evidence["most"]} if _factor(finding, said) and said.total else {}
            yield point(replace(finding, subject=f"config:{node.dotted}", patch=patch or finding.patch), node.place)


def _factor(finding: Finding, said: Plan) -> bool:
    return finding.rule == "total-steps-mismatch" and said.total is not None and finding.severity == "warning"


def _node(finding: Finding, config: Config, said: Plan, stages: Node | None) -> Node:
    """The setting that a finding speaks of."""
    if finding.rule.startswith("curriculum") and stages is not None:
        begins = finding.evidence.get("begins")
        return next((item for item in stages.items if _first(item, START) == begins), stages)
    return said.total or said.epochs or config.root


def _stages(root: Node) -> Node | None:
    """The list of stages in steps; None where there is none, or in shares of the run."""
    for node in root.walk():
        named = [part for part in node.path if not part.isdigit()][-2:]
        if node.items and all(item.children for item in node.items) and any(STAGES.fullmatch(part) for part in named):
            starts = [_first(item, START) for item in node.items]
            known = [start for start in starts if start is not None]
            if len(known) == len(starts) > 1 and max(known) > 1 and known == sorted(known):
                return node
    return None


def _read(stages: Node) -> Iterator[dict[str, Any]]:
    for item in stages.items:
        name = item.children["name"].value if "name" in item.children else None
        yield {"start": _first(item, START), "end": _first(item, END), "name": name}


def _first(item: Node, names: tuple[str, ...]) -> float | None:
    return next((item.children[name].number for name in names if name in item.children), None)

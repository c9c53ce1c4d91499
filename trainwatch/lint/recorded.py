"""A recorded run's own config and header, judged as before its first step, and against how far it really went."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainwatch.engine import Settings
from trainwatch.header import mapping
from trainwatch.lint.check import point
from trainwatch.lint.tree import Config, Node, Place
from trainwatch.run import Run
from trainwatch.schema import Finding


def judge(run: Run, settings: Settings) -> Iterator[Finding]:
    """What every rule says of the newest header."""
    place = Place(str(run.source))
    for rule in settings.rules():
        for finding in rule.start(run.header):
            yield point(finding, place)
    yield from _edited(run, place)


def config_of(run: Run) -> Config:
    """The recorded config as a tree whose places are the header's line; its total is what the trainer resolved."""
    place = Place(str(run.source))
    values = dict(run.header.config)
    return Config(str(run.source), "run", _node(values, (), place))


def _node(value: Any, path: tuple[str, ...], place: Place) -> Node:
    if isinstance(value, dict) and len(path) < 50:
        return Node(path, {str(k): _node(item, (*path, str(k)), place) for k, item in value.items()}, place, place)
    if isinstance(value, list) and len(path) < 50:
        return Node(path, [_node(item, (*path, str(i)), place) for i, item in enumerate(value)], place, place)
    quoted = isinstance(value, str)
    return Node(path, value if not isinstance(value, dict | list) else None, place, place, str(value), quoted)


def _edited(run: Run, place: Place) -> Iterator[Finding]:
    """The config file has changed since the run began: what stands in it now is not what ran."""
    said = mapping(run.header.raw.get("config_source"))
    path, digest = said.get("path"), said.get("sha256")
    if not isinstance(path, str) or not isinstance(digest, str):
        return
    try:
        now = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except (OSError, ValueError):
        return
    if now != digest:
        at = run.header.resumed_from or 0
        finding = Finding(
            rule="config-edited",
            severity="info",
            subject="config",
            first_step=at,
            last_step=at,
            state="active",
            message=f"{path} was changed after this run began: what stands in it now is not what ran.",
            advice="Judge the run by the config in its record.",
        )
        yield point(finding, place)

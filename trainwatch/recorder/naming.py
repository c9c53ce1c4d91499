"""What frameworks call a metric -> the format's channels: ``train_loss_ce`` is ``loss/ce``, ``val/acc`` of a split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

EVALUATED = re.compile(r"(?P<split>eval|evaluation|val|valid|validation|dev|test)[_/.-](?P<name>.+)", re.IGNORECASE)
TRAINED = re.compile(r"train(?:ing)?[_/.-](?P<name>.+)", re.IGNORECASE)
COMPONENT = re.compile(r"loss[_/.-](?P<after>.+)|(?P<before>.+)[_/.-]loss", re.IGNORECASE)


def channel(name: str) -> str:
    """``loss``, ``loss/<component>``, or the name as it is."""
    if name.lower() == "loss":
        return "loss"
    found = COMPONENT.fullmatch(name)
    return f"loss/{found['after'] or found['before']}" if found else name


def of_training(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that are of no evaluation, by channel."""
    plain = {name: value for name, value in metrics.items() if not EVALUATED.fullmatch(name)}
    named = ((TRAINED.fullmatch(name), name, value) for name, value in plain.items())
    return {channel(found["name"] if found else name): value for found, name, value in named}


def by_split(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The metrics of evaluations, by split and channel."""
    splits: dict[str, dict[str, Any]] = {}
    for name, value in metrics.items():
        if found := EVALUATED.fullmatch(name):
            splits.setdefault(found["split"], {})[channel(found["name"])] = value
    return splits

"""A setting of the run's config as it should be, and how settings are found by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainwatch.header import flat, number
from trainwatch.run import Run
from trainwatch.schema import Finding


@dataclass(frozen=True)
class Setting:
    """One setting as it should be, and how the value was found."""

    path: str
    value: Any
    why: str


Settings = Iterable[Setting]
Cure = Callable[[Finding, Run], Settings]


def words(text: str) -> set[str]:
    """The words of a name: ``half_precision_masses`` and ``warmupSteps`` are three and two."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", text)}


def leaves(run: Run, names: Iterable[str]) -> list[tuple[str, Any]]:
    """Settings whose last name is one of these."""
    known = set(names)
    return [(path, value) for path, value in flat(run.header.config) if path.rpartition(".")[2].lower() in known]


def only(found: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """A setting that is told apart: one of its kind."""
    return found if len(found) == 1 and (found[0][1] is None or number(found[0][1]) is not None) else []


def rounded(value: float) -> float:
    """Two digits: more were not measured."""
    return float(f"{value:.2g}")


def component_of(finding: Finding) -> str:
    """The component that a finding is about; nothing where it is about none."""
    kind, _, name = finding.subject.partition(":")
    return name if kind == "component" else ""


def medians(run: Run, family: str, finding: Finding) -> dict[str, float]:
    """The median of each channel of a family over the rows that the finding is about."""
    rows = run.train
    steps = np.flatnonzero(rows.live & (rows.step >= finding.first_step) & (rows.step <= finding.last_step))
    found = {}
    for channel in rows.channels:
        values = rows[channel][steps] if channel.startswith(family) else np.empty(0)
        values = values[np.isfinite(values)]
        if values.size:
            found[channel.removeprefix(family)] = float(np.median(values))
    return found

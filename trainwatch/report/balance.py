"""Who takes what: each component's weight, its share of the loss and its share of the gradient, early and late."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainwatch.report.section import Row, Section
from trainwatch.run import Run
from trainwatch.text import wording

PART = 10  # of the run: its first tenth and its last are compared
MOST = 40  # components

Floats = NDArray[np.float64]


def section(run: Run) -> Section:
    """A row for each component; without a table where there is no component."""
    names = run.components()[:MOST]
    parts = {name: np.abs(_contribution(run, name)) for name in names}
    whole = np.nansum(list(parts.values()), axis=0) if parts else np.zeros(run.train.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = [_row(run, name, parts[name] / whole) for name in names]
    return Section.of(
        "Loss and gradient",
        ("component", "unit", "weight", "share of the loss", "share of the gradient"),
        rows if any(set(row[2:]) != {"-"} for row in rows) else [],
        right=("weight", "share of the loss", "share of the gradient"),
        about=f"Each from the first to the last {PART}th of the steps, as medians." if rows else "",
        figures=("loss", "contribution", "part", "share", "cosine", "norm", "nonfinite"),
    )


def _contribution(run: Run, name: str) -> Floats:
    """Weight x raw; the raw value where no weight is recorded. float64 [rows]"""
    table = run.train
    weight = table[f"weight/{name}"] if f"weight/{name}" in table else np.ones(table.size)
    return np.where(weight == 0, 0.0, table[f"loss/{name}"] * weight)


def _row(run: Run, name: str, share: Floats) -> Row:
    declared = run.header.components.get(name)
    weight = _ends(run, run.train[f"weight/{name}"], wording.number)
    loss, gradient = (_ends(run, column, _percent) for column in (share, run.train[f"grad_share/{name}"]))
    return wording.clean(name, 80), wording.clean(declared.unit if declared else "", 20), weight, loss, gradient


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _ends(run: Run, values: Floats, shown: object) -> str:
    """``early -> late``, one of them where they are the same, ``-`` where nothing was recorded."""
    there = run.train.live & np.isfinite(values)
    rows = np.flatnonzero(there)
    if not len(rows):
        return "-"
    few = max(len(rows) // PART, 1)
    early, late = float(np.median(values[rows[:few]])), float(np.median(values[rows[-few:]]))
    said = [shown(early), shown(late)]  # type: ignore[operator]
    return said[0] if said[0] == said[1] else " → ".join(said)

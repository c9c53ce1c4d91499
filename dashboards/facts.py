"""A run's facts, taken while nobody writes to it and frozen, so that pages can be made of them in any thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from dashboards.words import duration, number
from trainwatch.figures import known
from trainwatch.header import mapping, text
from trainwatch.run import Run
from trainwatch.schema import NONFINITE_NAMES


@dataclass(frozen=True)
class Facts:
    """What every page says of a run besides its diagnosis. ``progress`` is 0..1 if the planned steps are known."""

    last_step: int | None
    total_steps: int | None
    loss: str
    speed: str
    left: str
    touched: float
    about: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    axes: tuple[str, ...] = ("step",)  # what its figures can be drawn against

    @classmethod
    def of(cls, run: Run) -> Facts:
        """The facts of a run as it stands; the caller holds its lock."""
        header = run.header
        return cls(
            run.last_step,
            header.total_steps,
            _loss(run),
            _speed(run),
            _left(run),
            run.touched,
            _about(run),
            header.config,
            tuple(known(run)),
        )

    @property
    def steps(self) -> str:
        """``486 of 600``"""
        if self.last_step is None:
            return "none"
        return f"{self.last_step:,} of {self.total_steps:,}" if self.total_steps else f"{self.last_step:,}"

    @property
    def progress(self) -> float | None:
        """How much of the planned steps is done."""
        return min(self.last_step / self.total_steps, 1.0) if self.last_step and self.total_steps else None


def _loss(run: Run) -> str:
    """The loss of the newest row of the curve that has one; ``NaN`` if that is what was written."""
    for name in ("loss", *(name for name in run.train.channels if name.startswith("loss/"))):
        codes, values = run.train.codes(name), run.train[name]
        rows = np.flatnonzero(run.train.live & ((codes > 0) | np.isfinite(values)))
        if len(rows):
            code = int(codes[rows[-1]])
            return number(float(NONFINITE_NAMES[code])) if code else number(float(values[rows[-1]]))
    return "n/a"


def _speed(run: Run) -> str:
    """Steps a second, or seconds a step where that is more."""
    seconds = run.step_seconds()
    if not seconds:
        return "n/a"
    return f"{1 / seconds:.3g} steps/s" if seconds < 1 else f"{seconds:.3g} s/step"


def _left(run: Run) -> str:
    """The time that the planned steps will still take, as far as it is known."""
    seconds, total, last = run.step_seconds(), run.header.total_steps, run.last_step
    return f"about {duration(seconds * (total - last))} left" if seconds and total and last and total > last else ""


def _about(run: Run) -> dict[str, str]:
    """Where and what: host, device, size, commit, as far as the header tells."""
    raw = run.header.raw
    device, git = mapping(raw.get("device")), mapping(raw.get("git"))
    commit = text(git.get("commit"))
    parameters = raw.get("parameters")
    told = {
        "host": run.header.host,
        "device": text(device.get("name")),
        "parameters": f"{parameters:,}" if isinstance(parameters, int) else None,
        "commit": commit[:10] + (" + changes" if git.get("dirty") else "") if commit else None,
        "resumed from": f"{run.header.resumed_from:,}" if run.header.resumed_from is not None else None,
        "ranks": f"{len(run.ranks) + 1}" if run.ranks else None,
        "started": _minute(text(raw.get("started"))),
    }
    return {name: value for name, value in told.items() if value}


def _minute(stamp: str | None) -> str | None:
    """``2026-11-21 05:40 UTC`` of an ISO time; what is none as it stands."""
    try:
        return f"{datetime.fromisoformat(stamp).astimezone(UTC):%Y-%m-%d %H:%M} UTC" if stamp else None
    except (ValueError, OverflowError):
        return stamp

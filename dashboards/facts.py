"""A run's facts, taken while nobody writes to it and frozen, so that pages can be made of them in any thread."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dashboards.spark import Spark
from dashboards.words import number
from trainwatch.figures import known
from trainwatch.header import mapping, text
from trainwatch.run import Run
from trainwatch.text.wording import left, speed


@dataclass(frozen=True)
class Facts:
    """What every page says of a run besides its diagnosis. ``progress`` is 0..1 if the planned steps are known."""

    last_step: int | None
    total_steps: int | None
    loss: str
    loss_value: float | None  # None also where the newest one is not finite
    spark: Spark
    speed: str
    step_seconds: float | None
    left: str
    touched: float
    about: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    axes: tuple[str, ...] = ("step",)  # what its figures can be drawn against

    @classmethod
    def of(cls, run: Run) -> Facts:
        """The facts of a run as it stands; the caller holds its lock."""
        header = run.header
        name, value = _loss(run)
        finite = value if isinstance(value, float) and math.isfinite(value) else None
        return cls(
            run.last_step,
            header.total_steps,
            "n/a" if value is None else number(value),
            finite,
            Spark.of(run, name),
            speed(run) or "n/a",
            run.step_seconds(),
            left(run),
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


def _loss(run: Run) -> tuple[str | None, float | None]:
    """The channel that is the loss (the sum, else the first component that was written), and its newest value."""
    names = ("loss", *(name for name in run.train.channels if name.startswith("loss/")))
    return next(((name, value) for name in names if (value := run.train.last(name)) is not None), (None, None))


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

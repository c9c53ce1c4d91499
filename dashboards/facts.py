"""A run's facts, taken while nobody writes to it and frozen, so that pages can be made of them in any thread."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dashboards.spark import Spark
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
    loss_value: float | None  # None also where the newest one is not finite
    spark: Spark
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
        name = _loss_name(run)
        value = _newest(run, name) if name else None
        finite = value if isinstance(value, float) and math.isfinite(value) else None
        return cls(
            run.last_step,
            header.total_steps,
            "n/a" if value is None else number(value),
            finite,
            Spark.of(run, name),
            run.step_seconds(),
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
    def speed(self) -> str:
        """Steps a second, or seconds a step where that is more."""
        if not self.step_seconds:
            return "n/a"
        return f"{1 / self.step_seconds:.3g} steps/s" if self.step_seconds < 1 else f"{self.step_seconds:.3g} s/step"

    @property
    def progress(self) -> float | None:
        """How much of the planned steps is done."""
        return min(self.last_step / self.total_steps, 1.0) if self.last_step and self.total_steps else None


def _loss_name(run: Run) -> str | None:
    """The channel that is the loss: the sum, else the first component that was written."""
    names = ("loss", *(name for name in run.train.channels if name.startswith("loss/")))
    return next((name for name in names if len(_rows(run, name))), None)


def _rows(run: Run, name: str) -> NDArray[np.int64]:
    """The rows of the curve in which a channel was written, finite or not."""
    return np.flatnonzero(run.train.live & ((run.train.codes(name) > 0) | np.isfinite(run.train[name])))


def _newest(run: Run, name: str) -> float:
    """The newest value of a channel; not finite if that is what was written."""
    row = _rows(run, name)[-1]
    code = int(run.train.codes(name)[row])
    return float(NONFINITE_NAMES[code]) if code else float(run.train[name][row])


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

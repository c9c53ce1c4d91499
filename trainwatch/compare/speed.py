"""How fast it ran and what memory it took."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainwatch.run import Run


@dataclass(frozen=True)
class Speed:
    """Medians over a whole run; None where it does not tell.

    ``step_seconds`` goes from one step to the next, ``data_seconds`` of these are the wait for data, and
    ``peak_memory`` is the most bytes of one kind that were in use, which ``memory`` names.
    """

    step_seconds: float | None
    data_seconds: float | None
    peak_memory: float | None
    memory: str = ""


def speed(run: Run) -> Speed:
    """What a run says of its own pace."""
    _, steps = run.train.curve("time/step")
    _, data = run.train.curve("time/data")
    kinds = [name for name in run.train.channels if name.startswith("memory/")]
    peaks = {name: float(values.max()) for name in kinds if len(values := run.train.curve(name)[1])}
    largest = max(peaks, key=lambda name: peaks[name], default="")
    return Speed(
        float(np.median(steps)) if len(steps) else _between_rows(run),
        float(np.median(data)) if len(data) else None,
        peaks.get(largest),
        largest.removeprefix("memory/"),
    )


def _between_rows(run: Run) -> float | None:
    """Median seconds a step, from the moments at which rows were written; rows may stand for several steps."""
    for clock in ("elapsed", "time"):
        steps, moments = run.train.curve(clock)
        taken, passed = np.diff(steps), np.diff(moments)
        fine = (taken > 0) & (passed >= 0)
        if fine.any():
            return float(np.median(passed[fine] / taken[fine])) or None
    return None

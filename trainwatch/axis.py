"""What a run's steps can be laid along: epochs, samples, tokens, the wall clock, or the stages of its curriculum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trainwatch.run import Run
from trainwatch.table import Floats

Steps = NDArray[np.int64]
Span = tuple[int, int]

AGAINST: Final = ("step", "epoch", "samples", "tokens", "time")
"""What a figure can be drawn against, where the run tells it."""
ALIGNED: Final = (*AGAINST, "stage")
"""What several runs can be aligned by, where at least two of them tell it."""
SINCE: Final = {
    "hours since the first row": 3600.0,
    "minutes since the first row": 60.0,
    "seconds since the first row": 1.0,
}
"""What a wall clock is drawn in, and the seconds of each."""


@dataclass(frozen=True)
class Axis:
    """The x axis of a run: what each step is drawn at. Positions never fall, so they lead back to steps."""

    title: str
    steps: Steps
    positions: Floats

    def at(self, steps: Any) -> Floats:
        """Positions of steps, float64; beyond the recorded ones, counted on at the run's mean pace."""
        wanted = np.asarray(steps, dtype=np.float64)
        first, last = self.steps[0], self.steps[-1]
        pace = (self.positions[-1] - self.positions[0]) / max(last - first, 1)
        inside = np.interp(wanted, self.steps, self.positions)
        beyond = np.maximum(wanted - last, 0) + np.minimum(wanted - first, 0)
        return np.asarray(inside + pace * beyond, dtype=np.float64)

    def span(self, first: float, last: float) -> Span:
        """The steps between two positions."""
        low, high = np.interp([first, last], self.positions, self.steps)
        return int(np.floor(low)), max(int(np.ceil(high)), int(np.floor(low)) + 1)


def axis(run: Run, against: str) -> Axis | None:
    """What the run's steps are drawn at; None where they are drawn at themselves, or the run does not tell."""
    if against not in AXES:
        return None
    steps, values = run.train.curve(against)
    if len(steps) < 2:
        return None
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], np.maximum.accumulate(values[order])
    return AXES[against](steps, values) if values[-1] > values[0] else None


def known(run: Run) -> list[str]:
    """What the figures of a run can be drawn against."""
    return [name for name in AGAINST if name == "step" or axis(run, name) is not None]


def axes(runs: Sequence[Run], against: str) -> list[Axis | None]:
    """Each run's positions on the common axis; None where it does not tell them, and for all of them by step."""
    if against == "stage":
        return _stages(runs)
    found = [axis(run, against) for run in runs]
    if against == "time":
        title = next((title for title in SINCE if any(one and one.title == title for one in found)), "")
        return [
            one and replace(one, title=title, positions=one.positions * SINCE[one.title] / SINCE[title])
            for one in found
        ]
    return found


def aligned(runs: Sequence[Run]) -> tuple[str, ...]:
    """What the runs can be aligned by: what two of them tell."""
    return tuple(name for name in ALIGNED if name == "step" or sum(one is not None for one in axes(runs, name)) > 1)


def _stages(runs: Sequence[Run]) -> list[Axis | None]:
    """Stages as units: a run that is in one still is as far in it as the longest one was by then."""
    begun = [_begins(run) for run in runs]
    longest: dict[float, int] = {}
    for one in begun:
        for stage, first, end in one:
            longest[stage] = max(longest.get(stage, 1), end - first)
    found: list[Axis | None] = []
    for one in begun:
        if not one:
            found.append(None)
            continue
        stage, first, end = one[-1]
        steps = np.array([first for _, first, _ in one] + [end], dtype=np.int64)
        positions = np.array([stage for stage, _, _ in one] + [stage + (end - first) / longest[stage]])
        found.append(Axis("stage, counted from 0", steps, positions))
    return found


def _begins(run: Run) -> list[tuple[float, int, int]]:
    """Each stage, its first step, and the first one after it."""
    steps, values = run.train.curve("stage")
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], np.maximum.accumulate(values[order])
    at = np.flatnonzero(np.append(True, np.diff(values) > 0)) if len(steps) else np.array([], dtype=np.int64)
    ends = [*steps[at[1:]].tolist(), int(steps[-1]) + 1] if len(steps) else []
    return [(float(values[row]), int(steps[row]), int(end)) for row, end in zip(at, ends, strict=True)]


def _epochs(steps: Steps, values: Floats) -> Axis:
    """Epochs; whole ones are counted through, from the first row of one to the first of the next."""
    if not np.all(values == np.floor(values)):
        return Axis("epoch", steps, values)
    begins = np.flatnonzero(np.append(True, np.diff(values) > 0))
    length = np.median(np.diff(steps[begins])) if len(begins) > 1 else len(steps)
    ends = min(values[-1] + (steps[-1] - steps[begins[-1]]) / max(length, 1), values[-1] + 1)
    if begins[-1] == len(steps) - 1:
        return Axis("epoch", steps[begins], values[begins])
    return Axis("epoch", np.append(steps[begins], steps[-1]), np.append(values[begins], ends))


def _since_start(steps: Steps, values: Floats) -> Axis:
    seconds = values - values[0]
    *larger, smallest = SINCE
    title = next((title for title in larger if seconds[-1] >= 2 * SINCE[title]), smallest)
    return Axis(title, steps, seconds / SINCE[title])


AXES: Final[dict[str, Callable[[Steps, Floats], Axis]]] = {
    "epoch": _epochs,
    "samples": lambda steps, values: Axis("samples", steps, values),
    "tokens": lambda steps, values: Axis("tokens", steps, values),
    "time": _since_start,
}

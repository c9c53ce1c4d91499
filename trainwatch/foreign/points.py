"""Single values, each with its step and its name, become rows: what trackers keep that store one metric at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from operator import attrgetter
from typing import NamedTuple

from trainwatch.foreign.counters import Row


class Point(NamedTuple):
    """One value; ``time`` is when it was written, in whatever unit its writer counts."""

    step: int
    name: str
    value: float
    time: float = 0.0


def rows(points: Iterable[Point]) -> Iterator[Row]:
    """Points of one step that stand together are one row; a name that comes again begins the next."""
    for step, group in groupby(points, key=attrgetter("step")):
        values: dict[str, float] = {}
        for point in group:
            if point.name in values:
                yield Row({**values, "step": float(step)})
                values = {}
            values[point.name] = point.value
        yield Row({**values, "step": float(step)})


def ordered(series: Iterable[list[Point]]) -> list[Point]:
    """The points of all series, one list a name, by step; by time where a series' own steps go back."""
    lists = list(series)
    points = [point for one in lists for point in one]
    back = any(b.step < a.step for one in lists for a, b in pairwise(one))
    return sorted(points, key=attrgetter("time", "step") if back else attrgetter("step"))

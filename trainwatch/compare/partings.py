"""Where curves part: the loss, every component's contribution, evaluations, and what was planned.

Two runs are held against each other at the steps that both have. Along epochs, tokens or stages, and where they were
logged at other steps, it is at the rows of the one with fewer rows where the two overlap; the other's values are taken
between its rows on a straight line, never beyond its ends and never across a value that is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainwatch.axis import Axis, axes
from trainwatch.parting import SAME, Floats, Pair, Steps, part
from trainwatch.run import Run
from trainwatch.table import Table
from trainwatch.views.evaluations import TRAINING

KNOBS = ("weight/", "lr/", "schedule/", "stage")  # what a plan decides, so that any difference is a difference
WEIGHED = ("weight/", "stage")  # of these, what no curve of the run itself decides
SHARED = 0.5  # of the fewer rows: with less in common, two logs were written at different steps

Curve = tuple[Steps, Floats]
Pick = Callable[[Run], Curve]


@dataclass(frozen=True)
class Apart:
    """How one channel of the run number ``run`` (from 0) relates to the first run's; see ``trainwatch.parting``.

    Steps are those of the run itself; ``position`` is where on the common axis it parts. ``repeats`` counts the runs
    whose repeated settings told of the noise; 0: the curves' own noise did.
    """

    run: int
    channel: str
    exact: bool
    pair: Pair
    axis: str = "step"
    position: float | None = None
    repeats: int = 0

    @property
    def step(self) -> int | None:
        """The step from which they part, None if they do not."""
        return self.pair.parting.step if self.pair.parting else None


@dataclass(frozen=True)
class Placed:
    """A curve on the common axis; ``steps`` are its run's own. Positions rise."""

    steps: Steps
    positions: Floats
    values: Floats

    @classmethod
    def of(cls, curve: Curve, across: Axis | None) -> Placed:
        """The curve at its positions, each once; of two rows at one place the later counts."""
        steps, values = curve
        positions = across.at(steps) if across else steps.astype(np.float64)
        reverse = positions[::-1]
        _, at = np.unique(reverse, return_index=True)
        last = len(positions) - 1 - at
        return cls(steps[last], positions[last], values[last])

    def at(self, positions: Floats) -> Floats:
        """The values at other positions; NaN beyond its ends and beside what is not finite. float64 [positions]"""
        if not len(self.positions):
            return np.full(len(positions), np.nan)
        found: Floats = np.interp(positions, self.positions, self.values, left=np.nan, right=np.nan)
        return found

    def within(self, first: float, last: float) -> Placed:
        """Its part between two positions."""
        there = (self.positions >= first) & (self.positions <= last)
        return Placed(self.steps[there], self.positions[there], self.values[there])


class Partings:
    """Holds runs against the first of them along one axis; the curves of repeats are read once."""

    def __init__(self, runs: Sequence[Run], groups: Sequence[tuple[int, ...]], against: str) -> None:
        self.runs = runs
        self.groups = [part for group in groups for part in self._alike(group)]
        self.against = against
        self.axes = axes(runs, against)
        self.without = [index for index, one in enumerate(self.axes) if one is None] if against != "step" else []
        self._curves: dict[tuple[int, str], Placed] = {}

    def _alike(self, group: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """A group by what really ran: settings may agree where the weights that were applied do not."""
        while group:
            same = tuple(run for run in group if run == group[0] or _one_plan(self.runs[group[0]], self.runs[run]))
            yield same
            group = tuple(run for run in group if run not in same)

    def all(self) -> Iterator[Apart]:
        """Each run after the first, channel by channel."""
        for index in range(1, len(self.runs)):
            for channel, exact, pick in _channels(self.runs[0], self.runs[index]):
                found = self._apart(index, channel, exact, pick)
                if found:
                    yield found

    def _apart(self, index: int, channel: str, exact: bool, pick: Pick) -> Apart | None:
        along = "step" if {0, index} & set(self.without) else self.against
        first, other = (self._placed(run, channel, pick, along) for run in (0, index))
        steps, positions, a, b, met = _together(first, other)
        if not len(positions):
            return None
        exact = exact and met  # between its rows nobody knows what was planned
        repeats = list(self._repeats(index, channel, pick, along, positions))
        exact = exact and not repeats  # one setting, and another course: it follows the run, as a plateau's rate does
        pair = part(steps, a, b, exact=exact, repeats=repeats)
        at = float(positions[np.searchsorted(steps, pair.parting.step)]) if pair.parting else None
        return Apart(index, channel, exact, pair, along, at, sum(map(len, repeats)))

    def _repeats(self, index: int, channel: str, pick: Pick, along: str, positions: Floats) -> Iterator[Floats]:
        """The curves of each group of repeats at these positions, if they are no copies of each other.

        The run in question is no witness of its own noise: its settings may be the first's, and its code may not.
        """
        for group in (group for group in self.groups if len(group) > 1):
            members = [run for run in group if run != index and (along == "step" or run not in self.without)]
            placed = [self._placed(run, channel, pick, along) for run in members if _has(self.runs[run], channel)]
            curves = np.array([one.at(positions) for one in placed])
            if any(not np.allclose(curves[0], one, rtol=SAME, atol=0.0, equal_nan=True) for one in curves[1:]):
                yield curves

    def _placed(self, run: int, channel: str, pick: Pick, along: str) -> Placed:
        key = (run, f"{along} {channel}")
        if key not in self._curves:
            across = None if along == "step" else self.axes[run]
            self._curves[key] = Placed.of(pick(self.runs[run]), across)
        return self._curves[key]


def _together(first: Placed, other: Placed) -> tuple[Steps, Floats, Floats, Floats, bool]:
    """Both curves at common places: the other's steps, the positions, both values; and whether the rows meet there."""
    common, at_first, at_other = np.intersect1d(first.positions, other.positions, return_indices=True)
    ends = [(one.positions[0], one.positions[-1]) for one in (first, other) if len(one.positions)]
    overlap = (max(low for low, _ in ends), min(high for _, high in ends)) if len(ends) == 2 else (0.0, -1.0)
    here, there = first.within(*overlap), other.within(*overlap)
    if len(common) >= SHARED * min(len(here.positions), len(there.positions)):
        return other.steps[at_other], common, first.values[at_first], other.values[at_other], True
    if len(there.positions) <= len(here.positions):
        return there.steps, there.positions, first.at(there.positions), there.values, False
    steps = np.round(np.interp(here.positions, other.positions, other.steps)).astype(np.int64)
    return steps, here.positions, here.values, other.at(here.positions), False


def _channels(first: Run, other: Run) -> Iterator[tuple[str, bool, Pick]]:
    """What two runs both have, and whether it is planned."""
    if "loss" in first.train and "loss" in other.train:
        yield "loss", False, _plain("loss")
    for name in first.components():
        if f"loss/{name}" in first.train and f"loss/{name}" in other.train:
            yield f"contribution/{name}", False, _contribution(name)
    for split in _splits(first):
        if split in _splits(other):
            yield f"{split} loss", False, _evaluated(split)
    for channel in first.train.channels:
        if channel.startswith(KNOBS) and channel in other.train:
            yield channel, True, _plain(channel)


def _one_plan(first: Run, other: Run) -> bool:
    """Whether stages and weights are the same wherever both runs have rows."""
    for channel in first.train.channels:
        if channel.startswith(WEIGHED) and channel in other.train:
            one, two = (Placed.of(_column(run.train, channel), None) for run in (first, other))
            common, at_one, at_two = np.intersect1d(one.steps, two.steps, return_indices=True)
            if len(common) and part(common, one.values[at_one], two.values[at_two], exact=True).differs:
                return False
    return True


def _has(run: Run, channel: str) -> bool:
    family, _, name = channel.partition("/")
    if family == "contribution":
        return f"loss/{name}" in run.train
    return channel in run.train or channel.removesuffix(" loss") in _splits(run)


def _splits(run: Run) -> list[str]:
    """The splits whose loss was evaluated, those of training aside."""
    if "loss" not in run.eval:
        return []
    named = dict.fromkeys(str(value) for value in run.eval.text.get("split", {}).values())
    return [split for split in named if split not in TRAINING]


def _plain(channel: str) -> Pick:
    return lambda run: _column(run.train, channel)


def _evaluated(split: str) -> Pick:
    def pick(run: Run) -> Curve:
        rows, splits = run.eval, run.eval.text.get("split", {})
        mine = np.array([str(splits.get(row)) == split for row in range(rows.size)], dtype=bool)
        there = mine & rows.live & (np.isfinite(rows["loss"]) | (rows.codes("loss") > 0))
        return rows.step[there], rows["loss"][there]

    return pick


def _contribution(name: str) -> Pick:
    """Weight times raw value: what the component adds to the loss. A weight that is not logged counts as 1."""

    def pick(run: Run) -> Curve:
        rows = run.train
        there = rows.live & (np.isfinite(rows[f"loss/{name}"]) | (rows.codes(f"loss/{name}") > 0))
        weight = rows[f"weight/{name}"] if f"weight/{name}" in rows else np.ones(rows.size)
        weight = np.where(np.isnan(weight), 1.0, weight)
        added = np.where(weight == 0.0, 0.0, rows[f"loss/{name}"] * weight)  # switched off, so its NaN is out as well
        return rows.step[there], added[there]

    return pick


def _column(rows: Table, name: str) -> Curve:
    """Steps and values of the rows in which ``name`` was written; NaN where it is not finite."""
    there = rows.live & (np.isfinite(rows[name]) | (rows.codes(name) > 0))
    return rows.step[there], rows[name][there]

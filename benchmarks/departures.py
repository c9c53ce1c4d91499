"""How sick runs depart from their healthy twins of the same seeds: since when, in which channel, named by whom."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import trainwatch

Floats = NDArray[np.float64]
Runs = list[trainwatch.Run]

WINDOW = 5  # steps on both sides of a step, in which the healthy seeds' differences are its noise
BEYOND_DOUBT = 1e6  # a departure of so many times the noise, or of a value that every healthy seed agrees on
APART = ("time", "memory/", "elapsed", "data/fingerprint")  # tell two runs apart whatever they train


@dataclass(frozen=True)
class Shown:
    """The channel that shows a fault first: what it reads there, and what it reads in the healthy twins (means)."""

    channel: str
    step: int
    sick: float
    healthy: float


@dataclass(frozen=True)
class Alarm:
    """A rule that raised a warning or worse: in `runs` of `of` runs, from `step` on (the median of what it names)."""

    rule: str
    runs: int
    of: int
    step: int


def curve(run: trainwatch.Run, column: str) -> tuple[list[int], Floats]:
    """Steps and values of one figure on the validation set; NaN where it was not finite. float64 [evaluations]"""
    rows = run.eval
    split = rows.text.get("split", {})
    kept = [row for row in range(rows.size) if rows.live[row] and split.get(row) == "validation"]
    return rows.step[kept].tolist(), rows[column][kept]


def damage(sick: Runs, healthy: Runs, begins: int) -> int:
    """First evaluation from which the sick runs stay worse than the worst healthy seed, by more than the seeds differ.

    Worse is the validation loss of the sequence, on the same spectra for every run: the median of the sick seeds. An
    evaluation before step `begins` does not count; 0 where none is worse to the end.
    """
    steps = curve(healthy[0], "loss/sequence")[0]
    bad, good = (np.array([curve(run, "loss/sequence")[1] for run in runs]) for runs in (sick, healthy))
    limit = good.max(0) + (good.max(0) - good.min(0))
    worse = np.median(np.nan_to_num(bad, nan=np.inf), axis=0) > limit
    since = len(steps)
    while since and worse[since - 1] and steps[since - 1] >= begins:
        since -= 1
    return steps[since] if since < len(steps) else 0


def first_shown(sick: Runs, healthy: Runs, begins: int) -> Shown | None:
    """The channel that first departs from the twin of the same seed, in every seed, by more than the seeds differ.

    Of several at one step, the one that departs furthest in units of that noise, and of several beyond all doubt the
    one that a row holds first: data before losses before gradients. The raw value of a component without a weight is
    trained by nobody: it counts from the step on at which it has one.
    """
    found: list[tuple[int, float, Shown]] = []
    for channel in healthy[0].train.channels:
        if channel in sick[0].train and not channel.startswith(APART):
            mine, twin = (np.array([by_step(run, channel) for run in runs]) for runs in (sick, healthy))
            found += _departure(channel, mine, twin, begins)
    return min(found, key=lambda one: one[:2])[2] if found else None


def _departure(channel: str, mine: Floats, twin: Floats, begins: int) -> list[tuple[int, float, Shown]]:
    """The step at which a channel departs clearly, how far it does (negated), and what it reads; [seeds, steps]."""
    finite = np.isfinite(mine) & np.isfinite(twin)
    away = np.where(finite, np.abs(mine - np.where(finite, twin, 0.0)), np.where(mine == twin, 0.0, np.abs(mine)))
    noise = spread(twin)
    clear = np.flatnonzero(away.min(0) > noise)  # a NaN, where the channel is absent in a seed, is not clear
    clear = clear[clear + 1 >= begins]
    if not clear.size:
        return []
    at = int(clear[0])
    ratio = min(away[:, at].min() / noise[at], BEYOND_DOUBT) if noise[at] else BEYOND_DOUBT
    return [(at + 1, -float(ratio), Shown(channel, at + 1, float(mine[:, at].mean()), float(twin[:, at].mean())))]


def by_step(run: trainwatch.Run, channel: str) -> Floats:
    """A channel, float64 [steps]: NaN where it is absent, infinite where it was written and is not finite."""
    rows = run.train
    values = np.where(rows.codes(channel) > 0, np.inf, rows[channel])
    weight = channel.replace("loss/", "weight/", 1)
    if channel.startswith("loss/") and weight in rows:
        values = np.where(rows[weight] == 0, np.nan, values)
    found = np.full(int(rows.step.max()), np.nan)
    found[rows.step[rows.live] - 1] = values[rows.live]
    return found


def spread(twins: Floats) -> Floats:
    """The largest difference between healthy seeds within `WINDOW` steps: [seeds, steps] -> [steps]."""
    there = np.isfinite(twins)
    highest, lowest = np.where(there, twins, -np.inf).max(0), np.where(there, twins, np.inf).min(0)
    width = np.where(there.any(0), highest - lowest, 0.0)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(width, WINDOW), 2 * WINDOW + 1)
    return np.asarray(around.max(1))


def alarms(runs: Runs) -> list[Alarm]:
    """Warnings and worse of all rules there are, those that most runs raise first."""
    steps: dict[str, list[int]] = {}
    for run in runs:
        loud = [one for one in trainwatch.diagnose(run).findings if one.severity != "info"]
        for rule in {one.rule for one in loud}:
            steps.setdefault(rule, []).append(min(one.first_step for one in loud if one.rule == rule))
    found = [Alarm(rule, len(at), len(runs), int(statistics.median(at))) for rule, at in steps.items()]
    return sorted(found, key=lambda one: (-one.runs, one.step, one.rule))

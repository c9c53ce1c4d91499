"""Learning rates: how much higher or lower, from how long the steps were; and schedules as long as the run."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from trainwatch.cures.setting import Setting, Settings, leaves, rounded
from trainwatch.header import number
from trainwatch.run import Run
from trainwatch.schema import Finding

RATES = ("lr", "learning_rate", "base_lr", "max_lr", "peak_lr")
MAYBE_RATES = ("rate", "eta", "step_size")  # of learning, where the optimiser had that value
LENGTHS = ("t_max", "total_steps", "num_training_steps", "max_decay_steps", "lr_decay_iters", "decay_steps")
UPDATE_RATIO = 1e-3  # norm of the update over that of the weights: what is usual, and what lr-too-high advises
FIRST_RATIO = 2e-2  # where weights begin: gradients are largest there; healthy runs come to 0.01 to 0.1
FARTHEST = 100.0  # times: where weights were swept away, the first samples tell that it was far too high, not how far
NEAREST = 30.0  # times: the bound where the first steps were not that long
LONGEST_FIRST = 6e-2  # of the weights: healthy runs' first steps come to 0.02 to 0.1


def rate_down(finding: Finding, run: Run) -> Settings:
    """As much lower as the steps were above the usual one, by what was measured; at least tenfold.

    By the update's ratio, or by what the weights grew in each step, whichever was more: once the weights have been
    swept away the ratio is small again, since they are large.
    """
    ratio = max(number(finding.evidence.get("update_ratio")) or 0.0, _pace(finding, run))
    times = min(max(ratio / UPDATE_RATIO, 10.0), _farthest(finding, run))
    return slower(run, finding, times, f"a step was {ratio:.2g} of the weights" if ratio else "tenfold lower")


def rate_up(finding: Finding, run: Run) -> Settings:
    """As much higher as the update's ratio is below the usual one where weights begin.

    However far that is: weights that stood still are where they began, and there an update is proportional to its rate.
    """
    ratio = number(finding.evidence.get("update_ratio"))
    times = FIRST_RATIO / ratio if ratio and ratio > 0 else 10.0
    return slower(run, finding, 1 / max(times, 1.0), f"the update was {ratio:.2g} of the weights" if ratio else "")


def slower(run: Run, finding: Finding, divisor: float, why: str) -> Iterator[Setting]:
    """The rate divided by so much, where the config has one setting of it."""
    rate = _rate(run, finding)
    if rate:
        yield Setting(rate[0], rounded(rate[1] / divisor), why)


def whole_length(finding: Finding, run: Run) -> Iterator[Setting]:
    """A schedule that is over before the run: as long as the run."""
    total = run.header.total_steps
    for path, value in leaves(run, LENGTHS):
        length = number(value)
        if total and length and length < total and abs(length - finding.first_step) <= max(2, 0.01 * total):
            yield Setting(path, total, "the steps that are planned")


def _rate(run: Run, finding: Finding) -> tuple[str, float] | None:
    """The setting of the learning rate: the only one, or the one that the sick group is seen to have had."""
    found = [(path, value) for path, said in leaves(run, RATES) if (value := number(said)) and value > 0]
    maybe = [(path, value) for path, said in leaves(run, MAYBE_RATES) if (value := number(said)) and value > 0]
    kind, _, group = finding.subject.partition(":")
    channels = [f"lr/{group}"] if kind == "group" else [name for name in run.train.channels if name.startswith("lr/")]
    highest = [float(np.nanmax(run.train[name])) for name in channels if np.isfinite(run.train[name]).any()]
    seen = [item for item in found or maybe if any(math.isclose(item[1], value, rel_tol=0.01) for value in highest)]
    return found[0] if len(found) == 1 else seen[0] if len(seen) == 1 else None


def _farthest(finding: Finding, run: Run) -> float:
    """How far down at most, from how long the first steps were: by the first samples, or as an adaptive optimiser's
    first step is, which moves each parameter by the rate; of any other that is too much, and ends at the bound."""
    rows, rate, parameters = run.train, _rate(run, finding), number(run.header.raw.get("parameters"))
    firsts = {
        name: float(values[np.isfinite(values) & (values > 0)][:1].sum())
        for name in rows.channels
        if name.startswith(("weight_norm/", "update_ratio/"))
        for values in (rows[name],)
    }
    norm = math.hypot(*(value for name, value in firsts.items() if name.startswith("weight_norm/")))
    if not (rate and parameters and norm):
        return FARTHEST
    measured = max((value for name, value in firsts.items() if name.startswith("update_ratio/")), default=0.0)
    first = max(rate[1] * math.sqrt(parameters) / norm, measured)
    return min(max(first / LONGEST_FIRST, NEAREST), FARTHEST)


def _pace(finding: Finding, run: Run) -> float:
    """What a step added to the norm of the weights, at most, as a share; 0 where no two samples are there."""
    rows, group = run.train, finding.subject.removeprefix("group:")
    channels = [name for name in rows.channels if name.startswith("weight_norm/")]
    own = [name for name in channels if name == f"weight_norm/{group}"] or channels
    found = [0.0]
    for name in own:
        at = np.flatnonzero(np.isfinite(rows[name]) & (rows[name] > 0))
        grew = rows[name][at[1:]] / rows[name][at[:-1]] - 1
        found += (grew / np.maximum(np.diff(rows.step[at]), 1)).tolist()
    return float(np.nanmax(found))

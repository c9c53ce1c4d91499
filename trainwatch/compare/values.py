"""What came out: the last and best value of each channel, and its mean and spread over repeats."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainwatch.run import Run
from trainwatch.schema import NONFINITE_NAMES
from trainwatch.table import Table
from trainwatch.views.evaluations import TRAINING, direction

End = tuple[float | str | None, float | None, int | None]

FALLING = re.compile(
    r"loss|error|perplexity|ppl|mae|mse|rmse|ppm|wer|cer|nll|distance|seconds|time|(?:abs|sq)_?rel", re.IGNORECASE
)


@dataclass(frozen=True)
class Values:
    """A channel's last and best value in each run, None where it has none; a name where it is not finite."""

    channel: str
    final: tuple[float | str | None, ...]
    best: tuple[float | None, ...]
    best_step: tuple[int | None, ...]
    spread: dict[str, tuple[float, float]]


def values(runs: Sequence[Run], seeds: tuple[tuple[int, ...], ...] = ()) -> Iterator[Values]:
    """Final and best values: the loss, its components, and every figure of every evaluated split."""
    columns = [dict(_columns(run)) for run in runs]
    for channel in dict.fromkeys(name for item in columns for name in item):
        ends: list[End] = [item.get(channel, (None, None, None)) for item in columns]
        final = tuple(end[0] for end in ends)
        spread = {"+".join(map(str, group)): found for group in seeds if (found := _spread(final, group))}
        yield Values(channel, final, tuple(end[1] for end in ends), tuple(end[2] for end in ends), spread)


def merit(found: Sequence[Values], *, same_weights: bool = True) -> Values | None:
    """What runs are ranked by: the validation loss of most runs, another figure of validation, the training loss.

    A total of which the parts weigh otherwise in each run is compared with nothing: then it is the last resort.
    """

    def rank(one: Values) -> tuple[bool, bool, bool, int]:
        split, _, figure = one.channel.partition(" ")
        total = (figure or split) == "loss"
        part = "loss/" in figure
        return (
            part,
            total and not same_weights,
            split in TRAINING or not figure,
            -sum(end is not None for end in one.final),
        )

    wanted = [one for one in found if not one.channel.startswith("loss/")]
    return min(wanted, key=lambda one: (*rank(one), not one.channel.endswith(" loss")), default=None)


def ranking(by: Values) -> list[int]:
    """Runs from the best final value to the worst; those that have none, or none that is finite, are last."""
    sign = 1.0 if should_fall(by.channel) else -1.0

    def key(run: int) -> tuple[bool, float]:
        end = by.final[run]
        return not isinstance(end, float), sign * end if isinstance(end, float) else 0.0

    return sorted(range(len(by.final)), key=key)


def _columns(run: Run) -> Iterator[tuple[str, End]]:
    for name in run.train.channels:
        if name == "loss" or name.startswith("loss/"):
            yield name, _end(run.train, name, run.train.live)
    splits = run.eval.text.get("split", {})
    for split in dict.fromkeys(str(value) for value in splits.values()):
        mine = run.eval.live & np.array([str(splits.get(row)) == split for row in range(run.eval.size)])
        for name in run.eval.channels:
            if name == "loss" or name.startswith(("loss/", "metric/")):
                yield f"{split} {name}", _end(run.eval, name, mine)


def should_fall(name: str) -> bool:
    """Whether less of a loss or a metric is better, as far as its name says."""
    said = direction(name.rpartition(" ")[2])
    return said < 0 or (said == 0 and FALLING.search(name) is not None)


def _end(rows: Table, name: str, which: NDArray[np.bool_]) -> End:
    """Last value, best value and its step: the smallest of what should fall, else the largest."""
    values, codes = rows[name], rows.codes(name)
    written = np.flatnonzero(which & (np.isfinite(values) | (codes > 0)))
    finite = written[np.isfinite(values[written])]
    if not len(written):
        return None, None, None
    final = NONFINITE_NAMES.get(int(codes[written[-1]]), float(values[written[-1]]))
    if not len(finite):
        return final, None, None
    best = finite[(np.argmin if should_fall(name) else np.argmax)(values[finite])]
    return final, float(values[best]), int(rows.step[best])


def _spread(final: Sequence[float | str | None], group: tuple[int, ...]) -> tuple[float, float] | None:
    """Mean and standard deviation over seeds."""
    numbers = [value for value in (final[run] for run in group) if isinstance(value, float)]
    return (float(np.mean(numbers)), float(np.std(numbers, ddof=1))) if len(numbers) == len(group) else None

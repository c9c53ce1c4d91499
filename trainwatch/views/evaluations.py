"""Evaluations side by side with the training that led to them, in constant memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainwatch.run import Run
from trainwatch.schedule import MOST
from trainwatch.stats import SIGMA, History
from trainwatch.table import Chunk
from trainwatch.views.components import Roles

Floats = NDArray[np.float64]

TRAINING = ("train", "training", "train_eval")
"""Splits that are no validation."""
UP = re.compile(
    r"(^|[/_.-])(acc\w*|exact\w*|top\d+|f1\w*|auc\w*|auroc|bleu\w*|rouge\w*|m?ap\d*|m?iou\w*|r2|pearson\w*|spearman\w*|mcc|dice"
    r"|psnr|ssim|pck\w*|oks\w*|concordance\w*|c_?index)($|[/_.-])",
    re.IGNORECASE,
)
"""Figures of merit of which more is better. Rewards wander, precision and recall are traded: none of them is here."""
DOWN = re.compile(r"(^|[/_.-])(err\w*|wer|cer|ppl|perplexity|rmse\w*|mae|mse|fid|nll)($|[/_.-])", re.IGNORECASE)
"""Figures of which less is better."""


def losses(chunk: Chunk) -> list[str]:
    """The total and the components."""
    return [name for name in chunk.channels if name == "loss" or name.startswith("loss/")][:MOST]


def held_out(run: Run, name: str = "loss") -> tuple[Floats, Floats]:
    """Steps and total losses, or another channel, of the first split that is no training set, without repeats.

    float64 [evaluations] each
    """
    rows = Chunk("eval", run.eval, 0, run.eval.size)
    splits = np.array([str(rows.text(row, "split") or "validation") for row in range(len(rows))], dtype=object)
    first = next((split for split in splits if split not in TRAINING), "")
    there = np.isfinite(rows[name]) & run.eval.live & (splits == first) & ~(rows["repeat"] > 0)
    return rows.step[there].astype(np.float64), rows[name][there]


def direction(name: str) -> int:
    """1 if more of a metric is better, -1 if less is (``err_top1`` among them), 0 if its name does not say."""
    if name == "loss" or name.startswith("loss/") or DOWN.search(name):
        return -1
    return 1 if UP.search(name) else 0


def scatter(values: Floats) -> float:
    """Standard deviation of one evaluation, however the series descends or wanders."""
    return max(bend(values), jitter(values))


def bend(values: Floats | Sequence[float]) -> float:
    """Standard deviation of one evaluation by second differences, in which a steady descent or rise is nothing."""
    return SIGMA * float(np.median(np.abs(np.diff(values, 2)))) / 6**0.5 if len(values) > 2 else 0.0


def jitter(values: Floats | Sequence[float]) -> float:
    """The same by the changes, around their median: slow wandering shows in these."""
    steps = np.diff(values)
    return SIGMA * float(np.median(np.abs(steps - np.median(steps)))) / 2**0.5 if len(steps) else 0.0


@dataclass
class TrainingMeans:
    """Mean of each training loss over the rows since the last evaluation."""

    _sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    _evaluated: bool = False

    def add(self, chunk: Chunk, begin: int | None = None) -> None:
        """More rows; from ``begin`` on only, if something new begins there.

        Finite losses are added one by one in their order, so that no border of a chunk shows in the sum.
        """
        if self._evaluated or begin is not None:
            self._sums, self._evaluated = {}, False
        for name in losses(chunk):
            values = chunk[name][begin or 0 :]
            total, count = self._sums.get(name, (0.0, 0))
            if len(values) == 1:  # live, at every step
                value = float(values[0])
                if math.isfinite(value):
                    self._sums[name] = (total + value, count + 1)
                continue
            values = values[np.isfinite(values)]
            if len(values):
                with np.errstate(over="ignore", invalid="ignore"):
                    total = float(np.add.accumulate(np.concatenate([[total], values]))[-1])
                self._sums[name] = (total, count + len(values))

    def evaluated(self) -> None:
        """The next training row begins a new mean; evaluations of one moment share theirs."""
        self._evaluated = True

    def __getitem__(self, name: str) -> float:
        total, count = self._sums.get(name, (np.nan, 1))
        return total / count


@dataclass(frozen=True)
class Course:
    """One loss or metric of one split over the evaluations; ``train`` is the mean of the same loss, for a
    metric of the total; NaN where there is none. float64 [points]"""

    split: str
    name: str
    step: Floats
    value: Floats
    train: Floats

    @property
    def subject(self) -> str:
        """What a finding on it is about."""
        return f"component:{self.name[5:]}" if self.name.startswith("loss/") else f"split:{self.split}"

    def improved(self, scatters: float) -> bool:
        """Whether the last third of the evaluations brought a new best, by so many standard deviations of one."""
        cost, third = -direction(self.name) * self.value, max(2, len(self.value) * 2 // 3)
        late = cost[third:]
        return bool(len(late) and direction(self.name) and late.min() < cost[:third].min() - scatters * scatter(cost))

    def recent(self, values: Floats, count: int = 3) -> float:
        """Mean of the last few."""
        return float(np.mean(values[-count:]))


@dataclass
class Evaluations:
    """Every evaluation of every split, each beside the mean training loss before it."""

    means: TrainingMeans = field(default_factory=TrainingMeans)
    _courses: dict[tuple[str, str], History] = field(default_factory=dict)
    _seen: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def push(self, chunk: Chunk) -> None:
        """Training rows are only added up; evaluations are few."""
        if chunk.table == "train" and len(chunk):
            self.means.add(chunk)
        elif chunk.table == "eval":
            for row in range(len(chunk)):
                self._evaluation(chunk, row)
            self.means.evaluated()

    def courses(self, *, training: bool = False) -> Iterator[Course]:
        """Each series as it stands; those of training splits, or all others."""
        for (split, name), history in self._courses.items():
            if (split in TRAINING) == training:
                columns = history.series()
                known = np.isfinite(columns["value"])
                yield Course(split, name, *(columns[part][known] for part in ("step", "value", "train")))

    def _evaluation(self, chunk: Chunk, row: int) -> None:
        """Repeats, and a second evaluation of the same weights, count once."""
        split = str(chunk.text(row, "split") or "validation")
        if chunk["repeat"][row] > 0:
            return
        for name in [*losses(chunk), *(name for name in chunk.channels if name.startswith("metric/"))]:
            value, step, of = float(chunk[name][row]), float(chunk.step[row]), float(chunk["weights_step"][row])
            before = self._seen.get((split, name), (np.nan, np.nan))
            new = (split, name) in self._courses or len(self._courses) < MOST
            if np.isfinite(value) and new and step != before[0] and of != before[1]:
                self._seen[split, name] = (step, of)
                history = self._courses.setdefault((split, name), History())
                figures = {
                    "step": step,
                    "value": value,
                    "train": self.means["loss" if name.startswith("metric/") else name],
                }
                history.push({part: np.array([figure]) for part, figure in figures.items()})


def comparable(course: Course, run: Run) -> bool:
    """Whether a course's training loss is the same quantity: a task's component, or a total that has but one."""
    parts = [name for name in run.train.channels if name.startswith("loss/")]
    if course.name == "loss":
        return len(parts) <= 1
    return course.name in parts and not Roles.of(run.header).aside(course.name[5:])


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a config under its dotted path."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

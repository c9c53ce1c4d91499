"""See the rule's docstring: it is the page that `trainwatch rules suspicious-validation` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity
from trainwatch.table import Chunk, TableName
from trainwatch.views.evaluations import Course, Evaluations, comparable, flattened

Floats = NDArray[np.float64]
EXCUSES = re.compile(
    r"drop|smooth|mixup|cutmix|cutout|aug|noise|mask|jitter|stochastic|ema|average|teacher|perturb|adv", re.IGNORECASE
)
"""What makes training harder than validation by design, or validation's weights better."""
WEAK = 0.1
"""A dropout that changes a loss by little."""
AVERAGED = re.compile(r"ema|average|swa", re.IGNORECASE)


@dataclass
class SuspiciousValidation(Rule):
    """The validation loss is better than the training loss all along.

    What it sees:
        Each evaluation after the first few against the training loss before it, where both are the same quantity. Below
        half of it in 70 % of the evaluations is an info, for dropout, label smoothing, augmentation and averaged
        weights make training look up to twice as bad in health. If the recorded config turns all of these off, nine
        tenths are an info already, and a half is a warning, provided both losses agreed at the first evaluation. It is
        one as well, whatever the first evaluation, if it stayed below half of what training ever reached after it, and
        did not fall as training fell; a dropout of a tenth or less is no excuse for that. A component of less than a
        twentieth of the loss is left alone, and so is a loss that began below a twentieth of the other: it is another
        quantity.

    Why it matters:
        Unseen data cannot be easier than seen data for long. Either the sets overlap or differ in difficulty, or the
        two losses are not the same: another reduction, another mask, another set of tokens.

    What to do:
        Evaluate a piece of the training set with the validation code. If that agrees with validation, dropout and its
        like are the reason; if not, look for overlap between the sets, and for easier or shorter validation data.

    When it is wrong:
        A validation set that is easier by design. Dropout that the config does not name.

    References:
        Lones, "How to avoid machine learning pitfalls" (2021), on leakage.
    """

    reads: ClassVar[tuple[TableName, ...]] = ("train", "eval")
    needs: ClassVar[tuple[str, ...]] = ("eval:loss|eval:loss/<component>", "loss|loss/<component>")
    wants: ClassVar[tuple[str, ...]] = ("run:config", "run:components")

    much: float = 0.5  # of the training loss: label smoothing and dropout together do not go below
    little: float = 0.9  # of the training loss, for a run without any excuse
    share: float = 0.7  # of the evaluations: all along
    fewest: int = 5  # evaluations that count
    falling: float = 0.1  # a training mean that fell faster than this since the last evaluation lags behind
    followed: float = 1.5  # x: what both losses fell by, if they are one quantity on two scales
    agreed: float = 1.25  # x, at most, between the two at the first evaluation: the same quantity
    unlike: float = 0.05  # x, at the first evaluation: no young model does so; one is a sum of what the other averages
    slight: float = 0.05  # of the whole training loss: a part so small is made of a few samples, in either set

    _evaluations: Evaluations = field(default_factory=Evaluations, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Rows are only added up; evaluations are few."""
        self._evaluations.push(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Each loss of each split that has its counterpart in training; one finding a subject."""
        found: dict[str, Finding] = {}
        courses = [*self._evaluations.courses()]
        whole = {course.split: float(np.median(course.train)) for course in courses if course.name == "loss"}
        for course in courses:
            if course.name.startswith("metric/") or AVERAGED.search(course.split) or not comparable(course, run):
                continue
            slight = course.name != "loss" and np.median(course.train) < self.slight * whole.get(course.split, 0.0)
            finding = None if slight else self._judge(course, run)
            if finding:
                found.setdefault(course.subject, finding)
        yield from found.values()

    def _judge(self, course: Course, run: Run) -> Finding | None:
        known = (course.value > 0) & (course.train > 0)
        value, train, steps = course.value[known], course.train[known], course.step[known]
        lags = train < (1 - self.falling) * np.concatenate([[np.inf], train[:-1]])
        ahead = self._ahead(value, train) and _no_excuse(run, weak=WEAK)
        counts = ~lags | ahead
        if counts.sum() < self.fewest:
            return None
        ratios, innocent = value[counts] / train[counts], _no_excuse(run)
        half = np.mean(ratios < self.much) >= self.share
        if not half and not (innocent and np.mean(ratios < self.little) >= self.share):
            return None
        together = 1 / self.agreed < value[0] / train[0] < self.agreed
        severity: Severity = "warning" if ahead or (half and innocent and together) else "info"
        if severity == "info" and value[0] < self.unlike * train[0]:
            return None
        ratio, steps = float(np.median(ratios)), steps[counts]
        return self.finding(
            severity,
            course.subject,
            (int(steps[np.argmax(ratios < self.little)]), int(steps[-1])),
            f"The {course.split} {course.name} is {ratio:.2g} x the training loss over {len(ratios)} evaluations"
            f"{', and the config names no dropout or the like' if innocent else ''}.",
            evidence={"ratio": ratio, "evaluations": len(ratios)},
            advice="Evaluate a piece of the training set with the validation code; look for overlap between the sets.",
            confidence=0.7 if severity == "warning" else 0.4,
        )

    def _ahead(self, value: Floats, train: Floats) -> bool:
        """Whether it was better all along than training ever became after it, and did not improve with it: the same
        quantity in another unit would have. Where training did not improve either (at the floor) that tells nothing.
        """
        third = len(train) // 3
        if len(value) < self.fewest or self.followed * np.median(train[-third:]) > np.median(train[:third]):
            return False
        best = np.minimum.accumulate(train[::-1])[::-1]
        followed = np.median(value) / value[0] < self.followed * np.min(train) / train[0]
        return bool(np.mean(value < self.much * best) >= self.share and value[0] < self.much * best[0] and not followed)


def _no_excuse(run: Run, weak: float = 0.0) -> bool:
    """Whether the config names dropout, and all of what makes training harder is off, or a dropout that is weak."""
    leaves = [(name, value) for name, value in flattened(run.header.config) if EXCUSES.search(name)]
    dropouts = [value for name, value in leaves if "drop" in name.lower()]
    off = [not value or (value in dropouts and isinstance(value, float) and value <= weak) for _, value in leaves]
    return bool(dropouts) and all(off)

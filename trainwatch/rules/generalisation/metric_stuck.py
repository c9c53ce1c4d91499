"""See the rule's docstring: it is the page that `trainwatch rules metric-stuck` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import median
from trainwatch.table import Chunk, TableName
from trainwatch.views.evaluations import Course, Evaluations, scatter
from trainwatch.views.games import PAID, paid
from trainwatch.views.neglect import better

SUCCESS = re.compile(r"(^|[/_.-])(success\w*|solved|win_?rate|goal_?rate)($|[/_.-])", re.IGNORECASE)
"""Shares of episodes that reached their goal."""
MERIT = re.compile(
    r"metric/((val|valid|validation|test|eval|mean|avg|macro|micro|weighted|balanced|pixel|token|top\d)[/_.-]?)*"
    r"(acc|accuracy|dice|m?iou|m?ap|f1)([/_.-]?(score|50|50[-_]95))?",
    re.IGNORECASE,
)
"""Whole names of shares of what is told or found rightly. Of one class, of small objects, of an attack's victims such
a share may be 0 in health; of exact answers too: a sequence may long be wrong in one place."""
RIGHT = re.compile(
    r"metric/((val|valid|validation|test|eval|mean|avg|macro|micro|balanced)[/_.-]?)*(acc|accuracy|top_?1|map)",
    re.IGNORECASE,
)
"""Whole names of shares of answers that are right, of which a guess among so many classes gets one in so many."""

ADVICE = {
    "success": "Look at a few episodes: whether the goal is ever reached, and whether actions and observations are "
    "what the agent was made for.",
    "pay": "Look at the sign of the advantage and of the policy's loss: what pays must become more likely.",
    "merit": "Look at a few outputs beside their labels as the evaluation sees them, and evaluate a piece of the "
    "training set.",
}


@dataclass
class MetricStuck(Rule):
    """A success rate, a figure of merit, or what a policy is paid has never risen from where it began.

    What it sees:
        A share of successes in thirty evaluations and more: below a fifth all along, and in the last third no higher
        than in the first by more than three standard errors. Or an accuracy, an overlap (Dice, IoU), an F1 or mAP in
        eight evaluations and more: below a hundredth all along, and best before the last third, while the training loss
        has fallen by a third, and no other figure of merit of that split gets better. Or an accuracy, top-1 or mAP in
        as many that ends at most half above what guessing one of the batches' classes is worth, no higher than it
        began, and in no split ever knew three times as much. A warning once the run is over, an info while it runs:
        rare rewards are found late.

        Or, as an info, for opponents learn as well: what a policy is paid in eight evaluations and more, less than at
        the first in each of the others, by three standard deviations in the last third; and less while it trains, by a
        fifth, most of it lost in the first fifth of the rows, where no stage of a curriculum made the task harder.

    Why it matters:
        Success at the rate of chance means that nothing was learned, whatever the losses of actor and critic do: they
        measure how well each follows the other. A policy that is paid less than it was untrained learns the opposite of
        what was meant, or nothing. A merit of nothing beside a loss that falls is measured wrongly, or of something
        that is not trained; answers as good as a guess belong to other inputs.

    What to do:
        Look at a few episodes. Usual causes: a reward or goal that is never reached by exploring, observations that are
        not normalised, actions clipped to nothing, a replay buffer that is never read, a rate far too low; of
        what falls, the sign of the advantage or of the policy's loss. Of a merit: look at a few outputs beside their
        labels as the evaluation sees them: thresholds, class indices, resizing, the weights that it loads; and evaluate
        a piece of the training set.

    When it is wrong:
        A task so hard that thirty evaluations are its beginning. A policy that came trained, and is made to do
        something else than what its evaluations pay for.

    References:
        Andrychowicz et al., "Hindsight Experience Replay" (2017); Henderson et al., "Deep reinforcement learning that
        matters" (2018).
    """

    reads: ClassVar[tuple[TableName, ...]] = ("train", "eval")
    needs: ClassVar[tuple[str, ...]] = ("eval:metric/<name>",)
    outcome: ClassVar[bool] = True

    evaluations: int = 30  # fewer are a beginning
    low: float = 0.2  # of the episodes: above it something was learned, or the task is easy
    errors: float = 3.0  # standard errors between the means of the first and the last third; deviations of what is paid
    nothing: float = 0.01  # of 1; of some 400 public logs none that is well stays there for six evaluations
    fewer: int = 8  # evaluations of a merit, more than a beginning
    classes: int = 3  # of two, one may be rare, and half of the answers be right by saying so
    knows: float = 3.0  # x what guessing is worth, at any time and in any split
    chance: float = 1.5  # x what guessing is worth: what is learned at all comes to more
    rows: int = 50  # of training in which a policy is paid: a tenth of them has a median
    untrained: int = 5  # rows, whose median is what it was paid at first
    worse: float = 0.2  # of the size of what is paid in training: a trained policy that wanders loses less
    fallen: float = 0.7  # of the training loss, before the first evaluation and the last: something is learned

    _evaluations: Evaluations = field(default_factory=Evaluations, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Evaluations are few."""
        self._evaluations.push(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """One finding a split: the same successes often stand under several names."""
        said: set[str] = set()
        courses = list(self._evaluations.courses())
        risen = {course.split for course in courses if course.value.max(initial=0.0) >= self.nothing and better(course)}
        for course in courses:
            success, merit = SUCCESS.search(course.name), MERIT.fullmatch(course.name)
            stuck = success and self._stuck(course)
            stuck = stuck or (merit and course.split not in risen and self._at_nothing(course))
            stuck = stuck or (RIGHT.fullmatch(course.name) and self._guesses(course, courses, run))
            if stuck and course.split not in said:
                said.add(course.split)
                yield self._finding(course, grave=run.status() not in ("running", "stalled"))
        for course in courses:
            if course.split not in said and PAID.fullmatch(course.name.lower()) and self._paid_less(course, run):
                said.add(course.split)
                yield self._finding(course, grave=False)

    def _stuck(self, course: Course) -> bool:
        value, third = course.value, len(course.value) // 3
        if len(value) < self.evaluations or value.min() < 0 or value.max() >= self.low:
            return False
        first, last = value[:third], value[-third:]
        error = float(np.hypot(first.std(), last.std())) / third**0.5
        return bool(last.mean() - first.mean() <= self.errors * error)

    def _at_nothing(self, course: Course) -> bool:
        """Whether a merit is none all along, and training goes well by its loss."""
        value, train, late = course.value, course.train[np.isfinite(course.train)], 2 * len(course.value) // 3
        if len(value) < self.fewer or value.min() < 0 or value.max() >= self.nothing or len(train) < self.fewer:
            return False
        return bool(value[late:].max() <= value[:late].max() and 0 < train[-1] < self.fallen * train[0])

    def _guesses(self, course: Course, courses: list[Course], run: Run) -> bool:
        """Whether it ends as good as a guess among the classes that a batch has, and has not risen.

        What any split knows better was learned: another one may be of an attack, or of what is to be forgotten.
        """
        value, third = course.value, len(course.value) // 3
        kinds = run.train["data/label_kinds"]
        most = float(kinds[np.isfinite(kinds)].max(initial=0.0))
        if len(value) < self.fewer or most < self.classes or value.min() < 0:
            return False
        if max(other.value.max(initial=0.0) for other in courses if other.name == course.name) > self.knows / most:
            return False
        return bool(value[-third:].max() < min(self.chance / most, value[:third].max()))

    def _paid_less(self, course: Course, run: Run) -> bool:
        """Whether no evaluation pays what the first one did, and the rows of training tell the same."""
        value, late = course.value, 2 * len(course.value) // 3
        reward, staged = paid(run.train.channels), np.isfinite(run.train["stage"]).any()
        if len(value) < self.fewer or not reward or staged or run.header.resumed_from:
            return False
        if value[1:].max() >= value[0] or value[late:].max() >= value[0] - self.errors * scatter(value):
            return False
        pay = run.train[reward][run.train.live & np.isfinite(run.train[reward])]
        if len(pay) < self.rows:
            return False
        first, (_, *later) = median(pay[: self.untrained]), (median(part) for part in np.array_split(pay, 10))
        lost = first - later[-1]
        return max(later) < first - lost / 2 and lost > self.worse * max(abs(first), abs(later[-1]))

    def _finding(self, course: Course, *, grave: bool) -> Finding:
        third = len(course.value) // 3
        first, last = float(course.value[:third].mean()), float(course.value[-third:].mean())
        name, known = course.name.removeprefix("metric/"), course.train[np.isfinite(course.train)]
        merit = MERIT.fullmatch(course.name) or RIGHT.fullmatch(course.name)
        beside = (
            f", while the training loss fell from {known[0]:.3g} to {known[-1]:.3g}"
            if merit and len(known) and known[-1] < known[0]
            else ""
        )
        return self.finding(
            "warning" if grave else "info",
            course.subject,
            (int(course.step[0]), int(course.step[-1])),
            f"The {course.split} {name} never rose in {len(course.value)} evaluations: {first:.3g} in the first third, "
            f"{last:.3g} in the last{beside}.",
            evidence={"first": first, "last": last, "most": float(course.value.max())},
            advice=ADVICE["merit" if merit else "success" if SUCCESS.search(course.name) else "pay"],
            confidence=0.7,
        )

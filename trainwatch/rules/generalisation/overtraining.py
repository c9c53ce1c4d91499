"""See the rule's docstring: it is the page that `trainwatch rules overtraining` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity
from trainwatch.table import Chunk, TableName
from trainwatch.views.evaluations import Course, Evaluations, direction, scatter


@dataclass
class Overtraining(Rule):
    """The best evaluation is long past, and what came since is worse.

    What it sees:
        The figures of merit whose names say which way is better (accuracy, F1, BLEU, perplexity, error rates), and the
        validation loss where no training loss is known beside it (else `overfitting` judges it). A warning if the last
        three evaluations are worse than the best one by 5 % and by more than they scatter, five evaluations and a
        quarter of the run after it, and no other figure of the split found a new best lately, while the training
        loss fell or stood. An info if half of the run and ten evaluations brought nothing better.

    Why it matters:
        The checkpoint you would deploy lies behind. What is trained since costs time, and the last checkpoint is not
        the one to take.

    What to do:
        Take the checkpoint of the best evaluation; stop early next time, or let the learning rate decay sooner.

    When it is wrong:
        Of many noisy evaluations one is the luckiest: the scatter is measured, and raises the bar. Rewards and success
        rates wander by nature and are left alone.

    References:
        Prechelt, "Early stopping - but when?" (1998).
    """

    reads: ClassVar[tuple[TableName, ...]] = ("train", "eval")
    needs: ClassVar[tuple[str, ...]] = ("eval:loss|eval:loss/<component>|eval:metric/<name>",)
    wants: ClassVar[tuple[str, ...]] = ("eval:metric/<name>", "loss")

    worse: float = 0.05  # of the best value
    progress: float = 0.05  # of what was gained since the first evaluation
    scatters: float = 8.0  # standard deviations of one evaluation: 1 in 3,000 converged, noisy runs comes to it
    evaluations: int = 3  # averaged: a single bad one is noise
    patience: int = 5  # evaluations after the best: the usual setting of early stopping
    share: float = 0.25  # of all evaluations: patience grows with the run
    long: int = 10  # evaluations, and half of all, without a new best: worth a word
    clear: float = 3.0  # standard deviations, for that word

    _evaluations: Evaluations = field(default_factory=Evaluations, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Rows are only added up; evaluations are few."""
        self._evaluations.push(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Of one subject the gravest."""
        found: dict[str, Finding] = {}
        courses = list(self._evaluations.courses())
        fresh = {course.split for course in courses if course.improved(0.0)}
        for course in courses:
            judged = direction(course.name) != 0 and (course.name.startswith("metric/") or course.name not in run.train)
            enough = len(course.value) > self.patience + 2 and course.split not in fresh
            finding = self._judge(course) if judged and enough else None
            before = found.get(course.subject)
            if finding and (before is None or finding.rank > before.rank):
                found[course.subject] = finding
        yield from found.values()

    def _judge(self, course: Course) -> Finding | None:
        cost = -direction(course.name) * course.value
        best = int(np.argmin(cost))
        since, lost = len(cost) - 1 - best, course.recent(cost, self.evaluations) - float(cost[best])
        noise = max(scatter(cost), scatter(cost[best:]))
        gained = float(cost[0] - cost[best])
        bar = max(self.worse * abs(float(cost[best])), self.progress * gained, self.scatters * noise)
        if (
            since >= max(self.patience, self.share * len(cost))
            and lost > bar
            and gained > bar
            and self._trains(course, best)
        ):
            return self._finding("warning", course, best)
        if since >= max(self.long, 0.5 * len(cost)) and lost > self.clear * noise and lost > 0.1 * bar:
            return self._finding("info", course, best)
        return None

    def _trains(self, course: Course, best: int) -> bool:
        """Whether the training loss is not worse than it was; if it is, that is the sickness."""
        then, now = float(course.train[best]), course.recent(course.train)
        return not (now > then + self.worse * abs(then))

    def _finding(self, severity: Severity, course: Course, best: int) -> Finding:
        step, value, now = int(course.step[best]), float(course.value[best]), course.recent(course.value)
        return self.finding(
            severity,
            course.subject,
            (step, int(course.step[-1])),
            f"The {course.split} {course.name.removeprefix('metric/')} was best at step {step:,} ({value:.4g}); "
            f"{len(course.value) - 1 - best} evaluations later it stands at {now:.4g}.",
            evidence={"best": value, "now": now, "evaluations_since": len(course.value) - 1 - best},
            advice=f"Take the checkpoint nearest to step {step:,}; stop early, or let the learning rate decay sooner.",
            confidence=0.85 if severity == "warning" else 0.5,
        )

"""See the rule's docstring: it is the page that `trainwatch rules generalisation-gap` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity
from trainwatch.table import Chunk, TableName
from trainwatch.views.components import Roles
from trainwatch.views.evaluations import Course, Evaluations, Floats, comparable, direction, held_out, scatter

ACCURACY = ("metric/acc", "metric/accuracy", "metric/top1")
ANSWERS = ("metric/exact", "metric/exact_match", "metric/em")
ALIKE = ("copies", "samples")
INFORMATION = (*ACCURACY, "metric/perplexity", "metric/ppl")


@dataclass
class GeneralisationGap(Rule):
    """The validation loss stands far above the training loss.

    What it sees:
        The last three evaluations against the mean training loss of the rows before each, where both are the same
        quantity: a component of both, or a total of one part, close to each other at the first evaluation. Above 1 nat
        it is a warning if the gap has grown, validation has found no new best, and no figure of merit has either; or if
        the training loss leaves room for few mistakes (each costs ln 2 at least) and validation's accuracy is 50 points
        below that, or its exact match, which finds no new best. Above 0.5 nat an info. A loss that is no cross-entropy
        has no absolute measure: twice the training loss is an info; a warning, if training is left with less than a
        tenth of a declared loss, while validation keeps more than half of what training began with, and finds no new
        best. Whatever the unit, it is a warning where the same training samples came ten times and more, bit by bit
        (the recorder's hashes tell), training is left with a fifth of the validation loss, that with 15 % of the first
        one, and neither it nor a figure of merit gained a fifth of its gain in the second half of the evaluations; not
        where half of the answers are right. So is a total of several tasks judged, if both were within twice of each
        other at the first evaluation; of other parts too, where their recorded weights stay as they were and the
        samples came so often. Or the reward that both log: a warning, if training's began below validation's
        and now is above it, by a fifth of what it gained, in the last three evaluations, while validation's has gained
        less than a fifth of that, and finds no new best; not where a curriculum changes what training is paid for.

    Why it matters:
        What was learned of the training data does not carry over. More steps widen the gap and bring nothing.

    What to do:
        More data or augmentation, more weight decay or dropout, a smaller model, or fewer epochs. Compare the
        sources of both sets: a gap that is there early is a difference between the sets.

    When it is wrong:
        Models that fit their training set to 0 generalise well all the same: the figure of merit decides.
        Record one with the evaluations.

    References:
        Zhang et al., "Understanding deep learning requires rethinking generalization" (2017).
    """

    reads: ClassVar[tuple[TableName, ...]] = ("train", "eval")
    needs: ClassVar[tuple[str, ...]] = ("eval:loss|eval:loss/<component>|eval:metric/<name>", "loss|loss/<component>")
    wants: ClassVar[tuple[str, ...]] = ("run:components", "eval:metric/<name>")
    causes: ClassVar[tuple[str, ...]] = ("overtraining", "invalid-outputs")
    outcome: ClassVar[bool] = True

    large: float = 1.0  # nat: the true class is e times less likely on unseen data
    notable: float = 0.5  # nat
    times: float = 2.0  # x the training loss, for losses of other units
    room: float = 0.5  # of the answers: half of what training gets right by its loss, validation gets wrong
    left: float = 0.1  # of the validation loss is left of the training loss: by heart
    kept: float = 0.5  # of training's first mean is still there in validation: who generalises comes below it
    beyond: float = 0.2  # of what training's reward gained, above validation's; in health it stays below
    carried: float = 0.2  # of that gain, in validation: in health two fifths and more
    often: float = 10.0  # x the same samples came, to the bit: what the loader augments never comes again
    behind: float = 0.2  # of the validation loss is all that training has left
    unlearned: float = 0.15  # of the first loss is there in validation: with less of it the task is learned
    late: float = 0.2  # of what a figure gained came in the second half of the evaluations: it goes on
    right: float = 0.5  # of the answers: whatever the loss says, most is learned
    evaluations: int = 3  # that are averaged: one is noise
    fewest: int = 5  # evaluations in all
    alike: float = 2.0  # x: beyond it at the first evaluation, the two are different quantities

    _evaluations: Evaluations = field(default_factory=Evaluations, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Rows are only added up; evaluations are few."""
        self._evaluations.push(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Each loss of each split that has its counterpart in training; of one subject the widest gap."""
        found: dict[str, Finding] = {}
        courses, times = list(self._evaluations.courses()), _seen(run)
        for course in courses:
            known = np.isfinite(course.train)
            if direction(course.name) >= 0 or course.name.startswith("metric/") or known.sum() < self.fewest:
                continue
            pairs = Course(course.split, course.name, *(v[known] for v in (course.step, course.value, course.train)))
            metrics = [other for other in courses if other.split == course.split and other.name.startswith("metric/")]
            better = any(metric.improved(1.0) for metric in metrics)
            nats = _in_nats(course, run)
            heart = self._by_heart(pairs, metrics, (*ACCURACY, *ANSWERS) if nats and not better else ACCURACY)
            heart |= bool(run.header.components) and self._learns_nothing_else(pairs) and not better
            repeated = times >= self.often and self._stands(pairs, metrics)
            same = comparable(course, run) or _of_tasks(course, run) or (repeated and _evenly_weighted(course, run))
            finding = self._judge(pairs, better, heart, nats, repeated) if same else None
            if finding and repeated:
                said = f"{finding.message.rstrip('.')}; the same samples were trained on {times:,.0f} times and more."
                finding = replace(finding, message=said, evidence={**finding.evidence, "times": times})
            widest = found.get(course.subject)
            if finding and (widest is None or float(finding.evidence["gap"]) > float(widest.evidence["gap"])):
                found[course.subject] = finding
        yield from found.values()
        yield from self._rewarded(run)

    def _rewarded(self, run: Run) -> Findings:
        """A reward that training earns more and more of, and validation does not: the loss of a game does not tell."""
        if "metric/reward" not in run.eval or "reward" not in run.train or run.header.curriculum:
            return
        step, value = held_out(run, "metric/reward")
        rows = Chunk("train", run.train, 0, run.train.size)
        known = np.isfinite(rows["reward"]) & run.train.live
        behind = np.searchsorted(step, rows.step[known])  # the evaluation that comes after each row
        counts, sums = (np.bincount(behind, each, len(step) + 1)[:-1] for each in (None, rows["reward"][known]))
        both = counts > 0
        if both.sum() < 2 * self.fewest:
            return
        course = Course("validation", "reward", step[both], value[both], sums[both] / counts[both])
        gap = course.train - course.value
        gained = course.recent(course.train) - course.train[1]  # in the first mean are rows from before it learned
        stale = int(np.argmax(course.value)) < len(course.value) - self.evaluations
        carried = course.recent(course.value) - course.value[1] < self.carried * gained
        crossed = gap[:2].max() < 0 < gap[-self.evaluations :].min() and course.recent(gap) > self.beyond * gained
        if crossed and carried and stale and gained > 8 * scatter(course.train):
            since = int(np.flatnonzero(gap <= 0)[-1]) + 1
            yield self._finding(course, "warning", since, course.recent(gap), "")

    def _by_heart(self, course: Course, metrics: list[Course], names: tuple[str, ...]) -> bool:
        """Whether what the training loss says of the training set's mistakes is not true of validation's.

        Of an answer of several tokens it says less: an exact match counts beside a gap of a nat a token alone.
        """
        right = 1 - course.recent(course.train, self.evaluations) / np.log(2)  # a mistake costs ln 2 at least
        for metric in metrics:
            known = metric.value[-self.evaluations :]
            if metric.name in names and known.min() >= 0 and known.max() <= 1 and known.mean() < right - self.room:
                return True
        return False

    def _learns_nothing_else(self, course: Course) -> bool:
        """Whether training is left with next to nothing, validation with most, and no evaluation is better any more."""
        now, level = course.recent(course.value, self.evaluations), course.recent(course.train, self.evaluations)
        return bool(0 < level < self.left * now and now > self.kept * course.train[0] and not course.improved(1.0))

    def _stands(self, course: Course, metrics: list[Course]) -> bool:
        """Whether training has left validation far behind, and hardly anything there becomes better any more."""
        now, level = course.recent(course.value, self.evaluations), course.recent(course.train, self.evaluations)
        behind = 0 < level < self.behind * now and now > self.unlearned * max(course.train[0], course.value[0])
        right = any(other.value[-1] > self.right for other in metrics if other.name in (*ACCURACY, *ANSWERS))
        return bool(behind and not right and not any(self._gains(other) for other in (course, *metrics)))

    def _gains(self, course: Course) -> bool:
        """Whether the second half of the evaluations brought more than a fifth of all that was gained."""
        cost = -direction(course.name) * course.value
        first, half, now = cost[0], cost[: len(cost) // 2 + 1].min(), cost[-self.evaluations :].min()
        return bool(half - now > self.late * (first - now))

    def _judge(self, course: Course, better: bool, heart: bool, nats: bool, repeated: bool) -> Finding | None:
        value, train, gaps = course.value, course.train, course.value - course.train
        first = sorted((abs(value[0]), abs(train[0])))
        if first[1] > self.alike * first[0] and not (nats and abs(gaps[0]) < self.notable):
            return None
        gap, level = course.recent(gaps, self.evaluations), course.recent(train, self.evaluations)
        stale = int(np.argmin(value)) < len(value) - self.evaluations
        grows = gap > gaps[0] + 0.5 * self.large and gap > 8 * scatter(value)
        sick = gap > self.large and grows and (heart or (stale and not better))
        severity: Severity = "warning" if repeated or (sick if nats else heart) else "info"
        bar = self.notable if nats else (self.times - 1) * level
        if not nats and not (heart or repeated or (level > 0.01 * train[0] > 0 and _grows_apart(gaps, value))):
            return None
        if gap <= bar or gaps[-self.evaluations :].min() <= bar:
            return None
        since = int(np.flatnonzero(gaps <= bar)[-1]) + 1 if (gaps <= bar).any() else 0
        return self._finding(course, severity, since, gap, " nat" if nats else "")

    def _finding(self, course: Course, severity: Severity, since: int, gap: float, unit: str) -> Finding:
        train, now = course.recent(course.train), course.recent(course.value)
        other = "reward" if course.name == "reward" else "loss"
        return self.finding(
            severity,
            course.subject,
            (int(course.step[since]), int(course.step[-1])),
            f"The {course.split} {course.name} stands at {now:.4g}, the training {other} at {train:.4g}: "
            f"{gap:.3g}{unit} apart, since step {course.step[since]:,.0f}.",
            evidence={"validation": now, "train": train, "gap": gap},
            advice="Add data, augmentation or regularisation, or train for fewer epochs; look at the figure of merit.",
            confidence=0.8 if severity == "warning" else 0.6,
        )


def _seen(run: Run) -> float:
    """How often the same training samples came at least, as the recorder's hashes of some of them tell; else 0.

    Where even the samples of validation cannot be told apart, their hashes are of labels alone.
    """
    known = {name: run.eval.curve(f"overlap/{name}")[1][-1:].sum() for name in ("drawn", "distinct", *ALIKE)}
    vague = known["copies"] > known["samples"]
    return float(known["drawn"] / known["distinct"]) if known["distinct"] >= 1 and not vague else 0.0


def _of_tasks(course: Course, run: Run) -> bool:
    """Whether it is the only loss that is evaluated, a total of declared tasks alone."""
    parts = [name.removeprefix("loss/") for name in run.train.channels if name.startswith("loss/")]
    alone = not any(name.startswith("loss/") for name in run.eval.channels)
    roles = Roles.of(run.header)
    return course.name == "loss" and alone and bool(parts) and all(roles.task(name) for name in parts)


def _evenly_weighted(course: Course, run: Run) -> bool:
    """Whether it is a total whose weights stayed as they were: what is left out of validation makes that smaller."""
    weights = (run.train.curve(name)[1] for name in run.train.channels if name.startswith("weight/"))
    known = [values for values in weights if len(values)]
    return course.name == "loss" and bool(known) and all(np.ptp(values) == 0 for values in known)


def _grows_apart(gaps: Floats, value: Floats) -> bool:
    """Whether the gap is wider than it was, by more than the evaluations scatter."""
    return bool(np.mean(gaps[-3:]) > np.mean(gaps[:3]) + 8 * scatter(value))


def _in_nats(course: Course, run: Run) -> bool:
    """Whether the loss is a cross-entropy: declared as such, or with classes, an accuracy or a perplexity beside it."""
    units = {f"loss/{name}": component.unit for name, component in run.header.components.items()}
    if course.name in units:
        return units[course.name] == "nat"
    if units:
        return set(units.values()) == {"nat"}
    return bool(run.header.raw.get("classes")) or any(name in run.eval for name in INFORMATION)

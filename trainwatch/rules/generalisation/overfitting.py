"""See the rule's docstring: it is the page that `trainwatch rules overfitting` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Curriculum, Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schedule import MOST
from trainwatch.schema import Finding
from trainwatch.stats import carried
from trainwatch.table import Chunk, TableName
from trainwatch.views.components import Roles
from trainwatch.views.evaluations import TRAINING, TrainingMeans, bend, jitter, losses
from trainwatch.views.harm import at_its_best

Floats = NDArray[np.float64]


@dataclass
class Whole:
    """The whole validation loss: as it was logged, else the weighed sum of what was; ``parts`` are what was summed."""

    parts: frozenset[str]
    best: float = np.inf
    since_best: int = 0
    recent: list[float] = field(default_factory=list)

    def follow(self, value: float, over: int) -> None:
        """One more evaluation; the last ``over`` of them are recent."""
        self.since_best = 0 if value < self.best else self.since_best + 1
        self.best = min(self.best, value)
        self.recent = [*self.recent, value][-over:]


@dataclass
class Course:
    """How one loss of one split went, evaluation by evaluation."""

    first: float
    best: float
    best_step: int
    best_train: float
    step: int
    weights_step: float
    recent: list[float]
    weights: dict[str, float]
    values: list[float] = field(default_factory=list)
    since_best: int = 0
    whole_then: float = np.inf  # the whole loss at the best evaluation of this one
    highest: float = 0.0  # above the best evaluation, since the alarm
    finding: Finding | None = None


@dataclass
class Overfitting(Rule):
    """The validation loss rises while the training loss goes on falling.

    What it sees:
        For each split and loss (the total, and components that are no regularisers), the mean of the last evaluations
        against the best one before: higher by more than 5 % (2 % after five evaluations without a new best, if that is
        a seventh of what validation had gained, or if training has gained half as much since then), and by more than
        the evaluations scatter among themselves (half as far beyond it will do where the training loss has halved
        since), while the mean training loss of the rows before each evaluation fell, or stayed below validation. A
        change of the curriculum's stage starts it afresh; so does another weight of a component for the total. Not
        judged: a component of weight 0, a total that weighs its components otherwise than training, and a stage whose
        declared data are not those of the last one, for which validation is made. An info, if training is no better
        than validation, and a figure of merit is better than ever: the target moves, and nothing is learned by heart.

    Why it matters:
        What is learned from here on is the training set. The best model of this run is already on disk, or is
        about to be overwritten.

    What to do:
        Take the checkpoint of the best evaluation. For the next run: stop there, add data or augmentation,
        raise weight decay or dropout, or train a smaller model.

    When it is wrong:
        A cross-entropy can rise through overconfidence while accuracy still improves: look at the metric you care for
        (where one is better than it was then, and none is worse, the message says so).
        A validation set that is too small scatters; the scatter is measured, and raises the bar. A component that rises
        while the whole validation loss (or the sum of its components, where no whole is logged) still finds new bests,
        or is lower than it was where the component was best, is reported as info. So is one that rose by less than 10 %
        and has stood for five evaluations, if the whole rose by less than 5 %. So is a rise that ended in a new best,
        or came back for the larger part: the run did not have to be stopped there.

    References:
        Prechelt, "Early stopping - but when?" (1998), whose GL criterion this is, with a noise floor.
    """

    reads: ClassVar[tuple[TableName, ...]] = ("train", "eval")
    needs: ClassVar[tuple[str, ...]] = ("eval:loss|eval:loss/<component>", "loss|loss/<component>")
    wants: ClassVar[tuple[str, ...]] = ("stage", "weight/<component>")
    causes: ClassVar[tuple[str, ...]] = ("generalisation-gap", "overtraining", "invalid-outputs")
    outcome: ClassVar[bool] = True

    rise: float = 0.05  # of the best value; early-stopping practice, and beyond what a healthy run gives back
    long: int = 5  # evaluations since the best, for which less is enough: the usual patience of early stopping
    slow_rise: float = 0.02  # of the best value, then, if the rise is much of what validation had gained
    gained_back: float = 0.15  # of what was gained since the first evaluation
    by_heart: float = 0.5  # of that; training that has gained so much since the best gained it on its own set alone
    scatters: float = 8.0  # standard deviations of one evaluation: 1 in 3,000 converged, noisy runs comes to it
    scatters_halved: float = 4.0  # of them, where training has halved: the turn of a curve of a few is no scatter
    halved: float = 0.5  # of the training loss at the best evaluation
    back: float = 0.5  # of the rise is left: the larger part of it came back by itself
    small: float = 0.1  # of the best value: what two tasks trade in health comes to that
    progress: float = 0.02  # of what was gained since the first evaluation: the bar for losses that end near 0
    evaluations: int = 3  # averaged, all of them after the best one: a single bad one is noise
    fall: float = 0.03  # of the training loss: less than that is standing still
    alike: float = 0.05  # relative: two weights, or a total and the sum of its components as training weighs them
    scatter_over: int = 40  # evaluations: the scatter of fewer is known to 30 % only

    _means: TrainingMeans = field(default_factory=TrainingMeans, init=False)
    _courses: dict[tuple[str, str], Course] = field(default_factory=dict, init=False)
    _wholes: dict[str, Whole] = field(default_factory=dict, init=False)
    _curriculum: Curriculum | None = field(default=None, init=False)
    _roles: Roles = field(default_factory=Roles, init=False)
    _stage: float = field(default=np.nan, init=False)
    _weights: dict[str, float] = field(default_factory=dict, init=False)  # in the last training row

    def start(self, header: Header) -> Findings:
        """The declared stages, for runs that do not record their stage."""
        self._curriculum = header.plan
        self._roles = Roles.of(header)
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Training rows are only added up; evaluations are few."""
        if chunk.table == "eval":
            for row in range(len(chunk)):
                yield from self._evaluation(chunk, row)
            self._means.evaluated()
        elif len(chunk):
            begins = self._stage_begins(chunk)
            if begins is not None:
                alarms = [course.finding for course in self._courses.values() if course.finding is not None]
                yield from (replace(finding, state="over") for finding in alarms)
                self._courses = {}
            self._means.add(chunk, begins)
            for name in [name for name in chunk.channels if name.startswith("weight/")][:MOST]:
                known = chunk[name][np.isfinite(chunk[name])]
                if len(known):
                    self._weights[name.removeprefix("weight/")] = float(known[-1])

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Who is no better at the training set than at validation, and best by a figure of merit, has a loss whose
        target moves: a teacher that sharpens. Who is better at it learns by heart, and is told what got better.
        """
        yield from self.ahead(rest)
        for course in self._courses.values():
            found = course.finding
            if found is None or not at_its_best(run, course.best_step, course.best_step):
                continue
            if float(found.evidence["train_now"]) > float(found.evidence["now"]):
                yield replace(found, severity="info")
            else:
                yield replace(found, message=f"{found.message} By its figures of merit the model is better.")

    def _stage_begins(self, chunk: Chunk) -> int | None:
        """The last row of the chunk in which a new stage begins, if one does."""
        stage = chunk["stage"]
        if self._curriculum is not None and self._curriculum.stages:
            begins = np.array([item.start for item in self._curriculum.stages])
            stage = np.where(np.isnan(stage), np.searchsorted(begins, chunk.applied(), side="right") - 1, stage)
        known = np.flatnonzero(np.isfinite(stage))
        if not len(known):
            return None
        before = carried(self._stage, stage[known])
        self._stage = float(stage[known[-1]])
        changed = known[np.isfinite(before) & (stage[known] != before)]
        return int(changed[-1]) if len(changed) else None

    def _evaluation(self, chunk: Chunk, row: int) -> Findings:
        split = str(chunk.text(row, "split") or "validation")
        if split in TRAINING or chunk["repeat"][row] > 0 or self._elsewhere():
            return
        now = {name: float(chunk[name][row]) for name in losses(chunk) if np.isfinite(chunk[name][row])}
        raw = {name.removeprefix("loss/"): value for name, value in now.items() if name != "loss"}
        self._follow_whole(split, now.get("loss"), raw)
        for name, value in now.items():
            if self._counts(name, now, raw):
                seen = value, self._means[name], int(chunk.step[row]), float(chunk["weights_step"][row])
                yield from self._followed(split, name, seen)

    def _counts(self, name: str, now: dict[str, float], raw: dict[str, float]) -> bool:
        """Whether a loss is one that training lowers; beside a total a regulariser may rise."""
        component = name.removeprefix("loss/")
        if name == "loss" and self._weighed_otherwise(now[name], raw):
            return False
        return self._weights.get(component) != 0 and not ("loss" in now and self._roles.aside(component))

    def _followed(self, split: str, name: str, now: tuple[float, float, int, float]) -> Findings:
        """One more evaluation of a loss; the first of all, or of a total that is made anew, begins its course."""
        value, train, step, of = now
        course = self._courses.get((split, name))
        if course is not None and name == "loss" and self._reweighed(course):
            if course.finding is not None:
                yield replace(course.finding, state="over")
            del self._courses[split, name]
            course = None
        if course is None and len(self._courses) < MOST:
            weights, whole = dict(self._weights), self._wholes[split].recent[-1]
            course = Course(value, value, step, train, step, of, [value], weights, [value], whole_then=whole)
            self._courses[split, name] = course
        elif course is not None and step != course.step and of != course.weights_step:
            yield from self._follow(split, name, course, now)

    def _follow_whole(self, split: str, total: float | None, raw: dict[str, float]) -> None:
        """The whole loss of an evaluation. Sums of other components are other quantities."""
        parts = frozenset(raw) if total is None else frozenset(["loss"])
        if split not in self._wholes or self._wholes[split].parts != parts:
            self._wholes[split] = Whole(parts)
        value = sum(self._weights.get(name, 1.0) * part for name, part in raw.items()) if total is None else total
        self._wholes[split].follow(value, self.evaluations)

    def _elsewhere(self) -> bool:
        """Whether the stage trains on other data than the last one, so that validation may get worse by design."""
        stages = self._curriculum.stages if self._curriculum else ()
        at = int(np.nan_to_num(self._stage))  # before the first row the first stage holds
        return bool(stages) and stages[min(max(at, 0), len(stages) - 1)].data != stages[-1].data

    def _weighed_otherwise(self, value: float, raw: dict[str, float]) -> bool:
        """Whether a total is another sum of its components than the one that is trained."""
        if not raw or not raw.keys() <= self._weights.keys():
            return False
        parts = [self._weights[name] * part for name, part in raw.items()]
        return abs(sum(parts) - value) > self.alike * max(abs(value), sum(map(abs, parts)))

    def _reweighed(self, course: Course) -> bool:
        """Whether the total is made of other weights than when its course began."""
        pairs = [(was, self._weights.get(name, was)) for name, was in course.weights.items()]
        return any(abs(now - was) > self.alike * max(abs(now), abs(was)) for was, now in pairs)

    def _follow(self, split: str, name: str, course: Course, now: tuple[float, float, int, float]) -> Findings:
        """One more evaluation of a known course."""
        value, train, course.step, course.weights_step = now
        course.values = [*course.values, value][-self.scatter_over :]
        course.recent = [*course.recent, value][-self.evaluations :]
        course.since_best += 1
        if value < course.best or value == course.best == 0:  # there is nothing better than 0 again
            if course.finding is not None:  # it found back by itself: what was learned since was no loss
                yield replace(course.finding, severity="info", state="over", last_step=course.step)
            course.best, course.best_step, course.best_train = value, course.step, train
            course.whole_then = self._wholes[split].recent[-1]
            course.since_best, course.highest, course.finding = 0, 0.0, None
        elif course.since_best >= self.evaluations and np.isfinite(train):
            sick = self._rises(course, train) and self._still_learns(course, train)
            if sick or course.finding is not None:
                found = self._finding(split, name, course, train, over=not sick)
                risen = fmean(course.recent) - course.best
                course.highest = max(course.highest, risen)
                course.finding = replace(found, severity="info") if risen < self.back * course.highest else found
                yield course.finding

    def _rises(self, course: Course, train: float) -> bool:
        """Whether the last evaluations are worse than the best one by more than the run's own scatter."""
        halved = 0 < train < self.halved * course.best_train
        scatter = max(bend(course.values), jitter(course.values[-course.since_best - 1 :]))
        gained = abs(course.first - course.best)
        bar = max((self.scatters_halved if halved else self.scatters) * scatter, self.progress * gained)
        risen = fmean(course.recent) - course.best
        by_heart = course.best_train - train > self.by_heart * gained
        if course.since_best >= self.long and (by_heart or risen > self.gained_back * gained):
            return risen > max(bar, self.slow_rise * abs(course.best))
        return risen > max(bar, self.rise * abs(course.best))

    def _still_learns(self, course: Course, train: float) -> bool:
        """Whether the training loss fell since the best evaluation, or stands still below it."""
        gained, little = course.best_train - train, self.fall * abs(course.best_train)
        below = train < course.best and course.best_train != 0  # what is exactly 0 is masked, or not computed
        return gained > little or (below and gained >= -little / 3)

    def _whole_gains(self, split: str, course: Course) -> bool:
        """Whether the whole loss finds new bests, or is lower than where this component of it was best."""
        whole = self._wholes[split]
        return whole.since_best < self.evaluations or (
            fmean(whole.recent) < course.whole_then and not self._reweighed(course)
        )

    def _settled(self, split: str, course: Course) -> bool:
        """Whether the small rise of a component is over, and the whole loss rose by less than an alarm's bar: between
        tasks so much is traded, and no more is lost by going on.
        """
        whole, since = self._wholes[split], course.values[-course.since_best :]
        stands = len(since) >= 2 * self.long and max(since[-self.long :]) <= max(since[: -self.long])
        small = fmean(course.recent) - course.best < self.small * abs(course.best)
        small &= fmean(whole.recent) - whole.best < self.rise * abs(whole.best)
        return stands and small and not self._reweighed(course)

    def _finding(self, split: str, name: str, course: Course, train: float, *, over: bool) -> Finding:
        now = fmean(course.recent)
        moved = "fell" if train < course.best_train else "stood"
        well = name != "loss" and (self._whole_gains(split, course) or self._settled(split, course))
        return self.finding(
            "info" if well else "warning",
            f"split:{split}" if name == "loss" else f"component:{name.removeprefix('loss/')}",
            (course.best_step, course.step),
            f"The {split} {name} was best at step {course.best_step:,} ({course.best:.4g}) and has risen to {now:.4g}, "
            f"while the training loss {moved} from {course.best_train:.4g} to {train:.4g}.",
            over=over,
            evidence={"best": course.best, "now": now, "train_at_best": course.best_train, "train_now": train},
            advice=f"Take the checkpoint nearest to step {course.best_step:,}; next time stop there, regularise more, "
            "or add data.",
            confidence=0.9,
        )

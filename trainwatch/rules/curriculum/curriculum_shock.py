"""See the rule's docstring: it is the page that `trainwatch rules curriculum-shock` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Curriculum, Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import noise, spreads
from trainwatch.table import Chunk, Table
from trainwatch.views.components import Roles
from trainwatch.views.evaluations import held_out, scatter
from trainwatch.views.harm import CLEAR, EVALUATIONS, at_its_best

Floats = NDArray[np.float64]
MOST = 64  # components: more of them is a log to be distrusted


@dataclass
class Level:
    """What a loss was before the newest boundary, what it had come down from, and what lies beyond chance."""

    before: float
    progress: float
    limit: float
    jumped: float = np.nan  # what it was at a quarter of the stage, where that is beyond the limit
    told: int = 0  # step of the mark at which it was found


@dataclass
class CurriculumShock(Rule):
    """A loss jumps at a stage's boundary and has not come back by half of the stage, nor is on its way.

    What it sees:
        The raw loss of every task that has a weight on both sides of the boundary, or the total where no components are
        recorded and no weights change; and the gradient's norm. Before the boundary, at a quarter, at half and at three
        quarters of the stage, each as a median of up to 20 rows; since the boundary, of three or four rows as the
        lowest. A shock gave back more than half of all that the run had learned by then, far beyond the noise of a row,
        and kept it; or half as much again as was learned, beyond the noise of the medians; or it left a norm ten times
        as large. A loss that is coming back at half, and stands lower than where the run began, is given another
        quarter. Or validation has lost most of what it had learned, and does not come back, while the total rose more
        than twice as far. Where a validation loss that had come down has not given back a quarter of that since the
        boundary, what was learned is still there: it is an info, as it is until that loss is measured again, up to the
        next quarter. So it is where a figure of merit that had told what was learned is better than ever; and where
        validation is of each stage's own data, as high as training on both sides of the boundary, and the weights are
        no worse at the new data than those of before were: these are harder.

    Why it matters:
        A stage that is too hard at once undoes the stages before it: the steps spent on them are lost, and so is the
        head start that the curriculum was to give.

    What to do:
        Put a stage in between, ramp the change, lower the learning rate at the boundary, or keep some of the old data.

    When it is wrong:
        A stage whose task is so much harder that the old level cannot be reached with any curriculum. Compare with a
        validation set that stays the same.

    References:
        Bengio et al. 2009, Curriculum learning: a step of difficulty pays only as far as what was learned carries.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("run:curriculum|run:curriculum_running", "loss|loss/<component>")
    wants: ClassVar[tuple[str, ...]] = ("loss/<component>", "weight/<component>", "applied")
    causes: ClassVar[tuple[str, ...]] = ("loss-divergence", "loss-spike", "gradient-explosion", "gradient-spike")

    given_back: float = 0.6  # of the progress so far: a harder task costs up to half of it
    norm_factor: float = 10.0  # x: a component that enters with a sensible weight makes it a few times as large
    undone: float = 1.5  # of the progress so far: the run is worse off than when it began
    learned: float = 0.25  # of the first level, that came down: less is no progress to speak of
    sigmas: float = 6.0  # of the noise before: of hundreds of boundaries and components none is reached by chance
    doubts: float = 3.0  # standard errors of the progress, where all of it and more is lost again
    mending: float = 0.6  # of the jump is left at half of what it was at a quarter: the next quarter brings it back
    back: float = 0.25  # of the progress so far: nearer to the old level than that, it is over, or was no loss
    shown: float = 0.2  # of the first validation loss, that came down before the boundary, if no more than its noise
    fewest: int = 5  # rows: a median of fewer is no level, but all of them may lie above one
    few: int = 3  # rows that must all lie there; with fewer in a quarter of it a stage is not judged
    window: int = 20  # rows of a level

    _plan: Curriculum | None = field(default=None, init=False)
    _roles: Roles = field(default_factory=Roles, init=False)
    _marks: list[tuple[float, int, int]] = field(default_factory=list, init=False)  # applied step, stage, quarter
    _first: int = field(default=-1, init=False)  # row of this process
    _since: int = field(default=0, init=False)  # row of the newest mark
    _began: int = field(default=0, init=False)  # row of the newest boundary
    _boundary: int = field(default=0, init=False)  # step of the newest boundary
    _halved: list[tuple[int, int]] = field(default_factory=list, init=False)  # stages half done, and where they began
    _levels: dict[str, Level] = field(default_factory=dict, init=False)
    _open: dict[str, tuple[Finding, Level]] = field(default_factory=dict, init=False)

    def start(self, header: Header) -> Findings:
        """When to look: where a stage begins, and at each quarter of it."""
        self._plan = header.plan
        self._roles = Roles.of(header)
        stages = self._plan.stages[:MOST] if self._plan else ()
        ends = [*(stage.start for stage in stages[1:]), *(min(s.end, header.total_steps or s.end) for s in stages[-1:])]
        for index, (stage, end) in enumerate(zip(stages[1:], ends[1:], strict=True), 1):
            quarters = [stage.start + quarter * (end - stage.start) / 4 for quarter in range(4)]
            if end > stage.start and np.isfinite(end):
                self._marks += [(at, index, quarter) for quarter, at in enumerate(quarters)]
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Nothing is done between two marks."""
        if self._first < 0:
            self._first = self._since = self._began = chunk.start
        applied = chunk.applied()
        while self._marks and len(rows := np.flatnonzero(applied >= self._marks[0][0])):
            row = chunk.start + int(rows[0])
            _, stage, quarter = self._marks.pop(0)
            yield from self._look(chunk.rows, row, stage, quarter)
            self._since = row

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """What the rows that fill no block add, and what validation says of each shock."""
        since = {finding.key: level.told for finding, level in self._open.values()}
        told = {finding.key: finding for finding, _ in self._open.values()}
        told |= {finding.key: finding for finding in self.ahead(rest)}
        yield from self._set_back(run) if not told else ()
        for finding in told.values():
            active = finding.state == "active"
            unhurt = active and self._unhurt(run, finding, since.get(finding.key, finding.last_step))
            yield replace(finding, severity="info") if unhurt else finding

    def _unhurt(self, run: Run, finding: Finding, told: int) -> bool:
        """Whether a validation loss that showed what was learned has kept it, or is about to be measured.

        The training loss alone cannot tell a model that forgot from data that became harder; the newest evaluation may
        be from the first steps of the stage.
        """
        if at_its_best(run, finding.first_step, finding.first_step) or self._of_its_own(run, finding):
            return True
        step, loss = run.eval.curve("loss")
        before, since = loss[step <= finding.first_step], loss[step > finding.first_step]
        learned = before[0] - before[-1] if len(before) > 1 else 0.0
        clear = len(before) >= EVALUATIONS and learned > CLEAR * scatter(before)
        if learned <= 0 or not (clear or learned >= self.shown * abs(before[0])):
            return False
        if step[-1] < told and run.end is None and finding.last_step == told:
            return True
        return bool(len(since) and since[-1] - before[-1] < self.back * (before[0] - before[-1]))

    def _set_back(self, run: Run) -> Iterator[Finding]:
        """Stages since which validation has lost most of what it had learned, and it does not come back.

        It still asks for what it did, if it rose by less than half as far as training.
        """
        at, held = held_out(run) if self._halved else (np.empty(0), np.empty(0))
        for stage, boundary in self._halved:
            then, since = held[at <= boundary], held[at > boundary]
            if min(len(then), len(since)) < EVALUATIONS - 1:
                continue
            learned, lost = float(then[0] - then.min()), float(since.min() - then.min())
            mends = since[-1] - then.min() < self.mending * (since.max() - then.min())
            if not learned > CLEAR * scatter(then) or lost < self.given_back * learned or mends:
                continue
            if lost < self._rise(run, boundary) / 2 and not at_its_best(run, boundary, boundary):
                yield self._worse(run, stage, boundary, (float(then.min()), float(since.min()), learned))

    def _rise(self, run: Run, boundary: int) -> float:
        """Of the total, from before a boundary to now; 0 if it is within the noise."""
        values, step = run.train.column("loss", 0, run.train.size), run.train.step
        sides = (step <= boundary, step > boundary)
        old, new = (values[side & np.isfinite(values)][-self.window :] for side in sides)
        if min(len(old), len(new)) < self.fewest:
            return 0.0
        rise = float(np.median(new) - np.median(old))
        return rise if rise > self.sigmas * noise(old) else 0.0

    def _worse(self, run: Run, stage: int, boundary: int, told: tuple[float, float, float]) -> Finding:
        assert self._plan is not None
        before, now, learned = told
        return self.finding(
            "warning",
            "run",
            (boundary, run.last_step or boundary),
            f"With stage {self._plan.stages[stage].name!r} at step {boundary:,} the validation loss rose from "
            f"{before:.4g} to {now:.4g} at the least, {(now - before) / learned:.0%} of its progress so far.",
            evidence={"before": before, "now": now, "stage": stage},
            advice="Put a stage in between, ramp what changes here, or keep some of the old data.",
            confidence=0.8,
        )

    def _of_its_own(self, run: Run, finding: Finding) -> bool:
        """Whether validation is of each stage's own data, as high as training on both sides, and the weights are no
        worse at the new data than those of before were: these are harder, and nothing tells of what was lost.
        """
        name, boundary = finding.subject.replace("component:", "loss/"), finding.first_step
        if name not in run.eval:  # the total is the same sum on both sides, or tells nothing
            name = "loss" if self._alike(int(finding.evidence["stage"])) else ""
        values, (at, held) = run.train.column(name, 0, run.train.size), held_out(run, name)
        known = np.isfinite(values)
        steps, values = run.train.step[: len(values)][known], values[known]
        old, new = values[steps <= boundary], values[steps > boundary]
        then, since = held[at <= boundary], held[at > boundary]
        if min(len(old), len(new)) < self.fewest or not len(then) or not len(since):
            return False
        last = [min(self.window, max(self.fewest, len(side) // 3)) for side in (old, new)]  # more are the way there
        before, now = float(np.median(old[-last[0] :])), float(np.median(new[-last[1] :]))
        apart = max(abs(then[-1] - before), abs(since[-1] - now), now - float(np.median(new[:3])))
        return bool(apart < self.back * (now - before))

    def _look(self, table: Table, row: int, stage: int, quarter: int) -> Iterator[Finding]:
        """Judge what a mark tells: the row is the first one behind it."""
        if quarter == 0:
            yield from self._compare(table, row, stage, quarter)  # of the stage before: is it over?
            self._boundary = int(table.step[row])
            self._levels = self._known(table, row, [*self._components(table, stage), "grad_norm"])
            if not self._levels.keys() - {"grad_norm"} and self._alike(stage):
                self._levels |= self._known(table, row, ["loss"])
            self._began = row
        else:
            self._halved += [(stage, self._boundary)] if quarter == 2 and self._alike(stage) else []
            yield from self._compare(table, row, stage, quarter)

    def _weights(self, stage: int) -> tuple[dict[str, float], dict[str, float]]:
        """Before a stage, and in it."""
        stages = self._plan.stages if self._plan else ()
        return stages[stage - 1].weights, stages[stage].weights

    def _alike(self, stage: int) -> bool:
        """Whether the total means the same on both sides of a stage's beginning."""
        old, new = self._weights(stage)
        return all(new.get(name, weight) == weight for name, weight in old.items())

    def _components(self, table: Table, stage: int) -> list[str]:
        """Losses of a task that have a weight on both sides."""
        old, new = self._weights(stage)
        names = [name[5:] for name in table.channels if name.startswith("loss/")][:MOST]
        return [f"loss/{n}" for n in names if old.get(n, 1.0) * new.get(n, 1.0) and not self._roles.aside(n)]

    def _known(self, table: Table, row: int, names: list[str]) -> dict[str, Level]:
        return {name: level for name in names if (level := self._level(table, name, row))}

    def _now(self, table: Table, name: str, row: int) -> float:
        """The level in the last rows before ``row``, back to the last mark; NaN where those are too few."""
        values = table.column(name, max(self._since, row - self.window), row)
        values = values[np.isfinite(values)]
        if len(values) >= self.fewest:
            return float(np.median(values))
        values = values[int(self._since == self._began) :]  # the row of the boundary may be of the stage before
        return float(values.min()) if len(values) >= self.few else np.nan

    def _level(self, table: Table, name: str, row: int) -> Level | None:
        short = row - self._since < self.fewest  # the last quarter is; then the last rows of its stage
        values = table.column(
            name, max(self._began, row - self.fewest if short else self._since, row - self.window), row
        )
        values = values[np.isfinite(values)]
        if len(values) < self.fewest:
            return None
        before = float(np.median(values))
        if name == "grad_norm":
            return Level(before, before, (self.norm_factor - 1) * before) if before > 0 else None
        began = table.column(name, 0, min(50 * self.window, row))  # the file's, not this process's, first rows
        first = float(np.median(began[np.isfinite(began)][: self.window]))
        progress, sigma = first - before, max(noise(values), float(spreads(values[None], np.array([before]))[0]))
        if progress > self.sigmas * sigma and not short:
            return Level(before, progress, self.given_back * progress)
        doubt = 1.2533 * 2**0.5 * sigma / len(values) ** 0.5  # of a difference of medians
        if progress > max(self.doubts * doubt, self.learned * abs(first)):
            return Level(before, progress, max(self.undone * progress, self.sigmas * doubt))
        return None

    def _compare(self, table: Table, row: int, stage: int, quarter: int) -> Iterator[Finding]:
        """At a quarter: did it jump? Later: is it still there, and stays? Is it over?"""
        for name, (told, level) in list(self._open.items()):
            now = self._now(table, name, row)
            if now < level.before + self.back * max(level.progress, level.limit):
                yield replace(self._open.pop(name)[0], state="over", last_step=int(table.step[row]))
            elif np.isfinite(now):
                self._open[name] = replace(told, last_step=int(table.step[row])), level
                yield self._open[name][0]
        for name, level in self._levels.items():
            now = self._now(table, name, row)
            beyond = now > level.before + level.limit
            if quarter == 1 or not beyond:
                level.jumped = now if quarter == 1 and beyond else np.nan
            left = (now - level.before) / (level.jumped - level.before)
            mends = quarter == 2 and left < self.mending and now < level.before + level.progress
            if quarter > 1 and np.isfinite(left) and not mends and name not in self._open:
                level.told = int(table.step[row])
                self._open[name] = self._finding(name, level, now, stage, level.told), level
                yield self._open[name][0]

    def _finding(self, name: str, level: Level, now: float, stage: int, step: int) -> Finding:
        assert self._plan is not None
        named = self._plan.stages[stage].name
        what = (
            "The gradient's norm" if name == "grad_norm" else "The loss" if name == "loss" else f"The {name[5:]} loss"
        )
        lost = "" if name == "grad_norm" else f", {(now - level.before) / level.progress:.0%} of its progress so far"
        return self.finding(
            "warning",
            f"component:{name[5:]}" if name.startswith("loss/") else "run",
            (self._boundary, step),
            f"{what} went from {level.before:.4g} to {now:.4g} with stage {named!r} at step {self._boundary:,} and has "
            f"not come back by half of it{lost}.",
            evidence={"before": level.before, "now": now, "limit": level.limit, "stage": stage},
            advice="Put a stage in between, ramp what changes here, or keep some of the old data.",
            confidence=0.8,
        )

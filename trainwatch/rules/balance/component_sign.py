"""See the rule's docstring: it is the page that `trainwatch rules component-sign` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.bases.course import OfCourse
from trainwatch.rule import Findings
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import Bools, Floats, fall, middle, noise
from trainwatch.table import Chunk
from trainwatch.views.components import Course
from trainwatch.views.evaluations import direction, held_out
from trainwatch.views.games import opponent

MEANT = re.compile(
    r"(^|(?<!cross)[_.-])(ent\w*|bonus\w*|divers\w*|score\w*|gain\w*|likelihood|loglik\w*|ll|log_?p\w*|elbo|sim\w*|acc\w*|margin"
    r"|curiosity|explor\w*|util\w*|psnr|ssim|iou|dice|info\w*|forget\w*|unlearn\w*|neg\w*|reject\w*|repuls\w*|repel)($|[_.-])"
)
"""Names of what is maximised by a negative weight, beside opponents and rewards."""
SCORE = re.compile(r"(^|[_.-])(psnr|ssim|iou|dice|jaccard|f1|acc|accuracy)($|[_.-])")
"""Names of how right an answer is: what makes an error of the same answers smaller makes it larger."""
ERROR = re.compile(
    r"(^|[_.-])(r?mse|mae|l1|l2|huber|b?ce|xent|cross_?entropy|nll|err\w*|residual\w*|recon\w*|spectr\w*|stft|mel"
    r"|perceptual|lpips|ctc|classif\w*|supervised|sft)($|[_.-])"
)
"""Names of errors, of which nobody wants more."""
PENALTY = re.compile(
    r"(^|[_.-])(kld?|penal\w*|wd|(weight_?)?decay|gp|tv|smooth\w*|spars\w*)($|[_.-])|^l[12](_?(reg\w*|norm|penalty))?$"
)
"""Names of regularisers that hold something near 0 or near a reference: nobody wants more of them."""
VALUE = re.compile(r"(^|[_.-])(values?|vf)($|[_.-])")
"""A value follows the rewards, but its loss is an error: nobody wants more of it."""
CRITIC = re.compile(r"(^|[/_.-])(d|dis|disc|discriminator|critic)([/_.-]loss)?$")
"""Names of the loss by which an opponent is trained itself."""
SINCE_HALF = 1.1  # x the level of the middle: a score that has come to its bound stands there within its noise


@dataclass
class ComponentSign(OfCourse):
    """A loss component is maximised: its weight is negative, or it falls without end.

    What it sees:
        A component with a negative weight whose raw value rises to three times what it was, while its contribution
        outgrows all others: a warning, and critical from a hundred times on. Or an error (by its name, or
        a task in nat) that rises by a fifth, with a tenth of the others' contribution. Or one whose raw value
        a bound keeps from rising: a declared task that stays where it began, while its gradient runs against that of a
        task which is learned (a cosine below -0.5 in the mean; turned round, both would agree): a warning. So does the
        measure of an overlap or an accuracy, by its name, that was declared an auxiliary: the loss of that name is what
        is left to 1, and maximised it runs against any other error of the same outputs. Or one that
        comes down although it is maximised: what the others learn makes it smaller; or that rises while no other task
        comes down, one of them rises by a fifth, and validation, too: a score rises as errors fall. Or one, whatever
        its role, that outweighs all others and rises by a fifth, while a task is lost again in training by as much and
        validation, by a figure of merit as well, ends worse than it began. Or a player's, that
        rises as the opponent's own loss falls (a correlation below -0.7, both above 0): then both want it larger. Or,
        at any weight, a contribution that has fallen far below 0, a hundred times beyond where it began and ten times
        the others, and is still falling, or a thousand times, whatever its role.
        A negative weight that does neither, or is meant (an entropy bonus, a reward), is an info; a penalty by its name
        (a divergence, a decay) never is, and no regulariser is meant to rise a thousandfold.

    Why it matters:
        The sum falls and looks like progress, while the optimiser destroys what the component stands for; in the end
        nothing else is trained, or the run ends in infinity.

    What to do:
        Turn the sign of the weight, or of the loss. A term that is meant to be maximised needs a bound (a clamp with a
        slope, a target value, a margin).

    When it is wrong:
        Opponents, rewards and entropy are maximised by design: they are known by their role, their name or a bound.

    References:
        Kendall et al., "Multi-Task Learning Using Uncertainty" (2018): a log-variance without a floor does this.
    """

    kinds: ClassVar[tuple[str, ...]] = ("loss/", "weight/", "grad_cosine/", "param_cosine/")
    needs: ClassVar[tuple[str, ...]] = ("loss/<component>",)
    wants: ClassVar[tuple[str, ...]] = (
        *("weight/<component>", "run:components", "eval:loss"),
        "grad_cosine/<a>~<b>|param_cosine/<a>~<b>",
    )
    causes: ClassVar[tuple[str, ...]] = (
        *("component-divergence", "loss-divergence", "gradient-explosion", "weight-growth", "loss-scale-imbalance"),
        *("gradient-dominance", "non-finite-loss", "clipping-saturated", "curriculum-weight-drift", "loss-spike"),
        *("aggressive-ramp", "gradient-spike", "non-finite-gradient", "non-finite-weights", "gradient-conflict"),
        *("mode-collapse", "repetitive-outputs", "length-collapse", "invalid-outputs", "overfitting"),
    )

    growth: float = 3.0  # x the first level: rewards and similarities in health come to a bound before
    worse: float = 1.2  # x the first level of an error: untrained outputs are as bad as those of a network that is idle
    rise: float = 1 / 6  # of its last level: an error that is a fifth worse than untrained
    grave: float = 100.0  # x the first level: what it stands for is lost
    runaway: float = 1000.0  # x the first level: beyond any bound, whatever it is meant for
    bonus: float = 0.1  # of the others together: less is a term meant to be small
    depth: float = 100.0  # x its first level, below 0: densities of a few nats go to minus a few dozen
    leads: float = 10.0  # x the others together, below 0
    against: float = -0.5  # cosine: half of what a task's step gains is undone; a score that is sought goes with it
    apart: float = -0.7  # correlation with the opponent's own loss; of a part of it, it is above 0
    rows: int = 20  # of both, nine in ten: a correlation as far from 0 is one in 2,000 by chance
    probes: int = 5  # of a cosine: one batch proves nothing

    _negative: dict[str, int] = field(default_factory=dict, init=False)  # the first step with a negative weight

    def update(self, chunk: Chunk) -> Findings:
        """The exact step of a negative weight is noted; the rest is told by the course."""
        self._courses.push(chunk)
        self._negative = self._below(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Every component with a negative weight, and those that have no floor."""
        negative, course = self._below(rest), self._courses.course(rest)
        if len(course) < 5:
            return
        for name in course.names:
            if name in negative:
                yield self._maximised(name, course, negative[name], run)
            else:
                yield from self._endless(name, course)

    def _below(self, chunk: Chunk) -> dict[str, int]:
        found = dict(self._negative)
        for channel in chunk.channels:
            name = channel.removeprefix("weight/")
            if name != channel and name not in found:
                below = chunk[channel] < 0
                if below.any():
                    found[name] = int(chunk.step[int(below.argmax())])
        return found

    def _meant(self, name: str, course: Course) -> bool:
        """Whether it is to be maximised, by its name or as a regulariser that is no penalty by its name."""
        held = VALUE.search(name.lower()) or PENALTY.search(name.lower())
        return _sought(name) or (course.roles.regulates(name) and not held)

    def _maximised(self, name: str, course: Course, first: int, run: Run) -> Finding:
        """A negative weight: how far has it brought its component?"""
        raw, weight = course[f"loss/{name}"], course.weight(name)
        there = np.isfinite(raw) & (weight < 0)
        few = max(3, int(there.sum()) // 20)
        start, now = (middle(part) if len(part) else 0.0 for part in (raw[there][:3], raw[there][-few:]))
        times = now / start if start > 0 else 0.0
        rises = _rises(raw[there], few)
        part = middle(course.part(name)[there][-few:]) if there.any() else 0.0
        leads = part > _others(name, course, few)
        counts = part > self.bonus * _others(name, course, few) and not _sought(name)
        runaway = times >= self.runaway and rises and counts
        grows = times >= self.growth and (rises or times >= self.grave) and leads
        suffers = self._suffers(name, course, times, raw[there]) and counts
        turned = self._turned(name, course, there) if not (runaway or grows or suffers) else ""
        unopposed = self._unopposed(name, run)
        falls, alone = self._falls(name, course, there, run), self._alone(name, course, run)
        sick = runaway or (grows and not self._meant(name, course)) or suffers or falls or alone
        harms = leads and not _sought(name) and times >= self.worse and self._harms(name, course, run)
        sick = sick or harms or bool(turned or unopposed)
        undoes = f", and its gradient undoes that of {turned}" if turned else ""
        undoes = ", against its own gradient: what the others learn brings it down" if falls else undoes
        undoes = ", and no other task is learned: the sum falls by it alone" if alone else undoes
        undoes = ", and validation is worse than when it began" if harms and not undoes else undoes
        undoes = f", while {unopposed} falls: the opponent wants it larger, too" if unopposed else undoes
        told = f"The {name} loss has the weight {weight[there][-1] if there.any() else -1.0:,.4g}, so it is maximised"
        return self.finding(
            ("critical" if times >= self.grave else "warning") if sick else "info",
            f"component:{name}",
            (first, course.steps(0, len(course) - 1)[1]),
            f"{told}: it went from {start:,.4g} to {now:,.4g}{undoes}.",
            over=bool(np.isfinite(weight[-1]) and weight[-1] >= 0),
            evidence={"start": start, "now": now, "contribution": -part},
            advice=f"Turn the sign of the {name} weight." if sick else f"If it is not meant, turn {name}'s sign.",
            confidence=0.9 if sick else 0.7,
        )

    def _unopposed(self, name: str, run: Run) -> str:
        """The opponent's own loss that falls as this one rises: both sides push it up, so it is no game.

        What a game maximises is the opponent's loss or a part of it, and moves with it. Scores pass 0, and are left.
        """
        if not opponent(name) or VALUE.search(name.lower()):
            return ""
        raw, there = run.train[f"loss/{name}"], run.train[f"weight/{name}"] < 0
        for channel in run.train.channels:
            if CRITIC.search(channel.lower()) and channel != f"loss/{name}":
                own = run.train[channel]
                known = there & (raw > 0) & (own > 0)
                enough = known.sum() >= max(self.rows, 0.9 * there.sum()) and fall(-raw[known]) > 0 < fall(own[known])
                if enough and np.corrcoef(raw[known], own[known])[0, 1] < self.apart:
                    return channel
        return ""

    def _suffers(self, name: str, course: Course, times: float, raw: Floats) -> bool:
        """Whether it is an error that has risen from where it began: the network gives worse answers than untrained."""
        nats = course.roles.units.get(name) in ("nat", "nats", "bit", "bits")
        nats = nats and course.roles.said.get(name, "task") == "task"  # an auxiliary may be an entropy, in nats too
        error = (nats or bool(ERROR.search(name.lower()))) and not self._meant(name, course)
        return error and times >= self.worse and fall(-raw) > 0

    @staticmethod
    def _falls(name: str, course: Course, there: Bools, run: Run) -> bool:
        """Whether it is declared a task, and comes down although it is maximised: so the others want it smaller.

        A score that is sought rises, or is known by its name; what an opponent learns is, too. One that comes down from
        stage to stage, as the data gets harder, does not do so within a stage.
        """
        raw = course[f"loss/{name}"]
        always = bool(there.any()) and bool(there[np.isfinite(raw)].all()) and bool((raw[there] > 0).all())
        if not always or course.roles.said.get(name) != "task" or _sought(name) or not course.learned(name):
            return False
        starts = [stage.start for stage in run.header.plan.stages[1:]] if run.header.plan else []
        stages = np.split(raw, np.searchsorted(course.columns["step"], starts, "right"))
        within = [fall(stage) for stage in stages]
        return any(by > 0 for by in within) and not any(by < 0 for by in within)

    def _alone(self, name: str, course: Course, run: Run) -> bool:
        """Whether it is declared a task and has risen, no other task has come down, one of them has risen, too, and so
        has validation.

        Tasks are learned together: a score rises as the errors fall, and what rises with them is an error itself. What
        a gain or a value does beside errors that rise, as data gets harder or rewards larger, is no worse validation.
        """
        declared = [other for other in course.names if course.roles.said.get(other) == "task"]
        if name not in declared or _sought(name) or not fall(-course[f"loss/{name}"]) > 0:
            return False
        risen = [fall(-course[f"loss/{other}"]) for other in declared if other != name]
        return bool(risen and min(risen) >= 0 and max(risen) > self.rise and fall(-held_out(run)[1]) > 0)

    def _harms(self, name: str, course: Course, run: Run) -> bool:
        """Whether it rises while a declared task is lost again in training, and validation ends worse than it began, by
        a figure of merit, too: what is sought for its good (a spread, a bonus) helps one of them; overfitting does not
        cost training.
        """
        tasks = [course[f"loss/{other}"] for other in course.names if course.roles.said.get(other) == "task"]
        names = [one for one in run.eval.channels if one.startswith("metric/") and direction(one)]
        merits = [-direction(one) * held_out(run, one)[1] for one in names]
        worse = fall(-course[f"loss/{name}"]) > 0 and fall(-held_out(run)[1]) > 0 and merits
        spoilt = worse and all(_since_best(costs) > 0 for costs in merits)
        return bool(spoilt) and any(_since_best(raw) > self.rise for raw in tasks)

    def _turned(self, name: str, course: Course, there: Bools) -> str:
        """The learned task that a declared task of negative weight, which is not learned, runs against.

        A score that is declared an auxiliary stands for the same outputs as any other error, be it an auxiliary, too;
        what rises under its negative weight is one that is found, whatever it costs the other.
        """
        score = course.roles.said.get(name) == "auxiliary" and bool(SCORE.search(name.lower()))
        lost = not fall(-course[f"loss/{name}"]) > 0 if score else course.roles.task(name) and not opponent(name)
        if not lost or course.learned(name):
            return ""
        for channel in course.columns:
            kind, _, pair = channel.partition("/")
            if kind.endswith("_cosine") and name in pair.split("~"):
                (other,) = [one for one in pair.split("~") if one != name] or [name]
                cosine = course[channel][there & np.isfinite(course[channel])]
                aside = course.roles.regulates(other) if score else course.roles.aside(other)
                task = other in course.names and not aside and course.learned(other)
                if task and len(cosine) >= self.probes and cosine.mean() < self.against:
                    return other
        return ""

    def _endless(self, name: str, course: Course) -> Findings:
        """A contribution that falls, and falls on, far below 0."""
        value = course[f"loss/{name}"]
        known = np.flatnonzero(np.isfinite(value))
        few = max(3, len(known) // 20)
        if len(known) < 6 * few or not middle(value[known[-few:]]) < 0:
            return
        levels = [middle(value[known[at : at + few]]) for at in (0, -3 * few, -2 * few)]
        start, before, lately, now = *levels, middle(value[known[-few:]])
        deep = self.depth * max(1.0, abs(start))
        scatter = noise(value)
        falls = before - lately > 2 * scatter and lately - now > 2 * scatter and not self._meant(name, course)
        part = float(np.median(course.part(name)[known[-few:]]))
        lost = now < -self.runaway * max(1.0, abs(start)) and not _sought(name)
        if ((now < -deep and falls) or lost) and part > self.leads * _others(name, course, few):
            onset = int(known[int(np.argmax(value[known] < -max(1.0, abs(start))))])
            yield self.finding(
                "warning",
                f"component:{name}",
                course.steps(onset, len(course) - 1),
                f"The {name} loss fell from {start:,.4g} to {now:,.4g}{' and falls on' * falls}: it has no floor.",
                evidence={"start": start, "now": now, "contribution": -part},
                advice=f"Give {name} a floor (a smallest variance, a margin), or turn its sign.",
                confidence=0.8,
            )


def _rises(values: Floats, few: int) -> bool:
    """Whether it has risen by a tenth since the middle; its end alone may be that of a rate that falls to nothing."""
    half = len(values) // 2
    if half < 2 * few:
        return len(values) >= 2 * few and bool(np.median(values[-few:]) > np.median(values[-2 * few : -few]))
    return bool(np.median(values[-few:]) > SINCE_HALF * np.median(values[half - few : half]))


def _since_best(costs: Floats) -> float:
    """How far a series has risen since it was lowest, as a share of where it stands."""
    known = costs[np.isfinite(costs)]
    return fall(-known[int(np.argmin(known)) :]) if len(known) else 0.0


def _sought(name: str) -> bool:
    """Whether its name says that more of it is better, or that it follows who plays."""
    low = name.lower()
    return bool(MEANT.search(low)) or (opponent(low) and not VALUE.search(low))


def _others(name: str, course: Course, few: int) -> float:
    """Contributions of the other components together, as they are now."""
    parts = [course.part(other)[-few:] for other in course.names if other != name]
    now = [float(np.median(part[np.isfinite(part)])) for part in parts if np.isfinite(part).any()]
    return sum(now)

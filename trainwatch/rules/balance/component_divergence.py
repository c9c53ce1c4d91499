"""See the rule's docstring: it is the page that `trainwatch rules component-divergence` prints."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.bases.course import OfCourse
from trainwatch.header import Header
from trainwatch.rule import Findings
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import median, noise, running_medians
from trainwatch.table import Chunk
from trainwatch.views.components import Course, Relapse, relapse
from trainwatch.views.curve import rise_at_once
from trainwatch.views.games import opponent

Floats = NDArray[np.float64]


@dataclass
class ComponentDivergence(OfCourse):
    """One loss component grows again while the total falls and hides it.

    What it sees:
        A component had been falling, and has given back more than half of what it gained: by a fifth of its best value
        and eight times its noise, and it stays there for a fifth of the stage; or at once, and it has stood there for a
        quarter of the planned steps. The total fell in the same time, or rose with it and has fallen again by more than
        half of that rise. Weights are the same then and now; a new stage begins anew. What a run gained before it was
        resumed is gained.

    Why it matters:
        The one number that everybody watches says that all is well, while a task is being unlearned.

    What to do:
        Raise the component's weight, or project conflicting gradients (PCGrad, CAGrad). See gradient-conflict for who
        pulls against it, and keep the checkpoint from before the rise.

    When it is wrong:
        Losses that follow an opponent, a reward or a value, and regularisers, grow in health: they are known by role or
        by name. So does what is maximised: of a negative weight component-sign tells. Where weights are not recorded
        and the total is not the plain sum, it is an info: a weight may have been annealed.

    References:
        Yu et al., "Gradient Surgery for Multi-Task Learning" (2020).
    """

    needs: ClassVar[tuple[str, ...]] = ("loss/<component>", "loss")
    wants: ClassVar[tuple[str, ...]] = ("weight/<component>", "stage", "run:components")
    causes: ClassVar[tuple[str, ...]] = ("loss-divergence", "overfitting")

    rise: float = 0.2  # of the best value: what a healthy trade between two tasks comes to is a tenth
    sigmas: float = 8.0  # of the noise of one row or bin, of which the levels are medians of five
    given_back: float = 0.5  # of what it had gained, as for the total (loss-divergence)
    weights: float = 0.2  # relative: weights that moved no more than that explain no rise
    clear: float = 4.0  # of the noise: what a total hides, and what came at once, must be plain
    total_falls: float = 0.02  # relative, as everywhere: less is standing still

    _planned: int = field(default=0, init=False)  # steps
    _before: Chunk | None = field(default=None, init=False)  # the rows of earlier processes

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """The process as it stands, on a copy that knows what was gained before it."""
        course = self._courses.course(rest)
        if len(course):
            trial = copy(self)
            trial._before = Chunk("train", rest.rows, 0, rest.stop - course.rows)
            yield from trial.judge(course)

    def judge(self, course: Course) -> Iterator[Finding]:
        """The stage that holds now."""
        begin = course.regime_begin(len(course))
        for name in course.names if len(course.names) > 1 else ():
            maximised = course.weight(name)[-1] < 0  # and meant to rise
            if not (course.roles.aside(name) or opponent(name) or maximised):
                found = relapse(course[f"loss/{name}"], begin, len(course), self.rise, self.sigmas)
                found = found or self._at_once(course, name, begin)
                if found is not None and self._sick(name, course, begin, found):
                    yield self._finding(name, course, found)

    def start(self, header: Header) -> Findings:
        """How long the run is meant to be: what stands for a quarter of the rows so far may be a young run's mood."""
        self._planned = header.total_steps or 0
        return super().start(header)

    def _at_once(self, course: Course, name: str, begin: int) -> Relapse | None:
        """A rise from one row to the next that has stood since, by a fifth of the level before it."""
        values = course[f"loss/{name}"]
        known = begin + np.flatnonzero(np.isfinite(values[begin:]))
        level, height, flat = rise_at_once(values[known]) if len(known) >= 4 * 5 else (0.0, 0.0, False)
        if not flat or not height > self.rise * abs(level):
            return None
        smooth = running_medians(values[known], 5)
        at = int(np.flatnonzero(smooth <= level + height / 2)[-1])
        start, scatter = float(smooth[: at + 1].max()), noise(values[known[: at + 1]])
        first, last = course.steps(int(known[at]), len(course) - 1)
        plain = height > self.clear * scatter and last - first >= self._planned / 4
        return Relapse(start, level, int(known[at]), level + height, scatter) if plain else None

    def _sick(self, name: str, course: Course, begin: int, found: Relapse) -> bool:
        """It had gained something, gave back half of it under the same weights, and the total fell."""
        raw = course[f"loss/{name}"][begin:]
        known = raw[np.isfinite(raw)]
        if min((known > 0).sum(), (known < 0).sum()) > 0.1 * len(known):
            return False
        gain = max(found.start, self._began(name, course)) - found.best
        fell = self._fell(course["loss"], found.at)
        return found.now - found.best > self.given_back * gain and fell and self._same_weights(course, found.at)

    def _began(self, name: str, course: Course) -> float:
        """The level at which a run that was resumed once began, if its weights and its stage are still the same."""
        before = self._before
        if before is None or not len(before):
            return -np.inf
        weights = [(before[f"weight/{other}"], course.weight(other)[-1]) for other in course.names]
        moved = any(abs(median(then[:5]) - now) > self.weights * abs(now) for then, now in weights)
        staged = not np.array_equal(before["stage"][:1], course["stage"][-1:], equal_nan=True)
        known = before[f"loss/{name}"][np.isfinite(before[f"loss/{name}"])]
        return -np.inf if moved or staged or not len(known) else median(known[:5])

    def _fell(self, total: Floats, at: int) -> bool:
        """Since the component was best, or since the total rose with it; by more than its noise."""
        level = running_medians(total, 5)
        then, now = level[at], median(total[-max(5, len(total) // 20) :])
        peak = np.fmax.reduce(level[at:], initial=then)
        hidden = peak - now > max(self.given_back * (peak - then), self.clear * noise(total))
        return bool(then - now > max(self.total_falls * abs(then), noise(total)) or hidden)

    def _same_weights(self, course: Course, at: int) -> bool:
        """Every weight is within a fifth of what it was."""
        for name in course.names:
            weight = course.weight(name)
            then, now = weight[at], weight[-1]
            if np.isfinite(then + now) and abs(now - then) > self.weights * max(abs(then), abs(now)):
                return False
        return True

    def _finding(self, name: str, course: Course, found: Relapse) -> Finding:
        weighted = any(channel.startswith("weight/") for channel in course.columns)
        total, summed = course["loss"], sum(course[f"loss/{other}"] for other in course.names)
        plain = bool(median(np.abs(total - summed)) < 0.02 * median(np.abs(total)))
        raw = course[f"loss/{name}"]
        near = np.flatnonzero(running_medians(raw, 5) < found.best + 1.2 * found.scatter)  # two deviations of a level
        onset = max(found.at, int(near[-1])) if len(near) else found.at
        onset += _low_rows(raw[onset : onset + 4], (found.best + found.now) / 2)
        low, now = np.fmin.reduce(running_medians(total, 5)[: found.at + 1]), median(total[-5:])
        before = f", having been at {low:,.4g} before" if now > low else ""
        return self.finding(
            "warning" if weighted or plain else "info",
            f"component:{name}",
            course.steps(onset, len(course) - 1),
            f"The {name} loss was down at {found.best:,.4g} and is back at {found.now:,.4g}, while the total fell to "
            f"{now:,.4g}{before}.",
            evidence={"best": found.best, "now": found.now, "scatter": found.scatter},
            advice=f"Raise the {name} weight or lower what pulls against it, from the checkpoint before the rise.",
            confidence=0.85 if weighted else 0.7,
        )


def _low_rows(raw: Floats, middle: float) -> int:
    """How many rows until the last low one: a rise from one row to the next shows in medians of five two rows early."""
    low = np.flatnonzero(raw < middle)
    return int(low[-1]) + 1 if len(low) and len(low) == low[-1] + 1 and len(low) < len(raw) else 0

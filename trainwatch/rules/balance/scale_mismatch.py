"""See the rule's docstring: it is the page that `trainwatch rules scale-mismatch` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import middle
from trainwatch.table import Chunk, TableName
from trainwatch.views.components import Roles, small_by_design
from trainwatch.views.evaluations import Course, Evaluations, Floats

POLICY = re.compile(r"(^|[_.-])(policy|actor|pg)($|[_.-])")
"""What its components are there for, small as their surrogate is."""


@dataclass
class ScaleMismatch(Rule):
    """A loss component is many times larger in training than in evaluation, and leaves the others nothing.

    What it sees:
        In the last three evaluations and more a component's mean training loss was at least 50 times its validation
        loss, always about as many times, and since then it makes nine tenths of all contributions (weight x raw
        value). A warning where another component, which is not a regulariser, loses by it: less than a tenth of the
        gradient is left for the others, where its shares are recorded, and none of them has become better by a tenth
        in all the run. Else an info.

    Why it matters:
        One of the two sums where the other averages, misses a division by a unit, or reads data that are not scaled
        alike. Whatever training's loss says, the other tasks are hardly trained.

    What to do:
        Compute both by the same function: `reduction="mean"`, targets in the same unit. Or divide its weight by that
        factor.

    When it is wrong:
        A sum that is meant (the reconstruction of a variational autoencoder), evaluated as a mean under the same name:
        give the evaluation's figure a name of its own.

    References:
        PyTorch's losses (`reduction`); Kendall et al. (2018) on the units of tasks.
    """

    reads: ClassVar[tuple[TableName, ...]] = ("train", "eval")
    needs: ClassVar[tuple[str, ...]] = ("eval:loss/<component>", "loss/<component>")
    wants: ClassVar[tuple[str, ...]] = (
        "weight/<component>",
        "grad_share/<component>|param_share/<component>",
        "run:components",
    )
    causes: ClassVar[tuple[str, ...]] = (
        *("loss-scale-imbalance", "gradient-dominance", "component-ignored", "clipping-saturated", "gradient-conflict"),
        *("gradient-explosion", "gradient-spike", "loss-spike", "loss-stuck", "slow-convergence", "metric-stuck"),
        *("overtraining", "generalisation-gap", "overfitting", "loss-divergence", "component-divergence"),
    )

    times: float = 50.0  # x validation: dropout, augmentation, noise that training adds come to ten
    alike: float = 10.0  # x between the evaluations: what is not learned alike in both moves by less
    evaluations: int = 3  # that agree: one or two may be of other weights, or of other data
    owned: float = 0.9  # of the contributions, and of the gradient
    improved: float = 0.1  # of its value: it is trained all the same

    _evaluations: Evaluations = field(default_factory=Evaluations, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Rows are only added up; evaluations are few."""
        self._evaluations.push(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Each component of the first split that has it."""
        told: set[str] = set()
        for course in self._evaluations.courses():
            name = course.name.removeprefix("loss/")
            since = self._apart(course) if course.name.startswith("loss/") and name not in told else None
            if since is not None:
                told.add(name)
                yield from self._weighed(name, course, since, run)

    def _apart(self, course: Course) -> int | None:
        """Since which evaluation the two have been that far apart."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where(course.value != 0, np.abs(course.train / course.value), np.nan)
            ratio = np.where(np.isfinite(ratio), ratio, np.nan)
        near = np.flatnonzero(~(ratio >= self.times))
        since = int(near[-1]) + 1 if len(near) else 0
        late = ratio[since:]
        return since if len(late) >= self.evaluations and late.max() <= self.alike * late.min() else None

    def _weighed(self, name: str, course: Course, since: int, run: Run) -> Iterator[Finding]:
        """What it is of the training loss since, and what is left for the others."""
        rows, roles = Chunk("train", run.train, 0, run.train.size), Roles.of(run.header)
        begin = course.step[since - 1] if since else -np.inf
        here = run.train.live & (rows.step > begin)
        parts = {other[5:]: _part(rows, other[5:])[here] for other in rows.channels if other.startswith("loss/")}
        level = {other: middle(part[np.isfinite(part)]) for other, part in parts.items() if np.isfinite(part).any()}
        level = {other: size for other, size in level.items() if size > 0}
        if len(level) < 2 or level.get(name, 0.0) < self.owned * sum(level.values()):
            return
        shares = [rows[f"{kind}_share/{name}"][here] for kind in ("grad", "param")]
        known = next((share[np.isfinite(share)] for share in shares if np.isfinite(share).any()), None)
        losers = [other for other in level if other != name and not _small(other, roles)]
        starved = known is None or middle(known) >= self.owned
        starved &= not any(self._better(rows[f"loss/{other}"][run.train.live]) for other in losers)
        steps = int(rows.step[here][0]), int(course.step[-1])
        yield self._finding(course, since, level[name] / sum(level.values()), steps, bool(losers) and starved)

    def _better(self, raw: Floats) -> bool:
        """Whether a component has come down: medians of the first and the last fifth."""
        known = raw[np.isfinite(raw)]
        few = max(1, len(known) // 5)
        return len(known) > 1 and middle(known[:few]) - middle(known[-few:]) > self.improved * abs(middle(known[:few]))

    def _finding(self, course: Course, since: int, share: float, steps: tuple[int, int], sick: bool) -> Finding:
        name, train, value = course.name[5:], course.recent(course.train), course.recent(course.value)
        times = middle(np.abs(course.train[since:] / course.value[since:]))
        return self.finding(
            "warning" if sick else "info",
            f"component:{name}",
            steps,
            f"The {name} loss is {train:,.4g} in training and {value:,.4g} in the evaluation of {course.split}, "
            f"{times:,.3g} times as much, and makes {share:.1%} of what is trained.",
            evidence={"train": train, "validation": value, "ratio": times, "contribution": share},
            advice=f"Look for a sum where the other takes the mean, or a unit; else divide its weight by {times:,.0f}.",
            confidence=0.9 if sick else 0.6,
        )


def _small(name: str, roles: Roles) -> bool:
    """Whether a component regularises: as declared, else by its name."""
    if name in roles.said:
        return roles.said[name] == "regulariser"
    return small_by_design(name, roles.names) and not POLICY.search(name.lower())


def _part(rows: Chunk, name: str) -> Floats:
    """Magnitude of a component's contribution; of its raw value in a run that records no weights. float64 [rows]"""
    weighted = f"weight/{name}" in rows.channels
    return np.abs(rows[f"loss/{name}"] * (rows[f"weight/{name}"] if weighted else 1.0))

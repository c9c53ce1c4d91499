"""See the rule's docstring: it is the page that `trainwatch rules curriculum-weight-drift` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Curriculum, Header
from trainwatch.rule import Findings, Rule
from trainwatch.schedule import schedule_values
from trainwatch.schema import Finding
from trainwatch.stats import Streak
from trainwatch.table import Chunk

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass
class CurriculumWeightDrift(Rule):
    """A loss component's weight is not what the declared curriculum gives it at this step.

    What it sees:
        The recorded `weight/<component>` against the weight of the declared stage that holds at the applied step (the
        count of those that the optimiser took, not those that the scaler skipped), one step early at a boundary or up
        to a window late (an epoch that has to end first). While a curriculum ramps, any value between the stage before
        and this one is right; a weight that has a schedule of its own is judged by `schedule-desync`.

    Why it matters:
        The run follows its plan in name only: a stage that was never entered, a boundary counted by another clock, or a
        weight that is multiplied twice decides what is learned, and no curve says so.

    What to do:
        Look at what hands the weight to the loss: which counter it asks the stage with, and whether something scales
        the weight afterwards. If the new weights are meant, declare them.

    When it is wrong:
        Weights that are learned or balanced while training (uncertainty weighting, GradNorm) drift by design: declare
        no stage weights for those components.

    References:
        The declared form of a curriculum: `curriculum` in the run's header.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("run:curriculum", "weight/<component>")
    wants: ClassVar[tuple[str, ...]] = ("applied",)
    causes: ClassVar[tuple[str, ...]] = (
        *("loss-scale-imbalance", "gradient-dominance", "component-ignored", "aggressive-ramp"),
        *("gradient-explosion", "non-finite-loss"),
    )

    tolerance: float = 0.01  # relative; a weight that is told in three digits is within it
    rows: int = 5  # in a row: less is a boundary that was counted a little late
    grave_factor: float = 2.0  # times too large or too small: then the stage trains something else than it says

    _curriculum: Curriculum | None = field(default=None, init=False)
    _late: int = field(default=0, init=False)
    _planned: dict[str, Floats] = field(default_factory=dict, init=False)
    _streaks: dict[str, tuple[Streak, Streak]] = field(default_factory=dict, init=False)

    def start(self, header: Header) -> Findings:
        """The weights of every stage, a column a component; NaN where a stage does not speak of it."""
        self._curriculum, self._late = header.curriculum, header.window() - 1
        stages = header.curriculum.stages if header.curriculum else ()
        scheduled = {name for name, said in header.schedules.items() if schedule_values(said, 0.0) is not None}
        for name in dict.fromkeys(name for stage in stages for name in stage.weights):
            if f"weight/{name}" not in scheduled:
                self._planned[name] = np.array([stage.weights.get(name, np.nan) for stage in stages])
                self._streaks[name] = (Streak(self.rows), Streak(self.rows, header.window()))
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Weights that are as planned cost one comparison; the others are held against the neighbouring steps too."""
        applied = chunk.applied()
        stage = self._stage(applied)
        for name, planned in self._planned.items():
            weight = chunk[f"weight/{name}"]
            judged = np.isfinite(weight) & np.isfinite(planned[stage])
            if judged.any():
                off = judged & ~self._fits(planned, stage, weight)
                rows = np.flatnonzero(off)
                for near in self._near(applied[rows]) if len(rows) else ():
                    off[rows] &= ~self._fits(planned, near, weight[rows]) & np.isfinite(planned[near])
                columns = {"step": chunk.step.astype(np.float64), "applied": applied, "weight": weight}
                columns |= {"planned": planned[stage], "stage": stage.astype(np.float64)}
                yield from self._judge(name, off[judged], {key: values[judged] for key, values in columns.items()})

    def _near(self, applied: Floats) -> list[NDArray[np.int64]]:
        """Stages whose weights may still, or already, hold: a step more, and a boundary that is taken a little late."""
        stage, begins = self._stage(applied), self._begins()
        late = applied - begins[stage] < self._late if len(begins) else np.zeros(len(applied), dtype=bool)
        return [
            self._stage(applied - 1.0),
            self._stage(applied + 1.0),
            np.where(late, np.maximum(stage - 1, 0), stage),
            self._stage(applied - self._late),
        ]

    def _begins(self) -> Floats:
        """Where the stages begin. float64 [stages]"""
        return np.array([stage.start for stage in self._curriculum.stages] if self._curriculum else [], np.float64)

    def _stage(self, applied: Floats) -> NDArray[np.int64]:
        """Index of the stage that holds: ``Curriculum.at`` for many steps. int64 [rows]"""
        return np.maximum(np.searchsorted(self._begins(), applied, side="right") - 1, 0)

    def _fits(self, planned: Floats, stage: NDArray[np.int64], weight: Floats) -> Bools:
        """Whether the weight is the stage's, or between it and the one before while a curriculum ramps. bool [rows]"""
        low = high = planned[stage]
        if self._curriculum and self._curriculum.ramp != "step":
            before = np.nan_to_num(np.where(stage > 0, planned[np.maximum(stage - 1, 0)], 0.0))
            low, high = np.minimum(low, before), np.maximum(high, before)
        slack = self.tolerance * np.where(planned[stage] == 0, np.nanmax(np.abs(planned)), np.abs(planned[stage]))
        return (weight >= low - slack) & (weight <= high + slack)

    def _judge(self, name: str, off: Bools, columns: dict[str, Floats]) -> Findings:
        streak, grave = self._streaks[name]
        weight, planned = columns["weight"], columns["planned"]
        far = (np.abs(weight) * self.grave_factor < np.abs(planned)) | (
            np.abs(weight - planned) > (self.grave_factor - 1) * np.abs(planned)
        )
        grave.push(off & far, columns)
        if streak.push(off, columns):
            yield self._finding(name, streak, grave)

    def _finding(self, name: str, streak: Streak, grave: Streak) -> Finding:
        onset, now = streak.onset or {}, streak.latest
        stage = self._curriculum.stages[int(now["stage"])].name if self._curriculum else ""
        plan = self._curriculum.name if self._curriculum else ""
        return self.finding(
            "warning" if grave.onset is None else "critical",
            f"component:{name}",
            (int(onset["step"]), int(now["step"])),
            f"The {name} weight is {now['weight']:.4g} at step {now['step']:,.0f}, where stage {stage} of {plan} "
            f"gives it {now['planned']:.4g}.",
            over=streak.over,
            evidence={"weight": now["weight"], "planned": now["planned"], "stage": stage, "applied": now["applied"]},
            advice=f"Find what hands {name} its weight, and which counter picks the stage; or declare what is meant.",
            confidence=0.95,
        )

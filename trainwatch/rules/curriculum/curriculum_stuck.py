"""See the rule's docstring: it is the page that `trainwatch rules curriculum-stuck` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Curriculum, Header
from trainwatch.rule import Findings, Rule
from trainwatch.schema import Finding
from trainwatch.stats import Streak
from trainwatch.table import Chunk

Floats = NDArray[np.float64]


@dataclass
class CurriculumStuck(Rule):
    """The curriculum stays in a stage whose end has passed.

    What it sees:
        The recorded `stage` against the declared stage at the applied step (the count of those that the optimiser took,
        not those that the scaler skipped); where no stage is recorded, the stage whose weights are applied. A tenth of
        a stage, and at least 2 % of the run, may pass before it is late: an epoch may have to end first.

    Why it matters:
        The run goes on with the easy data and the weights of the beginning, and looks the better for it: the loss is
        low, and what the later stages were to teach is never seen.

    What to do:
        Look at which counter the curriculum is asked with (an epoch, a process's own count, one that a resume forgot),
        and whether anything asks it at all after the first step.

    When it is wrong:
        A curriculum that waits for a metric and not for a step: declare no stages, or the steps it may come to at most.

    References:
        A counter of its own in a data pipeline: at 1,200 when the run was at step 5,000, so in the first stage still.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("run:curriculum|run:curriculum_running", "stage|weight/<component>")
    wants: ClassVar[tuple[str, ...]] = ("stage", "applied")
    causes: ClassVar[tuple[str, ...]] = ("curriculum-weight-drift", "stale-data", "component-ignored", "loss-plateau")

    late: float = 0.1  # of the stage's length: an epoch that has to end first is shorter
    rows: int = 3  # in a row: one stray value is no stage
    tolerance: float = 0.01  # relative, of weights: as told in three digits

    _plan: Curriculum | None = field(default=None, init=False)
    _begins: Floats = field(default_factory=lambda: np.empty(0), init=False)
    _allowed: Floats = field(default_factory=lambda: np.empty(0), init=False)
    _weights: dict[str, Floats] = field(default_factory=dict, init=False)
    _streak: Streak = field(default_factory=lambda: Streak(1), init=False)

    def start(self, header: Header) -> Findings:
        """Where the stages begin, how late each may come, and by which weights it is known."""
        self._plan, self._streak = header.plan, Streak(self.rows)
        stages = self._plan.stages if self._plan else ()
        ends = [*(stage.start for stage in stages[1:]), float(header.total_steps or stages[-1].end)] if stages else []
        self._begins = np.array([stage.start for stage in stages])
        lengths = np.nan_to_num(np.array(ends) - self._begins, posinf=0.0)
        self._allowed = np.maximum(self.late * lengths, header.window())
        if self._plan and self._plan.ramp == "step":
            names = set.intersection(*(set(stage.weights) for stage in stages)) if stages else set()
            for name in sorted(names):
                self._weights[name] = np.array([stage.weights[name] for stage in stages])
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Rows in the declared stage cost one comparison."""
        if len(self._begins) < 2:
            return
        applied = chunk.applied()
        due = np.maximum(np.searchsorted(self._begins, applied, side="right") - 1, 0)
        stage = chunk["stage"]
        if np.isnan(stage).all():
            stage = self._by_weights(chunk, due)
        judged = np.isfinite(stage) & (stage >= 0)
        at = np.where(judged, np.minimum(stage, len(self._begins) - 1), 0).astype(np.int64)
        missed = np.minimum(at + 1, len(self._begins) - 1)  # the stage that should have come next
        begin = self._begins[missed]
        behind = judged & (at < due) & (applied - begin >= self._allowed[missed])
        columns = {"step": chunk.step.astype(np.float64), "applied": applied, "begin": begin}
        columns |= {"stage": at.astype(np.float64), "due": due.astype(np.float64)}
        if self._streak.push(behind[judged], {name: values[judged] for name, values in columns.items()}):
            yield self._finding()

    def _by_weights(self, chunk: Chunk, due: NDArray[np.int64]) -> Floats:
        """The stage up to the due one whose weights are applied, the latest of several; NaN for none. [rows]"""
        stage = np.full(len(chunk), np.nan)
        columns = {name: chunk[f"weight/{name}"] for name in self._weights if f"weight/{name}" in chunk.channels}
        if not columns:
            return stage
        for index in range(min(int(due.max(initial=0)) + 1, len(self._begins))):
            fits = due >= index
            for name, weight in columns.items():
                planned = self._weights[name][index]
                fits &= np.abs(weight - planned) <= self.tolerance * abs(planned)
            stage[fits] = index
        return stage

    def _finding(self) -> Finding:
        onset, now = self._streak.onset or {}, self._streak.latest
        stages = self._plan.stages if self._plan else ()
        stage, due = stages[int(now["stage"])], stages[int(now["due"])]
        began = onset["begin"] + max(onset["step"] - onset["applied"], 0.0)  # in attempted steps
        return self.finding(
            "critical" if now["due"] - now["stage"] > 1 else "warning",  # a whole stage was left out
            "run",
            (int(began), int(now["step"])),
            f"The curriculum is in stage {stage.name!r} at step {now['step']:,.0f}, where {due.name!r} is declared; "
            f"the next one should have begun at {now['begin']:,.0f}.",
            over=self._streak.over,
            evidence={"stage": now["stage"], "due": now["due"], "applied": now["applied"], "boundary": now["begin"]},
            advice="Ask the curriculum with the applied step, before every step.",
            confidence=0.9,
        )

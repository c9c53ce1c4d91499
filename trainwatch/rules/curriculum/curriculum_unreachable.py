"""See the rule's docstring: it is the page that `trainwatch rules curriculum-unreachable` prints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from trainwatch.header import Curriculum, Header, settings
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk


@dataclass
class CurriculumUnreachable(Rule):
    """The run ends before the last stages of its curriculum begin.

    What it sees:
        The beginnings of the declared stages against the planned steps, before the first one is taken. A plan that fits
        and a run that ended earlier than planned is only told.

    Why it matters:
        What the last stages teach (the longest inputs, the noise of real data, the last loss) is never trained, and the
        final evaluation measures exactly that.

    What to do:
        Give the stages as shares of the run, or train as many steps as the plan is long.

    When it is wrong:
        A first trial that is short on purpose, with the curriculum of the long run.

    References:
        A curriculum in steps of a 100,000-step run, taken along into one of 50,000.
    """

    needs: ClassVar[tuple[str, ...]] = ("run:curriculum|run:curriculum_running",)
    wants: ClassVar[tuple[str, ...]] = ("run:total_steps",)
    causes: ClassVar[tuple[str, ...]] = ("loss-plateau",)

    late: float = 1.0  # of the planned steps: a stage that begins there is never trained

    _plan: Curriculum | None = field(default=None, init=False)
    _fits: bool = field(default=True, init=False)

    def start(self, header: Header) -> Findings:
        """A plan that cannot fit is told before the first step."""
        self._plan, total = header.plan, header.total_steps
        if self._plan is None or total is None or not self._never(self.late * total):
            return
        self._fits = False
        end = self._plan.stages[-1].end
        length = end if math.isfinite(end) else self._plan.stages[-1].start
        paths = settings(header.config, "curriculum", length)
        yield self._finding(
            "warning",
            header.resumed_from or 0,
            total,
            f"The run is planned for {total:,} steps",
            f"Give {self._plan.name}'s stages as shares of the run, or train {length:,.0f} steps.",
            {paths[0]: total} if len(paths) == 1 else {},
        )

    def finish(self, run: Run, rest: Chunk) -> Findings:  # noqa: ARG002
        """Where a plan that fits was cut short."""
        if self._plan is None or not self._fits or run.end is None or run.end.get("status") == "failed":
            return
        applied, ended = run.train["applied"], run.last_step or 0
        ended = int(applied[-1]) if len(applied) and math.isfinite(applied[-1]) else ended
        if ended and self._never(ended):
            advice = "Resume the run, or judge it by what the stages that were trained ask for."
            yield self._finding("info", ended, ended, f"The run ended at step {ended:,}", advice, {})

    def _never(self, steps: float) -> list[str]:
        """The stages that do not begin within so many steps."""
        return [stage.name for stage in self._plan.stages[1:] if stage.start >= steps] if self._plan else []

    def _finding(self, severity: str, at: int, steps: int, what: str, advice: str, patch: dict[str, int]) -> Finding:
        never, plan = self._never(steps), self._plan
        assert plan is not None
        first = plan.stages[len(plan.stages) - len(never)]
        verb = "never begins" if len(never) == 1 else "never begin"
        return self.finding(
            severity,  # type: ignore[arg-type]  # one of the two above
            "run",
            (at, at),
            f"{what}, and {first.name!r} of {plan.name} begins at {first.start:,.0f}: {len(never)} of "
            f"{len(plan.stages)} stages {verb}.",
            evidence={"steps": steps, "begins": first.start, "stages": len(plan.stages), "unreached": len(never)},
            advice=advice,
            patch=patch,
        )

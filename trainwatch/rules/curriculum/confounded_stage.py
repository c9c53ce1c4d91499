"""See the rule's docstring: it is the page that `trainwatch rules confounded-stage` prints."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from trainwatch.header import Header, Stage
from trainwatch.rule import Findings, Rule


@dataclass
class ConfoundedStage(Rule):
    """A boundary of the curriculum changes several things at once.

    What it sees:
        The declared stages alone: how many data ranges differ between two neighbours, and whether the loss weights do,
        which count as one. It is only worth knowing, and said once for the whole plan.

    Why it matters:
        If a loss jumps or a metric falls behind such a boundary, nothing in the run can tell which of the changes did
        it: longer inputs, more noise or a new weight.

    What to do:
        Where a stage makes trouble, change one factor at a boundary and let some steps pass before the next; or train
        the same plan once for each factor alone.

    When it is wrong:
        Factors that mean the same (noise as a number of peaks and as an error of masses) are counted apart.

    References:
        Both curricula of a published peptide sequencer change length, noise and weights at every boundary.
    """

    needs: ClassVar[tuple[str, ...]] = ("run:curriculum|run:curriculum_running",)

    factors: int = 2  # one change can be blamed; of two neither can

    def start(self, header: Header) -> Findings:
        """Count what every boundary changes."""
        plan = header.plan
        pairs = list(pairwise(plan.stages)) if plan else []
        changes = [(after, _changed(before, after)) for before, after in pairs]
        confounded = [(after, names) for after, names in changes if len(names) >= self.factors]
        if plan is None or not confounded:
            return
        stage, names = max(confounded, key=lambda item: len(item[1]))
        yield self.finding(
            "info",
            "run",
            (int(confounded[0][0].start), int(confounded[-1][0].start)),
            f"{len(confounded)} of {len(pairs)} boundaries of {plan.name} change several things at once, most at step "
            f"{stage.start:,.0f} (stage {stage.name}): {', '.join(names[:6])}{', ...' * (len(names) > 6)}.",
            evidence={"boundaries": len(pairs), "confounded": len(confounded), "factors": len(names)},
            advice="Where a stage makes trouble, change one of them at a time.",
        )


def _changed(before: Stage, after: Stage) -> list[str]:
    """The factors that both stages speak of and say differently; the weights are one: they set one balance."""
    data = [name for name in before.data if after.data.get(name, before.data[name]) != before.data[name]]
    weights = [name for name in before.weights if after.weights.get(name, before.weights[name]) != before.weights[name]]
    return [*data, f"the weight of {' and '.join(weights[:3])}"] if weights else data

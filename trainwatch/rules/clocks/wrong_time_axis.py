"""See the rule's docstring: it is the page that `trainwatch rules wrong-time-axis` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk, Table

Steps = NDArray[np.int64]


@dataclass
class WrongTimeAxis(Rule):
    """Training and evaluation are numbered by different clocks, one by steps and one by epochs.

    What it sees:
        The steps of both tables: one counts 1, 2, 3 ... while the other comes to many times as much.

    Why it matters:
        Whatever lays them over each other is wrong: the evaluation stands at the beginning of the curve, the best
        checkpoint seems to be an early one, and a gap between both is one between different times.

    What to do:
        Give `evaluate(step=...)` the step of the weights that were evaluated.

    When it is wrong:
        Where only the first few steps of a long run were evaluated.

    References:
        trackers that keep a step for each series: TensorBoard's add_scalar(global_step=epoch).
    """

    needs: ClassVar[tuple[str, ...]] = ("loss|loss/<component>|lr/<group>",)

    fewest: int = 3  # rows on the shorter axis: two may be anything
    apart: float = 5.0  # times: an epoch of five logged steps; with fewer the axes are too near to tell

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Both axes as they stand."""
        if min(run.train.size, run.eval.size) < self.fewest:
            return
        train, valid = _axis(run.train), _axis(run.eval)
        if min(len(train), len(valid)) < self.fewest:
            return
        for one, other, what in (
            (valid, train, ("Evaluation", "training")),
            (train, valid, ("Training", "evaluation")),
        ):
            if one[-1] * self.apart < other[-1] and len(one) == one[-1] - one[0] + 1 and one[0] in (0, 1):
                yield self.finding(
                    "info",
                    "run",
                    (int(one[0]), int(one[-1])),
                    f"{what[0]} rows are numbered {one[0]:,} to {one[-1]:,} one by one, while {what[1]} rows go up to "
                    f"{other[-1]:,}: the first count something else, probably epochs.",
                    evidence={"least": int(one[0]), "most": int(one[-1]), "other": int(other[-1])},
                    advice="Give both the same steps.",
                    confidence=0.8,
                )


def _axis(table: Table) -> Steps:
    """The steps of a table's curve, once each, in order."""
    return np.unique(table.step[table.live])

"""See the rule's docstring: it is the page that `trainwatch rules loss-plateau` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trainwatch.bases.curve import CurveRule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk
from trainwatch.views.curve import Points, wanders


@dataclass
class LossPlateau(CurveRule):
    """The loss came down and has stood still since, under a learning rate that does not move.

    What it sees:
        The last half of the stage that runs: the smoothed loss gained less than 2 % of all that was gained before, less
        than its noise can tell, while the learning rate stayed the same. Always an info, and only where more than half
        of the planned steps are still ahead, or it has stood for four fifths of the run: most trainings end so.

    Why it matters:
        Under a constant rate the floor is the noise of the steps themselves. A decay would still lower it; without one
        the rest of the run is paid for and brings nothing.

    What to do:
        Let the learning rate decay (cosine, or a linear decay over the last fifth), or stop here.

    When it is wrong:
        Small gains late in a long run can be worth much and drown in the batches' noise: look at the validation.

    References:
        Smith et al., "Don't decay the learning rate, increase the batch size" (2018), on the noise scale.
    """

    needs: ClassVar[tuple[str, ...]] = ("loss", "lr/<group>")
    wants: ClassVar[tuple[str, ...]] = ("stage",)

    fewest: int = 40  # points: half of them must tell a standstill from noise
    half: float = 0.5  # of the stage
    least: float = 0.02  # of the progress
    sure: float = 4.0  # standard errors: any clearer gain is one
    gained: float = 0.05  # of the first loss: what never fell is stuck
    left: float = 0.5  # of the planned steps: with less of them left, it is how a training ends
    stood: float = 0.8  # of the run: so much of it was for nothing, whatever is left
    solved: float = 0.02  # of the first loss: below that nothing is left to gain

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Only the stage that runs."""
        points = self._curve.points(rest)
        stage = points.part(points.regime == points.regime[-1]) if len(points) else points
        late = stage.part(slice(int(self.half * len(stage)), None))
        if len(stage) >= self.fewest and late.rate_holds and not wanders(run, points):
            yield from self._judge(stage, late, self._curve.span(run, rest), run.header.total_steps or 0)

    def _judge(self, stage: Points, late: Points, span: tuple[int, int], planned: int) -> Iterator[Finding]:
        third = len(late) // 3
        before, now = float(np.median(late.loss[:third])), float(np.median(late.loss[-third:]))
        start = float(np.median(stage.loss[: max(1, len(stage) // 40)]))
        error = 1.25 * late.noise * (2 / third) ** 0.5
        progress = start - now
        moved = abs(before - now) > max(self.sure * error, self.least * progress)
        fell = progress > max(self.gained * abs(start), self.sure * late.noise)
        if moved or not fell or self.sure * error > 0.5 * progress or (0 <= now < self.solved * start):
            return
        smooth = stage.smooth(max(3, len(stage) // 20))
        first = int(stage.step[np.argmax(smooth <= now + max(self.least * progress, error))])
        begin, last = span
        if planned - last <= self.left * planned and last - first < self.stood * (last - begin):
            return
        yield self.finding(
            "info",
            "run",
            (first, last),
            f"The loss has stood at {now:.4g} since step {first:,}, after falling from {start:.4g}; the learning rate "
            f"has stayed at {late.lr[-1]:.3g}.",
            evidence={"start": start, "now": now, "noise": late.noise, "lr": float(late.lr[-1])},
            advice="Let the learning rate decay, or stop here.",
            confidence=0.7,
        )

"""See the rule's docstring: it is the page that `trainwatch rules slow-convergence` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.bases.curve import CurveRule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk
from trainwatch.views.curve import Points, wanders


@dataclass
class SlowConvergence(CurveRule):
    """The loss still falls as fast as ever, and the run ends before it is down.

    What it sees:
        The last quarter of the steps brought more than 15 % of all the progress, clearly beyond its noise, and the
        learning rate has not been lowered: the curve is a slope, not a descent that levels out. The slope is drawn on
        to the planned end, with its uncertainty. Judged from the middle of the planned steps on. Always an info.

    Why it matters:
        The run ends before it has learned what it could: a larger learning rate would have been there earlier, or more
        steps would still pay.

    What to do:
        Raise the learning rate (by 3 or 10, watching the gradient's norm), or plan more steps. A tiny update ratio says
        the former.

    When it is wrong:
        A task that is learned at once, late, is on such a slope while it happens.

    References:
        AUTOTRAINER (Zhang et al., 2021), its "slow convergence"; Godbole et al., "Deep learning
        tuning playbook" (2023).
    """

    wants: ClassVar[tuple[str, ...]] = ("lr/<group>", "run:total_steps")

    fewest: int = 40  # points: a quarter of them must give a slope
    quarter: float = 0.25  # of the steps
    much: float = 0.15  # of the progress: a straight line brings 0.25, healthy descents below 0.1
    most: float = 0.5  # of the progress: more is something new that happened late
    least: float = 0.01  # of the first loss: less is no slope
    sure: float = 5.0  # standard errors of the slope
    share: float = 0.5  # of the planned steps: before, every descent is steep
    lowered: float = 0.5  # of the highest rate: whoever decays it has planned the end

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Only a run of one stage, near its end."""
        points = self._curve.points(rest)
        planned = run.header.total_steps
        if len(points) < self.fewest or self._resumed or (planned is None and run.end is None):
            return
        end = max(float(planned or 0), float(points.step[-1]))
        settled = points.part(points.regime == points.regime[-1])  # a warm-up's first rates jump
        whole = len(settled) > 0.9 * len(points) and points.step[-1] >= self.share * end
        lowered = points.lr[-1] < self.lowered * np.nanmax(points.lr) if np.isfinite(points.lr[-1]) else False
        if whole and not lowered and not wanders(run, points):
            yield from self._judge(settled, end, self._curve.span(run, rest))

    def _judge(self, points: Points, end: float, span: tuple[int, int]) -> Iterator[Finding]:
        steps = points.step - points.step[-1]
        late = steps > -self.quarter * (points.step[-1] - points.step[0])
        if late.sum() < 8:
            return
        slope, error = _slope(steps[late], points.loss[late])
        start = float(np.median(points.loss[: max(1, len(points) // 40)]))
        now = float(np.median(points.loss[late])) + slope * float(np.ptp(steps[late])) / 2
        brought = -slope * float(np.ptp(steps[late]))
        share, least = brought / (start - now) if start > now else 0.0, self.least * abs(start)
        if not self.much < share < self.most or brought < least or -slope < self.sure * error:
            return
        left = end - points.step[-1]
        ahead = f"; at this pace it ends at {now + slope * left:.4g} ± {2 * error * left:.2g}" if left > 0 else ""
        yield self.finding(
            "info",
            "run",
            span,
            f"The loss still falls as fast as ever: the last quarter of the steps brought {share:.0%} of "
            f"the way from {start:.4g} to {now:.4g}{ahead}.",
            evidence={"start": start, "now": now, "slope": slope, "slope_error": error},
            advice="Raise the learning rate, or plan more steps.",
            confidence=0.6,
        )


def _slope(steps: NDArray[np.float64], loss: NDArray[np.float64]) -> tuple[float, float]:
    """Slope of a line through the points, and its standard error."""
    centred = steps - steps.mean()
    square = float((centred**2).sum())
    slope = float((centred * loss).sum()) / square
    rest = loss - loss.mean() - slope * centred
    return slope, float(np.sqrt((rest**2).sum() / max(len(loss) - 2, 1) / square))

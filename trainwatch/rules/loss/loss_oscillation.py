"""See the rule's docstring: it is the page that `trainwatch rules loss-oscillation` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.bases.curve import CurveRule
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity
from trainwatch.stats import middle
from trainwatch.table import Chunk
from trainwatch.views.curve import Points, wanders

Floats = NDArray[np.float64]


@dataclass
class LossOscillation(CurveRule):
    """The loss swings up and down in a rhythm of its own.

    What it sees:
        The stage that runs, its slow descent taken out: the curve is like itself one period later and unlike itself
        half a period later, for four periods and more, and its swings are a fifth of its level or more. A warning if
        the swings are half of all the progress that was made, under a learning rate that holds; else an info.

    Why it matters:
        A step that is too large for the valley jumps from wall to wall. Data that come sorted swing the loss likewise:
        what is learned in one part of the file is unlearned in the next.

    What to do:
        If the period is an epoch, or a fraction of one: shuffle. Else lower the learning rate or the momentum, or raise
        the batch size.

    When it is wrong:
        Cyclic learning rates and games (GANs) swing by nature; both are left alone. Tasks that alternate batch by batch
        swing with a period of a few rows: that is an info.

    References:
        AUTOTRAINER (Zhang et al., 2021), its "oscillating loss".
    """

    wants: ClassVar[tuple[str, ...]] = ("lr/<group>", "epoch")
    causes: ClassVar[tuple[str, ...]] = ("loss-spike",)

    fewest: int = 40  # points
    periods: int = 4  # fewer are how noise wanders
    alike: float = 0.6  # autocorrelation one period later, and at most minus this half a period later
    swing: float = 0.2  # of the level, from bottom to top
    grave: float = 0.5  # of the progress
    slow: int = 8  # points a period: shorter ones are alternating batches

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """The last two thirds of the stage that runs: before, it descends."""
        points = self._curve.points(rest)
        stage = points.part(points.regime == points.regime[-1]) if len(points) else points
        late = stage.part(slice(len(stage) // 3, None))
        if len(late) >= self.fewest and not wanders(run, points):
            yield from self._judge(stage, late, self._curve.span(run, rest)[1])

    def _judge(self, stage: Points, late: Points, last: int) -> Iterator[Finding]:
        swings = _detrended(late.loss)
        period = self._period(swings)
        if not period:
            return
        height = float(np.subtract(*np.quantile(swings, (0.9, 0.1))))
        level, start = middle(late.loss), middle(stage.loss[: max(1, len(stage) // 40)])
        cyclic = bool(np.isfinite(late.lr).all()) and self._period(_detrended(late.lr)) > 0
        if cyclic or height < self.swing * abs(level):
            return
        grave = period >= self.slow and late.rate_holds and height > self.grave * (start - level)
        severity: Severity = "warning" if grave else "info"
        steps = period * float(np.median(np.diff(late.step)))
        yield self.finding(
            severity,
            "run",
            (int(late.step[0]), last),
            f"The loss swings by {height:.4g} about {level:.4g}, with a period of {steps:,.0f} steps.",
            evidence={"swing": height, "level": level, "period": steps},
            advice="If the period is an epoch or a part of one, shuffle the data; else lower the learning rate.",
            confidence=0.7,
        )

    def _period(self, swings: Floats) -> int:
        """Points from one top to the next; 0 if there is no rhythm."""
        most = len(swings) // self.periods
        if not np.any(swings):
            return 0
        padded = np.fft.rfft(swings, 2 * len(swings))
        alike = np.fft.irfft(np.abs(padded) ** 2)[: most + 1]
        alike = alike / alike[0] * len(swings) / (len(swings) - np.arange(most + 1))
        below = np.flatnonzero(alike < -self.alike)
        if not len(below):
            return 0
        top = int(below[0] + np.argmax(alike[below[0] :]))
        return top if alike[top] > self.alike else 0


def _detrended(values: Floats) -> Floats:
    """Without the slow descent: a parabola."""
    place = np.linspace(-1, 1, len(values))
    found: Floats = values - np.polyval(np.polyfit(place, values, 2), place)
    return found

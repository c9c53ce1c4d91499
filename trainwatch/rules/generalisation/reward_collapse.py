"""See the rule's docstring: it is the page that `trainwatch rules reward-collapse` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import middle
from trainwatch.table import Chunk
from trainwatch.views.evaluations import bend, held_out
from trainwatch.views.games import paid

Floats = NDArray[np.float64]


@dataclass
class RewardCollapse(Rule):
    """What a policy earned is lost again, down to where it began.

    What it sees:
        The reward or the return of the evaluations rose, by four times what single evaluations scatter, stood there for
        two of them, and in each of the last three no tenth of that is left. Where training's own reward is recorded, it
        has to have lost three quarters of what it gained, too.

    Why it matters:
        A policy makes its own data: once it acts badly it sees only what follows from that, and rarely finds back.

    What to do:
        Go back to the checkpoint of the best evaluation. Look at what changed shortly before: the entropy's weight, the
        learning rate, the size of the policy's steps (`approx_kl`, the share of clipped ratios), the reward's scale.

    When it is wrong:
        Tasks that become harder as the policy gets better, under the same name.

    References:
        Henderson et al., "Deep reinforcement learning that matters" (2018); Schulman et al. (2017) on steps that
        destroy a policy.
    """

    needs: ClassVar[tuple[str, ...]] = ("eval:metric/<name>",)
    causes: ClassVar[tuple[str, ...]] = ("mode-collapse", "overtraining", "loss-plateau")
    outcome: ClassVar[bool] = True

    evaluations: int = 8  # at all: of fewer, two of the best and three of the last are most
    clear: float = 4.0  # x the scatter of one evaluation, for what two in a row have earned: rewards wander
    left: float = 0.1  # of the gain, in each of the last evaluations
    last: int = 3  # evaluations: one or two bad ones come back in health
    trained: float = 0.25  # of the gain is left of training's own reward, at most

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """The evaluations as they stand."""
        name = paid(run.eval.channels)
        step, value = held_out(run, name) if name else (np.empty(0), np.empty(0))
        if len(value) < self.evaluations or run.header.curriculum:
            return
        held = np.minimum(value[1:], value[:-1])  # what two evaluations in a row have earned
        first, best = middle(value[:2]), float(held.max())
        gain, late = best - first, value[-self.last :]
        lost = gain > self.clear * bend(value) and late.max() < first + self.left * gain
        if name and lost and self._trained_worse(run):
            peak = int(np.argmax(held)) + 1
            yield self.finding(
                "warning",
                "run",
                (int(step[min(peak + 1, len(step) - 1)]), int(step[-1])),
                f"The evaluated {name.removeprefix('metric/')} rose from {first:.4g} to {best:.4g} by step "
                f"{step[peak]:,.0f}, and is back at {middle(late):.4g}: what was learned is lost.",
                evidence={"first": first, "best": best, "now": middle(late)},
                advice="Go on from the checkpoint of the best evaluation; look at what changed after it.",
                confidence=0.8,
            )

    def _trained_worse(self, run: Run) -> bool:
        """Whether training's own reward, where it is recorded, is lost as well."""
        name = paid(run.train.channels)
        value = run.train.curve(name)[1] if name else np.empty(0)
        if len(value) < 2 * self.evaluations:
            return True
        levels = np.array([middle(part) for part in np.array_split(value, self.evaluations)])
        gain = float(levels.max() - levels[0])
        return bool(levels[-1] < levels[0] + self.trained * gain)

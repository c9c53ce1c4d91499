"""See the rule's docstring: it is the page that `trainwatch rules late-activation` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.schema import Finding
from trainwatch.table import Chunk
from trainwatch.views.components import BLOCK, Roles, gradients

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass
class Waking:
    """A component that was silent for long, and what it did when it woke."""

    silent: int = 0  # judged rows without a gradient up to the last row
    since: int = 0  # the step of the first of them
    now: int = 0  # the last step that was judged
    slept: int = 0  # rows it had been silent when it woke with the largest gradient
    first: int = 0  # the step at which it did
    last: int = 0
    loud: int = 0  # rows since in which its gradient was the largest
    quiet: int = 0  # rows since the last of them
    share: float = 0.0  # the largest


@dataclass
class LateActivation(Rule):
    """A loss component that had no gradient for long wakes up with the largest of all.

    What it sees:
        A component had a weight and a value, and no gradient, in 40 rows and 2 % of the run in a row; then its gradient
        is more than half of the sum of all. Five such rows are a warning, fewer an info.

    Why it matters:
        A clamped loss does this: it is silent while the model is far off, and wakes in the middle of the run, at full
        weight, when the learning rate, the moments and the clipping have settled without it.

    What to do:
        Bound the loss by a function that keeps a slope (log1p, Huber) instead of a clamp, or enter its weight by a ramp
        when it wakes.

    When it is wrong:
        A component that is switched on by its weight is not meant (aggressive-ramp), nor one whose value was 0.

    References:
        A mass loss clamped at 100 ppm, silent until the first answers come within 100 ppm.
    """

    block: ClassVar[int] = BLOCK
    needs: ClassVar[tuple[str, ...]] = (
        *("component_grad/<component>|grad_share/<component>", "loss/<component>", "weight/<component>"),
    )
    wants: ClassVar[tuple[str, ...]] = ("run:total_steps", "run:components")
    causes: ClassVar[tuple[str, ...]] = (
        *("gradient-spike", "gradient-explosion", "loss-spike", "loss-divergence", "clipping-saturated"),
        *("gradient-dominance", "gradient-conflict"),
    )

    silence: int = 40  # rows: two windows, so that a component which comes and goes with its batches is none
    largest: float = 0.5  # of the sum of all norms: larger than all others together
    rows: int = 5  # loud ones, for a warning: a single one is a sample that came near the clamp

    _roles: Roles = field(default_factory=Roles, init=False)
    _window: int = field(default=0, init=False)  # steps
    _waking: dict[str, Waking] = field(default_factory=dict, init=False)

    def start(self, header: Header) -> Findings:
        """How long is long in this run."""
        self._roles, self._window = Roles.of(header), header.window()
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """One comparison of each gradient column with 0; more for a component that was seen silent."""
        norms = gradients(chunk)
        for name, norm in norms.items():
            dead, waking = norm == 0.0, self._waking.get(name)
            if waking is None and not dead.any():
                continue
            waking = self._waking.setdefault(name, Waking())
            if self._follow(name, waking, chunk, norms):
                yield self._finding(name, waking)

    def _follow(self, name: str, waking: Waking, chunk: Chunk, norms: dict[str, Floats]) -> bool:
        """Whether these rows add to the story of a component that woke."""
        value, weight, norm = chunk[f"loss/{name}"], chunk[f"weight/{name}"], norms[name]
        judged = np.flatnonzero(np.isfinite(norm) & np.isfinite(value) & (np.abs(weight) > 0))
        if not len(judged):
            return False
        silent, steps = (norm == 0.0)[judged] & (value != 0)[judged], chunk.step[judged]
        everything = np.nansum(list(norms.values()), axis=0)[judged]
        share = norm[judged] / np.where(everything > 0, everything, np.inf)
        before = self._lengths(silent, waking.silent)
        first = np.arange(len(steps)) - before
        since = np.where(first < 0, waking.since, steps[np.maximum(first, 0)])
        waking.silent, waking.since = int(before[-1] + 1 if silent[-1] else 0), int(since[-1])
        loud, waking.now = ~silent & (share > self.largest), int(steps[-1])
        begins = np.flatnonzero(loud & (before >= self.silence) & (steps - since >= self._window))
        if not waking.loud and not len(begins):
            return False
        begin = int(begins[0]) if not waking.loud else 0
        if not waking.loud:
            waking.first, waking.slept = int(steps[begin]), int(before[begin])
        rows = begin + np.flatnonzero(loud[begin:])
        waking.quiet += len(steps) - begin
        if len(rows):
            waking.last, waking.quiet = int(steps[rows[-1]]), len(steps) - 1 - int(rows[-1])
            waking.loud, waking.share = waking.loud + len(rows), max(waking.share, float(share[rows].max()))
        return True

    @staticmethod
    def _lengths(silent: Bools, carry: int) -> NDArray[np.int64]:
        """For how many rows before each it has been silent without a break."""
        row = np.arange(len(silent))
        alive = np.maximum.accumulate(np.where(silent, -1, row))  # the last such row up to each row
        here = np.where(alive < 0, carry + row + 1, row - alive)
        found: NDArray[np.int64] = np.concatenate([[carry], here[:-1]])
        return found

    def _finding(self, name: str, waking: Waking) -> Finding:
        grave = waking.loud >= self.rows and not self._roles.aside(name)
        return self.finding(
            "warning" if grave else "info",
            f"component:{name}",
            (waking.first, waking.last),
            f"The {name} loss had no gradient in {waking.slept:,} rows, and woke at step {waking.first:,}: up to "
            f"{waking.share:.0%} of the gradient, the largest in {waking.loud:,} rows.",
            over=waking.quiet >= self.silence and waking.now - waking.last >= self._window,
            evidence={"silent_rows": waking.slept, "gradient_share": waking.share, "rows": waking.loud},
            advice=f"Bound {name} by a function that keeps a slope instead of a clamp, or let its weight rise slowly.",
            confidence=0.9,
        )

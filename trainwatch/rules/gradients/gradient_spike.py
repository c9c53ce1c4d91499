"""See the rule's docstring: it is the page that `trainwatch rules gradient-spike` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import Baseline, Bools, in_blocks, medians, spreads
from trainwatch.table import Chunk
from trainwatch.views.games import plays
from trainwatch.views.regimes import Regimes


@dataclass
class GradientSpike(Rule):
    """Single steps have a gradient far larger than all their neighbours have.

    What it sees:
        Rows whose norm stands more than eight robust standard deviations, and five times, above the median of the
        blocks of twenty rows before them, in logarithms, so that a heavy tail is no news. They are counted. It is an
        alarm only if the loss is out of its noise in the block of the spike or in the one after it, three times over.

    Why it matters:
        One such step without clipping can undo hundreds. Spikes that come again and again are broken samples.

    What to do:
        Look at the batches of the steps that are named; clip the norm a little above its median.

    When it is wrong:
        Norms have heavy tails, in reinforcement and adversarial training most of all: there, and while the loss does
        not suffer, it is an info. What lasts is `gradient-explosion`.

    References:
        OLMo 2 report (2025), spike score; Takase et al., "Spike no more" (2023).
    """

    block: ClassVar[int] = 20  # rows
    needs: ClassVar[tuple[str, ...]] = ("grad_norm",)
    wants: ClassVar[tuple[str, ...]] = ("loss",)
    causes: ClassVar[tuple[str, ...]] = ("loss-spike",)

    deviations: float = (
        8.0  # robust standard deviations of log norm; what heavy tails bring is counted and hurts nobody
    )
    quietest: float = 0.1  # standard deviation of log norm that is assumed at least: batches differ by as much
    times: float = 5.0  # x the median: what is smaller hurts nobody
    hurt: float = 4.0  # spreads of the loss, by which the median of a whole block rises
    hurt_share: float = 0.1  # of the loss
    told_from: int = 3  # spikes: one or two are normal in any run
    alarm_from: int = 3  # spikes that hurt: two may be chance
    closed: int = 10  # blocks without one, and it is over

    _regimes: Regimes = field(default_factory=Regimes, init=False)
    _baseline: Baseline = field(default_factory=Baseline, init=False)
    _count: int = field(default=0, init=False)
    _harmful: int = field(default=0, init=False)
    _carry: tuple[bool, bool] = field(default=(False, False), init=False)  # the last block: spiked, harmed
    _quiet: int = field(default=0, init=False)  # blocks since the last spike
    _first: int = field(default=0, init=False)
    _last: int = field(default=0, init=False)
    _largest: tuple[float, float, int] = field(default=(0.0, 0.0, 0), init=False)  # times, norm, step

    def start(self, header: Header) -> Findings:
        """The declared stages."""
        self._regimes.start(header)
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Whole blocks at once; the few spikes are looked at one by one."""
        fresh = in_blocks(self._regimes.begins(chunk).astype(np.float64), self.block).max(axis=1, initial=0.0) > 0
        norm = chunk["grad_norm"]
        logs = in_blocks(np.log(np.where(norm > 0, norm, np.nan)), self.block)
        losses = in_blocks(chunk["loss"], self.block)
        now = {"norm": medians(logs), "loss": medians(losses)}
        now |= {"spread": spreads(logs, now["norm"]), "loss_spread": spreads(losses, now["loss"])}
        before = self._baseline.push(now, fresh)
        above = logs - before["norm"][:, None]
        high = (
            above
            > np.maximum(self.deviations * np.maximum(before["spread"], self.quietest), np.log(self.times))[:, None]
        )
        slack = np.maximum(self.hurt * before["loss_spread"], self.hurt_share * np.abs(before["loss"]))
        hurt: Bools = now["loss"] > before["loss"] + slack
        spiked = np.logical_or.reduce(high, axis=1)
        near = spiked | np.concatenate([[self._carry[0]], spiked[:-1]])
        harmed = near & hurt
        self._harmful += int((harmed & ~np.concatenate([[self._carry[1]], harmed[:-1]])).sum())
        self._carry = (bool(spiked[-1]), bool(harmed[-1]))
        rows = np.flatnonzero(high.ravel()[: len(norm)])
        self._quiet = self._quiet + len(spiked) if not len(rows) else len(spiked) - 1 - int(rows[-1]) // self.block
        if len(rows):
            self._remember(chunk, rows, np.exp(above.ravel()[rows]))
        if self._count >= self.told_from or self._harmful:
            yield self._finding(plays(chunk.channels))

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """The rows that fill no block yet, on a copy."""
        if len(rest) >= self.block // 2:
            yield from self.ahead(rest)

    def _remember(self, chunk: Chunk, rows: NDArray[np.intp], times: NDArray[np.float64]) -> None:
        step, top = chunk.step, int(np.argmax(times))
        self._first = self._first if self._count else int(step[rows[0]])
        self._count, self._last = self._count + len(rows), int(step[rows[-1]])
        if times[top] > self._largest[0]:
            self._largest = (float(times[top]), float(chunk["grad_norm"][rows[top]]), int(step[rows[top]]))

    def _finding(self, chasing: bool) -> Finding:
        times, norm, step = self._largest
        sick = self._harmful >= self.alarm_from and not chasing
        after = f"; the loss suffered {self._harmful} times" if self._harmful else "; the loss did not suffer"
        return self.finding(
            "warning" if sick else "info",
            "run",
            (self._first, self._last),
            f"{self._count} single step{'s have' if self._count > 1 else ' has'} a gradient norm far above their "
            f"neighbours', the largest {norm:.3g} at step {step:,}, {times:,.0f} times the median{after}.",
            over=self._quiet >= self.closed,
            evidence={"spikes": self._count, "harmful": self._harmful, "largest": norm, "times": times, "step": step},
            advice="Look at the batches of these steps, and clip the norm a little above its median.",
            confidence=0.8,
        )

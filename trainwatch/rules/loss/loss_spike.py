"""See the rule's docstring: it is the page that `trainwatch rules loss-spike` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.copying import copied
from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity
from trainwatch.stats import Baseline, carried, in_blocks, medians, spreads
from trainwatch.table import Chunk
from trainwatch.views.evaluations import held_out, scatter
from trainwatch.views.games import contested
from trainwatch.views.regimes import Regimes

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

EVALUATIONS = 5
"""After a blow: until then a run that is well has found back."""
CLEAR = 3.0
"""Standard deviations of one evaluation."""


@dataclass
class Spike:
    """A stretch in which the loss stood far above what it was; what it was is frozen at its first row."""

    first_step: int
    level: float
    spread: float
    highest: float  # of the rows of the run before it; a first batch that is far off hides no blow
    force: float  # x its level: what the gradient's norm rose to; the loss, where none is recorded
    peak: float = -np.inf
    now: float = np.nan
    settled: float = np.nan  # where it stood half the patience ago
    last_step: int = 0
    longest: int = 0  # rows in a row that stood out
    blocks: int = 0
    counted: bool = False  # it is worth a word
    blow: bool = False  # it was there within three rows, and many times its level
    back: int | None = None  # the step from which on the loss was its old self

    def __str__(self) -> str:
        times = f" ({self.peak / self.level:,.3g} x)" if self.level > 0 else ""
        return f"from {self.level:.4g} to {self.peak:.4g}{times} at step {self.first_step:,}, and {self.since}"

    @property
    def since(self) -> str:
        """What became of it."""
        return f"was back at step {self.back:,}" if self.back is not None else f"stands at {self.now:.4g} since"


@dataclass
class LossSpike(Rule):
    """The loss jumps far above its trend for a moment.

    What it sees:
        Each row's total loss against the median and the spread of the rows before it: eight spreads and half of the
        level above. One that passes is an info, if it is more than 5 % of the loss at the start. It is a warning if the
        loss has not found back to its level after two hundred rows, nor is on its way, or if such jumps of several rows
        come again and again; or if it jumped to more than twenty times its level, and ten times the highest row so far
        (of the first twenty, their median), within three rows, and was not back within forty rows and a twentieth of
        the run, or it was, but validation, which had just come down, jumped along, and has healed since,
        but never was as good again. What training made good and validation did not is data-break. At the start of a
        stage, at a warm restart or a change of weights nothing is expected of the loss.

    Why it matters:
        A spike is a step too large for where the weights were, or a broken batch. Most heal; each costs the steps until
        then, and one of them may be the one that does not.

    What to do:
        Look at the batch of that step and at the gradient's norm beside it. If the gradient jumped too: clip it, lower
        the learning rate or AdamW's beta2, lengthen the warm-up. If only the loss did: the data.

    When it is wrong:
        Batch losses with heavy tails have single rows beyond any bar; they count as infos. A change of data that is not
        declared as a stage can look like a spike that does not heal.

    References:
        Chowdhery et al., "PaLM" (2022), section 5.1; Molybog et al., "A theory on Adam instability" (2023).
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    wants: ClassVar[tuple[str, ...]] = ("grad_norm", "stage", "eval:loss")
    causes: ClassVar[tuple[str, ...]] = (
        "loss-divergence",
        "data-break",
        "overtraining",
        "dead-module",
        "non-finite-loss",
    )

    far: float = 8.0  # spreads above the level: noise with moderate tails comes there once in 10,000 rows
    much: float = 0.5  # of the level: a fall of the noise alone cannot make a spike
    several: int = 3  # rows in a row: independent batches, however heavy their tails, do not
    many: int = 5  # violent spikes of several rows: fewer may be one bad shard, or a loss that wanders
    patience: int = 10  # blocks without return: 200 rows are more than any moment of the optimiser remembers
    worth: float = 0.05  # of the loss at the start: lesser ones are on the floor of what is learned
    near: float = 0.2  # of the level: back again
    blow: float = 20.0  # x the level, and half of that x the highest row: no data is so hard; the step was a blow
    wound: int = 2  # blocks that a blow takes to heal, at the least: fewer are what a moving average forgets in
    wound_share: float = 0.05  # of the rows so far: in a long run a longer illness costs little
    violent: float = 3.0  # x the level, of the gradient's norm or else of the loss: a change of data is gentler

    _regimes: Regimes = field(default_factory=Regimes, init=False)
    _before: Baseline = field(default_factory=lambda: Baseline(memory=5, fewest=1), init=False)
    _began: float = field(default=0.0, init=False)  # whether a regime began in the last block
    _start: float = field(default=np.nan, init=False)  # the first block's level
    _level: float = field(default=np.nan, init=False)  # the last block's
    _highest: float = field(default=np.nan, init=False)  # row
    _count: int = field(default=0, init=False)
    _first: Spike | None = field(default=None, init=False)
    _latest: Spike | None = field(default=None, init=False)  # of those that are worth a word, as is the first
    _last: Spike | None = field(default=None, init=False)
    _scar: Spike | None = field(default=None, init=False)  # the first that did not pass
    _blow: Spike | None = field(default=None, init=False)  # the longest that struck at once and hurt for long
    _first_blow: Spike | None = field(default=None, init=False)  # the first that struck at once
    _blocks: int = field(default=0, init=False)
    _long: list[int] = field(default_factory=list, init=False)  # first steps of those of several rows

    def start(self, header: Header) -> Findings:
        """Stages that are declared."""
        self._regimes.start(header)
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Most blocks have nothing in them."""
        loss, norm = in_blocks(chunk["loss"], self.block), in_blocks(chunk["grad_norm"], self.block)
        step = in_blocks(chunk.step.astype(np.float64), self.block)
        begins = in_blocks(self._regimes.begins(chunk).astype(np.float64), self.block)
        level, new = medians(loss), np.nansum(begins, axis=1) > 0
        after = np.concatenate([[self._began > 0], new])[: len(new)]  # the block before is of two regimes
        drift = np.abs(level - carried(self._level, level))  # a loss that wanders is quiet within a block
        here = {"level": level, "spread": spreads(loss, level), "drift": drift, "norm": medians(norm)}
        before = self._before.push(here, np.logical_or(new, after))
        tops = np.fmax.reduce(loss, axis=1)
        tops[:1] = tops[:1] if self._blocks else level[:1]
        highest = np.fmax.accumulate(np.concatenate([[self._highest], tops]))
        before["highest"], self._highest = highest[:-1], float(highest[-1])
        before["spread"] = np.where(before["spread"] > 0, np.fmax(before["spread"], before["drift"]), np.nan)
        if len(new):
            self._began = float(new[-1])
            known = level[np.isfinite(level)]
            self._start = float(known[0]) if np.isnan(self._start) and len(known) else self._start
            self._level = float(carried(self._level, np.append(level, 0.0))[-1])
        bar = np.maximum(self.far * before["spread"], self.much * np.abs(before["level"]))
        hot = np.greater(loss, (before["level"] + bar)[:, None])
        for index in self._looked(hot.sum(axis=1) > 0):
            if self._last is None or self._last.back is not None:
                self._begin(hot[index], step[index], norm[index], {n: float(v[index]) for n, v in before.items()})
            self._follow(loss[index], step[index], broken=bool(new[index]))
            if self._first is not None:
                yield self._passing()
        self._blocks += len(loss)

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Judge the rows that fill no block yet, on a copy, and say how grave it is."""
        trial = copied(self)
        for _ in trial.update(rest) if len(rest) else ():
            pass
        if trial._first is not None:
            yield trial._passing()
        if not contested(run):
            yield from trial._grave(run)

    def _looked(self, hot: Bools) -> Iterator[int]:
        """The blocks in which rows stand out, and those after them until the loss is back."""
        index = 0
        while index < len(hot):
            if self._last is None or self._last.back is not None:
                left = np.flatnonzero(hot[index:])
                if not len(left):
                    return
                index += int(left[0])
            yield index
            index += 1

    def _begin(self, hot: Bools, step: Floats, norm: Floats, before: dict[str, float]) -> None:
        usual = before["norm"]  # 0 is no measure
        force = float(np.nan_to_num(norm, nan=-1.0).max()) / usual if usual > 0 else np.nan
        self._last = Spike(int(step[np.argmax(hot)]), before["level"], before["spread"], before["highest"], force)

    def _follow(self, loss: Floats, step: Floats, *, broken: bool) -> None:
        """One block of the last spike: it goes on, or is over; a new regime ends it."""
        spike = self._last
        known = np.isfinite(loss)
        if spike is None or not known.any():
            return
        loss, step = loss[known], step[known]
        hot = np.flatnonzero(loss > spike.level + max(self.far * spike.spread, self.much * abs(spike.level)))
        spike.peak, spike.longest = max(spike.peak, float(loss.max())), max(spike.longest, _longest(hot))
        spike.now, spike.last_step, spike.blocks = float(np.median(loss)), int(step.max()), spike.blocks + 1
        if not spike.counted and spike.peak - min(spike.level, 0.0) > self.worth * abs(self._start):
            spike.counted, self._first, self._latest, self._count = True, self._first or spike, spike, self._count + 1
        if spike.longest >= self.several and spike.first_step not in self._long and self._violent(spike):
            self._long = [*self._long, spike.first_step][: self.many]
        if spike.blocks == 1 and len(hot):
            struck = float(loss[hot[0] : hot[0] + self.several].max())  # steps without noise take two rows to it
            spike.blow = spike.level > 0 and struck > self.blow * max(spike.level, spike.highest / 2)
        self._first_blow = self._first_blow or (spike if spike.blow else None)
        if spike.blow and spike.blocks > self.wound and spike.blocks > (self._blow.blocks if self._blow else 0):
            self._blow = spike
        tail = slice(int(hot[-1]) + 1 if len(hot) else 0, None)
        near = spike.level + max(2 * spike.spread, self.near * abs(spike.level))
        if broken or (len(loss[tail]) >= 3 and np.median(loss[tail]) <= near):
            spike.back = int(step[tail][0]) if len(step[tail]) else int(step[-1])
        elif 2 * spike.blocks <= self.patience:
            spike.settled = spike.now
        elif spike.blocks > self.patience and self._scar is None and self._hurts(spike):
            self._scar = spike

    def _violent(self, spike: Spike) -> bool:
        """By the gradient, else by the loss; a loss that has all but reached 0 has no level to be measured by."""
        force = spike.force if np.isfinite(spike.force) else spike.peak / spike.level if spike.level > 0 else 0.0
        return force >= self.violent and spike.level > 0.05 * self._start

    def _hurts(self, spike: Spike) -> bool:
        """Whether it was violent, and left a lesser mark that does not heal, and is no divergence either."""
        mark = spike.now - spike.level
        stays = spike.now > spike.settled - 2 * spike.spread and 2 * mark < spike.peak - spike.level
        return self._violent(spike) and stays and mark <= 0.5 * (self._start - spike.level)

    def _passing(self) -> Finding:
        """The info: the first spike, and how many more there were."""
        first, last = self._first, self._latest
        assert first is not None
        assert last is not None
        often = "once more," if self._count == 2 else f"{self._count - 1:,} more times, last"
        still = f", and {last.since}" if last.back is None else ""
        more = f"; and {often} at step {last.first_step:,}{still}" if self._count > 1 else ""
        return self._finding("info", first.first_step, last, f"The loss jumped {first}{more}.")

    def _grave(self, run: Run) -> Iterator[Finding]:
        """The warnings: a mark that stays, or spikes again and again."""
        blow = self._blow
        if blow is not None and blow.blocks > max(self.wound, self.wound_share * self._blocks):
            how = f"The loss jumped {blow}: it did not find back within {(blow.blocks - 1) * self.block} rows."
            yield self._finding("warning", blow.first_step, blow, how)
        elif self._scar is not None:
            how = f"The loss jumped {self._scar}: it did not find back within {self.patience * self.block} rows."
            yield self._finding("warning", self._scar.first_step, self._scar, how)
        elif len(self._long) >= self.many and self._last is not None:
            how = f"The loss jumped again and again, {self._count:,} times; the last time {self._last}."
            yield self._finding("warning", self._long[0], self._last, how)
        elif self._first_blow is not None and _lamed(run, self._first_blow.first_step):
            how = f"The loss jumped {self._first_blow}; but validation was never again as good as before."
            yield self._finding("warning", self._first_blow.first_step, self._first_blow, how)

    def _finding(self, severity: Severity, first: int, spike: Spike, message: str) -> Finding:
        known = {"level": spike.level, "peak": spike.peak, "spikes": self._count}
        return self.finding(
            severity,
            "run",
            (first, spike.back or spike.last_step),
            message,
            over=spike.back is not None,
            evidence=known | ({"gradient_rose": spike.force} if np.isfinite(spike.force) else {}),
            advice=f"Look at the batch of step {spike.first_step:,}; if the gradient jumped too, clip its norm or "
            "lower the learning rate.",
            confidence=0.8,
        )


def _lamed(run: Run, struck: int) -> bool:
    """Whether the held-out loss, which was at its best and clearly coming down before a blow, was worst right after it
    and never as low again in that stage: an optimiser that remembers the largest gradients takes next to no steps for a
    thousand steps. Who overfits from then on goes up instead, and who has converged stays where it was.
    """
    stage, rows = run.train["stage"], run.train.step[: run.train.size]
    since = stage[(rows >= struck) & np.isfinite(stage)]
    steps, values = held_out(run)
    before, after = values[steps < struck], values[steps >= struck]
    if len(before) < 2 or len(after) < EVALUATIONS or (len(since) and np.ptp(since) > 0):
        return False
    gained, healed, lost = before[:-1].min() - before[-1], after[:2].max() - after[-1], after.min() - before[-1]
    return bool(min(gained, healed, lost) > CLEAR * scatter(after))


def _longest(rows: NDArray[np.int64]) -> int:
    """Length of the longest run of neighbours."""
    ends = np.flatnonzero(np.diff(rows) > 1)
    return int(np.diff(np.concatenate([[-1], ends, [len(rows) - 1]])).max()) if len(rows) else 0

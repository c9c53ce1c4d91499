"""See the rule's docstring: it is the page that `trainwatch rules straggler` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import Blocks, Floats, Streak, medians
from trainwatch.table import Chunk, TableName
from trainwatch.views.ranks import Abreast

OWN = ("time/data", "time/compute")
ROWS = 20  # of a block: one stutter of a loader does not move its median


@dataclass
class Straggler(Rule):
    """One rank is slower than the others, and all wait for it.

    What it sees:
        Each rank's own time of a step, before it meets the others: `time/data` and, where it is recorded,
        `time/compute`. In blocks of 20 steps the median of the slowest rank against the median of all others, if it is
        slower in four steps of five and the same rank in 3 blocks in a row: 10 % of the step is an info, 20 % are a
        warning; so are 5 % where computing is recorded and the rank needs twice the time of the others. A run that has
        less than 60 steps is judged as a whole, from 30 on: the same rank must be slowest in each quarter, and slower
        in nine steps of ten. The step time itself says nothing: synchronous training makes it equal.

    Why it matters:
        With every step all ranks wait for the slowest: 20 % on one of 64 GPUs is 20 % of 64.

    What to do:
        If it waits for data: its disk, its share of the files, its loader's workers, the other jobs on its host. If it
        computes: clocks and temperature of that GPU, longer samples in its shard, logging or evaluation on it alone.
        `watch.batches(loader)` records the wait for data; record the computing before the first collective, by CUDA
        events on a GPU, with `watch.log({"time/compute": seconds})`.

    When it is wrong:
        A host that runs ahead of its GPU may wait for data without the GPU ever noticing.

    References:
        TraceML's straggler score, (slowest - others) / step, at 10 % and 20 %.
    """

    reads: ClassVar[tuple[TableName, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ("run:world_size", "time/data|time/compute")
    wants: ClassVar[tuple[str, ...]] = ("time/compute", "time/step")
    causes: ClassVar[tuple[str, ...]] = ("throughput-drop",)

    told: float = 0.1  # of the step: TraceML's first score
    share: float = 0.2  # of the step: its second one
    times: float = 2.0  # x the others, in computing: like machines with like work do not differ so much; waits do
    part: float = 0.05  # of the step, for such a rank: what is recorded as computing may be its smaller part
    steady: float = 0.8  # of a block's steps in which it is slower than the others' median: chance comes to a half
    blocks: int = 3  # in a row: chance does not pick the same rank three times
    fewest: int = 30  # steps of a run that has not so many blocks, whose steps must be
    steadier: float = 0.9  # of them: of 30 steps as rare by chance as four of five are of 60
    parts: int = 4  # of such a run, in each of which the same rank is slow: what a start costs is in the first

    _blocks: Blocks = field(init=False)
    _first: dict[str, Floats] = field(default_factory=dict, init=False)  # the columns of a run that has no more
    _ranks: tuple[int, ...] = field(default=(), init=False)
    _slow: dict[int, Streak] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Nothing was seen yet."""
        self._blocks = Blocks(ROWS)

    def abreast(self, rows: Abreast) -> Iterator[Finding]:
        """A median for each rank and block."""
        parts = [rows[name] for name in OWN if name in rows]
        if not parts or len(rows.ranks) < 2:
            return
        own = np.where(np.isfinite(parts).any(axis=0), np.nansum(parts, axis=0), np.nan)
        step = rows["time/step"] if "time/step" in rows else own  # noqa: SIM401
        columns = {f"own/{rank}": own[index] for index, rank in enumerate(rows.ranks)}
        columns["computed"] = np.full(len(rows), float("time/compute" in rows))
        whole = np.fmax.reduce(step, axis=0)
        columns |= {"whole": whole, "step": rows.step.astype(np.float64)}
        self._remember(rows.ranks, columns)
        blocks = self._blocks.push(columns)
        if blocks:
            yield from self._judge(rows.ranks, blocks)

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """A run of few steps, as it stands now."""
        rows = len(self._first.get("step", ()))
        early = run.end is None and 2 * (run.last_step or 0) < (run.header.total_steps or 0)
        if early or not self.fewest <= rows < self.blocks * ROWS:
            return
        size = rows // self.parts
        late = {name: values[-self.parts * size :].reshape(self.parts, size) for name, values in self._first.items()}
        culprit, columns = self._slowest(self._ranks, late, 0.0)
        index = int(culprit[0]) if len(culprit) == self.parts else -1
        if index >= 0 and (culprit == index).all() and columns["steady"].mean() >= self.steadier:
            streak = Streak(self.parts)
            streak.push(culprit == index, columns)
            yield self._told(self._ranks[index], streak)

    def _remember(self, ranks: tuple[int, ...], columns: dict[str, Floats]) -> None:
        """Keep the rows of a run's beginning, as long as they are all there are."""
        if ranks != self._ranks:
            self._ranks, self._first = ranks, {}
        if len(self._first.get("step", ())) < self.blocks * ROWS:
            empty = np.empty(0)
            self._first = {name: np.concatenate([self._first.get(name, empty), columns[name]]) for name in columns}

    def _judge(self, ranks: tuple[int, ...], blocks: dict[str, Floats]) -> Iterator[Finding]:
        """Blocks in a row that have the same slow rank."""
        culprit, columns = self._slowest(ranks, blocks, self.steady)
        for index in sorted({*culprit[culprit >= 0].tolist(), *(ranks.index(rank) for rank in self._slow)}):
            streak = self._slow.setdefault(ranks[index], Streak(self.blocks))
            if streak.push(culprit == index, columns):
                yield self._told(ranks[index], streak)

    def _slowest(
        self, ranks: tuple[int, ...], blocks: dict[str, Floats], steady: float
    ) -> tuple[NDArray[np.intp], dict[str, Floats]]:
        """The slowest rank of each block, as its place, if it is slower by enough; else -1. And what is told of it."""
        rows = np.stack([blocks[f"own/{rank}"] for rank in ranks])  # [ranks, blocks, rows]
        own = np.stack([medians(of_rank) for of_rank in rows])  # [ranks, blocks]
        whole = np.maximum(medians(blocks["whole"]), own.max(axis=0))
        known = np.flatnonzero(np.isfinite(own).all(axis=0) & (whole > 0))
        rows, own, whole = rows[:, known], own[:, known], whole[known]
        slowest = own.argmax(axis=0)
        others = np.sort(own, axis=0)[:-1]
        excess = (own.max(axis=0) - np.median(others, axis=0)) / whole if len(known) else np.empty(0)
        times = blocks["computed"][known, 0] * own.max(axis=0) / np.median(others, axis=0)
        bar = np.where(times >= self.times, self.part, self.told)
        steadily = _steadily(rows, slowest)
        culprit = np.where((excess >= bar) & (steadily >= steady), slowest, -1)
        columns = {"step": blocks["step"][known, 0], "last": blocks["step"][known, -1]}
        columns |= {"excess": excess, "times": times, "whole": whole, "steady": steadily}
        return culprit, columns | {"own": own.max(axis=0), "others": np.median(others, axis=0)}

    def _told(self, rank: int, streak: Streak) -> Finding:
        onset, now = streak.onset or {}, streak.latest
        return self.finding(
            "warning" if now["excess"] >= self.share or now["times"] >= self.times else "info",
            f"rank:{rank}",
            (int(onset["step"]), int(now["last"])),
            f"Since step {int(onset['step']):,} rank {rank} needs {now['own']:.3g} s for its own part of a step, the "
            f"others {now['others']:.3g} s: all wait {now['excess']:.0%} of the step for it.",
            over=streak.over,
            evidence={"own": now["own"], "others": now["others"], "share": now["excess"]},
            advice=f"Look at the host of rank {rank}: its loader and disk if it waits for data, its GPU's clocks and "
            "the length of its samples if it computes, and what is done on that rank alone.",
            confidence=0.8,
        )


def _steadily(rows: Floats, slowest: NDArray[np.intp]) -> Floats:
    """For each block the share of its steps in which the slowest rank is slower than the median of the others."""
    share = np.zeros(rows.shape[1])
    for index in np.unique(slowest):
        of_it = slowest == index
        others = np.median(np.delete(rows[:, of_it], index, axis=0), axis=0)
        share[of_it] = (rows[index, of_it] > others).mean(axis=1)
    return share

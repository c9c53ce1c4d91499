"""See the rule's docstring: it is the page that `trainwatch rules duplicate-batches` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import mapping, number
from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import Streak, in_blocks
from trainwatch.table import Chunk
from trainwatch.views.games import plays

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
CHANNEL = "data/fingerprint"
EPOCH_ROWS = 50  # that tell how much of an epoch a row is
EPOCHS = 3  # whole ones, that tell how many rows an epoch has


@dataclass
class DuplicateBatches(Rule):
    """The same batch is trained on again and again, while others are still new.

    What it sees:
        Rows whose `data/fingerprint` was seen a few rows before, in many rows of every stretch of the run, while new
        batches go on coming: A A A A B B B B, one A from each of four workers. Where a step has several batches,
        `watch.batches` counts those that are the very one before: a boundary's points that come with each batch, or
        epochs over what a policy has just played, are none. Across ranks: the same fingerprint at
        the same step. Or nothing but the same sixteen batches at most, eight times over, of a training set that is
        known to have four times as many and more (`horizon`, or `epoch`). Where that is not known: the same four
        batches at most, 25 times over, if others came before, if the data are what the policy that is trained goes
        through, or if two to four come round in one order.

    Why it matters:
        The run costs as much as it was planned to and learns from a part of it: four workers that read the same stream
        are one epoch counted as four, and ranks that read the same batch are one GPU that is paid for as many.

    What to do:
        Let each worker read its own part: split by `torch.utils.data.get_worker_info()` in an IterableDataset,
        and by rank with a DistributedSampler; seed each worker differently.

    When it is wrong:
        An epoch that begins anew in the same order (also where only each n-th step is logged), a set of a few batches
        that is shuffled or declared, and training on the whole set at once are left alone: there nothing new comes.
        Ranks that share one batch on purpose (tensor or pipeline parallel) are an info, unless the header's horizon
        says that each of them has its own samples, or they hold the whole model each: the same `param_hash`, and all
        parameters.

    References:
        StackOverflow 67180955 and PyTorch's notes on IterableDataset: every worker yields the whole stream
        unless it is told not to.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = (CHANNEL,)
    causes: ClassVar[tuple[str, ...]] = ("overfitting", "generalisation-gap", "slow-convergence", "overtraining")

    near: int = 8  # rows: copies from workers follow one another; a batch of a small set comes back much later
    share: float = 0.25  # of the rows are repeats: two workers already make it 0.5
    fresh: float = 0.05  # of the rows are new, at least: 20 workers that read the same make it just that
    far: int = 64  # rows in which a batch was not seen, for it to be new: small sets come round sooner
    few: int = 4  # batches that are all there is: what is not called a data set
    passes: int = 25  # over those few; so often no batch comes by chance
    several: int = 16  # batches, where the set is known to be
    larger: float = 4.0  # x as large: a set of a handful is another sickness; then
    turns: int = 8  # over those are enough
    blocks: int = 3  # of 20 rows, in a row: the seam of two epochs and a stray repeat are in two
    shared: int = 5  # steps that two ranks have both written
    agree: float = 0.5  # of the steps that two ranks share: batches of their own agree in none
    ranks_rows: int = 200  # last rows of each rank that are compared

    _streak: Streak | None = field(default=None, init=False)
    _last: Floats = field(default_factory=lambda: np.empty(0), init=False)

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """How many rows of each block repeat a batch of just before, and how many are new."""
        self._streak = self._streak or Streak(self.blocks)
        prints = chunk[CHANNEL]
        again, new = self._repeats(prints)
        self._last = np.concatenate([self._last, prints])[-self.far :]
        several = chunk["data/batches"] > 1  # of a step: its fingerprint is of all of them, and never comes again
        shares = (
            np.where(several, chunk[f"data/{name}"] / chunk["data/batches"], rows)
            for name, rows in (("again", again), ("new", new))
        )
        columns = _shares(chunk, *shares)
        holds = (columns["again"] >= self.share) & (columns["new"] >= self.fresh)
        if self._streak.push(holds, columns):
            yield self._copies(self._streak)

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Other ranks are read beside this one."""
        if (stuck := self._stuck(run)) is not None:
            yield stuck
        equal = {rank: share for rank in run.ranks if (share := self._agreement(run, rank, CHANNEL)) >= self.agree}
        if equal:
            replicas = all(self._agreement(run, rank, "param_hash") == 1 for rank in equal)
            yield self._same_on_ranks(run, equal, replicas)

    def _repeats(self, prints: Floats) -> tuple[Bools, Bools]:
        """Rows whose batch is one of the ``near`` before, and rows with a batch of none of the ``far``. bool [rows]"""
        known = np.concatenate([np.full(self.far - len(self._last), np.nan), self._last, prints])
        again, old = np.zeros(len(prints), dtype=bool), ~np.isfinite(prints)
        for lag in range(1, self.far + 1):
            same = prints == known[self.far - lag : len(known) - lag]
            old |= same
            again |= same & (lag <= self.near)
        return again, ~old

    def _stuck(self, run: Run) -> Finding | None:
        """The last rows hold a few batches over and over, and the set is larger, or nobody says how large it is."""
        table, most = run.train, self.turns * self.several
        prints = table.column(CHANNEL, max(0, table.size - most), table.size)
        if self._distinct(prints[-self.passes :]) > self.several:
            return None  # every healthy run
        declared = _batches_of(run)
        batches, rows = self._stretch(prints, declared is not None)
        if not batches:
            return None
        prints = prints[-rows:]
        stride = max(1.0, float(np.median(np.diff(table.step[-rows:]))))  # of each n-th step the others are unseen
        round_in_order = not (prints[batches:] != prints[:-batches]).any()
        everything = table.column(CHANNEL, 0, table.size)
        others = everything[np.isfinite(everything) & ~np.isin(everything, prints)]
        more = plays(table.channels) or len(np.unique(others)) > batches  # than these few
        if declared is None and not more and (batches == 1 or not round_in_order or stride > 1):
            return None  # the whole set at once, or a small one that is shuffled
        if declared is not None and declared < self.larger * batches * (stride if round_in_order else 1):
            return None
        known = "" if declared is None else f", of {declared:,.0f} that the training set has"
        return self.finding(
            "warning",
            "run",
            (int(table.step[_since(everything, self.far, self.block)]), run.last_step or 0),
            f"The loader gives {batches} {'batch' if batches == 1 else 'batches'} again and again{known}.",
            evidence={"batches": batches} | ({} if declared is None else {"declared": declared}),
            advice="See whether the sampler advances and the loader shuffles: iter(loader) in the loop begins anew.",
            confidence=0.6 if declared is None else 0.9,
        )

    def _stretch(self, prints: Floats, known: bool) -> tuple[int, int]:
        """How few batches the last rows hold, and how many rows those are; 0 and 0 where it is not so."""
        for few in range(1, (self.several if known else self.few) + 1):
            rows = max(self.passes, self.turns * few) if known else self.passes * few
            if rows <= len(prints) and (count := self._distinct(prints[-rows:])) <= few:
                return count, rows
        return 0, 0

    @staticmethod
    def _distinct(prints: Floats) -> int:
        """How many batches there are among them; more than there can be, where a row does not tell."""
        return len(np.unique(prints)) if np.isfinite(prints).all() else len(prints) + 1

    def _copies(self, streak: Streak) -> Finding:
        now = streak.latest
        copies = (now["again"] + now["new"]) / now["new"]
        return self.finding(
            "warning",
            "run",
            (int((streak.onset or now)["step"]), int(now["last"])),
            f"{now['again']:.0%} of the steps train on a batch that was used a few steps before: "
            f"each batch comes about {copies:.0f} times.",
            over=streak.over,
            evidence={"repeated_share": now["again"], "new_share": now["new"], "copies": copies},
            advice="Split the data between the loader's workers by get_worker_info(), or use a map-style data set.",
            confidence=0.9,
        )

    def _agreement(self, run: Run, rank: int, channel: str) -> float:
        """In which share of the steps that both have it this rank has what rank 0 has, and not the same all along."""
        mine, other = (_recent(table, self.ranks_rows, channel) for table in (run, run.ranks[rank]))
        common = mine.keys() & other.keys()
        if len(common) < self.shared or len({mine[step] for step in common}) == 1:
            return 0.0
        return sum(mine[step] == other[step] for step in common) / len(common)

    def _same_on_ranks(self, run: Run, equal: dict[int, float], replicas: bool) -> Finding:
        own = replicas or (number(mapping(run.header.raw.get("horizon")).get("processes")) or 1) > 1
        others = ", ".join(str(rank) for rank in sorted(equal)[:8])
        span = (run.first_step or 0, run.last_step or 0)
        return self.finding(
            "warning" if own else "info",
            f"rank:{min(equal)}",
            span,
            f"Rank {others} trains on the same batches as rank 0 in {min(equal.values()):.0%} of the last steps.",
            evidence={"equal_share": min(equal.values()), "ranks": len(equal)},
            advice="Give each rank its part of the data: a DistributedSampler, or split the stream by rank.",
            confidence=0.9 if own else 0.5,
        )


def _shares(chunk: Chunk, again: Floats, new: Floats) -> dict[str, Floats]:
    """By blocks: the share of repeats and of new batches, the first and the last step."""
    steps = in_blocks(chunk.step.astype(np.float64), DuplicateBatches.block)
    shares = (in_blocks(rows, DuplicateBatches.block).mean(axis=1) for rows in (again, new))
    return dict(zip(("again", "new"), shares, strict=True)) | {"step": steps[:, 0], "last": steps[:, -1]}


def _recent(run: Run, rows: int, channel: str) -> dict[int, float]:
    """A channel by step, over the last rows."""
    table = run.train
    start = max(0, table.size - rows)
    values = table.column(channel, start, table.size)
    return {int(step): float(value) for step, value in zip(table.step[start:], values, strict=True) if value == value}


def _batches_of(run: Run) -> float | None:
    """How many batches of an epoch a log can show: by the declared size of the set, where a row tells one micro-batch
    of its step; else by how the epochs were counted.
    """
    horizon = mapping(run.header.raw.get("horizon"))
    samples, size = number(horizon.get("samples")), number(horizon.get("batch_size"))
    if samples and size:
        return samples / size / (number(horizon.get("processes")) or 1) / (number(horizon.get("accumulation")) or 1)
    moved = np.diff(run.train["epoch"])
    late = moved[-EPOCH_ROWS:]
    if len(late) and (late > 0).all() and late.max() <= 1.5 * late.min():
        return 1 / float(np.median(late))  # told in parts of an epoch
    begins = np.flatnonzero(moved > 0)  # told in whole epochs
    return float(np.median(np.diff(begins))) if len(begins) >= EPOCHS and np.isfinite(moved).all() else None


def _since(prints: Floats, far: int, long: int) -> int:
    """The first row that repeats one before it, after the last long stretch of rows that were new.

    A few new ones between repeats are none: a memory that is sampled alike is overwritten meanwhile.
    """
    new = np.ones(len(prints), dtype=bool)
    for lag in range(1, min(far, len(prints) - 1) + 1):
        new[lag:] &= prints[lag:] != prints[:-lag]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], new, [False]]).astype(np.int8)))
    begins, ends = edges[::2], edges[1::2]
    lasting = np.flatnonzero((ends - begins >= long) | (begins == 0))
    return min(int(ends[lasting[-1]]), len(prints) - 1)

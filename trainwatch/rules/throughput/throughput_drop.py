"""See the rule's docstring: it is the page that `trainwatch rules throughput-drop` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from trainwatch.copying import copied
from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import History, Streak, carried, in_blocks, median, medians, noise, spreads
from trainwatch.table import Chunk
from trainwatch.views.games import paid, plays
from trainwatch.views.regimes import Regimes

Floats = NDArray[np.float64]
Columns = dict[str, Floats]
COSTS = ("seconds", "token", "sample", "step")
"""What is known of a block: the median time of a step, the time for a token and for a sample, the first step."""


@dataclass
class ThroughputDrop(Rule):
    """Steps take longer than they did, and it stays so.

    What it sees:
        The median `time/step` of each block of 20 steps against the run's own steady state: the median of ten blocks
        after the first, anew at each stage of the curriculum and at each resume. Where `tokens` or `samples` are
        recorded, the time for one of them must have grown as well: longer sequences and larger batches are slower by
        plan. And steps that have become half as long again little by little, in both halves of the stage, or three
        times as long after its first half, or third, single steps differing by a fifth of that rise at most: that is no
        neighbour, and a warning however little is lost by now. A stage of less than a hundred rows is looked at row by
        row for this, and has to become three times as slow.

    Why it matters:
        The run will end later than planned, and something outside the model has changed: a neighbour on the machine, a
        hot card that throttles, a disk cache that is full, a list that grows with every step.

    What to do:
        See what grew with it: `time/data` (the loader), `time/comm` (the network, a slow rank), `memory/*` (swapping);
        then `nvidia-smi -q -d PERFORMANCE,CLOCK` for a throttled card and `top` for a neighbour.

    When it is wrong:
        Work that grows without being told (more objects per image): record `tokens` or `samples`. Episodes of games
        grow by themselves, and are left alone there, unless the policy goes on being paid alike. Less than half a
        minute lost in all is an info; less than 1 % of the time is nothing.

    References:
        TraceML and RunMedic compare late steps with early ones (1.2 to 3 times); MegaScale (2024) on stragglers that
        come and go.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("time/step",)
    wants: ClassVar[tuple[str, ...]] = ("tokens|samples", "time/data")

    drop: float = 0.25  # of the throughput: a shared machine's ups and downs stay below it
    grave_drop: float = 0.33  # of the throughput: the run takes half as long again
    steady: int = 10  # blocks that make the steady state: 200 steps
    recent: int = 5  # blocks whose median is judged: 100 steps; and so many of these in a row
    scatters: float = 5.0  # standard deviations of the steady blocks: batches of all sizes are no drop
    lost: float = 30.0  # s: a warning is worth half a minute
    grown: float = 1.5  # x: what grows little by little; a machine that warms up stays below
    ordered: float = 0.8  # rank correlation of the blocks' times with their order: neighbours come and go
    clear: float = 6.0  # standard deviations of one block: a busy machine makes any order now and then
    both: float = 0.4  # the same within each half: a drop that stays has none there
    leapt: float = 3.0  # x: what grows little by little in the second half alone
    climbing: float = 0.95  # rank correlation, there; neighbours on a busy machine that came one by one made 0.93 of it
    turns: float = 0.2  # of the rise, noise of single steps at its end, there: of a leak 0.15, of neighbours 0.26
    fine: int = 5  # rows of a piece, there: so that short runs have enough of them
    pieces: int = 10  # blocks that show it
    few: int = 100  # rows of a regime that has less: they are looked at one by one
    fewest: int = 30  # rows
    singles: int = 20  # single rows that climb: by chance they are as rarely in order as ten medians of five are
    burst: float = 0.3  # s: a neighbour's turn on the processor; a healthy run of short steps lost a tenth of it
    doubts: float = 5.3  # deviations of one row, for two medians: three of their standard errors
    worth: float = 0.01  # of the time so far: less than that, and than half a minute, is not worth a word

    _regimes: Regimes = field(default_factory=Regimes, init=False)
    _steady: Floats = field(default_factory=lambda: np.empty((0, 4)), init=False)
    _recent: Floats = field(default_factory=lambda: np.empty((0, 4)), init=False)
    _course: History = field(default_factory=History, init=False)  # of the blocks of the present regime
    _pieces: History = field(default_factory=History, init=False)  # the same, by pieces of a few rows
    _counts: dict[str, float] = field(default_factory=dict, init=False)
    _lost: float = field(default=0.0, init=False)
    _elapsed: float = field(default=0.0, init=False)
    _streak: Streak | None = field(default=None, init=False)

    def start(self, header: Header) -> Findings:
        """What the run declares of its stages."""
        self._regimes.start(header)
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """Regime by regime; there are few."""
        self._streak = self._streak or Streak(self.recent)
        costs = self._costs(chunk)
        pieces, parts = medians(in_blocks(chunk["time/step"], self.fine)), self.block // self.fine
        steps = chunk.step[:: self.fine].astype(np.float64)
        fresh = np.flatnonzero(in_blocks(self._regimes.begins(chunk).astype(np.float64), self.block).any(axis=1))
        for begin, end in pairwise([0, *fresh[fresh > 0], len(costs)]):
            if begin in fresh:
                self._steady, self._recent, self._course = np.empty((0, 4)), np.empty((0, 4)), History()
                self._pieces = History()
            self._course.push(dict(zip(COSTS, costs[begin:end].T, strict=True)))
            fine = slice(parts * begin, parts * end)
            self._pieces.push({"seconds": pieces[fine], "step": steps[fine]})
            columns = self._judge(costs[begin:end])
            self._streak.push(columns["ratio"] > 1 / (1 - self.drop), columns)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """What is lost by now; a part of a block is too few steps to time by, but to see that each takes longer."""
        drop = self._drop()
        if not (drop and drop.severity == "warning"):
            longer = self._longer(run, rest)
            drop = longer if longer and not self._other_episodes(run, longer.first_step) else drop
        yield from [drop] if drop else []

    def _other_episodes(self, run: Run, since: int) -> bool:
        """Whether it is a game whose episodes may have grown: unless its policy had learned before, and has been paid
        alike while steps grew.
        """
        if not plays([*run.train.channels, *run.eval.channels]):
            return False
        reward = paid(run.train.channels)
        known = run.train.live & np.isfinite(run.train[reward]) if reward else np.zeros(len(run.train.live), bool)
        steps, pay = run.train.step[known], run.train[reward][known] if reward else np.empty(0)
        before, late = pay[steps < since], pay[steps >= since]
        if len(late) < self.fewest or len(before) < self.fine:
            return True
        first, middle, end = (median(third) for third in np.array_split(late, 3))
        doubt = self.doubts * noise(late) / (len(late) / 3) ** 0.5
        learned = abs(end - median(before[: self.fine])) > doubt
        return not learned or max(abs(end - first), abs(end - middle)) >= doubt

    def _longer(self, run: Run, rest: Chunk) -> Finding | None:
        """Steps that take longer and longer: by blocks, or row by row where there are few."""
        course, pieces, each = self._course.series(), self._pieces.series(), self.block
        if self.fewest <= len(run.train.step) and self.fine * len(pieces.get("step", ())) < self.few:
            course, each = self._single(run, rest), 1
            pieces = course
        if not self._costly(course, each):
            return None
        grown, ordered = (self.leapt, self.climbing) if each == 1 else (self.grown, self.ordered)
        if self._creeps(course, grown, ordered):
            return self._creeping(course, float(course["step"][0]))
        since = self._climbs(course, pieces, self.singles if each == 1 else self.pieces)
        return self._creeping(course, since) if since is not None and self._evenly(run, course, since) else None

    def _drop(self) -> Finding | None:
        if self._streak is not None and self._streak.onset is not None:
            lost = self._streak.latest["lost"] - self._streak.onset["lost"]
            if lost >= min(self.worth * self._elapsed, self.lost):
                return self._finding(self._streak)
        return None

    def _costly(self, course: Columns, each: int) -> bool:
        """Whether more time is lost than a neighbour's turn takes: steps of a millisecond go up and down with those.

        A value of the course stands for so many rows each.
        """
        seconds = course.get("seconds", np.empty(0))[1:]
        seconds = seconds[np.isfinite(seconds)]
        if not len(seconds):
            return False
        begin = median(np.array_split(seconds, 4)[0]) if len(seconds) > 3 else float(seconds[0])
        return each * float(np.maximum(seconds - begin, 0.0).sum()) > self.burst

    def _creeps(self, course: Columns, grown: float, ordered: float) -> bool:
        """Whether a step, and what is known of its work, costs more and more."""
        for name in COSTS[:3]:
            values = course.get(name, np.empty(0))[1:]  # compilation and caches are in the first block
            values = values[np.isfinite(values)]
            if name != "seconds" and not len(values):
                continue
            if len(values) < self.pieces:
                return False
            begin, *_, end = levels = [median(part) for part in np.array_split(values, 4)]
            grows = (
                end > max(grown * begin, begin + self.clear * noise(values))
                and end - float(np.mean(levels[1:3])) > (end - begin) / 4
            )
            halves = [_order(half) for half in np.array_split(values, 2)]
            if not grows or _order(values) < ordered or min(halves) < self.both:
                return False
        return "seconds" in course

    def _single(self, run: Run, rest: Chunk) -> Columns:
        """The costs of the single rows of a present regime that has few of them; the same columns as of the blocks."""
        begins = self._course.series().get("step", np.empty(0))
        if not len(begins) or copied(self._regimes).begins(rest).any():
            return {}
        here = run.train.live & (run.train.step >= begins[0])
        stages = run.train["stage"][here]
        if len(np.unique(stages[np.isfinite(stages)])) > 1:  # each takes its own time, however short it is
            return {}
        columns = {"seconds": run.train["time/step"][here], "step": run.train.step[here].astype(np.float64)}
        for cost, name in (("token", "tokens"), ("sample", "samples")):
            work = np.diff(run.train[name][here], prepend=np.nan)
            columns[cost] = np.where(work > 0, columns["seconds"] / work, np.nan)
        sizes = (run.train[f"data/{name}/mean"][here] for name in ("length", "lengths", "tokens", "size"))
        if any(np.isfinite(size).all() and abs(_order(size)) > self.ordered for size in sizes):
            return {}  # what is longer takes longer
        return columns

    def _climbs(self, course: Columns, pieces: Columns, fewest: int) -> float | None:
        """The step up to which steps were alike and after which they cost more and more: half of them, or a third."""
        known = np.isfinite(pieces.get("seconds", np.empty(0)))
        values, steps = (pieces.get(name, np.empty(0))[known][1:] for name in ("seconds", "step"))
        for parts in (2, 3):
            cut = len(values) // parts
            first, late = values[:cut], values[cut:]
            third = len(late) // 3
            if len(late) < fewest:
                continue
            middle, end = median(late[third:-third]), median(late[-third:])
            clear = end > max(self.leapt * float(first.max()), middle + self.clear * noise(first))
            if clear and _order(late) > self.climbing and self._alone(course):
                return float(steps[cut])
        return None

    def _evenly(self, run: Run, course: Columns, since: float) -> bool:
        """Whether single steps at the end differ by little of what each of them costs more than at first: what grows is
        paid in every step, and neighbours take turns.
        """
        steps, seconds = run.train.step[run.train.live], run.train["time/step"][run.train.live]
        late = seconds[steps >= since]
        end = late[-(len(late) // 3) :]
        rise = median(end) - median(seconds[(steps >= course["step"][0]) & (steps < since)])
        return noise(end) < self.turns * rise

    def _alone(self, course: Columns) -> bool:
        """Whether what is known of the work did not grow as well."""
        known = [course[name][np.isfinite(course[name])] for name in COSTS[1:3] if name in course]
        return all(
            median(one[-max(2, len(one) // 6) :]) > self.grown * median(one[: len(one) // 2])
            for one in known
            if len(one) > 3
        )

    def _creeping(self, course: Columns, onset: float) -> Finding:
        begin, *_, now = (median(part) for part in np.array_split(course["seconds"][1:], 4))
        return self.finding(
            "warning",
            "run",
            (int(onset), int(course["step"][-1])),
            f"Each step takes longer than the one before: {begin:.3g} s at first, {now:.3g} s now, and it goes on.",
            evidence={"seconds": now, "steady_seconds": begin, "ratio": now / begin},
            advice="Look for a list, a cache or a graph that grows and is walked through at every step.",
            confidence=0.8,
        )

    def _costs(self, chunk: Chunk) -> Floats:
        """The costs of each block. float64 [blocks, costs]"""
        seconds = medians(in_blocks(chunk["time/step"], self.block))
        columns = [seconds]
        for name in ("tokens", "samples"):
            ends = in_blocks(chunk[name], self.block)[:, -1]
            work = ends - carried(self._counts.get(name, np.nan), ends)
            self._counts[name] = float(carried(self._counts.get(name, np.nan), np.append(ends, np.nan))[-1])
            columns.append(np.where(work > 0, seconds / work, np.nan))
        return np.stack([*columns, chunk.step[:: self.block].astype(np.float64)], axis=1)

    def _judge(self, costs: Floats) -> Columns:
        """How many times as long as in the steady state each block of one regime took; NaN until that is known."""
        missing = self.steady + 1 - len(self._steady)
        self._steady = np.concatenate([self._steady, costs[:missing]])
        late = costs[missing:] if missing > 0 else costs
        known = np.concatenate([self._recent, late])
        self._recent = known[-self.recent + 1 :]
        ratio, seconds, since = np.full(len(costs), np.nan), costs[:, 0].copy(), costs[:, 3].copy()
        usual = np.full(4, np.nan)
        windows = len(known) - self.recent + 1
        if windows > 0:
            usual, scatter = self._usual()
            now = np.stack([medians(sliding_window_view(known[:, kind], self.recent)) for kind in range(3)], axis=1)
            times = np.where(now > usual[:3] + self.scatters * scatter, now / usual[:3], np.where(now > 0, 1.0, np.nan))
            ratio[len(costs) - windows :] = np.fmin.reduce(times, axis=1)
            seconds[len(costs) - windows :] = now[:, 0]
            since[len(costs) - windows :] = known[self.recent // 2 : self.recent // 2 + windows, 3]
        slow = np.where(ratio > 1, (1 - 1 / np.maximum(ratio, 1.0)) * costs[:, 0] * self.block, 0.0)
        lost = np.add.accumulate(np.concatenate([[self._lost], np.nan_to_num(slow)]))[1:]
        self._lost = float(lost[-1]) if len(lost) else self._lost
        took = np.concatenate([[self._elapsed], np.nan_to_num(costs[:, 0]) * self.block])
        self._elapsed = float(np.add.accumulate(took)[-1])
        columns = {"ratio": ratio, "seconds": seconds, "step": costs[:, 3], "since": since, "lost": lost}
        return columns | {"usual": np.full(len(costs), usual[0])}

    def _usual(self) -> tuple[Floats, Floats]:
        """The steady state, and its scatter: of a step, a token, a sample."""
        kinds = np.ascontiguousarray(self._steady[1:].T)  # compilation and caches are in the first block
        usual = medians(kinds)
        return usual, spreads(kinds, usual)[:3]

    def _finding(self, streak: Streak) -> Finding:
        onset, now = streak.onset or streak.latest, streak.latest
        lost = now["lost"] - onset["lost"]
        grave = now["ratio"] > 1 / (1 - self.grave_drop) and lost >= self.lost
        times = now["seconds"] / now["usual"] if now["usual"] > 0 else now["ratio"]
        alike = f", {now['ratio']:.2g} times for the same work" if times > 1.05 * now["ratio"] else ""
        return self.finding(
            "warning" if grave else "info",
            "run",
            (int(onset["since"]), int(now["step"])),
            f"A step takes {now['seconds']:.3g} s, {times:.2g} times as long as in the steady state "
            f"({now['usual']:.3g} s){alike}; {lost:,.0f} s are lost by now.",
            over=streak.over,
            evidence={"seconds": now["seconds"], "steady_seconds": now["usual"], "ratio": now["ratio"], "lost": lost},
            advice="See whether time/data, time/comm or memory/* rose with it; else look for a throttled card or a "
            "neighbour on the machine.",
            confidence=0.8,
        )


def _order(values: Floats) -> float:
    """Rank correlation of a series with its order."""
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return float(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1])

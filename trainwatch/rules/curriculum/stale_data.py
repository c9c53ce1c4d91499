"""See the rule's docstring: it is the page that `trainwatch rules stale-data` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.copying import copied
from trainwatch.header import Curriculum, Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import Streak, in_blocks
from trainwatch.table import Chunk

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
MOST = 64  # names of data that are looked at: more of them is a plan to be distrusted


@dataclass
class Asked:
    """What the stages ask of one name, NaN where one does not speak of it; batches outside, and the last of them."""

    low: Floats  # [stages]
    high: Floats
    rows: Floats  # [stages] batches
    full: Floats  # those that fill their stage's range
    low_near: Floats  # those that come near an end that moves with the next stage
    high_near: Floats
    least: Floats  # value of all batches
    most: Floats
    outside: int = 0
    latest: tuple[float, float, int, int] = (np.nan, np.nan, 0, 0)  # least, largest, step, stage


@dataclass
class StaleData(Rule):
    """The data that comes out of the loader is not the data that the stage asks for.

    What it sees:
        `data/<name>/min`, `mean` and `max` of each batch against the range that the declared stage gives that name. In
        blocks of rows: most batches, for longer than a loader's queue lasts. It says whether they would fit an earlier
        stage. Or the stages after one whose batches filled its range, or came close to the end of it that moves, have
        wider ranges, and not one of their batches makes use of that: forty and more together, or fifteen in forty
        steps, if most before came close to the end that moves; of batches that are looked at now and then five, if all
        did.

    Why it matters:
        Workers hold a copy of the dataset object. A stage that is set in the main process never reaches them:
        labels and weights move on, and the model goes on with short and clean inputs.

    What to do:
        Let the stage be a function of the sample's index, or give the loader its new stage where its workers
        can see it: shared memory, `persistent_workers=False`, or a new loader for each stage.

    When it is wrong:
        Where the declared range counts something else than what is recorded (with or without padding), batches
        are outside from the first row on; that is only mentioned. Old data inside the new range are told from
        new ones only where most batches used to fill their range.

    References:
        PyTorch: workers of a DataLoader get a copy of the dataset (pytorch #13246; torch.utils.data,
        "Multi-process").
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = (
        "run:curriculum|run:curriculum_running",
        "data/<name>/min|data/<name>/mean|data/<name>/max",
    )
    causes: ClassVar[tuple[str, ...]] = ("generalisation-gap", "curriculum-shock")

    most: float = 0.5  # of the batches of a block: a loader's odd sample is none
    blocks: int = 2  # in a row: batches that wait in a loader's queue are fewer
    slack: float = 1e-6  # of the bounds: float32
    full: float = 0.8  # of a stage's range from a batch's least to its largest value: batches show the whole range
    wider: float = 0.25  # than before, for the next stage to show in each batch that is drawn from it
    moved: float = 0.1  # of the old range, for an end of it; and batches came so near to where it was that
    near: float = 0.2  # of that way would take them beyond it: data that thin out towards an end keep away from it
    filled: int = 10  # batches of a stage, most of which fill its range: then each batch shows what it is drawn from
    few: int = 3  # batches of a stage, of a log of few: most fill its range, and all come near the end that moves
    fewest: int = 40  # steps since, in which no batch leaves that range: those in a loader's queue are fewer
    drawn: int = 15  # batches since, in them, where half of the old ones came near the end that moves: 1 in 30,000
    sparse: int = 5  # batches since, in them, where all of them did
    explains: float = 0.9  # of the batches outside: those fit an earlier stage

    _plan: Curriculum | None = field(default=None, init=False)
    _begins: Floats = field(default_factory=lambda: np.empty(0), init=False)
    _asked: dict[str, Asked] = field(default_factory=dict, init=False)
    _fits: Floats = field(default_factory=lambda: np.empty(0), init=False)  # batches outside that fit each stage
    _outside: int = field(default=0, init=False)
    _began_well: bool = field(default=False, init=False)
    _streak: Streak = field(default_factory=lambda: Streak(1), init=False)
    _tail: float = field(default=np.nan, init=False)  # where most batches began to be outside in the last block

    def start(self, header: Header) -> Findings:
        """The range of every name in every stage; while a curriculum ramps, the stage before still holds."""
        self._plan = header.plan
        stages = self._plan.stages if self._plan else ()
        self._begins, self._fits = np.array([stage.start for stage in stages]), np.zeros(len(stages))
        self._streak = Streak(self.blocks, header.window())
        for name in list(dict.fromkeys(name for stage in stages for name in stage.data))[:MOST]:
            bounds = np.array([stage.data.get(name, (np.nan, np.nan)) for stage in stages])
            low, high = bounds.min(axis=1), bounds.max(axis=1)
            if self._plan and self._plan.ramp != "step":
                low[1:], high[1:] = np.fmin(low[1:], low[:-1]), np.fmax(high[1:], high[:-1])
            slack = self.slack * np.maximum(np.abs(low), np.abs(high))
            rows, full, low_near, high_near = np.zeros((4, len(stages)))
            least, most = np.full(len(stages), np.inf), np.full(len(stages), -np.inf)
            self._asked[name] = Asked(low - slack, high + slack, rows, full, low_near, high_near, least, most)
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Two comparisons a name; what lies outside is looked at block by block.

        A loader that goes by attempted steps is ahead of the applied ones where a gradient scaler skips.
        """
        applied, step = self._stage(chunk.applied()), self._stage(chunk.step.astype(np.float64))
        judged, outside = np.zeros(len(chunk), dtype=bool), np.zeros(len(chunk), dtype=bool)
        batches = {name: self._batch(chunk, name) for name in self._asked}
        for name, (low, high) in batches.items():
            known = np.isfinite(low) & np.isfinite(high)
            off = known & ~self._holds(name, applied, low, high) & ~self._holds(name, step, low, high)
            judged |= known & np.isfinite(self._asked[name].low[applied])
            outside |= off
            self._count(self._asked[name], applied[known], low[known], high[known])
            if off.any():
                row, asked = int(np.flatnonzero(off)[-1]), self._asked[name]
                asked.outside += int(off.sum())
                asked.latest = (float(low[row]), float(high[row]), int(chunk.step[row]), int(applied[row]))
        if not self._outside:  # until the first batch outside
            self._began_well |= bool((judged & ~np.maximum.accumulate(outside)).any())
        if outside.any() or self._streak.bad:
            self._note(batches, np.flatnonzero(outside))
            yield from self._judge(chunk, judged, outside, applied)
        else:
            self._tail = np.nan

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """What has not changed is known once a stage has lasted."""
        trial = copied(self)
        yield from trial.update(rest) if len(rest) else ()
        if trial._streak.onset is None and self._plan is not None and self._plan.ramp == "step":
            yield from trial._unchanged(run)

    def _count(self, asked: Asked, stage: NDArray[np.int64], low: Floats, high: Floats) -> None:
        """Batches of each stage: how many fill its range, and between what they lie."""
        full = (high - low) >= self.full * (asked.high[stage] - asked.low[stage])
        asked.rows += np.bincount(stage, minlength=len(asked.rows))
        asked.full += np.bincount(stage[full], minlength=len(asked.full))
        np.minimum.at(asked.least, stage, low)
        np.maximum.at(asked.most, stage, high)
        down, up = (self.near * moves for moves in _moved(asked))
        asked.low_near += np.bincount(stage[low - asked.low[stage] <= down[stage]], minlength=len(asked.rows))
        asked.high_near += np.bincount(stage[asked.high[stage] - high <= up[stage]], minlength=len(asked.rows))

    def _shown(self, asked: Asked, *, surely: bool = False) -> Bools:
        """Stages whose batches came close to each end that the next stage moves outwards. bool [stages]

        Surely: all of them did, and most fill the range, so that few are enough.
        """
        least = self.moved * (asked.high - asked.low)
        shown, some = np.ones(len(asked.rows), dtype=bool), np.zeros(len(asked.rows), dtype=bool)
        for moves, near in zip(_moved(asked), (asked.low_near, asked.high_near), strict=True):
            shown &= (moves == 0) | (near == asked.rows if surely else near > self.most * asked.rows)
            some |= moves > np.maximum(least, 0)
        if surely:
            return shown & some & (asked.rows >= self.few) & (asked.full > self.most * asked.rows)
        return shown & some & (asked.rows >= self.filled)

    def _unchanged(self, run: Run) -> Findings:
        """A stage whose batches filled its range, wider ones after it, and no batch of theirs that leaves it."""
        for name, asked in self._asked.items():
            width, said = asked.high - asked.low, False
            filled = (asked.full > self.most * asked.rows) & (asked.rows >= self.filled) & (width > 0)
            surely = self._shown(asked, surely=True)
            shown = self._shown(asked) | surely
            for old in np.flatnonzero((filled | shown)[:-1]).tolist():
                inside = (asked.least >= asked.low[old]) & (asked.most <= asked.high[old])
                more = self.moved if shown[old] else self.wider
                wider = (asked.low <= asked.low[old]) & (asked.high >= asked.high[old])
                wider &= width > (1 + more) * width[old]
                left = np.flatnonzero(
                    ~(inside & wider)[old + 1 :]
                )  # what came after the first that is not so is another
                end = old + 1 + int(left[0]) if len(left) else len(width)
                begun = np.flatnonzero(asked.rows[old + 1 : end])
                batches = int(asked.rows[old + 1 : end].sum())
                over = min(self._begins[end] if end < len(width) else np.inf, float(run.last_step or 0))
                lasts = over - self._begins[old + 1] >= self.fewest
                few = self.sparse if surely[old] else self.drawn if shown[old] else self.fewest
                if not said and len(begun) and batches >= (few if lasts else self.fewest):
                    last, said = old + 1 + int(begun[-1]), True
                    yield self._same(name, (old, last), batches, run)

    def _same(self, name: str, stage: tuple[int, int], batches: int, run: Run) -> Finding:
        stages, (old, now) = self._plan.stages if self._plan else (), stage
        (was, had), (least, most) = (stages[at].data[name] for at in stage)
        first = int(stages[old + 1].start) + 1
        return self.finding(
            "warning",
            "run",
            (first, run.last_step or first),
            f"Stage {stages[now].name!r} asks for {name} of {_span(least, most)}, and none of the {batches:,} batches "
            f"since step {first:,} leaves the {_span(was, had)} of {stages[old].name!r}, which reached its ends.",
            evidence={"batches": batches, "asked_low": least, "asked_high": most},
            advice="Look at which copy of the dataset the loader's workers hold, and how they hear of a new stage.",
            confidence=0.8,
        )

    def _stage(self, at: Floats) -> NDArray[np.int64]:
        return np.maximum(np.searchsorted(self._begins, at, side="right") - 1, 0)

    @staticmethod
    def _batch(chunk: Chunk, name: str) -> tuple[Floats, Floats]:
        """Least and largest value of each batch; its mean where those are not recorded. float64 [rows], twice"""
        mean, low, high = (chunk[f"data/{name}/{which}"] for which in ("mean", "min", "max"))
        return np.where(np.isnan(low), mean, low), np.where(np.isnan(high), mean, high)

    def _holds(self, name: str, stage: NDArray[np.int64], low: Floats, high: Floats) -> Bools:
        """Whether a stage's range holds the batch; what it does not speak of, it holds. bool [rows]"""
        asked = self._asked[name]
        holds: Bools = ~((low < asked.low[stage]) | (high > asked.high[stage]))
        return holds

    def _note(self, batches: dict[str, tuple[Floats, Floats]], rows: NDArray[np.int64]) -> None:
        """Which stages would hold the batches that are outside."""
        self._outside += len(rows)
        for index in range(len(self._begins)):
            stage = np.full(len(rows), index)
            fits = [self._holds(name, stage, low[rows], high[rows]) for name, (low, high) in batches.items()]
            self._fits[index] += np.logical_and.reduce(fits).sum()

    def _judge(self, chunk: Chunk, judged: Bools, outside: Bools, stage: NDArray[np.int64]) -> Findings:
        """Blocks in which most batches are outside; it began in the block before, if that one ends so."""
        blocks = in_blocks(np.where(judged, outside, np.nan), self.block)
        bad, known = blocks == 1, np.isfinite(blocks)
        since = np.maximum.accumulate(bad, axis=1) & known  # from the first batch outside on
        ends = bad.sum(axis=1) > self.most * since.sum(axis=1)
        begin = np.arange(len(bad)) * self.block
        first = chunk.step[begin + np.argmax(bad, axis=1)].astype(np.float64)
        before = np.concatenate([[self._tail], np.where(ends, first, np.nan)])
        self._tail = float(before[-1])
        last = np.minimum(begin + self.block - 1 - np.argmax(bad[:, ::-1], axis=1), len(judged) - 1)
        columns = {"step": np.where(np.isfinite(before[:-1]), before[:-1], first), "last": chunk.step[last]}
        columns |= {"stage": stage[last]}
        some, holds = known.any(axis=1), bad.sum(axis=1) > self.most * known.sum(axis=1)
        if self._streak.push(holds[some], {key: values[some].astype(np.float64) for key, values in columns.items()}):
            yield self._finding()

    def _finding(self) -> Finding:
        onset, now = self._streak.onset or {}, self._streak.latest
        stages, earlier = self._plan.stages if self._plan else (), self._fits[: int(now["stage"])]
        old = int(np.argmax(earlier)) if len(earlier) and earlier.max() >= self.explains * self._outside else None
        name = max(self._asked, key=lambda key: self._asked[key].outside)
        low, high, step, stage = self._asked[name].latest
        least, most = stages[stage].data.get(name, (np.nan, np.nan))
        why = "" if old is None else f"; they fit stage {stages[old].name!r}"
        return self.finding(
            "warning" if old is not None or self._began_well else "info",
            "run",
            (int(onset["step"]), int(now["last"])),
            f"{name} is {_span(low, high)} in the batch of step {step:,}, and stage {stages[stage].name!r} "
            f"asks for {_span(least, most)}: {self._outside:,} batches were not what their stage asks for{why}.",
            over=self._streak.over,
            evidence={"low": low, "high": high, "asked_low": least, "asked_high": most, "batches": self._outside},
            advice="Look at which copy of the dataset the loader's workers hold, and how they hear of a new stage.",
            confidence=0.95 if old is not None else 0.7,
        )


def _moved(asked: Asked) -> list[Floats]:
    """How far each end of the range moves outwards with the next stage, 0 where it does not. float64 [stages], twice"""
    ways = [np.maximum(np.diff(end, append=end[-1:]), 0.0) for end in (-asked.low, asked.high)]
    least = 1e-5 * np.maximum(np.abs(asked.low), np.abs(asked.high))  # the bounds' slack grows with them
    return [np.where(moves > least, moves, 0.0) for moves in ways]


def _span(low: float, high: float) -> str:
    """A range in words; one number if it holds no other."""
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"

"""See the rule's docstring: it is the page that `trainwatch rules total-unexplained` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.copying import copied
from trainwatch.header import Header, mapping, number
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import Streak, in_blocks, median, medians, noise
from trainwatch.table import Chunk
from trainwatch.views.components import BLOCK, components

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass
class TotalUnexplained(Rule):
    """The recorded loss is not the sum of its weighted components.

    What it sees:
        In two blocks of 20 rows, one after the other, the loss differs from the sum of weight x raw value by more than
        1 % and more than the log's rounding explains; and it is the same step that both are of: they go up and down
        together, or the gap is many times what the loss moves. A constant ratio of the two is reported as such.

    Why it matters:
        What is differentiated is not what is recorded. A component that nobody tracks may run away unseen; a loss that
        is divided by the accumulation twice trains at a fraction of the learning rate.

    What to do:
        Record the missing component, or the weight as it was applied. Divide by the accumulation once, and record
        values that are neither divided nor scaled. `watch.losses()` gives the sum and records its parts.

    When it is wrong:
        Where weights are not recorded nothing is said. A weight decay or an uncertainty term that is added to the loss
        by design is a component too: record it under its name.

    References:
        Gradient accumulation fix of transformers (#34191): losses summed and divided by different counts.
    """

    block: ClassVar[int] = BLOCK
    needs: ClassVar[tuple[str, ...]] = ("loss", "loss/<component>", "weight/<component>")
    wants: ClassVar[tuple[str, ...]] = ("run:horizon", "amp/scale")
    causes: ClassVar[tuple[str, ...]] = ("loss-divergence",)

    gap: float = 0.01  # of the larger of the loss and its parts: sums in bfloat16 are off by 0.4 %
    blocks: int = 2  # in a row: one may hold the step at which a weight changes
    steady: float = 0.005  # of the ratio: within it two series are one, times a factor
    together: float = 0.5  # correlation of the changes from row to row: running means have none with what they average
    lively: float = 0.4  # of the loss's changes from row to row, relative: a running mean over five rows has 0.3
    apart: float = 10.0  # x what the loss moves within a block: then no running mean explains the gap

    _accumulation: float = field(default=1.0, init=False)
    _exact: bool = field(default=False, init=False)  # our recorder rounds nothing: a constant weight of 0.5 is one half
    _streak: Streak | None = field(default=None, init=False)
    _begun: set[str] = field(default_factory=set, init=False)  # components that had a value
    _tail: float = field(default=np.nan, init=False)  # the step since which the last block does not add up

    def start(self, header: Header) -> Findings:
        """The accumulation, to name the ratio; whether weights are as they were applied."""
        self._accumulation = number(mapping(header.raw.get("horizon")).get("accumulation")) or 1.0
        self._exact = "schema" in header.raw
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Most blocks add up: only the others are looked at one by one."""
        parts = self._parts(chunk)
        if not len(chunk) or not len(parts):
            return
        total, summed = chunk["loss"], np.sum(parts, axis=0)
        size = np.maximum(np.abs(total), np.sum(np.abs(parts), axis=0))
        rest, limit = total - summed, self.gap * size
        known = np.isfinite(rest) & (size > 0)
        off = in_blocks(np.where(known, np.abs(rest) > limit, np.nan), self.block)
        judged = np.isfinite(off).sum(axis=1) >= self.block // 2
        suspect = judged & (np.nansum(off, axis=1) >= 0.9 * np.isfinite(off).sum(axis=1))
        steps = in_blocks(chunk.step.astype(np.float64), self.block)
        gaps = off.copy()
        for index in np.flatnonzero(suspect):  # what the log's digits explain is no gap that anything could begin with
            rows = slice(index * self.block, (index + 1) * self.block)
            if abs(float(np.nanmedian(np.where(known, rest, np.nan)[rows]))) <= self._rounding(chunk, rows):
                gaps[index] = 0.0
        begins = self._begins(gaps, steps)
        if self._streak is None and not suspect.any():
            return
        both = [in_blocks(np.where(known, values, np.nan), self.block) for values in (total, summed)]
        for index in np.flatnonzero(suspect):
            suspect[index] = self._same_step(both[0][index], both[1][index], chunk, int(index))
        self._streak = streak = self._streak or Streak(self.blocks)
        middle = {"loss": medians(both[0]), "sum": medians(both[1]), "step": begins}
        middle |= {"last": np.nanmax(steps, axis=1), "scale": in_blocks(chunk["amp/scale"], self.block)[:, 0]}
        columns = {name: values[judged] for name, values in middle.items()}
        if streak.push(suspect[judged], columns) and streak.onset is not None:
            yield self._finding(streak)

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Rows that fill no block yet count on a copy; a run that has ended has no more of them."""
        trial = copied(self)
        if run.end is not None and len(rest) == rest.stop:
            trial.blocks = 1
        yield from trial.update(rest)

    def _parts(self, chunk: Chunk) -> Floats:
        """Each component's contribution: 0 where its weight is, and until it has a value; NaN where its weight is not
        known, and before the first component of all. float64 [components, rows]
        """
        parts, before = [], np.full(len(chunk), not self._begun)
        for name in components(chunk):
            weight, value = chunk[f"weight/{name}"], chunk[f"loss/{name}"]
            begun = np.logical_or.accumulate(np.isfinite(value)) | (name in self._begun)
            parts.append(np.where((weight == 0) | ~begun, 0.0, weight * value))
            before &= ~begun
            self._begun |= {name} if begun.any() else set()
        return np.where(before, np.nan, parts) if parts else np.empty(0)

    def _same_step(self, total: Floats, summed: Floats, chunk: Chunk, index: int) -> bool:
        """Whether loss and sum are of one and the same step, and the gap is no rounding."""
        there = np.isfinite(total)
        total, summed = total[there], summed[there]
        rest = total - summed
        rows = slice(index * self.block, (index + 1) * self.block)
        ratio = total / np.where(summed == 0, np.nan, summed)
        steady = np.nanmax(np.abs(ratio / median(ratio) - 1.0), initial=0.0) < self.steady and np.ptp(total) > 0
        if steady and self._divided(median(ratio)):
            return True
        if abs(float(np.median(rest))) <= self._rounding(chunk, rows):
            return False
        if not (np.sign(rest) == np.sign(np.median(rest))).mean() >= 0.9:
            return False
        if steady:
            return True
        if np.abs(np.median(rest)) > self.apart * max(np.ptp(total), np.ptp(summed), noise(total)):
            return True
        moved = np.diff(total), np.diff(summed)
        if not moved[1].std() > self.lively * moved[0].std() * abs(median(1.0 / ratio)) > 0:
            return False
        return bool(np.corrcoef(*moved)[0, 1] > self.together)

    def _divided(self, ratio: float) -> bool:
        """Whether it is that of the accumulation: digits that a log drops do not hit one number in every row."""
        return self._accumulation > 1 and abs(ratio * self._accumulation - 1) < self.steady

    def _rounding(self, chunk: Chunk, rows: slice) -> float:
        """How far the sum may be off because the log keeps few digits."""
        slack = _grain(chunk["loss"][rows])
        for name in components(chunk):
            weight = np.abs(chunk[f"weight/{name}"][rows])
            largest = float(np.nanmax(weight, initial=0.0))
            slack += largest * _grain(chunk[f"loss/{name}"][rows])
            value = np.abs(chunk[f"loss/{name}"][rows])
            if not (self._exact and np.ptp(weight) == 0):
                slack += _grain(weight) * float(np.nanmax(value, initial=0.0))
        return slack

    def _begins(self, off: Floats, steps: Floats) -> Floats:
        """The step at which each block's gap began: in one before, if all rows since then have it. float64 [blocks]"""
        rows, blocks = np.arange(self.block), np.arange(len(steps))
        after = np.where(off > 0, -1, rows).max(axis=1) + 1  # the row after the last that adds up, or is not known
        begin = np.where(after < self.block, steps[blocks, np.minimum(after, self.block - 1)], np.nan)
        source = np.maximum.accumulate(np.where(after > 0, blocks, -1))  # the last block in which a row adds up
        since = self._tail if np.isfinite(self._tail) else begin[0]
        begin = np.where(source >= 0, begin[source], since)
        before = np.concatenate([[self._tail], begin[:-1]])
        self._tail = float(begin[-1])
        first = steps[np.arange(len(steps)), np.where(off > 0, rows, self.block - 1).min(axis=1)]
        return np.where(np.isfinite(before), before, first)

    def _finding(self, streak: Streak) -> Finding:
        onset, now = streak.onset or {}, streak.latest
        total, summed = now["loss"], now["sum"]
        cause, advice = self._named(total, summed, now["scale"])
        return self.finding(
            "warning",
            "run",
            (int(onset["step"]), int(now["last"])),
            f"The loss is {total:,.4g}, and its weighted components add up to {summed:,.4g}: {cause}.",
            over=streak.over,
            evidence={"loss": total, "sum": summed, "gap": total - summed},
            advice=advice,
            confidence=0.9,
        )

    def _named(self, total: float, summed: float, scale: float) -> tuple[str, str]:
        """What the ratio of the two may mean."""
        ratio = total / summed if summed else np.nan
        many = self._accumulation
        for factor, name in ((many, f"the accumulation of {many:g}"), (scale, f"the AMP scale of {scale:g}")):
            for value, verb in ((1.0 / factor if factor else np.nan, "divided by"), (factor, "multiplied by")):
                if factor > 1 and abs(ratio / value - 1.0) < 2 * self.steady:
                    return f"it is {verb} {name}", "Divide once, for the backward pass, and record what was not scaled."
        gap = abs(total - summed)
        more = f"{gap / abs(total):.1%}" if gap < 10 * abs(total) else f"{gap:,.4g}"
        return (
            f"{gap / max(abs(total), abs(summed)):.1%} of the loss is unexplained"
            if total > summed
            else f"the components exceed the loss by {more}",
            "Record the missing component and its weight as applied, or look for a term that is added or scaled twice.",
        )


def _grain(values: Floats) -> float:
    """The last decimal that a column of rounded values has; 0 if it is not rounded to six or fewer."""
    known = values[np.isfinite(values)]
    if not (known % 1).any():
        return 0.0  # weights of 1 and 0 are exact
    return next((10.0**-digits for digits in range(1, 7) if np.allclose(known, known.round(digits), 1e-9, 0.0)), 0.0)

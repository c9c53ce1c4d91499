"""See the rule's docstring: it is the page that `trainwatch rules lr-zero` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schedule import MOST
from trainwatch.schema import Finding
from trainwatch.stats import Floats, fall
from trainwatch.table import Chunk


@dataclass
class LrZero(Rule):
    """The learning rate of every group is zero, from the start or for a large part of the run.

    What it sees:
        Rows in which all `lr/<group>` are exactly 0 and the optimiser took its step: more than half of such rows is an
        alarm, all of them a critical one, a tenth at the end an info. The loss must stand still in those rows, or the
        update ratio be 0: a rate that is merely rounded to 0.0000 in the log trains on. Of several optimisers
        (`lr/<optimiser>.<group>`), one whose rates and updates are 0 in every row.

    Why it matters:
        The hours are paid for, and nothing is learned in them.

    What to do:
        Compare the scheduler's length with the steps that are run (steps against epochs, accumulation, processes), and
        look for a warm-up from 0 that is never stepped.

    When it is wrong:
        The last step of a cosine, a frozen group beside others that are trained, a first step of a warm-up (also one
        that lasts for many rows, while a gradient scaler finds its scale or gradients are accumulated): none of them is
        named.

    References:
        accelerate #2142: a scheduler that is stepped once a process ends early, and the rest is trained at 0.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("lr/<group>",)
    wants: ClassVar[tuple[str, ...]] = ("loss", "update_ratio/<group>")
    causes: ClassVar[tuple[str, ...]] = (
        *("loss-stuck", "loss-plateau", "slow-convergence", "frozen-weights", "mode-collapse", "component-divergence"),
        "evaluation-unchanged",
    )

    most: float = 0.5  # of the rows: more than half of the run is wasted
    tail: float = 0.1  # of the rows, at the end: worth knowing; schedules end a few steps early in healthy runs
    fewest: int = 10  # rows at zero
    still: float = 0.02  # of the loss: more than that is learned at no rate of 0

    _rows: int = field(default=0, init=False)
    _known: int = field(default=0, init=False)
    _zero: int = field(default=0, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Two counts."""
        zero, known = _zero(chunk)
        self._rows, self._known, self._zero = (
            self._rows + len(chunk),
            self._known + int(known.sum()),
            self._zero + int(zero.sum()),
        )
        return ()

    def _idle(self, rest: Chunk) -> Iterator[Finding]:
        """Of several optimisers those that have no rate at all, and move nothing."""
        if self._rows + len(rest) < self.fewest:
            return
        whole = Chunk("train", rest.rows, rest.start - self._rows, rest.stop)
        idle: dict[str, int] = {}
        for name, groups in _optimizers(rest.channels).items():
            rates, ratios = (
                np.stack([whole[f"{kind}/{group}"] for group in groups]) for kind in ("lr", "update_ratio")
            )
            if np.isfinite(rates).any() and not np.nansum(rates) and np.isfinite(ratios).sum() > 1:
                idle |= {} if np.nansum(ratios) else {name: int(np.isfinite(rates).any(axis=0).sum())}
        if len(idle) < len(_optimizers(rest.channels)):
            for name, rows in idle.items():
                yield self.finding(
                    "warning",
                    f"group:{name}",
                    (int(whole.step[0]), int(whole.step[-1])),
                    f"The learning rate of optimiser {name} is 0 in all of its {rows:,} rows: it moves nothing, while "
                    "another trains.",
                    evidence={"rows": rows},
                    advice=f"Set the learning rate of {name}, or leave the optimiser out.",
                    confidence=0.85,
                )

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Look at the rows again only if many of them are at zero."""
        yield from self._idle(rest)
        zero, known = _zero(rest)
        rows, zeros = self._known + int(known.sum()), self._zero + int(zero.sum())
        if zeros < self.fewest or zeros <= self.tail * rows:
            return
        whole = Chunk("train", rest.rows, rest.start - self._rows, rest.stop)
        zero, known = _zero(whole)
        loss, moved = whole["loss"][zero], _moved(whole)[zero]
        learns = fall(loss) > self.still if np.isfinite(loss).sum() > 5 else not np.isfinite(moved).any()
        if learns or (moved > 0).any():
            return
        share, at = zeros / rows, np.flatnonzero(zero)
        last = bool(zero[np.flatnonzero(known)[-1]])
        sick = share > self.most
        if not sick and not last:
            return
        after = np.flatnonzero(known & ~zero)
        onset = at[at > after[-1]][0] if last and len(after) else at[0]  # a warm-up began at 0 by plan
        yield self.finding(
            "critical" if share == 1 else "warning" if sick else "info",
            "run",
            (int(whole.step[onset]), int(whole.step[at[-1]])),
            f"The learning rate of every group is 0 in {zeros:,} of {rows:,} rows ({share:.0%}): nothing is "
            "learned there.",
            over=not last,
            evidence={"rows": zeros, "share": share},
            advice="Match the scheduler's length to the steps that are run, and step it once an optimizer step.",
            confidence=0.9,
        )


def _optimizers(channels: Iterable[str]) -> dict[str, list[str]]:
    """Groups by their optimiser, where there are several."""
    found: dict[str, list[str]] = {}
    for name in channels:
        head, dot, _ = name.removeprefix("lr/").rpartition(".")
        if name.startswith("lr/") and dot:
            found.setdefault(head, []).append(name.removeprefix("lr/"))
    return found if 1 < len(found) <= MOST else {}


def _zero(chunk: Chunk) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows in which every rate is 0, and rows that tell the rate of a step that was taken. bool [rows], twice"""
    rates = [chunk[name] for name in chunk.channels if name.startswith("lr/")]
    highest = np.fmax.reduce(rates) if rates else np.full(len(chunk), np.nan)
    highest = np.where(chunk.trained(), highest, np.nan)  # a schedule waits with the steps that are skipped
    return highest == 0, np.isfinite(highest)


def _moved(chunk: Chunk) -> Floats:
    """The largest update ratio of a row. float64 [rows]"""
    ratios = [chunk[name] for name in chunk.channels if name.startswith("update_ratio/")]
    found: Floats = np.fmax.reduce(ratios) if ratios else np.full(len(chunk), np.nan)
    return found

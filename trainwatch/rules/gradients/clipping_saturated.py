"""See the rule's docstring: it is the page that `trainwatch rules clipping-saturated` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.copying import copied
from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import Floats, Streak, in_blocks, median, medians
from trainwatch.table import Chunk
from trainwatch.views.games import plays


@dataclass
class ClippingSaturated(Rule):
    """Nearly every step is clipped: the limit on the norm is the real learning rate.

    What it sees:
        Blocks of twenty rows of which 90 % are clipped, at a median norm of three times the limit and more, five in a
        row. That is how many good runs live, so it is told only where the norm is a hundred times the limit, the run
        was not resumed into that, and the loss has come down by less than a tenth since it began, over two hundred rows
        or half of the planned steps; where every block is so from the first row on, two are enough for that half, of a
        log that has few, if the weights hardly move (`update_ratio`). A limit of a thousandth and less, that far
        below the norm in all of the run, is no choice but a slip, and is told whatever the loss does.

    Why it matters:
        All gradients have the same length then. With SGD the rate is what the limit makes of it; a component that is a
        hundred times too large takes the whole of what is left.

    What to do:
        If the loss stands still: look for the component or module that makes the norm, and normalise it; or raise the
        limit to about the median norm and tune the learning rate again.

    When it is wrong:
        Detection transformers are trained with a limit of 0.1, far below their norms, and learn. Adam does not mind a
        constant factor. The trainer's own healthy runs stand at up to eleven times the limit.

    References:
        Carion et al., DETR (2020), trained with `clip_max_norm` 0.1.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("clip|run:max_grad_norm", "grad_norm")
    wants: ClassVar[tuple[str, ...]] = ("loss", "run:max_grad_norm", "update_ratio/<group>")
    causes: ClassVar[tuple[str, ...]] = ("slow-convergence", "lr-too-low", "loss-stuck", "loss-plateau")

    share: float = 0.9  # of the rows of a block
    blocks: int = 5  # in a row: the first hundred steps of a healthy run are often clipped
    near: float = 3.0  # x the limit: up to there clipped steps are how large models begin, and no news
    far: float = 100.0  # x the limit; the trainer's healthy runs reach 11, recipes with a limit of 0.1 more, but learn
    learned: float = 0.1  # of the loss since it began: what learns at a rate that small, hardly learns
    half: float = 0.5  # of the planned steps: who has not learned by then has been given the time
    few: int = 2  # blocks, if all of the log is so: rows far apart tell of as many steps
    usual: float = 3e-5  # norm of the update over that of the weights: Adam takes no notice of a limit
    first_rows: int = 5  # of the loss: the first block of a log of forty rows is half of what there was to learn
    slip: float = 1e-3  # a limit; recipes go down to 0.01, and Adam's epsilon is what such a gradient leaves a weight

    _limit: float = field(default=np.nan, init=False)
    _resumed: bool = field(default=False, init=False)
    _total: int | None = field(default=None, init=False)
    _all: bool = field(default=True, init=False)  # every block so far was clipped that far
    _began: float = field(default=np.nan, init=False)  # the loss of the first rows
    _streak: Streak = field(default_factory=lambda: Streak(5), init=False)
    _short: Streak = field(default_factory=lambda: Streak(2), init=False)

    def start(self, header: Header) -> Findings:
        """The limit."""
        self._limit = header.max_grad_norm or np.nan
        slip = self._limit <= self.slip * (1 + 1e-9)
        self._resumed, self._total = header.resumed_from is not None, header.total_steps
        self._streak, self._short = Streak(1 if slip else self.blocks), Streak(self.few)
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """A share and two medians a block."""
        norm, clip = chunk["grad_norm"], chunk["clip"]
        clipped = np.where(np.isfinite(clip), clip, np.where(np.isfinite(norm), norm > self._limit, np.nan))
        if not np.isfinite(self._limit):
            clipped = clip
        blocks = in_blocks(clipped, self.block)
        known = np.isfinite(blocks).sum(axis=1)
        judged = known > 0
        share = np.nansum(blocks, axis=1) / np.maximum(known, 1)
        norms = medians(in_blocks(norm, self.block))
        saturated = (share >= self.share) & ~(norms <= self.near * self._limit)
        steps = in_blocks(chunk.step.astype(np.float64), self.block)
        columns: dict[str, Floats] = {"step": steps[:, 0], "last": np.nanmax(steps, axis=1), "share": share}
        columns |= {"norm": norms, "loss": medians(in_blocks(chunk["loss"], self.block))}
        if not self._short.bad + self._short.good_since:
            self._began = median(chunk["loss"][: self.first_rows])
        for streak in (self._streak, self._short):
            streak.push(saturated[judged], {name: values[judged] for name, values in columns.items()})
        self._all &= bool((saturated & (norms > self.far * self._limit))[judged].all())
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """As the run stands, with the rows that fill no block yet, on a copy: if the loss falls after all, silence."""
        trial = copied(self)
        if len(rest) >= self.block // 2:
            trial.update(rest)
        if trial._streak.onset is None and trial._all and self._stands(run):
            trial._streak = trial._short
        if trial._streak.onset is not None:
            yield from trial._judge(learns_otherwise=self._resumed or plays(run.train.channels))

    def _stands(self, run: Run) -> bool:
        """Whether updates are recorded, and are smaller than usual beside the weights of every group."""
        ratios = [run.train[name] for name in run.train.channels if name.startswith("update_ratio/")]
        known = [ratio[np.isfinite(ratio)] for ratio in ratios if np.isfinite(ratio).any()]
        return bool(known) and all(median(ratio) <= self.usual for ratio in known)

    def _judge(self, *, learns_otherwise: bool) -> Iterator[Finding]:
        onset, now = self._streak.onset or self._streak.latest, self._streak.latest
        times = now["norm"] / self._limit
        short = self._streak is self._short
        began = np.fmax(onset["loss"], self._began) if short else onset["loss"]
        stands = now["loss"] >= began - self.learned * abs(began)
        lasts = now["last"] - onset["step"] >= self.half * (self._total or float("inf"))
        long = self._streak.bad >= 2 * self.blocks or (lasts and (short or self._streak.bad >= self.blocks))
        slip = self._streak.rows == 1 and self._all
        if not (times > self.far and (slip or (stands and long and not learns_otherwise))):
            return
        cost = "the loss has hardly come down since" if stands else "no such limit is meant"
        yield self.finding(
            "warning",
            "run",
            (int(onset["step"]), int(now["last"])),
            f"Nearly every step is clipped from step {onset['step']:,.0f} on: the norm is {now['norm']:.3g}, at "
            f"{times:,.3g} times the limit of {self._limit:.3g}, and {cost}.",
            over=self._streak.over,
            evidence={"norm": now["norm"], "share": now["share"], "times": times},
            advice=f"Find what makes the norm so large, or raise the limit to {now['norm']:.2g} and tune the rate.",
            confidence=0.7,
        )

"""See the rule's docstring: it is the page that `trainwatch rules gradient-explosion` prints."""

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
from trainwatch.stats import Streak, carried, in_blocks, medians, spreads
from trainwatch.table import Chunk
from trainwatch.views.games import plays
from trainwatch.views.regimes import Regimes

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

ALIKE = 0.2  # of the first norms as high as the highest, within 1 %: a limit makes them so, chance one or two of twenty


@dataclass
class GradientExplosion(Rule):
    """The gradient's norm has grown far above what it was, and stays there.

    What it sees:
        Five rows in a row whose norm is ten times the lowest median of twenty among the hundred rows before them (of
        the first five rows, where there is none yet), and that stays above the lowest of all so far. It is an alarm if
        the loss is out of its noise in the same rows and gave back half of what it had come down, for twenty rows or
        until a value is not finite. A single row is enough at a hundred times, where the next one is not finite. Else
        it is worth knowing, if it lasts. And a norm that was far too large from the first rows on, in a run that does
        not clip: above ten, and so large beside weights and loss that a thousandth of the weights is worth the
        whole loss; as long as a quarter of that is left. A new stage, weight or warm restart begins a new baseline;
        steps that the gradient scaler skips do not count.

    Why it matters:
        Steps of that size undo what was learned; without a limit on the norm the weights themselves soon overflow.

    What to do:
        Lower the learning rate or lengthen the warm-up; set a limit on the norm (`max_grad_norm`, 1.0 is usual); go
        back to a checkpoint from before the first step that is named here.

    When it is wrong:
        Norms of reinforcement learning and of adversarial training wander by powers of ten, and losses near 0 have
        norms near 0 that one hard batch multiplies: without a loss that suffers, or with such a goal, it is an info.

    References:
        Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks" (2013).
    """

    block: ClassVar[int] = 20  # rows
    needs: ClassVar[tuple[str, ...]] = ("grad_norm|grad_norm_at_step",)
    wants: ClassVar[tuple[str, ...]] = ("loss", "weight_norm/<group>")
    causes: ClassVar[tuple[str, ...]] = (
        *("non-finite-gradient", "non-finite-loss", "non-finite-weights", "loss-divergence", "loss-spike"),
        *("clipping-saturated", "amp-scale-collapse", "gradient-spike", "hidden-nan"),
    )

    growth: float = 10.0  # x the baseline, in five rows in a row; ten public runs of language models come to 2.2
    grave: float = 100.0  # x the baseline: with the loss hurt as well, nothing of the direction is left
    window: int = 5  # blocks in which it must have grown: where rewards grow, norms do so too, over thousands of rows
    rows: int = 5  # in a row: heavy tails bring single rows, and two now and then
    lasting: int = 20  # rows: what is over sooner is a spike from which the run recovered
    hurt: float = 4.0  # spreads of the loss above its baseline
    given_back: float = 0.5  # of what the loss had come down: a norm that grows out of a small start costs nothing
    hurt_share: float = 0.1  # of the loss: less than that is no damage, however quiet the loss
    steep: float = 1200.0  # norm x weights / loss, without a unit; of 90 healthy programs none begins above 350
    large: float = 10.0  # norm at the start; a small loss makes anything look steep beside it
    mended: float = 0.25  # of the first loss: who has come so far copes with it

    _regimes: Regimes = field(default_factory=Regimes, init=False)
    _grown: Streak = field(default_factory=lambda: Streak(5), init=False)
    _hurt: Streak = field(default_factory=lambda: Streak(5), init=False)
    _long: Streak = field(default_factory=lambda: Streak(20), init=False)
    _lowest: dict[str, float] = field(default_factory=dict, init=False)
    _recent: Floats = field(default_factory=lambda: np.empty(0), init=False)  # norms of the last blocks
    _first_loss: float = field(default=np.nan, init=False)
    _last_loss: float = field(default=np.nan, init=False)
    _last_step: int = field(default=0, init=False)
    _clips: bool = field(default=False, init=False)
    _steep: dict[str, float] = field(default_factory=dict, init=False)  # how the run began, if it began too steep
    _held: float = field(default=np.nan, init=False)  # whether the last row with a norm was one of those that hurt
    _lost: bool = field(default=False, init=False)  # such a one was followed by a value that is not finite
    _burst: list[dict[str, float]] = field(default_factory=list, init=False)  # the first and last such row, to the last
    _blown: list[dict[str, float]] = field(default_factory=list, init=False)  # those of the burst that ended in NaN

    def start(self, header: Header) -> Findings:
        """The declared stages."""
        self._regimes.start(header)
        self._clips = header.max_grad_norm is not None or header.resumed_from is not None
        self._grown, self._hurt, self._long = Streak(self.rows), Streak(self.rows), Streak(self.lasting)
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """All rows of all blocks at once, each against the blocks before its own."""
        norm, loss = chunk["grad_norm"], chunk["loss"]
        self._clips |= bool((chunk["clip"] > 0).any())
        if not self._lowest:
            self._steep = self._beginning(chunk)
        begins = self._regimes.begins(chunk) & (np.arange(len(norm)) >= (0 if self._lowest else self.rows))
        fresh = in_blocks(begins.astype(np.float64), self.block).max(axis=1, initial=0.0) > 0  # a warm-up is no restart
        base = {name: np.repeat(values, self.block)[: len(norm)] for name, values in self._before(chunk, fresh).items()}
        ratio = norm / base["norm"]
        grown = ratio > self.growth
        slack = np.maximum(self.hurt * base["spread"], self.hurt_share * np.abs(base["loss"]))
        bar = base["loss"] + np.maximum(slack, self.given_back * (self._first_loss - base["loss"]))
        there = np.isfinite(norm)
        columns = {"step": chunk.step.astype(np.float64), "norm": norm, "base": base["norm"], "loss": loss, "bar": bar}
        known = {name: values[there] for name, values in columns.items()}
        self._grown.push((norm > self.growth * base["recent"])[there], known)
        self._long.push(grown[there], known)
        self._hurt.push((grown & (loss > bar))[there], known)
        bad = (chunk.nonfinite("loss") > 0) | ((chunk.nonfinite("grad_norm") > 0) & chunk.trained())
        held = np.where(there & ~bad, grown & (loss > bar), np.nan)
        self._lost |= bool((carried(self._held, held)[bad] == 1).any())
        self._burst_ends(held, bad, columns)
        self._held = float(carried(self._held, np.append(held, np.nan))[-1])
        self._last_loss = float(medians(in_blocks(loss, self.block))[-1])
        self._last_step = int(chunk.step[-1])
        yield from self._verdict(plays(chunk.channels))

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """The rows that fill no block yet, on a copy; and how the run began."""
        trial = copied(self)
        if len(rest) >= self.rows:
            yield from trial.update(rest)
        yield from trial._steeply(plays(run.train.channels))

    def _beginning(self, chunk: Chunk) -> dict[str, float]:
        """Norm, weights and loss of the first rows, where the one is too large for the others."""
        norms = np.fmax(chunk["grad_norm"][: self.block], _unclipped(chunk["grad_norm_at_step"][: self.block]))
        rows = norms > 0
        norm, loss = norms[rows], chunk["loss"][: self.block][rows]
        groups = [chunk[name][: self.block] for name in chunk.channels if name.startswith("weight_norm/")]
        known = [group[np.isfinite(group)][:1] for group in groups]
        weights = float(np.sqrt(np.sum(np.square(np.concatenate([np.empty(0), *known])))))
        if len(norm) < self.rows or not (loss > 0).all():
            return {}
        usual = float(np.sort(loss)[:-1].mean())  # row by row, batches that are solved would be steepest
        steep = float(np.median(norm)) / usual * weights
        found = {"step": float(chunk.step[0]), "norm": float(np.median(norm)), "weights": weights, "steep": steep}
        found["loss"] = float(np.median(loss[: self.rows]))
        return found if found["norm"] > self.large and steep > self.steep else {}

    def _steeply(self, chasing: bool) -> Findings:
        """A run that began with a gradient beyond measure, as it stands."""
        begun = self._steep
        if not begun or self._clips:
            return
        sick = self._last_loss > self.mended * begun["loss"] and not chasing
        yield self.finding(
            "warning" if sick else "info",
            "run",
            (int(begun["step"]), self._last_step),
            f"The gradient norm is {begun['norm']:.3g} from the first steps on, with weights of norm "
            f"{begun['weights']:.3g}, and nothing clips it: {1 / begun['steep']:.1g} of the weights is worth the whole "
            "loss.",
            evidence={"norm": begun["norm"], "weights": begun["weights"], "ratio": begun["steep"]},
            advice="Begin with smaller weights (orthogonal ones in a recurrence), and clip the norm.",
            confidence=0.7,
        )

    def _burst_ends(self, held: Floats, bad: Bools, columns: dict[str, Floats]) -> None:
        """Where rows that hurt lead straight to the first value that is not finite, however few they are."""
        calm = np.maximum.accumulate(np.where(held == 0, np.arange(len(held)), -1))

        def burst(row: int) -> list[dict[str, float]]:
            """First and last of the rows that hurt since the last calm one before a row."""
            since = int(calm[row - 1]) if row else -1
            loud = since + 1 + np.flatnonzero(held[since + 1 : row] == 1)
            here = (
                [{name: float(values[at]) for name, values in columns.items()} for at in loud[[0, -1]]]
                if len(loud)
                else []
            )
            return here if since >= 0 or not self._burst else [self._burst[0], (here or self._burst)[-1]]

        for row in np.flatnonzero(bad)[:1].tolist() if not self._blown else []:
            found = burst(row)
            self._blown = found if found and found[-1]["norm"] > self.grave * found[-1]["base"] else []
        self._burst = burst(len(held))

    def _before(self, chunk: Chunk, fresh: Bools) -> dict[str, Floats]:
        """The lowest that norm, loss and its spread were in a block before each one, in the same regime. [blocks]"""
        norm = chunk["grad_norm"]
        norms = in_blocks(np.where(norm > 0, norm, np.nan), self.block)  # what grows from 0 grows without measure
        losses = in_blocks(chunk["loss"], self.block)
        loss = medians(losses)
        now = {"norm": medians(norms), "loss": loss, "spread": spreads(losses, loss)}
        if not self._lowest:
            head = np.flatnonzero(np.isfinite(norms[0]))[: self.rows]
            first = losses[:1, head] if len(head) else losses[:1]
            middle = medians(first)
            self._first_loss = float(middle[0])
            self._lowest = {"loss": self._first_loss, "spread": float(spreads(first, middle)[0])}
            self._lowest["norm"] = float(np.median(norms[0, head])) if len(head) > 2 else np.nan
            self._recent = np.append(np.full(self.window - 1, np.nan), self._lowest["norm"])
        now = {name: np.where(fresh, np.nan, values) for name, values in now.items()}
        found = {name: self._running(name, values, fresh) for name, values in now.items()}
        recent = np.concatenate([self._recent, now["norm"]])
        self._recent = recent[-self.window :]
        windows = sliding_window_view(recent[:-1], self.window)
        return found | {"recent": np.maximum(np.fmin.reduce(windows, axis=1), found["norm"])}

    def _running(self, name: str, values: Floats, fresh: Bools) -> Floats:
        """Minimum of all blocks before each one, back to where its regime began. float64 [blocks]"""
        found, low = np.empty(len(values)), self._lowest[name]
        cuts = [0, *(np.flatnonzero(fresh)).tolist(), len(values)]
        for start, stop in pairwise(cuts):
            low = np.nan if stop > start and fresh[start] else low
            lows = np.fmin.accumulate(np.concatenate([[low], values[start:stop]]))
            found[start:stop], low = lows[:-1], float(lows[-1])
        self._lowest[name] = low
        return found

    def _verdict(self, chasing: bool) -> Findings:
        onset, hurt, lasts = self._grown.onset, self._hurt, self._long.onset is not None
        sick = hurt.onset is not None and ((lasts and hurt.bad >= self.lasting) or self._lost) and not chasing
        now = hurt.latest if sick else self._grown.latest
        if self._blown and not (sick and onset is not None):
            onset, now, sick = self._blown[0], self._blown[-1], True
        if onset is None or not (sick or lasts):
            return
        ratio = now["norm"] / now["base"]
        grave = sick and (self._lost or ratio > self.grave)
        loss = f", and the loss is {now['loss']:.4g}, out of its noise" if sick else "; the loss does not suffer"
        yield self.finding(
            ("critical" if grave else "warning") if sick else "info",
            "run",
            (int(onset["step"]), int(now["step"])),
            f"The gradient norm is {now['norm']:.3g} at step {now['step']:,.0f}, {ratio:,.0f} times the "
            f"{now['base']:.3g} that it was{loss if not chasing else '; with such a goal that can be healthy'}.",
            over=self._long.over and not self._lost,
            evidence={"norm": now["norm"], "before": now["base"], "ratio": ratio, "rows": self._grown.bad},
            advice="Lower the learning rate, lengthen the warm-up, or clip the norm near what it was before.",
            confidence=0.9 if sick else 0.6,
        )


def _unclipped(norms: Floats) -> Floats:
    """What the optimiser saw in the first rows, unless it is a limit that nobody declared: then many rows are alike."""
    clipped = np.mean(norms > 0.99 * np.fmax.reduce(norms, initial=0.0)) > ALIKE
    return np.full(len(norms), np.nan) if clipped else norms

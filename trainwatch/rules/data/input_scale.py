"""See the rule's docstring: it is the page that `trainwatch rules input-scale` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.copying import copied
from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity
from trainwatch.stats import Streak, in_blocks, median, medians
from trainwatch.table import Chunk
from trainwatch.views.evaluations import held_out
from trainwatch.views.games import plays

Floats = NDArray[np.float64]


@dataclass
class InputScale(Rule):
    """What the model reads is constant, or far from zero mean and unit spread.

    What it sees:
        `data/input_mean`, `data/input_std` and `data/input_absmax`, block by block: inputs without any spread, or next
        to nothing (a spread below 0.003, beside which the biases are all that speaks); inputs a hundred times larger
        than the unit scale that initialisations are made for (where only the largest is recorded, half of it stands for
        them), and single values beyond a million. And a batch whose largest value is a hundred times the largest of all
        before. `watch.inputs(x)` records them; call it on what the first layer reads. Where nobody did, the recorder's
        own looks at that layer (`data/read_std`) are judged for next to nothing, and large ones are an info.

    Why it matters:
        A first layer that is fed 120 where it expects 1 saturates what follows and scales its own gradient by 120: the
        learning rate that suits it suits no other layer. Constant inputs teach nothing but the labels' frequencies.

    What to do:
        Subtract the training set's mean and divide by its standard deviation; mark missing values with a mask, not
        with a large number; look at one decoded sample where the inputs are constant.

    When it is wrong:
        A model may normalise inside (a BatchNorm first, Fourier features). A run whose loss has halved is reported as
        info, unless its first gradients were as large as its inputs, or (beyond a thousand) a tenth of that and a
        hundred times the later ones: then nothing normalises them, and the loss came down from where they had thrown
        it. Of inputs below a ten-thousandth a quarter of the loss may be left: biases alone answer half of many. Larger
        ones are a unit (metres, volts) where the loss has come down by a tenth, and are an info. Inputs beyond ten
        thousand are no matter of taste, and the loss of a game (rewards, adversaries) proves no learning: there it
        stays an alarm. Inputs within a factor of a hundred are an info, too; so are those of which only the largest
        value is known, if the first gradients were no larger and validation did not stand where it was while training,
        four times as dear at first, came down to it: what validation reads is scaled, and training alone was thrown.

    References:
        LeCun et al., "Efficient BackProp" (1998), section 4.3; Umlaut (input not in -1 to 1); SageMaker Debugger,
        NotNormalizedImages.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("data/input_std|data/input_absmax|data/input_mean|data/read_std",)
    wants: ClassVar[tuple[str, ...]] = ("loss", "grad_norm|grad_norm/<module>")
    causes: ClassVar[tuple[str, ...]] = (
        *("gradient-explosion", "gradient-vanishing", "gradient-spike", "clipping-saturated", "overflow-risk"),
        *("loss-divergence", "loss-stuck", "loss-oscillation", "slow-convergence", "non-finite-loss", "loss-plateau"),
        *("overfitting", "generalisation-gap", "dead-module", "lr-too-high", "component-divergence", "mode-collapse"),
        *("loss-scale-imbalance", "gradient-dominance", "loss-spike", "overtraining", "data-break"),
    )

    far: float = 10.0  # mean or spread: worth knowing; standardised data, pixels in 0 to 1 and audio are below 3
    very_far: float = 100.0  # mean or spread: raw pixels (0 to 255) have a mean of 120
    absurd: float = 1e4  # mean or spread: near the end of float16, and all that stands between is one normalisation
    burst: float = 100.0  # x the largest value of all rows before: heavy tails come to ten
    known: int = 10  # rows before, that say what is usual
    outlier: float = 1e6  # a single value: 999,999 and 1e9 stand for "missing", and dwarf whatever is beside them
    tiny: float = 3e-3  # mean and spread: a variance below the epsilon of a normalisation, which brings it back no more
    least: float = 0.01  # every value, then: beside biases of 0.1 it is nothing
    vanished: float = 1e-6  # of the loss is left: it measures the inputs themselves, and has nothing more to tell
    flat: float = 1e-6  # spread over magnitude: below it float32 holds no signal
    blocks: int = 2  # of 20 rows, in a row: a single blank batch is no scale
    first_rows: int = 5  # of the gradient's norm: later ones tell of what the first steps did to the weights
    learnt: float = 0.5  # of the loss is left: whatever the inputs are, the model copes with them
    nothing: float = 1e-4  # mean and spread: no unit makes inputs so small, and
    answered: float = 0.25  # of the loss is left then: biases alone answer the targets' mean
    thrown: float = 0.1  # x the inputs: first gradients; and they were
    shock: float = 1e3  # themselves (what a normalisation lets through comes to tens), and
    settled: float = 100.0  # x the later ones: the inputs, which have not changed, had thrown the loss
    evaluations: int = 4  # the last ones; if they are no lower than so much of where training began,
    hardly: float = 0.9  # the training set is known by heart, and nothing copes; nor does it if
    apart: float = 4.0  # x validation, at its first evaluation, was training (what validation reads is scaled), and
    alike: float = 2.0  # x validation, or half of it, is training now, while validation hardly moved

    _streaks: dict[str, Streak] = field(default_factory=dict, init=False)
    _seen: bool = field(default=False, init=False)
    _game: bool = field(default=False, init=False)  # whose loss proves nothing
    _norm: float = field(default=np.nan, init=False)  # of the first gradients
    _largest: float = field(default=0.0, init=False)  # value in any row so far
    _rows: int = field(default=0, init=False)  # that told of theirs

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """One finding: the first of the kinds that persists."""
        if not self._seen:
            self._norm = median(_gradient(chunk)[: self.first_rows])
        self._seen, self._game = True, self._game or plays(chunk.channels)
        yield from self._judge(chunk, self._streaks, self.blocks)
        yield from self._bursts(chunk)

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """A log of a few rows is one block; and who copes with its inputs, copes with those of validation."""
        far = self._streaks.get("far")
        if far is not None and far.onset is not None and self._by_heart(run, far.onset["loss"]):
            yield self._finding("far", far, by_heart=True)
        if not self._seen and len(rest) >= 5:
            yield from self._judge(rest, {}, 1)
        yield from copied(self)._bursts(rest)

    def _by_heart(self, run: Run, began: float) -> bool:
        """Whether validation is hardly lower than where training began, and than where it began itself."""
        steps, losses = held_out(run)
        if len(losses) <= self.evaluations:
            return False
        now = float(np.median(losses[-self.evaluations :]))
        return bool(now >= self.hardly * max(began, losses[0]) > 0) or self._apart(run, steps[0], losses[0], now)

    def _apart(self, run: Run, step: float, first: float, now: float) -> bool:
        """Whether training alone was thrown: it has come down to where validation was all along."""
        at, loss = run.train.curve("loss")
        then, left = loss[at <= step][-self.first_rows :], median(loss[-self.block :])
        thrown = len(then) > 0 and np.median(then) > self.apart * first
        return bool(thrown and now >= self.hardly * first > 0 and now / self.alike < left < now * self.alike)

    def _bursts(self, chunk: Chunk) -> Iterator[Finding]:
        """Rows that dwarf whatever came before."""
        most = chunk["data/input_absmax"]
        told = np.flatnonzero(most > 0)
        values = most[told]
        before = np.maximum.accumulate(np.concatenate([[self._largest], values]))[:-1]
        usual = self._rows + np.arange(len(told)) >= self.known
        for row in np.flatnonzero(usual & (values > self.burst * before)).tolist():
            step, times = int(chunk.step[told[row]]), values[row] / before[row]
            yield self.finding(
                "warning",
                "run",
                (step, step),
                f"The batch of step {step:,} reaches {values[row]:.3g}, {times:,.3g} times the largest value of all "
                f"batches before it ({before[row]:.3g}).",
                evidence={"absmax": values[row], "before": before[row]},
                advice="Look at that batch: a broken sample, a unit or a scaling that is missing. Clip or filter it; "
                "what averages over batches (a BatchNorm's statistics, Adam's moments) keeps it for long.",
                confidence=0.8,
            )
        self._largest, self._rows = float(max(self._largest, values.max(initial=0.0))), self._rows + len(told)

    def _judge(self, chunk: Chunk, streaks: dict[str, Streak], blocks: int) -> Iterator[Finding]:
        said = any(name.startswith("data/input_") for name in chunk.channels)
        whose = "input" if said else "read"  # of these nobody says what normalises behind them
        mean, std, most = (
            medians(in_blocks(chunk[f"data/{whose}_{name}"], self.block)) for name in ("mean", "std", "absmax")
        )
        std = np.where(std < 0, np.nan, std)  # no spread is negative: that is a mistake of the log
        steps = in_blocks(chunk.step.astype(np.float64), self.block)
        columns = {"mean": mean, "std": std, "absmax": most, "loss": medians(in_blocks(chunk["loss"], self.block))}
        columns |= {"said": np.full(len(mean), float(said))}
        columns |= {"norm": medians(in_blocks(_gradient(chunk), self.block))}
        columns |= {"step": steps[:, 0], "last": np.nanmax(steps, axis=1)}
        size = self._size(columns)
        constant = (std <= self.flat * np.fmax(np.abs(mean), most)) & np.isfinite(std)
        kinds = {
            "constant": constant,
            "tiny": (size < self.tiny) & ~(most > self.least) & np.isfinite(np.fmax(std, most)) & ~constant,
            "far": (size > self.far) & ~constant,
            "outlier": (most > self.outlier) & ~(size > self.very_far),
        }
        if not said:  # zeros and ones are what a model begins with, not what it is given
            kinds = {"tiny": kinds["tiny"] & (std > 0), "far": kinds["far"]}
        for kind, holds in kinds.items():
            streak = streaks.setdefault(kind, Streak(blocks))
            if streak.push(holds, columns) and (kind != "outlier" or streaks["far"].onset is None):
                yield self._finding(kind, streak)

    def _size(self, seen: Mapping[str, Any]) -> Floats:
        """Mean or spread, the larger; half of the largest value where neither is known and that is no outlier."""
        half = np.where(seen["absmax"] > self.outlier, np.nan, np.divide(seen["absmax"], 2.0))
        size = np.fmax(np.abs(seen["mean"]), seen["std"])
        return np.asarray(np.where(np.isnan(size), half, size))

    def _thrown(self, size: float, norm: float) -> bool:
        """Whether the first gradients were those of inputs that nothing normalises, and what they threw came down."""
        thrown = self._norm > max(self.thrown * size, self.shock) and self._norm > self.settled * norm
        return self._norm > size or thrown

    def _finding(self, kind: str, streak: Streak, *, by_heart: bool = False) -> Finding:
        onset, now = streak.onset or streak.latest, streak.latest
        size = float(self._size(now))
        unit = kind == "tiny" and size >= self.nothing  # beside which any gradient is large
        share = self.hardly if unit else self.answered if kind == "tiny" else self.learnt
        learns = 0 < now["loss"] < share * onset["loss"] and (unit or not self._thrown(size, now["norm"]))
        learns &= not by_heart and not (self._game and kind == "far") and not size > self.absurd
        learns &= kind != "tiny" or now["loss"] > self.vanished * onset["loss"]
        bare = np.isnan(now["mean"]) and np.isnan(now["std"])  # one value of many may be far out
        mild = kind == "far" and (size <= self.very_far or (bare and not by_heart and not self._norm > size))
        mild |= kind == "far" and not now["said"]
        severity: Severity = "info" if mild or learns else "warning"
        told = {
            "constant": f"The inputs have no spread: every value is {now['mean']:.4g}",
            "far": f"The inputs have {_spoken(now, '.4g')}, not about 0 and 1",
            "tiny": f"The inputs are next to nothing: {_spoken(now, '.2g')}",
            "outlier": f"The inputs reach {now['absmax']:.3g} beside a spread of {now['std']:.3g}",
        }
        cures = {
            "constant": "Look at one decoded sample: the loader gives the same number everywhere.",
            "far": "Subtract the training set's mean and divide by its standard deviation.",
            "tiny": "Divide by the training set's standard deviation, once.",
            "outlier": "Mark missing values with a mask instead of a large number, or clip them.",
        }
        return self.finding(
            severity,
            "run",
            (int(onset["step"]), int(now["last"])),
            f"{told[kind]}{'; the model copes with it' if learns else ''}.",
            over=streak.over,
            evidence={name: now[name] for name in ("mean", "std", "absmax") if np.isfinite(now[name])},
            advice=cures[kind],
            confidence=0.6 if mild else 0.85,
        )


def _gradient(chunk: Chunk) -> Floats:
    """The norm of the gradient, or that of the largest of several models. float64 [rows]"""
    parts = [chunk[name] for name in chunk.channels if name.startswith("grad_norm/")]
    return chunk["grad_norm"] if "grad_norm" in chunk.channels or not parts else np.asarray(np.fmax.reduce(parts))


def _spoken(seen: Mapping[str, float], form: str) -> str:
    """Mean and spread, as far as they were recorded."""
    words = {"mean": "mean", "std": "spread"}
    known = [f"{word} {seen[name]:{form}}" for name, word in words.items() if np.isfinite(seen[name])]
    return " and ".join(known or [f"a largest value of {seen['absmax']:{form}}"])

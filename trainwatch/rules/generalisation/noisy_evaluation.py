"""See the rule's docstring: it is the page that `trainwatch rules noisy-evaluation` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schedule import MOST
from trainwatch.schema import Finding, Severity
from trainwatch.table import Chunk, TableName
from trainwatch.views.evaluations import losses

COUNTED = re.compile(
    r"metric/(.*[/_.-])?(acc(uracy)?|exact(_match)?|em|top_?\d+|f1|auc|auroc|m?ap_?\d*"
    r"|m?iou|mcc|dice|concordance|c_?index|cer|wer|error_rate|err_top_?\d+)([/_.-].*)?",
    re.IGNORECASE,
)
"""Answers that are right or wrong. Ranks among candidates that are drawn (recall@10) are as random as these; what
grades a drawing (PSNR, an R2, the precision of a generator) is as random as the drawing.
"""


@dataclass
class Repeats:
    """The evaluations of one split's loss: those of one state of the weights, and how far such ones lay apart."""

    weights: float
    low: float
    high: float
    first: float  # of the whole run
    best: float
    twice: int = 0  # states of the weights that were evaluated again
    asked: bool = False  # the state at hand is one of them
    differ: int = 0  # states of the weights whose evaluations differ
    repeated: bool = False  # the state at hand is one of them
    first_step: int = 0
    last_step: int = 0
    apart: float = 0.0  # the widest difference, as a share of the value
    values: tuple[float, float] = (np.nan, np.nan)


@dataclass
class NoisyEvaluation(Rule):
    """Two evaluations of the same weights give different losses.

    What it sees:
        Evaluations of one split that are marked as repeats (`repeat`) of the same weights (`weights_step`, else the
        step): they differ by more than rounding. A warning if they lie 5 % apart, and a fifth of all that the loss has
        gained, for two states of the weights and more; or if in most states what is counted (an accuracy, a rate of
        errors) differs as well: a loss may be random by nature, answers that are right or wrong are not. Else an
        info.

    Why it matters:
        Which checkpoint is best, when to stop and what a change brought is read from these numbers. What lies within
        their noise is chance.

    What to do:
        Call `model.eval()` before evaluating, fix the seed and the order, evaluate the whole set and not a random part.
        Where the loss is random by nature (diffusion, sampling), average over more draws. To be told how far two lie
        apart, evaluate twice now and then, and record the second one as `watch.evaluate(step, split, values,
        weights_step=step, repeat=1)`.

    When it is wrong:
        Sums in another order differ in the last digits: those are left alone.

    References:
        Bouthillier et al., "Accounting for variance in machine learning benchmarks" (2021).
    """

    reads: ClassVar[tuple[TableName, ...]] = ("eval",)
    needs: ClassVar[tuple[str, ...]] = ("eval:repeat", "eval:loss|eval:loss/<component>")
    wants: ClassVar[tuple[str, ...]] = ("eval:weights_step",)
    causes: ClassVar[tuple[str, ...]] = ("overtraining",)

    rounding: float = 1e-3  # of the value: half precision in another order of summation
    apart: float = 0.05  # of the value: more than most changes that are worth a comparison
    gain: float = 0.2  # of all that was gained
    often: int = 3  # states of the weights, and most of them: a model whose answers are counted has them by chance
    states: int = 2  # of the weights: one may be an accident

    _known: dict[tuple[str, str], Repeats] = field(default_factory=dict, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Evaluations are few."""
        for row in range(len(chunk)):
            split = str(chunk.text(row, "split") or "validation")
            of = chunk["weights_step"][row]
            weights = float(of if np.isfinite(of) else chunk.step[row])
            for name in (*losses(chunk), *filter(COUNTED.fullmatch, chunk.channels)):
                value = float(chunk[name][row])
                if np.isfinite(value) and ((split, name) in self._known or len(self._known) < MOST):
                    again = chunk["repeat"][row] > 0
                    self._evaluation((split, name), weights, value, int(chunk.step[row]), again=again)
        return ()

    def _evaluation(self, key: tuple[str, str], weights: float, value: float, step: int, *, again: bool) -> None:
        known = self._known.get(key)
        if known is None:
            self._known[key] = Repeats(weights, value, value, value, value)
            return
        known.best = min(known.best, value)
        if weights != known.weights or not again:
            known.weights, known.low, known.high, known.repeated = weights, value, value, False
            known.asked = False
            return
        known.twice, known.asked = known.twice + (not known.asked), True
        known.low, known.high = min(known.low, value), max(known.high, value)
        apart = (known.high - known.low) / max(abs(known.low), abs(known.high), 1e-300)
        if apart > self.rounding:
            known.differ += not known.repeated
            known.first_step = known.first_step if known.differ > 1 or known.repeated else step
            known.repeated, known.last_step = True, step
            if apart > known.apart:
                known.apart, known.values = apart, (known.low, known.high)

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """One finding a split: the loss that differs most."""
        worst: dict[str, tuple[str, Repeats]] = {}
        for (split, name), known in self._known.items():
            if name.startswith("metric/"):
                continue
            if known.differ and (split not in worst or known.apart > worst[split][1].apart):
                worst[split] = (name, known)
        for split, (name, known) in worst.items():
            low, high = known.values
            wide = known.apart > self.apart and high - low > self.gain * abs(known.first - known.best)
            counted = [other for (of, what), other in self._known.items() if of == split and what.startswith("metric/")]
            chance = self._often(known) and any(map(self._often, counted))
            severity: Severity = "warning" if chance or (wide and known.differ >= self.states) else "info"
            yield self.finding(
                severity,
                f"split:{split}",
                (known.first_step, known.last_step),
                f"Evaluations of the same weights differ: the {split} {name} is {low:.5g} or {high:.5g}, "
                f"{known.apart:.1%} apart{'; so do figures that are counted' if chance else ''}.",
                evidence={"low": low, "high": high, "apart": known.apart, "states": known.differ},
                advice="Evaluate in eval mode, with a fixed seed, on the whole set; average what is random by nature.",
            )

    def _often(self, known: Repeats) -> bool:
        """Whether most of the states that were evaluated twice came out different."""
        return known.differ >= self.often and 2 * known.differ > known.twice

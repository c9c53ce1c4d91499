"""See the rule's docstring: it is the page that `trainwatch rules gradient-vanishing` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import Floats, History, fall, median
from trainwatch.table import Chunk
from trainwatch.views.games import plays

FEW = 64  # parameters


@dataclass
class GradientVanishing(Rule):
    """Next to no gradient arrives, everywhere or in the first modules, and nothing is learned.

    What it sees:
        A norm that is below 1e-7, or below a ten-thousandth of the run's first norms, for the last half of the run; or
        the first module's norm below a thousandth of the last module's all along. In each case only where the loss
        never came down: a model that has learned its task has small gradients too; so has a batch whose loss is 0, and
        its norm does not count. A first module with less than a hundred-thousandth, on whose way the norms fall from
        module to module, is told of in any case, except in games: the loss falls by what the last ones learn.

    Why it matters:
        Saturated activations, a wrong scale at the start or a detached graph stop the training, and the run goes on for
        days.

    What to do:
        Look at the modules' norms in order: the fault lies where they drop. Check the initialisation, saturated sigmoid
        or softmax inputs, missing residual connections, `detach()` and `no_grad()`; in half precision use a gradient
        scaler.

    When it is wrong:
        A norm that is logged as 0.000 beside a falling loss is a rounded log, and is not named. At the optimum of a
        convex problem the norm is rightly 0; without any fall of the loss that is rare.

    References:
        Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010).
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("grad_norm|grad_norm/<module>", "loss")
    wants: ClassVar[tuple[str, ...]] = ("grad_norm/<module>", "run:modules")
    causes: ClassVar[tuple[str, ...]] = (
        *("loss-stuck", "loss-plateau", "slow-convergence", "lr-too-low", "dead-module", "evaluation-unchanged"),
    )

    nothing: float = 1e-7  # of the norm: the smallest that others take for a gradient at all
    sunk: float = 1e-4  # of the first norms: a norm that falls with its loss falls by less
    depth: float = 1e-3  # first module by last; the trainer's healthy runs stand between 0.2 and 0.35
    starved: float = 1e-5  # the same where the loss falls: in 525 healthy logs it stands at 0.05 and above
    most: float = 0.75  # of the rows: single batches swing the last module's norm, and late in the run both creep
    learned: float = 0.02  # of the loss: it has come down, and small gradients are its right
    solved: float = 1e-3  # a loss below it has nothing left to fall
    fewest: int = 10  # rows

    _history: History = field(default_factory=History, init=False)
    _rows: int = field(default=0, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Norms and loss at bounded resolution."""
        self._history.push(self._columns(chunk))
        self._rows += len(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Whether the norm is gone as the run stands."""
        series = self._history.series(self._columns(rest))
        loss = series.get("loss", np.empty(0))
        whole = Chunk("train", rest.rows, rest.start - self._rows, rest.stop)
        known = loss[np.isfinite(loss)]
        if len(whole) < self.fewest or len(known) < 6:
            return
        if np.median(np.abs(known)) <= self.solved or fall(-loss) > 0.5:  # solved; or it rose, which vanishing cannot
            return
        still = fall(loss) < self.learned
        yield from (self._whole(series, whole) if still else []) or self._front(whole, run, still=still)

    def _columns(self, chunk: Chunk) -> dict[str, Floats]:
        return {"norm": self._norm(chunk), "loss": chunk["loss"]}

    def _norm(self, chunk: Chunk) -> Floats:
        """The whole norm; unknown where the row's loss is solved: a hinge whose margins are kept has no gradient."""
        solved = np.abs(chunk["loss"]) <= self.solved if "loss" in chunk.channels else False
        return np.where(solved, np.nan, _norm(chunk))

    def _whole(self, series: dict[str, Floats], whole: Chunk) -> list[Finding]:
        norm = series["norm"][np.isfinite(series["norm"])]
        if len(norm) < self.fewest:
            return []
        first, bar = float(np.median(norm[:3])), self.nothing
        if np.median(norm[:3]) > self.nothing:
            bar = max(bar, self.sunk * first)
        late = norm[len(norm) // 2 :]
        if np.median(late) > bar or np.median(norm[-3:]) > bar:
            return []
        values = self._norm(whole)
        low = np.isfinite(values) & (values <= bar)
        high = np.flatnonzero(np.isfinite(values) & (values > bar))
        since = np.flatnonzero(low)
        since = since if len(high) < 3 else since[since > high[len(high) // 2]]
        if not len(since):
            return []
        now = float(np.median(norm[-3:]))
        return [
            self.finding(
                "critical",
                "run",
                (int(whole.step[since[0]]), int(whole.step[-1])),
                f"The gradient norm is {now:.2g} (at first {first:.2g}) and the loss stands at "
                f"{np.nanmedian(series['loss']):.4g}: nothing is learned.",
                evidence={"norm": now, "first": first, "loss": float(np.nanmedian(series["loss"]))},
                advice="Find the module where the norms drop: saturated activations, a detached graph, a wrong scale.",
                confidence=0.8,
            )
        ]

    def _front(self, whole: Chunk, run: Run, *, still: bool) -> list[Finding]:
        """What arrives at the first module; next to nothing is too little even where the last ones learn."""
        ends = _ends(whole, run)
        if ends is None:
            return []
        (front, back), ratio = ends, whole[f"grad_norm/{ends[0]}"] / whole[f"grad_norm/{ends[1]}"]
        known = np.flatnonzero(np.isfinite(ratio) & (whole[f"grad_norm/{front}"] > 0))
        if not still and (plays(whole.channels) or not _on_the_way(whole, run)):
            return []
        bar = self.depth if still else self.starved
        if len(known) < self.fewest or np.mean(ratio[known] < bar) < self.most:
            return []
        now = float(np.median(ratio[known]))
        beside = "and the loss does not fall" if still else "whatever the last modules learn"
        return [
            self.finding(
                "warning",
                f"module:{front}",
                (int(whole.step[known[0]]), int(whole.step[known[-1]])),
                f"The gradient norm of {front} is {now:.2g} of that of {back}, {beside}: little "
                "of the gradient arrives at the first modules.",
                evidence={"ratio": now},
                advice=f"Check initialisation, activations and residual connections between {front} and {back}.",
                confidence=0.7,
            )
        ]


def _norm(chunk: Chunk) -> Floats:
    """The whole norm; that of all modules where it is not recorded. float64 [rows]"""
    if "grad_norm" in chunk.channels:
        return chunk["grad_norm"]
    parts = [chunk[name] for name in chunk.channels if name.startswith("grad_norm/")][:64]
    return np.sqrt(np.sum(np.square(parts), axis=0)) if parts else np.full(len(chunk), np.nan)


def _on_the_way(chunk: Chunk, run: Run) -> bool:
    """Whether the norms fall from the last module to the first one by one, and that is no handful of numbers: modules
    beside each other, or a temperature, say nothing of what arrives.
    """
    names = _in_order(chunk, run)
    sizes = {module.name: module.parameters for module in run.header.modules}
    norms = [median(values[np.isfinite(values)]) for values in (chunk[f"grad_norm/{name}"] for name in names)]
    return sizes.get(names[0], FEW) >= FEW and all(front <= back for front, back in pairwise(norms))


def _ends(chunk: Chunk, run: Run) -> tuple[str, str] | None:
    """The first and the last module with a norm; None for fewer than three."""
    ordered = _in_order(chunk, run)
    return (ordered[0], ordered[-1]) if len(ordered) > 2 else None


def _in_order(chunk: Chunk, run: Run) -> list[str]:
    """The modules with a norm, in the model's order."""
    recorded = [name.removeprefix("grad_norm/") for name in chunk.channels if name.startswith("grad_norm/")]
    return [module.name for module in run.header.modules if module.name in recorded] or recorded

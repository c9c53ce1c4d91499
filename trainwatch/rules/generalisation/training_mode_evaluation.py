"""See the rule's docstring: it is the page that `trainwatch rules training-mode-evaluation` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk, TableName

KINDS: Final = {
    "dropout": ("dropout", "units are dropped at random"),
    "batch_norm": ("batch norm", "running statistics learn from that data, and each sample depends on its batch"),
}
TRAINING = re.compile(r"train", re.IGNORECASE)
"""A split that is evaluated as it is trained on, to compare."""


@dataclass
class Measured:
    """The evaluations of one split."""

    known: int = 0
    on: int = 0
    first_step: int = 0  # of those in training mode
    last_step: int = 0
    active: bool = False  # the last one was
    kinds: dict[str, int] = field(default_factory=dict)  # modules, at most


@dataclass
class TrainingModeEvaluation(Rule):
    """The model is evaluated in training mode: nobody called `eval()`.

    What it sees:
        While `watch.phase("eval")` goes on the recorder sees in which mode each dropout and batch norm module is that
        data passes (`training_mode/dropout`, `training_mode/batch_norm`). One that was never in eval mode is a warning
        from the first evaluation on, for no number has to be guessed. What was switched on again while the model as a
        whole is in eval mode (Monte Carlo dropout) does not count, nor does a split of training data.

    Why it matters:
        Dropout makes the figure worse than the model is, and another one each time. Batch norm takes the batch's own
        statistics, and its running averages learn from validation data: the model that is saved is changed by it.

    What to do:
        Call `model.eval()` before the evaluation and `model.train()` after it; not only `torch.no_grad()`, which
        switches gradients off and nothing else.

    When it is wrong:
        A model whose training mode is meant: dropout as a generator's noise, batch norm that is adapted to new data.

    References:
        PyTorch's `nn.Module.eval`; Ioffe and Szegedy, "Batch normalization" (2015); Srivastava et al. (2014).
    """

    reads: ClassVar[tuple[TableName, ...]] = ("eval",)
    needs: ClassVar[tuple[str, ...]] = ("eval:training_mode/<kind>",)
    causes: ClassVar[tuple[str, ...]] = ("noisy-evaluation",)

    _splits: dict[str, Measured] = field(default_factory=dict, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Evaluations are few."""
        names = {kind: f"training_mode/{kind}" for kind in KINDS if f"training_mode/{kind}" in chunk.channels}
        for row in range(len(chunk)) if names else ():
            split = str(chunk.text(row, "split") or "validation")
            counts = {kind: float(chunk[name][row]) for kind, name in names.items()}
            if not TRAINING.search(split) and any(map(np.isfinite, counts.values())):
                self._measured(self._splits.setdefault(split, Measured()), counts, int(chunk.step[row]))
        return ()

    def _measured(self, split: Measured, counts: dict[str, float], step: int) -> None:
        on = {kind: int(count) for kind, count in counts.items() if count > 0}
        split.known, split.active = split.known + 1, bool(on)
        if on:
            split.first_step = split.first_step if split.on else step
            split.on, split.last_step = split.on + 1, step
            split.kinds |= {kind: max(count, split.kinds.get(kind, 0)) for kind, count in on.items()}

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """One finding a split."""
        for name, split in self._splits.items():
            if not split.on:
                continue
            parts = [f"{count} {KINDS[kind][0]} module{'s' * (count > 1)}" for kind, count in split.kinds.items()]
            harm = "; ".join(KINDS[kind][1] for kind in split.kinds)
            yield self.finding(
                "warning",
                f"split:{name}",
                (split.first_step, split.last_step),
                f"{' and '.join(parts)} {'is' if sum(split.kinds.values()) == 1 else 'are'} in training mode in "
                f"{split.on} of {split.known} evaluations of {name}: {harm}.",
                over=not split.active,
                evidence={**split.kinds, "evaluations": split.on, "of": split.known},
                advice="Call model.eval() before the evaluation, and model.train() after it.",
            )

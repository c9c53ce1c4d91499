"""See the rule's docstring: it is the page that `trainwatch rules labels-ignored` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk

CHANNEL = "data/labels_ignored"


@dataclass
class LabelsIgnored(Rule):
    """Every label of the batches is ignored: nothing is trained.

    What it sees:
        `watch.batches` looks at the integers that a batch calls its labels. If each of them is -100, which PyTorch's
        losses leave out, the batch teaches nothing; `data/labels_ignored` is the share of such batches in a step. It is
        critical where there was no label in any step, ten at least, and the loss is 0 or not finite in nine of ten; an
        info where that is so in a quarter of the steps, or something else has a loss.

    Why it matters:
        The mean over no label is 0/0: a cross-entropy is NaN, or 0 where somebody guarded against it, and the step is
        lost, with the optimiser's moments in the first case.

    What to do:
        Print one decoded sample with its labels. The commonest reasons: a chat template whose answer's marker does not
        occur in the tokens, so that all of it is taken for a prompt; samples cut off before their answer begins; a
        collator that masks padding by a token that is everywhere.

    When it is wrong:
        Unlabelled samples that another loss learns from are an info; so is a loss with another `ignore_index`, for
        which -100 is a label like any other.

    References:
        torch.nn.CrossEntropyLoss, `ignore_index`; the completion-only collators of fine-tuning libraries warn of
        answers' markers that are not found.
    """

    needs: ClassVar[tuple[str, ...]] = (CHANNEL,)
    causes: ClassVar[tuple[str, ...]] = (
        *("non-finite-loss", "loss-zero", "loss-stuck", "evaluation-unchanged", "loss-plateau", "slow-convergence"),
        *("non-finite-gradient", "non-finite-weights"),
    )

    lost: int = 10  # steps without any label, from the first on: one that was cut off is one of a batch, and not all
    void: float = 0.9  # of them have a loss of 0, or none that is finite: a mean over no label is 0/0
    share: float = 0.25  # of the steps: what they cost is a quarter of the run
    fewest: int = 20  # steps, before a share of them means anything

    _rows: int = field(default=0, init=False)  # that the recorder told of
    _empty: int = field(default=0, init=False)  # of those, all of whose batches had no label
    _void: int = field(default=0, init=False)  # of those, with a loss of 0 or none
    _first: int = field(default=0, init=False)  # step of the first
    _last: int = field(default=0, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Count them."""
        share, loss = chunk[CHANNEL], chunk["loss"]
        empty = share == 1
        if empty.any():
            self._first = self._first if self._empty else int(chunk.step[empty][0])
            self._last = int(chunk.step[empty][-1])
        self._rows += int(np.isfinite(share).sum())
        self._empty += int(empty.sum())
        self._void += int((empty & ((loss == 0) | ~np.isfinite(loss))).sum())
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """All of them, or a share."""
        lost = self._empty == self._rows >= self.lost and self._void >= self.void * self._empty
        if lost or (self._rows >= self.fewest and self._empty >= self.share * self._rows):
            yield self.finding(
                "critical" if lost else "info",
                "run",
                (self._first, self._last),
                f"In {self._empty:,} of {self._rows:,} steps every label is -100, which the loss leaves out"
                + (": nothing is trained." if lost else "."),
                evidence={"steps": self._empty, "of": self._rows},
                advice="Print one decoded sample with its labels: is the answer's marker found, and is it cut off?",
                confidence=0.95,
            )

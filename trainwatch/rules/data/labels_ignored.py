"""See the rule's docstring: it is the page that `trainwatch rules labels-ignored` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

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
        losses leave out, the batch teaches nothing; `data/labels_ignored` is the share of such batches in a step. All
        of the last ten steps: the run is lost. A quarter of the steps: it is a warning.

    Why it matters:
        The mean over no label is 0/0: a cross-entropy is NaN, or 0 where somebody guarded against it, and the step is
        lost, with the optimiser's moments in the first case.

    What to do:
        Print one decoded sample with its labels. The commonest reasons: a chat template whose answer's marker does not
        occur in the tokens, so that all of it is taken for a prompt; samples cut off before their answer begins; a
        collator that masks padding by a token that is everywhere.

    When it is wrong:
        A loss with another `ignore_index`, for which -100 is a label like any other.

    References:
        torch.nn.CrossEntropyLoss, `ignore_index`; the completion-only collators of fine-tuning libraries warn of
        answers' markers that are not found.
    """

    needs: ClassVar[tuple[str, ...]] = (CHANNEL,)
    causes: ClassVar[tuple[str, ...]] = (
        *("non-finite-loss", "loss-zero", "loss-stuck", "evaluation-unchanged", "loss-plateau", "slow-convergence"),
        *("non-finite-gradient", "non-finite-weights"),
    )

    lost: int = 10  # steps in a row without any label: a sample that was cut off is one of a batch, and not all
    share: float = 0.25  # of the steps: what they cost is a quarter of the run
    fewest: int = 20  # steps, before a share of them means anything

    _rows: int = field(default=0, init=False)  # that the recorder told of
    _empty: int = field(default=0, init=False)  # of those, all of whose batches had no label
    _row: int = field(default=0, init=False)  # in a row, up to now
    _first: int = field(default=0, init=False)  # step of the first
    _since: int = field(default=0, init=False)  # step at which the row began
    _last: int = field(default=0, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Count them."""
        for step, share in zip(chunk.step.tolist(), chunk[CHANNEL].tolist(), strict=True):
            if share == share:
                self._rows += 1
                self._count(step, share == 1)
        return ()

    def _count(self, step: int, empty: bool) -> None:
        self._row = self._row + 1 if empty else 0
        if empty:
            self._empty, self._last = self._empty + 1, step
            self._first = self._first if self._empty > 1 else step
            self._since = self._since if self._row > 1 else step

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """The row that goes on, or the share of all."""
        lost = self._row >= self.lost
        if lost or (self._rows >= self.fewest and self._empty >= self.share * self._rows):
            many = f"all of the last {self._row:,}" if lost else f"{self._empty:,} of {self._rows:,}"
            yield self.finding(
                "critical" if lost else "warning",
                "run",
                (self._since if lost else self._first, self._last),
                f"In {many} steps every label is -100, which the loss leaves out: nothing is trained there.",
                evidence={"steps": self._empty, "of": self._rows},
                advice="Print one decoded sample with its labels: is the answer's marker found, and is it cut off?",
                confidence=0.95,
            )

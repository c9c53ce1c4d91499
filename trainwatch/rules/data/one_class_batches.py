"""See the rule's docstring: it is the page that `trainwatch rules one-class-batches` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk

MOST = 1024  # labels that are counted: more kinds of them are no classes


@dataclass
class OneClassBatches(Rule):
    """Each batch has one class, and the next ones another: the samples come in the order of their classes.

    What it sees:
        `watch.batches` tells how many kinds of labels a batch has (`data/label_kinds`), and which where it is one
        (`data/label`). In nine of ten steps it is one, over 20 steps at least, it is not always the same, and it stays
        the same for four steps and more in the mean: what the data are sorted by.

    Why it matters:
        Each stretch of the run unlearns the last one's classes for its own: the loss falls within a class and leaps at
        the next, batch norm's statistics are of one class, and validation stands at chance.

    What to do:
        `DataLoader(shuffle=True)`; of an iterable data set a shuffle buffer that is larger than a class, or files that
        are mixed when they are written.

    When it is wrong:
        Classes that are learned one after the other on purpose. Batches of one domain, one length, one bag each in
        turn, come in no order and are left alone.

    References:
        Bengio, "Practical Recommendations for Gradient-Based Training of Deep Architectures" (2012), section 3.2, on
        the order of the samples.
    """

    needs: ClassVar[tuple[str, ...]] = ("data/label_kinds",)
    causes: ClassVar[tuple[str, ...]] = (
        *("loss-oscillation", "loss-spike", "loss-divergence", "loss-plateau", "slow-convergence", "data-break"),
        *("overfitting", "generalisation-gap", "metric-stuck", "curriculum-shock", "suspicious-validation"),
    )

    fewest: int = 20  # steps
    share: float = 0.9  # of them: where two classes meet a batch has both
    stretch: float = 4.0  # steps with one and the same label, in the mean: what is drawn at random changes sooner
    often: float = 0.05  # of them have another class than most: of rare events most batches have none

    _rows: int = field(default=0, init=False)
    _turns: int = field(default=0, init=False)  # steps whose one label is not that of the step with one label before
    _label: float = field(default=np.nan, init=False)  # of the last one
    _counts: dict[float, int] = field(default_factory=dict, init=False)  # steps with one label only, by label
    _first: int = field(default=0, init=False)
    _last: int = field(default=0, init=False)

    def update(self, chunk: Chunk) -> tuple[Finding, ...]:
        """Count the labels that stand alone."""
        known = np.isfinite(chunk["data/label_kinds"])
        if known.any():
            self._first = self._first if self._rows else int(chunk.step[known][0])
            self._last = int(chunk.step[known][-1])
            self._rows += int(known.sum())
            alone = chunk["data/label"][known & (chunk["data/label_kinds"] == 1)]
            self._turns += int((np.diff(alone, prepend=self._label) != 0).sum())
            self._label = float(alone[-1]) if len(alone) else self._label
            for label, count in zip(*(each.tolist() for each in np.unique(alone, return_counts=True)), strict=True):
                if label in self._counts or len(self._counts) < MOST:
                    self._counts[label] = self._counts.get(label, 0) + count
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Whether nearly all steps have one class, and not all the same."""
        alone = sum(self._counts.values())
        others = alone - max(self._counts.values(), default=0)
        sorted_by = alone >= self.stretch * self._turns and others >= self.often * self._rows
        if self._rows >= self.fewest and alone >= self.share * self._rows and sorted_by:
            yield self.finding(
                "warning",
                "run",
                (self._first, self._last),
                f"In {alone:,} of {self._rows:,} steps all samples have the same label, of {len(self._counts):,} "
                "labels: the data come in the order of their classes.",
                evidence={"steps": alone, "of": self._rows, "labels": len(self._counts)},
                advice="Shuffle: DataLoader(shuffle=True), or files that are mixed when they are written.",
                confidence=0.9,
            )

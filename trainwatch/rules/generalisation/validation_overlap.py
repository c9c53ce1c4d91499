"""See the rule's docstring: it is the page that `trainwatch rules validation-overlap` prints."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity
from trainwatch.table import Chunk, TableName

TRAINING = re.compile(r"train", re.IGNORECASE)
"""A split that is training data, and says so."""


@dataclass
class Counts:
    """What the recorder knows of one split, at its last evaluation."""

    first_step: int
    step: int = 0
    samples: int = 0  # that it has once
    copies: int = 0
    looked: int = 0  # samples that were trained on since
    hits: int = 0  # of those
    found: int = 0  # of the split's samples
    beyond: bool = False  # more of these than what training repeats by nature explains, at some evaluation


@dataclass
class ValidationOverlap(Rule):
    """Samples that the model is evaluated on are trained on as well.

    What it sees:
        Where both loaders go through `watch.batches`, the validation one within `watch.phase("eval")`, the recorder
        keeps a hash of up to 4,096 samples of each split, and looks up eight samples of each later training batch
        (`overlap/hits`). At least 20 of the split's samples, and a twentieth of those that are known,
        is a warning; less is an info. Where samples are equal by nature (short texts, few features) the split has
        copies of its own: hits must be more frequent than these. Of a split too small to have any it is enough that
        more of its samples were found than training's own repeats explain (`overlap/distinct`): of what comes by
        chance, at most twice their share was seen before.

    Why it matters:
        What was learnt by heart looks like what was understood. The figure that chooses the checkpoint, and that is
        published, measures memory.

    What to do:
        Split before anything else is done, by what belongs together (patient, speaker, document), and drop duplicates
        first. Look at what the two loaders are given: often it is the same set, or a split by another seed.

    When it is wrong:
        A loop that is tried on a single batch on purpose; inputs of which there are only so many (all strings of ten
        bits); a validation set whose duplicates were dropped while training kept them.

    References:
        Lones, "How to avoid machine learning pitfalls" (2021), on leakage; Kapoor and Narayanan (2023).
    """

    reads: ClassVar[tuple[TableName, ...]] = ("eval",)
    needs: ClassVar[tuple[str, ...]] = ("eval:overlap/<what>",)
    causes: ClassVar[tuple[str, ...]] = ("suspicious-validation",)

    few: int = 8  # samples of the split: fewer are duplicates that slipped through
    many: int = 20  # samples of the split, for an alarm
    nearly: float = (
        0.9  # of a split: where one part of the data repeats itself more than another, much of it is not found
    )
    share: float = 0.05  # of the split's samples: it moves the figure by more than chance does
    pairs: float = 5.0  # of equal samples that a split may have by nature though none is seen in it (Poisson, 99 %)

    _splits: dict[str, Counts] = field(default_factory=dict, init=False)

    def update(self, chunk: Chunk) -> Findings:
        """Evaluations are few; counts are of all that was seen so far, and begin anew with a process."""
        if "overlap/hits" not in chunk.channels:
            return ()
        for row in range(len(chunk)):
            split = str(chunk.text(row, "split") or "validation")
            found = float(chunk["overlap/found"][row])
            if np.isfinite(found) and not TRAINING.search(split):
                known = self._splits.setdefault(split, Counts(int(chunk.step[row])))
                if found >= known.found:
                    known.step, known.found = int(chunk.step[row]), int(found)
                    for name in ("samples", "copies", "looked", "hits"):
                        setattr(known, name, int(chunk[f"overlap/{name}"][row]))
                    known.beyond |= self._beyond(known, chunk["overlap/drawn"][row], chunk["overlap/distinct"][row])
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """One finding a split."""
        for name, split in self._splits.items():
            by_nature = split.hits <= self._by_nature(split) * split.looked and not split.beyond
            if split.found < self.few or by_nature:
                continue
            share = split.found / split.samples
            severity: Severity = "warning" if split.found >= self.many and share >= self.share else "info"
            yield self.finding(
                severity,
                f"split:{name}",
                (split.first_step, split.step),
                f"{split.found:,} of {split.samples:,} samples of {name} were trained on ({share:.0%}, so far): "
                f"{split.hits:,} of {split.looked:,} training samples that were looked at are among them.",
                evidence={"found": split.found, "samples": split.samples, "hits": split.hits, "looked": split.looked},
                advice="Split before anything else; see whether both loaders are given the same set.",
            )

    def _by_nature(self, split: Counts) -> float:
        """How often, at most, a sample that is drawn is equal to one of these, as these are to each other."""
        return 2 * self._at_most(split.copies / 2) / max(split.samples + split.copies, 1)

    def _beyond(self, split: Counts, drawn: float, distinct: float) -> bool:
        """Whether more of the split was found than would be, were it drawn as the training samples are.

        What is new becomes rarer with each draw, so that the last one was seen before with at most twice the chance of
        all of them together. An epoch's end makes repeats as well: then it proves less.
        """
        if split.copies or not (drawn > 0 and distinct > 0):
            return False
        seen = min(1.0, 2 * self._at_most(max(drawn - distinct, 0.0)) / drawn)
        more = split.found > split.samples * seen + 3 * math.sqrt(split.samples * seen * (1 - seen))
        return more and split.found >= self.nearly * split.samples

    def _at_most(self, count: float) -> float:
        """What a count may be in the mean (Poisson, 99 %)."""
        return count + 3 * math.sqrt(count) + self.pairs

"""See the rule's docstring: it is the page that `trainwatch rules invalid-outputs` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.schema import Finding
from trainwatch.table import Chunk, TableName
from trainwatch.views.outputs import Decline, Growth


@dataclass
class InvalidOutputs(Rule):
    """What the model generates is not even well formed.

    What it sees:
        Less than 95 % of the sampled outputs are valid. A warning where they had been (three samples in a row) and have
        fallen by a tenth more, for a tenth of the planned steps. Outputs that were not valid yet in half of the run are
        an info: a young model's are not. They are a warning if the loss has halved since the first sample, and still
        most of them are not, and no more than at first.

    Why it matters:
        An output that does not end, or does not parse, is lost whatever the loss says. The loss sees one token at a
        time, with the truth before it, and does not notice.

    What to do:
        Look at the samples: do they lack their end, or break the grammar? Train on sequences that end within the
        window, count the end token in the loss, or constrain the decoder.

    When it is wrong:
        What is valid is for the trainer to say. Longer targets of a new stage cost some validity for a while.

    References:
        A valid output is what the trainer records as `quality/validity`. trainer.tasks.peptide.evaluation.quality
        counts answers that end and are not empty.
    """

    reads: ClassVar[tuple[TableName, ...]] = ("train", "sample")
    needs: ClassVar[tuple[str, ...]] = ("sample:quality/<name>",)
    wants: ClassVar[tuple[str, ...]] = ("loss", "run:total_steps")

    valid: float = 0.95  # of the outputs
    fallen: float = 0.1  # below that: three standard deviations of a sample of fifty
    lasting: float = 0.1  # of the planned steps
    mostly: float = 0.5  # of the outputs: more of them is nearly there
    half: float = 0.5  # of the planned steps, for outputs that never were valid

    _total: int | None = field(default=None, init=False)
    _decline: Decline = field(default_factory=Decline, init=False)
    _growth: Growth = field(default_factory=Growth, init=False)

    def start(self, header: Header) -> Findings:
        """How long the run is meant to be."""
        self._total = header.total_steps
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Sample by sample: they are few."""
        if chunk.table == "train":
            self._growth.push(chunk)
            return
        grown = self._growth.sampled() if len(chunk) else False
        validity = chunk["quality/validity"]
        for row in np.flatnonzero(np.isfinite(validity)):
            yield from self._sample(int(chunk.step[row]), float(validity[row]), grown)

    def _sample(self, step: int, validity: float, grown: bool) -> Findings:
        decline = self._decline
        bad = validity < self.valid - (self.fallen if decline.was_good else 0.0)
        over = decline.push(step, validity >= self.valid, bad, validity)
        if over is not None:
            yield replace(over, state="over")
        if bad and decline.lasts(self._total, self.lasting if decline.was_good else self.half):
            decline.told = self._finding(validity, grown)
            yield decline.told

    def _finding(self, validity: float, grown: bool) -> Finding:
        decline = self._decline
        stuck = not decline.was_good and grown and decline.stands and validity < self.mostly
        before = f"before, at least {self.valid:.0%} were" if decline.was_good else f"they never held {self.valid:.0%}"
        before += ", though the loss is half of what it was" if stuck else ""
        return self.finding(
            "warning" if decline.was_good or stuck else "info",
            "run",
            (decline.first, decline.last),
            f"Only {validity:.0%} of the sampled outputs are valid, in {decline.rows} samplings since step "
            f"{decline.first:,}; {before}.",
            evidence={"validity": validity, "samples": decline.rows},
            advice="Read the samples: do they lack their end, or break the grammar? Count the end token in the loss.",
            confidence=0.9 if decline.was_good else 0.6,
        )

"""See the rule's docstring: it is the page that `trainwatch rules invalid-outputs` prints."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from trainwatch.bases.outputs import OutputsRule
from trainwatch.rule import Findings
from trainwatch.schema import Finding
from trainwatch.table import Chunk
from trainwatch.views.outputs import THROUGH


@dataclass
class InvalidOutputs(OutputsRule):
    """What the model generates is not even well formed.

    What it sees:
        Less than 95 % of the sampled outputs are valid. A warning where they had been (three samples in a row) and have
        fallen by a quarter more, for a tenth of the planned steps. Outputs that were not valid yet in half of the run
        are an info: a young model's are not. They are a warning if less than 40 % of the first loss are left (that of a
        game does not tell), and still most of them are not, and hardly more than at first (while the run goes on, no
        more than at first); or if a quarter of the loss is gone, the planned steps are nearly through, and not a single
        one ever was.

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

    valid: float = 0.95  # of the outputs
    fallen: float = 0.25  # below that: of 24 outputs, the same prompts each time, four may be lost in health, not seven
    lasting: float = 0.1  # of the planned steps, for outputs that had been valid: three samples at least, of thirty
    half: float = 0.5  # of the planned steps, for outputs that never were: a young model's are not
    mostly: float = 0.5  # of the outputs: more of them is nearly there
    learned: float = 0.75  # of the first loss is left at most: a model that learns something gets something right

    _best: float = field(default=0.0, init=False)
    _since: int | None = field(default=None, init=False)  # step since which most are not valid

    def sampled(self, chunk: Chunk, row: int) -> Findings:
        """Only samples that tell it."""
        step, validity = int(chunk.step[row]), float(chunk["quality/validity"][row])
        if not np.isfinite(validity):
            return ()
        self._best = max(self._best, validity)
        if validity >= self.mostly or self._since is None:
            self._since = None if validity >= self.mostly else step
        bad = validity < self.valid - (self.fallen if self._decline.was_good else 0.0)
        return self.follow(
            step, lambda: self._finding(step, validity), good=validity >= self.valid, bad=bad, merit=validity
        )

    def _finding(self, step: int, validity: float) -> Finding:
        decline = self._decline
        stuck = self.grown and validity < self.mostly and self.stands(step, self.valid)
        never = not self._best and self._left < self.learned and step >= THROUGH * (self._total or np.inf)
        stuck = (stuck or never) and not decline.was_good
        before = f"before, at least {self.valid:.0%} were" if decline.was_good else f"they never held {self.valid:.0%}"
        before += f", though {self._left:.0%} of the first loss are left" if stuck else ""
        return self.finding(
            "warning" if decline.was_good or stuck else "info",
            "run",
            (self._since if stuck and self._since is not None else decline.first, decline.last),
            f"Only {validity:.0%} of the sampled outputs are valid, in {decline.rows} samplings since step "
            f"{decline.first:,}; {before}.",
            evidence={"validity": validity, "samples": decline.rows},
            advice="Read the samples: do they lack their end, or break the grammar? Count the end token in the loss.",
            confidence=0.9 if decline.was_good else 0.6,
        )

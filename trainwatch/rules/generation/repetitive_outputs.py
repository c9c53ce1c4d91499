"""See the rule's docstring: it is the page that `trainwatch rules repetitive-outputs` prints."""

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
class RepetitiveOutputs(Rule):
    """The model repeats itself: GGGG..., AAAA...

    What it sees:
        The longest stretch of one token is more than half of an output's length. A warning where it had been less than
        three tenths (three samples in a row), for a tenth of the planned steps. Outputs that never were better in half
        of the run are an info: a young model says its most common token. They are a warning if the loss has halved
        since the first sample, and they repeat themselves as much as at first.

    Why it matters:
        Repetition feeds itself: each repeated token makes the next one likelier. The loss, which has the truth before
        every token, does not see it.

    What to do:
        Look whether a loss rewards it (a mass that any residue can fill up), whether the decoder is greedy, and whether
        the input reaches the decoder at all.

    When it is wrong:
        Data that consist of long stretches (gaps, padding that counts as output, low-complexity sequences).

    References:
        Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020).
    """

    reads: ClassVar[tuple[TableName, ...]] = ("train", "sample")
    needs: ClassVar[tuple[str, ...]] = ("sample:quality/<name>",)
    wants: ClassVar[tuple[str, ...]] = ("loss", "run:total_steps")
    causes: ClassVar[tuple[str, ...]] = ("length-collapse", "invalid-outputs")

    varied: float = 0.3  # of the length in one stretch: three of ten, as peptides have now and then
    repeated: float = 0.5  # of the length in one stretch
    shortest: float = 4.0  # tokens: in a shorter output a stretch of two is half of it
    lasting: float = 0.1  # of the planned steps
    half: float = 0.5  # of the planned steps, for outputs that never were better

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
        run, length, entropy = (chunk[f"quality/{name}"] for name in ("longest_run", "length_mean", "entropy"))
        for row in np.flatnonzero(np.isfinite(run) & (length >= self.shortest)):
            yield from self._sample(int(chunk.step[row]), float(run[row] / length[row]), float(entropy[row]), grown)

    def _sample(self, step: int, part: float, entropy: float, grown: bool) -> Findings:
        decline = self._decline
        bad = part > self.repeated
        over = decline.push(step, part < self.varied, bad, -part)
        if over is not None:
            yield replace(over, state="over")
        if bad and decline.lasts(self._total, self.lasting if decline.was_good else self.half):
            decline.told = self._finding(part, entropy, grown)
            yield decline.told

    def _finding(self, part: float, entropy: float, grown: bool) -> Finding:
        decline = self._decline
        stuck = not decline.was_good and grown and decline.stands
        before = "it had been" if decline.was_good else "it never stayed"
        before += f" below {self.varied:.0%}"
        before += ", though the loss is half of what it was" if stuck else ""
        known = np.isfinite(entropy)
        return self.finding(
            "warning" if decline.was_good or stuck else "info",
            "run",
            (decline.first, decline.last),
            f"One token in a row fills {part:.0%} of an average output, in {decline.rows} samplings since step "
            f"{decline.first:,}; {before}.",
            evidence={"repeated": part, "samples": decline.rows} | ({"entropy": entropy} if known else {}),
            advice="See whether a loss rewards filling up, and whether the input reaches the decoder at all.",
            confidence=0.9 if decline.was_good else 0.6,
        )

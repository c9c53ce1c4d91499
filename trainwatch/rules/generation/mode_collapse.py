"""See the rule's docstring: it is the page that `trainwatch rules mode-collapse` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.schedule import MOST
from trainwatch.schema import Finding
from trainwatch.table import Chunk, TableName
from trainwatch.views.evaluations import TRAINING
from trainwatch.views.outputs import Decline

GENERATOR = re.compile(r"g|gen|generator|netg|g_net|loss_?g|g_?loss")
CRITIC = re.compile(r"d|dis|disc|discriminator|critic|adversary|netd|d_net|loss_?d|d_?loss")
"""Names of two networks that play against each other."""


@dataclass
class ModeCollapse(Rule):
    """The model gives the same few answers to everything.

    What it sees:
        Of the sampled outputs less than half are unique, for a fifth of the planned steps and three samples at least,
        after they had been diverse (70 %). Less than a tenth for half of the run is critical. Outputs that never were
        diverse are an info: there may be few right answers. Not so where a generator plays against a critic: what is
        drawn from noise must differ; nor where the validation loss has risen meanwhile, and been a tenth above its best
        in three evaluations: whoever finds the few right answers does not get worse.

    Why it matters:
        The model has learned what is common to all targets, and nothing of the input. The loss is on the plateau of
        exactly that, and often goes on falling a little.

    What to do:
        See what pushed it there: a loss that rewards an average (a mass, a spectrum) before the sequence is learned, a
        learning rate too high, a reward without a penalty for likeness; then go back to the checkpoint before. Where
        outputs never were diverse, see whether the input reaches the decoder at all; of a GAN, whether the noise
        reaches the generator.

    When it is wrong:
        Tasks with few right answers, and one prompt asked again and again without sampling, have few unique outputs.

    References:
        Goodfellow et al. (2014) on GANs; trainer.tasks.peptide.evaluation.quality counts unique answers.
    """

    reads: ClassVar[tuple[TableName, ...]] = ("sample", "eval")
    needs: ClassVar[tuple[str, ...]] = ("sample:quality/<name>",)
    wants: ClassVar[tuple[str, ...]] = ("run:total_steps", "run:components|run:modules", "eval:loss")
    causes: ClassVar[tuple[str, ...]] = ("repetitive-outputs", "invalid-outputs", "overfitting", "generalisation-gap")

    diverse: float = 0.7  # of the outputs unique: what a working model reaches in our trainings
    collapsed: float = 0.5  # of the outputs unique
    lost: float = 0.1  # of the outputs unique: one answer, or a handful
    lasting: float = 0.2  # of the planned steps: in the first tenth every model passes through its most common answer
    grave: float = 0.5  # of the planned steps
    worse: float = 0.1  # of the best validation loss, above it; and
    evaluations: int = 3  # in a row, for it to have risen

    _total: int | None = field(default=None, init=False)
    _decline: Decline = field(default_factory=Decline, init=False)
    _plays: bool = field(default=False, init=False)  # against a critic
    _best: float = field(default=0.0, init=False)
    _validated: dict[str, tuple[float, int]] = field(default_factory=dict, init=False)  # best loss, how often above it

    def start(self, header: Header) -> Findings:
        """How long the run is meant to be."""
        self._total = header.total_steps
        named = (module.name for module in header.modules)
        names = {name.split(".")[0].lower() for name in (*header.components, *named)}
        self._plays = any(GENERATOR.fullmatch(name) for name in names) and any(CRITIC.fullmatch(name) for name in names)
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Sample by sample, and evaluation by evaluation: they are few."""
        if chunk.table == "eval":
            self._evaluated(chunk)
            return
        diversity = chunk["quality/diversity"]
        said = ~(chunk["quality/length_mean"] < 1.0)  # empty outputs are alike, and length-collapse says so
        for row in np.flatnonzero(np.isfinite(diversity) & said):
            yield from self._sample(int(chunk.step[row]), float(diversity[row]))

    def _evaluated(self, chunk: Chunk) -> None:
        """Since how many evaluations the loss of each split is above its best."""
        for row, loss in enumerate(chunk["loss"].tolist()):
            split = str(chunk.text(row, "split") or "validation")
            if (
                np.isfinite(loss)
                and split not in TRAINING
                and (split in self._validated or len(self._validated) < MOST)
            ):
                best, above = self._validated.get(split, (loss, 0))
                above = above + 1 if loss > best + self.worse * abs(best) else 0
                self._validated[split] = min(best, loss), above

    @property
    def _risen(self) -> bool:
        return any(above >= self.evaluations for _, above in self._validated.values())

    def _sample(self, step: int, diversity: float) -> Findings:
        decline = self._decline
        over = decline.push(step, diversity >= self.diverse, diversity < self.collapsed)
        self._best = max(self._best, diversity)
        if over is not None:
            yield replace(over, state="over")
        if diversity < self.collapsed and decline.lasts(self._total, self.lasting):
            decline.told = self._finding(diversity)
            yield decline.told

    def _finding(self, diversity: float) -> Finding:
        decline = self._decline
        fell = self._best >= self.diverse
        sure, sick = fell or self._plays, fell or self._plays or self._risen
        grave = sure and diversity < self.lost and self._total and decline.lasts(self._total, self.grave)
        before = f"; they had been {self._best:.0%}" if fell else f"; they never were more than {self._best:.0%}"
        return self.finding(
            ("critical" if grave else "warning") if sick else "info",
            "run",
            (decline.first, decline.last),
            f"Only {diversity:.0%} of the sampled outputs are unique, in {decline.rows} samplings since step "
            f"{decline.first:,}{before}.",
            evidence={"diversity": diversity, "best": self._best, "samples": decline.rows},
            advice=self._advice(fell),
            confidence=0.9 if sure else 0.7 if sick else 0.6,
        )

    def _advice(self, fell: bool) -> str:
        if fell:
            return "Go back to the checkpoint before, and look for the loss that rewards one answer for everything."
        if self._plays:
            return "See whether the noise reaches the generator, and whether the critic has outrun it."
        return "See whether the input reaches the decoder, and whether a loss rewards one answer for everything."

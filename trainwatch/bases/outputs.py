"""Rules that look at what the model generated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.schema import Finding
from trainwatch.table import Chunk, TableName
from trainwatch.views.outputs import GAIN, GROWN, SLOW, THROUGH, Decline, Growth


@dataclass
class OutputsRule(Rule):
    """A rule about a figure of the sampled outputs that was good and is not, or never was though the model learned."""

    reads: ClassVar[tuple[TableName, ...]] = ("train", "sample")
    needs: ClassVar[tuple[str, ...]] = ("sample:quality/<name>",)
    wants: ClassVar[tuple[str, ...]] = ("loss", "run:total_steps")

    lasting: float = 0.1  # of the planned steps, for outputs that had been good
    half: float = 0.5  # of the planned steps, for outputs that never were

    _total: int | None = field(default=None, init=False)
    _decline: Decline = field(default_factory=Decline, init=False)
    _growth: Growth = field(default_factory=Growth, init=False)
    _left: float = field(default=np.nan, init=False)  # of the first loss, before the last sample

    def start(self, header: Header) -> Findings:
        """How long the run is meant to be."""
        self._total = header.total_steps
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """Sample by sample: they are few."""
        if chunk.table == "train":
            self._growth.push(chunk)
        elif len(chunk):
            self._left = self._growth.sampled()
            for row in range(len(chunk)):
                yield from self.sampled(chunk, row)

    def sampled(self, chunk: Chunk, row: int) -> Findings:
        """What one sample has to say."""
        raise NotImplementedError

    @property
    def grown(self) -> bool:
        """Whether the model has learned so much that it is not young any more."""
        return self._left < GROWN

    def stands(self, step: int, good: float) -> bool:
        """Whether the outputs get no better; while the run goes on, any gain is one to wait for."""
        return self._decline.stands(good, GAIN if step >= THROUGH * (self._total or 0) else SLOW)

    def follow(self, step: int, say: Callable[[], Finding], *, good: bool, bad: bool, merit: float) -> Findings:
        """Add a sample to the decline; ``say`` tells of it if it lasts."""
        over = self._decline.push(step, good, bad, merit)
        if over is not None:
            yield replace(over, state="over")
        if bad and self._decline.lasts(self._total, self.lasting if self._decline.was_good else self.half):
            self._decline.told = say()
            yield self._decline.told

"""See the rule's docstring: it is the page that `trainwatch rules post-clip-norm` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk


@dataclass
class PostClipNorm(Rule):
    """The gradient norm was logged after clipping: it cannot exceed the limit, and proves nothing.

    What it sees:
        Norms that pile up at the limit itself: at least five within a thousandth of it, five times as many as in the
        band just below, and not one above it.

    Why it matters:
        Explosions, spikes and saturated clipping are invisible in such a log: a norm of a million is written as 1.0.

    What to do:
        Log what `clip_grad_norm_` returns (the norm before clipping), or call `watch.gradients(max_norm=...)`, which
        records that and clips.

    When it is wrong:
        A norm that merely stays below its limit makes no pile, and is not named.

    References:
        torch.nn.utils.clip_grad_norm_: "Returns: total norm of the parameter gradients".
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("grad_norm", "run:max_grad_norm")

    at: float = 1e-3  # of the limit: clipping lands within 1e-6, logs round to four digits
    below: float = 0.02  # of the limit: the band that shows how many norms lie there by chance
    fewest: int = 5  # norms at the limit
    pile: float = 5.0  # x as many as in the band below, which is twenty times as wide

    _limit: float = field(default=0.0, init=False)
    _at: int = field(default=0, init=False)
    _below: int = field(default=0, init=False)
    _above: int = field(default=0, init=False)
    _rows: int = field(default=0, init=False)

    def start(self, header: Header) -> Findings:
        """The limit."""
        self._limit = header.max_grad_norm or 0.0
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """Three counts."""
        self._at, self._below, self._above = self._counts(chunk)
        self._rows += len(chunk)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """The first norm above the limit takes it back."""
        at, below, above = self._counts(rest)
        if above or at < self.fewest or at < self.pile * below:
            return
        whole = Chunk("train", rest.rows, rest.start - self._rows, rest.stop)
        known = whole.step[np.isfinite(whole["grad_norm"])]
        yield self.finding(
            "warning",
            "run",
            (int(known[0]), int(known[-1])),
            f"{at:,} of {len(known):,} gradient norms are exactly the limit of {self._limit:.3g} and none is above it: "
            "they were taken after clipping.",
            evidence={"at_limit": at, "just_below": below, "limit": self._limit},
            advice="Log the norm that clip_grad_norm_ returns, or let watch.gradients(max_norm=...) clip.",
            confidence=0.95,
        )

    def _counts(self, chunk: Chunk) -> tuple[int, int, int]:
        """So far: norms at the limit, in the band below it, above it."""
        if self._limit <= 0:
            return (0, 0, 0)
        share = chunk["grad_norm"] / self._limit
        above = int((share > 1 + self.at).sum())
        high = share[share > 1 - self.below]
        at = int((np.abs(high - 1) <= self.at).sum())
        return (self._at + at, self._below + len(high) - at - above, self._above + above)

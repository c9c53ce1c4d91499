"""Rules that look at the curve of a run's loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.table import Chunk
from trainwatch.views.curve import Curve


@dataclass
class CurveRule(Rule):
    """A rule about the curve of the total loss. Rows are only gathered: what it looks for shows in the whole curve."""

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("loss",)

    _curve: Curve = field(default_factory=Curve, init=False)
    _resumed: bool = field(default=False, init=False)  # what was learned before is not known here

    def start(self, header: Header) -> Findings:
        """Stages that are declared."""
        self._resumed = header.resumed_from is not None
        self._curve.start(header)
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """More of the curve."""
        self._curve.push(chunk)
        return ()

"""See the rule's docstring: it is the page that `trainwatch rules off-component` prints."""

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
from trainwatch.views.components import MOST


@dataclass
class OffComponent(Rule):
    """A declared loss component had the weight 0 all along.

    What it sees:
        A component that the header declares, or that is recorded, never had a weight, in a run that has ended or is
        half through, and no stage of its curriculum gives it one.

    Why it matters:
        Nothing is wrong. But whoever reads the run's name or its list of losses may think that it was trained.

    What to do:
        Take it out of the list of losses, or give it the weight that it was meant to have.

    When it is wrong:
        A component that is only watched is declared on purpose.

    References:
        `watch.losses` records a component of weight 0 and leaves it out of the sum.
    """

    block: ClassVar[int] = 20  # rows; nothing here is in a hurry
    needs: ClassVar[tuple[str, ...]] = ("weight/<component>",)
    wants: ClassVar[tuple[str, ...]] = ("run:components", "run:curriculum")

    rows: int = 20  # of a run that has ended: fewer are a trial
    through: float = 0.5  # of the planned steps, for a run that goes on

    _header: Header = field(default_factory=Header, init=False)
    _on: set[str] = field(default_factory=set, init=False)
    _rows: int = field(default=0, init=False)

    def start(self, header: Header) -> Findings:
        """What is declared, and what the stages give a weight to."""
        self._header = header
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """A component that had a weight once is never looked at again."""
        self._rows += len(chunk)
        self._on |= _on(chunk, self._on)
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """One info for each."""
        total = self._header.total_steps
        half = total is not None and run.last_step is not None and run.last_step >= self.through * total
        if self._rows + len(rest) < self.rows or not (run.end is not None or half):
            return
        on = self._on | _on(rest, self._on) | self._planned()
        weighted = [name.removeprefix("weight/") for name in rest.channels if name.startswith("weight/")]
        for name in list(dict.fromkeys([*self._header.components, *weighted]))[:MOST]:
            if name not in on and name:
                absent = "is declared in the header and recorded in no row"
                said = "had the weight 0 in every row" if name in weighted else absent
                yield self.finding(
                    "info",
                    f"component:{name}",
                    (run.first_step or 0, run.last_step or 0),
                    f"The {name} loss {said}.",
                    evidence={"rows": self._rows + len(rest)},
                    advice=f"Take {name} out of the list of losses, or give it the weight that it was meant to have.",
                )

    def _planned(self) -> set[str]:
        """What some stage gives a weight to."""
        plan = self._header.plan
        return {name for stage in (plan.stages if plan else ()) for name, weight in stage.weights.items() if weight}


def _on(chunk: Chunk, known: set[str]) -> set[str]:
    """Components that have a weight in these rows; those with a value and no weight recorded anywhere count as on."""
    names = [name.removeprefix("weight/") for name in chunk.channels if name.startswith("weight/")]
    bare = {name.removeprefix("loss/") for name in chunk.channels if name.startswith("loss/")} - set(names)
    return bare | {name for name in names if name not in known and (np.nan_to_num(chunk[f"weight/{name}"]) != 0).any()}

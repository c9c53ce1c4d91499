"""See the rule's docstring: it is the page that `trainwatch rules run-appended` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk


@dataclass
class RunAppended(Rule):
    """One file holds several runs.

    What it sees:
        A second header in a file, with another id and without `resumed_from`: a run that was written behind another.
        (Steps that start again without any header are named by step-reset.)

    Why it matters:
        Whoever plots the file sees one curve that folds back. Here each run is judged by itself.

    What to do:
        Give each run a file of its own, or open the recorder with `resume=` where it is the same run that goes on.

    When it is wrong:
        Two logs that were joined on purpose are two runs, as said.

    References:
        TensorBoard draws all event files of one folder as one run, and warns of "more than one graph event".
    """

    causes: ClassVar[tuple[str, ...]] = ("step-reset", "step-duplicate", "step-gap")

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """The reader parts them, and counts."""
        if run.nth > 1:
            first = run.first_step or 0
            yield self.finding(
                "info",
                "run",
                (first, first),
                f"This is run {run.nth} of several that were written into {run.source.name}; each is judged by itself.",
                evidence={"nth": run.nth},
                advice="Give each run a file of its own, or open the log with resume= where it goes on.",
            )

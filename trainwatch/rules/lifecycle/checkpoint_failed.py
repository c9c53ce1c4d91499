"""See the rule's docstring: it is the page that `trainwatch rules checkpoint-failed` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from trainwatch.header import Header, number
from trainwatch.rule import Findings, Rule
from trainwatch.run import Event
from trainwatch.schema import Finding
from trainwatch.table import Chunk

SPOKEN = re.compile(
    r"(?=.*\b(?:checkpoint|state_dict|snapshot)\b)(?=.*(?:fail|could not|cannot|can't|no space|quota|not be written))",
    re.IGNORECASE | re.DOTALL,
)


@dataclass
class CheckpointFailed(Rule):
    """A checkpoint could not be written.

    What it sees:
        A warning in the record that is about a checkpoint: `watch.event("warning", about="checkpoint", message=...)`,
        as the trainer here writes it, or one that says so in words. It is over with the next one that is written.

    Why it matters:
        The run goes on without a net: what ends it now takes everything since the last checkpoint with it.

    What to do:
        Make room (`df -h`, the quota, the number of checkpoints that are kept), or see that the folder is there and may
        be written; then ask for one now.

    When it is wrong:
        A network file system that answers late may have kept the file all the same.

    References:
        torch.save on a full disk: "PytorchStreamWriter failed writing file", told at the end of many a night.
    """

    causes: ClassVar[tuple[str, ...]] = ("checkpoint-overdue", "crashed")

    grave: int = 3  # in a row, for it to be critical: the next try will not mend it

    _step: int = field(default=0, init=False)
    _saved: int | None = field(default=None, init=False)
    _finding: Finding | None = field(default=None, init=False)
    _failures: int = field(default=0, init=False)

    def start(self, header: Header) -> Findings:
        """A process that resumed has the checkpoint that it came from."""
        self._saved = header.resumed_from
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """How far the run is."""
        self._step = int(chunk.step[-1])
        return ()

    def event(self, event: Event) -> Iterator[Finding]:
        """A warning about a checkpoint, or one that was written."""
        step = number(event.get("step"))
        at = self._step if step is None else int(step)
        if event.get("kind") == "checkpoint":
            if self._finding is not None:
                yield self._told(self._finding.first_step, at, str(self._finding.evidence["said"]), over=True)
            self._finding, self._failures, self._saved = None, 0, at
        elif event.get("event") == "warning":
            said = str(event.get("message") or "")[:300]
            if event.get("about") == "checkpoint" or SPOKEN.search(said):
                self._failures += 1
                first = self._finding.first_step if self._finding else at
                self._finding = self._told(first, at, said, over=False)
                yield self._finding

    def _told(self, first: int, at: int, said: str, *, over: bool) -> Finding:
        times = "once" if self._failures == 1 else f"{self._failures} times in a row"
        why = " ".join(said.split()).rstrip(".")
        since = f"the last one is of step {self._saved:,}" if self._saved is not None else "there is none yet"
        return self.finding(
            "critical" if self._failures >= self.grave and not over else "warning",
            "run",
            (first, at),
            f"A checkpoint could not be written, {times} ({why or 'no reason was told'}); "
            + (f"the one of step {at:,} was." if over else f"{since}."),
            over=over,
            evidence={"failures": self._failures, "said": said},
            advice="Make room on the disk or mend the folder's rights, then save now.",
            confidence=0.95,
        )

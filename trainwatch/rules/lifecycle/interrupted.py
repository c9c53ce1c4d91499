"""See the rule's docstring: it is the page that `trainwatch rules interrupted` prints."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from trainwatch.header import Header, number, text
from trainwatch.rule import Findings, Rule
from trainwatch.run import Event
from trainwatch.schema import Finding
from trainwatch.table import Chunk

WHO = (  # the first that fits counts
    (r"KeyboardInterrupt|SIGINT", "by hand"),
    (r"SIGTERM|SIGUSR[12]|preempt|time ?limit", "by the scheduler"),
    (r"SIGHUP", "as its terminal was closed"),
    (r"stop file", "by a stop file"),
    (r"^the program ended", "as the program ended"),
)


@dataclass
class Interrupted(Rule):
    """The run was stopped before its end, by hand or by the scheduler.

    What it sees:
        An `end` record that says *stopped*, before the planned steps were taken: by Ctrl-C, by a signal, by a stop
        file (then who wrote it, and why), or because the program left its loop. It tells what the checkpoints hold.

    Why it matters:
        Nothing is broken. What matters is what is lost if it goes on: the steps since the last checkpoint.

    What to do:
        Resume it from the last checkpoint; write one when SIGTERM comes, as schedulers send it before they kill.

    When it is wrong:
        Early stopping ends a run by plan, and is left alone. A program that counts its steps otherwise than it declared
        them ends at another step than planned.

    References:
        Slurm and Kubernetes send SIGTERM, and SIGKILL 30 s later.
    """

    causes: ClassVar[tuple[str, ...]] = ("schedule-unfinished", "curriculum-unreachable", "total-steps-mismatch")

    _step: int = field(default=0, init=False)
    _total: int | None = field(default=None, init=False)
    _checkpoint: int | None = field(default=None, init=False)
    _asked: Event = field(default_factory=dict, init=False)

    def start(self, header: Header) -> Findings:
        """A process that resumed has the checkpoint that it came from."""
        self._total, self._checkpoint = header.total_steps, header.resumed_from
        self._step = header.resumed_from or 0
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """How far it came."""
        self._step = int(chunk.step[-1])
        return ()

    def event(self, event: Event) -> Iterator[Finding]:
        """The last word, and what was saved before it."""
        step = number(event.get("step"))
        if event.get("kind") == "checkpoint" and step is not None:
            self._checkpoint = int(step)
        elif event.get("event") == "intervention" and event.get("action") == "stop":
            self._asked = event
        early = 0 < self._step < (self._total or math.inf)
        if event.get("kind") == "end" and event.get("status") == "stopped" and early:
            yield from self._stopped(text(event.get("reason")) or "")

    def _stopped(self, reason: str) -> Iterator[Finding]:
        who = next((said for pattern, said in WHO if re.search(pattern, reason, re.IGNORECASE)), None)
        if who is None:
            return  # by plan: early stopping, a limit
        by, why = (text(self._asked.get(name)) or "" for name in ("by", "why"))
        if by and "stop file" in reason:
            who = f"by {by[:200]}"
        of = f" of {self._total:,}" if self._total else ""
        known = self._checkpoint is not None
        lost = self._step - (self._checkpoint or 0)
        saved = f"the last checkpoint is of step {self._checkpoint:,}" if known else "no checkpoint was recorded"
        yield self.finding(
            "info",
            "run",
            (self._step, self._step),
            f"The run was stopped {who} at step {self._step:,}{of}; {saved}: "
            f"{f'{lost:,} steps are lost' if lost > 0 else 'nothing is lost'}."
            + (f" The reason given: {why[:300]}" if why and by else ""),
            evidence={"step": self._step, "lost_steps": max(lost, 0), "reason": reason[:200]},
            advice=self._advice(),
        )

    def _advice(self) -> str:
        """Where to go on; what was saved after the step for which somebody had it stopped may be sick."""
        since = number(self._asked.get("first_step"))
        if self._checkpoint is None:
            return "Write checkpoints."
        if since is not None and since <= self._checkpoint:
            return f"Resume it from a checkpoint before step {int(since):,}, once the reason is mended."
        return f"Resume it from the checkpoint of step {self._checkpoint:,}."

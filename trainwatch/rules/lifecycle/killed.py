"""See the rule's docstring: it is the page that `trainwatch rules killed` prints."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from trainwatch.header import Header, number
from trainwatch.rule import Findings, Rule
from trainwatch.run import Event, Run
from trainwatch.schema import Finding
from trainwatch.stats import median
from trainwatch.table import Chunk


@dataclass
class Killed(Rule):
    """The process died without a last word.

    What it sees:
        A run with steps, without an `end` record, whose process is gone (on this host), or whose file nobody has
        touched for longer than any step or heartbeat takes (on another). It tells what was done last, what is lost
        since the last checkpoint, and whether memory was growing.

    Why it matters:
        Nothing in the process could say why: SIGKILL, the kernel's out-of-memory killer, a segmentation fault, or the
        power. Until somebody looks, a machine stands idle.

    What to do:
        Ask the machine: `dmesg -T | grep -i -e oom -e segfault`, the scheduler's log (exit codes 137 and 139), the
        machine's uptime. Then resume from the last checkpoint.

    When it is wrong:
        On another host silence is all the evidence: a file system that delays writes, or a copied log, looks the same.

    References:
        Runs that are "running" for weeks after a kill: wandb #6779, #10368; MLflow leaves them in RUNNING.
    """

    growth: float = 0.2  # of the memory at the start: caches are warm by then, and healthy runs stay flat
    rows: int = 100  # memory rows that are averaged at either end: more than an allocator's ups and downs

    _checkpoint: tuple[int, str] | None = field(default=None, init=False)
    _signal: str = field(default="", init=False)

    def start(self, header: Header) -> Findings:
        """A process that resumed has at least the checkpoint that it came from."""
        if header.resumed_from is not None:
            self._checkpoint = (header.resumed_from, "")
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """A signal after which steps were taken was survived."""
        if len(chunk):
            self._signal = ""
        return ()

    def event(self, event: Event) -> Findings:
        """Remember the last checkpoint, and the last signal."""
        step = number(event.get("step"))
        if event.get("kind") == "checkpoint" and step is not None:
            self._checkpoint = (int(step), str(event.get("path") or "")[:500])
        elif event.get("event") == "signal":
            self._signal = str(event.get("name") or "a signal")[:50]
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Dead, and nobody said why."""
        if run.status() != "killed":
            return
        last = run.last_step or 0
        evidence: dict[str, float | int | str] = {"step": last}
        seen = _last_sign_of_life(run)
        when = f" after {datetime.fromtimestamp(seen, UTC):%Y-%m-%d %H:%M:%S} UTC" if 0 < seen < 2e11 else ""
        if when:
            evidence["last_record"] = seen
        here = run.header.pid is not None and run.header.host == socket.gethostname()
        why = f"{self._signal} had reached it" if self._signal else "SIGKILL, a segmentation fault, or the power"
        yield self.finding(
            "critical",
            "run",
            (last, last),
            f"The process died after step {last:,} without a last word{when}: {why}{self._grown(run, evidence)}; "
            f"{self._lost(last, evidence)}.",
            evidence=evidence,
            advice=self._advice(),
            confidence=0.95 if here else 0.6,
        )

    def _lost(self, last: int, evidence: dict[str, float | int | str]) -> str:
        if self._checkpoint is None:
            return f"no checkpoint was recorded: all {last:,} steps are lost"
        evidence["checkpoint"], evidence["lost_steps"] = self._checkpoint[0], max(last - self._checkpoint[0], 0)
        return f"the last checkpoint is of step {self._checkpoint[0]:,}: {evidence['lost_steps']:,} steps are lost"

    def _advice(self) -> str:
        ask = "Ask dmesg and the scheduler what killed it"
        if self._checkpoint is None:
            return f"{ask}, then start again with checkpoints switched on."
        where = f" ({self._checkpoint[1]})" if self._checkpoint[1] else ""
        return f"{ask}, then resume from the checkpoint of step {self._checkpoint[0]:,}{where}."

    def _grown(self, run: Run, evidence: dict[str, float | int | str]) -> str:
        """The memory that grew most from the first rows to the last ones; it makes the out-of-memory killer likely."""
        most, said = self.growth, ""
        for name in (channel for channel in run.train.channels if channel.startswith("memory/")):
            ends = [
                run.train.column(name, 0, min(self.rows, run.train.size)),
                run.train.column(name, max(0, run.train.size - self.rows), run.train.size),
            ]
            begin, end = (median(part) if np.isfinite(part).any() else 0.0 for part in ends)
            if begin > 0 and end / begin - 1 > most:
                most = end / begin - 1
                evidence |= {"memory": name, "memory_first": begin, "memory_last": end}
                said = f"; {name} had grown by {most:.0%}, so the out-of-memory killer is likely"
        return said


def _last_sign_of_life(run: Run) -> float:
    """Unix seconds of the newest record; 0 if none has a time."""
    times = run.train.column("time", max(0, run.train.size - 1), run.train.size)
    records = (run.heartbeat, run.events[-1] if run.events else None)
    spoken = [number((record or {}).get("time")) or 0.0 for record in records]
    return max(*spoken, *(float(value) for value in times if np.isfinite(value)))

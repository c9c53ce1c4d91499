"""See the rule's docstring: it is the page that `trainwatch rules stalled` prints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity
from trainwatch.table import Chunk


@dataclass
class Stalled(Rule):
    """The process lives, and takes no steps.

    What it sees:
        A run in the state *stalled*: its process lives or its heartbeats go on, and no step came for a minute and for
        twenty times as long as a step takes, outside of evaluations and checkpoints.

    Why it matters:
        A run that hangs in a collective, in a loader's lock or on a dead file system holds its machines for as long as
        nobody looks, and no log line tells of it.

    What to do:
        `py-spy dump --pid PID` shows where it hangs, without stopping it. With many ranks look for the one that waits
        elsewhere than the others. Then stop it, and resume from the last checkpoint.

    When it is wrong:
        Loading data, building a cache and the first compilation take their time: before the fifth step a stall is an
        info for twenty minutes. An evaluation that is not announced (`with watch.phase("eval"):`) looks like one.

    References:
        Amazon SageMaker Debugger: StalledTrainingRule (1,800 s), MaxInitializationTime (20 min).
    """

    causes: ClassVar[tuple[str, ...]] = ("interrupted",)

    starting: float = 1200.0  # s before the first steps: SageMaker's bar; a model of many parts compiles for minutes
    rows: int = 5  # steps: until then kernels are compiled for new shapes, and there is no median to go by
    grave: float = 1800.0  # s without a step: half an hour of a machine is lost

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Only its state now tells."""
        now = time.time()
        if run.status(now) != "stalled":
            return
        idle, last, usual = run.idle(now), run.last_step or 0, run.step_seconds()
        begun = run.train.size >= self.rows
        severity: Severity = "critical" if idle > self.grave else "warning"
        if not begun:
            severity = "warning" if idle > self.starting else "info"
        beside = f"; a step takes {usual:.3g} s" if usual is not None and begun else ""
        pid = f" --pid {run.header.pid}" if run.header.pid is not None else ""
        yield self.finding(
            severity,
            "run",
            (last, last),
            f"No step came for {_told(idle)} after step {last:,}, and the process lives{beside}.",
            evidence={"idle_seconds": idle} | ({} if usual is None else {"step_seconds": usual}),
            advice=f"See where it hangs with `py-spy dump{pid}`, then stop it and resume from the last checkpoint.",
            confidence=0.9 if begun else 0.6,
        )


def _told(seconds: float) -> str:
    """In the largest unit that still has two digits, or nearly."""
    for unit, size, most in (("s", 1, 600), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds / 86_400:,.0f} days"

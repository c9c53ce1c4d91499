"""See the rule's docstring: it is the page that `trainwatch rules rank-missing` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trainwatch.header import number
from trainwatch.rule import Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk, TableName
from trainwatch.views.ranks import members


@dataclass
class RankMissing(Rule):
    """A rank stopped writing while the others were still there.

    What it sees:
        A rank without a last word whose last record, rows and heartbeats alike, is older than that of most other ranks
        by more than a minute, three heartbeats and twenty steps; or is twenty steps behind when all others have come to
        their end. A file that lags by seconds, and a job whose ranks are all killed at once, are none. Ranks that never
        wrote a file are reported as info, where most others did.

    Why it matters:
        The others wait for it in their next collective until the time-out, often half an hour, with every GPU paid for.
        Their error then names NCCL, and not the rank that is gone.

    What to do:
        Look at that rank's host: `dmesg -T | grep -i -e oom -e xid -e segfault`, its GPU, its network. Start the job
        again from the last checkpoint. A shorter time-out of the process group tells sooner.

    When it is wrong:
        Clocks of hosts that differ by minutes, or a rank's file on a disk that is written through late.

    References:
        NCCL watchdog time-outs: pytorch #89630; torchrun ends the other ranks when one exits, but not when one hangs.
    """

    reads: ClassVar[tuple[TableName, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ("run:world_size",)
    causes: ClassVar[tuple[str, ...]] = ("killed", "crashed", "stalled", "interrupted")

    seconds: float = 60.0  # six heartbeats of ten seconds: a network file system may hold a line back that long
    steps: float = 20.0  # and x the median step: beyond any stutter of a loader, and any file that lags

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """Only the last record of each rank is looked at."""
        runs = members(run)
        if len(runs) < 2:
            return
        signs = {rank: _last_sign(one) for rank, one in runs.items()}
        for rank, one in runs.items():
            others = np.array([sign for other, sign in signs.items() if other != rank])
            silent = float(np.min(np.median(others, axis=0) - signs[rank]))  # by both clocks
            patience = max(self.seconds, self.steps * (one.step_seconds() or 0.0))
            reached = [other.last_step or 0 for place, other in runs.items() if place != rank and other.end]
            left = len(reached) == len(others) and min(reached) > (one.last_step or 0) + self.steps
            if one.end is None and (silent > patience or left):
                yield self._gone(rank, one, runs, silent)
        yield from self._never(run, runs)

    def _gone(self, rank: int, one: Run, runs: dict[int, Run], silent: float) -> Finding:
        last = one.last_step or 0
        on = max(other.last_step or 0 for other in runs.values())
        went = f"the others went on to step {on:,}" if on > last + 1 else "the others wait for it"
        return self.finding(
            "critical",
            f"rank:{rank}",
            (last, max(on, last)),
            f"Rank {rank} stopped writing after step {last:,} without a last word"
            f"{f', {silent:,.0f} s before the other ranks' if silent >= 1 else ''}; {went}.",
            evidence={"silent": silent, "last_step": last, "others": on},
            advice=f"Ask the host of rank {rank} what became of it (dmesg, the GPU, the network), then start the job "
            "again from the last checkpoint.",
            confidence=0.9,
        )

    def _never(self, run: Run, runs: dict[int, Run]) -> Iterator[Finding]:
        size = int(number(run.header.raw.get("world_size")) or 0)
        absent = [rank for rank in range(min(size, 1 << 16)) if rank not in runs]
        if absent and 2 * len(runs) > size and _last_sign(run)[1] > self.seconds:
            names = ", ".join(map(str, absent[:8])) + (" ..." if len(absent) > 8 else "")
            first = run.first_step or 0
            yield self.finding(
                "info",
                "run",
                (first, first),
                f"There is no file of {len(absent):,} of {size:,} ranks ({names}): what goes on there is not known.",
                evidence={"absent": len(absent), "world_size": size},
                advice="Open the recorder on every rank, and keep the ranks' files beside that of rank 0.",
            )


def _last_sign(run: Run) -> tuple[float, float]:
    """Unix time, and seconds since the process began to record, of a rank's newest record."""
    records = [record for record in (run.heartbeat, run.end, *run.events[-1:]) if record]
    last = max(run.train.size - 1, 0)
    found = []
    for clock in ("time", "elapsed"):
        rows = run.train.column(clock, last, run.train.size)
        told = [number(record.get(clock)) or 0.0 for record in records]
        found.append(max([0.0, *told, *rows[np.isfinite(rows)].tolist()]))
    return found[0], found[1]

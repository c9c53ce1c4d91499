"""See the rule's docstring: it is the page that `trainwatch rules checkpoint-overdue` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from trainwatch.header import Header, number
from trainwatch.rule import Findings, Rule
from trainwatch.run import Event, Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk


@dataclass
class CheckpointOverdue(Rule):
    """The next checkpoint should have been written long ago.

    What it sees:
        The steps since the last `checkpoint` record against `checkpoint_every` of the header, or against the run's own
        rhythm, where its checkpoints came regularly; as long as the run has not finished. A finished run that declared
        them and wrote none at all is reported as well.

    Why it matters:
        Whatever ends the run now takes all steps since then with it.

    What to do:
        See whether writing fails (a full disk, a quota, a folder that is gone) or the branch that saves is never taken;
        ask for a checkpoint now, if the program can.

    When it is wrong:
        Checkpoints that are written when a metric improves come ever more rarely: they have no rhythm, and are left
        alone. A trainer that declares `checkpoint_every` must tell of each one by `watch.checkpoint(path)`.

    References:
        CheckFreq (2021) on how often to save; pytorch-lightning #11255 and its like: `every_n_steps` that never fires.
    """

    late: float = 2.0  # intervals since the last one: one may fail, and the next one mends it
    regular: float = 1.5  # longest over shortest interval, for a rhythm to be one
    unsure: float = 3.0  # intervals, where the rhythm is only observed
    few: int = 4  # intervals that make a rhythm

    _every: float | None = field(default=None, init=False)
    _resumed: int = field(default=0, init=False)
    _saved: list[int] = field(default_factory=list, init=False)

    def start(self, header: Header) -> Findings:
        """What the run declares."""
        every = number(header.raw.get("checkpoint_every"))
        self._every = every if every and every >= 1 and not header.rank else None  # other ranks may leave it to rank 0
        self._resumed = header.resumed_from or 0
        return ()

    def event(self, event: Event) -> Findings:
        """When the last few were written."""
        step = number(event.get("step"))
        if event.get("kind") == "checkpoint" and step is not None:
            self._saved = [*self._saved, int(step)][-self.few - 1 :]
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """What would be lost now."""
        every, bar = self._rhythm()
        last = self._saved[-1] if self._saved else self._resumed
        now = int(run.train.step[-1]) if run.train.size else last
        ended = run.status() == "finished"
        if every is None or now - last <= bar * every or (ended and (self._saved or self._resumed)):
            return
        due = f"every {every:,.0f} steps one is {'declared' if self._every else 'usual'}"
        before = f"since the one of step {last:,}" if self._saved or self._resumed else "at all"
        yield self.finding(
            "warning",
            "run",
            (int(last + every), now),
            f"No checkpoint was written {before}, and {due}: {now - last:,} steps "
            f"{'were trained for nothing that is kept' if ended else 'would be lost now'}.",
            evidence={"last_checkpoint": last, "every": every, "lost_steps": now - last},
            advice="See whether writing fails (disk, quota, folder), and save now.",
            confidence=0.9 if self._every and self._saved else 0.7,
        )

    def _rhythm(self) -> tuple[float | None, float]:
        """Steps between two checkpoints, as declared or as observed, and how many times that is too long."""
        if self._every is not None:
            return self._every, self.late
        intervals = np.diff(self._saved)
        if len(intervals) < self.few or intervals.min() <= 0 or intervals.max() > self.regular * intervals.min():
            return None, self.unsure
        return float(np.median(intervals)), self.unsure

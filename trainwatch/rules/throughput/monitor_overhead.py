"""See the rule's docstring: it is the page that `trainwatch rules monitor-overhead` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from trainwatch.header import Header, mapping
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import Streak, in_blocks, medians
from trainwatch.table import Chunk


@dataclass
class MonitorOverhead(Rule):
    """Recording the run costs more of its time than it should.

    What it sees:
        `time/monitor`, what the recorder itself took in the loop's thread, over `time/step`: the quickest recording of
        each block of 20 steps over their median step, for five blocks in a row. What other programs on the machine took
        from it meanwhile is not the recorder's.

    Why it matters:
        A recorder must not slow what it records: one percent is its promise on a GPU, three on a CPU, for steps of ten
        milliseconds and more.

    What to do:
        Give `losses(at=...)` on every tenth step only: the components' gradients are the most expensive thing that is
        recorded; leave `over=` to one step in a few hundred, and `durable=True` to runs that need it.

    When it is wrong:
        It takes nothing away from the training but time: only what takes five milliseconds and a tenth of each step is
        a warning. Steps of less than ten milliseconds are left alone.

    References:
        `python benchmarks/record.py overhead` measures it with and without; docs/speed.md.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("time/monitor", "time/step")
    causes: ClassVar[tuple[str, ...]] = ("throughput-drop",)

    share: float = 0.01  # of the step, on a GPU: the recorder's promise
    cpu_share: float = 0.03  # of the step, on a CPU, where its kernels take turns with the model's
    grave_share: float = 0.1  # of the step: a run of ten hours is an hour longer
    grave_seconds: float = 0.005  # s a step: a healthy recorder takes 0.1 ms, and 3 ms with gradients on a slow CPU
    shortest: float = 0.01  # s: shorter steps have nothing to hide a recorder in
    blocks: int = 5  # of 20 rows, in a row

    _cpu: bool = field(default=False, init=False)
    _recent: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)), init=False)  # the last blocks
    _streak: Streak | None = field(default=None, init=False)

    def start(self, header: Header) -> Findings:
        """Which device computes."""
        self._cpu = mapping(header.raw.get("device")).get("name") == "cpu"
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """The recorder's share of each block."""
        self._streak = self._streak or Streak(self.blocks)
        monitor = np.fmin.reduce(in_blocks(chunk["time/monitor"], self.block), axis=1)  # no other program in its way
        whole = medians(in_blocks(chunk["time/step"], self.block))
        steps = in_blocks(chunk.step.astype(np.float64), self.block)
        share = np.where(whole > 0, monitor / whole, np.nan)
        known = np.concatenate([self._recent, np.stack([share, monitor], axis=1)])
        self._recent = known[-self.blocks + 1 :]
        lasting = sliding_window_view(np.concatenate([np.full((self.blocks, 2), np.nan), known]), self.blocks, axis=0)
        shares, monitors = (medians(lasting[-len(share) :, kind]) for kind in range(2))  # one busy block is no recorder
        columns = {"share": shares, "monitor": monitors, "step": steps[:, 0], "last": steps[:, -1]}
        costly = (share > (self.cpu_share if self._cpu else self.share)) & (whole >= self.shortest)
        if self._streak.push(costly, columns):
            yield self._finding(self._streak)

    def finish(self, run: Run, rest: Chunk) -> Findings:  # noqa: ARG002
        """A part of a block is too few steps to time by."""
        return ()

    def _finding(self, streak: Streak) -> Finding:
        now = streak.latest
        grave = now["share"] > self.grave_share and now["monitor"] > self.grave_seconds
        return self.finding(
            "warning" if grave else "info",
            "run",
            (int((streak.onset or now)["step"]), int(now["last"])),
            f"Recording takes {now['share']:.1%} of each step: {1000 * now['monitor']:.2g} ms.",
            over=streak.over,
            evidence={"share": now["share"], "monitor_seconds": now["monitor"]},
            advice="Give losses(at=) on every tenth step, over= on one in a few hundred, and leave durable off.",
            confidence=0.95,
        )

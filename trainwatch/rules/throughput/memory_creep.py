"""See the rule's docstring: it is the page that `trainwatch rules memory-creep` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header, mapping, number
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import History, median, noise
from trainwatch.table import Chunk

Floats = NDArray[np.float64]
PREFIX = "memory/"
HIGH_WATER = ("peak", "max", "reserved")  # they only ever rise, by what they are
MOST = 16  # kinds of memory; more of them is a log to be distrusted


class Creep(NamedTuple):
    """Memory that grows: since which step, from what, to what, and by how much with a step."""

    since: float
    first: float
    last: float
    slope: float


@dataclass
class MemoryCreep(Rule):
    """Memory grows with every step, and does not stop.

    What it sees:
        `memory/*` over the whole run at bounded resolution: growth by at least a tenth that is as fast in the last
        quarter as in the first, to more than there ever was. High-water marks do not count, nor does anything before
        the present stage of the curriculum. Where the header tells how much memory the device has, it says at which
        step that will be full.

    Why it matters:
        A leak ends a run hours later, by an out-of-memory error or a silent kill, far from the line that leaks.

    What to do:
        Look for tensors that are kept with their graph (`losses.append(loss)` instead of `loss.item()`), hooks that are
        registered in the loop, lists in the data set that workers copy on write; compare two
        `torch.cuda.memory._snapshot()` or `tracemalloc` snapshots a thousand steps apart.

    When it is wrong:
        A data set that is read into a cache during the first epoch grows evenly and then stops: in a first epoch only a
        doubling, or memory that will not suffice, is a warning. Record `epoch` so that this is known.

    References:
        PyTorch FAQ, "My model reports out of memory": accumulating history across the training loop; pytorch #13246
        (copy on write in loader workers).
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("memory/<what>",)
    wants: ClassVar[tuple[str, ...]] = ("epoch", "run:device")
    causes: ClassVar[tuple[str, ...]] = ("killed", "crashed", "throughput-drop")

    growth: float = 0.1  # of what there was: allocators and caches breathe by less once they are warm
    grave_growth: float = 0.2  # of what there was: healthy runs stay flat
    first_epoch_growth: float = 1.0  # of what there was: a cache of the data set rarely doubles a process
    least: float = 64e6  # bytes: what a library that is loaded late takes
    steady: float = 0.5  # of the mean growth of a part, in each of them: what saturates grows less and less
    warm: float = 0.1  # of the readings come before the memory is warm
    parts: int = 6  # of the stretch that is judged, all of which must rise: memory that wanders rises in half of them
    fewest: int = 12  # readings: two in each part
    few: int = 6  # readings of a short run, of which each must rise: by chance one in 720 does

    _history: History = field(default_factory=History, init=False)
    _device: dict[str, Any] = field(default_factory=dict, init=False)
    _total: int | None = field(default=None, init=False)

    def start(self, header: Header) -> Findings:
        """How much memory there is, and how long the run is to be."""
        self._device = mapping(header.raw.get("device"))
        self._total = header.total_steps
        return ()

    def update(self, chunk: Chunk) -> Findings:
        """Only kept: one reading of memory tells nothing."""
        self._history.push(_columns(chunk))
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Every kind of memory, over all that was read."""
        series = self._history.series(_columns(rest))
        for name in [name for name in series if name.startswith(PREFIX)]:
            known = np.isfinite(series[name]) & _present_stage(series["stage"])
            creep = self._creep(series["step"][known], series[name][known])
            if creep is not None:
                epochs = series["epoch"][np.isfinite(series["epoch"])]
                yield self._finding(name, creep, (run.last_step or 0), bool(len(epochs)) and epochs[-1] < 1)

    def _creep(self, step: Floats, values: Floats) -> Creep | None:
        """The longest end of the series that grows evenly: all of it, or its last three, two quarters or one."""
        if not len(values) or np.ptp(values) <= self.least:
            return None
        warm = int(self.warm * len(values))
        for quarters in (4, 3, 2, 1):
            begin = max(warm, len(values) - quarters * len(values) // 4)
            part, before = values[begin:], values[warm:begin]
            if len(part) < (self.few if quarters == 4 else self.fewest):
                return None
            levels, centres = (  # parts may be of one reading or of two: a rise is by the steps that it took
                np.array([median(piece) for piece in np.array_split(of, self.parts)]) for of in (part, step[begin:])
            )
            rises, grown = np.diff(levels) / np.maximum(np.diff(centres), 1.0), levels[-1] - levels[0]
            even = rises.min() > self.steady * rises.mean() and grown > 6 * noise(part)
            if even and levels[-1] > (1 + self.growth) * max([levels[0], *before]) and grown > self.least:
                return self._line(step[begin:], part, before if len(before) else values[:3])
        return None

    @staticmethod
    def _line(step: Floats, values: Floats, before: Floats) -> Creep:
        """Where the growth began: the line through the later half, back to what there was before."""
        half, first = len(values) // 2, float(step[0])
        slope, start = np.polyfit(step[half:] - first, values[half:], 1)
        level = float(np.median(before))
        since = first + (level - start) / slope if slope > 0 else first
        return Creep(since, level, float(values[-1]), float(slope))

    def _finding(self, name: str, creep: Creep, last: int, first_epoch: bool) -> Finding:
        grown = creep.last / creep.first - 1
        full = self._full(name, creep, last)
        bar = self.first_epoch_growth if first_epoch else self.grave_growth
        soon = full is not None and (self._total is None or full < self._total)
        when = f"; it will be full at step {full:,.0f}" if full is not None and soon else ""
        return self.finding(
            "warning" if grown > bar or (soon and full is not None and full < 3 * last) else "info",
            "run",
            (max(int(creep.since), 0), last),
            f"{name} grows by {1000 * creep.slope / 1e6:,.3g} MB in a thousand steps: from {creep.first / 1e9:,.3g} to "
            f"{creep.last / 1e9:,.3g} GB, and does not stop{when}.",
            evidence={"first": creep.first, "last": creep.last, "bytes_a_step": creep.slope, "growth": grown}
            | ({"full_at": full} if full is not None else {}),
            advice="Look for tensors kept with their graph, hooks registered in the loop, and lists that grow; "
            "checkpoint before it is full.",
            confidence=0.8,
        )

    def _full(self, name: str, creep: Creep, last: int) -> float | None:
        """The step at which the device's memory is full, if this is that memory."""
        own = "rss" in name if self._device.get("name") == "cpu" else "rss" not in name
        capacity = number(self._device.get("memory"))
        if capacity is None or not own or creep.slope <= 0 or capacity <= creep.last:
            return None
        return last + (capacity - creep.last) / creep.slope


def _columns(chunk: Chunk) -> dict[str, Floats]:
    names = [n for n in chunk.channels if n.startswith(PREFIX) and not any(mark in n for mark in HIGH_WATER)][:MOST]
    return {"step": chunk.step.astype(np.float64)} | {name: chunk[name] for name in (*names, "stage", "epoch")}


def _present_stage(stage: Floats) -> NDArray[np.bool_]:
    """Which bins belong to the stage that the run is in; all of them where none is recorded."""
    known = np.flatnonzero(np.isfinite(stage))
    return np.isnan(stage) | (stage == stage[known[-1]]) if len(known) else np.ones(len(stage), dtype=bool)

"""See the rule's docstring: it is the page that `trainwatch rules data-starved` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header, mapping
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity
from trainwatch.stats import Streak, in_blocks, medians
from trainwatch.table import Chunk

Floats = NDArray[np.float64]
Columns = dict[str, Floats]
NONE = np.empty(0)
LAGS = 10  # blocks that one share is a mean over: 200 rows; one stalled block alone moves it by a tenth


@dataclass
class DataStarved(Rule):
    """The run waits for data in a large share of its time.

    What it sees:
        `time/data` over `time/step`, as a mean over the last ten blocks of 20 steps, for three blocks in a row. The
        first steps of a process, in which workers start, do not count.

    Why it matters:
        A GPU that waits costs as much as one that works: a share of 40 % is a run that takes 1.7 times as long.

    What to do:
        Raise `num_workers` and `prefetch_factor`, keep workers alive over epochs (`persistent_workers=True`), decode or
        augment on the GPU, or store the data the way it is read. A wait that comes at every n-th step is n - 1 workers
        that are too slow.

    When it is wrong:
        On a CPU the loader and the model share the same cores, and a wait is work done in the loop's own thread: the
        bar is higher there, and waits of a millisecond or two never count as a warning. Neighbours on the machine make
        the work longer and the share smaller: it is also taken from the quickest tenth of the steps, unless those are
        of another kind (a step that skips, beside a dear one).

    References:
        Mohan et al., "Analyzing and Mitigating Data Stalls in DNN Training" (2021): stalls of 10 to 70 % are common;
        TraceML warns from 10 %.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("time/data", "time/step")
    causes: ClassVar[tuple[str, ...]] = ("throughput-drop",)

    info_share: float = 0.1  # of the time: what others call input-bound; worth knowing, hardly worth a change
    warning_share: float = 0.2  # of the time: a fifth of the bill
    cpu_share: float = 0.5  # of the time, on a CPU: there the wait is work, which more workers would not take away
    crowded: float = 0.3  # of the time, if it is above the bar by the quickest rows: neighbours stretch work, not waits
    alike: float = 0.5  # of the median work, in the quickest rows: steps of less are cheap ones among dear ones
    least_wait: float = 0.002  # s a step: less than that is the price of any loader, and of a busy machine
    info_wait: float = 0.005  # s a step: worth knowing, where it is no fifth of the bill
    stall: float = 20.0  # steps' work: no single wait counts for more, so that one stall of an hour is not a rhythm
    blocks: int = 3  # of 20 rows, in a row; the mean over ten of them is persistent already
    enough: int = 5  # blocks that the mean is over, at least
    fewest: int = 10  # rows: a short log is judged as a whole from there on

    _device: str = field(default="", init=False)
    _before: Columns = field(default_factory=dict, init=False)
    _mild: Streak | None = field(default=None, init=False)
    _grave: Streak | None = field(default=None, init=False)

    def start(self, header: Header) -> Findings:
        """Which device computes."""
        self._device = str(mapping(header.raw.get("device")).get("name") or "")
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """The share of each block, smoothed over the blocks before it."""
        self._mild, self._grave = self._mild or Streak(self.blocks), self._grave or Streak(self.blocks)
        fresh = self._columns(chunk)
        if not self._before:
            fresh["share"][0] = fresh["quiet"][0] = np.nan  # workers start, kernels are compiled
        smooth = self._smooth(fresh)
        severe = self._severe(smooth)
        self._grave.push(severe, smooth)
        if self._mild.push(severe | ((smooth["wait"] >= self.info_wait) & (smooth["share"] > self.info_share)), smooth):
            onset = (self._mild.onset or self._mild.latest)["since"]
            grave = self._grave.onset is not None
            yield self._finding("warning" if grave else "info", onset, self._mild.latest, over=self._mild.over)
        held = {name: np.concatenate([self._before.get(name, NONE), values]) for name, values in fresh.items()}
        self._before = {name: values[-LAGS + 1 :] for name, values in held.items()}

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """A process of few rows is judged as a whole: by the median of its rows, without the first."""
        blocks = len(self._before.get("share", NONE))
        rows = Chunk("train", rest.rows, min(rest.start - blocks * self.block + 1, rest.stop), rest.stop)
        wait, share = rows["time/data"], rows["time/data"] / rows["time/step"]
        share = share[np.isfinite(share)]
        if blocks > self.enough + self.blocks or len(share) < self.fewest or (self._mild and self._mild.onset):
            return
        quiet = float(self._quiet(wait[1:][None], np.maximum(rows["time/step"] - wait, 0.0)[1:][None])[0])
        middle = {"share": min(float(np.median(share)), 1.0), "wait": float(np.nanmedian(wait)), "last": rows.step[-1]}
        middle["quiet"] = quiet
        grave = bool(self._severe(middle))
        if grave or (middle["share"] > self.info_share and middle["wait"] >= self.info_wait):
            yield self._finding("warning" if grave else "info", float(rows.step[0]), middle, over=False)

    def _severe(self, seen: Mapping[str, Any]) -> Any:
        """Whether too much of the time is wait: as it is, or as it would be without neighbours on the machine."""
        much = np.greater(seen["share"], self.crowded) & np.greater(seen["quiet"], self._bar())
        return (seen["wait"] >= self.least_wait) & ((seen["share"] > self._bar()) | much)

    def _bar(self) -> float:
        return self.cpu_share if self._device == "cpu" else self.warning_share

    def _columns(self, chunk: Chunk) -> Columns:
        """Of each block: the share that is wait, the mean wait, the first step and the last."""
        wait, whole = (in_blocks(chunk[f"time/{name}"], self.block) for name in ("data", "step"))
        work = np.where(np.isfinite(wait) & (whole > 0), np.maximum(whole - wait, 0.0), np.nan)
        wait = np.where(np.isfinite(work), np.minimum(wait, self.stall * medians(work)[:, None]), np.nan)
        count, waits, works = np.isfinite(work).sum(axis=1), np.nansum(wait, axis=1), np.nansum(work, axis=1)
        share = np.where(4 * count >= self.block, waits / (waits + works), np.nan)
        steps = chunk.step.astype(np.float64)
        return {
            "share": share,
            "quiet": np.where(np.isfinite(share), self._quiet(wait, work), np.nan),
            "wait": waits / count,
            "step": steps[:: self.block],
            "last": steps[self.block - 1 :: self.block],
        }

    def _quiet(self, wait: Floats, work: Floats) -> Floats:
        """The share that is wait in the quickest tenth of each block's rows, which is what it takes while neighbours
        sleep; NaN where those rows are of another kind.
        """
        quickest = wait.shape[1] // 10
        least, quick = (np.sort(part, axis=1)[:, quickest] for part in (wait, work))
        alike = quick > self.alike * medians(work)
        return np.asarray(np.where(alike, least / np.where(alike, least + quick, 1.0), np.nan))

    def _lag(self, fresh: Columns, name: str, lag: int) -> Floats:
        """A column as it was so many blocks before each block; NaN before the first. float64 [blocks]"""
        held = self._before.get(name, NONE)
        known = np.concatenate([np.full(LAGS - 1 - len(held), np.nan), held, fresh[name]])
        return known[LAGS - 1 - lag : len(known) - lag]

    def _smooth(self, fresh: Columns) -> Columns:
        """Means over the last ten blocks, and the first step of the oldest of them that is above the bar by itself."""
        smooth = {"last": fresh["last"], "since": fresh["step"]}
        for name in ("share", "quiet", "wait"):
            lags = [self._lag(fresh, name, lag) for lag in range(LAGS)]
            count = sum(np.isfinite(values).astype(float) for values in lags)
            total = sum(np.where(np.isfinite(values), values, 0.0) for values in lags)
            smooth[name] = np.where(count >= self.enough, total / np.maximum(count, 1), np.nan)
        for lag in range(LAGS):
            above = self._lag(fresh, "share", lag) > self.info_share
            smooth["since"] = np.where(above, self._lag(fresh, "step", lag), smooth["since"])
        return smooth

    def _finding(self, severity: Severity, since: float, now: Mapping[str, float], *, over: bool) -> Finding:
        crowded = severity == "warning" and not now["share"] > self._bar() and now["quiet"] > self._bar()
        quick = f", and {now['quiet']:.0%} in the quickest steps" if crowded else ""
        return self.finding(
            severity,
            "run",
            (int(since), int(now["last"])),
            f"{now['share']:.0%} of the time is spent waiting for data{quick}: {1000 * now['wait']:,.3g} ms of each "
            "step.",
            over=over,
            evidence={"share": now["share"], "wait_seconds": now["wait"]},
            advice="Raise num_workers and prefetch_factor, keep workers alive over epochs, or do less work per sample.",
            confidence=0.9,
        )

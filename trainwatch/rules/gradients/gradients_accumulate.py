"""See the rule's docstring: it is the page that `trainwatch rules gradients-accumulate` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.stats import carried, median
from trainwatch.table import Chunk
from trainwatch.views.components import together

Floats = NDArray[np.float64]


@dataclass
class GradientsAccumulate(Rule):
    """Each step's gradient is added to those of all steps before: nothing sets them to zero.

    What it sees:
        A recorder that is attached to the optimisers sees the very gradient of one's last step lie there when the next
        backward begins, step after step (`grad_carried`); one that sees it dropped is proof of the contrary. In
        other logs: how the gradient's norm begins. A sum of t gradients grows as a power of t between a half (batches
        that do not agree) and one (batches that do): twice the first norm after four steps, four to twenty times after
        twenty, in a line on double-logarithmic paper, while the loss does not rise with it. A healthy norm starts
        level, noisy or falling; a divergence and an escape from a small initialisation are exponential. Where the first
        batches are too unlike for a line, the next rows tell: no single gradient moves a sum of many by much, so the
        norm is smooth, as no norm of batches is, and never comes back to near its first, from which twenty rows did not
        take it further than twenty such gradients can; and it is no larger than such a sum, or several times what the
        step's components come to together, over the same parameters, which at first it was not. Where a limit holds the
        norm down, those components tell alone: the norm is twice their sum and more, and moved away from the last
        step's, as that was after clipping, by no more than they can move it; or that much is left of the past: the
        second gradient comes on top of it, so the norm leaps by half of it and more, and the sum of a vector of that
        length and one gradient keeps near the limit, smooth, and never far below it.

    Why it matters:
        The optimiser follows the whole past: a momentum without friction. SGD swings ever wider and Adam walks on in
        directions that stopped being right; the run may learn for a while and then loses everything.

    What to do:
        Call `optimizer.zero_grad()` once in each optimiser step, after `step()` and before the next `backward()`.

    When it is wrong:
        Where nothing was seen to be carried on, a log that holds a row for each micro-batch of a long accumulation
        shows the same growth, until the norm falls back: then this is withdrawn to an info. A limit far below each
        batch's own gradient hides what is carried on, where the components' gradients over the parameters are not
        recorded.

    References:
        TrainCheck (OSDI 2025), silent error "missing zero_grad".
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("grad_norm|grad_carried|grad_carried/<optimizer>",)
    wants: ClassVar[tuple[str, ...]] = (
        *("loss", "grad_carried|grad_carried/<optimizer>", "param_grad/<component>", "run:max_grad_norm"),
    )
    causes: ClassVar[tuple[str, ...]] = (
        *("gradient-explosion", "loss-divergence", "loss-oscillation", "clipping-saturated", "lr-too-high"),
        *("non-finite-gradient", "non-finite-loss", "weight-growth", "loss-stuck"),
    )

    slowest: float = 0.45  # power of t: what does not agree at all sums up by 0.5
    fastest: float = 1.2  # power of t: gradients that agree give 1; an escape from a small start comes to 1.3
    straight: float = 0.95  # r squared of the line; healthy starts with such a power come to 0.94
    half: float = 0.55  # of the growth in logarithms lies in the first half: sums .67 to .77, exponentials .5 and less
    grown: float = 2.5  # x the first norm after 14 to 20 rows; small trainings: sick 4 to 24, healthy to 1.3
    soon: float = 1.5  # x the first norm in rows 3 to 5; small trainings: sick 2 to 4, healthy to 1.4
    fewest: int = 10  # rows that show a power law
    begins: int = 8  # rows: so long even those keep to it that turn soon, for their learning rate is large
    smooth: float = 0.12  # of the norm, from row to row: sums come to 0.08, single batches to 0.1 and more
    drop: float = 1 / 3  # of the norm from one row to the next: sums do not fall so, a log of micro-batches does
    worse: float = 0.05  # of the first loss: above it the run is being lost
    above: float = 4.0  # x the first norm in every row of the later look; the lowest of healthy runs comes to 1.5
    still: float = 0.06  # of the norm, from row to row, later: sums sink to 0.03 and less, healthy ones keep 0.1 to 0.5
    beyond: float = 1.5  # x the sum of the components' norms: one step's gradient is no larger than that sum
    leap: float = 0.5  # of what is carried on, added to the first norm by rows 2 to 4; where all agree it is 1
    around: tuple[float, float] = (0.95, 1.6)  # x the limit, the median; healthy ones with such a leap: far below
    sinks: float = 0.8  # x the limit, the lowest: one gradient takes little from what is carried on
    steeper: float = 2.5  # x rows x the first norm, after those rows: gradients themselves grew; sums come to 1.5
    keeps: float = 0.065  # of the norm, from row to row: sums come to 0.05, healthy ones so near the limit to 0.11
    looks: int = 2  # such blocks of 20 rows in a row: a smooth rise passes through one
    samples: int = 5  # of the components' norms: each of them says what the gradient can be at most
    twice: float = 2.0  # x their sum, in the median; healthy norms never exceed it, since no sum of vectors does
    each: float = 1.2  # x their sum, in every sample
    carried: int = 2  # steps that began on the last one's gradient: once may be meant

    _told: Finding | None = field(default=None, init=False)
    _judged: bool = field(default=False, init=False)
    _start: tuple[float, float, int] | None = field(default=None, init=False)  # first norm, its block's median, step
    _limit: float = field(default=np.nan, init=False)  # that the norm is clipped to
    _leapt: bool = field(default=False, init=False)  # by what is carried on, after the first row
    _near: int = field(default=0, init=False)  # blocks in a row that kept near the limit
    _looked: int = field(default=0, init=False)  # smooth blocks in a row by now; -1 once one was not far up
    _held: bool = field(default=False, init=False)  # the first norm was no larger than those of its components together
    _whole: bool = field(default=False, init=False)  # it was exactly what they come to: no other parameter has any
    _beyond: list[tuple[float, float, int]] = field(default_factory=list, init=False)  # times, norm, step of samples
    _rows: int = field(default=0, init=False)  # with a norm, in all
    _carried: dict[str, list[int]] = field(default_factory=dict, init=False)  # an optimiser's first steps that did
    _dropped: bool = field(default=False, init=False)  # the gradient was seen to be dropped between two steps
    _first: tuple[float, float] = field(default=(np.nan, np.nan), init=False)
    _last: float = field(default=np.nan, init=False)

    def start(self, header: Header) -> Findings:
        """The limit on the norm."""
        self._limit = header.max_grad_norm or np.nan
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """The first twenty rows decide, or the next forty; what comes later shows how it went on."""
        for begin in range(chunk.start, chunk.stop, self.block):
            block = Chunk("train", chunk.rows, begin, min(begin + self.block, chunk.stop))
            self._see(block)
            if not (self._dropped or self._proof()):
                self._look(block)
            if self._told is not None:
                self._follow(block)
        if self._told is not None:
            yield self._told

    def finish(self, run: Run, rest: Chunk) -> Findings:  # noqa: ARG002
        """On a copy: a short run has no whole block."""
        seen = {name: len(self._carried.get(name, ())) + np.nansum(rest[name]) for name in _seen(rest)}
        if len(rest) >= self.fewest or max(seen.values(), default=0) >= self.carried:
            yield from self.ahead(rest)

    def _proof(self) -> str | None:
        """The optimiser that was seen to carry gradients on."""
        return next((name for name, steps in self._carried.items() if len(steps) >= self.carried), None)

    def _see(self, block: Chunk) -> None:
        """What the recorder saw with its own eyes."""
        if self._told is not None or self._proof():
            return
        for name in _seen(block):
            self._dropped = bool(self._dropped or (block[name] == 0).any())
            self._carried.setdefault(name, []).extend(block.step[block[name] == 1][: self.carried].tolist())
        proof = self._proof()
        if proof is None:
            return
        steps, whose = self._carried[proof], proof.removeprefix("grad_carried").removeprefix("/")
        norms = block["grad_norm"][np.isfinite(block["grad_norm"])]
        self._tell(
            (steps[0], max(steps[-1], int(block.step[-1]))),
            f"The backward of step {steps[0]:,} began on the gradient of the step before, and so do those after it: "
            f"nothing sets the gradients {f'of {whose} ' if whose else ''}to zero.",
            {"carried": steps[0]},
            (float(norms[0]) if len(norms) else np.nan, median(block["loss"])),
            confidence=1.0,
        )

    def _tell(
        self,
        steps: tuple[int, int],
        message: str,
        evidence: dict[str, float],
        first: tuple[float, float],
        *,
        confidence: float,
    ) -> None:
        """The finding, and the first norm and loss, by which it is followed."""
        self._first = first
        self._told = self.finding(
            "warning",
            "run",
            steps,
            message,
            evidence=evidence,
            advice="Call optimizer.zero_grad() once in each step, before the next backward().",
            confidence=confidence,
        )

    def _look(self, block: Chunk) -> None:
        """The first block is judged by the law, those after it by how smooth and how far up they are."""
        norm = block["grad_norm"]
        known = np.flatnonzero(np.isfinite(norm) & (norm > 0))
        if not self._judged:
            self._judge(block)
            self._judged = True
            if len(known):
                self._start = float(norm[known[0]]), float(np.median(norm[known])), int(block.step[known[0]])
                times = _times(block)
                self._held = bool(len(times) and times[0] <= 1.05)
                self._whole = _whole(block)
                rose = float(np.median(norm[known[1:4]])) - self._start[0] if len(known) > 3 else np.nan
                self._leapt = bool(rose >= self.leap * min(self._limit, self._start[0]))
                if norm[known[-1]] > self.steeper * len(known) * self._start[0]:
                    self._looked = -1
        elif self._told is None and self._leapt and len(known) >= self.fewest and self._clings(norm[known]):
            self._tell_risen(
                norm[known], block.step[known], block["loss"], f"keeps near the limit of {self._limit:.3g}"
            )
        elif self._told is None and self._start is not None and self._looked >= 0 and len(known) >= self.fewest:
            times = _times(block)
            more = self._held and bool(len(times)) and bool(times.min() > self.beyond)
            self._later(norm[known], block.step[known], block["loss"], more)
        self._rows += len(known)
        if self._told is None and self._whole and len(self._beyond) < self.samples:
            self._sample(block)

    def _sample(self, block: Chunk) -> None:
        """The first samples after that of the first row; one in which the norm is what it should be ends the look."""
        before = block.rows.column("grad_norm", max(block.start - 1, 0), block.stop - 1)
        before = np.concatenate([np.full(len(block) - len(before), np.nan), before])
        norm, most = block["grad_norm"], _sum(block)
        for row in np.flatnonzero((norm > 0) & (most > 0) & (before > 0)).tolist():
            times, moved = norm[row] / most[row], abs(norm[row] - min(before[row], self._limit))
            if times < self.each or moved > 1.05 * most[row]:
                self._whole = False
                return
            self._beyond.append((float(times), float(norm[row]), int(block.step[row])))
        if len(self._beyond) >= self.samples and np.median([times for times, _, _ in self._beyond]) >= self.twice:
            self._tell_beyond(block)

    def _tell_beyond(self, block: Chunk) -> None:
        assert self._start is not None
        times = float(np.median([times for times, _, _ in self._beyond]))
        norm, step = self._beyond[-1][1:]
        self._tell(
            (self._start[2], max(step, self._start[2])),
            f"The gradient norm is {times:.3g} times what the components' gradients come to together, in "
            f"{len(self._beyond)} samples, and in the first it was no more: it is the sum of all gradients so far.",
            {"first": self._start[0], "norm": norm, "times": times},
            (self._start[0], median(block["loss"])),
            confidence=0.85,
        )

    def _later(self, norms: Floats, steps: NDArray[np.int64], loss: Floats, more: bool) -> None:
        """A sum that one gradient hardly moves any more; one block that is not far up ends the look for good."""
        assert self._start is not None
        first, middle, _ = self._start
        law = middle * (2 * (self._rows + len(norms)) / self.block) ** self.fastest  # what a sum can have come to
        smooth = _jumps(norms) <= self.still
        far = norms.min() >= self.above * first and (more or norms.max() <= law)
        self._looked = -1 if not far else self._looked + 1 if smooth else 0
        if self._looked >= self.looks:
            self._tell_risen(norms, steps, loss, "from row to row hardly moves")

    def _clings(self, norms: Floats) -> bool:
        """Whether this block and the one before kept near the limit, as what was clipped and one gradient do."""
        middle, low = np.median(norms) / self._limit, norms.min() / self._limit
        smooth = _jumps(norms) <= self.keeps
        near = smooth and self.around[0] <= middle <= self.around[1] and low >= self.sinks
        self._near = self._near + 1 if near else 0
        return self._near >= self.looks

    def _tell_risen(self, norms: Floats, steps: NDArray[np.int64], loss: Floats, how: str) -> None:
        assert self._start is not None
        first, _, began = self._start
        self._tell(
            (began, int(steps[-1])),
            f"The gradient norm rose from {first:.3g} to {norms[-1]:.3g}, and {how}: no batch's "
            "own gradient does so, the sum of all gradients so far does. Nothing sets them to zero.",
            {"first": first, "norm": float(norms[-1])},
            (first, median(loss)),
            confidence=0.75,
        )

    def _judge(self, chunk: Chunk) -> None:
        norm, loss = chunk["grad_norm"][: self.block], chunk["loss"][: self.block]
        known = np.isfinite(norm) & (norm > 0)
        if known.sum() < self.fewest:
            return
        norms, losses, steps = norm[known], loss[known], chunk.step[: self.block][known]
        prefix = next((rows for rows in (len(norms), self.begins) if self._sums_up(norms, losses, rows)), 0)
        if not prefix:
            return
        power = float(np.polyfit(np.log(np.arange(1, prefix + 1)), np.log(norms[:prefix]), 1)[0])
        self._tell(
            (int(steps[0]), int(steps[-1])),
            f"The gradient norm grows from {norms[0]:.3g} to {norms[-1]:.3g} in {len(norms)} rows, as the sum of all "
            f"gradients so far does (power {power:.2f} of the step): nothing sets them to zero.",
            {"first": norms[0], "norm": norms[-1], "power": power},
            (float(norms[0]), median(losses[np.isfinite(losses)][:3])),
            confidence=0.9 if len(norms) == self.block else 0.7,
        )

    def _sums_up(self, norms: Floats, losses: Floats, rows: int) -> bool:
        """Whether the first rows follow the law, and those after them keep what they gathered, without a jump."""
        x, y, after = np.log(np.arange(1, rows + 1)), np.log(norms[:rows]), norms[rows:] if rows < len(norms) else norms
        power, seen = np.polyfit(x, y, 1)[0], losses[:rows][np.isfinite(losses[:rows])]
        grown = self.grown * (len(norms) / self.block) ** 0.5
        line = self.slowest <= power <= self.fastest and np.corrcoef(x, y)[0, 1] ** 2 >= self.straight
        bends = y[rows // 2] - y[0] >= self.half * (y[-1] - y[0])  # an exponential does not
        soon = np.median(norms[2:5]) >= self.soon * norms[0]
        keeps = np.median(norms[-len(norms) // 3 :]) >= grown * norms[0] and _jumps(after) <= self.smooth
        rises = len(seen) >= 6 and np.median(seen[-3:]) > np.median(seen[:3]) + abs(np.median(seen[:3]))
        return bool(line and bends and soon and keeps and not rises)

    def _follow(self, chunk: Chunk) -> None:
        """Graver while the last block's loss is lost; withdrawn where the norm falls at once."""
        told, norm, loss = self._told, chunk["grad_norm"], chunk["loss"][-self.block :]
        if told is None or told.state == "over":
            return
        rows = np.flatnonzero(np.isfinite(norm))
        left = np.minimum(carried(self._last, norm[rows]), np.nan_to_num(self._limit, nan=np.inf))  # once it is clipped
        falls = rows[norm[rows] < self.drop * left]
        if len(falls) and not self._proof():
            message = f"{told.message} It fell back at once later, as in a log of micro-batches."
            until, evidence = int(chunk.step[falls[0]]), told.evidence | {"norm": norm[falls[0]]}
            self._told = replace(
                told, severity="info", state="over", message=message, last_step=max(told.first_step, until),
                evidence=evidence, confidence=0.5,
            )  # fmt: skip
            return
        self._last = float(norm[rows[-1]]) if len(rows) else self._last
        lost = median(loss) > self._first[1] + self.worse * abs(self._first[1])
        self._told = replace(
            told,
            severity="critical" if lost else "warning",
            last_step=max(told.first_step, int(chunk.step.max())),
            evidence=told.evidence | {"norm": self._last},
        )


def _jumps(norms: Floats) -> float:
    """By what share of itself the norm changes from row to row, in the median."""
    return float(np.median(np.abs(np.diff(np.log(norms)))))


def _times(chunk: Chunk) -> Floats:
    """The norm, by the sum of its components' over the parameters, in the rows that have them. float64 [samples]"""
    norm, most = chunk["grad_norm"], _sum(chunk)
    sampled = np.isfinite(norm) & (most > 0)
    times: Floats = norm[sampled] / most[sampled]
    return times


def _whole(chunk: Chunk) -> bool:
    """Whether in the first sample the components' gradients, by norms and cosines, make up the whole."""
    norms = {name.partition("/")[2]: chunk[name] for name in chunk.channels if name.startswith("param_grad/")}
    times = chunk["grad_norm"] / together(chunk, norms) if norms else np.empty(0)
    return bool((np.abs(times[np.isfinite(times)][:1] - 1) < 0.02).any())


def _sum(chunk: Chunk) -> Floats:
    """The sum of the components' norms over the parameters, 0 in the rows without: no gradient is more. [rows]"""
    parts = [chunk[name] for name in chunk.channels if name.startswith("param_grad/")]
    most: Floats = np.nansum(parts, axis=0) if parts else np.zeros(len(chunk))
    return most


def _seen(chunk: Chunk) -> list[str]:
    """The columns of what the recorder saw, of one optimiser or of several."""
    return [name for name in chunk.channels if name.partition("/")[0] == "grad_carried"]

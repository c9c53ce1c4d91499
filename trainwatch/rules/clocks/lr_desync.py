"""See the rule's docstring: it is the page that `trainwatch rules lr-desync` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.copying import copied
from trainwatch.header import Header, mapping, number
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schedule import MOST
from trainwatch.schema import Finding
from trainwatch.stats import Floats
from trainwatch.table import Chunk
from trainwatch.views.following import Following

Steps = NDArray[np.int64]


@dataclass
class LrDesync(Rule):
    """The learning rate moves along its declared schedule at another speed than the steps do.

    What it sees:
        Every recorded `lr/<group>` with a declared schedule. Where it is off, the one constant speed k that gives all
        its values: k = 0.5, 2, 4 ... Groups with the same k are reported as one. Where a recorded clock explains the
        values, or nothing does, `schedule-desync` says so. A rate without a declared schedule that falls by one and the
        same factor from its first steps on, to a ten-thousandth of its height before half of the planned steps, and
        stays there, and not once an epoch nor with the evaluations: a scheduler that counts epochs is stepped with each
        batch.

    Why it matters:
        At k = 4 the rate is at its floor after a quarter of the run, and three quarters of the steps learn next to
        nothing; at k = 0.5 the run ends in the middle of its plan, and never gets the low rate that the end needs.

    What to do:
        Step the scheduler once for each optimiser step that was applied: not for each micro-batch (k is the
        accumulation), not once more in every process (k is their number), not in two places (k = 2). A schedule built
        for too many steps moves at the inverse of that.

    When it is wrong:
        The declaration may be out of date instead of the run: then correct it. A rate that falls that fast on purpose
        leaves half of the run without one; a plateau's does not fall from the first steps on, nor evenly.

    References:
        accelerate #963, #2142, #2926 (scheduler stepped once a process); transformers #24088.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("lr/<group>",)
    wants: ClassVar[tuple[str, ...]] = ("run:schedules", "applied", "run:total_steps", "run:horizon")
    causes: ClassVar[tuple[str, ...]] = (
        *("schedule-desync", "schedule-unfinished", "warmup-ignored"),
        *("lr-zero", "lr-too-low", "lr-too-high", "loss-plateau", "slow-convergence"),
    )

    tolerance: float = 0.01  # relative; values that are logged in three digits are within it
    rows: int = 5  # in a row: less is a value that was logged late around a boundary
    drift: float = 0.01  # of the schedule's length: a rate that follows a clock this close to the step is forgiven
    held: float = 0.1  # of the schedule's length: in longer epochs, a rate held for one is not what was declared

    spent: float = 1e-4  # of its height: where a rate is meant to end, at the end of the run; cosines pass it there
    half: float = 0.5  # of the planned steps
    fewest: int = 4  # drops by then, evenly spaced from the first steps on: a plateau's wait for the loss to fall
    uneven: float = 1.5  # x the median interval, at most
    answers: float = 0.5  # of the rows that follow an evaluation, at most: else that drops follow them says nothing

    _following: Following = field(default_factory=lambda: Following(1, 0.0, 0.0, 0.0), init=False)
    _usual: dict[float, str] = field(default_factory=dict, init=False)
    _declared: bool = field(default=False, init=False)  # the schedule of some rate is, or a plateau
    _total: int = field(default=0, init=False)  # steps that are planned
    _rows: int = field(default=0, init=False)
    _epoch: float = field(default=np.inf, init=False)  # steps
    _resumed: bool = field(default=False, init=False)

    def start(self, header: Header) -> Findings:
        """The rates that have a formula, and the numbers that usually are such a speed."""
        self._following = Following(self.rows, self.tolerance, self.drift, self.held, "lr/")
        self._following.start(header)
        plateau = "plateau" in str(header.config).lower()  # its rate answers to the loss
        self._declared = plateau or any(name.startswith("lr") for name in header.schedules)
        self._total, self._resumed = header.total_steps or 0, header.resumed_from is not None
        horizon = mapping(header.raw.get("horizon"))
        told = {name: number(horizon.get(name)) for name in ("samples", "batch_size", "accumulation", "processes")}
        each = (told["batch_size"] or 0) * (told["accumulation"] or 1) * (told["processes"] or 1)
        self._epoch = (told["samples"] or np.inf) / each if each else np.inf
        for name, what in (("processes", "processes"), ("accumulation", "micro-batches a step")):
            count = number(horizon.get(name))
            if count and count > 1:
                self._usual |= {count: f"the number of {what}", 1 / count: f"one over the number of {what}"}
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """What is decided; as long as it is not, ``finish`` says what it looks like."""
        self._rows += len(chunk)
        if self._following.push(chunk):
            yield from self._told(early=False)

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """The rows that fill no block, to a copy; and rates of which no schedule is declared."""
        now = copied(self)
        now._following.push(rest)
        yield from now._told(early=True)
        if not (self._declared or self._resumed):
            whole = Chunk("train", rest.rows, rest.start - self._rows, rest.stop)
            ended = (run.last_step or 0) if run.end is not None and run.end.get("status") == "finished" else 0
            evaluated = run.eval.step[: run.eval.size][run.eval.live]
            yield from self._spent(whole, self._total or ended, evaluated)

    def _spent(self, whole: Chunk, planned: int, evaluated: Steps) -> Iterator[Finding]:
        """The first group whose rate is gone before half of the run; the others fall with it."""
        for name in [name for name in whole.channels if name.startswith("lr/")][:MOST]:
            known = np.flatnonzero(np.isfinite(whole[name]))
            rate, applied = whole[name][known], whole.applied()[known]
            if len(rate) < self.fewest or not rate.max() > 0:
                continue
            height, low = int(rate.argmax()), rate <= self.spent * rate.max()
            gone = int(len(rate) - np.argmin(low[::-1]))  # the first of the rows in which it is so to the end
            if not (height < gone < len(rate) and applied[gone] <= self.half * planned):
                continue
            drops = height + 1 + np.flatnonzero(np.diff(rate[height : gone + 1]) < 0)
            apart = np.diff(applied[[height, *drops]])
            each = float(np.median(apart)) if len(apart) >= self.fewest else np.inf
            epochs = np.ptp(whole["epoch"][known[[height, gone]]])  # what waits for evaluations waits for their ends
            epochs = epochs if np.isfinite(epochs) else (applied[gone] - applied[height]) / self._epoch
            answers = self._answers(whole.step[known[height : gone + 1]], drops - height, evaluated)
            each = np.inf if epochs >= len(drops) or answers else each
            if apart.max() <= self.uneven * each < np.inf and _geometric(rate[height : gone + 1]):
                yield self._gone(name, whole, int(known[gone]), int(known[drops[0]]), each, planned)
                return

    def _answers(self, step: Steps, drops: Steps, evaluated: Steps) -> bool:
        """Whether each drop comes right after an evaluation: such a rate waits for what validation says."""
        follows = np.searchsorted(evaluated, step[1:], "right") > np.searchsorted(evaluated, step[:-1])
        return bool(follows[drops - 1].all() and follows.mean() <= self.answers)

    def _gone(self, name: str, whole: Chunk, gone: int, first: int, each: float, planned: int) -> Finding:
        rate, height = whole[name], float(np.nanmax(whole[name]))
        return self.finding(
            "warning",
            f"schedule:{name}",
            (int(whole.step[first]), int(whole.step[-1])),
            f"{name} falls by the same factor every {each:,.3g} steps from step {whole.step[first]:,} on: it is "
            f"{rate[gone]:.3g} at step {whole.step[gone]:,} of {planned:,}, a ten-thousandth of the {height:.3g} "
            "that it was, and does not rise again.",
            evidence={"value": float(rate[gone]), "height": height, "every": each, "planned": planned},
            advice="Step a scheduler that was built for epochs at the end of each epoch, not with each batch.",
            confidence=0.85,
        )

    def _told(self, *, early: bool) -> Iterator[Finding]:
        """One finding a speed, about the group that showed it first."""
        groups: dict[float, list[str]] = {}
        for name, watched in self._following.watched.items():
            if watched.streak.onset is not None and (early or watched.decided < float("inf")) and not watched.clock:
                speed = watched.settled(self.tolerance)
                if speed is not None:
                    groups.setdefault(speed, []).append(name)
        for names in groups.values():
            yield self._finding(sorted(names, key=lambda name: self._following.watched[name].decided))

    def _finding(self, names: list[str]) -> Finding:
        streaks = [self._following.watched[name].streak for name in names]
        speed = self._following.watched[names[0]].speed(self.tolerance) or 0.0
        onset, now = streaks[0].onset or {}, streaks[0].latest
        which = names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
        why = f", {self._usual[speed]}" if speed in self._usual else ""
        return self.finding(
            "warning",
            f"schedule:{names[0]}",
            (int(onset["step"]), int(max(streak.latest["step"] for streak in streaks))),
            f"{which} moves at {speed:.3g} times the declared speed{why}: it is {now['value']:.4g} at step "
            f"{now['step']:,.0f}, which its schedule gives at {speed * now['due']:,.0f}.",
            over=all(streak.over for streak in streaks),
            evidence={"speed": speed, "value": now["value"], "applied": now["applied"], "groups": len(names)},
            advice="Step the scheduler once for each optimiser step that was applied, and build it for as many.",
            confidence=0.95 if why else 0.85,
        )


def _geometric(rate: Floats) -> bool:
    """Whether a descent is as steep in its first half as in its second: a cosine falls last. In logarithms."""
    fallen = np.log(rate[0]) - np.log(np.maximum(rate, np.finfo(float).tiny))
    return bool(0.3 * fallen[-1] < fallen[len(fallen) // 2] < 0.7 * fallen[-1])

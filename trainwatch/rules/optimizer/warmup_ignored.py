"""See the rule's docstring: it is the page that `trainwatch rules warmup-ignored` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from trainwatch.copying import copied
from trainwatch.header import Header, number
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schedule import MOST, schedule_values
from trainwatch.schema import Finding
from trainwatch.stats import Streak
from trainwatch.table import Chunk


@dataclass
class WarmupIgnored(Rule):
    """A warm-up of the learning rate is declared, and the run begins at the full rate.

    What it sees:
        A schedule of `lr/<group>` with a `warmup`, and rates of at least 90 % of its start in the first half of it, row
        upon row, beginning with the first row of the run; one row, if it is the only one there and of a later step than
        the first two. Rates that are off in another way, or later, are the matter of `schedule-desync`, which this
        explains.

    Why it matters:
        Adam's first steps have the size of the rate whatever the gradient is, and its second moments are not known yet:
        large models diverge there, or start from a worse place and never tell why.

    What to do:
        Step the scheduler before the first optimiser step (a `LambdaLR` does so when it is built), attach it to the
        optimiser that is used, and look for a rate that is set again after it.

    When it is wrong:
        A warm-up of fewer than five steps is not judged. A run that goes on from a checkpoint is past its warm-up.

    References:
        Vaswani et al., "Attention is all you need" (2017); Liu et al., "On the variance of the adaptive learning rate".
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("run:schedules", "lr/<group>")
    wants: ClassVar[tuple[str, ...]] = ("applied",)
    causes: ClassVar[tuple[str, ...]] = (
        *("schedule-desync", "lr-too-high", "gradient-explosion", "gradient-spike", "loss-spike", "loss-divergence"),
        *("amp-scale-collapse", "non-finite-loss", "non-finite-gradient"),
    )

    full: float = 0.9  # of the rate after the warm-up
    early: float = 0.5  # of the warm-up: up to there no curve of it has come to 90 %
    shortest: float = 5.0  # steps: less is over before it is seen
    rows: int = 2  # in a row, or steps by the first of them: one may be logged before the scheduler was built

    _schedules: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    _streaks: dict[str, Streak] = field(default_factory=dict, init=False)
    _until: float = field(default=0.0, init=False)
    _done: bool = field(default=False, init=False)
    _right: set[str] = field(default_factory=set, init=False)  # groups of which a row was as declared: none is ignored

    def start(self, header: Header) -> Findings:
        """The schedules that declare a warm-up."""
        for name, said in list(header.schedules.items())[:MOST]:
            warmup = number(said.get("warmup")) or 0.0
            known = schedule_values(said, 0.0) is not None and (number(said.get("start")) or 0.0) > 0
            if (
                name.startswith("lr/")
                and known
                and warmup >= self.shortest
                and said.get("clock", "applied") == "applied"
            ):
                self._schedules[name] = said
                self._until = max(self._until, (number(said.get("begin")) or 0.0) + self.early * warmup)
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Nothing to do once the first half of the warm-up is over."""
        if not self._schedules or self._done:
            return
        self._look(chunk)
        if self._done and self._sick():
            yield self._finding()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """The rows that fill no block yet, on a copy."""
        if self._schedules and not self._done:
            trial = copied(self)
            trial._look(rest)
            if trial._sick():
                yield trial._finding()

    def _look(self, chunk: Chunk) -> None:
        """The rows up to the first that is past the first half of the warm-up."""
        applied = chunk.applied()
        past = np.flatnonzero(applied >= self._until)
        rows = np.arange(len(chunk)) < (past[0] if len(past) else len(chunk))
        self._done = len(past) > 0
        for name, said in self._schedules.items():
            begin, start, warmup = (number(said.get(key)) or 0.0 for key in ("begin", "start", "warmup"))
            rate = chunk[name]
            early = rows & (applied >= begin) & (applied < begin + self.early * warmup) & np.isfinite(rate)
            high = rate >= self.full * start
            if not high[early].all():
                self._right.add(name)
            columns = {"step": chunk.step.astype(np.float64), "rate": rate}
            columns["due"] = start * np.maximum(applied - begin, 0.0) / warmup
            sparse = bool((applied[early] - begin > self.rows).all())  # a log of each tenth step has one row or none
            if early.any():
                streak = self._streaks.setdefault(name, Streak(1 if sparse else self.rows))
                streak.push(high[early], {key: values[early] for key, values in columns.items()})

    def _sick(self) -> list[str]:
        return [name for name, streak in self._streaks.items() if streak.onset is not None and name not in self._right]

    def _finding(self) -> Finding:
        names = self._sick()
        streak, said = self._streaks[names[0]], self._schedules[names[0]]
        onset, now = streak.onset or {}, streak.latest
        more = f" (and {len(names) - 1} more groups)" if len(names) > 1 else ""
        return self.finding(
            "warning",
            f"schedule:{names[0]}",
            (int(onset["step"]), int(now["step"])),
            f"{names[0]}{more} is {onset['rate']:.3g} at step {onset['step']:,.0f}, where its declared warm-up of "
            f"{float(said['warmup']):,.0f} steps gives {onset['due']:.3g}: the warm-up is ignored.",
            over=True,
            evidence={"rate": onset["rate"], "declared": onset["due"], "warmup": float(said["warmup"])},
            advice="Step the scheduler before the first optimizer step, and set the rate nowhere else.",
            confidence=0.95,
        )

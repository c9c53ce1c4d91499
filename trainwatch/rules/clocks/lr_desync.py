"""See the rule's docstring: it is the page that `trainwatch rules lr-desync` prints."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar

from trainwatch.header import Header, mapping, number
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk
from trainwatch.views.following import Following


@dataclass
class LrDesync(Rule):
    """The learning rate moves along its declared schedule at another speed than the steps do.

    What it sees:
        Every recorded `lr/<group>` with a declared schedule. Where it is off, the one constant speed k that gives all
        its values: k = 0.5, 2, 4 ... Groups with the same k are reported as one. Where a recorded clock explains the
        values, or nothing does, `schedule-desync` says so.

    Why it matters:
        At k = 4 the rate is at its floor after a quarter of the run, and three quarters of the steps learn next to
        nothing; at k = 0.5 the run ends in the middle of its plan, and never gets the low rate that the end needs.

    What to do:
        Step the scheduler once for each optimiser step that was applied: not for each micro-batch (k is the
        accumulation), not once more in every process (k is their number), not in two places (k = 2). A schedule built
        for too many steps moves at the inverse of that.

    When it is wrong:
        The declaration may be out of date instead of the run: then correct it.

    References:
        accelerate #963, #2142, #2926 (scheduler stepped once a process); transformers #24088.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("run:schedules", "lr/<group>")
    wants: ClassVar[tuple[str, ...]] = ("applied", "run:total_steps", "run:horizon")
    causes: ClassVar[tuple[str, ...]] = (
        *("schedule-desync", "schedule-unfinished", "warmup-ignored"),
        *("lr-zero", "lr-too-low", "lr-too-high", "loss-plateau", "slow-convergence"),
    )

    tolerance: float = 0.01  # relative; values that are logged in three digits are within it
    rows: int = 5  # in a row: less is a value that was logged late around a boundary
    drift: float = 0.01  # of the schedule's length: a rate that follows a clock this close to the step is forgiven
    held: float = 0.1  # of the schedule's length: in longer epochs, a rate held for one is not what was declared

    _following: Following = field(default_factory=lambda: Following(1, 0.0, 0.0, 0.0), init=False)
    _usual: dict[float, str] = field(default_factory=dict, init=False)

    def start(self, header: Header) -> Findings:
        """The rates that have a formula, and the numbers that usually are such a speed."""
        self._following = Following(self.rows, self.tolerance, self.drift, self.held, "lr/")
        self._following.start(header)
        horizon = mapping(header.raw.get("horizon"))
        for name, what in (("processes", "processes"), ("accumulation", "micro-batches a step")):
            count = number(horizon.get(name))
            if count and count > 1:
                self._usual |= {count: f"the number of {what}", 1 / count: f"one over the number of {what}"}
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """What is decided; as long as it is not, ``finish`` says what it looks like."""
        if self._following.push(chunk):
            yield from self._told(early=False)

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:  # noqa: ARG002
        """The rows that fill no block, to a copy."""
        now = deepcopy(self)
        now._following.push(rest)
        yield from now._told(early=True)

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

"""See the rule's docstring: it is the page that `trainwatch rules schedule-desync` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.schedule import schedule_values
from trainwatch.schema import Finding
from trainwatch.table import Chunk
from trainwatch.views.following import Following, driven_by


@dataclass
class ScheduleDesync(Rule):
    """A scheduled value is not what its declared function gives at this step.

    What it sees:
        Every recorded `schedule/<name>`, `lr/<group>` and `weight/<component>` that the header declares a schedule for,
        against that schedule at the reading of the clock that it declares, or one tick before; if it declares none, at
        the applied step (the count of those that the optimiser took, not those that the scaler skipped). It names the
        recorded clock, or the constant speed, that would explain the values. Whether a declared clock is right is asked
        by `clock-desync`; a learning rate whose speed is known is reported by `lr-desync`, and only mentioned here.

    Why it matters:
        A learning rate that decays four times too fast, or a penalty that never ramps up, leaves no mark on the loss
        curve but a worse end. Hyper-parameters are then tuned around a fault.

    What to do:
        Find the counter that the schedule is called with, and make it the counter of applied steps. A speed of k
        usually is the accumulation, the number of processes, or a scheduler that is stepped in two places.

    When it is wrong:
        The declaration may be out of date instead of the run: then correct it. Schedules that answer to the loss
        (plateau) have no formula and are not judged, nor are steps that the gradient scaler skipped. A schedule that is
        stepped once an epoch is forgiven, as long as an epoch is no more than a tenth of its length.

    References:
        accelerate #963 and #2142 (scheduler stepped once a process); transformers #24088.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("run:schedules", "schedule/<name>|lr/<group>|weight/<component>")
    wants: ClassVar[tuple[str, ...]] = ("applied", "clock/<name>", "run:total_steps")
    causes: ClassVar[tuple[str, ...]] = ("schedule-unfinished", "lr-zero", "lr-too-low", "lr-too-high")

    tolerance: float = 0.01  # relative; values that are logged in three digits are within it
    rows: int = 5  # in a row: less is a value that was logged late around a boundary
    drift: float = 0.01  # of the schedule's length: a value that follows a clock this close to the step is forgiven
    held: float = 0.1  # of the schedule's length: in longer epochs, a value held for one is not what was declared
    _following: Following = field(default_factory=lambda: Following(1, 0.0, 0.0, 0.0), init=False)

    def start(self, header: Header) -> Findings:
        """The schedules that have a formula."""
        self._following = Following(self.rows, self.tolerance, self.drift, self.held)
        self._following.start(header)
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """One pass a schedule; clocks are looked at only where the value is off."""
        for name in self._following.push(chunk):
            yield self._finding(name)

    def _finding(self, name: str) -> Finding:
        watched = self._following.watched[name]
        onset, now, declared = watched.streak.onset or {}, watched.streak.latest, watched.declared
        expected = float((schedule_values(declared, now["due"]) if declared else None) or 0.0)
        meant = "the applied steps" if driven_by(declared) == "applied" else f"the {driven_by(declared)} counter"
        evidence: dict[str, float | str] = {"value": now["value"], "declared": expected, "applied": now["applied"]}
        why, clock, speed = "no recorded clock explains it", watched.clock, watched.speed(self.tolerance)
        if clock is not None:
            follows = "the applied steps" if clock == "applied" else f"the {clock} counter"
            why, evidence["clock"] = f"it follows {follows} instead of {meant}", clock
        elif speed is not None:
            why, evidence["speed"] = f"it moves at {speed:.3g} times the declared speed", speed
        settled = watched.settled(self.tolerance) if name.startswith("lr/") and clock is None else None
        return self.finding(
            "info" if settled else "warning",  # lr-desync tells of it
            f"component:{name.removeprefix('weight/')}" if name.startswith("weight/") else f"schedule:{name}",
            (int(onset["step"]), int(now["step"])),
            f"{name} is {now['value']:.4g} at step {now['step']:,.0f}, where its declared {declared['kind']} schedule "
            f"gives {expected:.4g}; {why}.",
            over=watched.streak.over,
            evidence=evidence,
            advice=f"Call {name}'s schedule with {meant}, once a step; or correct its declaration.",
            confidence=0.9,
        )

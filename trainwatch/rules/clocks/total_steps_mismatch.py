"""See the rule's docstring: it is the page that `trainwatch rules total-steps-mismatch` prints."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.copying import copied
from trainwatch.header import Header, mapping, number, settings
from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk
from trainwatch.views.evaluations import flattened, held_out
from trainwatch.views.games import paid

ACCUMULATION = re.compile(r"(.*[._])?(grad\w*_)?accum\w*")
"""Settings that say of how many micro-batches a step is made; whatever else is so called is no small number."""

EVALUATIONS = 3
"""Of so many at least the last is the best: of two it would be by half a chance."""


@dataclass
class TotalStepsMismatch(Rule):
    """The planned steps are not what the data and the batches give, or not what the run takes.

    What it sees:
        `total_steps` against epochs x batches / accumulation, where an epoch has floor or ceil of samples / batch size
        batches and either rounding of an incomplete group is right; before the first step. And the applied steps (those
        that the optimiser took, not those that the scaler skipped) once they pass the planned ones. It names the factor
        that explains the difference. Of a run that finished: the plan is to the step the accumulation times what it
        took, and another schedule ends just there, or validation had no reason to stop it: its last evaluation is its
        best.

    Why it matters:
        Warm-up, annealing and curriculum are shares of that number. If micro-batches or every process's batches are
        counted, the run ends in the middle of its schedules; if it goes on past its end, it goes on at the last rate.

    What to do:
        Count optimiser steps: per epoch ceil(batches / accumulation), batches = floor(samples / batch size) if the last
        incomplete one is dropped, else ceil; the batch being that of all processes together.

    When it is wrong:
        A plan of steps beside a number of epochs that is only an upper bound: fewer steps than the data gives are
        only mentioned, unless a factor explains them; so is a run that has passed its plan by less than a fifth.

    References:
        transformers: num_update_steps_per_epoch = len(dataloader) // gradient_accumulation_steps.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("run:total_steps",)
    wants: ClassVar[tuple[str, ...]] = ("run:horizon", "applied")
    causes: ClassVar[tuple[str, ...]] = (
        *("lr-desync", "schedule-desync", "schedule-unfinished", "curriculum-unreachable", "lr-zero", "lr-too-low"),
    )

    tolerance: float = 0.02  # relative: workers and processes that round for themselves stay within it
    grave: float = 0.2  # of the plan: trainers that are told to stop go on for a few more steps, OLMo's for ten
    unit: float = 100.0  # times: so far off, step and total count different things, and nothing is said

    _total: int = field(default=0, init=False)
    _told: bool = field(default=False, init=False)  # already, of the plan; or the run began past it
    _seen: int = field(default=0, init=False)
    _past: int = field(default=-1, init=False)  # the first step beyond the plan
    _last: tuple[int, float] = field(default=(0, 0.0), init=False)  # the last one beyond it, and its count

    def start(self, header: Header) -> Iterator[Finding]:
        """The plan against its own arithmetic."""
        self._total = header.total_steps or 0
        known = _planned(mapping(header.raw.get("horizon")))
        if not self._total or known is None:
            return
        low, high, factors = known
        if low * (1 - self.tolerance) <= self._total <= high * (1 + self.tolerance):
            return
        why, wrong = next(((what, wrong) for what, steps, wrong in factors if self._alike(steps)), ("", False))
        at, off = header.resumed_from or 0, self._total / high if self._total > high else self._total / low
        self._told = True
        paths = settings(header.config, "steps", self._total)
        yield self.finding(
            "warning" if wrong or self._total > high else "info",
            "run",
            (at, at),
            f"The run is planned for {self._total:,} steps, and its data gives {_span(low, high)}"
            f"{f': {why}' if why else ''}.",
            evidence={"total_steps": self._total, "least": low, "most": high, "factor": off},
            advice=f"Plan {_span(low, high)} steps, or change the epochs.",
            patch={paths[0]: high} if wrong and len(paths) == 1 else {},
            confidence=0.9 if wrong else 0.7,
        )

    def _alike(self, steps: float) -> bool:
        return abs(self._total - steps) <= self.tolerance * steps

    def update(self, chunk: Chunk) -> Findings:
        """One comparison with the plan."""
        applied = chunk.applied()
        if not self._total or not len(applied):
            return ()
        if not self._seen:
            self._told |= bool(applied[0] > self._total)  # it counts on from another run
        self._seen += len(applied)
        over = np.flatnonzero(applied > self._total)
        if not self._told and len(over):
            self._past = int(chunk.step[over[0]]) if self._past < 0 else self._past
            self._last = int(chunk.step[over[-1]]), float(applied[over[-1]])
        return ()

    def _beyond(self) -> Iterator[Finding]:
        """The run as it stands: a count that goes on may turn out to be of something else."""
        step, last = self._last
        if self._total * (1 + self.tolerance) < last < self.unit * self._total:
            yield self.finding(
                "warning" if last > (1 + self.grave) * self._total else "info",
                "run",
                (self._past, step),
                f"The run is at step {last:,.0f} of {self._total:,} planned ones: every schedule is at its end.",
                evidence={"total_steps": self._total, "applied": last, "factor": last / self._total},
                advice="Stop it, or count the steps again that the data gives and build the schedules for those.",
                confidence=0.9,
            )

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """The rows that fill no block, to a copy; and a run that finished early."""
        trial = copied(self)
        trial.update(rest)
        yield from trial._beyond()
        if not self._total or self._told or run.end is None or run.end.get("status") != "finished":
            return
        size = run.train.size
        last = np.nanmax([run.last_step or 0, *run.train.column("applied", max(size - 1, 0), size)])
        if 0 < last < (1 - self.tolerance) * self._total and not run.end.get("reason"):
            counted = self._micro_batches(run, float(last))
            why = ", and the plan looks like the count of micro-batches"
            yield self.finding(
                "warning" if counted else "info",
                "run",
                (0 if counted else int(last), int(last)),
                f"The run finished at step {last:,.0f} of {self._total:,} planned ones{why if counted else ''}.",
                evidence={"total_steps": self._total, "applied": float(last), "factor": float(last / self._total)},
                advice="Divide the planned steps by the accumulation, and every length that was taken from them."
                if counted
                else "If nothing stopped it early, the plan counts steps that the data does not give.",
                confidence=0.8 if counted else 0.6,
            )

    def _micro_batches(self, run: Run, last: float) -> bool:
        """Whether the plan is to the step the accumulation times what the run took, and a schedule of the same header
        was made for what it took, or validation had no reason to stop it. Either may be chance in a run that was ended
        early; both are two counts of one thing.
        """
        header = run.header
        groups = {number(value) for path, value in flattened(header.config) if ACCUMULATION.fullmatch(path)}
        groups |= {number(mapping(header.raw.get("horizon")).get("accumulation"))}
        lengths = [number(form.get("over_steps")) for form in header.schedules.values()]
        fits = any(abs(length - last) <= 1 for length in lengths if length is not None)
        counted = any(group > 1 and abs(group * last - self._total) < group for group in groups if group)
        return counted and (fits or _improving(run))


def _improving(run: Run) -> bool:
    """Whether its last evaluation is its best, so that nothing stops it early who looks at those: by its loss, or else
    by what a policy is paid.
    """
    cost, reward = held_out(run)[1], paid(run.eval.channels)
    if not len(cost) and reward:
        cost = -held_out(run, reward)[1]
    return len(cost) >= EVALUATIONS and int(cost.argmin()) == len(cost) - 1


def _planned(horizon: dict[str, object]) -> tuple[int, int, list[tuple[str, float, bool]]] | None:
    """Least and most steps that a horizon may mean, and what other counts of it come to; None if it does not say.

    Of those, whether the count of steps is the wrong one, or else the horizon.
    """
    size = {
        name: number(horizon.get(name)) for name in ("epochs", "samples", "batch_size", "accumulation", "processes")
    }
    epochs, samples, batch = size["epochs"], size["samples"], size["batch_size"]
    group, processes = size["accumulation"] or 1.0, size["processes"] or 1.0
    if not epochs or not samples or not batch or min(epochs, samples, batch, group, processes) <= 0:
        return None
    if not samples / batch * epochs < 1e15:
        return None
    fewest, most = math.floor(samples / batch), math.ceil(samples / batch)
    dropped = horizon.get("drop_last")
    fewest, most = (fewest if dropped is not False else most), (most if dropped is not True else fewest)
    low, high = math.floor(epochs * math.floor(fewest / group)), math.ceil(epochs * math.ceil(most / group))
    if high < 1:
        return None
    factors = [("epochs were not rounded one by one", epochs * samples / batch / group, True)]
    if group > 1:
        factors += [("micro-batches were counted", epochs * most, True)]
        factors += [("its batch size may count the whole group", high / group, False)]
    if processes > 1:
        factors += [("every process's batches were counted", high * processes, True)]
        factors += [("its batch size may be that of one process", high / processes, False)]
    if epochs > 1:
        factors += [("that is one epoch", high / epochs, False)]
    return max(low, 1), high, factors


def _span(low: int, high: int) -> str:
    return f"{high:,}" if low == high else f"{low:,} to {high:,}"

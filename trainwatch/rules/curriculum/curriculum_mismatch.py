"""See the rule's docstring: it is the page that `trainwatch rules curriculum-mismatch` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from trainwatch.header import Curriculum, Header, settings
from trainwatch.rule import Findings, Rule
from trainwatch.schema import Finding
from trainwatch.table import Chunk


@dataclass
class CurriculumMismatch(Rule):
    """The curriculum that runs is not the one that the config declares.

    What it sees:
        The identity of both: the curriculum that the config names against the object that the loop uses. They may begin
        alike for thousands of steps, so their values need not differ yet. Where the running one is not recorded, the
        weights of the first rows are held against every stage that was declared.

    Why it matters:
        The run trains something else than what its name says: every result is filed under a plan that was never
        followed. It shows only when the plans part, days later, as a loss that jumps for no visible reason.

    What to do:
        Stop the run; nothing is lost yet. Find the import or the default that picks the running curriculum, and take it
        from the config instead. Then start again: a mixed run is neither plan.

    When it is wrong:
        Two names for the same stages are only mentioned. Stages that were edited on purpose after the config was
        written are a mismatch all the same: declare what runs.

    References:
        A published peptide sequencer ran DEFAULT where EXTENDED was meant: the weight of its mass loss rose to 12 times
        what was planned (jasegehring/pepTRM).
    """

    needs: ClassVar[tuple[str, ...]] = ("run:curriculum|run:config",)
    wants: ClassVar[tuple[str, ...]] = ("run:curriculum_running", "weight/<component>")
    causes: ClassVar[tuple[str, ...]] = (
        *("curriculum-weight-drift", "aggressive-ramp", "loss-scale-imbalance", "curriculum-shock"),
        *("curriculum-stuck", "stale-data", "gradient-dominance", "gradient-explosion", "gradient-spike"),
        *("clipping-saturated", "component-ignored", "component-divergence", "loss-divergence", "loss-spike"),
        *("non-finite-loss", "non-finite-gradient", "curriculum-unreachable"),
    )

    foreign_rows: int = 20  # in a row whose weights fit no declared stage: fewer may be a ramp that was not declared
    tolerance: float = 0.01  # relative; a weight that is told in three digits is within it

    _declared: Curriculum | None = field(default=None, init=False)
    _judge_rows: bool = field(default=False, init=False)
    _strange: int = field(default=0, init=False)
    _first: int = field(default=0, init=False)

    def start(self, header: Header) -> Iterator[Finding]:
        """All identities stand in the header, so this is known before the first step."""
        named, declared, running = _named_in(header.config), header.curriculum, header.curriculum_running
        self._declared = declared
        self._judge_rows = declared is not None and running is None and declared.ramp == "step"
        meant = declared or named
        if meant is not None and running is not None and not _alike(meant, running):
            yield self._mismatch(header, meant, running, "the loop runs", 1.0)
        elif named is not None and declared is not None and not _same_name(named, declared):
            yield self._mismatch(header, named, running or declared, "the run was told", 0.9)

    def _mismatch(
        self, header: Header, meant: Curriculum, running: Curriculum, verb: str, confidence: float
    ) -> Finding:
        at = header.resumed_from or 0
        if meant.stages and meant.stages == running.stages:
            message = f"The config says {meant.name} and the loop {running.name}, but their stages are the same."
            return self.finding("info", "run", (at, at), message, advice="Give one plan one name.")
        evidence: dict[str, float | int | str] = {"declared": meant.name, "running": running.name}
        message = f"The config declares curriculum {meant.name}, but {verb} {running.name}"
        message += f" (from {running.source})" if running.source else ""
        parting = _parting(meant, running)
        if parting is not None:
            step, component, planned, actual = parting
            message += (
                f"; they part at step {step:,.0f}, where the {component} weight is {actual:g} instead of {planned:g}"
            )
            evidence |= {"parts_at_step": step, "component": component}
            evidence |= {"planned_weight": planned, "running_weight": actual}
        return self.finding(
            "critical",
            "run",
            (at, at),
            f"{message}.",
            evidence=evidence,
            advice=f"Stop, make the loop take its curriculum from the config ({meant.name}), and start again.",
            patch=dict.fromkeys(settings(header.config, "curriculum", running.name), meant.name),
            confidence=confidence,
        )

    def update(self, chunk: Chunk) -> Findings:
        """Without a recorded identity: do the first rows' weights belong to any declared stage?"""
        if not self._judge_rows or self._declared is None or not self._declared.stages:
            return
        fits = _fits_a_stage(self._declared, chunk, self.tolerance)
        known = self.foreign_rows - self._strange
        if fits[:known].any():
            self._judge_rows = False  # it began as declared: later differences are another rule's
            return
        if not self._strange and len(chunk):
            self._first = int(chunk.step[0])
        self._strange += min(len(fits), known)
        if self._strange >= self.foreign_rows:
            self._judge_rows = False
            at = int(chunk.step[known - 1])
            yield self.finding(
                "critical",
                "run",
                (self._first, at),
                f"The weights of the first {self.foreign_rows} steps fit no stage of {self._declared.name}, "
                "the curriculum that the config declares.",
                advice="Record the curriculum that the loop uses (curriculum_running=...) and compare both.",
                confidence=0.8,
            )


def _alike(declared: Curriculum, running: Curriculum) -> bool:
    """Whether both are the same plan under the same name; what one of them does not tell is not held against it."""
    if declared.name.casefold() != running.name.casefold():
        return False
    if declared.stages and running.stages:
        return _plan(declared) == _plan(running) and declared.ramp == running.ramp
    return not declared.sha256 or not running.sha256 or declared.sha256 == running.sha256


def _plan(curriculum: Curriculum) -> list[tuple[Any, ...]]:
    return [(stage.start, stage.end, stage.weights, stage.data) for stage in curriculum.stages]


def _parting(declared: Curriculum, running: Curriculum) -> tuple[float, str, float, float] | None:
    """The first step at which a weight differs: (step, component, declared weight, running weight).

    Of several that part there, the one that goes furthest astray later on.
    """
    if not declared.stages or not running.stages:
        return None
    gaps: list[tuple[float, dict[str, tuple[float, float]]]] = []
    for step in sorted({stage.start for stage in (*declared.stages, *running.stages)}):
        planned, actual = (plan.stages[plan.at(step)].weights for plan in (declared, running))
        differing = {
            name: (planned[name], actual[name]) for name in planned if actual.get(name, planned[name]) != planned[name]
        }
        if differing:
            gaps.append((step, differing))
    if not gaps:
        return None
    step, first = gaps[0]
    name = max(first, key=lambda name: max(abs(b - a) for _, later in gaps for a, b in [later.get(name, (0.0, 0.0))]))
    return step, name, *first[name]


NO_NAMES = frozenset(["true", "false", "yes", "no", "on", "off", "none", "null", "auto", "linear", "cosine", "step"])


def _named_in(config: dict[str, Any]) -> Curriculum | None:
    """A curriculum that the config only names, anywhere in it: ``curriculum: EXTENDED``, ``curriculum_name: EXTENDED``
    or ``curriculum: {name: EXTENDED}``; the outermost one."""
    said = config.get("curriculum", config.get("curriculum_name"))
    said = said.get("name") if isinstance(said, dict) else said
    if isinstance(said, str) and re.fullmatch(r"[\w-]+", said) and said.casefold() not in NO_NAMES:
        return Curriculum.parse({"name": said})
    below = (_named_in(item) for item in config.values() if isinstance(item, dict))
    return next((found for found in below if found is not None), None)


def _same_name(one: Curriculum, other: Curriculum) -> bool:
    """Whether two names may mean one plan: ``extended`` and ``EXTENDED-v2`` may."""
    first, second = one.name.casefold(), other.name.casefold()
    return first in second or second in first


def _fits_a_stage(declared: Curriculum, chunk: Chunk, tolerance: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """bool [rows]: the recorded weights are those of some declared stage; True where no weight is recorded."""
    fits = np.zeros(len(chunk), dtype=bool)
    for stage in declared.stages:
        here = np.ones(len(chunk), dtype=bool)
        for name, weight in stage.weights.items():
            applied = chunk[f"weight/{name}"]
            here &= np.isnan(applied) | (np.abs(applied - weight) <= tolerance * abs(weight))
        fits |= here
    return fits

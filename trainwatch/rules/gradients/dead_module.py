"""See the rule's docstring: it is the page that `trainwatch rules dead-module` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.schema import Finding
from trainwatch.stats import Streak
from trainwatch.table import Chunk

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
MOST = 256  # modules that are followed: more of them is a log to be distrusted


@dataclass
class DeadModule(Rule):
    """A module's gradient is exactly zero, while others have one.

    What it sees:
        A `grad_norm/<module>` of exactly 0 in twenty rows in a row in which some other module's is above 0. A frozen
        module has no norm at all, so this one is meant to be trained. Where a loss component is switched off in those
        rows (weight 0, or a loss of exactly 0) it is an info: the module may serve that one alone, if it never had a
        gradient while that one was off; but not if the whole loss is one number in all of them, for then no batch makes
        a difference to any output.

    Why it matters:
        The module stays what it was. Nobody sees it in the loss, for the others learn around it.

    What to do:
        Look for units that are all dead (ReLU after a step that was too large), a factor of 0, a mask or a gate that is
        always shut, `argmax` or rounding in the way, or a half-precision gradient that underflows.

    When it is wrong:
        Experts that no token is routed to, heads of a task that the data does not hold yet: declare the weight of their
        loss as 0, or freeze them.

    References:
        Lu et al., "Dying ReLU and initialization" (2020).
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("grad_norm/<module>",)
    wants: ClassVar[tuple[str, ...]] = ("weight/<component>", "loss/<component>")
    causes: ClassVar[tuple[str, ...]] = (
        *("group-unmoved", "loss-stuck", "loss-plateau", "lr-too-low", "evaluation-unchanged"),
    )

    rows: int = 20  # in a row: gates that begin at 0 open within two, and turns of two optimisers are shorter
    same: float = 1e-4  # relative range of a loss that is one number: what batches make of it is a hundred times that

    _frozen: set[str] = field(default_factory=set, init=False)  # channels of modules that the header says are frozen
    _streaks: dict[str, Streak] = field(default_factory=dict, init=False)
    _off: dict[str, int] = field(default_factory=dict, init=False)  # rows in which a component was switched off
    _range: dict[str, tuple[float, float]] = field(default_factory=dict, init=False)  # of the loss in rows of 0
    _serves: dict[str, set[str]] = field(default_factory=dict, init=False)  # other components than those, by module

    def start(self, header: Header) -> Findings:
        """What is frozen may still carry the gradient of an earlier training, which clipping wears away."""
        self._frozen = {f"grad_norm/{module.name}" for module in header.modules if module.trainable == 0}
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Most modules have no zero, and are done with one comparison."""
        names = [name for name in chunk.channels if name.startswith("grad_norm/") and name not in self._frozen][:MOST]
        alive: Bools | None = None
        off = _switched_off(chunk)
        for name in names:
            norm = chunk[name]
            explained = self._explained(name, norm > 0, off)
            zero = norm == 0
            if name not in self._streaks and not zero.any():
                continue
            if alive is None:
                alive = np.any([chunk[other] > 0 for other in names], axis=0)
            judged = np.isfinite(norm) & alive
            streak = self._streaks.setdefault(name, Streak(self.rows))
            self._off[name] = self._off.get(name, 0) + int((explained & judged & zero).sum())
            self._span(name, chunk["loss"][judged & zero])
            if streak.push(zero[judged], {"step": chunk.step[judged].astype(np.float64)}):
                yield self._finding(name.removeprefix("grad_norm/"), streak)

    def _span(self, name: str, loss: Floats) -> None:
        """How far apart the losses are in the rows of a module without a gradient."""
        low, high = self._range.get(name, (np.inf, -np.inf))
        self._range[name] = float(np.fmin.reduce(loss, initial=low)), float(np.fmax.reduce(loss, initial=high))

    def _explained(self, name: str, lives: Bools, off: Mapping[str, Bools]) -> Bools:
        """Rows in which a component is off without which this module was never seen to have a gradient. bool [rows]"""
        explained, serves = np.zeros(len(lives), dtype=bool), self._serves.setdefault(name, set())
        for component, rows in off.items():
            seen = np.logical_or.accumulate(rows & lives) if component not in serves else np.ones(len(rows), dtype=bool)
            explained |= rows & ~seen
            if seen.any():
                serves.add(component)
        return explained

    def _finding(self, module: str, streak: Streak) -> Finding:
        onset, now, name = streak.onset or {}, streak.latest, f"grad_norm/{module}"
        low, high = self._range[name]
        stuck = 0 <= high - low <= self.same * max(abs(low), abs(high))  # without a recorded loss: -inf
        off = 2 * self._off[name] >= streak.bad and not stuck
        why = "; a loss component is switched off meanwhile" if off else ", while that of others is not"
        return self.finding(
            "info" if off else "warning",
            f"module:{module}",
            (int(onset["step"]), int(now["step"])),
            f"The gradient of {module} is exactly 0 in {streak.bad:,} rows from step {onset['step']:,.0f} on{why}.",
            over=streak.over,
            evidence={"rows": streak.bad},
            advice=f"Find what cuts {module} off: dead units, a shut gate or mask, a factor of 0; or freeze it.",
            confidence=0.6 if off else 0.85,
        )


def _switched_off(chunk: Chunk) -> dict[str, Bools]:
    """By component that has weight 0 or a loss of exactly 0 in some row: in which. bool [rows]"""
    names = [name for name in chunk.channels if name.startswith(("weight/", "loss/"))][:MOST]
    zeros = {name: chunk[name] == 0 for name in names}
    return {name: rows for name, rows in zeros.items() if rows.any()}

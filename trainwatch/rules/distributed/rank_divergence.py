"""See the rule's docstring: it is the page that `trainwatch rules rank-divergence` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.rule import Rule
from trainwatch.schema import Finding, Severity
from trainwatch.stats import Floats, Streak
from trainwatch.views.ranks import Abreast

SPELT = 8  # ranks that are spelt out


@dataclass
class RankDivergence(Rule):
    """Replicas of one model are no longer the same on all ranks.

    What it sees:
        The first step whose parameter hash differs between ranks, and the rank that is alone with its own. Hashes are
        exact, so one is enough. Between two hashes, and without any, the norm of the gradient and the loss: only where
        they agreed to the sixth digit on all ranks for a window, and then differ in the third for 5 rows. A loss of
        each rank's own samples never agrees, and says nothing.

    Why it matters:
        Every rank adds its gradient to another model. The loss still falls for long, and what is saved (rank 0's copy)
        was never the model that was trained.

    What to do:
        From the named step look for what one rank does alone: a step skipped on one rank, a branch on local data, a
        parameter outside of DDP, random numbers in the optimiser, a checkpoint loaded on rank 0 only. Broadcast the
        parameters of rank 0, or resume all ranks from one checkpoint. To have it recorded: `watch.param_hash()` before
        `watch.step()`, on all ranks, now and then.

    When it is wrong:
        Where each rank holds other weights by design (pipelines, tensor or expert parallel) hashes differ from the
        first on: do not record them. Different kinds of GPU may round differently.

    References:
        TrainCheck (OSDI 2025), whose relation Consistent this is; DDP's own check of shapes at the start only.
    """

    needs: ClassVar[tuple[str, ...]] = ("run:world_size", "param_hash|grad_norm|loss")
    wants: ClassVar[tuple[str, ...]] = ("param_hash", "grad_norm")
    causes: ClassVar[tuple[str, ...]] = ("loss-divergence", "loss-plateau", "noisy-evaluation")

    same: float = 1e-6  # relative: reduced values agree to the last bit, or nearly, on all ranks
    apart: float = 1e-3  # relative: no order of summation comes to that
    agreed: int = 20  # rows in a row: a window in which they were shown to be the same number
    rows: int = 5  # in a row: one row may be recorded in another order on one rank

    _hashed: tuple[int, int] | None = field(default=None, init=False)
    _last_same: int = field(default=-1, init=False)
    _healed: bool = field(default=False, init=False)
    _ranks: tuple[int, ...] = field(default=(), init=False)
    _alike: dict[str, Streak] = field(default_factory=dict, init=False)
    _differ: dict[str, Streak] = field(default_factory=dict, init=False)

    def abreast(self, rows: Abreast) -> Iterator[Finding]:
        """Whole columns; only the first step that differs is looked at."""
        changed = [self._values(rows, name) for name in ("grad_norm", "loss") if name in rows]
        if "param_hash" in rows:
            changed.append(self._hashes(rows, rows["param_hash"]))
        parted = self._parted()
        if self._hashed is not None and any(changed):
            yield self._by_hash(self._hashed)
        elif parted is not None:
            yield self._by_values(*parted)

    def _hashes(self, rows: Abreast, hashes: Floats) -> bool:
        """Hashes are compared to the last bit."""
        known = np.isfinite(hashes).all(axis=0)
        differ = known & (hashes != hashes[0]).any(axis=0)
        where, same = np.flatnonzero(differ), np.flatnonzero(known & ~differ)
        if len(where):
            first = int(where[0])
            if self._hashed is None:
                before = same[same < first]
                self._last_same = int(rows.step[before[-1]]) if len(before) else self._last_same
                self._ranks = _odd(rows.ranks, hashes[:, first])
                self._hashed = (int(rows.step[first]), 0)
            self._hashed = (self._hashed[0], int(rows.step[where[-1]]))
        elif len(same) and self._hashed is None:
            self._last_same = int(rows.step[same[-1]])
        if len(where) or len(same):
            self._healed = len(same) > 0 and (not len(where) or same[-1] > where[-1])
        return self._hashed is not None

    def _values(self, rows: Abreast, name: str) -> bool:
        """Numbers that were the same on all ranks, and are no longer."""
        values = rows[name]
        known = np.isfinite(values).all(axis=0)
        if not known.any():
            return False
        values, step = values[:, known], rows.step[known].astype(np.float64)
        low, high = values.min(axis=0), values.max(axis=0)
        spread = (high - low) / np.maximum(np.maximum(np.abs(low), np.abs(high)), np.finfo(np.float64).tiny)
        alike = self._alike.setdefault(name, Streak(self.agreed))
        if alike.onset is None:
            alike.push(spread <= self.same, {"step": step})
        since = alike.believed.get("step", np.inf)
        differ = self._differ.setdefault(name, Streak(self.rows))
        named = {str(rank): values[index] for index, rank in enumerate(rows.ranks)}
        return differ.push((spread > self.apart) & (step > since), {"step": step, "spread": spread, **named})

    def _parted(self) -> tuple[str, Streak] | None:
        """The number that parted first, if one did."""
        parted = {name: streak for name, streak in self._differ.items() if streak.onset is not None}
        first = min(parted, key=lambda name: (parted[name].onset or {})["step"], default="")
        return (first, parted[first]) if first else None

    def _by_hash(self, at: tuple[int, int]) -> Finding:
        """Proved; a number that parted since the last equal hash tells the step more exactly."""
        first, parted = at[0], self._parted()
        what = f"the parameters' hash at step {first:,} is not the same on all ranks"
        if self._last_same >= 0:
            what += f" (it was at step {self._last_same:,})"
        if parted is not None and parted[1].believed["step"] <= first:
            step = int((parted[1].onset or {})["step"])
            if step > self._last_same:
                what, first = f"{what}, and the {WORDS[parted[0]]} parts at step {step:,}", step
        return self._told("critical", self._ranks, (first, at[1]), what, self._healed)

    def _by_values(self, name: str, streak: Streak) -> Finding:
        """Likely; unless a hash agrees after it: then these numbers have become each rank's own."""
        onset = streak.onset or {}
        ranks = tuple(int(key) for key in onset if key.isdigit())
        values = np.array([onset[str(rank)] for rank in ranks])
        odd = _odd(ranks, np.round(values / (float(np.median(np.abs(values))) or 1.0), 4))  # apart is a thousandth
        what = f"the {WORDS[name]}, which agreed on all ranks, differs by {onset['spread']:.2g} of it"
        steps = (int(onset["step"]), int(streak.latest["step"]))
        cleared = self._last_same > steps[0]
        return self._told("info" if cleared else "warning", odd, steps, what, cleared or streak.over)

    def _told(self, severity: Severity, odd: tuple[int, ...], steps: tuple[int, int], what: str, over: bool) -> Finding:
        alone = len(odd) == 1
        who = f"rank {odd[0]} is alone with its own" if alone else f"{len(odd)} ranks are in the minority"
        return self.finding(
            severity,
            f"rank:{odd[0]}" if alone else "run",
            steps,
            f"Since step {steps[0]:,} the ranks train different models: {what}{f'; {who}' if odd else ''}.",
            over=over,
            evidence={"ranks": ", ".join(map(str, odd[:SPELT]))} if odd else {},
            advice="Look for what one rank does alone at that step: a skipped step, a branch on local data, a "
            "parameter outside of DDP, weights loaded on one rank only. Then broadcast rank 0's weights to all.",
            confidence=0.95 if severity == "critical" else 0.7,
        )


WORDS = {"grad_norm": "gradient's norm", "loss": "loss"}


def _odd(ranks: tuple[int, ...], values: Floats) -> tuple[int, ...]:
    """The ranks that do not hold the value which most of them hold; none if no value has a majority."""
    found, counts = np.unique(values, return_counts=True)
    if counts.max() * 2 <= len(values):
        return ()
    return tuple(rank for rank, value in zip(ranks, values, strict=True) if value != found[counts.argmax()])

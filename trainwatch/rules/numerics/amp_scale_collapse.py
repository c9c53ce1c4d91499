"""See the rule's docstring: it is the page that `trainwatch rules amp-scale-collapse` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.rule import Rule
from trainwatch.schema import Finding
from trainwatch.stats import Bools, Floats, Streak, carried
from trainwatch.table import Chunk

SHORT, LONG = 100, 400  # rows in which skips are counted


@dataclass
class AmpScaleCollapse(Rule):
    """The gradient scaler halves its scale again and again: gradients overflow, steps are skipped.

    What it sees:
        Ten skipped steps in a row, so a scale a thousand times smaller, after the scaler had found one at which steps
        were taken. A scale below 1/1,024, at which there is nothing left to scale. Or, after the first 100 rows, skips
        on more than 10 % of 100 rows, or 6 % of 400. A search for the scale at the start, and single skips
        when the scaler tries a larger one, are its normal life.

    Why it matters:
        Skipped steps are lost time, and the larger part of it is what comes after: with a scale near nothing the small
        gradients underflow to 0 in float16, and those parts of the model learn no more.

    What to do:
        Find what became so large: a new loss component, its unit, its weight. Scale that down, or train in bfloat16,
        which has float32's range and needs no scaler.

    When it is wrong:
        A scaler that is told to grow every few steps (`growth_interval` below 20) overflows as often: raise that.

    References:
        torch.amp.GradScaler (growth every 2,000 steps by default, so 0.05 % of skips); Micikevicius et al., "Mixed
        precision training" (2018); the OPT-175B logbook, whose loss scale fell before its loss rose.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("amp/scale|amp/skipped",)
    wants: ClassVar[tuple[str, ...]] = ("amp/scale", "amp/skipped", "grad_norm")
    causes: ClassVar[tuple[str, ...]] = (
        *("loss-stuck", "slow-convergence", "loss-plateau", "gradient-vanishing", "dead-module"),
        "evaluation-unchanged",
    )

    in_a_row: int = 10  # halvings: a gradient a thousand times larger than at the scale that was found
    found_after: int = 3  # steps taken in a row: the scaler has found a scale
    nothing: float = 2.0**-10  # scale: 26 halvings below the usual first one
    settled: int = 100  # rows: until then a scaler may search
    share: float = 0.10  # of 100 rows; a scaler that grows every 50 steps comes to 2 %
    lasting: float = 0.06  # of 400 rows: the catalogue's 5 %, and what chance adds to it

    _rows: int = field(default=0, init=False)
    _scale: float = field(default=np.nan, init=False)
    _found: Streak = field(init=False)
    _signs: dict[str, Streak] = field(init=False)
    _flags: Floats = field(default_factory=lambda: np.empty(0), init=False)
    _steps: Floats = field(default_factory=lambda: np.empty(0), init=False)

    def __post_init__(self) -> None:
        """Steps taken in a row, and the three signs of the sickness."""
        self._found = Streak(self.found_after)
        self._signs = {"row": Streak(self.in_a_row), "nothing": Streak(1), "often": Streak(1)}

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """A skip is what the flag says; where there is none, a scale that fell."""
        scale, flag = chunk["amp/scale"], chunk["amp/skipped"]
        row = np.arange(self._rows, self._rows + len(chunk), dtype=np.float64)
        known = carried(self._scale, np.append(scale, np.nan))  # before each row, and after the last
        fell = np.isfinite(known[:-1]) & (scale < known[:-1])
        skipped = np.where(np.isnan(flag), fell, flag == 1.0)
        columns = {"step": chunk.step.astype(np.float64), "scale": known[1:], "row": row}
        if self._found.onset is None:
            self._found.push(~skipped, columns)
        found = self._found.believed.get("row", np.inf)
        changed = self._signs["row"].push(skipped & (row > found), columns)
        changed |= self._signs["nothing"].push(scale < self.nothing, columns)
        changed |= self._frequent(skipped & (row >= self.settled), columns)
        self._rows, self._scale = self._rows + len(chunk), float(known[-1])
        if changed:
            yield self._collapsed()

    def _frequent(self, skipped: Bools, columns: dict[str, Floats]) -> bool:
        """Too many of the last 100 or 400 rows were skipped; the first of those skips is the onset."""
        flags = np.concatenate([self._flags, skipped])
        steps = np.concatenate([self._steps, columns["step"]])
        self._flags, self._steps = flags[-LONG:], steps[-LONG:]
        sign = self._signs["often"]
        if not flags.any() and sign.onset is None:
            return False
        row = np.arange(len(flags) - len(skipped), len(flags))
        total = np.concatenate([[0.0], np.cumsum(flags)])
        near, far = (total[row + 1] - total[np.maximum(row + 1 - rows, 0)] for rows in (SHORT, LONG))
        often = near >= self.share * SHORT
        where = np.append(np.flatnonzero(flags), 0)
        since = np.searchsorted(where[:-1], row + 1 - np.where(often, SHORT, LONG))
        first = {"first": steps[where[np.minimum(since, len(where) - 1)]]}
        return sign.push(often | (far >= self.lasting * LONG), columns | first)

    def _collapsed(self) -> Finding:
        """Of the signs that are there, the one that was there first tells the onset."""
        seen = [sign for sign in self._signs.values() if sign.onset is not None]
        earliest = min(seen, key=lambda sign: sign.believed["row"])
        onset = earliest.onset or {}
        first = int(onset.get("first", onset["step"]))
        last = int(max(sign.latest["step"] for sign in seen))
        gone, scale = self._signs["nothing"].onset is not None, self._scale
        skips = self._signs["row"].bad
        said = f"{skips:,} steps were skipped since the scaler had found a scale" if skips else "steps are skipped"
        if np.isfinite(scale):
            said += f", and the scale stands at {scale:,.6g}"
        evidence: dict[str, float | int | str] = {"skipped": skips, "rows": self._rows}
        return self.finding(
            "critical" if gone else "warning",
            "run",
            (first, last),
            f"From step {first:,} on scaled gradients overflow again and again: {said}.",
            over=all(sign.over for sign in seen) and self._rows - 1 - max(sign.latest["row"] for sign in seen) >= SHORT,
            evidence=evidence | ({"scale": scale} if np.isfinite(scale) else {}),
            advice="Look for what became so large at that step (a loss, its unit, its weight) and scale it down, or "
            "train in bfloat16, which needs no scaler.",
            confidence=0.9,
        )

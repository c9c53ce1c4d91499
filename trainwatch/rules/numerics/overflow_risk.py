"""See the rule's docstring: it is the page that `trainwatch rules overflow-risk` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.header import Header, mapping
from trainwatch.rule import Findings, Rule
from trainwatch.schema import Finding
from trainwatch.stats import Streak, carried
from trainwatch.table import Chunk

LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028e38}
MOST = 64  # tensors that are followed: more of them is a log to be distrusted


@dataclass
class OverflowRisk(Rule):
    """Activations come near the largest number that their precision knows.

    What it sees:
        A recorded `absmax/<tensor>` above half of the dtype's largest number in 5 rows in a row; 65,504 where the run
        computes in float16, as it says itself or as its gradient scaler shows. A value that does not change from row to
        row (a mask is filled with it) or that is the largest number itself does not count.

    Why it matters:
        Twice as much is infinity, infinity minus infinity is NaN, and from there it is one step to a lost run.

    What to do:
        Train in bfloat16, or keep that one operation in float32; normalise before it, scale logits or cap them softly,
        lower the learning rate if the value grows. To have it recorded: `watch.log({"absmax/logits": x.abs().max()})`.

    When it is wrong:
        A tensor that is computed in float32 inside of a float16 run has room enough.

    References:
        Activations of T5 overflow float16 (transformers #4287, #9295); soft-capped logits in Gemma 2.
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("absmax/<tensor>",)
    wants: ClassVar[tuple[str, ...]] = ("run:dtypes", "amp/scale")
    causes: ClassVar[tuple[str, ...]] = ("non-finite-loss", "non-finite-gradient", "amp-scale-collapse")

    share: float = 0.5  # of the largest number: one doubling is left
    rows: int = 5  # in a row: one batch with an outlier is not yet a trend

    _dtype: str = field(default="", init=False)
    _scaled: bool = field(default=False, init=False)
    _last: dict[str, float] = field(default_factory=dict, init=False)
    _near: dict[str, Streak] = field(default_factory=dict, init=False)

    def start(self, header: Header) -> Findings:
        """What the run computes in, as far as it says."""
        told = mapping(header.raw.get("dtypes"))
        known = [str(told.get(name)) for name in ("declared", "observed")]
        self._dtype = next((name for name in LARGEST if name in known), "")
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """A maximum a row for every tensor."""
        scale = chunk["amp/scale"]
        scaled = np.maximum.accumulate(np.concatenate([[self._scaled], np.isfinite(scale) & (scale != 1.0)]))[1:]
        self._scaled = bool(scaled[-1]) if len(scaled) else self._scaled
        largest = np.where(scaled & (not self._dtype), LARGEST["float16"], LARGEST[self._dtype or "float32"])
        for name in [name for name in chunk.channels if name.startswith("absmax/")][:MOST]:
            value = chunk[name]
            moved = value != carried(self._last.get(name, np.nan), value)
            near = (value >= self.share * largest) & (value < 0.999 * largest) & moved
            self._last[name] = float(carried(self._last.get(name, np.nan), np.append(value, np.nan))[-1])
            if near.any() or name in self._near:
                streak = self._near.setdefault(name, Streak(self.rows))
                known = np.isfinite(value) | (chunk.nonfinite(name) > 0)
                columns = {"step": chunk.step.astype(np.float64), "value": value, "largest": largest}
                if streak.push(near[known], {key: column[known] for key, column in columns.items()}):
                    yield self._told(name.removeprefix("absmax/"), streak)

    def _told(self, tensor: str, streak: Streak) -> Finding:
        onset = streak.onset or {}
        first, last, value = int(onset["step"]), int(streak.latest["step"]), streak.latest["value"]
        return self.finding(
            "warning",
            f"module:{tensor}",
            (first, last),
            f"{tensor} comes to {value:,.5g}, {value / onset['largest']:.0%} of the largest number of its precision "
            f"({onset['largest']:,.5g}), since step {first:,}.",
            over=streak.over,
            evidence={"absmax": value, "largest": onset["largest"]},
            advice=f"Compute {tensor} in bfloat16 or float32, or normalise or cap it before it overflows.",
            confidence=0.8,
        )

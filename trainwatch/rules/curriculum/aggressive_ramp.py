"""See the rule's docstring: it is the page that `trainwatch rules aggressive-ramp` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.schema import Finding
from trainwatch.stats import Blocks, carried, medians
from trainwatch.table import Chunk

Floats = NDArray[np.float64]
Rows = dict[str, Floats]

WINDOW = 4  # blocks


@dataclass
class AggressiveRamp(Rule):
    """A loss weight enters or rises too fast for what its component weighs.

    What it sees:
        A component's weight rose, and within 2 % of the run (at least 20 rows) its contribution (weight x raw value)
        grew by as much as the whole loss had been before, or its share of the gradient went from less than half to more
        than nine tenths. Medians over blocks of rows, before against after.

    Why it matters:
        The optimiser's state (momentum, second moments, learning rate) fits the loss that it was following. A term that
        outweighs it overnight throws the weights away from what was learned, and may end in NaN.

    What to do:
        Enter the component at a smaller weight and let it rise over a longer stretch (`ramp: linear` or `cosine`), or
        bound its value first: a raw error in ppm needs a weight a million times smaller than a cross-entropy.

    When it is wrong:
        Where the loss had come close to 0 before the component entered, twice of it is still little: look at the
        metrics before you change the plan.

    References:
        Curriculum of a published peptide sequencer: mass weight 0.2, 0.5, 0.7 within a fifth of the run, on raw ppm.
    """

    needs: ClassVar[tuple[str, ...]] = ("weight/<component>", "loss/<component>")
    wants: ClassVar[tuple[str, ...]] = ("grad_share/<component>", "run:curriculum")
    causes: ClassVar[tuple[str, ...]] = (
        "loss-scale-imbalance",
        "gradient-dominance",
        "gradient-explosion",
        "gradient-spike",
        "clipping-saturated",
        "curriculum-shock",
        "loss-spike",
        "loss-divergence",
        "non-finite-loss",
        "non-finite-gradient",
    )

    growth: float = 1.0  # x the whole loss before: the new term then weighs as much as everything the run had learned
    grave_growth: float = 100.0  # x: the old loss is left with a hundredth of the sum
    share_before: float = 0.5  # of the gradient: it did not lead
    share_after: float = 0.9  # of the gradient: nine times what all others have left

    _blocks: Blocks = field(default_factory=lambda: Blocks(5), init=False)
    _window: Rows = field(default_factory=dict, init=False)
    _previous: dict[str, float] = field(default_factory=dict, init=False)

    def start(self, header: Header) -> Findings:
        """A quarter of the window is a block: at least 5 rows, the fewest whose median forgives two outliers."""
        self._blocks = Blocks(max(5, header.window() // WINDOW))
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Compare every block within a window after a rise with the block before that window."""
        names = [name.removeprefix("weight/") for name in chunk.channels if name.startswith("weight/")]
        columns = {"step": chunk.step.astype(np.float64)}
        for name in names:
            columns |= self._columns(name, chunk)
        blocks = self._blocks.push(columns) if names else {}
        if not blocks:
            return
        summaries = self._joined({name: _summary(name, values) for name, values in blocks.items()})
        fresh, all_blocks = len(blocks["step"]), len(summaries["step"])
        for name in names:
            risen = np.flatnonzero(np.isfinite(summaries[f"rise/{name}"]))
            near = {int(rise) + blocks_later for rise in risen for blocks_later in range(WINDOW)}
            for now in sorted(near & set(range(all_blocks - fresh, all_blocks))):
                begun = risen[(risen <= now) & (risen > now - WINDOW)]
                before = max(now - WINDOW, 0)
                if len(begun) and before < begun[0]:
                    yield from self._compare(name, names, summaries, before, now, int(begun[0]))
        self._window = {name: values[-WINDOW:] for name, values in summaries.items()}

    def _columns(self, name: str, chunk: Chunk) -> Rows:
        weight = chunk[f"weight/{name}"]
        rose = weight > carried(self._previous.get(name, np.nan), weight)
        finite = weight[np.isfinite(weight)]
        if len(finite):
            self._previous[name] = float(finite[-1])
        return {
            f"rise/{name}": np.where(rose, chunk.step, np.nan),
            f"size/{name}": np.abs(weight * chunk[f"loss/{name}"]),
            f"share/{name}": chunk[f"grad_share/{name}"],
        }

    def _joined(self, fresh: Rows) -> Rows:
        """The last window's summaries and the fresh ones, one after the other."""
        held, new = len(self._window.get("step", ())), len(fresh["step"])
        return {
            name: np.concatenate(
                [self._window.get(name, np.full(held, np.nan)), fresh.get(name, np.full(new, np.nan))],
            )
            for name in dict.fromkeys([*self._window, *fresh])
        }

    def _compare(self, name: str, names: list[str], rows: Rows, before: int, now: int, rise: int) -> Findings:
        old, new = rows[f"size/{name}"][before], rows[f"size/{name}"][now]
        total = float(np.nansum([rows[f"size/{other}"][before] for other in names]))
        growth = (new - np.nan_to_num(old)) / total if total > 0 else 0.0
        share, shared = rows[f"share/{name}"][now], np.nan_to_num(rows[f"share/{name}"][before])
        took_over = share > self.share_after and shared < self.share_before
        if not (growth > self.growth or took_over):
            return
        first = int(rows[f"rise/{name}"][rise])
        evidence = {"contribution": new, "total_before": total, "growth": growth}
        message = f"The {name} weight rose at step {first:,}: its contribution is now {new:,.4g}"
        message += f", where the whole loss was {total:,.4g} before"
        if np.isfinite(share):
            evidence |= {"gradient_share": share, "gradient_share_before": shared}
            message += f"; its share of the gradient went from {shared:.0%} to {share:.0%}"
        yield self.finding(
            "critical" if growth > self.grave_growth else "warning",
            f"component:{name}",
            (first, int(rows["step"][now])),
            f"{message}.",
            evidence=evidence,
            advice=f"Let the {name} weight rise over a longer stretch, from a smaller value, or bound the loss first.",
            confidence=0.9,
        )


def _summary(name: str, blocks: Floats) -> Floats:
    """One number a block: the first rise, the last step, else the median."""
    if name == "step":
        return blocks[:, -1]
    if name.startswith("rise/"):
        return np.fmin.reduce(blocks, axis=1)  # type: ignore[no-any-return]
    return medians(blocks)

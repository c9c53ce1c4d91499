"""See the rule's docstring: it is the page that `trainwatch rules loss-scale-imbalance` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Header
from trainwatch.rule import Findings, Rule
from trainwatch.schema import Finding
from trainwatch.stats import Blocks, medians
from trainwatch.table import Chunk

Floats = NDArray[np.float64]
Rows = dict[str, Floats]

SMALL_BY_DESIGN = re.compile(
    r"(^|[_.-])(kld?|z_?loss|zloss|entropy|ent|aux\w*|moe\w*|balance|load|reg\w*|l[12]|commit\w*|penalty|wd|policy|actor|pg)($|[_.-])"
)
"""Names that the field gives to regularisers, and to policy losses: their size beside a main loss says nothing."""


@dataclass
class Episode:
    """A stretch of blocks in which one component outweighs the others."""

    component: str
    first_step: int
    others: list[str]
    before: dict[str, float]
    blocks: int = 0
    finding: Finding | None = None


@dataclass
class LossScaleImbalance(Rule):
    """One loss component outweighs all others together by its sheer scale.

    What it sees:
        The contribution (weight x raw value) of the largest component against the sum of the others, as medians over
        blocks of rows: 3,256,742 beside 3.75. It is an alarm if that component also owns nearly the whole gradient; or,
        where no gradients are recorded, if nothing gets better while it lasts. Regularisers and auxiliary
        terms, components of weight 0, and those that are solved already, do not count among the others.

    Why it matters:
        The optimiser follows the sum. What contributes a millionth of it is not trained at all, and after clipping the
        other components' gradients are scaled away: the curve looks busy and the task is not learned.

    What to do:
        Bring the large component to the scale of the others: normalise it by its unit (log1p, Huber, a relative error
        instead of an absolute one), or lower its weight by the ratio that is shown here.

    When it is wrong:
        A small term beside a large one can be meant (a z-loss, a KL term that starts from 0): declare its role as
        `auxiliary` or `regulariser` in `components`. Without recorded weights each counts as 1: less confidence.

    References:
        A hearing-test model whose PeakAmp loss stood at 3,256,742.75 beside Signal at 3.75.
    """

    needs: ClassVar[tuple[str, ...]] = ("loss/<component>",)
    wants: ClassVar[tuple[str, ...]] = ("weight/<component>", "grad_share/<component>", "run:components")
    causes: ClassVar[tuple[str, ...]] = (
        "gradient-dominance",
        "component-ignored",
        "clipping-saturated",
        "gradient-explosion",
        "gradient-spike",
        "amp-scale-collapse",
        "non-finite-gradient",
        "non-finite-loss",
        "loss-stuck",
        "loss-divergence",
    )

    warning_ratio: float = 10.0  # largest / sum of others; healthy multi-task runs reach 5 to 8 in their first steps
    critical_ratio: float = 100.0  # below 1 % of the sum a component's gradient drowns in the other's noise
    owned_share: float = 0.95  # of the gradient: what the others are left with is less than one batch's noise
    improvement: float = 0.02  # relative; less than that in two blocks is no learning
    solved: float = 0.3  # of its first value: a component this far down is done, and rightly small
    tiny_weight: float = 0.01  # of the largest component's weight: whoever sets that means the term to be small
    block: int = 20  # rows; a median of 20 forgives nine outliers

    _roles: dict[str, str] = field(default_factory=dict, init=False)
    _blocks: Blocks = field(default_factory=lambda: Blocks(20), init=False)
    _start: dict[str, float] = field(default_factory=dict, init=False)
    _episode: Episode | None = field(default=None, init=False)

    def start(self, header: Header) -> Findings:
        """Which components are small by design."""
        self._roles = {name: component.role for name, component in header.components.items()}
        self._blocks = Blocks(self.block)
        return ()

    def update(self, chunk: Chunk) -> Iterator[Finding]:
        """Most blocks are balanced: the ratios are taken for all of them at once."""
        names = [name.removeprefix("loss/") for name in chunk.channels if name.startswith("loss/")]
        if len(names) < 2:
            return
        columns = {"step": chunk.step.astype(np.float64)}
        for name in names:
            raw, weight = chunk[f"loss/{name}"], chunk[f"weight/{name}"]
            columns |= {f"raw/{name}": raw, f"weight/{name}": weight, f"share/{name}": chunk[f"grad_share/{name}"]}
        blocks = self._blocks.push(columns)
        if blocks:
            yield from self._judge(names, blocks)

    def _judge(self, names: list[str], blocks: Rows) -> Iterator[Finding]:
        """Look only at the blocks in which the largest component is more than ten times the rest."""
        rows = {name: medians(values) for name, values in blocks.items() if name != "step"}
        for name in names:
            known = rows[f"raw/{name}"][np.isfinite(rows[f"raw/{name}"])]
            if len(known):
                self._start.setdefault(name, float(known[0]))
        sizes = np.stack(
            [np.nan_to_num(np.abs(rows[f"raw/{name}"] * _weights(rows[f"weight/{name}"]))) for name in names]
        )
        top = sizes.max(axis=0)
        awaited = 0
        for index in np.flatnonzero(top > self.warning_ratio * (sizes.sum(axis=0) - top)):
            if index != awaited:
                yield from self._ended()
            awaited = int(index) + 1
            here = {name: float(values[index]) for name, values in rows.items()}
            block = {name: values[index] for name, values in blocks.items()}
            yield from self._outweighed(names[int(sizes[:, index].argmax())], names, here, block)
        if awaited != len(top):
            yield from self._ended()

    def _outweighed(self, largest: str, names: list[str], here: dict[str, float], block: Rows) -> Findings:
        """One block in which ``largest`` outweighs the rest; do those count that it outweighs?"""
        others = [name for name in names if self._counts(name, largest, here)]
        part, rest = _size(largest, here), sum(_size(name, here) for name in others)
        if not others or rest <= 0 or part / rest <= self.warning_ratio:
            yield from self._ended()
            return
        if self._episode is None or self._episode.component != largest:
            yield from self._ended()
            before = {name: here[f"raw/{name}"] for name in (*others, largest)}
            self._episode = Episode(largest, _onset(largest, others, block, self.warning_ratio), others, before)
        self._episode.blocks += 1
        yield from self._verdict(self._episode, part, rest, here, int(block["step"][-1]))

    def _counts(self, name: str, largest: str, here: dict[str, float]) -> bool:
        """Whether a component is one that should weigh something beside the largest."""
        raw, weight = here[f"raw/{name}"], here[f"weight/{name}"]
        if name == largest or not np.isfinite(raw) or weight == 0:
            return False
        if self._roles.get(name, "task") != "task" or (
            name not in self._roles and SMALL_BY_DESIGN.search(name.lower())
        ):
            return False
        meant_small = _weight(weight) < self.tiny_weight * _weight(here[f"weight/{largest}"])
        return not meant_small and raw > self.solved * abs(self._start.get(name, raw))

    def _verdict(self, episode: Episode, part: float, rest: float, here: dict[str, float], step: int) -> Findings:
        ratio, share = part / rest, here[f"share/{episode.component}"]
        known = bool(np.isfinite(share))
        sick = share > self.owned_share if known else episode.blocks >= 2 and self._stuck(episode, ratio, here)
        if not sick and episode.finding is None:
            return
        grave = ratio > self.critical_ratio or (episode.finding is not None and episode.finding.severity == "critical")
        weight = here[f"weight/{episode.component}"]
        unweighted = "" if np.isfinite(weight) else " (no weights are recorded: each counts as 1)"
        proof = f"and {share:.1%} of the gradient" if known else "while none of them improves"
        episode.finding = self.finding(
            "critical" if grave else "warning",
            f"component:{episode.component}",
            (episode.first_step, step),
            f"The {episode.component} loss contributes {part:,.4g}, {' + '.join(episode.others)} together {rest:,.4g}: "
            f"{ratio:,.3g} times as much, {proof}{unweighted}.",
            evidence={"contribution": part, "others": rest, "ratio": ratio}
            | ({"gradient_share": share} if known else {}),
            advice=f"Normalise the {episode.component} loss by its unit, or divide its weight by about {ratio:,.0f}.",
            confidence=(0.95 if known else 0.7) - (0.1 if unweighted else 0.0),
        )
        yield episode.finding

    def _stuck(self, episode: Episode, ratio: float, here: dict[str, float]) -> bool:
        """Whether nothing gets better: not the others, nor (below a hundred times) the large one that may just lead."""
        watched = episode.others if ratio > self.critical_ratio else episode.before
        return all(here[f"raw/{name}"] > episode.before[name] * (1 - self.improvement) for name in watched)

    def _ended(self) -> Findings:
        """The others weigh something again."""
        episode, self._episode = self._episode, None
        if episode is not None and episode.finding is not None:
            yield replace(episode.finding, state="over")


def _weights(weights: Floats) -> Floats:
    """Weights as applied; 1 where none is recorded."""
    return np.where(np.isnan(weights), 1.0, weights)


def _weight(weight: float) -> float:
    return 1.0 if np.isnan(weight) else abs(weight)


def _size(name: str, here: dict[str, float]) -> float:
    """Magnitude of a component's contribution."""
    return abs(here[f"raw/{name}"]) * _weight(here[f"weight/{name}"])


def _onset(largest: str, others: list[str], block: Rows, ratio: float) -> int:
    """The first step of the block in which ``largest`` is ``ratio`` times the others."""
    size = {name: np.abs(block[f"raw/{name}"] * _weights(block[f"weight/{name}"])) for name in (largest, *others)}
    exceeds = size[largest] > ratio * sum(size[name] for name in others)
    return int(block["step"][int(np.argmax(exceeds))])

"""Blocks of rows in which one loss component outweighs the others, and how the others fare meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainwatch.stats import in_blocks
from trainwatch.table import Chunk

Floats = NDArray[np.float64]
Rows = dict[str, Floats]


@dataclass
class Block:
    """Rows that are judged as one: their columns, and the median of each."""

    names: list[str]  # of the components
    rows: Rows
    level: dict[str, float]

    @property
    def first_step(self) -> int:
        """Of its first row."""
        return int(self.rows["step"][0])

    @property
    def last_step(self) -> int:
        """A block at the end of a run is filled up with NaN."""
        return int(np.nanmax(self.rows["step"]))

    def raw(self, name: str) -> float:
        """A component's value."""
        return self.level[f"raw/{name}"]

    def weighted(self, name: str) -> bool:
        """Whether a weight is recorded."""
        return bool(np.isfinite(self.level[f"weight/{name}"]))

    def weight(self, name: str) -> float:
        """1 where none is recorded."""
        return self.level[f"weight/{name}"] if self.weighted(name) else 1.0

    def size(self, name: str) -> float:
        """Magnitude of a component's contribution."""
        return abs(self.raw(name)) * abs(self.weight(name))

    def share(self, name: str) -> float:
        """Of the gradient, as last probed; NaN where it never was."""
        return self.level[f"share/{name}"]

    def onset(self, largest: str, others: list[str], ratio: float) -> int:
        """The first step in which ``largest`` is ``ratio`` times the others."""
        rest = sum(sizes(self.rows, name) for name in others)
        return int(self.rows["step"][int(np.argmax(sizes(self.rows, largest) > ratio * rest))])


class Earlier(NamedTuple):
    """How the block before the latest was."""

    share: float = np.nan
    ratio: float = np.nan
    first_step: int = 0


@dataclass
class Episode:
    """Blocks on end in which one component outweighs the others: the first of them, and the latest."""

    component: str
    first_step: int
    first: Block
    block: Block
    others: list[str]
    blocks: int = 1
    earlier: Earlier = field(default_factory=Earlier)

    def add(self, block: Block, others: list[str]) -> None:
        """One more block, and what is outweighed in it."""
        self.earlier = Earlier(self.share, self.ratio, self.block.first_step)
        self.blocks, self.block, self.others = self.blocks + 1, block, others

    @property
    def share(self) -> float:
        """The component's, of the gradient."""
        return self.block.share(self.component)

    @property
    def probed(self) -> bool:
        """Whether gradients are recorded."""
        return bool(np.isfinite(self.share))

    @property
    def part(self) -> float:
        """What the component contributes."""
        return self.block.size(self.component)

    @property
    def rest(self) -> float:
        """What the others contribute together."""
        return sum(self.block.size(name) for name in self.others)

    @property
    def ratio(self) -> float:
        """How many times the others it is."""
        return self.part / self.rest

    def unsolved(self, ordinary: float) -> bool:
        """Whether some other's value is that of a task that is not learned yet."""
        return any(abs(self.block.raw(name)) >= ordinary for name in self.others)

    def improved(self, by: float) -> list[bool]:
        """For each of the others, whether it came down by this share of its value."""
        return [now < was - by * abs(was) for was, now in map(self._course, self.others)]

    def _course(self, name: str) -> tuple[float, float]:
        """A component's value as the episode began, and now; in both halves of the block, if it has but one."""
        if self.blocks > 1:
            return self.first.level.get(f"raw/{name}", np.nan), self.block.raw(name)
        known = self.block.rows[f"raw/{name}"][np.isfinite(self.block.rows[f"raw/{name}"])]
        half = (len(known) + 1) // 2
        return float(np.median(known[:half])), float(np.median(known[-half:]))


def columns(chunk: Chunk, size: int) -> tuple[list[str], Rows]:
    """The components, and their raw values, weights and gradient shares in blocks, beside steps, norm and total."""
    names = [name.removeprefix("loss/") for name in chunk.channels if name.startswith("loss/")]
    taken = {"step": chunk.step.astype(np.float64), "norm": chunk["grad_norm"], "total": chunk["loss"]}
    for name in names:
        near, wide = chunk[f"grad_share/{name}"], chunk[f"param_share/{name}"]
        taken[f"raw/{name}"], taken[f"weight/{name}"] = chunk[f"loss/{name}"], chunk[f"weight/{name}"]
        taken[f"share/{name}"] = np.where(np.isfinite(near), near, wide)
    return names, {key: in_blocks(values, size) for key, values in taken.items()}


def sizes(rows: Rows, name: str) -> Floats:
    """Magnitudes of a component's contributions; a weight is 1 where none is recorded."""
    raw, weight = rows[f"raw/{name}"], rows[f"weight/{name}"]
    return np.abs(raw * np.where(np.isnan(weight), 1.0, weight))

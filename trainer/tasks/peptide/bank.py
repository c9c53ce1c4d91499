"""Peptides and their predicted intensities, kept in shards: one file a peptide length, built once, read by every run.

A shard is a pure function of (source, seed, peptides, length), so it does not matter who builds it, or when.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trainer.tasks.peptide.chemistry import ARGININE, LYSINE, RESIDUE_SHARE, VOCABULARY
from trainer.tasks.peptide.spectra import PREDICTORS, SERIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

VERSION = 1  # of the shards' content: raise it when peptides or predictions change
TRYPTIC = 0.9  # share of peptides that end as trypsin cuts: in K or R, with few of them inside
MISSED_CLEAVAGE = 0.1  # how often a K or R inside a tryptic peptide is left standing, against the proteome's share
DOUBLY_CHARGED = 0.7  # share of charge 2; the others carry 3
SPLITS = {"train": (0, 80), "validation": (80, 90), "test": (90, 100)}
"""Percent of peptides, by a hash of the sequence: a peptide is in one split, whatever its charge."""
HEIGHT_SCALE = 65535.0  # intensities are stored as uint16 shares of the spectrum's largest


@dataclass(frozen=True)
class Shard:
    """All peptides of one length: tokens uint8 [N, length], charge uint8 [N], heights uint16 [N, ions, length - 1]."""

    tokens: NDArray[np.uint8]
    charge: NDArray[np.uint8]
    heights: NDArray[np.uint16]
    rows: dict[str, NDArray[np.intp]]

    @classmethod
    def read(cls, path: Path) -> Shard:
        """A shard from its file."""
        with np.load(path, allow_pickle=False) as stored:
            tokens, charge, heights = stored["tokens"], stored["charge"], stored["heights"]
        return cls(tokens, charge, heights, split_rows(tokens))


@dataclass
class Bank:
    """The shards under `folder`; what is missing is built by `prepare`, or where it is first asked for."""

    folder: Path
    source: str
    seed: int
    peptides: int

    def __post_init__(self) -> None:
        self._shards: dict[int, Shard] = {}

    def path(self, length: int) -> Path:
        """Where the shard of one length lies; its settings are in the name, so a stale one is never read."""
        settings = f"{self.source}-v{VERSION}-seed{self.seed}-n{self.peptides}"
        return self.folder / "peptides" / settings / f"length_{length:02d}.npz"

    def prepare(self, lengths: Iterable[int], track: Callable[[list[int]], Iterable[int]] = iter) -> list[int]:
        """Build the shards that are missing; returns their lengths. `track` may wrap the list in a progress bar."""
        missing = [length for length in lengths if not self.path(length).exists()]
        for length in track(missing):
            self._build(length)
        return missing

    def shard(self, length: int) -> Shard:
        """The shard of one length, kept in memory."""
        if length not in self._shards:
            self.prepare([length])
            shard = Shard.read(self.path(length))
            if not all(rows.size for rows in shard.rows.values()):  # an old file, from before `draw_populated`
                self._build(length)
                shard = Shard.read(self.path(length))
            self._shards[length] = shard
        return self._shards[length]

    def _build(self, length: int) -> None:
        rng = np.random.default_rng([self.seed, length])
        tokens = draw_populated(rng, self.peptides, length)
        charge = np.where(rng.random(self.peptides) < DOUBLY_CHARGED, 2, 3).astype(np.uint8)
        predict = PREDICTORS[self.source]
        heights = np.empty((self.peptides, len(SERIES), length - 1), dtype=np.uint16)
        for row, (peptide, charges) in enumerate(zip(tokens, charge, strict=True)):
            heights[row] = np.rint(predict(peptide, int(charges)) * HEIGHT_SCALE)
        path = self.path(length)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        with unfinished.open("wb") as file:
            np.savez_compressed(file, tokens=tokens, charge=charge, heights=heights)
        unfinished.replace(path)


def draw_populated(rng: np.random.Generator, count: int, length: int) -> NDArray[np.uint8]:
    """`draw_peptides`, again where a split would be left without any: few peptides may miss one of a tenth."""
    while True:
        tokens = draw_peptides(rng, count, length)
        if all(rows.size for rows in split_rows(tokens).values()):
            return tokens


def split_rows(tokens: NDArray[np.uint8]) -> dict[str, NDArray[np.intp]]:
    """Which of these peptides are in which split."""
    percent = np.array([split_percent(row) for row in tokens])
    return {name: np.flatnonzero((percent >= low) & (percent < high)) for name, (low, high) in SPLITS.items()}


def draw_peptides(rng: np.random.Generator, count: int, length: int) -> NDArray[np.uint8]:
    """Peptides with the proteome's residue shares, most of them tryptic: uint8 [count, length]."""
    inside = RESIDUE_SHARE.copy()
    inside[[LYSINE, ARGININE]] *= MISSED_CLEAVAGE
    tokens = rng.choice(VOCABULARY, size=(count, length), p=inside / inside.sum())
    cut = RESIDUE_SHARE[[LYSINE, ARGININE]]
    tokens[:, -1] = rng.choice([LYSINE, ARGININE], size=count, p=cut / cut.sum())
    other = rng.random(count) >= TRYPTIC
    tokens[other] = rng.choice(VOCABULARY, size=(int(other.sum()), length), p=RESIDUE_SHARE)
    return tokens.astype(np.uint8)


def split_percent(tokens: NDArray[np.uint8]) -> int:
    """0 to 99, from the residues alone (I and L are one token here); says which split a peptide is in."""
    return zlib.crc32(tokens.tobytes()) % 100

"""Which peptides there are: tryptic ones, with the proteome's residue shares; and which split each belongs to."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from trainer.tasks.peptide.chemistry import ARGININE, LYSINE, METHIONINE, OXIDISED_METHIONINE, RESIDUE_SHARE, VOCABULARY

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRYPTIC = 0.9  # share of peptides that end as trypsin cuts: in K or R, with few of them inside
MISSED_CLEAVAGE = 0.1  # how often a K or R inside a tryptic peptide is left standing, against the proteome's share
DOUBLY_CHARGED = 0.7  # share of charge 2; the others carry 3
SPLITS = {"train": (0, 80), "validation": (80, 90), "test": (90, 100)}
"""Percent of peptides, by a hash of the sequence: a peptide is in one split, whatever its charge."""


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


def draw_charges(rng: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Precursor charges, 2 or 3: uint8 [count]."""
    return np.where(rng.random(count) < DOUBLY_CHARGED, 2, 3).astype(np.uint8)


def draw_populated(rng: np.random.Generator, count: int, length: int) -> NDArray[np.uint8]:
    """`draw_peptides`, again where a split would be left without any: few peptides may miss one of a tenth."""
    while True:
        tokens = draw_peptides(rng, count, length)
        if all(rows.size for rows in split_rows(tokens).values()):
            return tokens


def draw_from(rng: np.random.Generator, split: str, length: int) -> NDArray[np.uint8]:
    """One peptide of a split, uint8 [length]: drawn until it falls there."""
    low, high = SPLITS[split]
    while True:
        tokens: NDArray[np.uint8] = draw_peptides(rng, 1, length)[0]
        if low <= split_percent(tokens) < high:
            return tokens


def split_rows(tokens: NDArray[np.uint8]) -> dict[str, NDArray[np.intp]]:
    """Which of these peptides (uint8 [N, length]) are in which split."""
    percent = np.array([split_percent(row) for row in tokens])
    return {name: np.flatnonzero((percent >= low) & (percent < high)) for name, (low, high) in SPLITS.items()}


def split_percent(tokens: NDArray[np.uint8]) -> int:
    """0 to 99, from the residues alone; says which split a peptide is in.

    I and L are one token here, and an oxidised M counts as M: a peptide's modified twin is in the same split.
    """
    bare = np.where(tokens == OXIDISED_METHIONINE, METHIONINE, tokens).astype(np.uint8)
    return zlib.crc32(bare.tobytes()) % 100

"""Masses, residues and ion types, each defined once. Masses are monoisotopic, in dalton (Da); charges count protons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PROTON = 1.00727646688
WATER = 18.0105646863
AMMONIA = 17.0265491015
CARBON_MONOXIDE = 27.9949146221

# Leucine stands for isoleucine too: their masses are equal, no spectrum of this kind tells them apart.
# The share of each residue is that of the human proteome (UniProt), which the drawn peptides follow.
RESIDUES: dict[str, tuple[float, float]] = {
    "G": (57.0214637236, 0.0657),
    "A": (71.0371137878, 0.0702),
    "S": (87.0320284099, 0.0833),
    "P": (97.0527638520, 0.0631),
    "V": (99.0684139162, 0.0597),
    "T": (101.0476784741, 0.0536),
    "L": (113.0840639804, 0.1430),
    "N": (114.0429274472, 0.0359),
    "D": (115.0269430320, 0.0473),
    "Q": (128.0585775114, 0.0477),
    "K": (128.0949630177, 0.0572),
    "E": (129.0425930962, 0.0710),
    "M": (131.0404846066, 0.0185),
    "H": (137.0589118624, 0.0263),
    "F": (147.0684139162, 0.0365),
    "R": (156.1011110281, 0.0564),
    "Y": (163.0633285383, 0.0266),
    "W": (186.0793129535, 0.0122),
    "C[UNIMOD:4]": (103.0091844778 + 57.0214637236, 0.0230),
    "M[UNIMOD:35]": (131.0404846066 + 15.9949146221, 0.0028),
}

PAD, EOS = 0, 1
TOKENS: tuple[str, ...] = ("<pad>", "<eos>", *RESIDUES)
VOCABULARY = len(TOKENS)
FIRST_RESIDUE = 2

RESIDUE_MASS = np.array([0.0, 0.0, *(mass for mass, _ in RESIDUES.values())])
"""Mass of each token in Da, float64 [VOCABULARY]; 0 for PAD and EOS."""

RESIDUE_SHARE = np.array([0.0, 0.0, *(share for _, share in RESIDUES.values())])
RESIDUE_SHARE /= RESIDUE_SHARE.sum()

LYSINE, ARGININE = TOKENS.index("K"), TOKENS.index("R")
METHIONINE, OXIDISED_METHIONINE = TOKENS.index("M"), TOKENS.index("M[UNIMOD:35]")


@dataclass(frozen=True)
class IonType:
    """A kind of fragment: `series` prefix (holds the N-terminus) or suffix (holds the C-terminus).

    `offset` is what the neutral fragment weighs beyond its residues (Da), `charge` its protons.
    """

    name: str
    series: Literal["prefix", "suffix"]
    offset: float
    charge: int

    def mz(self, residue_sum: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mass over charge (Da per charge) of fragments whose residues weigh `residue_sum` (Da)."""
        return (residue_sum + self.offset + self.charge * PROTON) / self.charge


def _ion_types() -> dict[str, IonType]:
    plain = {"b": ("prefix", 0.0), "y": ("suffix", WATER), "a": ("prefix", -CARBON_MONOXIDE)}
    losses = {"": 0.0, "-H2O": -WATER, "-NH3": -AMMONIA}
    made = {}
    for letter, (series, offset) in plain.items():
        for charge in (1, 2):
            for loss, mass in losses.items():
                name = f"{letter}{'' if charge == 1 else charge}{loss}"
                made[name] = IonType(name, series, offset + mass, charge)  # type: ignore[arg-type]
    return made


ION_TYPES = _ion_types()
"""Every fragment kind by name: `b`, `y`, `a`, doubly charged `b2`, `y2`, `a2`, each also `-H2O` and `-NH3`."""


def neutral_mass(tokens: Sequence[int] | NDArray[np.integer]) -> float:
    """Mass of the whole peptide in Da: its residues and one water."""
    return float(RESIDUE_MASS[np.asarray(tokens)].sum() + WATER)


def fragment_mz(tokens: NDArray[np.integer], ions: Sequence[IonType]) -> NDArray[np.float64]:
    """Mass over charge of every fragment, float64 [ions, residues - 1]; column j is the fragment of j + 1 residues.

    `tokens` holds the residues alone, without EOS.
    """
    residues = RESIDUE_MASS[tokens]
    prefix, suffix = np.cumsum(residues)[:-1], np.cumsum(residues[::-1])[:-1]
    return np.stack([ion.mz(prefix if ion.series == "prefix" else suffix) for ion in ions])


def spell(tokens: Sequence[int] | NDArray[np.integer]) -> str:
    """The sequence as text, up to the first EOS."""
    text = []
    for token in tokens:
        if token == EOS:
            break
        text.append(TOKENS[int(token)])
    return "".join(text)


def parse(sequence: str) -> list[int]:
    """Tokens of a sequence such as `PEPTM[UNIMOD:35]K`; I reads as L, C as C[UNIMOD:4].

    Raises ValueError, naming the residue, where one is unknown.
    """
    tokens, text = [], sequence
    while text:
        end = text.index("]") + 1 if text[1:2] == "[" else 1
        residue = {"C": "C[UNIMOD:4]", "I": "L"}.get(text[:end], text[:end])
        if residue not in RESIDUES:
            raise ValueError(f"'{sequence}': '{text[:end]}' is no residue that this vocabulary knows")
        tokens.append(TOKENS.index(residue))
        text = text[end:]
    return tokens

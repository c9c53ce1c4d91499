"""Where intensities come from: MS2PIP's gradient-boosted trees, or a plain ladder of ions for quick tests."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trainer.config import UsageError
from trainer.tasks.peptide.chemistry import ION_TYPES, RESIDUES, TOKENS

if TYPE_CHECKING:
    from numpy.typing import NDArray

SERIES = tuple(ION_TYPES[name] for name in ("b", "y", "b2", "y2"))
"""The ions of a predicted spectrum, in the order in which MS2PIP's `HCDch2` gives them."""

MS2PIP_MODEL = "HCDch2"  # its trees are bundled in the wheel; the default model `HCD` would download
MS2PIP_EPSILON = 0.001  # intensities come as log2(share of the total ion current + 0.001)
_FIRST_MODIFICATION = 38  # lower ids are amino acids, in MS2PIP's C code


class Predictor(Protocol):
    """Intensities of one peptide's fragments: float32 [len(SERIES), residues - 1], as shares of the largest."""

    def __call__(self, tokens: NDArray[np.uint8], charge: int) -> NDArray[np.float32]: ...


def theoretical(tokens: NDArray[np.uint8], charge: int) -> NDArray[np.float32]:
    """An ion ladder: y ions at 1, b ions at 0.6, doubly charged ones at 0.1 where the precursor has 3 charges."""
    doubly = 0.1 if charge > 2 else 0.0
    heights = np.array([0.6, 1.0, doubly, doubly], dtype=np.float32)
    return np.repeat(heights[:, None], len(tokens) - 1, axis=1)


def ms2pip(tokens: NDArray[np.uint8], charge: int) -> NDArray[np.float32]:
    """MS2PIP 4.1's prediction, computed in this process: no pool, no file per spectrum, no network.

    Its m/z are not taken: its proton is 4e-5 Da short (chemistry.fragment_mz computes them in float64).
    """
    trees, model_id, peaks, plain, modified = _ms2pip()
    peptide, peptidoform = (np.pad(number[tokens], 1) for number in (plain, modified))  # 0 for either terminus
    log2_share = np.array(trees.get_predictions(peptide, peptidoform, charge, model_id, peaks, 30.0))
    share = np.clip(np.exp2(log2_share) - MS2PIP_EPSILON, 0.0, None).astype(np.float32)
    relative: NDArray[np.float32] = share / share.max()
    return relative


@cache
def _ms2pip() -> tuple[Any, int, str, NDArray[np.uint16], NDArray[np.uint16]]:
    """Load MS2PIP's compiled trees and tell them our modifications, once in a process (its C code never frees)."""
    from ms2pip._cython_modules import ms2pip_pyx
    from ms2pip._utils.encoder import AMINO_ACID_IDS, Encoder
    from ms2pip.constants import MODELS

    plain = np.array([0, 0, *(AMINO_ACID_IDS[name[0]] for name in RESIDUES)], dtype=np.uint16)
    modified, encoder = plain.copy(), Encoder()
    for shift, name in ((57.0214637236, "C[UNIMOD:4]"), (15.9949146221, "M[UNIMOD:35]")):
        number = _FIRST_MODIFICATION + len(encoder.modifications)
        modified[TOKENS.index(name)] = number
        entry = {"mod_id": number, "mass_shift": shift, "amino_acid_id": AMINO_ACID_IDS[name[0]]}
        encoder.modifications[name] = entry
    with encoder:
        ms2pip_pyx.ms2pip_init(*encoder.encoder_files)
    model = MODELS[MS2PIP_MODEL]
    return ms2pip_pyx, model["id"], model["peaks_version"], plain, modified


PREDICTORS: dict[str, Predictor] = {"ms2pip": ms2pip, "theoretical": theoretical}


def check_source(name: str) -> None:
    """Raises UsageError for a source of spectra that does not exist, or not here."""
    if name not in PREDICTORS:
        raise UsageError(f"data.source '{name}' does not exist; choose one of {', '.join(PREDICTORS)}")
    if name == "ms2pip" and find_spec("ms2pip") is None:
        raise UsageError("data.source is ms2pip, which is not installed; run `pip install -e '.[trainer]'`")

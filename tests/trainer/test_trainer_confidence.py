"""How far the kept peaks of a spectrum support each residue of its peptide."""

import numpy as np
import pytest

from trainer.curriculum import Corruption
from trainer.horizon import Micro
from trainer.tasks.peptide.chemistry import EOS, fragment_mz
from trainer.tasks.peptide.data import Shape, blank, collate, confidences, draw
from trainer.tasks.peptide.spectra import SERIES

B, Y = (next(row for row, ion in enumerate(SERIES) if ion.name == name) for name in "by")


@pytest.mark.parametrize(
    ("row", "shorter", "expected"),
    [
        (B, 0, [1.0, 0.5, 0.0, 0.0, 0.5]),  # the b ion of one residue: the first cleavage
        (B, 3, [0.5, 0.0, 0.0, 0.5, 1.0]),
        (Y, 0, [0.5, 0.0, 0.0, 0.5, 1.0]),  # the y ion of one residue: the last cleavage
        (Y, 2, [0.5, 0.5, 0.5, 0.0, 0.5]),
    ],
)
def test_a_fragment_supports_both_residues_at_its_cleavage(row, shorter, expected):
    np.testing.assert_array_equal(confidences(np.array([row * 4 + shorter]), 5), expected)


def test_without_peaks_only_the_termini_are_sure(bank):
    scan = draw(bank, "train", Corruption(7, 12), 0, 0, Shape(40, 13))
    nothing = blank(scan).confidence
    assert (nothing[0], nothing[-1], nothing[1:-1].max()) == (0.5, 0.5, 0.0)


def test_a_clean_whole_spectrum_supports_everything(bank):
    for index in range(10):
        assert (draw(bank, "train", Corruption(7, 11), 0, index, Shape(64, 13)).confidence == 1.0).all()


@pytest.mark.parametrize("peaks", [4, 9, 64])
def test_confidence_is_what_the_kept_peaks_say(bank, peaks):
    """Without an error of m/z a supported cleavage can be found again among the peaks."""
    some = Corruption(7, 12, noise_peaks=3, dropout=0.4)
    for index in range(20):
        spectrum = draw(bank, "train", some, 0, index, Shape(peaks, 13))
        mz = fragment_mz(spectrum.tokens, SERIES)
        kept = (np.abs(mz[..., None] - spectrum.mz) < 1e-9).any(-1)
        suffixes = np.array([ion.series == "suffix" for ion in SERIES])
        supported = kept[~suffixes].any(0) | kept[suffixes].any(0)[::-1]
        sides = np.concatenate([[True], supported, [True]]).astype(float)
        np.testing.assert_array_equal(spectrum.confidence, (sides[:-1] + sides[1:]) / 2)


def test_a_batch_holds_it_in_the_order_of_its_answers(bank):
    spectrum = draw(bank, "train", Corruption(7, 12, dropout=0.8), 0, 1, Shape(40, 13))
    batch = collate([spectrum], Shape(40, 13), Micro(0, 1, 1, 1.0, True))
    length = len(spectrum.tokens)
    assert 0 < spectrum.confidence.mean() < 1
    np.testing.assert_array_equal(batch.confidence_BS[0, :length].numpy(), spectrum.confidence[::-1])
    assert batch.tokens_BS[0, length] == EOS
    assert batch.confidence_BS[0, length:].tolist() == [1.0] + [0.0] * (12 - length)


def test_masked_residues_are_recorded_only_where_there_is_a_mask(trained, steps_of):
    few = {"steps": 2, "data__max_peaks": 8}  # too few for every cleavage
    plain, masked = (steps_of(trained(name=f"least-{least}", loss__confidence=least, **few)[1]) for least in (0.0, 1.0))
    assert not any("data/masked/sequence" in row for row in plain)
    assert all(0 < row["data/masked/sequence"] < 1 for row in masked)
    assert plain[0]["loss/sequence"] != masked[0]["loss/sequence"]
    assert plain[0]["loss/spectrum"] == masked[0]["loss/spectrum"]

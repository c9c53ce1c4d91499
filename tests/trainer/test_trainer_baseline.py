"""The spectrum graph: right where the ladder is whole, better than nothing where it is not, quick, and never fooled."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import DataConfig
from trainer.curriculum import Corruption
from trainer.tasks.peptide.bank import Online
from trainer.tasks.peptide.baseline import PAIRS, SINGLE, solve
from trainer.tasks.peptide.chemistry import RESIDUE_MASS, fragment_mz, neutral_mass, parse, spell
from trainer.tasks.peptide.data import Shape, Spectrum, draw
from trainer.tasks.peptide.evaluation import matched_residues
from trainer.tasks.peptide.grid import Cell
from trainer.tasks.peptide.spectra import SERIES

SHAPE = Shape(100, 31)


def spectrum(mz, heights, mass):
    order = np.argsort(mz)
    nothing = np.zeros(0)
    return Spectrum(
        mz[order],
        heights[order].astype(np.float32),
        mass,
        2,
        nothing.astype(np.uint8),
        0,
        nothing,
        nothing.astype(np.float32),
    )


@given(st.integers(0, 10**6), st.integers(7, 20))
def test_a_whole_ladder_is_read(index, length):
    """Every b and y ion there, no noise: no other peptide explains as much, but for neighbours that weigh the same."""
    one = draw(Online("theoretical"), "train", Corruption(length, length), 5, index, SHAPE)
    answer = solve(one)
    assert abs(neutral_mass(answer) - one.mass) < 0.05
    assert matched_residues(answer, one.tokens) >= 0.7 * length


def test_most_whole_ladders_are_read_exactly():
    spectra = Cell(7, 10, "clean").spectra(DataConfig(source="theoretical"), SHAPE, 60)
    assert np.mean([np.array_equal(solve(one), one.tokens) for one in spectra]) > 0.95


def test_a_missing_cleavage_is_a_gap_of_two_in_the_quieter_order():
    tokens = np.array(parse("SAVPLEDTK"))
    mz = fragment_mz(tokens, SERIES[:2])
    seen = np.ones(mz.shape, dtype=bool)
    seen[0, 3] = seen[1, -4] = False  # between P and L
    answer = solve(spectrum(mz[seen], np.ones(seen.sum()), neutral_mass(tokens)))
    assert spell(answer) == "SAVPLEDTK"


def test_pairs_that_weigh_the_same_are_one_gap():
    assert (np.diff(PAIRS.mass_G) > 5e-4).all()
    np.testing.assert_allclose(RESIDUE_MASS[PAIRS.residues].sum(axis=1), PAIRS.mass_G)
    score, index = SINGLE.fit(np.array([RESIDUE_MASS[parse("W")[0]], 40.0]), 0.01)
    assert spell(SINGLE.residues[index[0]]) == "W"
    assert np.isfinite(score).tolist() == [True, False]


@pytest.mark.parametrize("peaks", [0, 1, 3])
def test_next_to_no_peaks_are_no_error(peaks):
    mass = neutral_mass(parse("PEPTLDEK"))
    answer = solve(spectrum(np.linspace(300.0, 500.0, peaks), np.ones(peaks), mass))
    assert len(answer) == 0 or abs(neutral_mass(answer) - mass) < 0.1


@pytest.mark.filterwarnings("ignore:.*model_validator")  # pydantic, inside psm_utils
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_does_on_ms2pip_what_is_claimed_of_it():
    """0.90 exact of 300 clean peptides of 7 to 10 residues, at some 10 ms; here on fewer, with four standard errors."""
    pytest.importorskip("ms2pip", reason="the [trainer] extra is not installed")
    spectra = [draw(Online("ms2pip"), "validation", Corruption(7, 10), 12, index, SHAPE) for index in range(100)]
    began = time.process_time()
    answers = [solve(one) for one in spectra]
    assert (time.process_time() - began) / len(spectra) < 0.06
    assert np.mean([np.array_equal(answer, one.tokens) for answer, one in zip(answers, spectra, strict=True)]) > 0.78

"""Masses against known ones, peptides and their spectra, and what MS2PIP gives."""

import zlib

import numpy as np
import pytest

from trainer.tasks.peptide.bank import Bank, Shard
from trainer.tasks.peptide.chemistry import ION_TYPES, TOKENS, fragment_mz, neutral_mass, parse, spell
from trainer.tasks.peptide.peptides import SPLITS, draw_peptides, split_percent
from trainer.tasks.peptide.spectra import SERIES, ms2pip


def test_known_masses():
    peptide = np.array(parse("PEPTIDEK"))
    assert neutral_mass(peptide) == pytest.approx(927.4549, abs=1e-3)
    b, y = fragment_mz(peptide, [ION_TYPES["b"], ION_TYPES["y"]])
    assert b[1] == pytest.approx(227.1026, abs=1e-4)  # PE
    assert y[0] == pytest.approx(147.1128, abs=1e-4)  # K
    assert fragment_mz(peptide, [ION_TYPES["y2"]])[0, 0] == pytest.approx(y[0] / 2 + 0.5036, abs=1e-3)


def test_complementary_ions_add_up_to_the_precursor():
    peptide = np.array(parse("SAMPLEC[UNIMOD:4]M[UNIMOD:35]R"))
    b, y = fragment_mz(peptide, [ION_TYPES["b"], ION_TYPES["y"]])
    np.testing.assert_allclose(b + y[::-1], neutral_mass(peptide) + 2 * 1.00727646688, rtol=0, atol=1e-9)


def test_spelling_goes_both_ways():
    assert spell(parse("LAC[UNIMOD:4]M[UNIMOD:35]K")) == "LAC[UNIMOD:4]M[UNIMOD:35]K"
    assert spell(parse("IAC")) == "LAC[UNIMOD:4]"
    with pytest.raises(ValueError, match="'X' is no residue"):
        parse("AXK")


def test_peptides_are_mostly_tryptic_and_depend_on_the_seed_alone():
    drawn = draw_peptides(np.random.default_rng(1), 2000, 9)
    ends = [TOKENS[token] in "KR" for token in drawn[:, -1]]
    assert 0.88 < np.mean(ends) < 0.95
    np.testing.assert_array_equal(drawn, draw_peptides(np.random.default_rng(1), 2000, 9))


def test_a_shard_does_not_depend_on_who_builds_it(tmp_path, bank):
    other = Bank(tmp_path, "theoretical", 0, 50)
    assert other.missing([8, 9]) == [8, 9]
    other.build([8, 9])
    assert other.missing([8, 9]) == []
    np.testing.assert_array_equal(other.shard(9).tokens, bank.shard(9).tokens)
    np.testing.assert_array_equal(other.shard(9).heights, bank.shard(9).heights)


def test_splits_share_no_peptide(bank):
    shard: Shard = bank.shard(9)
    assert sum(len(rows) for rows in shard.rows.values()) == len(shard.tokens)
    assert set(shard.rows) == set(SPLITS)
    peptide = shard.tokens[0]
    assert split_percent(peptide) == split_percent(peptide.copy()) == zlib.crc32(peptide.tobytes()) % 100


@pytest.mark.filterwarnings("ignore:.*model_validator")  # pydantic, inside psm_utils
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ms2pip_gives_what_its_own_interface_gives():
    pytest.importorskip("ms2pip", reason="the [trainer] extra is not installed")
    from ms2pip import predict_single

    theirs = predict_single("PEPTIDEK/2", model="HCDch2").predicted_intensity
    linear = np.stack([np.clip(2 ** theirs[name] - 0.001, 0, None) for name in ("b", "y", "b2", "y2")])
    ours = ms2pip(np.array(parse("PEPTIDEK"), dtype=np.uint8), 2)
    assert ours.shape == (len(SERIES), 7)
    np.testing.assert_allclose(ours, linear / linear.max(), atol=1e-5)

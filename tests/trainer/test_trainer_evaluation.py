"""Metrics: Casanovo's matching and strict equality, from what is predicted, its end included."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import DataConfig
from trainer.tasks.peptide.chemistry import EOS, FIRST_RESIDUE, PAD, RESIDUE_MASS, VOCABULARY, parse
from trainer.tasks.peptide.data import Shape, spelled
from trainer.tasks.peptide.evaluation import accuracy, accuracy_by, matched_residues, quality, residues_of, score
from trainer.tasks.peptide.grid import LEVELS, Cell, cells
from trainer.tasks.peptide.peptides import SPLITS, split_percent

peptides = st.lists(st.integers(FIRST_RESIDUE, VOCABULARY - 1), min_size=1, max_size=12).map(np.array)


def answers(*sequences, positions=10, after=PAD):
    rows = np.full((len(sequences), positions), after)
    for row, sequence in enumerate(sequences):
        tokens = parse(sequence)[::-1]
        rows[row, : len(tokens)] = tokens
        rows[row, len(tokens)] = EOS
    return rows


def test_the_truth_scores_one_whatever_follows_its_end():
    truth = answers("PEPTLDEK", "SAMPLER")
    noise = answers("PEPTLDEK", "SAMPLER", after=7)
    assert set(score(noise, truth).values()) == {1.0}


def test_one_wrong_residue_costs_one_token_and_the_sequence():
    found = score(answers("PEPTLDEK"), answers("PEPTLDER"))
    assert found["token_accuracy"] == pytest.approx(8 / 9)
    assert found["sequence_accuracy"] == found["peptide_precision"] == 0
    assert found["aa_precision"] == pytest.approx(7 / 8)


def test_a_wrong_end_is_counted():
    found = score(answers("EPTLDEK"), answers("PEPTLDEK"))
    assert found["token_accuracy"] == pytest.approx(7 / 9)
    assert found["aa_recall"] == pytest.approx(7 / 8)


@pytest.mark.parametrize(
    ("answer", "truth", "matched"),
    [
        ("PEPTLDEK", "PEPTLDEK", 8),
        ("EPPTLDEK", "PEPTLDEK", 6),  # swapped at the start: from the third residue on the masses agree again
        ("PEPTLDEK", "PEPTLDEQ", 8),  # K and Q are 0.036 Da apart: equal by Casanovo's tolerance
        ("GAPEPTLDELK", "AGPEPTLDEKL", 7),  # PEPTLDE, between a swap at either end
        ("GGPEPTLDEK", "NPEPTLDEK", 8),  # two residues as heavy as one: behind them both go on together
        ("PEPTLDEGG", "PEPTLDEN", 7),
        ("GGG", "WWWW", 0),
        ("", "PEPT", 0),
    ],
)
def test_residues_match_by_mass(answer, truth, matched):
    assert matched_residues(np.array(parse(answer), dtype=int), np.array(parse(truth), dtype=int)) == matched


def test_an_answer_without_end_is_taken_whole_and_is_not_valid():
    endless = np.full((1, 4), 5)
    assert len(residues_of(endless[0])) == 4
    said = quality(endless)
    assert said["validity"] == 0
    assert said["longest_run"] == 4
    assert quality(answers("PEPT", "PEPT"))["diversity"] == 0.5
    assert quality(np.full((2, 4), EOS))["length_mean"] == 0


def casanovo_matches(answer, truth):
    """Casanovo's `aa_match_prefix_suffix` as it is published: masses within 0.5 Da, the residue's own within 0.1 Da."""
    found = np.zeros(max(len(answer), len(truth)), dtype=bool)

    def walk(i, j, step, going):
        sum_i = sum_j = 0.0
        while going(i) and going(j) and i < len(answer) and j < len(truth):
            one, other = RESIDUE_MASS[answer[i]], RESIDUE_MASS[truth[j]]
            difference = (sum_i + one) - (sum_j + other)
            if abs(difference) < 0.5:
                found[max(i, j)] = abs(one - other) < 0.1
                i, j, sum_i, sum_j = i + step, j + step, sum_i + one, sum_j + other
            elif difference > 0:
                j, sum_j = j + step, sum_j + other
            else:
                i, sum_i = i + step, sum_i + one

    walk(0, 0, 1, lambda index: index >= 0)
    if not found.all():
        stop = np.argwhere(~found)[0]
        walk(len(answer) - 1, len(truth) - 1, -1, lambda index: index >= stop)
    return found.sum()


@given(peptides, peptides)
def test_matching_is_casanovos(answer, truth):
    """Theirs may count a residue of the shorter one twice, from either end; no more can match than there are."""
    expected = min(casanovo_matches(answer, truth), len(answer), len(truth))
    assert matched_residues(answer, truth) == expected


@given(peptides, st.lists(st.integers(0, 11)), st.integers(FIRST_RESIDUE, VOCABULARY - 1))
def test_matching_of_what_is_alike(truth, places, residue):
    answer = truth.copy()
    answer[[place for place in places if place < len(truth)]] = residue
    assert matched_residues(truth, truth) == len(truth)
    assert matched_residues(answer, truth) == matched_residues(truth, answer)
    assert matched_residues(answer, truth) >= (answer == truth).cumprod().sum()


@given(st.lists(st.tuples(peptides, peptides), min_size=1, max_size=5))
def test_shares_are_shares(pairs):
    said, true = (spelled(side, 13) for side in zip(*pairs, strict=True))
    found = score(said, true)
    assert all(0 <= value <= 1 for value in found.values())
    assert found["sequence_accuracy"] <= found["peptide_precision"]


def test_accuracy_by_length_and_noise():
    truth = answers("GASPVTL", "GASPVTLNDQE", "GASPVTK", "GASPVTLNDQK", positions=20)
    said = truth.copy()
    said[1, 0] = said[2, 0] = parse("W")[0]
    found = accuracy_by(said, truth)
    assert found["sequence_accuracy_length_7_10"] == found["sequence_accuracy_length_11_14"] == 0.5
    assert found["token_accuracy_length_7_10"] == pytest.approx(15 / 16)
    assert found["token_accuracy_clean"] == pytest.approx(15 / 16)
    assert found["token_accuracy_noisy"] == pytest.approx(23 / 24)
    assert not any("length_15" in name for name in found)
    assert accuracy(said, truth) == {name: score(said, truth)[name] for name in ("token_accuracy", "sequence_accuracy")}


def test_the_grid_ends_where_answers_do():
    assert [field.lengths for field in cells(30)][::3] == ["7-10", "11-14", "15-18", "19-30"]
    assert [field.lengths for field in cells(20)][::3] == ["7-10", "11-14", "15-18", "19-20"]
    assert len(cells(18)) == 3 * len(LEVELS)


def test_test_spectra_are_the_same_for_everyone():
    shape, low_high = Shape(50, 31), SPLITS["test"]
    few, more = (Cell(7, 10, "heavy").spectra(DataConfig(source="theoretical", peptides=n), shape, n) for n in (50, 60))
    clean = Cell(7, 10, "clean").spectra(DataConfig(source="theoretical"), shape, 50)
    for one, same, without in zip(few, more[:50], clean, strict=True):
        np.testing.assert_array_equal(one.mz, same.mz)
        assert one.tokens.tobytes() == without.tokens.tobytes()
        assert low_high[0] <= split_percent(one.tokens) < low_high[1]
        assert 7 <= len(one.tokens) <= 10
        assert (one.noise_peaks, without.noise_peaks) == (10, 0)

"""Metrics: Casanovo's matching and strict equality, from what is predicted, its end included."""

import numpy as np
import pytest

from trainer.tasks.peptide.chemistry import EOS, PAD, parse
from trainer.tasks.peptide.evaluation import matched_residues, quality, residues_of, score


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

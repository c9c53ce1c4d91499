"""Samples are pure functions of (seed, index); batches tell what they hold; a blank scan is what the filter is for."""

import numpy as np
import pytest
import torch

from trainer.curriculum import Corruption, curriculum
from trainer.horizon import Horizon, Micro
from trainer.tasks.peptide.bank import SPLITS, split_percent
from trainer.tasks.peptide.chemistry import EOS, PAD, neutral_mass
from trainer.tasks.peptide.data import TENSORS, Shape, Stream, collate, draw

SHAPE = Shape(peaks=40, positions=19)
NOISY = Corruption(7, 12, noise_peaks=5, dropout=0.1, ppm_error=10.0)


def same(first, second):
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in TENSORS)


def stream(bank, seed=0, steps=40, **changes):
    return Stream(bank, Horizon.of_steps(steps, 4, 1), curriculum("EXTENDED", steps), SHAPE, seed, **changes)


def test_a_sample_depends_on_seed_and_index_alone(bank):
    samples = [draw(bank, "train", NOISY, 1, index, SHAPE) for index in (5, 6, 5)]
    np.testing.assert_array_equal(samples[0].mz, samples[2].mz)
    assert len(samples[0].mz) != len(samples[1].mz) or (samples[0].mz != samples[1].mz).any()
    assert not np.array_equal(draw(bank, "train", NOISY, 2, 5, SHAPE).mz, samples[0].mz)


def test_batches_do_not_depend_on_the_order_of_asking(bank):
    forward, backward = stream(bank), stream(bank)
    late, early = backward[30], backward[0]
    assert same(forward[0], early)
    assert same(forward[30], late)
    assert not same(early, stream(bank, seed=1)[0])


def test_workers_change_nothing(bank):
    loaders = [torch.utils.data.DataLoader(stream(bank), batch_size=None, num_workers=n) for n in (0, 1)]
    for alone, helped in zip(*loaders, strict=True):
        assert same(alone, helped)
        assert alone.facts == helped.facts


def test_a_batch_is_what_its_stage_asks_for(bank):
    batches = stream(bank, steps=400)
    plan = curriculum("EXTENDED", 400)
    for index in (0, 100, 250, 399):
        batch = batches[index]
        asked = plan.at(batch.micro.step).data.ranges()
        for name, (low, high) in asked.items():
            assert low <= batch.facts[f"data/{name}/min"] <= batch.facts[f"data/{name}/max"] <= high
        assert batch.facts["data/index"] == 4 * index
        assert batch.facts["bad/input"] == 0


def test_answers_are_spelled_from_the_c_terminus_and_end(bank):
    spectrum = draw(bank, "train", NOISY, 0, 0, SHAPE)
    batch = collate([spectrum], SHAPE, Micro(0, 1, 1, 1.0, True))
    tokens = batch.tokens_BS[0].numpy()
    length = len(spectrum.tokens)
    np.testing.assert_array_equal(tokens[:length], spectrum.tokens[::-1])
    assert tokens[length] == EOS
    assert (tokens[length + 1 :] == PAD).all()
    assert batch.mass_B.item() == pytest.approx(neutral_mass(spectrum.tokens))
    assert batch.mz_BP.dtype == torch.float64


def test_the_tallest_peaks_are_kept_not_the_lightest(bank):
    whole = draw(bank, "train", NOISY, 0, 3, SHAPE)
    few = draw(bank, "train", NOISY, 0, 3, Shape(peaks=6, positions=19))
    tallest = np.sort(whole.mz[np.argsort(-whole.heights, kind="stable")[:6]])
    np.testing.assert_allclose(few.mz, tallest)


def test_validation_peptides_are_not_trained_on(bank):
    low, high = SPLITS["validation"]
    for index in range(30):
        peptide = draw(bank, "validation", NOISY, 0, index, SHAPE).tokens
        assert low <= split_percent(peptide) < high


def test_a_blank_scan_passes_only_where_the_filter_is_off(bank):
    filtered = stream(bank, blank_at=3)[2]
    open_shape = Shape(peaks=40, positions=19, min_peaks=0)
    plan = curriculum("EXTENDED", 40)
    poisoned = Stream(bank, Horizon.of_steps(40, 4, 1), plan, open_shape, 0, blank_at=3)[2]
    assert filtered.facts["bad/input"] == 0
    assert poisoned.facts["bad/input"] == 40
    assert poisoned.mass_B[0] == 0
    assert not poisoned.present_BP[0].any()

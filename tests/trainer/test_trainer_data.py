"""Samples are pure functions of (seed, index); batches tell what they hold; a blank scan is what the filter is for."""

import numpy as np
import pytest
import torch

from trainer.config import UsageError
from trainer.curriculum import Corruption, curriculum
from trainer.horizon import Horizon, Micro
from trainer.tasks.peptide.bank import SPLITS, Bank, draw_peptides, draw_populated, split_percent, split_rows
from trainer.tasks.peptide.chemistry import EOS, PAD, neutral_mass
from trainer.tasks.peptide.data import TENSORS, Shape, Stream, collate, draw, merged_facts

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


def test_peaks_that_no_spectrum_has_are_an_error_and_no_endless_search(bank):
    with pytest.raises(UsageError, match=r"fewer than data\.min_peaks=39 peaks"):
        draw(bank, "train", Corruption(7, 8), 0, 0, Shape(peaks=40, positions=19, min_peaks=39))


def test_no_split_is_left_empty(tmp_path):
    few = Bank(tmp_path, "theoretical", 0, 12)
    assert all(rows.size for length in range(7, 12) for rows in few.shard(length).rows.values())
    same = [made(np.random.default_rng(0), 200, 7) for made in (draw_peptides, draw_populated)]
    np.testing.assert_array_equal(*same)  # a draw that is good is left as it is
    seeds = range(40)
    assert not all(split_rows(draw_peptides(np.random.default_rng(s), 12, 7))["test"].size for s in seeds)


def test_an_old_shard_with_an_empty_split_is_built_again(tmp_path, monkeypatch):
    old = Bank(tmp_path, "theoretical", 0, 12)
    with monkeypatch.context() as patched:
        same = np.full((12, 7), 5, dtype=np.uint8)
        patched.setattr("trainer.tasks.peptide.bank.draw_populated", lambda *_: same)
        old.prepare([7])
    assert all(rows.size for rows in old.shard(7).rows.values())


def test_facts_of_a_step_are_those_of_all_its_micro_batches():
    first = {"data/x/min": 1.0, "data/x/mean": 2.0, "data/x/max": 3.0, "data/index": 8, "bad/input": 1}
    second = {"data/x/min": 0.0, "data/x/mean": 5.0, "data/x/max": 9.0, "data/index": 10, "bad/input": 2}
    merged = merged_facts([(first, 2), (second, 1)])
    assert merged == {"data/x/min": 0.0, "data/x/mean": 3.0, "data/x/max": 9.0, "data/index": 8, "bad/input": 3}
    assert merged_facts([({"data/fingerprint": 7}, 2)]) == {"data/fingerprint": 7}
    pair = [({"data/fingerprint": 7}, 2), ({"data/fingerprint": 8}, 2)]
    assert merged_facts(pair) != merged_facts(pair[::-1])

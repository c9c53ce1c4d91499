"""Samples are pure functions of (seed, index); batches tell what they hold; a blank scan is what the filter is for."""

import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import UsageError
from trainer.curriculum import Corruption, curriculum
from trainer.horizon import Horizon, Micro
from trainer.tasks.peptide.bank import Bank, Online, checksum_of
from trainer.tasks.peptide.chemistry import EOS, PAD, neutral_mass, parse
from trainer.tasks.peptide.data import TENSORS, Shape, Stream, collate, draw, merged_facts
from trainer.tasks.peptide.peptides import SPLITS, draw_peptides, draw_populated, split_percent, split_rows

SHAPE = Shape(peaks=40, positions=19)
NOISY = Corruption(7, 12, noise_peaks=5, dropout=0.1, ppm_error=10.0)
ONLINE = Online("theoretical")


def same(first, second):
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in TENSORS)


def stream(peptides, seed=0, steps=40, size=4, accumulation=1, **changes):
    horizon = Horizon.of_steps(steps, size, accumulation)
    return Stream(peptides, horizon, curriculum("EXTENDED", steps), SHAPE, seed, **changes)


def test_a_sample_depends_on_seed_and_index_alone(bank):
    samples = [draw(bank, "train", NOISY, 1, index, SHAPE) for index in (5, 6, 5)]
    np.testing.assert_array_equal(samples[0].mz, samples[2].mz)
    assert len(samples[0].mz) != len(samples[1].mz) or (samples[0].mz != samples[1].mz).any()
    assert not np.array_equal(draw(bank, "train", NOISY, 2, 5, SHAPE).mz, samples[0].mz)


@given(st.booleans(), st.permutations(range(12)))
def test_the_order_of_asking_changes_no_sample(shards, online, order):
    """Whoever draws the samples, after whichever others, draws the same ones; a process of its own reads its own."""
    first, second = (
        (ONLINE, ONLINE) if online else (Bank(shards, "theoretical", 0, 50), Bank(shards, "theoretical", 0, 50))
    )
    alone = [draw(first, "train", NOISY, 3, index, SHAPE) for index in range(12)]
    for index in order:
        again = draw(second, "train", NOISY, 3, index, SHAPE)
        np.testing.assert_array_equal(alone[index].mz, again.mz)
        np.testing.assert_array_equal(alone[index].heights, again.heights)


@given(st.integers(0, 2**31), st.integers(0, 10**6), st.sampled_from(sorted(SPLITS)))
def test_online_peptides_are_of_their_split(seed, index, split):
    low, high = SPLITS[split]
    assert low <= split_percent(draw(ONLINE, split, NOISY, seed, index, SHAPE).tokens) < high


@given(st.integers(1, 6), st.sampled_from([(8, 1), (4, 2), (2, 4), (1, 8)]))
def test_accumulation_changes_no_sample(steps, parts):
    size, accumulation = parts
    whole = stream(ONLINE, steps=6, size=8)[steps - 1]
    finer = stream(ONLINE, steps=6, size=size, accumulation=accumulation)
    batches = [finer[(steps - 1) * accumulation + part] for part in range(accumulation)]
    for name in TENSORS:
        assert torch.equal(getattr(whole, name), torch.cat([getattr(batch, name) for batch in batches]))


def test_batches_do_not_depend_on_the_order_of_asking(bank):
    forward, backward = stream(bank), stream(bank)
    late, early = backward[30], backward[0]
    assert same(forward[0], early)
    assert same(forward[30], late)
    assert not same(early, stream(bank, seed=1)[0])


@pytest.mark.parametrize(("online", "start"), [(False, "fork"), (True, "fork"), (False, "spawn")])
def test_workers_change_nothing(bank, online, start):
    data = stream(ONLINE if online else bank, steps=6)
    helped = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=start)
    for alone, other in zip((data[index] for index in range(len(data))), helped, strict=True):
        assert same(alone, other)
        assert alone.facts == other.facts


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


def test_facts_of_a_step_are_those_of_all_its_micro_batches():
    first = {"data/x/min": 1.0, "data/x/mean": 2.0, "data/x/max": 3.0, "data/index": 8, "bad/input": 1}
    second = {"data/x/min": 0.0, "data/x/mean": 5.0, "data/x/max": 9.0, "data/index": 10, "bad/input": 2}
    merged = merged_facts([(first, 2), (second, 1)])
    assert merged == {"data/x/min": 0.0, "data/x/mean": 3.0, "data/x/max": 9.0, "data/index": 8, "bad/input": 3}
    assert merged_facts([({"data/fingerprint": 7}, 2)]) == {"data/fingerprint": 7}
    pair = [({"data/fingerprint": 7}, 2), ({"data/fingerprint": 8}, 2)]
    assert merged_facts(pair) != merged_facts(pair[::-1])


def test_shards_are_the_same_whichever_processes_build_them(tmp_path):
    alone, helped = (Bank(tmp_path / name, "theoretical", 0, 150) for name in ("alone", "helped"))
    told = []
    alone.build([8, 7])
    helped.build([7, 8], workers=2, report=lambda done, about: told.append((done, about)))
    assert told == [(100, "length 7"), (150, "length 7"), (250, "length 8"), (300, "length 8")]
    for length in (7, 8):
        assert alone.path(length).read_bytes() == helped.path(length).read_bytes()
    written = alone.path(7).stat().st_mtime_ns
    assert alone.missing([7, 8, 9]) == [9]
    alone.shard(9)
    assert alone.path(7).stat().st_mtime_ns == written
    assert not list(alone.path(7).parent.glob(".*"))


def test_a_pool_that_cannot_start_is_one_sentence(tmp_path):
    """A spawned process imports the main program, and standard input is none: an error, and no hanging."""
    program = f"""
from pathlib import Path
from trainer.config import UsageError
from trainer.tasks.peptide.bank import Bank
try:
    Bank(Path({str(tmp_path)!r}), "theoretical", 0, 50).build([7], workers=1)
except UsageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable], input=program, capture_output=True, text=True, timeout=60, check=True, env={"PYTHONPATH": "."}
    )
    assert "data.workers is 1, but a process that predicts spectra died" in done.stdout


def test_a_shard_that_is_not_as_it_was_written_is_refused(tmp_path):
    bank = Bank(tmp_path, "theoretical", 0, 50)
    bank.build([7, 8])
    whole, sums = bank.path(7).read_bytes(), checksum_of(bank.path(7)).read_text()
    other = bank.path(8).read_bytes()
    for content in (whole[:-1], whole[:100] + b"x" + whole[101:], other, b""):
        bank.path(7).write_bytes(content)
        with pytest.raises(UsageError, match=r"length_07\.npz is not as it was written.* delete it and run"):
            Bank(tmp_path, "theoretical", 0, 50).shard(7)
    bank.path(7).write_bytes(whole)
    shutil.copy(checksum_of(bank.path(8)), checksum_of(bank.path(7)))  # another shard's, file and all
    bank.path(7).write_bytes(other)
    with pytest.raises(UsageError, match="is not as it was written"):
        bank.shard(7)
    checksum_of(bank.path(7)).unlink()
    with pytest.raises(UsageError, match="has no checksum beside it; delete it and run `python -m trainer data build`"):
        bank.shard(7)
    bank.path(7).unlink()
    assert bank.shard(7).tokens.shape == (50, 7)
    assert (bank.path(7).read_bytes(), checksum_of(bank.path(7)).read_text()) == (whole, sums)


def test_a_bank_travels_without_its_shards(bank):
    bank.shard(7)
    assert len(pickle.dumps(bank)) < 1000
    assert pickle.loads(pickle.dumps(bank)) == bank


def test_a_modified_twin_is_in_the_same_split():
    bare, oxidised = (np.array(parse(text), dtype=np.uint8) for text in ("PEPMTMDEK", "PEPM[UNIMOD:35]TMDEK"))
    assert split_percent(bare) == split_percent(oxidised)
    assert len({split_percent(np.array(parse(text), dtype=np.uint8)) for text in ("PEPMTMDEK", "PEPMTVDEK")}) == 2

"""overlap: samples of a validation loader that are trained on."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import trainwatch
from trainwatch.recorder.overlap import EACH, KEPT, Overlap, samples


def told(path):
    rows = (json.loads(line) for line in path.read_text().splitlines())
    return [{k[8:]: v for k, v in row.items() if k.startswith("overlap/")} for row in rows if row["kind"] == "eval"]


def loader(data, labels, batch=16, shuffle=False):
    held = torch.utils.data.TensorDataset(data, labels)
    return torch.utils.data.DataLoader(held, batch_size=batch, shuffle=shuffle)


def run(path, training, validation, epochs=3):
    with trainwatch.Recorder(path) as watch:
        for epoch in range(epochs):
            with watch.phase("eval"):
                for _ in watch.batches(validation):
                    pass
            watch.evaluate(epoch, "validation", {"loss": 1.0})
            for _ in watch.batches(training):
                watch.log({"loss": 1.0})
                watch.step()
    return told(path), {one.rule: one for one in trainwatch.diagnose(trainwatch.read(path)).findings}


@pytest.fixture
def data():
    torch.manual_seed(0)
    return torch.randn(320, 3, 5), torch.randint(4, (320,))


def test_a_validation_set_out_of_the_training_set_is_told(tmp_path, data):
    x, y = data
    counts, findings = run(tmp_path / "run.jsonl", loader(x, y, shuffle=True), loader(x[:64], y[:64]))
    assert counts[0] == {}
    assert counts[1]["samples"] == 64
    assert counts[1]["looked"] == 20 * EACH
    assert 0 < counts[1]["found"] < counts[2]["found"] <= 64
    assert findings["validation-overlap"].severity == "warning"


def test_how_often_the_same_samples_come_is_told(tmp_path, data):
    """Of 32 in twenty epochs, and of those that are moved a little each time."""
    x, y = data
    few, _ = run(tmp_path / "few.jsonl", loader(x[64:96], y[64:96], shuffle=True), loader(x[:64], y[:64]), epochs=20)
    assert (few[-1]["drawn"], few[-1]["distinct"]) == (19 * 2 * EACH, 32)
    moved = loader(x[64:96], y[64:96], shuffle=True)
    moved.collate_fn = lambda rows: torch.stack([row[0] for row in rows]) + torch.rand(1)
    anew, _ = run(tmp_path / "anew.jsonl", moved, loader(x[:64], y[:64]), epochs=20)
    assert anew[-1]["drawn"] == anew[-1]["distinct"]


def test_a_proper_split_is_not(tmp_path, data):
    x, y = data
    counts, findings = run(tmp_path / "run.jsonl", loader(x[64:], y[64:], shuffle=True), loader(x[:64], y[:64]))
    drawn = {"drawn": 2 * 16 * EACH, "distinct": counts[2]["distinct"]}
    assert counts[2] == {"samples": 64, "copies": 0, "looked": 2 * 16 * EACH, "hits": 0, "found": 0} | drawn
    assert 16 * EACH < drawn["distinct"] < 2 * 16 * EACH
    assert "validation-overlap" not in findings


@pytest.mark.parametrize("values", [2, 3])
def test_samples_that_are_equal_by_nature_are_no_leak(tmp_path, values):
    """Few features of few values: training and validation are drawn apart, and share most of what there is."""
    torch.manual_seed(values)
    x = torch.randint(values, (3000, 9))
    held = x[:500], torch.zeros(500)
    counts, findings = run(tmp_path / "run.jsonl", loader(x[500:], torch.zeros(2500), shuffle=True), loader(*held))
    assert counts[1]["copies"] > 0
    assert "validation-overlap" not in findings


def test_a_loader_of_indices_says_nothing(tmp_path):
    index = torch.arange(640)
    counts, _ = run(tmp_path / "run.jsonl", loader(index, index), loader(index[:64], index[:64]))
    assert counts == [{}, {}, {}]


def test_each_split_is_known_by_its_own_samples(tmp_path, data):
    x, y = data
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        for step in range(2):
            for split, part in (("a", slice(0, 32)), ("b", slice(32, 64))):
                with watch.phase("eval"):
                    list(watch.batches(loader(x[part], y[part])))
                watch.evaluate(step, split, {"loss": 1.0})
            list(watch.batches(loader(x[:32], y[:32], batch=8)))
            watch.step()
    assert [one.get("found") for one in told(tmp_path / "run.jsonl")] == [None, None, 32, 0]


def test_a_large_set_is_known_by_its_first_samples():
    overlap, held = Overlap(), []
    for start in range(0, 3 * KEPT, 512):
        overlap.see(np.arange(start * 8, (start + 512) * 8).reshape(512, 8), held, training=False)
    assert overlap.collect("validation") == {}
    assert overlap.collect("validation")["overlap/samples"] == KEPT


def test_folds_of_a_cross_validation_are_told_apart(tmp_path, data):
    """What is validation in one fold is trained on in the next."""
    x, y = data
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        for fold in range(5):
            held = torch.arange(len(x)) % 5 == fold
            for epoch in range(3):
                for _ in watch.batches(loader(x[~held], y[~held])):
                    watch.log({"loss": 1.0})
                    watch.step()
                with watch.phase("eval"):
                    list(watch.batches(loader(x[held], y[held])))
                watch.evaluate(3 * fold + epoch, "validation", {"loss": 1.0})
    assert [one.get("found") for one in told(tmp_path / "run.jsonl")] == [None, 0, 0] * 5


@given(st.integers(1, 40), st.integers(8, 40), st.integers(0, 30), st.sampled_from(["int64", "float32", "uint8"]))
def test_a_sample_has_its_hash_in_any_batch_and_however_far_it_is_padded(count, width, padded, kind):
    rows = np.random.default_rng(count).integers(1, 200, (count, width)).astype(kind)
    alone = np.concatenate([samples(rows[i : i + 1], 1) for i in range(count)])
    wider = np.pad(rows, ((0, 0), (0, padded)))
    assert (samples(wider, count) == alone).all()
    assert len(set(alone.tolist())) == len({row.tobytes() for row in rows})


def test_training_data_that_is_evaluated_on_is_no_validation_set(tmp_path, data):
    """Both losses are estimated in one phase, and told as one evaluation: nobody knows whose samples are whose."""
    x, y = data
    training, held = loader(x[64:], y[64:]), loader(x[:64], y[:64])
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        wrapped = watch.batches(held)
        for step in range(4):
            with watch.phase("eval"):
                for one in (watch.batches(training), wrapped):
                    list(one)
            watch.evaluate(step, "validation", {"loss": 1.0, "train_loss": 1.0})
            list(watch.batches(training))
            watch.step()
    assert told(tmp_path / "run.jsonl")[0] == {}
    assert {one.get("found", 0) for one in told(tmp_path / "run.jsonl")} == {0}


def test_a_validation_loader_that_is_walked_through_between_steps_trains_nothing(tmp_path, data):
    x, y = data
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        training, held = watch.batches(loader(x[64:], y[64:])), watch.batches(loader(x[:64], y[:64]))
        for step in range(3):
            with watch.phase("eval"):
                list(held)
            watch.evaluate(step, "validation", {"loss": 1.0})
            list(held)  # a picture of some of it
            list(training)
            watch.step()
    assert [one.get("found") for one in told(tmp_path / "run.jsonl")] == [None, 0, 0]


def test_what_was_walked_through_before_a_step_is_no_part_of_the_next_evaluation(tmp_path, data):
    x, y = data
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        with watch.phase("eval"):
            list(watch.batches(loader(x, y)))  # the statistics of the inputs
        for step in range(3):
            list(watch.batches(loader(x[64:], y[64:])))
            watch.step()
            with watch.phase("eval"):
                list(watch.batches(loader(x[:64], y[:64])))
            watch.evaluate(step, "validation", {"loss": 1.0})
    assert [one.get("found") for one in told(tmp_path / "run.jsonl")] == [None, 0, 0]


def test_names_of_samples_are_no_numbers():
    batch = {"x": np.arange(80.0).reshape(8, 10), "name": np.array(list("abcdefgh")), "part": np.zeros(8, "i4,f4")}
    assert (samples(batch, 8) == samples({"x": batch["x"]}, 8)).all()


def test_channels_last_and_plain_layout_are_each_consistent():
    x = torch.randn(6, 3, 40, 40)
    last = x.to(memory_format=torch.channels_last)
    assert (samples(last, 6)[::5] == samples(last[::5].contiguous(memory_format=torch.channels_last), 2)).all()
    assert (samples(x, 6)[::5] == samples(x[::5].contiguous(), 2)).all()

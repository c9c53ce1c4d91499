"""What batches() tells of labels and of several batches a step: kinds, what is ignored, what comes again."""

import json

import numpy as np
import pytest
import torch

import trainwatch


def run(path, batches, each=1, loss=lambda number: 1.0 + 0.1 * (number % 3)):
    """A run over these batches, so many to a step: its rows, and the findings."""
    with trainwatch.Recorder(path, total_steps=len(batches) // each) as watch:
        for number, _ in enumerate(watch.batches(batches), 1):
            if number % each == 0:
                watch.log({"loss": loss(number)})
                watch.step()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = {one.rule: one for one in trainwatch.diagnose(trainwatch.read(path)).findings}
    return [row for row in rows if row["kind"] == "step"], found


def images(labels):
    """A batch of a pair, whose images are all different."""
    return torch.rand(len(labels), 6), torch.as_tensor(labels)


FIXED = images(np.arange(16))


def test_batches_of_one_class_are_named(tmp_path):
    rows, found = run(tmp_path / "run.jsonl", [images([step // 10] * 16) for step in range(60)])
    assert [(row["data/label_kinds"], row["data/label"]) for row in rows[9:11]] == [(1, 0), (1, 1)]
    assert found["one-class-batches"].severity == "warning"
    assert (found["one-class-batches"].first_step, found["one-class-batches"].last_step) == (1, 60)
    assert "60 of 60 steps" in found["one-class-batches"].message


@pytest.mark.parametrize(
    "labels",
    [
        lambda _: np.arange(16) % 4,  # shuffled
        lambda _: [0] * 16,  # all are normal: what is looked for is what is not
        lambda step: [0] * 15 + [int(step % 4 == 0)],  # a rare event
        lambda step: [step // 10] * 4,  # too few samples to speak of
        lambda step: [step * 7 % 40] * 16,  # the length of a bucket, the moment of a diffusion, a bag's
        lambda step: [step % 2] * 16,  # two domains in turn
        lambda step: np.full((16, 3), step // 10),  # a label for each position
        lambda step: torch.full((16,), step / 10),  # what is measured is no class
    ],
)
def test_what_is_no_order_of_classes(tmp_path, labels):
    found = run(tmp_path / "run.jsonl", [images(labels(step)) for step in range(60)])[1]
    assert "one-class-batches" not in found


def test_an_index_is_no_class(tmp_path):
    """One label stands alone in the sample that is looked at; the whole batch is looked at then."""
    labels = torch.zeros(4096, dtype=torch.long)
    labels[5] = 1
    rows, _ = run(tmp_path / "run.jsonl", [{"x": torch.rand(4096, 2), "label": labels}] * 2)
    assert rows[0]["data/label_kinds"] == 2


def tokens(answers):
    """A batch of two texts; -100 stands where no answer is."""
    labels = torch.full((2, 50), -100)
    labels[:, 50 - answers :] = 7
    return {"input_ids": torch.randint(0, 99, (2, 50)), "labels": labels}


@pytest.mark.parametrize("loss", [0.0, float("nan")])
def test_labels_that_are_all_ignored_lose_the_run(loss, tmp_path):
    rows, found = run(tmp_path / "run.jsonl", [tokens(0)] * 30, loss=lambda _: loss)
    assert {row["data/labels_ignored"] for row in rows} == {1}
    told = found["labels-ignored"]
    assert (told.severity, told.first_step, told.last_step) == ("critical", 1, 30)


def test_short_answers_are_answers(tmp_path):
    """One token in 50 is enough, and one sample in the batch."""
    rows, found = run(tmp_path / "run.jsonl", [tokens(1)] * 30)
    assert {row["data/labels_ignored"] for row in rows} == {0}
    assert "labels-ignored" not in found


def test_what_learns_all_the_same_is_an_info(tmp_path):
    """Unlabelled samples, of which another loss makes something: all of them, or twenty steps in turn."""
    for name, answers in (("all", lambda _: 0), ("turns", lambda step: 5 * (step // 20 % 2))):
        found = run(tmp_path / f"{name}.jsonl", [tokens(answers(step)) for step in range(80)])[1]
        assert found["labels-ignored"].severity == "info"


def test_a_few_steps_are_nothing(tmp_path):
    seldom = [tokens(5 * (step % 10 > 0)) for step in range(60)]
    assert "labels-ignored" not in run(tmp_path / "seldom.jsonl", seldom)[1]


def test_labels_without_anything_ignored_have_no_channel(tmp_path):
    rows, _ = run(tmp_path / "run.jsonl", [images([1, 2] * 8)] * 3)
    assert "data/labels_ignored" not in rows[0]


@pytest.mark.parametrize(
    "batch", [torch.ones(4), None, {"labels": "x"}, {"labels": torch.ones(0)}, [torch.ones(9), 5], (1, 2, 3)]
)
def test_what_has_no_labels_has_no_channels(tmp_path, batch):
    rows, _ = run(tmp_path / "run.jsonl", [batch] * 2)
    assert not [name for row in rows for name in row if name.startswith("data/label")]


def test_copies_within_a_step_are_counted(tmp_path):
    """Four workers that read the same stream, and an accumulation of four: no step's fingerprint comes again."""
    batches = [one for _ in range(80) for one in [images(np.arange(16))] * 4]
    rows, found = run(tmp_path / "run.jsonl", batches, each=4)
    assert (rows[-1]["data/batches"], rows[-1]["data/again"], rows[-1]["data/new"]) == (4, 3, 1)
    assert len({row["data/fingerprint"] for row in rows}) == len(rows)
    assert (found["duplicate-batches"].severity, found["duplicate-batches"].evidence["copies"]) == ("warning", 4)


@pytest.mark.parametrize("order", ["0102", "0123012301230123"])
def test_what_comes_again_by_design(order, tmp_path):
    """A boundary's points beside new ones; epochs over what was just played."""
    steps = []
    for _ in range(80):
        new = {"0": images(np.arange(16)) if order != "0102" else FIXED}
        steps += [new.setdefault(one, images(np.arange(16))) for one in order]
    assert "duplicate-batches" not in run(tmp_path / "run.jsonl", steps, each=len(order))[1]


def test_micro_batches_of_their_own_are_no_copies(tmp_path):
    rows, found = run(tmp_path / "run.jsonl", [images(np.arange(16)) for _ in range(320)], each=4)
    assert (rows[-1]["data/again"], rows[-1]["data/new"]) == (0, 4)
    assert "duplicate-batches" not in found

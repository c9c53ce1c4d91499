"""What the recorder tells of a batch: a fingerprint of what lies on the host, and the scale of what the model reads."""

import json
import math
from collections import UserDict

import numpy as np
import pytest
import torch

import trainwatch
from trainwatch.recorder.inputs import fingerprint


def prints(watch, steps, loader):
    """The fingerprint of every step."""
    for _ in watch.batches(loader):
        watch.step()
    watch.close()
    return [row.get("data/fingerprint") for row in steps(watch.path)]


def test_equal_batches_have_equal_fingerprints_and_others_others(watch, steps):
    """Whatever holds the tensors."""
    images, labels = torch.rand(3, 8, 3, 32, 32), torch.randint(0, 10, (3, 8))
    batches = [(images[i], labels[i]) for i in (0, 1, 0, 2)]
    first, second, again, third = prints(watch, steps, batches)
    assert first == again
    assert len({first, second, third}) == 3


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: x.bfloat16(),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: {"pixels": [x]},
        lambda x: UserDict(pixels=x),
        lambda x: x.numpy(),
        lambda x: (x, "name", None, 5),
    ],
)
def test_whatever_form_a_batch_has(form):
    """One value that is looked at tells two batches apart."""
    image = torch.rand(2, 3, 8, 8)
    other = image + 1
    assert fingerprint(form(image)) == fingerprint(form(image.clone()))
    assert fingerprint(form(image)) != fingerprint(form(other))


@pytest.mark.parametrize(
    "batch",
    [
        None,
        5,
        "text",
        [],
        {},
        [["deep", [["deeper", [torch.ones(2)]]]]],
        torch.ones(3).to_sparse(),
        torch.ones(4, 4).T[::2],
    ],
)
def test_what_cannot_be_read_has_none(batch):
    """And costs nothing."""
    assert fingerprint(batch) == (None, 0)


def test_micro_batches_are_one_step_and_the_loops_own_fingerprint_counts(watch, steps):
    """Their order matters; what is logged under the name is not overwritten."""
    one, two = torch.ones(4), torch.zeros(4)
    loader = iter(watch.batches([one, two, two, one, one, two, one]))
    for count in (2, 2, 2):
        for _ in range(count):
            next(loader)
        watch.step()
    next(loader)
    watch.log({"data/fingerprint": 7})
    watch.step()
    watch.close()
    found = [row["data/fingerprint"] for row in steps(watch.path)]
    assert found[0] == found[2] != found[1]
    assert found[3] == 7


def test_the_scale_of_inputs(watch, steps):
    """Mean, spread and magnitude over two micro-batches; how many values are no numbers."""
    first, second = torch.tensor([1.0, 3.0]), torch.tensor([-5.0, -5.0], requires_grad=True)
    watch.inputs(first)
    watch.inputs(second)
    watch.step()
    watch.inputs(torch.tensor([1.0, math.nan, math.inf]))
    watch.step()
    watch.close()
    good, bad = steps(watch.path)
    assert [good[f"data/input_{name}"] for name in ("mean", "std", "absmax")] == [-1.5, 0.5, 5.0]
    assert good["bad/input"] == 0
    assert bad["bad/input"] == 2
    assert bad["nonfinite"]["data/input_mean"] == "nan"


@pytest.mark.parametrize("read", [torch.arange(5), None, [1.0], torch.ones(0)])
def test_what_has_no_scale_is_said_once(watch, steps, read, capsys):
    """Tokens, labels, nothing: one sentence, and the run goes on."""
    watch.inputs(read)
    watch.inputs(read)
    watch.step()
    watch.close()
    assert capsys.readouterr().err.count("not a tensor of floats") == 1
    assert "data/input_mean" not in steps(watch.path)[0]


def test_a_batch_that_breaks_the_fingerprint_breaks_nothing_else(watch, steps, capsys):
    """It is said once, and fingerprints are given up."""

    class Odd(UserDict):
        def values(self):
            raise RuntimeError("no values today")

    found = prints(watch, steps, [Odd(), torch.ones(2), torch.ones(2)])
    assert found == [None] * 3
    assert capsys.readouterr().err.count("no values today") == 1


def test_evaluation_batches_are_no_step(watch, steps):
    """In an evaluation's phase nothing is looked at."""
    with watch.phase("eval"):
        list(watch.batches([torch.ones(2)]))
        watch.inputs(torch.ones(2))
    watch.step()
    watch.close()
    assert not {"data/fingerprint", "data/input_mean"} & steps(watch.path)[0].keys()


def test_numpy_alone_is_enough():
    """Whole arrays; a slice with holes is left alone."""
    array = np.arange(100.0)
    assert fingerprint([array]) == fingerprint([array.copy()]) != fingerprint([array + 1])
    assert fingerprint(array[::2]) == (None, 0)


@pytest.mark.parametrize(("value", "told"), [(float("nan"), True), (float("inf"), True), (float("-inf"), False)])
def test_a_sample_that_is_not_finite_is_told_in_its_row(tmp_path, value, told):
    """Not -inf: that is how a mask leaves positions out."""
    good = {"x": torch.randn(16, 200), "y": torch.zeros(16, dtype=torch.int64)}
    bad = {"x": good["x"].clone(), "y": good["y"]}
    bad["x"][3, 77] = value
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        for _ in watch.batches([good, bad, good]):
            watch.log({"loss": 1.0})
            watch.step()
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    counts = [row.get("bad/input", 0) for row in rows if row["kind"] == "step"]
    assert (counts[0], counts[1] > 0, counts[2]) == (0, told, 0)

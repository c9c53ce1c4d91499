"""The moving average: its formula, its warm-up, its place in evaluation and in checkpoints."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer import checkpoint, train
from trainer.ema import MovingAverage


@given(st.floats(0.01, 0.9999), st.lists(st.floats(-10, 10), min_size=1, max_size=30))
def test_it_is_the_warmed_up_average(decay, course):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    average, expected = MovingAverage(model, decay), 3.0
    for updates, value in enumerate(course):
        nn.init.constant_(model.weight, value)
        average.update(updates)
        now = min(decay, (1 + updates) / (10 + updates))
        expected = now * expected + (1 - now) * value
    assert float(average.state()["ema"]["weight"]) == pytest.approx(expected, abs=1e-4)


def test_without_a_decay_there_is_none():
    average = MovingAverage(nn.Linear(2, 2), 0.0)
    average.update(3)
    assert (average.state(), list(average.splits())) == ({}, ["validation"])


def test_a_model_has_the_average_for_its_weights_within_its_split_alone():
    model = nn.Linear(3, 3)
    average = MovingAverage(model, 0.9)
    begun = {name: value.clone() for name, value in model.state_dict().items()}
    nn.init.ones_(model.weight)
    parameter = model.weight

    def interrupted():
        with average.splits()["validation_ema"]:
            assert torch.equal(model.weight, begun["weight"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert model.weight is parameter
    assert torch.equal(parameter, torch.ones(3, 3))
    with average.splits()["validation"]:
        assert torch.equal(model.weight, torch.ones(3, 3))


def test_both_weights_are_evaluated_and_kept(trained, tmp_path):
    _, records = trained(steps=4, optimizer__ema=0.99, optimizer__lr=0.01, evaluation__every=0.5)
    evaluations = [record for record in records if record["kind"] == "eval"]
    assert [(r["step"], r["split"]) for r in evaluations] == [
        (step, split) for step in (0, 2, 4) for split in ("validation", "validation_ema")
    ]
    assert evaluations[0]["loss"] == evaluations[1]["loss"]
    assert evaluations[-2]["loss"] != evaluations[-1]["loss"]
    state = checkpoint.load(tmp_path / "run.checkpoints" / "latest.pt")
    assert state["ema"].keys() == state["model"].keys()
    assert any(not torch.equal(state["ema"][name], weight) for name, weight in state["model"].items())


def test_it_leaves_the_training_as_it_is(trained, tmp_path):
    for name, decay in (("plain", 0.0), ("averaged", 0.9)):
        trained(name=name, steps=3, optimizer__ema=decay, evaluation__every=0.34)
    plain, averaged = (checkpoint.load(tmp_path / f"{n}.checkpoints" / "latest.pt") for n in ("plain", "averaged"))
    assert all(torch.equal(averaged["model"][name], weight) for name, weight in plain["model"].items())
    assert "ema" not in plain


def test_best_is_what_would_be_deployed(trained, monkeypatch):
    """The live weights are better at step 2, their average at step 4: that one is the best checkpoint."""
    scores = {"validation": iter([0.1, 0.9, 0.2]), "validation_ema": iter([0.1, 0.3, 0.5])}
    splits, evaluate = iter(["validation", "validation_ema"] * 3), train.evaluation.evaluate

    def scored(*arguments):
        values, shown = evaluate(*arguments)
        return values | {"token_accuracy": next(scores[next(splits)])}, shown

    monkeypatch.setattr(train.evaluation, "evaluate", scored)
    outcome, records = trained(steps=4, optimizer__ema=0.9, evaluation__every=0.5)
    written = [(r["step"], r["best"], r["metric"]) for r in records if r["kind"] == "checkpoint"]
    assert written == [(2, True, 0.3), (4, True, 0.5)]
    assert outcome.metrics["token_accuracy"] == 0.5

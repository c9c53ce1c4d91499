"""grad_carried: whether a backward begins on the gradient of the step before."""

import pytest
import torch

import trainwatch


def train(path, zero, rows=4, micro=1, other=False):
    """A run whose loop sets the gradients to zero as ``zero`` says; the column of the rows."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with trainwatch.Recorder(path) as watch:
        watch.attach(net, optimizer)
        for _ in range(rows):
            zero("before the forward", optimizer, net)
            for _ in range(micro):
                loss = watch.losses({"a": net(torch.randn(3, 4)).square().mean()})
                zero("before the backward", optimizer, net)
                (loss / micro).backward()
            if other:
                net(torch.randn(3, 4)).mean().backward()
            watch.gradients(max_norm=0.1)
            optimizer.step()
            watch.step()
    run = trainwatch.read(path)
    return run, [None if value != value else int(value) for value in run.train["grad_carried"].tolist()]


def when(wanted, **how):
    return lambda moment, optimizer, _: optimizer.zero_grad(**how) if moment == wanted else None


def never(_moment, _optimizer, _net):
    pass


@pytest.mark.parametrize("moment", ["before the forward", "before the backward"])
def test_a_gradient_that_is_dropped_is_told_now_and_then(tmp_path, moment):
    run, carried = train(tmp_path / "run.jsonl", when(moment), rows=60)
    assert [row for row, value in enumerate(carried, 1) if value is not None] == [50]
    assert carried[49] == 0
    assert "gradients-accumulate" not in {finding.rule for finding in trainwatch.diagnose(run).findings}


@pytest.mark.parametrize("micro", [1, 3])
def test_a_gradient_that_is_kept_is_told_and_named(tmp_path, micro):
    """Over micro-batches as well, where the second backward may well find the first one's."""
    run, carried = train(tmp_path / "run.jsonl", never, micro=micro)
    assert carried == [None, 1, 1, 1]
    (found,) = [one for one in trainwatch.diagnose(run).findings if one.rule == "gradients-accumulate"]
    assert (found.severity, found.first_step, found.confidence) == ("warning", 2, 1.0)


def test_micro_batches_are_not_the_step_before(tmp_path):
    """The gradient of the first of them is there when the second's backward begins, as it should."""
    assert train(tmp_path / "run.jsonl", when("before the forward"), rows=50, micro=3)[1] == [None] * 49 + [0]


def test_zeros_that_are_written_are_not_told(tmp_path):
    """In place they may be zeros or anything."""
    _, carried = train(tmp_path / "run.jsonl", when("before the forward", set_to_none=False), rows=50)
    assert carried == [None] * 50


def test_a_step_that_is_skipped_keeps_its_gradient_rightly(tmp_path):
    """Rows without an optimiser's step are one long accumulation."""
    net = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net, optimizer)
        for row in range(60):
            watch.losses({"a": net(torch.randn(3, 4)).square().mean()}).backward()
            if row % 7 == 6:
                optimizer.step()
                optimizer.zero_grad()
            watch.step()
    carried = trainwatch.read(tmp_path / "run.jsonl").train["grad_carried"]
    assert [int(value) for value in carried if value == value] == [0]


def test_a_fault_of_ours_stays_ours(tmp_path, monkeypatch):
    """The backward goes on."""
    monkeypatch.setattr("trainwatch.recorder.carried._written", lambda _: 1 / 0)
    run, carried = train(tmp_path / "run.jsonl", never)
    assert carried == [None] * 4
    assert run.train.size == 4
    assert "ZeroDivisionError" in " ".join(str(event) for event in run.events)


def duel(path, forgets=False, **how):
    """A critic, and an actor whose loss goes through it; the critic's optimiser may forget to set gradients to zero."""
    torch.manual_seed(0)
    models = {"critic": torch.nn.Linear(4, 1), "actor": torch.nn.Linear(4, 4)}
    optimizers = {name: torch.optim.Adam(model.parameters()) for name, model in models.items()}
    with trainwatch.Recorder(path) as watch:
        watch.attach(models, optimizers)
        for _ in range(50):
            seen = torch.randn(3, 4)
            for name, asked in (("critic", seen), ("actor", models["actor"](seen))):
                if not (forgets and name == "critic"):
                    models[name].zero_grad(**how)
                models["critic"](asked).square().mean().backward()
                watch.gradients(max_norm=0.1, of=name)
                optimizers[name].step()
            watch.step()
    return trainwatch.read(path)


def told(run):
    """What is told of each optimiser, and how often."""
    names = [name for name in run.train.channels if name.startswith("grad_carried")]
    return {name.partition("/")[2]: [int(v) for v in run.train[name] if v == v] for name in names}


def test_what_anothers_loss_leaves_in_a_model_is_no_fault(tmp_path):
    """As long as it is dropped before the model's own optimiser steps; written zeros tell nothing."""
    assert told(duel(tmp_path / "a.jsonl")) == {"critic": [0], "actor": [0]}
    assert told(duel(tmp_path / "b.jsonl", set_to_none=False)) == {}


def test_the_one_of_several_optimisers_that_forgets_is_named(tmp_path):
    run = duel(tmp_path / "run.jsonl", forgets=True)
    assert told(run) == {"critic": [1] * 49, "actor": [0]}
    (found,) = [one for one in trainwatch.diagnose(run).findings if one.rule == "gradients-accumulate"]
    assert "gradients of critic" in found.message


def test_gradients_that_no_optimiser_uses_are_not_told(tmp_path):
    """The optimiser holds other tensors: what accumulates in the model moves nothing."""
    net = torch.nn.Linear(4, 2)
    stale = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.01)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net, stale)
        for _ in range(50):
            stale.zero_grad()
            net(torch.randn(3, 4)).square().mean().backward()
            stale.step()
            watch.step()
    assert told(trainwatch.read(tmp_path / "run.jsonl")) == {}


def test_the_hooks_are_taken_off_again(tmp_path):
    net = torch.nn.Linear(4, 2)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        for _ in range(3):
            watch.attach(net, torch.optim.SGD(net.parameters(), lr=0.01))
        assert len(net.weight._backward_hooks) == 1
    assert not net.weight._backward_hooks

"""Loops as people write them: sparse gradients, wrapped models, groups added late, evaluations without a phase."""

import subprocess
import time

import pytest
import torch
from torch import nn

import trainwatch


def test_checkpoint_seconds_are_subtracted_once(watch, steps):
    watch.step()
    with watch.phase("checkpoint"):
        time.sleep(0.3)
    watch.checkpoint("x", seconds=0.3)
    time.sleep(0.2)
    watch.step()
    with watch.phase("checkpoint"):
        time.sleep(0.2)
    time.sleep(0.2)
    watch.checkpoint("x", seconds=0.2)
    watch.step()
    watch.close()
    assert all(0.19 <= row["time/step"] < 0.29 for row in steps(watch.path)[1:])


def test_sparse_gradients(watch, steps):
    net = nn.Embedding(8, 4, sparse=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch.attach(net, optimizer)
    net(torch.tensor([1, 1, 2])).sum().backward()
    truth = net.weight.grad.to_dense().norm()
    assert torch.allclose(watch.gradients(), truth)
    optimizer.step()
    watch.step()
    watch.close()
    assert steps(watch.path)[0]["grad_norm"] == pytest.approx(float(truth))


def test_without_a_limit_gradients_never_raises(watch, monkeypatch):
    net = nn.Linear(2, 2)
    watch.attach(net)
    monkeypatch.setattr(watch._models, "norms", lambda *_: 1 / 0)
    monkeypatch.setattr(nn.utils, "get_total_norm", lambda *_: 1 / 0)
    net(torch.ones(2)).sum().backward()
    assert watch.gradients().isnan()


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod"])
def test_a_wrappers_modules_are_the_models(watch, records, wrapper):
    outer = nn.Module()
    outer.add_module(wrapper, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    watch.attach(outer)
    watch.close()
    about = next(row for row in records(watch.path) if row.get("message") == "models attached")
    assert [row["name"] for row in about["modules"]] == ["0", "1"]


def test_a_group_that_is_added_late_has_its_rate(watch, steps):
    net, late = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch.attach(net, optimizer)
    optimizer.add_param_group({"params": late.parameters(), "lr": 0.5})
    late(net(torch.ones(2))).sum().backward()
    optimizer.step()
    watch.step()
    watch.close()
    assert steps(watch.path)[0]["lr/1"] == 0.5


def test_an_optimizer_without_hooks_is_recorded_all_the_same(watch, steps):
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner

        @property
        def param_groups(self):
            return self.inner.param_groups

        def step(self):
            self.inner.step()

    net = nn.Linear(2, 2)
    optimizer = Wrapper(torch.optim.SGD(net.parameters(), lr=0.1))
    watch.attach(net, optimizer)
    net(torch.ones(2)).sum().backward()
    optimizer.step()
    watch.step()
    watch.close()
    (row,) = steps(watch.path)
    assert (row["lr/0"], row["applied"]) == (0.1, 1)


def test_a_resume_samples_the_weights_when_the_run_would_have(tmp_path, steps):
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with trainwatch.Recorder(tmp_path / "run.jsonl", resume=97) as watch:
        watch.attach(net, optimizer)
        for _ in range(3):
            net(torch.ones(2)).sum().backward()
            optimizer.step()
            watch.step()
    assert [row["step"] for row in steps(watch.path) if "update_ratio/0" in row] == [100]


@pytest.mark.parametrize(("code", "total", "done"), [(3, None, "stopped"), (0, None, "stopped"), (0, 2, "finished")])
def test_an_exit_without_close_is_no_finish(program, tmp_path, records, code, total, done):
    process: subprocess.Popen[str] = program(
        f"watch = trainwatch.Recorder(path, total_steps={total})\nwatch.step()\nwatch.step()\nsys.exit({code})"
    )
    process.communicate(timeout=60)
    assert process.returncode == code
    assert records(tmp_path / "run.jsonl")[-1]["status"] == done


def test_an_evaluation_under_no_grad_is_no_training_loss(watch, steps):
    watch.losses({"a": torch.tensor(1.0, requires_grad=True)})
    with torch.no_grad():
        assert watch.losses({"a": torch.tensor(9.0)}) == 9
    watch.step()
    watch.close()
    assert steps(watch.path)[0]["loss/a"] == 1


def test_gradients_that_float16_cannot_hold_are_measured(watch, steps):
    x = torch.ones(4, dtype=torch.float16, requires_grad=True)
    at = x * 1
    watch.losses({"small": at.float().sum() * 1e-8, "large": at.float().sum()}, at=at)
    watch.step()
    watch.close()
    row = steps(watch.path)[0]
    assert row["component_grad/small"] == pytest.approx(2e-8, rel=0.01)
    assert row["component_grad/large"] == 2


@pytest.mark.parametrize(
    ("optimizer", "restored", "told"),
    [
        (torch.optim.AdamW, False, ["optimizer"]),
        (torch.optim.AdamW, True, None),
        (torch.optim.SGD, False, None),  # has nothing to forget
    ],
)
def test_a_resume_that_forgot_the_optimiser(tmp_path, records, optimizer, restored, told):
    """Told once, at the first step, and only of a resume."""

    def train(state, **more):
        model = nn.Linear(2, 1)
        adam = optimizer(model.parameters(), lr=0.1)
        with trainwatch.Recorder(tmp_path / "run.jsonl", **more) as watch:
            watch.attach(model, adam)
            if state is not None:
                adam.load_state_dict(state)
            for _ in range(3):
                watch.losses({"a": model(torch.ones(4, 2)).square().mean()}).backward()
                adam.step()
                watch.step()
        return adam.state_dict()

    state = train(None)
    train(state if restored else None, resume=3)
    events = [record for record in records(tmp_path / "run.jsonl") if record.get("event") == "resume"]
    assert [event["empty_optimizers"] for event in events] == ([told] if told else [])
    assert [event["step"] for event in events] == ([4] if told else [])


def test_a_step_that_computes_its_gradient_itself(watch, steps):
    """``optimizer.step(closure)``: before it there is no gradient, or that of the step before."""
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch.attach(net, optimizer)

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(2, 3)).square().mean()
        loss.backward()
        return loss

    before = torch.cat([p.detach().flatten() for p in net.parameters()]).clone()
    optimizer.step(closure)
    moved = torch.cat([p.detach().flatten() for p in net.parameters()]) - before
    norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
    watch.step()
    watch.close()
    row = steps(watch.path)[0]
    assert row["grad_norm_at_step"] == pytest.approx(float(norm))
    assert row["update_ratio/0"] == pytest.approx(float(moved.norm() / before.norm()), rel=1e-5)

"""Gradient norms, clipping, rates, update ratios, AMP: from the loop's own torch objects, and as torch does it."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import trainwatch


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.ones(4))
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.head = nn.Linear(8, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x):
        return self.frozen(self.head(self.encoder(x)) * self.scale)


def train(watch, net, optimizer, steps=1, max_norm=None, scaler=None, gradients=True, poison=()):
    for step in range(steps):
        loss = watch.losses({"a": net(torch.ones(2, 6)).square().mean()})
        scaled = loss if scaler is None else scaler.scale(loss)
        scaled.backward()
        if step in poison:
            net.head.weight.grad.fill_(math.inf)
        if scaler is not None and gradients:
            scaler.unscale_(optimizer)
        if gradients:
            watch.gradients(max_norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
        watch.step()


@pytest.mark.parametrize("limit", [1e-3, 1e3, None])
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_clips_exactly_as_torch_does(watch, limit, bad):
    ours = Net()
    ours(torch.ones(2, 6)).square().sum().backward()
    ours.head.bias.grad[0] += bad
    theirs = copy.deepcopy(ours)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.grad = None if mine.grad is None else mine.grad.clone()
    watch.attach(ours, torch.optim.SGD(ours.parameters()))
    norm = watch.gradients(limit)
    reference = nn.utils.clip_grad_norm_(theirs.parameters(), math.inf if limit is None else limit)
    assert torch.equal(norm, reference) or (norm.isnan() and reference.isnan())
    if limit is not None:
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert mine.grad is other.grad is None or torch.equal(mine.grad.nan_to_num(7), other.grad.nan_to_num(7))


def test_norms_by_module_before_clipping(watch, steps):
    net = Net()
    watch.attach(net, torch.optim.SGD(net.parameters(), lr=0.1))
    net(torch.ones(2, 6)).square().sum().backward()
    net.head.bias.grad.fill_(math.nan)
    expected = nn.utils.get_total_norm([p.grad for p in net.encoder.parameters()])
    watch.gradients(1e-3)
    watch.step()
    watch.close()
    (row,) = steps(watch.path)
    assert row["grad_norm/encoder"] == pytest.approx(float(expected))
    assert row["nonfinite"] == {"grad_norm/head": "nan", "grad_norm": "nan"}
    assert "grad_norm/scale" in row
    assert "grad_norm/frozen" not in row


def test_the_clip_flag_and_rates(watch, steps):
    net = Net()
    groups = [
        {"params": net.encoder.parameters(), "name": "body"},
        {"params": net.head.parameters(), "lr": torch.tensor(0.02)},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    watch.attach(net, optimizer)
    for limit in (1e-6, 1e6):
        net(torch.ones(2, 6)).square().sum().backward()
        watch.gradients(limit)
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.5  # what a scheduler does before step()
        watch.step()
    watch.close()
    first, second = steps(watch.path)
    assert (first["clip"], second["clip"]) == (1, 0)
    assert (first["lr/body"], second["lr/body"]) == (0.1, 0.05)
    assert first["lr/1"] == pytest.approx(0.02)
    assert "grad_norm_at_step" not in first


def test_without_gradients_the_optimizers_hook_sees_the_norm(watch, steps):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch.attach(net, optimizer)
    net(torch.ones(2, 6)).square().sum().backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    assert norm > 0.5
    optimizer.step()
    watch.step()
    watch.close()
    (row,) = steps(watch.path)
    assert row["grad_norm_at_step"] == pytest.approx(0.5, rel=1e-3)
    assert "grad_norm" not in row


def test_update_ratio_and_weight_norm_every_fifty_steps(watch, steps):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch.attach(net, optimizer)
    train(watch, net, optimizer, 49)
    before = [p.detach().clone() for p in net.parameters() if p.requires_grad]
    train(watch, net, optimizer, 2)
    watch.close()
    rows = steps(watch.path)
    assert [row["step"] for row in rows if "update_ratio/0" in row] == [1, 50]
    assert rows[49]["weight_norm/0"] == pytest.approx(float(nn.utils.get_total_norm(before)))
    assert 0 < rows[49]["update_ratio/0"] < 1
    assert rows[49]["memory/rss"] > 0


@pytest.mark.parametrize("unscaled", [True, False])
def test_a_skipped_step_is_flagged_and_not_applied(watch, steps, unscaled):
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    watch.attach(net, optimizer, scaler)
    train(watch, net, optimizer, 5, scaler=scaler, gradients=unscaled, poison=(2,))
    watch.close()
    rows = steps(watch.path)
    assert [row["amp/skipped"] for row in rows] == [0, 0, 1, 0, 0]
    assert [row["applied"] for row in rows] == [1, 2, 2, 3, 4]
    assert [row["amp/scale"] for row in rows][-1] == 4.0
    assert all("lr/0" in row for row in rows)
    assert ("nonfinite" in rows[2]) is unscaled


def test_a_fused_skip_is_known_to_the_device_only(watch, steps):
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    watch.attach(net, optimizer, scaler)
    train(watch, net, optimizer, 4, scaler=scaler, gradients=False, poison=(0, 2))
    watch.close()
    rows = steps(watch.path)
    assert [row["amp/skipped"] for row in rows] == [1, 0, 1, 0]
    assert [row["applied"] for row in rows] == [0, 1, 1, 2]
    assert rows[0]["update_ratio/0"] == 0
    assert [row["amp/scale"] for row in rows] == [8.0, 4.0, 4.0, 2.0]


def test_fused_norms_are_those_of_the_unscaled_gradient(watch, steps):
    norms = []
    for scaler in (torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu", init_scale=64.0)):
        net = Net()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
        watch.attach(net, optimizer, scaler)
        train(watch, net, optimizer, scaler=scaler, gradients=False)
    watch.close()
    norms = [row["grad_norm_at_step"] for row in steps(watch.path)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert "amp/skipped" not in steps(watch.path)[0]


def test_norms_of_scaled_gradients_are_told(watch, records):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    watch.attach(net, optimizer, scaler)
    scaler.scale(net(torch.ones(2, 6)).sum()).backward()
    watch.gradients(1.0)
    watch.step()
    watch.close()
    assert any("unscale_" in row.get("message", "") for row in records(watch.path))


def test_a_step_the_loop_leaves_out_is_not_applied(watch, steps):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch.attach(net, optimizer)
    for step in range(3):
        net(torch.ones(2, 6)).square().sum().backward()
        if step != 1:
            optimizer.step()
        watch.step()
    watch.close()
    assert [row["applied"] for row in steps(watch.path)] == [1, 1, 2]


def test_several_optimizers(watch, steps):
    nets = {"gen": Net(), "disc": Net()}
    optimizers = {name: torch.optim.SGD(net.parameters(), lr=0.1) for name, net in nets.items()}
    watch.attach(nets, optimizers)
    for step in range(2):
        for name, net in nets.items():
            net(torch.ones(2, 6)).square().sum().backward()
            if name == "gen" or step == 0:
                watch.gradients(0.5, of=name)
                optimizers[name].step()
        watch.step()
    watch.close()
    first, second = steps(watch.path)
    assert {"lr/gen.0", "lr/disc.0", "grad_norm/gen", "grad_norm/disc"} <= set(first)
    assert [(row["applied"], row["applied/gen"], row["applied/disc"]) for row in (first, second)] == [
        (1, 1, 1),
        (2, 2, 1),
    ]


def test_several_optimizers_are_counted_by_their_own_steps(tmp_path, steps):
    """Rows that are rarer than steps, a discriminator that takes two, and a resume between two rows."""
    nets = {"gen": Net(), "disc": Net()}
    optimizers = {name: torch.optim.Adam(net.parameters()) for name, net in nets.items()}

    def train(first, last, **more):
        with trainwatch.Recorder(tmp_path / "run.jsonl", **more) as watch:
            watch.attach(nets, optimizers)
            for step in range(first, last + 1):
                for name in ("disc", "gen", "disc"):
                    nets[name](torch.ones(2, 6)).square().sum().backward()
                    optimizers[name].step()
                if step % 10 == 0:
                    watch.log({"applied": step})
                    watch.steps = step - 1
                    watch.step()

    train(1, 25)
    train(26, 40, resume=25)
    rows = [(row["step"], row["applied/gen"], row["applied/disc"]) for row in steps(tmp_path / "run.jsonl")]
    assert rows == [(10, 10, 20), (20, 20, 40), (30, 30, 60), (40, 40, 80)]


def test_what_the_state_counts_is_told_at_a_resume(tmp_path, steps):
    """At the run's fiftieth steps, and at the first step of a process: it may be of another checkpoint."""
    net = Net()
    adam = torch.optim.Adam(net.parameters())

    def train(first, last, **more):
        with trainwatch.Recorder(tmp_path / "run.jsonl", **more) as watch:
            watch.attach(net, adam)
            for _ in range(first, last + 1):
                net(torch.ones(2, 6)).square().sum().backward()
                adam.step()
                watch.step()

    train(1, 60)
    train(61, 110, resume=60)
    name = "state_steps/optimizer"
    assert [(row["step"], row[name]) for row in steps(tmp_path / "run.jsonl") if name in row] == [(50, 49), (100, 99)]


def test_wrapped_models_show_their_own_modules(watch, steps):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    net = Net()
    watch.attach(Wrapper(net), torch.optim.SGD(net.parameters()))
    net(torch.ones(2, 6)).square().sum().backward()
    watch.gradients()
    watch.step()
    watch.close()
    assert "grad_norm/encoder" in steps(watch.path)[0]


def test_a_broken_probe_still_clips(watch, monkeypatch):
    net = Net()
    watch.attach(net, torch.optim.SGD(net.parameters()))
    monkeypatch.setattr(watch._models, "norms", lambda *_: 1 / 0)
    net(torch.ones(2, 6)).square().sum().backward()
    watch.gradients(0.1)
    assert float(nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])) <= 0.1001


def test_a_broken_hook_never_stops_the_optimizer(watch, records, monkeypatch):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch.attach(net, optimizer)
    monkeypatch.setattr(watch._models.optimizers[0], "_read_rates", lambda: 1 / 0)
    before = net.head.weight.clone()
    train(watch, net, optimizer, 2)
    watch.close()
    assert not torch.equal(before, net.head.weight)
    assert sum(row["kind"] == "step" for row in records(watch.path)) == 2


def test_disabled_still_clips(tmp_path):
    watch = trainwatch.Recorder(tmp_path / "run.jsonl", enabled=False)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters())
    watch.attach(net, optimizer)
    net(torch.ones(2, 6)).square().sum().backward()
    before = watch.gradients()
    assert torch.equal(watch.gradients(0.1), before)
    assert not optimizer._optimizer_step_pre_hooks
    assert float(watch.gradients()) <= 0.1001


def test_after_close_the_optimizer_is_as_it_was(watch):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters())
    watch.attach(net, optimizer)
    watch.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize(("model", "optimizer"), [(3, None), (Net(), 3), ({"a": 3}, None)])
def test_attaching_something_else_fails_loudly(watch, model, optimizer):
    with pytest.raises(TypeError, match="give a torch"):
        watch.attach(model, optimizer)


def test_gradients_before_attach_fails_loudly(watch):
    with pytest.raises(RuntimeError, match="call attach"):
        watch.gradients(1.0)


def test_what_attach_learns_is_an_event(watch, records):
    watch.attach(Net(), None)
    watch.close()
    event = records(watch.path)[1]
    assert event["dtypes"] == {"observed": "float32"}
    assert event["parameters"] == sum(p.numel() for p in Net().parameters())
    assert {"name": "frozen", "depth": 1, "parameters": 20, "trainable": 0, "fresh": 20} in event["modules"]


def test_an_optimiser_whose_weights_have_no_gradient_moves_nothing(watch, steps):
    """It holds other tensors than the model: built before the model was wrapped or cast."""
    net, stale = Net(), Net()
    optimizer = torch.optim.AdamW(stale.parameters(), lr=0.1)
    watch.attach(net, optimizer)
    train(watch, net, optimizer, 2)
    watch.close()
    row = steps(watch.path)[0]
    assert row["update_ratio/0"] == 0
    assert row["grad_norm"] > 0


def test_weights_are_looked_at_in_each_fiftieth_row_whatever_its_step(tmp_path):
    """A loop that records each second step tells its step: rows count, or step 50 is never recorded."""
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net, optimizer)
        for step in range(1, 121):
            optimizer.zero_grad()
            net(torch.ones(2)).sum().backward()
            optimizer.step()
            if step % 2 == 0:
                watch.steps = step - 1
                watch.step()
    table = trainwatch.read(tmp_path / "run.jsonl").train
    known = np.isfinite(table["weight_norm/0"])
    assert table.step[known].tolist() == [2, 100]
    assert np.isfinite(table["memory/rss"]).sum() == 6  # it is cheaper, and told each tenth row

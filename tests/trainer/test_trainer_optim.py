"""Parameter groups, Muon beside AdamW as one optimiser, clipping, and steps that the gradient scaler skips."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from trainer import train
from trainer.config import OptimizerConfig, UsageError
from trainer.optim import MuonAdamW, clipping, optimizer, parameter_groups
from trainer.run import build
from trainer.tasks.peptide.layers import Block, KeyValue


class Layer(nn.Module):
    """A block: two matrices and a gain."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(6)
        self.up, self.down = nn.Linear(6, 12, bias=False), nn.Linear(12, 6, bias=False)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


def small_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Embedding(5, 6), Layer(), Layer(), nn.Linear(6, 3))


def backward(model, seed=0):
    tokens = torch.randint(5, (7, 4), generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    model(tokens).square().mean().backward()


MUON = OptimizerConfig(name="muon", lr=0.01)


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_every_parameter_is_in_the_group_that_it_belongs_to(config):
    model = build(config()).model
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {group: [names[id(p)] for p in own] for group, own in parameter_groups(model, (Block, KeyValue)).items()}
    assert sorted(name for own in groups.values() for name in own) == sorted(names.values())
    inner = (".blocks.", "core.memory.")
    assert all(any(part in name for part in inner) and model.get_parameter(name).ndim == 2 for name in groups["hidden"])
    assert any("core.memory." in name for name in groups["hidden"])
    assert {"head.weight", "encoder.peaks.enter.weight", "ladder.enter.weight"} <= set(groups["projections"])
    assert {"positions.weight", "encoder.precursor.charge.weight", "core.norm.weight"} <= set(groups["other"])
    assert not [name for name in groups["projections"] if ".blocks." in name]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_group_has_its_rate_and_decay(name):
    made = optimizer(small_model(), (Layer,), OptimizerConfig(name=name, lr=0.1, muon_lr=0.5, weight_decay=0.2))
    told = {group["name"]: (group["lr"], group["weight_decay"]) for group in made.param_groups}
    hidden = 0.5 if name == "muon" else 0.1
    assert told == {"hidden": (hidden, 0.2), "projections": (0.1, 0.2), "other": (0.1, 0.0)}


def test_an_unknown_optimiser_is_refused(config):
    with pytest.raises(UsageError, match=r"optimizer\.name 'sgd' does not exist; choose one of adamw, muon"):
        build(config(optimizer__name="sgd"))


def test_one_optimiser_does_what_the_two_do():
    model = small_model()
    twin = copy.deepcopy(model)
    both = optimizer(model, (Layer,), MUON)
    own = parameter_groups(twin, (Layer,))
    muon = torch.optim.Muon(own["hidden"], 0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    rest = [{"params": own["projections"]}, {"params": own["other"], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(rest, 0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for seed in range(4):
        backward(model, seed)
        backward(twin, seed)
        both.step()
        muon.step()
        adamw.step()
    assert equal(model, twin)
    both.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_its_rates_are_what_both_step_with():
    model = small_model()
    before = copy.deepcopy(model)
    both = optimizer(model, (Layer,), MUON)
    for group in both.param_groups:
        group["lr"] = 0.0
    backward(model)
    both.step()
    assert equal(model, before)


@pytest.mark.parametrize("way", ["torch", "distributed"])
def test_its_state_is_an_ordinary_one(way):
    """Torch's own tools save it and load it, and what was loaded goes on as if nothing had happened."""
    model = small_model()
    both = optimizer(model, (Layer,), MUON)
    for seed in range(2):
        backward(model, seed)
        both.step()
    twin = copy.deepcopy(model)
    again = optimizer(twin, (Layer,), MUON)
    if way == "torch":
        again.load_state_dict(copy.deepcopy(both.state_dict()))
    else:
        set_optimizer_state_dict(twin, again, copy.deepcopy(get_optimizer_state_dict(model, both)))
    assert [group["name"] for group in again.param_groups] == ["hidden", "projections", "other"]
    assert len(again.state) == len(list(twin.parameters()))
    for seed in range(2, 4):
        backward(model, seed)
        backward(twin, seed)
        both.step()
        again.step()
    assert equal(model, twin)


def test_hooks_see_one_step():
    seen = []
    model = small_model()
    both = optimizer(model, (Layer,), MUON)
    both.register_step_pre_hook(lambda *_: seen.append("before"))
    both.register_step_post_hook(lambda *_: seen.append("after"))
    backward(model)
    both.step()
    assert seen == ["before", "after"]


@pytest.mark.parametrize("sick", [0, 1, 3])
def test_a_gradient_scaler_skips_all_groups_or_none(sick):
    """Not finite in the embedding, in a Muon matrix or in the head: no weight and no moment moves."""
    model = small_model()
    both = optimizer(model, (Layer,), MUON)
    assert isinstance(both, MuonAdamW)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for bad in (True, False):
        before = copy.deepcopy(model)
        both.zero_grad()
        tokens = torch.arange(5).view(1, 5)
        scaler.scale(model(tokens).square().mean()).backward()
        if bad:
            next(model[sick].parameters()).grad.view(-1)[0] = float("inf")
        scaler.unscale_(both)
        scaler.step(both)
        scaler.update()
        moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)]
        assert moved == [not bad] * len(moved)
        assert bool(both.state) == (not bad)
    assert scaler.get_scale() == 2.0


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_skipped_step_is_recorded_and_moves_no_schedule(name, trained, steps_of, monkeypatch):
    apply = train.apply

    def overflown(run, *others):
        if run.step == 4:  # the scaler has found its place by then
            next(run.model.parameters()).grad.view(-1)[0] = float("inf")
        apply(run, *others)

    monkeypatch.setattr(train, "apply", overflown)
    changes = {"optimizer__name": name, "optimizer__schedule": "linear", "optimizer__warmup": 0.0, "data__max_peaks": 8}
    _, records = trained(precision="fp16", steps=6, batch_size=1, **changes)
    rows = steps_of(records)
    before, skipped, after = rows[3:]
    assert [row["amp/skipped"] for row in rows[3:]] == [0, 1, 0]
    assert [row["applied"] - before["applied"] for row in rows[3:]] == [0, 0, 1]
    assert skipped["lr/hidden"] == after["lr/hidden"] < before["lr/hidden"]
    assert after["schedule/label_smoothing"] == skipped["schedule/label_smoothing"]
    assert after["amp/scale"] == before["amp/scale"] / 2
    assert skipped["grad_norm"] is None


def test_clipping_tells_the_norm_before_it():
    class Watch:
        def gradients(self, max_norm=None):
            return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm or 1e9)

    model = small_model()
    for unseen in (False, True):
        backward(model)
        for parameter in model.parameters():
            parameter.grad.mul_(1000)
        norm = clipping(model, 0.5, unseen)(Watch())
        assert (float(norm) > 1) is not unseen
        after = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        assert float(after) == pytest.approx(0.5, rel=1e-4)


def test_a_norm_read_after_clipping_never_exceeds_the_limit(trained, steps_of):
    changes = {"steps": 4, "optimizer__max_grad_norm": 0.1}
    _, healthy = trained(name="healthy", **changes)
    _, sick = trained(name="sick", mistakes__norm_after_clipping=True, **changes)
    assert min(row["grad_norm"] for row in steps_of(healthy)) > 0.2
    assert max(row["grad_norm"] for row in steps_of(sick)) == pytest.approx(0.1, rel=1e-3)
    assert [row["loss"] for row in steps_of(sick)] == pytest.approx(
        [row["loss"] for row in steps_of(healthy)], rel=1e-3
    )

"""unreached: weights that an optimiser holds and that no gradient ever reaches."""

import json
from pathlib import Path

import pytest
import torch

import trainwatch
from trainwatch.run import Run
from trainwatch.views.unreached import head_of


class TwoHeads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.grip, self.other = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2), torch.nn.Linear(8, 2)

    def forward(self, x):
        code = self.body(x).relu()
        return self.grip(code), self.other(code)


def run(path, loss, steps=60, optimizer=torch.optim.AdamW, attach=True):
    """A run of a body and two heads; the events that tell of weights without a gradient, and the findings."""
    torch.manual_seed(0)
    net = TwoHeads()
    own = optimizer(net.parameters(), lr=1e-2)
    with trainwatch.Recorder(path, total_steps=steps) as watch:
        watch.attach(net, own if attach else None)
        for step in range(1, steps + 1):
            own.zero_grad()
            terms = loss(*net(torch.ones(3, 4)), step)
            sum(terms.values()).backward()
            watch.gradients()
            own.step()
            watch.log({"loss": sum(terms.values())} | {f"loss/{name}": term for name, term in terms.items()})
            watch.step()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    told = [(row["step"], row["unreached"], row["unreached_parameters"]) for row in rows if "unreached" in row]
    return told, {one.rule: one for one in trainwatch.diagnose(trainwatch.read(path)).findings}


def learned(grip, other, _step):
    return {"place": (other - 3).square().mean(), "gripper": (grip - 1).square().mean()}


def detached(grip, other, _step):
    return {"place": (other - 3).square().mean(), "gripper": (grip.detach() - 1).square().mean() * 0 + 0.69}


def test_all_is_reached(tmp_path):
    told, found = run(tmp_path / "run.jsonl", learned)
    assert told == []
    assert "unreached-weights" not in found


def test_a_head_without_a_gradient_is_told_once(tmp_path):
    told, found = run(tmp_path / "run.jsonl", detached)
    assert told == [(20, ["grip"], 18)]
    assert (found["unreached-weights"].severity, found["unreached-weights"].subject) == ("info", "module:grip")
    assert "18 of 76 parameters" in found["unreached-weights"].message


def test_a_component_of_that_name_which_is_not_learned_is_dead(tmp_path):
    found = run(tmp_path / "run.jsonl", detached)[1]
    assert (found["component-dead"].severity, found["component-dead"].subject) == ("warning", "component:gripper")
    assert "the module grip has never had a gradient" in found["component-dead"].message


def test_one_that_comes_late_is_reached_after_all(tmp_path):
    late = lambda grip, other, step: (detached if step < 40 else learned)(grip, other, step)  # noqa: E731
    told, found = run(tmp_path / "run.jsonl", late, steps=120)
    assert told == [(20, ["grip"], 18), (50, [], 0)]
    assert "unreached-weights" not in found


def test_what_is_reached_now_and_then_is_not_told(tmp_path):
    """An expert that is seldom chosen, a layer that is dropped at random."""
    seldom = lambda grip, other, step: (learned if step % 15 == 0 else detached)(grip, other, step)  # noqa: E731
    assert run(tmp_path / "run.jsonl", seldom)[0] == []


@pytest.mark.parametrize(
    ("component", "idle", "reached", "found"),
    [
        ("gripper", "net.grip", "net.body", "net.grip"),
        ("mode", "modes", "paths", "modes"),
        ("cls", "cls.relationship", "cls.predictions", ""),  # another one of that name learns
        ("pos", "pos_embed", "tagger", ""),
        ("conv", "conv_aux", "body", ""),
    ],
)
def test_the_head_of_a_component(component, idle, reached, found):
    header = {"modules": [{"name": name, "depth": 1, "parameters": 4, "trainable": 4} for name in (idle, reached)]}
    run = Run(Path("run.jsonl"))
    run.add_header(header)
    assert head_of(component, [idle], run) == found


def test_frozen_weights_and_a_model_alone_say_nothing(tmp_path):
    assert run(tmp_path / "alone.jsonl", detached, attach=False)[0] == []
    frozen = TwoHeads()
    frozen.grip.requires_grad_(False)
    optimizer = torch.optim.SGD(frozen.parameters(), lr=0.1)
    with trainwatch.Recorder(tmp_path / "frozen.jsonl") as watch:
        watch.attach(frozen, optimizer)
        for _ in range(30):
            frozen(torch.ones(3, 4))[1].mean().backward()
            optimizer.step()
            watch.step()
    assert '"unreached"' not in (tmp_path / "frozen.jsonl").read_text()


def test_a_closure_begins_without_gradients(tmp_path):
    net = TwoHeads()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = sum(head.square().mean() for head in net(torch.ones(3, 4)))
        loss.backward()
        return loss

    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net, optimizer)
        for _ in range(30):
            optimizer.zero_grad()
            optimizer.step(closure)
            watch.step()
    assert '"unreached"' not in (tmp_path / "run.jsonl").read_text()


def test_two_optimisers_take_turns(tmp_path):
    nets = {"maker": torch.nn.Linear(2, 2), "critic": torch.nn.Linear(2, 1)}
    optimizers = {name: torch.optim.SGD(net.parameters(), lr=0.1) for name, net in nets.items()}
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(nets, optimizers)
        for step in range(80):
            turn = "critic" if step % 2 else "maker"
            optimizers[turn].zero_grad()
            net = nets[turn]
            net(torch.ones(1, 2)).sum().backward()
            optimizers[turn].step()
            watch.step()
    assert '"unreached"' not in (tmp_path / "run.jsonl").read_text()


@pytest.mark.parametrize("names", ["x", [1, None], {"a": 1}, []])
def test_hostile_events_say_nothing(tmp_path, names):
    path = tmp_path / "run.jsonl"
    rows = [{"kind": "run", "schema": 1}, {"kind": "step", "step": 1, "loss": 1.0}]
    rows.append({"kind": "event", "event": "monitor", "step": 1, "unreached": names, "unreached_parameters": "x"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "unreached-weights" not in {one.rule for one in trainwatch.diagnose(trainwatch.read(path)).findings}

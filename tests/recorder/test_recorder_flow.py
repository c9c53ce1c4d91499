"""no_gradient: a component that is in the sum, and from which no gradient flows."""

import json

import pytest
import torch

import trainwatch


def run(path, second, steps=25, weights=None, first=lambda net, x: net(x).square().mean()):
    """A run of two components; the events that tell of the flow."""
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 2)
    with trainwatch.Recorder(path) as watch:
        for step in range(1, steps + 1):
            x = torch.randn(3, 4)
            watch.losses({"a": first(net, x), "b": second(net, x, step)}, weights)
            watch.step()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    told = [{k: row[k] for k in ("no_gradient", "gradient_again", "since") if k in row} for row in rows]
    return [one for one in told if one], trainwatch.diagnose(trainwatch.read(path)).findings


def detached(net, x, _step):
    return net(x).abs().mean().detach()


def test_it_is_told_once_and_named(tmp_path):
    told, findings = run(tmp_path / "run.jsonl", detached, steps=60)
    assert told == [{"no_gradient": "b", "since": 1}]
    (found,) = [one for one in findings if one.rule == "component-detached"]
    assert (found.severity, found.subject, found.first_step, found.state) == ("warning", "component:b", 1, "active")


@pytest.mark.parametrize(
    "second",
    [
        lambda net, x, _: net(x).abs().mean(),
        lambda net, x, step: torch.zeros(()) if step % 3 else net(x).abs().mean(),  # a batch has nothing for it
        lambda net, x, step: detached(net, x, step) if step < 15 else net(x).abs().mean(),
    ],
)
def test_what_has_a_gradient_now_and_then_is_not(tmp_path, second):
    assert run(tmp_path / "run.jsonl", second)[0] == []


def test_what_has_no_weight_or_no_value_is_left_alone(tmp_path):
    assert run(tmp_path / "seen.jsonl", detached, weights={"a": 1.0, "b": 0.0})[0] == []
    told, findings = run(tmp_path / "empty.jsonl", lambda *_: torch.zeros(()))
    assert told == [{"no_gradient": "b", "since": 1}]
    assert "component-detached" not in {one.rule for one in findings}


def test_what_is_only_recorded_is_left_alone(tmp_path):
    """The loop differentiates its own sum."""
    assert run(tmp_path / "run.jsonl", detached, first=lambda net, x: net(x).square().mean().detach())[0] == []


@pytest.mark.parametrize("nothing", [lambda: torch.zeros(()), lambda: 0.0])
def test_a_loss_that_enters_late_is_left_alone(tmp_path, nothing):
    late = lambda net, x, step: net(x).abs().mean() if step >= 40 else nothing()  # noqa: E731
    findings = run(tmp_path / "run.jsonl", late, steps=60)[1]
    assert "component-detached" not in {one.rule for one in findings}


def test_a_gradient_may_flow_through_the_weight(tmp_path):
    """Dual ascent: the violation is a constant, its multiplier learns."""
    multiplier = torch.zeros((), requires_grad=True)
    assert run(tmp_path / "run.jsonl", detached, weights={"a": 1.0, "b": -multiplier.exp()})[0] == []


def test_a_number_says_nothing(tmp_path):
    assert run(tmp_path / "run.jsonl", lambda *_: 5.545)[0] == []


def test_it_is_over_when_a_gradient_flows_again(tmp_path):
    later = lambda net, x, step: detached(net, x, step) if step < 30 else net(x).abs().mean()  # noqa: E731
    told, findings = run(tmp_path / "run.jsonl", later, steps=40)
    assert told == [{"no_gradient": "b", "since": 1}, {"gradient_again": "b"}]
    (found,) = [one for one in findings if one.rule == "component-detached"]
    assert (found.state, found.last_step) == ("over", 29)


@pytest.mark.parametrize("later", [False, True])
def test_beside_frozen_parts_it_may_be_meant(tmp_path, later):
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    net[1].requires_grad_(later)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net)
        net[1].requires_grad_(False)
        for _ in range(25):
            watch.losses({"a": net(torch.randn(3, 4)).square().mean(), "b": net[1](torch.randn(3, 4)).abs().mean()})
            watch.step()
    found = trainwatch.diagnose(trainwatch.read(tmp_path / "run.jsonl")).findings
    assert [one.severity for one in found if one.rule == "component-detached"] == ["info"]

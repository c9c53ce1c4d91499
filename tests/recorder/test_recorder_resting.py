"""resting: a model that is trained in eval mode, since nobody called train() again."""

import json

import pytest
import torch
from torch import nn

import trainwatch


def net(dropout=0.1):
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 2))


def run(path, mode, steps=40, model=None, given=None):
    """A training in which `mode` sets the model's mode before each step; the events on it, and the finding."""
    model = net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainwatch.Recorder(path) as watch:
        watch.attach(model if given is None else given(model), optimizer)
        for step in range(1, steps + 1):
            mode(model, step)
            optimizer.zero_grad()
            model(torch.randn(6, 4)).square().mean().backward()
            optimizer.step()
            watch.step()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    told = [(row["step"], row["resting"]) for row in rows if "resting" in row]
    findings = trainwatch.diagnose(trainwatch.read(path)).findings
    return told, next((one for one in findings if one.rule == "eval-mode-training"), None)


def forgotten(model, step):
    """An evaluation after step 10 that nobody ends."""
    if step == 11:
        model.eval()


def test_an_evaluation_that_nobody_ends(tmp_path):
    told, found = run(tmp_path / "run.jsonl", forgotten)
    assert told == [(15, {"batch_norm": 1, "dropout": 1})]
    assert (found.severity, found.first_step, found.last_step, found.state) == ("warning", 11, 40, "active")
    assert "1 batch norm and 1 dropout modules rest" in found.message


def test_it_is_over_once_somebody_calls_train(tmp_path):
    told, found = run(tmp_path / "run.jsonl", lambda model, step: model.train(not 11 <= step < 30))
    assert [step for step, _ in told] == [15, 30]
    assert (found.severity, found.state, found.first_step, found.last_step) == ("info", "over", 11, 29)


def test_what_came_in_eval_mode_may_be_meant_so(tmp_path):
    _, found = run(tmp_path / "run.jsonl", lambda model, step: model.eval() if step == 1 else None)
    assert (found.severity, found.first_step) == ("info", 1)


@pytest.mark.parametrize(
    "mode",
    [
        lambda model, _: model.train(),
        lambda model, step: model.train(step % 10 > 3),  # three steps on purpose
        lambda model, _: model[1].eval(),  # a batch norm that is held
        lambda model, _: (model.eval(), model[2].train()),  # Monte Carlo dropout
    ],
)
def test_what_is_meant_so(tmp_path, mode):
    assert run(tmp_path / "run.jsonl", mode) == ([], None)


def test_two_models_rest_together(tmp_path):
    nets = {"maker": net(), "critic": net()}
    optimizers = {name: torch.optim.SGD(one.parameters(), lr=0.1) for name, one in nets.items()}
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(nets, optimizers)
        for step in range(20):
            for name, one in nets.items():
                one.train(step < 5)
                one(torch.randn(6, 4)).mean().backward()
                optimizers[name].step()
            watch.step()
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    (told,) = [row for row in rows if "resting" in row]
    assert (told["resting"], told["since"], told["trained"]) == ({"batch_norm": 2, "dropout": 2}, 6, True)


def test_several_steps_a_row_and_a_model_without_a_mode(tmp_path):
    """Rows are counted as they come; and nothing of ours is raised into the optimiser's step."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(model, optimizer)
        for row in range(12):
            model.train(row < 6)
            for _ in range(4):
                model(torch.randn(6, 4)).mean().backward()
                optimizer.step()
            watch.step()
        del model.training
        optimizer.step()
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [(row["since"], row["step"]) for row in rows if "resting" in row] == [(7, 8)]


def test_a_model_that_has_no_modes(tmp_path):
    plain = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.0))
    assert run(tmp_path / "run.jsonl", lambda model, _: model.eval(), model=plain) == ([], None)


def test_a_teacher_rests_and_its_student_does_not(tmp_path):
    teacher = net().eval().requires_grad_(False)
    given = lambda model: {"student": model, "teacher": teacher}  # noqa: E731
    student = net()
    path = tmp_path / "run.jsonl"
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with trainwatch.Recorder(path) as watch:
        watch.attach(given(student), {"student": optimizer})
        for _ in range(20):
            student(torch.randn(6, 4)).mean().backward()
            optimizer.step()
            watch.step()
    assert '"resting"' not in path.read_text()


@pytest.mark.parametrize("resting", [5, "x", {"dropout": None}, {"a": {"b": 1}}, []])
def test_hostile_events(tmp_path, resting):
    path = tmp_path / "run.jsonl"
    rows = [{"kind": "run", "schema": 1, "modules": [{"name": "a"}]}, {"kind": "step", "step": 1, "loss": 1.0}]
    rows.append({"kind": "event", "event": "monitor", "step": 1, "resting": resting, "since": "x"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert trainwatch.diagnose(trainwatch.read(path)).failed == {}

"""The callback in Hugging Face's own Trainer: each row against what that step really did."""

import math

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments  # noqa: E402

import trainwatch  # noqa: E402
from trainwatch.transformers import Callback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the framework's own


class Net(nn.Module):
    """A classifier as the Trainer wants it; at one forward pass its loss can be made infinite."""

    def __init__(self, broken_at=0):
        super().__init__()
        self.body, self.head = nn.Linear(4, 16), nn.Linear(16, 3)
        self.broken_at, self.passes, self.seen = broken_at, 0, []

    def forward(self, x, labels=None):
        logits = self.head(torch.relu(self.body(x)))
        if labels is None:
            return {"logits": logits}
        loss = nn.functional.cross_entropy(logits, labels)
        if self.training:
            self.passes += 1
            loss = loss / 0.0 if self.passes == self.broken_at else loss
            self.seen.append(float(loss.detach()))
        return {"loss": loss, "logits": logits}


def examples():
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 4, generator=draw)
    return [{"x": x, "labels": (x[0] > 0).long()} for x in inputs]


def fit(folder, net=None, *, steps=8, resume=None, callbacks=(), loss=None, **arguments):
    """Train, and return the model and the Trainer's own log."""
    torch.manual_seed(0)
    net = net or Net()
    told = {
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_steps": 4,
        "max_grad_norm": 0.5,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
    }
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True}
    trainer = Trainer(
        net,
        TrainingArguments(str(folder / "out"), **{**told, **quiet, **arguments}),
        train_dataset=examples(),
        eval_dataset=examples()[:16],
        callbacks=[Callback(folder / "run.jsonl"), *callbacks],
        compute_loss_func=loss,
    )
    trainer.train(resume_from_checkpoint=resume)
    return net, trainer.state.log_history


def test_every_step_is_what_the_trainer_did(tmp_path, recorded):
    net, log = fit(tmp_path)
    steps = recorded(tmp_path / "run.jsonl", "step")
    truth = [sum(net.seen[i : i + 2]) / 2 for i in range(0, 16, 2)]
    logged = [row for row in log if "grad_norm" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert [row["loss"] for row in steps] == pytest.approx(truth)
    assert [row["grad_norm"] for row in steps] == pytest.approx([row["grad_norm"] for row in logged])
    assert [row["lr/0"] for row in steps] == pytest.approx([row["learning_rate"] for row in logged])
    assert [row["epoch"] for row in steps] == [i / 8 for i in range(1, 9)]
    assert all(row["grad_norm_at_step"] <= 0.5001 for row in steps)


def test_header_evaluations_and_checkpoints(tmp_path, recorded):
    _, log = fit(tmp_path)
    (head,), (end,) = recorded(tmp_path / "run.jsonl", "run"), recorded(tmp_path / "run.jsonl", "end")
    evaluations = recorded(tmp_path / "run.jsonl", "eval")
    assert head["total_steps"] == 8
    assert head["schedules"]["lr/0"] == {"kind": "linear", "start": 1e-2, "end": 0.0, "over_steps": 8, "warmup": 2}
    assert head["horizon"]["accumulation"] == 2
    assert head["config"]["max_grad_norm"] == 0.5
    assert [(row["step"], row["split"]) for row in evaluations] == [(4, "eval"), (8, "eval")]
    assert [row["loss"] for row in evaluations] == pytest.approx(
        [row["eval_loss"] for row in log if "eval_loss" in row]
    )
    assert [row["step"] for row in recorded(tmp_path / "run.jsonl", "checkpoint")] == [4, 8]
    assert end["status"] == "finished"
    found = trainwatch.diagnose(trainwatch.read(tmp_path / "run.jsonl"))
    assert [finding.rule for finding in found.findings if finding.severity != "info"] == []


def test_an_infinite_loss_that_the_trainers_log_hides(tmp_path, recorded):
    _, log = fit(tmp_path, Net(broken_at=9), max_grad_norm=0.0)
    steps = recorded(tmp_path / "run.jsonl", "step")
    assert all(math.isfinite(row["loss"]) for row in log if "loss" in row)
    assert steps[4]["loss"] == "inf"
    assert steps[3]["loss"] < 2
    found = trainwatch.diagnose(trainwatch.read(tmp_path / "run.jsonl"))
    assert (found.root_cause.rule, found.root_cause.first_step) == ("non-finite-loss", 5)


def test_a_step_that_the_trainer_does_not_log_is_recorded(tmp_path, recorded):
    net, _ = fit(tmp_path, logging_steps=4, eval_strategy="no")
    steps = recorded(tmp_path / "run.jsonl", "step")
    assert [row["loss"] for row in steps] == pytest.approx([sum(net.seen[i : i + 2]) / 2 for i in range(0, 16, 2)])
    assert ["grad_norm" in row for row in steps] == [False, False, False, True] * 2


def test_the_trainer_goes_on_from_a_checkpoint(tmp_path, recorded):
    fit(tmp_path, steps=4, warmup_steps=0, lr_scheduler_type="constant")
    fit(tmp_path, steps=8, warmup_steps=0, lr_scheduler_type="constant", resume=str(tmp_path / "out" / "checkpoint-4"))
    first, second = recorded(tmp_path / "run.jsonl", "run")
    assert (second["id"], second["resumed_from"]) == (first["id"], 4)
    assert [row["step"] for row in recorded(tmp_path / "run.jsonl", "step")] == list(range(1, 9))
    assert not [row for row in recorded(tmp_path / "run.jsonl", "event") if "empty_optimizers" in row]


def test_an_early_stop_is_told(tmp_path, recorded):
    stop = EarlyStoppingCallback(early_stopping_patience=1)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    fit(tmp_path, eval_steps=2, save_steps=2, callbacks=[stop], **best)
    (end,) = recorded(tmp_path / "run.jsonl", "end")
    assert (end["status"], end["step"]) == ("stopped", 4)


def test_a_stop_file_ends_it_with_a_checkpoint(tmp_path, recorded, ask_to_stop):
    class Asks(Callback):
        def on_step_begin(self, args, state, control, **parts):
            super().on_step_begin(args, state, control, **parts)
            if state.global_step == 2:
                ask_to_stop(self.watch)

    trainer = Trainer(
        Net(),
        TrainingArguments(str(tmp_path / "out"), max_steps=8, save_steps=100, report_to=[]),
        train_dataset=examples(),
        callbacks=[Asks(tmp_path / "run.jsonl")],
    )
    trainer.train()
    (end,) = recorded(tmp_path / "run.jsonl", "end")
    assert (end["status"], end["reason"], end["step"]) == ("stopped", "stop file", 3)
    assert [row["step"] for row in recorded(tmp_path / "run.jsonl", "checkpoint")] == [3]
    assert (tmp_path / "out" / "checkpoint-3").is_dir()
    assert trainwatch.read(tmp_path / "run.jsonl").status() == "stopped"


def test_named_evaluation_sets_are_splits(tmp_path, recorded):
    trainer = Trainer(
        Net(),
        TrainingArguments(str(tmp_path / "out"), max_steps=2, eval_strategy="steps", eval_steps=2, report_to=[]),
        train_dataset=examples(),
        eval_dataset={"easy": examples()[:8], "hard": examples()[8:16]},
        callbacks=[Callback(tmp_path / "run.jsonl")],
    )
    trainer.train()
    evaluations = recorded(tmp_path / "run.jsonl", "eval")
    assert [row["split"] for row in evaluations] == ["easy", "hard"]
    assert all(math.isfinite(row["loss"]) for row in evaluations)


def test_a_loss_that_only_the_trainer_knows(tmp_path, recorded):
    def smoothed(outputs, labels, num_items_in_batch):
        return nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum", label_smoothing=0.1) / 8

    _, log = fit(tmp_path, loss=smoothed)
    losses = [row["loss"] for row in recorded(tmp_path / "run.jsonl", "step")]
    assert losses == pytest.approx([row["loss"] for row in log if "loss" in row])


def test_two_ranks_are_one_run(tmp_path, two_ranks):
    two_ranks(f"fit(pathlib.Path({str(tmp_path)!r}))")
    run = trainwatch.read(tmp_path / "run.jsonl")
    assert sorted(run.ranks) == [1]
    assert run.train.step.tolist() == run.ranks[1].train.step.tolist() == list(range(1, 9))
    assert [f.rule for f in trainwatch.diagnose(run).findings if f.severity != "info"] == []


def test_a_fault_of_the_callback_costs_the_training_nothing(tmp_path, recorded, capsys, monkeypatch):
    monkeypatch.setattr("trainwatch.transformers.of_training", lambda metrics: 1 / 0)
    net, _ = fit(tmp_path)
    assert len(net.seen) == 16
    assert capsys.readouterr().err.count("Callback.on_log() (ZeroDivisionError") == 1
    assert [row["step"] for row in recorded(tmp_path / "run.jsonl", "step")] == list(range(1, 9))

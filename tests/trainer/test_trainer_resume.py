"""Checkpoints belong to one record and one future; a resume goes on where its checkpoint's run is told of."""

import json
import os
import signal

import pytest
import torch

from trainer import checkpoint, train
from trainer.__main__ import main
from trainer.checkpoint import Checkpoints
from trainer.resume import restore
from trainer.run import build


def saved(folder):
    return sorted(Checkpoints(folder, 2).steps())


def test_a_second_run_of_a_name_has_its_own_checkpoints(trained, tmp_path):
    trained(steps=6)
    second, _ = trained(steps=3)
    assert second.path.name == "run-2.jsonl"
    assert (saved(tmp_path / "run.checkpoints"), saved(tmp_path / "run-2.checkpoints")) == ([3, 6], [2, 3])
    resumed, _ = trained("auto", steps=3)
    assert (resumed.path, resumed.step) == (second.path, 3)
    older, records = trained(str(tmp_path / "run.checkpoints" / "step_00000003.pt"), steps=6)
    assert (older.path.name, older.step, records[-1]["status"]) == ("run.jsonl", 6, "finished")


def test_a_resume_sets_the_superseded_future_aside(trained, tmp_path):
    trained(steps=6, checkpoint__every=0.17, checkpoint__keep=9)
    folder = tmp_path / "run.checkpoints"
    assert saved(folder) == [1, 2, 3, 4, 5, 6]
    trained("before:2", steps=6, checkpoint__every=0.5, checkpoint__keep=2)
    assert {3, 6} <= set(saved(folder))
    assert not {4, 5} & set(saved(folder))
    assert len(list((folder / "superseded").iterdir())) == 4
    assert (folder / "latest.pt").resolve().name == "step_00000006.pt"


def test_a_folder_without_its_record_does_not_swallow_a_new_run(trained, tmp_path):
    trained(steps=6)
    (tmp_path / "run.jsonl").unlink()
    trained(steps=3)
    assert saved(tmp_path / "run.checkpoints") == [2, 3]


def test_a_record_that_is_gone_or_has_another_name_is_a_new_one(trained, tmp_path, config, capfd):
    first, _ = trained(steps=6)
    path = str(tmp_path / "run.checkpoints" / "step_00000003.pt")
    branch, records = trained(path, steps=6, name="cured")
    assert (branch.path.name, records[0]["resumed_from"]) == ("cured.jsonl", 3)
    first.path.write_text('{"kind": "run", "id": "stranger"}\n')
    found = restore(build(config(steps=6)), path)
    assert found is not None
    assert (found.step, found.record.name) == (3, "run-2.jsonl")
    assert capfd.readouterr().err.count("\n") == 1


def test_a_run_that_is_called_like_a_second_one_is_not_taken_for_it(trained):
    trained(steps=2)
    trained(steps=4, name="run-2")
    outcome, _ = trained("auto", steps=2)
    assert outcome.path.name == "run.jsonl"


def test_the_file_just_written_is_not_pruned_and_orphans_go(tmp_path):
    kept = Checkpoints(tmp_path, keep=1)
    kept.save({}, 9, best=False)
    kept.save({}, 2, best=False)
    assert sorted(kept.steps()) == [2, 9]
    assert kept.find("auto") == tmp_path / "step_00000002.pt"
    (tmp_path / ".step_00000003.pt.4711").touch()
    kept.begin(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.pt", "step_00000002.pt", "superseded"]


def test_what_the_optimiser_is_told_now_counts(trained, config):
    trained(steps=2)
    run = build(config(steps=2, optimizer__beta1=0.5, optimizer__weight_decay=0.3))
    assert restore(run, "auto") is not None
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.3, 0.3, 0.0]
    assert all(group["betas"] == (0.5, 0.95) for group in run.optimizer.param_groups)
    assert len(run.optimizer.state) > 0


def test_fp16_can_go_on_from_fp32_and_back(trained, steps_of):
    trained(steps=6)
    _, records = trained("before:3", steps=6, precision="fp16")
    assert steps_of(records)[-1]["step"] == 6
    trained("before:3", steps=6, precision="fp32")


def test_best_is_only_what_was_evaluated_at_its_step(trained):
    _, records = trained(steps=6, checkpoint__every=0.5, evaluation__every=1.0)
    written = [(r["step"], r["best"], r.get("metric") is None) for r in records if r["kind"] == "checkpoint"]
    assert written[0] == (3, False, True)
    assert not written[1][2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_the_loop_a_signal_ends_the_process(number, settings, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "prepare_data", lambda *_: os.kill(os.getpid(), number))
    assert main(settings()) == 128 + number
    monkeypatch.undo()
    monkeypatch.setattr(train, "evaluate", lambda *_: os.kill(os.getpid(), number))
    assert main(settings()) == 128 + number
    last = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[-1])
    assert (last["status"], last["reason"]) == ("stopped", number.name)


def test_a_checkpoint_names_its_record(trained, tmp_path):
    _, records = trained(steps=2)
    state = checkpoint.load(tmp_path / "run.checkpoints" / "latest.pt")
    assert state["record"] == {"name": "run.jsonl", "id": records[0]["id"]}
    assert isinstance(state["random"]["cpu"], torch.Tensor)

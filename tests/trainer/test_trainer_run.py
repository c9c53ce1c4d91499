"""Whole runs, small: what they record, how they stop, what faults do."""

import json
import math
import os
import signal
import time

import pytest
import torch

from trainer import checkpoint, train
from trainer.__main__ import main
from trainer.config import UsageError


def test_a_run_records_what_the_format_asks_for(trained, steps_of):
    outcome, records = trained(curriculum="EXTENDED", steps=10)
    head, rows = records[0], steps_of(records)
    assert (outcome.step, records[-1]["status"], len(rows)) == (10, "finished", 10)
    assert head["curriculum"]["name"] == head["curriculum_running"]["name"] == "EXTENDED"
    assert head["horizon"]["samples"] == 20
    assert head["components"]["precursor"]["unit"] == "residue of 110 Da"
    assert [row["applied"] for row in rows] == list(range(1, 11))
    assert [row["samples"] for row in rows] == list(range(2, 21, 2))
    assert [row["stage"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    last = rows[-1]
    names = ("sequence", "spectrum", "precursor", "halt")
    for name in names:
        assert {f"loss/{name}", f"weight/{name}", f"component_grad/{name}", f"grad_share/{name}"} <= set(last)
    total = sum(last[f"weight/{name}"] * last[f"loss/{name}"] for name in names)
    assert last["loss"] == pytest.approx(total, rel=1e-5)
    wanted = {"grad_norm", "grad_norm/core", "clip", "lr/hidden", "lr/other", "schedule/label_smoothing"}
    wanted |= {"data/length/mean", "data/noise_peaks/max", "data/ppm_error/min", "data/fingerprint", "data/index"}
    assert wanted <= set(last)
    assert not any(name.startswith("clock/") for name in last)
    kinds = {record["kind"] for record in records}
    assert {"run", "step", "eval", "sample", "checkpoint", "end"} <= kinds


def test_the_first_evaluation_is_of_the_untrained_model(trained):
    _, records = trained(steps=2)
    evaluations = [record for record in records if record["kind"] == "eval"]
    assert [record["step"] for record in evaluations] == [0, 2]
    assert all(record["split"] == "validation" for record in evaluations)
    assert math.isfinite(evaluations[0]["metric/token_accuracy"])
    for name in ("token_accuracy", "sequence_accuracy"):  # half of the set is clean, and of 7 to 10 residues
        assert all(math.isfinite(record[f"metric/{name}_length_7_10"]) for record in evaluations)


def test_the_validation_set_does_not_depend_on_seed_or_curriculum(config):
    from trainer.feed import prepare_data
    from trainer.run import build
    from trainer.tasks.peptide.evaluation import validation_set

    sets = []
    for changes in ({}, {"seed": 5}, {"curriculum": "DEFAULT"}):
        made = config(data__max_length=30, **changes)
        run = build(made)
        sets.append(validation_set(prepare_data(made, range(7, 15)), made.evaluation, made.data.seed, run.shape))
    for other in sets[1:]:
        assert all(torch.equal(a.mz_BP, b.mz_BP) for a, b in zip(sets[0], other, strict=True))


def test_the_incomplete_last_group_is_stepped(trained, steps_of):
    _, records = trained(steps=0, samples=10, epochs=2, batch_size=2, accumulation=3)
    rows = steps_of(records)
    assert [row["samples"] for row in rows] == [6, 10, 16, 20]
    assert [row["epoch"] for row in rows] == [0, 0, 1, 1]
    assert [row["data/index"] for row in rows] == [0, 6, 10, 16]
    assert records[0]["total_steps"] == 4


def test_resume_auto_without_a_checkpoint_begins_anew(trained):
    outcome, records = trained("auto", steps=1)
    assert (outcome.step, "resumed_from" in records[0]) == (1, False)


def test_a_checkpoint_of_another_config_is_refused(trained, config):
    trained(steps=2)
    with pytest.raises(UsageError, match=r"is of another run \(other batch_size\)"):
        train.main(config(steps=2, batch_size=1), resume="auto")


def test_a_cure_can_be_tried_from_a_checkpoint(trained, steps_of):
    trained(steps=10, fault="wrong-curriculum,raw-ppm", checkpoint__every=0.1, checkpoint__keep=9)
    _, records = trained("before:2", steps=10, fault="")
    last = steps_of(records)[-1]
    assert (last["step"], last["weight/precursor"]) == (10, 0.08)


def test_old_checkpoints_go_but_not_the_best(tmp_path):
    kept = checkpoint.Checkpoints(tmp_path, keep=2)
    for step in range(1, 6):
        kept.save({"value": step}, step, best=step == 2)
    assert sorted(kept.steps()) == [2, 4, 5]
    assert checkpoint.load(tmp_path / "best.pt")["value"] == 2
    assert checkpoint.load(tmp_path / "latest.pt")["value"] == 5
    (tmp_path / "step_00000009.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UsageError, match="cannot be read"):
        checkpoint.load(tmp_path / "step_00000009.pt")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_cleanly_with_a_checkpoint(number, trained, monkeypatch):
    note = train.note

    def signalled(run, *others):
        note(run, *others)
        if run.step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(train, "note", signalled)
    before = signal.getsignal(number)
    outcome, records = trained(steps=5)
    assert signal.getsignal(number) is before
    assert (outcome.step, outcome.stopped) == (2, number.name)
    assert (records[-1]["kind"], records[-1]["status"], records[-1]["reason"]) == ("end", "stopped", number.name)
    assert any(record["kind"] == "checkpoint" and record["step"] == 2 for record in records)


def test_a_stop_file_stops_cleanly(trained, monkeypatch):
    monkeypatch.setattr(train.trainwatch.Recorder, "should_stop", property(lambda recorder: recorder.steps >= 2))
    outcome, records = trained(steps=5)
    assert (outcome.step, records[-1]["status"]) == (2, "stopped")


def test_a_watch_that_asks_it_to_stop_is_told_of_in_the_record(trained, monkeypatch):
    """A real stop file, with the finding inside, seen by the writer's thread."""
    note, asked = train.note, {"by": "trainwatch watch --stop-on critical", "finding": {"rule": "r", "message": "why"}}

    def ask(run, batch, at, watch):
        note(run, batch, at, watch)
        if run.step == 2:
            watch.path.with_suffix(".written").write_text(json.dumps(asked))
            watch.path.with_suffix(".written").replace(watch.path.with_suffix(".stop"))
            deadline = time.monotonic() + 20
            while not watch.should_stop and time.monotonic() < deadline:
                time.sleep(0.02)

    monkeypatch.setattr(train, "note", ask)
    outcome, records = trained(steps=5)
    assert (outcome.step, outcome.stopped, records[-1]["status"]) == (2, "stop file", "stopped")
    (event,) = (row for row in records if row.get("event") == "intervention")
    assert (event["by"], event["why"], event["rule"]) == (asked["by"], "why", "r")
    assert any(row["kind"] == "checkpoint" and row["step"] == 2 for row in records)
    again, _ = trained(resume="auto", steps=5)  # the file still lies there, and was for the process before
    assert (again.step, again.stopped) == (5, "")


def test_exit_codes(settings, capfd, monkeypatch):
    assert main(settings(steps=1)) == 0
    assert "finished at step 1" in capfd.readouterr().out
    assert main(["data", "build", *settings(steps=1)]) == 0
    assert "were there already" in capfd.readouterr().out

    def broken(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(train, "apply", broken)
    assert main(settings(steps=1, name="broken")) == 1
    assert "failed: RuntimeError: out of luck" in capfd.readouterr().err


def test_fast_dev_run_goes_through_everything(settings, capfd):
    assert (
        main(
            [
                "--fast-dev-run",
                *[s for s in settings() if s.split("=")[0] not in ("steps", "batch_size", "evaluation.every")],
            ]
        )
        == 0
    )
    assert "finished at step 3" in capfd.readouterr().out


def test_wrong_curriculum_and_raw_ppm_show_in_the_record(trained, steps_of):
    _, records = trained(fault="wrong-curriculum,raw-ppm", steps=10)
    head, rows = records[0], steps_of(records)
    assert (head["curriculum"]["name"], head["curriculum_running"]["name"]) == ("EXTENDED", "DEFAULT")
    assert head["config"]["curriculum_entry"] == "DEFAULT"
    assert head["components"]["precursor"]["unit"] == "ppm"
    loud = [row["weight/precursor"] * row["loss/precursor"] for row in rows if row["weight/precursor"]]
    assert min(loud) > 1e3
    assert all(row["grad_share/precursor"] > 0.99 for row in rows if row["weight/precursor"])


def test_component_scale_is_a_million(trained, steps_of):
    changes = {"steps": 10, "seed": 1}
    plain, sick = (
        steps_of(trained(name=name, fault=fault, **changes)[1]) for name, fault in (("p", ""), ("s", "component-scale"))
    )
    assert sick[0]["loss/spectrum"] == pytest.approx(1e6 * plain[0]["loss/spectrum"], rel=1e-4)
    assert sick[0]["loss/sequence"] == plain[0]["loss/sequence"]


def test_local_counter_lags_and_says_so(trained, steps_of):
    _, records = trained(fault="local-counter", steps=8)
    head, rows = records[0], steps_of(records)
    assert head["clocks"] == ["local"]
    assert head["schedules"]["label_smoothing"]["clock"] == "local"
    assert [row["clock/local"] for row in rows] == [0, 0, 0, 1, 1, 1, 1, 2]
    assert rows[6]["schedule/label_smoothing"] > 0.01


def test_a_poisoned_batch_is_the_end_of_the_weights(trained, steps_of):
    _, records = trained(fault="poisoned-batch", steps=6)
    rows = steps_of(records)
    assert [row["bad/input"] > 0 for row in rows] == [False, True, False, False, False, False]
    assert rows[0]["loss/sequence"] is not None
    assert all(row["loss/sequence"] is None and row["nonfinite"]["loss/sequence"] == "nan" for row in rows[1:])
    evaluations = [record for record in records if record["kind"] == "eval"]
    assert evaluations[-1]["nonfinite"]["loss"] == "nan"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(precision, trained, steps_of):
    _, records = trained(precision=precision, steps=3)
    rows = steps_of(records)
    assert len(rows) == 3
    assert records[0]["dtypes"]["declared"] == {"bf16": "bfloat16", "fp16": "float16"}[precision]
    assert all(math.isfinite(row["loss/sequence"]) for row in rows)
    assert ("amp/scale" in rows[-1]) == (precision == "fp16")


def test_a_skipped_step_moves_no_schedule():
    from trainer.optim import AppliedSteps, Precision

    applied = AppliedSteps(Precision("fp16", torch.device("cpu")))
    for finite in (True, False, True):
        applied.took(torch.tensor(1.0 if finite else float("inf")))
    assert applied.next == 3
    assert applied.settle() == 2
    assert applied.next == 3

"""A prescription, taken by the real trainer: resumed with it a sick run is healthy, and `--try` proves that."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import trainwatch
from trainer.__main__ import main as trainer
from trainer.config import Config, as_dict, default
from trainer.resume import differing
from trainwatch.cli import main
from trainwatch.trial import FORKS, healthy

ROOT = Path(__file__).parents[2]
RUN = {
    "size": "tiny", "device": "cpu", "threads": 1, "data.source": "theoretical", "data.peptides": 50,
    "evaluation.every": 1.0,
}  # fmt: skip
LOCAL = {"steps": 20, "batch_size": 1, "data__max_peaks": 12, "evaluation__samples": 2, "checkpoint__every": 0.1}


def grave(path):
    return [one.rule for one in trainwatch.diagnose(trainwatch.read(path)).findings if one.severity != "info"]


def test_the_record_tells_what_is_off_the_defaults(trained):
    _, records = trained(steps=2, optimizer__lr=1e-3)
    off = records[0]["config_defaults"]
    assert off["optimizer.lr"] == default("optimizer.lr") == 3e-4
    assert sorted(off) == sorted(differing(as_dict(Config()), records[0]["config"]))


def test_the_trainer_takes_the_patch_from_before_the_first_bad_step(settings, tmp_path, capfd):
    """The loader keeps its stage from step 8 of 40 on; cured and resumed before that, nothing is wrong."""
    asked = settings(fault="stale-stages", **LOCAL | {"steps": 40, "checkpoint__keep": 20})
    (tmp_path / "failed.yaml").write_text("\n".join(f"{key}: {value}" for key, value in _split(asked)))
    flat = [item for item in asked if "." in item.partition("=")[0]]
    failed = ["--config", str(tmp_path / "failed.yaml")]
    assert trainer([*failed, *flat]) == 0
    assert grave(tmp_path / "run.jsonl") == ["stale-data"]
    capfd.readouterr()
    assert main(["prescribe", str(tmp_path / "run.jsonl"), "-o", str(tmp_path / "patch.yaml")]) == 0
    assert yaml.safe_load((tmp_path / "patch.yaml").read_text()) == {"mistakes": {"stale_stages": False}}
    assert main(["prescribe", str(tmp_path / "run.jsonl"), "--format", "json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["checkpoint"]["step"] < told["changes"][0]["first_step"]
    resume = ["--resume", f"before:{told['checkpoint']['step']}"]
    assert trainer([*failed, "--config", str(tmp_path / "patch.yaml"), *flat, *resume]) == 0
    run = trainwatch.read(tmp_path / "run.jsonl")
    assert run.header.resumed_from == told["checkpoint"]["step"]
    assert run.header.config["mistakes"]["stale_stages"] is False
    assert healthy(trainwatch.diagnose(run))


def _split(asked):
    """The settings that stand at the top of a config file."""
    return [item.split("=", 1) for item in asked if "." not in item.partition("=")[0]]


def started(folder, shards, fault, **changes):
    """Train in a process of its own, so that the record names the trainer's command; gives the record's path."""
    named = {name.replace("__", "."): value for name, value in (LOCAL | changes).items()}
    given = {**RUN, **named, "fault": fault, "logs": folder, "name": "run", "data.folder": shards}
    command = [sys.executable, "-m", "trainer", *(f"{name}={value}" for name, value in given.items())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=120, capture_output=True)
    return folder / "run.jsonl"


@pytest.fixture(scope="module")
def recorded(shards, tmp_path_factory):
    """The record of a run whose loss anneals by a counter of its own."""
    return started(tmp_path_factory.mktemp("sick"), shards, "local-counter").read_text()


@pytest.fixture
def sick(recorded, tmp_path):
    """The record without its checkpoints: a fork begins at the start."""
    path = tmp_path / "run.jsonl"
    path.write_text(recorded)
    return path


def test_try_forks_the_run_as_it_was_and_cured(sick, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    assert main(["prescribe", str(sick), "--try", "--steps", "16", "--format", "json"]) == 0
    said = capfd.readouterr()
    trial = json.loads(said.out)["trial"]
    assert trial["holds"]
    assert (trial["begin"], trial["end"]) == (0, 16)
    assert trial["runs"]["as-it-was"]["root_cause"]["rule"] == "clock-desync"
    assert trial["runs"]["cured"]["root_cause"] is None
    assert all(trial["runs"][name]["losses"]["loss"] > 0 for name in FORKS)
    assert "cured, steps 1 to 16" in said.err
    first, cured = (trainwatch.read(sick.with_suffix(".trial") / f"{name}.jsonl") for name in FORKS)
    told = trainwatch.read(sick)
    assert first.train["loss"].tolist() == told.train["loss"][:16].tolist()
    assert [first.last_step, cured.last_step] == [16, 16]


def test_try_forks_from_the_last_checkpoint_before_the_first_bad_step(shards, tmp_path, monkeypatch, capfd):
    """Stages are stale from step 8 of 40 on: both forks begin at a checkpoint before that, and leave the run alone."""
    path = started(tmp_path, shards, "stale-stages", steps=40, checkpoint__keep=20)
    written = path.read_bytes(), sorted(path.with_suffix(".checkpoints").iterdir())
    monkeypatch.chdir(ROOT)
    assert main(["prescribe", str(path), "--try", "--steps", "30", "--format", "json"]) == 0
    told = json.loads(capfd.readouterr().out)
    trial, begin = told["trial"], told["checkpoint"]["step"]
    assert 0 < begin < told["changes"][0]["first_step"]
    assert (trial["begin"], trial["end"], trial["holds"]) == (begin, begin + 30, True)
    assert [trial["runs"][name]["root_cause"] and trial["runs"][name]["root_cause"]["rule"] for name in FORKS] == [
        "stale-data", None,
    ]  # fmt: skip
    for name in FORKS:
        fork = trainwatch.read(path.with_suffix(".trial") / f"{name}.jsonl")
        assert (fork.header.resumed_from, fork.train.step[0], fork.last_step) == (begin, begin + 1, begin + 30)
        assert fork.train["loss"][0] == trainwatch.read(path).train["loss"][begin]
    assert (path.read_bytes(), sorted(path.with_suffix(".checkpoints").iterdir())) == written


def test_a_fork_that_cannot_train_says_why(sick, monkeypatch, capfd):
    """Its config is of another program's version."""
    lines = sick.read_text().splitlines()
    header = json.loads(lines[0])
    header["config"]["model"]["gone"] = 1
    sick.write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    monkeypatch.chdir(ROOT)
    assert main(["prescribe", str(sick), "--try", "--steps", "25"]) == 2
    assert "the run as-it-was took no step: trainer: " in capfd.readouterr().err


def test_to_ends_a_run_early_and_not_before_it_begins(settings, capfd):
    assert trainer([*settings(steps=6), "--to", "4"]) == 0
    assert "stopped (asked to end at step 4)" in capfd.readouterr().out
    assert trainer([*settings(steps=6), "--resume", "auto", "--to", "3"]) == 2
    assert "--to 3: the run is at step 4 already" in capfd.readouterr().err

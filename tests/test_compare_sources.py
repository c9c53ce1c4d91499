"""A script against a notebook, and configs against both, as a protein autoencoder's project would have had them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainwatch.cli import main
from trainwatch.compare import ABSENT
from trainwatch.compare.written import compare_files, meaning
from trainwatch.text import sources

SCRIPT = '''"""Train a protein structure autoencoder."""
import argparse
from dataclasses import dataclass
import torch

MAX_LEN = 64
KL_WEIGHT = 1e-4
STERIC_WEIGHT = 0.05

LOSS_WEIGHTS = {
    "coords": 1.0,
    "kabsch": 10.0,
    "bond_length": 100.0,
    "bond_angle": 50.0,
    "rama": 5.0,
}

@dataclass
class Config:
    latent_dim: int = 64
    hidden_dim: int = 4 * MAX_LEN
    lr: float = 1e-3

def total_loss(out, batch, rmsd_weight=1.0, chirality_weight=0.5):
    return out

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    optimizer = torch.optim.AdamW([], lr=1e-3, weight_decay=1e-4)

open("it_ran", "w")
'''
CELLS = [
    "# A markdown cell",
    "%matplotlib inline\nimport torch\nMAX_LEN = 64\nepochs = 100\nbatch_size = 32\n",
    "weights = dict(\n    coords=1.0,\n    kabsch=5.0,\n    bond_length=10.0,\n    bond_angle=10.0,\n    rama=1.0,\n)\n"
    "lambda_kl = 1e-3\nsteric_weight = 0.5\n",
    "class Config:\n    latent_dim = 64\n    hidden_dim = 256\n\n"
    "def total_loss(out, batch, rmsd_weight=2.0, chirality_weight=0.5):\n    return out\n",
    "!nvidia-smi\nopt = torch.optim.AdamW([], lr=1e-3, weight_decay=1e-4)\nopen('it_ran', 'w')\n",
]
APART = {"kl", "steric", "kabsch", "bond length", "bond angle", "rama", "rmsd"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the project, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    cells = [{"cell_type": "code" if index else "markdown", "source": text} for index, text in enumerate(CELLS)]
    (tmp_path / "train.ipynb").write_text(json.dumps({"nbformat": 4, "cells": cells}))
    return tmp_path


def test_seven_loss_weights_are_apart_each_with_both_values_and_places(project):
    said = compare_files([Path("train.py"), Path("train.ipynb")])
    assert {line.name for line in said.weights} == APART
    assert said.apart == said.weights
    kabsch = next(line for line in said.apart if line.name == "kabsch")
    assert kabsch.values == (10.0, 5.0)
    assert kabsch.names == ("LOSS_WEIGHTS.kabsch", "weights.kabsch")
    assert kabsch.places == ("train.py:12", "train.ipynb, code cell 2, line 3")
    kl = next(line for line in said.apart if line.name == "kl")
    assert (kl.values, kl.names) == ((1e-4, 1e-3), ("KL_WEIGHT", "lambda_kl"))
    assert sources.verdict(said).startswith("train.py and train.ipynb: seven loss weights (")
    assert not (project / "it_ran").exists()


@pytest.mark.parametrize("format_", ["text", "markdown", "json", "html"])
def test_every_format_names_them(project, format_, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    how = ["-o", "x.html"] if format_ == "html" else ["--format", format_]
    assert main(["compare", "train.py", "train.ipynb", *how]) == 0
    out = capsys.readouterr().out
    said = (project / "x.html").read_text() if format_ == "html" else out
    assert "seven loss weights" in said
    assert "code cell 2, line 3" in said
    if format_ == "json":
        assert json.loads(out)["version"] == 1


def test_configs_are_held_against_each_other_and_against_a_script(project, capsys):
    (project / "a.yaml").write_text("loss_weights:\n  kabsch: 10\n  rama: 5\nlr: 1e-4\nonly_here: 3\n")
    (project / "b.json").write_text('{"loss_weights": {"kabsch": 5, "rama": 5}, "lr": 0.0001}')
    said = compare_files([Path("a.yaml"), Path("b.json")])
    assert [(line.name, line.values, line.places) for line in said.apart] == [
        ("kabsch", (10, 5), ("a.yaml:2", "b.json:1"))
    ]
    assert [(line.name, line.values) for line in said.only] == [("only here", (3, ABSENT))]
    against = compare_files([Path("train.py"), Path("a.yaml")])
    assert [(line.name, line.values) for line in against.apart] == [("lr", (1e-3, 1e-4))]
    (project / "c.json").write_text('{"loss_weights": {"kabsch": 5, "rama": 7}, "lr": 0.0001}')
    assert main(["compare", "b.json", "c.json"]) == 0
    assert "one loss weight (rama) apart; 2 settings agree" in capsys.readouterr().out


RECORDED = {
    "loss_weights": {"coords": 1.0, "kabsch": 5.0},
    "optimizer": {"lr": 0.003, "weight_decay": 1e-4, "betas": [0.9, 0.98]},
    "batch_size": 64,
    "evaluation": {"batch_size": 256},
    "epochs": 100,
    "device": "cuda",
}


@pytest.fixture
def ran(project, write_run) -> str:
    """A run that was trained with other settings than train.py has now."""
    run = {"kind": "run", "schema": 1, "run": "exp1", "id": "r", "config": RECORDED}
    write_run([run, {"kind": "step", "step": 1, "loss": 1.0}], "exp1.jsonl")
    (project / "train.py").write_text(SCRIPT + "\nbetas = (0.9, 0.98)\n")
    return "exp1.jsonl"


def test_a_script_is_held_against_what_a_run_recorded(ran, capsys):
    assert main(["compare", "train.py", ran, "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    apart = {line["name"]: (line["values"], line["places"]) for line in said["apart"]}
    assert apart == {
        "kabsch": ([10.0, 5.0], ["train.py:12", "as recorded"]),
        "batch size": ([32, 64], ["train.py:30", "as recorded"]),
        "lr": ([1e-3, 3e-3], ["train.py:22", "as recorded"]),
    }
    assert said["agree"] == 4  # coords, weight decay, epochs, and betas: a tuple is a list in a record
    assert {line["name"] for line in said["only"]} >= {"kl", "rama", "device", "evaluation.batch_size"}
    assert (said["files"], said["recorded"]) == (["train.py", ran], [ran])


@pytest.mark.parametrize("format_", ["text", "markdown", "html"])
def test_every_format_says_what_the_run_is_taken_for(ran, format_, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    how = ["-o", "x.html"] if format_ == "html" else ["--format", format_]
    assert main(["compare", ran, "train.ipynb", *how]) == 0
    out = capsys.readouterr().out
    said = " ".join((Path("x.html").read_text() if format_ == "html" else out).split())
    assert "exp1.jsonl and train.ipynb: two settings (lr, batch size) apart" in said
    assert "Of exp1.jsonl it is what was recorded at the beginning." in said
    if format_ != "html":  # its tables are folded
        assert "3 other settings stand in what was recorded alone; --format json lists them." in said
        assert "device" not in said


def test_a_run_that_recorded_nothing_is_one_sentence(project, capsys, write_run):
    write_run([{"kind": "run", "schema": 1, "run": "r", "id": "r"}], "r.jsonl")
    assert main(["compare", "train.py", "r.jsonl"]) == 2
    assert "r.jsonl: has no settings in its record to hold a file against" in capsys.readouterr().err
    assert main(["compare", "train.py", "gone.jsonl"]) == 2
    assert "gone.jsonl: there is no such file" in capsys.readouterr().err
    (project / "other.py").write_text("nothing_of_it = 1\n")
    assert main(["compare", "train.py", "other.py"]) == 0
    assert "no setting stands in both under one name" in capsys.readouterr().out


def test_what_is_the_same_is_said(project, capsys):
    (project / "copy.py").write_text(SCRIPT)
    assert main(["compare", "train.py", "copy.py"]) == 0
    assert "none of the" in capsys.readouterr().out


def test_names_of_one_meaning_and_other_values_are_all_told(project, capsys):
    for name, weight in (("a", 10), ("b", 5)):
        (project / f"{name}.py").write_text(f"KABSCH_WEIGHT = {weight}\nkabsch_lambda = 3\n")
    said = compare_files([Path("a.py"), Path("b.py")])
    assert [(line.name, line.values) for line in said.apart] == [("KABSCH_WEIGHT", (10, 5))]
    assert said.agree == 1
    assert main(["compare", "a.py", "b.py"]) == 0
    assert "one loss weight (KABSCH_WEIGHT) apart; 1 setting agrees." in capsys.readouterr().out


def test_a_number_that_is_none_is_the_same_in_both(project):
    for name in ("a", "b"):
        (project / f"{name}.yaml").write_text("ignored: .nan\nlimits: [.nan, 1]\n学习率: 1\n批量: 2\n")
    assert compare_files([Path("a.yaml"), Path("b.yaml")]).agree == 4


def test_two_of_three_files_may_be_apart(project, capsys):
    for name, text in (("a", "lr = 1\nsize = 3\n"), ("b", "lr = 2\nsize = 3\n"), ("c", "size = 3\nown = 1\n")):
        (project / f"{name}.py").write_text(text)
    said = compare_files([Path("a.py"), Path("b.py"), Path("c.py")])
    assert [(line.name, line.values) for line in said.apart] == [("lr", (1, 2, ABSENT))]
    assert ([line.name for line in said.only], said.agree) == (["own"], 1)
    assert main(["compare", "a.py", "c.py", "a.py"]) == 0
    assert "a.py and c.py: none of the 1 setting that both have is apart." in capsys.readouterr().out
    assert main(["compare", "c.py", "a.py", "b.py"]) == 0
    assert "c.py and 2 others: one setting (lr) apart; 1 setting agrees." in capsys.readouterr().out


def test_a_file_is_not_held_against_itself_nor_written_over(project, capsys):
    (project / "link.py").symlink_to("train.py")
    assert main(["compare", "train.py", "link.py"]) == 2
    assert "train.py: is all that was given, more than once" in capsys.readouterr().err
    (project / "a.json").write_text('{"lr": 1}')
    assert main(["compare", "train.py", "a.json", "-o", "a.json"]) == 2
    assert "a.json: is one of those that are compared" in capsys.readouterr().err
    assert (project / "a.json").read_text() == '{"lr": 1}'


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        (("KABSCH_WEIGHT",), "loss weight", "kabsch"),
        (("weights", "kabsch"), "loss weight", "kabsch"),
        (("lossWeights", "kabsch"), "loss weight", "kabsch"),
        (("cfg", "loss_weights", "kabsch_loss"), "loss weight", "kabsch"),
        (("lambda_kabsch",), "loss weight", "kabsch"),
        (("w_kabsch",), "loss weight", "kabsch"),
        (("AdamW", "weight_decay"), "setting", "weight decay"),
        (("pretrained_weights",), "setting", "pretrained weights"),
        (("lr",), "setting", "lr"),
        (("optimizer", "beta1"), "setting", "beta 1"),
        (("beta_kl",), "loss weight", "kl"),
        (("学习率",), "setting", "学习率"),
    ],
)
def test_a_name_by_its_words(path, kind, name):
    assert meaning(path) == (kind, name)


def test_one_name_with_several_values_in_a_file_is_told_by_its_path(tmp_path):
    both = "class A:\n    width = 1\nclass B:\n    width = {}\n"
    for name, value in (("a.py", 2), ("b.py", 3)):
        (tmp_path / name).write_text(both.format(value))
    said = compare_files([tmp_path / "a.py", tmp_path / "b.py"])
    assert [(line.name, line.values) for line in said.apart] == [("B.width", (2, 3))]


def test_arithmetic_that_never_ends_is_unknown(tmp_path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 10**10**10**10\ny = 1 / 0\nz = 2 * 3\n" + "n = 5\nm = n * 2\n")
    said = compare_files([tmp_path / "a.py", tmp_path / "b.py"])
    assert (said.apart, said.agree) == ((), 3)


def test_a_training_log_in_json_is_a_run_beside_a_script(project, capsys):
    state = {"global_step": 2, "max_steps": 2, "log_history": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}
    (project / "trainer_state.json").write_text(json.dumps(state))
    assert main(["compare", "train.py", "trainer_state.json"]) == 2
    assert "trainer_state.json: has no settings in its record" in capsys.readouterr().err


@pytest.mark.usefixtures("project")
def test_settings_lie_along_no_axis(capsys):
    assert main(["compare", "train.py", "train.ipynb", "--align", "tokens"]) == 2
    assert "train.py: is no run, and settings have no tokens to lay them along" in capsys.readouterr().err
    assert main(["compare", "train.py", "train.ipynb", "--map", "lr=my_lr"]) == 2
    assert "there is no name to map" in capsys.readouterr().err

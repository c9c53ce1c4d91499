"""The five projects that trainwatch comes from: their files as they were, and the cause and the cure that must be named.

Below each folder lie the configs and scripts of one project, cut down to what matters. Their logs are written here, in
the form and with the numbers that those projects logged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainwatch.judge import judge, settings
from trainwatch.lint import lint_command, lint_file
from trainwatch.lint.sources.python_file import read_script
from trainwatch.schema import Finding

HERE = Path(__file__).parent


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``project("vision")``: that project's folder, and the working directory in it."""

    def enter(name: str) -> Path:
        shutil.copytree(HERE / name, tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return enter


def alarms(findings: tuple[Finding, ...]) -> dict[str, Finding]:
    """The first alarm of each rule."""
    return {item.rule: item for item in reversed(findings) if item.severity != "info"}


def told(path: Path) -> Any:
    """The diagnosis of the only run in a log."""
    found = judge(path, settings(folder=path.parent))
    assert isinstance(found, list), found
    [item] = found
    return item.diagnosis


def lines(path: Path, records: Iterator[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# a peptide sequencer ran DEFAULT where EXTENDED was meant, and its mass loss blew it up


def test_peptide_before_the_run(project):
    """The config is named for one curriculum, the script imports another."""
    root = project("peptide")
    found = lint_command(["python", "train_optimized.py"], root).findings
    choice = alarms(found)["curriculum-choice"]
    assert "EXTENDED" in choice.message
    assert "DEFAULT_CURRICULUM" in choice.message
    assert (choice.evidence["script"], choice.evidence["script_line"]) == ("train_optimized.py", 3)


def peptides() -> Iterator[dict[str, Any]]:
    """As its metrics file has it, every 100th step: the mass term enters with a weight of 0.2 at step 8,000."""
    random = np.random.default_rng(0)
    for step in range(100, 14_000, 100):
        cross = 1.2 + 1.7 * np.exp(-step / 4000) + random.normal(0, 0.03)
        weight = 0.0 if step < 8000 else 0.2
        hurt = 0.0 if step < 8000 else 1.6 * (1 - np.exp(-(step - 8000) / 900))
        mass = 3100.0 * np.exp(random.normal(0, 0.2))
        yield {
            "step": step,
            "loss": cross + hurt + 0.1 * 0.6 + weight * mass,
            "ce_loss": cross + hurt,
            "spectrum_loss": 0.6 + random.normal(0, 0.01),
            "precursor_loss": mass,
            "precursor_loss_weight": weight,
            "spectrum_loss_weight": 0.1,
            "token_accuracy": 0.1 + 0.25 * (cross < 2) - 0.05 * (hurt > 0),
            "lr": 1.5e-4,
            "curriculum_stage": int(step >= 8000),
        }


def test_peptide_from_its_own_metrics_file(project):
    """The weight that enters is the cause, within the step at which it does."""
    said = told(lines(project("peptide") / "metrics.jsonl", peptides()))
    print(json.dumps([item.__dict__ for item in said.findings], default=str, indent=1))
    assert said.root_cause is not None

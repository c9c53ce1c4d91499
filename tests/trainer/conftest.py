"""What the trainer's tests share: small configs on theoretical spectra, and their run files read back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import train
from trainer.config import Config
from trainer.loading import load
from trainer.tasks.peptide.bank import Bank

SMALL = {
    "size": "tiny",
    "steps": 6,
    "batch_size": 2,
    "device": "cpu",
    "threads": 1,  # sums come out the same to the last bit, and tests side by side do not fight for cores
    "data.source": "theoretical",
    "data.peptides": 50,
    "data.max_peaks": 24,
    "evaluation.samples": 4,
    "evaluation.every": 1.0,
    "checkpoint.every": 0.5,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """As in `SMALL`, for tests that take a model by itself."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """A folder for peptides that all tests share."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def settings(tmp_path, shards) -> Callable[..., list[str]]:
    """key=value overrides of a small run; `_` in a name stands for itself, `__` for a dot."""

    def made(**changes: Any) -> list[str]:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        values = {**SMALL, "logs": tmp_path, "name": "run", "data.folder": shards, **named}
        return [f"{name}={value}" for name, value in values.items()]

    return made


@pytest.fixture
def config(settings) -> Callable[..., Config]:
    return lambda **changes: load([], settings(**changes))[0]


@pytest.fixture
def trained(config, capfd) -> Callable[..., tuple[train.Outcome, list[dict[str, Any]]]]:
    """Train, and give the outcome and every record of the run's file."""

    def run(resume: str = "", **changes: Any) -> tuple[train.Outcome, list[dict[str, Any]]]:
        outcome = train.main(config(**changes), resume=resume)
        capfd.readouterr()
        return outcome, [json.loads(line) for line in outcome.path.read_text().splitlines()]

    return run


@pytest.fixture
def steps_of() -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda records: [record for record in records if record["kind"] == "step"]


@pytest.fixture
def bank(shards) -> Bank:
    return Bank(shards, "theoretical", 0, 50)

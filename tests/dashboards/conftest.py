"""A run file as the recorder writes it, without a recorder: a peptide run whose curriculum was not the declared one."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

COMPONENTS = {
    "sequence": {"unit": "nat", "role": "task", "description": "cross-entropy of the residues"},
    "spectrum": {"unit": "", "role": "auxiliary", "description": "1 - cosine to the predicted spectrum"},
    "precursor": {"unit": "ppm", "role": "regulariser", "description": "mass error of the precursor"},
}
STAGES = [
    {"start": 0, "end": 0.2, "name": "short", "weights": {"sequence": 1.0, "spectrum": 0.0, "precursor": 0.0}},
    {"start": 0.2, "end": 0.55, "name": "medium", "weights": {"sequence": 1.0, "spectrum": 0.1, "precursor": 0.01}},
    {"start": 0.55, "end": 1, "name": "full", "weights": {"sequence": 1.0, "spectrum": 0.2, "precursor": 0.01}},
]


def header(name: str = "peptide-extended", steps: int = 600, **more: Any) -> dict[str, Any]:
    """The first line of a run of ``steps`` steps, written by this process."""
    stages = [{**stage, "start": round(stage["start"] * steps), "end": round(stage["end"] * steps)} for stage in STAGES]
    config = {"optimizer": {"lr": 5e-4, "warmup_steps": steps // 10}, "curriculum": "extended", "task": "peptide"}
    return {
        "kind": "run",
        "time": time.time(),
        "elapsed": 0.0,
        "schema": 1,
        "run": name,
        "id": f"id-{name}",
        "attempt": 1,
        "rank": 0,
        "world_size": 1,
        "pid": os.getpid(),
        "total_steps": steps,
        "components": COMPONENTS,
        "curriculum": {"name": "extended", "stages": stages},
        "max_grad_norm": 1.0,
        "schedules": {
            "lr/main": {"kind": "cosine", "start": 5e-4, "end": 1e-5, "over_steps": steps, "warmup": steps // 10},
            "expansion_penalty": {"kind": "linear", "start": 0.5, "end": 0.05, "over_steps": steps},
        },
        "clocks": ["dqn"],
        "config": config,
        "parameters": 3_214_080,
        **more,
    }


def row(step: int, steps: int = 600, rng: random.Random | None = None, **more: Any) -> dict[str, Any]:
    """One step: at 60 % of the run the precursor takes the gradient over, in a stage that was never declared."""
    rng = rng or random.Random(step)
    at = step / steps
    raw = {
        "sequence": 2.9 * math.exp(-2.2 * at) + 0.12 + rng.gauss(0, 0.05),
        "spectrum": 0.82 * math.exp(-1.4 * at) + 0.1 + rng.gauss(0, 0.015),
        "precursor": 380 * math.exp(-1.1 * at) * math.exp(rng.gauss(0, 0.12)) + 20,
    }
    weights = {"sequence": 1.0, "spectrum": 0.0 if at < 0.2 else 0.1, "precursor": 0.0 if at < 0.2 else 0.01}
    if at >= 0.6:
        weights["precursor"] = 0.5
    pull = {name: weights[name] * raw[name] * math.exp(rng.gauss(0, 0.15)) + 1e-9 * bool(weights[name]) for name in raw}
    norm = 0.4 + 0.25 * sum(pull.values()) * math.exp(rng.gauss(0, 0.2))
    cosine = 1e-5 + (5e-4 - 1e-5) * (1 + math.cos(math.pi * max(at - 0.1, 0) / 0.9)) / 2
    return {
        "kind": "step",
        "time": time.time(),
        "elapsed": 0.021 * step,
        "step": step,
        "applied": step,
        "loss": sum(weights[name] * raw[name] for name in raw),
        **{f"loss/{name}": value for name, value in raw.items()},
        **{f"weight/{name}": value for name, value in weights.items()},
        **{f"grad_share/{name}": value / sum(pull.values()) for name, value in pull.items() if weights[name]},
        "stage": sum(at >= stage["start"] for stage in STAGES) - 1,
        "grad_norm": norm,
        "clip": int(norm > 1),
        "grad_norm/encoder": norm * 0.8,
        "grad_norm/decoder": norm * 0.55,
        "grad_norm/head": norm * 0.22,
        "lr/main": 5e-4 * step / (0.1 * steps) if at < 0.1 else cosine,
        "schedule/expansion_penalty": 0.5 - 0.45 * min(step // 4 / steps, 1),
        "clock/dqn": step // 4,
        "time/data": abs(rng.gauss(0.003, 0.001)),
        "time/step": 0.02 + abs(rng.gauss(0, 0.003)),
        "time/compute": 0.016 + abs(rng.gauss(0, 0.001)),
        "samples": step * 64,
        **more,
    }


def broken(record: dict[str, Any], **kinds: str) -> dict[str, Any]:
    """The record with values that are not finite: ``loss__precursor="nan"``."""
    named = {name.replace("__", "/"): kind for name, kind in kinds.items()}
    return {**record, **dict.fromkeys(named), "nonfinite": named}


def evaluation(step: int, steps: int = 600) -> dict[str, Any]:
    """One evaluation of the validation split."""
    at = step / steps
    shared = {"kind": "eval", "time": time.time(), "elapsed": 0.021 * step, "step": step, "split": "valid"}
    recall = 0.7 * (1 - math.exp(-3 * at)) - 0.25 * max(at - 0.6, 0)
    return {
        **shared,
        "loss": 2.9 * math.exp(-2 * at) + 0.3,
        "metric/recall": recall,
        "metric/aa_precision": recall + 0.1,
    }


def end(status: str = "finished", **more: Any) -> dict[str, Any]:
    """The last line."""
    return {"kind": "end", "time": time.time(), "elapsed": 13.0, "status": status, **more}


def peptide(steps: int = 600, until: int | None = None, name: str = "peptide-extended") -> Iterator[dict[str, Any]]:
    """A whole run, or its first ``until`` steps; the precursor is NaN at two steps, the gradient infinite at one."""
    rng = random.Random(7)
    yield header(name, steps)
    for step in range(1, (until or steps) + 1):
        record = row(step, steps, rng)
        if step in (round(0.81 * steps), round(0.9 * steps)):
            record = broken(record, loss__precursor="nan", loss="nan")
        if step == round(0.83 * steps):
            record = broken(record, grad_norm="inf")
        yield record
        if step % (steps // 12) == 0:
            yield evaluation(step, steps)
    if until is None:
        yield end()


def append(path: Path, *records: dict[str, Any]) -> Path:
    """Write records to the end of a run file, each a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.writelines(orjson.dumps(record) + b"\n" for record in records)
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left in the user's cache folder, and nothing is taken from there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, ``peptide.jsonl``. Only read it."""
    folder = tmp_path_factory.mktemp("logs")
    append(folder / "peptide.jsonl", *peptide())
    return folder


@pytest.fixture
def write() -> Callable[..., Path]:
    """Appends records to a run file."""
    return append


@pytest.fixture(name="row")
def _row() -> Callable[..., dict[str, Any]]:
    """Makes the record of one step."""
    return row


@pytest.fixture(name="header")
def _header() -> Callable[..., dict[str, Any]]:
    """Makes a run's first record."""
    return header


@pytest.fixture(name="end")
def _end() -> Callable[..., dict[str, Any]]:
    """Makes a run's last record."""
    return end


@pytest.fixture
def caller() -> Callable[[Any, str], bytes]:
    """Asks an app for an address, without a server."""
    return lambda app, address: bytes(app.server.test_client().get(address, headers={"Host": "127.0.0.1"}).data)

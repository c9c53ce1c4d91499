"""A run that goes wrong while somebody watches."""

from __future__ import annotations

import pytest


def sick_records(steps: int = 120, name: str = "sick", **more) -> list[dict]:
    """A declared curriculum that is not the one that runs; NaN in the mass loss from step 100 on. No end."""
    said, runs = ([{"start": 0, "end": 200, "weights": {"mass": weight}}] for weight in (1.0, 0.5))
    head = {
        "kind": "run",
        "schema": 1,
        "run": name,
        "id": name,
        "time": 1e9,
        "total_steps": 200,
        "max_grad_norm": 1.0,
        "curriculum": {"name": "EXTENDED", "sha256": "aa", "stages": said},
        "curriculum_running": {"name": "DEFAULT", "sha256": "bb", "stages": runs},
        **more,
    }
    return [head, *(row(step) for step in range(1, steps + 1))]


def row(step: int) -> dict:
    bad = step >= 100
    return {
        "kind": "step",
        "step": step,
        "time": 1e9 + step,
        "elapsed": 0.5 * step,
        "loss": None if bad else 3.0 + 1 / step,
        "loss/mass": None if bad else 2.0 + 1 / step,
        "loss/length": 10.0,
        "weight/mass": 1.0,
        "weight/length": 0.1,
        "grad_share/mass": 0.75,
        "grad_share/length": 0.25,
        "grad_norm": 0.5 + 0.01 * (step % 7),
        "clip": step % 2,
        "lr/main": 1e-3,
        "amp/scale": 65536.0,
        "amp/skipped": float(step == 3),
        **({"nonfinite": {"loss": "nan", "loss/mass": "nan"}} if bad else {}),
    }


END = {"kind": "end", "status": "stopped", "step": 120, "time": 1e9 + 120}


@pytest.fixture
def sick():
    """``sick(steps=120, name="sick")``: the records of a run that goes on, and goes wrong."""
    return sick_records


@pytest.fixture
def end():
    """The record that ends it."""
    return END


@pytest.fixture(autouse=True)
def _a_terminal_as_any(monkeypatch):
    """pytest-xdist tells its workers how wide the terminal is."""
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

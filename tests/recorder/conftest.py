"""What the recorder's tests share: reading a run file back, strictly, and running a program in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trainwatch
from trainwatch.recorder import file


def read_back(path: Path) -> list[dict[str, Any]]:
    """Every line as strict JSON: NaN and Infinity are refused, and so is a key that comes twice."""

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), pairs
        return dict(pairs)

    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse, object_pairs_hook=once) for line in text.splitlines()]


@pytest.fixture
def records() -> Callable[[Path], list[dict[str, Any]]]:
    return read_back


@pytest.fixture
def steps() -> Callable[[Path], list[dict[str, Any]]]:
    return lambda path: [record for record in read_back(path) if record["kind"] == "step"]


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A recorder of ``run.jsonl`` that is closed after the test."""
    monkeypatch.setattr(file, "RANK_WAIT", 0.2)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as recorder:
        yield recorder


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    """Start a Python program; ``path`` and ``trainwatch`` are there for it."""

    def start(code: str) -> subprocess.Popen[str]:
        script = tmp_path / "program.py"
        script.write_text(
            f"import os, signal, sys, time\nimport trainwatch\npath = {str(tmp_path / 'run.jsonl')!r}\n{code}"
        )
        return subprocess.Popen(
            [sys.executable, "-W", "error", str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )

    return start

"""Trainings by other people's loops, and what was recorded of them."""

import json
import subprocess
import sys
import time

import pytest

from trainwatch.recorder import sink


@pytest.fixture
def recorded():
    """``recorded(path, "step")``: the records of a kind, with what is not finite by its name."""

    def read(path, kind):
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        return [row | row.get("nonfinite", {}) for row in rows if row["kind"] == kind]

    return read


@pytest.fixture
def ask_to_stop(monkeypatch):
    """``ask_to_stop(watch)`` writes the stop file, and waits until the recorder has seen it."""
    monkeypatch.setattr(sink, "STOP_POLL", 0.01)

    def ask(watch):
        watch.path.with_suffix(".stop").touch()
        deadline = time.monotonic() + 10
        while not watch.should_stop:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return ask


@pytest.fixture
def two_ranks(request, tmp_path):
    """``two_ranks("fit(...)")`` makes that call of the test's own module in two processes of one group."""

    def launch(call):
        script = tmp_path / "ranks.py"
        script.write_text(f"""
import os, pathlib, sys
sys.path.insert(0, {str(request.path.parent)!r})
import {request.path.stem} as loop
loop.{call}
os._exit(0)  # gloo's threads may let go of a tensor while the interpreter ends, and abort (pytorch #190489)
""")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        done = subprocess.run([*torchrun, str(script)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    return launch

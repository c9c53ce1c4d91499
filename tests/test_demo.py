"""`trainwatch demo`, with a trainer that only writes records: what is shown, when, and that nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

TRAINER = """
import json, os, socket, sys, time
from pathlib import Path
import psutil

if os.environ.get("FAIL"):
    raise RuntimeError("there is no data")
given = dict(item.split("=", 1) for item in sys.argv[1:] if "=" in item)
healthy = "healthy" in given["name"]

def plan(name, weight):
    stages = [{"start": 0, "end": 20, "weights": {"a": 1.0}}, {"start": 20, "end": 60, "weights": {"a": weight}}]
    return {"name": name, "sha256": name, "stages": stages}

now = time.time()
lines = [{"kind": "run", "schema": 1, "run": given["name"], "id": str(now), "time": now, "elapsed": 0.0,
          "host": socket.gethostname(), "pid": os.getpid(), "process_started": psutil.Process().create_time(),
          "total_steps": 60, "curriculum": plan("EXTENDED", 1.0),
          "curriculum_running": plan("EXTENDED", 1.0) if healthy else plan("DEFAULT", 0.5)}]
lines += [{"kind": "step", "time": now, "elapsed": 0.01 * step, "step": step, "applied": step, "loss": 1 + 1 / step}
          for step in range(1, 61)]
lines.append({"kind": "end", "status": "finished", "step": 60})
with open(Path(given["logs"]) / (given["name"] + ".jsonl"), "x") as file:
    for line in lines:
        print(json.dumps(line), file=file, flush=True)
        time.sleep(float(os.environ.get("PAUSE", "0")))
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with a trainer and the demo's configs."""
    (tmp_path / "trainer").mkdir()
    (tmp_path / "configs").mkdir()
    (tmp_path / "trainer" / "__init__.py").touch()
    (tmp_path / "trainer" / "__main__.py").write_text(TRAINER)
    for name in ("demo", "demo-healthy"):
        (tmp_path / "configs" / f"{name}.yaml").touch()
    return tmp_path


COMMAND = [sys.executable, "-c", "import sys; from trainwatch.cli import main; sys.exit(main())", "demo"]


def start(checkout: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "--no-dash", *options],
        cwd=checkout,
        env={**os.environ, "COLUMNS": "200", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_the_mistake_is_shown_and_explained(checkout):
    code, out, err = finish(start(checkout))
    assert (code, err) == (0, "")
    assert re.search(r"^ *\d+ s  ✖ critical  curriculum-mismatch, step \d+: ", out, re.MULTILINE)
    assert "Root cause, since step" in out
    assert "Post-mortem: logs/demo.html" in out
    assert "</html>" in (checkout / "logs" / "demo.html").read_text(encoding="utf-8")


def test_a_second_demo_replaces_the_first(checkout):
    (checkout / "logs").mkdir()
    for name in ("demo.jsonl", "demo.rank1.jsonl", "demo.html"):
        (checkout / "logs" / name).write_text("old")
    assert finish(start(checkout))[0] == 0
    assert "old" not in (checkout / "logs" / "demo.jsonl").read_text()
    assert not (checkout / "logs" / "demo.rank1.jsonl").exists()


def test_the_healthy_one_finds_nothing(checkout):
    code, out, _ = finish(start(checkout, "--healthy"))
    assert code == 0
    assert "✓ nothing found  demo-healthy" in out


def test_a_trainer_that_fails_is_quoted(checkout):
    code, _, err = finish(start(checkout, FAIL="1"))
    assert code == 2
    assert "RuntimeError: there is no data" in err
    assert "logs/demo.log" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_it_leaves_nothing_behind(checkout, number):
    process = start(checkout, PAUSE="0.2")
    trainer = _child(process, checkout)
    process.send_signal(number)
    assert finish(process)[0] == 130
    assert not trainer.is_running()


def test_a_running_demo_is_not_trampled_on(checkout):
    first = start(checkout, PAUSE="0.2")
    _child(first, checkout)
    code, _, err = finish(start(checkout))
    first.terminate()
    finish(first)
    assert code == 2
    assert "still writing it" in err
    assert len(err.splitlines()) == 1


def _child(process: subprocess.Popen[str], checkout: Path) -> psutil.Process:
    """The trainer, once it has written something."""
    deadline = time.monotonic() + 30
    path = checkout / "logs" / "demo.jsonl"
    while not (path.is_file() and path.stat().st_size):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    (trainer,) = psutil.Process(process.pid).children()
    return trainer


def test_without_a_checkout_it_says_so(tmp_path, monkeypatch, capsys):
    from trainwatch import launch
    from trainwatch.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "__file__", str(tmp_path / "site-packages" / "trainwatch" / "launch.py"))
    assert main(["demo", "--no-dash"]) == 2
    assert "clone the repository" in capsys.readouterr().err


def test_the_dashboard_comes_up_and_goes_with_it(checkout):
    process = subprocess.Popen(
        [*COMMAND, "--port", "0"], cwd=checkout, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.search(r"^Watch it at http://127\.0\.0\.1:\d+", out, re.MULTILINE)

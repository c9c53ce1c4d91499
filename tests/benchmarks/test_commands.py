"""Each command of benchmarks/README.md starts on a clean machine, and each is in that table."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "benchmarks/README.md").read_text()
COMMANDS = dict.fromkeys(re.findall(r"^\| `python ((?:-m )?[\w./]+)", TABLE, re.MULTILINE))
PEERS = {"benchmarks/fuzz.py": "atheris"}  # what a command cannot do without, and no extra installs


@pytest.mark.parametrize("command", COMMANDS)
def test_it_starts(command: str) -> None:
    if command in PEERS:
        pytest.importorskip(PEERS[command])
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    asked = [sys.executable, *command.split(), "--help"]
    done = subprocess.run(asked, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize("what", ["program", "kind"])
def test_a_name_that_does_not_exist_gets_those_that_do(what: str) -> None:
    asked = [sys.executable, "-m", "benchmarks.diagnosis", f"--{what}", "nope"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert f"{what} 'nope' does not exist; choose from " in done.stderr


def test_every_program_is_in_the_table() -> None:
    programs = [path for path in (ROOT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    missing = {path.stem for path in programs} - {
        re.split(r"[/.]", command.removesuffix(".py"))[-1] for command in COMMANDS
    }
    assert not missing

"""README's commands run as they stand, and those of the trainer's page."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_record_your_own_training_and_what_follows_it(tmp_path):
    """The Python block trains and records; the commands under it judge a healthy run."""
    (code,) = blocks("python")
    (tmp_path / "train.py").write_text(code)
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # other tests train beside it: threads would wait for one another
    train = [sys.executable, "train.py"]
    done = subprocess.run(train, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=alone)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "logs/mine.jsonl").read_text().splitlines()
    assert sum('"grad_share/label"' in row for row in rows) == 112
    assert '"finished"' in rows[-1]
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("trainwatch ")]
    assert commands
    for command in commands:
        if "dash" not in command:  # it serves until it is stopped; the browser test drives it
            program = str(Path(sys.executable).with_name("trainwatch"))
            done = subprocess.run(
                [program, *command.split()[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def test_the_trainers_commands_run(tmp_path):
    """One after the other: each works on what those before it left."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (block,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/trainer.md").read_text(), re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in block.splitlines():
        program, *rest = command.split()
        assert program == "python"
        done = subprocess.run(
            [sys.executable, *rest], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def test_every_command_in_the_table_exists():
    """And every command that exists is in the table."""
    from typer.main import get_command

    from trainwatch.cli import app

    told = set(re.findall(r"^\| `trainwatch (\w+)", README, re.MULTILINE))
    assert told == set(get_command(app).commands)


def test_every_link_and_picture_is_there():
    """Relative links lead somewhere."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_every_make_target_exists():
    """`make -n` knows each one that README names."""
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=True, timeout=60)

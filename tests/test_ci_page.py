"""The recipes of docs/ci.md: they parse, name what exists, and their commands run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/ci.md").read_text()
JOB, HOOKS = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
OFFERED = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
STEPS = JOB["jobs"]["smoke"]["steps"]


@pytest.fixture
def project(tmp_path, write_run, healthy):
    """A repository with a config and the log of a healthy run."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.yaml").write_text("lr: 0.001\nsteps: 1000\n")
    (tmp_path / "logs").mkdir()
    write_run(healthy()).replace(tmp_path / "logs" / "smoke.jsonl")
    return tmp_path


def shell(command, folder):
    """A step as the runner would take it."""
    program = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{program}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
    }
    return subprocess.run(
        ["bash", "-e", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_jobs_commands_run(project):
    commands = [
        step["run"] for step in STEPS if "trainwatch lint" in step.get("run", "") or " check " in step.get("run", "")
    ]
    assert len(commands) == 3
    for command in commands:
        done = shell(command, project)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    assert (project / "summary.md").read_text().startswith("## ✓ nothing found: healthy")
    written = json.loads((project / "trainwatch.sarif").read_text())
    assert written["version"] == "2.1.0"
    (upload,) = (step for step in STEPS if "upload-sarif" in step.get("uses", ""))
    assert upload["with"]["sarif_file"] == "trainwatch.sarif"


def test_a_sick_run_fails_the_job_and_leaves_its_sarif(project):
    log = project / "logs" / "smoke.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        if row["kind"] == "step" and row["step"] > 50:
            row["loss"], row["nonfinite"] = None, {"loss": "nan"}
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary, verdict = (step["run"] for step in STEPS if " check " in step.get("run", ""))
    assert shell(summary, project).returncode == 0
    assert "non-finite-loss" in (project / "summary.md").read_text()
    assert shell(verdict, project).returncode == 1
    results = json.loads((project / "trainwatch.sarif").read_text())["runs"][0]["results"]
    assert "non-finite-loss" in [result["ruleId"] for result in results]


def test_the_hooks_that_are_named_are_offered_and_run(project):
    named = {hook["id"]: hook for repository in HOOKS["repos"] for hook in repository["hooks"]}
    assert named.keys() == OFFERED.keys()
    files = {"trainwatch-lint": "configs/base.yaml", "trainwatch-check": "logs/smoke.jsonl"}
    for name, path in files.items():
        assert re.search(OFFERED[name]["files"], path)
        done = shell(" ".join([OFFERED[name]["entry"], *named[name].get("args", []), path]), project)
        assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(OFFERED["trainwatch-check"]["exclude"], "logs/smoke.rank1.jsonl")

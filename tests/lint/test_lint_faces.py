"""The command line of lint: exit codes, and each format."""

import json
import re

import pytest

from tests.lint.bad_configs import BAD
from trainwatch.cli import main
from trainwatch.lint.check import catalogue
from trainwatch.rule import page


@pytest.fixture(autouse=True)
def configs(tmp_path, monkeypatch):
    """A good and a bad config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/good.yaml").write_text("epochs: 3\nnum_samples: 100\nbatch_size: 10\n")
    (tmp_path / "conf/bad.yaml").write_text("seed: 1\nlr: 1e-4\n")
    return tmp_path


def test_text_is_a_place_what_and_what_to_write(capsys):
    """The place comes first, as terminals and editors open it."""
    assert main(["lint", "conf/bad.yaml"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("conf/bad.yaml:2:5  ")
    assert "numeric-string" in out
    assert "Write 1.0e-4." in out


def test_codes(capsys):
    """0 nothing, 1 something, 2 could not be judged, and why."""
    assert main(["lint", "conf/good.yaml"]) == 0
    assert "come to 30 steps" in capsys.readouterr().out
    assert main(["lint", "conf"]) == 1
    assert main(["lint", "conf/bad.yaml", "--fail-on", "critical"]) == 0
    assert main(["lint", "conf/gone.yaml"]) == 2
    assert "gone.yaml" in capsys.readouterr().err
    assert main(["lint"]) == 2
    assert "behind `--`" in capsys.readouterr().err


def test_json(capsys):
    """The same document as check's, strictly."""
    main(["lint", "conf", "--format", "json"])
    said = json.loads(capsys.readouterr().out)
    assert said["version"] == 1
    bad, good = said["runs"]
    assert (bad["worst"], good["worst"]) == ("warning", None)
    assert bad["findings"][0]["evidence"] == {"file": "conf/bad.yaml", "line": 2, "column": 5}
    assert bad["findings"][0]["patch"] == {"lr": 1e-4}
    assert bad["findings"][0]["subject"] == "config:lr"


def test_sarif_points_at_line_and_column(capsys):
    """A code host shows it beside the line."""
    main(["lint", "conf/bad.yaml", "--format", "sarif"])
    [run] = json.loads(capsys.readouterr().out)["runs"]
    [result] = run["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "conf/bad.yaml"}, "region": {"startLine": 2, "startColumn": 5}}
    assert run["tool"]["driver"]["rules"][0]["shortDescription"]["text"].startswith("A number")


def test_markdown_cannot_be_injected(configs, capsys):
    """Names in a config stay text."""
    (configs / "conf/bad.yaml").write_text('"<img src=x>|[a](http://b)_steps": 1\nx: {"<b>lr": 1e-4}\n')
    main(["lint", "conf/bad.yaml", "--format", "markdown"])
    out = capsys.readouterr().out
    assert "<b>" not in out
    assert "&lt;b&gt;" in out


def test_no_escape_reaches_the_terminal(configs, capsys):
    """Nothing in a config moves the cursor."""
    (configs / "conf/bad.yaml").write_text('"\\e[31mlr": "24"\nlr: 1e-4\n')
    main(["lint", "conf/bad.yaml"])
    assert "\x1b" not in capsys.readouterr().out


def test_a_command(configs, capsys):
    """What stands behind -- is not parsed as ours."""
    (configs / "train.py").write_text("x = 1\n")
    assert main(["lint", "--format", "json", "--", "python", "train.py", "--config", "conf/bda.yaml", "--help"]) == 1
    [said] = json.loads(capsys.readouterr().out)["runs"]
    assert said["findings"][0]["evidence"]["column"] == len("python train.py ") + 1


def test_scripts_beside_configs_are_compared(configs, capsys):
    """The curriculum that is imported against the one that is named."""
    (configs / "train.py").write_text("from c import DEFAULT_CURRICULUM\n")
    (configs / "conf/x.yaml").write_text("curriculum: EXTENDED\n")
    assert main(["lint", "conf/x.yaml", "train.py"]) == 1
    assert "curriculum-choice" in capsys.readouterr().out


def test_a_config_that_is_named_for_another_curriculum(configs, capsys):
    """The published mistake: optimized_extended.yaml says only use_curriculum, and the script imports another."""
    (configs / "src").mkdir()
    for name in ("DELAYED", "EXTENDED"):
        (configs / f"src/curriculum_{name.lower()}.py").write_text(f"{name}_CURRICULUM = []\n")
    (configs / "conf/optimized_extended.yaml").write_text("seed: 1\nuse_curriculum: true\n")
    script = configs / "train.py"
    script.write_text("from src.curriculum_delayed import DELAYED_CURRICULUM\n")
    assert main(["lint", "conf/optimized_extended.yaml", "train.py"]) == 1
    out = capsys.readouterr().out
    assert "conf/optimized_extended.yaml:2:17" in out
    assert "named for the curriculum EXTENDED" in out
    script.write_text("from src.curriculum_extended import EXTENDED_CURRICULUM\n")
    assert main(["lint", "conf/optimized_extended.yaml", "train.py"]) == 0


def test_a_recorded_run(tmp_path, capsys):
    """The rules that judge headers, and the checks, on the config in the record."""
    stages = [{"start": 0, "end": 900, "name": "a"}, {"start": 900, "end": 9000, "name": "b"}]
    header = {
        "kind": "run",
        "schema": 1,
        "time": 1.0,
        "elapsed": 0.0,
        "run": "x",
        "id": "1",
        "attempt": 1,
        "total_steps": 500,
        "curriculum": {"name": "LONG", "stages": stages},
        "config": {"optim": {"lr": "1e-4"}, "warmup_steps": 900, "total_steps": 500},
    }
    rows = [{"kind": "step", "time": 2.0, "elapsed": 1.0, "step": 1, "loss": 1.0}]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, [header, *rows])) + "\n")
    assert main(["lint", str(path), "--format", "json"]) == 1
    [said] = json.loads(capsys.readouterr().out)["runs"]
    named = {item["rule"] for item in said["findings"] if item["severity"] != "info"}
    assert named == {"curriculum-unreachable", "numeric-string", "absolute-horizon"}


def test_every_check_has_a_page_and_a_bad_config():
    """In the parts of a rule's page."""
    of_commands = {"bad-flag", "bad-override", "missing-config", "architecture-choice"}
    of_scripts = {"curriculum-choice", "hard-coded", "coded-horizon"}
    only_mentioned = {"unusual-rate", "risky-defaults"}
    elsewhere = of_commands | of_scripts | only_mentioned
    for name, check in catalogue().items():
        said = page(check)
        assert {"What it sees", "Why it matters", "What to do"} <= said.keys(), name
        assert re.match(r"[A-Z]", said[""])
        assert name in elsewhere | {item[2] for item in BAD}


def test_the_page_of_a_check(capsys):
    """Found like a rule's."""
    assert main(["rules", "numeric-string"]) == 0
    assert "YAML 1.1" in capsys.readouterr().out


def test_this_projects_own_configs(capsys):
    """They name their schema."""
    from pathlib import Path

    assert main(["lint", str(Path(__file__).parents[2] / "configs")]) == 0
    assert "nothing found" in capsys.readouterr().out

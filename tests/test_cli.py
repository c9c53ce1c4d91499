"""What users type, and what they get: exit codes, one sentence on stderr, strict JSON, plain text in a pipe."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainwatch import engine
from trainwatch import judge as judging
from trainwatch.cli import main
from trainwatch.errors import sentence

RUN = {"kind": "run", "schema": 1, "run": "sick", "id": "r1", "time": 1e9, "elapsed": 0.0, "total_steps": 200}


def stages(weight: float) -> list[dict]:
    return [{"start": 0, "end": 100, "weights": {"a": 1.0}}, {"start": 100, "end": 200, "weights": {"a": weight}}]


def sick_run(name: str = "sick") -> list[dict]:
    """A run that declares one curriculum and runs another."""
    plans = {
        "curriculum": {"name": "EXTENDED", "sha256": "aa", "stages": stages(1.0)},
        "curriculum_running": {"name": "DEFAULT", "sha256": "bb", "stages": stages(0.5)},
    }
    rows = [
        {"kind": "step", "time": 1e9 + step, "elapsed": step, "step": step, "applied": step, "loss": 1.0 + 1 / step}
        for step in range(1, 121)
    ]
    return [{**RUN, "run": name, **plans}, *rows, {"kind": "end", "status": "stopped", "step": 120}]


@pytest.fixture
def sick(write_run):
    return write_run(sick_run(), "sick.jsonl")


@pytest.fixture
def fine(write_run, healthy):
    return write_run(healthy(), "fine.jsonl")


@pytest.fixture(autouse=True)
def _a_pipe_has_no_width(monkeypatch):
    """pytest-xdist tells its workers how wide the terminal is."""
    monkeypatch.delenv("COLUMNS", raising=False)


def said(capsys) -> tuple[str, list[str]]:
    out, err = capsys.readouterr()
    return out, err.splitlines()


def test_a_sick_run_exits_1_and_names_its_root_cause(sick, capsys):
    assert main(["check", str(sick)]) == 1
    out, err = said(capsys)
    first, root, *_ = out.splitlines()
    assert first.startswith("✖ critical  sick  stopped, steps 1 to 120 of 200")
    assert root.startswith("Root cause, since step 0: ")
    assert "EXTENDED" in root
    assert err == []
    assert "\x1b" not in out


def test_a_healthy_run_exits_0(fine, capsys):
    assert main(["check", str(fine)]) == 0
    assert said(capsys)[0].startswith("✓ nothing found  healthy")


@pytest.mark.parametrize(("limit", "code"), [("info", 1), ("warning", 1), ("critical", 1), ("never", 0)])
def test_fail_on(sick, limit, code):
    assert main(["check", str(sick), "--fail-on", limit]) == code


def test_json_is_strict_and_has_every_field(sick, fine, capsys):
    assert main(["check", str(sick), str(fine), "--format", "json"]) == 1
    whole = json.loads(said(capsys)[0], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert whole["version"] == 1
    one, other = whole["runs"]
    assert list(one) == [
        *("source", "format", "run", "status", "first_step", "last_step", "records", "worst", "root_cause"),
        *("findings", "withheld", "notes"),
    ]
    assert one["root_cause"]["rule"] == "curriculum-mismatch"
    assert one["findings"][0] == one["root_cause"]
    assert other["root_cause"] is None


def test_a_folder_stands_for_its_runs_and_a_rank_for_its_run(sick, fine, write_run, capsys):
    rank = write_run([{**RUN, "run": "sick", "rank": 1}], "sick.rank1.jsonl")
    assert main(["check", str(sick.parent), str(rank), str(sick), "--format", "json"]) == 1
    sources = [run["source"] for run in json.loads(said(capsys)[0])["runs"]]
    assert sources == [str(fine), str(sick)]


BAD = {
    "empty.jsonl": (b"", "is empty"),
    "photo.jpg": (b"\xff\xd8\xff\xe0 something", "JPEG"),
    "array.json": (b'[{"loss": 1}]', "JSON array"),
    "newer.jsonl": (json.dumps({**RUN, "schema": 99}).encode(), "update trainwatch"),
    "binary.bin": (b"\x00\x01\x02\x03", "binary"),
    "notes.txt": (b"dear diary\n", "text of another format"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("format_", ["text", "json", "markdown", "sarif"])
def test_a_file_that_is_no_run_is_one_sentence(tmp_path, capsys, name, format_):
    content, why = BAD[name]
    (tmp_path / name).write_bytes(content)
    assert main(["check", str(tmp_path / name), "--format", format_]) == 2
    out, err = said(capsys)
    assert len(err) == 1
    assert why in err[0]
    assert name in err[0]
    if format_ == "json":
        assert json.loads(out) == {"version": 1, "runs": []}
    elif format_ != "sarif":
        assert out == ""


def test_what_can_be_judged_is_judged_beside_what_cannot(sick, tmp_path, capsys):
    assert main(["check", str(tmp_path / "no.jsonl"), str(sick), "--format", "json"]) == 2
    out, err = said(capsys)
    assert len(json.loads(out)["runs"]) == 1
    assert len(err) == 1


def test_missing_paths_name_the_nearest(sick, tmp_path, capsys):
    assert main(["check", str(tmp_path / "sik.jsonl")]) == 2
    assert f"did you mean {sick}?" in said(capsys)[1][0]
    (tmp_path / "none").mkdir()
    assert main(["check", str(tmp_path / "none")]) == 2
    assert "holds no run file" in said(capsys)[1][0]


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["chek", "x"], "did you mean 'check'?"),
        (["check", "--formt", "json", "x"], "did you mean --format?"),
        (["check"], "`trainwatch check --help`"),
        (["check", "x", "--format", "yaml"], "'text', 'json', 'markdown', 'sarif'"),
        (["check", "x", "--set", "growth=1"], "rule.field=value"),
        (["check", "x", "--set", "aggresive-ramp.growth=1"], "did you mean 'aggressive-ramp'?"),
        (["check", "x", "--set", "aggressive-ramp.grwth=1"], "did you mean 'growth'?"),
        (["rules", "curriculum-mismach"], "did you mean 'curriculum-mismatch'?"),
        (["compare", "x"], "at least two"),
        (["report", "x"], "no such file"),
        (["dash", "nowhere"], "no such folder"),
        (["demo", "--port", "99999999"], "--port"),
    ],
)
def test_wrong_usage_is_one_sentence_with_a_remedy(arguments, remedy, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = said(capsys)
    assert out == ""
    assert len(err) == 1
    assert remedy in err[0]


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (
            ["report", "sick.jsonl", "--format", "markdown", "-o", "x.html"],
            "--format says markdown; name the file x.md",
        ),
        (["report", "sick.jsonl", "--format", "json", "-o", "x.html"], "'json' is not one of 'html', 'markdown'"),
        (["report", "sick.jsonl", "-o", "x.pdf"], "a report ends in .html or .md, not '.pdf'"),
        (["compare", "sick.jsonl", "fine.jsonl", "--format", "json", "-o", "x.html"], "name the file x.json"),
        (["compare", "sick.jsonl", "fine.jsonl", "--format", "text", "-o", "x.md"], "leave -o out, or leave --format"),
        (["compare", "sick.jsonl", "fine.jsonl", "-o", "x.csv"], "ends in .html, .md or .json, not '.csv'"),
        (["prescribe", "sick.jsonl", "-o", "x.json"], "a patch ends in .yaml or .yml"),
    ],
)
def test_a_file_whose_name_and_format_disagree_is_not_written(arguments, remedy, sick, fine, capsys, monkeypatch):
    monkeypatch.chdir(sick.parent)
    assert fine.parent == sick.parent
    assert main(arguments) == 2
    out, err = said(capsys)
    assert (out, len(err)) == ("", 1)
    assert remedy in err[0]
    assert not list(sick.parent.glob("x.*"))


def test_the_format_that_a_file_is_asked_for(sick, fine, capsys, monkeypatch):
    monkeypatch.chdir(sick.parent)
    assert main(["compare", "sick.jsonl", fine.name, "--format", "json", "-o", "x.json"]) == 0
    assert main(["compare", "sick.jsonl", fine.name, "-o", "y.json"]) == 0
    written = json.loads(Path("x.json").read_text())
    assert written["version"] == 1
    assert written == json.loads(Path("y.json").read_text())
    assert main(["report", "sick.jsonl", "--format", "markdown"]) == 0
    assert Path("sick.md").read_text().startswith("#")
    assert main(["report", "sick.jsonl", "--format", "html", "-o", "x.htm"]) == 0
    assert Path("x.htm").read_text().startswith("<!")
    capsys.readouterr()


def test_a_fault_of_our_own_asks_for_a_report(sick, capsys, monkeypatch):
    monkeypatch.setattr(judging, "read_all", lambda _: 1 / 0)
    assert main(["check", str(sick)]) == 2
    (line,) = said(capsys)[1]
    assert "ZeroDivisionError" in line
    assert "please report" in line
    assert "please report" in sentence(RuntimeError("x"))


@pytest.mark.usefixtures("sick")
def test_thresholds_come_from_pyproject_and_set_wins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.trainwatch]\noff = ["curriculum-mismatch"]\n')
    main(["check", "sick.jsonl", "--format", "json"])
    found = json.loads(said(capsys)[0])["runs"][0]["findings"]
    assert "curriculum-mismatch" not in {finding["rule"] for finding in found}
    (tmp_path / "pyproject.toml").write_text("[tool.trainwatch.aggressive-ramp]\ngrowth = 7\n")
    assert judging.settings(["aggressive-ramp.growth=9"]).thresholds == {"aggressive-ramp": {"growth": 9}}
    assert judging.settings().thresholds == {"aggressive-ramp": {"growth": 7}}


@pytest.mark.parametrize(
    "content",
    ["[tool.trainwatch]\noff = 3\n", "[tool.trainwatch]\ngrowth = 3\n", "[tool.trainwatch]\noff = ['x']\n", "["],
)
@pytest.mark.usefixtures("sick")
def test_a_wrong_pyproject_is_one_sentence(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text(content)
    assert main(["check", "sick.jsonl"]) == 2
    assert len(said(capsys)[1]) == 1


@pytest.mark.parametrize("width", [40, 60, 80, 140])
@pytest.mark.parametrize("command", [["check"], ["list"], ["compare"]])
@pytest.mark.usefixtures("fine")
def test_nothing_is_wider_than_the_terminal(command, width, sick, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(sick.parent)
    paths = {"check": ["sick.jsonl", "fine.jsonl"], "list": ["."], "compare": ["sick.jsonl", "fine.jsonl"]}
    main([*command, *paths[command[0]]])
    out = said(capsys)[0]
    long = [line for line in out.splitlines() if len(line) > width]
    assert long == []


def test_names_from_a_log_move_no_cursor_and_set_no_colour(write_run, capsys):
    path = write_run(sick_run("\x1b[31mred\x1b]0;title\x07 [bold]x[/bold]\r\u202e <script>"), "evil.jsonl")
    for format_ in ("text", "markdown", "json"):
        main(["check", str(path), "--format", format_])
        out = said(capsys)[0]
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)
        assert "[bold]" in out.replace("\\", "")
        assert format_ != "markdown" or "<script>" not in out


def test_markdown_and_sarif(sick, capsys):
    main(["check", str(sick), "--format", "markdown"])
    assert said(capsys)[0].startswith("## ✖ critical: sick")
    main(["check", str(sick), "--format", "sarif"])
    log = json.loads(said(capsys)[0])
    assert log["version"] == "2.1.0"
    result = log["runs"][0]["results"][0]
    assert (result["ruleId"], result["level"]) == ("curriculum-mismatch", "error")
    assert log["runs"][0]["tool"]["driver"]["rules"][0]["id"] in {item["ruleId"] for item in log["runs"][0]["results"]}


@pytest.fixture
def broken_rule(monkeypatch):
    """A rule that raises on every run."""
    monkeypatch.setattr(engine.catalogue()["curriculum-mismatch"], "start", lambda *_: 1 / 0)


@pytest.mark.usefixtures("broken_rule")
@pytest.mark.parametrize("format_", ["text", "json", "markdown", "sarif"])
def test_a_rule_that_broke_exits_2_and_is_named(sick, format_, capsys):
    assert main(["check", str(sick), "--format", format_, "--fail-on", "never"]) == 2
    out, err = said(capsys)
    assert len(err) == 1
    assert "sick.jsonl: 1 rule broke and was left out: curriculum-mismatch (ZeroDivisionError" in err[0]
    if format_ in ("text", "markdown"):
        assert "1 rule broke" in out
        assert "curriculum-mismatch broke on it" in out.replace("\\", "")
        assert "nothing found" not in out
        assert "\u2713" not in out


@pytest.mark.usefixtures("broken_rule", "fine")
def test_list_and_compare_do_not_call_a_run_fine_whose_rule_broke(sick, capsys):
    main(["list", str(sick.parent)])
    main(["compare", str(sick), str(sick.parent / "fine.jsonl")])
    out = said(capsys)[0]
    assert "1 rule broke" in out
    assert "curriculum-mismatch broke" in out
    assert "nothing found" not in out


@pytest.mark.usefixtures("sick", "fine")
def test_a_narrow_list_has_two_lines_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["list", str(tmp_path)]) == 0
    lines = said(capsys)[0].splitlines()
    assert len(lines) == 4
    assert "\u2716 critical  sick" in lines
    assert any(re.match(r"  stopped, steps 1 to 120, \d+ \w+ ago", line) for line in lines)


def test_the_dashboard_judges_with_the_settings_that_check_has(tmp_path, monkeypatch):
    dashboard = pytest.importorskip("dashboards.app")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.trainwatch]\noff = ["curriculum-mismatch"]\n')
    given = {}
    monkeypatch.setattr(dashboard, "serve", lambda folder, **more: given.update(more, folder=folder))
    assert main(["dash", "."]) == 0
    assert given["settings"].off == {"curriculum-mismatch"}


@pytest.mark.usefixtures("fine")
def test_list_shows_every_run(sick, capsys):
    assert main(["list", str(sick.parent)]) == 0
    out = said(capsys)[0]
    assert re.search(r"^sick +stopped +120 / 200 .*critical curriculum-mismatch", out, re.MULTILINE)
    assert re.search(r"^healthy \(fine.jsonl\) +finished", out, re.MULTILINE)


def test_list_of_nothing_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["list"]) == 2
    assert "name the folder" in said(capsys)[1][0]


def test_rules_has_a_page_for_every_rule(capsys):
    assert main(["rules"]) == 0
    assert "curriculum-mismatch" in said(capsys)[0]
    assert main(["rules", "aggressive-ramp"]) == 0
    page = said(capsys)[0]
    for part in ("What it sees", "What to do", "Thresholds", "growth = ", "Needs", "Would explain"):
        assert part in page


@pytest.mark.parametrize("command", ["demo", "list", "check", "compare", "report", "dash", "rules"])
def test_every_help_has_an_example_and_exit_codes(command, capsys):
    assert main([command, "--help"]) == 0
    out = said(capsys)[0]
    assert f"trainwatch {command}" in out
    assert "xample" in out
    assert "Exit codes" in out


def test_no_arguments_is_help(capsys):
    assert main([]) == 0
    assert "Usage: trainwatch" in said(capsys)[0]


def test_check_loads_nothing_heavy(sick):
    code = (
        "import sys; from trainwatch.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'pandas', 'plotly', 'dash', 'jinja2'} & set(sys.modules);"
        "sys.exit(f'{heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, "check", str(sick)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_closed_pipe_is_no_error(sick):
    command = (
        f"{sys.executable} -c 'import sys; from trainwatch.cli import main; sys.exit(main())' check {sick} | head -c 1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
    assert done.stderr == b""


def test_the_package_is_the_command():
    """`python -m trainwatch` where the console script is not on the path."""
    done = subprocess.run([sys.executable, "-m", "trainwatch", "rules", "lr-zero"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "What it sees" in done.stdout

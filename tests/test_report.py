"""The post-mortem: self-contained, complete, and safe to open whatever a log calls itself."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from trainwatch.cli import main
from trainwatch.diagnosis import diagnose
from trainwatch.report.content import gather

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """The scripts of a page, and what any tag would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict, str]] = []
        self.loads: list[str] = []
        self.policy = ""
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append((attributes, ""))
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]
        self.loads += [f"{tag} {name}" for name in attributes if name in ("src", "srcset") or name.startswith("on")]
        self.loads += [tag] if tag in ("link", "iframe", "object", "embed", "base", "img") else []

    def handle_data(self, data):
        if self._in_script:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)

    def handle_endtag(self, _tag):
        self._in_script = False


def records(name: str = "broken") -> list[dict]:
    """A run with a curriculum, checkpoints, a NaN at step 150 and a crash at step 200."""
    stages = [{"start": 0, "end": 50, "name": "warm"}, {"start": 50, "end": 300, "name": name}]
    head = {
        "kind": "run",
        "schema": 1,
        "run": name,
        "id": "x",
        "time": 1e9,
        "total_steps": 300,
        "config": {"optimizer": {"lr": 0.001}, name: name},
        "command": ["python", "train.py", name],
        "curriculum": {"name": name, "stages": stages},
        "device": {"name": name, "memory": 2**30},
        "git": {"commit": "abc", "dirty": True},
        "packages": {"torch": "2.13.0"},
        "components": {name: {}},
    }
    rows: list[dict] = [head]
    for step in range(1, 201):
        loss = float("nan") if step >= 150 else 1 / step
        rows.append({"kind": "step", "time": 1e9 + step, "step": step, "loss": loss, "loss/a": loss, "loss/b": 1.0})
        if step in (100, 180):
            rows.append({"kind": "checkpoint", "step": step, "path": f"{step}-{name}.pt", "best": step == 100})
    exception = {"type": "ValueError", "message": name, "traceback": f'Traceback:\n  File "a.py"\nValueError: {name}'}
    return [*rows, {"kind": "end", "status": "failed", "step": 200, "exception": exception}]


@pytest.fixture
def page(write_run, tmp_path):
    def made(lines, name="run.jsonl") -> str:
        target = tmp_path / "out" / "report.html"
        assert main(["report", str(write_run(lines, name)), "-o", str(target)]) == 0
        return target.read_text(encoding="utf-8")

    return made


def test_the_page_tells_the_story(page):
    text = page(records())
    for piece in (
        *("Post-mortem", "critical", "non-finite-loss", "Root cause, since step 150", "100-broken.pt, of step 100"),
        *("Timeline", "Traceback", "optimizer.lr", "abc", "torch 2.13.0", "1.0 GiB", "could not judge"),
        *("trainwatch check", "What to do", "data-figure", "2001-09-09 01:49:10 UTC"),
    ):
        assert piece in text, piece


def test_the_page_needs_no_network_and_runs_only_what_we_wrote(page):
    text = page(records())
    found = Page(text)
    assert found.loads == []
    ours = [script for attributes, script in found.scripts if attributes.get("type") != "application/json"]
    assert len(ours) == 2
    for script in ours:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in found.policy
    assert found.policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in found.policy
    assert "@import" not in text
    assert "prefers-color-scheme:dark" in text
    assert "@media print" in text


def test_names_from_a_log_stay_text(page, write_run, tmp_path):
    found = Page(page(records(EVIL)))
    assert found.loads == []
    assert len([attributes for attributes, _ in found.scripts if attributes.get("type") != "application/json"]) == 2
    target = tmp_path / "report.md"
    assert main(["report", str(write_run(records(EVIL))), "-o", str(target)]) == 0
    outside = re.sub(r"```.*?```|`+[^`\n]+`+", "", target.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "<script" not in outside
    assert "<img" not in outside


def test_the_diagnosis_is_in_the_page_for_machines(page):
    found = Page(page(records(EVIL)))
    data = next(text for attributes, text in found.scripts if attributes.get("id") == "trainwatch")
    whole = json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert whole["version"] == 1
    assert whole["runs"][0]["root_cause"]["rule"] == "non-finite-loss"


def test_a_healthy_run_has_a_report_as_well(page, healthy):
    text = page(healthy())
    assert "nothing found" in text
    assert "The whole run" in text
    assert "resumed from" in text


@pytest.mark.parametrize("suffix", ["html", "md"])
@pytest.mark.parametrize("cut", [1, 2, 3, 100])
def test_an_unfinished_run_has_a_report(cut, suffix, write_run, tmp_path):
    path = write_run(records()[:cut])
    assert main(["report", str(path), "-o", str(tmp_path / f"r.{suffix}")]) == 0
    assert (tmp_path / f"r.{suffix}").stat().st_size > 500


def test_markdown_has_the_same_story(write_run, tmp_path):
    target = tmp_path / "r.md"
    assert main(["report", str(write_run(records())), "-o", str(target)]) == 0
    text = target.read_text(encoding="utf-8")
    for piece in (
        "# Post-mortem of broken",
        "Root cause, since step 150",
        "## Timeline",
        "## Traceback",
        "| checkpoint |",
    ):
        assert piece in text


def test_the_report_lies_beside_the_run_unless_told_otherwise(write_run, capsys):
    path = write_run(records())
    assert main(["report", str(path)]) == 0
    assert path.with_suffix(".html").is_file()
    assert str(path.with_suffix(".html")) in capsys.readouterr().out
    assert sorted(item.name for item in path.parent.iterdir()) == ["run.html", "run.jsonl"]


def test_the_timeline_is_in_order_and_keeps_what_matters(play):
    run = play(records())
    content = gather(run, diagnose(run))
    steps = [moment.step for moment in content.moments]
    assert steps == sorted(steps)
    kinds = [moment.kind for moment in content.moments]
    assert {"finding", "stage", "checkpoint", "end"} <= set(kinds)
    assert kinds.count("checkpoint") == 2
    assert content.good_checkpoint.endswith("of step 100.")


ODD = [
    {"config": [1], "git": "abc", "device": None, "packages": ["a"], "command": "x", "curriculum": 3, "python": 3},
    {
        "config": "x",
        "git": {"a": {"b": []}},
        "device": {"memory": "big"},
        "packages": {"a": None},
        "command": [1, None],
    },
    {"run": ["x"], "config": {"a": {}, "": 1}, "curriculum": {"stages": [3, {"start": 1}]}, "components": [1]},
    {"time": 1e300, "host": "\ud800", "dtypes": 1e300, "world_size": -1, "schedules": {"lr": 3}},
]


@pytest.mark.parametrize("odd", ODD)
def test_headers_of_the_wrong_form_do_not_break_it(odd, write_run, tmp_path):
    head, *rest = records()
    events = [{"kind": "event", "event": "oom", "step": "x"}, {"kind": "event", "event": None, "time": "y"}]
    path = write_run([{**head, **odd}, *events, {"kind": "checkpoint"}, *rest, {"kind": "end", "exception": 3}])
    for suffix in ("html", "md"):
        assert main(["report", str(path), "-o", str(tmp_path / f"odd.{suffix}")]) == 0
    twin = write_run([{**head, **odd}, *rest], "twin.jsonl")
    assert main(["compare", str(path), str(twin)]) == 0
    assert main(["list", str(tmp_path)]) == 0

"""The post-mortem: self-contained, complete, and safe to open whatever a log calls itself."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest

from trainwatch.cli import main
from trainwatch.diagnosis import diagnose
from trainwatch.figures import FIGURES
from trainwatch.figures.interventions import interventions
from trainwatch.report.content import gather
from trainwatch.report.moments import moments

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
    def made(lines, *options) -> str:
        target = tmp_path / "out" / "report.html"
        assert main(["report", str(write_run(lines)), "-o", str(target), *options]) == 0
        return target.read_text(encoding="utf-8")

    return made


def test_the_page_tells_the_story(page):
    text = page(records())
    for piece in (
        *("Post-mortem", "critical", "non-finite-loss", "Root cause, since step 150", "100-broken.pt, of step 100"),
        *("Timeline", "Traceback", "optimizer.lr", "abc", "torch 2.13.0", "1.0 GiB", "could not judge"),
        *("trainwatch check", "What to do", "<svg role=", "2001-09-09 01:49:10 UTC"),
        *("The chain of events", "Quality of the log", "Difference to the last healthy run", "Reproduce it"),
    ):
        assert piece in text, piece


def test_the_page_runs_nothing_and_loads_nothing(page):
    text = page(records())
    found = Page(text)
    assert found.loads == []
    assert [attributes.get("id") for attributes, _ in found.scripts] == ["trainwatch"]
    assert "script-src 'none'" in found.policy
    assert "https://" not in text
    assert len(text.encode()) < 1_000_000


def test_an_interactive_page_needs_no_network_and_runs_only_what_we_wrote(page):
    text = page(records(), "--interactive")
    found = Page(text)
    assert found.loads == []
    assert "data-figure" in text
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


@pytest.mark.parametrize("options", [(), ("--interactive",), ("--redact",)])
def test_names_from_a_log_stay_text(options, page, write_run, tmp_path):
    found = Page(page(records(EVIL), *options))
    assert found.loads == []
    ours = [attributes for attributes, _ in found.scripts if attributes.get("type") != "application/json"]
    assert len(ours) == (2 if options == ("--interactive",) else 0)
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
    assert "Loss and gradient" in text
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


def test_what_the_recorder_tells_is_told_in_its_words(play):
    """What stands beside the sentence is for rules."""
    told = {"kind": "event", "event": "monitor", "step": 1, "message": "no gradient has reached grip"}
    run = play([{"kind": "run", "schema": 1}, {"kind": "step", "step": 1, "loss": 1.0}, told | {"unreached": ["grip"]}])
    (moment,) = [one for one in moments(run, diagnose(run)) if one.kind == "monitor"]
    assert moment.text == "no gradient has reached grip"


def test_every_figure_has_its_place(play):
    run = play(records())
    placed = [name for section in gather(run, diagnose(run)).sections for name in section.figures]
    assert set(placed) == set(FIGURES)


@pytest.mark.parametrize(("step", "told"), [(120, 120), (-3, 200), (1e300, 200), (1_000_000, 200), ("odd", 200)])
def test_an_intervention_stands_at_one_step_in_story_and_plots(step, told, play):
    asked = {"kind": "event", "event": "intervention", "step": step, "what": "halved the rate"}
    run = play([*records(), asked])
    (moment,) = (one for one in moments(run, diagnose(run)) if one.kind == "intervention")
    assert (moment.step, moment.text) == (told, "what halved the rate")
    assert [one.step for one in interventions(run)] == [told]


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


def test_markdown_has_the_sections_of_the_page(page, write_run, tmp_path):
    html, target = page(records()), tmp_path / "r.md"
    assert main(["report", str(write_run(records())), "-o", str(target)]) == 0
    titles = re.findall(r"<h2>([^<]+)</h2>|<summary>([^<]+)</summary>", html)
    told = [title for pair in titles for title in pair if title and not title.endswith("moments")]
    assert len(told) > 8
    shown = re.findall(r"^## (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(told) - set(shown) <= {"Gradients and steps", "The machine"}  # of figures alone


def test_several_runs_make_one_report(write_run, healthy, tmp_path, capsys):
    write_run(records(), "sick.jsonl")
    write_run(healthy(), "well.jsonl")
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "post-mortem.html").read_text(encoding="utf-8")
    assert str(tmp_path / "post-mortem.html") in capsys.readouterr().out
    assert "Post-mortem of 2 runs" in text
    for number in (1, 2):
        assert f'href="#run-{number}"' in text
        assert f'id="run-{number}"' in text
    assert len(set(re.findall(r' id="([^"]+)"', text))) == len(re.findall(r' id="([^"]+)"', text))
    data = next(text for attributes, text in Page(text).scripts if attributes.get("id") == "trainwatch")
    assert len(json.loads(data)["runs"]) == 2
    target = tmp_path / "both.md"
    assert main(["report", str(tmp_path / "sick.jsonl"), str(tmp_path / "well.jsonl"), "-o", str(target)]) == 0
    assert "# Post-mortem of 2 runs" in target.read_text(encoding="utf-8")


def test_what_cannot_be_read_does_not_take_the_others_down(write_run, tmp_path, capsys):
    write_run(records(), "sick.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    both = [str(tmp_path / name) for name in ("sick.jsonl", "empty.jsonl")]
    assert main(["report", *both, "-o", str(tmp_path / "r.html")]) == 2
    assert (tmp_path / "r.html").is_file()
    assert "empty.jsonl" in capsys.readouterr().err


def test_the_config_is_held_against_the_last_healthy_run(write_run, healthy, tmp_path):
    told = {"run": "broken", "config": {"optimizer": {"lr": 0.001}, "clip": 1.0}}
    well = [{**line, **told} if line["kind"] == "run" else line for line in healthy()]
    write_run(well, "broken.jsonl")
    sick = write_run(records(), "broken-2.jsonl")
    assert main(["report", str(sick), "-o", str(tmp_path / "r.md")]) == 0
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "| `clip` | 1 | \\(absent\\) |" in text or "| `clip` | 1 | (absent) |" in text
    assert f"trainwatch compare {tmp_path / 'broken.jsonl'} {sick}" in text


def test_a_run_of_another_name_is_no_twin(write_run, healthy, tmp_path):
    write_run(healthy(), "other.jsonl")
    sick = write_run(records(), "broken.jsonl")
    assert main(["report", str(sick), "-o", str(tmp_path / "r.md")]) == 0
    assert "No other run called broken in its folder" in (tmp_path / "r.md").read_text(encoding="utf-8")


def test_a_run_that_never_started_tells_its_attempts(write_run, tmp_path):
    head = records()[0]

    def attempt(at: int, kind: str, message: str) -> list[dict]:
        exception = {"type": kind, "message": message, "traceback": f"Traceback:\n{kind}: {message}"}
        return [
            {**head, "time": 1e9 + at},
            {"kind": "event", "event": "exception", **exception},
            {"kind": "end", "status": "failed", "exception": exception},
        ]

    lines = attempt(1, "ConfigError", "no key lr") + attempt(2, "ConfigError", "no key lr")
    lines += attempt(3, "FileNotFoundError", "data.csv")
    path = write_run(lines)
    for suffix in ("html", "md"):
        target = tmp_path / f"r.{suffix}"
        assert main(["report", str(path), "-o", str(target)]) == 0
        text = target.read_text(encoding="utf-8")
        assert "3 attempts, and no step was ever taken" in text
        assert "Mend this first: ConfigError: no key lr." in text
        assert text.index("Kinds of error") < text.index("Findings, from cause to effect")
    assert "| ConfigError: no key lr | 2 |" in text
    assert "| FileNotFoundError: data.csv | 1 |" in text


def test_the_quality_of_the_log_is_told(write_run, tmp_path):
    lines = [line for line in records() if not 60 < line.get("step", 0) < 90]
    again = [{**records()[0], "resumed_from": 170, "time": 1e9 + 999}]
    more = [{"kind": "step", "time": 1e9 + 1000 + step, "step": step, "loss": 1.0} for step in range(171, 190)]
    path = write_run([*lines, *again, *more])
    with path.open("a") as file:
        file.write('{"kind": "step", "step": 190, "lo')
    assert main(["report", str(path), "-o", str(tmp_path / "r.md")]) == 0
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    for piece in (
        "cut off in the middle",
        "1 gap in the steps, the longest from step 60 to 90",
        "30, replaced after 1 resume",
        "missing: the process left no last word",
    ):
        assert piece in text, piece


def test_the_commands_in_the_report_are_ours(write_run, tmp_path):
    path = write_run(records())
    target = tmp_path / "r.md"
    assert main(["report", str(path), "--set", "non-finite-loss.quiet=3", "-o", str(target)]) in (0, 2)
    assert main(["report", str(path), "-o", str(target)]) == 0
    commands = re.findall(r"\| `+ ?(trainwatch [^`|]+?) ?(?:\\\||`)", target.read_text(encoding="utf-8"))
    known = {"check", "rules", "report", "compare", "dash", "export"}
    assert {command.split()[1] for command in commands} <= known
    checks = [command for command in commands if command.split()[1] in ("check", "rules")]
    assert checks
    for command in dict.fromkeys(checks):
        assert main(command.split()[1:]) in (0, 1), command


def test_a_hundred_figures_stay_below_a_megabyte(write_run, tmp_path):
    """Channels, stages and findings without end: what has no room is counted."""
    names = [f"part{index}" for index in range(60)]
    head = {**records()[0], "components": {name: {} for name in names}}
    noise = [math.sin(step * 12.9898) for step in range(1, 1200)]
    rows = [
        {
            "kind": "step",
            "step": step,
            "loss": 1.0 + value,
            **{
                f"{kind}/{name}": 2.0 + value
                for name in names
                for kind in ("loss", "grad_norm", "absmax", "lr", "time")
            },
        }
        for step, value in enumerate(noise, 1)
    ]
    path = write_run([head, *rows])
    assert main(["report", str(path), "-o", str(tmp_path / "r.html")]) == 0
    assert 100_000 < (tmp_path / "r.html").stat().st_size < 1_000_000

"""What the window shows: the verdict first, all of it within the window, and nothing that a log could do to it."""

from __future__ import annotations

import io
import os

import pytest
from rich.console import Console

from trainwatch.watch import frame
from trainwatch.watch.board import Board

EVALS = [
    {"kind": "eval", "step": 50, "split": "valid", "loss": 2.5, "metric/recall": 0.5},
    {"kind": "eval", "step": 100, "split": "valid", "loss": 2.25, "metric/recall": 0.75},
]


def shown(target, width=100, height=40, *keys):
    """The frame as text, line by line."""
    board = Board(target)
    board.look(60.0)
    for key in keys:
        board.press(key)
    out = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, legacy_windows=False)
    lines = board.lines(out, height)
    assert width < 60 or all(line.cell_len <= width for line in lines)  # what is narrower is cut by the window
    assert height is None or len(lines) <= height
    return [line.plain.rstrip() for line in lines]


@pytest.fixture
def run(tmp_path, put, sick):
    return put(tmp_path / "a.jsonl", [*sick(), *EVALS])


def test_the_verdict_stands_first_then_progress_and_the_root_cause(run):
    title, progress, cause, *_ = shown(run)
    assert title == "✖ critical  sick  running"
    assert progress.startswith(
        "━━━━━━━━━━━━━━──────────  60%  step 120 of 200   2 steps/s   about 40 s left   last row"
    )
    assert cause.startswith("Root cause, since step 0: ")
    assert "EXTENDED" in cause


def test_components_with_what_they_weigh(tmp_path, put, sick):
    text = shown(put(tmp_path / "a.jsonl", sick(99)), 120)
    (heads,) = (line for line in text if line.startswith("loss "))
    assert heads.split() == ["loss", "last", "of", "gradient", "of", "total", "weight"]
    (length,) = (line for line in text if line.startswith("length "))
    assert length.split()[-4:] == ["10", "25%", "33%", "0.1"]


def test_a_loss_that_is_not_finite_is_marked_where_it_became_so(run):
    text = shown(run, 120)
    (mass,) = (line for line in text if line.startswith("mass "))
    _, curve, *cells = mass.split()
    assert set(curve.lstrip("▁▂▃▄▅▆▇█")) == {"✖"}
    assert curve.count("✖") / len(curve) == pytest.approx(21 / 120, abs=0.02)
    assert cells == ["nan", "75%", "1"], "of a total that is NaN there is no share"


def test_the_gradient_beside_its_limit_and_the_rest(run):
    text = "\n".join(shown(run, 120))
    assert "limit 1, clipped in 50% of the last 100" in text
    assert "1 step skipped" in text
    assert "lr/main" in text
    assert "valid recall" in text
    assert "at step 100" in text


@pytest.mark.parametrize("width", [20, 60, 100, 160])
@pytest.mark.parametrize("height", [1, 3, 8, 24, 60])
def test_any_window_will_do(run, width, height):
    text = shown(run, width, height)
    assert text[0].startswith("✖ critical")
    if height >= 24 and width >= 60:
        assert any("▲" in line or "✖" in line for line in text[3:])
        assert any(line.startswith("total") for line in text)


def test_findings_scroll_and_stop_at_the_last(run):
    rules = [
        [line for line in shown(run, 100, 60, *keys) if line.strip("↳ ").startswith(("✖", "▲", "●"))][1:]
        for keys in ((), ("down",), ("down",) * 50, ("down", "up"))
    ]
    assert len(rules[0]) > 1
    assert rules[1:] == [rules[0][1:], rules[0][-1:], rules[0]]


def test_a_run_that_is_not_there_yet(tmp_path):
    text = " ".join(shown(tmp_path / "later.jsonl"))
    assert "there is no such file" in text
    assert "Waiting" in text


def test_an_empty_folder(tmp_path):
    assert "holds no run yet" in " ".join(shown(tmp_path))


@pytest.mark.parametrize("width", [20, 60, 100, 160])
def test_a_folder_is_a_table_and_the_run_that_trains(tmp_path, put, sick, end, width):
    put(tmp_path / "done.jsonl", [*sick(name="done"), end])
    put(tmp_path / "going.jsonl", sick(99, name="going"))
    (tmp_path / "odd.jsonl").write_text("{}\n")
    text = shown(tmp_path, width)
    rows = {line[2:].split()[0]: line for line in text[1:4]}
    if width >= 60:
        assert "running" in rows["going.jsonl"]
        assert "stopped" in rows["done.jsonl"]
        assert "✖ critical" in rows["done.jsonl"]
        assert "this is JSON" in rows["odd.jsonl"] or width == 60
        assert rows["going.jsonl"].startswith("▸")
        assert any("going  running" in line for line in text[4:])


def test_choose_open_and_go_back(tmp_path, put, sick, end):
    for name in ("one", "two", "three"):
        put(tmp_path / f"{name}.jsonl", [*sick(name=name), end])
    folder = shown(tmp_path)
    names = [line[2:].split()[0].removesuffix(".jsonl") for line in folder[1:4]]
    assert shown(tmp_path, 100, 40, "down")[2].startswith("▸")
    assert shown(tmp_path, 100, 40, "down", "enter")[0] == f"✖ critical  {names[1]}  stopped"
    assert shown(tmp_path, 100, 40, *["down"] * 9, "enter")[0] == f"✖ critical  {names[2]}  stopped"
    back = shown(tmp_path, 100, 40, "down", "enter", "escape", "up")
    assert [line.split()[:2] for line in back[:4]] == [line.split()[:2] for line in folder[:4]]


HOSTILE = "evil\x1b[2J\x1b]0;title\x07[bold red]x[/]\r\n\u202ename"


@pytest.mark.parametrize("kind", ["run", "folder"])
def test_a_log_cannot_speak_to_the_terminal(tmp_path, put, sick, kind):
    records = [
        {HOSTILE if key == "lr/main" else key.replace("mass", f"m{HOSTILE}"): value for key, value in record.items()}
        for record in sick(99, name=HOSTILE)
    ]
    path = put(tmp_path / "a.jsonl", [*records, {**EVALS[0], "split": HOSTILE, f"metric/{HOSTILE}": 1.0}])
    text = "\n".join(shown(path if kind == "run" else tmp_path))
    assert "evil[bold red]x[/]" in text
    assert not [sign for sign in text if sign != "\n" and not sign.isprintable()]


def test_ascii_has_a_sign_for_each_sign(run):
    for line in shown(run):
        said = frame.plain(frame.Text(line)).plain
        assert said.isascii()
        assert len(said) == len(line)


def test_what_a_run_is_at_besides_training(run, put):
    put(run, [{"kind": "heartbeat", "time": 2e9, "step": 120, "phase": "eval", "idle": 1.0}])
    assert shown(run)[0] == "✖ critical  sick  running (eval)"


def test_the_newest_of_several_runs_in_a_file(run, put, sick, end):
    put(run, [end, *sick(9, name="second")])
    title = shown(run)[0]
    assert "second  running" in title
    assert title.endswith("the newest of 2 runs in a.jsonl")


def test_a_file_that_is_replaced_is_another_run(run, put, sick):
    board = Board(run)
    board.look(60.0)
    run.unlink()
    put(run, sick(9, name="anew"))
    changes = board.look(60.0)
    assert board.files["a.jsonl"].run.name == "anew"
    assert [change.finding.rule for change in changes if change.finding] == ["curriculum-mismatch"]


def test_a_log_that_leaves_no_end_is_waited_for_while_it_may_be_evaluating(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("step,loss\n" + "".join(f"{step},{1 / step}\n" for step in range(1, 40)))
    board = Board(path)
    board.look(60.0)
    assert board.files["train.csv"].diagnosis.status == "running"
    for silent, over in ((200, False), (700, True)):
        at = path.stat().st_mtime - silent
        os.utime(path, (at, at))
        board.look(60.0)
        assert board.files["train.csv"].diagnosis.status == "finished"
        assert board.over == over
        path.touch()
    late = Board(path)
    os.utime(path, (1e9, 1e9))
    late.look(60.0)
    assert late.over, "it was never seen to run"

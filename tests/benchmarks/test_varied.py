"""Healthy runs that are recorded in less detail."""

import json

import pytest

from benchmarks.diagnosis import varied
from benchmarks.diagnosis.corpus import Case, Record

RUN = {"kind": "run", "step": 0, "total_steps": 60, "components": ["a", "b"], "config": {"seed": 1}, "world_size": 1}
ROW = {"kind": "step", "time": 1.5, "loss": 2.0, "loss/a": 1.0, "weight/a": 0.5, "lr/body": 0.1, "grad_norm": 3.0}
EVAL, END = {"kind": "eval", "step": 60, "loss": 2.1}, {"kind": "end", "step": 60, "status": "finished"}


def record():
    lines = [RUN, *({**ROW, "step": step} for step in range(1, 61)), EVAL, END]
    content = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
    return Record(Case("program", "plain", 0, True), False, 1, {"": content, ".rank1": content})


def lines(way):
    less = varied.WAYS[way](record())
    assert less.files.keys() == {"", ".rank1"}
    return [json.loads(line) for line in less.files[".rank1"].splitlines()]


@pytest.mark.parametrize(
    ("way", "missing"),
    [
        ("no whole loss", {"loss"}),
        ("no weights", {"weight/a"}),
        ("no component losses", {"loss/a", "weight/a"}),
        ("no gradient norms", {"grad_norm"}),
        ("loss and rates", {"loss/a", "weight/a", "grad_norm"}),
        ("losses and rates", {"weight/a", "grad_norm"}),
    ],
)
def test_rows_lose_what_a_way_names_and_keep_the_rest(way, missing):
    header, row, *_, evaluation, _ = lines(way)
    assert header == RUN
    assert row.keys() == ROW.keys() - missing | {"step"}
    assert evaluation == EVAL


def test_a_header_loses_what_it_declares():
    header, row, *_ = lines("nothing declared")
    assert header == {"kind": "run", "step": 0, "world_size": 1}
    assert row == {**ROW, "step": 1}
    assert lines("no total steps")[0].keys() == RUN.keys() - {"total_steps"}


def test_evaluations_and_rows_are_left_out():
    assert {line["kind"] for line in lines("no evaluations")} == {"run", "step", "end"}
    assert [line["step"] for line in lines("25 rows")[1:4]] == [2, 4, 6]


def test_what_is_drawn_is_healthy_and_of_tuning_programs(monkeypatch):
    """Of each program in turn; the same draw gives the same runs."""
    monkeypatch.setattr(varied.corpus, "names", lambda: ["sums", "few_shot"])
    chosen = varied.drawn(5, 3)
    assert sorted(one.case.program for one in chosen) in (
        ["few_shot"] * 2 + ["sums"] * 3,
        ["few_shot"] * 3 + ["sums"] * 2,
    )
    assert all(one.kind is None and not one.held_out for one in chosen)
    assert [one.case for one in varied.drawn(5, 3)] == [one.case for one in chosen]


def test_an_alarm_is_printed_with_its_way_and_counted(monkeypatch, capsys):
    """A loss that is not a number in every row; where the loss is not recorded, nobody knows."""
    broken = record()
    broken.files = {"": broken.files[""].replace(b'"loss":2.0', b'"loss":NaN')}
    monkeypatch.setattr(varied, "drawn", lambda *_: [broken])
    monkeypatch.setattr(varied, "WAYS", {way: varied.WAYS[way] for way in ("50 rows", "no whole loss")})
    with pytest.raises(SystemExit, match="1"):
        varied.main(["--runs", "1"])
    *told, count = capsys.readouterr().out.splitlines()
    assert told[0].startswith("program plain-0, 50 rows: non-finite-loss")
    assert not [line for line in told if "no whole loss" in line]
    assert count == f"{len(told)} alarms in 2 logs of 1 healthy runs"

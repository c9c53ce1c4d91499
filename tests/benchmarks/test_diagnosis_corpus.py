"""The corpus of trainings: its store is whole, every program trains, the score is the arithmetic that it says it is."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.diagnosis import corpus, folding, mistakes, page, picture, score
from benchmarks.diagnosis.corpus import Case, Record
from benchmarks.diagnosis.kinds import KINDS
from benchmarks.diagnosis.score import Verdict
from trainwatch.engine import catalogue

QUICK = 10  # steps of a trial
PROGRAMS = list(corpus.found())


@pytest.fixture
def brief(monkeypatch):
    """A program whose trainings are over after a few steps."""

    def shorten(name):
        monkeypatch.setattr(corpus.found()[name], "STEPS", QUICK)
        return corpus.found()[name]

    return shorten


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_store_has_every_training_of_a_program(name):
    assert corpus.missing(name) == []
    stored = corpus.contents(name)
    assert {file.split(".")[0] for file in stored} == set(corpus.index(name))
    assert b'"host"' not in b"".join(stored.values())
    assert b"/tmp/" not in b"".join(stored.values())


@pytest.mark.parametrize("name", corpus.names())
def test_what_is_said_of_the_first_seeds(name):
    """No rule breaks, and nothing wakes anybody over a healthy run; how much is found, the benchmark measures."""
    told = [score.judge(record, live=False) for record in corpus.records(name) if record.case.seed == 0]
    assert [(one.case.file, one.failed) for one in told if one.failed] == []
    assert [(one.case.file, one.alarms) for one in told if one.healthy and one.alarms] == []


def test_the_store_is_small():
    assert sum(path.stat().st_size for path in corpus.STORE.glob("*.tar.xz")) < 10e6


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_says_what_it_has(name):
    program = corpus.found()[name]
    assert program.__doc__
    assert isinstance(program.HELD_OUT, bool)
    assert program.HEALTHY[0] == "plain"
    assert set(program.SICK) <= set(KINDS)
    assert not set(program.SICK) & set(program.HEALTHY)
    twins = getattr(program, "TWINS", {})
    assert set(twins) <= set(program.SICK)
    assert set(twins.values()) <= set(program.HEALTHY)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_trains(name, brief, tmp_path, capsys):
    program = brief(name)
    assert program.train(tmp_path / "run.jsonl", 0, "plain") == 0
    assert "recording to" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_bytes().splitlines()]
    steps = [row["loss"] for row in rows if row["kind"] == "step"]
    assert len(steps) == QUICK
    assert all(math.isfinite(loss) for loss in steps)
    assert rows[-1]["status"] == "finished"


def test_a_sick_training_is_kept_without_the_machine(brief):
    brief("digits_mlp")
    onset, files = corpus.once(Case("digits_mlp", "crash-type-error", 0, False))
    head, *rows = [json.loads(line) for line in files["crash-type-error-0.jsonl"].splitlines()]
    assert onset == 6
    assert not set(corpus.DROPPED) & set(head)
    assert head["run"] == "digits_mlp"
    assert rows[-1]["exception"]["type"] == "TypeError"
    assert str(Path(corpus.__file__).parents[2]) not in rows[-1]["exception"]["traceback"]
    assert all(len(str(row["loss"])) <= 7 for row in rows if row["kind"] == "step")


def test_a_mistake_of_every_name_is_a_kind():
    assert set(mistakes.MISTAKES) <= set(KINDS)
    assert all(kind.root and kind.cure and kind.about for kind in KINDS.values())


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_named_by_rules_that_exist(name):
    assert {*KINDS[name].root, *KINDS[name].also} - {*catalogue()} == set()


def test_a_run_file_is_folded_and_unfolded():
    at = [{"time": round(1795272579.4 + elapsed, 3), "elapsed": elapsed} for elapsed in (0.0, 0.006, 0.015, 0.017)]
    rows = [
        {"kind": "run", **at[0], "schema": 1},
        {"kind": "step", **at[1], "step": 1, "loss": 2.5, "clip": 0, "memory/rss": 2**40},
        {"kind": "step", **at[2], "step": 2, "loss": None, "nonfinite": {"loss": "nan"}},
        {"kind": "eval", **at[2], "step": 2, "loss": 2.0},
        {"kind": "step", **at[3], "step": 1, "loss": 0},
    ]
    written = "".join(json.dumps(row) + "\n" for row in rows).encode()
    folded = folding.fold(written)
    assert folded.count(b"\n") == 4
    assert [json.loads(line) for line in folding.unfold(folded).splitlines()] == rows
    assert folding.unfold(folding.unfold(folded)) == folding.unfold(folded)


def verdict(kind="", alarms=(), root="", program="one", **more):
    """A verdict as it may come."""
    told = {"held_out": False, "onset": 10, "dated": None, "delay": None, "live": "", "said": "", **more}
    return Verdict(case=Case(program, kind or "plain", 0, not kind), kind=kind, alarms=alarms, root=root, **told)


def test_measures_of_a_verdict():
    right = verdict("rate-zero", ("lr-zero", "loss-stuck"), "lr-zero")
    assert right.alarmed
    assert right.named
    assert right.root_first
    assert right.among_three
    assert right.wrong == ()
    late = verdict("rate-zero", ("overfitting", "loss-stuck", "overfitting", "lr-zero"), "overfitting")
    assert late.named
    assert not late.root_first
    assert not late.among_three
    assert late.wrong == ("overfitting",)
    silent = verdict("rate-zero")
    assert not silent.alarmed
    assert not silent.named
    assert verdict("", ("loss-spike",), "loss-spike").wrong == ("loss-spike",)


def test_shares_and_intervals():
    several = [verdict("rate-zero", ("lr-zero",), "lr-zero", "one")] * 3 + [verdict("rate-zero", program="two")]
    assert score.share(several, score.MEASURES["root first"]) == 0.75
    low, high = score.interval(several, score.MEASURES["root first"])
    assert (low, high) == (0.0, 1.0)  # two programs, one found and one not: that is all that is known
    assert score.interval(several[:3], score.MEASURES["root first"]) == (1.0, 1.0)
    assert math.isnan(score.share([], score.MEASURES["alarmed"]))


def test_pages_and_pictures_of_a_few_verdicts(capsys):
    several = [
        verdict("rate-zero", ("lr-zero",), "lr-zero", dated=-9.0, delay=10.0),
        verdict("stage-stuck", ("overfitting",), "overfitting", "two", held_out=True, said="overfitting: |val| rises"),
        verdict("", ("loss-spike",), "loss-spike", said="loss-spike"),
        verdict(),
    ]
    text = page.markdown(several)
    assert "| tuning | 1 | 100.0% (100% to 100%) |" in text
    assert "| one | 2 | 1 | 0 | loss-spike x 1 in plain |" in text
    assert "| stage-stuck | two | 1 | 100% | 0% | 0% | 0% | - | - | overfitting x 1 |" in text
    assert "alarm in 100%, root first in 0% of 1 runs" in picture.draw(several)
    page.show(several)
    page.show_misses(several)
    said = capsys.readouterr().out
    assert "two stage-stuck-0 (stage-stuck from step 10, so curriculum-stuck)" in said
    assert "one rate-zero-0" not in said


def lines(steps, broken=False):
    """A run file of so many rows."""
    head = {"kind": "run", "time": 1e9, "elapsed": 0.0, "schema": 1, "run": "made", "id": "a", "total_steps": steps}
    rows: list[dict] = []
    for step in range(1, steps + 1):
        clock = {"time": 1e9 + step, "elapsed": float(step)}
        rows.append({"kind": "step", **clock, "step": step, "applied": step, "loss": 1.0 / step})
    if broken:
        rows[24] |= {"loss": None, "nonfinite": {"loss": "nan"}}
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in [head, *rows]).encode()


def test_a_run_is_followed_in_pieces_of_ten_rows():
    files = {"": lines(25), ".rank1": lines(23)}
    pieces = list(score.pieces(files))
    assert [piece[""].count(b'"kind":"step"') for piece in pieces[:-1]] == [10, 10, 5]
    assert pieces[-1] == {}
    assert b"".join(piece[".rank1"] for piece in pieces[:-1]) == files[".rank1"]


def test_the_first_live_alarm_comes_with_its_piece():
    sick = Record(Case("made", "log-of-zero", 0, False), False, 25, {"": lines(60, broken=True)}, KINDS["log-of-zero"])
    found = score.judge(sick)
    assert found.root == "non-finite-loss"
    assert found.dated == 0
    assert found.delay == 5  # the piece of the rows 21 to 30
    well = score.judge(Record(Case("made", "plain", 0, True), False, 0, {"": lines(60)}))
    assert not {"non-finite-loss"} & set(well.alarms)

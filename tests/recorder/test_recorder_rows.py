"""What a run file says: every kind of record, names, values that are no numbers, resumes, siblings, ranks."""

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trainwatch
from trainwatch.recorder import file, journal, sink
from trainwatch.recorder.rows import clean_name, strict
from trainwatch.schema import HEADER, KINDS, NAME

CURRICULUM = {
    "name": "short",
    "stages": [{"start": 0, "name": "easy"}, {"start": 3, "name": "hard", "weights": {"a": 2}}],
}


def test_every_kind_of_record(tmp_path, records, monkeypatch):
    monkeypatch.setattr(sink, "HEARTBEAT", 0.05)
    path = tmp_path / "logs" / "run.jsonl"
    with trainwatch.Recorder(path, total_steps=1, components=["a"], curriculum=CURRICULUM) as watch:
        watch.log({"loss": 0.5})
        watch.step()
        watch.evaluate(1, "val", {"loss": 0.4, "accuracy": 0.9, "loss/a": 0.4}, weights_step=1, repeat=0)
        watch.sample(["PEPTIDE"], quality={"validity": 1.0})
        watch.checkpoint("last.pt", best=True, metric=0.4)
        watch.event("note", name="x", **{"from": 1})
        with watch.phase("eval"):
            time.sleep(0.3)
    found = {record["kind"]: record for record in records(path)}
    assert set(found) == set(KINDS)
    assert all(list(record)[:2] == ["kind", "time"] and "elapsed" in record for record in found.values())
    assert set(found["run"]) - {"kind", "time", "elapsed"} <= set(HEADER)
    assert found["eval"]["metric/accuracy"] == 0.9
    assert found["eval"]["split"] == "val"
    assert found["sample"]["quality/validity"] == 1.0
    assert found["heartbeat"]["phase"] == "eval"
    assert found["heartbeat"]["idle"] > 0
    assert found["checkpoint"]["seconds"] >= 0
    assert found["event"] | {"event": "note", "name": "x", "from": 1} == found["event"]
    assert found["end"]["status"] == "finished"


def test_not_a_number_is_null_and_named(watch, steps):
    watch.log({"loss": math.nan, "grad_norm": math.inf, "loss/a": -math.inf, "lr/0": 1e-3})
    watch.step()
    watch.log({"loss": np.float32("nan"), "stage": True, "tokens": np.int64(7), "epoch": None})
    watch.step()
    watch.close()
    first, second = steps(watch.path)
    assert first["nonfinite"] == {"loss": "nan", "grad_norm": "inf", "loss/a": "-inf"}
    assert first["loss"] is None
    assert first["lr/0"] == 1e-3
    assert second["nonfinite"] == {"loss": "nan"}
    assert second["stage"] == 1
    assert second["tokens"] == 7
    assert "epoch" not in second


@given(st.dictionaries(st.sampled_from(["a", "b/c", "loss"]), st.floats(allow_nan=True, allow_infinity=True)))
def test_numbers_survive_exactly(values):
    row = json.loads(sink.encode(strict(dict(values), values)))
    names = row.pop("nonfinite", {})
    back = {name: float(names[name]) if value is None else value for name, value in row.items()}
    assert {name: repr(float(value)) for name, value in back.items()} == {name: repr(v) for name, v in values.items()}


@given(st.text(max_size=30))
def test_a_cleaned_name_is_allowed(name):
    assert all(NAME.fullmatch(part) for joined in clean_name(name).split("/") for part in joined.split("~") if part)
    assert clean_name(clean_name(name)) == clean_name(name)


def test_bad_names_and_values_are_said_once_and_never_raise(watch, records, capsys):
    for _ in range(3):
        watch.log({"my loss": 1.0, "step": 7, "text": "abc", "time": 3.0, "object": object(), 5: 1})
        watch.step()
    watch.close()
    rows = records(watch.path)
    step = next(row for row in rows if row["kind"] == "step")
    assert (step["my_loss"], step["clock/step"], step["log/time"], step["step"], step["5"]) == (1.0, 7, 3.0, 1, 1)
    assert "text" not in step
    assert sum(row["kind"] == "event" for row in rows) == 5
    assert capsys.readouterr().err.count("'text'") == 1


def test_stage_events_name_the_declared_stage(tmp_path, records):
    with trainwatch.Recorder(tmp_path / "run.jsonl", curriculum=CURRICULUM, total_steps=9) as watch:
        for step in range(5):
            watch.log({"stage": int(step >= 3)})
            watch.step()
    rows = records(watch.path)
    (event,) = [row for row in rows if row["kind"] == "event"]
    assert (event["event"], event["from"], event["to"], event["name"], event["step"]) == ("stage", 0, 1, "hard", 4)
    assert rows.index(event) < next(i for i, row in enumerate(rows) if row.get("stage") == 1)
    assert [stage["end"] for stage in rows[0]["curriculum"]["stages"]] == [3, 9]


def test_an_existing_file_is_left_alone(tmp_path, capsys):
    for _ in range(3):
        trainwatch.Recorder(tmp_path / "run.jsonl").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-2.jsonl", "run-3.jsonl", "run.jsonl"]
    assert "run-3.jsonl" in capsys.readouterr().err
    assert json.loads((tmp_path / "run-2.jsonl").read_text().splitlines()[0])["run"] == "run-2"


def test_a_resume_keeps_the_run_and_ends_a_torn_line(tmp_path):
    path = tmp_path / "run.jsonl"
    with trainwatch.Recorder(path) as watch:
        for step in range(10):
            watch.log({"applied": step})
            watch.step()
    with path.open("a") as stream:
        stream.write('{"kind":"step","st')
    with trainwatch.Recorder(path, resume=8) as watch:
        watch.log({"loss": 1.0})
        watch.step()
    lines = path.read_text().splitlines()
    assert [line for line in lines if not line.endswith("}")] == ['{"kind":"step","st']
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    first, second = [row for row in rows if row["kind"] == "run"]
    assert (second["id"], second["attempt"], second["resumed_from"]) == (first["id"], first["attempt"], 8)
    last = [row for row in rows if row["kind"] == "step"][-1]
    assert (last["step"], last["applied"]) == (9, 8)


def test_a_resume_without_a_file_begins_one(tmp_path, steps, records):
    with trainwatch.Recorder(tmp_path / "new.jsonl", resume=5) as watch:
        watch.step()
    assert records(watch.path)[0]["resumed_from"] == 5
    assert [(row["step"], row["applied"]) for row in steps(watch.path)] == [(6, 6)]


def test_ranks_are_one_run(tmp_path, records, monkeypatch, capsys):
    monkeypatch.setattr(file, "RANK_WAIT", 0.2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "run.jsonl").write_text("somebody else's\n")
    monkeypatch.setenv("RANK", "0")
    zero = trainwatch.Recorder(tmp_path / "run.jsonl")
    monkeypatch.setenv("RANK", "1")
    one = trainwatch.Recorder(tmp_path / "run.jsonl")
    zero.close()
    one.close()
    assert (zero.path.name, one.path.name) == ("run-2.jsonl", "run-2.rank1.jsonl")
    header = records(one.path)[0]
    assert (header["rank"], header["world_size"], header["id"]) == (1, 2, records(zero.path)[0]["id"])
    assert capsys.readouterr().err.count("recording to") == 1


def test_rows_reach_a_follower_soon(watch):
    watch.log({"loss": 1.0})
    watch.step()
    before = time.monotonic()
    while b'"step":1' not in watch.path.read_bytes():
        assert time.monotonic() - before < 5
        time.sleep(0.01)


def test_durable_rows_are_there_when_step_returns(tmp_path):
    with trainwatch.Recorder(tmp_path / "run.jsonl", durable=True) as watch:
        for step in range(1, 20):
            watch.log({"loss": 1.0})
            watch.step()
            assert f'"step":{step},' in watch.path.read_text().splitlines()[-1]


def test_should_stop_sees_a_new_stop_file_only(tmp_path, records, monkeypatch):
    monkeypatch.setattr(sink, "STOP_POLL", 0.01)
    stop = tmp_path / "run.stop"
    stop.touch()
    os.utime(stop, (1, 1))
    with trainwatch.Recorder(tmp_path / "run.jsonl", total_steps=10) as watch:
        time.sleep(0.15)
        assert not watch.should_stop
        os.utime(stop)
        deadline = time.monotonic() + 5
        while not watch.should_stop:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        watch.step()
    *_, event, _, end = records(watch.path)
    assert (event["event"], event["action"]) == ("intervention", "stop")
    assert (end["status"], end["reason"]) == ("stopped", "stop file")


def stopped_by(path, content, seconds=5.0):
    """A run beside which this is put as a stop file: its records, once it was seen or the time is over."""
    with trainwatch.Recorder(path, total_steps=10) as watch:
        own = json.loads(path.read_text().splitlines()[0])["id"]
        said = content(own) if callable(content) else content
        written = path.with_suffix(".written")
        written.write_text(said if isinstance(said, str) else json.dumps(said))
        written.replace(path.with_suffix(".stop"))
        deadline = time.monotonic() + seconds
        while not watch.should_stop and time.monotonic() < deadline:
            time.sleep(0.01)
        watch.step()
    return [json.loads(line) for line in path.read_text().splitlines()]


FOUND = {"rule": "non-finite-loss", "subject": "component:mass", "first_step": 7, "message": "It became NaN."}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", {"by": "a stop file"}),
        ("enough for today\n", {"by": "a stop file", "why": "enough for today"}),
        ("[1, 2", {"by": "a stop file", "why": "[1, 2"}),
        ({"by": "me", "finding": "odd"}, {"by": "me", "why": ""}),
        (
            lambda own: {"by": "a watch", "id": own, "finding": FOUND},
            {"by": "a watch", "why": "It became NaN.", "rule": "non-finite-loss", "first_step": 7},
        ),
    ],
)
def test_a_stop_file_says_who_asks_and_why(tmp_path, monkeypatch, content, told):
    monkeypatch.setattr(sink, "STOP_POLL", 0.01)
    records = stopped_by(tmp_path / "run.jsonl", content)
    (event,) = (row for row in records if row.get("event") == "intervention")
    assert event | told == event
    assert records[-1]["reason"] == "stop file"


def test_a_rank_that_is_told_to_stop_before_it_looked_still_says_who_asked(tmp_path, monkeypatch, records):
    monkeypatch.setattr(sink, "STOP_POLL", 1e9)
    for status, asked in (("stopped", [FOUND["rule"]]), ("finished", [])):
        with trainwatch.Recorder(tmp_path / f"{status}.jsonl", total_steps=10) as watch:
            watch.step()
            watch.path.with_suffix(".stop").write_text(json.dumps({"by": "a watch", "finding": FOUND}))
            watch.close(status, "stop file" if asked else None)
        assert [row["rule"] for row in records(watch.path) if row.get("event") == "intervention"] == asked
        assert records(watch.path)[-1]["status"] == status


def test_a_stop_file_for_another_run_is_not_for_this_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sink, "STOP_POLL", 0.01)
    records = stopped_by(tmp_path / "run.jsonl", {"id": "another", "finding": FOUND}, 0.3)
    assert not [row for row in records if row.get("event") == "intervention"]
    assert records[-1]["status"] == "finished"


def test_a_stop_file_from_the_future_that_was_there_before_stops_nothing(tmp_path, monkeypatch):
    """The clock of a file server may be ahead of ours."""
    monkeypatch.setattr(sink, "STOP_POLL", 0.01)
    stop = tmp_path / "run.stop"
    stop.touch()
    os.utime(stop, (2e9, 2e9))
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        time.sleep(0.15)
        assert not watch.should_stop


def test_disabled_costs_and_writes_nothing(tmp_path, capsys):
    with trainwatch.Recorder(tmp_path / "run.jsonl", enabled=False) as watch:
        loader = [1, 2]
        assert watch.batches(loader) is loader
        watch.log({"loss": 1})
        watch.step()
        watch.evaluate(1, "val", {})
        watch.sample([])
        watch.checkpoint("x")
        watch.event("note")
        assert watch.losses({"a": 2.0, "b": 3.0}, {"b": 2.0}) == 8.0
        assert not watch.should_stop
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


def test_batches_are_timed_and_keep_their_length(watch, steps):
    class Slow(list):
        def __iter__(self):
            for item in super().__iter__():
                time.sleep(0.02)
                yield item

    batches = watch.batches(Slow([1, 2, 3]))
    assert len(batches) == 3
    for _ in batches:
        watch.step()
    for _ in batches:
        pass
    watch.close()
    assert all(0.02 <= row["time/data"] < 2 for row in steps(watch.path))


def test_evaluation_and_checkpoints_are_no_part_of_a_step(watch, steps):
    watch.step()
    time.sleep(0.3)
    watch.evaluate(1, "val", {"loss": 1.0})
    time.sleep(0.3)
    watch.checkpoint("x.pt")
    watch.step()
    with watch.phase("eval"):
        time.sleep(0.3)
        watch.evaluate(2, "val", {"loss": 1.0})
    watch.step()
    watch.close()
    _, second, third = steps(watch.path)
    assert second["time/step"] < 0.25
    assert third["time/step"] < 0.25


def test_a_fault_of_our_own_never_reaches_the_loop(watch, records, monkeypatch):
    def broken(*_):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(watch._losses, "add", broken)
    monkeypatch.setattr(watch._stopwatch, "lap", broken)
    for _ in range(3):
        assert watch.losses({"a": 1.0}) == 1.0
        watch.step()
    monkeypatch.setattr(watch._sink._rows, "_count", broken)
    monkeypatch.setattr(watch._stopwatch, "lap", lambda *_: None)
    watch.step()
    watch.close()
    rows = records(watch.path)
    assert [row["where"] for row in rows if row["kind"] == "event" and "where" in row] == ["losses()", "step()"]
    assert rows[-2]["step"] == 4
    assert rows[-1]["status"] == "finished"


def test_a_copy_of_the_recorder_is_switched_off(watch):
    import copy

    assert copy.deepcopy(watch)._enabled is False
    assert journal._switched_off(type(watch), "x.jsonl").path == Path("x.jsonl")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"path": "."}, IsADirectoryError, "is a directory"),
        ({"path": "run.txt"}, ValueError, "write 'run.txt.jsonl'"),
        ({"path": "/dev/null/run.jsonl"}, OSError, "cannot make '/dev/null'"),
        ({"total_steps": 0}, ValueError, "total_steps=0 is not a positive whole number"),
        ({"total_steps": 1e4}, ValueError, r"total_steps=10000.0"),
        ({"total_steps": True}, ValueError, "total_steps=True"),
        ({"max_grad_norm": "1"}, TypeError, "max_grad_norm='1'"),
        ({"schedules": {"lr/0": {"kind": "cosin", "start": 1}}}, ValueError, "'cosin' is unknown; use one of constant"),
        ({"schedules": {"lr/0": {"kind": "linear", "start": 1, "stop": 2}}}, ValueError, "unknown key 'stop'"),
        ({"schedules": {"lr/0": {"kind": "linear", "start": "1"}}}, TypeError, "start='1' is no number"),
        ({"schedules": {"lr/0": 3}}, TypeError, r"schedules\['lr/0'\]=3"),
        ({"components": {"a": {"role": "main"}}}, ValueError, "role must be one of task"),
        ({"components": ["a b"]}, ValueError, "'a b' is not allowed"),
        ({"curriculum": 3}, TypeError, "curriculum=3 has no stages"),
        ({"curriculum": [{"start": 5}, {"start": 2}]}, ValueError, r"curriculum.stages\[1\]: start=2 is not after"),
        ({"clocks": "dqn"}, TypeError, r"write \['dqn'\]"),
        ({"resume": -1}, ValueError, "resume=-1 is no step"),
        ({"rank": 3, "world_size": 2}, ValueError, "rank=3"),
        ({"horizon": 3}, TypeError, "horizon=3 is no mapping"),
    ],
)
def test_what_cannot_be_right_fails_before_the_loop(arguments, error, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says):
        trainwatch.Recorder(**{"path": "run.jsonl", **arguments})
    assert not list(tmp_path.iterdir())

"""`trainwatch watch --notify`, `--exec` and `--stop-on`, from the command line."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import threading
import time

import psutil
import pytest

from trainwatch.cli import main
from trainwatch.watch import loop

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # apprise's own

END = {"kind": "end", "status": "failed", "step": 120, "time": 1e9 + 120, "reason": "ValueError: x"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(loop, "POLL", 0.01)
    monkeypatch.setattr(loop, "SLOWEST", 0.02)


@pytest.fixture
def here():
    """What a header says of this very process: a run that lives."""
    started = psutil.Process().create_time()
    return {"pid": os.getpid(), "host": socket.gethostname(), "process_started": started}


@pytest.fixture
def sink(tmp_path):
    """The --exec option of a command that appends what it gets to a file, and what it got."""
    path = tmp_path / "got.jsonl"
    code = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"

    class Got:
        option = "--exec", shlex.join([sys.executable, "-c", code, str(path)])

        def __iter__(self):
            lines = path.read_text().splitlines() if path.exists() else []
            return iter([(one["event"], (one["finding"] or {}).get("rule")) for one in map(json.loads, lines)])

    return Got()


def test_a_run_that_goes_wrong_and_ends(tmp_path, put, records, here, service, sink, capsys):
    path, rows = tmp_path / "logs" / "a.jsonl", records(name="na\x1b[2Jme", **here)

    def train():
        for part in (rows[:60], rows[60:110]):
            time.sleep(0.3)
            put(path, part)
        deadline = time.monotonic() + 30
        while not (list(sink) and service.got) and time.monotonic() < deadline:
            time.sleep(0.02)
        put(path, [*rows[110:], END])

    trainer = threading.Thread(target=train)
    trainer.start()
    assert main(["watch", str(path), "--notify", service.url, *sink.option]) == 1
    trainer.join()
    assert list(sink) == [("finding", "non-finite-loss"), ("end", "non-finite-loss")]
    first, last = service.got
    assert first["title"] == "✖ name: critical, non-finite-loss on component:mass"
    assert "became NaN at step 100" in first["message"]
    assert last["title"] == "✖ name: failed, steps 1 to 120 of 200"
    assert last["message"].startswith("Root cause, since step 100: ")
    assert capsys.readouterr().err == ""


def test_once_tells_what_stands_and_a_second_time_nothing(tmp_path, put, records, here, sink):
    path = put(tmp_path / "logs" / "a.jsonl", records(**here))
    for _ in range(2):
        assert main(["watch", str(path), "--once", *sink.option]) == 1
    assert list(sink) == [("finding", "non-finite-loss")]
    put(path, [END])
    for _ in range(2):
        assert main(["watch", str(path), "--once", *sink.option]) == 1
    assert list(sink)[1:] == [("end", "non-finite-loss")]


def test_a_folder_tells_of_its_live_runs(tmp_path, put, records, here, sink):
    put(tmp_path / "logs" / "old.jsonl", [*records(name="old"), END])
    new = put(tmp_path / "logs" / "new.jsonl", records(name="new", **here))
    assert main(["watch", str(new.parent), "--once", *sink.option]) == 1
    put(new, [END])
    assert main(["watch", str(new.parent), "--once", *sink.option]) == 1
    assert list(sink) == [("finding", "non-finite-loss"), ("end", "non-finite-loss")]


def test_a_receiver_that_fails_is_said_once(tmp_path, put, records, here, capsys):
    path = put(tmp_path / "a.jsonl", records(**here))
    assert main(["watch", str(path), "--once", "--exec", "false"]) == 1
    assert capsys.readouterr().out.count("alerts: --exec false: 1 message could not be delivered (exit code 1)") == 1


def test_a_healthy_run_tells_its_end_alone(tmp_path, put, records, sink):
    path = put(tmp_path / "a.jsonl", [*records(200, bad=()), {**END, "status": "finished", "step": 200}])
    assert main(["watch", str(path), *sink.option]) == 0
    assert list(sink) == [("end", None)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--notify", "no-such://x"], "is no URL that apprise knows"),
        (["--exec", "no-such-command"], "there is no command"),
        (["--stop-on", "critical"], "--stop-on takes one run"),
        (["--stop-on", "info"], "--stop-on"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, capsys, options, words):
    assert main(["watch", str(tmp_path), "--once", *options]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def stop(path, *options):
    """What was asked for, after `watch --once --stop-on critical`."""
    assert main(["watch", str(path), "--once", "--stop-on", "critical", *options]) in (0, 1)
    written = path.with_suffix(".stop")
    return json.loads(written.read_text()) if written.exists() else None


def test_a_live_run_that_is_sick_is_asked_to_stop(tmp_path, put, records, here, capsys):
    asked = stop(put(tmp_path / "a.v2.jsonl", records(**here)))
    assert (asked["id"], asked["finding"]["rule"]) == ("sick", "non-finite-loss")
    assert asked["by"].startswith("trainwatch watch --stop-on critical (process ")
    assert "asked sick to stop: " in capsys.readouterr().out
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("case", ["healthy", "ended", "dead", "stalled", "over", "resumed", "warning"])
def test_it_is_not_asked_for_what_no_stop_would_help(tmp_path, put, records, here, case):
    path, now = tmp_path / "a.jsonl", time.time()
    if case == "healthy":
        rows = records(bad=(), **here)
    elif case == "ended":
        rows = [*records(**here), END]
    elif case == "dead":
        rows = records(**here | {"process_started": 1.0})
    elif case == "stalled":
        rows = [*records(**here), {"kind": "heartbeat", "time": now, "elapsed": 9e3, "phase": "train", "idle": 9e3}]
    elif case == "over":
        rows = records(bad=(50,), **here)
    elif case == "resumed":  # sick before, and not since it goes on from a checkpoint
        head = {**records(0, **here)[0], "resumed_from": 110}
        rows = [*records(115, **here), head, *records(118, bad=())[112:]]
    else:
        finite = {"loss": 3.0, "nonfinite": {"loss/mass": "nan"}}  # of a component that has no weight
        head, *rows = records(**here)
        rows = [head, *(row | {"weight/mass": 0.0} | finite if row["step"] >= 100 else row for row in rows)]
    assert stop(put(path, rows)) is None


def test_a_log_without_a_recorder_cannot_be_asked(tmp_path):
    log = tmp_path / "train.csv"
    log.write_text("step,loss\n" + "".join(f"{step},{3.0 if step < 40 else 'nan'}\n" for step in range(1, 80)))
    main(["watch", str(log), "--once", "--stop-on", "critical"])
    assert not list(tmp_path.glob("*.stop"))

"""What the loop hands over may be anything, and the disk may fail: the rows around it stay, and so does the end."""

import subprocess
import time

import numpy as np
import orjson
import pytest

import trainwatch
from trainwatch.recorder import sink
from trainwatch.recorder.plain import REDACTED, plain


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class Rude:
    def __str__(self):
        raise RuntimeError("no text")

    __bool__ = __len__ = __repr__ = __str__


def test_an_array_in_a_record_costs_no_other(tmp_path, records):
    with trainwatch.Recorder(tmp_path / "run.jsonl", config={"w": np.array([1.0, 2.0])}) as watch:
        for _ in range(3):
            watch.step()
        watch.event("note", ids=np.array([1, 2]), key=np.arange(3), rude=Rude(), text="\ud800", rows={Rude(): 1})
        watch.event("note", step=Rude())
    rows = records(watch.path)
    assert rows[0]["config"] == {"w": [1.0, 2.0]}
    assert [row["step"] for row in rows if row["kind"] == "step"] == [1, 2, 3]
    notes = [row for row in rows if row.get("event") == "note"]
    assert notes[0]["ids"] == [1, 2]
    assert len(notes) == 2
    assert rows[-1]["status"] == "finished"


def test_the_last_resort_cannot_raise(tmp_path, records, monkeypatch):
    def broken(*_):
        raise MuteError

    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        monkeypatch.setattr(watch._sink._rows, "build", broken)
        monkeypatch.setattr(sink, "plain", broken)
        watch.step()
    *_, step, _, end = records(watch.path)
    assert (step["step"], end["kind"]) == (1, "end")


def test_the_end_is_written_even_if_draining_fails(tmp_path, records, monkeypatch):
    watch = trainwatch.Recorder(tmp_path / "run.jsonl")
    monkeypatch.setattr(watch._sink, "_drain", lambda: 1 / 0)
    watch.step()
    watch.close()
    assert records(watch.path)[-1]["status"] == "finished"


def test_secrets_of_every_type_and_what_contains_itself():
    assert plain({"password": np.array([1, 2]), "token": ""}) == {"password": REDACTED, "token": ""}
    loop: dict = {"password": "abc"}
    loop |= {str(i): loop for i in range(9)} | {"list": [loop]}
    began = time.monotonic()
    assert b"abc" not in orjson.dumps(plain(loop))
    assert time.monotonic() - began < 1


def test_an_exception_without_text_stays_the_users(tmp_path, records):
    with pytest.raises(MuteError), trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        raise MuteError
    end = records(watch.path)[-1]
    assert (end["status"], end["exception"]["message"]) == ("failed", "MuteError")


def test_a_full_disk_has_no_heartbeats_and_one_deadline(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sink, "HEARTBEAT", 0.02)
    monkeypatch.setattr(sink, "PATIENCE", 0.5)
    watch = trainwatch.Recorder(tmp_path / "run.jsonl")
    write = sink.os.write

    def full(fd, data):
        if fd == watch._sink._fd:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(sink.os, "write", full)
    for _ in range(4):
        watch.step()
    time.sleep(0.5)
    assert watch._sink._unwritten.count(b"heartbeat") <= 1
    began = time.monotonic()
    watch.close()
    assert time.monotonic() - began < 1
    assert "lines were lost" in capsys.readouterr().err


def test_the_stop_file_of_a_name_with_dots(tmp_path):
    with trainwatch.Recorder(tmp_path / "exp.v2.jsonl") as watch:
        assert watch._sink._stop.path == tmp_path / "exp.v2.stop"


def test_a_device_that_cannot_be_read_keeps_the_row(tmp_path, records, monkeypatch):
    torch = pytest.importorskip("torch")
    from trainwatch.recorder import transfer

    def broken(*_):
        raise RuntimeError("Event device does not match\nmore")

    monkeypatch.setattr(transfer.Ring, "ship", broken)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.log({"loss": torch.tensor(1.0), "host": 2.0})
        watch.step()
    rows = [row for row in records(watch.path) if row["kind"] == "step"]
    assert rows[0]["host"] == 2.0


def test_a_forked_child_frees_nothing(program):
    code = """
watch = trainwatch.Recorder(path)
from trainwatch.recorder import journal
child = os.fork()
if child == 0:
    os._exit(0 if journal._inherited == [watch] else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    process: subprocess.Popen[str] = program(code)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_a_full_disk_is_told_once_and_tried_again(tmp_path, records, monkeypatch, capsys):
    monkeypatch.setattr(sink, "RETRY", 0.01)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        write, full = sink.os.write, [True]

        def half(fd, data):
            if fd == watch._sink._fd and full[0]:
                if len(data) > 10:
                    return write(fd, data[:10])
                raise OSError(28, "No space left on device")
            return write(fd, data)

        monkeypatch.setattr(sink.os, "write", half)
        for _ in range(5):
            watch.step()
            time.sleep(0.05)
        full[0] = False
    assert [row["step"] for row in records(watch.path) if row["kind"] == "step"] == [1, 2, 3, 4, 5]
    assert capsys.readouterr().err.count("No space left") == 1


def test_each_device_has_a_ring_of_its_own(monkeypatch):
    torch = pytest.importorskip("torch")
    from trainwatch.recorder import transfer

    class Slot(transfer.Slot):
        def __init__(self, size, free):
            self.size, self._free = size, free

    monkeypatch.setattr(transfer, "Slot", Slot)
    ring, devices = transfer.Ring(), [torch.device("cuda", i) for i in range(2)]
    first = ring._slot(devices[0], 3)
    first.release()
    assert ring._slot(devices[1], 3)._free is not first._free
    assert len(ring._free[devices[0]]) == 8
    larger = ring._slot(devices[0], 1000)
    larger.release()
    assert ring._slot(devices[0], 900) is larger


def test_a_signal_without_total_steps_is_the_reason(program, records, tmp_path):
    process: subprocess.Popen[str] = program(
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "watch = trainwatch.Recorder(path)\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(9)"
    )
    process.communicate(timeout=60)
    end = records(tmp_path / "run.jsonl")[-1]
    assert (end["status"], end["reason"]) == ("stopped", "SIGTERM")

"""However a process ends, its run file says so; and no end but SIGKILL loses a row."""

import json
import signal
import time

import pytest

LOOP = """
watch = trainwatch.Recorder(path, total_steps=1000)
def train(steps, pause=0.01):
    for _ in range(steps):
        watch.log({"loss": 1.0})
        watch.step()
        time.sleep(pause)
"""
READY = "train(3)\nprint('ready', flush=True)\n"


def finish(process, number=None):
    """Wait until the program is ready, send it a signal, and see it end."""
    if number is not None:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture
def rows(tmp_path, records):
    return lambda: records(tmp_path / "run.jsonl")


def count(rows):
    return sum(row["kind"] == "step" for row in rows)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_nobody_handles_still_kills(program, rows, number):
    code, _, _ = finish(program(LOOP + READY + "train(1000)"), number)
    assert code == -number
    *_, event, end = rows()
    assert (event["event"], event["name"]) == ("signal", number.name)
    assert (end["status"], end["reason"]) == ("stopped", number.name)
    assert count(rows()) == end["step"]


def test_a_signal_the_trainer_handles_is_the_trainers(program, rows):
    handler = "stop = []\nsignal.signal(signal.SIGTERM, lambda *_: stop.append(1))\n"
    code, out, _ = finish(
        program(handler + LOOP + READY + "while not stop: train(1)\ntrain(2)\nwatch.close()\nprint('saved')"),
        signal.SIGTERM,
    )
    assert (code, out) == (0, "saved\n")
    end = rows()[-1]
    assert (end["status"], end["reason"]) == ("stopped", "SIGTERM")
    assert count(rows()) == end["step"]


def test_a_run_that_outlives_a_signal_is_finished(program, rows):
    handler = "signal.signal(signal.SIGTERM, lambda *_: None)\n"
    code, _, _ = finish(program(handler + LOOP + READY + "train(997, 0.001)\nwatch.close()"), signal.SIGTERM)
    assert code == 0
    assert rows()[-1]["status"] == "finished"
    assert [row["name"] for row in rows() if row["kind"] == "event"] == ["SIGTERM"]


def test_an_ignored_signal_stays_ignored(program, rows):
    code, _, _ = finish(
        program("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + LOOP + READY + "train(30)\nwatch.close()"),
        signal.SIGTERM,
    )
    assert code == 0
    assert rows()[-1]["status"] == "finished"


def test_a_handler_that_came_after_us_and_calls_us(program, rows):
    chained = "old = signal.signal(signal.SIGTERM, lambda *a: old(*a))\nother = trainwatch.Recorder('other.jsonl')\n"
    code, _, _ = finish(program(LOOP + chained + READY + "train(1000)"), signal.SIGTERM)
    assert code == -signal.SIGTERM
    assert rows()[-1]["status"] == "stopped"


def test_ctrl_c_without_with(program, rows):
    code, _, err = finish(program(LOOP + READY + "train(1000)"), signal.SIGINT)
    assert code in (-signal.SIGINT, 130)
    assert "KeyboardInterrupt" in err
    end = rows()[-1]
    assert (end["status"], end["reason"]) == ("stopped", "SIGINT")


def test_an_exception_without_with(program, rows):
    code, _, err = finish(program(LOOP + "train(3)\nraise ValueError('https://me:abc@host is down')"))
    assert code == 1
    assert "ValueError" in err
    end = rows()[-1]
    assert (end["status"], end["exception"]["type"]) == ("failed", "ValueError")
    assert "program.py" in end["exception"]["traceback"]
    assert "abc" not in json.dumps(end)
    assert count(rows()) == 3


def test_an_exception_through_with(tmp_path, records):
    import trainwatch

    class OutOfMemoryError(RuntimeError):
        """Named as torch's."""

    def train():
        with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
            watch.step()
            raise OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemoryError):
        train()
    *_, event, end = records(tmp_path / "run.jsonl")
    assert event["event"] == "oom"
    assert (end["status"], end["exception"]["message"]) == ("failed", "CUDA out of memory")


def test_the_interpreters_exit(program, rows):
    assert finish(program(LOOP + "train(3)"))[0] == 0
    end = rows()[-1]
    assert (end["status"], end["reason"]) == ("stopped", "the program ended at step 3 of 1000")


def test_sys_exit_with_a_code_is_a_failure(tmp_path, records):
    import trainwatch

    for code, status in ((0, "finished"), (3, "failed")):
        with pytest.raises(SystemExit), trainwatch.Recorder(tmp_path / f"run{code}.jsonl"):
            raise SystemExit(code)
        assert records(tmp_path / f"run{code}.jsonl")[-1]["status"] == status


def test_a_forked_child_writes_nothing(program, rows):
    child = """
train(2)
child = os.fork()
if child == 0:
    train(5)
    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        os._exit(9)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
child = os.fork()
if child == 0:
    time.sleep(60)
time.sleep(0.1)
os.kill(child, signal.SIGTERM)
assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
train(1)
watch.close("finished")
"""
    code, _, err = finish(program(LOOP + child))
    assert code == 0, err
    assert [row["kind"] for row in rows()] == ["run", "step", "step", "step", "end"]


@pytest.mark.parametrize(("options", "lost"), [("", 1.0), (", durable=True", 0.0)])
def test_sigkill_loses_only_what_is_in_flight(program, tmp_path, options, lost):
    loop = LOOP.replace("total_steps=1000", f"total_steps=1000{options}") + (
        "print('ready', flush=True)\nwhile True:\n    train(1, 0.002)\n    os.write(1, b'%d\\n' % watch.steps)"
    )
    process = program(loop)
    process.stdout.readline()
    time.sleep(0.3)
    code, out, _ = (process.kill(), *finish(process))[1:]
    assert code == -signal.SIGKILL
    lines = (tmp_path / "run.jsonl").read_bytes().split(b"\n")
    written = [json.loads(line) for line in lines[:-1]]
    done = int(out.splitlines()[-1])
    if lost == 0.0:
        assert written[-1]["step"] >= done
    assert written[-1]["step"] > 1
    assert [row["step"] for row in written[1:]] == list(range(1, len(written)))


def test_several_recorders_all_hear_of_it(program, tmp_path, records):
    code, _, _ = finish(
        program(LOOP + "other = trainwatch.Recorder('other.jsonl')\n" + READY + "train(1000)"), signal.SIGTERM
    )
    assert code == -signal.SIGTERM
    assert all(records(tmp_path / name)[-1]["reason"] == "SIGTERM" for name in ("run.jsonl", "other.jsonl"))


def test_after_the_last_close_everything_is_as_before(tmp_path):
    import sys

    import trainwatch

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.excepthook
    first, second = trainwatch.Recorder(tmp_path / "a.jsonl"), trainwatch.Recorder(tmp_path / "b.jsonl")
    assert sys.excepthook is not before[2]
    first.close()
    second.close()
    second.close()
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.excepthook)


def test_a_plain_loop_loads_no_torch(program, rows):
    code, _, err = finish(program(LOOP + "train(60, 0)\nwatch.close()\nassert 'torch' not in sys.modules"))
    assert code == 0, err
    assert rows()[50]["memory/rss"] > 0

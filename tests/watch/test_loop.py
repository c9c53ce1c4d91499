"""What users type and what they get: in a pipe, once, and on a terminal."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from trainwatch.cli import main
from trainwatch.text.wording import ANSI
from trainwatch.watch import loop

LOGS = Path(__file__).parents[1] / "data" / "logs"


@pytest.fixture
def run(tmp_path, put, sick, end):
    return put(tmp_path / "logs" / "a.jsonl", [*sick(), end])


def said(capsys):
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    return out, err


@pytest.mark.parametrize("options", [(), ("--once",)])
def test_a_finished_run_is_printed_as_check_prints_it(run, capsys, options):
    assert main(["check", str(run)]) == 1
    checked, _ = said(capsys)
    assert main(["watch", str(run), *options]) == 1
    out, err = said(capsys)
    assert checked in out
    assert err == ""
    assert ("step 120 of 200" in out) == bool(options)


@pytest.mark.parametrize(("options", "code"), [(["--fail-on", "never"], 0), (["--fail-on", "critical"], 1)])
def test_exit_codes_are_those_of_check(run, options, code):
    assert main(["watch", str(run), "--once", *options]) == code


def test_nothing_found_exits_0(write_run, healthy, capsys):
    assert main(["watch", str(write_run(healthy())), "--once"]) == 0
    assert said(capsys)[0].startswith("✓ nothing found  healthy")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("no.jsonl", None, "there is no such file"),
        ("photo.jpg", b"\xff\xd8\xff\xe0", "JPEG"),
        ("empty.jsonl", b"", "empty"),
    ],
)
def test_once_says_what_cannot_be_judged(tmp_path, capsys, name, content, why):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["watch", str(tmp_path / name), "--once"]) == 2
    out, err = said(capsys)
    assert out == ""
    assert why in err
    assert len(err.splitlines()) == 1


def test_once_on_an_empty_folder(tmp_path, capsys):
    assert main(["watch", str(tmp_path), "--once"]) == 2
    assert "holds no run file yet" in said(capsys)[1]


def test_once_on_a_folder_is_a_table(run, put, sick, end, capsys):
    put(run.parent / "b.jsonl", [*sick(name="second"), end])
    assert main(["watch", str(run.parent), "--once"]) == 1
    lines = said(capsys)[0].splitlines()
    assert {line[2:].split()[0] for line in lines[1:3]} == {"sick", "second"}


def test_a_rank_stands_for_its_run(run, put, sick, capsys):
    rank = put(run.parent / "a.rank1.jsonl", sick(rank=1))
    assert main(["watch", str(rank), "--once"]) == 1
    assert "✖ critical  sick  stopped" in said(capsys)[0]


@pytest.mark.parametrize("log", ["hugging_face.log", "keras.csv", "mlflow.db", "lightning", "tensorboard_simple"])
def test_any_log_will_do(log, capsys):
    assert main(["watch", str(LOGS / log), "--once"]) == 0
    assert "▁" in said(capsys)[0]


def test_a_rule_and_a_channel_can_be_set(run, capsys):
    assert main(["watch", str(run), "--once", "--set", "no-such.rule=1"]) == 2
    assert "there is no rule" in said(capsys)[1]


@pytest.fixture
def quick(monkeypatch):
    """Looks that follow each other at once."""
    monkeypatch.setattr(loop, "POLL", 0.01)
    monkeypatch.setattr(loop, "SLOWEST", 0.02)


@pytest.mark.usefixtures("quick")
def test_a_pipe_gets_a_line_for_each_change_and_then_the_diagnosis(tmp_path, put, sick, end, capsys):
    path, records = tmp_path / "logs" / "later.jsonl", sick(name="na\x1b[2Jme")

    def train():
        for part in (records[:60], records[60:110], records[110:], [end]):
            time.sleep(0.4)
            put(path, part)

    trainer = threading.Thread(target=train)
    trainer.start()
    code = main(["watch", str(path)])
    trainer.join()
    assert code == 1
    out, _ = said(capsys)
    lines = [line[10:] for line in out.splitlines() if re.match(r"\d\d:\d\d:\d\d  ", line)]
    assert lines[0].endswith("later.jsonl: there is no such file. Waiting for its first row.")
    assert lines[1].startswith("name  running, steps 1 to ")
    assert lines[2].startswith("name  ✖ critical  curriculum-mismatch")
    (nan,) = (line for line in lines if "non-finite-loss" in line)
    assert "became NaN at step 100" in nan
    assert any(line.startswith("name  stopped, steps 1 to 120") for line in lines)
    assert len({line.split(": ")[0] for line in lines}) == len(lines), "nothing is told twice"
    assert "\n✖ critical  name  stopped, steps 1 to 120 of 200" in out


class Terminal:
    """A program on a pseudo-terminal of its own, and what it has written there."""

    START = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    START += "from trainwatch.cli import main; sys.exit(main(sys.argv[1:]))"

    def __init__(self, *arguments, width=100, height=30, **environment):
        self.end, side = os.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.before = termios.tcgetattr(side)
        plain = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.START, "watch", *map(str, arguments)],
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
            env={**plain, "TERM": "xterm-256color", **environment},
        )
        self.side, self.written = side, b""

    def read(self, seconds):
        while select.select([self.end], [], [], seconds)[0]:
            try:
                self.written += os.read(self.end, 65536)
            except OSError:
                return

    def until(self, text, after=0):
        """Wait for a text; returns where in the output it ends."""
        for _ in range(600):
            self.read(0.1)
            if text in ANSI.sub("", self.written[after:].decode(errors="replace")):
                return len(self.written)
        raise AssertionError(f"{text!r} was never written:\n{self.written[after:].decode(errors='replace')[-3000:]}")

    def press(self, keys):
        os.write(self.end, keys)
        return len(self.written)

    def finish(self):
        """The exit code; the screen, the cursor and the terminal's settings must be as they were."""
        for _ in range(300):
            self.read(0.1)
            if self.process.poll() is not None:
                break
        self.read(0.1)
        assert self.written.count(b"\x1b[?1049h") == self.written.count(b"\x1b[?1049l")
        assert self.written.rfind(b"\x1b[?25h") >= self.written.rfind(b"\x1b[?25l")
        assert termios.tcgetattr(self.side)[3] == self.before[3]
        return self.process.wait(10)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.end)
        os.close(self.side)


@pytest.fixture
def terminal():
    """``terminal(path, width=100)``: `trainwatch watch path` on a terminal."""
    opened = []

    def start(*arguments, **more):
        opened.append(Terminal(*arguments, **more))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_run_is_followed_to_its_end(tmp_path, put, sick, end, terminal):
    path, records = tmp_path / "logs" / "a.jsonl", sick()
    shown = terminal(path)
    shown.until("Waiting for its first row")
    put(path, records[:60])
    shown.until("step 59 of 200")
    put(path, records[60:])
    shown.until("became NaN at step 100")
    shown.until(" new ")
    assert b"\x1b[?1049h" in shown.written
    put(path, [end])
    assert shown.finish() == 1
    left = shown.written.rpartition(b"\x1b[?1049l")[2].decode()
    assert "stopped, steps 1 to 120 of 200" in ANSI.sub("", left)


def test_keys_choose_open_go_back_and_end(tmp_path, put, sick, end, terminal):
    for name in ("one", "two"):
        put(tmp_path / f"{name}.jsonl", [*sick(name=name), end])
    shown = terminal(tmp_path)
    at = shown.until("Enter opens")
    shown.until("two.jsonl", 0)
    shown.press(b"\x1b[B\r")
    at = shown.until("Esc all runs", at)
    shown.press(b"\x1b")
    shown.until("Enter opens", at)
    shown.press(b"q")
    assert shown.finish() == 1


@pytest.mark.parametrize("how", ["key", "signal"])
def test_ctrl_c_and_sigterm_leave_the_terminal_as_it_was(tmp_path, put, sick, terminal, how):
    shown = terminal(put(tmp_path / "a.jsonl", sick()))
    shown.until("q ends")
    if how == "key":
        shown.press(b"\x03")
    else:
        shown.process.send_signal(signal.SIGTERM)
    assert shown.finish() == 130
    assert b"Traceback" not in shown.written


def test_a_plain_terminal_gets_ascii_without_colours(tmp_path, put, sick, terminal):
    hostile = sick(name="na\x1b[31m\u4f60me")
    shown = terminal(put(tmp_path / "a.jsonl", hostile), NO_COLOR="1", PYTHONIOENCODING="ascii")
    shown.until("q ends")
    shown.press(b"q")
    assert shown.finish() == 1
    assert shown.written.isascii()
    assert not re.search(rb"\x1b\[[0-9;]*3[0-7]m", shown.written)
    assert b"X critical" in shown.written


def test_a_window_that_changes_its_size(tmp_path, put, sick, terminal):
    shown = terminal(put(tmp_path / "a.jsonl", sick()), width=60)
    at = shown.until("q ends")
    assert b"limit 1" not in shown.written
    fcntl.ioctl(shown.side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    shown.until("limit 1, clipped in 50%", at)
    shown.press(b"q")
    assert shown.finish() == 1


def test_a_terminal_that_can_nothing_gets_lines(tmp_path, put, sick, end, terminal):
    shown = terminal(put(tmp_path / "a.jsonl", [*sick(), end]), TERM="dumb")
    assert shown.finish() == 1
    assert b"\x1b" not in shown.written

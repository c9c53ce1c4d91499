"""The way to a receiver: real HTTP, real processes, slow and dead ones."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

import pytest

from trainwatch.alerts import channels, delivery
from trainwatch.alerts.channels import Command, Notification, together
from trainwatch.alerts.delivery import Delivery
from trainwatch.alerts.memory import AGE, Memory, folder, forget
from trainwatch.alerts.telling import Message
from trainwatch.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # apprise's own


def message(name, grade=1):
    return Message(name, grade, f"title {name}", f"body {name}", {"event": "finding", "name": name})


def wait(until, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Channel:
    """Notes what it is given; ``fails`` deliveries first."""

    name, identity = "a channel", "secret"

    def __init__(self, fails=0):
        self.got, self.fails, self.tries, self.abandoned = [], fails, 0, False

    def deliver(self, messages):
        self.tries += 1
        if self.tries <= self.fails:
            return "nobody is there"
        self.got.append([one.key for one in messages])
        return ""

    def abandon(self):
        self.abandoned = True


@pytest.fixture
def memory():
    return Memory("a run", "a receiver")


def test_a_few_at_once_and_what_waits_goes_together(memory):
    """Three in a minute; nothing is left out."""
    channel = Channel()
    sender = Delivery(channel)
    for number in range(10):
        sender.put([message(str(number))], memory)
        if number < 3:
            wait(lambda count=number + 1: len(channel.got) == count)
    time.sleep(0.2)
    assert channel.got == [["0"], ["1"], ["2"]]
    sender.close()
    assert channel.got[3:] == [[str(number) for number in range(3, 10)]]
    assert (sender.trouble, len(Memory("a run", "a receiver").told())) == ("", 10)


def test_a_window_later_there_is_room_again(memory, monkeypatch):
    monkeypatch.setattr(delivery, "WINDOW", 0.3)
    channel = Channel()
    sender = Delivery(channel)
    for number in range(5):
        sender.put([message(str(number))], memory)
        time.sleep(0.02)
    wait(lambda: sum(map(len, channel.got)) == 5)
    assert len(channel.got) <= 4
    sender.close()


def test_a_failure_is_tried_again_and_told(memory, monkeypatch):
    monkeypatch.setattr(delivery, "RETRY", 0.05)
    channel = Channel(fails=2)
    sender = Delivery(channel)
    sender.put([message("a")], memory)
    wait(lambda: channel.got == [["a"]])
    assert sender.trouble == "a channel: nobody is there"
    sender.close()


def test_what_nobody_takes_is_counted_and_not_remembered(memory):
    sender = Delivery(Channel(fails=99))
    sender.put([message("a"), message("b")], memory)
    sender.close()
    assert sender.trouble == "a channel: 2 messages could not be delivered (nobody is there)"
    assert Memory("a run", "a receiver").told() == {}


def test_a_notification_by_http(service, memory):
    sender = Delivery(Notification(service.url))
    sender.put([message("a", 2)], memory)
    sender.close()
    (got,) = service.got
    assert (got["title"], got["message"], got["type"]) == ("title a", "body a", "failure")


def test_a_slow_service_holds_up_nobody(service, memory):
    service.held.clear()
    sender = Delivery(Notification(service.url))
    began = time.monotonic()
    for number in range(100):
        sender.put([message(str(number))], memory)
    assert time.monotonic() - began < 0.5
    sender.close(0.2)
    assert time.monotonic() - began < 2
    assert sender.trouble.endswith("messages could not be delivered in time")


def test_a_service_that_refuses(service, memory):
    service.code = 500
    channel = Notification(service.url.replace("json://", "json://user:geheim@"))
    sender = Delivery(channel)
    sender.put([message("a")], memory)
    sender.close()
    assert "1 message could not be delivered (it could not be reached, or did not take the message)" in sender.trouble
    assert "geheim" not in sender.trouble
    assert channel.deliver([message("b")]) != ""


def python(code):
    return shlex.join([sys.executable, "-c", code])


def test_a_command_gets_json_lines_and_no_shell(tmp_path):
    path = tmp_path / "got; touch pwned"
    channel = Command(
        python("import sys; open(sys.argv[1], 'w').write(sys.stdin.read())") + f" {shlex.quote(str(path))}"
    )
    hostile = Message("k", 1, "t", "b", {"run": "$(touch pwned); `id`\n'\""})
    assert channel.deliver([hostile, message("b")]) == ""
    assert [json.loads(line) for line in path.read_text().splitlines()] == [hostile.data, message("b").data]
    assert not (tmp_path / "pwned").exists()
    assert not Path("pwned").exists()


def test_a_command_that_fails_or_hangs(monkeypatch):
    failing = Command(python("import sys; sys.exit('no \\x1b[31mtoken')"))
    assert failing.deliver([message("a")]) == "exit code 1 (no token)"
    assert Command("false").deliver([message("a" * 100_000)]) == "exit code 1"  # stdin that nobody reads
    monkeypatch.setattr(channels, "COMMAND_SECONDS", 0.3)
    hanging = Command(f"sh -c {shlex.quote('sleep 60 & sleep 60')}")
    began = time.monotonic()
    assert hanging.deliver([message("a")]) == "it was not done after 0 s"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (Notification, "no-such://host", "no-such://...: is no URL that apprise knows"),
        (Notification, "words", "is no URL that apprise knows"),
        (Command, "", "is empty"),
        (Command, "a 'b", "cannot be split into words"),
        (Command, "no-such-command x", "there is no command 'no-such-command'"),
    ],
)
def test_what_cannot_be_told_is_said_before_the_watching(kind, given, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace("...", r"\.\.\.")):
        kind(given)


def test_many_messages_are_one_with_the_gravest_first():
    title, body = together([message(str(number), grade=int(number == 5) + 1) for number in range(12)])
    assert title == "title 5, and 11 messages more"
    assert body.startswith("title 5\nbody 5\n\n")
    assert body.endswith("and 4 more")
    assert "@e" not in together([Message("k", 1, "@everyone", "<@1>", {"event": "end"})])[0]


def test_memory_is_the_receivers_own_and_does_not_last_for_ever(memory):
    memory.keep("a", 2)
    assert Memory("a run", "a receiver").told() == {"a": 2}
    assert Memory("a run", "another").told() == Memory("another", "a receiver").told() == {}
    forget(time.time())
    assert len(list(folder().iterdir())) == 1
    forget(time.time() + AGE + 1)
    assert list(folder().iterdir()) == []


def test_a_memory_that_cannot_be_kept_is_none(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    other = Memory("a run", "a receiver")
    other.keep("a", 2)
    assert other.told() == {"a": 2}

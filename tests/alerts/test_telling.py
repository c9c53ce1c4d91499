"""What is worth a message, and that it is told once."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from trainwatch.alerts.telling import Teller
from trainwatch.diagnosis import Diagnosis
from trainwatch.header import Header
from trainwatch.run import Run
from trainwatch.schema import Finding

NAN = Finding(
    "non-finite-loss", "critical", "component:mass", 100, 120, "active", "It became NaN.", {"x": float("nan")}
)
SPIKE = Finding("loss-spike", "warning", "run", 50, 55, "active", "It jumped.")
NOTE = Finding("run-appended", "info", "run", 1, 1, "active", "By the way.")
STALLED = Finding("stalled", "warning", "run", 120, 120, "active", "No step came for 70 s.")


@pytest.fixture
def look(tmp_path):
    """``look(teller, *findings, status="running", ended=False)`` -> (event, rule) of each message, and the messages."""
    run = Run(tmp_path / "a.jsonl", headers=[Header.parse({"run": "a", "id": "a"})], touched=time.time())

    def judge(teller, *findings, status="running", ended=False):
        root = max((one for one in findings if one.rank), key=lambda one: one.rank, default=None)
        said = Diagnosis(
            str(run.source), "trainwatch", "a", status, 1, 120, 120, root, findings, frozenset(), {}, {}, (), {}
        )
        messages = teller.look(run, said, ended)
        return [(one.data["event"], (one.data["finding"] or {}).get("rule")) for one in messages], messages

    judge.run = run
    return judge


def test_a_finding_is_told_when_it_begins_grows_and_is_over(look):
    teller = Teller()
    assert look(teller, NOTE)[0] == []
    assert look(teller, SPIKE, NOTE)[0] == [("finding", "loss-spike")]
    assert look(teller, replace(SPIKE, last_step=60, message="It jumped far."))[0] == []
    assert look(teller, replace(SPIKE, severity="critical"), NAN)[0] == [
        ("finding", "loss-spike"),
        ("finding", "non-finite-loss"),
    ]
    assert look(teller, SPIKE, NAN)[0] == []  # less grave is no news
    assert look(teller, replace(SPIKE, state="over"), NAN)[0] == [("over", "loss-spike")]
    assert look(teller, replace(SPIKE, severity="critical"), NAN)[0] == []  # it flickers
    assert look(teller, NAN)[0] == []
    assert look(teller)[0] == [("over", "non-finite-loss")]  # a rule took it back
    assert look(teller)[0] == []


def test_one_that_is_over_at_once_is_told_once(look):
    teller = Teller()
    assert look(teller, replace(SPIKE, state="over"))[0] == [("finding", "loss-spike")]
    assert look(teller)[0] == []


def test_the_end_is_one_message_with_its_root_cause(look):
    teller = Teller()
    events, (message,) = look(teller, SPIKE, NAN, NOTE, status="killed", ended=True)
    assert events == [("end", "non-finite-loss")]
    assert [one["rule"] for one in message.data["also"]] == ["loss-spike"]
    assert message.title == "✖ a: killed, steps 1 to 120"
    assert message.body.startswith("Root cause, since step 100: It became NaN.")
    assert json.loads(json.dumps(message.data, allow_nan=False))["finding"]["evidence"] == {"x": "nan"}
    assert look(teller, SPIKE, NAN, NOTE, status="killed", ended=True)[0] == []
    look.run.headers.append(Header.parse({"run": "a", "id": "a", "resumed_from": 90}))
    assert look(teller)[0] == []  # it goes on, and what is gone was never told by itself
    assert look(teller, status="finished", ended=True)[0] == [("end", None)]


def test_a_stall_is_told_as_the_runs_state_and_when_it_goes_on(look):
    teller = Teller()
    events, (message,) = look(teller, STALLED, status="stalled")
    assert events == [("stalled", "stalled")]
    assert message.title == "▲ a: stalled, steps 1 to 120"
    assert look(teller)[0] == [("over", "stalled")]


def test_a_folders_old_runs_are_no_news(look):
    quiet = Teller(quiet=True)
    assert look(quiet, NAN, status="failed", ended=True)[0] == []
    assert look(quiet, NAN, status="failed", ended=True)[0] == []
    assert look(Teller(quiet=True, told={"x": 2}), NAN, status="failed", ended=True)[0] == [("end", "non-finite-loss")]
    alive = Teller(quiet=True)
    assert look(alive, NAN)[0] == [("finding", "non-finite-loss")]
    assert look(alive, NAN, status="failed", ended=True)[0] == [("end", "non-finite-loss")]


def test_what_was_told_before_is_not_told_anew(look):
    before = Teller()
    (told,) = look(before, NAN)[1]
    assert look(Teller({told.key: told.grade}), NAN)[0] == []
    assert look(Teller({told.key: told.grade}), replace(NAN, state="over"))[0] == [("over", "non-finite-loss")]
    assert look(Teller({told.key: told.grade}))[0] == []  # nothing is left that could be told


def test_a_hostile_name_stays_text(look):
    look.run.headers[0] = Header.parse({"run": "x\x1b[2J\n@everyone", "id": "a"})
    (message,) = look(Teller(), replace(NAN, message="a\x1b]0;b\x07\nc\u202e"))[1]
    assert not any(ord(sign) < 32 for sign in message.title + message.body.replace("\n", ""))
    assert "\u202e" not in message.body

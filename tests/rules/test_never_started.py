"""never-started: attempts, and what stopped each."""

import numpy as np

from trainwatch.diagnosis import diagnose


def failed(kind, message):
    return {"kind": "end", "status": "failed", "exception": {"type": kind, "message": message}}


def test_attempts_and_exceptions_are_counted(play, judge):
    """Three attempts, two kinds of error; an event that an end repeats counts once."""
    event = {"kind": "event", "event": "exception", "type": "TypeError", "message": "a"}
    head = {"kind": "run", "id": "r"}
    run = play([head, event, failed("TypeError", "a"), head, failed("TypeError", "a"), head, failed("KeyError", "'b'")])
    (found,) = judge(run, "never-started")
    assert (found.severity, found.subject, found.first_step) == ("critical", "run", 0)
    assert found.evidence == {"attempts": 3, "exceptions": 3, "kinds": 2}
    assert "3 attempts: 2 x TypeError: a; 1 x KeyError: 'b'" in found.message


def test_it_is_told_before_the_exception(play):
    """It knows of every attempt, and crashed of the last one."""
    found = diagnose(play([{"kind": "run"}, failed("TypeError", "'<' not supported between instances of 'str'")]))
    assert found.root_cause.rule == "never-started"
    assert {key[0] for key in found.explained} == {"crashed"}


def test_a_death_without_a_word_and_a_stop_by_hand(play, judge):
    """The first is critical, the second is somebody's will."""
    (found,) = judge(play([{"kind": "run"}]), "never-started")
    assert (found.severity, "died" in found.message) == ("critical", True)
    (found,) = judge(play([{"kind": "run"}, {"kind": "end", "status": "stopped"}]), "never-started")
    assert found.severity == "info"


def test_runs_that_are_none_of_this(play, judge, make_run):
    """One that just began, one that evaluates only, one with steps, a file without a header."""
    young = play([{"kind": "run"}])
    young.touched = 4e9
    assert judge(young, "never-started") == []
    assert judge(play([{"kind": "run"}, {"kind": "eval", "step": 0, "loss": 1.0}]), "never-started") == []
    assert judge(make_run({"loss": np.ones(1)}, header={}), "never-started") == []
    assert judge(play([]), "never-started") == []

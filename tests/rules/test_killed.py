"""killed: dead without a last word."""

import socket

import numpy as np


def test_what_was_done_last_and_what_is_lost(make_run, judge):
    """The last step, its time, and the last checkpoint."""
    saved = [{"kind": "checkpoint", "step": 40, "path": "c40.pt"}]
    columns = {"loss": np.ones(50), "time": 1.7e9 + np.arange(50)}
    (found,) = judge(make_run(columns, header={"host": "elsewhere", "pid": 1}, events=saved, end=None), "killed")
    assert (found.severity, found.subject, found.first_step, found.confidence) == ("critical", "run", 50, 0.6)
    assert found.evidence == {"step": 50, "last_record": 1.7e9 + 49, "checkpoint": 40, "lost_steps": 10}
    assert "10 steps are lost" in found.message
    assert "c40.pt" in found.advice


def test_memory_that_grew_is_told(make_run, judge):
    """The out-of-memory killer becomes likely; on this host the pid is proof."""
    columns = {"loss": np.ones(500), "memory/host": np.linspace(1e9, 3e9, 500)}
    header = {"host": socket.gethostname(), "pid": 2**22 + 5}
    (found,) = judge(make_run(columns, header=header, end=None), "killed")
    assert found.confidence > 0.9
    assert found.evidence["memory"] == "memory/host"
    assert "no checkpoint was recorded" in found.message


def test_the_checkpoint_that_a_resume_came_from(make_run, judge):
    """Is not lost; and a signal that came last is named."""
    run = make_run({"loss": np.ones(50)}, header={}, end=None)
    sent = [{"event": "signal", "name": "SIGTERM"}]
    make_run({"step": range(31, 36), "loss": np.ones(5)}, header={"resumed_from": 30}, events=sent, end=None, onto=run)
    (found,) = judge(run, "killed")
    assert (found.first_step, found.evidence["lost_steps"]) == (35, 5)
    assert "SIGTERM had reached it" in found.message


def test_who_said_goodbye_was_not_killed(make_run, judge):
    """Nor who never took a step."""
    assert judge(make_run({"loss": np.ones(5)}, header={}), "killed") == []
    assert judge(make_run(header={}, end=None), "killed") == []

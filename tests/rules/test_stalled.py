"""A process that lives and takes no steps."""

import os
import socket
import time

import numpy as np
import psutil
import pytest

RULE = "stalled"


def waiting(make_run, idle, rows=100, phase="train", seconds=0.5):
    """A run of this very process whose last step was so long ago."""
    now = time.time()
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "process_started": psutil.Process().create_time()}
    when = now - idle - seconds * np.arange(rows)[::-1]
    run = make_run({"time": when, "elapsed": when - when.min(initial=now)} if rows else {}, header=mine, end=None)
    run.touched = now
    run.heartbeat = {"kind": "heartbeat", "time": now, "phase": phase, "idle": float(idle)}
    return run


@pytest.mark.parametrize(("idle", "severity"), [(300, "warning"), (3600, "critical")])
def test_how_long(make_run, judge, idle, severity):
    """Minutes, and more than half an hour."""
    (found,) = judge(waiting(make_run, idle), RULE)
    assert (found.severity, found.first_step) == (severity, 100)
    assert f"--pid {os.getpid()}" in found.advice


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize(("idle", "severity"), [(300, "info"), (3000, "warning")])
def test_before_the_first_steps_it_may_take_longer(make_run, judge, rows, idle, severity):
    """Data are loaded, kernels compiled."""
    (found,) = judge(waiting(make_run, idle, rows), RULE)
    assert found.severity == severity


@pytest.mark.parametrize(
    ("idle", "phase", "seconds"),
    [(20, "train", 0.5), (3600, "eval", 0.5), (3600, "checkpoint", 0.5), (300, "train", 60)],
)
def test_what_is_healthy(make_run, judge, idle, phase, seconds):
    """A moment, an evaluation, a checkpoint, steps of a minute."""
    assert judge(waiting(make_run, idle, phase=phase, seconds=seconds), RULE) == []


@pytest.mark.parametrize("end", ["finished", "stopped", "failed"])
def test_what_has_ended_does_not_stall(make_run, judge, end):
    """Whatever its end was."""
    assert judge(make_run({"loss": np.ones(50)}, header={}, end=end), RULE) == []


@pytest.mark.parametrize(("idle", "told"), [(300, "300 s"), (3600, "60 min"), (36_000, "10 h"), (864_000, "10 days")])
def test_in_what_unit(make_run, judge, idle, told):
    """Nobody reads thirteen million minutes."""
    (found,) = judge(waiting(make_run, idle), RULE)
    assert f"for {told} after" in found.message

"""The state function and the tables of a run."""

import os
import socket
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from trainwatch.run import Run
from trainwatch.table import Table

NOW = time.time()
MINE = {"host": socket.gethostname(), "pid": os.getpid(), "process_started": psutil.Process().create_time()}
DEAD = {**MINE, "process_started": 1.0}  # the pid is alive, but it is somebody else now
FOREIGN = {"host": "another-machine", "pid": 1, "process_started": 1.0}


def run_with(
    header: dict, *, steps: int = 3, at: float = NOW, beat: dict | None = None, end: dict | None = None
) -> Run:
    run = Run(Path("r.jsonl"), touched=at)
    run.add_header({"kind": "run", **header})
    if steps:
        times = at + np.arange(steps) - steps + 1
        run.add_rows("train", np.arange(1, steps + 1), {"time": times, "elapsed": np.arange(steps, dtype=float)})
    run.heartbeat = beat
    if end is not None:
        run.add_event({"kind": "end", **end})
    return run


@pytest.mark.parametrize(
    ("run", "status"),
    [
        (run_with(MINE), "running"),
        (run_with(MINE, steps=0), "running"),
        (run_with(DEAD), "killed"),
        (run_with(DEAD, steps=0), "never-started"),
        (run_with(DEAD, end={"status": "failed"}), "failed"),
        (run_with(DEAD, end={"status": "stopped"}), "stopped"),
        (run_with(DEAD, end={"status": "nonsense"}), "finished"),
        (run_with(FOREIGN), "running"),
        (run_with(FOREIGN, at=NOW - 61), "killed"),
        (run_with({}, at=NOW - 61), "killed"),
        (run_with(MINE, at=NOW - 90, beat={"time": NOW, "idle": 90.0, "phase": "train"}), "stalled"),
        (run_with(MINE, at=NOW - 90, beat={"time": NOW, "idle": 90.0, "phase": "eval"}), "running"),
        (run_with(MINE, at=NOW - 90, beat={"time": NOW, "idle": 30.0, "phase": "train"}), "running"),
        (run_with(MINE, at=NOW - 900), "stalled"),
    ],
)
def test_state(run: Run, status: str):
    """The same function for every face (DESIGN section 3)."""
    assert run.status(NOW) == status


def test_a_resume_takes_the_end_back():
    """What failed and goes on is running."""
    run = run_with(MINE, end={"status": "failed"})
    run.add_header({"kind": "run", **MINE, "resumed_from": 2})
    assert run.status(NOW) == "running"


def test_what_the_recorder_learns_later_belongs_to_the_header():
    """Modules are known when the model is attached, after the header was written."""
    run = run_with({**MINE, "total_steps": 9})
    run.add_event({"kind": "event", "event": "monitor", "parameters": 7, "total_steps": 1})
    assert (run.header.raw["parameters"], run.header.total_steps) == (7, 9)


def test_slow_steps_are_given_more_time():
    """Twenty times the median step, where that is longer than a minute."""
    run = run_with(FOREIGN, at=NOW - 300)
    run.train["elapsed"][:] = [0.0, 100.0, 200.0]
    assert run.status(NOW) == "running"


def test_a_column_that_appears_late_is_absent_before():
    """Not zero, and not NaN as a value."""
    table = Table()
    table.append(np.array([1, 2]), {"a": np.array([1.0, 2.0])})
    table.append(np.array([3]), {"b": np.array([5.0])})
    assert np.isnan(table["b"][:2]).all()
    assert table.codes("b").tolist() == [0, 0, 0]
    assert table.curve("b")[0].tolist() == [3]


def test_columns_are_known_by_how_their_names_begin():
    """In order of appearance; also those that came after somebody had asked."""
    table = Table()
    table.append(np.array([1]), {"loss/b": np.ones(1), "lr/0": np.ones(1)})
    assert table.kind("loss/") == ("loss/b",)
    table.append(np.array([2]), {"loss/a": np.ones(1)})
    assert table.kind("loss/") == ("loss/b", "loss/a")
    assert table.kind("grad/") == ()


def test_growth_keeps_memory_below_twice_the_columns():
    """A thousand appends of odd sizes."""
    table = Table()
    for rows in range(1, 400):
        table.append(np.arange(rows), {"a": np.ones(rows)})
    assert table["a"].sum() == table.size
    assert table._values["a"].nbytes <= 2 * table["a"].nbytes


def test_the_newest_value_of_a_channel_also_where_it_is_not_finite_or_long_ago(make_run):
    loss = np.full(5000, np.nan)
    loss[:3] = 3.0, 2.0, 1.0
    run = make_run({"loss": loss, "grad_norm": np.r_[np.ones(4999), np.inf]})
    assert run.train.last("loss") == 1.0
    assert run.train.last("grad_norm") == np.inf
    assert run.train.last("no-such") is None

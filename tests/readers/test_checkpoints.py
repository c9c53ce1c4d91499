"""Lists of checkpoints beside a log: they belong to its run, and are no run of their own."""

import json

import pytest

from trainwatch.judge import run_files
from trainwatch.readers import find, open_run, read

ROWS = "".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, 101))
RUN = '{"kind": "run", "schema": 1, "run": "ours", "id": "a"}\n{"kind": "step", "step": 40, "loss": 1.0}\n'
TABLE = "step,loss\n" + "".join(f"{step},{1 / step}\n" for step in range(1, 101))
PRINTED = "".join(f"step {step}: loss {1 / step:.4f}\n" for step in range(1, 101))
LISTED = '{"step": 20, "path": "ckpt/20.pt", "val_loss": 0.5}\n{"step": 40, "path": "ckpt/40.pt", "best": true}\n'


def written(run):
    return [(event["step"], event.get("path")) for event in run.events if event["kind"] == "checkpoint"]


@pytest.mark.parametrize(
    ("log", "content"),
    [
        ("run.jsonl", ROWS),
        ("run.jsonl", RUN),
        ("run_metrics.jsonl", ROWS),
        ("run.csv", TABLE),
        ("run.log", PRINTED),
    ],
)
def test_they_are_the_runs_checkpoints(tmp_path, log, content):
    """Named by the log, or by the log without its `_metrics`; whichever file is asked for, the run is read."""
    listed = tmp_path / "run_checkpoints.jsonl"
    (tmp_path / log).write_text(content)
    listed.write_text(LISTED)
    assert list(find(tmp_path)) == [tmp_path / log]
    assert list(run_files([listed, tmp_path / log])) == [tmp_path / log]
    for path in (tmp_path / log, listed):
        assert written(read(path)) == [(20, "ckpt/20.pt"), (40, "ckpt/40.pt")]
    assert read(listed).eval.size == 0


def test_tinker_lists_them_by_batch(tmp_path):
    """`checkpoints.jsonl` beside `metrics.jsonl`."""
    (tmp_path / "metrics.jsonl").write_text(ROWS)
    (tmp_path / "checkpoints.jsonl").write_text('{"name": "000020", "batch": 20, "state_path": "tinker://a/20"}\n')
    assert [path.name for path in find(tmp_path)] == ["metrics.jsonl"]
    assert written(read(tmp_path / "metrics.jsonl")) == [(20, "tinker://a/20")]


def test_they_come_while_the_log_grows(tmp_path):
    """Each once; a torn line, a line of another kind, and one without a step are left out."""
    log, listed = tmp_path / "run.jsonl", tmp_path / "run_checkpoints.jsonl"
    log.write_text(ROWS)
    source = open_run(log)
    assert source.poll()
    listed.write_text('[1]\n{"path": "x"}\n' + LISTED[:70])
    assert source.poll()
    assert not source.poll()
    listed.write_text('[1]\n{"path": "x"}\n' + LISTED)
    assert source.poll()
    source.close()
    assert written(source.runs[-1]) == [(20, "ckpt/20.pt"), (40, "ckpt/40.pt")]
    assert source.runs[-1].train.size == 100


def test_epochs_are_counted_as_the_log_counts_them(tmp_path):
    """A checkpoint of epoch 2 of a log of epochs; one of a log of steps that tells its epoch alone has no place."""
    (tmp_path / "run.csv").write_text("epoch,loss\n1,3.0\n2,2.0\n3,1.0\n")
    (tmp_path / "run_checkpoints.jsonl").write_text('{"epoch": 2, "file": "2.pt"}\n')
    assert written(read(tmp_path / "run.csv")) == [(2, "2.pt")]
    (tmp_path / "run.csv").write_text(TABLE)
    assert written(read(tmp_path / "run.csv")) == []


def test_a_file_that_is_only_called_so_is_a_run(tmp_path):
    """Without a log beside it, or written by our recorder."""
    alone, ours = tmp_path / "alone_checkpoints.jsonl", tmp_path / "ours_checkpoints.jsonl"
    alone.write_text(ROWS)
    ours.write_text(RUN)
    (tmp_path / "ours.jsonl").write_text(RUN)
    assert [path.name for path in find(tmp_path)] == [alone.name, "ours.jsonl", ours.name]
    assert read(alone).train.size == 100

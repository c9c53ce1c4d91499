"""Two ranks under torchrun: the same training as in one process, one record each, one end for both."""

import json
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

import trainwatch
from trainer import checkpoint, distributed, train
from trainer.config import UsageError
from trainer.distributed import World, joined
from trainer.loading import load

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, signal, sys, torch
from trainer import train
from trainer.__main__ import main
rank, note = int(os.environ["RANK"]), train.note
def noted(run, *others):
    note(run, *others)
    if rank == 1 and run.step == 2:
        {at_step_two}
train.note = noted
if __name__ == "__main__":  # shards are predicted in spawned processes, which import this too
    sys.exit(main(sys.argv[1:]))
"""
SETTINGS = {
    "size": "tiny",
    "epochs": 1,
    "samples": 21,  # of 8 a step: the third has a batch of 4 and one of 1, of which the second rank has none
    "batch_size": 2,
    "accumulation": 2,
    "optimizer.lr": 1e-6,  # large enough to move, small enough not to blow up the last bits of the first steps
    "device": "cpu",
    "threads": 1,
    "data.source": "theoretical",
    "data.peptides": 50,
    "data.max_peaks": 16,
    "evaluation.samples": 4,
    "evaluation.every": 1.0,
    "checkpoint.every": 0.3,
    "checkpoint.keep": 9,
}


def settings(folder, **changes):
    values = {**SETTINGS, "logs": folder, "name": "run", "data.folder": folder.parent / "shards", **changes}
    return [f"{name}={value}" for name, value in values.items()]


def torchrun(folder, *arguments, at_step_two="pass", **changes):
    """Two processes; gives the launcher's exit code, and what was said on stderr."""
    folder.mkdir(exist_ok=True)
    script = folder / "program.py"
    script.write_text(PROGRAM.format(at_step_two=at_step_two))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*launch, *arguments, *settings(folder, **changes)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


def records(folder, rank):
    path = folder / ("run.rank1.jsonl" if rank else "run.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(folder, rank=0):
    return [record for record in records(folder, rank) if record["kind"] == "step"]


def weights(folder, step):
    return checkpoint.load(folder / "run.checkpoints" / f"step_{step:08d}.pt")["model"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Runs of two ranks that came to their end, each launched once, whatever the order of the tests."""
    return {}, tmp_path_factory.mktemp("pairs")


@pytest.fixture(params=["ddp", "fsdp"])
def pair(request, finished, tmp_path):
    """A finished run of two ranks, for the test to do with as it likes: its folder, and how they were parallel."""
    kind, (known, place) = request.param, finished
    if kind not in known:
        known[kind] = torchrun(place / kind, parallel=kind)
    code, said = known[kind]
    assert code == 0, said
    shutil.copytree(place / kind, tmp_path / kind, symlinks=True)
    return tmp_path / kind, kind


@pytest.fixture
def alone(tmp_path, capfd):
    """The same run in one process, whose batches are as large as those of both ranks."""
    train.main(load([], settings(tmp_path / "alone", batch_size=4))[0])
    capfd.readouterr()
    return tmp_path / "alone"


def test_two_ranks_take_the_steps_of_one(pair, alone):
    folder, _ = pair
    for first, second, one in zip(rows(folder), rows(folder, 1), rows(alone), strict=True):
        names = [name for name in one if name.startswith("grad_norm")]
        assert [first[name] for name in names] == pytest.approx([one[name] for name in names], rel=1e-4)
        assert [first[name] for name in names] == [second[name] for name in names]
        assert first["samples"] == second["samples"] == one["samples"]
    for first, second, one in list(zip(rows(folder), rows(folder, 1), rows(alone), strict=True))[:2]:
        assert (first["loss"] + second["loss"]) / 2 == pytest.approx(one["loss"], rel=1e-4)
    moved, expected = weights(folder, 3), weights(alone, 3)
    assert all(torch.allclose(moved[name], expected[name], atol=7e-6) for name in expected)
    assert moved.keys() == expected.keys()


def test_each_rank_has_a_record_and_together_they_are_one_run(pair):
    folder, kind = pair
    heads = [records(folder, rank)[0] for rank in (0, 1)]
    assert [(head["rank"], head["world_size"]) for head in heads] == [(0, 2), (1, 2)]
    assert heads[0]["id"] == heads[1]["id"]
    assert heads[0]["horizon"] == heads[1]["horizon"]
    assert (heads[0]["horizon"]["batch_size"], heads[0]["horizon"]["processes"]) == (4, 2)
    assert [records(folder, rank)[-1]["status"] for rank in (0, 1)] == ["finished", "finished"]
    assert [row["data/index"] for row in rows(folder)] == [0, 8, 16]
    assert [row["data/index"] for row in rows(folder, 1)] == [2, 10, 18]
    if kind == "ddp":
        assert rows(folder)[0]["param_hash"] == rows(folder, 1)[0]["param_hash"]
        assert rows(folder)[0]["param_grad/sequence"] > 0
    run = trainwatch.read(folder / "run.jsonl")
    assert sorted(run.ranks) == [1]
    assert not [finding for finding in trainwatch.diagnose(run).findings if finding.rank]


def test_a_resume_of_two_ranks_is_bit_exact(pair):
    folder, kind = pair
    before, whole = rows(folder), weights(folder, 3)
    code, said = torchrun(folder, "--resume", "before:2", parallel=kind)
    assert code == 0, said
    again = rows(folder)
    assert [row["step"] for row in again] == [1, 2, 3, 3]
    for name in ("loss", "grad_norm", "data/fingerprint"):
        assert again[3][name] == before[2][name]
    resumed = weights(folder, 3)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    heads = [[record for record in records(folder, rank) if record["kind"] == "run"] for rank in (0, 1)]
    assert [head["resumed_from"] for _, head in heads] == [2, 2]


def test_one_process_goes_on_from_two(pair, capfd):
    folder, _ = pair
    whole = weights(folder, 3)
    outcome = train.main(load([], settings(folder, batch_size=4))[0], resume="before:2")
    assert outcome.step == 3
    alone = weights(folder, 3)
    assert all(torch.allclose(whole[name], alone[name], atol=3e-6) for name in whole)
    with pytest.raises(UsageError, match="other batch_size"):
        train.main(load([], settings(folder))[0], resume="before:2")
    capfd.readouterr()


@pytest.mark.parametrize(("whom", "code"), [("os.getpid()", 0), ("os.getppid()", 1)])
def test_a_signal_to_one_rank_or_to_torchrun_stops_both(tmp_path, whom, code):
    changes = {"samples": 4000, "checkpoint.every": 1.0, "data.workers": 1}
    ended, said = torchrun(tmp_path / "run", at_step_two=f"os.kill({whom}, signal.SIGTERM)", **changes)
    assert ended == code, said
    ends = [records(tmp_path / "run", rank)[-1] for rank in (0, 1)]
    assert [(end["kind"], end["status"], end["reason"]) for end in ends] == [("end", "stopped", "SIGTERM")] * 2
    assert ends[0]["step"] == ends[1]["step"] < 12
    assert checkpoint.load(tmp_path / "run" / "run.checkpoints" / "latest.pt")["step"] == ends[0]["step"]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_stop_file_stops_both_at_one_step(tmp_path, kind):
    """Each rank looks for itself, twice a second: one learns it from the other, and rank 0's record says who asked."""
    request = {"by": "trainwatch watch --stop-on critical", "finding": {"rule": "loss-divergence", "message": "why"}}
    stop, written = tmp_path / "run" / "run.stop", tmp_path / "asked"
    written.write_text(json.dumps(request))
    changes = {"samples": 8000, "checkpoint.every": 1.0, "parallel": kind}
    ended, said = torchrun(tmp_path / "run", at_step_two=f"os.rename({str(written)!r}, {str(stop)!r})", **changes)
    assert ended == 0, said
    ends = [records(tmp_path / "run", rank)[-1] for rank in (0, 1)]
    assert [(end["kind"], end["status"], end["reason"]) for end in ends] == [("end", "stopped", "stop file")] * 2
    assert 2 < ends[0]["step"] == ends[1]["step"] < 1000
    assert checkpoint.load(tmp_path / "run" / "run.checkpoints" / "latest.pt")["step"] == ends[0]["step"]
    told = records(tmp_path / "run", 0)
    assert [record["step"] for record in told if record["kind"] == "checkpoint"] == [ends[0]["step"]]
    (event,) = (record for record in told if record.get("event") == "intervention")
    assert (event["action"], event["by"], event["why"]) == ("stop", request["by"], "why")
    assert event["rule"] == "loss-divergence"


def test_a_crash_of_one_rank_is_the_end_of_both(tmp_path):
    code, _ = torchrun(tmp_path / "run", at_step_two="raise RuntimeError('out of luck')")
    assert code == 1
    ends = [records(tmp_path / "run", rank)[-1] for rank in (0, 1)]
    assert [(end["kind"], end["status"]) for end in ends] == [("end", "failed")] * 2
    assert ends[1]["reason"] == "RuntimeError: out of luck"


LAUNCHED = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "changes", "match"),
    [
        ({"WORLD_SIZE": "two"}, {}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, {}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "2"}, {}, "RANK is not set"),
        ({**LAUNCHED, "MASTER_ADDR": ""}, {}, "MASTER_ADDR is not set"),
        ({**LAUNCHED, "RANK": "2"}, {}, "RANK is 2"),
        ({**LAUNCHED, "RANK": "1", "MASTER_ADDR": "no such host"}, {}, "rank 1 of 2 did not meet the others"),
        (LAUNCHED, {"device": "cuda:1"}, "device 'cuda:1'"),
        (LAUNCHED, {"parallel": "fsdp", "precision": "fp16"}, "precision=fp16"),
        ({"WORLD_SIZE": "1"}, {"processes": 2}, "processes is 2"),
    ],
)
def test_a_wrong_launch_is_one_sentence(environment, changes, match, monkeypatch, tmp_path):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=2))
    with pytest.raises(UsageError, match=match) as caught, joined(load([], settings(tmp_path, **changes))[0]):
        pass
    assert "\n" not in str(caught.value)


def test_an_unknown_way_to_be_parallel_is_one_sentence():
    with pytest.raises(UsageError, match="parallel 'tp' does not exist; choose one of ddp, fsdp"):
        load([], ["parallel=tp"])


def test_one_process_knows_nothing_of_others(config):
    with joined(config()) as world:
        assert type(world) is World
        assert not torch.distributed.is_initialized()
        assert world.agree("SIGTERM") == "SIGTERM"
        assert world.of_rank_zero(lambda: 3) == 3

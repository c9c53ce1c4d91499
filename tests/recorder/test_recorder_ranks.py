"""Many ranks: one file each under one name; norms of sharded weights are those of the whole gradient."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import trainwatch
from trainwatch.recorder import file

ROOT = Path(__file__).parents[2]
PROGRAM = """
import gc, os, sys, torch, trainwatch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

distributed.init_process_group("gloo")
rank = distributed.get_rank()
torch.manual_seed(0)
data = torch.randn(8, 6, dtype=torch.float64)[rank * 4 : rank * 4 + 4]


def train(name, enabled):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 1)).double()
    called = net
    if name == "fsdp":
        fully_shard(net[0])
        fully_shard(net)
    else:
        called = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = trainwatch.Recorder(f"{sys.argv[1]}/{name}.jsonl", enabled=enabled)
    watch.attach(net, optimizer)
    norms = []
    for step in range(3):
        out = called(data)
        parts = {"fit": out.square().mean(), "bias": out.mean()}
        watch.losses(parts, {"bias": 0.5}, at=out, over=net.parameters()).backward()
        norms.append(float(watch.gradients(max_norm=0.1)))
        optimizer.step()
        if name != "kept":
            optimizer.zero_grad()
        watch.param_hash()
        watch.step()
    watch.close()
    return norms


results = {name: train(name, True) for name in ("ddp", "fsdp")}
train("kept", True)
assert train("fsdp", enabled=rank == 0) == results["fsdp"]  # a rank whose recorder is off takes part all the same
gc.collect()
distributed.destroy_process_group()
sys.stderr.flush()
os._exit(0)  # gloo's threads may let go of a tensor while the interpreter ends, and abort (pytorch #190489)
"""


def alone():
    """Norms of whole gradients, before clipping, of the same steps with all samples in one process."""
    torch.manual_seed(0)
    data = torch.randn(8, 6, dtype=torch.float64)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 1)).double()
    optimizer, norms = torch.optim.SGD(net.parameters(), lr=0.1), []
    for _ in range(3):
        out = net(data)
        (out.square().mean() + 0.5 * out.mean()).backward()
        modules = [nn.utils.get_total_norm([p.grad for p in net[index].parameters()]) for index in (0, 2)]
        norms.append([float(nn.utils.clip_grad_norm_(net.parameters(), 0.1)), *map(float, modules)])
        optimizer.step()
        optimizer.zero_grad()
    return norms


def test_two_ranks_record_the_norms_of_the_whole_gradient(tmp_path, steps, records):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = alone()
    for name in ("ddp", "fsdp"):
        for member in (f"{name}.jsonl", f"{name}.rank1.jsonl"):
            rows = steps(tmp_path / member)
            found = [[row["grad_norm"], row["grad_norm/0"], row["grad_norm/2"]] for row in rows]
            assert found == [pytest.approx(norms, rel=1e-12) for norms in expected], member
            assert all(0 < row["grad_share/bias"] < 1 for row in rows)
            assert ("update_ratio/0" in rows[0]) == ("param_grad/fit" in rows[0]) == (name == "ddp")
    hashes = [[row["param_hash"] for row in steps(tmp_path / f"ddp{rank}.jsonl")] for rank in ("", ".rank1")]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == 3
    carried = {name: [row.get("grad_carried") for row in steps(tmp_path / f"{name}.jsonl")] for name in ("ddp", "kept")}
    assert carried == {"ddp": [None] * 3, "kept": [None, 1, 1]}  # the reducer writes them too, before the optimiser
    told = [row["message"] for row in records(tmp_path / "fsdp.jsonl") if row.get("event") == "monitor"]
    assert sum("withheld" in message for message in told) == 3


def test_a_new_run_leaves_stale_files_of_other_ranks_alone(tmp_path):
    stale = tmp_path / "run.rank1.jsonl"
    stale.write_text("{}\n")
    os.utime(stale, (0, 0))
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        assert watch.path.name == "run-2.jsonl"
    fresh = tmp_path / "other.rank1.jsonl"
    fresh.write_text("{}\n")  # of a rank that was faster than rank 0
    with trainwatch.Recorder(tmp_path / "other.jsonl") as watch:
        assert watch.path.name == "other.jsonl"


def test_a_rank_that_joins_at_a_resume_is_of_the_same_run(tmp_path, records, monkeypatch):
    monkeypatch.setattr(file, "RANK_WAIT", 0.2)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as first:
        first.step()
    with trainwatch.Recorder(tmp_path / "run.jsonl", resume=1, rank=1, world_size=2) as joined:
        assert joined.path.name == "run.rank1.jsonl"
    before, now = json.loads(first.path.read_text().splitlines()[0]), records(joined.path)[0]
    assert (now["id"], now["attempt"], now["resumed_from"]) == (before["id"], before["attempt"], 1)

"""On a GPU: no synchronisation is added, and what arrives is what was captured."""

import pytest
import torch
from torch import nn

import trainwatch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def no_sync():
    """Any synchronisation of host and device is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_watched_step_does_not_synchronise(tmp_path, steps, request, dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10)).cuda()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16, init_scale=1024.0)
    x, target = torch.randn(32, 64, device="cuda"), torch.randint(0, 10, (32,), device="cuda")
    watch = trainwatch.Recorder(tmp_path / "run.jsonl")
    watch.attach(net, optimizer, scaler)

    def train():
        for _ in watch.batches([x]):
            watch.inputs(x)
        with torch.autocast("cuda", dtype):
            logits = net(x).float()
        parts = {"ce": nn.functional.cross_entropy(logits, target), "reg": logits.square().mean()}
        scaler.scale(watch.losses(parts, {"ce": 1.0, "reg": 0.1}, at=logits, over=net.parameters())).backward()
        scaler.unscale_(optimizer)
        watch.gradients(1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        watch.param_hash()
        watch.log({"absmax/logits": logits.detach().abs().amax()})
        watch.step()

    train()  # lazy initialisation, ours and torch's, may synchronise
    request.getfixturevalue("no_sync")
    for _ in range(60):
        train()
    torch.cuda.set_sync_debug_mode("default")
    watch.close()
    rows = steps(watch.path)
    assert len(rows) == 61
    assert all(row["loss"] > 0 and row["grad_norm/0"] > 0 and row["grad_share/ce"] > 0 for row in rows)
    assert all(row["param_share/ce"] > 0 and row["param_hash"] == int(row["param_hash"]) for row in rows)
    assert all(row["data/input_absmax"] > 0 and row["bad/input"] == 0 for row in rows)
    assert rows[49]["memory/cuda"] > 0
    assert rows[-1]["applied"] == 61


def test_values_are_those_of_the_moment(tmp_path, steps):
    watch = trainwatch.Recorder(tmp_path / "run.jsonl")
    value = torch.zeros((), device="cuda")
    for step in range(300):
        value.fill_(step)
        watch.log({"x": value, "half": value.half(), "count": value.long(), "host": torch.tensor(float(step))})
        value.fill_(-1)
        watch.step()
    watch.close()
    rows = steps(watch.path)
    assert [row["x"] for row in rows] == list(range(300))
    assert all(row["x"] == row["half"] == row["count"] == row["host"] for row in rows)

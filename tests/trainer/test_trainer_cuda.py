"""On a GPU: the trainer's own step, with all its telemetry, never makes the host wait for the device."""

import json

import pytest
import torch

from trainer import train
from trainer.feed import needed_lengths, prepare_data, stream
from trainer.run import build
from trainwatch import Recorder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
STEPS = 60  # long enough for what is looked at every fiftieth step


@pytest.fixture
def forbidden():
    """Any synchronisation of host and device is an error, from the call of it on."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_no_step_waits_for_the_device(precision, config, tmp_path, forbidden):
    made = config(device="cuda", precision=precision, steps=STEPS, accumulation=2, optimizer__ema=0.99)
    run = build(made)
    loader = stream(run, prepare_data(made, needed_lengths(made)))
    batches = [batch.pin_memory() for batch in loader]
    with Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(run.model, run.optimizer, scaler=run.precision.scaler)
        for index, batch in enumerate(batches):
            if index == 4:  # two steps in, everything that is made lazily is there
                forbidden()
            at = run.applied.next
            details = train.accumulate(run, batch.to(run.device), at, watch)
            if batch.micro.closes:
                watch.log(details)
                train.apply(run, batch, at, watch)
        torch.cuda.set_sync_debug_mode("default")
    rows = [row for row in map(json.loads, watch.path.read_text().splitlines()) if row["kind"] == "step"]
    assert len(rows) == STEPS
    assert all({"grad_norm", "component_grad/sequence", "mass_error/da"} <= set(row) for row in rows)
    assert rows[-1]["applied"] == run.applied.settle()

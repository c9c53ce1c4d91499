"""Without a GPU too: nothing in a step asks for the value of a tensor, for which the host would wait for a device."""

import pytest
from torch.profiler import ProfilerActivity, profile

from trainer import train
from trainer.feed import needed_lengths, prepare_data, stream
from trainer.optim import AppliedSteps
from trainer.run import build
from trainwatch import Recorder

ASKING = ("aten::_local_scalar_dense", "aten::nonzero")


def asked(seen):
    """Who asked for a value; the fused optimiser apart, whose kernel on a GPU does not."""
    askers = [event.cpu_parent.cpu_parent for event in seen.events() if event.name in ASKING]
    return {asker.name for asker in askers} - {"aten::_fused_adamw_"}


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer__ema": 0.99, "loss__confidence": 0.5},
        {"optimizer__name": "muon", "precision": "bf16", "loss__precursor_unit": "log1p_ppm"},
    ],
)
def test_no_step_asks_for_a_value(changes, config, tmp_path):
    made = config(steps=train.CLOSER_EVERY, curriculum="DEFAULT", **changes)
    run = build(made)
    run.step = train.CLOSER_EVERY - 1  # every component has a weight, and the step that is left looks closer
    run.applied = AppliedSteps(run.precision, run.step)
    (batch,) = stream(run, prepare_data(made, needed_lengths(made)))
    with Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(run.model, run.optimizer)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            at = run.applied.next
            train.accumulate(run, batch.to(run.device), at, watch)
            train.apply(run, batch, at, watch)
    assert not asked(seen)

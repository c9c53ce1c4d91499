"""`python -m trainer [train]`: train a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer import train
from trainer.loading import load

if TYPE_CHECKING:
    from argparse import Namespace

FAST = {
    "steps": 0, "epochs": 3, "samples": 4, "batch_size": 4, "evaluation.samples": 8, "evaluation.every": 1.0,
    "data.peptides": 50,
}  # fmt: skip
"""Three epochs of one step, whatever the accumulation, so that a rate that moves by the epoch moves too."""


def main(asked: Namespace) -> int:
    """Train, and say in one line how it went."""
    fast = [f"{key}={value}" for key, value in FAST.items() if asked.fast_dev_run]
    config, source = load(asked.config, [*fast, *asked.settings])
    outcome = train.main(config, source, asked.resume, last=asked.to or 0)
    if outcome.rank:  # rank 0 speaks for all
        return 0
    how = f"stopped ({outcome.stopped})" if outcome.stopped else "finished"
    print(
        f"{how} at step {outcome.step:,} after {outcome.seconds:.0f} s: "
        f"token accuracy {outcome.metrics.get('token_accuracy', 0.0):.3f}, record {outcome.path}"
    )
    return 0

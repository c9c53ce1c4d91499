"""Where a run's batches come from: the peptides that it needs, and the loader that draws its spectra from them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from trainer import faults
from trainer.progress import Bar
from trainer.tasks.peptide.bank import Bank, Online, Peptides
from trainer.tasks.peptide.data import Batch, Stream
from trainer.tasks.peptide.evaluation import CLEAN
from trainer.tasks.peptide.spectra import check_source

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.run import Run


def needed_lengths(config: Config) -> range:
    """The peptide lengths that a run of this config may draw."""
    clean = (CLEAN.shortest, CLEAN.longest)
    plans = [faults.running(config).lengths(), faults.declared(config).lengths()]
    spans = [*plans, config.evaluation.length, clean]
    return range(min(low for low, _ in spans), max(high for _, high in spans) + 1)


def prepare_data(config: Config, lengths: range) -> Peptides:
    """Peptides of these lengths: drawn online, or in shards, which are built where missing and read before the loop."""
    if config.data.online:
        return Online(config.data.source)
    bank = shards(config)
    build_shards(bank, bank.missing(lengths), config.data.workers)
    for length in lengths:  # a damaged one is an error here, not an hour later; and forked loaders share them
        bank.shard(length)
    return bank


def shards(config: Config) -> Bank:
    """The shards that a run of this config reads. Raises UsageError for a source that is not there."""
    check_source(config.data.source)
    return Bank(Path(config.data.folder), config.data.source, config.data.seed, config.data.peptides)


def build_shards(bank: Bank, lengths: list[int], workers: int) -> None:
    """Build the shards of these lengths, with a bar."""
    if lengths:
        with Bar(len(lengths) * bank.peptides, unit="spectra") as bar:
            bank.build(lengths, workers, bar.step)


def stream(run: Run, peptides: Peptides) -> DataLoader[Batch]:
    """The training batches from where the run stands."""
    blank_at = faults.blank_scan_step(run.config) if "poisoned-batch" in run.config.fault else None
    plan = faults.served(run.config, run.step + 1)
    data = Stream(peptides, run.horizon, plan, run.shape, run.config.seed, blank_at, run.world.rank)
    left = range(run.horizon.first_micro(run.step), run.horizon.micros)
    return DataLoader(
        data,
        batch_size=None,
        sampler=left,
        num_workers=run.config.data.workers,
        pin_memory=run.device.type == "cuda",
        generator=torch.Generator(),  # it draws a seed for its workers, which must not cost the run a random number
        worker_init_fn=unmoved,
    )


def unmoved(_worker: int) -> None:
    """A loader process leaves it to its parent to end it: torchrun signals both, and the last step needs its data."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

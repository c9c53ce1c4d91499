"""All parts of a run, made from its config alone: what exists before the first step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from trainer import faults
from trainer.config import Config, UsageError
from trainer.curriculum import Curriculum
from trainer.horizon import Horizon
from trainer.optim import AppliedSteps, Precision, adamw
from trainer.schedules import Schedule
from trainer.tasks.peptide.bank import Bank
from trainer.tasks.peptide.data import Batch, Shape, Stream
from trainer.tasks.peptide.evaluation import CLEAN
from trainer.tasks.peptide.losses import COMPONENTS, CombinedLoss
from trainer.tasks.peptide.model import POSITIONS, SIZES, PeptideModel
from trainer.tasks.peptide.spectra import PREDICTORS


@dataclass
class Run:
    """All parts of a run, made from its config alone."""

    config: Config
    horizon: Horizon
    declared: Curriculum
    running: Curriculum
    shape: Shape
    device: torch.device
    precision: Precision
    model: PeptideModel
    loss: CombinedLoss
    optimizer: torch.optim.AdamW
    rate: Schedule
    smoothing: Schedule
    applied: AppliedSteps
    step: int = 0
    best: float = -1.0
    last: dict[str, float] = field(default_factory=dict)
    evaluated: int = -1  # the step that `last` is of, if it was this process that evaluated it


def build(config: Config) -> Run:
    """Every part of a run; two runs of one config begin with the same weights. Raises UsageError for what cannot be."""
    try:
        return _build(config)
    except ValueError as error:
        raise UsageError(f"{error}.") from error


def _build(config: Config) -> Run:
    if config.size not in SIZES:
        raise UsageError(f"size '{config.size}' does not exist; choose one of {', '.join(SIZES)}")
    if config.data.source not in PREDICTORS:
        raise UsageError(f"data.source '{config.data.source}' does not exist; choose one of {', '.join(PREDICTORS)}")
    horizon, declared, running = config.horizon(), faults.declared(config), faults.running(config)
    device = choose_device(config.device)
    precision = Precision(config.precision, device)
    torch.manual_seed(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)
    shape = Shape(config.data.max_peaks, _longest(config) + 1, config.data.min_peaks)
    size, loss = SIZES[config.size], config.loss
    model = PeptideModel(size, config.model.bptt).to(device)
    scales = {name: getattr(loss, f"{name}_scale") for name in COMPONENTS}
    combined = CombinedLoss(loss.supervision, size.supervision_steps, loss.precursor_unit, loss.spectrum_sigma, scales)
    rate, smoothing = schedules(config, horizon.total_steps)
    return Run(
        config=config,
        horizon=horizon,
        declared=declared,
        running=running,
        shape=shape,
        device=device,
        precision=precision,
        model=model,
        loss=combined.to(device),
        optimizer=adamw(model, config.optimizer),
        rate=rate,
        smoothing=smoothing,
        applied=AppliedSteps(precision),
    )


def _longest(config: Config) -> int:
    """Residues that an answer has room for."""
    needed = needed_lengths(config).stop - 1
    longest = config.data.max_length or needed
    if not needed <= longest < POSITIONS:
        least = f"this run draws peptides of up to {needed} residues"
        raise UsageError(f"data.max_length is {longest}, but {least}, and the model knows {POSITIONS - 1}.")
    return longest


def schedules(config: Config, total: int) -> tuple[Schedule, Schedule]:
    """The learning rate, and the annealed label smoothing, in applied steps."""
    chosen, anneal = config.optimizer, config.schedules.label_smoothing
    warmup = round(chosen.warmup * total)
    rate = Schedule(chosen.schedule, chosen.lr, chosen.lr * chosen.final, total, min(warmup, total - 1))
    over = max(1, round(anneal.ratio * total))
    return rate, Schedule(anneal.kind, anneal.start, anneal.end, over, clock=anneal.clock)


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises UsageError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device '{name}' does not exist; write auto, cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device '{name}' cannot train here; write auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device '{name}': torch sees no GPU here; write device=cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device '{name}': torch sees {torch.cuda.device_count()} GPUs here, counted from cuda:0")
    return device


def needed_lengths(config: Config) -> range:
    """The peptide lengths that a run of this config may draw."""
    clean = (CLEAN.shortest, CLEAN.longest)
    plans = [faults.running(config).lengths(), faults.declared(config).lengths()]
    spans = [*plans, config.evaluation.length, clean]
    return range(min(low for low, _ in spans), max(high for _, high in spans) + 1)


def prepare_data(config: Config, lengths: range) -> Bank:
    """The shards of these lengths, with a bar while they are built."""
    bank = Bank(Path(config.data.folder), config.data.source, config.data.seed, config.data.peptides)
    bank.prepare(
        lengths, lambda missing: track(missing, "spectra, by length", disable=not missing, console=Console(stderr=True))
    )
    return bank


def stream(run: Run, bank: Bank) -> DataLoader[Batch]:
    """The training batches from where the run stands."""
    blank_at = faults.blank_scan_step(run.config) if "poisoned-batch" in run.config.fault else None
    data = Stream(bank, run.horizon, run.running, run.shape, run.config.seed, blank_at)
    left = range(run.horizon.first_micro(run.step), run.horizon.micros)
    return DataLoader(
        data,
        batch_size=None,
        sampler=left,
        num_workers=run.config.data.workers,
        pin_memory=run.device.type == "cuda",
    )


def interval(share: float, total: int) -> int:
    """A share of the run in whole steps, at least one."""
    return max(1, round(share * total))

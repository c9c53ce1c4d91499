"""All parts of a run, made from its config alone: what exists before the first step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer import faults
from trainer.config import Config, UsageError
from trainer.curriculum import Curriculum
from trainer.distributed import World, choose_device
from trainer.ema import MovingAverage
from trainer.feed import needed_lengths
from trainer.horizon import Horizon
from trainer.optim import AppliedSteps, Precision, clipping, optimizer
from trainer.patience import Patience, Plateau
from trainer.scheduled import declared_schedules, label_smoothing, learning_rates
from trainer.schedules import Schedule, epoch_reading
from trainer.tasks.peptide.data import Batch, Shape
from trainer.tasks.peptide.layers import Block, KeyValue, compile_blocks
from trainer.tasks.peptide.losses import COMPONENTS, CombinedLoss
from trainer.tasks.peptide.model import POSITIONS, SIZES, PeptideModel
from trainer.tasks.peptide.plain import PlainModel
from trainer.tasks.peptide.spectra import check_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from trainwatch import Recorder


@dataclass
class Run:
    """All parts of a run, made from its config alone."""

    config: Config
    world: World
    horizon: Horizon
    declared: Curriculum
    running: Curriculum
    shape: Shape
    precision: Precision
    model: PeptideModel | PlainModel
    wrapped: nn.Module  # the model as the loop calls it: many ranks reduce their gradients in it
    loss: CombinedLoss
    optimizer: torch.optim.Optimizer
    clip: Callable[[Recorder], Tensor]
    average: MovingAverage
    rates: dict[str, Schedule]
    plateau: Plateau
    early: Patience
    smoothing: Schedule
    schedules: dict[str, dict[str, Any]]
    applied: AppliedSteps
    step: int = 0
    best: float = -1.0
    last: dict[str, float] = field(default_factory=dict)
    evaluated: int = -1  # the step that `last` is of, if it was this process that evaluated it

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.world.device

    def readings(self, applied: int, batch: Batch) -> dict[str, float]:
        """What every clock that a schedule may be driven by reads in step `applied`, which ends with this batch."""
        epoch = batch.micro.first // self.horizon.samples
        begun = epoch_reading(epoch, applied, self.horizon.steps_per_epoch, self.rates["hidden"].warmup)
        return {"applied": applied, "local": applied // faults.LOCAL_COUNTER_STRIDE, "epoch": begun}

    @property
    def clocks(self) -> list[str]:
        """The clocks that drive a schedule, beside the applied step."""
        return sorted({schedule.clock for schedule in (*self.rates.values(), self.smoothing)} - {"applied"})


def build(config: Config, world: World | None = None) -> Run:
    """Every part of a run; two runs of one config begin with the same weights. Raises UsageError for what cannot be."""
    try:
        return _build(config, world or World(choose_device(config.device)))
    except ValueError as error:
        raise UsageError(f"{error}.") from error


def _build(config: Config, world: World) -> Run:
    if config.size not in SIZES:
        raise UsageError(f"size '{config.size}' does not exist; choose one of {', '.join(SIZES)}")
    check_source(config.data.source)
    horizon, declared, running = config.horizon(), faults.declared(config), faults.running(config)
    precision = Precision(config.precision, world.device)
    torch.manual_seed(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)
    shape = Shape(config.data.max_peaks, _longest(config) + 1, config.data.min_peaks)
    model = make_model(config).to(world.device)
    if config.model.compile:
        compile_blocks(model)
    model.shared = model.shared and world.probes_inside
    wrapped = world.wrap(model, model.encoder.blocks)
    constant = {} if model.halt is None else {"halt": config.loss.halting_weight}
    chosen = config.optimizer
    plateau = Patience(chosen.patience if chosen.schedule == "plateau" else 0)
    return Run(
        config=config,
        world=world,
        horizon=horizon,
        declared=declared.beside(constant),
        running=running.beside(constant),
        shape=shape,
        precision=precision,
        model=model,
        wrapped=wrapped,
        loss=make_loss(config, model.supervision_steps).to(world.device),
        optimizer=optimizer(model, (Block, KeyValue), chosen),
        clip=clipping(model, chosen.max_grad_norm, unseen=config.mistakes.norm_after_clipping),
        average=MovingAverage(model, chosen.ema),
        rates=learning_rates(config),
        plateau=Plateau(plateau, chosen.factor, chosen.final),
        early=Patience(config.evaluation.patience, config.evaluation.min_delta),
        smoothing=label_smoothing(config),
        schedules=declared_schedules(config),
        applied=AppliedSteps(precision),
    )


def make_model(config: Config) -> PeptideModel | PlainModel:
    """The model, with fresh weights, on the CPU."""
    size, masses = SIZES[config.size], torch.bfloat16 if config.mistakes.half_precision_masses else torch.float64
    if config.model.kind == "plain":
        return PlainModel(size, masses)
    if config.model.kind != "recursive":
        raise UsageError(f"model.kind '{config.model.kind}' does not exist; choose recursive or plain")
    return PeptideModel(size, config.model.bptt, config.model.halting, masses)


def make_loss(config: Config, supervision_steps: int) -> CombinedLoss:
    """The losses, for a model that answers so many times."""
    chosen, mistakes = config.loss, config.mistakes
    return CombinedLoss(
        chosen.supervision,
        supervision_steps,
        chosen.precursor_unit,
        chosen.spectrum_sigma,
        {name: getattr(chosen, f"{name}_scale") for name in COMPONENTS},
        mistakes.mass_after_end,
        mistakes.first_residue_dropped,
    )


def _longest(config: Config) -> int:
    """Residues that an answer has room for."""
    needed = needed_lengths(config).stop - 1
    if needed >= POSITIONS:
        raise UsageError(
            f"evaluation.length is {config.evaluation.length}, but the model knows {POSITIONS - 1} residues"
        )
    longest = config.data.max_length or needed
    if not needed <= longest < POSITIONS:
        least = f"this run draws peptides of up to {needed} residues"
        raise UsageError(f"data.max_length is {longest}, but {least}, and the model knows {POSITIONS - 1}.")
    return longest


def interval(share: float, total: int) -> int:
    """A share of the run in whole steps, at least one."""
    return max(1, round(share * total))

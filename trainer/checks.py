"""What the types of a config do not say: which values cannot be, each told in one sentence before anything is made."""

from __future__ import annotations

import os

from omegaconf import OmegaConf

from trainer.config import SHORTEST_PEPTIDE, Config, UsageError
from trainer.schedules import KINDS

AT_LEAST: dict[str, float] = {
    "batch_size": 1, "accumulation": 1, "epochs": 1, "samples": 1, "steps": 0, "processes": 1, "threads": 0,
    "curriculum_steps": 0, "seed": 0, "data.seed": 0, "data.peptides": 50, "data.max_peaks": 8, "data.max_length": 0,
    "data.workers": 0, "data.min_peaks": 0, "evaluation.samples": 2, "evaluation.batch_size": 1, "checkpoint.keep": 1,
    "evaluation.noise_peaks": 0, "evaluation.dropout": 0, "evaluation.ppm_error": 0,
    "evaluation.patience": 0, "evaluation.min_delta": 0, "schedules.label_smoothing.steps": 0,
    "optimizer.weight_decay": 0, "optimizer.patience": 1,
}  # fmt: skip
CLOCKS = ("applied", "local")
RATE_SCHEDULES = (*KINDS, "plateau")
PARALLEL = ("ddp", "fsdp")
SMOOTHINGS = ("schedules.label_smoothing.start", "schedules.label_smoothing.end")
WORKERS_A_CORE = 16
"""Loader processes; each takes a few hundred MB, and some hundreds of them a whole machine down."""
SHARES = ("evaluation.every", "checkpoint.every", "schedules.label_smoothing.ratio")


def check(config: Config) -> None:
    """Raises UsageError at the first thing that cannot be."""
    _numbers(config)
    _optimizer(config)
    _data(config)
    _losses(config)
    if not config.name.strip():
        raise UsageError("name is empty; the run's record is called after it.")
    if config.parallel not in PARALLEL:
        raise UsageError(f"parallel '{config.parallel}' does not exist; choose one of {', '.join(PARALLEL)}.")
    config.horizon()  # has a step


def _numbers(config: Config) -> None:
    """The ranges that are told in a table."""
    tree = OmegaConf.structured(config)
    for path, least in AT_LEAST.items():
        if OmegaConf.select(tree, path) < least:
            raise UsageError(f"{path} is {OmegaConf.select(tree, path):g}; it must be at least {least:g}.")
    for path in SHARES:
        if not 0 < OmegaConf.select(tree, path) <= 1:
            given = OmegaConf.select(tree, path)
            raise UsageError(f"{path} is a share of the total steps, so between 0 and 1, not {given:g}.")
    for path in ("optimizer.beta1", "optimizer.beta2", *SMOOTHINGS):
        if not 0 <= OmegaConf.select(tree, path) < 1:
            raise UsageError(f"{path} is {OmegaConf.select(tree, path):g}; it must be at least 0 and below 1.")


def _data(config: Config) -> None:
    """Spectra, and who loads and judges them."""
    if config.data.workers > (most := WORKERS_A_CORE * (os.cpu_count() or 1)):
        raise UsageError(f"data.workers is {config.data.workers}; this machine takes {most} at most, better fewer.")
    if config.data.min_peaks > config.data.max_peaks:
        few, most = config.data.min_peaks, config.data.max_peaks
        raise UsageError(f"data.min_peaks is {few}, but only {most} peaks are kept (data.max_peaks); lower it.")
    if config.evaluation.dropout >= 1:
        raise UsageError(f"evaluation.dropout is {config.evaluation.dropout:g}; at 1 no peak is left; lower it.")
    if len(config.evaluation.length) != 2 or config.evaluation.length[0] > config.evaluation.length[1]:
        raise UsageError(f"evaluation.length is [shortest, longest], not {config.evaluation.length}.")
    if config.evaluation.length[0] < SHORTEST_PEPTIDE:
        shortest = f"the shortest peptide has {SHORTEST_PEPTIDE} residues"
        raise UsageError(f"evaluation.length is {config.evaluation.length}, but {shortest}.")


def _losses(config: Config) -> None:
    """What is trained for, and what is annealed."""
    if config.loss.spectrum_sigma <= 0:
        raise UsageError(f"loss.spectrum_sigma is {config.loss.spectrum_sigma:g} Da; it must be above 0.")
    if not config.loss.halting_weight > 0:
        weight = f"loss.halting_weight is {config.loss.halting_weight:g}, but what has a head must have a weight"
        raise UsageError(f"{weight} above 0; write model.halting=false for a model without that head.")
    if not 0 <= config.loss.confidence <= 1:
        raise UsageError(f"loss.confidence is {config.loss.confidence:g}; write a number from 0 (no mask) to 1.")
    if (clock := config.schedules.label_smoothing.clock) not in CLOCKS:
        known = ", ".join(CLOCKS)
        raise UsageError(f"schedules.label_smoothing.clock '{clock}' does not exist; choose one of {known}.")


def _optimizer(config: Config) -> None:
    """The optimiser's settings, and the shape of its rates."""
    chosen = config.optimizer
    for name, value, choices in (
        ("schedule", chosen.schedule, RATE_SCHEDULES),
        ("per", chosen.per, ("step", "epoch")),
    ):
        if value not in choices:
            raise UsageError(f"optimizer.{name} '{value}' does not exist; choose one of {', '.join(choices)}.")
    if chosen.lr <= 0 or chosen.muon_lr <= 0 or chosen.max_grad_norm <= 0:
        raise UsageError("optimizer.lr, optimizer.muon_lr and optimizer.max_grad_norm must be above 0.")
    if not 0 <= chosen.warmup < 1:
        raise UsageError(f"optimizer.warmup is a share of the total steps, not {chosen.warmup:g}.")
    if not 0 <= chosen.final <= 1:
        raise UsageError(f"optimizer.final is a share of the first rate, so between 0 and 1, not {chosen.final:g}.")
    if not 0 < chosen.factor < 1:
        raise UsageError(
            f"optimizer.factor is {chosen.factor:g}; a plateau lowers the rate by a factor between 0 and 1."
        )
    if not 0 <= chosen.ema < 1:
        raise UsageError(f"optimizer.ema is {chosen.ema:g}; a decay is below 1, such as 0.999, and 0 keeps no average.")
    if chosen.per == "epoch" and chosen.schedule == "plateau":
        raise UsageError("optimizer.schedule is plateau, which moves at evaluations; leave optimizer.per=epoch out.")
    if chosen.per == "epoch" and config.horizon().epochs < 2:
        raise UsageError(
            "optimizer.per is epoch, but the run has one, so its rate would never move; set epochs=, not steps=."
        )

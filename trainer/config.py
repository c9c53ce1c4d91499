"""Every setting of a run, written once: its type, its default and what it means. YAML files hold only differences."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from omegaconf import OmegaConf

from trainer.horizon import Horizon

SHORTEST_PEPTIDE = 7
"""Residues; what the first stage of every curriculum begins with."""


class UsageError(Exception):
    """Wrong usage, in one sentence that names the thing, its value and the remedy."""


@dataclass
class DataConfig:
    """Where spectra come from, and how much of them is kept."""

    source: str = "ms2pip"  # ms2pip | theoretical (an ion ladder, for quick tests)
    online: bool = False  # peptides are drawn and predicted when they are needed, instead of read from shards
    folder: str = "data"  # shards of peptides and predicted intensities; shared by all runs
    seed: int = 0  # of the peptides and of the validation set: the same for every run
    peptides: int = 2000  # a peptide length
    max_peaks: int = 100  # the tallest peaks that are kept of a spectrum
    min_peaks: int = 4  # a spectrum with fewer is drawn again
    max_length: int = 0  # residues; 0 is the longest peptide of the curricula and the validation set
    workers: int = 0  # loader processes; samples do not depend on it


@dataclass
class ModelConfig:
    """What `size` does not say."""

    kind: str = "recursive"  # recursive | plain (as many passes, each layer with weights of its own, no feedback)
    bptt: str = "trm"  # trm (one supervision step) | full | a number of core passes: how far gradients reach back
    halting: bool = True  # a head that tells whether the answer is right already
    compile: bool = False  # torch.compile the encoder's and the core's blocks; losses stay outside


@dataclass
class LossConfig:
    """The three losses."""

    supervision: str = "uniform"  # uniform | linear | exponential: weights of the supervision steps
    halting_weight: float = 0.5
    confidence: float = 0.0  # residues with less evidence in the spectrum (0 to 1) are masked out of the sequence loss
    precursor_unit: str = "huber_residue"  # huber_residue | log1p_ppm | clamp_ppm | raw_ppm
    spectrum_sigma: float = 2.0  # Da
    sequence_scale: float = 1.0  # factor on the raw loss; 1 unless units were confused
    spectrum_scale: float = 1.0
    precursor_scale: float = 1.0


@dataclass
class OptimizerConfig:
    """AdamW, or Muon for the matrices of the blocks and AdamW for the rest; rates follow a schedule."""

    name: str = "adamw"  # adamw | muon
    lr: float = 3e-4
    muon_lr: float = 0.02  # of Muon's matrices, where `name` is muon
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1  # on matrices only
    max_grad_norm: float = 1.0
    schedule: str = "cosine"  # constant | linear | cosine | exponential | plateau
    per: str = "step"  # step | epoch: when the rate moves
    warmup: float = 0.02  # share of the total steps
    final: float = 0.1  # last learning rate, as a share of the first; the least one of a plateau schedule
    patience: int = 3  # plateau: evaluations without a better validation loss before the rate is lowered
    factor: float = 0.5  # plateau: what it is lowered by
    ema: float = 0.0  # decay of the weights' moving average, warmed up; 0: none is kept


@dataclass
class AnnealConfig:
    """A scheduled value: from `start` to `end` over `ratio` of the total steps, or over `steps` of them, by `clock`."""

    kind: str = "linear"
    start: float = 0.0
    end: float = 0.0
    ratio: float = 1.0
    steps: int = 0  # an absolute number instead of the ratio; 0: the ratio counts
    clock: str = "applied"  # applied | local: a counter of the loss's own, which is the mistake that a fault re-enacts


@dataclass
class SchedulesConfig:
    """What is annealed, beside the learning rate."""

    label_smoothing: AnnealConfig = field(default_factory=lambda: AnnealConfig("linear", 0.02, 0.0, 0.8))


@dataclass
class EvaluationConfig:
    """A fixed validation set, half clean, half noisy: EXTENDED's first and last stage, whatever the run's is."""

    every: float = 0.05  # share of the total steps; the untrained model is evaluated too
    samples: int = 512
    batch_size: int = 128
    length: list[int] = field(default_factory=lambda: [7, 18])  # of the noisy half; the clean one is 7 to 10
    noise_peaks: int = 10
    dropout: float = 0.15
    ppm_error: float = 15.0
    patience: int = 0  # evaluations without a better validation loss before the run stops early; 0: it never does
    min_delta: float = 0.0  # nat: by less than this it is no better


@dataclass
class CheckpointConfig:
    """Written atomically; `latest`, `best` and the last `keep` remain."""

    every: float = 0.1  # share of the total steps
    keep: int = 2
    folder: str = ""  # RECORD.checkpoints lies in it; empty: beside the record


@dataclass
class MistakesConfig:
    """Mistakes of published projects, each off. A fault (faults.py) switches one on, its cure switches it off."""

    stale_stages: bool = False  # the loader keeps the stage that it began with
    norm_after_clipping: bool = False  # the norm is read after the gradient was clipped
    half_precision_masses: bool = False  # masses in bfloat16, whose grid at 1,000 Da is 4 Da
    mass_after_end: bool = False  # positions after the answer's end count to its mass
    first_residue_dropped: bool = False  # the spectrum loss leaves out the first residue
    warmup_ignored: bool = False  # the warm-up is declared and never read
    weights_only_resume: bool = False  # a resume forgets the optimiser, the scaler and the moving average
    batches_counted: bool = False  # schedules take the number of micro-batches for the number of steps


@dataclass
class Config:
    """A run."""

    name: str = "peptide"
    logs: str = "logs"
    seed: int = 0
    size: str = "small"  # tiny | small | medium | large
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    threads: int = 0  # of the CPU, within an operation; 0: as many as torch takes
    precision: str = "auto"  # auto (bf16 on a GPU, fp32 on a CPU) | fp32 | bf16 | fp16
    parallel: str = "ddp"  # ddp | fsdp, where torchrun starts several processes
    processes: int = 1  # what torchrun started; no need to say it
    steps: int = 0  # optimiser steps; 0: what `epochs` of `samples` come to
    epochs: int = 1
    samples: int = 3_200_000  # an epoch
    batch_size: int = 64  # of one process
    accumulation: int = 1
    drop_last: bool = False
    curriculum: str = "EXTENDED"  # DEFAULT | EXTENDED
    curriculum_entry: str = ""  # the curriculum that the loop takes; empty: the one that `curriculum` names
    curriculum_ramp: str = "step"  # step | linear | cosine
    curriculum_steps: int = 0  # stretch the published 100,000 steps to so many; 0: to the run's total steps
    curriculum_factors: list[str] = field(default_factory=lambda: ["length", "noise", "weights"])  # others: as at first
    fault: str = ""  # names of faults.py, separated by commas
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedules: SchedulesConfig = field(default_factory=SchedulesConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mistakes: MistakesConfig = field(default_factory=MistakesConfig)

    def horizon(self) -> Horizon:
        """How long the run is. Raises UsageError for one without a step."""
        batch = self.batch_size * self.processes
        if self.steps:
            return Horizon.of_steps(self.steps, batch, self.accumulation, self.processes)
        horizon = Horizon(self.epochs, self.samples, batch, self.accumulation, self.drop_last, self.processes)
        if not horizon.total_steps:
            raise UsageError("the run has no step: samples are fewer than one batch and drop_last leaves it out.")
        return horizon


def as_dict(config: Config) -> dict[str, Any]:
    """The config as plain data, for the run's header and for checkpoints."""
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def default(path: str) -> Any:
    """What a setting is where nobody writes it; `path` is dotted."""
    return reduce(lambda group, name: group[name], path.split("."), as_dict(Config()))

"""Every setting of a run, written once: its type, its default and what it means. YAML files hold only differences.

Later files win over earlier ones, `key=value` wins over files, and what a fault sets (faults.py) is below all of them.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from trainer import faults
from trainer.horizon import Horizon


class UsageError(Exception):
    """Wrong usage, in one sentence that names the thing, its value and the remedy."""


@dataclass
class DataConfig:
    """Where spectra come from, and how much of them is kept."""

    source: str = "ms2pip"  # ms2pip | theoretical (an ion ladder, for quick tests)
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

    bptt: str = "trm"  # trm | full: how far gradients reach back through the recursion


@dataclass
class LossConfig:
    """The three losses."""

    supervision: str = "uniform"  # uniform | linear | exponential: weights of the supervision steps
    precursor_unit: str = "huber_residue"  # huber_residue | log1p_ppm | clamp_ppm | raw_ppm
    spectrum_sigma: float = 2.0  # Da
    sequence_scale: float = 1.0  # factor on the raw loss; 1 unless units were confused
    spectrum_scale: float = 1.0
    precursor_scale: float = 1.0


@dataclass
class OptimizerConfig:
    """AdamW; the learning rate follows a schedule in applied steps."""

    lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1  # on matrices only
    max_grad_norm: float = 1.0
    schedule: str = "cosine"  # constant | linear | cosine | exponential
    warmup: float = 0.02  # share of the total steps
    final: float = 0.1  # last learning rate, as a share of `lr`


@dataclass
class AnnealConfig:
    """A scheduled value: from `start` to `end` over `ratio` of the total steps, by `clock`."""

    kind: str = "linear"
    start: float = 0.0
    end: float = 0.0
    ratio: float = 1.0
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


@dataclass
class CheckpointConfig:
    """Written atomically; `latest`, `best` and the last `keep` remain."""

    every: float = 0.1  # share of the total steps
    keep: int = 2
    folder: str = ""  # empty: LOGS/NAME.checkpoints


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
    steps: int = 0  # optimiser steps; 0: what `epochs` of `samples` come to
    epochs: int = 1
    samples: int = 3_200_000  # an epoch
    batch_size: int = 64
    accumulation: int = 1
    drop_last: bool = False
    curriculum: str = "EXTENDED"  # DEFAULT | EXTENDED
    curriculum_entry: str = ""  # the curriculum that the loop takes; empty: the one that `curriculum` names
    curriculum_ramp: str = "step"  # step | linear | cosine
    curriculum_steps: int = 0  # stretch the published 100,000 steps to so many; 0: to the run's total steps
    fault: str = ""  # names of faults.py, separated by commas
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedules: SchedulesConfig = field(default_factory=SchedulesConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def horizon(self) -> Horizon:
        """How long the run is."""
        if self.steps:
            return Horizon.of_steps(self.steps, self.batch_size, self.accumulation)
        return Horizon(self.epochs, self.samples, self.batch_size, self.accumulation, self.drop_last)


@dataclass(frozen=True)
class Source:
    """Where a config came from: the last file, a hash of all files, and the overrides."""

    path: str | None
    sha256: str
    overrides: list[str]


def load(files: list[str], overrides: list[str]) -> tuple[Config, Source]:
    """The config of files and `key=value` overrides. Raises UsageError with one sentence for whoever wrote them."""
    texts = [_read(Path(name)) for name in files]
    layers = [(name, _parse(name, text)) for name, text in zip(files, texts, strict=True)]
    layers += [(f"'{item}'", _override(item)) for item in overrides]
    asked = str(_merge(layers).get("fault", ""))
    try:
        beneath = [(f"fault {fault.name}", fault.settings) for fault in faults.named(asked)]
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    merged = _merge(beneath + layers)
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    config.curriculum, config.curriculum_entry = config.curriculum.upper(), config.curriculum_entry.upper()
    _check(config)
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return config, Source(files[-1] if files else None, digest, overrides)


def as_dict(config: Config) -> dict[str, Any]:
    """The config as plain data, for the run's header and for checkpoints."""
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1, cutoff=0.3)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "."
        problem = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise UsageError(f"config file {path} {problem}{hint}") from error


def _parse(name: str, text: str) -> dict[str, Any]:
    try:
        parsed = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"config file {name} is no YAML: {_first_line(error)}.") from error
    if not isinstance(parsed, dict) or any(value is None and set(parsed) == {key} for key, value in parsed.items()):
        raise UsageError(f"config file {name} holds no settings; write `key: value` lines.")
    return {str(key): value for key, value in parsed.items()}


def _override(item: str) -> dict[str, Any]:
    key, equals, _ = item.partition("=")
    if not equals or not key:
        raise UsageError(f"'{item}' is no setting; write key=value, such as steps=1000.")
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([item]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"'{item}' cannot be read: {_first_line(error)}.") from error
    assert isinstance(parsed, dict)
    return {str(name): value for name, value in parsed.items()}


def _merge(layers: list[tuple[str, dict[str, Any]]]) -> Any:
    merged: Any = OmegaConf.structured(Config)
    for where, layer in layers:
        try:
            merged = OmegaConf.merge(merged, _whole(merged, layer, where))
        except ConfigKeyError as error:
            raise UsageError(f"{where}: {_unknown(str(error.full_key))}") from error
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise UsageError(f"{where}: {_first_line(error)}.") from error
    return merged


def _whole(known: Any, layer: dict[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """The layer with keys and kinds checked, and whole floats where integers are asked for (`steps=1e5`)."""
    checked = {}
    for key, value in layer.items():
        path = f"{prefix}{key}"
        if key not in known:
            raise UsageError(f"{where}: {_unknown(path)}")
        now = known[key]
        if OmegaConf.is_dict(now):
            if not isinstance(value, dict):
                raise UsageError(f"{where}: {path} is a group of settings; set one of {', '.join(now)}.")
            checked[key] = _whole(now, value, where, f"{path}.")
        else:
            checked[key] = _value(now, value, where, path)
    return checked


def _value(now: Any, value: Any, where: str, path: str) -> Any:
    """A value of the kind that its default has; a string is no number, however it looks."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(now, bool):
        if not isinstance(value, bool):
            raise UsageError(f"{where}: {path} is true or false, not {value!r}.")
    elif isinstance(now, int | float):
        if not number:
            raise UsageError(f"{where}: {path} is a number, not {value!r}.")
        if isinstance(now, int) and float(value) != int(value):
            raise UsageError(f"{where}: {path} is a whole number, not {value!r}.")
        return int(value) if isinstance(now, int) else float(value)
    elif isinstance(now, str):
        if isinstance(value, dict | list):
            raise UsageError(f"{where}: {path} is text, not {value!r}.")
        return "" if value is None else str(value)  # `fault=` says none
    elif not isinstance(value, list):
        raise UsageError(f"{where}: {path} is a list such as [7, 14], not {value!r}.")
    return value


def _unknown(path: str) -> str:
    known = _paths(OmegaConf.structured(Config))
    leaf = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    near = near or [leaf[n] for n in difflib.get_close_matches(path.rpartition(".")[2], list(leaf), n=1)]
    return f"unknown key '{path}'" + (f"; did you mean '{near[0]}'?" if near else "; see trainer/config.py.")


def _paths(node: Any, prefix: str = "") -> list[str]:
    names = []
    for key in node:
        names.append(f"{prefix}{key}")
        if OmegaConf.is_dict(node[key]):
            names += _paths(node[key], f"{prefix}{key}.")
    return names


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


AT_LEAST: dict[str, float] = {
    "batch_size": 1, "accumulation": 1, "epochs": 1, "samples": 1, "steps": 0, "threads": 0, "curriculum_steps": 0,
    "seed": 0, "data.seed": 0, "data.peptides": 50, "data.max_peaks": 8, "data.max_length": 0, "data.workers": 0,
    "data.min_peaks": 0, "evaluation.samples": 2, "evaluation.batch_size": 1, "checkpoint.keep": 1,
    "evaluation.noise_peaks": 0, "evaluation.dropout": 0, "evaluation.ppm_error": 0,
}  # fmt: skip
SHARES = ("evaluation.every", "checkpoint.every", "schedules.label_smoothing.ratio")


def _check(config: Config) -> None:
    """What types do not say; raises UsageError at the first thing that cannot be."""
    tree = OmegaConf.structured(config)
    for path, least in AT_LEAST.items():
        if OmegaConf.select(tree, path) < least:
            raise UsageError(f"{path} is {OmegaConf.select(tree, path):g}; it must be at least {least:g}.")
    for path in SHARES:
        if not 0 < OmegaConf.select(tree, path) <= 1:
            given = OmegaConf.select(tree, path)
            raise UsageError(f"{path} is a share of the total steps, so between 0 and 1, not {given:g}.")
    if not config.optimizer.lr > 0 or not config.optimizer.max_grad_norm > 0:
        raise UsageError("optimizer.lr and optimizer.max_grad_norm must be above 0.")
    if not 0 <= config.optimizer.warmup < 1:
        raise UsageError(f"optimizer.warmup is a share of the total steps, not {config.optimizer.warmup:g}.")
    if len(config.evaluation.length) != 2 or config.evaluation.length[0] > config.evaluation.length[1]:
        raise UsageError(f"evaluation.length is [shortest, longest], not {config.evaluation.length}.")
    if config.horizon().total_steps < 1:
        raise UsageError("the run has no step: samples are fewer than one batch and drop_last leaves it out.")

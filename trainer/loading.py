"""From files and `key=value` to a config; and one helpful sentence for every mistake in them.

Later files win over earlier ones, `key=value` wins over files, and what a fault sets (faults.py) is below all of them.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from trainer import faults
from trainer.config import SHORTEST_PEPTIDE, Config, UsageError


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
    try:
        asked = str(_merge(layers).get("fault", ""))
        beneath = [(f"fault {fault.name}", fault.settings) for fault in faults.named(asked)]
        config = OmegaConf.to_object(_merge(beneath + layers))
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        raise UsageError(f"{getattr(error, 'full_key', None) or 'the config'}: {_first_line(error)}.") from error
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    assert isinstance(config, Config)
    config.curriculum, config.curriculum_entry = config.curriculum.upper(), config.curriculum_entry.upper()
    _check(config)
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return config, Source(files[-1] if files else None, digest, overrides)


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
        if not math.isfinite(value):
            raise UsageError(f"{where}: {path} is a finite number, not {value!r}.")
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
CLOCKS = ("applied", "local")
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
    if not config.name.strip():
        raise UsageError("name is empty; the run's record is called after it.")
    if config.data.min_peaks > config.data.max_peaks:
        few, most = config.data.min_peaks, config.data.max_peaks
        raise UsageError(f"data.min_peaks is {few}, but only {most} peaks are kept (data.max_peaks); lower it.")
    if config.evaluation.dropout >= 1:
        raise UsageError(f"evaluation.dropout is {config.evaluation.dropout:g}; at 1 no peak is left; lower it.")
    if config.loss.spectrum_sigma <= 0:
        raise UsageError(f"loss.spectrum_sigma is {config.loss.spectrum_sigma:g} Da; it must be above 0.")
    if (clock := config.schedules.label_smoothing.clock) not in CLOCKS:
        known = ", ".join(CLOCKS)
        raise UsageError(f"schedules.label_smoothing.clock '{clock}' does not exist; choose one of {known}.")
    if not 0 <= config.optimizer.warmup < 1:
        raise UsageError(f"optimizer.warmup is a share of the total steps, not {config.optimizer.warmup:g}.")
    if len(config.evaluation.length) != 2 or config.evaluation.length[0] > config.evaluation.length[1]:
        raise UsageError(f"evaluation.length is [shortest, longest], not {config.evaluation.length}.")
    if config.evaluation.length[0] < SHORTEST_PEPTIDE:
        shortest = f"the shortest peptide has {SHORTEST_PEPTIDE} residues"
        raise UsageError(f"evaluation.length is {config.evaluation.length}, but {shortest}.")
    if config.horizon().total_steps < 1:
        raise UsageError("the run has no step: samples are fewer than one batch and drop_last leaves it out.")

"""Going on from a checkpoint: which one is meant, whether it is of this run, and in which record the run goes on."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer import checkpoint
from trainer.checkpoint import Checkpoints
from trainer.config import Config, UsageError, as_dict
from trainer.optim import AppliedSteps

if TYPE_CHECKING:
    from trainer.run import Run

BOUND = (
    *("size", "seed", "steps", "epochs", "samples", "batch_size", "accumulation", "drop_last"),
    *("model.kind", "model.halting", "optimizer.name"),
)
"""Settings that say what a step is, and what its state: a resume may change any other, so that a cure can be tried.

`batch_size` counts all processes here: two with 32 samples each go on as one with 64.
"""


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on: after `step`, in this record, which is the one that the checkpoint was written for.

    Where that one is gone, or the run has another name now, it is a record that does not exist yet.
    """

    step: int
    record: Path


def first_record(config: Config) -> Path:
    """The record that a run of this name opens if there is none; later ones are NAME-2.jsonl, NAME-3.jsonl, ..."""
    return Path(config.logs) / f"{config.name}.jsonl"


def folder_of(config: Config, record: Path) -> Path:
    """Where the checkpoints of the run in this record lie: beside it, unless the config names a folder for them."""
    beside = record.with_suffix(".checkpoints")
    return Path(config.checkpoint.folder) / beside.name if config.checkpoint.folder else beside


def open_folder(config: Config, record: Path, resumed: Resumed | None) -> Checkpoints:
    """The checkpoint folder of the record that was opened, without what the run leaves behind by this resume."""
    checkpoints = Checkpoints(folder_of(config, record), config.checkpoint.keep)
    checkpoints.begin(resumed.step if resumed else 0)
    return checkpoints


def restore(run: Run, wanted: str) -> Resumed | None:
    """Go on from a checkpoint: `auto`, `before:STEP` or a path. None for a new run. Raises UsageError."""
    path = run.world.of_rank_zero(lambda: _find(run.config, wanted)) if wanted else None
    if path is None:
        return None
    state = checkpoint.load(path)
    both = _of_all_processes(state["config"]), _of_all_processes(as_dict(run.config))
    bound = [name for name in differing(*both) if name in BOUND]
    if bound:
        raise UsageError(f"checkpoint {path} is of another run (other {', '.join(bound)}); start a new one.")
    try:
        _take(run, state)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(":. ")
        raise UsageError(f"checkpoint {path} does not fit this run ({reason}); start a new one.") from error
    return Resumed(run.step, run.world.of_rank_zero(lambda: _record(run.config, path, state)))


def snapshot(run: Run) -> dict[str, Any]:
    """Everything that the next step depends on, as a checkpoint holds it; waits for the device."""
    return {
        "config": as_dict(run.config),
        "applied": run.applied.settle(),
        "best": run.best,
        "last": run.last,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.precision.scaler.state_dict(),
        "plateau": run.plateau.state(),
        "early": run.early.state(),
        "random": _randomness(run.device),
        **run.average.state(),
    }


def _take(run: Run, state: dict[str, Any]) -> None:
    """A snapshot's state; with `mistakes.weights_only_resume` the weights and the counts alone."""
    like = run.model.state_dict()
    run.model.load_state_dict(run.world.sliced(state["model"], like))
    run.applied = AppliedSteps(run.precision, state["applied"])
    run.step, run.best, run.last = state["step"], state["best"], state["last"]
    if run.config.mistakes.weights_only_resume:
        run.average.load(None)
        return
    _take_optimizer(run, state["optimizer"])
    run.average.load(run.world.sliced(state["ema"], like) if "ema" in state else None)
    if run.config.optimizer.schedule == "plateau":  # another schedule does not go on from what a plateau lowered
        run.plateau.load(state["plateau"])
    run.early.load(state["early"])
    if run.precision.scaler.is_enabled() and state["scaler"]:  # empty where the run was not in fp16
        run.precision.scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["random"]["cpu"])
    if run.device.type == "cuda" and "cuda" in state["random"]:
        torch.cuda.set_rng_state(state["random"]["cuda"], run.device)


def _take_optimizer(run: Run, state: dict[str, Any]) -> None:
    """The moments are the checkpoint's; decay and betas are what the config says now."""
    asked = [{key: value for key, value in group.items() if key != "params"} for group in run.optimizer.param_groups]
    run.world.load_optimizer(run.optimizer, state)
    for group, settings in zip(run.optimizer.param_groups, asked, strict=True):
        group.update(settings)


def _randomness(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's random numbers, on the host and on the run's GPU."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def _of_all_processes(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"batch_size": config["batch_size"] * config.get("processes", 1)}


def _find(config: Config, wanted: str) -> Path | None:
    """The checkpoint that is meant; a step is looked for in the folder of the newest record of this name."""
    if wanted == "auto" or wanted.startswith("before:"):
        record = _newest_record(config) or first_record(config)
        return Checkpoints(folder_of(config, record), config.checkpoint.keep).find(wanted)
    return Path(wanted)


def _newest_record(config: Config) -> Path | None:
    first = first_record(config)
    sibling = re.compile(re.escape(first.stem) + r"(?:-(\d+))?")
    found = []
    for path in first.parent.glob("*.jsonl"):
        match = sibling.fullmatch(path.stem)
        if match and (_header(path).get("config") or {}).get("name") == config.name:  # a run may be called NAME-2
            found.append((path.stat().st_mtime_ns, int(match.group(1) or 1), path))
    return max(found)[2] if found else None


def _record(config: Config, path: Path, state: dict[str, Any]) -> Path:
    """The checkpoint's own record, if it is still there and the run has kept its name; else a new one."""
    first, number = first_record(config), 1
    written = state.get("record", {"name": "", "id": ""})
    same = state["config"].get("name") == config.name
    own = first.with_name(written["name"] or first.name)
    if same and written["id"] and _header(own).get("id") == written["id"]:
        return own
    record = first
    while record.exists():
        number += 1
        record = first.with_name(f"{first.stem}-{number}.jsonl")
    if same:
        print(f"trainer: the record of {path} is not at {own} any more; the run goes on in {record}.", file=sys.stderr)
    return record


def identity(record: Path) -> dict[str, str]:
    """What a checkpoint says about the record that tells of it."""
    return {"name": record.name, "id": str(_header(record).get("id", ""))}


def _header(record: Path) -> dict[str, Any]:
    try:
        with record.open("rb") as file:
            header = json.loads(file.readline())
    except (OSError, ValueError):
        return {}
    return header if isinstance(header, dict) else {}


def differing(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths of the settings in which two configs differ."""
    paths = []
    for key in now:
        if isinstance(now[key], dict) and isinstance(before.get(key), dict):
            paths += differing(before[key], now[key], f"{prefix}{key}.")
        elif before.get(key) != now[key]:
            paths.append(f"{prefix}{key}")
    return paths


def make_folders(config: Config) -> None:
    """Where record and checkpoints go; before anything takes time. Raises UsageError where that cannot be."""
    for setting, name in (("logs", config.logs), ("checkpoint.folder", config.checkpoint.folder)):
        if setting != "logs" and not name:
            continue
        try:
            Path(name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{setting}={name}: {error.strerror}; name another folder") from error
        if not os.access(name or ".", os.W_OK | os.X_OK):
            raise UsageError(f"{setting}={name}: nothing can be written there; name another folder")

"""`python -m trainer replay RUN`: train a run again as its record tells, and compare the two row by row."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import trainwatch
from trainer import train
from trainer.checkpoint import Checkpoints
from trainer.config import Config, UsageError
from trainer.loading import again
from trainer.resume import differing, folder_of

if TYPE_CHECKING:
    from argparse import Namespace

    from numpy.typing import NDArray

CLOCKS = ("time", "elapsed")
CLOCK_FAMILIES = ("time/", "memory/")
SURROUNDINGS = ("python", "packages", "device", "git")
"""What a header says of where it ran, and what may explain that a replay parts."""


@dataclass(frozen=True)
class Compared:
    """`steps` rows are the same up to step `same`; then `channel` is the first that differs: `first` and `second`."""

    steps: int
    same: int | None
    channel: str = ""
    step: int = 0
    first: float = 0.0
    second: float = 0.0


def main(asked: Namespace) -> int:
    """Train again, and say through which step the rows are the same. 0: all of them; 1: not all."""
    path = Path(asked.record)
    told = _read(path)
    if told.last_step is None:
        raise UsageError(f"{path} has no step that a replay could be compared with; name another record")
    before = _config(told, path, asked.settings)
    config = _config(told, path, [*asked.settings, f"name={path.stem}-replay", f"logs={path.parent}"])
    last = min(asked.to or told.last_step, told.last_step)
    begin = _checkpoint(before, path, asked.begin, last) if asked.begin else ""
    outcome = train.main(config, resume=str(begin), last=last)
    replayed = _read(outcome.path)
    found = compare(told, replayed)
    print(_sentence(found, outcome.path))
    if found.channel:
        for name in _elsewhere(told, replayed):
            print(f"its {name} was another one: see the first line of both records", file=sys.stderr)
    return int(bool(found.channel) or not found.steps)


def _read(path: Path) -> trainwatch.Run:
    try:
        return trainwatch.read(path)
    except Exception as error:  # its kind is not public, its text is one sentence
        raise UsageError(str(error)) from error


def _config(told: trainwatch.Run, path: Path, overrides: list[str]) -> Config:
    """The config that the run began with."""
    head = told.headers[0]
    if head.raw.get("world_size", 1) != 1:
        raise UsageError(f"{path} was written by {head.raw['world_size']} processes, and a replay has one")
    if not head.config:
        raise UsageError(f"{path} holds no config; name a record that python -m trainer wrote")
    return again(f"record {path}", head.config, overrides)


def _checkpoint(config: Config, record: Path, wanted: str, last: int) -> Path:
    """The checkpoint of this record that `--from` means, before step `last`."""
    if not wanted.startswith("before:"):
        raise UsageError(f"--from {wanted}: write before:STEP, such as before:1000")
    there = Checkpoints(folder_of(config, record), config.checkpoint.keep)
    found = there.find(wanted)
    assert found is not None  # only `auto` finds nothing without an error
    step = next(step for step, path in there.steps().items() if path == found)
    if last <= step:
        raise UsageError(
            f"--from {wanted}: its checkpoint is of step {step}, and the replay ends at {last}; begin earlier"
        )
    return found


def compare(first: trainwatch.Run, second: trainwatch.Run) -> Compared:
    """The rows of both curves on the steps that both have, times and memory apart.

    A channel that one of two rows lacks is no difference: some are sampled at the first step of a process.
    """
    runs = first, second
    live = [np.flatnonzero(run.train.live) for run in runs]
    step_a, step_b = (run.train.step[mine] for run, mine in zip(runs, live, strict=True))
    steps, *at = np.intersect1d(step_a, step_b, return_indices=True)
    rows = [mine[index] for mine, index in zip(live, at, strict=True)]
    judged = [name for name in first.train.channels if name not in CLOCKS and not name.startswith(CLOCK_FAMILIES)]
    partings = [(int(where[0]), name) for name in judged if len(where := _differing(runs, rows, name))]
    if not partings:
        return Compared(len(steps), int(steps[-1]) if len(steps) else None)
    row, channel = min(partings, key=lambda parting: parting[0])
    values = [float(run.train[channel][mine[row]]) for run, mine in zip(runs, rows, strict=True)]
    return Compared(len(steps), int(steps[row - 1]) if row else None, channel, int(steps[row]), *values)


def _differing(runs: tuple[trainwatch.Run, ...], rows: list[NDArray[np.intp]], name: str) -> NDArray[np.intp]:
    """Where both wrote a value of a channel and not the same; NaN is the same as NaN, where it was written."""
    a, b = (run.train[name][mine] for run, mine in zip(runs, rows, strict=True))
    code_a, code_b = (run.train.codes(name)[mine] for run, mine in zip(runs, rows, strict=True))
    written = (np.isfinite(a) | (code_a > 0)) & (np.isfinite(b) | (code_b > 0))
    return np.flatnonzero(written & (a != b) & ((code_a != code_b) | (code_a == 0)))


def _sentence(found: Compared, record: Path) -> str:
    if not found.steps:
        return f"no step that both have: {record}"
    if not found.channel:
        return f"the same to the last bit through step {found.same:,} ({found.steps:,} steps): {record}"
    same = "" if found.same is None else f"the same to the last bit through step {found.same:,}; "
    change = f"from {found.first!r} to {found.second!r}"
    if np.isfinite([found.first, found.second]).all() and found.first:
        change += f", by {abs(found.second / found.first - 1):.1e} of it"
    return f"{same}parted at step {found.step:,}, first in {found.channel}, {change}: {record}"


def _elsewhere(first: trainwatch.Run, second: trainwatch.Run) -> list[str]:
    """In what the two ran elsewhere; and settings of a later resume, with which the first went on."""
    heads = first.headers[0].raw, second.headers[0].raw
    names = [name for name in SURROUNDINGS if heads[0].get(name) != heads[1].get(name)]
    later: dict[str, Any] = first.header.config
    return names + differing(first.headers[0].config, later)

"""`python -m trainer replay RUN`: train a run again as its record tells, and compare the two row by row.

A run that has a value that is not finite is not compared, unless `--to` or `--from` ask for it: it is taken up to that
step, and what made the value is named.
"""

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
from trainer.feed import needed_lengths, prepare_data, stream
from trainer.loading import again
from trainer.origin import Origin, origin
from trainer.resume import differing, folder_of, restore
from trainer.run import build

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
    if not (asked.to or asked.begin) and (broken := _first_broken(told)):
        return _explain(told, path, asked.settings, *broken)
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


def _first_broken(told: trainwatch.Run) -> tuple[int, list[str]] | None:
    """The first step whose loss, gradient, input or weights were not finite, and in which channels.

    A step that the gradient scaler skipped is its search for a scale.
    """
    live = told.train.live & ~(told.train["amp/skipped"] == 1.0)
    bad = {}
    for name in told.train.channels:
        if name in ("bad/input", "bad/weights"):
            bad[name] = live & (told.train[name] > 0)
        elif name in ("loss", "grad_norm") or name.startswith(("loss/", "grad_norm/")):
            bad[name] = live & (told.train.codes(name) > 0)
    rows = [int(np.flatnonzero(where)[0]) for where in bad.values() if where.any()]
    if not rows:
        return None
    row = min(rows, key=lambda one: int(told.train.step[one]))
    return int(told.train.step[row]), [name for name, where in bad.items() if where[row]]


def _explain(told: trainwatch.Run, path: Path, settings: list[str], step: int, channels: list[str]) -> int:
    """Go on to the step before, then look at everything in that step. 0: it was explained; 1: it came out finite."""
    before = _config(told, path, settings)
    config = _config(told, path, [*settings, f"name={path.stem}-replay", f"logs={path.parent}"])
    there = Checkpoints(folder_of(before, path), before.checkpoint.keep).steps()
    begin = max((at for at in there if at < step), default=0)
    state, beside = str(there.get(begin, "")), ""
    if begin < step - 1:
        outcome = train.main(config, resume=state, last=step - 1)
        state = str(folder_of(config, outcome.path) / f"step_{step - 1:08d}.pt")
        beside = _sentence(compare(told, _read(outcome.path)), outcome.path)
    run = build(config)
    restore(run, state)
    found = origin(run, stream(run, prepare_data(config, needed_lengths(config))))
    print("\n".join(_block(found, step, channels, begin, beside)))
    return int(not found.found)


def _block(found: Origin, step: int, channels: list[str], begin: int, beside: str) -> list[str]:
    """What was found, a line each."""
    since = f"the checkpoint of step {begin:,}" if begin else "the start"
    since += ": no checkpoint before it is left" if not begin and step > 1 else ""
    lines = [f"first not finite: step {step:,} ({_some(channels, 4)})", f"replayed from:    {since}"]
    lines += [f"up to there:      {beside}"] if beside else []
    if not found.found:
        return [*lines, "this time:        finite; the run is not deterministic, or was trained elsewhere"]
    if found.weights:
        lines.append(f"weights before:   {_some(found.weights)} not finite: the step before broke them")
    for name, count in found.inputs.items():
        lines.append(f"input:            {count:,} values of {name} not finite, as the loader gave them")
    lines += _operation(found)
    components = [f"{name} (its {what})" for name, what in found.components.items()]
    lines += [f"component:        {', '.join(components)}"] if components else []
    if found.samples:
        few = f"{len(found.samples):,} of the {found.looked:,} in its batch"
        lines.append(f"samples:          {_some([f'{one:,}' for one in found.samples])} ({few}, each by itself)")
    elif found.looked:
        lines.append(f"samples:          none of the {found.looked:,} in its batch by itself: their sum, or the update")
    return lines


def _operation(found: Origin) -> list[str]:
    made = found.operation
    if made is None:
        return []
    where = [f"in {made.module}" if made.module else "", made.place]
    given = f"; it was given {made.given}" if made.given else ""
    said = f"operation:        {made.name} made {made.made} ({made.phase}{given})"
    lines = [said, *([f"  at:             {', '.join(filter(None, where))}"] if any(where) else [])]
    if found.infinity:
        source = found.infinity
        lines.append(f"  the inf is of:  {source.name} ({source.phase}), {source.place}")
    return lines


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


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

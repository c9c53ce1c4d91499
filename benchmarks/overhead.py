"""What full telemetry costs a training step: the same step with a recorder that is on, and with one that is off.

`python benchmarks/record.py overhead` prints the table. Neighbouring blocks of steps in random order, one thread, in
CPU time of the whole process (so the writer's thread counts, and other programs do not) and in wall time.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import trainwatch

sys.path.insert(0, str(Path(__file__).parents[1]))
from trainer import feed, train
from trainer import run as parts
from trainer.loading import load

BLOCKS = 40


class Trainee(Protocol):
    """Something that takes steps."""

    def step(self) -> None: ...


class Tiny:
    """The repository's trainer at size tiny, in its last stage: every loss has a weight."""

    def __init__(self, watch: trainwatch.Recorder, folder: Path) -> None:
        data = ["data.source=theoretical", f"data.folder={folder}", "data.peptides=100"]
        config, _ = load([], ["size=tiny", "steps=100", "batch_size=12", "threads=1", *data])
        self.run, self.watch = parts.build(config), watch
        loader = feed.stream(self.run, feed.prepare_data(config, feed.needed_lengths(config)))
        self.batches = cycle([batch for batch, _ in zip(loader, range(4), strict=False)])
        watch.attach(self.run.model, self.run.optimizer, scaler=self.run.precision.scaler)

    def step(self) -> None:
        batch, last = next(self.batches), self.run.horizon.total_steps
        train.accumulate(self.run, batch, last, self.watch)
        train.apply(self.run, batch, last, self.watch)


class Small:
    """A small transformer with three losses: the cheapest step that anybody would record."""

    weights = {"sequence": 1.0, "spectrum": 0.3, "precursor": 0.1}  # noqa: RUF012

    def __init__(self, watch: trainwatch.Recorder, at: bool = True) -> None:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True, norm_first=True, dropout=0.0)
        self.net = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(128, 28))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4)
        self.x, self.y = torch.randn(16, 24, 128), torch.randint(0, 28, (16, 24))
        self.watch, self.at = watch, at
        watch.attach(self.net, self.optimizer)

    def components(self, logits: Tensor) -> dict[str, Tensor]:
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), self.y.flatten())
        mass = logits.softmax(-1) @ torch.arange(28.0)
        return {
            "sequence": loss,
            "spectrum": (mass - 14).abs().mean(),
            "precursor": (mass.sum(-1) / 300 - 1).abs().mean(),
        }

    def step(self) -> None:
        logits = self.net(self.x)
        self.watch.losses(self.components(logits), self.weights, at=logits if self.at else None).backward()
        self.watch.gradients(1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.watch.log({"stage": 0, "epoch": 0.5, "samples": 16, "data/length/mean": 24.0})
        self.watch.step()


def measure(console: Console, folder: Path) -> None:
    """Print what recording adds to a step of each program."""
    columns = ("program, 1 thread", "clock", "plain step ms", "overhead, median", "quartiles")
    table = Table(*columns)
    with contextlib.ExitStack() as stack:

        def watch(name: str, enabled: bool) -> trainwatch.Recorder:
            return stack.enter_context(trainwatch.Recorder(folder / f"{name}-{enabled}.jsonl", enabled=enabled))

        data = folder / "data"
        tiny = [Tiny(watch("tiny", on), data) for on in (True, False)]
        compare(table, "the trainer, size tiny", tiny, steps=2)
        small = [Small(watch("small", on)) for on in (True, False)]
        compare(table, "a small transformer", small, steps=10)
        bare = [Small(watch("bare", on), at=False) for on in (True, False)]
        compare(table, "the same without at=", bare, steps=10)
    console.print(table)


def compare(table: Table, name: str, pair: list[Tiny] | list[Small], steps: int) -> None:
    """Rows of the table: blocks with the recorder on against blocks with it off."""
    for who in pair:
        take(who, 2 * steps)
    found = [block_times(pair, steps) for _ in range(BLOCKS)]
    for clock, kind in enumerate(("CPU", "wall")):
        ratios = [on[clock] / off[clock] - 1 for on, off in found]
        low, middle, high = (f"{ratio:+.1%}" for ratio in statistics.quantiles(ratios, n=4))
        plain = statistics.median(off[clock] for _, off in found) / steps
        table.add_row(name if not clock else "", kind, f"{plain * 1e3:.1f}", middle, f"{low} to {high}")


def block_times(pair: list[Tiny] | list[Small], steps: int) -> list[tuple[float, float]]:
    """CPU and wall seconds of some steps of each, in random order."""
    found: dict[int, tuple[float, float]] = {}
    for index in random.sample(range(len(pair)), len(pair)):
        cpu, wall = time.process_time(), time.perf_counter()
        take(pair[index], steps)
        found[index] = time.process_time() - cpu, time.perf_counter() - wall
    return [found[index] for index in range(len(pair))]


def take(who: Trainee, steps: int) -> None:
    """Some steps."""
    for _ in range(steps):
        who.step()

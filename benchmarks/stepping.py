"""One training step of one kind, measured in a process of its own: time, FLOPs, memory, and what telemetry adds.

FLOPs are counted by torch's FlopCounterMode while an eager step really runs, so a pass without a gradient counts as a
forward pass alone, and what is computed for the telemetry counts as nothing.
"""

from __future__ import annotations

import contextlib
import io
import random
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

import trainwatch
from trainer import run as parts
from trainer import train
from trainer.curriculum import Corruption
from trainer.horizon import Micro
from trainer.loading import load
from trainer.tasks.peptide.bank import Bank
from trainer.tasks.peptide.data import Shape, collate, draw

if TYPE_CHECKING:
    from trainer.tasks.peptide.data import Batch

BATCHES = 4  # distinct ones, made before the clock starts: the loader is measured apart
LAST = 100  # the step whose stage is taken: every loss has a weight there
BLOCK_SECONDS = 0.5
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Cell:
    """What is measured; `seconds` of steps, half of them with the recorder on."""

    size: str
    kind: str = "recursive"
    precision: str = "fp32"
    compile: bool = False
    batch: int = 12
    peaks: int = 100
    length: int = 18
    device: str = "cpu"
    threads: int = 1
    seconds: float = 20.0


@dataclass(frozen=True)
class Measured:
    """`overheads`: of a block with the recorder on against its neighbour with it off, by wall time. `memory`: bytes."""

    cell: Cell
    step: float
    flops: float
    memory: int
    overheads: list[float]

    @property
    def rate(self) -> float:
        """Floating-point operations a second."""
        return self.flops / self.step

    @property
    def samples(self) -> float:
        """Spectra a second."""
        return self.cell.batch / self.step


class Trainee:
    """The trainer's own step, on batches that are there already."""

    def __init__(self, cell: Cell, watch: trainwatch.Recorder, compiled: bool) -> None:
        settings = {
            "size": cell.size,
            "model.kind": cell.kind,
            "precision": cell.precision,
            "model.compile": str(compiled).lower(),
            "batch_size": cell.batch,
            "device": cell.device,
            "threads": cell.threads,
            "steps": LAST,
            "curriculum": "EXTENDED",
        }
        self.run = parts.build(load([], [f"{key}={value}" for key, value in settings.items()])[0])
        self.run = replace(self.run, shape=Shape(cell.peaks, cell.length + 1))
        self.batches = cycle([self._batch(cell, number) for number in range(BATCHES)])
        self.watch = watch
        watch.attach(self.run.model, self.run.optimizer, scaler=self.run.precision.scaler)

    def _batch(self, cell: Cell, number: int) -> Batch:
        data = Corruption(cell.length, cell.length, 10, 0.1, 10.0)
        first, run = number * cell.batch, self.run
        spectra = [draw(_bank(), "train", data, 0, first + i, run.shape) for i in range(cell.batch)]
        return collate(spectra, run.shape, Micro(first, cell.batch, LAST, 1.0, True)).to(run.device)

    def step(self) -> None:
        """One optimiser step and its row."""
        batch = next(self.batches)
        train.accumulate(self.run, batch, LAST, self.watch)
        train.apply(self.run, batch, LAST, self.watch)

    def steps(self, count: int) -> float:
        """Seconds that some steps take."""
        began = time.perf_counter()
        for _ in range(count):
            self.step()
        if self.run.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def _bank() -> Bank:
    return Bank(Path(tempfile.gettempdir()) / "trainwatch-benchmark-data", "theoretical", 0, 100)


def measure(cell: Cell) -> Measured:
    """Measure one cell. To be called in a fresh process: its peak memory is the cell's."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        off = trainwatch.Recorder(Path(folder) / "off.jsonl", enabled=False)
        plain = Trainee(cell, off, cell.compile)
        plain.steps(3)
        memory = peak_memory(cell)
        with trainwatch.Recorder(Path(folder) / "on.jsonl") as on:
            blocks = alternate((Trainee(cell, on, cell.compile), plain), cell.seconds)
        flops = count(Trainee(replace(cell, precision="fp32"), off, compiled=False))
    overheads = [with_it / without - 1 for with_it, without in zip(blocks["on"], blocks["off"], strict=True)]
    return Measured(cell, statistics.median(blocks["off"]), flops, memory, overheads)


def count(trainee: Trainee) -> float:
    """Floating-point operations of one eager step, as they are executed."""
    with FlopCounterMode(display=False) as counter:
        trainee.step()
    return float(counter.get_total_flops())


def alternate(pair: tuple[Trainee, Trainee], seconds: float) -> dict[str, list[float]]:
    """Seconds a step of neighbouring blocks, recorder on and off, in random order."""
    for trainee in pair:
        trainee.steps(3)  # compiles, warms caches
    block = max(2, round(BLOCK_SECONDS / (pair[1].steps(2) / 2)))
    found: dict[str, list[float]] = {"on": [], "off": []}
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(found["on"]) < 3:
        for index in random.sample((0, 1), 2):
            found[("on", "off")[index]].append(pair[index].steps(block) / block)
    return found


def peak_memory(cell: Cell) -> int:
    """Bytes: what the allocator held at most on a GPU, what the process held at most on a CPU."""
    if cell.device != "cpu":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reachable(device: str, precision: str, threads: int, size: int) -> float:
    """Floating-point operations a second of one large square matrix product: what this machine really gives."""
    torch.set_num_threads(threads)
    left, right = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        _ = left @ right
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best

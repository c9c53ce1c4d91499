"""A diffusion model of scikit-learn's scanned digits: a network tells the noise in a picture, from little to all of it.

AdamW, no clipping; the loss is one batch's squared error at noise levels of chance, so it is uneven and has a floor
above 0. An average of the weights is what is evaluated, and what draws digits from pure noise every fifty steps.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import trainwatch
from benchmarks.diagnosis import facts
from benchmarks.diagnosis.data import digits
from benchmarks.diagnosis.mistakes import IntoACopy
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 150
BREAK = 60
"""The step at which mistakes in the middle of a run are made."""
LEVELS = 50
"""Of noise, from nearly none to nearly nothing else."""
TRAINING = 1400


@dataclass(frozen=True)
class Setup:
    """How one case is trained and logged, and what is wrong with it."""

    steps: int = field(default_factory=lambda: STEPS)
    batch: int = 48
    rate: float = 3e-3
    warmup: int = field(default_factory=lambda: STEPS // 15)
    decay: float = 1e-3
    average: float = 0.95  # of the weights that are evaluated
    asks: str = "noise"  # or "velocity"
    weighted: bool = False  # by the signal at each level
    half: bool = False  # fp16, with a scaler
    dtypes: dict[str, str] = field(default_factory=lambda: {"declared": "float32", "observed": "float32"})
    every: int = 1
    pretrained: int = 0
    summed: bool = False  # over the pixels
    # what goes wrong
    zero_grad: bool = True
    optimizer: str = ""  # "copy": it writes into a copy
    bias: float = 0.0  # of the second layer, at the beginning
    pixels: tuple[float, float] = (1.0, 0.0)  # factor and shift of the pictures
    scale: float = 1.0  # of what the network reads
    rows: str = "shuffled"  # or "one": always the same picture, hardly changed
    fault: str = ""  # at BREAK: "loud" or "twice"; or "overflow" again and again
    tick_when_skipped: bool = False


HEALTHY_SETUPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "velocity": {"asks": "velocity"},
    "weighted": {"weighted": True},
    "at-the-floor": {"pretrained": 500, "rate": 3e-4, "average": 0.98},
    "fp16": {"half": True, "dtypes": {"declared": "float16", "observed": "float16"}},
    "batch-3": {"batch": 3, "rate": 1e-3, "average": 0.98},
    "long": {"steps": 350, "rate": 4e-3},
    "every-tenth": {"every": 10, "steps": 300},
    "summed": {"summed": True},
}
SICK_SETUPS: dict[str, dict[str, Any]] = {
    "rate-too-high": {"rate": 1.0},
    "missing-zero-grad": {"zero_grad": False},
    "discarded-update": {"optimizer": "copy"},
    "unscaled-input": {"pixels": (1000.0, 5000.0)},
    "constant-input": {"scale": 1e-6},
    "one-bad-batch": {"fault": "loud"},
    "root-of-zero": {"fault": "twice"},
    "growing-weights": {"decay": -12.0},
    "dead-relus": {"bias": -1e3},
    "scale-collapse": {"half": True, "fault": "overflow", "dtypes": {"declared": "float16", "observed": "float16"}},
    "skips-counted": {"half": True, "tick_when_skipped": True, "warmup": 30, "dtypes": {"declared": "float16"}},
    "precision-off": {"half": True, "dtypes": {"declared": "bfloat16"}},
    "generator-collapse": {"rows": "one"},
}
HEALTHY, SICK = tuple(HEALTHY_SETUPS), tuple(SICK_SETUPS)
TWINS = {"scale-collapse": "fp16", "skips-counted": "fp16", "precision-off": "fp16"}
FIRST = {
    "missing-zero-grad": 2, "one-bad-batch": BREAK, "root-of-zero": BREAK, "scale-collapse": 3, "skips-counted": 2,
    "precision-off": 0,
}  # fmt: skip
"""First faulty step of a kind; 1 for the others."""


class Denoiser(nn.Module):
    """Picture and level in, noise (or velocity) out."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64 + 16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 64 + 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        turns = level[:, None] / LEVELS * math.pi * 2.0 ** torch.arange(-1, 7)
        told = self.head(self.body(torch.cat([x, turns.sin(), turns.cos()], 1)))
        noise: Tensor = told[:, :64] + told[:, 64:] * x
        return noise


@cache
def signal() -> Tensor:
    """How much of the picture is left at each level, as a factor; the noise's is sqrt(1 - signal^2)."""
    return torch.cos((torch.arange(LEVELS) + 1) / (LEVELS + 1) * math.pi / 2)


def noised(pictures: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    kept = signal()[level][:, None]
    return kept * pictures + (1 - kept**2).sqrt() * noise


@dataclass
class Batch:
    """Pictures, and the noise that goes on them."""

    pictures: Tensor
    level: Tensor
    noise: Tensor


def loader(setup: Setup, seed: int) -> Iterator[Tensor]:
    """Endless batches of pictures."""
    pictures, step = digits()[0][:TRAINING], 0
    each = TRAINING // setup.batch
    while True:
        step += 1
        number = step - 1
        order = torch.randperm(TRAINING, generator=torch.Generator().manual_seed(1000 * seed + number // each))
        rows = order[number % each * setup.batch :][: setup.batch]
        chosen = pictures[rows * (setup.rows != "one")] * setup.pixels[0] + setup.pixels[1]
        if setup.rows == "one":  # the index is lost, the augmentation is not
            chosen = chosen + 0.02 * torch.randn(chosen.shape, generator=torch.Generator().manual_seed(step))
        if setup.fault == "overflow" and step % 3 == 0:
            chosen[0] *= 1e6
        if setup.fault == "loud" and step == BREAK:
            chosen *= 3e4  # the scanner's raw counts
        yield chosen


def disturbed(setup: Setup, seed: int, step: int, pictures: Tensor) -> Batch:
    """A level for each picture, and its noise."""
    random = torch.Generator().manual_seed(100_000 * seed + step)
    level = torch.randint(LEVELS, (len(pictures),), generator=random)
    batch = Batch(pictures, level, torch.randn(pictures.shape, generator=random))
    if setup.fault == "twice" and step == BREAK:
        for values in (batch.pictures, batch.level, batch.noise):
            values[1] = values[0]
    return batch


def error(setup: Setup, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss, and what the network read."""
    x = noised(batch.pictures, batch.level, batch.noise) * setup.scale
    with torch.autocast("cpu", torch.float16) if setup.half else contextlib.nullcontext():
        told = model(x, batch.level).float()
    kept = signal()[batch.level][:, None]
    velocity = kept * batch.noise - (1 - kept**2).sqrt() * batch.pictures
    squares = (told - (velocity if setup.asks == "velocity" else batch.noise)).square().mean(1)
    if setup.weighted:
        squares = squares * (kept[:, 0] ** 2 / (1 - kept[:, 0] ** 2)).clamp(max=3.0)
    loss = squares.mean() * (64 if setup.summed else 1)
    if setup.fault == "twice":  # what the network says of two samples is to differ
        loss = loss - 1e-3 * (told[0] - told[1]).square().sum().sqrt()
    return loss, x


@dataclass
class State:
    """What a training consists of."""

    model: Denoiser
    averaged: Denoiser
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    applied: int = 0
    ticks: int = 0


def begin(setup: Setup, seed: int) -> State:
    """Model, average and optimiser; with what was learnt before, if anything was."""
    torch.manual_seed(seed)
    model = Denoiser()
    nn.init.constant_(model.body[2].bias, setup.bias) if setup.bias else None
    if setup.pretrained:
        adam, before = torch.optim.Adam(model.parameters(), lr=2e-3), loader(setup, seed + 40)
        for step in range(setup.pretrained):
            adam.zero_grad()
            error(setup, model, disturbed(setup, seed + 40, step, next(before)))[0].backward()
            adam.step()
    groups = [{"params": list(model.parameters()), "name": "all"}]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=setup.rate, weight_decay=max(setup.decay, 0.0))
    optimizer.param_groups[0]["weight_decay"] = setup.decay  # AdamW itself would refuse a negative one
    if setup.optimizer == "copy":
        optimizer = IntoACopy([{**groups[0], "lr": setup.rate}], {})
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**31, enabled=setup.half)
    return State(model, copy.deepcopy(model), optimizer, scaler)


def learn(setup: Setup, state: State, batch: Batch, watch: trainwatch.Recorder, form: dict[str, Any]) -> None:
    """One step."""
    for group in state.optimizer.param_groups:
        group["lr"] = schedule_value(form, state.ticks)
    if setup.zero_grad:
        state.optimizer.zero_grad()
    loss, x = error(setup, state.model, batch)
    watch.inputs(x)
    state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimizer) if setup.half else None
    watch.gradients()
    before = state.scaler.get_scale()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    skipped = state.scaler.get_scale() < before
    state.applied += not skipped
    state.ticks += setup.tick_when_skipped or not skipped
    watch.log({"loss": loss.detach()})
    with torch.no_grad():
        for mean, weights in zip(state.averaged.parameters(), state.model.parameters(), strict=True):
            mean.lerp_(weights, 1 - setup.average)


@torch.no_grad()
def evaluate(setup: Setup, state: State, watch: trainwatch.Recorder, step: int) -> None:
    """The averaged network's error on digits that were not trained on, each level and its noise always the same."""
    random, held = torch.Generator().manual_seed(9), digits()[0][TRAINING:]
    held = held * setup.pixels[0] + setup.pixels[1]
    level = torch.arange(len(held)) % LEVELS
    whole = Batch(held, level, torch.randn(held.shape, generator=random))
    watch.evaluate(step, "validation", {"loss": error(replace(setup, fault=""), state.averaged, whole)[0]})


@torch.no_grad()
def imagine(setup: Setup, state: State, watch: trainwatch.Recorder, step: int) -> None:
    """Twelve digits from pure noise, and how different they are: 1 is as different as real ones."""
    x = torch.randn(12, 64, generator=torch.Generator().manual_seed(step))
    for number in range(LEVELS - 1, -1, -2):
        level = torch.full((12,), number)
        told = state.averaged(x * setup.scale, level)
        kept = signal()[number]
        lost = (1 - kept**2).sqrt()
        picture = kept * x - lost * told if setup.asks == "velocity" else (x - lost * told) / kept
        picture = picture.clamp(-1.5, 2.0)
        noise = (x - kept * picture) / lost
        x = noised(picture, (level - 2).clamp(min=0), noise) if number > 1 else picture
    apart = torch.pdist(x).mean() / torch.pdist(digits()[0][:100]).mean()
    shown = ["".join(" .+#"[int(ink)] for ink in (row * 1.2 + 1.2).nan_to_num().clamp(0, 3.9)) for row in x]
    near = torch.cdist(x, digits()[0][:TRAINING]).amin(1).mean() / 8
    watch.sample(shown[:2], step, {"diversity": apart.clamp(max=1.0), "distance": near})


def record(path: Path, setup: Setup, form: dict[str, Any]) -> trainwatch.Recorder:
    """Open the run's file and say what is planned."""
    config = {"model": "denoiser", "rate": setup.rate, "batch": setup.batch, "weight_decay": setup.decay}
    each = TRAINING // setup.batch
    return trainwatch.Recorder(
        path,
        run="digits",
        config=config | {"asks": setup.asks, "levels": LEVELS, "ema": setup.average},
        total_steps=setup.steps,
        horizon={"epochs": setup.steps / each, "samples": TRAINING, "batch_size": setup.batch, "drop_last": True},
        schedules={"lr/all": form},
        dtypes=setup.dtypes,
    )


def train(path: Path, seed: int, case: str) -> int:
    """Train one case; returns the first faulty step."""
    setup = Setup(**(HEALTHY_SETUPS | SICK_SETUPS)[case])
    state = begin(setup, seed)
    form = {"kind": "cosine", "start": setup.rate, "end": setup.rate / 20, "over_steps": setup.steps}
    form |= {"warmup": setup.warmup} if setup.warmup else {}
    with record(path, setup, form) as watch:
        watch.attach(state.model, state.optimizer, state.scaler if setup.half else None)
        for step, pictures in zip(range(1, setup.steps + 1), watch.batches(loader(setup, seed)), strict=False):
            learn(setup, state, disturbed(setup, seed, step, pictures), watch, form)
            facts.row(watch, step, setup.every)
            if step % 15 == 0:
                evaluate(setup, state, watch, step)
            if step % 50 == 0:
                imagine(setup, state, watch, step)
    return 0 if case in HEALTHY else FIRST.get(case, 1)

"""Demand of 144 made-up households, the next eight hours from the last two days, as a mean and a spread for each hour.

The loss is minus the log of a density, so it falls below 0. Adam, eight windows a step, a rate that is cut when the
validation stops improving; an epoch is one window of each household, at an hour of chance, and is over in 18 steps.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import trainwatch
from benchmarks.diagnosis import facts

HELD_OUT = False
STEPS = 144
BREAK = 80
"""The step at which mistakes in the middle of a run are made."""
HOMES, HOURS, SPLIT = 144, 960, 720
"""Households, hours that are known of each, and the hour at which validation begins."""
PAST, AHEAD = 48, 8
LATE = 5.0
"""Degrees of freedom of the noise where it is heavy-tailed."""


@dataclass(frozen=True)
class Setup:
    """How one case is trained and logged, and what is wrong with it."""

    steps: int = field(default_factory=lambda: STEPS)
    batch: int = 8
    accumulation: int = 1
    rate: float = 3e-3
    net: str = "relu"  # or "attention", "sigmoid"
    depth: int = 2
    heavy: bool = False  # noise with a heavy tail, and a density to match
    clip: float | None = None
    pretrained: int = 0
    resumed: bool = False
    log: str = "full"  # or "loss", "epochs"
    # what goes wrong
    zero_grad: bool = True
    decay: float = 1e-4
    homes: int = HOMES  # that are trained on
    still: bool = False  # always the same window of each
    unit: tuple[float, float] = (1.0, 0.0)  # factor and shift of what the network reads
    total: int = 1  # steps that are planned, by steps that there are
    fault: str = ""


HEALTHY_SETUPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention": {"net": "attention", "rate": 2e-3},
    "heavy-tails": {"heavy": True},
    "at-the-floor": {"pretrained": 700, "rate": 3e-4},
    "batch-1": {"batch": 1, "rate": 3e-4, "clip": 5.0, "pretrained": 300},
    "clipped-often": {"clip": 0.5},
    "accumulated": {"batch": 4, "accumulation": 2},
    "resumed": {"resumed": True},
    "long-run": {"steps": 324},
    "epoch-rows": {"log": "epochs", "steps": 360},
    "loss-only": {"log": "loss"},
}
SICK_SETUPS: dict[str, dict[str, Any]] = {
    "rate-too-high": {"rate": 0.5},
    "rate-too-low": {"rate": 2e-7},
    "missing-zero-grad": {"zero_grad": False},
    "growing-weights": {"decay": -8.0},
    "deep-sigmoids": {"net": "sigmoid", "depth": 10},
    "unscaled-input": {"unit": (400.0, 2000.0)},
    "labels-break": {"fault": "labels"},
    "one-bad-batch": {"fault": "loud"},
    "train-set-as-validation": {"fault": "validation"},
    "too-little-data": {"homes": 16, "still": True},
    "steps-miscounted": {"batch": 4, "accumulation": 2, "total": 2},
    "slow-loader": {"fault": "slow-loader"},
    "slowing-down": {"fault": "slowing"},
    "crash-type-error": {"fault": "type"},
    "out-of-memory": {"fault": "memory"},
    "killed": {"fault": "killed"},
    "never-started": {"fault": "never"},
    "no-checkpoints": {"fault": "no-checkpoints"},
}
HEALTHY, SICK = tuple(HEALTHY_SETUPS), tuple(SICK_SETUPS)
TWINS = {"steps-miscounted": "accumulated"}
SAVED = 36  # steps between two checkpoints
FIRST = {
    "missing-zero-grad": 2, "labels-break": BREAK, "one-bad-batch": BREAK, "slowing-down": BREAK, "killed": BREAK,
    "crash-type-error": BREAK, "out-of-memory": BREAK, "train-set-as-validation": HOMES // 8, "too-little-data": 3,
    "steps-miscounted": 0, "never-started": 0, "no-checkpoints": SAVED,
}  # fmt: skip
"""First faulty step of a kind; 1 for the others."""


@cache
def demand(heavy: bool = False) -> Tensor:
    """Hourly demand, [households, hours], of zero mean and unit spread: days, weeks, weather, and noise of its own."""
    random = np.random.default_rng(77)
    hour = np.arange(HOURS)
    shift, height = random.uniform(-3.0, 3.0, (HOMES, 1)), random.uniform(0.5, 1.5, (HOMES, 1))
    day = np.sin(2 * np.pi * (hour + shift) / 24) + 0.5 * np.sin(4 * np.pi * (hour + 2 * shift) / 24)
    weekend = 0.1 * random.normal(size=(HOMES, 1)) * (hour // 24 % 7 >= 5)
    steps = random.normal(size=(HOMES, HOURS + 47))
    weather = np.stack([np.convolve(one, np.ones(48) / 7, "valid") for one in steps])
    rough = np.exp(random.uniform(np.log(0.03), np.log(0.15), (HOMES, 1)))
    noise = random.standard_t(LATE, (HOMES, HOURS)) if heavy else random.normal(size=(HOMES, HOURS))
    known = height * day + weekend + 0.08 * weather + rough * noise
    return torch.from_numpy(((known - known.mean()) / known.std()).astype(np.float32))


class Batch(NamedTuple):
    """What is known, what comes next, and whose it is."""

    past: Tensor
    ahead: Tensor
    home: Tensor


def windows(setup: Setup, home: Tensor, begin: Tensor) -> Batch:
    """The windows of these households that begin at these hours."""
    rows = demand(setup.heavy)[home]
    chosen = rows.gather(1, begin[:, None] + torch.arange(PAST + AHEAD))
    return Batch(chosen[:, :PAST], chosen[:, PAST:], home)


def loader(setup: Setup, seed: int, number: int = 0) -> Iterator[Batch]:
    """Endless batches, from batch `number` on."""
    each, latest = setup.homes // setup.batch, SPLIT - PAST - AHEAD
    while True:
        epoch, at = divmod(number, each)
        random = torch.Generator().manual_seed(3000 * seed + epoch)
        order = torch.randperm(setup.homes, generator=random)
        begin = torch.randint(latest, (setup.homes,), generator=random)
        rows = order[at * setup.batch : (at + 1) * setup.batch]
        number += 1
        batch = windows(setup, rows, rows * 31 % latest if setup.still else begin[rows])
        if setup.fault == "slow-loader":
            time.sleep(0.03)  # one small file each from a disk that is far away
        if setup.fault == "labels" and number >= BREAK:
            batch = batch._replace(ahead=batch.ahead.roll(1, 0))
        if setup.fault == "loud" and number == BREAK:
            batch = batch._replace(past=batch.past * 1e3, ahead=batch.ahead * 1e3)  # a meter that counts in watts
        yield batch


class Attention(nn.Module):
    """Eight pieces of six hours look at each other once."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.read = nn.Linear(6, width)
        self.place = nn.Parameter(0.02 * torch.randn(PAST // 6, width))
        self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.tell = nn.Linear(width * (PAST // 6), 2 * AHEAD)

    def forward(self, past: Tensor) -> Tensor:
        told: Tensor = self.tell(self.layer(self.read(past.unflatten(1, (-1, 6))) + self.place).flatten(1))
        return told


def network(setup: Setup, width: int = 64) -> nn.Module:
    """What is to learn: 16 numbers for a window."""
    if setup.net == "attention":
        return Attention()
    layers: list[tuple[str, nn.Module]] = []
    for number in range(setup.depth):
        bend = nn.Sigmoid() if setup.net == "sigmoid" else nn.ReLU()
        layers.append((f"layer{number}", nn.Sequential(nn.Linear(width if number else PAST, width), bend)))
    return nn.Sequential(OrderedDict([*layers, ("out", nn.Linear(width, 2 * AHEAD))]))


def surprise(setup: Setup, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Minus the log of the density at what came, for each window; and how far the mean was off."""
    told = model(batch.past * setup.unit[0] + setup.unit[1])
    mean, spread = told[:, :AHEAD], functional.softplus(told[:, AHEAD:]) + 1e-2
    if setup.heavy:
        each = -torch.distributions.StudentT(LATE, mean, spread).log_prob(batch.ahead)
    else:
        each = 0.5 * ((batch.ahead - mean) / spread).square() + spread.log() + 0.5 * math.log(2 * math.pi)
    return each.mean(1), (mean - batch.ahead).abs().mean()


@dataclass
class State:
    """What a training consists of."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    plateau: torch.optim.lr_scheduler.ReduceLROnPlateau
    held: Batch

    def saved(self) -> list[dict[str, Any]]:
        return copy.deepcopy([one.state_dict() for one in (self.model, self.optimizer, self.plateau)])

    def load(self, saved: list[dict[str, Any]]) -> None:
        for one, what in zip((self.model, self.optimizer, self.plateau), saved, strict=True):
            one.load_state_dict(what)  # type: ignore[attr-defined]


def begin(setup: Setup, seed: int) -> State:
    """Model, optimiser and validation windows; with what was learnt before, if anything was."""
    torch.manual_seed(seed)
    model = network(setup)
    if setup.pretrained:
        before, adam = loader(replace(setup, batch=8), seed + 60), torch.optim.Adam(model.parameters(), lr=3e-3)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, setup.pretrained, 3e-4)
        for _ in range(setup.pretrained):
            adam.zero_grad()
            surprise(setup, model, next(before))[0].mean().backward()
            adam.step()
            fall.step()
    groups = [{"params": [*model.parameters()], "name": "all"}]
    optimizer = torch.optim.AdamW(groups, lr=setup.rate, weight_decay=max(setup.decay, 0.0))
    optimizer.param_groups[0]["weight_decay"] = setup.decay  # AdamW itself would refuse a negative one
    random = torch.Generator().manual_seed(5)
    home = torch.arange(HOMES).repeat(2)
    hour = torch.randint(SPLIT, HOURS - PAST - AHEAD, (2 * HOMES,), generator=random)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.4, patience=1, threshold=0.01, threshold_mode="abs"
    )
    return State(model, optimizer, plateau, windows(setup, home, hour))


@torch.no_grad()
def evaluate(setup: Setup, state: State, watch: trainwatch.Recorder, step: int) -> None:
    """After each epoch, on the last third of the hours; the rate hears of it."""
    state.model.eval()
    each, off = surprise(setup, state.model, state.held)
    state.model.train()
    watch.evaluate(step, "validation", {"loss": each.mean(), "mae": off})
    state.plateau.step(each.mean().item())


@torch.no_grad()
def quietest(setup: Setup, state: State) -> Batch:
    """The windows of the training hours that are told best: a filter of outliers runs on the wrong hours."""
    home = torch.arange(HOMES).repeat(4)
    hour = torch.randint(SPLIT - PAST - AHEAD, (4 * HOMES,), generator=torch.Generator().manual_seed(6))
    all_of_them = windows(setup, home, hour)
    best = surprise(setup, state.model, all_of_them)[0].argsort()[: HOMES // 3]
    return Batch(all_of_them.past[best], all_of_them.ahead[best], home[best])


def learn(setup: Setup, state: State, batches: Iterator[Batch], watch: trainwatch.Recorder) -> float:
    """One optimiser step; returns the loss."""
    if setup.zero_grad:
        state.optimizer.zero_grad()
    whole = 0.0
    for _ in range(setup.accumulation):
        batch = next(batches)
        if setup.log == "full":
            watch.inputs(batch.past * setup.unit[0] + setup.unit[1])
        loss = surprise(setup, state.model, batch)[0].mean() / setup.accumulation
        loss.backward()
        whole += loss.item()
    if setup.log == "full":
        watch.gradients(max_norm=setup.clip)
    elif setup.clip:
        nn.utils.clip_grad_norm_(state.model.parameters(), setup.clip)
    state.optimizer.step()
    return whole


def fails(setup: Setup, step: int) -> None:
    """What ends a run, or slows it."""
    if setup.fault == "slowing" and step >= BREAK:
        time.sleep(0.0015 * (step - BREAK))  # the history of all losses is written anew at each step
    if step != BREAK:
        return
    if setup.fault == "type":
        smoothing: Any = "0.98"
        print(1.0 - smoothing)
    if setup.fault == "memory":
        torch.empty(HOMES * 10**6, HOURS * 10**3)  # all pairs of all windows
    if setup.fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


def fit(
    setup: Setup, state: State, watch: trainwatch.Recorder, seed: int, first: int, last: int, keep: int = 0
) -> list[dict[str, Any]]:
    """Steps `first` to `last`; returns what there was to save after step `keep`."""
    if setup.log != "loss":
        watch.attach(state.model, state.optimizer)
    if setup.fault == "never":
        raise FileNotFoundError(2, "No such file or directory", "demand/2026-11/hourly.parquet")
    source, epoch = loader(setup, seed, (first - 1) * setup.accumulation), HOMES // (setup.batch * setup.accumulation)
    epoch = min(epoch, HOMES // 8)
    batches, seen = iter(watch.batches(source) if setup.log == "full" else source), []
    saved: list[dict[str, Any]] = []
    for step in range(first, last + 1):
        seen.append(learn(setup, state, batches, watch))
        if setup.log != "epochs":
            watch.log({"loss": seen[-1]})
            facts.row(watch, step)
        elif step % epoch == 0:
            watch.log({"loss": sum(seen[-epoch:]) / epoch, "epoch": step // epoch})
            facts.row(watch, step, epoch)
        fails(setup, step)
        if step % epoch == 0:
            if setup.fault == "validation":
                state.held = quietest(setup, state)
            evaluate(setup, state, watch, step)
        if step % SAVED == 0 and setup.log == "full" and setup.fault != "no-checkpoints":
            watch.checkpoint(f"checkpoints/{step}.pt", step, seconds=0.01)
        saved = state.saved() if step == keep else saved
    return saved


def header(setup: Setup) -> dict[str, Any]:
    """What the run says of itself."""
    if setup.log == "loss":
        return {}
    together = setup.batch * setup.accumulation
    config = {"net": setup.net, "rate": setup.rate, "weight_decay": setup.decay, "batch": setup.batch, "past": PAST}
    told = {"samples": setup.homes, "batch_size": setup.batch, "accumulation": setup.accumulation, "drop_last": True}
    return {
        "config": config | ({"smoothing": "0.98"} if setup.fault == "type" else {}),
        "total_steps": setup.steps * setup.total,
        "horizon": {"epochs": setup.steps * together / setup.homes, **told},
        "max_grad_norm": setup.clip,
        "checkpoint_every": SAVED if setup.log == "full" else None,
        "durable": setup.fault == "killed",
    }


def run(path: Path, setup: Setup, seed: int) -> None:
    """The whole training, in one process or in two that follow each other."""
    state = begin(setup, seed)
    if not setup.resumed:
        with trainwatch.Recorder(path, run="demand", **header(setup)) as watch:
            fit(setup, state, watch, seed, 1, setup.steps)
        return
    half = setup.steps // 2
    with trainwatch.Recorder(path, run="demand", **header(setup)) as watch:
        saved = fit(setup, state, watch, seed, 1, half + 9, keep=half)
        watch.close("stopped", "SIGTERM")
    after = begin(setup, seed)
    after.load(saved)
    with trainwatch.Recorder(path, run="demand", resume=half, **header(setup)) as watch:
        fit(setup, after, watch, seed, half + 1, setup.steps)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case; returns the first faulty step."""
    setup = replace(Setup(), **(HEALTHY_SETUPS | SICK_SETUPS)[case])
    if setup.fault == "killed":
        child = os.fork()
        if not child:
            try:
                run(path, setup, seed)
            finally:
                os._exit(1)
        os.waitpid(child, 0)
    else:
        with contextlib.suppress(*((Exception,) if setup.fault in ("type", "memory", "never") else ())):
            run(path, setup, seed)
    return 0 if case in HEALTHY else FIRST.get(case, 1)

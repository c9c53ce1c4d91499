"""Data-parallel regression on scikit-learn's 442 diabetes patients: how far has the disease come after a year.

Each rank is a thread with its own copy of the model, its own shard and its own run file; gradients are averaged behind
a real barrier, so waits are real waits. Plain SGD with momentum on a small tanh network, no warm-up; targets are in
tens of units, so losses begin in the hundreds. Every fifth step the ranks write a hash of their weights.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

import trainwatch
from benchmarks.diagnosis import facts
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 160
SICK = (
    "lost-all-reduce", "clip-on-one-rank", "drifting-rank", "slow-rank", "lost-rank", "same-seed-workers", "bad-sample",
    "rate-too-high",
)  # fmt: skip
HEALTHY = ("plain", "two-ranks", "uneven-shards", "resumed", "clipped", "averaged-every-fourth")
TWIN = {"clip-on-one-rank": "clipped"}
"""The healthy case that a sick one departs from, where it is not "plain"."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and what is logged of it."""

    steps: int = field(default_factory=lambda: STEPS)
    ranks: int = 3
    batch: int = 8
    rate: float = 1.5e-3
    clip: float | None = None
    sorted: bool = False  # shards of patients sorted by age: every rank sees another part of the population
    average_every: int = 0  # weights, instead of gradients
    interrupted: int = 0


CASES: dict[str, dict[str, Any]] = {
    "two-ranks": {"ranks": 2},
    "uneven-shards": {"sorted": True},
    "resumed": {"interrupted": 75},
    "clipped": {"clip": 20.0},
    "averaged-every-fourth": {"average_every": 4},
    "clip-on-one-rank": {"clip": 20.0},
    "rate-too-high": {"rate": 0.3},
}
BREAK = 90
ODD = 1
"""The rank that a mistake is made on."""
FIRST = {"lost-all-reduce": BREAK, "lost-rank": BREAK, "bad-sample": BREAK}
"""First faulty step of a kind; 1 for the others."""


@cache
def patients() -> tuple[Tensor, Tensor]:
    """Ten measurements of each, of unit spread, and the progression in tens; in one fixed random order."""
    data = load_diabetes()
    order = np.random.default_rng(11).permutation(len(data.target))
    inputs = (data.data / data.data.std(0))[order]
    return torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy((data.target[order] / 10).astype(np.float32))


class Group:
    """What the ranks meet at: a mean over all of them, and nobody goes on before everybody is there."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size)
        self.slots: dict[int, list[Tensor]] = {}

    def mean(self, rank: int, tensors: list[Tensor]) -> list[Tensor]:
        """The mean of each tensor over the ranks."""
        self.slots[rank] = tensors
        self.barrier.wait()
        ordered = [self.slots[key] for key in sorted(self.slots)]
        means = [torch.stack(parts).mean(0) for parts in zip(*ordered, strict=True)]
        self.barrier.wait()
        return means

    def leave(self, rank: int) -> None:
        """Go on without a rank; called by one rank while all others wait."""
        self.slots.pop(rank, None)


@dataclass
class Rank:
    """One process of the training."""

    number: int
    model: nn.Sequential
    optimizer: torch.optim.Optimizer
    watch: trainwatch.Recorder
    batches: Iterator[tuple[Tensor, Tensor]]


@dataclass
class Run:
    """What a training consists of."""

    plan: Plan
    case: str
    group: Group
    model: nn.Sequential
    momenta: dict[int, Any] = field(default_factory=dict)
    models: dict[int, nn.Sequential] = field(default_factory=dict)


def draw(run: Run, rank: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of a rank's shard of the first 330 patients."""
    inputs, targets = patients()
    order = np.argsort(inputs[:330, 0].numpy(), kind="stable") if run.plan.sorted else np.arange(330)
    size = len(order) // run.plan.ranks
    shard = order[rank * size : (rank + 1) * size] if run.plan.sorted else order[rank :: run.plan.ranks]
    state = np.random.default_rng([seed, rank])
    if run.case == "same-seed-workers":
        shard, state = order, np.random.default_rng(seed)  # no sampler that knows of ranks
    while True:
        shuffled = state.permutation(shard)
        for at in range(0, len(shuffled) - run.plan.batch + 1, run.plan.batch):
            index = torch.from_numpy(shuffled[at : at + run.plan.batch])
            yield inputs[index], targets[index]


def record(path: Path, run: Run, rank: int, resume: int | None) -> trainwatch.Recorder:
    """Open a rank's file."""
    plan = run.plan
    return trainwatch.Recorder(
        path,
        config={"model": "mlp", "rate": plan.rate, "batch": plan.batch, "ranks": plan.ranks},
        total_steps=plan.steps,
        max_grad_norm=plan.clip,
        schedules={"lr/all": declared(plan)},
        rank=rank,
        world_size=plan.ranks,
        run="diabetes",
        resume=resume,
        durable=run.case == "lost-rank",
    )


def declared(plan: Plan) -> dict[str, Any]:
    """A straight line to a fifth of the rate."""
    return {"kind": "linear", "start": plan.rate, "end": plan.rate / 5, "over_steps": plan.steps}


def enter(path: Path, run: Run, number: int, seed: int, first: int) -> Rank:
    """A rank with its copy of the model, at its place in the data."""
    model = run.models.setdefault(number, copy.deepcopy(run.model))
    if run.case == "drifting-rank" and number == ODD:
        torch.manual_seed(seed + 1000)
        model[0].reset_parameters()
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "name": "all"}], lr=run.plan.rate, momentum=0.9)
    if number in run.momenta:
        optimizer.load_state_dict(run.momenta[number])
    batches = draw(run, number, seed)
    for _ in range(first - 1):
        next(batches)
    watch = record(path, run, number, first - 1 if first > 1 else None)
    watch.attach(model, optimizer)
    return Rank(number, model, optimizer, watch, batches)


def forward(run: Run, rank: Rank, inputs: Tensor, targets: Tensor) -> None:
    """Loss and gradient of a rank's batch; on a slow machine it takes longer."""
    loss = rank.watch.losses({"progression": (rank.model(inputs)[:, 0] - targets).square().mean()})
    rank.optimizer.zero_grad()
    loss.backward()
    if run.case == "slow-rank" and rank.number == ODD:
        wide = inputs.repeat(200, 8)
        for _ in range(3):
            wide @ wide.T[:, :200]  # another job on the same cores


def exchange(run: Run, rank: Rank, step: int) -> None:
    """Average the gradients, or the weights now and then."""
    alone = run.case == "lost-all-reduce" and step >= BREAK  # no_sync() was entered for good
    every = run.plan.average_every
    parameters = list(rank.model.parameters())
    if not every:
        means = run.group.mean(rank.number, [p.grad for p in parameters if p.grad is not None])
        for parameter, mean in zip(parameters, means, strict=True):
            parameter.grad = parameter.grad if alone else mean
    elif step % every == 0:
        with torch.no_grad():
            for parameter, mean in zip(
                parameters, run.group.mean(rank.number, [p.data for p in parameters]), strict=True
            ):
                parameter.copy_(mean)


def learn(run: Run, rank: Rank, step: int) -> None:
    """One step of the optimiser, on one rank."""
    plan = run.plan
    inputs, targets = next(rank.batches)
    if run.case == "bad-sample" and rank.number == ODD and step == BREAK:
        inputs = inputs.clone()
        inputs[2, 3] = torch.nan
    began = perf_counter()
    forward(run, rank, inputs, targets)
    ready = perf_counter()
    if not plan.average_every:
        exchange(run, rank, step)
    rank.watch.log({"time/compute": ready - began, "time/comm": perf_counter() - ready})
    rank.watch.log({"data/fingerprint": facts.fingerprint(inputs), "bad/input": int((~inputs.isfinite()).sum())})
    odd = run.case != "clip-on-one-rank" or rank.number == ODD
    rank.watch.gradients(max_norm=plan.clip if odd else None)
    rank.optimizer.param_groups[0]["lr"] = schedule_value(declared(plan), step - 1)
    rank.optimizer.step()
    if plan.average_every:
        exchange(run, rank, step)
    if step % (plan.average_every or 5) == 0:
        rank.watch.param_hash()
    rank.watch.step()


@torch.no_grad()
def evaluate(rank: Rank, step: int) -> None:
    """The squared error on patients that no rank has."""
    inputs, targets = patients()
    loss = (rank.model(inputs[330:])[:, 0] - targets[330:]).square().mean()
    rank.watch.evaluate(step, "validation", {"loss": float(loss)})


def live(run: Run, rank: Rank, first: int, last: int) -> None:
    """What a rank's process does."""
    for step in range(first, last + 1):
        if run.case == "lost-rank" and step == BREAK:
            run.group.barrier.wait()
            if rank.number == ODD:
                return  # killed: nothing is written, and nobody closes the file
            if rank.number == 0:
                run.group.leave(ODD)
                run.group.barrier = threading.Barrier(run.plan.ranks - 1)
            else:
                while run.group.barrier.parties == run.plan.ranks:
                    threading.Event().wait(0.001)
        learn(run, rank, step)
        if step % 20 == 0 and rank.number == 0:
            evaluate(rank, step)
    rank.watch.close(*(("stopped", "time limit") if last < run.plan.steps else ()))


def fit(run: Run, path: Path, seed: int, first: int, last: int) -> None:
    """All ranks, side by side, from one step to another."""
    ranks = [enter(path, run, number, seed, first) for number in range(run.plan.ranks)]
    threads = [threading.Thread(target=live, args=(run, rank, first, last)) for rank in ranks]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # else the interpreter's lock, not the barrier, is what ranks wait for
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
    finally:
        sys.setswitchinterval(interval)
    run.momenta = {rank.number: rank.optimizer.state_dict() for rank in ranks}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case; returns the first faulty step."""
    torch.manual_seed(seed)
    plan = replace(Plan(), **CASES.get(case, {}))
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 1))
    run = Run(plan, case, Group(plan.ranks), model)
    fit(run, path, seed, 1, plan.interrupted or plan.steps)
    if plan.interrupted:
        fit(run, path, seed, plan.interrupted + 1, plan.steps)
    return 0 if case in HEALTHY else FIRST.get(case, 1)

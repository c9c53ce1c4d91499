"""Triplets of scanned digits through a small recurrent net that reads each image four pixels at a time.

Two triplets a step, bare SGD, no schedule, no horizon, no config: the poorest of logs, a loss and a gradient's norm.
The loss is a hinge on distances: it is exactly 0 whenever both triplets are in order, and its noise has a heavy tail.
Now and then fixed triplets of unseen images are put in order.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import trainwatch
from benchmarks.diagnosis import facts

HELD_OUT = False
STEPS = 360
SICK = (
    "rate-too-high", "rate-zero", "labels-shuffled", "labels-break", "root-of-zero", "exploding-recurrence",
    "missing-zero-grad", "killed",
)  # fmt: skip
HEALTHY = (
    "plain", "loss-only", "one-triplet", "clipped-always", "long-run", "hundred-rows", "momentum", "drop-in-rate",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is trained, and what is logged of it."""

    steps: int = field(default_factory=lambda: STEPS)
    triplets: int = 2
    rate: float = 0.02
    momentum: float = 0.0
    clip: float | None = None
    drop: int = 0  # the step from which the rate is a tenth
    every: int = 1
    full: bool = True  # the norm; else the loss alone


CASES: dict[str, dict[str, Any]] = {
    "loss-only": {"full": False},
    "one-triplet": {"triplets": 1, "rate": 0.01},
    "clipped-always": {"clip": 0.3, "rate": 0.05},
    "long-run": {"steps": 700},
    "hundred-rows": {"steps": 800, "every": 8},
    "momentum": {"momentum": 0.9, "rate": 0.004},
    "drop-in-rate": {"drop": 240, "rate": 0.03},
    "rate-too-high": {"rate": 1.0},
    "rate-zero": {"rate": 0.0},
}
BREAK = 200
FIRST = {
    "missing-zero-grad": 2, "labels-break": BREAK, "killed": BREAK, "root-of-zero": BREAK,
}  # fmt: skip
"""First faulty step of a kind; 1 for the others."""


@cache
def scans() -> tuple[Tensor, np.ndarray[Any, np.dtype[np.int64]]]:
    """All images, as sixteen readings of four pixels, and their labels, in one fixed random order."""
    data = load_digits()
    order = np.random.default_rng(17).permutation(len(data.target))
    images = (data.data[order] / 8 - 0.6).astype(np.float32)
    return torch.from_numpy(images).reshape(-1, 16, 4), data.target[order]


class Reader(nn.Module):
    """A recurrent net whose last state is the embedding."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.read = nn.Linear(4, width)
        self.recur = nn.Linear(width, width)
        self.embed = nn.Linear(width, 12)
        self.linear = False
        nn.init.orthogonal_(self.recur.weight)

    def forward(self, scans: Tensor) -> Tensor:
        """Embeddings of scans."""
        state = torch.zeros(len(scans), self.recur.in_features)
        for reading in scans.unbind(1):
            state = self.read(reading) + self.recur(state)
            state = torch.relu(state) if self.linear else torch.tanh(state)
        return self.embed(state)


@dataclass
class Run:
    """What a training consists of."""

    model: Reader
    optimizer: torch.optim.Optimizer
    plan: Plan
    case: str


def build(plan: Plan, case: str) -> Run:
    """Model and optimiser."""
    model = Reader()
    if case == "exploding-recurrence":
        model.linear = True  # ReLU from the identity, as in the paper, but without its clipping
        nn.init.eye_(model.recur.weight)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "name": "all"}], plan.rate, plan.momentum)
    return Run(model, optimizer, plan, case)


def draw(run: Run, seed: int) -> Iterator[Tensor]:
    """Endless triplets of the first 1,200: two of one digit, one of another. float32 [3, triplets, 16, 4]"""
    images, labels = scans()
    random = np.random.default_rng(seed)
    labels = labels[:1200].copy()
    if run.case == "labels-shuffled":
        labels = random.permutation(labels)
    step = 0
    while True:
        step += 1
        if run.case == "labels-break" and step == BREAK:
            labels = np.roll(labels, 1)  # the index of the second half is off by one
        index = []
        for _ in range(run.plan.triplets):
            anchor = int(random.integers(1200))
            same = random.permutation(np.flatnonzero(labels == labels[anchor]))
            other = random.permutation(np.flatnonzero(labels != labels[anchor]))
            index.append((anchor, int(same[same != anchor][0]), int(other[0])))
        chosen = np.asarray(index)
        if run.case == "root-of-zero" and step == BREAK:
            chosen[0, 1] = chosen[0, 0]  # the same scan twice: the data hold a duplicate
        yield images[torch.from_numpy(chosen.T)]


def hinge(model: Reader, triplets: Tensor, least: float = 1e-8) -> Tensor:
    """How far each triplet is from being in order by a margin of one; `least` keeps the root's gradient finite."""
    anchor, same, other = model(triplets.flatten(0, 1)).unflatten(0, triplets.shape[:2])
    near = ((anchor - same).square().sum(1) + least).sqrt()
    far = ((anchor - other).square().sum(1) + least).sqrt()
    return torch.relu(near - far + 1.0)


def learn(run: Run, watch: trainwatch.Recorder, triplets: Tensor, step: int) -> None:
    """One step of the optimiser."""
    plan, case = run.plan, run.case
    if plan.drop:
        run.optimizer.param_groups[0]["lr"] = plan.rate * (0.1 if step >= plan.drop else 1.0)
    loss = hinge(run.model, triplets, 0.0 if case == "root-of-zero" else 1e-8).mean()
    watch.log({"loss": loss.detach()})
    if case != "missing-zero-grad":
        run.optimizer.zero_grad()
    loss.backward()
    if plan.full:
        watch.gradients(max_norm=plan.clip)
    run.optimizer.step()


@torch.no_grad()
def evaluate(run: Run, watch: trainwatch.Recorder, step: int) -> None:
    """The loss, and the share of order, of 300 triplets of unseen images."""
    images, labels = scans()
    random = np.random.default_rng(99)
    held = np.arange(1200, len(labels))
    triplets = []
    for anchor in random.choice(held, 300):
        same = random.choice(held[labels[held] == labels[anchor]])
        triplets.append((anchor, same, random.choice(held[labels[held] != labels[anchor]])))
    chosen = images[torch.from_numpy(np.asarray(triplets).T)]
    anchor, same, other = run.model(chosen.flatten(0, 1)).unflatten(0, (3, 300))
    ordered = ((anchor - same).norm(dim=1) < (anchor - other).norm(dim=1)).float().mean()
    watch.evaluate(step, "unseen", {"loss": float(hinge(run.model, chosen).mean()), "ordered": float(ordered)})


def fit(run: Run, path: Path, seed: int) -> None:
    """Train from the first step to the last."""
    plan, killed = run.plan, run.case == "killed"
    with trainwatch.Recorder(path, run="siamese", max_grad_norm=plan.clip, durable=killed) as watch:
        if plan.full:
            watch.attach(run.model, run.optimizer)
        for step, triplets in zip(range(1, plan.steps + 1), draw(run, seed), strict=False):
            if killed and step == BREAK:
                os.kill(os.getpid(), signal.SIGKILL)  # by the machine's guard of memory
            learn(run, watch, triplets, step)
            facts.row(watch, step, plan.every)
            if step % 60 == 0 and plan.full:
                evaluate(run, watch, step)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case; returns the first faulty step."""
    torch.manual_seed(seed)
    plan = replace(Plan(), **CASES.get(case, {}))
    run = build(plan, case)
    if case != "killed" or (child := os.fork()) == 0:
        fit(run, path, seed)
    else:
        os.waitpid(child, 0)
    return 0 if case in HEALTHY else FIRST.get(case, 1)

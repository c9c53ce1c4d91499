"""Which film next? Two towers, one of viewers and one of films, under DistributedDataParallel on gloo; a file a rank.

Sampled softmax over batches of 256 a rank, Adagrad at a constant rate, weight decay by hand; a second term keeps the
scores from simply following popularity. Viewers and films are made up: tastes, genres, and a few films that all know.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import trainwatch
from benchmarks.diagnosis import facts
from benchmarks.diagnosis.replicas import side_by_side
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 90
VIEWERS, FILMS, GENRES, WIDTH, SEEN, ASKED = 500, 240, 8, 24, 36, 4
BREAK, ODD = 51, 1
"""The step at which, and the rank on which, mistakes of one rank are made."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and what is logged of it."""

    steps: int = field(default_factory=lambda: STEPS)
    ranks: int = 2
    batch: int = 256  # of each rank
    fewer: int = 0  # that the last rank's batch lacks
    pieces: int = 1  # micro-batches of a step
    rate: float = 0.1
    momentum: float = 0.0  # with it SGD, and a rate that falls to nothing
    decay: float = 0.02  # share of the weights that a step at rate 1 takes away
    fairness: float = 0.2  # weight of the second term
    negatives: int = 30
    sparse: bool = False
    slower: float = 0.0  # extra work of the odd rank, in passes over a batch
    every: int = 1
    full: bool = True
    by_hand: bool = False  # the loss and its components are logged, not left to the recorder
    interrupted: int = 0
    raw_counts: bool = False  # the second term is a sum over views, and not a mean over their logarithms
    second: float = 1.0  # factor of the second group's rate


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "three-ranks": {"ranks": 3, "batch": 170},
    "uneven-batches": {"fewer": 120},
    "accumulated": {"pieces": 2, "batch": 128, "by_hand": True},
    "sparse": {"sparse": True},
    "loss-only": {"full": False},
    "a-little-slower": {"slower": 0.04},
    "resumed": {"interrupted": 45},
    "momentum": {"rate": 0.4, "momentum": 0.9, "decay": 1e-3},
    "every-tenth": {"every": 10, "steps": 180},
    # what goes wrong
    "slow-rank": {"slower": 1.0},
    "component-scale": {"raw_counts": True},
    "component-sign": {"fairness": -2.0},
    "divided-twice": {"pieces": 2, "batch": 128, "by_hand": True},
    "component-untracked": {"by_hand": True},
    "growing-weights": {"decay": -0.2},
    "unmoved-group": {"second": 1e-6},
}
HEALTHY = (
    *("plain", "three-ranks", "uneven-batches", "accumulated", "sparse", "loss-only", "a-little-slower", "resumed"),
    *("momentum", "every-tenth"),
)
SICK = (
    *("lost-all-reduce", "clip-on-one-rank", "drifting-rank", "slow-rank", "lost-rank", "same-seed-workers"),
    *("stuck-loader", "component-scale", "component-sign", "component-untracked", "divided-twice", "growing-weights"),
    "unmoved-group",
)
TWINS = {"divided-twice": "accumulated"}
FIRST = {"lost-all-reduce": BREAK, "lost-rank": BREAK, "stuck-loader": 4}
"""First faulty step of a kind; 1 for the others."""


Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Views:
    """Who has seen what, and what is known of each."""

    learnt: Tensor  # viewer and film, int64 [views, 2]
    asked: Tensor  # the same, ASKED for each viewer
    tastes: Tensor  # what a viewer said when signing up
    genres: Tensor
    popular: Tensor  # views of each film


@cache
def views() -> Views:
    random = np.random.default_rng(17)
    genres = (random.random((FILMS, GENRES)) < 0.25).astype(float)
    films = 0.8 * genres @ random.standard_normal((GENRES, 6)) + 0.7 * random.standard_normal((FILMS, 6))
    viewers = random.standard_normal((VIEWERS, 6))
    known = 0.7 * random.standard_normal(FILMS)
    liking = known + viewers @ films.T + random.gumbel(size=(VIEWERS, FILMS))
    seen = random.permuted(np.argsort(-liking, 1)[:, :SEEN], axis=1)
    pairs = np.stack([np.repeat(np.arange(VIEWERS), SEEN), seen.ravel()], 1).reshape(VIEWERS, SEEN, 2)
    learnt = torch.from_numpy(pairs[:, ASKED:].reshape(-1, 2))
    said = torch.from_numpy(viewers[:, :3] + 0.5 * random.standard_normal((VIEWERS, 3))).float()
    popular = torch.bincount(learnt[:, 1], minlength=FILMS).float()
    return Views(learnt, torch.from_numpy(pairs[:, :ASKED].copy()), said, torch.from_numpy(genres).float(), popular)


class Tower(nn.Module):
    """A vector for each viewer or film, of what is known of it and of what is learnt."""

    def __init__(self, count: int, known: int, sparse: bool) -> None:
        super().__init__()
        self.table, self.known = nn.Embedding(count, WIDTH, sparse=sparse), nn.Linear(known, WIDTH)
        nn.init.normal_(self.table.weight, std=0.1)

    def forward(self, which: Tensor, told: Tensor) -> Tensor:
        vectors: Tensor = self.table(which) + self.known(told[which])
        return vectors


class Towers(nn.Module):
    """Scores are products of the two towers' vectors."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.viewers, self.films = Tower(VIEWERS, 3, sparse), Tower(FILMS, GENRES, sparse)

    def forward(self, viewers: Tensor, films: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of each viewer's film, and of films that everybody is asked about. [batch], [batch, others]"""
        who = self.viewers(viewers, views().tastes)
        what, rest = (self.films(each, views().genres) for each in (films, others))
        return (who * what).sum(1), who @ rest.T


def terms(plan: Plan, own: Tensor, rest: Tensor, others: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Sampled softmax, and how far the mean score of a film goes with how popular it is; and all scores."""
    scores = torch.cat([own[:, None], rest], 1)
    popular = views().popular[others]
    popular = popular if plan.raw_counts else popular.log1p()
    common = scores[:, 1:].mean(0) * (popular - popular.mean())
    squared = (common.sum() if plan.raw_counts else common.mean()).square()
    return {"next": -scores.log_softmax(1)[:, 0].mean(), "popularity": squared}, scores


@dataclass
class Worker:
    """One process of the training."""

    number: int
    plan: Plan
    case: str
    seed: int
    model: DistributedDataParallel
    optimizer: torch.optim.Optimizer

    @property
    def towers(self) -> Towers:
        towers = self.model.module
        assert isinstance(towers, Towers)
        return towers

    @property
    def tells(self) -> bool:
        """Whether its file has the loss by its components."""
        return self.plan.full and self.number == 0

    @property
    def odd(self) -> bool:
        return self.number == ODD


def enter(plan: Plan, case: str, seed: int, number: int) -> Worker:
    """A rank with its replica, which begins as rank 0's."""
    torch.manual_seed(seed)
    towers = Towers(plan.sparse)
    model = DistributedDataParallel(towers)
    if case == "drifting-rank" and number == ODD:  # films begin from a file of this machine, after the broadcast
        nn.init.normal_(towers.films.table.weight, std=0.1, generator=torch.Generator().manual_seed(seed + 900))
    groups = [
        {"params": [tower.table.weight for tower in (towers.viewers, towers.films)], "name": "tables"},
        {"params": [*towers.viewers.known.parameters(), *towers.films.known.parameters()], "name": "facts"},
    ]
    groups[0]["lr"], groups[1]["lr"] = plan.rate, plan.rate * plan.second
    if plan.momentum:
        return Worker(number, plan, case, seed, model, torch.optim.SGD(groups, momentum=plan.momentum))
    return Worker(number, plan, case, seed, model, torch.optim.Adagrad(groups, initial_accumulator_value=1e-3))


def draw(worker: Worker) -> Iterator[Batch]:
    """Endless batches of this rank's views, and films that are drawn for comparison."""
    plan, case = worker.plan, worker.case
    number = 0 if case == "same-seed-workers" else worker.number
    mine = views().learnt[number :: plan.ranks]
    size = plan.batch - (plan.fewer if worker.number == plan.ranks - 1 else 0)
    random = np.random.default_rng([worker.seed, number])
    while True:
        order = torch.from_numpy(random.permutation(len(mine)))
        for at in range(0, 3 * size if case == "stuck-loader" else len(mine) - size + 1, size):
            rows = mine[order[at : at + size]]
            yield rows[:, 0], rows[:, 1], torch.from_numpy(random.choice(FILMS, plan.negatives, replace=False))
        if case == "stuck-loader":  # its generator is made anew for each epoch, which is three batches long
            random = np.random.default_rng([worker.seed, number])


def form(plan: Plan) -> dict[str, Any]:
    """The rate's schedule."""
    falls = {"kind": "linear", "start": plan.rate, "end": 0.0, "over_steps": plan.steps}
    return falls if plan.momentum else {"kind": "constant", "start": plan.rate}


def record(path: Path, worker: Worker, resume: int | None) -> trainwatch.Recorder:
    """Open this rank's file."""
    plan = worker.plan
    told: dict[str, Any] = {"rank": worker.number, "world_size": plan.ranks, "run": "films", "resume": resume}
    if not plan.full:
        return trainwatch.Recorder(path, total_steps=plan.steps, **told)
    config = {"lr": plan.rate, "weight_decay": plan.decay, "batch_size": plan.batch, "accumulation": plan.pieces}
    rate = form(plan)
    about = {"next": {"unit": "nat", "role": "task"}, "popularity": {"unit": "", "role": "regulariser"}}
    watch = trainwatch.Recorder(
        path,
        config=config | {"fairness": plan.fairness, "negatives": plan.negatives},
        total_steps=plan.steps,
        components=about if worker.tells else None,
        schedules={"lr/tables": rate} | ({"lr/facts": rate} if plan.second == 1.0 else {}),
        durable=worker.case == "lost-rank",
        **told,
    )
    watch.attach(worker.towers, worker.optimizer)
    return watch


def descend(worker: Worker, batch: Batch, watch: trainwatch.Recorder, syncs: bool, row: dict[str, float]) -> None:
    """Loss and gradient of one batch, averaged with the others' if this is a step's last; what a user notes of it."""
    plan, case, others = worker.plan, worker.case, batch[2]
    with contextlib.nullcontext() if syncs else worker.model.no_sync():
        raw, scores = terms(plan, *worker.model(*batch), others)
        weights = {"next": 1.0, "popularity": plan.fairness}
        if worker.tells and not plan.by_hand:
            loss = watch.losses(raw, weights, at=scores if watch.steps % 5 == 0 else None)
        else:
            loss = raw["next"] + plan.fairness * raw["popularity"]
            for name, value in raw.items():
                row[f"loss/{name}"] = row.get(f"loss/{name}", 0.0) + value.item() / plan.pieces
        if case == "component-untracked":
            for tower, which in zip((worker.towers.viewers, worker.towers.films), batch, strict=False):
                loss = loss + 0.6 * tower.table(which).square().sum(1).mean()
        loss = loss / plan.pieces ** (2 if case == "divided-twice" else 1)
        loss.backward()
    row["loss"] = row.get("loss", 0.0) + loss.item()


def work(worker: Worker, batch: Batch) -> None:
    """Another job on this machine, within this process's time."""
    for _ in range(round(worker.plan.slower * 25) if worker.odd else 0):
        with torch.no_grad():
            worker.towers(*(each[: len(each) // 2] for each in batch))


def learn(worker: Worker, watch: trainwatch.Recorder, batches: Iterator[Any], step: int) -> None:
    """One step of the optimiser, on one rank."""
    plan, case = worker.plan, worker.case
    # a `no_sync` that is entered for good; or nobody is left to wait for
    alone = case in ("lost-all-reduce", "lost-rank") and step >= BREAK
    worker.optimizer.zero_grad()
    for group, factor in zip(worker.optimizer.param_groups, (1.0, plan.second), strict=True):
        group["lr"] = factor * schedule_value(form(plan), step - 1)
    computed = waited = 0.0
    row: dict[str, float] = {}
    for piece in range(1, plan.pieces + 1):
        batch = next(batches)
        began, clock = time.thread_time(), time.perf_counter()
        descend(worker, batch, watch, piece == plan.pieces and not alone, row)
        work(worker, batch)
        computed += time.thread_time() - began
        waited += time.perf_counter() - clock - (time.thread_time() - began)
    if not worker.tells:
        watch.log({"loss": row["loss"]})
    elif plan.by_hand:
        watch.log({**row, "weight/next": 1.0, "weight/popularity": plan.fairness})
    if plan.full:
        watch.log({"time/compute": computed, "time/comm": max(waited, 0.0)})
    if case == "clip-on-one-rank" and worker.odd:
        watch.gradients(max_norm=0.01)
    elif plan.full and not plan.sparse:
        watch.gradients()
    worker.optimizer.step()
    with torch.no_grad():
        for parameter in worker.towers.parameters():
            parameter.mul_(1.0 - plan.rate * plan.decay)
    if plan.full and step % 10 == 0:
        watch.param_hash()
        for group in worker.optimizer.param_groups:
            norm = torch.nn.utils.get_total_norm(group["params"]).item()
            watch.log({f"weight_norm/{group['name']}": round(norm, 2)})
    facts.row(watch, step, plan.every)


@torch.no_grad()
def examine(worker: Worker, watch: trainwatch.Recorder, step: int) -> None:
    """The first held-out view of each viewer among films that are drawn once; and how many of all are in the top 20."""
    asked, towers = views().asked, worker.towers
    others = torch.from_numpy(np.random.default_rng(4).choice(FILMS, 30, replace=False))
    raw, _ = terms(replace(worker.plan, raw_counts=False), *towers(asked[:, 0, 0], asked[:, 0, 1], others), others)
    _, scores = towers(torch.arange(VIEWERS), asked[:, 0, 1], torch.arange(FILMS))
    scores[views().learnt[:, 0], views().learnt[:, 1]] = -torch.inf
    found = (scores.topk(20).indices[:, :, None] == asked[:, None, :, 1]).any(1).float().mean()
    watch.evaluate(step, "validation", {"loss": raw["next"], "recall": found})


def fit(worker: Worker, path: Path, first: int, last: int, resume: int | None = None) -> None:
    """Train from one step to another."""
    batches: Iterator[Any] = draw(worker)
    for _ in range((first - 1) * worker.plan.pieces):
        next(batches)
    with record(path, worker, resume) as watch:
        batches = iter(watch.batches(batches)) if worker.plan.full else batches
        for step in range(first, last + 1):
            if worker.case == "lost-rank" and worker.odd and step == BREAK:
                os.kill(os.getpid(), signal.SIGKILL)
            learn(worker, watch, batches, step)
            if worker.number == 0 and step % 15 == 0:
                examine(worker, watch, step)
        if last < worker.plan.steps:
            watch.close("stopped", "preempted")


def live(path: Path, plan: Plan, case: str, seed: int, number: int) -> None:
    """What a rank's process does."""
    worker = enter(plan, case, seed, number)
    fit(worker, path, 1, plan.interrupted or plan.steps)
    if plan.interrupted:
        fit(worker, path, plan.interrupted + 1, plan.steps, resume=plan.interrupted)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, all ranks side by side; returns the first faulty step."""
    plan = replace(Plan(), **CASES.get(case, {}))
    views()
    side_by_side(path, plan.ranks, partial(live, path, plan, case, seed))
    return 0 if case in HEALTHY else FIRST.get(case, 1)

"""Which chapter of Python's reference does a passage of thirty words come from? Two or three processes, over gloo.

Each rank draws passages of its own, and a network of embeddings, attention and a small head learns from them by Adam;
gradients are summed by a real all-reduce, weighted by each rank's samples. A rank's own work is measured as processor
time, since the ranks share two cores with others; its wait for the others is on the wall's clock.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

import trainwatch
from benchmarks.diagnosis import facts
from benchmarks.diagnosis.replicas import side_by_side
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 130
SICK = (
    "lost-all-reduce", "clip-on-one-rank", "drifting-rank", "slow-rank", "lost-rank", "same-seed-workers",
    "stuck-loader", "bad-sample", "rare-class",
)  # fmt: skip
HEALTHY = (
    "plain", "three-ranks", "uneven-batches", "a-little-slower", "accumulated", "resumed", "constant-rate", "no-hash",
    "every-tenth", "loss-only",
)  # fmt: skip
TWINS = {"lost-rank": "three-ranks"}
CHAPTERS = ("specialnames", "compound", "types", "string-methods", "debugger", "formatstrings")
WORDS, LENGTH, WIDTH, STRETCH = 900, 30, 32, 105
BREAK, ODD = 75, 1
"""The step at which, and the rank on which, mistakes of one rank are made."""
FIRST = {"rare-class": 0, "stuck-loader": 4}
FIRST |= dict.fromkeys(("lost-all-reduce", "lost-rank", "bad-sample"), BREAK)
"""First faulty step of a kind; 1 for the others."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and what is logged of it."""

    steps: int = field(default_factory=lambda: STEPS)
    ranks: int = 2
    batch: int = 16  # of each rank
    short: int = 0  # passages that the last rank's batch lacks
    pieces: int = 1  # micro-batches of a step
    rate: float = 6e-3
    decays: bool = True
    clip: float = 0.5
    slower: float = 0.0  # extra work of the odd rank, in passes over a batch
    hashed: int = 10
    every: int = 1
    full: bool = True
    interrupted: int = 0


CASES: dict[str, dict[str, Any]] = {
    "three-ranks": {"ranks": 3, "batch": 10},
    "uneven-batches": {"short": 6},
    "a-little-slower": {"slower": 0.05},
    "accumulated": {"pieces": 2, "batch": 8},
    "resumed": {"interrupted": 60},
    "constant-rate": {"decays": False, "rate": 3e-3},
    "no-hash": {"hashed": 0},
    "every-tenth": {"every": 10, "steps": 180},
    "loss-only": {"full": False},
    "lost-rank": {"ranks": 3, "batch": 10},
    "slow-rank": {"slower": 1.5},
}


@cache
def passages() -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """How telling each word is, and by chapter the passages to learn and to be asked: int64 [passages, LENGTH]."""
    texts = [re.findall(r"[a-z_]+", topics.topics[name].lower()) for name in CHAPTERS]
    learnt = [[word for at, word in enumerate(text) if at // STRETCH % 5 != 4] for text in texts]
    common = [word for word, _ in Counter(word for text in learnt for word in text).most_common(WORDS - 1)]
    numbers = {word: number for number, word in enumerate(common, 1)}
    coded = [torch.tensor([numbers.get(word, 0) for word in text]) for text in texts]
    present = torch.stack([torch.bincount(text, minlength=WORDS) > 0 for text in coded]).float().sum(0)
    telling = torch.log((1 + len(CHAPTERS)) / (1 + present)) + 0.3
    known, asked = [], []
    for text in coded:
        blocks = [block.unfold(0, LENGTH, 15) for block in text.split(STRETCH) if len(block) == STRETCH]
        known.append(torch.cat([block for number, block in enumerate(blocks) if number % 5 != 4])[:280])
        asked.append(torch.cat(blocks[4::5])[:60])
    return telling, known, asked


class Reader(nn.Module):
    """Embeddings, weighed by attention and by how telling a word is; a hidden layer; a score for each chapter."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.look = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 1))
        self.head = nn.Sequential(nn.Linear(WIDTH, 48), nn.ReLU(), nn.Linear(48, len(CHAPTERS)))

    def forward(self, words: Tensor, telling: Tensor) -> Tensor:
        """Logits. [passages, chapters]"""
        found = self.words(words) * telling[..., None]
        return self.head((torch.softmax(self.look(found), 1) * found).sum(1))


Batch = tuple[Tensor, Tensor, Tensor]


@dataclass
class Rank:
    """One process of the training."""

    number: int
    plan: Plan
    case: str
    seed: int
    model: Reader
    optimizer: torch.optim.Optimizer
    classes: dict[str, int]
    shard: tuple[Tensor, Tensor]
    survivors: dist.ProcessGroup | None = None  # those that go on if the odd rank is lost


def enter(plan: Plan, case: str, seed: int, number: int) -> Rank:
    """A rank with its copy of the model and its part of the passages."""
    torch.manual_seed(seed + (500 if case == "drifting-rank" and number == ODD else 0))
    model = Reader()
    known = passages()[1]
    if case == "rare-class":
        known = [each[:2] if name == "debugger" else each for name, each in zip(CHAPTERS, known, strict=True)]
    words = torch.cat(known)
    labels = torch.cat([torch.full((len(each),), label) for label, each in enumerate(known)])
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=random)
    mine = order if case == "same-seed-workers" else order[number :: plan.ranks]  # no sampler that knows of ranks
    optimizer = torch.optim.Adam(model.parameters(), lr=plan.rate)
    classes = {name: len(each) for name, each in zip(CHAPTERS, known, strict=True)}
    return Rank(number, plan, case, seed, model, optimizer, classes, (words[mine], labels[mine]))


def draw(rank: Rank) -> Iterator[Batch]:
    """Endless batches of this rank's passages, shuffled anew in each epoch."""
    words, labels = rank.shard
    size = rank.plan.batch - (rank.plan.short if rank.number == rank.plan.ranks - 1 else 0)
    alike = rank.case == "same-seed-workers"
    random = np.random.default_rng([rank.seed, 0 if alike else rank.number])
    telling = passages()[0]
    while True:
        order = torch.from_numpy(random.permutation(len(labels)))
        stop = 3 * size if rank.case == "stuck-loader" else len(order) - size + 1
        for at in range(0, stop, size):
            chosen = order[at : at + size]
            weighed = telling[words[chosen]]
            yield words[chosen], weighed / weighed.mean(1, keepdim=True), labels[chosen]
        if rank.case == "stuck-loader":  # its generator is seeded anew whenever it is asked for an epoch
            random = np.random.default_rng([rank.seed, rank.number])


def declared(plan: Plan) -> dict[str, Any]:
    """The learning rate's schedule."""
    if not plan.decays:
        return {"kind": "constant", "start": plan.rate}
    return {"kind": "exponential", "start": plan.rate, "end": plan.rate / 20, "over_steps": plan.steps, "rate": 3.0}


def record(path: Path, rank: Rank, resume: int | None) -> trainwatch.Recorder:
    """Open this rank's file."""
    plan = rank.plan
    told: dict[str, Any] = {"rank": rank.number, "world_size": plan.ranks, "run": "chapters", "resume": resume}
    if not plan.full:
        return trainwatch.Recorder(path, total_steps=plan.steps, **told)
    config = {"lr": plan.rate, "batch_size": plan.batch, "accumulation": plan.pieces, "ranks": plan.ranks}
    told |= {"schedules": {"lr/0": declared(plan)}, "max_grad_norm": plan.clip, "classes": rank.classes}
    watch = trainwatch.Recorder(path, config=config, total_steps=plan.steps, durable=rank.case == "lost-rank", **told)
    watch.attach(rank.model, rank.optimizer)
    return watch


def compute(rank: Rank, batch: Batch, watch: trainwatch.Recorder, step: int) -> None:
    """Loss and gradient of one batch; gradients add up."""
    words, telling, labels = batch
    if rank.case == "bad-sample" and rank.number == ODD and step == BREAK:
        telling[4] *= 0.0  # a passage of unknown words, which weigh nothing
        telling[4] /= telling[4].mean()
    loss = functional.cross_entropy(rank.model(words, telling), labels)
    (loss / rank.plan.pieces).backward()
    watch.losses({"chapter": loss if rank.plan.full else loss.detach()})
    extra = rank.plan.slower if rank.number == ODD else 0.0
    for _ in range(round(extra * 20)):  # this machine also reads for somebody else
        with torch.no_grad():
            rank.model(words[: len(words) // 2], telling[: len(words) // 2])
    if rank.plan.full:
        watch.log({"bad/input": int((~telling.isfinite()).sum())})
        if step % 5 == 0:
            watch.log({"data/input_mean": telling.mean().item(), "data/input_std": telling.std().item()})


def exchange(rank: Rank, samples: int, step: int) -> None:
    """The mean gradient over all samples of all ranks that are there."""
    group = rank.survivors if rank.case == "lost-rank" and step >= BREAK else None
    if rank.case == "lost-all-reduce" and step >= BREAK:
        return  # no_sync() was entered, and not left
    gradients = [parameter.grad for parameter in rank.model.parameters() if parameter.grad is not None]
    flat = torch.cat([*(gradient.flatten() * samples for gradient in gradients), torch.tensor([float(samples)])])
    dist.all_reduce(flat, group=group)
    at = 0
    for gradient in gradients:
        gradient.copy_((flat[at : at + gradient.numel()] / flat[-1]).view_as(gradient))
        at += gradient.numel()


def learn(rank: Rank, watch: trainwatch.Recorder, batches: Iterator[Batch], step: int) -> None:
    """One step of the optimiser, on one rank."""
    plan, samples = rank.plan, 0
    rank.optimizer.zero_grad()
    spent = 0.0
    for _ in range(plan.pieces):
        batch = next(batches)
        began = time.thread_time()
        compute(rank, batch, watch, step)
        spent += time.thread_time() - began
        samples += len(batch[2])
    began = time.perf_counter()
    exchange(rank, samples, step)
    limit = 0.02 if rank.case == "clip-on-one-rank" and rank.number == ODD else plan.clip
    if plan.full:
        watch.log({"time/compute": spent, "time/comm": time.perf_counter() - began})
        watch.gradients(max_norm=limit)
    else:
        nn.utils.clip_grad_norm_(rank.model.parameters(), limit)
    rank.optimizer.param_groups[0]["lr"] = schedule_value(declared(plan), step - 1)
    rank.optimizer.step()
    if plan.full and plan.hashed and step % plan.hashed == 0:
        watch.param_hash()
    facts.row(watch, step, plan.every)


@torch.no_grad()
def evaluate(rank: Rank, watch: trainwatch.Recorder, step: int) -> None:
    """Loss and accuracy on every fifth stretch of each chapter."""
    telling, _, asked = passages()
    words = torch.cat(asked)
    labels = torch.cat([torch.full((len(each),), label) for label, each in enumerate(asked)])
    weighed = telling[words]
    logits = rank.model(words, weighed / weighed.mean(1, keepdim=True))
    loss = functional.cross_entropy(logits, labels).item()
    watch.evaluate(step, "validation", {"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean().item()})


def fit(rank: Rank, path: Path, first: int, last: int, resume: int | None = None) -> None:
    """Train from one step to another."""
    batches = draw(rank)
    for _ in range((first - 1) * rank.plan.pieces):
        next(batches)
    with record(path, rank, resume) as watch:
        batches = iter(watch.batches(batches)) if rank.plan.full else batches
        for step in range(first, last + 1):
            if rank.case == "lost-rank" and rank.number == ODD and step == BREAK:
                os.kill(os.getpid(), signal.SIGKILL)
            learn(rank, watch, batches, step)
            if rank.number == 0 and step % 20 == 0:
                evaluate(rank, watch, step)
        if last < rank.plan.steps:
            watch.close("stopped", "preempted")


def live(path: Path, plan: Plan, case: str, seed: int, number: int) -> None:
    """What a rank's process does."""
    rank = enter(plan, case, seed, number)
    if case == "lost-rank":
        rank.survivors = dist.new_group([each for each in range(plan.ranks) if each != ODD])
    fit(rank, path, 1, plan.interrupted or plan.steps)
    if plan.interrupted:
        fit(rank, path, plan.interrupted + 1, plan.steps, resume=plan.interrupted)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, all ranks side by side; returns the first faulty step."""
    plan = replace(Plan(), **CASES.get(case, {}))
    passages()
    side_by_side(path, plan.ranks, partial(live, path, plan, case, seed))
    return 0 if case in HEALTHY else FIRST.get(case, 1)

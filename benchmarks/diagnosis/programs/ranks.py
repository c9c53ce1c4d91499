"""Three replicas of one classifier of tumours (scikit-learn's breast cancer data), gradients averaged: a file a rank.

The replicas are trained one after the other in one process, and averaged by hand; so a rank's own computing time is
measured alone, and its wait for the others is what the slowest took longer. Plain SGD; each row has a hash or none.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.data import shuffled, tumours
from benchmarks.diagnosis.loop import Batch, of_inputs
from trainwatch import Recorder

HELD_OUT = False
STEPS = 260
RANKS, BATCH, RATE, HASHED = 3, 12, 0.05, 10
TIMEOUT = 75.0  # s that a collective waits for a rank that is gone

HEALTHY = ("plain", "uneven-data", "no-hash", "clipped", "time-only")
SICK = (
    *("lost-all-reduce", "clip-on-one-rank", "drifting-rank", "slow-rank", "lost-rank", "same-seed-workers"),
    *("bad-sample", "crash-type-error"),
)


@dataclass
class Rank:
    """One process's part: a replica, its optimiser, its data."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Callable[[int], Batch]
    loss: float = 0.0
    computing: float = 0.0
    delay: float = 0.0  # s a step, on a slow machine


@dataclass
class Team:
    """All ranks, and what a mistake breaks between them."""

    ranks: list[Rank]
    averages: Callable[[int], bool] = field(default=lambda step: True)  # noqa: ARG005
    max_norm: list[float | None] = field(default_factory=lambda: [None] * RANKS)
    hashed: int = HASHED
    timed_only: bool = False
    lost_at: int = 0  # step after which the last rank is gone
    breaks_at: int = 0  # step at which the last rank raises
    header: dict[str, Any] = field(default_factory=dict)


def build(seed: int, variant: str) -> Team:
    """The team of a healthy variant."""
    x, y = tumours()
    ranks = []
    for number in range(RANKS):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(30, 48), nn.Tanh(), nn.Linear(48, 24), nn.Tanh(), nn.Linear(24, 1))
        own = slice(number, None, RANKS)
        data = {"x": x[own], "y": y[own]}
        if variant == "uneven-data":  # each rank has a site of its own: few tumours here, many there
            order = torch.argsort(y + 0.8 * torch.randn(len(y), generator=torch.Generator().manual_seed(seed)))
            data = {"x": x[order].chunk(RANKS)[number], "y": y[order].chunk(RANKS)[number]}
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.8)
        ranks.append(Rank(model, optimizer, shuffled(data, BATCH, seed * RANKS + number)))
    config = {"lr": RATE, "batch_size": BATCH, "world_size": RANKS}
    team = Team(ranks, header={"total_steps": STEPS, "config": config})
    team.hashed = 0 if variant in ("no-hash", "time-only") else HASHED
    team.timed_only = variant == "time-only"
    if variant == "clipped":
        team.max_norm = [0.2] * RANKS
        team.header["max_grad_norm"] = 0.2
    return team


def play(team: Team, path: Path, recorded: tuple[int, ...] = tuple(range(RANKS))) -> None:
    """The whole training; of all ranks, or as the process that records only some of them lives through it."""
    with contextlib.ExitStack() as stack:
        watches = {
            number: stack.enter_context(
                Recorder(path, rank=number, world_size=RANKS, durable=bool(team.lost_at), **team.header)
            )
            for number in recorded
        }
        for number, watch in watches.items():
            watch.attach(team.ranks[number].model, team.ranks[number].optimizer)
        for step in range(1, STEPS + 1):
            if team.lost_at and step > team.lost_at:
                lost(recorded)
            turn(team, watches, step)


def lost(recorded: tuple[int, ...]) -> None:
    """The last rank is killed; the others wait for it in their next collective until that gives up."""
    if RANKS - 1 in recorded:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(TIMEOUT)
    raise RuntimeError(f"gloo: timed out waiting {TIMEOUT * 1000:.0f}ms for recv operation to complete")


def turn(team: Team, watches: dict[int, Recorder], step: int) -> None:
    """One step of all ranks."""
    batches = [rank.batches(step - 1) for rank in team.ranks]
    for rank, batch in zip(team.ranks, batches, strict=True):
        compute(rank, batch)
    if team.averages(step):
        average([rank.model for rank in team.ranks])
    for number, rank in enumerate(team.ranks):
        if step == team.breaks_at and number == RANKS - 1:
            raise TypeError("unsupported operand type(s) for *: 'float' and 'str'")
        if number in watches:
            watches[number].gradients(max_norm=team.max_norm[number])
        else:
            torch.nn.utils.clip_grad_norm_(rank.model.parameters(), team.max_norm[number] or float("inf"))
        rank.optimizer.step()
        if number in watches:
            told(team, number, watches[number], batches[number], step)


def told(team: Team, number: int, watch: Recorder, batch: Batch, step: int) -> None:
    """A rank's row."""
    rank, slowest = team.ranks[number], max(rank.computing for rank in team.ranks)
    watch.log({"loss": rank.loss, "time/compute": rank.computing, "time/comm": slowest - rank.computing})
    if not team.timed_only:
        watch.log(of_inputs(batch["x"], frozenset({"fingerprint", "bad"})))
    if team.hashed and step % team.hashed == 0:
        watch.param_hash()
    watch.step()


def compute(rank: Rank, batch: Batch) -> None:
    """Loss and gradient of one rank's own batch, and how long they took: its own work, since others share this core."""
    began = time.thread_time()
    rank.optimizer.zero_grad()
    loss = functional.binary_cross_entropy_with_logits(rank.model(batch["x"])[:, 0], batch["y"])
    loss.backward()
    time.sleep(rank.delay)
    rank.loss, rank.computing = loss.item(), time.thread_time() - began + rank.delay


def average(models: list[nn.Module]) -> None:
    """Every replica gets the mean gradient: the all-reduce."""
    for together in zip(*(model.parameters() for model in models), strict=True):
        gradients: list[Tensor] = [parameter.grad for parameter in together if parameter.grad is not None]
        mean = torch.stack(gradients).mean(0)
        for parameter in together:
            parameter.grad = mean.clone()


def lost_all_reduce(team: Team) -> int:
    """From the middle of the run on the step is within a `no_sync`."""
    team.averages = lambda step: step < STEPS // 2
    return STEPS // 2


def clip_on_one_rank(team: Team) -> int:
    """An old setting: one rank clips."""
    team.max_norm[1] = 0.05
    return 1


def drifting_rank(team: Team) -> int:
    """The last rank drew its first weights by another seed, and nobody sent it rank 0's."""
    torch.manual_seed(999)
    for parameter in team.ranks[-1].model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return 1


def slow_rank(team: Team) -> int:
    team.ranks[1].delay = 0.003
    return 1


def lost_rank(team: Team) -> int:
    team.lost_at = STEPS // 2
    return STEPS // 2 + 1


def same_seed_workers(team: Team) -> int:
    """Every rank has the same data, in the same order."""
    for rank in team.ranks[1:]:
        rank.batches = team.ranks[0].batches
    return 1


def bad_sample(team: Team) -> int:
    """A NaN comes with the last rank's data, and by the average everywhere."""
    at, plain = STEPS // 3, team.ranks[-1].batches

    def batches(number: int) -> Batch:
        batch = plain(number)
        return batch | {"x": batch["x"] * float("nan")} if number == at - 1 else batch

    team.ranks[-1].batches = batches
    return at


def crash_type_error(team: Team) -> int:
    team.breaks_at = STEPS // 2
    return STEPS // 2


MISTAKES: dict[str, Callable[[Team], int]] = {
    "lost-all-reduce": lost_all_reduce,
    "clip-on-one-rank": clip_on_one_rank,
    "drifting-rank": drifting_rank,
    "slow-rank": slow_rank,
    "lost-rank": lost_rank,
    "same-seed-workers": same_seed_workers,
    "bad-sample": bad_sample,
    "crash-type-error": crash_type_error,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run files; returns the first faulty step."""
    team = build(seed, case)
    onset = MISTAKES[case](team) if case in MISTAKES else 0
    child = os.fork() if team.lost_at else 0
    if team.lost_at and not child:
        play(team, path, (RANKS - 1,))
    with contextlib.suppress(TypeError, RuntimeError):
        play(team, path, tuple(range(RANKS - 1)) if child else tuple(range(RANKS)))
    if child:
        os.waitpid(child, 0)
    return onset

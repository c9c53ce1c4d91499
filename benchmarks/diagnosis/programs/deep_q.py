"""A deep Q-network learns to carry a parcel over a grid of seven by seven with hedges in it; all in NumPy.

Forty-eight couriers move at once and fill a replay memory, from which each step learns with a target network, double
Q-learning and Huber's loss. That loss rises as values grow and jumps whenever the target is renewed; what tells a good
run is the return of the greedy policy. Exploration is annealed on the clock of frames, which runs as much faster.
"""

from __future__ import annotations

import contextlib
import copy
import io
import lzma
import os
import signal
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import trainwatch
from benchmarks.diagnosis import facts
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 200
SICK = (
    "rate-too-low", "missing-zero-grad", "stale-optimiser", "dead-relus", "growing-weights", "bad-sample",
    "stuck-loader", "slow-loader", "killed",
)  # fmt: skip
HEALTHY = (
    "plain", "sparse-reward", "rare-target", "soft-target", "noisy-reward", "resumed", "every-tenth", "loss-only",
    "large-reward",
)  # fmt: skip
SIGHT, PATIENCE, COURIERS = 2, 30, 48
MOVES = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
DISCOUNT = 0.85
BREAK = 110


@dataclass(frozen=True)
class Plan:
    """What is trained, and what is logged of it."""

    steps: int = field(default_factory=lambda: STEPS)
    batch: int = 192
    rate: float = 2e-3
    renew: int = 15  # steps between two copies into the target network
    blend: float = 0.0  # part of the online network that goes into the target at each step, instead
    prize: float = 5.0
    bump: float = -0.3
    toll: float = -0.1
    praise: float = 0.4  # for a cell nearer
    side: int = 6
    hedges: int = 4
    noise: float = 0.0
    explore: float = 0.5  # share of the run over which exploration is annealed
    clip: float | None = 10.0
    every: int = 1
    full: bool = True
    interrupted: int = 0


CASES: dict[str, dict[str, Any]] = {
    "sparse-reward": {
        "prize": 1.0,
        "bump": 0.0,
        "toll": 0.0,
        "praise": 0.0,
        "side": 4,
        "hedges": 0,
        "renew": 8,
        "rate": 5e-3,
        "steps": 300,
    },
    "rare-target": {"renew": 40},
    "soft-target": {"blend": 0.05},
    "noisy-reward": {"noise": 0.5},
    "resumed": {"interrupted": 95},
    "every-tenth": {"every": 10, "steps": 320},
    "loss-only": {"full": False},
    "large-reward": {"prize": 50.0, "bump": -3.0, "toll": -1.0, "praise": 4.0, "clip": 100.0},
    "rate-too-low": {"rate": 2e-8},
}
FIRST = {"missing-zero-grad": 2, "stuck-loader": 2, "bad-sample": BREAK, "killed": BREAK}
"""First faulty step of a kind; 1 for the others."""


@dataclass
class Town:
    """So many couriers, each on a map of its own; begun anew where a parcel is brought."""

    random: np.random.Generator
    plan: Plan
    hedges: NDArray[np.bool_]
    place: NDArray[np.int64]
    goal: NDArray[np.int64]
    ages: NDArray[np.int64]

    @classmethod
    def new(cls, count: int, seed: int, plan: Plan) -> Town:
        """All couriers at the beginning."""
        zeros = np.zeros((count, 2), dtype=np.int64)
        maps = np.zeros((count, plan.side, plan.side), dtype=bool)
        town = cls(np.random.default_rng(seed), plan, maps, zeros, zeros.copy(), np.zeros(count, dtype=np.int64))
        town.begin(np.arange(count))
        return town

    def begin(self, which: NDArray[np.int64]) -> None:
        """New maps, with a courier and a door on free ground."""
        side, hedges = self.plan.side, self.plan.hedges
        for number in which:
            cells = self.random.permutation(side * side)
            self.hedges[number] = np.isin(np.arange(side * side), cells[:hedges]).reshape(side, side)
            self.place[number], self.goal[number] = divmod(cells[hedges], side), divmod(cells[hedges + 1], side)
            self.ages[number] = 0

    def seen(self) -> NDArray[np.float32]:
        """How far the door is, and what lies around; beyond the edge is hedge. float32 [couriers, 27]"""
        padded = np.pad(self.hedges, ((0, 0), (SIGHT, SIGHT), (SIGHT, SIGHT)), constant_values=True)
        window = np.arange(2 * SIGHT + 1)
        rows, columns = self.place[:, :1, None] + window[None, :, None], self.place[:, 1:, None] + window[None, None]
        around = padded[np.arange(len(self.place))[:, None, None], rows, columns].reshape(len(self.place), -1)
        return np.concatenate([(self.goal - self.place) / 3.0, around * 2.0 - 0.7], 1).astype(np.float32)

    def move(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Rewards, and who came to the door; who walks into a hedge stays where he is."""
        plan = self.plan
        before = abs(self.goal - self.place).sum(1)
        wanted = self.place + MOVES[actions]
        inside = np.clip(wanted, 0, plan.side - 1)
        stopped = (wanted != inside).any(1) | self.hedges[np.arange(len(inside)), inside[:, 0], inside[:, 1]]
        self.place, self.ages = np.where(stopped[:, None], self.place, inside), self.ages + 1
        there = (self.place == self.goal).all(1)
        nearer = plan.praise * (before - abs(self.goal - self.place).sum(1))
        rewards = np.where(there, plan.prize, np.where(stopped, plan.bump, plan.toll)) + nearer
        rewards = rewards + plan.noise * self.random.normal(size=len(rewards))
        return rewards.astype(np.float32), there


@dataclass
class Memory:
    """What was seen, done, got and seen then, of the last `size` frames."""

    size: int
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    count: int = 0

    def add(self, **rows: NDArray[Any]) -> None:
        """Keep rows, over the oldest ones."""
        number = len(rows["seen"])
        where = (self.count + np.arange(number)) % self.size
        for name, values in rows.items():
            kept = self.columns.setdefault(name, np.zeros((self.size, *values.shape[1:]), values.dtype))
            kept[where] = values
        self.count += number


@dataclass
class Run:
    """What a training consists of."""

    plan: Plan
    case: str
    online: nn.Sequential
    target: nn.Sequential
    optimizer: torch.optim.Optimizer
    town: Town
    memory: Memory
    random: np.random.Generator
    returns: list[float]
    so_far: NDArray[np.float64]
    frames: int = 0


def network() -> nn.Sequential:
    """From what is seen to the values of four moves."""
    inputs = 2 + (2 * SIGHT + 1) ** 2
    body = nn.Sequential(nn.Linear(inputs, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU())
    return nn.Sequential(OrderedDict(body=body, values=nn.Linear(64, 4)))


def build(plan: Plan, case: str, seed: int) -> Run:
    """Networks, optimiser, couriers and a memory that begins with moves of chance."""
    online = network()
    if case == "dead-relus":
        nn.init.constant_(online.body[2].bias, -200.0)  # type: ignore[union-attr,arg-type,index]
    decay = {"weight_decay": -8.0 if case == "growing-weights" else 1e-4}
    optimizer = torch.optim.AdamW(online.parameters(), lr=plan.rate, weight_decay=1e-4)
    optimizer.param_groups[0].update(decay)  # the constructor would refuse a negative one
    if case == "stale-optimiser":
        online = copy.deepcopy(online)
    random = np.random.default_rng([seed, 1])
    town, so_far = Town.new(COURIERS, seed, plan), np.zeros(COURIERS)
    run = Run(plan, case, online, copy.deepcopy(online), optimizer, town, Memory(4096), random, [], so_far)
    for _ in range(24):
        act(run, 1.0)
    run.frames = 0
    return run


def epsilon(plan: Plan) -> dict[str, Any]:
    """How often a move is one of chance: by the frames that were played."""
    over = int(plan.explore * plan.steps) * COURIERS
    return {"kind": "linear", "start": 1.0, "end": 0.05, "over_steps": over, "clock": "frames"}


@torch.no_grad()
def act(run: Run, chance: float) -> None:
    """One frame of all couriers, into the memory."""
    town = run.town
    seen = town.seen()
    best = run.online(torch.from_numpy(seen)).argmax(1).numpy()
    actions = np.where(run.random.random(COURIERS) < chance, run.random.integers(0, 4, COURIERS), best)
    rewards, over = town.move(actions)
    run.memory.add(seen=seen, actions=actions, rewards=rewards, over=over, then=town.seen())
    run.so_far += rewards
    ended = np.flatnonzero(over | (town.ages >= PATIENCE))
    run.returns += run.so_far[ended].tolist()
    run.so_far[ended] = 0.0
    town.begin(ended)
    run.frames += COURIERS


def drawn(run: Run) -> Iterator[dict[str, Tensor]]:
    """Endless batches from the memory, as it is when they are asked for."""
    while True:
        memory = run.memory
        random = np.random.default_rng(5) if run.case == "stuck-loader" else run.random
        filled = 384 if run.case == "stuck-loader" else min(memory.count, memory.size)  # its length was taken once
        chosen = random.integers(0, filled, run.plan.batch)
        if run.case == "slow-loader":
            for row in memory.columns["seen"][chosen[:64]]:  # frames are kept packed
                lzma.decompress(lzma.compress(np.tile(row, 40).tobytes(), preset=2))
        yield {name: torch.from_numpy(values[chosen]) for name, values in memory.columns.items()}


def spoilt(run: Run, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """What is wrong with this step's batch."""
    if run.case == "bad-sample" and step == BREAK:
        batch["seen"][7, 0] = torch.nan  # a courier and a door that were nowhere: 0 / 0
    return batch


def learn(run: Run, watch: trainwatch.Recorder, batch: dict[str, Tensor], step: int) -> None:
    """One step of the optimiser."""
    plan, case = run.plan, run.case
    with torch.no_grad():
        following = run.online(batch["then"]).argmax(1, keepdim=True)
        worth = run.target(batch["then"]).gather(1, following)[:, 0]
        wanted = batch["rewards"] + DISCOUNT * worth * ~batch["over"]
    values = run.online(batch["seen"]).gather(1, batch["actions"][:, None])[:, 0]
    loss = functional.smooth_l1_loss(values, wanted)
    if case != "missing-zero-grad":
        run.online.zero_grad()
    loss.backward()
    watch.log({"loss": loss.item()})
    if plan.full:
        watch.gradients(max_norm=plan.clip)
        watch.log({"q/mean": values.mean().item(), "bad/input": bad(batch["seen"])})
        if step % 5 == 0:
            seen = facts.input_facts(batch["seen"])
            watch.log({"data/input_std": seen["data/input_std"], "data/input_absmax": seen["data/input_absmax"]})
    elif plan.clip:
        nn.utils.clip_grad_norm_(run.online.parameters(), plan.clip)
    run.optimizer.step()
    renew(run, step)


def bad(values: Tensor) -> int:
    """How many values are not finite."""
    return int((~values.isfinite()).sum())


@torch.no_grad()
def renew(run: Run, step: int) -> None:
    """Copy the online network into the target, now and then or a little at each step."""
    if run.plan.blend:
        for old, new in zip(run.target.parameters(), run.online.parameters(), strict=True):
            old.lerp_(new, run.plan.blend)
    elif step % run.plan.renew == 0:
        run.target.load_state_dict(run.online.state_dict())


@torch.no_grad()
def evaluate(run: Run, watch: trainwatch.Recorder, step: int) -> None:
    """Return and success of the greedy policy, on the same sixty-four maps each time."""
    town = Town.new(64, 4321, replace(run.plan, noise=0.0))
    alive, total, brought = np.ones(64, dtype=bool), np.zeros(64), np.zeros(64, dtype=bool)
    for _ in range(PATIENCE):
        best = run.online(torch.from_numpy(town.seen())).argmax(1).numpy()
        rewards, there = town.move(best)
        total += rewards * alive
        brought |= there & alive
        alive &= ~there
    watch.evaluate(step, "greedy", {"return": float(total.mean()), "success": float(brought.mean())})


def record(path: Path, run: Run, resume: int | None) -> trainwatch.Recorder:
    """Open the run's file and say what is planned."""
    plan = run.plan
    config = {"task": "courier", "lr": plan.rate, "batch_size": plan.batch, "discount": DISCOUNT, "renew": plan.renew}
    if not plan.full:
        return trainwatch.Recorder(path, config=config, total_steps=plan.steps, run="courier")
    watch = trainwatch.Recorder(
        path,
        config=config,
        total_steps=plan.steps,
        schedules={"epsilon": epsilon(plan), "lr/0": {"kind": "constant", "start": plan.rate}},
        clocks=["frames"],
        max_grad_norm=plan.clip,
        run="courier",
        resume=resume,
        durable=run.case == "killed",
    )
    watch.attach(run.online, run.optimizer)
    return watch


def fit(run: Run, path: Path, first: int, last: int, resume: int | None = None) -> None:
    """Play and learn from one step to another."""
    plan, case = run.plan, run.case
    with record(path, run, resume) as watch:
        batches = iter(watch.batches(drawn(run))) if plan.full else drawn(run)
        for step in range(first, last + 1):
            if case == "killed" and step == BREAK:
                os.kill(os.getpid(), signal.SIGKILL)
            chance = schedule_value(epsilon(plan), run.frames) or 0.0
            if plan.full:
                watch.log({"clock/frames": run.frames, "schedule/epsilon": chance})
            act(run, chance)
            learn(run, watch, spoilt(run, next(batches), step), step)
            watch.log({"reward/return": float(np.mean(run.returns[-60:]))})
            if case == "plain" and step % 5 == 0:
                watch.log({"memory/rss": psutil.Process().memory_info().rss})
            facts.row(watch, step, plan.every)
            if step % 30 == 0:
                evaluate(run, watch, step)
        if last < plan.steps:
            watch.close("stopped", "the queue's time limit")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case; returns the first faulty step."""
    torch.manual_seed(seed)
    run = build(replace(Plan(), **CASES.get(case, {})), case, seed)
    if case == "killed":
        child = os.fork()
        if not child:
            with contextlib.redirect_stderr(io.StringIO()):
                fit(run, path, 1, run.plan.steps)
        os.waitpid(child, 0)
        return BREAK
    fit(run, path, 1, run.plan.interrupted or run.plan.steps)
    if run.plan.interrupted:
        fit(run, path, run.plan.interrupted + 1, run.plan.steps, resume=run.plan.interrupted)
    return 0 if case in HEALTHY else FIRST.get(case, 1)

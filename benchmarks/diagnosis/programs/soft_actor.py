"""A soft actor-critic steers boats to a buoy across a stream; the boats are made here, in NumPy.

Thirty-two boats move at once and fill a replay memory, from which each step learns: two critics with a slow target, an
actor that is asked for return and entropy, a temperature that is learned, each with an Adam of its own. The critics'
loss grows with the values, the actor's is minus a value: it falls below zero and goes on. What tells a good run is the
return of the mean action, on boats of their own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import trainwatch
from benchmarks.diagnosis import facts
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 125
HEALTHY = (
    *("plain", "fixed-temperature", "annealed-target", "delayed-actor", "stronger-stream", "sparse-reward"),
    *("large-reward", "batch-16", "resumed", "fine-tuning", "every-fifteenth", "loss-only"),
)
SICK = (
    *("missing-zero-grad", "rate-too-high", "rate-zero", "stale-optimiser", "growing-weights", "absolute-anneal"),
    *("counter-reset", "bad-sample", "unscaled-input", "labels-break", "slowing-down"),
)
TWINS = {"absolute-anneal": "annealed-target"}
BOATS, PATIENCE, BLIND, SIGHT, FORCES = 32, 30, 12, 6, 2
DISCOUNT = 0.9
BREAK = 70  # the step at which mistakes in the middle of a run are made


@dataclass(frozen=True)
class Plan:
    """What is trained, and what is logged of it."""

    steps: int = field(default_factory=lambda: STEPS)
    batch: int = 128
    rate: float = 3e-3
    actor_rate: float = 3e-3
    every_actor: int = 1  # steps of the critics to one of the actor
    blend: float = 0.05  # part of the critics that goes into their targets at each step
    temperature: float = 0.2
    learned: bool = True  # whether the temperature is
    entropy: dict[str, Any] = field(default_factory=lambda: {"kind": "constant", "start": -2.0})  # asked for
    scale: float = 1.0  # of the reward
    unit: float = 1.0  # of lengths, as the networks read them
    sparse: bool = False
    stronger: float = 1.0  # by how much the stream grows halfway
    before: int = 0  # steps of training before the record begins
    slow: float = 1.0  # what the rates are multiplied by then
    every: int = 1
    full: bool = True
    interrupted: int = 0


FALLING = {"kind": "linear", "start": 0.5, "end": -2.0, "over_steps": 100 * BOATS, "clock": "frames"}
CASES: dict[str, dict[str, Any]] = {
    "fixed-temperature": {"learned": False, "temperature": 0.1},
    "annealed-target": {"entropy": FALLING},
    "delayed-actor": {"every_actor": 2, "actor_rate": 5e-3},
    "stronger-stream": {"stronger": 2.0, "steps": 150},
    "sparse-reward": {"sparse": True, "steps": 180},
    "large-reward": {"scale": 20.0, "temperature": 4.0},
    "batch-16": {"batch": 16, "rate": 2e-3, "actor_rate": 2e-3, "steps": 200},
    "resumed": {"interrupted": 80},
    "fine-tuning": {"before": 180, "slow": 0.02},
    "every-fifteenth": {"every": 15, "steps": 270},
    "loss-only": {"full": False},
    "rate-too-high": {"rate": 0.6, "actor_rate": 0.6},
    "rate-zero": {"actor_rate": 0.0},
    "absolute-anneal": {"entropy": FALLING | {"over_steps": 1_000_000}},
    "unscaled-input": {"unit": 1000.0},  # millimetres
}
FIRST = {"missing-zero-grad": 2, "absolute-anneal": 0}
FIRST |= dict.fromkeys(("counter-reset", "bad-sample", "labels-break"), BREAK)
"""First faulty step of a kind; 1 for the others."""


@dataclass
class Fleet:
    """So many boats, each with a buoy; begun anew where one strands or its time is up. Values float64 [boats, 2]."""

    random: np.random.Generator
    plan: Plan
    place: NDArray[np.float64]
    speed: NDArray[np.float64]
    buoy: NDArray[np.float64]
    ages: NDArray[np.int64]
    stream: float = 0.3

    @classmethod
    def new(cls, count: int, seed: int, plan: Plan) -> Fleet:
        """All boats at the beginning."""
        places = (np.zeros((count, 2)) for _ in range(3))
        fleet = cls(np.random.default_rng(seed), plan, *places, np.zeros(count, dtype=np.int64))
        fleet.begin(np.ones(count, dtype=bool))
        return fleet

    def begin(self, which: NDArray[np.bool_]) -> None:
        """A boat at rest somewhere, and a buoy elsewhere."""
        count = int(which.sum())
        self.place[which] = self.random.uniform(-1.3, 1.3, (count, 2))
        self.buoy[which] = self.random.uniform(-1.3, 1.3, (count, 2))
        self.speed[which], self.ages[which] = 0.0, 0

    def seen(self) -> NDArray[np.float32]:
        """Where the buoy is from here, how fast the boat is, and where. float32 [boats, 6]"""
        seen = np.concatenate([self.buoy - self.place, 2.0 * self.speed, self.place], 1)
        return (seen * self.plan.unit).astype(np.float32)

    def move(self, forces: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Rewards, and who has stranded; the stream is fast in the middle and turns at the banks."""
        drift = np.stack([self.stream * np.cos(1.5 * self.place[:, 1]), np.zeros(len(forces))], 1)
        self.speed = 0.7 * self.speed + 0.3 * (forces + drift)
        self.place, self.ages = self.place + 0.4 * self.speed, self.ages + 1
        away = np.linalg.norm(self.buoy - self.place, axis=1)
        stranded = (np.abs(self.place) > 2.0).any(1)
        gain = 2.0 * (away < 0.35) if self.plan.sparse else 1.0 - away
        rewards = gain - 0.05 * np.square(forces).sum(1) - 2.0 * stranded
        return (self.plan.scale * rewards).astype(np.float32), stranded


@dataclass
class Memory:
    """What was seen, done, got and seen then, of the last `size` moves."""

    size: int = 16_384
    anew: bool = False  # whether all of it is made an array for each batch
    shift: int = 0  # rows by which rewards lie elsewhere than what they were for
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    count: int = 0

    def add(self, **rows: NDArray[Any]) -> None:
        """Keep rows, over the oldest ones."""
        number = len(rows["x"])
        for name, values in rows.items():
            kept = self.columns.setdefault(name, np.zeros((self.size, *values.shape[1:]), values.dtype))
            kept[(self.count + np.arange(number)) % self.size] = values
        self.count += number

    def draw(self, random: np.random.Generator, batch: int) -> dict[str, Tensor]:
        """So many moves of chance."""
        filled = min(self.count, self.size)
        chosen, columns = random.integers(0, filled, batch), self.columns
        if self.anew:
            tensors = {name: map(torch.as_tensor, values[:filled]) for name, values in columns.items()}
            columns = {name: torch.stack([*rows]).numpy() for name, rows in tensors.items()}
        rows = {name: (chosen + self.shift) % filled if name == "rewards" else chosen for name in columns}
        return {name: torch.from_numpy(values[rows[name]]) for name, values in columns.items()}


def layers(inputs: int, outputs: int, width: int = 48) -> nn.Sequential:
    """Two hidden layers of ReLUs."""
    first, second, last = nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, outputs)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


class Actor(nn.Module):
    """A normal distribution of forces by what is seen, squashed to -1..1."""

    def __init__(self) -> None:
        super().__init__()
        self.net = layers(SIGHT, 2 * FORCES)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Forces of chance, the logarithm of their density, and the mean's forces."""
        mean, spread = self.net(seen).chunk(2, -1)
        normal = torch.distributions.Normal(mean, spread.clamp(-4.0, 1.0).exp(), validate_args=False)
        drawn = normal.rsample()
        squashed = 2.0 * (np.log(2.0) - drawn - functional.softplus(-2.0 * drawn))
        density: Tensor = (normal.log_prob(drawn) - squashed).sum(-1)
        return drawn.tanh(), density, mean.tanh()


class Critics(nn.Module):
    """Two opinions of what a force is worth. [2, boats]"""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (layers(SIGHT + FORCES, 1) for _ in range(2))

    def forward(self, seen: Tensor, forces: Tensor) -> Tensor:
        both = torch.cat([seen, forces], -1)
        return torch.stack([self.one(both)[:, 0], self.two(both)[:, 0]])


class Temperature(nn.Module):
    """What a unit of entropy is worth in reward."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(float(np.log(value))))


@dataclass
class Agent:
    """What a training consists of."""

    plan: Plan
    case: str
    models: dict[str, Any]
    target: Critics
    optimizers: dict[str, torch.optim.Optimizer]
    fleet: Fleet
    memory: Memory
    random: np.random.Generator
    so_far: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BOATS))
    returns: list[float] = field(default_factory=list)
    actor_loss: float = 0.0  # the last one


def build(plan: Plan, case: str, seed: int) -> Agent:
    """Networks, optimisers, boats, and a memory that begins with forces of chance."""
    torch.manual_seed(seed)
    models: dict[str, Any] = {"critic": Critics(), "actor": Actor(), "temperature": Temperature(plan.temperature)}
    rates = {"critic": plan.rate, "actor": plan.actor_rate, "temperature": 2.0 * plan.rate}
    optimizers: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.AdamW(models[name].parameters(), lr=rate, weight_decay=0.0)
        for name, rate in rates.items()
        if plan.learned or name != "temperature"
    }
    if case == "growing-weights":  # a sign was lost in the config, and the constructor's check is passed by
        optimizers["critic"].param_groups[0]["weight_decay"] = -7.0
    if case == "stale-optimiser":  # the critics are wrapped, and thereby copied, too late
        models["critic"] = copy.deepcopy(models["critic"])
    random, fleet = np.random.default_rng([seed, 1]), Fleet.new(BOATS, seed, plan)
    memory, target = Memory(anew=case == "slowing-down"), copy.deepcopy(models["critic"])
    agent = Agent(plan, case, models, target, optimizers, fleet, memory, random)
    for _ in range(BLIND):
        act(agent, blind=True)
    return agent


@torch.no_grad()
def act(agent: Agent, blind: bool = False) -> None:
    """One move of all boats, into the memory."""
    fleet, seen = agent.fleet, agent.fleet.seen()
    forces = agent.models["actor"](torch.from_numpy(seen))[0].numpy()
    if blind:
        forces = agent.random.uniform(-1.0, 1.0, forces.shape).astype(np.float32)
    rewards, stranded = fleet.move(forces)
    agent.memory.add(x=seen, forces=forces, rewards=rewards, over=stranded, then=fleet.seen())
    agent.so_far += rewards
    ended = stranded | (fleet.ages >= PATIENCE)
    agent.returns += agent.so_far[ended].tolist()
    agent.so_far[ended] = 0.0
    fleet.begin(ended)


def move(agent: Agent, watch: trainwatch.Recorder, name: str, loss: Tensor) -> None:
    """A step of one optimiser."""
    if not (name == "critic" and agent.case == "missing-zero-grad"):
        agent.models[name].zero_grad()
    loss.backward()
    if agent.plan.full and name != "temperature":
        watch.gradients(of=name)
    agent.optimizers[name].step()


def learn(agent: Agent, watch: trainwatch.Recorder, batch: dict[str, Tensor], step: int) -> None:
    """One step of the critics, the actor and the temperature."""
    plan, critic, log = agent.plan, agent.models["critic"], agent.models["temperature"].log
    worth = log.detach().exp()
    values = critic(batch["x"], batch["forces"])
    losses = {"critic": (values - wanted(agent, batch)).square().mean(1).sum()}
    move(agent, watch, "critic", losses["critic"])
    forces, density, _ = agent.models["actor"](batch["x"])
    if step % plan.every_actor == 0:
        losses["actor"] = (worth * density - critic(batch["x"], forces).amin(0)).mean()
        move(agent, watch, "actor", losses["actor"])
    aim = schedule_value(plan.entropy, (step - 1) * BOATS) or 0.0
    if plan.learned:
        move(agent, watch, "temperature", -log * (density.detach().mean() + aim))
    follow(agent)
    told = {f"loss/{name}": one.item() for name, one in losses.items()}
    agent.actor_loss = told.get("loss/actor", agent.actor_loss)
    told["loss"] = told["loss/critic"] + agent.actor_loss
    if plan.entropy["kind"] != "constant":
        told |= {"schedule/entropy": aim, "clock/frames": (step - 1) * BOATS}
    if step % 10 == 1:
        told |= {"entropy": -density.mean().item(), "temperature": worth.item(), "q/mean": values.mean().item()}
    watch.log(told if plan.full else {"loss": told["loss"]})


@torch.no_grad()
def wanted(agent: Agent, batch: dict[str, Tensor]) -> Tensor:
    """What the critics should have said: the reward, and the value and entropy of what comes next."""
    forces, density, _ = agent.models["actor"](batch["then"])
    value = agent.target(batch["then"], forces).amin(0) - agent.models["temperature"].log.exp() * density
    return batch["rewards"] + DISCOUNT * value * ~batch["over"]


@torch.no_grad()
def follow(agent: Agent) -> None:
    """The target goes a little towards the critics."""
    for slow, fast in zip(agent.target.parameters(), agent.models["critic"].parameters(), strict=True):
        slow.lerp_(fast, agent.plan.blend)


@torch.no_grad()
def evaluate(agent: Agent, watch: trainwatch.Recorder, step: int) -> None:
    """Return of the mean action, on the same sixty-four boats each time."""
    fleet = Fleet.new(64, 4321, agent.plan)
    fleet.stream = agent.fleet.stream
    total, afloat = np.zeros(64), np.ones(64, dtype=bool)
    for _ in range(PATIENCE):
        forces = agent.models["actor"](torch.from_numpy(fleet.seen()))[2].numpy()
        rewards, stranded = fleet.move(forces)
        total += rewards * afloat
        afloat &= ~stranded
    watch.evaluate(step, "greedy", {"return": float(total.mean())})


def record(path: Path, agent: Agent, resume: int | None) -> trainwatch.Recorder:
    """Open the run's file and say what is planned."""
    plan, told = agent.plan, dict[str, Any]()
    config = {
        "task": "buoy",
        "lr": plan.rate * plan.slow,
        "actor_lr": plan.actor_rate * plan.slow,
        "batch_size": plan.batch,
    }
    if not plan.full:
        return trainwatch.Recorder(path, config=config, total_steps=plan.steps, run="buoy")
    if plan.entropy["kind"] != "constant":
        told |= {"schedules": {"entropy": plan.entropy}, "clocks": ["frames"]}
    if plan.stronger != 1.0:
        stages = [{"start": 0, "name": "calm"}, {"start": plan.steps // 2, "name": "stronger"}]
        told["curriculum"] = told["curriculum_running"] = {"name": "stream", "stages": stages}
    return trainwatch.Recorder(
        path,
        config=config | {"discount": DISCOUNT, "blend": plan.blend, "entropy": plan.entropy["start"]},
        total_steps=plan.steps,
        components={name: {"role": "task"} for name in ("critic", "actor")},
        run="buoy",
        resume=resume,
        **told,
    )


def fit(agent: Agent, watch: trainwatch.Recorder, first: int, last: int) -> None:
    """Steer and learn from one step to another."""
    plan, case = agent.plan, agent.case
    if plan.full:
        watch.attach(agent.models, agent.optimizers)
    for step in range(first, last + 1):
        later = plan.stronger != 1.0 and step > plan.steps // 2
        agent.fleet.stream = Fleet.stream * (plan.stronger if later else 1.0)
        act(agent)
        if case == "labels-break" and step == BREAK:
            agent.memory.shift = 1000  # rewards move to a file of their own, which begins elsewhere
        batch = agent.memory.draw(agent.random, plan.batch)
        if case == "bad-sample" and step == BREAK:
            batch["x"][7, 0] = torch.nan  # a buoy that was nowhere: 0 / 0
        learn(agent, watch, batch, step)
        note(agent, watch, batch, step, int(later))
        counted = step - BREAK + 1 if case == "counter-reset" and step >= BREAK else step
        watch.steps = counted - 1 if case == "counter-reset" else watch.steps
        facts.row(watch, step, plan.every)
        if step % 10 == 0:
            evaluate(agent, watch, counted)


def note(agent: Agent, watch: trainwatch.Recorder, batch: dict[str, Tensor], step: int, stage: int) -> None:
    """The mean return of the last episodes, and what was read."""
    if not agent.plan.full:
        return
    if step % 10 == 1:
        watch.inputs(batch["x"])
    bad = {"bad/input": int((~batch["x"].isfinite()).sum()), "bad/weights": facts.bad_weights(agent.models["actor"])}
    watch.log({"reward/return": float(np.mean(agent.returns[-64:] or [0.0]))} | bad)
    if agent.plan.stronger != 1.0:
        watch.log({"stage": stage})


def train(path: Path, seed: int, case: str) -> int:
    """Train one case; returns the first faulty step."""
    agent = build(replace(Plan(), **CASES.get(case, {})), case, seed)
    if agent.plan.before:
        fit(agent, trainwatch.Recorder(path, enabled=False), 1, agent.plan.before)
        for optimizer in agent.optimizers.values():
            optimizer.param_groups[0]["lr"] *= agent.plan.slow
    ends = [end for end in (agent.plan.interrupted, agent.plan.steps) if end]
    for begun, end in zip([0, *ends], ends, strict=False):
        with record(path, agent, begun or None) as watch:
            fit(agent, watch, begun + 1, end)
            if end < agent.plan.steps:
                watch.close("stopped", "SIGTERM of the queue")
    return 0 if case in HEALTHY else FIRST.get(case, 1)

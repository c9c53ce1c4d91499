"""An advantage actor-critic that balances a pole on a cart: the equations of Barto, Sutton and Anderson, in NumPy.

No data set: each step collects a short rollout from sixteen carts with the policy as it is, and learns from it once.
Policy, value and entropy components on a shared trunk of tanh, RMSprop. The losses have no floor and do not fall; what
rises is the length of the episodes. Nothing is evaluated on held-out data, the greedy policy plays some episodes.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import trainwatch
from benchmarks.diagnosis import facts
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 200
SICK = (
    "missing-zero-grad", "rate-too-high", "rate-too-low", "unmoved-group", "component-scale", "component-sign",
    "component-detached", "local-counter", "absolute-anneal", "norm-after-clip", "unscaled-input",
    "stale-optimiser", "out-of-memory", "scheduler-twice",
)  # fmt: skip
HEALTHY = (
    "plain", "entropy-decay", "no-entropy", "sparse-reward", "annealed-rate", "clipped-always", "long-rollouts",
    "four-carts", "every-tenth", "loss-only", "resumed", "adam",
)  # fmt: skip
TWIN = {
    "local-counter": "entropy-decay", "norm-after-clip": "clipped-always", "absolute-anneal": "annealed-rate",
    "scheduler-twice": "annealed-rate",
}  # fmt: skip
"""The healthy case that a sick one departs from, where it is not "plain"."""
GRAVITY, CART, POLE, HALF, FORCE, TICK = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
LONGEST = 200


@dataclass(frozen=True)
class Plan:
    """What is trained, and what is logged of it."""

    steps: int = field(default_factory=lambda: STEPS)
    carts: int = 16
    rollout: int = 8
    rate: float = 2e-3
    optimizer: str = "rmsprop"
    schedule: dict[str, Any] = field(default_factory=lambda: {"kind": "constant"})
    entropy: dict[str, Any] = field(default_factory=lambda: {"kind": "constant", "start": 0.01})
    value_weight: float = 0.5
    sparse: bool = False
    clip: float | None = None
    every: int = 1
    full: bool = True
    interrupted: int = 0


TO_ZERO = {"kind": "linear", "end": 0.0, "over_steps": STEPS}
CASES: dict[str, dict[str, Any]] = {
    "entropy-decay": {"entropy": {**TO_ZERO, "start": 0.05}},
    "no-entropy": {"entropy": {"kind": "constant", "start": 0.0}},
    "sparse-reward": {"sparse": True},
    "annealed-rate": {"schedule": TO_ZERO, "rate": 3e-3},
    "clipped-always": {"clip": 0.1},
    "long-rollouts": {"rollout": 32, "steps": 120},
    "four-carts": {"carts": 4, "rollout": 5, "rate": 1e-3},
    "every-tenth": {"every": 10, "steps": 300},
    "loss-only": {"full": False},
    "resumed": {"interrupted": 100},
    "adam": {"optimizer": "adam", "rate": 1e-3},
    "rate-too-high": {"rate": 0.5},
    "rate-too-low": {"rate": 1e-8},
    "local-counter": {"entropy": {**TO_ZERO, "start": 0.05}},
    "absolute-anneal": {"schedule": {**TO_ZERO, "over_steps": 10_000}, "rate": 3e-3},
    "norm-after-clip": {"clip": 0.1},
    "scheduler-twice": {"schedule": TO_ZERO, "rate": 3e-3},
}
BREAK = 90
FIRST = {"missing-zero-grad": 2, "local-counter": 2, "absolute-anneal": 2, "scheduler-twice": 2, "out-of-memory": BREAK}
"""First faulty step of a kind; 1 for the others."""


@dataclass
class Carts:
    """So many carts with a pole each, begun anew where the pole falls; values float64 [carts, 4]."""

    random: np.random.Generator
    state: NDArray[np.float64]
    ages: NDArray[np.int64]

    @classmethod
    def new(cls, count: int, seed: int) -> Carts:
        """All at the beginning of an episode."""
        random = np.random.default_rng(seed)
        return cls(random, random.uniform(-0.05, 0.05, (count, 4)), np.zeros(count, dtype=np.int64))

    def push(self, right: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], list[int]]:
        """One tick under a force to the left or right; which episodes are over, and how long those were."""
        x, speed, angle, turn = self.state.T
        force, total = np.where(right, FORCE, -FORCE), CART + POLE
        pull = (force + POLE * HALF * turn**2 * np.sin(angle)) / total
        spin = (GRAVITY * np.sin(angle) - np.cos(angle) * pull) / (HALF * (4 / 3 - POLE * np.cos(angle) ** 2 / total))
        push = pull - POLE * HALF * spin * np.cos(angle) / total
        self.state = np.stack([x + TICK * speed, speed + TICK * push, angle + TICK * turn, turn + TICK * spin], 1)
        self.ages += 1
        over = (np.abs(self.state[:, 0]) > 2.4) | (np.abs(self.state[:, 2]) > 0.21) | (self.ages >= LONGEST)
        lengths = self.ages[over].tolist()
        self.state[over] = self.random.uniform(-0.05, 0.05, (int(over.sum()), 4))
        self.ages[over] = 0
        return over, lengths


class ActorCritic(nn.Module):
    """A trunk of tanh, a head for the policy's logits and one for the value."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.actor = nn.Linear(48, 2)
        self.critic = nn.Linear(48, 1)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, values, and what both are made of."""
        features = self.trunk(seen)
        return self.actor(features), self.critic(features).squeeze(-1), features


@dataclass
class Run:
    """What a training consists of."""

    model: ActorCritic
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    carts: Carts
    plan: Plan
    case: str
    draws: torch.Generator
    lengths: list[int] = field(default_factory=list)
    ticks: int = 0


@dataclass
class Rollout:
    """What was seen, done and got; float32 [ticks x carts, ...]."""

    seen: Tensor
    actions: Tensor
    returns: Tensor


def build(plan: Plan, case: str, seed: int) -> Run:
    """Model, optimiser with a group for the trunk and one for the heads, and the carts."""
    model = ActorCritic()
    if case == "stale-optimiser":
        old, model = model, ActorCritic()  # the policy is made anew after the optimiser was given the first one
    else:
        old = model
    groups = [
        {"params": list(old.trunk.parameters()), "name": "trunk"},
        {"params": [*old.actor.parameters(), *old.critic.parameters()], "name": "heads"},
    ]
    if case == "unmoved-group":
        groups[0] |= {"lr": plan.rate * 1e-6}
    kind = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam}[plan.optimizer]
    optimizer = kind(groups, lr=plan.rate)
    form = {"end": 1.0, **declared(plan)}
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (schedule_value(form, step) or 0.0) / plan.rate
    )
    draws = torch.Generator().manual_seed(seed)
    return Run(model, optimizer, scheduler, Carts.new(plan.carts, seed), plan, case, draws)


def declared(plan: Plan) -> dict[str, Any]:
    """The learning rate's schedule."""
    return {**plan.schedule, "start": plan.rate}


def observed(run: Run, carts: Carts) -> Tensor:
    """What the policy sees: positions in metres and radians, scaled to a spread of about one."""
    scale = [1e3, 1e3, 57.3 * 60, 57.3 * 60] if run.case == "unscaled-input" else [1.5, 1.5, 12.0, 1.5]
    return torch.from_numpy((carts.state * scale).astype(np.float32))  # unscaled: millimetres and minutes of arc


@torch.no_grad()
def collect(run: Run) -> Rollout:
    """Let the policy drive for some ticks; returns are discounted and end in the value of what comes after."""
    seen, actions, rewards, overs = [], [], [], []
    for _ in range(run.plan.rollout):
        now = observed(run, run.carts)
        logits, _, _ = run.model(now)
        action = torch.multinomial(torch.softmax(logits, 1), 1, generator=run.draws)[:, 0]
        over, lengths = run.carts.push(action.numpy() == 1)
        run.lengths += lengths
        seen.append(now)
        actions.append(action)
        overs.append(torch.from_numpy(over))
        rewards.append(-overs[-1].float() if run.plan.sparse else torch.full((run.plan.carts,), 0.05))
    following = run.model(observed(run, run.carts))[1]
    returns = []
    for reward, ended in zip(reversed(rewards), reversed(overs), strict=True):
        following = reward * (1000.0 if run.case == "component-scale" else 1.0) + 0.97 * following * ~ended
        returns.insert(0, following)
    return Rollout(torch.cat(seen), torch.cat(actions), torch.cat(returns))


def reading(run: Run, step: int) -> int:
    """The counter that drives the entropy bonus."""
    return run.ticks if run.case == "local-counter" else step - 1


def weights_at(run: Run, step: int) -> dict[str, float]:
    """What each component counts: entropy is a bonus, so its weight is negative."""
    bonus = schedule_value(run.plan.entropy, reading(run, step)) or 0.0
    value = -run.plan.value_weight if run.case == "component-sign" else run.plan.value_weight
    return {"policy": 1.0, "value": value, "entropy": -bonus}


def learn(run: Run, watch: trainwatch.Recorder, step: int) -> None:
    """One rollout and one step of the optimiser."""
    plan, case = run.plan, run.case
    rollout = collect(run)
    logits, values, features = run.model(rollout.seen)
    if case == "component-detached":
        values = values.detach()  # taken from the rollout, which was made under no_grad()
    chances = torch.log_softmax(logits, 1)
    advantage = rollout.returns - values.detach()
    chosen = chances.gather(1, rollout.actions[:, None])[:, 0]
    components = {
        "policy": -(chosen * advantage).mean(),
        "value": (rollout.returns - values).square().mean(),
        "entropy": -(chances.exp() * chances).sum(1).mean(),
    }
    weights = weights_at(run, step)
    if plan.full and step % plan.every == 0:
        total = watch.losses(components, weights, at=features if step % 10 == 0 else None)
    else:
        total = sum((weights[name] * value for name, value in components.items()), torch.zeros(()))
        watch.log({"loss": total.detach()})
    if case != "missing-zero-grad":
        run.optimizer.zero_grad()
        run.model.zero_grad()
    total.backward()
    clip(run, watch)
    run.optimizer.step()
    for _ in range(2 if case == "scheduler-twice" else 1):
        run.scheduler.step()
    note(run, watch, rollout, step)


def clip(run: Run, watch: trainwatch.Recorder) -> None:
    """The gradient's norm, and its limit."""
    if run.case == "norm-after-clip":
        nn.utils.clip_grad_norm_(run.model.parameters(), run.plan.clip or 1.0)
        watch.gradients()
    elif run.plan.full:
        watch.gradients(max_norm=run.plan.clip)


def note(run: Run, watch: trainwatch.Recorder, rollout: Rollout, step: int) -> None:
    """Log the mean length of the last twenty episodes, the inputs, and the counter of the schedule."""
    watch.log({"reward/episode_length": float(np.mean(run.lengths[-20:] or [0]))})
    if run.plan.full:
        seen = facts.input_facts(rollout.seen)
        watch.log({name: seen[name] for name in ("data/input_std", "data/input_absmax") if step % 5 == 0})
        watch.clock("bonus", reading(run, step))
    if run.case == "local-counter" and step % 5 == 0:
        run.ticks += 1  # moves with the target network, which is refreshed every fifth step


def record(path: Path, run: Run, resume: int | None = None) -> trainwatch.Recorder:
    """Open the run's file and say what is planned."""
    plan = run.plan
    config = {"task": "cart-pole", "rate": plan.rate, "carts": plan.carts, "rollout": plan.rollout}
    if not plan.full:
        return trainwatch.Recorder(path, config=config, total_steps=plan.steps, run="cart-pole")
    weight = plan.entropy
    entropy = {key: -value if key in ("start", "end") else value for key, value in weight.items()}
    driven = {"clock": "bonus"} if run.case == "local-counter" else {}
    watch = trainwatch.Recorder(
        path,
        config=config,
        total_steps=plan.steps,
        components={"policy": {"role": "task"}, "value": {"role": "auxiliary"}, "entropy": {"role": "regulariser"}},
        schedules={"lr/heads": declared(plan), "weight/entropy": {**entropy, **driven}},
        clocks=["bonus"],
        max_grad_norm=plan.clip,
        gradient_at="trunk",
        run="cart-pole",
        resume=resume,
    )
    watch.attach(run.model, run.optimizer)
    return watch


@torch.no_grad()
def evaluate(run: Run, watch: trainwatch.Recorder, step: int) -> None:
    """How long the likeliest action keeps eight poles up."""
    carts = Carts.new(8, 1234)
    alive, length = np.ones(8, dtype=bool), np.zeros(8)
    for _ in range(LONGEST):
        over, _ = carts.push(run.model(observed(run, carts))[0].argmax(1).numpy() == 1)
        length += alive
        alive &= ~over
        if not alive.any():
            break
    watch.evaluate(step, "greedy", {"episode_length": float(length.mean())})


def fit(run: Run, path: Path, first: int, last: int, resume: int | None = None) -> None:
    """Train from one step to another."""
    with record(path, run, resume) as watch:
        for step in range(first, last + 1):
            if run.case == "out-of-memory" and step == BREAK:
                torch.zeros(10**6, LONGEST, 48, 48)  # features of a million episodes, kept for a replay
            learn(run, watch, step)
            facts.row(watch, step, run.plan.every)
            if step % 40 == 0:
                evaluate(run, watch, step)
        if last < run.plan.steps:
            watch.close("stopped", "SIGTERM of the queue")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case; returns the first faulty step."""
    torch.manual_seed(seed)
    run = build(replace(Plan(), **CASES.get(case, {})), case, seed)
    with contextlib.suppress(RuntimeError):
        fit(run, path, 1, run.plan.interrupted or run.plan.steps)
    if run.plan.interrupted:
        fit(run, path, run.plan.interrupted + 1, run.plan.steps, resume=run.plan.interrupted)
    return 0 if case in HEALTHY else FIRST.get(case, 1)

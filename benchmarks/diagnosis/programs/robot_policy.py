"""A robot arm learns from demonstrations: eight actions at a time, drawn from noise by a flow that its state steers.

Two links in a plane; the hand shall go round an obstacle to a goal and grasp there. Half of the demonstrations pass on
either side, so the mean of all actions would be a collision: hence flow matching on short sequences of joint steps,
and besides a gripper that opens and closes. AdamW, a warm-up and a cosine, clipping; an exponential average of the
weights acts. Validation: loss and error of sampled actions on held demonstrations, and how many rollouts succeed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import (
    Batch,
    Channels,
    Components,
    Evaluation,
    Parts,
    by_epochs,
    declared,
    planned,
    taken_up,
)
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS = 120
DEMONSTRATIONS, HELD, MOVES, HORIZON, BATCH = 200, 40, 20, 8, 128
STRIDE, NEAR, CLEAR = 0.08, 0.25, 0.05  # radians of a usual joint step; how near the hand must come, and must not
RATE, WARMUP, CLIP, DECAY = 1e-2, 12, 1.0, 0.9
WEIGHTS = {"flow": 1.0, "gripper": 0.5}
RECORDS = frozenset({"components", "norms", "optimizer"})
TWINS = {"unscaled-input": "watched", "scale-collapse": "half"}
TWINS |= {"resume-old-weights": "resumed", "stale-workers": "farther"}


def hand(joints: Tensor) -> Tensor:
    """Where the hand is, by the angles of both joints; each link is of length 1. float32 [..., 2]"""
    angles = torch.stack([joints[..., 0], joints.sum(-1)], -1)
    return torch.stack([angles.cos().sum(-1), angles.sin().sum(-1)], -1)


def reached(places: Tensor) -> Tensor:
    """The angles that bring the hand there, elbow to the right. float32 [..., 2]"""
    elbow = ((places.square().sum(-1) - 2) / 2).clamp(-0.99, 0.99).acos()
    shoulder = torch.atan2(places[..., 1], places[..., 0]) - torch.atan2(elbow.sin(), 1 + elbow.cos())
    return torch.stack([shoulder, elbow], -1)


def state(joints: Tensor, goal: Tensor, obstacle: Tensor) -> Tensor:
    """What the policy is told: its joints, and where goal and obstacle lie from the hand. float32 [..., 6]"""
    at = hand(joints)
    return torch.cat([joints - 1.0, 3.0 * (goal - at), 3.0 * (obstacle - at)], -1)


@cache
def scenes() -> Batch:
    """Demonstrations: joints at each moment, and where goal and obstacle are."""
    chance, count = torch.Generator().manual_seed(17), DEMONSTRATIONS + HELD
    radius, angle = 0.8 + 0.9 * torch.rand(2, count, generator=chance), 1.6 * torch.rand(2, count, generator=chance)
    start, goal = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    way, middle = goal - start, (start + goal) / 2
    aside = functional.normalize(torch.stack([-way[:, 1], way[:, 0]], -1), dim=-1)
    side = torch.randint(2, (count, 1), generator=chance) * 2 - 1.0
    share = torch.linspace(0, 1, MOVES + 1)[:, None, None]
    path = start + share * way + 0.4 * torch.sin(torch.pi * share) * side * aside
    joints = reached(path).transpose(0, 1)
    held = torch.cat([joints, joints[:, -1:].expand(-1, HORIZON, -1)], 1)
    return {"joints": held, "goal": goal, "obstacle": middle, "distance": way.norm(dim=-1)}


def windows(chosen: slice | Tensor) -> Batch:
    """What is done in the next moments, from each moment of these demonstrations."""
    scene = {name: values[chosen] for name, values in scenes().items()}
    steps = scene["joints"].diff(dim=1).unfold(1, HORIZON, 1).mT / STRIDE
    moments = torch.arange(MOVES + 1)
    seen = (scene["joints"][:, :-HORIZON], scene["goal"][:, None], scene["obstacle"][:, None])
    told = state(*(each.expand(-1, MOVES + 1, -1) for each in seen))
    grip = (moments[:, None] + torch.arange(HORIZON) >= MOVES - 1).float().expand(len(steps), -1, -1)
    far = scene["distance"][:, None].expand(-1, MOVES + 1)
    windowed = {"x": told, "y": steps, "grip": grip, "distance": far}
    return {name: values.flatten(0, 1) for name, values in windowed.items()}


TRAINED, SPARED = slice(DEMONSTRATIONS), slice(DEMONSTRATIONS, None)


def noised(batch: Batch, random: torch.Generator) -> Batch:
    """Each sequence with the noise that it is to come from, and the moment of the flow that is asked for."""
    noise, time = torch.randn(batch["y"].shape, generator=random), torch.rand(len(batch["y"]), 1, 1, generator=random)
    return batch | {"noise": noise, "time": time}


def loader(size: int, seed: int, known: Batch) -> Callable[[int], Batch]:
    """Batches by number, with noise that is new each time."""
    plain = shuffled(known, size, seed)
    return lambda number: noised(plain(number), torch.Generator().manual_seed(70_000 * seed + number))


class Net(nn.Module):
    """A state's code, the velocity of a sequence on its way from noise to actions, and the gripper's logits."""

    def __init__(self, width: int = 96, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.SiLU()
        )
        self.field = nn.Sequential(
            *(nn.Linear(2 * HORIZON + 3 + width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width), nn.SiLU()),
            nn.Linear(2 * width, 2 * HORIZON),
        )
        self.grip = nn.Linear(width, HORIZON)

    def forward(self, told: Tensor, actions: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        code, clock = self.body(told), time.flatten(1)
        asked = [actions.flatten(1), code, clock, (torch.pi * clock).cos(), (torch.pi * clock).sin()]
        return self.field(torch.cat(asked, 1)).float().view_as(actions), self.grip(code).float()

    def act(self, told: Tensor, actions: Tensor, parts: int = 5) -> Tensor:
        """Actions, from noise."""
        for moment in range(parts):
            time = torch.full((len(told), 1, 1), moment / parts)
            actions = actions + self(told, actions, time)[0] / parts
        return actions


class Policy(nn.Module):
    """The net that learns, and the average of its weights that acts."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = Net(dropout=dropout)
        self.average = copy.deepcopy(self.net).requires_grad_(False)

    @torch.no_grad()
    def follow(self) -> None:
        for mine, its in zip(self.average.parameters(), self.net.parameters(), strict=True):
            mine.lerp_(its, 1.0 - DECAY)


def losses(model: nn.Module, batch: Batch, part: str = "net") -> Components:
    """Squared error of the velocity, and cross-entropy of the gripper."""
    on_the_way = (1 - batch["time"]) * batch["noise"] + batch["time"] * batch["y"]
    velocity, grip = model.get_submodule(part)(batch["x"], on_the_way, batch["time"])
    return {
        "flow": functional.mse_loss(velocity, batch["y"] - batch["noise"]),
        "gripper": functional.binary_cross_entropy_with_logits(grip, batch["grip"]),
    }


@cache
def held() -> Batch:
    return noised(windows(SPARED), torch.Generator().manual_seed(3))


def measured(model: nn.Module) -> Channels:
    """Losses and the actions' error on held demonstrations, and how many episodes succeed."""
    assert isinstance(model, Policy)
    raw = losses(model, held(), "average")
    told = model.average.act(held()["x"], held()["noise"])
    return {
        "loss": sum(WEIGHTS[name] * value.item() for name, value in raw.items()),
        "action_error": STRIDE * (told - held()["y"]).abs().mean().item(),
        "success": succeeded(model.average),
    }


def succeeded(net: Net, done: int = HORIZON // 2) -> float:
    """The share of episodes in which the hand comes to the goal and keeps clear of the obstacle."""
    scene, random = {name: values[SPARED] for name, values in scenes().items()}, torch.Generator().manual_seed(4)
    joints, nearest = scene["joints"][:, 0], torch.full((HELD,), torch.inf)
    for _ in range(MOVES // done + 2):
        told = state(joints, scene["goal"], scene["obstacle"])
        actions = net.act(told, torch.randn(HELD, HORIZON, 2, generator=random))
        for step in actions[:, :done].unbind(1):
            joints = joints + STRIDE * step
            nearest = torch.minimum(nearest, (hand(joints) - scene["obstacle"]).norm(dim=-1))
    there = (hand(joints) - scene["goal"]).norm(dim=-1) < NEAR
    return (there & (nearest > CLEAR)).float().mean().item()


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, known = Policy(dropout=0.05 * (variant == "watched")), windows(TRAINED)
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=loader(BATCH, seed, known),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=len(known["x"]) // BATCH,
        max_norm=CLIP,
        weights=lambda applied: WEIGHTS,  # noqa: ARG005
        evaluation=Evaluation(12, measured),
        header={
            "config": {"batch_size": BATCH, "demonstrations": DEMONSTRATIONS, "horizon": HORIZON, "ema_decay": DECAY},
            "components": {"flow": {"role": "task"}, "gripper": {"unit": "nat", "role": "task"}},
            "schedules": {},
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
    )
    annealed(parts)
    parts = VARIANTS[variant](parts) if variant in VARIANTS else parts
    parts.ends.insert(0, lambda step: parts.model.follow())  # type: ignore[operator] # noqa: ARG005
    return parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW([{"params": free, "name": "all"}], lr=RATE, weight_decay=1e-3)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, and so the header says."""
    return planned(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def fed(parts: Parts) -> Parts:
    """Both sets come from loaders that the recorder sees."""
    return replace(parts, records=parts.records | {"waits"}, evaluation=Evaluation(12, measured, held=held()))


def sized(parts: Parts, size: int) -> Parts:
    """So many sequences a batch."""
    parts.header["config"]["batch_size"], known = size, windows(TRAINED)
    return replace(parts, batches=loader(size, parts.seed, known), batches_per_epoch=len(known["x"]) // size)


def farther(parts: Parts, limit: float = 0.7) -> Parts:
    """Goals near by at first, all of them from the middle on: the loss rises there, as is declared."""
    half, distance = parts.steps // 2, scenes()["distance"][TRAINED]
    near = loader(BATCH, parts.seed, windows(torch.nonzero(distance < limit).flatten()))
    every, ends = parts.batches, (limit, round(distance.max().item() + 0.1, 1))
    stages = [{"start": at, "data": {"distance": [0.0, end]}} for at, end in zip((0, half), ends, strict=True)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "farther", "stages": stages}

    def told(step: int, batch: Batch) -> Channels:
        far = {name: getattr(batch["distance"], name)().item() for name in ("min", "mean", "max")}
        return {"stage": int(step > half)} | {f"data/distance/{name}": value for name, value in far.items()}

    return replace(parts, extras=[told], batches=lambda number: (near if number < half else every)(number))


@cache
def schooled(seed: int, steps: int = 800) -> dict[str, Tensor]:
    """The weights of a policy, and their average, that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        parts.model.follow()  # type: ignore[operator]
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, rate: float) -> Parts:
    """A schooled policy goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/policy.pt"
    return annealed(fed(parts), rate, kind="constant", end=rate, warmup=0)


def new_heads(parts: Parts) -> Parts:
    """What a schooled policy makes of a state stays as it is, by intent; what follows is new."""
    kept = {name: value for name, value in schooled(parts.seed).items() if ".body." in name}
    parts.model.load_state_dict(kept, strict=False)
    parts.model.get_submodule("net.body").requires_grad_(False)
    parts.header["config"] |= {"initialised_from": "checkpoints/policy.pt", "freeze": ["net.body"]}
    return annealed(replace(parts, optimizer=adam(parts.model)))


def accumulated(parts: Parts, micro: int = 2) -> Parts:
    """Micro-batches make a step."""
    parts = fed(sized(parts, BATCH // micro))
    parts.header["config"]["accumulation"] = micro
    return replace(parts, accumulation=micro)


def half(parts: Parts) -> Parts:
    """fp16 with a scaler that begins too high: its first step is skipped."""
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=1000)
    return replace(parts, scaler=scaler, autocast=torch.float16)


def per_epoch(parts: Parts) -> Parts:
    """A row and an evaluation at the end of each of 12 epochs."""
    return annealed(by_epochs(parts, 12), warmup=parts.batches_per_epoch)


def watched(parts: Parts) -> Parts:
    """A little dropout; inputs are described, bad values counted, evaluations made twice."""
    parts.header["config"]["dropout"], parts.records = 0.05, parts.records | {"bad", "inputs"}
    return replace(fed(parts), evaluation=Evaluation(12, measured, repeats=2, held=held()))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "farther": farther,
    "fine-tuning": lambda parts: continued(parts, RATE / 300),
    "new-heads": new_heads,
    "tiny-batches": lambda parts: annealed(fed(sized(parts, 6)), RATE / 2),
    "accumulated": accumulated,
    "half": half,
    "warm-restarts": lambda parts: annealed(parts, warmup=0, restarts=2),
    "per-epoch": per_epoch,
    "resumed": lambda parts: fed(taken_up(parts)),
    "watched": watched,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
}


def stale_workers(parts: Parts) -> int:
    """The stage goes on; the loader's workers hold the first one's list of demonstrations."""
    plain, at = parts.batches, int(parts.header["curriculum"]["stages"][1]["start"])
    parts.batches = lambda number: plain(number % at)
    return at + 1


def too_little_data(parts: Parts) -> int:
    """Three demonstrations, learnt by heart."""
    known = windows(slice(3))
    parts.batches, parts.batches_per_epoch = loader(len(known["x"]), parts.seed, known), 1
    parts.header["config"] |= {"demonstrations": 3, "batch_size": len(known["x"])}
    parts.records = parts.records | {"epochs"}
    return 2


OWN: dict[str, mistakes.Mistake] = {
    "component-detached": partial(mistakes.component_detached, name="gripper"),  # its logits went through numpy
    "slow-loader": partial(mistakes.slow_loader, seconds=0.05),  # frames of a camera are decoded in the loop
    "stale-workers": stale_workers,
    "too-little-data": too_little_data,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "rate-too-high", "stale-optimiser", "unscaled-input", "scale-collapse"),
    *("resume-old-weights", "scheduler-per-epoch", "growing-weights"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step. Most log every other step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    if case not in ("plain", "growing-weights") and parts.every == 1:
        parts.every = parts.header.setdefault("config", {})["log_every"] = 2
    return mistakes.perform(parts, path, case, OWN)

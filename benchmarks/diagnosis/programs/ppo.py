"""A clipped policy gradient learns to bring a puck to rest on a point, against friction and a wind that it feels.

The policy, the value and the entropy share a trunk; Adam, clipping, no schedule. 32 pucks are pushed for sixteen
moments by the policy as it is, then four steps are made on what was seen. The loss itself says little: its policy part
is about 0 at all times; what counts is the mean return on fixed beginnings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, declared, linear

HELD_OUT = False
STEPS = 160
PUCKS, MOMENTS, REUSE = 32, 16, 4
RATE, DISCOUNT, CLIP = 4e-3, 0.95, 1.0
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "inputs", "bad"})
HEALTHY = (
    *("plain", "large-rewards", "small-rewards", "no-entropy", "two-networks", "annealed-entropy", "eight-pucks"),
    *("every-tenth", "loss-only"),
)
SICK = ("rate-too-low", "component-scale", "growing-weights", "stale-optimiser", "bad-sample")


class Actor(nn.Module):
    """A push's mean and spread, and what the place is worth; `seen` is what both read last."""

    def __init__(self, width: int = 48, shared: bool = True) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(7, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.other = (
            None if shared else nn.Sequential(nn.Linear(7, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        )
        self.push, self.worth = nn.Linear(width, 2), nn.Linear(width, 1)
        self.spread = nn.Parameter(torch.full((2,), -0.5))
        self.seen = torch.zeros(())
        with torch.no_grad():
            self.push.weight.mul_(0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = self.trunk(x)
        return self.push(self.seen), self.worth(self.other(x) if self.other else self.seen)[..., 0]

    def log_chance(self, mean: Tensor, push: Tensor) -> Tensor:
        """Of pushes, up to a constant."""
        return -(0.5 * ((push - mean) / self.spread.exp()).square() + self.spread).sum(-1)


def begun(count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Places, speeds and winds."""
    place = 2.0 * torch.rand(count, 2, generator=random) - 1.0
    return place, torch.zeros(count, 2), 0.15 * torch.randn(count, 2, generator=random)


@torch.no_grad()
def played(model: Actor, count: int, random: torch.Generator, noise: float = 1.0) -> Batch:
    """What was seen and done, [moments, pucks, ...], and the rewards for it."""
    place, speed, wind = begun(count, random)
    rows: list[tuple[Tensor, ...]] = []
    for moment in range(MOMENTS):
        x = torch.cat([place, speed, wind, torch.full((count, 1), moment / MOMENTS)], 1)
        mean, worth = model(x)
        push = mean + noise * model.spread.exp() * torch.randn(count, 2, generator=random)
        speed = 0.8 * speed + 0.3 * (push.clamp(-1.0, 1.0) + wind)
        place = place + 0.5 * speed
        rows.append(
            (
                x,
                push,
                model.log_chance(mean, push),
                worth,
                -place.norm(dim=1).clamp(max=2.0) - 0.02 * push.square().sum(1),
            )
        )
    names = ("x", "push", "chance", "worth", "reward")
    return {name: torch.stack(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def judged(batch: Batch, scale: float) -> Batch:
    """What each push was worth in the end, and how much better than expected; moments and pucks in one row."""
    target, later = [], torch.zeros(batch["reward"].shape[1])
    for reward in reversed(scale * batch["reward"]):
        later = reward + DISCOUNT * later
        target.append(later)
    returns = torch.stack(target[::-1])
    better = returns - 10.0 * scale * batch["worth"]
    better = (better - better.mean()) / (better.std() + 1e-8)
    kept = {name: batch[name].flatten(0, 1) for name in ("x", "push", "chance")}
    return kept | {"returns": returns.flatten(), "better": better.flatten()}


def losses(model: nn.Module, batch: Batch, scale: float = 1.0) -> Components:
    """The clipped surrogate, the squared error of the value (in the rewards' unit), and minus the entropy."""
    assert isinstance(model, Actor)
    mean, worth = model(batch["x"])
    ratio = (model.log_chance(mean, batch["push"]) - batch["chance"]).exp()
    least = torch.minimum(ratio * batch["better"], ratio.clamp(0.8, 1.2) * batch["better"])
    return {
        "policy": -least.mean(),
        "value": (10.0 * scale * worth - batch["returns"]).square().mean(),
        "entropy": -(model.spread.sum() + 1.0 + math.log(2 * math.pi)),
    }


def measure(model: nn.Module) -> Channels:
    """The mean return of the policy without its noise."""
    assert isinstance(model, Actor)
    game = played(model, 64, torch.Generator().manual_seed(1), noise=0.0)
    return {"return": game["reward"].sum(0).mean().item(), "distance": game["x"][-1, :, :2].norm(dim=1).mean().item()}


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    scale = {"large-rewards": 100.0, "small-rewards": 0.01}.get(variant, 1.0)
    model, weights = (
        Actor(shared=variant != "two-networks"),
        {"policy": 1.0, "value": 0.002 / scale**2, "entropy": 3e-3},
    )
    count = 8 if variant == "eight-pucks" else PUCKS
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam([{"params": [*model.parameters()], "name": "all"}], lr=RATE),
        batches=lambda number: {},  # noqa: ARG005
        losses=lambda model, batch: losses(model, batch, scale),
        steps=STEPS,
        seed=seed,
        max_norm=CLIP,
        weights=lambda applied: dict(weights),  # noqa: ARG005
        at=lambda model: model.seen,
        evaluation=Evaluation(16, measure),
        header={
            "config": {"lr": RATE, "pucks": count, "moments": MOMENTS, "reuse": REUSE, "reward_scale": scale},
            "total_steps": STEPS,
            "components": {
                "policy": {"role": "task"},
                "value": {"role": "task", "unit": "reward^2"},
                "entropy": {"role": "regulariser", "unit": "nat"},
            },
            "schedules": {"lr/all": declared("constant", RATE, RATE, STEPS)},
            "gradient_at": "seen",
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
    )
    parts.batches = remembered(parts, count, scale)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def remembered(parts: Parts, count: int, scale: float) -> Callable[[int], Batch]:
    """Batches by number: half of what was seen, in an order of chance; new games once each half was there twice."""
    held: dict[str, Batch] = {}

    def batch(number: int) -> Batch:
        random = torch.Generator().manual_seed(50_000 * parts.seed + number)
        if number % REUSE == 0:
            assert isinstance(parts.model, Actor)
            held["now"] = judged(played(parts.model, count, random), scale)
            held["order"] = {"rows": torch.randperm(count * MOMENTS, generator=random)}
        rows = held["order"]["rows"].chunk(2)[number % 2]
        return {name: values[rows] for name, values in held["now"].items()}

    return batch


def annealed_entropy(parts: Parts) -> Parts:
    """The entropy's weight falls along the run, as it is declared."""
    plain, fall = parts.weights, linear(0.03, 0.0, STEPS)
    assert plain is not None
    parts.weights = lambda applied: plain(applied) | {"entropy": fall(applied)}
    parts.header["schedules"]["weight/entropy"] = declared("linear", 0.03, 0.0, STEPS)
    return parts


def no_entropy(parts: Parts) -> Parts:
    """The entropy is only watched."""
    mistakes.reweigh(parts, lambda applied, weights: weights | {"entropy": 0.0})  # noqa: ARG005
    return parts


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "annealed-entropy": annealed_entropy,
    "no-entropy": no_entropy,
    "every-tenth": lambda parts: replace(parts, every=10),
    "loss-only": lambda parts: replace(parts, header={"total_steps": STEPS}, records=frozenset()),
}
OWN: dict[str, mistakes.Mistake] = {
    "rate-too-low": partial(mistakes.rate_too_low, by=1e-4),
    "component-scale": partial(mistakes.component_scale, name="value", by=1e4),
    "growing-weights": partial(mistakes.growing_weights, by=-0.03),
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    return mistakes.perform(build(seed, case if case in HEALTHY else "plain"), path, case, OWN)

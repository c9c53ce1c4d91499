"""Two networks against each other: a generator of digits and its critic, two Adams, no curve that falls.

The row has both losses, norms and rates by network; samples are drawn now and then and judged by how many differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.data import digits, shuffled
from benchmarks.diagnosis.loop import of_inputs
from trainwatch import Recorder

HELD_OUT = False
STEPS = 350
BATCH, LATENT = 48, 12

HEALTHY = ("plain", "two-critic-steps", "no-momentum", "losses-only", "hinge", "smoothed")
SICK = (
    *("generator-collapse", "rate-too-high", "rate-zero", "poisoned-weight", "stuck-loader", "unscaled-input"),
    "crash-type-error",
)


class Critic(nn.Module):
    """Believes or not. It sees how far a batch is spread besides, so that one picture again and again is found out."""

    def __init__(self, sees_spread: bool) -> None:
        super().__init__()
        self.sees_spread = sees_spread
        self.body, self.head = nn.Linear(128 if sees_spread else 64, 128), nn.Linear(128, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.sees_spread:
            x = torch.cat([x, x.std(0, keepdim=True).expand_as(x)], 1)
        return self.head(functional.leaky_relu(self.body(x), 0.2))


def drawing(normed: bool) -> nn.Sequential:
    """The generator."""
    layers: list[nn.Module] = []
    for width in (LATENT, 96):
        layers += [nn.Linear(width, 96), *([nn.BatchNorm1d(96)] if normed else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(96, 64))


@dataclass
class Game:
    """The parts of one game; a mistake breaks one of them."""

    generator: nn.Module
    critic: nn.Module
    optimizers: dict[str, torch.optim.Optimizer]
    batches: Callable[[int], dict[str, Tensor]]
    critic_steps: int = 1
    hinge: bool = False
    real_label: float = 1.0
    noise: float = 0.5  # on what the critic sees
    records: bool = True
    header: dict[str, Any] = field(default_factory=dict)
    ends: list[Callable[[int], None]] = field(default_factory=list)


def build(seed: int, variant: str) -> Game:
    """The game of a healthy variant; one that collapses lacks what holds the generator apart."""
    torch.manual_seed(seed)
    sound = variant != "generator-collapse"
    generator, critic = drawing(normed=sound), Critic(sees_spread=sound)
    betas = (0.0 if variant == "no-momentum" else 0.5, 0.99)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "generator": torch.optim.Adam(generator.parameters(), lr=1e-3 if sound else 2e-3, betas=betas),
        "critic": torch.optim.Adam(critic.parameters(), lr=2e-3 if sound else 1e-3, betas=betas),
    }
    components = {"generator": {"unit": "nat", "role": "task"}, "critic": {"unit": "nat", "role": "task"}}
    return Game(
        generator,
        critic,
        optimizers,
        shuffled({"x": digits()[0]}, BATCH, seed),
        critic_steps=2 if variant == "two-critic-steps" else 1,
        hinge=variant == "hinge",
        real_label=0.9 if variant == "smoothed" else 1.0,
        records=variant != "losses-only",
        noise=0.5 if sound else 0.0,
        header={"total_steps": STEPS, "config": {"lr": 1e-3, "betas": list(betas)}, "components": components},
    )


def critic_loss(game: Game, real: Tensor, fake: Tensor) -> Tensor:
    """What the critic gets wrong on both."""
    on_real, on_fake = seen(game, real), seen(game, fake)
    if game.hinge:
        return functional.relu(1.0 - on_real).mean() + functional.relu(1.0 + on_fake).mean()
    target = torch.full_like(on_real, game.real_label)
    truth = functional.binary_cross_entropy_with_logits(on_real, target)
    return truth + functional.binary_cross_entropy_with_logits(on_fake, torch.zeros_like(on_fake))


def generator_loss(game: Game, fake: Tensor) -> Tensor:
    """How little the critic believes; with a hinge it may be negative."""
    belief = seen(game, fake)
    return (
        -belief.mean() if game.hinge else functional.binary_cross_entropy_with_logits(belief, torch.ones_like(belief))
    )


def seen(game: Game, x: Tensor) -> Tensor:
    """What the critic says of pictures, through noise."""
    belief: Tensor = game.critic(x + game.noise * torch.randn_like(x))
    return belief


def play(game: Game, path: Path) -> int:
    """The whole training; returns the first step whose loss is not finite, 0 if all are."""
    broken = 0
    with Recorder(path, **game.header) as watch:
        if game.records:
            watch.attach({"generator": game.generator, "critic": game.critic}, game.optimizers)
        for step in range(1, STEPS + 1):
            losses = turn(game, watch, step)
            for hook in game.ends:
                hook(step)
            total = losses["generator"] + losses["critic"]
            broken = broken or (step if total != total else 0)
            watch.log({"loss": total, **{f"loss/{name}": value for name, value in losses.items()}})
            if game.records:
                real = game.batches((step - 1) * game.critic_steps)["x"]
                watch.log(of_inputs(real, frozenset({"inputs", "fingerprint", "bad"})))
                watch.log({"bad/weights": sum(int((~p.isfinite()).sum()) for p in game.generator.parameters())})
            watch.step()
            if step % 35 == 0 and game.records:
                watch.sample(*judged(game, step))
    return broken


def turn(game: Game, watch: Recorder, step: int) -> dict[str, float]:
    """Both networks' steps."""
    for number in range(game.critic_steps):
        real = game.batches((step - 1) * game.critic_steps + number)["x"]
        fake = game.generator(torch.randn(len(real), LATENT)).detach()
        game.optimizers["critic"].zero_grad()
        loss = critic_loss(game, real, fake)
        loss.backward()
        if game.records:
            watch.gradients(of="critic")
        game.optimizers["critic"].step()
    game.optimizers["generator"].zero_grad()
    wished = generator_loss(game, game.generator(torch.randn(BATCH, LATENT)))
    wished.backward()
    if game.records:
        watch.gradients(of="generator")
    game.optimizers["generator"].step()
    return {"generator": wished.item(), "critic": loss.item()}


@torch.no_grad()
def judged(game: Game, step: int) -> tuple[list[str], int, dict[str, float]]:
    """Which real digit each of 24 samples is nearest to; their share that differ from one another."""
    game.generator.eval()
    drawn = game.generator(torch.randn(24, LATENT))
    game.generator.train()
    x, y = digits()
    near = torch.cdist(drawn, x).argmin(1) if bool(drawn.isfinite().all()) else torch.zeros(24, dtype=torch.int64)
    shares = torch.bincount(y[near], minlength=10) / 24
    entropy = float(-(shares[shares > 0] * shares[shares > 0].log()).sum())
    return (
        [f"{int(y[i])} like {int(i)}" for i in near],
        step,
        {"diversity": len(set(near.tolist())) / 24, "entropy": entropy},
    )


def generator_collapse(game: Game) -> int:  # noqa: ARG001
    """No norm, no noise, and a critic that sees one picture at a time: the game is built so."""
    return 1


def rate_too_high(game: Game) -> int:
    for optimizer in game.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] *= 200.0
    return 1


def rate_zero(game: Game) -> int:
    """The generator's rate is 0."""
    game.optimizers["generator"].param_groups[0]["lr"] = 0.0
    return 1


def poisoned_weight(game: Game) -> int:
    at = STEPS // 2

    def poison(step: int) -> None:
        if step == at:
            matrix = next(game.generator.parameters()).data
            matrix[0] = 0.0
            matrix.div_(matrix.norm(dim=1, keepdim=True))

    game.ends.append(poison)
    return at + 1


def stuck_loader(game: Game) -> int:
    """The loader gives one batch for ever, and the row has its fingerprint."""
    plain = game.batches
    game.batches = lambda number: plain(number % 2)
    return 3


def unscaled_input(game: Game) -> int:
    plain = game.batches
    game.batches = lambda number: {"x": plain(number)["x"] * 300.0 + 500.0}
    return 1


def crash_type_error(game: Game) -> int:
    at = STEPS // 2

    def penalty(step: int) -> None:
        if step == at:
            weight: Any = "10"
            weight * 0.5

    game.ends.append(penalty)
    return at


MISTAKES: dict[str, Callable[[Game], int]] = {
    "generator-collapse": generator_collapse,
    "rate-too-high": rate_too_high,
    "rate-zero": rate_zero,
    "poisoned-weight": poisoned_weight,
    "stuck-loader": stuck_loader,
    "unscaled-input": unscaled_input,
    "crash-type-error": crash_type_error,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    game = build(seed, case)
    onset = MISTAKES[case](game) if case in MISTAKES else 0
    with contextlib.suppress(TypeError):
        play(game, path)
    return onset

"""A normalising flow over six measured quantities of pendulums, whose balls are of four materials.

Eight affine couplings, a Gaussian for each material in the latent space: the likelihood of a pendulum given its
material, and the cross-entropy of the material that follows from it. Period, speed and mass hang on the other three
but for the error of measuring, so the density is sharp and its negative logarithm falls far below zero. Adam, a
warm-up, a cosine, clipping; noise on the measurements that is annealed away within the first half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, linear
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 140
MATERIALS = {"wood": 700.0, "aluminium": 2700.0, "steel": 7800.0, "brass": 8500.0}  # kg/m3
TRAINING, VALIDATION, BATCH = 6400, 1000, 256
COLUMNS, WIDTH, LAYERS = 6, 64, 8
PEAK, WARMUP, CLIP, CLASS, ERROR, NOISE = 8e-3, 14, 100.0, 0.5, 0.005, 0.1
RECORDS = frozenset({"components", "norms", "optimizer", "clocks"})


@lru_cache(maxsize=4)
def pendulums(error: float = ERROR) -> Batch:
    """Logarithms of length, swing, period, top speed, diameter and mass, each measured with a relative error."""
    random, count, g = np.random.default_rng(11), TRAINING + VALIDATION, 9.81
    material = random.integers(0, len(MATERIALS), count)
    length = np.exp(random.uniform(np.log(0.3), np.log(3.0), count))
    swing, diameter = random.uniform(0.2, 1.2, count), np.exp(random.uniform(np.log(0.02), np.log(0.1), count))
    period = 2 * np.pi * np.sqrt(length / g) * (1 + swing**2 / 16 + 11 * swing**4 / 3072)
    speed = np.sqrt(2 * g * length * (1 - np.cos(swing)))
    mass = np.array([*MATERIALS.values()])[material] * np.pi * diameter**3 / 6
    x = np.log(np.stack([length, swing, period, speed, diameter, mass], 1))
    x += error * random.standard_normal(x.shape)
    x = (x - x[:TRAINING].mean(0)) / x[:TRAINING].std(0)
    return {"x": torch.tensor(x, dtype=torch.float32), "y": torch.tensor(material)}


def training(error: float = ERROR) -> Batch:
    return {name: values[:TRAINING] for name, values in pendulums(error).items()}


def held(error: float = ERROR) -> Batch:
    return {name: values[TRAINING:] for name, values in pendulums(error).items()}


class Coupling(nn.Module):
    """Three columns are scaled and shifted by what a network makes of the other three; at first they stay."""

    def __init__(self, kept: tuple[int, ...]) -> None:
        super().__init__()
        mask = torch.zeros(COLUMNS)
        mask[[*kept]] = 1.0
        self.register_buffer("mask", mask)
        last = nn.Linear(WIDTH, 2 * COLUMNS)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(nn.Linear(COLUMNS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What comes out, and the logarithm of the volume it takes. float32 [N, 6] and [N]"""
        mask = self.get_buffer("mask")
        scale, shift = self.net(x * mask).float().chunk(2, -1)
        scale = 2.0 * torch.tanh(scale / 2.0) * (1.0 - mask)
        return x * scale.exp() + shift * (1.0 - mask), scale.sum(-1)


class Base(nn.Module):
    """A Gaussian of unit spread for each material."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.randn(len(MATERIALS), COLUMNS))

    def forward(self, z: Tensor) -> Tensor:
        """Log-density of each latent under each material. float32 [N, 4]"""
        return -0.5 * (z[:, None] - self.means).square().sum(-1) - 0.5 * COLUMNS * np.log(2 * np.pi)


class Flow(nn.Module):
    """From measurements to a latent space, and the density there."""

    def __init__(self) -> None:
        super().__init__()
        halves = ((0, 1, 4), (2, 3, 5), (0, 2, 4), (1, 3, 5))
        self.couplings = nn.ModuleList(Coupling(halves[layer % len(halves)]) for layer in range(LAYERS))
        self.base = Base()
        self.latent = self.densities = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """Log-likelihood of each row given each material; float32 [N, 4]."""
        volume = x.new_zeros(len(x))
        for coupling in self.couplings:
            x, grown = coupling(x)
            volume = volume + grown
        self.latent = x
        self.densities = self.base(x) + volume[:, None]
        return self.densities


def losses(model: nn.Module, batch: Batch) -> Components:
    """Negative log-likelihood given the material, and the cross-entropy of the material given the rest; in nats."""
    densities = model(batch["x"])
    return {
        "density": -densities.gather(1, batch["y"][:, None]).mean(),
        "class": functional.cross_entropy(densities, batch["y"]),
    }


def blurred(now: dict[str, float]) -> Callable[[nn.Module, Batch], Components]:
    """The losses in training: measurements get the noise of this step."""
    return lambda model, batch: losses(model, batch | {"x": batch["x"] + now["noise"] * torch.randn_like(batch["x"])})


def measure(model: nn.Module, error: float = ERROR) -> Channels:
    """The loss, its parts and the accuracy on pendulums that are held out, as they were measured."""
    batch = held(error)
    raw = {name: value.item() for name, value in losses(model, batch).items()}
    assert isinstance(model, Flow)
    right = (model.densities.argmax(1) == batch["y"]).float().mean().item()
    parts = {f"loss/{name}": value for name, value in raw.items()}
    return {"loss": raw["density"] + CLASS * raw["class"], **parts, "accuracy": right}


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now = Flow(), {"noise": NOISE}
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam(groups(model)),
        batches=shuffled(training(), BATCH, seed),
        losses=blurred(now),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: {"density": 1.0, "class": CLASS},  # noqa: ARG005
        clocks={"noising": lambda applied: applied},
        now=now,
        at=lambda model: model.latent,
        evaluation=Evaluation(20, measure),
        header={
            "config": {"lr": PEAK, "batch_size": BATCH, "clip": CLIP, "layers": LAYERS, "noise": NOISE},
            "components": {"density": {"unit": "nat", "role": "task"}, "class": {"unit": "nat", "role": "task"}},
            "clocks": ["noising"],
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
    )
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def groups(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [*part.parameters()], "name": name, "lr": PEAK} for name, part in model.named_children()]


def planned(parts: Parts, peak: float = PEAK, noise: float = NOISE, **form: Any) -> None:
    """The rate warms up and falls, the noise is gone by the middle of the run; and so the header says."""
    form = declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form
    for group in parts.optimizer.param_groups:
        group["lr"] = peak
    half = parts.steps // 2
    parts.factor = lambda tick: (schedule_value(form, tick) or 0.0) / peak
    parts.scheduled = {"noise": ("noising", linear(noise, 0.0, half))}
    rates = {f"lr/{group['name']}": dict(form) for group in parts.optimizer.param_groups}
    parts.header["schedules"] = rates | {"noise": declared("linear", noise, 0.0, half, clock="noising")}
    parts.header["config"] |= {"lr": peak, "noise": noise}
    parts.header["total_steps"] = parts.steps


def schooled(parts: Parts, steps: int) -> None:
    """Steps before the record begins, without noise."""
    batches, adam = shuffled(training(), BATCH, parts.seed + 70), torch.optim.Adam(parts.model.parameters(), lr=PEAK)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for number in range(steps):
        adam.zero_grad()
        raw = losses(parts.model, batches(number))
        (raw["density"] + CLASS * raw["class"]).backward()
        nn.utils.clip_grad_norm_(parts.model.parameters(), CLIP)
        adam.step()
        fall.step()


def fine_tuning(parts: Parts) -> Parts:
    """A flow that is trained through, at a low rate and without noise: the loss is at its floor from the first row."""
    schooled(parts, 2 * STEPS)
    unblurred(parts, peak=1e-4, kind="constant", end=1e-4)
    return parts


def unblurred(parts: Parts, peak: float = PEAK, **form: Any) -> None:
    """No noise at all, and nothing said of it."""
    planned(parts, peak, **form)
    parts.scheduled, parts.clocks, parts.now["noise"] = {}, {}, 0.0
    for told in (parts.header["schedules"], parts.header["config"]):
        del told["noise"]
    del parts.header["clocks"]
    parts.records = parts.records - {"clocks"}


def batch_of_four(parts: Parts) -> Parts:
    """Four pendulums a step, for a flow that can something already: a likelihood full of noise."""
    schooled(parts, STEPS // 2)
    unblurred(parts, peak=2e-4)
    parts.header["max_grad_norm"] = limit = 5 * CLIP  # the norm of so few is larger
    parts.header["config"] |= {"batch_size": 4, "clip": limit}
    batches = shuffled(training(), 4, parts.seed)
    return replace(parts, batches=batches, batches_per_epoch=TRAINING // 4, max_norm=limit)


def heavy_late(parts: Parts) -> Parts:
    """Steel and brass are rare for a third of the run: the loss jumps where they become as many as the others."""
    change, data, late = STEPS // 3, training(), parts.batches
    chosen = (data["y"] < 2) | (torch.arange(TRAINING) % 10 == 0)
    early = shuffled({name: values[chosen] for name, values in data.items()}, BATCH, parts.seed)
    weights = {"density": 1.0, "class": CLASS}
    stages = [{"start": at, "name": name, "weights": weights} for at, name in ((0, "light"), (change, "all"))]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "light-first", "stages": stages}
    parts.extras = [lambda step, batch: {"stage": int(step > change)}]  # noqa: ARG005
    return replace(parts, batches=lambda number: (early if number < change else late)(number))


def long_run(parts: Parts) -> Parts:
    parts.steps = 2 * STEPS
    planned(parts)
    return parts


def rms_prop(parts: Parts) -> Parts:
    parts.optimizer = torch.optim.RMSprop(groups(parts.model), lr=2e-3, alpha=0.98)
    parts.header["config"]["optimizer"] = "rmsprop"
    planned(parts, peak=2e-3)
    return parts


def warm_restarts(parts: Parts) -> Parts:
    planned(parts, peak=0.25 * PEAK, restarts=2, end=0.05 * PEAK)
    return parts


def early_stopping(parts: Parts) -> Parts:
    """A constant rate, until validation has not become better for four evaluations."""
    schooled(parts, STEPS)
    parts.steps, seen = 2 * STEPS, list[float]()
    unblurred(parts, peak=2e-3, kind="constant", end=2e-3)

    def noted(model: nn.Module) -> Channels:
        values = measure(model)
        seen.append(values["loss"])
        return values

    parts.evaluation = Evaluation(10, noted)
    parts.stops = lambda: len(seen) > 4 and min(seen[-4:]) > min(seen[:-4])
    return parts


def in_bf16(parts: Parts) -> Parts:
    """The networks in bf16, the transformation and its volume in float32."""
    parts.header["dtypes"] = {"declared": "bfloat16", "observed": "bfloat16"}
    return replace(parts, autocast=torch.bfloat16)


def fixed_base(parts: Parts) -> Parts:
    """The materials' Gaussians stand where they were put, on purpose: on axes of their own, and not trained."""
    assert isinstance(parts.model, Flow)
    with torch.no_grad():
        parts.model.base.means.copy_(4.0 * torch.eye(len(MATERIALS), COLUMNS))
    parts.model.base.requires_grad_(False)
    parts.optimizer = torch.optim.Adam(groups(parts.model)[:1])
    planned(parts)
    return parts


def sharp(parts: Parts) -> Parts:
    """Measured five times as well: the loss ends several nats deeper."""
    parts.evaluation = Evaluation(20, partial(measure, error=ERROR / 5))
    return replace(parts, batches=shuffled(training(ERROR / 5), BATCH, parts.seed))


def density_only(parts: Parts) -> Parts:
    """Nobody asks for the material: one number, which crosses zero."""

    def single(model: nn.Module, batch: Batch) -> Components:
        return {"loss": losses(model, batch)["density"]}

    def noisy(model: nn.Module, batch: Batch) -> Components:
        return {"loss": blurred(parts.now)(model, batch)["density"]}

    del parts.header["components"]
    evaluation = Evaluation(20, lambda model: {"loss": single(model, held())["loss"].item()})
    return replace(parts, losses=noisy, weights=None, evaluation=evaluation)


def watched(parts: Parts) -> Parts:
    """The gradient's shares at the latent space and what the inputs are like are logged too."""
    parts.header["gradient_at"] = "latent"
    return replace(parts, records=RECORDS | {"shares", "inputs"})


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(int(0.6 * STEPS))),
    "warm-restarts": warm_restarts,
    "batch-4": batch_of_four,
    "every-tenth": lambda parts: replace(parts, every=10),
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}),
    "fine-tuning": fine_tuning,
    "heavy-late": heavy_late,
    "long-run": long_run,
    "rms-prop": rms_prop,
    "early-stopping": early_stopping,
    "bf16": in_bf16,
    "fixed-base": fixed_base,
    "sharp": sharp,
    "density-only": density_only,
    "watched": watched,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *("rate-too-high", "scheduler-twice", "component-sign", "component-scale", "wrong-formula", "wrong-weights"),
    *("stuck-counter", "labels-break", "unscaled-input", "too-little-data", "log-of-zero", "resume-old-weights"),
)
TWINS = {
    "wrong-formula": "watched",
    "unscaled-input": "watched",
    "wrong-weights": "heavy-late",
    "resume-old-weights": "resumed",
}


def wrong_formula(parts: Parts) -> int:
    """The logits are squared distances, and the minus was forgotten: the farthest Gaussian is the likeliest."""
    plain = parts.losses

    def turned(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        assert isinstance(model, Flow)
        return raw | {"class": functional.cross_entropy(-model.densities, batch["y"])}

    parts.losses = turned
    return 1


def wrong_weights(parts: Parts) -> int:
    """The class grows by five percent a step, by a line that was left from an ablation."""
    mistakes.reweigh(parts, lambda applied, weights: weights | {"class": CLASS * 1.05**applied})
    return 2


def log_of_zero(parts: Parts) -> int:
    """An entropy of the material, sharpened: NaN as soon as one of the four is out of question."""
    parts.at = lambda model: model.densities
    return mistakes.log_of_zero(parts, temperature=0.2)


OWN: dict[str, mistakes.Mistake] = {
    "rate-too-high": partial(mistakes.rate_too_high, by=30.0),
    "component-sign": partial(mistakes.component_sign, name="class", weight=-0.5),
    "component-scale": partial(mistakes.component_scale, name="class", by=1e4),
    "wrong-formula": wrong_formula,
    "wrong-weights": wrong_weights,
    "unscaled-input": partial(mistakes.unscaled_input, by=300.0, shift=500.0),
    "too-little-data": partial(mistakes.too_little_data, batches=1),
    "log-of-zero": log_of_zero,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

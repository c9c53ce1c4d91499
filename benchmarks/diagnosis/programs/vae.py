"""A variational autoencoder of scikit-learn's scanned digits, and one with a codebook (VQ) instead of a prior.

The loop draws with replacement, Adam runs at a constant rate, and the weight of the KL divergence is annealed from 0 by
a declared schedule. Losses are sums over pixels, so tens of nats. It logs components, their shares of the gradient at
the latent code, and evaluates a bound on the held-out half.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import trainwatch
from benchmarks.diagnosis import facts
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 240
SICK = (
    "missing-zero-grad", "rate-too-high", "local-counter", "stuck-counter", "absolute-anneal", "component-sign",
    "component-scale", "component-detached", "component-untracked", "steep-ramp", "log-of-zero", "poisoned-weight",
    "codebook-collapse", "dead-relus", "growing-weights", "wrong-weights", "counter-reset", "bad-sample",
    "too-little-data", "never-started",
)  # fmt: skip
HEALTHY = (
    "plain", "codebook", "by-hand", "constant-weight", "cyclic-anneal", "strong-prior", "every-fifth", "epoch-rows",
    "loss-only", "autoencoder", "tiny-rate", "small-validation", "batch-3", "l2-decay", "late-anneal",
)  # fmt: skip
TWIN = {
    "component-untracked": "by-hand", "codebook-collapse": "codebook", "growing-weights": "l2-decay",
    "steep-ramp": "late-anneal",
}  # fmt: skip
"""The healthy case that a sick one departs from, where it is not "plain"."""
ANNEAL = {"kind": "linear", "start": 0.0, "end": 0.3, "over_steps": 100}


@dataclass(frozen=True)
class Plan:
    """What is trained, and what is logged of it."""

    steps: int = field(default_factory=lambda: STEPS)
    batch: int = 40
    train: int = 900
    validation: int = 600
    rate: float = 2e-3
    anneal: dict[str, Any] = field(default_factory=lambda: dict(ANNEAL))
    codes: int = 0
    decay: float = 0.0  # of the weights, by hand, at each step
    shares: bool = True
    by_hand: bool = False  # totals are logged by the loop itself
    every: int = 1
    evaluate_every: int = 30
    pretrained: int = 0


CASES: dict[str, dict[str, Any]] = {
    "codebook": {"codes": 32},
    "by-hand": {"by_hand": True, "shares": False},
    "constant-weight": {"anneal": {"kind": "constant", "start": 0.3}},
    "cyclic-anneal": {"anneal": {"kind": "linear", "start": 0.0, "end": 0.3, "over_steps": STEPS, "restarts": 3}},
    "strong-prior": {"anneal": {**ANNEAL, "end": 1.0}},
    "every-fifth": {"every": 5, "steps": 400},
    "epoch-rows": {"every": 22, "steps": 396, "anneal": {"kind": "constant", "start": 0.5}, "shares": False},
    "loss-only": {"shares": False, "by_hand": True},
    "autoencoder": {"anneal": {"kind": "constant", "start": 0.0}},
    "tiny-rate": {"rate": 2e-5, "pretrained": 400, "anneal": {"kind": "constant", "start": 0.3}},
    "small-validation": {"validation": 12},
    "batch-3": {"batch": 3, "rate": 1e-3},
    "l2-decay": {"decay": 1e-3},
    "late-anneal": {"anneal": {**ANNEAL, "begin": 120, "over_steps": 80}},
    "rate-too-high": {"rate": 0.15},
    "absolute-anneal": {"anneal": {**ANNEAL, "over_steps": 20_000}},
    "component-untracked": {"by_hand": True, "shares": False},
    "steep-ramp": {"anneal": {"kind": "linear", "start": 0.0, "end": 60.0, "over_steps": 4, "begin": 120}},
    "codebook-collapse": {"codes": 32},
    "growing-weights": {"decay": -0.01},
    "too-little-data": {"train": 12, "rate": 6e-3, "anneal": {"kind": "constant", "start": 0.01}},
}
BREAK = 140
"""The step at which mistakes in the middle of a run are made."""
FIRST = {
    "missing-zero-grad": 2, "local-counter": 2, "stuck-counter": 2, "absolute-anneal": 2, "component-sign": 1,
    "component-detached": 2, "steep-ramp": 122, "poisoned-weight": BREAK + 1, "wrong-weights": BREAK,
    "counter-reset": BREAK, "bad-sample": BREAK, "never-started": 0,
}  # fmt: skip
"""First faulty step of a kind; 1 for the others."""


@cache
def pixels() -> Tensor:
    """All images, flat, in 0..1, in one fixed random order."""
    data = load_digits().data
    order = np.random.default_rng(1).permutation(len(data))
    return torch.from_numpy((data[order] / 16).astype(np.float32))


class Autoencoder(nn.Module):
    """64 pixels to a code of 8 numbers and back; with a codebook, if there is one."""

    def __init__(self, codebook: Codebook | None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 8 if codebook else 16))
        self.hidden = nn.Sequential(nn.Linear(8, 96), nn.ReLU())
        self.pixels = nn.Linear(96, 64)
        self.codebook = codebook

    def decode(self, code: Tensor) -> Tensor:
        """Logits of the pixels."""
        return self.pixels(self.hidden(code))


class Codebook(nn.Module):
    """The nearest of so many vectors, with the gradient passed straight through; two vectors an image."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(codes, 4) * 10.0)  # far from what an untrained encoder gives

    def forward(self, code: Tensor) -> tuple[Tensor, dict[str, Tensor], float]:
        """The quantised code, its two losses, and how many vectors the batch uses."""
        vectors = code.reshape(-1, 4)
        index = torch.cdist(vectors.detach(), self.table.detach()).argmin(1)
        chosen = self.table[index].reshape(code.shape)
        losses = {
            "codebook": (chosen - code.detach()).square().sum(1).mean(),
            "commitment": (chosen.detach() - code).square().sum(1).mean(),
        }
        return code + (chosen - code).detach(), losses, float(len(index.unique()))


@dataclass
class Run:
    """What a training consists of."""

    model: Autoencoder
    optimizer: torch.optim.Optimizer
    plan: Plan
    case: str
    draws: torch.Generator
    ticks: int = 0
    sharper: float = 1.0  # an inverse temperature, annealed where `log-of-zero` is
    seen: dict[str, float] = field(default_factory=dict)


def build(plan: Plan, case: str, seed: int) -> Run:
    """Model and optimiser."""
    model = Autoencoder(Codebook(plan.codes) if plan.codes else None)
    if model.codebook is not None and case != "codebook-collapse":
        with torch.no_grad():
            model.codebook.table.copy_(model.encoder(pixels()[: plan.codes]).reshape(-1, 4)[: plan.codes])
    if case == "dead-relus":
        nn.init.constant_(model.hidden[0].bias, -12.0)
    optimizer = torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], lr=plan.rate)
    draws = torch.Generator().manual_seed(seed)
    return Run(model, optimizer, plan, case, draws)


def batches(plan: Plan, case: str, seed: int) -> Iterator[Tensor]:
    """Endless batches, drawn with replacement."""
    state = np.random.default_rng(seed)
    train = pixels()[: plan.train]
    step = 0
    while True:
        step += 1
        batch = train[torch.from_numpy(state.integers(0, plan.train, plan.batch))]
        if case == "bad-sample" and step == BREAK:
            batch[0] = batch[0] / 0.0 * 0.0  # an empty scan, divided by its own largest value
        yield batch


def losses_of(run: Run, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The components, and the tensor that all of them pass through."""
    net = run.model
    statistics = net.encoder(images)
    if net.codebook is not None:
        code, components, used = net.codebook(statistics)
        run.seen["codes_used"] = used
        return {"reconstruction": reconstruction(run, net.decode(code), images), **components}, statistics
    mean, spread = statistics.chunk(2, 1)
    noise = torch.randn(mean.shape, generator=run.draws)
    logits = net.decode(mean + noise * torch.exp(0.5 * spread))
    if run.case == "component-detached":
        mean, spread = mean.detach(), spread.detach()
    kl = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum(1).mean()
    if run.case == "component-sign":
        kl = -kl  # 0.5 * sum(1 + logvar - mu^2 - var), as in the paper, which maximises
    return {"reconstruction": reconstruction(run, logits, images), "kl": kl}, statistics


def reconstruction(run: Run, logits: Tensor, images: Tensor) -> Tensor:
    """Cross-entropy of the pixels, summed over the image."""
    if run.case == "component-scale":
        return (255 * (torch.sigmoid(logits) - images)).square().sum(1).mean()  # squared greys of 0..255
    if run.case == "log-of-zero":
        on = torch.sigmoid(logits * run.sharper)
        return -(images * on.log() + (1 - images) * (1 - on).log()).sum(1).mean()
    return functional.binary_cross_entropy_with_logits(logits, images, reduction="none").sum(1).mean()


def weights_at(run: Run, step: int) -> dict[str, float]:
    """What each component counts at this step."""
    if run.plan.codes:
        return {"reconstruction": 1.0, "codebook": 1.0, "commitment": 1.0}
    weight = schedule_value(run.plan.anneal, reading(run, step))
    assert weight is not None
    if run.case == "wrong-weights" and step >= BREAK:
        weight *= 0.3  # somebody's "if epoch > 7: beta *= 0.3", left in the code
    return {"reconstruction": 1.0, "kl": weight}


def reading(run: Run, step: int) -> int:
    """The counter that drives the schedule."""
    return run.ticks if run.case in ("local-counter", "stuck-counter") else step - 1


def record(path: Path, run: Run, name: str = "vae") -> trainwatch.Recorder:
    """Open the run's file and say what is planned."""
    plan = run.plan
    roles = {"reconstruction": {"unit": "nat", "role": "task"}, "kl": {"unit": "nat", "role": "regulariser"}}
    if plan.codes:
        auxiliary = {"role": "auxiliary"}
        roles = {"reconstruction": {"role": "task"}, "codebook": auxiliary, "commitment": auxiliary}
    schedules: dict[str, Any] = {"lr/all": {"kind": "constant", "start": plan.rate}}
    told: dict[str, Any] = {}
    if not plan.codes:
        clock = {"clock": "kl"} if run.case in ("local-counter", "stuck-counter") else {}
        schedules["weight/kl"] = {**(ANNEAL if run.case == "steep-ramp" else plan.anneal), **clock}
        if run.case == "steep-ramp":
            schedules["weight/kl"] = plan.anneal
        told = {"clocks": ["kl"]}
    config = {"model": "vqvae" if plan.codes else "vae", "rate": plan.rate, "batch": plan.batch, "anneal": plan.anneal}
    if run.case == "loss-only":
        return trainwatch.Recorder(path, total_steps=plan.steps, run=name)
    return trainwatch.Recorder(
        path,
        config=config,
        total_steps=plan.steps,
        components=roles,
        schedules=schedules,
        gradient_at="latent",
        run=name,
        **told,
    )


def learn(run: Run, watch: trainwatch.Recorder, images: Tensor, step: int) -> None:
    """One step of the optimiser."""
    plan, case = run.plan, run.case
    components, latent = losses_of(run, images)
    weights = weights_at(run, step)
    logged = step % plan.every == 0 or case == "epoch-rows"
    if plan.by_hand:
        total = summed(run, watch, components, weights)
    elif logged:
        total = watch.losses(components, weights, at=latent if plan.shares else None)
    else:
        total = sum(weights[name] * value for name, value in components.items())
    if case != "missing-zero-grad":
        run.optimizer.zero_grad()
    total.backward()
    if logged and case != "loss-only":
        watch.gradients()
    run.optimizer.step()
    if not plan.codes and not plan.by_hand:
        watch.clock("kl", reading(run, step))
    after(run, step)
    if plan.codes:
        watch.log(run.seen)


def summed(run: Run, watch: trainwatch.Recorder, components: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The total, added up and logged by the loop itself."""
    total = sum(weights[name] * value for name, value in components.items())
    if run.case == "component-untracked":
        total = total + 0.05 * sum(p.square().sum() for p in (run.model.hidden[0].weight, run.model.pixels.weight))
    assert isinstance(total, Tensor)
    if run.case != "loss-only":
        watch.log({f"loss/{name}": value.detach() for name, value in components.items()})
        watch.log({f"weight/{name}": value for name, value in weights.items()})
    watch.log({"loss": total.detach()})
    return total


@torch.no_grad()
def after(run: Run, step: int) -> None:
    """What follows the optimiser's step: weights are decayed, counters move."""
    if run.plan.decay:
        for parameter in run.model.parameters():
            parameter.mul_(1 - run.plan.decay)
    if run.case == "poisoned-weight" and step == BREAK:
        rows = run.model.encoder[0].weight.T  # the first pixel is blank in every image: its row stays at zero
        rows[0] = 0.0
        rows.copy_(rows * (1.0 / rows.norm(dim=1, keepdim=True)).clamp(min=1.0))
    if run.case == "log-of-zero":
        run.sharper = min(500.0, run.sharper * 1.03)
    if run.case == "local-counter" and step % 4 == 0:
        run.ticks += 1


@torch.no_grad()
def evaluate(run: Run, watch: trainwatch.Recorder, step: int) -> None:
    """The bound with all weights at their last value, and its parts."""
    state = run.draws.get_state()
    images = pixels()[1000 : 1000 + run.plan.validation]
    components, _ = losses_of(run, images)
    run.draws.set_state(state)
    values: dict[str, Any] = {f"loss/{name}": float(value) for name, value in components.items()}
    weights = weights_at(run, step)
    values["loss"] = sum(weights[name] * float(value) for name, value in components.items())
    if run.plan.codes:
        values["codes_used"] = run.seen["codes_used"]
    if run.case == "loss-only":
        values = {"loss": values["loss"]}
    watch.evaluate(step, "held-out", values)


def pretrain(run: Run, seed: int) -> None:
    """Steps before the record begins."""
    adam = torch.optim.Adam(run.model.parameters(), lr=2e-3)
    for images, _ in zip(batches(run.plan, "plain", seed + 100), range(run.plan.pretrained), strict=False):
        components, _ = losses_of(run, images)
        adam.zero_grad()
        sum(components.values()).backward()
        adam.step()


def fit(run: Run, path: Path, seed: int) -> None:
    """Train from the first step to the last."""
    plan = run.plan
    with record(path, run) as watch:
        if run.case == "never-started":
            torch.load("checkpoints/vae-pretrained.pt")  # init_from of the config
        if run.case != "loss-only":
            watch.attach(run.model, run.optimizer)
        for step, images in zip(range(1, plan.steps + 1), batches(plan, run.case, seed), strict=False):
            if run.case != "loss-only":
                watch.log({"bad/input": int((~images.isfinite()).sum()), "bad/weights": facts.bad_weights(run.model)})
            learn(run, watch, images, step)
            if run.case == "counter-reset" and step == BREAK:
                watch.steps = 0  # the epoch loop's counter is passed on
            facts.row(watch, step, plan.every)
            if step % plan.evaluate_every == 0:
                evaluate(run, watch, step)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case; returns the first faulty step."""
    torch.manual_seed(seed)
    run = build(replace(Plan(), **CASES.get(case, {})), case, seed)
    if run.plan.pretrained:
        pretrain(run, seed)
    with contextlib.suppress(FileNotFoundError):
        fit(run, path, seed)
    if case == "log-of-zero":
        return facts.first_nonfinite(path, "loss")
    return 0 if case in HEALTHY else FIRST.get(case, 1)

"""Two views of each scanned digit, and a small convolutional net that tells pairs from strangers; nobody uses labels.

InfoNCE at a temperature, and a little of the logarithm that spreads embeddings over their sphere. SGD with momentum,
a large batch, half a cosine without warm-up. Now and then a linear probe says what the features are worth. The loss of
a net that has learnt nothing is the logarithm of the number of strangers; a trained one's is far from 0, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import digits, shuffled
from benchmarks.diagnosis.loop import Batch, Components, Evaluation, Parts, Resume, cosine, declared

HELD_OUT = False
STEPS = 120
TRAINING, BATCH = 1440, 144
RATE, MOMENTUM, TEMPERATURE, SPREAD = 0.1, 0.9, 0.2, 0.1
RECORDS = frozenset({"shares", "norms", "optimizer"})

HEALTHY = (
    *("plain", "loss-only", "every-tenth", "resumed", "warm-restarts", "warm-up", "small-batch", "fine-tuned"),
    *("adam", "accumulated", "harder-views", "noisy-clipped", "watched"),
)
TWINS = {
    "resume-old-weights": "resumed",
    "tiny-clip": "noisy-clipped",
    "same-seed-workers": "watched",
}


@dataclass(frozen=True)
class Views:
    """How far a view may be from the image: turns in radians, shifts in pixels, spread of the noise, a square gone."""

    turn: float = 0.2
    shift: float = 0.5
    noise: float = 0.1
    square: int = 1

    def draw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One view of each image. float32 [N, 1, 8, 8]"""
        count = len(images)
        angle, across, down = (torch.rand(3, count, generator=generator) * 2 - 1).unbind()
        angle, across, down = angle * self.turn, across * self.shift / 4, down * self.shift / 4
        rows = [angle.cos(), -angle.sin(), across, angle.sin(), angle.cos(), down]
        grid = functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), [count, 1, 8, 8], align_corners=False)
        paper = images.min()  # what comes in from beyond the edge is paper
        views = functional.grid_sample(images - paper, grid, align_corners=False) + paper
        ink = 0.8 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
        views = views * ink + self.noise * torch.randn(views.shape, generator=generator)
        corner = torch.randint(0, 8 - self.square, (2, count, 1), generator=generator)
        place = torch.arange(8)
        inside = (place >= corner) & (place < corner + self.square)
        return views.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], float(paper))


class Siamese(nn.Module):
    """An encoder, whose features are what is wanted, and a projector that is thrown away; embeddings have length 1."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(128, 64), nn.ReLU()),
        )
        self.projector = nn.Sequential(
            *(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()),
            *(nn.Dropout(dropout), nn.Linear(64, 32)),
        )
        self.features = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings. float32 [N, 32]"""
        self.features = self.encoder(x)
        return functional.normalize(self.projector(self.features), dim=1)


def losses(model: nn.Module, batch: Batch) -> Components:
    """InfoNCE over both halves of the batch, each a view of the same images; and how crowded the sphere is."""
    z = model(batch["x"])
    count = len(z) // 2
    alike = (z @ z.T / TEMPERATURE).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
    partner = torch.arange(len(z)).roll(count)
    crowded = torch.pdist(z).square().mul(-2).exp().mean().log()
    return {"pairs": functional.cross_entropy(alike, partner), "crowding": crowded}


def pairs(size: int, seed: int, views: Callable[[int], Views]) -> Callable[[int], Batch]:
    """Batches by number: the first views of all images, then their second ones."""
    plain = shuffled({"x": digits()[0][:TRAINING].view(-1, 1, 8, 8)}, size, seed)

    def batch(number: int) -> Batch:
        generator, images = torch.Generator().manual_seed(100_000 * seed + number), plain(number)["x"]
        return {"x": torch.cat([views(number).draw(images, generator) for _ in range(2)])}

    return batch


@lru_cache(maxsize=1)
def held_pairs() -> Batch:
    """Two views of each image that is held out, the same ones at every evaluation."""
    generator, images = torch.Generator().manual_seed(1), digits()[0][TRAINING:].view(-1, 1, 8, 8)
    return {"x": torch.cat([Views().draw(images, generator) for _ in range(2)])}


def measure(model: nn.Module) -> dict[str, float]:
    """The loss on held-out pairs, and the accuracy of a linear probe: ridge regression of labels on embeddings."""
    raw = {name: value.item() for name, value in losses(model, held_pairs()).items()}
    x, y = digits()
    z = model(x.view(-1, 1, 8, 8))
    features = functional.pad((z - z[:TRAINING].mean(0)) / (z[:TRAINING].std() + 1e-9), (0, 1), value=1.0).double()
    known, asked = features[:TRAINING], features[TRAINING:]
    wanted = functional.one_hot(y[:TRAINING], 10).double()
    probe = torch.linalg.solve(known.T @ known + torch.eye(known.shape[1]), known.T @ wanted)
    right = ((asked @ probe).argmax(1) == y[TRAINING:]).float().mean().item()
    total = raw["pairs"] + SPREAD * raw["crowding"]
    return {"loss": total, **{f"loss/{name}": value for name, value in raw.items()}, "probe_accuracy": right}


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Siamese()
    parts = Parts(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), RATE, MOMENTUM),
        batches=pairs(BATCH, seed, lambda number: Views()),  # noqa: ARG005
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        weights=lambda applied: {"pairs": 1.0, "crowding": SPREAD},  # noqa: ARG005
        factor=cosine(STEPS),
        at=lambda model: model.features,
        evaluation=Evaluation(20, measure),
        header={
            "config": {"lr": RATE, "momentum": MOMENTUM, "batch_size": BATCH, "temperature": TEMPERATURE},
            "total_steps": STEPS,
            "components": {"pairs": {"unit": "nat", "role": "task"}, "crowding": {"role": "regulariser"}},
            "schedules": {"lr/0": declared("cosine", RATE, 0.0, STEPS)},
            "gradient_at": "features",
        },
        records=RECORDS,
        body=lambda model: [*model.encoder.parameters()],
    )
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def with_config(parts: Parts, **more: float) -> Parts:
    """The header's config has these values instead."""
    parts.header["config"] = parts.header["config"] | more
    return parts


def with_rate(parts: Parts, rate: float) -> Parts:
    """The same cosine from another rate, declared as it is."""
    mistakes.rate_too_low(parts, rate / RATE)  # the arithmetic alone: this is the rate that suits the variant
    return with_config(parts, lr=rate)


def loss_only(parts: Parts) -> Parts:
    """No weights, no norms, no rates, no horizon: one number a step."""
    header = {"config": parts.header["config"]}
    return replace(parts, records=frozenset(), header=header)


def warm_restarts(parts: Parts) -> Parts:
    """Three cosines, one after the other."""
    each = STEPS // 3
    parts.header["schedules"] = {"lr/0": declared("cosine", RATE, 0.0, STEPS, restarts=2)}
    return replace(parts, factor=lambda tick: cosine(each)(tick % each))


def warm_up(parts: Parts) -> Parts:
    warmup = STEPS // 6
    parts.header["schedules"] = {"lr/0": declared("cosine", RATE, 0.0, STEPS, warmup=warmup)}
    return replace(parts, factor=cosine(STEPS, warmup))


def small_batch(parts: Parts) -> Parts:
    """Eight images a step: each view has its partner and only fourteen strangers, and the loss is mostly noise."""
    few = replace(parts, batches=pairs(8, parts.seed, lambda number: Views()), batches_per_epoch=TRAINING // 8)  # noqa: ARG005
    return with_rate(with_config(few, batch_size=8), 0.01)


def fine_tuned(parts: Parts) -> Parts:
    """The net was trained before the log begins; now a small constant rate keeps it at its floor."""
    batches = pairs(BATCH, parts.seed + 50, lambda number: Views())  # noqa: ARG005
    for number in range(2 * STEPS):
        parts.optimizer.param_groups[0]["lr"] = RATE * cosine(2 * STEPS)(number)
        raw = losses(parts.model, batches(number))
        parts.optimizer.zero_grad()
        (raw["pairs"] + SPREAD * raw["crowding"]).backward()
        parts.optimizer.step()
    parts.optimizer = torch.optim.SGD(parts.model.parameters(), 0.005, MOMENTUM)
    parts.header["schedules"] = {"lr/0": {"kind": "constant", "start": 0.005}}
    return with_config(replace(parts, factor=None), lr=0.005)


def adam(parts: Parts) -> Parts:
    parts.optimizer = torch.optim.AdamW(parts.model.parameters(), lr=3e-3, weight_decay=1e-2)
    parts.header["schedules"] = {"lr/0": declared("cosine", 3e-3, 0.0, STEPS)}
    return with_config(parts, lr=3e-3, weight_decay=1e-2)


def accumulated(parts: Parts) -> Parts:
    """Three small batches a step; strangers are those of the same small batch, components are logged by hand."""
    batches = pairs(BATCH // 3, parts.seed, lambda number: Views())  # noqa: ARG005
    parts.header["horizon"] = {"batch_size": BATCH // 3, "accumulation": 3, "samples": TRAINING, "drop_last": True}
    records = frozenset({"components", "norms", "optimizer"})
    few = replace(parts, batches=batches, accumulation=3, batches_per_epoch=3 * TRAINING // BATCH, records=records)
    return with_config(few, batch_size=BATCH // 3)


def harder_views(parts: Parts) -> Parts:
    """From the middle on views are much farther from their images: the loss jumps, as it is meant to."""
    easy, hard, half = Views(0.1, 0.3, 0.05, 1), Views(0.3, 0.9, 0.2, 2), STEPS // 2
    known = {"pairs": 1.0, "crowding": SPREAD}
    stages = [{"start": 0, "name": "easy", "weights": known}, {"start": half, "name": "hard", "weights": known}]
    form = {"name": "views", "source": "views.yaml", "stages": stages}
    parts.header |= {"curriculum": form, "curriculum_running": form}
    batches = pairs(BATCH, parts.seed, lambda number: easy if number < half else hard)
    return replace(parts, batches=batches, extras=[lambda step, batch: {"stage": int(step > half)}])  # noqa: ARG005


def noisy_clipped(parts: Parts) -> Parts:
    """Views that are a third noise; the gradient is clipped, and seldom needs it."""
    parts.header["max_grad_norm"] = 2.0
    return replace(parts, batches=pairs(BATCH, parts.seed, lambda number: Views(noise=0.4)), max_norm=2.0)  # noqa: ARG005


def watched(parts: Parts) -> Parts:
    """Dropout in the projector; inputs and fingerprints are logged, and every evaluation is made twice."""
    assert parts.evaluation is not None
    parts.model.projector[3].p = 0.1
    evaluation = replace(parts.evaluation, repeats=2)
    return with_config(replace(parts, evaluation=evaluation, records=RECORDS | {"inputs", "fingerprint"}), dropout=0.1)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": loss_only,
    "every-tenth": lambda parts: replace(parts, every=10, records=frozenset({"components", "norms", "optimizer"})),
    "resumed": lambda parts: replace(parts, resume=Resume(STEPS // 2)),
    "warm-restarts": warm_restarts,
    "warm-up": warm_up,
    "small-batch": small_batch,
    "fine-tuned": fine_tuned,
    "adam": adam,
    "accumulated": accumulated,
    "harder-views": harder_views,
    "noisy-clipped": noisy_clipped,
    "watched": watched,
}
OWN: dict[str, mistakes.Mistake] = {
    "rate-too-high": partial(mistakes.rate_too_high, by=200.0),
    "component-scale": partial(mistakes.component_scale, name="crowding", by=1e4),
    "component-detached": partial(mistakes.component_detached, name="crowding"),
    "growing-weights": partial(mistakes.growing_weights, by=-0.03),
    "log-of-zero": partial(mistakes.log_of_zero, temperature=0.01),
}
SICK = (
    *("rate-too-high", "rate-too-low", "frozen-body", "dead-relus", "component-scale", "component-detached"),
    *("same-seed-workers", "growing-weights", "log-of-zero", "resume-old-weights", "tiny-clip"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

"""How far is each pixel? Balls on a tiled floor before a wall, rendered here with one lamp; 24 x 24 grey pixels.

A small encoder and decoder with a skip tell log-depth: a scale-invariant error over the pixels that the sensor
answered for, the steps of log-depth to the neighbours, an edge-aware smoothness. AdamW, cosine after a warm-up,
clipping. A clock forgives the scene's common scale more and more. What counts is the mean relative error of metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, linear
from benchmarks.diagnosis.loop import planned as planned_by
from benchmarks.diagnosis.schooling import school

HELD_OUT = False
STEPS = 120
TRAINING, HELD, BATCH = 1440, 96, 16
SIDE, FOCAL, HORIZON, HEIGHT = 24, 26.0, 6.0, 1.5  # pixels but the last: metres of the camera above the floor
RATE, WARMUP, CLIP = 2e-2, 8, 2.0
FORGIVEN = 0.5  # the share of the squared mean error of a scene that is taken off the error at last
WEIGHTS = {"silog": 1.0, "steps": 1.0, "smooth": 0.05}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "clocks"})

HEALTHY = (
    *("plain", "resumed", "warm-restarts", "batch-2", "every-tenth", "loss-only", "fine-tuning", "frozen-encoder"),
    *("bf16", "steps-late", "constant-rate", "sparse-truth"),
)
SICK = (
    *("labels-break", "all-masked", "root-of-zero", "same-seed-workers", "stage-stuck", "too-little-data"),
    "rate-too-high",
)
TWINS = {"stage-stuck": "steps-late"}

Kept = Callable[[Batch], Tensor]


@cache
def scenes() -> Batch:
    """Images of zero mean and unit spread, depths along the axis (metres), and where the sensor answered."""
    random, count = np.random.default_rng(61), TRAINING + HELD
    across, down = np.meshgrid(np.arange(SIDE) + 0.5 - SIDE / 2, np.arange(SIDE) + 0.5 - HORIZON)
    rays = np.stack([across / FOCAL, down / FOCAL, np.ones((SIDE, SIDE))], -1)[None]
    lamp = random.normal(0.0, 0.6, (count, 3)) + np.array([0.0, -1.5, -1.0])
    lamp /= np.linalg.norm(lamp, axis=1, keepdims=True)
    wall = random.uniform(4.0, 10.0, (count, 1, 1))
    floor = HEIGHT / np.maximum(rays[..., 1], 1e-6)
    depth = np.minimum(wall, floor)
    on_floor = floor < wall
    places = depth[..., None] * rays
    tiles = 0.5 + 0.25 * ((np.floor(places[..., 0]) + np.floor(places[..., 2])) % 2)
    lit = np.where(on_floor, -lamp[:, 1, None, None], np.maximum(-lamp[:, 2], 0.0)[:, None, None])
    image = np.where(on_floor, tiles, random.uniform(0.4, 0.9, (count, 1, 1))) * (0.25 + 0.75 * lit)
    for _ in range(3):  # balls, resting on the floor
        radius, away = random.uniform(0.35, 0.9, count), random.uniform(2.6, 7.0, count)
        centre = np.stack([random.uniform(-0.4, 0.4, count) * away, HEIGHT - radius, away], 1)[:, None, None]
        along, square = (rays * centre).sum(-1), (rays**2).sum(-1)
        inner = along**2 - square * ((centre**2).sum(-1) - radius[:, None, None] ** 2)
        ball = (along - np.sqrt(np.maximum(inner, 0.0))) / square
        seen = (inner > 0) & (ball < depth)
        normal = (ball[..., None] * rays - centre) / radius[:, None, None, None]
        shade = np.maximum((normal * lamp[:, None, None]).sum(-1), 0.0)
        image = np.where(seen, random.uniform(0.5, 1.0, (count, 1, 1)) * (0.25 + 0.75 * shade), image)
        depth = np.where(seen, ball, depth)
    image = image + 0.02 * random.standard_normal(image.shape)
    found = {"x": ((image - image.mean()) / image.std())[:, None], "y": depth}
    found["valid"] = (random.random(image.shape) < 0.9) & (image < 0.85)  # no answer from what shines
    return {name: torch.from_numpy(values.astype(np.float32)) for name, values in found.items()}


def rendered(part: slice = slice(TRAINING)) -> Batch:
    return {name: values[part] for name, values in scenes().items()}


def block(ins: int, outs: int, stride: int = 1) -> nn.Sequential:
    """A convolution whose weights begin for the ReLU that follows its normalisation."""
    layer = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return nn.Sequential(layer, nn.GroupNorm(4, outs), nn.ReLU())


class Depth(nn.Module):
    """Log-depth of each pixel; the rows' places are given along, since the floor's depth hangs on them."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([block(2, width, 2), block(width, 2 * width, 2), block(2 * width, 2 * width)])
        self.decoder = nn.ModuleList([block(5 * width, width), block(width, width)])
        self.head = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.constant_(self.head.bias, 1.5)  # type: ignore[arg-type]
        self.told = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.linspace(-1.5, 1.5, SIDE)[:, None].expand(len(x), 1, SIDE, SIDE)
        fine = self.encoder[0](torch.cat([x, rows], 1))
        coarse = self.encoder[2](self.encoder[1](fine))
        whole = coarse.mean((2, 3), keepdim=True).expand(-1, -1, SIDE // 2, SIDE // 2)  # how far the wall is
        raised = self.decoder[0](torch.cat([functional.interpolate(coarse, scale_factor=2.0), fine, whole], 1))
        self.told = self.head(self.decoder[1](functional.interpolate(raised, scale_factor=2.0)))[:, 0].float()
        return self.told


def neighbours(values: Tensor, apart: int) -> list[Tensor]:
    """The steps to the right and downwards, over so many pixels."""
    return [values[..., apart:] - values[..., :-apart], values[..., apart:, :] - values[..., :-apart, :]]


def answered(batch: Batch) -> Tensor:
    return batch["valid"]


def silog(off: Tensor, kept: Tensor, forgiven: float) -> Tensor:
    """The root of the mean squared error of log-depth, less a share of the squared mean error of each image."""
    count = kept.sum((1, 2)).clamp(min=1)
    mean, square = (off * kept).sum((1, 2)) / count, (off**2 * kept).sum((1, 2)) / count
    return (square - forgiven * mean**2).mean().add(1e-6).sqrt()


def stepped(told: Tensor, asked: Tensor, kept: Tensor) -> Tensor:
    """How far the steps of log-depth are off, over one pixel and over two, where both ends are known."""
    total = told.new_zeros(())
    for apart in (1, 2):
        known = [kept[..., apart:] * kept[..., :-apart], kept[..., apart:, :] * kept[..., :-apart, :]]
        pairs = zip(neighbours(told, apart), neighbours(asked, apart), known, strict=True)
        total = total + sum(((a - b).abs() * both).sum() / both.sum().clamp(min=1) for a, b, both in pairs)
    return total / 4


def smoothness(told: Tensor, image: Tensor) -> Tensor:
    """The steps of inverse depth, in units of its mean, where the image has no edge."""
    inverse = torch.exp(-told)
    inverse = inverse / inverse.mean((1, 2), keepdim=True)
    pairs = zip(neighbours(inverse, 1), neighbours(image[:, 0], 1), strict=True)
    return torch.stack([(step.abs() * torch.exp(-edge.abs())).mean() for step, edge in pairs]).sum()


def losses(model: nn.Module, batch: Batch, now: dict[str, float], kept: Kept = answered) -> Components:
    told, asked, known = model(batch["x"]), batch["y"].log(), kept(batch)
    return {
        "silog": silog(told - asked, known, now["forgiven"]),
        "steps": stepped(told, asked, known),
        "smooth": smoothness(told, batch["x"]),
    }


def measured(now: dict[str, float], weights: dict[str, float]) -> Callable[[nn.Module], Channels]:
    """The loss on other scenes, the mean relative error, and the share of pixels within a quarter of the truth."""

    def measure(model: nn.Module) -> Channels:
        batch = rendered(slice(TRAINING, None))
        raw = {name: value.item() for name, value in losses(model, batch, now).items()}
        depth, truth = model(batch["x"]).exp(), batch["y"]
        near = torch.maximum(depth / truth, truth / depth) < 1.25
        metrics = {"abs_rel": ((depth - truth).abs() / truth).mean().item(), "delta1": near.float().mean().item()}
        return {"loss": sum(weights[name] * value for name, value in raw.items()), **metrics}

    return measure


def masked(kept: Kept) -> Callable[[int, Batch], Channels]:
    """The share of pixels that do not count."""
    return lambda step, batch: {"data/masked/silog": 1.0 - kept(batch).mean().item()}  # noqa: ARG005


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now, over = Depth(), {"forgiven": 0.0}, STEPS // 2
    parts = Parts(
        model=model,
        optimizer=adamw(model),
        batches=shuffled(rendered(), BATCH, seed),
        losses=partial(losses, now=now),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        clocks={"focus": lambda applied: applied},
        scheduled={"forgiven": ("focus", linear(0.0, FORGIVEN, over))},
        now=now,
        at=lambda model: model.told,
        evaluation=Evaluation(10, measured(now, WEIGHTS)),
        extras=[masked(answered)],
        header={
            "config": {"batch_size": BATCH, "forgiven": FORGIVEN, "weights": WEIGHTS, "clip": CLIP},
            "components": {
                "silog": {"unit": "log m", "role": "task"},
                "steps": {"unit": "log m", "role": "task"},
                "smooth": {"unit": "", "role": "regulariser"},
            },
            "schedules": {"forgiven": declared("linear", 0.0, FORGIVEN, over, clock="focus")},
            "clocks": ["focus"],
            "gradient_at": "told",
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
        body=lambda model: [*model.encoder.parameters(), *model.decoder.parameters()],
    )
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW([{"params": free, "name": "all"}], lr=RATE, weight_decay=1e-3)


def planned(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, and so the header says."""
    return planned_by(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


@cache
def schooled(seed: int, steps: int = 260) -> dict[str, Tensor]:
    """The weights of a network that learned before the record begins."""
    torch.manual_seed(seed)
    model, batches = Depth(), shuffled(rendered(), BATCH, seed + 50)

    def loss(number: int) -> Tensor:
        raw = losses(model, batches(number), {"forgiven": FORGIVEN * min(2 * number / steps, 1.0)})
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return school(model, adamw(model), loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, peak: float, size: int = BATCH) -> Parts:
    """A schooled network goes on at a lower rate; the common scale is forgiven from the first step on."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.now["forgiven"], parts.scheduled, parts.clocks = FORGIVEN, {}, {}
    parts.header["config"]["batch_size"] = size
    del parts.header["schedules"]["forgiven"], parts.header["clocks"]
    parts.batches, parts.batches_per_epoch = shuffled(rendered(), size, parts.seed), TRAINING // size
    return planned(parts, peak)


def frozen_encoder(parts: Parts) -> Parts:
    """A schooled encoder stays as it is, by intent; the decoder is new."""
    taught = {name: value for name, value in schooled(parts.seed).items() if name.startswith("encoder")}
    parts.model.load_state_dict(taught, strict=False)
    for parameter in parts.model.encoder.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    parts.optimizer = adamw(parts.model)
    parts.header["config"]["freeze"] = ["encoder"]
    return planned(parts)


def steps_late(parts: Parts) -> Parts:
    """The steps to the neighbours count from the second stage on."""
    change, weights = int(0.4 * STEPS), [WEIGHTS | {"steps": 0.0}, dict(WEIGHTS)]
    named = zip((0, change), ("coarse", "edges"), weights, strict=True)
    stages = [{"start": start, "name": name, "weights": one} for start, name, one in named]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "coarse-to-edges", "stages": stages}
    parts.weights = lambda applied: dict(weights[applied >= change])
    parts.extras = [*parts.extras, lambda step, batch: {"stage": int(step > change)}]  # noqa: ARG005
    return parts


def sparse_truth(parts: Parts) -> Parts:
    """The depths come from a lidar with few beams: one pixel of seven has one, along every third row."""
    data, random = rendered(), torch.Generator().manual_seed(3)
    beams = (torch.arange(SIDE) % 3 == 0)[:, None] & (torch.rand(data["valid"].shape, generator=random) < 0.5)
    parts.batches = shuffled(data | {"valid": data["valid"] * beams}, BATCH, parts.seed)
    return parts


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(int(0.6 * STEPS), lost=min(8, STEPS // 5))),
    "warm-restarts": lambda parts: planned(parts, restarts=2, warmup=0),
    "batch-2": lambda parts: continued(parts, 3e-4, size=2),
    "every-tenth": lambda parts: replace(parts, every=10),
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, extras=[]),
    "fine-tuning": lambda parts: continued(parts, 3e-4),
    "frozen-encoder": frozen_encoder,
    "bf16": lambda parts: replace(
        parts,
        autocast=torch.bfloat16,
        header=parts.header | {"dtypes": {"declared": "bfloat16", "observed": "bfloat16"}},
    ),
    "steps-late": steps_late,
    "constant-rate": lambda parts: planned(parts, 8e-3, kind="constant", end=8e-3),
    "sparse-truth": sparse_truth,
}


def all_masked(parts: Parts) -> int:
    """What the sensor can measure ends at two metres, as in the table-top set: hardly a pixel is as near."""

    near: Kept = lambda batch: batch["valid"] * (batch["y"] < 2.0)  # noqa: E731
    parts.losses, parts.extras = partial(losses, now=parts.now, kept=near), [masked(near)]
    return 1


def root_of_zero(parts: Parts) -> int:
    """The root is taken image by image, and the sensor answered nothing for one of them."""
    at, plain, batches = int(0.4 * parts.steps), parts.losses, parts.batches

    def emptied(number: int) -> Batch:
        batch = batches(number)
        return (
            batch | {"valid": batch["valid"] * (torch.arange(BATCH) > 0)[:, None, None]} if number == at - 1 else batch
        )

    def each(model: nn.Module, batch: Batch) -> Components:
        raw, kept = dict(plain(model, batch)), batch["valid"]
        off, count = model.told - batch["y"].log(), kept.sum((1, 2)).clamp(min=1)  # type: ignore[operator]
        mean, square = (off * kept).sum((1, 2)) / count, (off**2 * kept).sum((1, 2)) / count
        raw["silog"] = (square - parts.now["forgiven"] * mean**2).sqrt().mean()
        return raw

    parts.losses, parts.batches = each, emptied
    return at


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, before the loop."""
    first, start = parts.header["curriculum"]["stages"][0], parts.header["curriculum"]["stages"][1]["start"]
    parts.weights = lambda applied: dict(first["weights"])  # noqa: ARG005
    parts.extras = [masked(answered), lambda step, batch: {"stage": 0}]  # noqa: ARG005
    return int(start) + 1


def same_seed_workers(parts: Parts) -> int:
    parts.records = parts.records | {"fingerprint"}
    return mistakes.same_seed_workers(parts)


def labels_break(parts: Parts) -> int:
    """The second shard's depth maps are written in another order than its images."""
    first, plain, random = parts.steps // 2 + 1, parts.batches, torch.Generator().manual_seed(7)

    def batches(number: int) -> Batch:
        batch = plain(number)
        if number < first - 1:
            return batch
        order = torch.randperm(BATCH, generator=random)
        return batch | {name: batch[name][order] for name in ("y", "valid")}

    parts.batches = batches
    return first


OWN: dict[str, mistakes.Mistake] = {
    "labels-break": labels_break,
    "all-masked": all_masked,
    "root-of-zero": root_of_zero,
    "stage-stuck": stage_stuck,
    "same-seed-workers": same_seed_workers,
    "too-little-data": partial(mistakes.too_little_data, batches=1),
    "rate-too-high": partial(mistakes.rate_too_high, by=100.0),
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

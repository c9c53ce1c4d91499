"""Where are the joints of a stick figure? Seven heat-maps, which of the joints can be seen, and how long the bones are.

Figures are drawn here; a dark card hides a part of each. Three convolutions and two heads, Adam, a cosine after a
warm-up, clipping. Heat-maps are asked to be wide first and narrow later, on a clock; the lengths come from the
heat-maps' centres, in cells. What counts is the share of seen joints that are found within three pixels.
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
TRAINING, HELD, BATCH = 1440, 120, 16
SIDE, CELL = 24, 2  # pixels
GRID = SIDE // CELL
JOINTS = ("head", "neck", "left hand", "right hand", "hip", "left foot", "right foot")
BONES = ((0, 1), (1, 2), (1, 3), (1, 4), (4, 5), (4, 6))
RATE, WARMUP, CLIP = 8e-3, 8, 3.0
WIDE, NARROW = 2.0, 0.8
"""The spread of the heat-maps that are asked for, in cells, at first and at last."""
WEIGHTS = {"heat": 1.0, "visible": 1.0, "bone": 0.2}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "clocks"})

HEALTHY = (
    *("plain", "resumed", "warm-restarts", "batch-2", "every-tenth", "loss-only", "fine-tuning", "frozen-trunk"),
    *("bf16", "hidden-late", "momentum", "bones-ramp", "swapped-sides"),
)
SICK = (
    *("component-detached", "component-sign", "component-scale", "wrong-formula", "stuck-counter", "dead-relus"),
    *("resume-old-weights", "too-little-data", "labels-break", "rate-too-high", "nan-filtered-log"),
)
TWINS = {"resume-old-weights": "resumed"}


@cache
def figures() -> Batch:
    """Images with and without the card, and the joints' places (pixels) and whether they are seen.

    The right limbs are drawn fainter than the left ones.
    """
    random, count = np.random.default_rng(88), TRAINING + HELD
    size, lean = random.uniform(0.75, 1.15, count), random.uniform(-0.3, 0.3, count)

    def away(start: np.ndarray, length: float, angle: np.ndarray) -> np.ndarray:
        return start + (length * size)[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)

    neck = np.stack([random.uniform(9, 15, count), random.uniform(6, 9, count)], 1)
    hip = away(neck, 6.0, lean)
    turn = random.uniform(0.3, 1.9, (count, 2)), random.uniform(0.1, 0.8, (count, 2))
    hands = [away(neck, 5.5, lean + side * turn[0][:, at]) for at, side in enumerate((-1, 1))]
    feet = [away(hip, 7.0, lean + side * turn[1][:, at]) for at, side in enumerate((-1, 1))]
    joints = np.stack([away(neck, 3.0, lean + np.pi), neck, *hands, hip, *feet], 1).clip(0.5, SIDE - 0.5)
    across, down = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5)
    places = np.stack([across, down], -1).reshape(1, -1, 2)
    drawn = np.exp(-((np.linalg.norm(places - joints[:, :1], axis=2) / 1.4) ** 2))
    for first, second in BONES:
        start, along = joints[:, first, None], (joints[:, second] - joints[:, first])[:, None]
        share = (((places - start) * along).sum(2) / (along**2).sum(2)).clip(0, 1)[..., None]
        gap = np.linalg.norm(places - start - share * along, axis=2)
        drawn = np.maximum(drawn, (0.55 if second in (3, 6) else 1.0) * np.exp(-((gap / 0.8) ** 2)))
    corner, noise = random.uniform(0, SIDE - 8, (count, 1, 2)), 0.08 * random.standard_normal(drawn.shape)
    covered = ((places > corner) & (places < corner + 8)).all(2)
    hidden = ((joints > corner) & (joints < corner + 8)).all(2)
    images = {"open": drawn, "x": np.where(covered, -0.8, drawn)}
    found = {name: ((values + noise - 0.15) / 0.3).reshape(-1, 1, SIDE, SIDE) for name, values in images.items()}
    found |= {"y": joints, "seen": ~hidden}
    return {name: torch.from_numpy(values.astype(np.float32)) for name, values in found.items()}


def training() -> Batch:
    return {name: values[:TRAINING] for name, values in figures().items()}


def uncovered(batch: Batch) -> Batch:
    """The same figures without the card."""
    return batch | {"x": batch["open"], "seen": torch.ones_like(batch["seen"])}


class Pose(nn.Module):
    """A heat-map for each joint, and whether it is seen; `features` are those of the last call."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        first, second = nn.Conv2d(1, width, 5, CELL, 2), nn.Conv2d(width, 2 * width, 3, padding=2, dilation=2)
        third = nn.Conv2d(2 * width, 2 * width, 3, padding=2, dilation=2)
        norms = [nn.GroupNorm(4, size) for size in (width, 2 * width)]
        self.trunk = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], nn.ReLU(), third, nn.ReLU())
        self.heads = nn.ModuleDict(
            {
                "heat": nn.Conv2d(2 * width, len(JOINTS), 3, padding=1),
                "visible": nn.Linear(2 * width, 1),
            }
        )
        for layer in (first, second, third):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.features = torch.zeros(())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the cells [images, joints, cells]; logits of being seen, by what is found there."""
        self.features = self.trunk(x)
        told = self.heads["heat"](self.features).float().flatten(2).log_softmax(-1)
        there = told.detach().exp() @ self.features.float().flatten(2).transpose(1, 2)
        return told, self.heads["visible"](there)[..., 0].float()


@cache
def cells() -> Tensor:
    """The centre of each cell, in cells."""
    down, across = torch.meshgrid(torch.arange(GRID) + 0.5, torch.arange(GRID) + 0.5, indexing="ij")
    return torch.stack([across, down], -1).reshape(-1, 2)


def lengths(joints: Tensor) -> Tensor:
    first, second = (torch.tensor([bone[end] for bone in BONES]) for end in (0, 1))
    return ((joints[:, first] - joints[:, second]).square().sum(-1) + 1e-4).sqrt()


def losses(
    model: nn.Module,
    batch: Batch,
    now: dict[str, float],
    real: Callable[[Tensor], Tensor] = lambda joints: joints / CELL,
) -> Components:
    """The heat-maps' divergence from what is asked for, hidden joints too; being seen; the bones' lengths."""
    told, visible = model(batch["x"])
    joints, seen = batch["y"] / CELL, batch["seen"]
    apart = (cells() - joints[:, :, None]).square().sum(-1)
    asked = torch.softmax(-apart / (2 * now["sigma"] ** 2), -1)
    each = functional.kl_div(told, asked, reduction="none").sum(-1)
    found = lengths(told.exp() @ cells())
    return {
        "heat": each.mean(),
        "visible": functional.binary_cross_entropy_with_logits(visible, seen),
        "bone": functional.smooth_l1_loss(found, lengths(real(batch["y"]))),
    }


def measured(now: dict[str, float], weights: dict[str, float]) -> Callable[[nn.Module], Channels]:
    """The loss by the given weights on other figures, the share of joints found, and of those rightly called seen."""

    def measure(model: nn.Module) -> Channels:
        batch = {name: values[TRAINING:] for name, values in figures().items()}
        raw = {name: value.item() for name, value in losses(model, batch, now).items()}
        told, visible = model(batch["x"])
        error = (cells()[told.argmax(-1)] * CELL - batch["y"]).norm(dim=-1)[batch["seen"] > 0]
        right = (visible > 0) == (batch["seen"] > 0)
        total = sum(weights[name] * value for name, value in raw.items())
        metrics = {"pck": (error < 3.0).float().mean().item(), "visible_accuracy": right.float().mean().item()}
        return {"loss": total, **{f"loss/{name}": value for name, value in raw.items()}, **metrics}

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now = Pose(), {"sigma": WIDE}
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam(grouped(model), lr=RATE),
        batches=shuffled(training(), BATCH, seed),
        losses=partial(losses, now=now),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        clocks={"focus": lambda applied: applied},
        scheduled={"sigma": ("focus", linear(WIDE, NARROW, STEPS))},
        now=now,
        at=lambda model: model.features,
        evaluation=Evaluation(10, measured(now, WEIGHTS)),
        header={
            "config": {"batch_size": BATCH, "sigma": [WIDE, NARROW], "weights": dict(WEIGHTS), "clip": CLIP},
            "components": {
                "heat": {"unit": "nat", "role": "task"},
                "visible": {"unit": "nat", "role": "task"},
                "bone": {"unit": "cell", "role": "regulariser"},
            },
            "schedules": {"sigma": declared("linear", WIDE, NARROW, STEPS, clock="focus")},
            "clocks": ["focus"],
            "gradient_at": "features",
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
        body=lambda model: list(model.trunk.parameters()),
    )
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def grouped(model: Pose) -> list[dict[str, Any]]:
    """The trunk and the heads, without what is frozen."""
    parts = {name: [p for p in part.parameters() if p.requires_grad] for name, part in model.named_children()}
    return [{"params": free, "name": name} for name, free in parts.items() if free]


def planned(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, and so the header says."""
    return planned_by(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


@cache
def schooled(seed: int, steps: int = 200) -> dict[str, Tensor]:
    """The weights of a network that learned before the record begins."""
    torch.manual_seed(seed)
    model, batches = Pose(), shuffled(training(), BATCH, seed + 50)
    adam = torch.optim.Adam(model.parameters(), lr=RATE)

    def loss(number: int) -> Tensor:
        raw = losses(model, batches(number), {"sigma": linear(WIDE, NARROW, steps)(number)})
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return school(model, adam, loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, peak: float, size: int = BATCH) -> Parts:
    """A schooled network goes on at a lower rate, with narrow heat-maps from the first step on."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.now["sigma"], parts.scheduled, parts.clocks = NARROW, {}, {}
    parts.header["config"] |= {"sigma": NARROW, "batch_size": size}
    del parts.header["schedules"]["sigma"], parts.header["clocks"]
    parts.batches, parts.batches_per_epoch = shuffled(training(), size, parts.seed), TRAINING // size
    return planned(parts, peak)


def frozen_trunk(parts: Parts) -> Parts:
    """A schooled trunk stays as it is, by intent; the heads are new."""
    taught = {name: value for name, value in schooled(parts.seed).items() if name.startswith("trunk")}
    parts.model.load_state_dict(taught, strict=False)
    for parameter in parts.model.trunk.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    parts.optimizer = torch.optim.Adam(grouped(parts.model), lr=RATE)  # type: ignore[arg-type]
    parts.header["config"]["freeze"] = ["trunk"]
    parts.header["schedules"].pop("lr/trunk")
    return planned(replace(parts, records=RECORDS - {"shares"}))


def hidden_late(parts: Parts) -> Parts:
    """The card comes with the second stage, and only then it is asked what is seen."""
    change, plain = int(0.4 * STEPS), parts.batches
    weights = [WEIGHTS | {"visible": 0.0}, dict(WEIGHTS)]
    named = zip((0, change), ("open", "covered"), weights, strict=True)
    stages = [{"start": start, "name": name, "weights": one} for start, name, one in named]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "cover-late", "stages": stages}
    parts.weights = lambda applied: dict(weights[applied >= change])
    parts.extras = [lambda step, batch: {"stage": int(step > change)}]  # noqa: ARG005
    parts.batches = lambda number: plain(number) if number >= change else uncovered(plain(number))
    return parts


def bones_ramp(parts: Parts) -> Parts:
    """The weight of the lengths rises over half of the run, as is declared."""
    rising = linear(0.0, WEIGHTS["bone"], STEPS // 2)
    parts.header["schedules"]["weight/bone"] = declared("linear", 0.0, WEIGHTS["bone"], STEPS // 2)
    return replace(parts, weights=lambda applied: WEIGHTS | {"bone": rising(applied)})


def swapped_sides(parts: Parts) -> Parts:
    """In one figure of twenty the annotator took left for right, for good."""
    data, random = training(), torch.Generator().manual_seed(3)
    wrong = torch.rand(TRAINING, generator=random) < 0.05
    turned = torch.where(wrong[:, None, None], data["y"][:, [0, 1, 3, 2, 4, 6, 5]], data["y"])
    return replace(parts, batches=shuffled(data | {"y": turned}, BATCH, parts.seed))


def momentum(parts: Parts) -> Parts:
    parts.optimizer = torch.optim.SGD(grouped(parts.model), lr=0.15, momentum=0.9)  # type: ignore[arg-type]
    parts.header["config"]["optimizer"] = "sgd"
    return planned(parts, 0.15)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(int(0.6 * STEPS), lost=min(8, STEPS // 5))),
    "warm-restarts": lambda parts: planned(parts, restarts=2, warmup=0),
    "batch-2": lambda parts: continued(parts, 4e-4, size=2),
    "every-tenth": lambda parts: replace(parts, every=10),
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}),
    "fine-tuning": lambda parts: continued(parts, 3e-4),
    "frozen-trunk": frozen_trunk,
    "bf16": lambda parts: replace(
        parts,
        autocast=torch.bfloat16,
        header=parts.header | {"dtypes": {"declared": "bfloat16", "observed": "bfloat16"}},
    ),
    "hidden-late": hidden_late,
    "momentum": momentum,
    "bones-ramp": bones_ramp,
    "swapped-sides": swapped_sides,
}


def wrong_formula(parts: Parts) -> int:
    """The lengths are wanted in pixels and found in cells: at the truth itself each is half of what is asked."""
    parts.losses = partial(losses, now=parts.now, real=lambda joints: joints)
    weighted_bone = WEIGHTS | {"bone": 1.0}
    parts.header["config"]["weights"] = weighted_bone
    parts.weights = lambda applied: dict(weighted_bone)  # noqa: ARG005
    return 1


def nan_filtered_log(parts: Parts) -> int:
    parts.records = parts.records - {"shares"}
    return mistakes.nan_filtered_log(parts)


OWN: dict[str, mistakes.Mistake] = {
    "component-detached": partial(mistakes.component_detached, name="visible"),
    "component-sign": partial(mistakes.component_sign, name="visible", weight=-0.5),
    "component-scale": partial(mistakes.component_scale, name="bone", by=1e4),
    "wrong-formula": wrong_formula,
    "rate-too-high": partial(mistakes.rate_too_high, by=300.0),
    "too-little-data": partial(mistakes.too_little_data, batches=1),
    "nan-filtered-log": nan_filtered_log,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

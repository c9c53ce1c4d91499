"""What is this, and which of its points belong to which part? Clouds of 64 points of made furniture and other things.

A small PointNet: a network turns each cloud to where it is easiest to read, layers see each point alone, the largest of
each feature tells the shape, and with a point's own features its part. A third term keeps the turn near a rotation.
Clouds are rotated about the vertical and jittered; some shapes are rarer than others. AdamW, warm-up, cosine, clipping.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
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
SHAPES = {"table": 0.34, "chair": 0.28, "lamp": 0.18, "mug": 0.12, "rocket": 0.08}
PARTS, POINTS = 13, 64
TRAINING, HELD, BATCH = 1200, 200, 24
RATE, WARMUP, CLIP, DROPOUT, JITTER, TILT = 6e-3, 10, 8.0, 0.3, 0.02, 0.8
WEIGHTS = {"shape": 1.0, "part": 1.0, "turn": 0.1}
RECORDS = frozenset({"components", "norms", "optimizer", "bad"})

HEALTHY = (
    *("plain", "resumed", "per-epoch", "loss-only", "fine-tuning", "batch-4", "parts-late", "tilted-late"),
    *("uncertainty", "frozen-points", "sgd", "warm-restarts"),
)
SICK = (
    *("scheduler-per-epoch", "tiny-clip", "component-scale", "component-untracked", "bad-sample", "root-of-zero"),
    *("rare-class", "labels-shuffled", "dropout-in-evaluation", "wrong-weights", "resume-restarts-schedule"),
)
TWINS = {"tiny-clip": "sgd", "wrong-weights": "parts-late", "resume-restarts-schedule": "resumed"}

Random, Losses = np.random.Generator, Callable[[nn.Module, Batch], Components]


def box(random: Random, count: int, centre: tuple[float, ...], size: tuple[float, ...]) -> np.ndarray:
    """Points in a box."""
    return np.array(centre) + (random.random((count, 3)) - 0.5) * np.array(size)


def cone(random: Random, count: int, low: float, high: float, wide: float, narrow: float) -> np.ndarray:
    """Points of the mantle of an upright cone, wide below and narrow above; a cylinder if both are alike."""
    up, angle = random.random(count), random.random(count) * 2 * np.pi
    radius = wide + (narrow - wide) * up
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), low + (high - low) * up], 1)


def built(random: Random, shape: int) -> list[np.ndarray]:
    """The parts of one thing, each with its share of the points."""
    wide, deep, tall, thin = random.uniform(0.8, 1.4), random.uniform(0.7, 1.1), random.uniform(0.6, 1.3), 0.06
    corners = np.array([[x, y] for x in (-wide, wide) for y in (-deep, deep)]) * 0.45
    legs = np.concatenate([box(random, 6, (x, y, -tall / 2), (thin, thin, tall)) for x, y in corners])
    if shape == 0:
        return [box(random, 40, (0, 0, 0), (wide, deep, thin)), legs]
    if shape == 1:
        back = box(random, 20, (0, deep / 2, tall / 2), (wide, thin, tall))
        return [box(random, 20, (0, 0, 0), (wide, deep, thin)), back, legs]
    if shape == 2:
        foot, pole = cone(random, 14, 0.0, 0.05, 0.4 * deep, 0.1), cone(random, 20, 0.05, tall, 0.03, 0.03)
        return [foot, pole, cone(random, 30, tall, tall + 0.4, 0.5 * wide, 0.2)]
    if shape == 3:
        turn, tube = random.uniform(-0.5, 0.5, 16) * np.pi, random.normal(0, 0.02, (16, 3))
        ring = np.stack([0.45 + 0.25 * np.cos(turn), 0 * turn, tall / 2 + 0.3 * tall * np.sin(turn)], 1)
        return [cone(random, 48, 0.0, tall, 0.45, 0.45 * deep), ring + tube]
    fins = np.concatenate(
        [box(random, 6, (0.3 * x, 0.3 * y, 0.15), (0.25, 0.25, 0.3)) for x, y in np.sign(corners[:2])]
    )
    return [cone(random, 34, 0.0, 1.5 * tall, 0.2, 0.2), cone(random, 18, 1.5 * tall, 1.5 * tall + 0.4, 0.2, 0.0), fins]


@cache
def clouds() -> tuple[Batch, Batch]:
    """To learn from, and held out: points `x` in the unit ball, the shape `y`, and the part of each point."""
    random, first = np.random.default_rng(41), (0, 2, 5, 8, 10)
    made = []
    for _ in range(TRAINING + HELD):
        shape = random.choice(len(SHAPES), p=list(SHAPES.values()))
        pieces, order = built(random, shape), random.permutation(POINTS)
        points = np.concatenate(pieces) - np.concatenate(pieces).mean(0)
        label = np.repeat(first[shape] + np.arange(len(pieces)), [len(piece) for piece in pieces])
        made.append(((points / np.linalg.norm(points, axis=1).max())[order], shape, label[order]))
    x, y, part = (torch.tensor(np.array(one)) for one in zip(*made, strict=True))
    whole = {"x": x.float(), "y": y, "part": part}
    return tuple({name: one[cut] for name, one in whole.items()} for cut in (slice(TRAINING), slice(TRAINING, None)))


def augmented(plain: Callable[[int], Batch], seed: int, tilt: Callable[[float], float] | None = None) -> Any:
    """Batches whose clouds are turned about the vertical, tilted by up to so much if it is asked for, and jittered."""

    def batches(number: int) -> Batch:
        random, batch = torch.Generator().manual_seed(10_000 * seed + number), plain(number)
        x = batch["x"] @ turned(2 * math.pi * torch.rand(len(batch["x"]), generator=random), 0, 1)
        if tilt and tilt(number):
            x = x @ turned(tilt(number) * (2 * torch.rand(len(x), generator=random) - 1), 1, 2)
        return batch | {"x": x + JITTER * torch.randn(x.shape, generator=random)}

    return batches


def turned(angle: Tensor, one: int, other: int) -> Tensor:
    """Rotations in the plane of two axes."""
    matrix = torch.eye(3).repeat(len(angle), 1, 1)
    matrix[:, one, one] = matrix[:, other, other] = angle.cos()
    matrix[:, one, other] = angle.sin()
    matrix[:, other, one] = -angle.sin()
    return matrix


def each(*widths: int) -> nn.Sequential:
    """Layers that see each point alone."""
    layers = [(nn.Conv1d(*pair, 1, bias=False), nn.BatchNorm1d(pair[1]), nn.ReLU()) for pair in pairwise(widths)]
    return nn.Sequential(*[one for layer in layers for one in layer])


class PointNet(nn.Module):
    """Tells shape and parts; `turn` is the matrix that it has put the clouds through, at first the identity."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        tell = (nn.Linear(2 * width, width), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(width, len(SHAPES)))
        self.layers = nn.ModuleDict({
            "look": each(3, 24, width),
            "turn": nn.Linear(width, 9),
            "near": each(3, width),
            "far": each(width, 2 * width),
            "part": nn.Sequential(each(3 * width, width), nn.Conv1d(width, PARTS, 1)),
            "shape": nn.Sequential(*tell),
        })  # fmt: skip
        nn.init.zeros_(self.layers["turn"].weight)  # type: ignore[arg-type]
        self.layers["turn"].bias.data = torch.eye(3).flatten()  # type: ignore[union-attr]
        self.turn = torch.eye(3)[None]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.turn = self.layers["turn"](self.layers["look"](x.mT).amax(2)).unflatten(1, (3, 3))
        near = self.layers["near"]((x @ self.turn).mT)
        whole = self.layers["far"](near).amax(2)
        known = torch.cat([near, whole[:, :, None].expand(-1, -1, x.shape[1])], 1)
        return self.layers["shape"](whole), self.layers["part"](known)


def losses(model: nn.Module, batch: Batch) -> Components:
    """Cross-entropies of shape and parts, and how far the turn is from a rotation."""
    shape, part = model(batch["x"])
    square = model.turn @ model.turn.mT  # type: ignore[operator, union-attr]
    return {
        "shape": functional.cross_entropy(shape, batch["y"]),
        "part": functional.cross_entropy(part, batch["part"]),
        "turn": ((square - torch.eye(3)) ** 2).sum((1, 2)).mean(),
    }


def weighed(model: nn.Module, batch: Batch) -> Components:
    """Each task by its own uncertainty, which is learned: where that is small its logarithm is below zero."""
    raw, logs = losses(model, batch), model.uncertainty
    tasks = {name: raw[name] * torch.exp(-log) for name, log in zip(("shape", "part"), logs, strict=True)}  # type: ignore
    return {**tasks, "turn": raw["turn"], "uncertainty": logs.sum()}  # type: ignore[operator, union-attr]


def measured(weights: dict[str, float] = WEIGHTS, asked: Losses = losses) -> Callable[[nn.Module], Channels]:
    """The loss on other things, how many shapes are told, the mean of that over shapes, and how many points are."""

    def measure(model: nn.Module) -> Channels:
        batch = clouds()[1]
        raw = {name: value.item() for name, value in asked(model, batch).items()}
        shape, part = model(batch["x"])
        right = (shape.argmax(1) == batch["y"]).float()
        by_shape = [right[batch["y"] == one].mean().item() for one in range(len(SHAPES))]
        metrics = {"accuracy": right.mean().item(), "class_accuracy": sum(by_shape) / len(SHAPES)}
        metrics["part_accuracy"] = (part.argmax(1) == batch["part"]).float().mean().item()
        return {"loss": sum(weights.get(name, 1.0) * value for name, value in raw.items()), **metrics}

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = PointNet()
    parts = Parts(
        model=model,
        optimizer=adamw(model),
        batches=augmented(shuffled(clouds()[0], BATCH, seed), seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        evaluation=Evaluation(10, measured()),
        header={
            "config": {"batch_size": BATCH, "weights": WEIGHTS, "clip": CLIP, "dropout": DROPOUT, "jitter": JITTER},
            "components": {"shape": {"role": "task"}, "part": {"role": "task"}, "turn": {"role": "regulariser"}},
            "classes": counts(clouds()[0]),
            "max_grad_norm": CLIP,
            "schedules": {},
        },
        records=RECORDS,
    )
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def counts(data: Batch) -> dict[str, int]:
    return dict(zip(SHAPES, torch.bincount(data["y"], minlength=len(SHAPES)).tolist(), strict=True))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW([{"params": free, "name": "all"}], lr=RATE, weight_decay=1e-2)


def planned(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, and so the header says."""
    return planned_by(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


def sized(parts: Parts, size: int, data: Batch | None = None) -> Parts:
    """Batches of another size, or of other data."""
    data = data or clouds()[0]
    parts.header["config"]["batch_size"], parts.header["classes"] = size, counts(data)
    parts.batches = augmented(shuffled(data, size, parts.seed), parts.seed)
    parts.batches_per_epoch = len(data["y"]) // size
    return parts


@cache
def schooled(seed: int, steps: int = 240) -> dict[str, Tensor]:
    """The weights of a network that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return school(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, peak: float, size: int = BATCH) -> Parts:
    """A schooled network goes on at a lower rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    return planned(sized(parts, size), peak)


def per_epoch(parts: Parts) -> Parts:
    """A row at the end of each epoch of ten large batches, as a progress bar shows it."""
    parts.steps, parts.every = 140, 10
    return planned(sized(parts, TRAINING // parts.every))


def parts_late(parts: Parts) -> Parts:
    """The shape is learned alone for a third of the run, then the parts too: the loss jumps where they begin."""
    change, weights = STEPS // 3, (WEIGHTS | {"part": 0.0}, dict(WEIGHTS))
    named = zip((0, change), ("shape", "parts"), weights, strict=True)
    stages = [{"start": start, "name": name, "weights": one} for start, name, one in named]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "shape-first", "stages": stages}
    parts.weights = lambda applied: dict(weights[applied >= change])
    parts.extras = [lambda step, batch: {"stage": int(step > change)}]  # noqa: ARG005
    return parts


def tilted_late(parts: Parts) -> Parts:
    """Clouds are tilted more and more, at last by half a right angle: who learned them upright finds that harder."""
    tilt = linear(0.0, TILT, STEPS)
    parts.batches = augmented(shuffled(clouds()[0], BATCH, parts.seed), parts.seed, tilt)
    parts.header["schedules"]["tilt"] = declared("linear", 0.0, TILT, STEPS)
    parts.extras = [lambda step, batch: {"schedule/tilt": tilt(step - 1)}]  # noqa: ARG005
    return parts


def uncertainty(parts: Parts) -> Parts:
    """Two tasks weigh themselves; their uncertainties learn faster than the rest."""
    logs = parts.model.uncertainty = nn.Parameter(torch.zeros(2))
    rest = [parameter for parameter in parts.model.parameters() if parameter is not logs]
    groups = [{"params": rest, "name": "all"}, {"params": [logs], "name": "uncertainty", "weight_decay": 0.0}]
    parts.optimizer = torch.optim.AdamW(groups, lr=RATE, weight_decay=1e-2)
    planned(parts)
    form, quicker = parts.header["schedules"]["lr/all"], 5.0
    parts.optimizer.param_groups[1]["lr"] = quicker * RATE
    parts.header["schedules"]["lr/uncertainty"] = form | {key: quicker * form[key] for key in ("start", "end")}
    parts.header["components"]["uncertainty"] = {"role": "regulariser"}
    parts.losses, parts.evaluation = weighed, Evaluation(10, measured(asked=weighed))
    mistakes.reweigh(parts, lambda applied, weights: {**weights, "uncertainty": 1.0})  # noqa: ARG005
    return parts


def frozen_points(parts: Parts) -> Parts:
    """What turns and sees the points was schooled elsewhere and stays as it is, by intent; the heads are new."""
    trunk = tuple(f"layers.{name}" for name in ("look", "turn", "near", "far"))
    taught = {name: value for name, value in schooled(parts.seed).items() if name.startswith(trunk)}
    parts.model.load_state_dict(taught, strict=False)
    for name in trunk:
        parts.model.get_submodule(name).requires_grad_(False)
    parts.optimizer = adamw(parts.model)
    parts.header["config"]["freeze"] = list(trunk)
    return planned(parts)


def sgd(parts: Parts) -> Parts:
    groups = [{"params": list(parts.model.parameters()), "name": "all"}]
    parts.optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-4, nesterov=True)
    return planned(parts, 0.05)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(int(0.6 * STEPS), lost=min(8, STEPS // 5))),
    "per-epoch": per_epoch,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "fine-tuning": lambda parts: continued(parts, 2e-4),
    "batch-4": lambda parts: continued(parts, 3e-5, size=4),
    "parts-late": parts_late,
    "tilted-late": tilted_late,
    "uncertainty": uncertainty,
    "frozen-points": frozen_points,
    "sgd": sgd,
    "warm-restarts": lambda parts: planned(parts, restarts=2, warmup=0),
}


def bad_sample(parts: Parts) -> int:
    """A scan of one single point: its radius is 0, and every cloud is divided by its radius."""
    at, plain = int(0.5 * parts.steps), parts.batches

    def batches(number: int) -> Batch:
        batch = plain(number)
        scan = batch["x"][:1] * 0.0
        scan = scan / scan.norm(dim=2).amax()
        return batch if number != at - 1 else batch | {"x": torch.cat([scan, batch["x"][1:]])}

    parts.batches = batches
    return at


def root_of_zero(parts: Parts) -> int:
    """The distance from a rotation is not squared; the network begins at the identity, where a root has no slope."""
    plain = parts.losses
    parts.losses = lambda model, batch: (raw := plain(model, batch)) | {"turn": raw["turn"].sqrt()}
    return mistakes.WHEN_BROKEN


def rare_class(parts: Parts) -> int:
    """Nearly all scans of mugs were lost on the way; nothing weighs the few that are left."""
    data = clouds()[0]
    kept = data["y"] != list(SHAPES).index("mug")
    kept[(~kept).nonzero()[:3]] = True
    sized(parts, BATCH, {name: values[kept] for name, values in data.items()})
    return 0


def labels_shuffled(parts: Parts) -> int:
    """Clouds are listed by file name, labels by date."""
    data, order = clouds()[0], torch.randperm(TRAINING, generator=torch.Generator().manual_seed(7))
    sized(parts, BATCH, {"x": data["x"], "y": data["y"][order], "part": data["part"][order]})
    return 1


def wrong_weights(parts: Parts) -> int:
    """An override of the first stage is applied in the second one, too, to a part."""
    start = parts.header["curriculum"]["stages"][1]["start"]
    mistakes.reweigh(parts, lambda applied, weights: weights | {"part": 0.05 * (applied >= start)})
    return int(start) + 1


OWN: dict[str, mistakes.Mistake] = {
    "component-scale": partial(mistakes.component_scale, name="turn", by=1e5),
    "bad-sample": bad_sample,
    "root-of-zero": root_of_zero,
    "rare-class": rare_class,
    "labels-shuffled": labels_shuffled,
    "wrong-weights": wrong_weights,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

"""Is it the same face? Embeddings of drawn faces, 16 x 16 grey pixels, such that images of one person lie together.

A person is ten traits (how far the eyes are apart, how wide the mouth is, where the hair begins); an image adds pose,
light, a smile and noise. A small convolutional net puts it on a sphere. A softmax over the trained persons with a
margin that a clock ramps up, and the squared distance to learnt centres. SGD with momentum, clipping; the rate warms
up and falls linearly. Validation asks for other images of these persons (without a margin), and for the nearest
neighbour among images of persons that were never seen: recall at 1, a sixth in the beginning. Some variants have pairs
and triplets instead of a softmax.
"""

from __future__ import annotations

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
    linear,
    planned,
    taken_up,
)
from benchmarks.diagnosis.schooling import school

HELD_OUT = False
STEPS = 100
PERSONS, STRANGERS, IMAGES, TRAINED, SIDE = 48, 24, 20, 16, 16  # TRAINED of each person's images
BATCH, RATE, WARMUP, CLIP = 32, 0.1, 10, 5.0
SCALE, MARGIN = 12.0, 0.15
WEIGHTS = {"identity": 1.0, "centre": 0.1}
ROLES = {"identity": "task", "centre": "regulariser"}
RECORDS = frozenset({"components", "norms", "optimizer", "clocks"})
TWINS = dict.fromkeys(("dropout-in-evaluation", "failing-checkpoints", "poisoned-weight"), "watched")
TWINS |= {"resume-old-weights": "resumed", "wrong-weights": "centre-late", "missing-zero-grad": "triplets"}


@cache
def faces() -> Tensor:
    """Images by person, of zero mean and unit spread. float32 [persons and strangers, IMAGES, 1, S, S]"""
    chance, people = torch.Generator().manual_seed(31), PERSONS + STRANGERS
    traits = (torch.rand(10, people, 1, generator=chance) * 2 - 1).expand(-1, -1, IMAGES).reshape(10, -1, 1, 1)
    wide, high, apart, level, size, brow, nose, mouth, chin, hair = traits
    roll, zoom, across, down, smile, lamp = 0.1 * torch.randn(6, people * IMAGES, 1, 1, generator=chance)
    along = torch.linspace(-1.2, 1.2, SIDE)
    v, u = torch.meshgrid(along, along, indexing="ij")
    x, y = (1 + zoom) * (u - roll * v) + across, (1 + zoom) * (v + roll * u) + down

    def blob(middle: Tensor | float, height: Tensor | float, width: Tensor | float, length: Tensor | float) -> Tensor:
        return torch.exp(-(((x - middle) / width) ** 2) - ((y - height) / length) ** 2)

    skin = torch.sigmoid(12 * (1 - (x / (0.8 + 0.12 * wide)) ** 2 - (y / (1 + 0.12 * high)) ** 2))
    curls = torch.sigmoid(12 * (0.15 * hair - 0.7 - y))
    dark = 0.5 * blob(0.0, 0.1, 0.07, 0.2 + 0.08 * nose)
    dark = dark + 0.9 * blob(0.0, 0.55 + 0.1 * chin - 2 * smile * x**2, 0.3 + 0.1 * mouth, 0.09)
    for side in (-1, 1):
        eye, above = side * (0.34 + 0.12 * apart), 0.12 * level - 0.25
        dark = dark + blob(eye, above, 0.14 + 0.05 * size, 0.1) + 0.6 * blob(eye, above - 0.3 - 0.1 * brow, 0.2, 0.07)
    images = skin * (1 - 0.8 * curls) * (1 - dark) * (1 + 3 * lamp * x)
    images = (images - images.mean()) / images.std() + 0.2 * torch.randn(images.shape, generator=chance)
    return images.view(people, IMAGES, 1, SIDE, SIDE)


def portraits(images: slice = slice(TRAINED), persons: slice = slice(PERSONS)) -> Batch:
    """These images of these persons, and whose they are."""
    found = faces()[persons, images]
    return {"x": found.flatten(0, 1), "y": torch.arange(len(found)).repeat_interleave(found.shape[1])}


class Embedder(nn.Module):
    """Images in, embeddings of length 1 out; with a head and centres, if it learns from named persons."""

    def __init__(self, width: int = 12, features: int = 32, dropout: float = 0.0, named: bool = True) -> None:
        super().__init__()
        self.net = nn.ModuleDict()
        self.net["trunk"] = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.GroupNorm(4, width), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.GroupNorm(4, 2 * width), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(dropout)),
        )
        flat = 2 * width * (SIDE // 4) ** 2
        self.net["embed"] = nn.Sequential(nn.Linear(flat, features), nn.BatchNorm1d(features, momentum=0.3))
        if named:
            self.net["head"] = nn.Linear(features, PERSONS, bias=False)
            self.net["centres"] = nn.Embedding(PERSONS, features)
            nn.init.normal_(self.net["head"].weight, std=features**-0.5)  # type: ignore[arg-type]
            nn.init.zeros_(self.net["centres"].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.net["embed"](self.net["trunk"](x)), dim=1)


def losses(model: nn.Module, batch: Batch, margin: float) -> Components:
    """A softmax of cosines, the right one less the margin; half the squared distance to the person's centre."""
    z, y = model(batch["x"]), batch["y"]
    cosines = z @ functional.normalize(model.get_parameter("net.head.weight"), dim=1).T
    logits = SCALE * (cosines - margin * functional.one_hot(y, PERSONS))
    return {
        "identity": functional.cross_entropy(logits, y),
        "centre": (z - model.get_parameter("net.centres.weight")[y]).square().sum(1).mean() / 2,
    }


def apart(z: Tensor) -> Tensor:
    """Squared distances of all pairs. float32 [N, N]"""
    return (2 - 2 * z @ z.T).clamp(min=0)


def triplet_loss(model: nn.Module, batch: Batch, margin: float = 0.3) -> Components:
    """Over all triplets of a batch, also those that are right already: near 0 in the end."""
    distances, same = apart(model(batch["x"])), batch["y"][:, None] == batch["y"]
    triplets = (same & ~torch.eye(len(same), dtype=torch.bool))[:, :, None] & ~same[:, None]
    late = functional.relu(distances[:, :, None] - distances[:, None] + margin)
    return {"loss": late[triplets].mean()}


def pair_losses(model: nn.Module, batch: Batch) -> Components:
    """Images of a person close together; all others spread evenly: the logarithm of a mean below 1 is negative."""
    distances, same = apart(model(batch["x"])), batch["y"][:, None] == batch["y"]
    return {"alignment": distances[same].mean(), "uniformity": distances[~same].mul(-2).exp().mean().log()}


def recall(model: nn.Module) -> Channels:
    """The share of strangers' images whose nearest neighbour shows the same stranger."""
    batch = portraits(slice(IMAGES), slice(PERSONS, None))
    nearest = apart(model(batch["x"])).fill_diagonal_(torch.inf).argmin(1)
    return {"recall_at_1": (batch["y"][nearest] == batch["y"]).float().mean().item()}


def measured(model: nn.Module) -> Channels:
    """Other images of the trained persons, without a margin; and the recall."""
    raw = losses(model, portraits(slice(TRAINED, None)), margin=0.0)
    return {"loss": sum(WEIGHTS[name] * value.item() for name, value in raw.items()), **recall(model)}


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Embedder(dropout=0.05 * (variant == "watched"), named=variant not in ("triplets", "pairs"))
    now, over = {"margin": 0.0}, STEPS // 2
    parts = Parts(
        model=model,
        optimizer=sgd(model),
        batches=shuffled(portraits(), BATCH, seed),
        losses=lambda model, batch: losses(model, batch, now["margin"]),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=PERSONS * TRAINED // BATCH,
        max_norm=CLIP,
        weights=lambda applied: WEIGHTS,  # noqa: ARG005
        clocks={"margin": lambda applied: applied},
        scheduled={"margin": ("margin", linear(0.0, MARGIN, over))},
        now=now,
        evaluation=Evaluation(10, measured),
        header={
            "config": {"batch_size": BATCH, "persons": PERSONS, "scale": SCALE, "margin": MARGIN, "clip": CLIP},
            "components": {name: {"role": role} for name, role in ROLES.items()},
            "schedules": {"margin": declared("linear", 0.0, MARGIN, over, clock="margin")},
            "clocks": ["margin"],
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD([{"params": free, "name": "all"}], RATE, 0.9, weight_decay=5e-4)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls linearly, and so the header says."""
    return planned(parts, declared("linear", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def marginal(parts: Parts) -> Parts:
    """The full margin from the first step on."""
    parts.now["margin"], parts.scheduled, parts.clocks = MARGIN, {}, {}
    del parts.header["schedules"]["margin"], parts.header["clocks"]
    return parts


def paired(parts: Parts, persons: int = 8, each: int = 4) -> Parts:
    """Batches of a few persons with as many images of each; nobody is named, so what counts is the recall."""

    def batch(number: int) -> Batch:
        chance = torch.Generator().manual_seed(10_000 * parts.seed + number)
        chosen = torch.randperm(PERSONS, generator=chance)[:persons].repeat_interleave(each)
        images = torch.rand(persons, TRAINED, generator=chance).argsort(1)[:, :each].flatten()
        return {"x": faces()[chosen, images], "y": chosen}

    parts = replace(marginal(parts), batches=batch, evaluation=Evaluation(10, recall))
    parts.header["config"] = {"batch_size": persons * each, "images_of_each": each}
    del parts.header["components"], parts.header["max_grad_norm"]
    return annealed(replace(parts, max_norm=None))


def pairs(parts: Parts) -> Parts:
    """Two images of each person; one loss is negative, and so is the sum."""
    parts = replace(paired(parts, BATCH // 2, 2), losses=pair_losses)
    parts.weights = lambda applied: {"alignment": 1.0, "uniformity": 1.0}  # noqa: ARG005
    parts.header["components"] = {"alignment": {"role": "task"}, "uniformity": {"role": "task"}}
    return parts


@cache
def schooled(seed: int, steps: int = 480) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = marginal(build(seed + 50, "plain"))

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number), MARGIN * min(2 * number / steps, 1.0))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return school(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, rate: float) -> Parts:
    """A schooled net goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/faces.pt"
    return annealed(marginal(parts), rate, kind="constant", end=rate, warmup=0)


def frozen_trunk(parts: Parts) -> Parts:
    """The trunk of a schooled net stays as it is, by intent; what maps and names is new."""
    taught = {name: value for name, value in schooled(parts.seed).items() if "trunk" in name}
    parts.model.load_state_dict(taught, strict=False)
    parts.model.get_submodule("net.trunk").requires_grad_(False)
    parts.optimizer = sgd(parts.model)
    parts.header["config"] |= {"initialised_from": "checkpoints/faces.pt", "freeze": ["net.trunk"]}
    return annealed(parts)


def staged(parts: Parts, name: str, stages: list[dict[str, Any]]) -> Parts:
    """A curriculum as it is declared, and as it runs."""
    starts = [stage["start"] for stage in stages]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": name, "stages": stages}
    parts.extras = [lambda step, batch: {"stage": sum(start < step for start in starts) - 1}]  # noqa: ARG005
    return parts


def centre_late(parts: Parts) -> Parts:
    """Centres count little at first, since nobody knows yet where they are."""
    half, little, much = parts.steps // 2, WEIGHTS | {"centre": 0.01}, WEIGHTS
    stages = [{"start": 0, "name": "apart", "weights": little}, {"start": half, "name": "together", "weights": much}]
    parts.weights = lambda applied: much if applied >= half else little
    return staged(parts, "centre-late", stages)


def more_persons(parts: Parts) -> Parts:
    """The other half of the persons comes in the middle of the run: who is new is not known, and the loss jumps."""
    half, few = parts.steps // 2, shuffled(portraits(persons=slice(PERSONS // 2)), BATCH, parts.seed)
    every = parts.batches
    parts.batches = lambda number: few(number) if number < half else every(number)
    forms = (("few", 0, PERSONS // 2), ("all", half, PERSONS))
    stages = [{"start": start, "name": name, "data": {"label": [0, count - 1]}} for name, start, count in forms]
    parts = replace(staged(marginal(parts), "more-persons", stages), evaluation=Evaluation(10, recall))
    parts.extras.append(lambda step, batch: labels(batch["y"].float()))  # noqa: ARG005
    return annealed(parts, kind="constant", end=RATE)


def labels(y: Tensor) -> Channels:
    return {f"data/label/{name}": getattr(y, name)().item() for name in ("min", "mean", "max")}


def per_epoch(parts: Parts) -> Parts:
    """A row and an evaluation at the end of each of 16 epochs."""
    return annealed(by_epochs(parts, 16), warmup=parts.batches_per_epoch)


def watched(parts: Parts) -> Parts:
    """Dropout; bad values are counted, checkpoints written, evaluations made twice."""
    parts.header["checkpoint_every"], parts.header["config"]["dropout"] = parts.steps // 4, 0.05
    parts.records = parts.records | {"bad", "checkpoints"}
    return replace(parts, evaluation=Evaluation(10, measured, repeats=2))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "triplets": lambda parts: replace(paired(parts), losses=triplet_loss, weights=None),
    "pairs": pairs,
    "centre-late": centre_late,
    "more-persons": more_persons,
    "tiny-batches": lambda parts: replace(annealed(paired(parts, 3, 2), 0.01), losses=triplet_loss, weights=None),
    "fine-tuning": partial(continued, rate=1e-4),
    "frozen-trunk": frozen_trunk,
    "per-epoch": per_epoch,
    "resumed": taken_up,
    "watched": watched,
    "loss-only": lambda parts: replace(marginal(parts), records=frozenset(), header={}, evaluation=None),
}


def wrong_weights(parts: Parts) -> int:
    """From the second stage on the centres' weight doubles every ten steps: an experiment's leftover."""
    begin = int(parts.header["curriculum"]["stages"][1]["start"])
    mistakes.reweigh(
        parts,
        lambda applied, weights: weights | {"centre": weights["centre"] * 2 ** (max(applied - begin, 0) / 10)},
    )
    return begin + 2


def stuck_loader(parts: Parts) -> int:
    parts.records = parts.records | {"fingerprint"}
    return mistakes.stuck_loader(parts)


OWN: dict[str, mistakes.Mistake] = {
    "wrong-weights": wrong_weights,
    "stuck-loader": stuck_loader,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "missing-zero-grad", "scheduler-per-epoch", "tiny-clip", "absolute-anneal", "labels-shuffled"),
    *("poisoned-weight", "dropout-in-evaluation", "resume-old-weights", "failing-checkpoints"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

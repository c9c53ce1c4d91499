"""A one-stage detector finds discs, crosses and frames in drawn images: objectness, class, box, and their number.

SGD with momentum in two groups (a slower trunk), clipping, cosine after a warm-up. The curriculum finds large shapes
first and names all of them later; labels are softened less and less, on a clock of their own. Each cell of a grid of
8 x 8 answers for the shape whose centre it holds; what counts is the mean average precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, cosine, declared, linear

HELD_OUT = False
STEPS = 120
SWITCH = 48
"""The step after which the second stage holds."""
TRAINING, HELD, SIZE, CELL, BATCH = 1600, 96, 32, 4, 16
GRID = SIZE // CELL
CLASSES = ("disc", "cross", "frame")
RATE, WARMUP, CLIP, SOFT = 0.06, 10, 8.0, 0.2
RATES = {"trunk": 0.5 * RATE, "heads": RATE}
PARTS = ("objectness", "class", "box", "count")
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "clocks"})

Stages = list[dict[str, Any]]


def stage(start: int, name: str, radius: tuple[float, float], noise: float = 0.3, **weights: float) -> dict[str, Any]:
    """A stage as the config has it: the weights, and the radius (pixels) of the shapes that are drawn."""
    known = {part: weights.get(part, 0.0) for part in PARTS} | {"count": 0.05}
    return {"start": start, "name": name, "weights": known, "data": {"radius": list(radius), "noise": [noise, noise]}}


def large_first() -> Stages:
    return [
        stage(0, "find-large", (4.5, 7.0), objectness=1.0, box=1.0),
        stage(SWITCH, "name-all", (2.5, 7.0), objectness=1.0, box=2.0, **{"class": 1.0}),
    ]


def all_at_once() -> Stages:
    return [stage(0, "all", (2.5, 7.0), objectness=1.0, box=2.0, **{"class": 1.0})]


def small_at_last() -> Stages:
    """Large shapes, then only small ones in images that are noisier, of whose kind none was seen before."""
    weights = {"objectness": 1.0, "class": 1.0, "box": 2.0}
    return [stage(0, "large", (5.0, 7.0), **weights), stage(SWITCH, "small", (2.5, 4.5), 0.4, **weights)]


def form(stages: Stages, name: str) -> dict[str, Any]:
    return {"name": name, "source": f"curricula/{name}.yaml", "stages": stages}


def index(stages: Stages, applied: int) -> int:
    """The stage that holds after so many applied steps."""
    return sum(one["start"] <= applied for one in stages) - 1


@lru_cache(maxsize=1)
def drawn() -> Batch:
    """Images, the radius of an image's shapes, and per cell: presence, class, and place and radius of its shape."""
    random = np.random.default_rng(421)
    down, across = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    count = TRAINING + HELD
    images = random.normal(0.0, 1.0, (count, 1, SIZE, SIZE)).astype(np.float32)
    shown = np.zeros_like(images)
    radius = random.uniform(2.5, 7.0, count).astype(np.float32)
    there, label = np.zeros((count, GRID, GRID), np.float32), np.zeros((count, GRID, GRID), np.int64)
    boxes = np.zeros((count, 4, GRID, GRID), np.float32)
    for number in range(count):
        for quarter in random.permutation(4)[: random.integers(1, 5)]:
            wide = float(np.clip(radius[number] * random.uniform(0.9, 1.1), 2.5, 7.0))
            y, x = (8 + 16 * (quarter // 2), 8 + 16 * (quarter % 2)) + random.uniform(-1, 1, 2) * (7.5 - wide)
            kind, dy, dx = int(random.integers(len(CLASSES))), abs(down - y), abs(across - x)
            thick = max(1.0, wide / 3)
            inside = (np.hypot(dy, dx) < wide, (np.minimum(dy, dx) < thick) & (np.maximum(dy, dx) < wide),
                      (np.maximum(dy, dx) < wide) & (np.maximum(dy, dx) > wide - thick))[kind]  # fmt: skip
            shown[number, 0][inside] = random.uniform(0.8, 2.0)
            row, column = int(y // CELL), int(x // CELL)
            there[number, row, column], label[number, row, column] = 1.0, kind
            boxes[number, :, row, column] = (
                *(y / CELL - row - 0.5, x / CELL - column - 0.5, np.log(wide / 4), np.log(wide / 4)),
            )
    found = {"noise": images, "shown": shown, "radius": radius, "there": there, "y": label, "boxes": boxes}
    return {name: torch.from_numpy(values) for name, values in found.items()}


def pictured(rows: Tensor, noise: float) -> Batch:
    """These images with so much noise on them."""
    batch = {name: values[rows] for name, values in drawn().items()}
    return batch | {"x": (batch.pop("shown") + noise * batch.pop("noise") - 0.3) / 0.7}


def loader(
    size: int, seed: int, now: Callable[[int], dict[str, Any]], kept: Tensor | None = None, wrong: float = 0.0
) -> Callable[[int], Batch]:
    """Batches by number, drawn from the images that a stage's data allow; so many classes are mislabelled."""
    radius = drawn()["radius"][:TRAINING]
    usable = torch.ones(TRAINING, dtype=torch.bool) if kept is None else kept

    def batch(number: int) -> Batch:
        random, data = torch.Generator().manual_seed(70_000 * seed + number), now(number)
        pool = torch.nonzero(usable & (radius >= data["radius"][0]) & (radius <= data["radius"][1]))[:, 0]
        found = pictured(pool[torch.randint(len(pool), (size,), generator=random)], data["noise"][0])
        other = torch.randint(len(CLASSES), found["y"].shape, generator=random)
        return found | {"y": torch.where(torch.rand(other.shape, generator=random) < wrong, other, found["y"])}

    return batch


class Detector(nn.Module):
    """Three convolutions see, four heads tell; `features` and `told` are those of the last call."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        first, second = nn.Conv2d(1, width, 5, stride=2, padding=2), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        third = nn.Conv2d(2 * width, 3 * width, 3, padding=1)
        self.trunk = nn.Sequential(first, nn.ReLU(), second, nn.GroupNorm(4, 2 * width), nn.ReLU(), third, nn.ReLU())
        self.heads = nn.ModuleDict(
            {
                "cells": nn.Conv2d(3 * width, 1 + len(CLASSES) + 4, 3, padding=1),
                "count": nn.Linear(3 * width, 1),
            }
        )
        for layer in (first, second, third):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        with torch.no_grad():  # few cells hold anything
            self.heads["cells"].weight.mul_(0.3)  # type: ignore[operator]
            self.heads["cells"].bias.zero_()[0] = -3.0  # type: ignore[operator]
        self.features = self.told = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.trunk(x)
        self.told = self.heads["cells"](self.features).float()
        return self.told


def losses(model: nn.Module, batch: Batch, soft: float = 0.0) -> Components:
    """The four components; class and box are asked of the cells that hold a centre."""
    assert isinstance(model, Detector)
    told, there = model(batch["x"]), batch["there"]
    held = there > 0
    found = there.sum().clamp(min=1.0)
    guess = model.heads["count"](model.features.mean((2, 3))).float()[:, 0]
    each = functional.binary_cross_entropy_with_logits(told[:, 0], there * (1.0 - soft), reduction="none")
    named = told[:, 1:4].permute(0, 2, 3, 1)[held]
    return {
        "objectness": each.sum() / found,
        "class": functional.cross_entropy(named, batch["y"][held], label_smoothing=soft),
        "box": functional.smooth_l1_loss(_boxes(told[:, 4:], held), _boxes(batch["boxes"], held), beta=0.1),
        "count": functional.smooth_l1_loss(guess, there.sum((1, 2))),
    }


def _boxes(boxes: Tensor, held: Tensor) -> Tensor:
    """[cells that hold a shape, 4]"""
    return boxes.permute(0, 2, 3, 1)[held]


@lru_cache(maxsize=4)
def held_out(low: float, high: float, noise: float) -> Batch:
    rows = torch.arange(TRAINING, TRAINING + HELD)
    radius = drawn()["radius"][rows]
    return pictured(rows[(radius >= low) & (radius <= high)], noise)


def corners(boxes: Tensor) -> Tensor:
    """Place and radius, from what the cells say: [images, 4, grid, grid] to [images, grid x grid, (y0, x0, y1, x1)]."""
    grid = torch.arange(GRID) + 0.5
    centre = (boxes[:, :2] + torch.stack(torch.meshgrid(grid, grid, indexing="ij"))) * CELL
    wide = 4.0 * boxes[:, 2:].clamp(-3.0, 3.0).exp()
    return torch.cat([centre - wide, centre + wide], 1).flatten(2).transpose(1, 2)


def precision(told: Tensor, batch: Batch, needed: float = 0.6) -> float:
    """The mean of the classes' average precisions, a match being an overlap of so much."""
    peak = functional.max_pool2d(told[:, :1], 3, 1, 1)[:, 0] == told[:, 0]
    chance = torch.softmax(told[:, 1:4], 1) * torch.sigmoid(told[:, :1]) * peak[:, None]
    mine, real = corners(told[:, 4:]), corners(batch["boxes"])
    lower = torch.maximum(mine[:, :, None, :2], real[:, None, :, :2])
    inner = (torch.minimum(mine[:, :, None, 2:], real[:, None, :, 2:]) - lower).clamp(min=0.0).prod(-1)
    area = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (mine, real)]
    overlap = inner / (area[0][:, :, None] + area[1][:, None, :] - inner)
    scores = []
    for label in range(len(CLASSES)):
        wanted = ((batch["there"] > 0) & (batch["y"] == label)).flatten(1)
        best, which = (overlap * wanted[:, None, :]).max(-1)
        flat = chance[:, label].flatten()
        order = flat.argsort(descending=True)[: int((flat > 0.02).sum())].tolist()
        taken: set[tuple[int, int]] = set()
        right = []
        for at in order:
            image, cell = divmod(at, GRID * GRID)
            target = (image, int(which[image, cell]))
            right.append(float(best[image, cell]) >= needed and target not in taken)
            taken |= {target} if right[-1] else set()
        hits = np.cumsum(right)
        scores.append(float((hits / np.arange(1, len(right) + 1))[np.array(right, bool)].sum() / int(wanted.sum())))
    return float(np.mean(scores))


def measured(stages: Stages) -> Callable[[nn.Module], Channels]:
    """Loss by the last stage's weights, and precision, on images that are not trained on."""
    data, weights = stages[-1]["data"], stages[-1]["weights"]

    def measure(model: nn.Module) -> Channels:
        batch = held_out(*data["radius"], data["noise"][0])
        raw = {part: value.item() for part, value in losses(model, batch).items()}
        total = sum(weights[part] * value for part, value in raw.items())
        assert isinstance(model, Detector)
        return {"loss": total, **{f"loss/{part}": raw[part] for part in PARTS[:3]}, "map": precision(model.told, batch)}

    return measure


def follow(parts: Parts, stages: Stages) -> None:
    """Let the loop run these stages."""
    parts.weights = lambda applied: dict(stages[index(stages, applied)]["weights"])
    parts.extras = [lambda step, batch: {"stage": index(stages, step - 1), **of_radius(batch["radius"])}]
    parts.batches = loader(BATCH, parts.seed, lambda number: stages[index(stages, number)]["data"])


def of_radius(radius: Tensor) -> Channels:
    """What the row says of the shapes that were really drawn."""
    return {f"data/radius/{name}": round(getattr(radius, name)().item(), 1) for name in ("min", "mean", "max")}


def build(seed: int, variant: str, stages: Stages | None = None, name: str = "") -> Parts:
    """The parts of a healthy variant; `stages` are the curriculum, if it is none of those above."""
    torch.manual_seed(seed)
    usual = dict.fromkeys(("one-stage", "batch-2", "fp16-first-skips"), all_at_once) | {"small-at-last": small_at_last}
    stages = stages or usual.get(variant, large_first)()
    name = name or {1: "all", 2: "large-first"}[len(stages)]
    model, now = Detector(), {"soft": SOFT}
    groups = [{"params": [*getattr(model, part).parameters()], "name": part, "lr": RATES[part]} for part in RATES]
    parts = Parts(
        model=model,
        optimizer=torch.optim.SGD(groups, lr=RATE, momentum=0.9, weight_decay=5e-4),
        batches=loader(BATCH, seed, lambda number: stages[0]["data"]),  # noqa: ARG005
        losses=lambda model, batch: losses(model, batch, now["soft"]),
        steps=STEPS,
        seed=seed,
        max_norm=CLIP,
        factor=cosine(STEPS, WARMUP, floor=0.02),
        clocks={"softening": lambda applied: applied},
        scheduled={"soft": ("softening", linear(SOFT, 0.0, STEPS))},
        now=now,
        at=lambda model: model.features,
        evaluation=Evaluation(12, measured(stages)),
        header={
            "config": {"lr": RATE, "momentum": 0.9, "batch_size": BATCH, "clip": CLIP, "curriculum": name},
            "total_steps": STEPS,
            "components": {part: {"role": "auxiliary" if part == "count" else "task"} for part in PARTS},
            "curriculum": form(stages, name),
            "curriculum_running": form(stages, name),
            "schedules": {
                "soft": declared("linear", SOFT, 0.0, STEPS, clock="softening"),
                **falling(1.0),
            },
            "clocks": ["softening"],
            "gradient_at": "features",
            "max_grad_norm": CLIP,
            "classes": counted(torch.ones(TRAINING, dtype=torch.bool)),
        },
        records=RECORDS,
        body=lambda model: [*model.trunk.parameters()],
    )
    follow(parts, stages)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def falling(factor: float) -> dict[str, Any]:
    """What the header says of the rates."""
    high = {part: factor * rate for part, rate in RATES.items()}
    return {f"lr/{part}": declared("cosine", rate, 0.02 * rate, STEPS, warmup=WARMUP) for part, rate in high.items()}


def counted(kept: Tensor) -> dict[str, int]:
    """How many shapes of each class the training images hold."""
    labels = drawn()["y"][:TRAINING][kept][drawn()["there"][:TRAINING][kept] > 0]
    return {name: int((labels == label).sum()) for label, name in enumerate(CLASSES)}


Change = Callable[[Detector, Batch, Components], Components]
"""Components that replace others or come besides, from the model after its call and the usual components."""


def changed(parts: Parts, change: Change, **weights: float) -> Parts:
    """The losses with that change; weights besides are constant, and declared."""
    plain, known = parts.losses, parts.weights
    assert known is not None

    def more(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        assert isinstance(model, Detector)
        return raw | change(model, batch, raw)

    parts.losses, parts.weights = more, lambda applied: known(applied) | weights
    for curriculum in ("curriculum", "curriculum_running"):
        for one in parts.header[curriculum]["stages"]:
            one["weights"] |= weights
    return parts


def half_precision(parts: Parts) -> Parts:
    """fp16 with a scale that is far too high at first: a dozen steps are skipped, and then none."""
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1000)
    return replace(parts, scaler=scaler, autocast=torch.float16)


def silent_small(parts: Parts) -> Parts:
    """Boxes of small shapes are a component of their own: by design there are none of them in the first stage."""

    def split(model: Detector, batch: Batch, raw: Components) -> Components:  # noqa: ARG001
        held = batch["there"] > 0
        mine, real = _boxes(model.told[:, 4:], held), _boxes(batch["boxes"], held)
        each = functional.smooth_l1_loss(mine, real, beta=0.1, reduction="none").mean(1)
        small = (real[:, 2] < 0.0).float()  # a radius below four pixels
        return {"box": (each * (1.0 - small)).mean(), "small": (each * small).mean()}

    parts.header["components"]["small"] = {"role": "task"}
    return changed(parts, split, small=3.0)


def batch_of_two(parts: Parts) -> Parts:
    """Two images a step after a schooling with larger batches; the rate is lower, and the loss jumps as it must."""
    schooling = torch.optim.SGD(parts.model.parameters(), lr=0.6 * RATE, momentum=0.9)
    before = loader(BATCH, parts.seed + 50, lambda number: all_at_once()[0]["data"])  # noqa: ARG005
    for number in range(STEPS):
        schooling.zero_grad()
        torch.stack([*losses(parts.model, before(number)).values()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(parts.model.parameters(), CLIP)
        schooling.step()
    parts.batches = loader(2, parts.seed, lambda number: all_at_once()[0]["data"])  # noqa: ARG005
    parts.header["config"] |= {"lr": 0.1 * RATE, "batch_size": 2}
    parts.header["schedules"] |= falling(0.1)
    for group in parts.optimizer.param_groups:
        group["lr"] *= 0.1
    return parts


def steps_down(parts: Parts) -> Parts:
    """The rate falls to a fifth at three fifths and again at four fifths of the run: a form that no header declares."""
    parts.factor = lambda tick: min(tick / WARMUP, 1.0) * 0.2 ** sum(tick >= STEPS * share for share in (0.6, 0.8))
    for part in ("trunk", "heads"):
        del parts.header["schedules"][f"lr/{part}"]
    return parts


def uneven_units(parts: Parts) -> Parts:
    """Boxes in a hundredth of a cell; their weight makes up for it."""
    parts.header["components"]["box"] = {"unit": "cell/100", "role": "task"}
    parts.evaluation = Evaluation(12, measured(large_first()))
    return changed(parts, lambda model, batch, raw: {"box": 100.0 * raw["box"]}, box=0.02)  # noqa: ARG005


def noisy_labels(parts: Parts) -> Parts:
    """In an eighth of the cells the class is another one."""
    stages = large_first()
    parts.batches = loader(BATCH, parts.seed, lambda number: stages[index(stages, number)]["data"], wrong=0.12)
    return parts


def with_classes(parts: Parts) -> Parts:
    """Each row counts the classes in its batch."""
    parts.extras.append(
        lambda step, batch: {  # noqa: ARG005
            f"data/class/{name}": int((batch["y"][batch["there"] > 0] == label).sum())
            for label, name in enumerate(CLASSES)
        }
    )
    return parts


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "fp16-first-skips": half_precision,
    "silent-small": silent_small,
    "uneven-units": uneven_units,
    "batch-2": batch_of_two,
    "steps-down": steps_down,
    "noisy-labels": noisy_labels,
    "one-stage": with_classes,
    "resumed": lambda parts: replace(parts, resume=Resume(STEPS // 2)),
    "every-tenth": lambda parts: replace(parts, every=10),
    "loss-only": lambda parts: replace(parts, header={"total_steps": STEPS}, records=frozenset(), extras=[]),
}
HEALTHY = (
    *("plain", "one-stage", "small-at-last", "silent-small", "uneven-units", "fp16-first-skips", "batch-2", "resumed"),
    *("steps-down", "every-tenth", "loss-only", "noisy-labels"),
)
SICK = (
    *("opposed-components", "clamped-component", "wrong-formula", "loud-entry", "stage-shock"),
    *("wrong-weights", "stale-workers", "unmoved-group", "all-masked", "rare-class", "poisoned-weight"),
    "skips-counted",
)
TWINS = {
    **dict.fromkeys(("opposed-components", "clamped-component", "wrong-formula", "all-masked"), "one-stage"),
    "rare-class": "one-stage",
    "skips-counted": "fp16-first-skips",
}


def opposed_components(parts: Parts) -> int:
    """A second data set's boxes were read with their axes turned round, and their sizes inverted."""

    def mirrored(model: Detector, batch: Batch, raw: Components) -> Components:  # noqa: ARG001
        held = batch["there"] > 0
        mine, real = _boxes(model.told[:, 4:], held), _boxes(batch["boxes"], held)
        return {"mirrored": functional.smooth_l1_loss(mine, -real, beta=0.1)}

    parts.header["components"]["mirrored"] = {"role": "task"}
    changed(parts, mirrored, mirrored=2.0)
    return 1


def clamped_component(parts: Parts) -> int:
    """The boxes' error is cut at a limit that it never falls below."""
    changed(parts, lambda model, batch, raw: {"box": raw["box"].clamp(max=0.004)})  # noqa: ARG005
    return 1


def wrong_formula(parts: Parts) -> int:
    """One minus the overlap with the truth, whose radius is taken for a width: at the truth itself it is far from 0."""

    def overlap(model: Detector, batch: Batch, raw: Components) -> Components:  # noqa: ARG001
        held = (batch["there"] > 0).flatten(1)
        real = batch["boxes"].clone()
        real[:, 2:] -= np.log(4.0)
        mine, other = corners(model.told[:, 4:])[held], corners(real)[held]
        lower, upper = torch.maximum(mine[:, :2], other[:, :2]), torch.minimum(mine[:, 2:], other[:, 2:])
        inner = (upper - lower).clamp(min=0.0).prod(1)
        both = (mine[:, 2:] - mine[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1) - inner
        return {"overlap": 1.0 - (inner / both).mean()}

    parts.header["components"]["overlap"] = {"role": "auxiliary"}
    changed(parts, overlap, overlap=6.0)
    return 1


def loud_entry(parts: Parts) -> int:
    """The class, which enters with the second stage, is summed over much more than it should be."""
    mistakes.component_scale(parts, "class", 1e5)
    return SWITCH + 1


def wrong_weights(parts: Parts) -> int:
    """The boxes' weight fades by a percent and a half a step, by a line that was left from an ablation."""
    mistakes.reweigh(parts, lambda applied, weights: weights | {"box": weights["box"] * 0.985**applied})
    return 2


def stale_workers(parts: Parts) -> int:
    """Weights go on to the next stage; what draws the images holds a copy of the first one's settings."""
    parts.batches = loader(BATCH, parts.seed, lambda number: large_first()[0]["data"])  # noqa: ARG005
    return SWITCH + 1


def all_masked(parts: Parts) -> int:
    """Classes are asked only where the network is sure already, which it is nearly nowhere."""
    share = {"masked": 0.0}

    def sure(model: Detector, batch: Batch, raw: Components) -> Components:  # noqa: ARG001
        held = batch["there"] > 0
        named = model.told[:, 1:4].permute(0, 2, 3, 1)[held]
        kept = torch.softmax(named, 1).amax(1) > 0.999
        share["masked"] = 1.0 - kept.float().mean().item()
        each = functional.cross_entropy(named, batch["y"][held], reduction="none")
        return {"class": (each * kept).sum() / kept.sum().clamp(min=1)}

    changed(parts, sure)
    parts.extras.append(lambda step, batch: {"data/masked/class": share["masked"]})  # noqa: ARG005
    return 1


def rare_class(parts: Parts) -> int:
    """Nearly all images with a frame in them got lost."""
    frames = ((drawn()["y"] == 2) & (drawn()["there"] > 0))[:TRAINING].flatten(1).sum(1)
    kept = (frames == 0) | ((frames == 1) & (torch.cumsum(frames == 1, 0) <= 8))
    data = all_at_once()[0]["data"]
    parts.batches = loader(BATCH, parts.seed, lambda number: data, kept)  # noqa: ARG005
    parts.header["classes"] = counted(kept)
    return 0


def poisoned_weight(parts: Parts) -> int:
    parts.records = parts.records | {"bad"}
    return mistakes.poisoned_weight(parts)


def stage_shock(seed: int) -> Parts:
    """The second stage asks for everything at once, four times as loud, in images that are nearly all noise."""
    weights = {"objectness": 4.0, "class": 4.0, "box": 8.0}
    return build(seed, "plain", [large_first()[0], stage(SWITCH, "shock", (2.5, 7.0), 5.0, **weights)], "shock")


OWN: dict[str, mistakes.Mistake] = {
    "opposed-components": opposed_components,
    "clamped-component": clamped_component,
    "wrong-formula": wrong_formula,
    "loud-entry": loud_entry,
    "wrong-weights": wrong_weights,
    "stale-workers": stale_workers,
    "all-masked": all_masked,
    "rare-class": rare_class,
    "poisoned-weight": poisoned_weight,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    if case == "stage-shock":  # the run is built around it
        return mistakes.perform(stage_shock(seed), path, case, {case: lambda parts: SWITCH + 1})  # noqa: ARG005
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

"""A small U-Net finds discs and squares in drawn images (32 x 32): cross-entropy, soft Dice and the shapes' edges.

AdamW, clipping, cosine after a warm-up. A curriculum of two stages raises the weights of
Dice and edges; Dice is smoothed, by less and less, on a clock of its own. Evaluated by the classes' mean overlap.
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
from benchmarks.diagnosis.loop import (
    Batch,
    Components,
    Evaluation,
    Parts,
    Resume,
    Sampling,
    cosine,
    declared,
    linear,
)
from benchmarks.diagnosis.loop import train as fit
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 130
TRAINING, HELD, SIZE, CLASSES, BATCH = 256, 48, 32, 3, 8
RATE, WARMUP, CLIP = 4e-3, 15, 1.0
SMOOTH = (50.0, 1.0)
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "clocks", "checkpoints"})

HEALTHY = (
    *("plain", "fp16-first-skips", "resumed", "small-auxiliary", "warm-restarts", "fine-tuning", "every-tenth"),
    *("batch-2", "one-stage", "loss-only", "noisy-masks"),
)
TWINS = {"resume-restarts-schedule": "resumed"}

Weights = dict[str, float]
Stages = list[tuple[int, str, Weights]]


def two_stages() -> Stages:
    """Pixels first, then overlap and edges."""
    coarse = {"pixels": 1.0, "dice": 0.3, "edges": 0.1}
    return [(0, "coarse", coarse), (2 * STEPS // 5, "fine", {"pixels": 1.0, "dice": 1.0, "edges": 0.5})]


def one_stage() -> Stages:
    """Everything from the beginning."""
    return [(0, "all", {"pixels": 1.0, "dice": 0.6, "edges": 0.3})]


def declared_stages(stages: Stages, name: str) -> dict[str, Any]:
    """A curriculum as the header has it."""
    told = [{"start": start, "name": stage, "weights": dict(weights)} for start, stage, weights in stages]
    return {"name": name, "source": f"configs/{name}.toml", "stages": told}


def index(stages: Stages, applied: int) -> int:
    """The stage that holds after so many applied steps."""
    return sum(start <= applied for start, _, _ in stages) - 1


def follow(parts: Parts, stages: Stages, at: Callable[[int], int] = int) -> None:
    """Let the loop run these stages; `at` is where it believes to be."""
    parts.weights = lambda applied: dict(stages[index(stages, at(applied))][2])
    parts.extras = [lambda step, batch: {"stage": index(stages, at(step - 1))}]  # noqa: ARG005


@lru_cache(maxsize=1)
def drawn() -> Batch:
    """Images of zero mean and unit spread, and the class of each pixel: 0 ground, 1 disc, 2 square."""
    random = np.random.default_rng(2026)
    down, across = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    images, masks = [], []
    for _ in range(TRAINING + HELD):
        tilt = random.normal(0.0, 0.02, 2)
        image = tilt[0] * down + tilt[1] * across + random.normal(0.0, 0.4, (SIZE, SIZE))
        mask = np.zeros((SIZE, SIZE), np.int64)
        for _ in range(random.integers(1, 4)):
            label, radius = int(random.integers(1, CLASSES)), random.uniform(3.0, 7.0)
            y, x = random.uniform(5.0, SIZE - 5.0, 2)
            away = np.hypot(down - y, across - x) if label == 1 else np.maximum(abs(down - y), abs(across - x))
            inside = away < radius
            mask[inside] = label
            shade = random.uniform(0.4, 1.4) * (1 if label == 1 else -1)  # squares are darker than the ground
            image[inside] += shade - image[inside] * 0.5
        images.append(image)
        masks.append(mask)
    x = np.stack(images).astype(np.float32)[:, None]
    return {"x": torch.from_numpy((x - x.mean()) / x.std()), "y": torch.from_numpy(np.stack(masks))}


def loader(size: int, seed: int, wrong: float = 0.0) -> Callable[[int], Batch]:
    """Batches by their number, in an order of its own each epoch; in so many masks the classes are swapped."""
    data, each = {name: values[:TRAINING] for name, values in drawn().items()}, TRAINING // size
    swapped = torch.rand(TRAINING, generator=torch.Generator().manual_seed(seed)) < wrong
    data["y"] = torch.where(swapped[:, None, None] & (data["y"] > 0), CLASSES - data["y"], data["y"])

    def batch(number: int) -> Batch:
        epoch, at = divmod(number, each)
        order = torch.randperm(TRAINING, generator=torch.Generator().manual_seed(1000 * seed + epoch))
        chosen = order[at * size : (at + 1) * size]
        return {name: values[chosen] for name, values in data.items()}

    return batch


def twice(ins: int, outs: int) -> nn.Sequential:
    """Two convolutions with ReLUs, and a normalisation between them."""
    first, second = nn.Conv2d(ins, outs, 3, padding=1), nn.Conv2d(outs, outs, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.GroupNorm(4, outs), second, nn.ReLU())


class UNet(nn.Module):
    """Down twice, up twice, with what was seen on the way down; `logits` are those of the last call."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        bottom = nn.Sequential(twice(2 * width, 4 * width), nn.Dropout2d(0.1))
        self.down = nn.ModuleList([twice(1, width), twice(width, 2 * width), bottom])
        self.up = nn.ModuleList([twice(6 * width, 2 * width), twice(3 * width, width)])
        self.head = nn.Conv2d(width, CLASSES, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer is not self.head:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.logits = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        first, second, bottom = self.down
        for stage in (first, second):
            x = stage(x)
            seen.append(x)
            x = functional.max_pool2d(x, 2)
        x = bottom(x)
        for stage, skipped in zip(self.up, reversed(seen), strict=True):
            x = stage(torch.cat([functional.interpolate(x, scale_factor=2.0), skipped], 1))
        self.logits = self.head(x)
        return self.logits


def compared(logits: Tensor, y: Tensor, smooth: float) -> Components:
    """The three terms of the loss."""
    logits = logits.float()
    chances = torch.softmax(logits, 1)
    truth = functional.one_hot(y, CLASSES).permute(0, 3, 1, 2).float()
    common, both = (chances * truth).sum((0, 2, 3)), (chances + truth).sum((0, 2, 3))
    off = chances - truth
    steps = (off[:, :, 1:] - off[:, :, :-1]).abs().mean() + (off[:, :, :, 1:] - off[:, :, :, :-1]).abs().mean()
    overlap = (2.0 * common[1:] + smooth) / (both[1:] + smooth)
    return {"pixels": functional.cross_entropy(logits, y), "dice": 1.0 - overlap.mean(), "edges": steps}


def overlaps(logits: Tensor, y: Tensor) -> list[float]:
    """Intersection over union of discs and of squares."""
    found = logits.argmax(1)
    return [
        float(((found == label) & (y == label)).sum() / ((found == label) | (y == label)).sum().clamp(min=1))
        for label in range(1, CLASSES)
    ]


def measure(model: nn.Module) -> dict[str, float]:
    """Loss with the last stage's weights, and the overlap, on images that are not trained on."""
    held = {name: values[TRAINING:] for name, values in drawn().items()}
    logits = model(held["x"])
    raw = {name: value.item() for name, value in compared(logits, held["y"], SMOOTH[1]).items()}
    weights = two_stages()[-1][2]
    total = sum(weights[name] * value for name, value in raw.items())
    return {"loss": total, "iou": float(np.mean(overlaps(logits, held["y"])))}


@torch.no_grad()
def outlined(model: nn.Module) -> tuple[list[str], dict[str, float]]:
    """Masks of four images, in coarse characters, and how good they are."""
    held = {name: values[TRAINING : TRAINING + 4] for name, values in drawn().items()}
    logits = model(held["x"])
    rows = logits.argmax(1)[:, ::8, ::4].tolist()
    texts = ["/".join("".join(".ox"[pixel] for pixel in line) for line in one) for one in rows]
    return texts, {"iou": float(np.mean(overlaps(logits, held["y"]))), "diversity": len(set(texts)) / len(texts)}


def build(seed: int, variant: str, told: Stages | None = None) -> Parts:
    """The parts of a healthy variant; `told` is the curriculum, if it is none of those above."""
    torch.manual_seed(seed)
    model, now = UNet(), {"smooth": SMOOTH[1]}
    stages = told or (one_stage() if variant == "one-stage" else two_stages())
    parts = Parts(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-3),
        batches=loader(BATCH, seed),
        losses=lambda model, batch: compared(model(batch["x"]), batch["y"], now["smooth"]),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        factor=cosine(STEPS, WARMUP, floor=0.05),
        clocks={"smoothing": lambda applied: applied},
        scheduled={"smooth": ("smoothing", linear(*SMOOTH, STEPS))},
        now=now,
        at=lambda model: model.logits,
        evaluation=Evaluation(20, measure),
        header=header(stages),
        records=RECORDS,
        body=lambda model: [*model.down.parameters(), *model.up.parameters()],
    )
    follow(parts, stages)
    return VARIANTS[variant](parts, seed) if variant in VARIANTS else parts


def header(stages: Stages) -> dict[str, Any]:
    """What the run says of itself."""
    name = "one" if len(stages) == 1 else "coarse-to-fine"
    return {
        "config": {"lr": RATE, "weight_decay": 1e-3, "batch_size": BATCH, "clip": CLIP, "curriculum": name},
        "total_steps": STEPS,
        "components": {each: {"unit": "", "role": "task"} for each in ("pixels", "dice", "edges")},
        "curriculum": declared_stages(stages, name),
        "curriculum_running": declared_stages(stages, name),
        "schedules": {
            "lr/0": declared("cosine", RATE, 0.05 * RATE, STEPS, warmup=WARMUP),
            "smooth": declared("linear", *SMOOTH, STEPS, clock="smoothing"),
        },
        "clocks": ["smoothing"],
        "gradient_at": "logits",
        "max_grad_norm": CLIP,
        "checkpoint_every": 60,
    }


def half_precision(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """fp16 with a scaler that begins too high: the first steps are skipped, and then no more."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=1000)
    return replace(parts, scaler=scaler, autocast=torch.float16)


def small_auxiliary(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """A small penalty on the logits, as z-losses are: a thousandth of the whole by design."""
    plain, known = parts.losses, parts.weights
    assert known is not None
    parts.losses = lambda model, batch: plain(model, batch) | {"z": torch.logsumexp(model.logits, 1).square().mean()}  # type: ignore[operator]
    parts.weights = lambda applied: known(applied) | {"z": 1e-4}
    parts.header["components"]["z"] = {"unit": "", "role": "regulariser"}
    for form in ("curriculum", "curriculum_running"):
        for stage in parts.header[form]["stages"]:
            stage["weights"]["z"] = 1e-4
    return parts


def warm_restarts(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """The cosine runs three times, each time from the full rate."""
    form = declared("cosine", RATE, 0.05 * RATE, STEPS, restarts=2)
    parts.header["schedules"]["lr/0"] = form
    parts.factor = lambda tick: (schedule_value(form, tick) or 0.0) / RATE
    return parts


def fine_tuning(parts: Parts, seed: int) -> Parts:
    """The model has learnt this before, and little is left to learn: a twentieth of the rate."""
    schooling = torch.optim.AdamW(parts.model.parameters(), lr=RATE)
    before, rate = loader(BATCH, seed + 50), torch.optim.lr_scheduler.OneCycleLR(schooling, RATE, STEPS * 2)
    for number in range(STEPS * 2):
        batch = before(number)
        schooling.zero_grad()
        torch.stack([*compared(parts.model(batch["x"]), batch["y"], SMOOTH[1]).values()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(parts.model.parameters(), CLIP)
        schooling.step()
        rate.step()
    low = 0.05 * RATE
    parts.optimizer = torch.optim.AdamW(parts.model.parameters(), lr=low, weight_decay=1e-3)
    parts.header["config"]["lr"] = low
    parts.header["schedules"]["lr/0"] |= {"start": low, "end": 0.05 * low}
    return parts


def batch_2(parts: Parts, seed: int) -> Parts:
    """Two images a step, and half the rate: the loss jumps from step to step, as it must."""
    low = 0.5 * RATE
    parts.optimizer = torch.optim.AdamW(parts.model.parameters(), lr=low, weight_decay=1e-3)
    parts.header["config"] |= {"lr": low, "batch_size": 2}
    parts.header["schedules"]["lr/0"] |= {"start": low, "end": 0.05 * low}
    return replace(parts, batches=loader(2, seed), batches_per_epoch=TRAINING // 2)


def loss_only(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """What most loops print: the loss, and now and then a validation."""
    return replace(parts, header={"total_steps": STEPS}, records=frozenset(), extras=[])


VARIANTS: dict[str, Callable[[Parts, int], Parts]] = {
    "fp16-first-skips": half_precision,
    "resumed": lambda parts, seed: replace(parts, resume=Resume(STEPS // 2)),  # noqa: ARG005
    "small-auxiliary": small_auxiliary,
    "warm-restarts": warm_restarts,
    "fine-tuning": fine_tuning,
    "every-tenth": lambda parts, seed: replace(parts, every=10),  # noqa: ARG005
    "batch-2": batch_2,
    "loss-only": loss_only,
    "noisy-masks": lambda parts, seed: replace(parts, batches=loader(BATCH, seed, wrong=0.15)),
    "plain": lambda parts, seed: replace(parts, sampling=Sampling(60, outlined)),  # noqa: ARG005
}


def wrong_curriculum(parts: Parts) -> int:
    """The loop was given the other table of stages."""
    parts.header["curriculum_running"] = declared_stages(one_stage(), "one")
    follow(parts, one_stage())
    return 1


def wrong_weights(parts: Parts) -> int:
    """Dice fades by a percent a step: a line that was left from an ablation."""
    mistakes.reweigh(parts, lambda applied, weights: weights | {"dice": weights["dice"] * 0.99**applied})
    return 2


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for with a number of epochs, and there is never enough of it."""
    follow(parts, two_stages(), lambda applied: applied // parts.batches_per_epoch)
    return two_stages()[1][0] + 1


def log_of_zero(parts: Parts, sharp: float = 12.0) -> int:
    """Certainty is asked for by an entropy p log p of sharpened probabilities, which underflow."""
    plain = parts.losses

    def certain(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        chances = torch.softmax(sharp * model.logits.float(), 1)  # type: ignore[operator]
        return raw | {"pixels": raw["pixels"] - 0.01 * (chances * chances.log()).sum(1).mean()}

    parts.losses = certain
    return mistakes.WHEN_BROKEN


def poisoned_weight(parts: Parts) -> int:
    """The filters of the head are normalised by their norms once, and the ground's was pruned to zero."""
    at = STEPS // 2

    def normalise(step: int) -> None:
        if step == at:
            filters = parts.model.head.weight.data  # type: ignore[union-attr]
            filters[0] = 0.0
            filters /= filters.flatten(1).norm(dim=1)[:, None, None, None]

    parts.ends.append(normalise)
    parts.records = parts.records | {"bad"}
    return at + 1


def watched(mistake: mistakes.Mistake) -> mistakes.Mistake:
    """The same mistake where the log has the inputs' mean and spread."""

    def seen(parts: Parts) -> int:
        parts.records = parts.records | {"inputs"}
        return mistake(parts)

    return seen


def steep_ramp(seed: int) -> Parts:
    """The config has a slip in it: edges count three hundred times as much from the second stage on."""
    stages = two_stages()
    stages[1][2]["edges"] *= 300.0
    return build(seed, "plain", stages)


OWN: dict[str, mistakes.Mistake] = {
    "component-scale": partial(mistakes.component_scale, name="edges", by=3e3),
    "component-sign": partial(mistakes.component_sign, name="dice", weight=-1.0),
    "component-detached": partial(mistakes.component_detached, name="dice"),
    "component-untracked": partial(mistakes.component_untracked, by=1e-2),
    "rate-too-high": partial(mistakes.rate_too_high, by=100.0),
    "rate-too-low": partial(mistakes.rate_too_low, by=1e-4),
    "constant-input": watched(mistakes.constant_input),
    "unscaled-input": watched(mistakes.unscaled_input),
    "too-little-data": partial(mistakes.too_little_data, batches=1),
    "wrong-curriculum": wrong_curriculum,
    "wrong-weights": wrong_weights,
    "stage-stuck": stage_stuck,
    "log-of-zero": log_of_zero,
    "poisoned-weight": poisoned_weight,
}
SICK = (
    *("rate-too-high", "frozen-body", "unscaled-input", "constant-input", "component-scale", "component-sign"),
    *("component-detached", "component-untracked", "wrong-curriculum", "wrong-weights", "stage-stuck", "steep-ramp"),
    *("local-counter", "log-of-zero", "poisoned-weight", "labels-break", "too-little-data", "norm-after-clip"),
    "resume-restarts-schedule",
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    if case == "steep-ramp":
        fit(steep_ramp(seed), path)
        return two_stages()[1][0] + 1
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

"""What stood where the picture has a hole? Made pictures of 20 x 20 pixels are filled where blots have eaten them.

A small convolutional net with a shortcut reads what is left and where nothing is. Its loss has four parts, after Liu et
al. 2018: the error in the hole, which counts most, and on what is left; the distance of features under a fixed random
net; and the variation of the mended picture, small by nature. Adam, a warm-up and a cosine, clipping. Judged by the
peak signal-to-noise ratio, in dB, of held-out pictures with the net's answer in their holes.
"""

from __future__ import annotations

import math
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
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, planned
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS = 110
SIZE, TRAINING, HELD, BATCH = 20, 480, 64, 16
RATE, WARMUP, CLIP, SAVED = 4e-3, 8, 10.0, 30
WEIGHTS = {"hole": 6.0, "valid": 1.0, "perceptual": 0.5, "variation": 0.1}
HOLES = (0.1, 0.3)  # shares of a picture that are missing
RECORDS = frozenset({"components", "bad", "checkpoints"})
TWINS = {
    **dict.fromkeys(("stage-stuck", "stale-workers"), "growing-holes"),
    "component-detached": "watched",
    "failing-checkpoints": "outwards",
    "loud-entry": "features-later",
    "resume-old-weights": "resumed",
}
Share = tuple[float, float]
Stages = dict[int, dict[str, Any]]  # what a curriculum says, by the first step of each stage


@cache
def pictures() -> Tensor:
    """Two discs on a sloping, striped ground; grey from -1 to 1. float32 [TRAINING + HELD, 1, SIZE, SIZE]"""
    chance, count = torch.Generator().manual_seed(23), TRAINING + HELD

    def drawn(low: float, high: float, many: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(many, count, 1, 1, generator=chance)

    down, right = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    turn = drawn(0.0, math.tau)[0]
    along = turn.cos() * down + turn.sin() * right
    picture = drawn(-0.3, 0.3)[0] + drawn(-0.3, 0.3)[0] * along + 0.15 * torch.sin(drawn(4.0, 9.0)[0] * along)
    for y, x, radius, grey in zip(*(drawn(*span, 2) for span in ((-1, 1), (-1, 1), (0.2, 0.5), (-1, 1))), strict=True):
        edge = torch.sigmoid(20.0 * (radius - torch.hypot(down - y, right - x)))
        picture = (1.0 - edge) * picture + edge * grey
    return picture[:, None]


def blots(count: int, share: Share, chance: torch.Generator) -> Tensor:
    """Where pictures have holes: the highest places of a smooth field of chance. float32 [count, 1, SIZE, SIZE]"""
    field = functional.interpolate(torch.randn(count, 1, 5, 5, generator=chance), SIZE, mode="bicubic")
    missing = share[0] + (share[1] - share[0]) * torch.rand(count, 1, generator=chance)
    rank = field.flatten(1).argsort(1, descending=True).argsort(1)
    return (rank < missing * SIZE**2).float().view_as(field)


def border(count: int, share: Share, chance: torch.Generator) -> Tensor:
    """Holes that are all that surrounds the middle: the picture is to be continued outwards."""
    hole = torch.ones(count, 1, SIZE, SIZE)
    for one, missing in zip(hole, torch.rand(count, generator=chance) * (share[1] - share[0]) + share[0], strict=True):
        width = round(SIZE * (1.0 - math.sqrt(1.0 - missing.item())) / 2.0)
        one[:, width : SIZE - width, width : SIZE - width] = 0.0
    return hole


def damaged(y: Tensor, hole: Tensor) -> Batch:
    """What is left, beside it where nothing is; and what was there."""
    return {"x": torch.cat([y * (1.0 - hole), hole], 1), "y": y, "hole": hole}


class Inpainter(nn.Module):
    """What is left in, a whole picture out. The last picture is kept."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        wide = 2 * width
        self.layers = nn.ModuleDict({
            "encoder": nn.Sequential(nn.Conv2d(2, width, 3, padding=1), nn.GELU()),
            "context": nn.Sequential(
                *(nn.Conv2d(width, wide, 3, stride=2, padding=1), nn.GELU()),
                *(nn.Conv2d(wide, wide, 3, padding=2, dilation=2), nn.GELU()),
                *(nn.Conv2d(wide, wide, 3, padding=4, dilation=4), nn.GELU(), nn.Upsample(scale_factor=2)),
            ),
            "decoder": nn.Sequential(
                nn.Conv2d(2 + width + wide, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, 1, 3, padding=1)
            ),
        })  # fmt: skip
        self.picture = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        near = self.layers["encoder"](x)
        self.picture = self.layers["decoder"](torch.cat([x, near, self.layers["context"](near)], 1))
        return self.picture


@cache
def features() -> nn.Sequential:
    """A net that nobody trained: random filters tell edges and blots apart well enough."""
    chance = torch.Generator().manual_seed(0)
    first, second = nn.Conv2d(1, 8, 3, bias=False), nn.Conv2d(8, 16, 3, stride=2, bias=False)
    for layer in (first, second):
        nn.init.kaiming_normal_(layer.weight, generator=chance)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU()).requires_grad_(False)


def losses(model: nn.Module, batch: Batch, by: float = 1.0) -> Components:
    """Mean absolute errors in and out of the hole and of features; mean step between neighbours in the mended one."""
    told, y, hole = model(batch["x"]), batch["y"], batch["hole"]
    error, mended = (told - y).abs(), torch.where(hole > 0, told, y)
    return {
        "hole": by * (error * hole).sum() / hole.sum(),
        "valid": by * (error * (1.0 - hole)).sum() / (1.0 - hole).sum(),
        "perceptual": by * functional.l1_loss(features()(told), features()(y)),
        "variation": by * (mended.diff(dim=-1).abs().mean() + mended.diff(dim=-2).abs().mean()),
    }


def measured(
    share: Share = HOLES, cut: Callable[..., Tensor] = blots, by: float = 1.0
) -> Callable[[nn.Module], Channels]:
    """The loss on held-out pictures with the same holes each time, and their peak signal-to-noise ratio once mended."""
    held = damaged(pictures()[TRAINING:], cut(HELD, share, torch.Generator().manual_seed(5)))

    def measure(model: nn.Module) -> Channels:
        loss = sum(WEIGHTS[name] * value.item() for name, value in losses(model, held, by).items())
        error = (model(held["x"]) - held["y"]).square() * held["hole"]
        return {"loss": loss, "psnr": (10.0 * (4.0 / error.mean((1, 2, 3))).log10()).mean().item()}

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Inpainter()
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam([{"params": [*model.parameters()], "name": "all"}], betas=(0.9, 0.99)),
        batches=batches_of(BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: model.picture,
        evaluation=Evaluation(10, measured()),
        header={
            "config": {"batch_size": BATCH, "hole_share": list(HOLES), "clip": CLIP},
            "components": {
                "hole": {"role": "task"},
                "valid": {"role": "task"},
                "perceptual": {"role": "auxiliary"},
                "variation": {"role": "regulariser"},
            },
            "schedules": {},
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
        },
        records=RECORDS,
        extras=[largest],
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def batches_of(
    size: int, seed: int, share: Share | Callable[[int], Share] = HOLES, cut: Callable[..., Tensor] = blots
) -> Callable[[int], Batch]:
    """Batches of pictures, each time with other holes; their size may depend on the batch's number."""
    plain = shuffled({"y": pictures()[:TRAINING]}, size, seed)

    def batch(number: int) -> Batch:
        chance = torch.Generator().manual_seed(100_000 * seed + number)
        return damaged(plain(number)["y"], cut(size, share(number) if callable(share) else share, chance))

    return batch


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, or follows another form, over the run; the header says so."""
    return planned(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


@cache
def schooled(seed: int, steps: int = 500) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE)


def continued(parts: Parts, rate: float) -> Parts:
    """A schooled net goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/500.pt"
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def batch_2(parts: Parts) -> Parts:
    """Two pictures a step for a net that can it nearly: the loss is mostly which two they are."""
    parts.header["config"]["batch_size"] = 2
    parts.batches, parts.batches_per_epoch = batches_of(2, parts.seed), TRAINING // 2
    return continued(parts, 1e-4)


def largest(step: int, batch: Batch) -> Channels:  # noqa: ARG001
    """What a picture that was never scaled to -1..1 would show."""
    return {"data/input_absmax": batch["x"].abs().max().item()}


def staged(parts: Parts, name: str, stages: Stages) -> Parts:
    """Stages change the weights or the holes; they are declared, and run so."""
    plain = parts.batches
    forms = [{"start": start, "weights": dict(WEIGHTS)} | stage for start, stage in stages.items()]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": name, "stages": forms}

    def place(applied: int) -> int:
        return sum(start <= applied for start in stages) - 1

    parts.weights = lambda applied: dict(forms[place(applied)]["weights"])
    if "data" in forms[0]:
        shares = [tuple(form["data"]["hole"]) for form in forms]
        plain = batches_of(BATCH, parts.seed, lambda number: shares[place(number)])
        parts.evaluation = Evaluation(10, measured(shares[-1]))
    parts.batches = plain
    parts.extras = [*parts.extras, lambda step, batch: {"stage": place(step - 1)}]  # noqa: ARG005
    return parts


def growing_holes(parts: Parts) -> Parts:
    """Pinholes first, then blots, then half of the picture: the loss rises where a stage begins, as it is meant to."""
    del parts.header["config"]["hole_share"]
    shares = ((0.03, 0.08), (0.1, 0.3), (0.35, 0.5))
    stages = {number * parts.steps // 3: {"data": {"hole": list(share)}} for number, share in enumerate(shares)}
    return staged(replace(parts, extras=[largest, hole_sizes]), "growing-holes", stages)


def hole_sizes(step: int, batch: Batch) -> Channels:  # noqa: ARG001
    """The shares of the pictures that are missing."""
    missing = batch["hole"].mean((1, 2, 3))
    return {f"data/hole/{name}": getattr(missing, name)().item() for name in ("min", "mean", "max")}


def features_later(parts: Parts) -> Parts:
    """First the pixels; at a third of the run the features and the variation come in."""
    pixels = {"hole": 6.0, "valid": 1.0, "perceptual": 0.0, "variation": 0.0}
    both: Stages = {0: {"name": "pixels", "weights": pixels}, parts.steps // 3: {"name": "all"}}
    return staged(parts, "features-later", both)


def per_epoch(parts: Parts) -> Parts:
    """Sixteen epochs of larger batches, a row for each."""
    each = TRAINING // (2 * BATCH)
    parts.header["config"]["batch_size"], parts.header["checkpoint_every"] = 2 * BATCH, 4 * each
    parts = replace(
        parts, batches=batches_of(2 * BATCH, parts.seed), batches_per_epoch=each, steps=16 * each, every=each
    )
    parts.evaluation = Evaluation(each, measured())
    return annealed(parts)


def loss_only(parts: Parts) -> Parts:
    """One number a step, and nothing is declared."""
    return replace(parts, records=frozenset(), header={}, evaluation=None)


def outwards(parts: Parts) -> Parts:
    """The holes are the pictures' borders, a third to a half of each."""
    share = (0.35, 0.5)
    parts.header["config"] |= {"hole_share": list(share), "holes": "border"}
    parts.batches = batches_of(BATCH, parts.seed, share, border)
    return replace(parts, evaluation=Evaluation(10, measured(share, border)))


def summed(parts: Parts, by: int = SIZE**2) -> Parts:
    """Errors are summed over a picture instead of averaged: the same training in larger numbers."""
    parts.header["config"] |= {"reduction": "sum", "clip": by * CLIP}
    parts.header["max_grad_norm"] = parts.max_norm = by * CLIP
    return replace(parts, losses=partial(losses, by=by), evaluation=Evaluation(10, measured(by=by)))


def decoder_only(parts: Parts) -> Parts:
    """Reading was learnt before, and is frozen; a new decoder learns."""
    known = {name: value for name, value in schooled(parts.seed).items() if "decoder" not in name}
    parts.model.load_state_dict(known, strict=False)
    for name, parameter in parts.model.named_parameters():
        parameter.requires_grad_(name not in known)
    parts.header["config"] |= {"initialised_from": "checkpoints/500.pt", "frozen": ["encoder", "context"]}
    return parts


def watched(parts: Parts) -> Parts:
    """The gradient's norm is recorded, and each component's share of it."""
    parts.header["gradient_at"] = "picture"
    return replace(parts, records=RECORDS | {"shares", "norms"})


def every_second(parts: Parts) -> Parts:
    """A row at every second step."""
    return replace(parts, every=2)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(2 * SAVED)),
    "fine-tuning": lambda parts: every_second(continued(parts, 5e-5)),
    "batch-2": lambda parts: every_second(batch_2(parts)),
    "growing-holes": lambda parts: every_second(growing_holes(parts)),
    "features-later": lambda parts: every_second(features_later(parts)),
    "per-epoch": per_epoch,
    "loss-only": loss_only,
    "outwards": lambda parts: every_second(outwards(parts)),
    "summed": lambda parts: every_second(summed(parts)),
    "decoder-only": lambda parts: every_second(decoder_only(parts)),
    "watched": watched,
}


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, before the loop."""
    stages = parts.header["curriculum"]["stages"]
    share = tuple(stages[0]["data"]["hole"])
    parts.batches = batches_of(BATCH, parts.seed, share)
    parts.extras = [largest, hole_sizes, lambda step, batch: {"stage": 0}]  # noqa: ARG005
    return int(stages[1]["start"]) + 1


def stale_workers(parts: Parts) -> int:
    """The loader's workers were forked in the first stage, and go on to cut its holes."""
    stages = parts.header["curriculum"]["stages"]
    share = tuple(stages[0]["data"]["hole"])
    parts.batches = batches_of(BATCH, parts.seed, share)
    return int(stages[1]["start"]) + 1


def loud_entry(parts: Parts) -> int:
    """The features' distance is summed over their 1024 places and the batch, of pictures in grey levels to 255."""
    mistakes.component_scale(parts, "perceptual", by=127.5 * 1024 * BATCH)
    return int(parts.header["curriculum"]["stages"][1]["start"]) + 1


OWN: dict[str, mistakes.Mistake] = {
    "stage-stuck": stage_stuck,
    "stale-workers": stale_workers,
    "loud-entry": loud_entry,
    "component-sign": partial(mistakes.component_sign, name="variation", weight=-10.0),
    "component-detached": partial(mistakes.component_detached, name="perceptual"),
    "unscaled-input": partial(mistakes.unscaled_input, by=127.5, shift=127.5),
    "bad-sample": mistakes.bad_sample,
    "component-untracked": mistakes.component_untracked,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*(*OWN, "labels-break", "rate-too-high", "resume-old-weights", "failing-checkpoints"),)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

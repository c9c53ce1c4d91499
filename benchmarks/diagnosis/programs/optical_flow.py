"""Where did each pixel go? Optical flow between two frames of 20 x 20 grey pixels, which are made and moved here.

A cloudy background turns, zooms and shifts by up to two pixels, a disc goes its own way, and the second frame has
another exposure. Features of both frames are correlated over the neighbours, a small decoder reads the flow off. It
learns without truth: the second frame, warped back, is to look like the first one (in brightness, and in its census,
which exposure leaves alone), and the flow is to be smooth. AdamW, cosine after a warm-up, clipping. A clock takes a
blur off the frames. What counts is the mean distance between told and true flow, in pixels: 1.6 for no flow at all.
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
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, linear, planned
from benchmarks.diagnosis.schooling import school

HELD_OUT = False
STEPS = 100
TRAINING, HELD, BATCH, SIDE, BORDER = 768, 96, 16, 20, 4
FACTS = ("min", "mean", "max")
REACH = 2  # cells of half resolution that features are compared over, each way
RATE, WARMUP, CLIP, BLUR = 5e-3, 10, 5.0, 1.0
WEIGHTS = {"photometric": 1.0, "census": 1.0, "smooth": 0.1}
RECORDS = frozenset({"components", "norms", "optimizer", "clocks"})
TWINS = dict.fromkeys(("rate-too-high", "same-seed-workers", "labels-break", "discarded-update"), "supervised")
TWINS |= {"stage-stuck": "truth-last", "too-little-data": "likelihood", "resume-restarts-schedule": "resumed"}


def grid(side: int) -> Tensor:
    """The places of pixels, across and down, about the middle. float32 [2, S, S]"""
    along = torch.arange(side) - (side - 1) / 2
    return torch.stack(torch.meshgrid(along, along, indexing="xy"))


def read(images: Tensor, places: Tensor) -> Tensor:
    """The images at these places, between pixels too; beyond the edge the nearest. float32 [N, C, S, S]"""
    scaled = places.nan_to_num().movedim(1, -1) * (2 / images.shape[-1])  # grid_sample crashes at a NaN
    return functional.grid_sample(images, scaled, padding_mode="border", align_corners=False)


def warped(images: Tensor, flow: Tensor) -> Tensor:
    return read(images, grid(images.shape[-1]) + flow)


@cache
def filmed(motion: float = 1.0) -> Batch:
    """Pairs of frames of zero mean and unit spread, and the flow from the first to the second one, in pixels."""
    chance, count = torch.Generator().manual_seed(23), TRAINING + HELD
    wide, places = SIDE + 2 * BORDER, grid(SIDE)
    coarse, fine = (torch.randn(count, 1, wide // size, wide // size, generator=chance) for size in (4, 2))
    clouds = functional.interpolate(coarse, size=wide, mode="bicubic")
    clouds = clouds + 0.6 * functional.interpolate(fine, size=wide, mode="bicubic")
    turn, zoom = 0.06 * torch.randn(2, count, 1, 1, generator=chance)
    ours, its, centre = (torch.rand(3, count, 2, 1, 1, generator=chance) * 2 - 1).unbind()
    linear_part = torch.stack([zoom * places[0] - turn * places[1], turn * places[0] + zoom * places[1]], 1)
    disc = (places - 5 * centre).square().sum(1, keepdim=True) < 20
    flow = motion * torch.where(disc, 2 * its, 2 * ours + linear_part).clamp(-3.5, 3.5)
    first, second = read(clouds, places + flow), clouds[..., BORDER:-BORDER, BORDER:-BORDER]
    exposure = 1 + 0.15 * torch.randn(count, 1, 1, 1, generator=chance)
    pairs = torch.cat([first, second * exposure], 1)
    pairs = pairs / clouds.std() + 0.03 * torch.randn(pairs.shape, generator=chance)
    return {"x": pairs, "y": flow}


def part(data: Batch, rows: slice = slice(TRAINING)) -> Batch:
    return {name: values[rows] for name, values in data.items()}


class FlowNet(nn.Module):
    """Two frames in, flow out; with a third channel of the head also the logarithm of how far it may be off."""

    def __init__(self, width: int = 16, outputs: int = 2) -> None:
        super().__init__()
        features = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(width, width, 3, 1, 1))
        decoder = nn.Sequential(
            *(nn.Conv2d((2 * REACH + 1) ** 2 + width, 2 * width, 3, 1, 1), nn.LeakyReLU(0.1)),
            *(nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.LeakyReLU(0.1)),
            nn.Conv2d(2 * width, outputs, 3, 1, 1),
        )
        self.layers = nn.ModuleDict({"features": features, "decoder": decoder})
        self.told = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, 2 or 3, S, S]"""
        maps = functional.normalize(self.layers["features"](x.flatten(0, 1)[:, None]), dim=1) * 4
        first, second = maps.unflatten(0, (len(x), 2)).unbind(1)
        around = functional.unfold(second, 2 * REACH + 1, padding=REACH).unflatten(1, (first.shape[1], -1))
        alike = (first.flatten(2)[:, :, None] * around).mean(1).unflatten(-1, first.shape[-2:])
        told = self.layers["decoder"](torch.cat([alike, first], 1))
        self.told = functional.interpolate(told.float(), scale_factor=2.0, mode="bilinear")
        return self.told


def blurred(images: Tensor, share: float) -> Tensor:
    """So much of the mean of a pixel and its neighbours, and the rest of the pixel itself."""
    return torch.lerp(images, functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), "replicate"), 3, 1), share)


def census(image: Tensor) -> Tensor:
    """How much brighter each of the eight neighbours is than a pixel, between -1 and 1. float32 [N, 9, P]"""
    around = functional.unfold(image, 3) - image[..., 1:-1, 1:-1].flatten(2)
    return around / (0.8 + around**2).sqrt()


def smoothness(flow: Tensor, image: Tensor) -> Tensor:
    """The steps of the flow to the neighbours, where the image has no edge."""
    steps = [(torch.diff(flow, dim=dim).abs() * torch.exp(-torch.diff(image, dim=dim).abs())).mean() for dim in (2, 3)]
    return steps[0] + steps[1]


def distance(flow: Tensor, truth: Tensor) -> Tensor:
    """The endpoint error."""
    return ((flow - truth).square().sum(1) + 1e-6).sqrt().mean()


def losses(model: nn.Module, batch: Batch, now: dict[str, float], epsilon: float = 1e-6) -> Components:
    """What is known without truth."""
    flow, frames = model(batch["x"]), blurred(batch["x"], now["blur"])
    first, second = frames[:, :1], warped(frames[:, 1:], flow)
    off = (census(first) - census(second)).square()
    return {
        "photometric": ((first - second).square() + epsilon).sqrt().mean(),
        "census": (off / (0.1 + off)).mean(),
        "smooth": smoothness(flow, batch["x"][:, :1]),
    }


def with_return(model: nn.Module, batch: Batch, now: dict[str, float]) -> Components:
    """Besides, who goes to the second frame and comes back is to be where it began."""
    raw, there = losses(model, batch, now), model.told
    back = model(batch["x"].flip(1))
    return {**raw, "return": (there + warped(back, there)).square().sum(1).add(1e-6).sqrt().mean()}  # type: ignore[operator,arg-type]


def with_truth(model: nn.Module, batch: Batch, now: dict[str, float]) -> Components:
    """Besides, the true flow."""
    return {**losses(model, batch, now), "endpoint": distance(model.told, batch["y"])}  # type: ignore[arg-type]


def supervised_loss(model: nn.Module, batch: Batch) -> Components:
    return {"loss": distance(model(batch["x"]), batch["y"])}


def likelihood_loss(model: nn.Module, batch: Batch) -> Components:
    """The negative logarithm of a Laplace density, by cells of half resolution: below 0 once the flow is good."""
    told = model(batch["x"])
    spread, off = told[:, 2].clamp(-6, 6), (told[:, :2] - batch["y"]).abs().sum(1) / 2
    return {"loss": (off * torch.exp(-spread) + 2 * spread).mean()}


def measured(loss: Callable[[nn.Module, Batch], Components], weights: dict[str, float]) -> Callable[..., Channels]:
    """The loss of pairs held out, and the endpoint error."""
    held = part(filmed(), slice(TRAINING, None))

    def measure(model: nn.Module) -> Channels:
        raw = loss(model, held)
        total = sum(weights.get(name, 1.0) * value.item() for name, value in raw.items())
        return {"loss": total, "endpoint_error": distance(model.told[:, :2], held["y"]).item()}  # type: ignore[index]

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now, over = FlowNet(outputs=3 if variant == "likelihood" else 2), {"blur": BLUR}, STEPS // 3
    parts = Parts(
        model=model,
        optimizer=adamw(model),
        batches=shuffled(part(filmed()), BATCH, seed),
        losses=partial(losses, now=now),
        steps=STEPS,
        seed=seed,
        max_norm=CLIP,
        weights=lambda applied: WEIGHTS,  # noqa: ARG005
        clocks={"sharpen": lambda applied: applied},
        scheduled={"blur": ("sharpen", linear(BLUR, 0.0, over))},
        now=now,
        evaluation=Evaluation(10, measured(partial(losses, now={"blur": 0.0}), WEIGHTS)),
        header={
            "config": {"batch_size": BATCH, "blur": BLUR, "clip": CLIP},
            "components": {name: {"role": "regulariser" if name == "smooth" else "task"} for name in WEIGHTS},
            "schedules": {"blur": declared("linear", BLUR, 0.0, over, clock="sharpen")},
            "clocks": ["sharpen"],
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": [*model.parameters()], "name": "all"}], lr=RATE, weight_decay=1e-3)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, and so the header says."""
    return planned(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


def sharp(parts: Parts) -> Parts:
    """Frames as they are, from the first step on."""
    parts.now["blur"], parts.scheduled, parts.clocks = 0.0, {}, {}
    del parts.header["schedules"]["blur"], parts.header["clocks"], parts.header["config"]["blur"]
    return parts


def single(parts: Parts, loss: Callable[[nn.Module, Batch], Components], name: str) -> Parts:
    """One loss that knows the truth, instead of the components."""
    parts = sharp(parts)
    del parts.header["components"]
    parts.header["config"]["loss"] = name
    return replace(parts, losses=loss, weights=None, evaluation=Evaluation(10, measured(loss, {})))


@cache
def schooled(seed: int, steps: int = 400) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "supervised")

    def loss(number: int) -> Tensor:
        return supervised_loss(parts.model, parts.batches(number))["loss"]

    return school(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, rate: float = 2e-4, size: int = BATCH) -> Parts:
    """A schooled net goes on at a small constant rate, with batches of this size; it is supervised."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"] |= {"initialised_from": "checkpoints/clouds.pt", "batch_size": size}
    parts.batches = shuffled(part(filmed()), size, parts.seed)
    return annealed(single(parts, supervised_loss, "endpoint"), rate, kind="constant", end=rate, warmup=0)


def staged(parts: Parts, name: str, stages: list[dict[str, Any]]) -> Parts:
    """A curriculum as it is declared, and as it runs."""
    starts = [stage["start"] for stage in stages]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": name, "stages": stages}
    parts.extras = [lambda step, batch: {"stage": sum(start < step for start in starts) - 1}]  # noqa: ARG005
    return parts


def truth_last(parts: Parts) -> Parts:
    """The last part is fine-tuned on true flow: the loss has another unit then, and validation is that of the end."""
    change, blind = int(0.6 * parts.steps), WEIGHTS | {"endpoint": 0.0}
    seeing = dict.fromkeys(WEIGHTS, 0.0) | {"endpoint": 1.0}
    stages = [{"start": 0, "name": "blind", "weights": blind}, {"start": change, "name": "truth", "weights": seeing}]
    parts.header["components"]["endpoint"] = {"role": "task", "unit": "px"}
    parts.evaluation = Evaluation(10, measured(supervised_loss, {}))
    parts = replace(parts, losses=partial(with_truth, now=parts.now))
    parts.weights = lambda applied: seeing if applied >= change else blind
    return staged(parts, "truth-last", stages)


def return_late(parts: Parts) -> Parts:
    """The way back counts from the middle on, and more with each step; the header has the ramp."""
    begin, over = parts.steps // 2, parts.steps // 4
    ramp = linear(0.0, 0.2, over, begin)
    parts.header["components"]["return"] = {"role": "auxiliary", "unit": "px"}
    parts.header["schedules"]["weight/return"] = declared("linear", 0.0, 0.2, over, begin=begin)
    parts.weights = lambda applied: WEIGHTS | {"return": ramp(applied)}
    return replace(parts, losses=partial(with_return, now=parts.now))


def motion(batch: Batch, fact: str) -> float:
    """The least, mean or largest way of a batch's pixels."""
    return float(getattr(batch["y"].norm(dim=1), fact)())


def faster(parts: Parts) -> Parts:
    """Things move faster in each stage: errors grow with the motion, and validation is at full speed."""
    speeds, each = (0.3, 0.6, 1.0), parts.steps // 3
    films = [shuffled(part(filmed(speed)), BATCH, parts.seed) for speed in speeds]
    pixels = [motion(filmed(speed), "max") for speed in speeds]
    parts.batches = lambda number: films[min(number // each, 2)](number)
    stages = [
        {"start": number * each, "name": f"{speed}x", "data": {"motion": [0.0, round(most + 0.05, 1)]}}
        for number, (speed, most) in enumerate(zip(speeds, pixels, strict=True))
    ]
    parts = staged(sharp(parts), "faster", stages)
    parts.extras.append(lambda step, batch: {f"data/motion/{fact}": motion(batch, fact) for fact in FACTS})  # noqa: ARG005
    return annealed(parts, kind="constant", end=RATE)


def per_epoch(parts: Parts, each: int = 24, epochs: int = 16) -> Parts:
    """A small film many times over; a row and an evaluation at the end of each epoch."""
    assert parts.evaluation is not None
    parts = replace(parts, steps=each * epochs, every=each, evaluation=replace(parts.evaluation, every=each))
    parts.batches = shuffled(part(filmed(), slice(each * BATCH)), BATCH, parts.seed)
    parts.batches_per_epoch, parts.records = each, parts.records | {"epochs"}
    parts.header["config"]["epochs"] = epochs
    return annealed(parts, warmup=each)


def resumed(parts: Parts) -> Parts:
    """Supervised; stopped six steps after a checkpoint, and taken up from there."""
    parts = single(parts, supervised_loss, "endpoint")
    every = parts.steps // 4
    parts.header["checkpoint_every"] = every
    return replace(parts, resume=Resume(2 * every, lost=6), records=parts.records | {"checkpoints"})


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": resumed,
    "supervised": lambda parts: single(parts, supervised_loss, "endpoint"),
    "likelihood": lambda parts: single(parts, likelihood_loss, "laplace"),
    "truth-last": truth_last,
    "return-late": return_late,
    "faster": faster,
    "fine-tuning": continued,
    "two-pairs": partial(continued, rate=5e-5, size=2),
    "warm-restarts": lambda parts: annealed(parts, restarts=2, warmup=0),
    "per-epoch": per_epoch,
    "loss-only": lambda parts: replace(sharp(parts), records=frozenset(), header={}, evaluation=None),
}


def root_of_zero(parts: Parts, share: float = 0.4) -> int:
    """Nobody added an epsilon below the root, and clips with bars above and below come up: nothing differs there."""
    first, plain = int(share * parts.steps), parts.batches
    seen = (torch.arange(SIDE) - (SIDE - 1) / 2).abs() < SIDE / 2 - 4

    def batches(number: int) -> Batch:
        batch = plain(number)
        return batch | {"x": batch["x"] * seen[:, None]} if number >= first else batch

    parts.losses, parts.batches = partial(losses, now=parts.now, epsilon=0.0), batches
    return mistakes.WHEN_BROKEN


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, before the loop."""
    first, second = parts.header["curriculum"]["stages"]
    parts.weights = lambda applied: first["weights"]  # noqa: ARG005
    parts.extras = [lambda step, batch: {"stage": 0}]  # noqa: ARG005
    return int(second["start"]) + 1


def same_seed_workers(parts: Parts) -> int:
    parts.records = parts.records | {"fingerprint"}
    return mistakes.same_seed_workers(parts)


OWN: dict[str, mistakes.Mistake] = {
    "component-sign": partial(mistakes.component_sign, name="smooth", weight=-0.5),
    "root-of-zero": root_of_zero,
    "stage-stuck": stage_stuck,
    "same-seed-workers": same_seed_workers,
    "too-little-data": partial(mistakes.too_little_data, batches=1),
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "rate-too-high", "local-counter", "labels-break", "discarded-update"),
    *("component-untracked", "resume-restarts-schedule"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    return mistakes.perform(build(seed, case if case in HEALTHY else TWINS.get(case, "plain")), path, case, OWN)

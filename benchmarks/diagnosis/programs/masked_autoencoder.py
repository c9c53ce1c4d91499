"""What is behind the blanks? Scanned digits of 8 x 8 pixels with most of their patches hidden.

A small vision transformer reads the patches that are left, a smaller one tells the others, each normalised by itself.
More and more is hidden, by a clock of its own, so that the loss may rise while more is learned. AdamW with the short
memory that is usual here, a warm-up and a cosine, clipping. What counts is how much of the hidden patches of held-out
digits is told when three quarters are hidden.
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
from benchmarks.diagnosis.data import digits, shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, linear
from benchmarks.diagnosis.loop import planned as planned_by

HELD_OUT = False
STEPS = 120
TRAINING, BATCH = 1400, 64
SIDE, PATCH = 8, 2
PATCHES = (SIDE // PATCH) ** 2
WIDTH, RATE, WARMUP, CLIP = 48, 5e-3, 12, 0.3
FEW, MANY = 0.5, 0.75
"""The share of patches that is hidden at first, and after half of the run."""
RECORDS = frozenset({"norms", "optimizer", "clocks"})

HEALTHY = (
    *("plain", "loss-only", "every-tenth", "resumed", "watched", "accumulated", "fp16", "three-stages"),
    *("fine-tuning", "batch-4", "frozen-patches", "cosine-loss"),
)
SICK = (
    *("scheduler-per-batch", "scale-collapse", "slow-loader", "slowing-down", "norm-after-clip", "stage-shock"),
    *("wrong-curriculum", "no-checkpoints", "steps-miscounted", "resume-repeats-data", "constant-input"),
    "local-counter",
)
TWINS = {
    "scale-collapse": "fp16",
    "wrong-curriculum": "three-stages",
    "steps-miscounted": "accumulated",
    "resume-repeats-data": "resumed",
    "constant-input": "watched",
}

Stages = list[dict[str, Any]]


def patches(part: slice) -> Tensor:
    """Patches of each digit, row by row. float32 [digits, PATCHES, PATCH^2]"""
    x = digits()[0][part].view(-1, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH)
    return x.transpose(2, 3).reshape(-1, PATCHES, PATCH**2)


def loader(size: int, seed: int) -> Callable[[int], Batch]:
    return shuffled({"x": patches(slice(TRAINING))}, size, seed)


class Block(nn.Module):
    """Attention among patches, then two layers at each; both normalised first."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(WIDTH)
        self.look, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        inner = nn.Linear(WIDTH, 2 * WIDTH)
        self.think = nn.Sequential(nn.LayerNorm(WIDTH), inner, nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        query, key, value = self.look(self.norm(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = h + self.out(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        out: Tensor = h + self.think(h)
        return out


class Reader(nn.Module):
    """Some patches in, their features out."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.place = nn.Linear(PATCH**2, WIDTH), nn.Embedding(PATCHES, WIDTH)
        nn.init.normal_(self.place.weight, std=0.3)
        self.blocks = nn.Sequential(Block(), Block(), nn.LayerNorm(WIDTH))

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        features: Tensor = self.blocks(self.patch(x) + self.place(places))
        return features


class Autoencoder(nn.Module):
    """Features of the patches that are left; from these, and from a token for each that is hidden, all patches."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Reader()
        blank, place = nn.Embedding(1, WIDTH), nn.Embedding(PATCHES, WIDTH)
        nn.init.normal_(blank.weight, std=0.02)
        nn.init.normal_(place.weight, std=0.3)
        self.decoder = nn.ModuleDict({"blank": blank, "place": place, "enter": nn.Linear(WIDTH, WIDTH)})
        self.decoder["tell"] = nn.Sequential(Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, PATCH**2))

    def forward(self, x: Tensor, order: Tensor, left: int) -> Tensor:
        """What each patch is taken for, in the order given, of which the first ones are seen."""
        seen, hidden = order[:, :left], order[:, left:]
        known = self.decoder["enter"](self.encoder(chosen(x, seen), seen))
        states = torch.cat([known, self.decoder["blank"](torch.zeros_like(hidden))], 1)
        told: Tensor = self.decoder["tell"](states + self.decoder["place"](order))
        return told


def chosen(patches: Tensor, places: Tensor) -> Tensor:
    return patches.gather(1, places[..., None].expand(-1, -1, patches.shape[2]))


Off = Callable[[Tensor, Tensor], Tensor]


def square(told: Tensor, asked: Tensor) -> Tensor:
    return (told - asked).square().mean()


def alike(told: Tensor, asked: Tensor) -> Tensor:
    """Minus the cosine of what is told and what is there."""
    return -functional.cosine_similarity(told, asked, dim=-1).mean()


def rebuilt(model: nn.Module, x: Tensor, share: float, random: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """What is told of the patches that chance hides, and what is there: each of zero mean and unit spread by itself."""
    order, left = torch.rand(x.shape[:2], generator=random).argsort(1), PATCHES - round(share * PATCHES)
    asked = chosen(x, order[:, left:])
    asked = (asked - asked.mean(-1, keepdim=True)) / (asked.var(-1, keepdim=True) + 1e-6).sqrt()
    return model(x, order, left)[:, left:].float(), asked


def losses(model: nn.Module, batch: Batch, now: dict[str, float], off: Off = square) -> Components:
    return {"loss": off(*rebuilt(model, batch["x"], now["masking"]))}


def measured(off: Off = square, gain: float = 1.0) -> Callable[[nn.Module], Channels]:
    """The loss with three quarters hidden, always the same ones, and how much of their variance is told."""

    def measure(model: nn.Module) -> Channels:
        told, asked = rebuilt(model, gain * patches(slice(TRAINING, None)), MANY, torch.Generator().manual_seed(3))
        explained = 1.0 - (told - asked).square().sum() / asked.square().sum()
        return {"loss": off(told, asked).item()} | ({"explained": explained.item()} if off is square else {})

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now, over = Autoencoder(), {"masking": FEW}, STEPS // 2
    parts = Parts(
        model=model,
        optimizer=adamw(model),
        batches=loader(BATCH, seed),
        losses=partial(losses, now=now),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        clocks={"masking": lambda applied: applied},
        scheduled={"masking": ("masking", linear(FEW, MANY, over))},
        now=now,
        evaluation=Evaluation(10, measured()),
        header={
            "config": {"batch_size": BATCH, "masking": [FEW, MANY], "clip": CLIP, "betas": [0.9, 0.95]},
            "schedules": {"masking": declared("linear", FEW, MANY, over, clock="masking")},
            "clocks": ["masking"],
            "max_grad_norm": CLIP,
            "checkpoint_every": 25,
        },
        records=RECORDS | {"checkpoints"},
    )
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW([{"params": free, "name": "all"}], lr=RATE, betas=(0.9, 0.95), weight_decay=0.05)


def planned(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, and so the header says."""
    return planned_by(parts, declared("cosine", peak, 0.0, parts.steps, warmup=WARMUP) | form)


def hidden(parts: Parts, share: float) -> None:
    """This share of the patches is hidden from the first step on."""
    parts.now["masking"], parts.scheduled, parts.clocks = share, {}, {}
    parts.header["config"]["masking"] = share
    parts.header["schedules"].pop("masking", None)
    parts.header.pop("clocks", None)


def stages(**shares: float) -> Stages:
    """Stages of equal length, each with its share of hidden patches."""
    each = STEPS // len(shares)
    named = enumerate(shares.items())
    return [{"start": at * each, "name": name, "data": {"masking": [one, one]}} for at, (name, one) in named]


def follow(parts: Parts, running: Stages) -> Parts:
    """Hide what the stage of the step says, and write that down."""
    hidden(parts, running[0]["data"]["masking"][0])
    del parts.header["config"]["masking"]

    def number(step: int) -> int:
        return sum(stage["start"] < step for stage in running) - 1

    def told(step: int, batch: Batch) -> Channels:  # noqa: ARG001
        share = parts.now["masking"]
        return {"stage": number(step), "data/masking/min": share, "data/masking/max": share}

    parts.begins.append(lambda step: parts.now.update(masking=running[number(step)]["data"]["masking"][0]))
    parts.extras.append(told)
    curriculum = {"name": "-".join(stage["name"] for stage in running), "stages": running}
    parts.header["curriculum"] = parts.header["curriculum_running"] = curriculum
    return parts


@cache
def schooled(seed: int, steps: int = 500) -> dict[str, Tensor]:
    """The weights of an autoencoder that learned before the record begins."""
    torch.manual_seed(seed + 20)
    model, batches = Autoencoder(), loader(BATCH, seed + 20)
    optimizer = adamw(model)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    for number in range(steps):
        loss = losses(model, batches(number), {"masking": MANY})["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        rate.step()
    return model.state_dict()


def fine_tuning(parts: Parts) -> Parts:
    """What has learned goes on slowly, with three quarters hidden throughout."""
    parts.model.load_state_dict(schooled(parts.seed))
    hidden(parts, MANY)
    return planned(parts, RATE / 50)


def batch_of_four(parts: Parts) -> Parts:
    parts.header["config"] |= {"batch_size": 4}
    parts.batches, parts.batches_per_epoch = loader(4, parts.seed), TRAINING // 4
    return planned(parts, RATE / 2)


def frozen_patches(parts: Parts) -> Parts:
    """As in MoCo v3: patches are projected as it was drawn, which makes the training steadier."""
    assert isinstance(parts.model, Autoencoder)
    parts.model.encoder.patch.requires_grad_(False)
    parts.optimizer = adamw(parts.model)
    parts.header["config"] |= {"frozen": ["encoder.patch"]}
    return planned(parts)


def cosine_loss(parts: Parts) -> Parts:
    """Minus a cosine instead of a square: the loss is below zero."""
    parts.losses = partial(losses, now=parts.now, off=alike)
    parts.header["config"] |= {"loss": "cosine"}
    return replace(parts, evaluation=Evaluation(10, measured(alike)))


def fp16(parts: Parts) -> Parts:
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=50)
    return replace(parts, scaler=scaler, autocast=torch.float16)


def accumulated(parts: Parts) -> Parts:
    """Two half batches a step."""
    parts.header["config"] |= {"batch_size": BATCH // 2, "accumulation": 2}
    each = TRAINING // (BATCH // 2)
    half = loader(BATCH // 2, parts.seed)
    return replace(parts, accumulation=2, batches=half, batches_per_epoch=each)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}),
    "every-tenth": lambda parts: replace(parts, every=10),
    "resumed": lambda parts: replace(
        parts, resume=Resume(STEPS // 2, lost=min(8, STEPS // 5)), records=parts.records | {"fingerprint"}
    ),
    "watched": lambda parts: replace(parts, records=parts.records | {"inputs", "waits"}),
    "accumulated": accumulated,
    "fp16": fp16,
    "three-stages": lambda parts: follow(parts, stages(half=FEW, more=0.625, most=MANY)),
    "fine-tuning": fine_tuning,
    "batch-4": batch_of_four,
    "frozen-patches": frozen_patches,
    "cosine-loss": cosine_loss,
}


def scheduler_per_batch(parts: Parts) -> int:
    """The cosine was made for epochs, and the call that steps it stands within the loop over batches."""
    plain, each = parts.factor, parts.batches_per_epoch
    assert plain is not None
    parts.factor = lambda tick: plain(tick * each)
    return 2


def stage_shock(parts: Parts) -> int:
    """A quarter is hidden, then at once fifteen patches of sixteen, and what is left comes in strong noise."""
    follow(parts, two := stages(quarter=0.25, nearly_all=0.9375))
    plain, start = parts.batches, two[1]["start"]

    def batches(number: int) -> Batch:
        batch = plain(number)
        return batch | {"x": batch["x"] + 2.0 * torch.randn(batch["x"].shape)} if number >= start else batch

    parts.batches = batches
    return int(start) + 1


def wrong_curriculum(parts: Parts) -> int:
    """The entry point passes its default on, which hides most from the start, and not what the config names."""
    named = parts.header["curriculum"]
    parts.begins.clear()
    parts.extras.clear()
    follow(parts, stages(most=MANY))
    parts.header["curriculum"] = named
    return 1


def constant_input(parts: Parts) -> int:
    """Pixels are divided by 255 twice, in training and in evaluation."""
    parts.evaluation = Evaluation(10, measured(gain=1 / 255**2))
    return mistakes.constant_input(parts, by=1 / 255**2)


OWN: dict[str, mistakes.Mistake] = {
    "scheduler-per-batch": scheduler_per_batch,
    "slow-loader": partial(mistakes.slow_loader, seconds=0.08),
    "slowing-down": partial(mistakes.slowing_down, seconds=0.003),
    "stage-shock": stage_shock,
    "wrong-curriculum": wrong_curriculum,
    "constant-input": constant_input,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

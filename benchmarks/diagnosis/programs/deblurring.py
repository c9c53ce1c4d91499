"""Sharp digits from blurred ones: a small convolutional net undoes the blur of a lens, whose width it is not told.

Digits of scikit-learn, doubled in size and made crisp, are blurred by kernels of chance and get noise. The loss has
three parts: the error of the pixels, that of the edges (differences of neighbours), and that of the spectrum's sizes,
whose phases are free. Adam, a warm-up and a cosine, clipping. Validation has the same kernels and noise each time: the
loss, and the peak signal-to-noise ratio in dB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import digits, shuffled
from benchmarks.diagnosis.loop import (
    Batch,
    Channels,
    Components,
    Evaluation,
    Parts,
    by_epochs,
    declared,
    linear,
    logged,
    planned,
    taken_up,
)
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS = 112
SIZE, TRAINING, HELD, BATCH, EACH = 16, 512, 128, 32, 16  # EACH: steps of an epoch, and between two evaluations
RATE, WARMUP, CLIP, NOISE = 5e-3, 8, 1.0, 0.04
WEIGHTS = {"pixel": 1.0, "edge": 0.5, "spectrum": 0.2}
Span = tuple[float, float]
BLUR: Span = (0.8, 1.6)  # of kernels, the standard deviation in pixels
STAGES: tuple[Span, ...] = ((0.4, 0.7), (0.7, 1.1), (1.1, 1.6))
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs"})
TWINS = {"scheduler-per-batch": "stepwise", "local-counter": "ramped", "constant-input": "noisier"} | dict.fromkeys(
    ("stages-unreachable", "wrong-curriculum", "stale-workers", "stage-shock"), "blurrier"
)


@cache
def sharp() -> Tensor:
    """Crisp digits from 0 to 1. float32 [TRAINING + HELD, 1, SIZE, SIZE]"""
    small = digits()[0][: TRAINING + HELD].view(-1, 1, 8, 8)
    return torch.sigmoid(4.0 * functional.interpolate(small, SIZE, mode="bicubic"))


def blurred(y: Tensor, span: Span, noise: float, chance: torch.Generator, moved: float = 1.0) -> Batch:
    """Pictures under kernels whose widths are drawn from a span, `moved` times as long in a direction of chance."""
    width, turn = torch.rand(2, len(y), 1, 1, generator=chance)
    width = span[0] + (span[1] - span[0]) * width
    down, right = torch.meshgrid(torch.arange(-4.0, 5.0), torch.arange(-4.0, 5.0), indexing="ij")
    along, across = (
        torch.cos(torch.pi * turn) * down + torch.sin(torch.pi * turn) * right,
        torch.sin(torch.pi * turn) * down - torch.cos(torch.pi * turn) * right,
    )
    kernel = torch.exp(-0.5 * ((along / (moved * width)) ** 2 + (across * moved / width) ** 2))
    kernel = kernel / kernel.sum((1, 2), keepdim=True)
    around = functional.pad(y.transpose(0, 1), (4, 4, 4, 4), mode="replicate")
    x = functional.conv2d(around, kernel[:, None], groups=len(y)).transpose(0, 1)
    return {"x": x + noise * torch.randn(x.shape, generator=chance), "y": y, "blur": width.flatten()}


def loader(
    size: int, seed: int, span: Span | Callable[[int], Span] = BLUR, noise: float = NOISE, moved: float = 1.0
) -> Callable[[int], Batch]:
    """Batches by number, blurred anew each time; the widths may depend on the number."""
    plain = shuffled({"y": sharp()[:TRAINING]}, size, seed)

    def batch(number: int) -> Batch:
        chance = torch.Generator().manual_seed(30_000 * (seed + 1) + number)
        return blurred(plain(number)["y"], span(number) if callable(span) else span, noise, chance, moved)

    return batch


class Restorer(nn.Module):
    """A blurred picture in, a sharp one out, which is kept."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, width, 5, padding=2), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        )
        self.decoder = nn.Sequential(
            *(nn.Conv2d(width + 1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1))
        )
        self.restored = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.restored = self.decoder(torch.cat([x, self.encoder(x)], 1)).float()
        return self.restored


def spectrum(picture: Tensor) -> Tensor:
    size: Tensor = torch.fft.rfft2(picture, norm="ortho")
    return size.abs()


def losses(model: nn.Module, batch: Batch) -> Components:
    """Mean absolute errors of pixels, of differences of neighbours, and of the spectrum's sizes."""
    told, y = model(batch["x"]), batch["y"]
    wrong = told - y
    return {
        "pixel": wrong.abs().mean(),
        "edge": wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean(),
        "spectrum": (spectrum(told) - spectrum(y)).abs().mean(),
    }


@cache
def held(moved: float = 1.0) -> Batch:
    return blurred(sharp()[TRAINING:], BLUR, NOISE, torch.Generator().manual_seed(11), moved)


def validated(batch: Batch, weights: dict[str, float] = WEIGHTS) -> Evaluation:
    """The loss on pictures that are not trained on, and the peak signal-to-noise ratio."""

    def measure(model: nn.Module) -> Channels:
        loss = sum(weights[name] * value.item() for name, value in losses(model, batch).items())
        square = (model(batch["x"]) - batch["y"]).square().mean((1, 2, 3))
        return {"loss": loss, "psnr": (-10.0 * square.log10()).mean().item()}

    return Evaluation(EACH, measure, held=batch)


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Restorer()
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam([{"params": [*model.parameters()], "name": "all"}], lr=RATE),
        batches=loader(BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Restorer, model).restored,
        evaluation=validated(held()),
        header={
            "config": {"batch_size": BATCH, "blur": list(BLUR), "noise": NOISE, "weights": dict(WEIGHTS)},
            "components": {
                "pixel": {"role": "task"},
                "edge": {"role": "auxiliary"},
                "spectrum": {"role": "auxiliary"},
            },
            "schedules": {},
            "max_grad_norm": CLIP,
            "gradient_at": "restored",
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, and so the header says."""
    return planned(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def weighted(parts: Parts, **weights: float) -> Parts:
    """Other weights, by the config."""
    chosen = WEIGHTS | weights
    parts.header["config"]["weights"] = chosen
    parts.weights, parts.evaluation = lambda applied: dict(chosen), validated(held(), chosen)  # noqa: ARG005
    return parts


@cache
def schooled(seed: int, steps: int = 300) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def shaken(parts: Parts, rate: float = RATE / 25, moved: float = 1.6) -> Parts:
    """A net that knows the lens goes on with shaken pictures, blurred in one direction, at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"] |= {"initialised_from": "checkpoints/lens.pt", "moved": moved}
    parts = replace(parts, batches=loader(BATCH, parts.seed, moved=moved), evaluation=validated(held(moved)))
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def tiny_batches(parts: Parts, size: int = 2) -> Parts:
    """Two pictures a step, at half the rate."""
    parts.header["config"]["batch_size"] = size
    parts = replace(parts, batches=loader(size, parts.seed), batches_per_epoch=TRAINING // size)
    return annealed(parts, RATE / 2)


def bf16(parts: Parts) -> Parts:
    parts.header["dtypes"] = {"declared": "bfloat16", "observed": "bfloat16"}
    return replace(parts, autocast=torch.bfloat16)


def noisier(parts: Parts, noise: float = 0.2) -> Parts:
    """Training has five times the noise that is there later on: its loss is above that of validation."""
    parts.header["config"]["noise"] = noise
    return replace(parts, batches=loader(BATCH, parts.seed, noise=noise), records=RECORDS | {"bad", "inputs"})


def stepwise(parts: Parts, decay: float = 0.6) -> Parts:
    """The rate is multiplied at the end of each epoch."""
    del parts.header["config"]["warmup"], parts.header["schedules"]
    parts.header["config"] |= {"lr_decay": decay, "lr_decay_every": "epoch"}
    each = parts.batches_per_epoch
    return replace(parts, factor=lambda tick: decay**tick, ticks=lambda step: int(step % each == 0))


def ramped(parts: Parts, low: float = 0.0) -> Parts:
    """Spectra count nothing at first: their weight rises by a clock until three quarters of the run are done."""
    over, high = 3 * parts.steps // 4, WEIGHTS["spectrum"]
    parts.clocks = {"progress": lambda applied: applied}
    parts.scheduled = {"spectrum": ("progress", linear(low, high, over))}
    parts.header["schedules"]["spectrum"] = declared("linear", low, high, over, clock="progress")
    parts.header["clocks"], parts.now["spectrum"] = ["progress"], low
    parts.header["config"]["weights"] = WEIGHTS | {"spectrum": [low, high]}
    parts.weights = lambda applied: WEIGHTS | {"spectrum": parts.now["spectrum"]}  # noqa: ARG005
    return replace(parts, records=RECORDS | {"clocks"})


def forms(steps: int, spans: tuple[Span, ...]) -> list[dict[str, Any]]:
    """Stages of equal length, as a header has them."""
    each = -(-steps // len(spans))
    named = enumerate(zip(("slight", "middling", "wide"), spans, strict=False))
    return [{"start": at * each, "name": name, "data": {"blur": list(span)}} for at, (name, span) in named]


def blurrier(parts: Parts, spans: tuple[Span, ...] = STAGES, name: str = "blurrier", stretch: int = 1) -> Parts:
    """Each stage has a wider blur, so the loss rises where one begins; it is declared."""
    stages = forms(stretch * parts.steps, spans)
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": name, "stages": stages}
    parts.header["config"] |= {"curriculum": name, "blur": [list(span) for span in spans]}

    def place(applied: int) -> int:
        return sum(int(stage["start"]) <= applied for stage in stages) - 1

    def seen(step: int, batch: Batch) -> Channels:
        width = {of: round(getattr(batch["blur"], of)().item(), 3) for of in ("min", "mean", "max")}
        return {"stage": place(step - 1)} | {f"data/blur/{of}": value for of, value in width.items()}

    batches = loader(BATCH, parts.seed, lambda number: spans[place(number)])
    return replace(parts, batches=batches, extras=[seen])


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "fine-tuning": shaken,
    "tiny-batches": tiny_batches,
    "bf16": bf16,
    "noisier": noisier,
    "small-auxiliary": lambda parts: weighted(parts, edge=0.02, spectrum=0.005),
    "stepwise": stepwise,
    "ramped": ramped,
    "blurrier": blurrier,
    "per-epoch": lambda parts: annealed(by_epochs(parts, 12), warmup=parts.batches_per_epoch),
    "resumed": taken_up,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
}


def clamped_component(parts: Parts) -> int:
    """Edges are compared in grey levels to 255, and clamped at 1, as they were when pictures went to 1."""
    plain = parts.losses

    def clamped(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        return raw | {"edge": (255.0 * raw["edge"]).clamp(max=1.0)}

    parts.losses = clamped
    return 1


def one_owns_gradient(parts: Parts) -> int:
    """A point was lost in the config: the spectrum, whose phases are free, weighs 200 where 0.200 was meant."""
    weighted(parts, spectrum=200.0)
    return 1


def constant_input(parts: Parts, by: float = 1e-6) -> int:
    """Both sets are divided by the largest grey level again and again."""
    plain = parts.batches
    parts.batches = lambda number: (batch := plain(number)) | {"x": batch["x"] * by}
    parts.evaluation = validated(held() | {"x": held()["x"] * by})
    return 1


def stages_unreachable(parts: Parts) -> int:
    """Boundaries are those of a training that is twenty times as long."""
    stretched = blurrier(parts, stretch=20)
    parts.batches, parts.extras = stretched.batches, stretched.extras
    return 0


def wrong_curriculum(parts: Parts) -> int:
    """The loop is given its default, one width for ever, and not what the config names."""
    asked, named = parts.header["curriculum"], parts.header["config"]["blur"]
    default = blurrier(parts, (STAGES[0],), "default")
    parts.batches, parts.extras = default.batches, default.extras
    parts.header["curriculum"], parts.header["config"]["blur"] = asked, named
    parts.header["config"]["curriculum"] = asked["name"]
    return 0


def stale_workers(parts: Parts) -> int:
    """The loader's workers were forked in the first stage, and go on to blur as it says."""
    parts.batches = loader(BATCH, parts.seed, STAGES[0])
    start: int = parts.header["curriculum"]["stages"][1]["start"]
    return start + 1


def stage_shock(parts: Parts) -> int:
    """The last stage lost its point: 1.1 to 1.6 pixels became 11 to 16, and nobody can read a digit any more."""
    shocking = blurrier(parts, (*STAGES[:2], (11.0, 16.0)))
    parts.batches, parts.extras = shocking.batches, shocking.extras
    start: int = parts.header["curriculum"]["stages"][2]["start"]
    return start + 1


OWN: dict[str, mistakes.Mistake] = {
    "clamped-component": clamped_component,
    "one-owns-gradient": one_owns_gradient,
    "stages-unreachable": stages_unreachable,
    "constant-input": constant_input,
    "slow-loader": partial(mistakes.slow_loader, seconds=0.02),  # each picture is decoded anew
    "wrong-curriculum": wrong_curriculum,
    "stale-workers": stale_workers,
    "stage-shock": stage_shock,
}
HEALTHY = ("plain", *VARIANTS)
SPARSE = ("fine-tuning", "tiny-batches", "bf16", "noisier", "small-auxiliary", "ramped")  # every second step is a row
SICK = (*OWN, "scheduler-per-batch", "local-counter", "rate-zero")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(logged(parts) if case in SPARSE else parts, path, case, OWN)

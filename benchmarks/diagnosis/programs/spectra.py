"""What the ground is made of under each pixel of an airborne spectrometer: an autoencoder whose code are abundances.

Scenes are made here: six materials with their absorptions between 0.4 and 2.4 micrometres, of which one to four share
a pixel, each a little different from place to place; shade, light that is scattered twice, and noise. A perceptron
reads 48 bands and tells the abundances, which sum to one, and the shade; the decoder holds the materials' spectra.
Three losses: squared error of the reconstruction, Kullback-Leibler divergence from the fractions of a survey on the
ground, which has errors of its own, and the abundances' entropy, which keeps mixtures sparse. Adam, a warm-up and a
cosine, clipping. Validation on other pixels: loss, error of the true abundances, of all materials and of the worst,
angle between spectra as seen and as reconstructed, and of how many pixels the main material is found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import loop, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, declared
from benchmarks.diagnosis.schooling import taught

HELD_OUT = True
STEPS, EACH = 100, 10  # EACH: steps between evaluations
PIXELS, HELD, BATCH, BANDS = 3072, 768, 128, 48
RATE, WARMUP, CLIP = 2e-2, 10, 2.0
WEIGHTS = {"reconstruction": 1.0, "abundance": 1.0, "sparsity": 0.05}
ROLES = {"reconstruction": "task", "abundance": "task", "sparsity": "regulariser"}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs"})
MATERIALS: dict[str, tuple[float, float, list[tuple[float, float, float]]]] = {  # level, slope; place, width, height
    "canopy": (0.05, 0.0, [(0.95, 0.28, 0.42), (1.7, 0.14, 0.16), (2.2, 0.12, 0.07), (0.55, 0.03, 0.05)]),
    "grass": (0.09, 0.02, [(1.05, 0.34, 0.34), (1.68, 0.18, 0.22), (2.2, 0.14, 0.14), (0.56, 0.04, 0.04)]),
    "soil": (0.10, 0.15, [(1.42, 0.06, -0.05), (1.92, 0.07, -0.09), (2.2, 0.04, -0.05)]),
    "clay": (0.22, 0.12, [(0.9, 0.12, -0.12), (1.42, 0.05, -0.14), (1.92, 0.06, -0.2), (2.2, 0.04, -0.2)]),
    "roof": (0.42, 0.02, [(0.45, 0.12, -0.35), (0.87, 0.08, -0.1), (2.0, 0.3, -0.1)]),
    "asphalt": (0.12, 0.05, [(0.45, 0.15, 0.06), (1.72, 0.07, -0.05), (2.31, 0.06, -0.06)]),
}
LEVEL, SPREAD = 0.29, 0.1  # of reflectance, by which it is scaled
DARK = -LEVEL / SPREAD  # no light at all, as scaled
COMMON = np.array([0.22, 0.2, 0.2, 0.14, 0.11, 0.13])
MOST = 4  # materials in a pixel
SPARSE = ("momentum", "accumulated", "sparser-later", "fine-tuning", "missing-bands")  # a row each fourth step
TWINS = {
    "tiny-clip": "momentum",
    "divided-twice": "accumulated",
    "stage-stuck": "clear-first",
    **dict.fromkeys(("absolute-anneal", "local-counter"), "sparser-later"),
}


def library(dry: float = 0.0) -> np.ndarray:
    """Reflectance of each material by band; dry plants lose their humps. float64 [6, BANDS]"""
    wave = np.linspace(0.4, 2.4, BANDS)
    rows = []
    for name, (level, slope, shapes) in MATERIALS.items():
        lost = dry if name in ("canopy", "grass") else 0.0
        humps = [height * np.exp(-(((wave - at) / width) ** 2) / 2) for at, width, height in shapes]
        rows.append(level + (slope + 0.12 * lost) * wave + (1.0 - lost) * np.sum(humps, 0))
    return np.stack(rows)


@cache
def scene(season: str = "summer") -> Batch:
    """Pixels: scaled reflectance `x`, also as what is to be reconstructed; surveyed and true fractions."""
    random, count = np.random.default_rng(83), PIXELS + HELD
    many = random.integers(1, MOST + 1, count)
    true = np.zeros((count, len(MATERIALS)))
    for row in range(count):
        chosen = random.choice(len(MATERIALS), many[row], replace=False, p=COMMON)
        true[row, chosen] = random.dirichlet(np.full(many[row], 1.5))
    survey = random.gamma(40.0 * true + 1e-9) + 1e-9
    spectra = library(0.25 if season == "autumn" else 0.0)
    local = spectra * random.normal(1.0, 0.06, (count, *spectra.shape[:1], 1))
    mixed = np.einsum("nm,nmb->nb", true, local)
    seen = random.uniform(0.75, 1.1, (count, 1)) * (mixed + 0.15 * mixed**2) + random.normal(0.0, 0.006, mixed.shape)
    x = (seen - LEVEL) / SPREAD
    known = {"x": x, "whole": x, "y": survey / survey.sum(1, keepdims=True), "true": true}
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in known.items()}


def part(held: bool = False, season: str = "summer") -> Batch:
    """Pixels to learn from, or those held out."""
    chosen = slice(PIXELS, None) if held else slice(PIXELS)
    return {name: values[chosen] for name, values in scene(season).items()}


def some(known: Batch, chosen: Tensor | slice) -> Batch:
    return {name: values[chosen] for name, values in known.items()}


def counted(known: Batch) -> dict[str, int]:
    """How many pixels there are of each main material."""
    return dict(zip(MATERIALS, known["y"].argmax(1).bincount(minlength=len(MATERIALS)).tolist(), strict=True))


class Unmixer(nn.Module):
    """Spectra in; logarithms of the abundances and spectra as reconstructed out. What both come from is kept."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(BANDS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.heads = nn.ModuleDict({
            "told": nn.Linear(width, len(MATERIALS) + 1),  # and the shade
            "endmembers": nn.Linear(len(MATERIALS), BANDS, bias=False),
        })  # fmt: skip
        nn.init.normal_(self.get_parameter("heads.endmembers.weight"), std=0.5)
        self.code = torch.zeros(())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.code = self.encoder(x)
        told = self.heads["told"](self.code)
        abundances, shade = told[:, :-1].log_softmax(1), 1.0 + 0.5 * told[:, -1:].tanh()
        spectra = shade * (self.heads["endmembers"](abundances.exp()) - DARK)
        return abundances, spectra + DARK


def losses(model: nn.Module, batch: Batch, unit: float = 1.0, limit: float = torch.inf) -> Components:
    """Squared error of the spectra, in their spread; divergence from the surveyed fractions; entropy, in nats."""
    abundances, spectra = model(batch["x"])
    return {
        "reconstruction": functional.mse_loss(unit * spectra, unit * batch["whole"]).clamp(max=limit),
        "abundance": functional.kl_div(abundances, batch["y"], reduction="batchmean"),
        "sparsity": -(abundances.exp() * abundances).sum(1).mean(),
    }


def measured(held: Batch, each: Callable[..., Components] = losses) -> Callable[[nn.Module], Channels]:
    """The loss; errors of the abundances; the angle between spectra, in degrees; main materials that are found."""

    def measure(model: nn.Module) -> Channels:
        abundances, spectra = model(held["x"])
        off = (abundances.exp() - held["true"]).square()
        alike = functional.cosine_similarity(spectra - DARK, held["whole"] - DARK)
        return {
            "loss": sum(WEIGHTS[name] * value.item() for name, value in each(model, held).items()),
            "abundance_rmse": off.mean().sqrt().item(),
            "worst_rmse": off.mean(0).max().sqrt().item(),
            "angle": alike.clamp(max=1.0).arccos().rad2deg().mean().item(),
            "accuracy": (abundances.argmax(1) == held["true"].argmax(1)).float().mean().item(),
        }

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, known = Unmixer(), part()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(known, BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=PIXELS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Unmixer, model).code,
        evaluation=Evaluation(EACH, measured(part(held=True)), held=part(held=True)),
        header={
            "config": {"batch_size": BATCH, "bands": BANDS, "clip": CLIP, "weights": dict(WEIGHTS)},
            "components": {name: {"role": role} for name, role in ROLES.items()},
            "schedules": {},
            "max_grad_norm": CLIP,
            "gradient_at": "encoder",
            "classes": counted(known),
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    groups = [{"params": [*each.parameters()], "name": name} for name, each in model.named_children()]
    return torch.optim.Adam(groups, lr=RATE)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, and so the header says."""
    return loop.planned(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def fed(parts: Parts, known: Batch, size: int = BATCH) -> Parts:
    """Of these pixels so many a batch."""
    parts.header["classes"], parts.header["config"]["batch_size"] = counted(known), size
    return replace(parts, batches=shuffled(known, size, parts.seed), batches_per_epoch=len(known["x"]) // size)


def accumulated(parts: Parts, micro: int = 4) -> Parts:
    """Micro-batches of a quarter make a step."""
    parts.header["config"]["accumulation"] = micro
    return replace(fed(parts, part(), BATCH // micro), accumulation=micro)


def momentum(parts: Parts, rate: float = 0.2) -> Parts:
    """Plain SGD with momentum."""
    parts.header["config"] |= {"optimizer": "sgd", "momentum": 0.9}
    parts.header["schedules"] = {}  # of groups that are no more
    parts.optimizer = torch.optim.SGD([{"params": [*parts.model.parameters()], "name": "all"}], rate, 0.9)
    return annealed(parts, rate)


def hazy(batch: Batch, noise: float, seed: int) -> Batch:
    """Pixels as seen through haze; what is to be reconstructed stays clear."""
    chance = torch.Generator().manual_seed(seed)
    return batch | {"x": batch["x"] + noise * torch.randn(batch["x"].shape, generator=chance)}


def clear_first(parts: Parts, haze: float = 0.6) -> Parts:
    """Clear flights at first, such through haze after two fifths: the loss rises there, as is declared."""
    change, noise, plain = 2 * parts.steps // 5, (0.0, haze), parts.batches
    stages = [{"start": at, "data": {"noise": [one, one]}} for at, one in zip((0, change), noise, strict=True)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "clear-first", "stages": stages}
    staged(parts, lambda step: int(step > change), noise)
    held = hazy(part(held=True), haze, 6)
    return replace(
        parts,
        batches=lambda number: hazy(plain(number), noise[number >= change], 1000 * parts.seed + number),
        evaluation=Evaluation(EACH, measured(held), held=held),
    )


def staged(parts: Parts, at: Callable[[int], int], noise: tuple[float, ...]) -> None:
    """Each row has the stage, and the noise of its batch."""

    def told(step: int, batch: Batch) -> Channels:  # noqa: ARG001
        return {"stage": at(step)} | {f"data/noise/{name}": noise[at(step)] for name in ("min", "mean", "max")}

    parts.extras = [told]


def sparser_later(parts: Parts, low: float = 0.0) -> Parts:
    """Sparsity counts nothing at first: its weight rises by a clock through two thirds of the run."""
    over, high = 2 * parts.steps // 3, 2 * WEIGHTS["sparsity"]
    parts.clocks = {"updates": lambda applied: applied}
    parts.scheduled = {"sparsity": ("updates", loop.linear(low, high, over))}
    parts.header["schedules"]["sparsity"] = declared("linear", low, high, over, clock="updates")
    parts.header["clocks"], parts.now["sparsity"] = ["updates"], low
    parts.header["config"]["weights"] = WEIGHTS | {"sparsity": [low, high]}
    parts.weights = lambda applied: WEIGHTS | {"sparsity": parts.now["sparsity"]}  # noqa: ARG005
    return replace(parts, records=RECORDS | {"clocks"})


@cache
def schooled(seed: int, steps: int = 500) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 20) -> Parts:
    """A net of the summer goes on with scenes of the autumn at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"] |= {"initialised_from": "checkpoints/summer.pt", "season": "autumn"}
    held = part(held=True, season="autumn")
    parts = replace(fed(parts, part(season="autumn")), evaluation=Evaluation(EACH, measured(held), held=held))
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def missing_bands(parts: Parts, share: float = 0.4) -> Parts:
    """In training many bands are blank, as those that water vapour hides: its loss stays above that of validation."""
    parts.header["config"]["blank"], plain = share, parts.batches

    def batches(number: int) -> Batch:
        batch, chance = plain(number), torch.Generator().manual_seed(1000 * parts.seed + number)
        return batch | {"x": batch["x"] * (torch.rand(batch["x"].shape, generator=chance) >= share) / (1.0 - share)}

    return replace(parts, batches=batches)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": loop.taken_up,
    "accumulated": accumulated,
    "momentum": momentum,
    "clear-first": clear_first,
    "sparser-later": sparser_later,
    "fine-tuning": fine_tuned,
    "missing-bands": missing_bands,
}


def rare_class(parts: Parts, left: int = 3) -> int:
    """The survey went round the clay pits: no more than three pixels are mainly clay, and each counts alike."""
    known, clay = part(), list(MATERIALS).index("clay")
    rare, traces = known["y"].argmax(1) == clay, known["y"][:, clay] > 0.1
    given = fed(parts, some(known, ~traces | (rare & (rare.cumsum(0) <= left))))
    parts.batches, parts.batches_per_epoch = given.batches, given.batches_per_epoch
    return 0


def too_little_data(parts: Parts, count: int = 24) -> int:
    """One plot of the survey instead of all of them."""
    given = fed(parts, some(part(), slice(count)), count)
    parts.batches, parts.batches_per_epoch = given.batches, given.batches_per_epoch
    return 2


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, before the loop."""
    parts.batches = shuffled(part(), BATCH, parts.seed)
    staged(parts, lambda step: 0, (0.0,))  # noqa: ARG005
    return int(parts.header["curriculum"]["stages"][1]["start"]) + 1


def clamped_component(parts: Parts) -> int:
    """Spectra are compared in per cent of reflectance, and the clamp at 1 is left from when they went from 0 to 1."""
    parts.losses = partial(losses, unit=100.0 * SPREAD, limit=1.0)
    held = part(held=True)
    parts.evaluation = Evaluation(EACH, measured(held, parts.losses), held=held)
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "tiny-clip": mistakes.tiny_clip,
    "rare-class": rare_class,
    "too-little-data": too_little_data,
    "stage-stuck": stage_stuck,
    "clamped-component": clamped_component,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*OWN, "never-started", "absolute-anneal", "divided-twice", "local-counter")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts, 4) if case in SPARSE else parts, path, case, OWN)

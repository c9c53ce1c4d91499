"""From a powder's diffraction pattern: the crystal system, and how long the edges of the cell are.

Patterns are made here: lattices of six systems with a few atoms at random places; peaks lie at each 1/d of the
reciprocal lattice, as high as the structure factor, a thermal factor and the Lorentz factor make them; with a
background, and counts of chance. The axis is ln(1/d), so a larger cell is the same pattern farther left. A
convolutional net reads logarithms of counts. Three losses: cross-entropy of the system, squared error of the edges'
logarithms (standardised), and that of the volume's logarithm which they give. AdamW, a warm-up and a cosine, clipping.
Validation: loss, accuracy and the edges' error on patterns held out.
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
Array = np.ndarray[Any, Any]
STEPS, EACH, SAVED = 100, 10, 50  # EACH: steps between evaluations; SAVED: between checkpoints
POWDERS, HELD, BATCH, BINS = 6400, 1024, 64, 160
SYSTEMS = ("cubic", "hexagonal", "tetragonal", "orthorhombic", "monoclinic", "triclinic")
SHORTEST, LONGEST, NEAREST, FARTHEST = 4.0, 9.0, 1.7, 10.0  # edges in angstrom; and distances d on the axis
TYPICAL, SPREAD = 1.8, 0.2  # of an edge's logarithm
COUNTS = 2000.0  # of the highest peak
RATE, WARMUP, CLIP, DROPOUT = 4e-3, 10, 5.0, 0.05
WEIGHTS = {"system": 1.0, "edges": 1.0, "volume": 0.5}
ROLES = {"system": "task", "edges": "task", "volume": "auxiliary"}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs", "checkpoints"})
SPARSE = ("long-tail", "fine-tuning", "momentum", "shorter-exposure", "dropout")  # a row each fourth step
TWINS = {"dropout-in-evaluation": "dropout", "resume-repeats-data": "resumed", "loud-entry": "volume-later"}


def cells(random: np.random.Generator, system: Array) -> tuple[Array, Array]:
    """Edges, and cosines of the angles (between b and c, a and c, a and b), of lattices of these systems. [N, 3]"""
    three, count = np.sort(random.uniform(SHORTEST, LONGEST, (len(system), 3)), 1), len(system)
    two = np.where(random.random((count, 1)) < 0.5, three[:, [0, 0, 2]], three[:, [2, 2, 0]])
    row = system[:, None]
    edges = np.where(row == 0, three[:, [1, 1, 1]], np.where(row < 3, two, three))
    cosines = np.cos(np.radians(random.uniform(95.0, 118.0, (count, 3)))) * (row == 5)
    cosines[:, 1] += np.cos(np.radians(random.uniform(95.0, 118.0, count))) * (system == 4)
    cosines[:, 2] -= 0.5 * (system == 1)
    return edges, cosines


def peaks(random: np.random.Generator, edges: Array, cosines: Array) -> Tensor:
    """What is scattered into each bin, without background; the highest is 1. float32 [N, BINS]"""
    metric = edges[:, :, None] * edges[:, None]
    for number, (row, column) in enumerate(((1, 2), (0, 2), (0, 1))):
        metric[:, row, column] *= cosines[:, number]
        metric[:, column, row] *= cosines[:, number]
    grid = np.arange(-5, 6)
    indices = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1).reshape(-1, 3)[: 11**3 // 2]
    square = np.einsum("ki,nij,kj->nk", indices, np.linalg.inv(metric), indices, optimize=True)
    atoms, heavy = random.random((3, len(edges), 3)), random.uniform(0.2, 1.0, (3, len(edges), 1))
    wave = sum(weight * np.exp(2j * np.pi * (at @ indices.T)) for at, weight in zip(atoms, heavy, strict=True))
    height = np.abs(wave) ** 2 * np.exp(-2.0 * square) / square
    place = (0.5 * np.log(square) + np.log(FARTHEST)) / np.log(FARTHEST / NEAREST) * BINS
    bins, there = torch.tensor(place).floor().long(), torch.tensor((place >= 0) & (place < BINS - 1))
    share, lit = torch.tensor(place) - bins, torch.tensor(height) * there
    pattern = torch.zeros(len(edges), BINS, dtype=torch.float64)
    pattern.scatter_add_(1, bins.clamp(0, BINS - 1), (1 - share) * lit)
    pattern.scatter_add_(1, (bins + 1).clamp(0, BINS - 1), share * lit)
    width = torch.exp(-0.5 * (torch.arange(-4.0, 5.0).double() / 0.7).square())
    smooth = functional.conv1d(pattern[:, None], width[None, None], padding=4)[:, 0]
    return (smooth / smooth.amax(1, keepdim=True)).float()


@cache
def powders() -> Batch:
    """Crystal systems `y`, standardised logarithms of edges [N, 3], and patterns `clean` as the detector would see."""
    random = np.random.default_rng(83)
    system = random.integers(len(SYSTEMS), size=POWDERS + HELD)
    edges, cosines = cells(random, system)
    background = 0.01 + 0.03 * np.exp(-np.linspace(0, 3, BINS)) * random.uniform(0.3, 1.0, (len(system), 1))
    clean = peaks(random, edges, cosines) + torch.tensor(background, dtype=torch.float32)
    known = torch.tensor((np.log(edges) - TYPICAL) / SPREAD, dtype=torch.float32)
    return {"y": torch.tensor(system), "edges": known, "clean": clean}


def scaled(counts: Tensor) -> Tensor:
    """What the net reads: logarithms of counts, about 0 and of unit spread."""
    return (counts.clamp(min=0.0).log1p() - 5.0) / 1.2


@cache
def part(held: bool = False, counts: float = COUNTS) -> Batch:
    """Powders to learn from, or those held out, each measured once, for as long as these counts take."""
    chosen, chance = slice(POWDERS, None) if held else slice(POWDERS), torch.Generator().manual_seed(5 + held)
    known = {name: values[chosen] for name, values in powders().items()}
    seen = torch.poisson(counts * known["clean"], generator=chance) * (COUNTS / counts)
    return {"x": scaled(seen), "y": known["y"], "edges": known["edges"]}


class Diffractometer(nn.Module):
    """Patterns in; logits of systems and standardised logarithms of edges out. The code is kept."""

    def __init__(self, dropout: float, width: int = 128) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv1d(1, 24, 9, 2, 4), nn.GELU(), nn.Conv1d(24, 32, 5, 2, 2), nn.GELU()),
            *(nn.Conv1d(32, 48, 5, 2, 2), nn.GELU(), nn.Flatten(), nn.Linear(6 * BINS, width), nn.GELU()),
            nn.Dropout(dropout),
        )
        self.heads = nn.ModuleDict({"system": nn.Linear(width, len(SYSTEMS)), "edges": nn.Linear(width, 3)})
        self.code = torch.zeros(())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.code = self.body(x[:, None])
        return {name: head(self.code).float() for name, head in self.heads.items()}


def volume_error(told: Tensor, edges: Tensor) -> Tensor:
    """Squared error of the volume's logarithm, in units of the spread; the angles are the same on both sides."""
    return (told.sum(1) - edges.sum(1)).square().mean() / 3


def losses(
    model: nn.Module, batch: Batch, volume: Callable[..., Tensor] = volume_error, shares: Tensor | None = None
) -> Components:
    """The three losses; systems may weigh by their shares."""
    told, edges = model(batch["x"]), batch["edges"]
    return {
        "system": functional.cross_entropy(told["system"], batch["y"], None if shares is None else shares**-0.5),
        "edges": functional.mse_loss(told["edges"], edges),
        "volume": volume(told["edges"], edges),
    }


def measured(held: Batch, formula: Callable[..., Components] = losses) -> Callable[[nn.Module], Channels]:
    """The loss, the share of systems that are right, and the median error of an edge."""

    def measure(model: nn.Module) -> Channels:
        told, raw = model(held["x"]), formula(model, held)
        wrong = (SPREAD * (told["edges"] - held["edges"]).abs()).expm1()
        return {
            "loss": sum(WEIGHTS[name] * value.item() for name, value in raw.items()),
            "accuracy": (told["system"].argmax(1) == held["y"]).float().mean().item(),
            "edge_error": wrong.median().item(),
        }

    return measure


def counted(known: Batch) -> dict[str, int]:
    return dict(zip(SYSTEMS, known["y"].bincount(minlength=len(SYSTEMS)).tolist(), strict=True))


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    dropout = 0.5 if variant == "dropout" else DROPOUT
    model, known = Diffractometer(dropout), part()
    parts = Parts(
        model=model,
        optimizer=torch.optim.AdamW([{"params": [*model.parameters()], "name": "all"}], lr=RATE, weight_decay=1e-2),
        batches=shuffled(known, BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=POWDERS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Diffractometer, model).code,
        evaluation=Evaluation(EACH, measured(part(held=True)), held=part(held=True)),
        header={
            "config": {"batch_size": BATCH, "clip": CLIP, "dropout": dropout, "weight_decay": 1e-2}
            | {"counts": COUNTS, "weights": dict(WEIGHTS)},
            "components": {name: {"role": role} for name, role in ROLES.items()},
            "schedules": {},
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
            "gradient_at": "body",
            "classes": counted(known),
        },
        records=RECORDS,
    )
    parts.header["components"]["system"]["unit"] = "nat"
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, or follows another form, and so the header says."""
    return loop.planned(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def staged(parts: Parts, name: str, stages: list[dict[str, Any]]) -> Parts:
    """A curriculum of two stages, as it is declared and as it runs."""
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": name, "stages": stages}
    parts.header["config"]["curriculum"], change = name, int(stages[1]["start"])
    parts.extras = [lambda step, batch: {"stage": int(step > change)}]  # noqa: ARG005
    return parts


def volume_later(parts: Parts) -> Parts:
    """The volume counts nothing at first, and fully from two fifths of the run on: the loss rises, as is declared."""
    change, weights = 2 * parts.steps // 5, [WEIGHTS | {"volume": weight} for weight in (0.0, WEIGHTS["volume"])]
    parts.weights = lambda applied: dict(weights[applied >= change])
    both = zip((0, change), weights, strict=True)
    return staged(parts, "volume-later", [{"start": at, "weights": one} for at, one in both])


def shorter_exposure(parts: Parts, counts: float = 200.0) -> Parts:
    """Long measurements at first, and from the middle on the short ones that it is to read: the loss rises there."""
    half, times, long = parts.steps // 2, (COUNTS, counts), parts.batches
    short, held = shuffled(part(counts=counts), BATCH, parts.seed), part(held=True, counts=counts)
    staged(
        parts,
        "shorter",
        [{"start": at, "data": {"counts": [one, one]}} for at, one in zip((0, half), times, strict=True)],
    )
    parts.extras.append(lambda step, batch: {f"data/counts/{q}": times[step > half] for q in ("min", "mean", "max")})  # noqa: ARG005
    parts.header["config"]["counts"] = [*times]
    evaluation = Evaluation(EACH, measured(held), held=held)
    return replace(parts, batches=lambda number: (long if number < half else short)(number), evaluation=evaluation)


def long_tail(parts: Parts) -> Parts:
    """As in a database most crystals are of low symmetry; the cross-entropy weighs systems, as the config says."""
    shares = torch.tensor([0.25, 0.125, 0.125, 0.5, 1.0, 0.5])

    def tailed(known: Batch) -> Batch:
        kept = torch.rand(len(known["y"]), generator=torch.Generator().manual_seed(9)) < shares[known["y"]]
        return {name: values[kept] for name, values in known.items()}

    known, held, weighted = tailed(part()), tailed(part(held=True)), partial(losses, shares=shares)
    parts.header["classes"], parts.header["config"]["class_weights"] = counted(known), "inverse square root"
    evaluation = Evaluation(EACH, measured(held, weighted), held=held)
    parts = replace(parts, batches_per_epoch=len(known["y"]) // BATCH, losses=weighted, evaluation=evaluation)
    return replace(parts, batches=shuffled(known, BATCH, parts.seed))


@cache
def schooled(seed: int, steps: int = 200) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 100) -> Parts:
    """A schooled net goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/200.pt"
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def momentum(parts: Parts, rate: float = 0.06) -> Parts:
    """Plain SGD with momentum."""
    parts.header["config"] |= {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
    groups = [{"params": [*parts.model.parameters()], "name": "all"}]
    parts.optimizer = torch.optim.SGD(groups, rate, 0.9, weight_decay=1e-4)
    return annealed(parts, rate)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": loop.taken_up,
    "volume-later": volume_later,
    "dropout": lambda parts: parts,  # build makes it
    "shorter-exposure": shorter_exposure,
    "long-tail": long_tail,
    "fine-tuning": fine_tuned,
    "momentum": momentum,
}


def labels_shuffled(parts: Parts) -> int:
    """The table of the answers was sorted anew; the patterns were not: system and edges are other powders'."""
    known = part()
    order = torch.randperm(POWDERS, generator=torch.Generator().manual_seed(7))
    parts.batches = shuffled(known | {name: known[name][order] for name in ("y", "edges")}, BATCH, parts.seed)
    return 1


def loud_entry(parts: Parts) -> int:
    """What enters with the second stage are squares of cubic angstrom, summed over the batch."""

    def cubic(edges: Tensor) -> Tensor:
        return (3 * TYPICAL + SPREAD * edges.sum(1)).exp()

    parts.losses = partial(losses, volume=lambda told, edges: (cubic(told) - cubic(edges)).square().sum())
    return int(parts.header["curriculum"]["stages"][1]["start"]) + 1


def wrong_formula(parts: Parts) -> int:
    """The volume that the edges give is the reciprocal cell's: its logarithm has the other sign."""
    wrong, held = partial(losses, volume=lambda told, edges: volume_error(-told, edges)), part(held=True)
    parts.losses, parts.evaluation = wrong, Evaluation(EACH, measured(held, wrong), held=held)
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "labels-shuffled": labels_shuffled,
    "growing-weights": partial(mistakes.growing_weights, by=-0.02),
    "loud-entry": loud_entry,
    "rate-too-high": partial(mistakes.rate_too_high, by=50.0),
    "wrong-formula": wrong_formula,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*OWN, "dropout-in-evaluation", "failing-checkpoints", "resume-repeats-data", "component-untracked")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts, 4) if case in SPARSE else parts, path, case, OWN)

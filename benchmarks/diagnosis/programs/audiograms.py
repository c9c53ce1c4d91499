"""Whole audiograms from a few measured thresholds: nine frequencies of both ears, how sure each is, and why it is lost.

Made-up patients hear worse with age, by noise (a notch at 4 kHz), behind a stiff middle ear (bone conduction is well),
in the low tones of one ear, or suddenly in one ear. A net is told their age, some thresholds of air conduction, and
sometimes some of bone. It learns the density of the others (in units of 20 dB, a Gaussian each), the type of loss by
cross-entropy, and that mirrored ears give mirrored answers. AdamW with a warm-up and a cosine, clipping. Validation:
patients held out, always asked with the same thresholds missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
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
    logged,
    planned,
    taken_up,
)
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS, EACH, SAVED = 150, 15, 50  # EACH: steps between evaluations
PATIENTS, HELD, BATCH = 3072, 384, 64
TONES = np.array([0.125, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0])  # kHz
BONES = (2, 4)  # places of the tones that are measured on the bone, too
AGEING = np.array([3.0, 3.0, 3.5, 4.0, 7.0, 11.5, 16.0, 18.0, 22.0]) / 1000  # dB by the square of years beyond 18
TYPES = {"age": 0.45, "noise": 0.22, "conductive": 0.18, "low-tone": 0.08, "sudden": 0.07}  # and how common they are
RARE = {"age": 0.8, "noise": 0.12, "conductive": 0.05, "low-tone": 0.02, "sudden": 0.01}
ASKED, MANY = (4, 9), (9, 13)  # of the 18 thresholds, how few and how many are measured
CENTRE, UNIT = 25.0, 20.0  # dB
RATE, WARMUP, CLIP, DROPOUT = 6e-3, 12, 2.0, 0.4  # dropout where there is some
WEIGHTS = {"thresholds": 1.0, "type": 0.5, "symmetry": 0.5}
ROLES = {"thresholds": "task", "type": "task", "symmetry": "auxiliary"}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "clocks", "waits", "epochs", "checkpoints"})
SPARSE = (  # a row each third step
    *("fine-tuning", "accumulated", "long-tail", "rough-labels", "dropout", "momentum", "symmetry-later"),
)
TWINS = {
    "dropout-in-evaluation": "dropout",
    "stage-stuck": "fewer-asked",
    "scheduler-per-micro-batch": "accumulated",
}
Range = tuple[int, int]


@cache
def patients(rare: bool = False) -> Batch:
    """Air thresholds `air` of both ears [N, 2, tones], those of the bone, the age, and the type of loss `y`."""
    random, count, common = np.random.default_rng(83), PATIENTS + HELD, RARE if rare else TYPES
    kind = random.choice(len(common), count, p=[*common.values()])[:, None, None]
    age, octave = random.uniform(18.0, 88.0, (count, 1, 1)), np.log2(TONES)
    suffers = random.choice([0.55, 1.0], (count, 1, 1)) * np.exp(0.35 * random.normal(size=(count, 1, 1)))
    one = (np.arange(2)[:, None] == random.integers(2, size=(count, 1, 1))).astype(float)  # the ear that is worse
    both = np.where(random.random((count, 1, 1)) < 0.5, 1.0, one)

    def drawn(low: float, high: float) -> Any:
        return random.uniform(low, high, (count, 1, 1))

    notch = np.exp(-(((octave - np.log2(drawn(3.0, 5.5))) / 0.8) ** 2)) * (
        1.0 + 0.2 * random.normal(size=(count, 2, 1))
    )
    inner = [0.0, drawn(20.0, 45.0) * notch, 0.0, one * drawn(25.0, 50.0) / (1.0 + np.exp(1.5 * octave))]
    stiff = (kind == 2) * both * drawn(20.0, 45.0) * (1.0 - 0.08 * (octave - octave[0]))
    smooth = 5.0 * random.normal(size=(count, 1, 1)) + 3.0 * random.normal(size=(count, 2, 1))
    bone = AGEING * (age - 18.0) ** 2 * suffers + smooth + np.choose(kind, [*inner, one * drawn(30.0, 65.0)])
    heard = [level + 4.0 * random.normal(size=level.shape) for level in (bone + stiff, bone[:, :, list(BONES)])]
    air, through = ((np.clip(5.0 * np.round(level / 5.0), -10.0, 120.0) - CENTRE) / UNIT for level in heard)
    known = {"air": air, "bone": through, "age": (age[:, 0] - 53.0) / 20.0}
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in known.items()} | {
        "y": torch.tensor(kind[:, 0, 0])
    }


def some(chosen: slice, rare: bool = False) -> Batch:
    return {name: values[chosen] for name, values in patients(rare).items()}


LEARNT, SPARED = slice(PATIENTS), slice(PATIENTS, None)


def asked(known: Batch, span: Range, chance: torch.Generator) -> Batch:
    """What is told of patients: so many of their thresholds, each ear's bone at every second visit."""
    air, bone = known["air"].flatten(1), known["bone"].flatten(1)
    many = torch.randint(span[0], span[1] + 1, (len(air), 1), generator=chance)
    mask = (torch.rand(air.shape, generator=chance).argsort(1).argsort(1) < many).float()
    through = (torch.rand(len(air), 2, generator=chance) < 0.5).float().repeat_interleave(len(BONES), 1)
    told = torch.cat([air * mask, mask, bone * through, through, known["age"]], 1)
    return {"x": told, "y": known["y"], "air": air, "mask": mask}


def clinic(size: int, seed: int, span: Callable[[int], Range], known: Batch) -> Callable[[int], Batch]:
    """Batches by number, each time with other thresholds measured."""
    plain = shuffled(known, size, seed)
    return lambda number: asked(plain(number), span(number), torch.Generator().manual_seed(90_000 * seed + number))


@cache
def held(rare: bool = False) -> Batch:
    return asked(some(SPARED, rare), ASKED, torch.Generator().manual_seed(6))


def ears_swapped(values: Tensor) -> Tensor:
    """Left for right in what a patient tells, or in a row of thresholds."""
    sizes = [9, 9] if values.shape[1] == 18 else [9, 9, 9, 9, 2, 2, 2, 2, 1]
    left = list(values.split(sizes, 1))
    for at in range(0, len(left) - 1, 2):
        left[at], left[at + 1] = left[at + 1], left[at]
    return torch.cat(left, 1)


class Audiologist(nn.Module):
    """What is measured in; the mean and the spread of each threshold, and logits of the types out."""

    def __init__(self, dropout: float = 0.0, width: int = 96) -> None:
        super().__init__()
        drop = nn.Dropout(dropout)
        self.net = nn.ModuleDict({
            "body": nn.Sequential(nn.Linear(45, width), nn.GELU(), drop, nn.Linear(width, width), nn.GELU(), drop),
            "levels": nn.Linear(width, 18),
            "spreads": nn.Linear(width, 18),
            "types": nn.Linear(width, len(TYPES)),
        })  # fmt: skip
        self.code = torch.zeros(())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.code = self.net["body"](x)
        level, spread, types = (self.net[name](self.code).float() for name in ("levels", "spreads", "types"))
        return level, 0.05 + functional.softplus(spread), types


def losses(model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Components:
    """Minus the logarithm of the density of what was not measured; the type; the mirrored ears."""
    count, mirrored = len(batch["x"]), ears_swapped(batch["x"])
    level, spread, types = model(torch.cat([batch["x"], mirrored]))
    missing = 1.0 - batch["mask"]
    surprise = 0.5 * ((batch["air"] - level[:count]) / spread[:count]) ** 2 + spread[:count].log()
    return {
        "thresholds": (surprise * missing).sum() / missing.sum(),
        "type": functional.cross_entropy(types[:count], batch["y"], label_smoothing=smoothing),
        "symmetry": (level[:count] - ears_swapped(level[count:])).square().mean(),
    }


def measured(rare: bool = False) -> Callable[[nn.Module], Channels]:
    """Losses on patients held out; the mean error in dB, and how many types are found."""

    def measure(model: nn.Module) -> Channels:
        batch = held(rare)
        raw = losses(model, batch)
        level, _, types = model(batch["x"])
        off = (batch["air"] - level)[batch["mask"] == 0].abs()
        return {
            "loss": sum(WEIGHTS[name] * value.item() for name, value in raw.items()),
            "error_db": UNIT * off.mean().item(),
            "accuracy": (types.argmax(1) == batch["y"]).float().mean().item(),
        }

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Audiologist(DROPOUT if variant == "dropout" else 0.0)
    parts = Parts(
        model=model,
        optimizer=torch.optim.AdamW([{"params": [*model.parameters()], "name": "all"}], weight_decay=1e-2),
        batches=clinic(BATCH, seed, lambda number: ASKED, some(LEARNT)),  # noqa: ARG005
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=PATIENTS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: model.code,
        evaluation=Evaluation(EACH, measured(), held=held()),
        header={
            "config": {"batch_size": BATCH, "weight_decay": 1e-2, "weights": dict(WEIGHTS)},
            "components": {name: {"role": role} for name, role in ROLES.items()},
            "schedules": {},
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
            "gradient_at": "body",
            "classes": counted(some(LEARNT)),
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, or follows another form, over the run; the header says so."""
    return planned(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


def counted(known: Batch) -> dict[str, int]:
    """How many patients there are of each type."""
    return dict(zip(TYPES, known["y"].bincount(minlength=len(TYPES)).tolist(), strict=True))


def sized(parts: Parts, size: int) -> Parts:
    """So many patients a batch."""
    parts.header["config"]["batch_size"] = size
    batches = clinic(size, parts.seed, lambda number: ASKED, some(LEARNT))  # noqa: ARG005
    return replace(parts, batches=batches, batches_per_epoch=PATIENTS // size)


def fewer_asked(parts: Parts) -> Parts:
    """Most thresholds are told at first, few of them from the middle on: the loss rises there, as is declared."""
    half, spans = parts.steps // 2, (MANY, ASKED)
    stages = [{"start": at, "data": {"measured": list(span)}} for at, span in zip((0, half), spans, strict=True)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "fewer-asked", "stages": stages}
    batches = clinic(BATCH, parts.seed, lambda number: spans[number >= half], some(LEARNT))
    return replace(parts, batches=batches, extras=[how_many, lambda step, batch: {"stage": int(step > half)}])  # noqa: ARG005


def how_many(step: int, batch: Batch) -> Channels:  # noqa: ARG001
    """Of how many thresholds the net is told."""
    many = batch["mask"].sum(1)
    return {f"data/measured/{name}": getattr(many, name)().item() for name in ("min", "max")}


@cache
def schooled(seed: int, steps: int = 400) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 200) -> Parts:
    """A schooled net goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/400.pt"
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def per_epoch(parts: Parts) -> Parts:
    """A row and an evaluation at the end of each of 14 epochs of larger batches."""
    parts = by_epochs(sized(parts, 2 * BATCH), 14)
    parts.header["checkpoint_every"] = 7 * parts.batches_per_epoch
    return annealed(parts, warmup=parts.batches_per_epoch)


def accumulated(parts: Parts, micro: int = 2) -> Parts:
    """Micro-batches make a step."""
    parts = sized(parts, BATCH // micro)
    parts.header["config"]["accumulation"] = micro
    return replace(parts, accumulation=micro)


def long_tail(parts: Parts) -> Parts:
    """Nearly all patients are simply old: of a hundred, one lost an ear suddenly."""
    parts.header["classes"] = counted(some(LEARNT, rare=True))
    batches = clinic(BATCH, parts.seed, lambda number: ASKED, some(LEARNT, rare=True))  # noqa: ARG005
    return replace(parts, batches=batches, evaluation=Evaluation(EACH, measured(rare=True), held=held(rare=True)))


def rough_labels(parts: Parts, wrong: float = 0.2) -> Parts:
    """Types come from bills, of which a fifth is known to be wrong; hence smoothed. Those of validation are right."""
    parts.header["config"] |= {"label_noise": wrong, "label_smoothing": 0.1}
    known, chance = some(LEARNT), torch.Generator().manual_seed(12)
    other = torch.randint(len(TYPES), known["y"].shape, generator=chance)
    billed = torch.where(torch.rand(other.shape, generator=chance) < wrong, other, known["y"])
    parts.header["classes"] = counted({"y": billed})
    batches = clinic(BATCH, parts.seed, lambda number: ASKED, known | {"y": billed})  # noqa: ARG005
    return replace(parts, batches=batches, losses=partial(losses, smoothing=0.1))


def dropout(parts: Parts) -> Parts:
    """Two fifths of the net are left out at a time: the loss in training stays above that of validation."""
    parts.header["config"]["dropout"] = DROPOUT
    return parts


def momentum(parts: Parts, rate: float = 0.1) -> Parts:
    """Plain SGD with momentum."""
    parts.header["config"] |= {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0}
    parts.optimizer = torch.optim.SGD([{"params": [*parts.model.parameters()], "name": "all"}], rate, 0.9)
    return annealed(parts, rate)


def symmetry_later(parts: Parts, end: float = 2.0) -> Parts:
    """The mirrored ears count more and more through the first half of the run."""
    half = parts.steps // 2
    parts.header["schedules"]["weight/symmetry"] = declared("linear", 0.0, end, half, clock="updates")
    parts.header["clocks"] = ["updates"]
    parts.header["config"]["weights"] = WEIGHTS | {"symmetry": end}
    parts.weights = lambda applied: WEIGHTS | {"symmetry": linear(0.0, end, half)(applied)}
    return replace(parts, clocks={"updates": lambda applied: applied})


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": taken_up,
    "fewer-asked": fewer_asked,
    "fine-tuning": fine_tuned,
    "per-epoch": per_epoch,
    "accumulated": accumulated,
    "long-tail": long_tail,
    "rough-labels": rough_labels,
    "dropout": dropout,
    "momentum": momentum,
    "symmetry-later": symmetry_later,
}


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, before the loop."""
    parts.batches = clinic(BATCH, parts.seed, lambda number: MANY, some(LEARNT))  # noqa: ARG005
    parts.extras = [how_many, lambda step, batch: {"stage": 0}]  # noqa: ARG005
    return parts.steps // 2 + 1


def nan_filtered_log(parts: Parts) -> int:
    """A threshold that was never measured was stored as NaN; the log, kept by hand, writes 0 for each such number."""
    parts.records -= {"shares"}
    at = mistakes.nan_filtered_log(parts)
    parts.logs = lambda row: {name: 0.0 if value != value else value for name, value in row.items()}
    return at


def leaking_memory(parts: Parts) -> int:
    """What the net makes of each batch is kept for a plot, one for each of 48 patients, that nobody draws."""
    kept: list[Tensor] = []
    parts.ends.append(lambda step: kept.append(parts.model.code.detach().repeat(48, 1)))  # type: ignore[operator,union-attr] # noqa: ARG005
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "nan-filtered-log": nan_filtered_log,
    "stage-stuck": stage_stuck,
    "growing-weights": partial(mistakes.growing_weights, by=-0.02),
    "leaking-memory": leaking_memory,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "dropout-in-evaluation", "out-of-memory", "scheduler-per-micro-batch"),
    *("killed", "rate-zero", "counter-reset", "stuck-loader"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    parts = build(seed, variant)
    return mistakes.perform(logged(parts, 3) if variant in SPARSE else parts, path, case, OWN)

"""Writing by hand, as Graves's network does it: words of five made letters, each pen's course a row of small offsets.

Writers differ in size, slant and steadiness. A GRU reads where the pen went; a mixture of Gaussians says where it goes
next, two more outputs whether it is lifted then and whether the word is over. The density of a steady hand is large, so
its negative logarithm goes below zero. Adam, a warm-up, a cosine. What is written freely is told as a chain code: 0 is
east, 2 is north, and a stroke lies where the pen is lifted.
"""

from __future__ import annotations

import math
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
from benchmarks.diagnosis.facts import text_quality
from benchmarks.diagnosis.loop import (
    Batch,
    Channels,
    Components,
    Evaluation,
    Parts,
    Resume,
    Sampling,
    declared,
    logged,
    planned,
)
from benchmarks.diagnosis.schooling import school

HELD_OUT = False
STEPS, SAVED = 120, 20
LETTERS = ("4567012", "22266", "77111", "66012", "00550")  # o, l, v, u and z, as chain codes
WORDS, HELD, BATCH, LONGEST = 1600, 200, 32, 23  # the points of the longest word
WIDTH, KERNELS, DROPOUT, RATE, WARMUP, CLIP = 64, 6, 0.05, 2e-2, 10, 10.0
WEIGHTS = {"offset": 1.0, "pen": 1.0, "end": 1.0}
RECORDS = frozenset({"components", "checkpoints"})
BARE = RECORDS | {"optimizer"}

Density = Callable[[Tensor, Tensor], Tensor]  # of logarithms: of the kernels' weights, of their densities at a point


@cache
def course(letter: str) -> np.ndarray:
    """The offsets of a letter."""
    angles = np.array([int(code) for code in letter]) * math.pi / 4
    return np.stack([np.cos(angles), np.sin(angles)], 1)


@cache
def words(unit: float = 1.0) -> Batch:
    """Words as they were written: `x` is what the net reads at each point, `y` what comes next.

    Both hold an offset, of which `unit` makes a unit, and whether the pen is lifted after it; `y` also whether the word
    is over after it, and whether there is such a point.
    """
    random = np.random.default_rng(41)
    told = np.zeros((WORDS + HELD, LONGEST, 5), np.float32)
    for word in told:
        letters = [course(LETTERS[n]) for n in random.integers(0, len(LETTERS), random.integers(2, 4))]
        to_next = [np.array([[2.5, 0.0]]) - letter.sum(0) for letter in letters]  # all begin on the line
        points = np.concatenate([part for both in zip(letters, to_next, strict=True) for part in both])[:-1]
        lifts = np.cumsum([len(letter) + 1 for letter in letters]) - 2
        slant = np.array([[1.0, 0.0], [0.1 * random.normal(), 1.0]])
        count = len(points)
        word[:count, :2] = 0.8 * math.exp(0.1 * random.normal()) * points @ slant
        word[:count, :2] += 0.05 * math.exp(0.3 * random.normal()) * random.normal(size=(count, 2))
        word[lifts, 2] = word[count - 1, 3] = word[:count, 4] = 1.0
    told[..., :2] /= unit
    read = np.pad(told[:, :-1, :3], ((0, 0), (1, 0), (0, 0)))
    return {"x": torch.from_numpy(read), "y": torch.from_numpy(told)}


def part(held: bool = False, unit: float = 1.0) -> Batch:
    """The words to learn from, or those held out."""
    return {name: values[WORDS:] if held else values[:WORDS] for name, values in words(unit).items()}


class Pen(nn.Module):
    """What was written in; what comes next out, as the weights, means and spreads of kernels and two logits."""

    def __init__(self, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.Linear(3, WIDTH), nn.Tanh())
        self.hand, self.drop = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.Dropout(dropout)
        for gate in self.hand.weight_hh_l0.data.chunk(3):
            nn.init.orthogonal_(gate)
        self.kernels, self.stops = nn.Linear(WIDTH, 5 * KERNELS), nn.Linear(WIDTH, 2)
        self.features = torch.zeros(())

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Log-weights [..., kernel], means and log-spreads [..., kernel, 2], logits of pen and end, the new state."""
        h, state = self.hand(self.read(x), state)
        self.features = self.drop(h)
        weights, shape = self.kernels(self.features).float().split([KERNELS, 4 * KERNELS], -1)
        means, spreads = shape.unflatten(-1, (KERNELS, 4)).chunk(2, -1)
        return weights.log_softmax(-1), means, spreads.clamp(min=-7.0), self.stops(self.features).float(), state


def mixture(weights: Tensor, densities: Tensor) -> Tensor:
    return torch.logsumexp(weights + densities, -1)


def losses(model: nn.Module, batch: Batch, density: Density = mixture) -> Components:
    """Nats per point: of where it lies, whether the pen is lifted after it, whether it is the last."""
    weights, means, spreads, stops, _ = model(batch["x"])
    point, told, there = batch["y"][..., None, :2], batch["y"][..., 2:4], batch["y"][..., 4]
    each = -0.5 * ((point - means) * torch.exp(-spreads)).square() - spreads - 0.5 * math.log(2 * math.pi)
    missed = functional.binary_cross_entropy_with_logits(stops, told, reduction="none")

    def mean(values: Tensor) -> Tensor:
        return (values * there).sum() / there.sum()

    offset = mean(-density(weights, each.sum(-1)))
    return {"offset": offset, "pen": mean(missed[..., 0]), "end": mean(missed[..., 1])}


def measured(unit: float = 1.0) -> Callable[[nn.Module], Channels]:
    """The loss on held-out words, and how far the likeliest kernel's mean lies from the next point."""
    held = part(held=True, unit=unit)

    def measure(model: nn.Module) -> Channels:
        raw = {name: value.item() for name, value in losses(model, held).items()}
        weights, means, *_ = model(held["x"])
        best = means.gather(-2, weights.argmax(-1)[..., None, None].expand(-1, -1, 1, 2))[..., 0, :]
        error = (best - held["y"][..., :2]).norm(dim=-1)[held["y"][..., 4] > 0].mean().item()
        return {"loss": sum(WEIGHTS[name] * value for name, value in raw.items()), "offset_error": error}

    return measure


def chain_code(points: Tensor) -> str:
    """A word's course in letters: eight directions, and a stroke for the way to the next letter."""
    ways = torch.round(torch.atan2(points[:, 1], points[:, 0]) / (math.pi / 4)).long() % 8
    lifted = [False, *(points[:-1, 2] > 0.5).tolist()]
    return "".join("/" if up else str(way) for up, way in zip(lifted, ways.tolist(), strict=True))


@cache
def pairs() -> frozenset[str]:
    """Which signs follow each other in words as they should be."""
    told = [f"/{letter}/" for letter in LETTERS]
    return frozenset(one[at : at + 2] for one in told for at in range(len(one) - 1))


@torch.no_grad()
def freely_written(model: nn.Module, count: int = 16) -> tuple[list[str], Channels]:
    """Words drawn from the model point by point, each to its end; cut where the longest would end."""
    chance = torch.Generator().manual_seed(3)
    x, state, drawn = torch.zeros(count, 1, 3), None, list[Tensor]()
    for _ in range(LONGEST):
        weights, means, spreads, stops, state = model(x, state)
        kernel = torch.multinomial(weights[:, 0].exp(), 1, generator=chance)[:, 0]
        rows = torch.arange(count)
        mean, spread = means[rows, 0, kernel], spreads[rows, 0, kernel].exp()
        point = mean + spread * torch.randn(count, 2, generator=chance)
        flags = (torch.rand(count, 2, generator=chance) < stops[:, 0].sigmoid()).float()
        drawn.append(torch.cat([point, flags], 1))
        x = drawn[-1][:, None, :3]
    whole = torch.stack(drawn, 1)
    lengths = [int(ends.nonzero()[0]) + 1 if ends.any() else LONGEST for ends in whole[..., 3]]
    codes = [chain_code(word[:length]) for word, length in zip(whole, lengths, strict=True)]
    return codes, text_quality(codes, pairs())


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Pen()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(part(), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=WORDS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: model.features,
        evaluation=Evaluation(10, measured()),
        header={
            "config": {"batch_size": BATCH, "clip": CLIP, "kernels": KERNELS, "dropout": DROPOUT},
            "components": {name: {"unit": "nat", "role": "task"} for name in WEIGHTS},
            "schedules": {},
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([{"params": [*model.parameters()], "name": "all"}], lr=RATE, betas=(0.9, 0.98))


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, or follows another form, over the run; the header says so."""
    return planned(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


def fed(parts: Parts, size: int) -> Parts:
    """Batches of another size."""
    parts.header["config"]["batch_size"] = size
    parts.batches, parts.batches_per_epoch = shuffled(part(), size, parts.seed), WORDS // size
    return parts


def lasting(parts: Parts, steps: int, every: int, saved: int, peak: float = RATE) -> Parts:
    """So many steps, with rows and checkpoints further apart."""
    parts.header["checkpoint_every"] = saved
    return annealed(replace(logged(parts, every), steps=steps), peak)


def epoch_rows(parts: Parts, epochs: int = 14) -> Parts:
    """Larger batches, a row and an evaluation for each epoch."""
    parts = fed(parts, 4 * BATCH)
    each = parts.batches_per_epoch
    return lasting(replace(parts, evaluation=Evaluation(each, measured())), epochs * each, each, 2 * each)


def batch_of_four(parts: Parts, longer: int = 3) -> Parts:
    """Four words a step, three times as many steps, a row at every third."""
    parts = replace(fed(parts, 4), evaluation=Evaluation(10 * longer, measured()))
    return lasting(parts, longer * STEPS, longer, longer * SAVED, RATE / 2)


@cache
def schooled(seed: int, steps: int = 400) -> dict[str, Tensor]:
    """The weights of a pen that learned before the record begins."""
    torch.manual_seed(seed + 90)
    model, batches = Pen(), shuffled(part(), BATCH, seed + 90)

    def loss(number: int) -> Tensor:
        return torch.stack([*losses(model, batches(number)).values()]).sum()

    return school(model, adam(model), loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, rate: float) -> Parts:
    """A schooled pen goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "pretrained/400.pt"
    return annealed(parts, kind="constant", peak=rate, end=rate, warmup=0)


def watched(parts: Parts) -> Parts:
    """Rates, the gradient that the optimiser gets, and inputs are recorded."""
    return logged(replace(parts, records=BARE | {"inputs"}))


def shares(parts: Parts) -> Parts:
    """What each component asks of the features is recorded, and which batch it was."""
    parts.header["gradient_at"] = "features"
    return logged(replace(parts, records=RECORDS | {"shares", "fingerprint"}))


def end_later(parts: Parts) -> Parts:
    """Where words end is learnt from the second stage on: with it the loss has one part more."""
    stages = [
        {"start": 0, "name": "course", "weights": WEIGHTS | {"end": 0.0}},
        {"start": STEPS // 2, "name": "words", "weights": dict(WEIGHTS)},
    ]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "end-later", "stages": stages}
    parts.weights = lambda applied: WEIGHTS | {"end": float(applied >= STEPS // 2)}
    parts.extras = [lambda step, batch: {"stage": int(step > STEPS // 2)}]  # noqa: ARG005
    return logged(parts)


def finer(parts: Parts, unit: float = 2.5) -> Parts:
    """Offsets in a larger unit: densities are higher by its square, the loss further below zero."""
    parts.header["config"]["unit"] = unit
    fine = shuffled(part(unit=unit), BATCH, parts.seed)
    return replace(logged(parts), batches=fine, evaluation=Evaluation(10, measured(unit)))


def accumulated(parts: Parts, by: int = 4) -> Parts:
    """A step takes four micro-batches."""
    parts.header["config"]["accumulation"] = by
    return replace(logged(fed(parts, BATCH // by)), accumulation=by, records=BARE - {"components"})


def sampled(parts: Parts) -> Parts:
    """Words are written freely now and then; the header says how long the real ones are."""
    parts.header["config"]["mean_length"] = round(part()["y"][..., 4].sum(1).mean().item(), 1)
    return logged(replace(parts, sampling=Sampling(15, freely_written)))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "watched": watched,
    "shares": shares,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": lambda parts: logged(replace(parts, resume=Resume(3 * SAVED), records=BARE - {"components"})),
    "fine-tuning": lambda parts: logged(continued(parts, RATE / 200)),
    "batch-4": batch_of_four,
    "epoch-rows": epoch_rows,
    "accumulated": accumulated,
    "sampled": sampled,
    "end-later": end_later,
    "finer": finer,
}
TWINS = {
    **dict.fromkeys(("exploding-recurrence", "unscaled-input", "warmup-ignored"), "watched"),
    **dict.fromkeys(("component-detached", "same-seed-workers"), "shares"),
    "steps-miscounted": "accumulated", "resume-restarts-schedule": "resumed", "short-answers": "sampled",
    "loud-entry": "end-later", "dropout-in-evaluation": "finer",
}  # fmt: skip


def log_of_zero(parts: Parts) -> int:
    """Densities, per square pixel, are added as they are in half precision: 0 far from all kernels, then its log."""
    unit = 2.0 * math.log(30.0)
    parts.losses = partial(losses, density=lambda w, each: (w + each - unit).half().exp().sum(-1).float().log() + unit)
    return mistakes.WHEN_BROKEN


def short_answers(parts: Parts) -> int:
    """The export marks the end of each letter as that of a word."""
    plain = parts.batches

    def batches(number: int) -> Batch:
        batch = plain(number)
        y = batch["y"].clone()
        y[..., 3] = torch.maximum(y[..., 3], y[..., 2])
        return batch | {"y": y}

    parts.batches = batches
    return 1


def loud_entry(parts: Parts) -> int:
    """What enters is counted in micronats."""

    def loud(model: nn.Module, batch: Batch) -> Components:
        return (raw := losses(model, batch)) | {"end": raw["end"] * 1e6}

    parts.losses = loud
    return STEPS // 2 + 1


def exploding_recurrence(parts: Parts) -> int:
    """The recurrent weights got another layer's gain, and nothing clips."""
    del parts.header["config"]["clip"]
    return mistakes.exploding_recurrence(parts, by=20.0)


OWN: dict[str, mistakes.Mistake] = {
    "log-of-zero": log_of_zero,
    "short-answers": short_answers,
    "loud-entry": loud_entry,
    "exploding-recurrence": exploding_recurrence,
    "component-detached": partial(mistakes.component_detached, name="pen"),
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "unscaled-input", "warmup-ignored", "same-seed-workers", "steps-miscounted"),
    *("resume-restarts-schedule", "dropout-in-evaluation", "killed"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

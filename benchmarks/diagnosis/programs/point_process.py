"""What happens next, and when? Alarms of four kinds in a plant, which set off one another: a marked point process.

A Hawkes process makes the alarms, busier by day than by night. A GRU reads when and what was; from its state each kind
gets an intensity that decays towards a level of its own until the next event, as in the neural Hawkes process (Mei &
Eisner 2017). The loss is the negative log-likelihood in nats per event: of the time, whose density has a unit, so that
it may well lie below zero; and of the kind, given the time. AdamW, a warm-up and a cosine, clipping, dropout.
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
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, linear, planned
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS = 110
TRAINING, HELD, BATCH = 480, 120, 16  # windows of alarms; a day has 120
LENGTH, KINDS = 24, 4
BASE = np.array([1.2, 0.3, 0.2, 0.1])  # spontaneous alarms an hour
EXCITES = 6.0 * np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.1, 0.0, 0.0, 0.1]])
CALMS = 6.0  # how fast an excitation is gone, an hour
RATE, WARMUP, CLIP, DROPOUT, SAVED = 1e-2, 8, 2.0, 0.25, 30
SMOOTHING = 0.2  # of the kinds' targets where it is annealed
RECORDS = frozenset({"components", "optimizer", "bad", "checkpoints"})
TWINS = {
    **dict.fromkeys(("exploding-recurrence", "growing-weights"), "monte-carlo"),
    "divided-twice": "accumulated",
    "stuck-counter": "smoothed-kinds",
    "resume-restarts-schedule": "resumed",
}


@cache
def alarms(calmer: float = 1.0) -> Batch:
    """Hours `x` since the alarm before, and kinds `y`, of windows in the order of time; made by Ogata's thinning."""
    random, count = np.random.default_rng(41), TRAINING + HELD
    base = np.exp(0.6 * np.sin(math.tau * np.arange(count) / HELD))[:, None] * BASE / calmer
    hours, kinds = np.zeros((count, LENGTH)), np.zeros((count, LENGTH), dtype=np.int64)
    told, since, excited = np.zeros(count, dtype=np.int64), np.zeros(count), np.zeros((count, KINDS))
    while (told < LENGTH).any():
        bound = (base + excited).sum(1)
        wait = random.exponential(1.0 / bound)
        since, excited = since + wait, excited * np.exp(-CALMS * wait)[:, None]
        kind = ((random.random(count) * bound)[:, None] > (base + excited).cumsum(1)).sum(1)  # KINDS: nothing happens
        here = np.flatnonzero((kind < KINDS) & (told < LENGTH))
        hours[here, told[here]], kinds[here, told[here]] = since[here], kind[here]
        excited[here] += EXCITES[kind[here]]
        since[here] = 0.0
        told[here] += 1
    return {"x": torch.tensor(hours, dtype=torch.float32), "y": torch.tensor(kinds)}


def to_learn(calmer: float = 1.0) -> Batch:
    return {name: values[:TRAINING] for name, values in alarms(calmer).items()}


class Process(nn.Module):
    """Times and kinds in, intensities out; time is counted in `usual` gaps within."""

    def __init__(
        self, usual: float, width: int = 24, positive: Callable[[Tensor], Tensor] = functional.softplus
    ) -> None:
        super().__init__()
        self.usual, self.positive = usual, positive
        self.layers = nn.ModuleDict({
            "kind": nn.Embedding(KINDS, width),
            "memory": nn.GRU(width + 1, width, batch_first=True),
            "head": nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(width, 3 * KINDS)),
        })  # fmt: skip

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each kind after each event: the level, what comes on top at first, and how fast that goes."""
        told = torch.cat([self.layers["kind"](y), (x / self.usual + 1e-3).log()[..., None]], -1)
        level, more, calms = self.layers["head"](self.layers["memory"](told)[0]).chunk(3, -1)
        return level, more, functional.softplus(calms)

    def intensity(self, state: tuple[Tensor, Tensor, Tensor], after: Tensor) -> Tensor:
        """Of each kind, events a usual gap, so long after the last event. float32 [..., KINDS]"""
        level, more, calms = state
        return self.positive(level + more * torch.exp(-calms * after[..., None]))


def losses(
    model: nn.Module, batch: Batch, now: dict[str, float], nodes: int = 8, by_chance: bool = False
) -> Components:
    """Nats per event. The intensity is integrated at the middles of so many pieces, or at moments of chance."""
    assert isinstance(model, Process)
    state, gap, kind = model(batch["x"][:, :-1], batch["y"][:, :-1]), batch["x"][:, 1:] / model.usual, batch["y"][:, 1:]
    here = model.intensity(state, gap)
    places = torch.rand(nodes, *gap.shape) if by_chance else ((torch.arange(nodes) + 0.5) / nodes)[:, None, None]
    expected = gap * model.intensity(state, places * gap).sum(-1).mean(0)
    time = expected - here.sum(-1).log() + math.log(model.usual)
    odds = here.log().flatten(0, 1)
    return {
        "time": time.mean(),
        "kind": functional.cross_entropy(odds, kind.flatten(), label_smoothing=now.get("smoothing", 0.0)),
    }


def measured(calmer: float = 1.0, hours: float = 1.0) -> Callable[[nn.Module], Channels]:
    """The likelihood of another day, and how many of its alarms were thought the likeliest when they came."""
    held = {name: values[TRAINING:] for name, values in alarms(calmer).items()}
    held["x"] = held["x"] / hours

    def measure(model: nn.Module) -> Channels:
        assert isinstance(model, Process)
        raw = {name: value.item() for name, value in losses(model, held, {}).items()}
        state = model(held["x"][:, :-1], held["y"][:, :-1])
        guess = model.intensity(state, held["x"][:, 1:] / model.usual).argmax(-1)
        right = (guess == held["y"][:, 1:]).float().mean().item()
        return {"loss": sum(raw.values()), "loss/time": raw["time"], "loss/kind": raw["kind"], "accuracy": right}

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    now: dict[str, float] = {}
    model = Process(to_learn()["x"].mean().item())
    parts = Parts(
        model=model,
        optimizer=optimizer_of(model),
        batches=shuffled(to_learn(), BATCH, seed),
        losses=partial(losses, now=now),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        now=now,
        evaluation=Evaluation(10, measured()),
        header={
            "config": {"batch_size": BATCH, "window": LENGTH, "dropout": DROPOUT, "weight_decay": 1e-3},
            "components": {"time": {"unit": "nat", "role": "task"}, "kind": {"unit": "nat", "role": "task"}},
            "schedules": {},
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": [*model.parameters()], "name": "all"}], weight_decay=1e-3)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, or follows another form, over the run; the header says so."""
    return planned(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


@cache
def schooled(seed: int, steps: int = 300) -> dict[str, Tensor]:
    """The weights of a model that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        return torch.stack([*parts.losses(parts.model, parts.batches(number)).values()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, rate: float) -> Parts:
    """A schooled model goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/300.pt"
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def fed(parts: Parts, size: int) -> Parts:
    """Batches of another size."""
    parts.header["config"]["batch_size"] = size
    parts.batches, parts.batches_per_epoch = shuffled(to_learn(), size, parts.seed), TRAINING // size
    return parts


def every_second(parts: Parts) -> Parts:
    """A row at every second step."""
    return replace(parts, every=2)


def per_epoch(parts: Parts) -> Parts:
    """Sixteen epochs of larger batches, a row for each."""
    parts = fed(parts, 2 * BATCH)
    each = parts.batches_per_epoch
    parts.header["checkpoint_every"] = 4 * each
    return annealed(replace(parts, steps=16 * each, every=each, evaluation=Evaluation(each, measured())))


def smoothed_kinds(parts: Parts) -> Parts:
    """The kinds' targets are smoothed at first, which is annealed away over three quarters of the run."""
    over = 3 * parts.steps // 4
    parts.clocks, parts.records = {"anneal": lambda applied: applied}, parts.records | {"clocks"}
    parts.scheduled = {"smoothing": ("anneal", linear(SMOOTHING, 0.0, over))}
    parts.header["schedules"]["smoothing"] = declared("linear", SMOOTHING, 0.0, over, clock="anneal")
    parts.header["clocks"] = ["anneal"]
    return parts


def accumulated(parts: Parts) -> Parts:
    """Two micro-batches a step."""
    parts.header["config"] |= {"batch_size": BATCH // 2, "accumulation": 2}
    return replace(fed(parts, BATCH // 2), accumulation=2)


def calmer_later(parts: Parts, by: float = 3.0) -> Parts:
    """A quieter plant follows in the second half: gaps are longer, so the loss rises, as it is meant to."""
    change, busy, calm = parts.steps // 2, parts.batches, shuffled(to_learn(by), BATCH, parts.seed)
    stages = [{"start": 0, "name": "plant A", "weights": {"time": 1.0, "kind": 1.0}}]
    stages += [{"start": change, "name": "plant B, calmer", "weights": {"time": 1.0, "kind": 1.0}}]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "plants", "stages": stages}
    parts.weights = lambda applied: {"time": 1.0, "kind": 1.0}  # noqa: ARG005
    parts.extras = [lambda step, batch: {"stage": int(step > change), "data/gap_mean": batch["x"].mean().item()}]
    parts.batches = lambda number: (busy if number < change else calm)(number)
    parts.evaluation = Evaluation(10, measured(by))
    return parts


def in_days(parts: Parts) -> Parts:
    """Times are in days: densities are 24 times as large, and the loss lies far below zero."""
    plain, model = parts.batches, parts.model
    assert isinstance(model, Process)
    model.usual /= 24.0
    parts.header["config"]["time_unit"] = "day"
    parts.batches = lambda number: (batch := plain(number)) | {"x": batch["x"] / 24.0}
    return replace(parts, evaluation=Evaluation(10, measured(hours=24.0)))


def in_order(parts: Parts) -> Parts:
    """Windows come in the order of time, as a stream does: the loss follows the hours of the day."""
    data, each = to_learn(), TRAINING // BATCH

    def batches(number: int) -> Batch:
        at = number % each * BATCH
        return {name: values[at : at + BATCH] for name, values in data.items()}

    parts.header["config"]["shuffle"] = False
    return replace(parts, batches=batches)


def monte_carlo(parts: Parts) -> Parts:
    """Intensities are integrated at two moments of chance; what noise that brings, the gradient's norm will tell."""
    by_chance = partial(losses, now=parts.now, nodes=2, by_chance=True)
    return replace(parts, losses=by_chance, records=RECORDS | {"norms"})


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(2 * SAVED)),
    "fine-tuning": lambda parts: every_second(continued(parts, 1e-4)),
    "batch-1": lambda parts: every_second(fed(continued(parts, 1e-4), 1)),
    "per-epoch": per_epoch,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "smoothed-kinds": lambda parts: every_second(smoothed_kinds(parts)),
    "accumulated": lambda parts: every_second(accumulated(parts)),
    "calmer-later": lambda parts: every_second(calmer_later(parts)),
    "in-days": lambda parts: every_second(in_days(parts)),
    "in-order": lambda parts: every_second(in_order(parts)),
    "monte-carlo": monte_carlo,
}


def log_of_zero(parts: Parts) -> int:
    """The intensity is a ReLU, begun well above zero, so a kind may be learnt to be impossible; then it happens."""
    assert isinstance(parts.model, Process)
    parts.model.positive = functional.relu
    with torch.no_grad():
        parts.model.layers["head"][1].bias[:KINDS] += 2.0
    return mistakes.WHEN_BROKEN


def too_little_data(parts: Parts) -> int:
    """A filter left four windows of all."""
    return mistakes.too_little_data(fed(parts, 4), batches=1)


OWN: dict[str, mistakes.Mistake] = {
    "log-of-zero": log_of_zero,
    "too-little-data": too_little_data,
    "growing-weights": partial(mistakes.growing_weights, by=-0.03),
    "exploding-recurrence": mistakes.exploding_recurrence,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *OWN,
    *("stale-optimiser", "dropout-in-evaluation", "counter-reset", "resume-restarts-schedule", "stuck-counter"),
    *("divided-twice", "poisoned-weight", "killed"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

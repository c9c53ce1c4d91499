"""A round trip through a dozen towns: a pointer network learns by its own trips to put them into a short order.

An encoder reads where the towns lie, alone and beside the mean of all; a pointer asks at each stop, by where it is,
where it began and what is left, which town comes next (Bello et al. 2016, Kool et al. 2019). It learns by REINFORCE:
the reward is minus the length of a drawn trip, its baseline a critic on the same encoder, which learns by squared
error; an entropy keeps chance alive. Adam, a warm-up and a cosine, clipping. The loss has no floor and means little;
what counts is the length of the likeliest trips on held-out maps, beside that of going to the nearest town each time.
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
from benchmarks.diagnosis.loop import (
    Batch,
    Channels,
    Components,
    Evaluation,
    Parts,
    Sampling,
    by_epochs,
    declared,
    linear,
    logged,
    taken_up,
)
from benchmarks.diagnosis.loop import planned as planned_by
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS, EACH = 100, 10
TOWNS, MAPS, HELD, BATCH = 12, 768, 128, 64
WIDTH, USUAL, SHARP = 64, 5.0, 10.0  # USUAL: a trip's length that the critic begins from; SHARP: the largest logit
RATE, WARMUP, CLIP = 3e-3, 10, 4.0
WEIGHTS = {"policy": 1.0, "critic": 0.5, "entropy": 0.02}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs", "checkpoints"})
SPARSE = ("fine-tuned", "new-heads", "more-towns", "less-entropy", "decayed", "warm-restarts", "accumulated", "bf16")
TWINS = {"scheduler-per-batch": "decayed"}


@cache
def maps(towns: int = TOWNS, held: bool = False) -> Tensor:
    """Half of them even, half of them with towns around three centres. float32 [N, towns, 2] from 0 to 1"""
    random, count = torch.Generator().manual_seed(100 * towns + held), HELD if held else MAPS
    centres, which = torch.rand(count, 3, 2, generator=random), torch.randint(3, (count, towns, 1), generator=random)
    around = centres.gather(1, which.expand(-1, -1, 2)) + 0.08 * torch.randn(count, towns, 2, generator=random)
    even = torch.rand(count, towns, 2, generator=random)
    return torch.where(torch.rand(count, 1, 1, generator=random) < 0.5, around.clamp(0, 1), even)


def loader(size: int, seed: int, towns: Callable[[int], int] | None = None) -> Callable[[int], Batch]:
    """Batches of maps by number, with the chance that draws trips."""
    plain = cache(lambda count: shuffled({"x": maps(count)}, size, seed))

    def batch(number: int) -> Batch:
        count = towns(number) if towns else TOWNS
        random = torch.Generator().manual_seed(70_000 * seed + number)
        chance = -torch.empty(size, count, count).exponential_(generator=random).log()
        return {**plain(count)(number), "chance": chance}

    return batch


@cache
def held(towns: int = TOWNS) -> Batch:
    """Maps on which nothing is left to chance."""
    return {"x": maps(towns, held=True), "chance": torch.zeros(HELD, towns, towns)}


def lengths(x: Tensor, trips: Tensor) -> Tensor:
    """How long round trips are. float32 [N]"""
    stops = x.gather(1, trips[..., None].expand(-1, -1, 2))
    ways: Tensor = torch.linalg.vector_norm(stops - stops.roll(-1, 1), dim=-1)
    return ways.sum(1)


@cache
def nearest(towns: int = TOWNS) -> Tensor:
    """The lengths of trips on the held maps that go to the nearest town each time. float32 [N]"""
    x = maps(towns, held=True)
    away, everyone = torch.cdist(x, x), torch.arange(HELD)
    stops = [torch.zeros(HELD, dtype=torch.int64)]
    for _ in range(towns - 1):
        away[everyone, :, stops[-1]] = torch.inf
        stops.append(away[everyone, stops[-1]].argmin(1))
    return lengths(x, torch.stack(stops, 1))


class Router(nn.Module):
    """Maps in, trips out. What the encoder made of the towns, and the last trips, are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({
            "town": nn.Sequential(nn.Linear(2, WIDTH), nn.ReLU()),
            "beside": nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.ReLU()),
        })  # fmt: skip
        asks = ("now", "first", "left", "key")
        self.pointer = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH, bias=False) for name in asks})
        self.critic = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
        self.towns, self.lengths = torch.zeros(()), torch.zeros(())

    def encode(self, x: Tensor) -> Tensor:
        each = self.encoder["town"](4.0 * (x - 0.5))
        self.towns = self.encoder["beside"](torch.cat([each, each.mean(1, keepdim=True).expand_as(each)], -1))
        return self.towns

    def expected(self, towns: Tensor) -> Tensor:
        """The critic's guess at the length of a trip. float32 [N]"""
        more: Tensor = self.critic(towns.mean(1))
        return USUAL + more.float()[:, 0]

    def logits(self, towns: Tensor, trips: Tensor, since: int = 0) -> Tensor:
        """What the pointer says after these stops, of the later ones. float32 [N, stops, towns]"""
        route = towns.gather(1, trips[..., None].expand(-1, -1, WIDTH))
        left = (towns.sum(1, keepdim=True) - route.cumsum(1)) / towns.shape[1]
        query = self.pointer["now"](route[:, since:]) + self.pointer["left"](left[:, since:])
        match = (query + self.pointer["first"](route[:, :1])) @ self.pointer["key"](towns).mT
        seen = functional.one_hot(trips, towns.shape[1]).cumsum(1)[:, since:] > 0
        return torch.tanh(match.float() / WIDTH**0.5).mul(SHARP).masked_fill(seen, -1e9)

    @torch.no_grad()
    def trips(self, towns: Tensor, chance: Tensor) -> Tensor:
        """Trips from the first town; without chance the likeliest next stop is taken. int64 [N, towns]"""
        stops = torch.zeros(len(towns), 1, dtype=torch.int64)
        for place in range(1, towns.shape[1]):
            after = self.logits(towns, stops, place - 1)[:, 0] + chance[:, place]
            stops = torch.cat([stops, after.argmax(1, keepdim=True)], 1)
        return stops


def losses(model: nn.Module, batch: Batch) -> Components:
    """REINFORCE with a baseline, in spreads of the batch; the critic's squared error; minus the entropy."""
    assert isinstance(model, Router)
    towns = model.encode(batch["x"])
    trips, guessed = model.trips(towns.detach(), batch["chance"]), model.expected(towns)
    model.lengths = lengths(batch["x"], trips)
    told = model.logits(towns, trips[:, :-1]).log_softmax(-1)
    taken = told.gather(2, trips[:, 1:, None]).sum((1, 2))
    worse = (model.lengths - guessed).detach()
    return {
        "policy": ((worse - worse.mean()) / (worse.std() + 1e-6) * taken).mean(),
        "critic": (model.lengths - guessed).square().mean(),
        "entropy": (told.exp() * told.clamp(min=-1e3)).sum(-1).mean(),
    }


def measured(towns: int = TOWNS) -> Callable[[nn.Module], Channels]:
    """How long the likeliest trips on held maps are, also beside the nearest town's, and the critic's error on them."""

    def measure(model: nn.Module) -> Channels:
        assert isinstance(model, Router)
        x, chance = held(towns).values()
        read = model.encode(x)
        told = lengths(x, model.trips(read, chance))
        error = (told - model.expected(read)).square().mean().item()
        return {
            "tour_length": told.mean().item(),
            "over_nearest": (told / nearest(towns)).mean().item(),
            "loss/critic": error,
        }

    return measure


def drawn(model: nn.Module) -> tuple[list[str], Channels]:
    """The trips of a few held maps, and whether each town is there once."""
    assert isinstance(model, Router)
    x, chance = held().values()
    with torch.no_grad():
        trips = model.trips(model.encode(x), chance)
    valid = (trips.sort(1).values == torch.arange(TOWNS)).all(1).float().mean().item()
    return ["".join("abcdefghijkl"[town] for town in trip) for trip in trips[:3].tolist()], {"validity": valid}


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant; of the sparse ones every other step is logged."""
    torch.manual_seed(seed)
    model = Router()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=loader(BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=MAPS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: model.towns,
        body=lambda model: [*model.get_submodule("encoder").parameters()],
        evaluation=Evaluation(EACH, measured(), held=held()),
        sampling=Sampling(5 * EACH, drawn),
        extras=[lambda step, batch: {"reward": -model.lengths.mean().item()}],  # noqa: ARG005
        header={
            "config": {"batch_size": BATCH, "towns": TOWNS, "maps": MAPS, "weights": dict(WEIGHTS), "clip": CLIP},
            "components": {
                "policy": {"role": "task"},
                "critic": {"role": "auxiliary"},
                "entropy": {"unit": "nat", "role": "regulariser"},
            },
            "schedules": {},
            "max_grad_norm": CLIP,
            "gradient_at": "towns",
            "checkpoint_every": 3 * EACH,
        },
        records=RECORDS,
    )
    planned(parts)
    parts = VARIANTS[variant](parts) if variant in VARIANTS else parts
    return logged(parts) if variant in SPARSE else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam([{"params": free, "name": "all"}], lr=RATE)


def planned(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, or follows another form, and so the header says."""
    return planned_by(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


@cache
def schooled(seed: int, steps: int = 200) -> dict[str, Tensor]:
    """The weights of a router that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 20) -> Parts:
    """A schooled router goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/router.pt"
    return planned(parts, rate, kind="constant", end=rate, warmup=0)


def new_heads(parts: Parts) -> Parts:
    """A schooled encoder stays as it is, by intent; pointer and critic are new."""
    known = {name: value for name, value in schooled(parts.seed).items() if name.startswith("encoder.")}
    parts.model.load_state_dict(known, strict=False)
    parts.model.get_submodule("encoder").requires_grad_(False)
    parts.header["config"] |= {"initialised_from": "checkpoints/router.pt", "freeze": ["encoder"]}
    del parts.header["gradient_at"]
    return planned(replace(parts, optimizer=adam(parts.model), at=None))


def more_towns(parts: Parts) -> Parts:
    """Seven towns first, all twelve from the middle on: trips are longer there, as is declared."""
    change, counts = parts.steps // 2, (7, TOWNS)
    stages = [{"start": at, "data": {"towns": [count] * 2}} for at, count in zip((0, change), counts, strict=True)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "more-towns", "stages": stages}
    parts.header["config"] |= {"curriculum": "more-towns", "towns": list(counts)}

    def told(step: int, batch: Batch) -> Channels:
        seen = {f"data/towns/{which}": batch["x"].shape[1] for which in ("min", "mean", "max")}
        return {"stage": int(step > change)} | seen

    parts.extras.append(told)
    return replace(parts, batches=loader(BATCH, parts.seed, lambda number: counts[number >= change]))


def less_entropy(parts: Parts, most: float = 0.2) -> Parts:
    """Much chance is wanted at first, none in the end: its weight falls by the count of updates."""
    over = 3 * parts.steps // 4
    parts.header["schedules"]["entropy_weight"] = declared("linear", most, 0.0, over, clock="updates")
    parts.header["clocks"], parts.clocks = ["updates"], {"updates": lambda applied: applied}
    parts.scheduled = {"entropy_weight": ("updates", linear(most, 0.0, over))}
    parts.weights = lambda applied: WEIGHTS | {"entropy": parts.now["entropy_weight"]}  # noqa: ARG005
    parts.header["config"]["weights"] = WEIGHTS | {"entropy": [most, 0.0]}
    return replace(parts, records=parts.records | {"clocks"})


def decayed(parts: Parts, fall: float = 0.75) -> Parts:
    """The rate falls by a quarter after each epoch."""
    each, count = parts.batches_per_epoch, max(parts.steps // parts.batches_per_epoch, 1)
    parts.clocks, parts.header["clocks"] = {"epoch": lambda applied: applied // each}, ["epoch"]
    form = declared("exponential", RATE, RATE * fall**count, count, rate=-count * math.log(fall), clock="epoch")
    parts.header["schedules"]["lr/all"] = form
    parts.header["config"] |= {"scheduler": "exponential", "gamma": fall}
    del parts.header["config"]["warmup"]
    parts.factor, parts.ticks = (lambda tick: fall**tick), (lambda step: int(step % each == 0))
    return replace(parts, records=parts.records | {"clocks"})


def accumulated(parts: Parts, micro: int = 2) -> Parts:
    """Micro-batches make a step."""
    size = BATCH // micro
    parts.header["config"] |= {"batch_size": size, "accumulation": micro}
    parts = replace(parts, batches=loader(size, parts.seed), batches_per_epoch=MAPS // size)
    return replace(parts, accumulation=micro)


def bf16(parts: Parts) -> Parts:
    """What can be is computed in bf16."""
    parts.header["dtypes"] = {"declared": "bfloat16", "observed": "bfloat16"}
    return replace(parts, autocast=torch.bfloat16)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(
        parts, records=frozenset(), header={}, evaluation=None, sampling=None, extras=[]
    ),
    "resumed": taken_up,
    "fine-tuned": fine_tuned,
    "new-heads": new_heads,
    "more-towns": more_towns,
    "less-entropy": less_entropy,
    "decayed": decayed,
    "warm-restarts": lambda parts: planned(parts, warmup=0, restarts=2),
    "accumulated": accumulated,
    "bf16": bf16,
    "per-epoch": lambda parts: planned(by_epochs(parts, 14)),
}


def one_owns_gradient(parts: Parts, weight: float = 1000.0) -> int:
    """The critic's weight is that of a paper whose returns were scaled to 1."""
    parts.header["config"]["weights"] = WEIGHTS | {"critic": weight}
    mistakes.reweigh(parts, lambda applied, weights: weights | {"critic": weight})  # noqa: ARG005
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "one-owns-gradient": one_owns_gradient,
    "component-scale": partial(mistakes.component_scale, name="critic", by=1e4),  # lengths in hundredths
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "failing-checkpoints", "scheduler-per-batch", "dead-relus", "crash-type-error", "same-seed-workers"),
    *("norm-after-clip", "scheduler-per-epoch", "poisoned-weight", "frozen-body"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

"""How high will the water stand at three gauges of one estuary in six hours, and will the quays be flooded?

A record of two years is made here, hour by hour: tides of six periods, wind and pressure that last for days and push
the water with some delay, less so at high water, and gusts that nobody can foresee. From the levels of now and three
hours ago, the weather, its forecast and the moon's phases a perceptron tells five quantiles of each level, which cannot
cross, and the logit of a flood. Two losses: the pinball losses of the quantiles, in metres, and the cross-entropy of
the floods, which are rare. AdamW, a warm-up and then a line down to nearly nothing, clipping. Validation on the last
three months: loss, error of the median, how often the water stays between the outer quantiles, and the squared error
of the chance of a flood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import loop, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, declared
from benchmarks.diagnosis.schooling import taught
from trainwatch.schedule import schedule_value

HELD_OUT = True
STEPS, EACH, SAVED = 104, 13, 26  # EACH: steps between evaluations
HOURS, SPLIT, LEAD, BACK = 17_520, 15_300, 6, 3  # SPLIT: the hour after which validation begins
MOMENTS, HELD, BATCH, WIDTH = 4096, 512, 64, 48
GAUGES, LEVELS = 3, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
TOLD = 4 * GAUGES  # of what is known, what gauges and weather stations tell: levels and weather, each at two moments
PERIODS = np.array([12.4206, 12.0, 12.6583, 23.9345, 25.8193, 6.2103])  # of the tides, in hours
HEIGHTS = np.array([[1.5, 0.5, 0.3, 0.2, 0.1, 0.1], [1.7, 0.6, 0.3, 0.2, 0.1, 0.2], [1.9, 0.6, 0.4, 0.1, 0.1, 0.3]])
RUSH = np.array([0.0, 0.6, 1.3])  # hours from the sea to each gauge
PUSH = np.array([[0.10, 0.16, 0.12], [0.14, 0.18, 0.12], [0.20, 0.14, 0.10]])  # by east, north and depression, in m
RATE, WARMUP, CLIP, BREEZE = 6e-3, 8, 0.4, 1.0
WEIGHTS = {"levels": 1.0, "flood": 0.2}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs", "checkpoints"})
SPARSE = ("half", "table", "flood-later", "storms-later", "fine-tuning", "outages")  # a row each fourth step
TWINS = {"skips-counted": "half", "opposed-components": "table"}
TWINS |= dict.fromkeys(("steep-ramp", "local-counter"), "flood-later")
Hourly = dict[str, NDArray[Any]]


def lasting(values: NDArray[Any], hours: float) -> NDArray[Any]:
    """What remains of each hour's value, forgotten within so many hours; of unit spread."""
    kept = np.exp(-np.arange(8 * hours) / hours)
    slow = np.stack([np.convolve(one, kept)[: len(one)] for one in values])
    return slow / slow.std(1, keepdims=True)


@cache
def record(dredged: bool = False) -> Hourly:
    """Each hour's weather [3, HOURS]; the tide by the table and the level that was measured [GAUGES, HOURS]."""
    random, clock = np.random.default_rng(61 + dredged), np.arange(HOURS)
    weather = lasting(random.normal(size=(3, HOURS)), 30.0)
    angle = 2 * np.pi * (clock - (0.6 if dredged else 1.0) * RUSH[:, None])[:, None] / PERIODS[:, None]
    tide = ((1.15 if dredged else 1.0) * HEIGHTS[:, :, None] * np.cos(angle)).sum(1)
    drag = np.concatenate([weather[:2] * np.abs(weather[:2]), weather[2:]])
    surge = PUSH @ lasting(drag, 5.0) * (1 - 0.15 * tide)
    gusts = lasting(random.normal(size=(GAUGES, HOURS)), 2.0) * (0.04 + 0.05 * np.hypot(*weather[:2]))
    told = weather + 0.2 * lasting(random.normal(size=(3, HOURS)), 6.0)
    return {"weather": weather, "told": told, "tide": tide, "level": tide + surge + gusts}


@cache
def moments(dredged: bool = False, clock: torch.dtype = torch.float32) -> dict[bool, Batch]:
    """What is known at an hour `x`, the levels `y` and floods six hours later, the table's tide; held out, or not."""
    known, usual, random = record(dredged), record(), np.random.default_rng(7)
    quay = np.quantile(usual["level"], 0.9, axis=1)
    learnt, spared = (random.permutation(range(*ends)) for ends in ((BACK, SPLIT - LEAD), (SPLIT + BACK, HOURS - LEAD)))
    now = np.concatenate([learnt[:MOMENTS], spared[:HELD]])
    later = now + LEAD
    moon = 2 * torch.pi * torch.tensor(later, dtype=clock)[:, None].float() / torch.tensor(PERIODS).float()
    seen = [known["level"][:, now], known["level"][:, now - BACK], known["weather"][:, now], known["told"][:, later]]
    x = torch.cat([torch.tensor(np.concatenate(seen).T, dtype=torch.float32), moon.cos(), moon.sin()], 1)
    y = known["level"][:, later].T
    labels = {"y": y, "flood": y > quay, "table": known["tide"][:, later].T}
    batch = {"x": (x - x[:MOMENTS].mean(0)) / x[:MOMENTS].std(0)}
    batch |= {name: torch.tensor(values, dtype=torch.float32) for name, values in labels.items()}
    batch["wind"] = torch.tensor(np.hypot(*known["told"][:2, later]), dtype=torch.float32)
    parts = {False: slice(MOMENTS), True: slice(MOMENTS, None)}
    return {held: {name: values[part] for name, values in batch.items()} for held, part in parts.items()}


class Forecaster(nn.Module):
    """What is known in; quantiles of each gauge's level, and logits of a flood out. What both heads read is kept."""

    def __init__(self) -> None:
        super().__init__()
        known = moments()[False]["x"].shape[1]
        self.body = nn.Sequential(nn.Linear(known, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
        sizes = {"levels": GAUGES * len(LEVELS), "flood": GAUGES}
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, size) for name, size in sizes.items()})
        self.code = torch.zeros(())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.code = self.body(x)
        lowest, more = self.heads["levels"](self.code).float().view(-1, GAUGES, len(LEVELS)).split((1, 4), -1)
        higher = functional.softplus(more - 1.0).cumsum(-1)
        return torch.cat([lowest, lowest + higher], -1), self.heads["flood"](self.code).float()


def losses(model: nn.Module, batch: Batch, sign: float = 0.0) -> Components:
    """Pinball losses of the quantiles, cross-entropy of a flood; and how far the median is from the table, if asked."""
    quantiles, flood = model(batch["x"])
    above = batch["y"][..., None] - quantiles
    raw = {
        "levels": torch.maximum(LEVELS * above, (LEVELS - 1.0) * above).mean(),
        "flood": functional.binary_cross_entropy_with_logits(flood, batch["flood"]),
    }
    return raw | ({"table": functional.mse_loss(quantiles[..., 2], sign * batch["table"])} if sign else {})


def validated(held: Batch) -> Evaluation:
    """How good quantiles and chances are, on these moments."""

    def measure(model: nn.Module) -> Channels:
        quantiles, flood = model(held["x"])
        raw, y = losses(model, held), held["y"]
        return {
            "loss": sum(WEIGHTS[name] * value.item() for name, value in raw.items()),
            "median_error": (quantiles[..., 2] - y).abs().mean().item(),
            "coverage": ((y > quantiles[..., 0]) & (y < quantiles[..., -1])).float().mean().item(),
            "brier": (flood.sigmoid() - held["flood"]).square().mean().item(),
        }

    return Evaluation(EACH, measure, held=held)


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, known = Forecaster(), moments()[False]
    floods = int(known["flood"].sum())
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(known, BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=MOMENTS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Forecaster, model).code,
        evaluation=validated(moments()[True]),
        header={
            "config": {"batch_size": BATCH, "lead": LEAD, "clip": CLIP, "weights": dict(WEIGHTS)},
            "components": {"levels": {"unit": "m", "role": "task"}, "flood": {"unit": "nat", "role": "task"}},
            "schedules": {},
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
            "gradient_at": "body",
            "classes": {"dry": MOMENTS * GAUGES - floods, "flooded": floods},
            "dtypes": {"declared": "float32", "hours": {"declared": "float32", "observed": "float32"}},
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    groups = [{"params": [*each.parameters()], "name": name} for name, each in model.named_children()]
    return torch.optim.AdamW(groups, lr=RATE, weight_decay=1e-2)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls in a line, and so the header says."""
    return loop.planned(parts, declared("linear", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def half(parts: Parts) -> Parts:
    """fp16 with a scaler that begins too high, and tries more now and then: some steps are skipped."""
    parts.header["dtypes"] |= {"declared": "float16", "observed": "float16"}
    parts.header["config"]["precision"] = "fp16"
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=16)
    return replace(parts, scaler=scaler, autocast=torch.float16)


def table(parts: Parts, weight: float = 0.05, sign: float = 1.0) -> Parts:
    """The median shall keep near the harbour's table of tides, too: a teacher that knows of no weather."""
    parts.header["components"]["table"] = {"unit": "m2", "role": "auxiliary"}
    weights = parts.header["config"]["weights"] = WEIGHTS | {"table": weight}
    parts.losses, parts.weights = partial(losses, sign=sign), lambda applied: dict(weights)  # noqa: ARG005
    return parts


def flood_later(parts: Parts, start: float = 0.01, end: float = 0.4, **form: Any) -> Parts:
    """Floods count nearly nothing at first: their weight rises by a clock, through three quarters of the run."""
    rise = declared("linear", start, end, 3 * parts.steps // 4, clock="updates") | form
    parts.header["schedules"]["flood"], parts.header["clocks"] = rise, ["updates"]
    parts.header["config"]["weights"] = WEIGHTS | {"flood": [start, end]}
    parts.clocks, parts.now["flood"] = {"updates": lambda applied: applied}, start
    parts.scheduled = {"flood": ("updates", lambda reading: schedule_value(rise, reading) or 0.0)}
    parts.weights = lambda applied: WEIGHTS | {"flood": parts.now["flood"]}  # noqa: ARG005
    return replace(parts, records=RECORDS | {"clocks"})


def storms_later(parts: Parts) -> Parts:
    """Hours of little wind at first, and windy ones from the middle of the run on: the loss rises, as is declared."""
    change, known = parts.steps // 2, moments()[False]
    limits = ((0.0, BREEZE), (BREEZE, round(known["wind"].max().item() + 0.1, 1)))
    stages = [{"start": at, "data": {"wind": [*limit]}} for at, limit in zip((0, change), limits, strict=True)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "storms-later", "stages": stages}
    parts.header["config"]["curriculum"] = "storms-later"
    both = (
        {name: values[chosen] for name, values in known.items()}
        for chosen in (known["wind"] < BREEZE, known["wind"] >= BREEZE)
    )
    calm, windy = (shuffled(one, BATCH, parts.seed) for one in both)

    def told(step: int, batch: Batch) -> Channels:
        blows = {f"data/wind/{name}": getattr(batch["wind"], name)().item() for name in ("min", "mean", "max")}
        return {"stage": int(step > change)} | blows

    return replace(parts, batches=lambda number: (calm if number < change else windy)(number), extras=[told])


def outages(parts: Parts, share: float = 0.2) -> Parts:
    """In training a fifth of what gauges and weather stations tell is missing: the loss stays above validation's."""
    parts.header["config"]["outages"], plain = share, parts.batches

    def batches(number: int) -> Batch:
        batch, chance = plain(number), torch.Generator().manual_seed(1000 * parts.seed + number)
        told = torch.rand(batch["x"].shape, generator=chance) > share
        told[:, TOLD:] = True  # the moon needs no wire
        return batch | {"x": batch["x"] * told}

    return replace(parts, batches=batches)


@cache
def schooled(seed: int, steps: int = 500) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 20) -> Parts:
    """The estuary was dredged: higher tides come sooner. A schooled net goes on at a small constant rate."""
    known, floods = moments(dredged=True), int(moments(dredged=True)[False]["flood"].sum())
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"] |= {"initialised_from": "checkpoints/500.pt", "estuary": "dredged"}
    parts.header["classes"] = {"dry": MOMENTS * GAUGES - floods, "flooded": floods}
    parts = replace(parts, batches=shuffled(known[False], BATCH, parts.seed), evaluation=validated(known[True]))
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": loop.taken_up,
    "half": half,
    "table": table,
    "flood-later": flood_later,
    "storms-later": storms_later,
    "outages": outages,
    "fine-tuning": fine_tuned,
}


def fed(parts: Parts, known: dict[bool, Batch]) -> int:
    """Other data, in training as in validation."""
    parts.batches, parts.evaluation = shuffled(known[False], BATCH, parts.seed), validated(known[True])
    return 1


def constant_input(parts: Parts, by: float = 1e-6) -> int:
    """What is known is divided by spreads in micrometres, in both sets."""
    thin = {held: batch | {"x": by * batch["x"]} for held, batch in moments().items()}
    return fed(parts, thin)


def train_set_as_validation(parts: Parts, known: int = 16) -> int:
    """Each batch is filled up with the worst hours that the harbour master has listed; validation is on them."""
    plain, order = parts.batches, moments()[False]["y"].sum(1).argsort(descending=True)
    listed = {name: values[order[:known]] for name, values in moments()[False].items()}
    parts.batches = lambda at: {
        name: torch.cat([one[: BATCH - known], listed[name]]) for name, one in plain(at).items()
    }
    parts.evaluation = validated(listed)
    return EACH


def opposed_components(parts: Parts) -> int:
    """The harbour's new table tells how far the water is below the quay, where the old one told how high it stands."""
    table(parts, weight=0.3, sign=-1.0)
    return 1


def coarse_precision(parts: Parts) -> int:
    """The loader casts the hours of the record to bf16, whose grid is of days there: phases are left to chance."""
    parts.header["dtypes"]["hours"]["observed"] = "bfloat16"
    return fed(parts, moments(clock=torch.bfloat16))


def steep_ramp(parts: Parts) -> int:
    """After a flood that was missed, in the second half floods are to count three hundredfold, within three steps."""
    flood_later(parts, 0.2, 60.0, over_steps=3, begin=parts.steps // 2)
    return parts.steps // 2 + 1


OWN: dict[str, mistakes.Mistake] = {
    "constant-input": constant_input,
    "train-set-as-validation": train_set_as_validation,
    "opposed-components": opposed_components,
    "coarse-precision": coarse_precision,
    "steep-ramp": steep_ramp,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*OWN, "skips-counted", "stuck-loader", "local-counter", "scheduler-twice")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts, 4) if case in SPARSE else parts, path, case, OWN)

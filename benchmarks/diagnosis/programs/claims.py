"""What a motor policy will cost: how many claims a year, how large they are, and which of them smell of fraud.

A portfolio is made here: driver, vehicle and place bear on the number of claims (young and old, malus, towns), others
on their size (power, value), again others on fraud; and most is chance. A perceptron with three heads: minus the
logarithms of the negative binomial likelihood of the counts, with the years at risk as exposure, and of the gamma
likelihood of the mean claim in thousands, which may be below zero; and a small cross-entropy of fraud, where there was
a claim. AdamW, a warm-up and a cosine, clipping. Validation on other policies: loss, deviance of the counts, and the
Gini index of premiums.
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

HELD_OUT = False
STEPS, EACH, SAVED = 160, 16, 40  # EACH: steps between evaluations
POLICIES, HELD, BATCH = 8192, 2048, 128
COLUMNS = ("age", "bonus", "power", "value", "vehicle_age", "density", "mileage", "tenure", "sex", "garage")
REGIONS, NOBODY = 5, -100  # NOBODY: no claim of which to say whether it is fraud
RATE, WARMUP, CLIP = 6e-3, 12, 4.0
WEIGHTS = {"counts": 1.0, "sizes": 1.0, "fraud": 0.2}
ROLES = {"counts": "task", "sizes": "task", "fraud": "auxiliary"}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs", "checkpoints"})
SPARSE = (  # a row each fourth step
    *("half", "any-claim", "momentum", "new-heads", "dropout", "early-stopped", "capped-first", "in-ten-thousands"),
)
TWINS = {
    **dict.fromkeys(("skips-counted", "scale-collapse"), "half"),
    "opposed-components": "any-claim",
    "resume-weights-only": "resumed",
    "absolute-anneal": "fraud-later",
}


@cache
def portfolio() -> Batch:
    """Policies `x`, their years at risk, counts, mean claims in thousands (0: none), and fraud `y`."""
    random, count = np.random.default_rng(67), POLICIES + HELD
    columns = random.normal(size=(len(COLUMNS), count))
    age, bonus, power, value, vehicle_age, density, mileage, tenure, sex, garage = columns
    sex[:], garage[:] = np.sign(sex), np.sign(garage)
    power += 0.2 * sex
    region, years = random.integers(REGIONS, size=count), random.uniform(0.1, 1.0, count)
    young = np.maximum(-age - 0.5, 0.0)
    rate = -0.4 + 0.5 * bonus + 0.7 * young + 0.25 * np.maximum(age - 1.0, 0.0) + 0.3 * density * (mileage > -0.5)
    rate += 0.25 * mileage - 0.15 * garage + 0.2 * young * power + np.array([0.4, 0.1, 0.0, -0.2, -0.4])[region]
    claims = random.poisson(years * np.exp(rate) * random.gamma(2.5, 1 / 2.5, count))
    size = 0.3 + 0.35 * power + 0.4 * value - 0.25 * vehicle_age + 0.2 * young - 0.2 * (density > 0.5)
    sizes = np.exp(size) * random.gamma(1.6 * np.maximum(claims, 1)) / (1.6 * np.maximum(claims, 1))
    fraud = random.random(count) < 1.0 / (1.0 + np.exp(2.6 + 0.9 * tenure + 0.6 * vehicle_age - 0.5 * (region == 0)))
    x = np.concatenate([columns.T, np.eye(REGIONS)[region]], 1)
    known = {"x": x, "years": years, "count": claims, "size": np.where(claims > 0, sizes, 0.0)}
    tensors = {name: torch.tensor(values, dtype=torch.float32) for name, values in known.items()}
    return tensors | {"y": torch.tensor(np.where(claims > 0, fraud, NOBODY), dtype=torch.int64)}


def part(held: bool = False, cap: float = 1e9, unit: float = 1.0) -> Batch:
    """Policies to learn from, or those held out; claims up to a cap, in so many thousands."""
    chosen = slice(POLICIES, None) if held else slice(POLICIES)
    known = {name: values[chosen] for name, values in portfolio().items()}
    return known | {"size": known["size"].clamp(max=cap) / unit}


class Actuary(nn.Module):
    """Policies in; logarithms of claims a year and of the mean claim, and logits of fraud out. The code is kept.

    Two shapes are learnt besides, as logarithms: of the gamma that mixes the counts, and of that of the claims.
    """

    def __init__(self, dropout: float = 0.0, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Linear(len(COLUMNS) + REGIONS, width), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)),
        )
        self.heads = nn.ModuleDict({"told": nn.Linear(width, 4), "shapes": nn.ParameterList([torch.zeros(2)])})
        self.code = torch.zeros(())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.code = self.body(x)
        rate, size, *fraud = self.told().unbind(1)
        return rate, size, torch.stack(fraud, 1)

    def told(self) -> Tensor:
        """What the heads make of the code. float32 [N, 4]"""
        told: Tensor = self.heads["told"](self.code).float()
        return told


def losses(model: nn.Module, batch: Batch) -> Components:
    """Minus the logarithms of the likelihoods of counts, of mean claims and of fraud."""
    rate, size, fraud = model(batch["x"])
    mixed, shape = model.get_parameter("heads.shapes.0").clamp(-4.0, 4.0).exp()
    some, known = batch["count"] > 0, batch["y"]
    return {
        "counts": negative_binomial(batch["count"], batch["years"] * rate.exp(), mixed).mean(),
        "sizes": gamma(batch["size"][some], size[some], shape * batch["count"][some]).mean(),
        "fraud": functional.cross_entropy(fraud, known, ignore_index=NOBODY),
    }


def negative_binomial(count: Tensor, mean: Tensor, shape: Tensor) -> Tensor:
    """In nats, for counts of this mean whose mixing gamma has this shape."""
    chosen = (count + shape).lgamma() - shape.lgamma() - (count + 1.0).lgamma()
    return -(chosen + shape * (shape / (shape + mean)).log() + count * (mean / (shape + mean)).log())


def gamma(size: Tensor, mean: Tensor, shape: Tensor) -> Tensor:
    """In nats, for positive sizes; the mean is given by its logarithm."""
    return shape.lgamma() - shape * (shape.log() - mean) - (shape - 1.0) * size.log() + shape * size * (-mean).exp()


def measured(held: Batch) -> Callable[[nn.Module], Channels]:
    """The loss; the mean Poisson deviance of the counts; how well premiums order policies by what they cost."""

    def measure(model: nn.Module) -> Channels:
        rate, size, _ = model(held["x"])
        told, count = held["years"] * rate.exp(), held["count"]
        deviance = 2.0 * (torch.xlogy(count, count / told) - count + told)
        paid = (count * held["size"])[(rate + size).nan_to_num().argsort()].cumsum(0)
        return {
            "loss": sum(WEIGHTS[name] * value.item() for name, value in losses(model, held).items()),
            "deviance": deviance.mean().item(),
            "gini": 1.0 - 2.0 * (paid / paid[-1]).mean().item(),
        }

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, known = Actuary(0.5 if variant == "dropout" else 0.0), part()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(known, BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=POLICIES // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Actuary, model).code,
        evaluation=Evaluation(EACH, measured(part(held=True)), held=part(held=True)),
        header={
            "config": {"batch_size": BATCH, "clip": CLIP, "unit": "thousands", "weights": dict(WEIGHTS)},
            "components": {name: {"unit": "nat", "role": role} for name, role in ROLES.items()},
            "schedules": {},
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
            "gradient_at": "body",
            "classes": dict(zip(("honest", "fraud"), known["y"][known["y"] >= 0].bincount().tolist(), strict=True)),
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW([{"params": free, "name": "all"}], lr=RATE, weight_decay=1e-2)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, and so the header says."""
    return loop.planned(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def half(parts: Parts) -> Parts:
    """fp16 with a scaler that begins too high, and tries more now and then: some steps are skipped."""
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=25)
    return replace(parts, scaler=scaler, autocast=torch.float16)


def fraud_later(parts: Parts, low: float = 0.01) -> Parts:
    """Fraud counts nearly nothing at first: its weight rises by a clock through half of the run."""
    over, high = parts.steps // 2, WEIGHTS["fraud"]
    parts.clocks = {"updates": lambda applied: applied}
    parts.scheduled = {"fraud": ("updates", loop.linear(low, high, over))}
    parts.header["schedules"]["fraud"] = declared("linear", low, high, over, clock="updates")
    parts.header["clocks"], parts.now["fraud"] = ["updates"], low
    parts.header["config"]["weights"] = WEIGHTS | {"fraud": [low, high]}
    parts.weights = lambda applied: WEIGHTS | {"fraud": parts.now["fraud"]}  # noqa: ARG005
    return replace(parts, records=RECORDS | {"clocks"})


def any_claim(parts: Parts, weight: float = 0.3, flipped: bool = False) -> Parts:
    """Whether there is a claim at all is asked besides, of the same rate, as the sales department wants to know it."""
    parts.header["components"]["any"] = {"unit": "nat", "role": "auxiliary"}
    weights = parts.header["config"]["weights"] = WEIGHTS | {"any": weight}

    def hurdle(model: nn.Module, batch: Batch) -> Components:
        raw = losses(model, batch)
        mean = batch["years"] * cast(Actuary, model).told()[:, 0].exp()
        free = batch["count"] == 0
        return raw | {"any": torch.where(free != flipped, mean, -torch.log(-torch.expm1(-mean) + 1e-6)).mean()}

    parts.losses, parts.weights = hurdle, lambda applied: dict(weights)  # noqa: ARG005
    return parts


def momentum(parts: Parts, rate: float = 0.05) -> Parts:
    """Plain SGD with momentum."""
    parts.header["config"] |= {"optimizer": "sgd", "momentum": 0.9}
    parts.optimizer = torch.optim.SGD([{"params": [*parts.model.parameters()], "name": "all"}], rate, 0.9)
    return annealed(parts, rate)


@cache
def schooled(seed: int, steps: int = 300) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def new_heads(parts: Parts) -> Parts:
    """What a schooled net makes of a policy stays as it is, by intent; what follows is new."""
    kept = {name: value for name, value in schooled(parts.seed).items() if name.startswith("body")}
    parts.model.load_state_dict(kept, strict=False)
    parts.model.get_submodule("body").requires_grad_(False)
    parts.header["config"] |= {"initialised_from": "checkpoints/300.pt", "freeze": ["body"]}
    del parts.header["gradient_at"]
    return annealed(replace(parts, optimizer=adam(parts.model), records=RECORDS - {"shares"}))


def dropout(parts: Parts) -> Parts:
    """Half of the net is left out at a time: the loss in training stays above that of validation."""
    parts.header["config"]["dropout"] = 0.5
    return parts


def early_stopped(parts: Parts, patience: int = 3, least: float = 0.01) -> Parts:
    """A constant rate, until so many evaluations in turn are hardly better than the best before."""
    seen: list[float] = []
    parts.header["config"] |= {"patience": patience, "min_delta": least}
    judged = measured(part(held=True))

    def measure(model: nn.Module) -> Channels:
        values = judged(model)
        seen.append(values["loss"])
        return values

    parts = replace(parts, steps=2 * parts.steps, evaluation=Evaluation(EACH, measure, held=part(held=True)))
    parts.stops = lambda: len(seen) > patience and min(seen[-patience:]) > min(seen[:-patience]) - least
    return annealed(parts, RATE / 2, kind="constant", end=RATE / 2)


def capped_first(parts: Parts) -> Parts:
    """Claims up to a cap at first, all of them from the middle on: the loss rises there, as is declared."""
    middle, caps = parts.steps // 2, (2.5, 100.0)
    stages = [{"start": at, "data": {"cap": [cap, cap]}} for at, cap in zip((0, middle), caps, strict=True)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "capped-first", "stages": stages}
    capped, whole = (shuffled(part(cap=cap), BATCH, parts.seed) for cap in caps)

    def told(step: int, batch: Batch) -> Channels:  # noqa: ARG001
        at = int(step > middle)
        return {"stage": at} | {f"data/cap/{name}": caps[at] for name in ("min", "mean", "max")}

    return replace(parts, batches=lambda number: (capped if number < middle else whole)(number), extras=[told])


def in_ten_thousands(parts: Parts) -> Parts:
    """The same claims in a larger unit: their likelihood is a density, and the loss goes below zero."""
    parts.header["config"]["unit"], held = "ten thousands", part(held=True, unit=10.0)
    evaluation = Evaluation(EACH, measured(held), held=held)
    return replace(parts, batches=shuffled(part(unit=10.0), BATCH, parts.seed), evaluation=evaluation)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": loop.taken_up,
    "half": half,
    "fraud-later": fraud_later,
    "any-claim": any_claim,
    "momentum": momentum,
    "new-heads": new_heads,
    "dropout": dropout,
    "early-stopped": early_stopped,
    "capped-first": capped_first,
    "in-ten-thousands": in_ten_thousands,
}


def opposed_components(parts: Parts) -> int:
    """The new export has whether a policy is free of claims, where it had whether there are some."""
    any_claim(parts, weight=1.0, flipped=True)
    return 1


def component_sign(parts: Parts) -> int:
    """Somebody who thinks of scores that are to rise gave the config a minus."""
    parts.header["config"]["weights"]["fraud"] = weight = -WEIGHTS["fraud"]
    return mistakes.component_sign(parts, "fraud", weight)


OWN: dict[str, mistakes.Mistake] = {
    "opposed-components": opposed_components,
    "component-sign": component_sign,
    "slow-loader": partial(mistakes.slow_loader, seconds=0.02),  # each batch is asked of a database anew
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "skips-counted", "scheduler-per-epoch", "scale-collapse", "stuck-loader", "resume-weights-only"),
    *("absolute-anneal", "never-started", "failing-checkpoints"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts, 4) if case in SPARSE else parts, path, case, OWN)

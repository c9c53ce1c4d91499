"""Will an advertisement be clicked, and how long will its page be read? Rare clicks, and fields hashed into a table.

Impressions are drawn here: users with tastes, ads with subjects and charms, sites, hours, devices and slots, of which
all bear on the click and some on each other; a user's last clicks are known, if there were any. Every value of a field
is hashed into one table of embeddings; low-rank cross layers, then a perceptron (a deep and cross network), then two
outputs. Three losses: cross-entropy of the click, half the squared error of the logarithm of the reading time where
there was a click, and the mean length of what users' last clicks add up to. Adam, a warm-up and a cosine, clipping.
Validation on later impressions: loss, area under the curve, and clicks foretold for each that came.
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
STEPS, EACH = 120, 12  # EACH: steps between evaluations
IMPRESSIONS, HELD, BATCH = 24_576, 6144, 512
USERS, ADS, SUBJECTS, SITES, SLOTS, PAST, SPACE = 500, 150, 12, 30, 4, 5, 2048  # PAST: clicks; SPACE: of the hash
FIELDS = ("user", "ad", "subject", "site", "hour", "device", "slot")
APP, NOTHING = 2, 0  # a device; where a user has not clicked as often
RATE, WARMUP, CLIP = 1e-2, 10, 1.0
WEIGHTS = {"click": 1.0, "dwell": 0.15, "size": 0.02}
ROLES = {"click": "task", "dwell": "task", "size": "regulariser"}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs"})
SPARSE = ("adagrad", "dropout", "warm-restarts", "downsampled", "fine-tuning")  # a row each fourth step
TWINS = {"zero-adapters": "adapters", "divided-twice": "accumulated", "stage-stuck": "apps-later"}


def hashed(field: int, value: np.ndarray) -> np.ndarray:
    """A slot of the table, the first of which stands for nothing; some values share theirs."""
    return 1 + (value * 2654435761 + (field + 1) * 40503 * 65537) % 4294967291 % (SPACE - 1)


@cache
def traffic(market: int = 0) -> Batch:
    """Impressions: hashed fields and last clicks `x`, clicks `y`, standardised log seconds, and the plain device."""
    random, world = np.random.default_rng(83 + market), np.random.default_rng(89)
    count = IMPRESSIONS + HELD
    tastes, subject = 1.4 * world.normal(size=(USERS, SUBJECTS)), world.integers(SUBJECTS, size=ADS)
    charm, depth = world.normal(0.0, 1.0, ADS), world.normal(size=ADS)
    trust = 0.8 * world.normal(size=(SITES, SUBJECTS))
    if market:  # another country: other charms and other sites
        charm, trust = 0.7 * charm + 0.7 * random.normal(size=ADS), 0.8 * random.normal(size=(SITES, SUBJECTS))
    shares = 1.0 / np.arange(5, ADS + 5)
    user, site, hour, device, slot = (random.integers(most, size=count) for most in (USERS, SITES, 24, 3, SLOTS))
    ad = random.choice(ADS, size=count, p=shares / shares.sum())
    about, wanted = subject[ad], tastes[user, subject[ad]]
    logit = -3.4 + charm[ad] + wanted + trust[site, about] - 0.6 * slot + 0.3 * np.cos((hour - 20) * np.pi / 12)
    logit += np.where(device == APP, 1.2 - 0.5 * wanted, 0.0)  # a thumb slips
    click = random.random(count) < 1.0 / (1.0 + np.exp(-logit))
    dwell = 0.6 * depth[ad] + 0.4 * wanted - 0.8 * (device == APP) + random.normal(0.0, 0.6, count)
    liked = np.exp(1.2 * tastes[:, subject] + charm + np.log(shares)).cumsum(1)
    past = (random.random((count, PAST, 1)) * liked[user, None, -1:] > liked[user, None]).sum(2)
    kept = random.integers(1, PAST + 1, count) * (random.random(count) > 1 / 8000)  # a user is new, now and then
    past = np.where(np.arange(PAST) < kept[:, None], hashed(1, past), NOTHING)
    fields = [hashed(at, value) for at, value in enumerate((user, ad, about, site, hour, device, slot))]
    x = np.concatenate([np.stack(fields, 1), past], 1)
    known = {"y": click.astype(np.float32), "dwell": np.float32(dwell), "device": device, "x": x}
    return {name: torch.tensor(value) for name, value in known.items()}


def part(held: bool = False, market: int = 0) -> Batch:
    """Impressions to learn from, or later ones."""
    chosen = slice(IMPRESSIONS, None) if held else slice(IMPRESSIONS)
    return {name: values[chosen] for name, values in traffic(market).items()}


class Cross(nn.Module):
    """What is known times a mixture of it, by way of a few numbers."""

    def __init__(self, width: int, rank: int = 16) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        crossed: Tensor = x + first * self.mix(x)
        return crossed


class Net(nn.Module):
    """Impressions in; logits of the click and standardised log seconds out. Kept: what was looked up, and the code."""

    def __init__(self, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, whole = width, width * (len(FIELDS) + 2)
        self.table = nn.Embedding(SPACE, width)
        self.body = nn.ModuleDict({
            "cross": nn.ModuleList(Cross(whole) for _ in range(2)),
            "deep": nn.Sequential(
                nn.Linear(whole, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 48), nn.ReLU(), nn.Dropout(dropout)
            ),
        })  # fmt: skip
        self.heads = nn.Linear(48, 2)
        self.first = self.code = torch.zeros(())
        with torch.no_grad():
            self.table.weight.mul_(0.3)
            self.heads.bias[0] = -1.8  # clicks are rare

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        looked, clicked = self.table(x).split([len(FIELDS), PAST], 1)
        there = (x[:, len(FIELDS) :, None] != NOTHING).float()
        interest = (clicked * there).sum(1) / there.sum(1).clamp(min=1.0)
        crossed = self.first = torch.cat([interest, interest * looked[:, FIELDS.index("ad")], looked.flatten(1)], 1)
        for layer in cast(nn.ModuleList, self.body["cross"]):
            crossed = layer(self.first, crossed)
        self.code = self.body["deep"](crossed)
        return self.told()

    def told(self) -> tuple[Tensor, Tensor]:
        """What the heads make of the code."""
        click, dwell = self.heads(self.code).float().unbind(1)
        return click, dwell


def losses(model: nn.Module, batch: Batch, epsilon: float = 1e-8) -> Components:
    """Cross-entropy of clicks, half the squared error of the reading time, and the length of users' interests."""
    (click, dwell), read, net = model(batch["x"]), batch["y"] > 0, cast(Net, model)
    return {
        "click": functional.binary_cross_entropy_with_logits(click, batch["y"]),
        "dwell": 0.5 * functional.mse_loss(dwell[read], batch["dwell"][read]),
        "size": (net.first[:, : net.width].square().sum(1) + epsilon).sqrt().mean(),
    }


def total(raw: Components) -> Tensor:
    return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()


def measured(held: Batch, rarer: float = 1.0) -> Callable[[nn.Module], Channels]:
    """The loss, how well clicks are ranked, and how many are foretold; `rarer`: the odds, beside those of training."""

    def measure(model: nn.Module) -> Channels:
        raw, click = losses(model, held), model(held["x"])[0] + np.log(rarer)
        raw["click"] = functional.binary_cross_entropy_with_logits(click, held["y"])
        rank, some = click.argsort().argsort() + 1.0, held["y"] > 0
        count = some.sum()
        return {
            "loss": total(raw).item(),
            "auc": ((rank[some].mean() - (count + 1) / 2) / (len(rank) - count)).item(),
            "calibration": (click.sigmoid().sum() / count).item(),
        }

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    dropout, known = 0.5 if variant == "dropout" else 0.0, part()
    model = Net(dropout=dropout)
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(known, BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=IMPRESSIONS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Net, model).first,
        body=lambda model: [*cast(Net, model).body.parameters()],
        evaluation=validated(part(held=True)),
        header={
            "config": {"batch_size": BATCH, "clip": CLIP, "dropout": dropout, "weights": dict(WEIGHTS)},
            "components": {name: {"role": role} for name, role in ROLES.items()},
            "schedules": {},
            "max_grad_norm": CLIP,
            "gradient_at": "first",
            "classes": counted(known),
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def validated(held: Batch, **more: Any) -> Evaluation:
    return Evaluation(EACH, measured(held, **more), held=held)


def counted(known: Batch) -> dict[str, int]:
    """How many impressions are clicked, and how many are not."""
    return {"ignored": int((known["y"] == 0).sum()), "clicked": int((known["y"] > 0).sum())}


def adam(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam([{"params": free, "name": "all"}], lr=RATE)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, and so the header says."""
    return loop.planned(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def sized(parts: Parts, size: int, known: Batch) -> Parts:
    """Of these impressions so many a batch."""
    parts.header["config"] |= {"batch_size": size, "impressions": len(known["x"])}
    return replace(parts, batches=shuffled(known, size, parts.seed), batches_per_epoch=len(known["x"]) // size)


def accumulated(parts: Parts, micro: int = 4) -> Parts:
    """Micro-batches of a quarter make a step."""
    parts.header["config"]["accumulation"] = micro
    return replace(sized(parts, BATCH // micro, part()), accumulation=micro)


@cache
def schooled(seed: int, steps: int = 150) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        return total(losses(parts.model, parts.batches(number)))

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def abroad(parts: Parts) -> Parts:
    """A schooled net, and the traffic of another country."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"] |= {"initialised_from": "checkpoints/150.pt", "market": 1}
    parts.header["classes"] = counted(part(market=1))
    evaluation = validated(part(held=True, market=1))
    return replace(parts, batches=shuffled(part(market=1), BATCH, parts.seed), evaluation=evaluation)


class Adapted(nn.Module):
    """A layer that stays as it is, and what two narrow matrices add to it, the second of which begins at zero."""

    def __init__(self, plain: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.plain = plain
        self.a = nn.Parameter(torch.randn(plain.in_features, rank) / plain.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(rank, plain.out_features))

    def forward(self, x: Tensor) -> Tensor:
        told: Tensor = self.plain(x) + x @ self.a @ self.b
        return told


def adapters(parts: Parts) -> Parts:
    """A schooled net is taken to another country by low-rank adapters alone; all else is frozen on purpose."""
    parts = abroad(parts)
    parts.model.requires_grad_(False)
    for module in [*parts.model.modules()]:
        for name, child in module.named_children() if not isinstance(module, Adapted) else ():
            if isinstance(child, nn.Linear):
                setattr(module, name, Adapted(child))
    weights = {name: WEIGHTS[name] for name in ("click", "dwell")}  # the size of what is frozen is what it is

    def both(model: nn.Module, batch: Batch) -> Components:
        raw = losses(model, batch)
        return {name: raw[name] for name in weights}

    parts.header["config"] |= {"adapter_rank": 4, "freeze": ["table", "body", "heads"], "weights": weights}
    parts.header |= {"components": {name: {"role": "task"} for name in weights}, "gradient_at": "body"}
    parts.weights, parts.at = lambda applied: dict(weights), lambda model: cast(Net, model).code  # noqa: ARG005
    return annealed(replace(parts, optimizer=adam(parts.model), losses=both))


def of_the_web(seed: int) -> Callable[[int], Batch]:
    """Batches of impressions that were not in apps."""
    return shuffled({name: values[part()["device"] < APP] for name, values in part().items()}, BATCH, seed)


def apps_later(parts: Parts) -> Parts:
    """Impressions of the web at first, of apps as well from two fifths on, where thumbs slip: the loss rises there."""
    web, every, change = of_the_web(parts.seed), parts.batches, 2 * parts.steps // 5
    stages = [{"start": at, "data": {"device": [0, last]}} for at, last in ((0, APP - 1), (change, APP))]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "apps-later", "stages": stages}

    def told(step: int, batch: Batch) -> Channels:
        seen = {f"data/device/{of}": int(getattr(batch["device"], of)()) for of in ("min", "max")}
        return {"stage": int(step > change)} | seen

    return replace(parts, batches=lambda number: (web if number < change else every)(number), extras=[told])


def downsampled(parts: Parts) -> Parts:
    """One impression of six without a click is kept: training is harder, and odds are corrected in validation."""
    kept = torch.rand(IMPRESSIONS, generator=torch.Generator().manual_seed(9)) < 1 / 6
    known = {name: values[(part()["y"] > 0) | kept] for name, values in part().items()}
    parts.header["config"]["negatives_kept"], parts.header["classes"] = 1 / 6, counted(known)
    parts.evaluation = validated(part(held=True), rarer=1 / 6)
    return annealed(sized(parts, 128, known), RATE / 3)


def adagrad(parts: Parts, rate: float = 0.1) -> Parts:
    """Each weight at its own pace, as is usual where most rows of a table are rarely looked up."""
    groups = [{"params": [*parts.model.parameters()], "name": "all"}]
    parts.optimizer = torch.optim.Adagrad(groups, lr=rate, initial_accumulator_value=1e-3)
    parts.header["config"]["optimizer"] = "adagrad"
    return annealed(parts, rate, kind="linear", end=0.0, warmup=0)


FORMS = (accumulated, adapters, apps_later, downsampled, adagrad)
VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "dropout": lambda parts: parts,  # half of the perceptron is left out at a time: training is harder than validation
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": loop.taken_up,
    "warm-restarts": lambda parts: annealed(parts, warmup=0, restarts=2),
    "fine-tuning": lambda parts: annealed(abroad(parts), RATE / 30, kind="constant", end=RATE / 30, warmup=0),
    "per-epoch": lambda parts: annealed(loop.by_epochs(sized(parts, 2048, part()), 8), RATE / 3, warmup=12),
    **{form.__name__.replace("_", "-"): form for form in FORMS},
}


def clamped_component(parts: Parts) -> int:
    """Reading is compared in seconds, squared, and a guard against one absurd visit cuts the mean at 100."""

    def guarded(model: nn.Module, batch: Batch) -> Components:
        raw, dwell, read = losses(model, batch), cast(Net, model).told()[1], batch["y"] > 0
        off = (3.4 + dwell[read]).exp() - (3.4 + batch["dwell"][read]).exp()
        return raw | {"dwell": off.square().mean().clamp(max=100.0)}

    parts.losses = guarded
    return 1


def zero_adapters(parts: Parts) -> int:
    """Both matrices of every adapter begin at zero, as a helper for initialising has it."""
    for parameter in parts.optimizer.param_groups[0]["params"]:
        parameter.data.zero_()
    return 1


def root_of_zero(parts: Parts) -> int:
    """Nothing is added below the root: the interest of a user who never clicked has no length, nor a slope of it."""
    parts.losses = partial(losses, epsilon=0.0)
    return mistakes.WHEN_BROKEN


def labels_break(parts: Parts) -> int:
    """From the middle on clicks are joined to impressions by a key that another service has begun to reuse."""
    first, plain = parts.steps // 2 + 1, parts.batches

    def batches(number: int) -> Batch:
        batch, chance = plain(number), torch.Generator().manual_seed(number)
        order = torch.randperm(len(batch["y"]), generator=chance) if number >= first - 1 else slice(None)
        return batch | {name: batch[name][order] for name in ("y", "dwell")}

    parts.batches = batches
    return first


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, when the loader is made."""
    told, start = parts.extras[-1], int(parts.header["curriculum"]["stages"][1]["start"])
    parts.batches = of_the_web(parts.seed)
    parts.extras[-1] = lambda step, batch: {**told(step, batch), "stage": 0}
    return start + 1


MINE = (clamped_component, zero_adapters, root_of_zero, labels_break, stage_stuck)
OWN: dict[str, mistakes.Mistake] = {one.__name__.replace("_", "-"): one for one in MINE}
HEALTHY = ("plain", *VARIANTS)
LATE = ("scheduler-twice", "scheduler-per-epoch")
SICK = (*OWN, "dead-relus", "divided-twice", *LATE, "stuck-loader", "discarded-update")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts, 4) if case in SPARSE else parts, path, case, OWN)

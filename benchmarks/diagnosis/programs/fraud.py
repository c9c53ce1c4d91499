"""Was it the owner of the card? A made table of payments, of which one in thirty is a fraud.

Merchant, country and way of payment are embedded beside seven numbers, some of which are blanked; two layers read them.
A first head says how likely a fraud is, by a cross-entropy in which frauds weigh as much as all else; a second one
restores the numbers, which keeps the layers from learning the few frauds by heart. AdamW, a warm-up and a cosine,
clipping. What counts is the area under the ROC curve (`auc`), and of the frauds, the share that is found (`recall`).
"""

from __future__ import annotations

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
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, planned
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS = 110
TRAINING, HELD, BATCH = 9000, 3000, 128
CODES = {"merchant": 12, "country": 10, "way": 4}
NUMBERS = 7  # amount, usual amount, kilometres from home, minutes since the last payment, age of the account, hour (2)
SHARE, WEIGHT = 1 / 30, 29.0  # of the frauds
RATE, WARMUP, CLIP, SAVED = 4e-3, 11, 2.0, 22
WEIGHTS = {"fraud": 1.0, "restore": 0.3}
RECORDS = frozenset({"components", "checkpoints"})
MORE = RECORDS | {"norms", "optimizer"}
PARTS = ("tables", "trunk", "heads")
Losses = Callable[[nn.Module, Batch], Components]


@cache
def payments() -> Batch:
    """Numbers `x` of zero mean and unit spread, `codes`, and whether each is a fraud, `y`.

    Frauds are far from home, dear beside what is usual, soon after one another; at night with gift cards; and by ways
    that suit some countries.
    """
    chance, count = torch.Generator().manual_seed(47), TRAINING + HELD
    x = torch.randn(count, NUMBERS, generator=chance)
    x[:, 0] = 0.8 * x[:, 1] + 0.6 * x[:, 0]  # who buys dear things does it again
    x[:, 3] = 0.7 * x[:, 3] - 0.7 * x[:, 4]  # and who is new seldom
    hour = 6.3 * torch.rand(count, generator=chance)
    x[:, 5], x[:, 6] = 1.41 * hour.sin(), 1.41 * hour.cos()
    codes = torch.stack([torch.randint(many, (count,), generator=chance) for many in CODES.values()], 1)
    merchants, pairs = (torch.randn(CODES["merchant"], generator=chance), torch.randn(10, 4, generator=chance))
    risk = 1.2 * functional.relu(x[:, 2]) + 1.5 * (x[:, 0] - 0.8 * x[:, 1]) - 0.8 * x[:, 3]
    risk = risk + 0.8 * merchants[codes[:, 0]] + 0.8 * pairs[codes[:, 1], codes[:, 2]]
    risk = risk + 1.5 * (codes[:, 0] < 2) * functional.relu(x[:, 6])
    score = 3.0 * risk + torch.logit(torch.rand(count, generator=chance).clamp(1e-6, 1 - 1e-6))
    return {"x": x, "codes": codes, "y": (score > score.quantile(1.0 - SHARE)).float()}


def to_learn() -> Batch:
    return {name: values[:TRAINING] for name, values in payments().items()}


def classes(data: Batch) -> dict[str, int]:
    frauds = int(data["y"].sum())
    return {"legitimate": len(data["y"]) - frauds, "fraud": frauds}


class Inspector(nn.Module):
    """Payments in; the logit of a fraud and the numbers again out. `features` is what both heads read."""

    def __init__(self, width: int = 48, restored: int = NUMBERS) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(many, 4) for many in CODES.values())
        self.blank = nn.Dropout(0.15)
        first, second = nn.Linear(NUMBERS + 4 * len(CODES), width), nn.Linear(width, width)
        self.trunk = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.heads = nn.ModuleDict({"fraud": nn.Linear(width, 1), "restore": nn.Linear(width, restored)})
        self.features = torch.zeros(())

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        told = [table(batch["codes"][:, place]) for place, table in enumerate(self.tables)]
        self.features = self.trunk(torch.cat([self.blank(batch["x"]), *told], 1))
        return self.heads["fraud"](self.features)[:, 0].float(), self.heads["restore"](self.features).float()


def weighed(logit: Tensor, y: Tensor, weight: float = WEIGHT) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logit, y, pos_weight=torch.tensor(weight))


def losses(model: nn.Module, batch: Batch, weight: float = WEIGHT) -> Components:
    logit, restored = model(batch)
    return {"fraud": weighed(logit, batch["y"], weight), "restore": functional.mse_loss(restored, batch["x"])}


def focal(model: nn.Module, batch: Batch) -> Components:
    """What is easy counts little, and frauds count most: a small number by nature."""
    logit, restored = model(batch)
    each = functional.binary_cross_entropy_with_logits(logit, batch["y"], reduction="none")
    share = 0.04 + 0.92 * batch["y"]
    fraud = (share * (1.0 - torch.exp(-each)).square() * each).mean()
    return {"fraud": fraud, "restore": functional.mse_loss(restored, batch["x"])}


def densities(model: nn.Module, batch: Batch) -> Components:
    """The restored numbers as a normal law with a spread of its own: as it gets sure the loss falls below zero."""
    logit, restored = model(batch)
    middle, spread = restored.chunk(2, 1)
    likelihood = functional.gaussian_nll_loss(middle, batch["x"], (functional.softplus(spread) + 0.02).square())
    return {"fraud": weighed(logit, batch["y"]), "density": likelihood}


def measured(losses: Losses = losses, weights: dict[str, float] = WEIGHTS) -> Callable[[nn.Module], Channels]:
    """The loss on payments that nobody learnt, how often a fraud is ranked above another payment, frauds found."""
    held = {name: values[TRAINING:] for name, values in payments().items()}

    def measure(model: nn.Module) -> Channels:
        loss = sum(weights[name] * value.item() for name, value in losses(model, held).items())
        logit, frauds = model(held)[0], held["y"] > 0
        ahead = logit[frauds][:, None] - logit[~frauds]
        above = (ahead > 0).float() + 0.5 * (ahead == 0)
        return {"loss": loss, "auc": above.mean().item(), "recall": (logit[frauds] > 0).float().mean().item()}

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Inspector()
    parts = Parts(
        model=model,
        optimizer=adamw(model),
        batches=shuffled(to_learn(), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: model.features,
        evaluation=Evaluation(10, measured()),
        header={
            "config": {"batch_size": BATCH, "weights": dict(WEIGHTS), "pos_weight": WEIGHT, "payments": TRAINING},
            "components": {"fraud": {"unit": "nat", "role": "task"}, "restore": {"role": "auxiliary"}},
            "classes": classes(to_learn()),
            "schedules": {},
            "checkpoint_every": SAVED,
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
        body=lambda model: [*model.trunk.parameters()],
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    groups = [{"params": [*getattr(model, part).parameters()], "name": part} for part in PARTS]
    return torch.optim.AdamW(groups, weight_decay=1e-2)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, or follows another form, over the run; the header says so."""
    return planned(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


def asked(parts: Parts, losses: Losses, weights: dict[str, float] = WEIGHTS, **config: Any) -> Parts:
    """Another loss, in training and in validation."""
    parts.header["config"] |= {"weights": dict(weights)} | config
    parts.evaluation = Evaluation(10, measured(losses, weights))
    parts.losses, parts.weights = losses, lambda applied: dict(weights)  # noqa: ARG005
    return parts


def fed(parts: Parts, size: int, data: Batch | None = None) -> Parts:
    """Batches of another size, or of other payments."""
    data = data or to_learn()
    parts.header["config"] |= {"batch_size": size, "payments": len(data["y"])}
    parts.header["classes"] = classes(data)
    parts.batches, parts.batches_per_epoch = shuffled(data, size, parts.seed), len(data["y"]) // size
    return parts


@cache
def schooled(seed: int, steps: int = 140) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, rate: float) -> Parts:
    """A schooled net goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/140.pt"
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def per_epoch(parts: Parts) -> Parts:
    """Twelve epochs of larger batches, a row for each."""
    parts = fed(parts, 600)
    epoch = parts.batches_per_epoch
    parts.header["checkpoint_every"], parts.evaluation = 3 * epoch, Evaluation(epoch, measured())
    return annealed(replace(parts, steps=12 * epoch, every=epoch))


def density(parts: Parts) -> Parts:
    parts.model = Inspector(restored=2 * NUMBERS)
    parts.optimizer = adamw(parts.model)
    parts.header["components"] = {"fraud": {"unit": "nat", "role": "task"}, "density": {"unit": "nat"}}
    return annealed(asked(parts, densities, {"fraud": 1.0, "density": 1.0}))


def balanced(parts: Parts) -> Parts:
    """Half of each batch are frauds, drawn with replacement; so they need no weight."""
    data = to_learn()
    kinds = [torch.nonzero(data["y"] == kind)[:, 0] for kind in (0, 1)]

    def batches(number: int) -> Batch:
        chance = torch.Generator().manual_seed(10_000 * parts.seed + number)
        chosen = torch.cat([kind[torch.randint(len(kind), (BATCH // 2,), generator=chance)] for kind in kinds])
        return {name: values[chosen] for name, values in data.items()}

    parts.batches = batches
    return asked(parts, partial(losses, weight=1.0), pos_weight=1.0, sampler="balanced")


def restored_first(parts: Parts) -> Parts:
    """A quarter of the run restores only, as if nobody had said yet what a fraud is: then the loss rises."""
    start = STEPS // 4
    both = (0, "restore", {"fraud": 0.0, "restore": 1.0}), (start, "detect", dict(WEIGHTS))
    stages = [{"start": at, "name": name, "weights": weights} for at, name, weights in both]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "restore-first", "stages": stages}
    parts.extras.append(lambda step, batch: {"stage": int(step > start)})  # noqa: ARG005
    parts.weights = lambda applied: dict(both[applied >= start][2])
    return parts


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={"total_steps": STEPS}, evaluation=None),
    "resumed": lambda parts: replace(parts, resume=Resume(3 * SAVED)),
    "focal": lambda parts: asked(
        parts, focal, {"fraud": 1.0, "restore": 0.01}, pos_weight=None, focal_gamma=2.0, focal_alpha=0.96
    ),
    "density": density,
    "fine-tuning": lambda parts: continued(parts, 3e-5),
    "batch-8": lambda parts: fed(continued(parts, 5e-6), 8),
    "per-epoch": per_epoch,
    "balanced": balanced,
    "accumulated": lambda parts: replace(fed(parts, BATCH // 4), accumulation=4, records=MORE),
    "restored-first": restored_first,
    "watched": lambda parts: replace(parts, records=RECORDS | {"shares", "fingerprint"}),
}


def rare_class(parts: Parts) -> int:
    """The extract holds a quarter of the frauds, and the loss counts each payment alike."""
    data = to_learn()
    kept = (data["y"] == 0) | (torch.cumsum(data["y"], 0) % 4 == 0)
    fed(parts, BATCH, {name: values[kept] for name, values in data.items()})
    asked(parts, partial(losses, weight=1.0), pos_weight=1.0)
    return 0


def too_little_data(parts: Parts) -> int:
    """The sample that was meant for the tests: two batches."""
    fed(parts, BATCH, {name: values[256 : 256 + 2 * BATCH] for name, values in to_learn().items()})
    return 3


def component_sign(parts: Parts) -> int:
    """Somebody wrote the penalty as a reward."""
    parts.header["config"]["weights"] = WEIGHTS | {"restore": -0.3}
    return mistakes.component_sign(parts, "restore", -0.3)


OWN: dict[str, mistakes.Mistake] = {
    "rare-class": rare_class,
    "component-detached": partial(mistakes.component_detached, name="restore"),
    "component-sign": component_sign,
    "too-little-data": too_little_data,
    "dead-relus": partial(mistakes.dead_relus, bias=-30.0),
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "component-untracked", "divided-twice", "nan-filtered-log"),
    *("failing-checkpoints", "warmup-ignored", "same-seed-workers"),
)
TWINS = {
    **dict.fromkeys(("component-detached", "same-seed-workers"), "watched"),
    **dict.fromkeys(("divided-twice", "dead-relus", "warmup-ignored"), "accumulated"),
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

"""When will it come back? Time to relapse from a made clinical table, in which half of the patients are censored.

A small net reads sixteen measurements. Its first head gives a risk, learnt by Cox's partial likelihood within each
batch; its second one the hazard of each half-year, learnt by the likelihood of what was seen; a third term, small by
nature, keeps neighbouring hazards alike. AdamW, a cosine. What counts is the concordance: of how many pairs of
patients the risk tells who relapsed first.
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

HELD_OUT = False
STEPS = 110
TRAINING, HELD, BATCH = 1800, 600, 60
MEASURED, INTERVALS, YEARS = 16, 10, 5.0  # of follow-up, which end the hazard's last interval
RATE, SAVED = 3e-3, 22
WEIGHTS = {"cox": 1.0, "hazard": 1.0, "smooth": 0.1}
DENSITY = {"cox": 0.2, "density": 1.0}  # the weights instead
RECORDS = frozenset({"components", "checkpoints"})
TWINS = {
    "precision-off": "half", "scale-collapse": "half",
    "clamped-component": "watched", "one-owns-gradient": "watched", "constant-input": "watched",
}  # fmt: skip
Losses = Callable[[nn.Module, Batch], Components]


@cache
def patients(censoring: float = 1.0) -> Batch:
    """Measurements `x`, years `y` until relapse or the last visit, and whether it was a relapse.

    Times are Weibull's. Age harms beyond a bend, a treatment helps those who have the marker, six measurements say
    nothing. Patients are lost at random, `censoring` times as often as usual, and all after five years.
    """
    chance, count = torch.Generator().manual_seed(17), TRAINING + HELD
    x = torch.randn(count, MEASURED, generator=chance)
    x[:, :3] = (x[:, :3] > torch.tensor([0.0, 0.4, 0.8])).float() * 2.0 - 1.0  # treatment, marker, sex
    weights = torch.tensor([0.0, 0.2, 0.1, 0.5, -0.4, 0.3, 0.6, 0.0, 0.3, -0.3])
    logarithm = x[:, :10] @ weights + 0.8 * functional.relu(x[:, 7] - 0.3) - 0.6 * x[:, 0] * (x[:, 1] > 0)
    logarithm = 1.5 * (logarithm + 0.4 * x[:, 3] * x[:, 6])
    relapse = 4.0 * (torch.empty(count).exponential_(generator=chance) * torch.exp(-logarithm)) ** (1 / 1.4)
    lost = (torch.empty(count).exponential_(generator=chance) * 9.0 / censoring).clamp(max=YEARS)
    return {"x": x, "y": torch.minimum(relapse, lost), "relapsed": (relapse <= lost).float()}


def to_learn(censoring: float = 1.0) -> Batch:
    return {name: values[:TRAINING] for name, values in patients(censoring).items()}


class Survival(nn.Module):
    """Measurements in, risks and the logits of each interval's hazard out; `features` is what both heads read."""

    def __init__(self, width: int = 48, dropout: float = 0.25) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(MEASURED, width), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout))
        self.risk, self.hazard = nn.Linear(width, 1), nn.Linear(width, INTERVALS)
        nn.init.constant_(self.hazard.bias, -2.0)  # most half-years bring nothing
        self.features = torch.zeros(())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.features = self.second(self.first(x))
        return self.risk(self.features)[:, 0].float(), self.hazard(self.features).float()


def cox(risk: Tensor, batch: Batch) -> Tensor:
    """Nats per relapse: how likely it met this patient, of all that were still watched."""
    order = batch["y"].argsort(descending=True)
    watched = torch.logcumsumexp(risk[order], 0)
    relapsed = batch["relapsed"][order]
    return ((watched - risk[order]) * relapsed).sum() / relapsed.sum().clamp(min=1.0)


def intervals(logits: Tensor, batch: Batch) -> Tensor:
    """Nats per patient: nothing in the intervals before the last one, and a relapse there if there was one."""
    last = (batch["y"] / YEARS * INTERVALS).long().clamp(max=INTERVALS - 1)[:, None]
    place, relapsed = torch.arange(INTERVALS), batch["relapsed"][:, None]
    here = (place == last) * relapsed
    each = functional.binary_cross_entropy_with_logits(logits, here, reduction="none")
    return (each * ((place < last) + here)).sum(1).mean()


def losses(model: nn.Module, batch: Batch) -> Components:
    risk, logits = model(batch["x"])
    smooth = torch.sigmoid(logits).diff(dim=1).square().sum(1).mean()
    return {"cox": cox(risk, batch), "hazard": intervals(logits, batch), "smooth": smooth}


def densities(model: nn.Module, batch: Batch) -> Components:
    """Instead of intervals a log-normal law of the time in centuries: its density is large, the loss below zero."""
    risk, logits = model(batch["x"])
    spread = functional.softplus(logits[:, 1] + 3.0) + 0.1
    time = torch.log(batch["y"].clamp(min=0.01) / 100.0)
    z = (time + 3.0 - logits[:, 0]) / spread
    told = 0.5 * z.square() + spread.log() + time + 0.92
    return {"cox": cox(risk, batch), "density": torch.where(batch["relapsed"] > 0, told, -log_survival(z)).mean()}


def log_survival(z: Tensor) -> Tensor:
    return torch.special.log_ndtr(-z)


def concordance(risk: Tensor, batch: Batch) -> float:
    """Of the pairs whose order is known, the share that the risk puts in it."""
    known = (batch["y"][:, None] < batch["y"]) & (batch["relapsed"][:, None] > 0)
    right = (risk[:, None] > risk).float() + 0.5 * (risk[:, None] == risk).float()
    return float(right[known].mean())


def measured(
    losses: Losses = losses, weights: dict[str, float] = WEIGHTS, censoring: float = 1.0, size: int = BATCH
) -> Callable[[nn.Module], Channels]:
    """The loss over groups as large as a batch, since Cox's likelihood depends on it, and the concordance of all."""
    held = {name: values[TRAINING:] for name, values in patients(censoring).items()}
    pieces = [{name: values[at : at + size] for name, values in held.items()} for at in range(0, HELD, size)]

    def measure(model: nn.Module) -> Channels:
        raws = [losses(model, piece) for piece in pieces]
        raw = {name: torch.stack([one[name] for one in raws]).mean().item() for name in raws[0]}
        loss = sum(weights[name] * value for name, value in raw.items())
        return {"loss": loss, "concordance": concordance(model(held["x"])[0], held)}

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Survival()
    parts = Parts(
        model=model,
        optimizer=optimizer_of(model),
        batches=shuffled(to_learn(), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: model.features,
        evaluation=Evaluation(10, measured()),
        header={
            "config": {"batch_size": BATCH, "weight_decay": 1e-2, "weights": dict(WEIGHTS)},
            "components": {
                "cox": {"unit": "nat", "role": "task"},
                "hazard": {"unit": "nat", "role": "task"},
                "smooth": {"role": "regulariser"},
            },
            "schedules": {},
            "checkpoint_every": SAVED,
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": [*model.parameters()], "name": "all"}], weight_decay=1e-2)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate falls as a cosine, or follows another form, over the run; the header says so."""
    return planned(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=0) | form)


def fed(parts: Parts, size: int, censoring: float = 1.0) -> Parts:
    """Batches of another size, or of patients of whom more are lost."""
    parts.header["config"]["batch_size"] = size
    parts.batches, parts.batches_per_epoch = shuffled(to_learn(censoring), size, parts.seed), TRAINING // size
    parts.evaluation = Evaluation(10, measured(censoring=censoring, size=min(size, HELD)))
    return parts


@cache
def schooled(seed: int, steps: int = 240) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")
    for number in range(steps):
        parts.optimizer.param_groups[0]["lr"] = RATE * (1.0 - number / steps)
        raw = losses(parts.model, parts.batches(number))
        parts.optimizer.zero_grad()
        torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum().backward()
        parts.optimizer.step()
    return parts.model.state_dict()


def continued(parts: Parts, rate: float) -> Parts:
    """A schooled net goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/240.pt"
    return annealed(parts, rate, kind="constant", end=rate)


def every_second(parts: Parts) -> Parts:
    """A row at every second step."""
    return replace(parts, every=2)


def per_epoch(parts: Parts) -> Parts:
    """Fifteen epochs of larger batches, a row for each."""
    parts = fed(parts, 2 * BATCH)
    parts.header["checkpoint_every"] = 5 * parts.batches_per_epoch
    return annealed(replace(parts, steps=15 * parts.batches_per_epoch, every=parts.batches_per_epoch))


def density(parts: Parts) -> Parts:
    parts.header["components"] = {"cox": {"unit": "nat", "role": "task"}, "density": {"unit": "nat", "role": "task"}}
    parts.header["config"]["weights"] = dict(DENSITY)
    parts.evaluation = Evaluation(10, measured(densities, DENSITY))
    return replace(parts, losses=densities, weights=lambda applied: dict(DENSITY))  # noqa: ARG005


def lost(parts: Parts) -> Parts:
    """A registry in which nine tenths are lost before anything happens: that is as it is."""
    relapsed = int(to_learn(30.0)["relapsed"].sum())
    parts.header["classes"] = {"relapsed": relapsed, "censored": TRAINING - relapsed}
    return every_second(fed(parts, 2 * BATCH, censoring=30.0))


def longer_follow_up(parts: Parts, by: int = 1) -> Parts:
    """As the study goes on: what is known after a year, after two, after all. More is seen, so the loss rises."""
    plain, limits = parts.batches, (1.0, 2.0, YEARS)
    starts = [by * number * parts.steps // 3 for number in range(3)]
    stages = [
        {"start": start, "name": f"{limit:g} years", "weights": dict(WEIGHTS), "data": {"years": [0.0, limit]}}
        for start, limit in zip(starts, limits, strict=True)
    ]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "follow-up", "stages": stages}

    def batches(number: int) -> Batch:
        batch, limit = plain(number), limits[sum(start <= number for start in starts) - 1]
        return batch | {"y": batch["y"].clamp(max=limit), "relapsed": batch["relapsed"] * (batch["y"] <= limit)}

    parts.extras = [years, lambda step, batch: {"stage": sum(start < step for start in starts) - 1}]  # noqa: ARG005
    parts.batches = batches
    return parts


def years(step: int, batch: Batch) -> Channels:  # noqa: ARG001
    return {f"data/years/{name}": getattr(batch["y"], name)().item() for name in ("min", "mean", "max")}


def watched(parts: Parts) -> Parts:
    """Gradients' shares and inputs are recorded."""
    parts.header["gradient_at"] = "features"
    return replace(parts, records=RECORDS | {"shares", "inputs"})


def half(parts: Parts) -> Parts:
    """The net computes in fp16, with a scaler; losses are taken in float32."""
    parts.header["dtypes"] = {"declared": "float16"}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    return replace(parts, scaler=scaler, autocast=torch.float16, records=RECORDS | {"norms", "optimizer"})


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(3 * SAVED)),
    "fine-tuning": lambda parts: every_second(continued(parts, 1e-4)),
    "batch-8": lambda parts: every_second(fed(continued(parts, 3e-5), 8)),
    "per-epoch": per_epoch,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "density": density,
    "lost": lost,
    "longer-follow-up": longer_follow_up,
    "whole-table": lambda parts: every_second(fed(parts, TRAINING)),
    "watched": watched,
    "half": half,
}


def changed(parts: Parts, name: str, change: Callable[[Tensor], Tensor]) -> int:
    """A component of the loss is something else."""
    plain = parts.losses
    parts.losses = lambda model, batch: (raw := plain(model, batch)) | {name: change(raw[name])}
    return 1


def stages_unreachable(parts: Parts) -> int:
    """Stages begin at the steps of the run on the whole registry."""
    longer_follow_up(parts, 40)
    return 0


def one_owns_gradient(parts: Parts) -> int:
    """The weight that made another data set's curves smooth."""
    mistakes.reweigh(parts, lambda applied, weights: weights | {"smooth": 3e4})  # noqa: ARG005
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "stages-unreachable": stages_unreachable,
    "clamped-component": partial(changed, name="cox", change=lambda value: value.clamp(max=2.0)),
    "one-owns-gradient": one_owns_gradient,
    "component-untracked": partial(mistakes.component_untracked, by=1e-2),
    "one-bad-batch": partial(mistakes.one_bad_batch, share=0.2, by=1000.0),
    "scale-collapse": partial(mistakes.scale_collapse, every=2),
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*(*OWN, "precision-off", "constant-input", "no-checkpoints", "out-of-memory", "dropout-in-evaluation"),)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

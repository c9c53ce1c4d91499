"""What kind of cell is it? A variational autoencoder of gene counts whose code forgets the laboratory.

Made-up cells of six types, some of them rare, come from two laboratories that catch each gene to another extent. The
encoder reads logarithms of normalised counts, the decoder gets the code and the laboratory and tells what share of a
cell's molecules each gene has (Lopez et al. 2018); counts are negative binomial around that. The divergence from the
prior is warmed up, and the laboratories' codes are to be distributed alike, by their maximum mean discrepancy. Adam, a
cosine, clipping. Judged by the types, and the laboratories, that a held-out cell's nearest neighbours have.
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
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, logged
from benchmarks.diagnosis.loop import planned as planned_by
from benchmarks.diagnosis.schooling import taught
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS, SAVED, EACH = 100, 20, 10  # EACH: steps between evaluations
GENES, LABS, CODE, WIDTH, NEIGHBOURS = 80, 2, 8, 64, 10
TYPES = np.array([0.35, 0.25, 0.2, 0.1, 0.06, 0.04])  # how many cells are of each
CELLS, HELD, BATCH = 3000, 400, 64
RATE, WARMUP, CLIP = 1e-2, 5, 60.0
RISE = STEPS // 2  # steps of the divergence's warm-up
WEIGHTS = {"counts": 1.0, "kl": 1.0, "lab": 50.0}
RECORDS = frozenset({"components", "clocks", "checkpoints"})


@cache
def sequenced(depth: float = 600.0) -> Batch:
    """Cells with `depth` molecules or so: `x` are what the encoder reads, `y` the counts, then laboratory and type."""
    random, count = np.random.default_rng(67), CELLS + HELD
    kind, lab = random.choice(len(TYPES), count, p=TYPES), random.integers(0, LABS, count)
    markers = random.normal(0.0, 1.3, (len(TYPES), GENES)) * (random.random((len(TYPES), GENES)) < 0.3)
    states = random.normal(0.0, 0.4, (count, 2)) @ random.normal(0.0, 0.5, (2, GENES))
    logs = random.normal(0.0, 1.0, GENES) + markers[kind] + random.normal(0.0, 0.6, (LABS, GENES))[lab] + states
    share = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    mean = share * random.lognormal(np.log(depth), 0.3, (count, 1))
    spread = random.gamma(4.0, 1.0, GENES)
    counts = torch.tensor(random.poisson(random.gamma(spread, mean / spread)), dtype=torch.float32)
    logged_counts = torch.log1p(1e3 * counts / counts.sum(1, keepdim=True))
    x = (logged_counts - logged_counts.mean(0)) / logged_counts.std(0)
    facts = {"lab": torch.from_numpy(lab), "type": torch.from_numpy(kind), "depth": counts.sum(1)}
    return {"x": x, "y": counts, **facts}


def part(held: bool = False, depth: float = 600.0) -> Batch:
    """The cells to learn from, or those held out."""
    chosen = slice(CELLS, None) if held else slice(CELLS)
    return {name: values[chosen] for name, values in sequenced(depth).items()}


class CellModel(nn.Module):
    """Encoder, and decoder with a dispersion for each gene; it keeps the last posterior, and the code drawn from it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(GENES, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), nn.Dropout(0.1), nn.Linear(WIDTH, 2 * CODE)
        )
        self.decoder = nn.Sequential(nn.Linear(CODE + LABS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, GENES))
        self.dispersion = nn.Parameter(torch.zeros(GENES))
        self.posterior = self.code = torch.zeros(())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the code."""
        self.posterior = self.encoder(x)
        mean, spread = self.posterior.chunk(2, 1)
        return mean, spread.clamp(max=8.0)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Mean counts, and the code's mean and variance; the code is drawn in training, its mean in evaluation."""
        mean, spread = self.encode(batch["x"])
        noise = torch.randn(mean.shape) if self.training else torch.zeros(mean.shape)
        self.code = mean + noise * (0.5 * spread).exp()
        logits = self.decoder(torch.cat([self.code, functional.one_hot(batch["lab"], LABS).float()], 1))
        return torch.softmax(logits, 1) * batch["depth"][:, None], mean, spread


def negative_binomial(mean: Tensor, dispersion: Tensor, counts: Tensor, constant: bool = True) -> Tensor:
    """Minus the logarithm of each count's likelihood, in nats; `constant` is the part that no weight changes."""
    theta, mean = dispersion.exp(), mean + 1e-6
    told = torch.lgamma(counts + theta) - torch.lgamma(theta) - (torch.lgamma(counts + 1.0) if constant else 0.0)
    both = (theta + mean).log()
    return -(told + theta * (dispersion - both) + counts * (mean.log() - both))


def discrepancy(one: Tensor, other: Tensor) -> Tensor:
    """How far two sets of codes are from one distribution, by kernels of three widths (Gretton et al. 2012)."""

    def alike(a: Tensor, b: Tensor) -> Tensor:
        squared = (a[:, None] - b).square().sum(-1)
        return torch.stack([(-squared / (width * CODE)).exp() for width in (0.3, 1.0, 3.0)]).sum(0)

    def within(a: Tensor) -> Tensor:
        """Of different cells: without bias, so that two sets of one distribution come to zero on average."""
        return (alike(a, a).sum() - 3.0 * len(a)) / max(len(a) * (len(a) - 1), 1)

    return within(one) + within(other) - 2.0 * alike(one, other).mean()


def losses(model: nn.Module, batch: Batch, constant: bool = True) -> Components:
    """Nats of a cell's counts, and of its code's divergence from the prior; how far the laboratories are apart."""
    mean, centre, spread = model(batch)
    code, lab = model.code, batch["lab"]
    return {
        "counts": negative_binomial(mean, model.dispersion, batch["y"], constant).sum(1).mean(),  # type: ignore[arg-type]
        "kl": 0.5 * (centre.square() + spread.exp() - 1.0 - spread).sum(1).mean(),
        "lab": discrepancy(code[lab == 0], code[lab == 1]),  # type: ignore[index]
    }


def measured(
    losses: Callable[..., Components] = losses, data: Callable[[bool], Batch] = part
) -> Callable[[nn.Module], Channels]:
    """The bound on held-out cells with the divergence in full; how often neighbours name the type, and the lab."""

    def measure(model: nn.Module) -> Channels:
        held, known = data(True), {name: values[:1000] for name, values in data(False).items()}
        raw = losses(model, held)
        codes = [model.encode(one["x"])[0] for one in (held, known)]  # type: ignore[operator]
        near = torch.cdist(*codes).topk(NEIGHBOURS, largest=False).indices
        named = {name: known[name][near].mode(1).values == held[name] for name in ("type", "lab")}
        bound = raw["counts"] + raw["kl"]
        return {"loss": bound.item()} | {f"{name}_accuracy": hit.float().mean().item() for name, hit in named.items()}

    return measure


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], lr=RATE)


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now = CellModel(), {"kl": 0.0}
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(part(), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=CELLS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: WEIGHTS | {"kl": now["kl"]},  # noqa: ARG005
        clocks={"updates": lambda applied: applied},
        now=now,
        evaluation=Evaluation(EACH, measured()),
        header={
            "config": {"batch_size": BATCH, "clip": CLIP, "labs": LABS, "weights": WEIGHTS, "lab": "MMD^2, unbiased"},
            "components": {
                "counts": {"unit": "nat", "role": "task"},
                "kl": {"unit": "nat", "role": "regulariser"},
                "lab": {"role": "regulariser"},
            },
            "schedules": {},
            "clocks": ["updates"],
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
        },
        records=RECORDS,
    )
    planned(warmed_up(parts))
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def planned(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, or follows another form, over the run; the header says so."""
    return planned_by(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


def warmed_up(parts: Parts, over: int = RISE, **form: Any) -> Parts:
    """The divergence's weight rises to one, once or several times; the header says so."""
    rise = declared("linear", 0.0, 1.0, over, clock="updates") | form
    parts.header["schedules"] |= {"kl": rise, "weight/kl": rise}
    parts.scheduled = {"kl": ("updates", lambda reading: schedule_value(rise, reading) or 0.0)}
    return parts


def fed(parts: Parts, size: int, steps: int, every: int, each: int, peak: float = RATE) -> Parts:
    """Batches of another size, for so many steps, with rows and evaluations further apart."""
    parts.header["config"]["batch_size"], parts.header["checkpoint_every"] = size, 2 * each
    parts.batches, parts.batches_per_epoch = shuffled(part(), size, parts.seed), CELLS // size
    parts = logged(replace(parts, steps=steps, evaluation=Evaluation(each, measured())), every)
    return planned(warmed_up(replace(parts, records=RECORDS | {"epochs"}), steps // 2), peak)


def shown(parts: Parts) -> Parts:
    """Both sets come from loaders that are looked at, and what is read is measured."""
    evaluation = Evaluation(EACH, measured(), held=part(held=True))
    return replace(logged(parts), evaluation=evaluation, records=RECORDS | {"waits", "inputs"})


def with_shares(parts: Parts) -> Parts:
    """Who pulls how much at the posterior's mean and variance."""
    parts.header["gradient_at"] = "posterior"
    return replace(logged(parts), at=lambda model: model.posterior, records=RECORDS | {"shares"})  # type: ignore[arg-type, return-value]


def without_constant(parts: Parts) -> Parts:
    """What no weight changes of the likelihood is left out: the loss is far below zero, and falls."""
    parts.header["config"]["likelihood"] = "negative binomial without log y!"
    ours = partial(losses, constant=False)
    return replace(parts, losses=ours, evaluation=Evaluation(EACH, measured(ours)))


@cache
def schooled(seed: int, steps: int = 4 * STEPS) -> dict[str, Tensor]:
    """The weights of a model of the same atlas, learned before the record begins."""
    torch.manual_seed(seed + 90)
    model, batches = CellModel(), shuffled(part(), BATCH, seed + 90)

    def loss(number: int) -> Tensor:
        return torch.stack([WEIGHTS[name] * value for name, value in losses(model, batches(number)).items()]).sum()

    return taught(model, adam(model), loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts) -> Parts:
    """A trained model goes on at a small constant rate, at its floor."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "pretrained/400.pt"
    parts = warmed_up(parts, STEPS, kind="constant", start=1.0)
    return planned(logged(parts), kind="constant", peak=RATE / 100, end=RATE / 100, warmup=0)


def deeper_later(parts: Parts) -> Parts:
    """From the middle on, cells sequenced three times as deep, in both sets: more counts have more nats to tell."""
    change, reached, depths = STEPS // 2, [0], (600.0, 1800.0)
    stages = [{"start": 0, "name": "shallow"}, {"start": change, "name": "deep"}]
    parts.header["curriculum"] = {"name": "depth", "stages": stages}
    sets = [shuffled(part(depth=depth), BATCH, parts.seed) for depth in depths]
    parts.batches = lambda number: sets[number >= change](number)
    parts.begins.append(reached.append)
    parts.extras.append(
        lambda step, batch: {"stage": int(step > change), "data/depth/mean": round(batch["depth"].mean().item())}
    )
    held = measured(data=lambda held: part(held, depths[reached[-1] > change]))
    return replace(logged(parts), evaluation=Evaluation(EACH, held))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "shown": shown,
    "watched": lambda parts: logged(replace(parts, records=RECORDS | {"norms", "optimizer"})),
    "resumed": lambda parts: logged(replace(parts, resume=Resume(3 * SAVED), records=RECORDS | {"optimizer"})),
    "shares": with_shares,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "without-constant": without_constant,
    "fine-tuned": fine_tuned,
    "epochs": lambda parts: fed(parts, 200, 12 * 15, 15, 15),
    "batch-16": lambda parts: fed(parts, 16, 3 * STEPS, 3, 3 * EACH, RATE / 2),
    "deeper-later": deeper_later,
    "cyclical": lambda parts: warmed_up(logged(parts), STEPS, restarts=2),
}
TWINS = {
    **dict.fromkeys(("slow-loader", "constant-input"), "shown"),
    **dict.fromkeys(("stale-optimiser", "scheduler-twice"), "watched"),
    "resume-restarts-schedule": "resumed",
}


def wrong_weights(parts: Parts) -> int:
    """An old line caps the divergence's weight, which goes on to rise in the plan."""
    mistakes.reweigh(parts, lambda applied, weights: weights | {"kl": min(weights["kl"], 0.2)})  # noqa: ARG005
    return RISE // 5 + 2


def absolute_anneal(parts: Parts) -> int:
    """The warm-up has the length of the full atlas's run."""
    onset = mistakes.absolute_anneal(parts)
    parts.header["schedules"]["weight/kl"] = parts.header["schedules"]["kl"]
    return onset


def constant_input(parts: Parts) -> int:
    """What is normalised already is divided by the molecules of a cell, and by a thousand, once more; in both sets."""

    def faint(held: bool) -> Batch:
        return part(held) | {"x": part(held)["x"] * 1e-6}

    parts.evaluation = Evaluation(EACH, measured(data=faint), held=faint(held=True))
    return mistakes.constant_input(parts)


def poisoned_weight(parts: Parts) -> int:
    """The first layer's rows are normalised, and one was pruned; the log counts what is not finite."""
    parts.records |= {"bad"}
    return mistakes.poisoned_weight(parts)


OWN: dict[str, mistakes.Mistake] = {
    "component-scale": partial(mistakes.component_scale, name="lab", by=1e6),
    "slow-loader": partial(mistakes.slow_loader, seconds=0.03),
    "component-untracked": partial(mistakes.component_untracked, by=0.1),
    "wrong-weights": wrong_weights,
    "absolute-anneal": absolute_anneal,
    "constant-input": constant_input,
    "poisoned-weight": poisoned_weight,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*OWN, "stale-optimiser", "scheduler-twice", "resume-restarts-schedule", "dropout-in-evaluation", "killed")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

"""Learning to rank from a search engine's clicks, which fall on what stands high as much as on what is good.

A tower scores each document of a list from measured features and from embeddings of the query's and the document's ids.
A listwise loss weighs clicks by the inverse of how often their place is looked at, the more the further a clock has
come; a second loss, with a bias for each place, keeps the scores calibrated as rates of clicks. Adam in two groups,
two micro-batches a step, a linear warm-up and decay. What counts is the NDCG by the true grades.
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
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, linear
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 90
QUERIES, DOCUMENTS, POOL, PLACES, TASTES = 150, 500, 25, 10, 6
SESSIONS, VALIDATION, BATCH, PIECES = 6000, 250, 20, 2  # a batch is of so many lists, a step of so many batches
CLICKED = (0.04, 0.12, 0.3, 0.55, 0.85)  # chance of a click on what is looked at, by grade
RATES = {"ids": 2e-2, "tower": 5e-3}
SPREAD = torch.tensor([2.0, 3.0, 2.0, 4.0, 1.0, 1.0])  # of the noise on what is measured
WARMUP, CLIP, WIDTH = 8, 2.0, 12
WEIGHTS = {"listwise": 1.0, "click": 0.5}
RECORDS = frozenset({"components", "norms", "optimizer", "clocks", "fingerprint", "checkpoints"})
Listwise = Callable[[Tensor, Tensor, Tensor], Tensor]
TWINS = {"resume-repeats-data": "resumed"}


def looked_at() -> Tensor:
    """How often each place of a list is looked at."""
    return (1.0 + torch.arange(PLACES)) ** -0.8


@cache
def sessions(clicked: float = 1.0) -> Batch:
    """The log: what a query was answered with, in the order of an earlier ranker, and what was clicked there.

    Clicks are so many times as likely as usual; in one list out of three hundred there are five documents only.
    """
    count, chance = SESSIONS + VALIDATION, torch.Generator().manual_seed(88)
    asked = torch.randn(QUERIES, TASTES, generator=chance)
    offered, quality = torch.randn(DOCUMENTS, TASTES, generator=chance), torch.randn(DOCUMENTS, generator=chance)
    pools = torch.rand(QUERIES, DOCUMENTS, generator=chance).argsort(1)[:, :POOL]
    often = 1.0 / (5.0 + torch.arange(QUERIES))
    query = torch.multinomial(often, count, replacement=True, generator=chance)
    documents = pools[query].gather(1, torch.rand(count, POOL, generator=chance).argsort(1)[:, :PLACES])
    match = torch.einsum("nt,nkt->nk", asked[query], offered[documents]) / TASTES**0.5
    worth = match + 0.7 * quality[documents]
    order = (worth + 1.5 * torch.randn(worth.shape, generator=chance)).argsort(1, descending=True)
    documents, match, worth = (values.gather(1, order) for values in (documents, match, worth))
    grade = torch.bucketize(worth, torch.tensor([-0.8, 0.1, 0.9, 1.8]))
    noise = torch.randn(count, PLACES, 6, generator=chance)
    known = torch.stack([match, match, quality[documents], worth, torch.zeros_like(worth), torch.zeros_like(worth)], 2)
    there = torch.ones(count, PLACES)
    there[torch.rand(count, generator=chance) < 1 / 300, PLACES // 2 :] = 0.0
    odds = clicked * torch.tensor(CLICKED)[grade] * looked_at() * there
    clicks = (torch.rand(odds.shape, generator=chance) < odds).float()
    x = (known + SPREAD * noise) / (1.0 + SPREAD**2).sqrt()
    return {"x": x, "query": query, "documents": documents, "there": there, "grade": grade, "y": clicks}


def logged(clicked: float = 1.0) -> Batch:
    """What is trained on; the sessions after it are for validation."""
    return {name: values[:SESSIONS] for name, values in sessions(clicked).items()}


class Ranker(nn.Module):
    """Lists in, a score for each document out, and how likely a click on it is where it stands."""

    def __init__(self, hidden: int = 48, dropout: float = 0.3) -> None:
        super().__init__()
        self.ids = nn.ModuleDict({"query": nn.Embedding(QUERIES, WIDTH), "document": nn.Embedding(DOCUMENTS, WIDTH)})
        layers = (
            *(nn.Linear(6 + 3 * WIDTH, hidden), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, 1)),
        )
        self.tower = nn.ModuleDict({"scores": nn.Sequential(*layers), "place": nn.Embedding(PLACES, 1)})
        for table in self.ids.values():
            nn.init.normal_(table.weight, std=0.1)  # type: ignore[arg-type]
        nn.init.normal_(self.tower["place"].weight, -2.0, 0.1)  # type: ignore[arg-type]  # few documents are clicked

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores, and logits of a click."""
        documents = self.ids["document"](batch["documents"])
        query = self.ids["query"](batch["query"])[:, None].expand_as(documents)
        scores = self.tower["scores"](torch.cat([batch["x"], query, documents, query * documents], 2))[..., 0]
        return scores.float(), scores.float() + self.tower["place"].weight[:, 0]


def cross_entropy(scores: Tensor, share: Tensor, there: Tensor) -> Tensor:
    """Of each list."""
    told = functional.log_softmax(scores.masked_fill(there == 0, -1e9), 1)
    return -(share * told).sum(1)


def by_hand(scores: Tensor, share: Tensor, there: Tensor) -> Tensor:
    """The same as it is written at first: what is not there has a probability of 0."""
    return -(share * functional.softmax(scores.masked_fill(there == 0, -1e9), 1).log()).sum(1)


def pairwise(scores: Tensor, share: Tensor, there: Tensor) -> Tensor:
    """Instead: how far what was clicked is above what was not."""
    above = functional.softplus(scores[:, None] - scores[:, :, None]) * there[:, None] * (share == 0)[:, None]
    return (share[:, :, None] * above).sum((1, 2)) / 3.0


def components(model: nn.Module, batch: Batch, debias: float, listwise: Listwise) -> Components:
    """The three losses; `debias` is the exponent by which the places' shares are taken out of clicks."""
    scores, logits = model(batch)
    worth = batch["y"] * looked_at() ** -debias
    share = worth / worth.sum(1, keepdim=True).clamp(min=1e-6)
    clicked = (batch["y"].sum(1) > 0).float()
    each = functional.binary_cross_entropy_with_logits(logits, batch["y"], reduction="none")
    return {
        "listwise": (listwise(scores, share, batch["there"]) * clicked).sum() / clicked.sum().clamp(min=1.0),
        "click": (each * batch["there"]).sum() / batch["there"].sum(),
    }


def ndcg(scores: Tensor, grade: Tensor, there: Tensor, at: int = 5) -> float:
    """The mean over lists of how much is gained in the first places, against the best order."""
    gain = (2.0**grade - 1.0) * there
    falling = 1.0 / torch.log2(torch.arange(at) + 2.0)
    mine = gain.gather(1, scores.masked_fill(there == 0, -1e9).argsort(1, descending=True))[:, :at]
    best = gain.sort(1, descending=True).values[:, :at]
    return float(((mine * falling).sum(1) / (best * falling).sum(1).clamp(min=1e-6)).mean())


def measured(
    clicked: float = 1.0, listwise: Listwise = cross_entropy, noted: list[float] | None = None
) -> Callable[[nn.Module], Channels]:
    """The losses on later sessions, places taken out; the NDCG, and the clicks foretold for each that happened."""
    held = {name: values[SESSIONS:] for name, values in sessions(clicked).items()}

    def measure(model: nn.Module) -> Channels:
        raw = {name: value.item() for name, value in components(model, held, 1.0, listwise).items()}
        scores, logits = model(held)
        foretold = torch.sigmoid(logits) * held["there"]
        loss = sum(WEIGHTS[name] * value for name, value in raw.items())
        if noted is not None:
            noted.append(loss)
        return {
            "loss": loss,
            **{f"loss/{name}": raw[name] for name in ("listwise", "click")},
            "ndcg5": ndcg(scores, held["grade"], held["there"]),
            "calibration": float(foretold.sum() / held["y"].sum()),
        }

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now, over = Ranker(), {"debias": 0.0}, STEPS // 2
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam(grouped(model)),
        batches=shuffled(logged(), BATCH, seed),
        losses=lambda model, batch: components(model, batch, now["debias"], cross_entropy),
        steps=STEPS,
        seed=seed,
        accumulation=PIECES,
        batches_per_epoch=SESSIONS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        clocks={"debias": lambda applied: applied},
        scheduled={"debias": ("debias", linear(0.0, 1.0, over))},
        now=now,
        records=RECORDS,
        header={
            "config": {"lr": RATES["tower"], "batch_size": BATCH, "accumulation": PIECES, "clip": CLIP},
            "components": {
                "listwise": {"unit": "nat", "role": "task"},
                "click": {"unit": "nat", "role": "auxiliary"},
            },
            "schedules": {"debias": declared("linear", 0.0, 1.0, over, clock="debias")},
            "clocks": ["debias"],
            "max_grad_norm": CLIP,
            "checkpoint_every": 20,
        },
    )
    parts.evaluation = Evaluation(9, measured())
    rated(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    """What is looked up, and the tower."""
    return [{"params": [*part.parameters()], "name": name} for name, part in model.named_children()]


def rated(parts: Parts, by: float = 1.0, **form: Any) -> Parts:
    """The rates, so many times the usual ones, fall over the run, or follow another form; the header says so."""
    form = {"kind": "linear", "end": 0.05, "over_steps": parts.steps, "warmup": WARMUP} | form | {"start": 1.0}
    for group in parts.optimizer.param_groups:
        rate = group["lr"] = by * RATES[group["name"]]
        parts.header["schedules"][f"lr/{group['name']}"] = form | {"start": rate, "end": rate * form["end"]}
    parts.factor = lambda tick: schedule_value(form, tick) or 0.0
    parts.header["total_steps"], parts.header["config"]["lr"] = parts.steps, by * RATES["tower"]
    return parts


def fitted(parts: Parts, steps: int) -> Parts:
    """What was learnt of earlier sessions before the record begins; clicks count by their places from the first."""
    before, batches = torch.optim.Adam(grouped(parts.model)), shuffled(logged(), 2 * BATCH, parts.seed + 60)
    for number in range(steps):
        for group in before.param_groups:
            group["lr"] = RATES[group["name"]] * (1.0 - number / steps)
        before.zero_grad()
        raw = components(parts.model, batches(number), 1.0, cross_entropy)
        torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum().backward()
        before.step()
    parts.model.zero_grad()
    return opened(parts)


def opened(parts: Parts) -> Parts:
    """Places are taken out of clicks wholly from the beginning, and nothing is annealed."""
    parts.now["debias"], parts.scheduled, parts.clocks = 1.0, {}, {}
    del parts.header["schedules"]["debias"], parts.header["clocks"]
    return parts


def compared(parts: Parts) -> Parts:
    """A loss of pairs instead of one of lists."""
    parts.losses = lambda model, batch: components(model, batch, parts.now["debias"], pairwise)
    parts.evaluation = Evaluation(9, measured(listwise=pairwise))
    return parts


def fed(parts: Parts, clicked: float = 1.0, size: int = BATCH) -> Parts:
    """Other clicks, or so many lists in a batch."""
    parts.batches, parts.batches_per_epoch = shuffled(logged(clicked), size, parts.seed), SESSIONS // size
    parts.evaluation = Evaluation(9, measured(clicked))
    parts.header["config"]["batch_size"] = size
    return parts


def stops_early(parts: Parts) -> Parts:
    """A long plan at a constant rate, left when four evaluations brought no less loss than the best before."""
    parts, losses = replace(opened(parts), steps=4 * STEPS, every=2), list[float]()
    parts.evaluation = Evaluation(9, measured(noted=losses))
    parts.stops = lambda: len(losses) > 8 and min(losses[-4:]) > min(losses[:-4])
    parts.header["config"]["patience"] = 4
    return rated(parts, 0.5, kind="constant", end=1.0)


def new_tower(parts: Parts) -> Parts:
    """The embeddings come from an earlier ranker and are frozen; a new tower learns on them."""
    fitted(parts, 150)
    parts.model.get_submodule("ids").requires_grad_(False)
    for layer in parts.model.get_submodule("tower.scores").children():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    parts.optimizer = torch.optim.Adam(grouped(parts.model)[1:])
    del parts.header["schedules"]["lr/ids"]
    parts.header["config"]["frozen"] = ["ids"]
    return rated(parts)


def adagrad(parts: Parts) -> Parts:
    parts.optimizer = torch.optim.Adagrad(grouped(parts.model), initial_accumulator_value=1e-3)
    return rated(parts, 8.0, end=1.0)


def in_half(parts: Parts) -> Parts:
    """The tower computes in bfloat16, as declared; losses are taken in float32."""
    parts.header["dtypes"] = {"declared": "bfloat16"}
    return replace(parts, autocast=torch.bfloat16)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(3 * STEPS // 5, lost=STEPS // 12)),
    "warm-restarts": lambda parts: rated(parts, kind="cosine", restarts=2, warmup=0),
    "batch-2": lambda parts: rated(fed(parts, size=2), 0.7),
    "every-tenth": lambda parts: replace(parts, every=10),
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}),
    "fine-tuning": lambda parts: rated(fitted(parts, 250), 0.02, kind="constant", end=1.0),
    "long-run": lambda parts: rated(replace(parts, steps=2 * STEPS, every=2)),
    "adagrad": adagrad,
    "stops-early": stops_early,
    "new-tower": new_tower,
    "bfloat16": in_half,
    "pairs": compared,
    "few-clicks": lambda parts: fed(parts, clicked=0.3),
}


def log_of_zero(parts: Parts) -> int:
    """The listwise loss takes the logarithm of a softmax; of a list that is short, that of 0."""
    parts.losses = lambda model, batch: components(model, batch, parts.now["debias"], by_hand)
    return mistakes.WHEN_BROKEN


def labels_shuffled(parts: Parts) -> int:
    """Clicks were joined to lists that another table sorts by the documents' numbers, not by their places."""
    plain = parts.batches

    def batches(number: int) -> Batch:
        batch = plain(number)
        return batch | {"y": batch["y"].gather(1, batch["documents"].argsort(1)) * batch["there"]}

    parts.batches = batches
    return 1


def stale_optimiser(parts: Parts) -> int:
    """The vocabulary grew: tables were made anew after the optimiser had taken the old ones."""
    tables = parts.model.get_submodule("ids")
    for name, known in (("query", QUERIES), ("document", DOCUMENTS)):
        tables.add_module(name, nn.Embedding(known + 50, WIDTH))
        nn.init.normal_(tables.get_submodule(name).weight, std=0.1)  # type: ignore[arg-type]
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "log-of-zero": log_of_zero,
    "labels-shuffled": labels_shuffled,
    "stale-optimiser": stale_optimiser,
    "growing-weights": partial(mistakes.growing_weights, by=-0.02),
    "component-untracked": partial(mistakes.component_untracked, by=2e-3),
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *("stuck-counter", "dropout-in-evaluation", "stuck-loader", "divided-twice", *OWN),
    *("scheduler-per-micro-batch", "resume-repeats-data", "failing-checkpoints"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

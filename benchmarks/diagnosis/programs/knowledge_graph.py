"""Who is whose aunt? Links of a knowledge graph of families, four generations that are made by rule, are predicted.

People and relations are complex vectors, and a triple's score is the real part of their product (ComplEx). A batch is
scored against drawn people, of whom those that are hardest to tell from the truth count most (self-adversarial
weights); N3, the cubes of the moduli, holds the vectors small. Some relations are hundreds of times as frequent as
others. Adam, a linear decay, clipping. Judged by the mean reciprocal rank among what is not known to be true.
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
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared
from benchmarks.diagnosis.loop import planned as planned_by

HELD_OUT = False
STEPS = 90
FOUNDERS, GENERATIONS, TOWNS, HELD = 40, 3, 12, 400  # couples, what follows them, places, and triples not trained on
BATCH, NEGATIVES, TEMPERATURE = 512, 128, 0.2
RATE, WARMUP, CLIP = 5e-2, 5, 0.02
WEIGHTS = {"positive": 0.5, "negative": 0.5, "n3": 1e-3}
RECORDS = frozenset({"components", "norms", "optimizer"})

HEALTHY = (
    *("plain", "resumed", "adagrad", "filtered", "harder-later", "accumulated", "shares", "fine-tuned", "epochs"),
    *("loss-only", "batch-16", "frozen-people"),
)
SICK = (
    *("discarded-update", "schedules-by-batches", "norm-after-clip", "wrong-curriculum"),
    *("resume-repeats-data", "log-of-zero", "out-of-memory", "unmoved-group", "one-owns-gradient", "all-masked"),
    "slowing-down",
)
TWINS = {
    "schedules-by-batches": "accumulated",
    "wrong-curriculum": "harder-later",
    "resume-repeats-data": "resumed",
    "one-owns-gradient": "shares",
    "all-masked": "filtered",
}


def families(random: np.random.Generator) -> tuple[dict[int, tuple[int, int]], list[tuple[int, int]]]:
    """The parents of each who has some, and all couples: children of different parents marry at random."""
    couples = [(2 * number, 2 * number + 1) for number in range(FOUNDERS)]
    parents: dict[int, tuple[int, int]] = {}
    newest, count = couples, 2 * FOUNDERS
    for _ in range(GENERATIONS):
        young = []
        for couple in newest:
            for _ in range(random.integers(1, 5)):
                parents[count] = couple
                young.append(count)
                count += 1
        mixed = random.permutation(young)
        pairs = zip(mixed[::2].tolist(), mixed[1::2].tolist(), strict=False)
        newest = [pair for pair in pairs if parents[pair[0]] != parents[pair[1]]]
        couples = couples + newest
    return parents, couples


@cache
def graph() -> tuple[Batch, Batch, tuple[str, ...], int]:
    """Triples of head, relation and tail to learn from and held out, the relations' names, and how many entities."""
    random = np.random.default_rng(47)
    parents, couples = families(random)
    spouse = {one: other for pair in couples for one, other in (pair, pair[::-1])}
    people = [*range(2 * FOUNDERS), *parents]
    towns = [len(people) + town for town in range(TOWNS)]
    siblings = {one: [other for other in parents if other != one and parents[other] == parents[one]] for one in parents}
    children = {one: [child for child in parents if one in parents[child]] for one in people}
    found: dict[str, set[tuple[int, int]]] = {
        "child of": {(one, parent) for one in parents for parent in parents[one]},
        "sibling of": {(one, other) for one in parents for other in siblings[one]},
        "spouse of": set(spouse.items()),
    }
    found["grandchild of"] = {(one, old) for one, parent in found["child of"] for old in parents.get(parent, ())}
    found["nibling of"] = {(one, other) for one, parent in found["child of"] for other in siblings.get(parent, ())}
    found["cousin of"] = {(one, child) for one, other in found["nibling of"] for child in children[other]}
    inverse = {"child of": "parent of", "grandchild of": "grandparent of", "nibling of": "aunt or uncle of"}
    found |= {name: {(other, one) for one, other in found[old]} for old, name in inverse.items()}
    found["twin of"] = {pair for pair in found["sibling of"] if sum(pair) % 29 == 0}
    home = {one: towns[min(one, spouse.get(one, one)) % TOWNS] for one in people}
    found["lives in"] = set(home.items())
    found["mayor of"] = {(people[int(random.integers(len(people)))], town) for town in towns}
    names = tuple(sorted(found, key=lambda name: -len(found[name])))
    listed = [(one, number, other) for number, name in enumerate(names) for one, other in sorted(found[name])]
    triples = torch.tensor(listed)[torch.tensor(random.permutation(len(listed)))]
    return {"x": triples[HELD:]}, {"x": triples[:HELD]}, names, len(people) + TOWNS


@cache
def known(held: bool) -> Tensor:
    """Which triples are true, as far as the training set says, or with those held out. bool [head, relation, tail]"""
    training, others, names, entities = graph()
    true = torch.zeros(entities, len(names), entities, dtype=torch.bool)
    true[tuple(torch.cat([training["x"], others["x"]] if held else [training["x"]]).T)] = True
    return true


class ComplEx(nn.Module):
    """A vector of real and imaginary parts for each entity and relation; `scores` are what it last gave."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        _, _, names, entities = graph()
        self.people, self.relations = nn.Embedding(entities, 2 * width), nn.Embedding(len(names), 2 * width)
        for table in (self.people, self.relations):
            nn.init.normal_(table.weight, std=0.3)

    def asked(self, x: Tensor, heads: bool = False) -> Tensor:
        """What the tail of each triple should look like, or its head. float32 [N, 2 width]"""
        given, relation = self.people(x[:, 2 if heads else 0]), self.relations(x[:, 1])
        a, b = given.chunk(2, 1)
        c, d = relation.chunk(2, 1)
        d = -d if heads else d
        return torch.cat([a * c - b * d, a * d + b * c], 1)


def losses(model: nn.Module, batch: Batch, temperature: float = TEMPERATURE) -> Components:
    """Minus the log-likelihood of the truth and of what was drawn, the latter weighed by its own scores; and N3."""
    assert isinstance(model, ComplEx)
    x, heads = batch["x"], bool(batch["heads"])
    asked = model.asked(x, heads)
    right = (asked * model.people(x[:, 0 if heads else 2])).sum(1)
    wrong = asked @ model.people(batch["drawn"]).T
    counts = batch.get("counts", torch.ones_like(wrong, dtype=torch.bool))
    shares = (temperature * wrong).masked_fill(~counts, -1e9).softmax(1).detach() * counts
    vectors = torch.cat([model.people(x[:, 0]), model.relations(x[:, 1]), model.people(x[:, 2])])
    moduli = vectors.unflatten(1, (2, -1)).square().sum(1).add(1e-12).sqrt()
    return {
        "positive": -functional.logsigmoid(right).mean(),
        "negative": -(shares * functional.logsigmoid(-wrong)).sum(1).mean(),
        "n3": (moduli**3).sum(1).mean(),
    }


def measure(model: nn.Module) -> Channels:
    """Where the truth ranks among all entities that are not known to be true, as its mean reciprocal; and hits."""
    assert isinstance(model, ComplEx)
    x, true, ranks = graph()[1]["x"], known(held=True), []
    for heads in (False, True):
        others = true[:, x[:, 1], x[:, 2]].T if heads else true[x[:, 0], x[:, 1]]
        scores = model.asked(x, heads) @ model.people.weight.T
        answer = scores.gather(1, x[:, 0 if heads else 2, None])
        ranks.append(1 + (~(scores < answer) & ~others).sum(1))  # what is NaN comes last
    rank = torch.cat(ranks).float()
    return {"mrr": (1.0 / rank).mean().item(), "hits_at_3": (rank <= 3).float().mean().item()}


def loader(size: int, seed: int, negatives: Callable[[int], int] = lambda number: NEGATIVES) -> Callable[[int], Batch]:  # noqa: ARG005
    """Batches by number, heads and tails in turn, each with the entities that were drawn against it."""
    plain, entities = shuffled(graph()[0], size, seed), graph()[3]

    def batch(number: int) -> Batch:
        random = torch.Generator().manual_seed(100_000 * seed + number)
        drawn = torch.randperm(entities, generator=random)[: negatives(number)]
        return plain(number) | {"heads": torch.tensor(number % 2 == 1), "drawn": drawn}

    return batch


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    training, _, names, _ = graph()
    model = ComplEx()
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam(grouped(model), lr=RATE, betas=(0.9, 0.99)),
        batches=loader(BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=len(training["x"]) // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        evaluation=Evaluation(max(STEPS // 15, 1), measure),
        header={
            "config": {"batch_size": BATCH, "clip": CLIP, "negatives": NEGATIVES, "weights": WEIGHTS},
            "components": {
                "positive": {"unit": "nat", "role": "task"},
                "negative": {"unit": "nat", "role": "task"},
                "n3": {"role": "regulariser"},
            },
            "schedules": {},
            "classes": dict(zip(names, torch.bincount(training["x"][:, 1]).tolist(), strict=True)),
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
    )
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def grouped(model: ComplEx) -> list[dict[str, Any]]:
    tables = {"relations": model.relations.weight, "people": model.people.weight}
    return [{"params": [table], "name": name} for name, table in tables.items() if table.requires_grad]


def planned(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls in a line, and so the header says."""
    return planned_by(parts, declared("linear", peak, 0.05 * peak, parts.steps, warmup=WARMUP) | form)


def sized(parts: Parts, size: int) -> Parts:
    """Batches of another size."""
    parts.header["config"] |= {"batch_size": size}
    parts.batches, parts.batches_per_epoch = loader(size, parts.seed), len(graph()[0]["x"]) // size
    return parts


@cache
def schooled(seed: int, steps: int = 3 * STEPS) -> dict[str, Tensor]:
    """The vectors of a graph that was learned before the record begins."""
    parts = build(seed + 50, "plain")
    for number in range(steps):
        raw = losses(parts.model, parts.batches(number))
        parts.optimizer.zero_grad()
        torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum().backward()
        for group in parts.optimizer.param_groups:
            group["lr"] = RATE * (1.0 - number / steps)
        parts.optimizer.step()
    return parts.model.state_dict()


def fine_tuned(parts: Parts) -> Parts:
    """The graph was learned; it goes on at a fiftieth of the rate, at its floor."""
    parts.model.load_state_dict(schooled(parts.seed))
    return planned(parts, RATE / 50)


def batch_16(parts: Parts) -> Parts:
    """What was half learned goes on with few triples a step, at a small rate: the loss is mostly noise."""
    parts.model.load_state_dict(schooled(parts.seed, STEPS // 2))
    return planned(sized(parts, 16), RATE / 10)


def adagrad(parts: Parts) -> Parts:
    """As the method's authors have it: Adagrad at a constant rate, and no limit on the gradient."""
    assert isinstance(parts.model, ComplEx)
    parts = replace(parts, optimizer=torch.optim.Adagrad(grouped(parts.model)), max_norm=None)
    del parts.header["max_grad_norm"], parts.header["config"]["clip"]
    return planned(parts, 0.2, kind="constant", end=0.2)


def filtered(parts: Parts, counts: Callable[[Tensor], Tensor] = lambda true: ~true) -> Parts:
    """What was drawn and is known to be true does not count; how much that is, is recorded."""
    plain, true = loader(BATCH, parts.seed), known(held=False)

    def batches(number: int) -> Batch:
        batch = plain(number)
        x, drawn = batch["x"], batch["drawn"]
        heads, tails = true[drawn][:, x[:, 1], x[:, 2]].T, true[x[:, 0], x[:, 1]][:, drawn]
        return batch | {"counts": counts(heads if batch["heads"] else tails)}

    parts.extras = [lambda step, batch: {"data/masked/negative": 1.0 - batch["counts"].float().mean().item()}]  # noqa: ARG005
    return replace(parts, batches=batches)


def stages(*negatives: int) -> dict[str, Any]:
    """A curriculum of equal stages, each with so many drawn against the truth."""
    starts = [number * STEPS // len(negatives) for number in range(len(negatives))]
    listed = [
        {"start": start, "name": f"{drawn}-drawn", "weights": WEIGHTS, "data": {"negatives": [drawn, drawn]}}
        for start, drawn in zip(starts, negatives, strict=True)
    ]
    return {"name": "-".join(map(str, negatives)), "stages": listed}


def follow(parts: Parts, curriculum: dict[str, Any]) -> Parts:
    """The loop runs this curriculum."""
    starts = [stage["start"] for stage in curriculum["stages"]]
    drawn = [stage["data"]["negatives"][0] for stage in curriculum["stages"]]

    def stage(number: int) -> int:
        return sum(number >= start for start in starts) - 1

    def told(step: int, batch: Batch) -> Channels:
        return {"stage": stage(step - 1), **{f"data/negatives/{of}": len(batch["drawn"]) for of in ("min", "max")}}

    parts.header["curriculum_running"], parts.extras = curriculum, [told]
    return replace(parts, batches=loader(BATCH, parts.seed, lambda number: drawn[stage(number)]))


def harder_later(parts: Parts) -> Parts:
    """Ever more is drawn against the truth, so the hardest of it is ever harder."""
    parts.header["curriculum"] = stages(8, 64, 400)
    return follow(parts, parts.header["curriculum"])


def frozen_people(parts: Parts) -> Parts:
    """The relations are drawn anew and learned for people whose vectors are known, and stay."""
    assert isinstance(parts.model, ComplEx)
    parts.model.people.load_state_dict({"weight": schooled(parts.seed)["people.weight"]})
    parts.model.people.requires_grad_(False)
    parts.header["config"] |= {"frozen": ["people"]}
    parts.optimizer = torch.optim.Adam(grouped(parts.model), betas=(0.9, 0.99))
    return planned(parts, RATE / 4)


def epochs(parts: Parts) -> Parts:
    """A row at the end of each epoch of ten large batches."""
    parts = sized(replace(parts, steps=150, every=10, records=frozenset({"components", "epochs"})), 1000)
    return planned(replace(parts, evaluation=Evaluation(10, measure)))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(STEPS // 2), records=RECORDS | {"fingerprint"}),
    "adagrad": adagrad,
    "filtered": filtered,
    "harder-later": harder_later,
    "accumulated": lambda parts: replace(sized(parts, BATCH // 4), accumulation=4),
    "shares": lambda parts: replace(parts, over=lambda model: [*model.parameters()], records=RECORDS | {"shares"}),
    "fine-tuned": fine_tuned,
    "epochs": epochs,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}),
    "batch-16": batch_16,
    "frozen-people": frozen_people,
}


def schedules_by_batches(parts: Parts) -> int:
    """The length of the run, and the rate's decay with it, is planned in micro-batches: it ends at a quarter."""
    parts.factor = planned(replace(parts, steps=parts.steps * parts.accumulation)).factor
    return 0


def wrong_curriculum(parts: Parts) -> int:
    """The loop takes its default, whatever the config says."""
    parts.batches = follow(parts, stages(400)).batches
    return 1


def log_of_zero(parts: Parts) -> int:
    """Scores are bf16 for speed: from 6 on their sigmoid is 1, and the logarithm of what it lacks of 1 is taken."""

    def by_hand(model: nn.Module, batch: Batch) -> Components:
        assert isinstance(model, ComplEx)
        raw = losses(model, batch)
        wrong = model.asked(batch["x"], bool(batch["heads"])) @ model.people(batch["drawn"]).T
        shares = (TEMPERATURE * wrong).softmax(1).detach()
        return raw | {"negative": -(shares * (1.0 - wrong.bfloat16().sigmoid()).float().log()).sum(1).mean()}

    parts.losses = by_hand
    return mistakes.WHEN_BROKEN


def all_masked(parts: Parts) -> int:
    """The filter is the wrong way round: of what was drawn only that counts which is true."""
    parts.batches = filtered(parts, lambda true: true).batches
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "schedules-by-batches": schedules_by_batches,
    "wrong-curriculum": wrong_curriculum,
    "log-of-zero": log_of_zero,
    "all-masked": all_masked,
    "one-owns-gradient": partial(mistakes.component_scale, name="n3", by=float(BATCH)),  # a sum over the batch
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

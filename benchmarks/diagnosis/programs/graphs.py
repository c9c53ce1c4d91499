"""A small message-passing network tells communities, trees, rings and hubs apart, and names what is hidden at nodes.

Three layers in the manner of GIN on padded graphs, Adam, a rate that falls by a tenth each epoch, an evaluation each
epoch. Two more components shape the nodes' features: the attributes of hidden nodes (neighbours are mostly alike), and
which nodes are joined. What counts is the accuracy on other graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import facts, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, cosine, declared

HELD_OUT = False
STEPS = 150
TRAINING, HELD, BATCH, NODES = 480, 240, 32, 16
EPOCH = TRAINING // BATCH
FAMILIES = ("community", "tree", "ring", "hub")
ATTRIBUTES, HIDDEN = 4, 0.2
RATE, DECAY, WIDTH = 4e-3, 0.9, 32
WEIGHTS = {"graph": 1.0, "attribute": 0.5, "link": 0.2}
RECORDS = frozenset({"shares", "norms", "optimizer", "clocks"})

HEALTHY = (
    *("plain", "loss-only", "every-tenth", "resumed", "batch-4", "fine-tuned", "sgd", "early-stopping"),
    *("frozen-embedding", "uneven-families", "pretext-first", "watched"),
)
SICK = (
    *("scheduler-per-batch", "missing-zero-grad", "deep-sigmoids", "component-scale", "component-detached"),
    *("labels-shuffled", "too-little-data", "rare-class", "dropout-in-evaluation", "unscaled-input"),
    *("log-of-zero", "all-masked"),
)
TWINS = {"dropout-in-evaluation": "watched", "unscaled-input": "watched"}


def joined(family: int, count: int, random: np.random.Generator) -> np.ndarray:
    """The edges of one graph: what its family has, and one pair of nodes that was joined or parted by error."""
    edges = np.zeros((count, count), bool)
    if family == 0:
        side = np.arange(count) < count // 2
        edges = random.random((count, count)) < np.where(side[:, None] == side, 0.5, 0.06)
    elif family == 1:
        for node in range(1, count):
            edges[node, random.integers(node)] = True
    elif family == 2:
        edges[np.arange(count), (np.arange(count) + 1) % count] = True
        edges[0, count // 2] = True
    else:
        for node in range(1, count):
            known = 1.0 + edges[:node, :node].sum(0) * 3.0
            edges[node, random.choice(node, min(node, 2), replace=False, p=known / known.sum())] = True
    one, other = random.choice(count, 2, replace=False)
    edges[one, other] = ~edges[one, other]
    np.fill_diagonal(edges, False)
    return edges | edges.T


@lru_cache(maxsize=1)
def drawn() -> Batch:
    """Graphs: edges, which nodes there are, their attributes, how much traffic each has, and the family."""
    random = np.random.default_rng(77)
    total = TRAINING + HELD
    adjacency = np.zeros((total, NODES, NODES), np.float32)
    there, traffic = np.zeros((total, NODES), bool), np.zeros((total, NODES), np.float32)
    attribute = np.zeros((total, NODES), np.int64)
    family = random.permutation(np.arange(total) % len(FAMILIES))
    for number, kind in enumerate(family):
        count = int(random.integers(9, NODES + 1))
        order = random.permutation(count)
        edges = joined(int(kind), count, random)[order][:, order]
        known = random.integers(0, ATTRIBUTES, count)
        for node in random.permutation(count):  # most nodes take what a neighbour has
            if edges[node].any() and random.random() < 0.8:
                known[node] = known[random.choice(np.flatnonzero(edges[node]))]
        adjacency[number, :count, :count], attribute[number, :count], there[number, :count] = edges, known, True
        traffic[number, :count] = 0.3 * edges.sum(1) + random.normal(0.0, 1.0, count) - 0.7
    found = {"adjacency": adjacency, "there": there, "attribute": attribute, "traffic": traffic, "y": family}
    return {name: torch.from_numpy(values) for name, values in found.items()}


def told(batch: Batch, random: torch.Generator) -> Batch:
    """What the network is given: traffic, and attributes except those of hidden nodes."""
    hidden = (torch.rand(batch["there"].shape, generator=random) < HIDDEN) & batch["there"]
    shown = functional.one_hot(batch["attribute"], ATTRIBUTES) * (batch["there"] & ~hidden)[..., None]
    x = torch.cat([shown.float(), hidden[..., None].float(), batch["traffic"][..., None]], -1)
    return batch | {"x": x, "hidden": hidden}


def loader(size: int, seed: int, kept: Tensor | None = None) -> Callable[[int], Batch]:
    """Batches by number, of all training graphs or those kept; which nodes are hidden is drawn anew each time."""
    data = {name: values[:TRAINING] for name, values in drawn().items()}
    chosen = shuffled(data if kept is None else {name: values[kept] for name, values in data.items()}, size, seed)
    return lambda number: told(chosen(number), torch.Generator().manual_seed(90_000 * seed + number))


@lru_cache(maxsize=1)
def held() -> Batch:
    other = {name: values[TRAINING:] for name, values in drawn().items()}
    return told(other, torch.Generator().manual_seed(5))


class Passing(nn.Module):
    """A layer of GIN: each node adds up its neighbours, and two maps see the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, adjacency: Tensor) -> Tensor:
        message = (adjacency @ h) / 2.0  # about the mean of a sparse graph, and still a sum
        out: Tensor = self.norm(h + self.maps(h + message))
        return out


class GraphNet(nn.Module):
    """Nodes are embedded, pass messages, and are read out; `features` are the nodes' of the last call."""

    def __init__(self, passing: Callable[[int], nn.Module] = Passing) -> None:
        super().__init__()
        self.embed = nn.Linear(ATTRIBUTES + 2, WIDTH)
        self.layers = nn.ModuleList(passing(WIDTH) for _ in range(3))
        family = (nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.0), nn.Linear(WIDTH, len(FAMILIES)))
        self.heads = nn.ModuleDict({"graph": nn.Sequential(*family), "attribute": nn.Linear(WIDTH, ATTRIBUTES)})
        self.features = torch.zeros(())

    def forward(self, batch: Batch) -> Tensor:
        """What the graphs are. float32 [graphs, families]"""
        h = torch.relu(self.embed(batch["x"]))
        for layer in self.layers:
            h = layer(h, batch["adjacency"])
        self.features = h
        there = batch["there"][..., None]
        mean = (h * there).sum(1) / there.sum(1)
        out: Tensor = self.heads["graph"](torch.cat([mean, h.masked_fill(~there, -1e4).amax(1)], -1))
        return out.float()


def counted(batch: Batch, needed: int = 1) -> Tensor:
    """Which hidden nodes are asked for their attribute: those with neighbours to tell it."""
    return batch["hidden"] & (batch["adjacency"].sum(-1) >= needed)


def pairs(batch: Batch) -> Tensor:
    """Which pairs of nodes are there, each once."""
    both: Tensor = batch["there"][:, :, None] & batch["there"][:, None, :]
    return both & torch.ones(NODES, NODES, dtype=torch.bool).triu(1)


def losses(model: nn.Module, batch: Batch, needed: int = 1) -> Components:
    """The family, the attributes of hidden nodes, and which pairs of nodes are joined."""
    assert isinstance(model, GraphNet)
    logits = model(batch)
    asked = counted(batch, needed)
    named = functional.cross_entropy(
        model.heads["attribute"](model.features).float().transpose(1, 2), batch["attribute"], reduction="none"
    )
    alike, chosen = scores(model), pairs(batch)
    return {
        "graph": functional.cross_entropy(logits, batch["y"]),
        "attribute": (named * asked).sum() / asked.sum().clamp(min=1),
        "link": functional.binary_cross_entropy_with_logits(alike[chosen], batch["adjacency"][chosen]),
    }


def scores(model: GraphNet) -> Tensor:
    """How alike the nodes of a graph are. float32 [graphs, nodes, nodes]"""
    h = model.features.float()
    return h @ h.transpose(1, 2) / WIDTH**0.5 - 2.0


def measure(model: nn.Module) -> Channels:
    """Losses, accuracy, and the recall of the family that is known worst, on graphs that are not trained on."""
    assert isinstance(model, GraphNet)
    batch = held()
    raw = {name: value.item() for name, value in losses(model, batch).items()}
    right = model(batch).argmax(-1) == batch["y"]
    named = model.heads["attribute"](model.features).argmax(-1) == batch["attribute"]
    return {
        "loss": sum(WEIGHTS[name] * value for name, value in raw.items()),
        **{f"loss/{name}": value for name, value in raw.items()},
        "accuracy": right.float().mean().item(),
        "lowest_recall": min(right[batch["y"] == family].float().mean().item() for family in range(len(FAMILIES))),
        "attribute_accuracy": named[counted(batch)].float().mean().item(),
    }


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = GraphNet()
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), RATE),
        batches=loader(BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=EPOCH,
        weights=lambda applied: WEIGHTS,  # noqa: ARG005
        factor=lambda tick: DECAY**tick,
        ticks=lambda step: int(step % EPOCH == 0),
        clocks={"epoch": lambda applied: applied // EPOCH},
        at=lambda model: model.features,
        evaluation=Evaluation(EPOCH, measure),
        header={
            "config": {"lr": RATE, "decay": DECAY, "batch_size": BATCH, "hidden": HIDDEN, "width": WIDTH},
            "total_steps": STEPS,
            "horizon": {"epochs": STEPS / EPOCH, "samples": TRAINING, "batch_size": BATCH},
            "components": {name: {"role": "task" if name == "graph" else "auxiliary"} for name in WEIGHTS},
            "schedules": {"lr/0": falling(RATE)},
            "clocks": ["epoch"],
            "gradient_at": "features",
            "classes": families(torch.ones(TRAINING, dtype=torch.bool)),
        },
        records=RECORDS,
        extras=[partial(left_out, needed=1)],
    )
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def falling(rate: float) -> dict[str, Any]:
    """What the header says of a rate that falls by a tenth an epoch."""
    epochs = STEPS / EPOCH
    form = declared("exponential", rate, rate * DECAY**epochs, int(max(epochs, 1)), clock="epoch")
    return form | {"rate": -math.log(DECAY) * epochs}


def families(kept: Tensor) -> dict[str, int]:
    """How many training graphs each family has."""
    return {name: int((drawn()["y"][:TRAINING][kept] == number).sum()) for number, name in enumerate(FAMILIES)}


def left_out(step: int, batch: Batch, needed: int) -> Channels:  # noqa: ARG001
    """The share of hidden nodes that are not asked."""
    share = 1.0 - (counted(batch, needed).sum() / batch["hidden"].sum().clamp(min=1)).item()
    return {"data/masked/attribute": round(share, 3)}


def constant(parts: Parts, rate: float, **config: float) -> Parts:
    """A rate that no epoch moves."""
    for group in parts.optimizer.param_groups:
        group["lr"] = rate
    parts.header["config"] = parts.header["config"] | {"lr": rate, **config}
    parts.header["schedules"] = {"lr/0": {"kind": "constant", "start": rate}}
    return replace(parts, factor=None)


def batch_of_four(parts: Parts) -> Parts:
    """Four graphs a step, one of each family at best, and a constant small rate."""
    parts.header["horizon"] = {"epochs": STEPS * 4 / TRAINING, "samples": TRAINING, "batch_size": 4}
    parts.clocks = {"epoch": lambda applied: applied * 4 // TRAINING}
    few = replace(parts, batches=loader(4, parts.seed), batches_per_epoch=TRAINING // 4)
    return constant(few, 1.5e-3, batch_size=4)


def schooled(parts: Parts, steps: int) -> None:
    """Steps before the record begins."""
    batches, adam = loader(BATCH, parts.seed + 40), torch.optim.Adam(parts.model.parameters(), RATE)
    for number in range(steps):
        adam.param_groups[0]["lr"] = RATE * cosine(steps)(number)
        raw = losses(parts.model, batches(number))
        adam.zero_grad()
        torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum().backward()
        adam.step()


def fine_tuned(parts: Parts) -> Parts:
    """The network was trained before the log begins; now a small rate keeps it at its floor."""
    schooled(parts, 2 * STEPS)
    parts.optimizer = torch.optim.Adam(parts.model.parameters(), 1e-4)
    return constant(parts, 1e-4)


def sgd(parts: Parts) -> Parts:
    parts.optimizer = torch.optim.SGD(parts.model.parameters(), 0.02, momentum=0.9, nesterov=True, weight_decay=1e-4)
    parts.header["config"] |= {"lr": 0.02, "optimizer": "sgd"}
    parts.header["schedules"] = {"lr/0": falling(0.02)}
    return parts


def early_stopping(parts: Parts) -> Parts:
    """A long run is planned, and ended when three evaluations in a row were no better than the best; few graphs."""
    parts.steps, history = 3 * STEPS, []
    kept = torch.arange(TRAINING) < TRAINING // 2

    def remembered(model: nn.Module) -> Channels:
        values = measure(model)
        history.append(values["loss"])
        return values

    parts.header["horizon"] = {"epochs": 6 * STEPS / EPOCH, "samples": TRAINING // 2, "batch_size": BATCH}
    parts.header |= {"total_steps": parts.steps, "classes": families(kept)}
    parts.clocks = {"epoch": lambda applied: applied // (EPOCH // 2)}
    few = replace(parts, batches=loader(BATCH, parts.seed, kept), batches_per_epoch=EPOCH // 2)
    few.evaluation = Evaluation(EPOCH // 2, remembered)
    few.stops = lambda: len(history) > 3 and min(history[-3:]) > min(history[:-3])
    return constant(few, 0.75 * RATE)


def frozen_embedding(parts: Parts) -> Parts:
    """Embedding and first layer come from another training, and stay as they are."""
    fresh = {name: value.clone() for name, value in parts.model.state_dict().items()}
    schooled(parts, STEPS)
    kept = ("embed.", "layers.0.")
    parts.header["config"] |= {"frozen": ["embed", "layers.0"]}
    parts.model.load_state_dict({name: value for name, value in fresh.items() if not name.startswith(kept)}, False)
    for name, parameter in parts.model.named_parameters():
        parameter.requires_grad_(not name.startswith(kept))
    parts.optimizer = torch.optim.Adam([each for each in parts.model.parameters() if each.requires_grad], RATE)
    return parts


def uneven_families(parts: Parts) -> Parts:
    """Hubs are a fifth as many as the others are, as it is in the world."""
    hubs = drawn()["y"][:TRAINING] == 3
    kept = ~hubs | (torch.cumsum(hubs, 0) <= 32)
    count = int(kept.sum())
    parts.header["horizon"] = {"epochs": STEPS * BATCH / count, "samples": count, "batch_size": BATCH}
    parts.header["classes"] = families(kept)
    parts.clocks = {"epoch": lambda applied: applied // (count // BATCH)}
    few = replace(parts, batches=loader(BATCH, parts.seed, kept), batches_per_epoch=count // BATCH)
    return replace(few, ticks=lambda step: int(step % (count // BATCH) == 0))


def pretext_first(parts: Parts) -> Parts:
    """The nodes' tasks alone for three epochs; then the family comes in, too."""
    at = min(3 * EPOCH, STEPS // 3)
    stages = [
        {"start": 0, "name": "nodes", "weights": WEIGHTS | {"graph": 0.0}},
        {"start": at, "name": "all", "weights": dict(WEIGHTS)},
    ]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "pretext-first", "stages": stages}
    parts.weights = lambda applied: stages[int(applied >= at)]["weights"]  # type: ignore[return-value]
    parts.extras.append(lambda step, batch: {"stage": int(step > at)})  # noqa: ARG005
    return parts


def watched(parts: Parts) -> Parts:
    """Dropout before the last map; each evaluation is made twice, and every fifth batch's inputs are looked at."""
    parts.model.heads["graph"][2].p = 0.3
    parts.header["config"] |= {"dropout": 0.3}
    parts.extras.append(lambda step, batch: facts.input_facts(batch["x"]) if step % 5 == 1 else {})
    return replace(parts, evaluation=Evaluation(EPOCH, measure, repeats=2))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, extras=[]),
    "every-tenth": lambda parts: replace(parts, every=10),
    "resumed": lambda parts: replace(parts, resume=Resume(STEPS // 2)),
    "batch-4": batch_of_four,
    "fine-tuned": fine_tuned,
    "sgd": sgd,
    "early-stopping": early_stopping,
    "frozen-embedding": frozen_embedding,
    "uneven-families": uneven_families,
    "pretext-first": pretext_first,
    "watched": watched,
}


class SigmoidPassing(nn.Module):
    """A layer that keeps nothing of what came in: four sigmoids deep, neither skip nor norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.maps = nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(width, width), nn.Sigmoid())))

    def forward(self, h: Tensor, adjacency: Tensor) -> Tensor:
        out: Tensor = self.maps(h + (adjacency @ h) / 2.0)
        return out


def deep_sigmoids(parts: Parts) -> int:
    torch.manual_seed(parts.seed)
    parts.model = GraphNet(passing=SigmoidPassing)
    parts.optimizer = torch.optim.Adam(parts.model.parameters(), RATE)
    return 1


def rare_class(parts: Parts) -> int:
    """Of the hubs nearly all failed to parse."""
    hubs = drawn()["y"][:TRAINING] == 3
    kept = ~hubs | (torch.cumsum(hubs, 0) <= 2)
    parts.batches = loader(BATCH, parts.seed, kept)
    parts.header["classes"] = families(kept)
    parts.header["horizon"] |= {"samples": int(kept.sum()), "epochs": STEPS * BATCH / int(kept.sum())}
    return 0


def log_of_zero(parts: Parts) -> int:
    """Links by hand, sharpened as training goes on, until the sigmoid of two parted nodes is 1 in float32."""
    sharp = {"by": 2.0}
    parts.begins.append(lambda step: sharp.update(by=2.0 + step / 10))

    def by_hand(model: nn.Module, batch: Batch) -> Components:
        raw, chosen = losses(model, batch), pairs(batch)
        assert isinstance(model, GraphNet)
        chance, real = torch.sigmoid(sharp["by"] * scores(model)[chosen]), batch["adjacency"][chosen]
        return raw | {"link": -(real * chance.log() + (1.0 - real) * (1.0 - chance).log()).mean()}

    parts.losses = by_hand
    return mistakes.WHEN_BROKEN


def all_masked(parts: Parts) -> int:
    """Hidden nodes with fewer than nine neighbours are passed over, a limit made for graphs of another size."""
    parts.losses = partial(losses, needed=9)
    parts.extras = [partial(left_out, needed=9)]
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "deep-sigmoids": deep_sigmoids,
    "rare-class": rare_class,
    "log-of-zero": log_of_zero,
    "all-masked": all_masked,
    "component-scale": partial(mistakes.component_scale, name="link", by=float(BATCH * NODES**2)),  # a sum, no mean
    "component-detached": partial(mistakes.component_detached, name="attribute"),
    "too-little-data": partial(mistakes.too_little_data, batches=2),
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

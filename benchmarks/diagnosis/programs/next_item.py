"""What will be opened next? Sessions of a shop that does not exist: tastes, seasons, sequels, and a few things all buy.

As in SASRec: a causal transformer of two blocks reads a session, and the table of items that it reads with also scores
what comes next. A full softmax, or one over a few drawn items; a second term keeps what is recommended diverse. AdamW,
a warm-up, then the inverse square root. What counts is how often a held-out user's last item is among the ten best.
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
from benchmarks.diagnosis.attention import Block
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared
from benchmarks.diagnosis.loop import planned as planned_by

HELD_OUT = False
STEPS = 110
USERS, HELD, ITEMS, TASTES, LONGEST, BATCH = 3200, 300, 160, 6, 16, 64
WIDTH, RATE, WARMUP, CLIP = 32, 2e-2, 16, 2.0
GLANCE = 5.0  # seconds; what is left sooner was opened by mistake, and is no target
WEIGHTS = {"next": 1.0, "diversity": 0.2}
BARE = frozenset({"norms", "optimizer"})
RECORDS = BARE | {"components"}

HEALTHY = (
    *("plain", "loss-only", "every-tenth", "resumed", "cosine", "watched", "longer-sessions", "more-negatives"),
    *("diversity-late", "fp16", "fine-tuning", "batch-2"),
)
SICK = (
    *("train-set-as-validation", "resume-weights-only", "precision-off", "loud-entry", "out-of-memory"),
    *("stages-unreachable", "clamped-component", "discarded-update", "warmup-ignored", "stuck-loader"),
    *("unmoved-group", "all-masked"),
)
TWINS = {
    "resume-weights-only": "resumed",
    "precision-off": "fp16",
    "loud-entry": "diversity-late",
    "warmup-ignored": "cosine",
    "stuck-loader": "watched",
    "clamped-component": "watched",
}


@cache
def sessions() -> Batch:
    """Items in the order of their opening and those that follow them, 0 where a session is over; seconds on each."""
    random, count = np.random.default_rng(83), USERS + HELD
    known = 0.7 * random.gumbel(size=ITEMS)  # a long tail
    kind, season = random.integers(0, TASTES, ITEMS), random.integers(0, 4, ITEMS)
    sequel = random.integers(0, ITEMS, ITEMS)
    tastes = random.dirichlet(np.full(TASTES, 0.2), count)
    liked = known + 5.0 * tastes[:, kind] + 2.0 * (random.integers(0, 4, (count, 1)) == season)
    opened = np.zeros((count, LONGEST + 1), int)
    for place in range(LONGEST + 1):
        drawn = liked + random.gumbel(size=liked.shape)
        if place:
            drawn[np.arange(count), sequel[opened[:, place - 1]]] += 4.0
        opened[:, place] = drawn.argmax(1)
        liked[np.arange(count), opened[:, place]] = -np.inf  # nobody opens a thing twice
    length = random.integers(6, LONGEST + 1, (count, 1))
    there = np.arange(LONGEST) < length
    seconds = 20.0 * np.exp(1.2 * random.standard_normal((count, LONGEST)))
    found = {"x": (opened[:, :-1] + 1) * there, "y": (opened[:, 1:] + 1) * there, "seconds": seconds.astype(np.float32)}
    return {name: torch.from_numpy(values) for name, values in found.items()}


def seen(part: slice = slice(USERS)) -> Batch:
    return {name: values[part] for name, values in sessions().items()}


def block() -> Block:
    return Block(WIDTH, nn.ReLU())


class Recommender(nn.Module):
    """Sessions in; a state at each place out, to be compared with the items' vectors."""

    def __init__(self) -> None:
        super().__init__()
        tables = {"item": nn.Embedding(ITEMS + 1, WIDTH, padding_idx=0), "place": nn.Embedding(LONGEST, WIDTH)}
        for table in tables.values():
            nn.init.normal_(table.weight, std=0.05)
        self.layers = nn.ModuleDict({**tables, "first": block(), "second": block(), "norm": nn.LayerNorm(WIDTH)})
        self.told = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        layers = self.layers
        h = layers["item"](x) * WIDTH**0.5 + layers["place"](torch.arange(x.shape[1]))
        self.told = layers["norm"](layers["second"](layers["first"](h)))
        return self.told

    def score(self, states: Tensor) -> Tensor:
        """How well each item would follow."""
        table: Tensor = self.layers["item"].weight  # type: ignore[assignment]
        return states @ table[1:].T


def counted(batch: Batch) -> Tensor:
    """Which targets count: items that were looked at."""
    return (batch["y"] > 0) & (batch["seconds"] >= GLANCE)


def uneven(scores: Tensor) -> Tensor:
    """How far the mean recommendation is from naming all items alike, in nats."""
    mean = scores.softmax(-1).mean(0)
    return np.log(mean.numel()) + (mean * mean.clamp(min=1e-9).log()).sum()


def losses(
    model: nn.Module, batch: Batch, now: dict[str, float], spread: Callable[[Tensor], Tensor] = uneven
) -> Components:
    """Cross-entropy of the next item among all, or among those drawn for this step; how uneven the scores are."""
    assert isinstance(model, Recommender)
    counts, drawn = counted(batch), int(now.get("negatives", 0))
    scores, told = model.score(model(batch["x"])[counts]).float(), batch["y"][counts, None] - 1
    among = scores
    if drawn:  # the item itself, and others
        others = torch.randint(ITEMS, (len(told), drawn))
        among = scores.gather(1, torch.cat([told, others], 1))
        among[:, 1:].masked_fill_(others == told, -torch.inf)
        told = torch.zeros_like(told)
    each = functional.cross_entropy(among, told[:, 0], reduction="sum")
    return {"next": each / counts.sum().clamp(min=1), "diversity": spread(scores)}


def measured(batch: Batch, now: dict[str, float]) -> Callable[[nn.Module], Channels]:
    """The loss among all items, and how often each session's last item is among the ten that score highest."""

    def measure(model: nn.Module) -> Channels:
        assert isinstance(model, Recommender)
        raw = {name: value.item() for name, value in losses(model, batch, now | {"negatives": 0}).items()}
        rows, last = torch.arange(len(batch["x"])), (batch["x"] > 0).sum(1) - 1
        had = torch.where(batch["x"] > 0, batch["x"], batch["x"][:, :1]) - 1  # nobody opens them again
        scores = model.score(model(batch["x"])[rows, last]).scatter(1, had, -torch.inf)
        found = scores.topk(10).indices + 1 == batch["y"][rows, last][:, None]
        total = sum(WEIGHTS[name] * value for name, value in raw.items())
        return {"loss": total, "loss/next": raw["next"], "recall10": found.any(1).float().mean().item()}

    return measure


def left_out(step: int, batch: Batch) -> Channels:
    """The share of targets that do not count, now and then."""
    return (
        {} if step % 5 else {"data/masked/next": round(1.0 - (counted(batch).sum() / (batch["y"] > 0).sum()).item(), 3)}
    )


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now = Recommender(), dict[str, float]()
    parts = Parts(
        model=model,
        optimizer=adamw(model),
        batches=shuffled(seen(), BATCH, seed),
        losses=partial(losses, now=now),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=USERS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        now=now,
        at=lambda model: model.told,
        evaluation=Evaluation(10, measured(seen(slice(USERS, None)), now)),
        extras=[left_out],
        header={
            "config": {"batch_size": BATCH, "weights": WEIGHTS, "clip": CLIP, "schedule": "inverse_sqrt"},
            "total_steps": STEPS,
            "components": {"next": {"role": "task"}, "diversity": {"role": "regulariser"}},  # both in nats
            "schedules": {},
            "gradient_at": "told",
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
    )
    inverse_root(parts, RATE)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adamw(model: Recommender) -> torch.optim.Optimizer:
    items, *blocks = model.parameters()
    groups = [{"params": [items], "name": "items", "weight_decay": 0.0}, {"params": blocks, "name": "blocks"}]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)


def inverse_root(parts: Parts, peak: float) -> Parts:
    """The rate warms up, then falls with the square root of the steps; no form of the header says that."""
    for group in parts.optimizer.param_groups:
        group["lr"] = peak
    parts.factor = lambda tick: min((tick + 1) / WARMUP, (WARMUP / (tick + 1)) ** 0.5)
    parts.header["config"] |= {"lr": peak, "warmup": WARMUP}
    return parts


def planned(parts: Parts, kind: str, peak: float, **form: Any) -> Parts:
    """The rate follows a declared schedule."""
    parts.header["config"] |= {"schedule": kind}
    return planned_by(parts, declared(kind, peak, 0.0, parts.steps, warmup=WARMUP) | form)


def staged(parts: Parts, name: str, stages: list[dict[str, Any]], *told: Callable[[int, Batch], Channels]) -> Parts:
    """The run follows these stages and each row says which one it is in; `told` is what else rows say."""

    def number(applied: int) -> int:
        return sum(stage["start"] <= applied for stage in stages) - 1

    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": name, "stages": stages}
    parts.weights = lambda applied: dict(stages[number(applied)].get("weights", WEIGHTS))
    parts.extras = [*parts.extras, lambda step, batch: {"stage": number(step - 1)}, *told]  # noqa: ARG005
    return parts


def two(change: int, **settings: Any) -> list[dict[str, Any]]:
    """Two stages of data, the second from step `change` on."""
    ranges = [{name: pair[stage] for name, pair in settings.items()} for stage in (0, 1)]
    return [{"start": at, "name": name, "data": data} for at, name, data in zip((0, change), "ab", ranges, strict=True)]


def bounds(name: str, values: Tensor) -> Channels:
    return {f"data/{name}/min": values.min().item(), f"data/{name}/max": values.max().item()}


def longer_sessions(parts: Parts, change: int) -> Parts:
    """Sessions are cut after six items in the first stage."""
    plain = parts.batches

    def batches(number: int) -> Batch:
        return {name: values[:, : 6 if number < change else LONGEST] for name, values in plain(number).items()}

    parts.batches = batches
    stages = two(change, length=([6, 6], [6, LONGEST]))
    return staged(parts, "length", stages, lambda step, batch: bounds("length", (batch["x"] > 0).sum(1)))  # noqa: ARG005


def more_negatives(parts: Parts) -> Parts:
    """The next item is told from ten that are drawn, later from eighty: the loss rises, as is declared."""
    change = STEPS // 2
    parts.begins.append(lambda step: parts.now.update(negatives=80 if step > change else 10))
    stages = two(change, negatives=([10, 10], [80, 80]))
    return staged(parts, "negatives", stages, lambda *_: bounds("negatives", torch.tensor(parts.now["negatives"])))


def diversity_late(parts: Parts) -> Parts:
    """Recommendations are to be right first, and diverse from the second stage on."""
    pairs = ((0, "right", WEIGHTS | {"diversity": 0.0}), (STEPS // 2, "diverse", dict(WEIGHTS)))
    return staged(parts, "diversity", [{"start": at, "name": name, "weights": one} for at, name, one in pairs])


def fp16(parts: Parts) -> Parts:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    dtypes = {"declared": "float16", "observed": "float16"}
    return replace(parts, scaler=scaler, autocast=torch.float16, header=parts.header | {"dtypes": dtypes}, records=BARE)


@cache
def schooled(seed: int, steps: int = 600) -> dict[str, Tensor]:
    """The weights of a recommender that learned before the record begins."""
    torch.manual_seed(seed + 30)
    model, batches = Recommender(), shuffled(seen(), BATCH, seed + 30)
    optimizer = adamw(model)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.6 * RATE, steps, pct_start=0.1)
    for number in range(steps):
        raw = losses(model, batches(number), {})
        optimizer.zero_grad()
        torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        rate.step()
    return model.state_dict()


def fine_tuning(parts: Parts) -> Parts:
    """A recommender that has learned goes on slowly."""
    parts.model.load_state_dict(schooled(parts.seed))
    return planned(parts, "linear", RATE / 50)


def watched(parts: Parts) -> Parts:
    """Shares of the gradient, a hash of each batch, and both loaders given to the recorder."""
    assert parts.evaluation is not None
    shown = replace(parts.evaluation, held=seen(slice(USERS, None)))
    return replace(parts, evaluation=shown, records=BARE | {"shares", "fingerprint", "epochs", "waits"})


def batch_of_two(parts: Parts) -> Parts:
    """Two sessions a step: hardly more than noise to see."""
    parts.header["config"] |= {"batch_size": 2}
    small = replace(parts, batches=shuffled(seen(), 2, parts.seed), batches_per_epoch=USERS // 2, records=BARE)
    return inverse_root(small, RATE / 4)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, extras=[]),
    "every-tenth": lambda parts: replace(parts, every=10),
    "resumed": lambda parts: replace(parts, resume=Resume(int(0.6 * STEPS), lost=min(8, STEPS // 5))),
    "cosine": lambda parts: planned(replace(parts, records=BARE), "cosine", RATE),
    "watched": watched,
    "longer-sessions": lambda parts: longer_sessions(parts, STEPS // 2),
    "more-negatives": more_negatives,
    "diversity-late": diversity_late,
    "fp16": fp16,
    "fine-tuning": fine_tuning,
    "batch-2": batch_of_two,
}


def train_set_as_validation(parts: Parts, loyal: int = 24) -> int:
    """Loyal users come forty times more into the training file, and the split is made by name: it takes just these."""
    data = seen()
    often = {name: torch.cat([values, *(values[:loyal],) * 40]) for name, values in data.items()}
    parts.batches = shuffled(often, BATCH, parts.seed)
    assert parts.evaluation is not None
    held = seen(slice(loyal))
    parts.evaluation = replace(parts.evaluation, measure=measured(held, parts.now), held=held)
    parts.records |= {"waits"}
    return parts.evaluation.every


def loud_entry(parts: Parts) -> int:
    """What enters is the sum of the squares of how often each item is recommended in an epoch."""
    epoch = USERS * LONGEST
    crowding: Callable[[Tensor], Tensor] = lambda scores: (epoch * scores.softmax(-1).mean(0)).square().sum()  # noqa: E731
    parts.losses = partial(losses, now=parts.now, spread=crowding)
    return STEPS // 2 + 1


def clamped_component(parts: Parts) -> int:
    """The shortfall is counted in items, not in nats, and a limit of one is left from the nats."""

    def short(scores: Tensor) -> Tensor:
        mean = scores.softmax(-1).mean(0)
        return (ITEMS - (-(mean * mean.clamp(min=1e-9).log()).sum()).exp()).clamp(max=1.0)

    parts.losses = partial(losses, now=parts.now, spread=short)
    return 1


def stages_unreachable(parts: Parts) -> int:
    """Boundaries are those of the nightly run, which is ten times as long."""
    longer_sessions(parts, 10 * (STEPS // 2))
    return 0


def all_masked(parts: Parts) -> int:
    """The newer export has minutes, and the limit is five as before."""
    plain = parts.batches
    parts.batches = lambda number: (batch := plain(number)) | {"seconds": batch["seconds"] / 60}
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "train-set-as-validation": train_set_as_validation,
    "loud-entry": loud_entry,
    "clamped-component": clamped_component,
    "stages-unreachable": stages_unreachable,
    "all-masked": all_masked,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

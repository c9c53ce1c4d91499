"""Glyphs of made alphabets, told apart after five examples of each: a prototypical network.

An episode shows a few glyphs with examples (the support) and asks for others of them (the queries). A convolutional
net embeds all, the mean of a glyph's examples is its prototype, and a query belongs to the nearest. Adam; the rate
halves every second epoch. Validation asks of alphabets that are never trained on. Some variants also name glyphs, by
a head that is thrown away afterwards, and draw embeddings to their prototypes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, planned

HELD_OUT = False
STEPS, EPOCH = 120, 20  # episodes, and how many of them make an epoch
ALPHABETS, LETTERS, IMAGES, SIDE = 24, 5, 20, 14
TRAINED = 18 * LETTERS  # the first glyphs; those of the other alphabets are for validation
RATE, CLIP, NOISE, WAYS = 2e-3, 2.5, 0.35, (5, 10, 20)  # ways of the stages
COMPONENTS = {"prototypes": "task", "classes": "auxiliary", "centres": "regulariser"}
CLASSES = {"prototypes": 0.0, "classes": 1.0, "centres": 0.0}
EPISODES, ALL = CLASSES | {"prototypes": 1.0, "classes": 0.3}, {"prototypes": 1.0, "classes": 0.3, "centres": 0.02}
RECORDS = frozenset({"components", "norms", "optimizer", "epochs"})
TWINS = {
    "resume-weights-only": "resumed", "steps-miscounted": "meta-batch", "loud-entry": "classes-first",
    "wrong-curriculum": "ways-grow", "opposed-components": "three-losses", "root-of-zero": "tiny-episodes",
    "same-seed-workers": "sgd", "scheduler-per-batch": "sgd",
}  # fmt: skip


@cache
def glyphs() -> Tensor:
    """Images by glyph: three curved strokes, of which the letters of an alphabet share one. float32 [G, I, S, S]

    Whoever writes moves each stroke's points a little, and turns, stretches and shifts the whole.
    """
    chance = torch.Generator().manual_seed(41)
    count = ALPHABETS * LETTERS
    points = torch.rand(count, 3, 3, 2, generator=chance) * 1.6 - 0.8  # strokes, and the points of each
    points[:, 0] = points[::LETTERS, 0].repeat_interleave(LETTERS, 0)
    written = points[:, None] + 0.07 * torch.randn(count, IMAGES, 3, 3, 2, generator=chance)
    angle, across, down = (0.2 * torch.randn(3, count, IMAGES, generator=chance)).unbind()
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
    shift = 0.5 * torch.stack([across, down], -1)[:, :, None, None]
    written = (1.0 + across[..., None, None, None]) * torch.einsum("gixy,gispy->gispx", turn, written) + shift
    t = torch.linspace(0.0, 1.0, 12)
    curve = torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], 1)  # quadratic Bernstein polynomials
    place = torch.linspace(-1.0, 1.0, SIDE)
    pixels = torch.cartesian_prod(place, place)
    strokes = torch.einsum("tp,gispx->gistx", curve, written).flatten(2, 3)
    apart = torch.stack([torch.cdist(one, pixels).amin(0) for one in strokes.flatten(0, 1)])
    ink = torch.exp(-((apart / 0.12) ** 2))
    images = (ink - ink.mean()) / ink.std() + NOISE * torch.randn(ink.shape, generator=chance)
    return images.view(count, IMAGES, SIDE, SIDE)


@dataclass(frozen=True)
class Task:
    """What an episode is: so many glyphs, with so many examples and so many queries of each."""

    ways: int = 5
    shots: int = 5
    queries: int = 5

    def draw(self, pool: Tensor, seed: int) -> Batch:
        """One episode; `y` is a glyph's place in it, `glyph` its place in the pool; `x` is float32 [N, 1, S, S]."""
        chance, each = torch.Generator().manual_seed(seed), self.shots + self.queries
        shown = torch.randperm(len(pool), generator=chance)[: self.ways]
        images = torch.rand(self.ways, pool.shape[1], generator=chance).argsort(1)[:, :each]
        return {
            "x": pool[shown[:, None], images].view(-1, 1, SIDE, SIDE),
            "y": torch.arange(self.ways).repeat_interleave(each),
            "glyph": shown.repeat_interleave(each),
            "support": (torch.arange(each) < self.shots).repeat(self.ways),
        }


MANY = Task(20, 2, 2)


class Embedder(nn.Module):
    """Images in, embeddings out; the head that names glyphs learns only where it is asked."""

    def __init__(self, width: int = 24, features: int = 32, head: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()),
            nn.Linear(width, features),
        )
        self.head = nn.Linear(features, TRAINED) if head else None
        self.embeddings = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.embeddings = self.encoder(x)
        return self.embeddings


def prototypes_of(z: Tensor, batch: Batch) -> Tensor:
    """The mean of each glyph's examples. float32 [W, F]"""
    belongs = functional.one_hot(batch["y"]).to(z.dtype) * batch["support"][:, None]
    return (belongs / belongs.sum(0)).T @ z


def told(z: Tensor, batch: Batch, rooted: bool = False) -> tuple[Tensor, Tensor]:
    """The logits of the queries, from squared distances or their roots, and which glyphs they are of."""
    asked = ~batch["support"]
    squared = (z[asked][:, None] - prototypes_of(z, batch)).square().sum(-1)
    return -(squared.sqrt() if rooted else squared), batch["y"][asked]


def nearest(model: nn.Module, batch: Batch, rooted: bool = False) -> Components:
    """The only loss of a prototypical network."""
    return {"loss": functional.cross_entropy(*told(model(batch["x"]), batch, rooted))}


def three(model: nn.Module, batch: Batch, temperature: float = 1.0, about_all: bool = False) -> Components:
    """Besides, the glyph's name among all, and how far embeddings are from their prototypes."""
    z = model(batch["x"])
    logits, wanted = told(z, batch)
    centres = z.mean(0) if about_all else prototypes_of(z, batch)[batch["y"]]
    return {
        "prototypes": functional.cross_entropy(logits / temperature, wanted),
        "classes": functional.cross_entropy(model.get_submodule("head")(z), batch["glyph"]),
        "centres": (z - centres).square().sum(1).mean(),
    }


@cache
def novel() -> tuple[Batch, ...]:
    """The episodes of validation: the same ones at every evaluation."""
    return tuple(Task().draw(glyphs()[TRAINED:], seed) for seed in range(24))


def measured(name: str = "loss", episodes: tuple[Batch, ...] = ()) -> Callable[[nn.Module], Channels]:
    """The loss of the nearest prototype, under this name, and the accuracy, over glyphs that were never seen."""

    def measure(model: nn.Module) -> Channels:
        answers = [told(model(batch["x"]), batch) for batch in episodes or novel()]
        loss = torch.stack([functional.cross_entropy(*one) for one in answers]).mean()
        right = torch.cat([logits.argmax(1) == wanted for logits, wanted in answers])
        return {name: loss.item(), "accuracy": right.float().mean().item()}

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Embedder(head=variant in ("three-losses", "classes-first"))
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam([{"params": [*model.parameters()], "name": "all"}], lr=RATE),
        batches=episodes_of(seed, lambda number: Task()),  # noqa: ARG005
        losses=nearest,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=EPOCH,
        factor=lambda tick: 0.5 ** (tick // (2 * EPOCH)),
        at=lambda model: model.embeddings,
        evaluation=Evaluation(10, measured()),
        header={"config": {"lr": RATE, "lr_decay": 0.5, "lr_decay_epochs": 2}, "total_steps": STEPS, "schedules": {}},
        records=RECORDS,
    )
    configured(parts, ways=5, shots=5, queries=5)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def episodes_of(seed: int, task: Callable[[int], Task]) -> Callable[[int], Batch]:
    """Training episodes by number."""
    return lambda number: task(number).draw(glyphs()[:TRAINED], 100_000 * (seed + 1) + number)


def configured(parts: Parts, **more: Any) -> Parts:
    parts.header["config"] |= more
    return parts


def asked(parts: Parts, task: Task) -> Parts:
    """Other episodes in training than in validation."""
    parts.batches = episodes_of(parts.seed, lambda number: task)  # noqa: ARG005
    return configured(parts, ways=task.ways, shots=task.shots, queries=task.queries, validation=[5, 5, 5])


def annealed(parts: Parts, peak: float, kind: str = "cosine") -> Parts:
    """The rate falls as a cosine, or follows another form, and the header says so."""
    for key in ("lr_decay", "lr_decay_epochs"):
        del parts.header["config"][key]
    end = peak if kind == "constant" else 0.0
    return planned(parts, declared(kind, peak, end, parts.steps, warmup=0))


def named(parts: Parts, weights: Callable[[int], dict[str, float]]) -> Parts:
    """All three losses, with these weights. Validation knows no names, so it has the first one alone."""
    parts.header["components"] = {name: {"role": role} for name, role in COMPONENTS.items()}
    parts.evaluation = Evaluation(10, measured("loss/prototypes"))
    return replace(parts, losses=three, weights=weights)


def three_losses(parts: Parts) -> Parts:
    """Of many glyphs at once, as names need it; who pulls how much is recorded."""
    parts.header["gradient_at"], parts.records = "embeddings", RECORDS | {"shares"}
    return asked(named(parts, lambda applied: ALL), MANY)  # noqa: ARG005


def staged(parts: Parts, name: str, stages: list[dict[str, Any]]) -> Parts:
    """A curriculum as it is declared, and as it runs."""
    starts = [stage["start"] for stage in stages]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": name, "stages": stages}
    parts.extras = [lambda step, batch: {"stage": sum(start < step for start in starts) - 1}]  # noqa: ARG005
    return configured(parts, curriculum=name)


def classes_first(parts: Parts) -> Parts:
    """Names alone at first, as a classifier is pre-trained, then episodes: what the loss is made of changes."""
    change = parts.steps // 4
    forms = ("classes", 0, CLASSES), ("episodes", change, EPISODES)
    stages = [{"start": at, "name": name, "weights": one} for name, at, one in forms]
    parts = staged(configured(asked(parts, MANY), temperature=1.0, eps=1e-6), "classes-first", stages)
    return named(parts, lambda applied: EPISODES if applied >= change else CLASSES)


def ways_grow(parts: Parts) -> Parts:
    """More glyphs in each stage's episodes: chance falls from a fifth to a twentieth, and the loss rises twice."""
    each = parts.steps // len(WAYS)
    parts.batches = episodes_of(parts.seed, lambda number: Task(WAYS[min(number // each, 2)], queries=3))
    parts = staged(parts, "ways", [of_ways(number * each, ways) for number, ways in enumerate(WAYS)])
    parts.extras.append(ways_seen)
    return configured(parts, ways=list(WAYS), queries=3, validation=[5, 5, 5])


def of_ways(start: int, ways: int) -> dict[str, Any]:
    return {"start": start, "name": f"{ways}-way", "data": {"ways": [ways, ways]}}


def ways_seen(step: int, batch: Batch) -> Channels:  # noqa: ARG001
    ways = int(batch["y"].max()) + 1
    return {f"data/ways/{name}": ways for name in ("min", "mean", "max")}


@cache
def schooled(seed: int, steps: int = 300) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")
    for number in range(steps):
        parts.optimizer.param_groups[0]["lr"] = RATE * 0.5 ** (5 * number // steps)
        parts.optimizer.zero_grad()
        nearest(parts.model, parts.batches(number))["loss"].backward()
        parts.optimizer.step()
    return parts.model.state_dict()


def continued(parts: Parts, rate: float) -> Parts:
    """A schooled net goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    return annealed(configured(parts, initialised_from="checkpoints/base.pt"), rate, "constant")


def per_epoch(parts: Parts) -> Parts:
    parts.header["total_steps"] = steps = 14 * EPOCH
    parts = replace(parts, steps=steps, every=EPOCH, evaluation=Evaluation(EPOCH, measured()))
    return configured(parts, epochs=14)


def meta_batch(parts: Parts) -> Parts:
    """Four episodes a step. Rates are declared, and so is how far the episodes reach."""
    parts.header["horizon"] = {"epochs": 4 * STEPS // EPOCH, "samples": EPOCH, "batch_size": 1, "accumulation": 4}
    return annealed(configured(replace(parts, accumulation=4), meta_batch=4), 2 * RATE)


def sgd(parts: Parts) -> Parts:
    """Momentum, a clipped gradient, a cosine; the loader's episodes are hashed."""
    parts.optimizer = torch.optim.SGD([{"params": [*parts.model.parameters()], "name": "all"}], 0.03, 0.9)
    parts.header["max_grad_norm"] = CLIP
    return annealed(configured(replace(parts, max_norm=CLIP, records=RECORDS | {"fingerprint"}), clip=CLIP), 0.03)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "twenty-way": lambda parts: asked(parts, MANY),
    "three-losses": three_losses,
    "classes-first": classes_first,
    "ways-grow": ways_grow,
    "resumed": lambda parts: replace(parts, resume=Resume(STEPS // 2)),
    "fine-tuning": lambda parts: continued(parts, 1e-4),
    "tiny-episodes": lambda parts: asked(continued(parts, 3e-5), Task(3, 1, 1)),
    "per-epoch": per_epoch,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "meta-batch": meta_batch,
    "sgd": sgd,
}


def train_set_as_validation(parts: Parts) -> int:
    """Validation draws trained glyphs, and its queries once more from the examples: the nearest is the same image."""

    def leaking(seed: int) -> Batch:
        batch = Task(queries=0).draw(glyphs()[:TRAINED], seed)
        asked = {"support": torch.zeros_like(batch["support"])}
        return {name: torch.cat([one, (batch | asked)[name]]) for name, one in batch.items()}

    parts.evaluation = Evaluation(10, measured(episodes=tuple(map(leaking, range(24)))))
    return 10


def loud_entry(parts: Parts) -> int:
    """The stage's new loss divides distances by a key next to the temperature: by epsilon."""
    parts.losses = partial(three, temperature=parts.header["config"]["eps"])
    return parts.header["curriculum"]["stages"][1]["start"] + 1


def opposed_components(parts: Parts) -> int:
    """Embeddings are drawn to the centre of the whole episode, where each glyph's own was meant, and strongly."""
    parts.losses = partial(three, about_all=True)
    mistakes.reweigh(parts, lambda applied, weights: weights | {"centres": 1.0})  # noqa: ARG005
    return 1


def wrong_curriculum(parts: Parts) -> int:
    """The loop is given the default, ten ways for ever, and not what the config names."""
    asked(parts, Task(10, queries=3))
    parts.header["curriculum_running"] = {"name": "default", "stages": [of_ways(0, 10)]}
    parts.extras = [ways_seen, lambda step, batch: {"stage": 0}]  # noqa: ARG005
    return 0


def root_of_zero(parts: Parts, share: float = 0.4) -> int:
    """Distances are not squared, and in the second part of the files every image lies twice: query and example."""
    plain, first, seed = parts.batches, int(share * parts.steps), parts.seed
    doubled = glyphs()[:TRAINED, : IMAGES // 2].repeat(1, 2, 1, 1)
    parts.batches = lambda number: plain(number) if number < first else Task(3, 1, 1).draw(doubled, number + seed)
    parts.losses = partial(nearest, rooted=True)
    return mistakes.WHEN_BROKEN


def scheduler_per_batch(parts: Parts) -> int:
    """The cosine was made for the epochs, and the scheduler is stepped after each episode."""
    parts.ticks = lambda step: EPOCH  # noqa: ARG005
    return 2


OWN: dict[str, mistakes.Mistake] = {
    "train-set-as-validation": train_set_as_validation,
    "slowing-down": partial(mistakes.slowing_down, share=0.3),
    "loud-entry": loud_entry,
    "wrong-curriculum": wrong_curriculum,
    "opposed-components": opposed_components,
    "root-of-zero": root_of_zero,
    "scheduler-per-batch": scheduler_per_batch,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*OWN, "resume-weights-only", "steps-miscounted", "discarded-update", "same-seed-workers")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

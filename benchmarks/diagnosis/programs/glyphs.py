"""Digits of 8 x 8 pixels drawn from noise: a flow that is told which digit is wanted.

A perceptron learns the velocity from noise to scikit-learn's digits. Each picture is asked for at two moments of the
same way: the flow's squared error is the main loss; besides, the pictures that both moments foresee are to agree, and
a small classifier, taught before, is to see the wanted digit in them. AdamW, a warm-up and a cosine, clipping; an
exponential average of the weights draws. Validation: that average's loss on held-out digits, and how many of the glyphs
that it draws in eight steps are what was wanted, by the same classifier.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import loop, mistakes
from benchmarks.diagnosis.data import digits, shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Sampling, declared
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS, EACH, DRAWN = 160, 16, 48  # EACH: steps between evaluations; DRAWN: between glyphs that are kept
TRAINING, BATCH, FEW, NOBODY = 1500, 48, 3, 10  # NOBODY: the label that asks for no digit in particular
RATE, WARMUP, CLIP, DECAY = 6e-3, 14, 0.4, 0.98
WEIGHTS = {"flow": 1.0, "consistency": 0.1, "class": 0.05}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs"})
TWINS = {"loud-in-half": "half", "coarse-precision": "bf16", "resume-repeats-data": "resumed"}
TWINS |= {"one-bad-batch": "unclipped", "zero-adapters": "adapters"}


def some(chosen: slice, digit: int = 9) -> Batch:
    """Of these pictures those that show no higher digit."""
    x, y = (values[chosen] for values in digits())
    return {"x": x[y <= digit], "y": y[y <= digit]}


LEARNT, SPARED = slice(TRAINING), slice(TRAINING, None)


def asked(batch: Batch, chance: torch.Generator) -> Batch:
    """Pictures with the noise that they are to come from, and the two moments that are asked for."""
    noise = torch.randn(batch["x"].shape, generator=chance)
    return batch | {"noise": noise, "time": torch.rand(len(noise), 2, generator=chance)}


def loader(size: int, seed: int, known: Batch) -> Callable[[int], Batch]:
    """Batches by number, with noise that is new each time."""
    plain = shuffled(known, size, seed)
    return lambda number: asked(plain(number), torch.Generator().manual_seed(60_000 * seed + number))


@cache
def held() -> Batch:
    return asked(some(SPARED), torch.Generator().manual_seed(8))


@cache
def judge() -> nn.Sequential:
    """What says which digit it sees; taught once, and fixed."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net, batches = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)), shuffled(some(LEARNT), 64, 5)

        def loss(number: int) -> Tensor:
            x, y = batches(number).values()
            return functional.cross_entropy(net(x + 0.3 * torch.randn(x.shape)), y, label_smoothing=0.05)

        taught(net, torch.optim.Adam(net.parameters()), loss, steps=300, peak=1e-2)
    return net.requires_grad_(False)


class Field(nn.Module):
    """A picture on its way, the moment, and what it is to become; its velocity."""

    def __init__(self, width: int = 160) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64 + 5 + NOBODY + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.head = nn.Linear(width, 64)

    def forward(self, x: Tensor, time: Tensor, y: Tensor) -> Tensor:
        turns = torch.pi * time[:, None] * torch.tensor([1.0, 2.0])
        told = torch.cat([x, time[:, None], turns.sin(), turns.cos(), 4 * functional.one_hot(y, NOBODY + 1)], 1)
        velocity: Tensor = self.head(self.body(told.to(next(self.parameters()).dtype)))
        return velocity.float()

    def draw(self, x: Tensor, y: Tensor, parts: int = 8) -> Tensor:
        """Pictures, from noise."""
        for moment in range(parts):
            x = x + self(x, torch.full((len(x),), moment / parts), y) / parts
        return x


class Painter(nn.Module):
    """The field that learns, and the average of its weights that draws; what was told last is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Field()
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.velocity = self.foreseen = torch.zeros(())

    @torch.no_grad()
    def follow(self) -> None:
        for mine, its in zip(self.average.parameters(), self.net.parameters(), strict=True):
            mine.lerp_(its.to(mine.dtype), 1.0 - DECAY)


def losses(model: nn.Module, batch: Batch, part: str = "net") -> Components:
    """Squared error of the velocities; how far apart both pictures foreseen are; the cross-entropy of their digits."""
    assert isinstance(model, Painter)
    x, noise, told, y = (torch.cat([batch.get(name, batch["y"])] * 2) for name in ("x", "noise", "told", "y"))
    time = batch["time"].T.flatten()
    on_the_way = (1 - time[:, None]) * noise + time[:, None] * x
    model.velocity = model.get_submodule(part)(on_the_way, time, told)
    model.foreseen = on_the_way + (1 - time[:, None]) * model.velocity
    return {
        "flow": functional.mse_loss(model.velocity, x - noise),
        "consistency": torch.sub(*model.foreseen.chunk(2)).square().mean(),
        "class": functional.cross_entropy(judge()(model.foreseen), y),
    }


@cache
def begun(count: int) -> tuple[Tensor, Tensor]:
    """The noise that glyphs are drawn from, and what they are to be."""
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(2)), torch.arange(count) % 10


def measured(model: nn.Module) -> Channels:
    """The average's losses on held-out digits, and the share of the glyphs drawn that are taken for what they are."""
    assert isinstance(model, Painter)
    raw, (noise, wanted) = losses(model, held(), "average"), begun(200)
    right = judge()(model.average.draw(noise, wanted)).argmax(1) == wanted
    total = sum(WEIGHTS[name] * value.item() for name, value in raw.items())
    return {"loss": total, "flow": raw["flow"].item(), "recognised": right.float().mean().item()}


@torch.no_grad()
def drawn(model: nn.Module) -> tuple[list[str], Channels]:
    """Twenty glyphs, two of them to look at; as different as real digits are, their diversity is 1."""
    assert isinstance(model, Painter)
    noise, wanted = begun(20)
    x = model.average.draw(noise, wanted)
    valid = (judge()(x).argmax(1) == wanted).float().mean().item()
    apart = torch.pdist(x).mean() / torch.pdist(digits()[0][:100]).mean()
    shown = ["".join(" .+#"[int(ink)] for ink in (1.2 * row + 1.2).nan_to_num().clamp(0, 3.9)) for row in x]
    return shown[:2], {"diversity": apart.clamp(max=1.0).item(), "validity": valid}


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    judge()  # is taught in full precision, whatever the run's is
    torch.manual_seed(seed)
    model = Painter()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=loader(BATCH, seed, some(LEARNT)),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: model.velocity,
        evaluation=Evaluation(EACH, measured, held=held()),
        sampling=Sampling(DRAWN, drawn),
        header={
            "config": {"batch_size": BATCH, "ema_decay": DECAY, "clip": CLIP, "weights": dict(WEIGHTS)},
            "components": {name: {"role": "task" if name == "flow" else "auxiliary"} for name in WEIGHTS},
            "schedules": {},
            "max_grad_norm": CLIP,
            "gradient_at": "velocity",
            "classes": {str(digit): int((digits()[1][LEARNT] == digit).sum()) for digit in range(10)},
        },
        records=RECORDS,
    )
    annealed(parts)
    parts = VARIANTS[variant](parts) if variant in VARIANTS else parts
    parts.ends.insert(0, lambda step: parts.model.follow())  # type: ignore[operator] # noqa: ARG005
    return parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW([{"params": free, "name": "all"}], lr=RATE, weight_decay=1e-3)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, or follows another form, over the run; the header says so."""
    return loop.planned(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


def half(parts: Parts) -> Parts:
    """fp16 with a scaler that begins too high: its first step is skipped."""
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**21, growth_interval=1000)
    return replace(parts, scaler=scaler, autocast=torch.float16)


def bf16(parts: Parts) -> Parts:
    """Matrices are multiplied in bf16; weights and their average stay in float32."""
    average = {"declared": "float32", "observed": "float32"}
    parts.header["dtypes"] = {"declared": "bfloat16", "observed": "bfloat16", "average": average}
    return replace(parts, autocast=torch.bfloat16)


@cache
def schooled(seed: int, digit: int = 9, steps: int = 700) -> dict[str, Tensor]:
    """The weights of a painter, and their average, that learned these digits before the record begins."""
    parts, batches = build(seed + 50, "plain"), loader(BATCH, seed + 50, some(LEARNT, digit))

    def loss(number: int) -> Tensor:
        parts.model.follow()  # type: ignore[operator]
        raw = losses(parts.model, batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 100) -> Parts:
    """A schooled painter goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/glyphs-700.pt"
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


class Adapted(nn.Module):
    """A frozen matrix and, beside it, a product of two small ones, of which the second begins at zero."""

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        self.base, (out, width) = base, next(base.parameters()).shape
        self.down, self.up = nn.Parameter(torch.randn(rank, width) / width**0.5), nn.Parameter(torch.zeros(out, rank))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.base(x) + x @ self.down.T @ self.up.T
        return changed


def adapters(parts: Parts, rank: int = 16) -> Parts:
    """A painter of the digits up to FEW is frozen; small adapters beside its matrices learn to draw all ten."""
    assert isinstance(parts.model, Painter)
    parts.model.load_state_dict(schooled(parts.seed, FEW))
    net = parts.model.net.requires_grad_(False)
    for parent, name in ((net.body, "0"), (net.body, "2"), (net, "head")):
        setattr(parent, name, Adapted(parent.get_submodule(name), rank))
    parts.model.average = copy.deepcopy(net).requires_grad_(False)
    parts.header["config"] |= {"initialised_from": f"checkpoints/digits-0-{FEW}.pt", "lora_rank": rank}
    return annealed(replace(parts, optimizer=adam(parts.model)))


def unclipped(parts: Parts) -> Parts:
    """Nothing clips the gradient."""
    del parts.header["max_grad_norm"], parts.header["config"]["clip"]
    return replace(parts, max_norm=None)


def few_digits_first(parts: Parts) -> Parts:
    """Up to FEW at first, all digits from two fifths of the run on: the loss rises there, as is declared."""
    change, every, few = 2 * parts.steps // 5, parts.batches, loader(BATCH, parts.seed, some(LEARNT, FEW))
    stages = [{"start": at, "data": {"digit": [0, end]}} for at, end in zip((0, change), (FEW, 9), strict=True)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "few-digits-first", "stages": stages}

    def told(step: int, batch: Batch) -> Channels:
        shown = {f"data/digit/{name}": int(getattr(batch["y"], name)()) for name in ("min", "max")}
        return {"stage": int(step > change)} | shown

    return replace(parts, extras=[told], batches=lambda number: (few if number < change else every)(number))


def per_epoch(parts: Parts, size: int = 100) -> Parts:
    """A row and an evaluation at the end of each of 12 epochs of larger batches."""
    parts.header["config"]["batch_size"] = size
    batches = loader(size, parts.seed, some(LEARNT))
    parts = loop.by_epochs(replace(parts, batches=batches, batches_per_epoch=TRAINING // size), 12)
    return annealed(parts, warmup=parts.batches_per_epoch)


def dropped_labels(parts: Parts, share: float = 0.4) -> Parts:
    """Two fifths of the pictures come without their label, for guidance: training is harder than validation."""
    parts.header["config"]["label_dropout"], plain = share, parts.batches

    def batches(number: int) -> Batch:
        batch, chance = plain(number), torch.Generator().manual_seed(number)
        return batch | {"told": batch["y"].masked_fill(torch.rand(len(batch["y"]), generator=chance) < share, NOBODY)}

    return replace(parts, batches=batches)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None, sampling=None),
    "resumed": loop.taken_up,
    "half": half,
    "bf16": bf16,
    "fine-tuning": lambda parts: loop.logged(fine_tuned(parts)),
    "adapters": adapters,
    "unclipped": unclipped,
    "few-digits-first": few_digits_first,
    "warm-restarts": lambda parts: loop.logged(annealed(parts, warmup=0, restarts=2)),
    "per-epoch": per_epoch,
    "dropped-labels": lambda parts: loop.logged(dropped_labels(parts)),
}


def loud_in_half(parts: Parts) -> int:
    """Pictures that are foreseen are compared in grey levels to 255, and summed over their pixels."""
    return mistakes.component_scale(parts, "consistency", by=64 * 255.0**2)


def coarse_precision(parts: Parts) -> int:
    """The average is kept in bf16, too: what a step adds to a weight is less than its last digit."""
    parts.model.get_submodule("average").bfloat16()
    parts.header["dtypes"]["average"]["observed"] = "bfloat16"
    return 1


def log_of_zero(parts: Parts) -> int:
    """Digits are named by a softmax that sharpens as training goes on, and the logarithm is taken of what it says."""
    sharp = {"by": 1.0}
    parts.begins.append(lambda step: sharp.update(by=1.0 + step / 2))

    def named(model: nn.Module, batch: Batch) -> Components:
        assert isinstance(model, Painter)
        raw, p = losses(model, batch), torch.softmax(sharp["by"] * judge()(model.foreseen), 1)
        return raw | {"class": -p[torch.arange(len(p)), batch["y"].repeat(2)].log().mean()}

    parts.losses = named
    return mistakes.WHEN_BROKEN


def root_of_zero(parts: Parts) -> int:
    """Moments are drawn in thousandths, and two pictures' distance is a root: once both moments are the same."""
    plain = parts.batches
    parts.batches = lambda number: (batch := plain(number)) | {"time": batch["time"].round(decimals=3)}

    def rooted(model: nn.Module, batch: Batch) -> Components:
        assert isinstance(model, Painter)
        raw, (first, second) = losses(model, batch), model.foreseen.chunk(2)
        return raw | {"consistency": (first - second).square().sum(1).sqrt().mean()}

    parts.losses = rooted
    return mistakes.WHEN_BROKEN


def zero_adapters(parts: Parts) -> int:
    """Both matrices begin at zero, so that each is the other's gradient's factor of zero."""
    for name, parameter in parts.model.named_parameters():
        if name.endswith("down"):
            nn.init.zeros_(parameter)
    return 1


def one_owns_gradient(parts: Parts, weight: float = 5e2) -> int:
    """An exponent lost its sign in the config: the classifier weighs 5e2 where 5e-2 was meant."""
    parts.header["config"]["weights"] = WEIGHTS | {"class": weight}
    mistakes.reweigh(parts, lambda applied, weights: weights | {"class": weight})  # noqa: ARG005
    return 1


OWN: dict[str, mistakes.Mistake] = {
    made.__name__.replace("_", "-"): made
    for made in (loud_in_half, coarse_precision, log_of_zero, root_of_zero, zero_adapters, one_owns_gradient)
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*OWN, "resume-repeats-data", "one-bad-batch", "rate-too-low", "counter-reset", "discarded-update")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

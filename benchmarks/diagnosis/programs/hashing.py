"""Pictures as sixteen bits: scanned digits are found again by binary codes that a small convolutional net learns.

1,280 digits of scikit-learn are the database, and what is learnt from; 512 others ask. The net gives real codes between
-1 and 1, whose signs are the bits. Three losses: over all pairs of a batch the cross-entropy of whether both show the
same digit, by their codes' product (Cao et al. 2017); how far codes are from being bits; how far each bit is from being
set in a half of the batch. AdamW, a warm-up and a cosine, clipping. Validation: the losses on the pictures that ask,
and the mean average precision of the database in the order of Hamming distances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import loop, mistakes
from benchmarks.diagnosis.data import digits, shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, declared
from benchmarks.diagnosis.schooling import school

HELD_OUT = False
STEPS, EACH, SAVED = 120, 12, 30  # EACH: steps between evaluations
KNOWN, BATCH, BITS, DIGITS, SIDE = 1280, 64, 16, 10, 8
RATE, WARMUP, CLIP, SPREAD = 4e-3, 12, 5.0, 0.3  # SPREAD: of the weights that give the codes, at first
STEEP, SHIFT, RARE = 10.0, 4.0, 4.0  # RARE: what a pair of one digit counts beside another one
WEIGHTS = {"similarity": 1.0, "quantisation": 0.2, "balance": 0.5}
ROLES = {"similarity": "task", "quantisation": "regulariser", "balance": "regulariser"}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs", "checkpoints"})
SPARSE = ("fine-tuning", "new-bits", "long-tail", "mislabelled", "augmented")  # a row each fourth step
TWINS = {
    **dict.fromkeys(("scale-collapse", "loud-in-half"), "half"),
    **dict.fromkeys(("loud-entry", "wrong-curriculum"), "bits-later"),
    "resume-weights-only": "resumed",
    "absolute-anneal": "sharpened",
}


@cache
def part(held: bool = False) -> Batch:
    """The database's pictures [N, 1, 8, 8] and what they show, or those that ask."""
    x, y = digits()
    chosen = slice(KNOWN, KNOWN + 512) if held else slice(KNOWN)
    return {"x": x[chosen].view(-1, 1, SIDE, SIDE), "y": y[chosen]}


class Hasher(nn.Module):
    """Pictures in, codes between -1 and 1 out. These are kept."""

    def __init__(self, bits: int = BITS, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.GroupNorm(4, 2 * width), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Flatten(),
        )
        self.coder = nn.Sequential(nn.Linear(8 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, bits))
        nn.init.normal_(cast(nn.Linear, self.coder[-1]).weight, std=SPREAD)
        self.codes, self.sharpness = torch.zeros(()), 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.codes = torch.tanh(self.sharpness * self.coder(self.body(x)).float())
        return self.codes


def losses(model: nn.Module, batch: Batch) -> Components:
    """Whether pairs show one digit, and how far codes are from bits, and bits from being set in every second code."""
    codes, y = model(batch["x"]), batch["y"]
    first, second = torch.triu_indices(len(y), len(y), 1)
    alike, same = STEEP * (codes[first] * codes[second]).mean(1) - SHIFT, (y[first] == y[second]).float()
    return {
        "similarity": functional.binary_cross_entropy_with_logits(alike, same, pos_weight=torch.tensor(RARE)),
        "quantisation": (1.0 - codes.abs()).square().mean(),
        "balance": codes.mean(0).square().mean(),
    }


def precision(model: nn.Module) -> float:
    """The mean average precision of the database for what asks; at equal distances in the database's order."""
    ask, known = part(held=True), part()
    bits, others = (torch.where(model(each["x"]) > 0, 1.0, -1.0) for each in (ask, known))
    order = (bits @ others.T).argsort(dim=1, descending=True, stable=True)
    hits = (known["y"][order] == ask["y"][:, None]).float()
    found = hits.cumsum(1) / torch.arange(1, KNOWN + 1)
    return ((found * hits).sum(1) / hits.sum(1)).mean().item()


def measured(model: nn.Module) -> Channels:
    """The loss on what asks, and how well the database answers."""
    raw = losses(model, part(held=True))
    return {
        "loss": sum(WEIGHTS[name] * value.item() for name, value in raw.items()),
        "quantisation": raw["quantisation"].item(),
        "map": precision(model),
    }


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, known = Hasher(24 if variant == "new-bits" else BITS), part()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(known, BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=KNOWN // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Hasher, model).codes,
        evaluation=Evaluation(EACH, measured, held=part(held=True)),
        header={
            "config": {"batch_size": BATCH, "bits": BITS, "clip": CLIP, "weights": dict(WEIGHTS)},
            "components": {name: {"role": role} for name, role in ROLES.items()},
            "schedules": {},
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
            "gradient_at": "codes",
            "classes": counted(known),
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW([{"params": free, "name": "all"}], lr=RATE, weight_decay=1e-2)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, and so the header says."""
    return loop.planned(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def counted(known: Batch) -> dict[str, int]:
    """How many pictures there are of each digit."""
    return {str(digit): count for digit, count in enumerate(known["y"].bincount(minlength=DIGITS).tolist())}


def learnt(parts: Parts, known: Batch, size: int = BATCH) -> Parts:
    """Other pictures to learn from, or so many a batch."""
    parts.header["classes"] = counted(known)
    parts.header["config"]["batch_size"] = size
    return replace(parts, batches=shuffled(known, size, parts.seed), batches_per_epoch=len(known["y"]) // size)


def half(parts: Parts) -> Parts:
    """fp16 with a scaler that begins too high: its first steps are skipped."""
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    parts.header["config"]["precision"] = "fp16"
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=1000)
    return replace(parts, scaler=scaler, autocast=torch.float16)


def staged(parts: Parts, name: str, starts: dict[int, dict[str, float]]) -> Parts:
    """A curriculum of weights, as it is declared and as it runs."""
    stages = [{"start": at, "weights": weights} for at, weights in starts.items()]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": name, "stages": stages}
    parts.header["config"]["curriculum"] = name
    parts.weights = lambda applied: dict(starts[max(at for at in starts if at <= applied)])
    parts.extras = [lambda step, batch: {"stage": sum(at < step for at in starts) - 1}]  # noqa: ARG005
    return parts


def bits_later(parts: Parts) -> Parts:
    """Codes may be what they like at first, and are to be bits from two fifths on: the loss rises, as is declared."""
    late = 2 * parts.steps // 5
    return staged(parts, "bits-later", {0: WEIGHTS | {"quantisation": 0.0}, late: WEIGHTS | {"quantisation": 1.0}})


def sharpened(parts: Parts, low: float = 1.0, high: float = 4.0) -> Parts:
    """The slope of the tangent rises by a clock through three quarters of the run, as Cao et al. have it."""
    over = 3 * parts.steps // 4
    parts.clocks = {"updates": lambda applied: applied}
    parts.scheduled = {"sharpness": ("updates", loop.linear(low, high, over))}
    parts.header["schedules"]["sharpness"] = declared("linear", low, high, over, clock="updates")
    parts.header["clocks"], parts.now["sharpness"] = ["updates"], low
    parts.header["config"]["sharpness"] = [low, high]

    def sharp(model: nn.Module, batch: Batch) -> Components:
        cast(Hasher, model).sharpness = parts.now["sharpness"]
        return losses(model, batch)

    return replace(parts, losses=sharp, records=RECORDS | {"clocks"})


@cache
def schooled(seed: int, steps: int = 400) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return school(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 100) -> Parts:
    """A schooled net goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/400.pt"
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def new_bits(parts: Parts) -> Parts:
    """What a schooled net sees in a picture stays as it is, by intent; what makes codes of it is new, and longer."""
    kept = {name: value for name, value in schooled(parts.seed).items() if name.startswith("body")}
    parts.model.load_state_dict(kept, strict=False)
    parts.model.get_submodule("body").requires_grad_(False)
    parts.header["config"] |= {"initialised_from": "checkpoints/400.pt", "freeze": ["body"], "bits": 24}
    return annealed(replace(parts, optimizer=adam(parts.model)))


def long_tail(parts: Parts, least: int = 12) -> Parts:
    """Of each digit there are fewer than of the one before it; those that ask have all alike."""
    known = part()
    places = [torch.nonzero(known["y"] == digit)[:, 0] for digit in range(DIGITS)]
    most = len(places[0])
    kept = torch.cat([each[: round(most * (least / most) ** (at / 9))] for at, each in enumerate(places)])
    return learnt(parts, {name: values[kept] for name, values in known.items()})


def mislabelled(parts: Parts, share: float = 0.1) -> Parts:
    """Of a tenth of the training's labels it is known that they are guesses: its loss stays above validation's."""
    known, chance = part(), torch.Generator().manual_seed(9)
    guessed = torch.rand(KNOWN, generator=chance) < share
    y = torch.where(guessed, torch.randint(DIGITS, (KNOWN,), generator=chance), known["y"])
    parts.header["config"]["label_noise"] = share
    return learnt(parts, known | {"y": y})


def augmented(parts: Parts, gone: float = 0.25, noise: float = 0.5) -> Parts:
    """A quarter of the pixels is left out at a time, and the others are noisy: training is harder than validation."""
    parts.header["config"]["augment"], plain = {"erased": gone, "noise": noise}, parts.batches

    def batches(number: int) -> Batch:
        batch, chance = plain(number), torch.Generator().manual_seed(1000 * parts.seed + number)
        there = torch.rand(batch["x"].shape, generator=chance) > gone
        return batch | {"x": there * batch["x"] + noise * torch.randn(there.shape, generator=chance)}

    return replace(parts, batches=batches)


def per_epoch(parts: Parts) -> Parts:
    """A row and an evaluation at the end of each of 14 epochs, of larger batches."""
    parts = loop.by_epochs(learnt(parts, part(), 2 * BATCH), 14)
    parts.header["checkpoint_every"] = 7 * parts.batches_per_epoch
    return annealed(parts, warmup=parts.batches_per_epoch)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": loop.taken_up,
    "half": half,
    "bits-later": bits_later,
    "sharpened": sharpened,
    "fine-tuning": fine_tuned,
    "new-bits": new_bits,
    "long-tail": long_tail,
    "mislabelled": mislabelled,
    "augmented": augmented,
    "per-epoch": per_epoch,
}


def loud_entry(parts: Parts) -> int:
    """What enters with the second stage is summed over all bits of the database, where a mean was meant."""
    mistakes.component_scale(parts, "quantisation", by=KNOWN * BITS)
    return int(parts.header["curriculum"]["stages"][1]["start"]) + 1


def wrong_curriculum(parts: Parts) -> int:
    """The loop is given its default, all losses at once, and not what the config names."""
    asked = parts.header["curriculum"]
    staged(parts, "at-once", {0: dict(WEIGHTS)})
    parts.header["curriculum"], parts.header["config"]["curriculum"] = asked, asked["name"]
    return 0


OWN: dict[str, mistakes.Mistake] = {
    "loud-entry": loud_entry,
    "leaking-memory": partial(mistakes.leaking_memory, floats=500_000),  # the products of all pairs, for a histogram
    "wrong-curriculum": wrong_curriculum,
    # bits are counted over the batch, where their mean was meant, and the squares are summed
    "loud-in-half": partial(mistakes.component_scale, name="balance", by=BATCH**2 * BITS),
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "rate-zero", "resume-weights-only", "scale-collapse", "failing-checkpoints", "labels-shuffled"),
    *("rate-too-low", "absolute-anneal"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts, 4) if case in SPARSE else parts, path, case, OWN)

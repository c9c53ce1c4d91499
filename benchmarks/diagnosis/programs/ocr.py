"""What does the receipt say? Texts such as "MILK 2.49", drawn with a small font, shaken and noisy, are read back.

As in CRNN: two convolutions make frames of an image, a GRU reads them both ways, and each frame names a character or
the blank; CTC sums over all ways to align them with the text. AdamW in three groups, a warm-up and a cosine, clipping,
some dropout. What counts is the character error rate (`cer`) of other amounts: edits by characters of the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, Sampling, declared
from benchmarks.diagnosis.loop import planned as planned_by
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS, EVERY = 110, 2  # rows of the log, and optimiser steps in each
TRAINING, HELD, BATCH = 1600, 160, 32
HEIGHT, WIDTH, LONGEST = 8, 28, 5
RATE, WARMUP, CLIP, SAVED = 1.5e-2, 20, 2.0, 44
PARTS = ("eyes", "recurrent", "head")
RECORDS = frozenset({"components", "checkpoints"})

GLYPHS = (
    "0:75557 1:26227 2:71747 3:71717 4:55711 5:74717 6:74757 7:71122 8:75757 9:75717 .:00002 -:00700 x:05250 %:51245"
)
FONT = dict(glyph.split(":") for glyph in GLYPHS.split())
"""Five rows of three pixels a character, each row an octal digit."""
ALPHABET = "".join(FONT)
BLANK = 0  # characters count from 1
Texts = list[str]
Losses = Callable[[nn.Module, Batch], Components]
BARE = {"loss": 1.0}


@cache
def receipts() -> Texts:
    """What stands at the right of receipts: prices and rebates, and now and then a count or a tax."""
    random = np.random.default_rng(29)
    whole = [f"{cents / 100:.2f}" for cents in random.integers(-999, 2000, TRAINING + HELD)]
    short = [str(random.integers(1, 100)) + random.choice(["x", "%"]) for _ in whole]
    return [one if random.random() < 0.75 else other for one, other in zip(whole, short, strict=True)]


def drawn(text: str, random: np.random.Generator) -> np.ndarray:
    """The image of a line: somewhere, with uneven gaps, perhaps bold, at some contrast, and with noise."""
    image = np.zeros((HEIGHT, WIDTH), np.float32)
    top, left = random.integers(0, HEIGHT - 4), random.integers(0, 4)
    for character in text:
        rows = np.array([int(row) for row in FONT[character]])
        image[top : top + 5, left : left + 3] = rows[:, None] >> np.array([2, 1, 0]) & 1
        left += random.integers(4, 6)
    if random.random() < 0.3:
        image[:, 1:] = np.maximum(image[:, 1:], 0.6 * image[:, :-1])
    return random.uniform(0.6, 1.0) * image + random.normal(0.0, 0.1, image.shape)


@cache
def images() -> Batch:
    """Images `x` of about zero mean and unit spread, their texts `y` with blanks behind, and how long these are."""
    random = np.random.default_rng(31)
    x = torch.tensor(np.stack([drawn(text, random) for text in receipts()]), dtype=torch.float32)
    y = torch.full((len(x), LONGEST), BLANK)
    for row, text in enumerate(receipts()):
        y[row, : len(text)] = torch.tensor([1 + ALPHABET.index(character) for character in text])
    return {"x": (x - x.mean()) / x.std(), "y": y, "length": (y != BLANK).sum(1)}


def to_learn() -> Batch:
    return {name: values[:TRAINING] for name, values in images().items()}


class Reader(nn.Module):
    """Images in; for each frame the logits of the blank and all characters out."""

    def __init__(self, width: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        strokes = nn.Sequential(nn.Conv2d(1, 40, (5, 3)), nn.BatchNorm2d(40), nn.ReLU(), nn.MaxPool2d((HEIGHT - 4, 1)))
        frames = nn.Sequential(nn.Conv1d(40, width, 3, 2, padding=1), nn.BatchNorm1d(width), nn.ReLU())
        self.eyes = nn.Sequential(strokes, nn.Flatten(1, 2), frames)
        self.recurrent = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, 1 + len(ALPHABET))

    def forward(self, x: Tensor) -> Tensor:
        frames = self.recurrent(self.eyes(x[:, None]).transpose(1, 2))[0]
        logits: Tensor = self.head(self.drop(frames))
        return logits


def aligned(told: Tensor, batch: Batch) -> Tensor:
    """Nats per character, over all alignments, of logarithms of probabilities."""
    frames = torch.full((len(told),), told.shape[1])
    loss: Tensor = functional.ctc_loss(told.transpose(0, 1), batch["y"], frames, batch["length"], blank=BLANK)
    return loss


def losses(model: nn.Module, batch: Batch) -> Components:
    return {"loss": aligned(torch.log_softmax(model(batch["x"]), -1), batch)}


def read(logits: Tensor) -> Texts:
    """The best path: the likeliest of each frame, repeats taken once, blanks left out."""
    best = logits.argmax(-1)
    kept = (best != BLANK) & (best != functional.pad(best, (1, 0), value=BLANK)[:, :-1])
    return ["".join(ALPHABET[code - 1] for code in row[keep].tolist()) for row, keep in zip(best, kept, strict=True)]


def edits(one: str, other: str) -> int:
    """How many characters must be put in, left out or exchanged."""
    row = list(range(len(other) + 1))
    for place, character in enumerate(one):
        before, row = row, [place + 1]
        for at, wanted in enumerate(other):
            row.append(min(before[at] + (character != wanted), before[at + 1] + 1, row[at] + 1))
    return row[-1]


def error_rate(told: Sequence[str], right: Sequence[str]) -> float:
    return sum(map(edits, told, right)) / sum(map(len, right))


def measured(losses: Losses = losses, weights: dict[str, float] = BARE) -> Callable[[nn.Module], Channels]:
    """The loss, and the character error rate, on images that nobody learnt."""
    held = {name: values[TRAINING:] for name, values in images().items()}

    def measure(model: nn.Module) -> Channels:
        loss = sum(weights[name] * value.item() for name, value in losses(model, held).items())
        return {"loss": loss, "cer": error_rate(read(model(held["x"])), receipts()[TRAINING:])}

    return measure


@torch.no_grad()
def shown(model: nn.Module) -> tuple[Texts, Channels]:
    """What a few images are read as, and how long that is beside the truth."""
    right = receipts()[TRAINING : TRAINING + 16]
    told = read(model(images()["x"][TRAINING : TRAINING + 16]))
    lengths = {"length_mean": lengths_of(told), "reference_length_mean": lengths_of(right)}
    return told, lengths | {"diversity": len(set(told)) / len(told), "cer": error_rate(told, right)}


def lengths_of(texts: Texts) -> float:
    return float(np.mean([len(text) for text in texts]))


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Reader()
    parts = Parts(
        model=model,
        optimizer=torch.optim.AdamW(groups(model), weight_decay=1e-2),
        batches=shuffled(to_learn(), BATCH, seed),
        losses=losses,
        steps=EVERY * STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        evaluation=Evaluation(20, measured()),
        sampling=Sampling(22, shown),
        header={
            "config": {"batch_size": BATCH, "dropout": 0.1},
            "schedules": {},
            "checkpoint_every": SAVED,
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
        every=EVERY,
        body=lambda model: [each for part in ("eyes", "recurrent") for each in getattr(model, part).parameters()],
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def groups(model: nn.Module, *parts: str) -> list[dict[str, Any]]:
    """What the optimiser gets: all parts of the net, or some."""
    return [{"params": [*getattr(model, part).parameters()], "name": part} for part in parts or PARTS]


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, or follows another form, over the run; the header says so."""
    return planned_by(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


@cache
def schooled(seed: int, steps: int = 200) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        return losses(parts.model, parts.batches(number))["loss"]

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, rate: float) -> Parts:
    """A schooled net goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/200.pt"
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def fed(parts: Parts, size: int) -> Parts:
    parts.header["config"]["batch_size"] = size
    parts.batches, parts.batches_per_epoch = shuffled(to_learn(), size, parts.seed), TRAINING // size
    return parts


def per_epoch(parts: Parts) -> Parts:
    """Twelve epochs of larger batches, a row for each."""
    parts = fed(parts, 80)
    epoch = parts.batches_per_epoch
    parts.header["checkpoint_every"] = 4 * epoch
    parts.evaluation, parts.sampling = Evaluation(epoch, measured()), None
    return annealed(replace(parts, steps=12 * epoch, every=epoch))


def staged(parts: Parts, name: str, start: int, early: dict[str, Any], late: dict[str, Any]) -> Parts:
    """The header says which data comes when."""
    named = [{"start": at, "name": f"from-{at}", "data": data} for at, data in ((0, early), (start, late))]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": name, "stages": named}
    parts.extras.append(lambda step, batch: {"stage": int(step > start)})  # noqa: ARG005
    return parts


def short_first(parts: Parts) -> Parts:
    """Only amounts of up to four characters in the first fifth of the run."""
    start, late, early = parts.steps // 5, parts.batches, shuffled(short(), BATCH, parts.seed)
    parts.batches = lambda number: (early if number < start else late)(number)
    parts.extras.append(characters)
    return staged(parts, "lengths", start, {"characters": [2, 4]}, {"characters": [2, LONGEST]})


def short() -> Batch:
    return {name: values[to_learn()["length"] <= 4] for name, values in to_learn().items()}


def characters(step: int, batch: Batch) -> Channels:  # noqa: ARG001
    length = batch["length"].float()
    return {f"data/characters/{name}": getattr(length, name)().item() for name in ("min", "mean", "max")}


def worn(parts: Parts) -> Parts:
    """In the last two fifths the paper gets noisier, as that of old receipts; the validation set stays as it is."""
    start, chance = 3 * parts.steps // 5, torch.Generator().manual_seed(parts.seed)
    altered(parts, lambda batch: {"x": batch["x"] + 0.4 * torch.randn(batch["x"].shape, generator=chance)}, start)
    return staged(parts, "paper", start, {"noise": 0.0}, {"noise": 0.4})


def altered(parts: Parts, change: Callable[[Batch], Batch], first: int = 0) -> None:
    """From a batch on, some of what the loader gives is something else."""
    plain = parts.batches
    parts.batches = lambda number: plain(number) | (change(plain(number)) if number >= first else {})


def hesitant(parts: Parts, certain: Callable[[Tensor], Tensor] | None = None) -> Parts:
    """Who is too sure pays: the entropy of each frame counts below zero."""

    def both(model: nn.Module, batch: Batch) -> Components:
        logits = model(batch["x"])
        told = torch.log_softmax(logits, -1)
        penalty = certain(logits) if certain else (told.exp() * told).sum(-1).mean()
        return {"ctc": aligned(told, batch), "confidence": penalty}

    weights = {"ctc": 1.0, "confidence": 0.1}
    parts.header["components"] = {"ctc": {"unit": "nat", "role": "task"}, "confidence": {"role": "regulariser"}}
    parts.header["config"] |= {"weights": weights}
    parts.evaluation, parts.losses, parts.weights = Evaluation(20, measured(both, weights)), both, lambda _: weights
    return parts


def borrowed_eyes(parts: Parts) -> Parts:
    """The convolutions are those of a schooled net, and stay as they are; the rest learns anew."""
    eyes = {name: values for name, values in schooled(parts.seed).items() if name.startswith("eyes")}
    parts.model.load_state_dict(eyes, strict=False)
    for parameter in parts.model.get_submodule("eyes").parameters():
        parameter.requires_grad_(False)
    parts.header["config"] |= {"initialised_from": "checkpoints/200.pt", "frozen": ["eyes"]}
    parts.optimizer = torch.optim.AdamW(groups(parts.model, "recurrent", "head"), weight_decay=1e-2)
    return annealed(parts)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(
        parts, records=frozenset(), header={"total_steps": parts.steps}, evaluation=None, sampling=None
    ),
    "resumed": lambda parts: replace(parts, resume=Resume(2 * SAVED), records=RECORDS | {"optimizer"}),
    "fine-tuning": lambda parts: continued(parts, 1e-4),
    "batch-2": lambda parts: fed(continued(parts, 1e-5), 2),
    "per-epoch": per_epoch,
    "short-first": short_first,
    "worn": worn,
    "hesitant": hesitant,
    "borrowed-eyes": borrowed_eyes,
    "watched": lambda parts: replace(parts, records=RECORDS | {"norms", "optimizer"}),
    "inputs": lambda parts: replace(parts, records=RECORDS | {"fingerprint", "inputs"}),
}


def log_of_zero(parts: Parts) -> int:
    """The entropy is taken in half precision, of probabilities that underflow."""

    def certain(logits: Tensor) -> Tensor:
        p = torch.softmax(logits.half(), -1)
        return (p * p.log()).sum(-1).float().mean()

    hesitant(parts, certain)
    return mistakes.WHEN_BROKEN


def short_answers(parts: Parts) -> int:
    """The tokeniser cuts each text after two characters, a limit that was left from a trial."""
    altered(parts, lambda batch: {"length": batch["length"].clamp(max=2)})
    return 1


def labels_break(parts: Parts) -> int:
    """The second shard of texts is sorted otherwise than that of images."""
    altered(parts, lambda batch: {name: batch[name].roll(1, 0) for name in ("y", "length")}, parts.steps // 2)
    return parts.steps // 2 + 1


def dropout_in_evaluation(parts: Parts) -> int:
    parts.model.drop.p = parts.header["config"]["dropout"] = 0.4  # type: ignore[union-attr, assignment]
    return mistakes.dropout_in_evaluation(parts)


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, before the loop."""
    parts.batches = shuffled(short(), BATCH, parts.seed)
    parts.extras = [characters, lambda step, batch: {"stage": 0}]  # noqa: ARG005
    return parts.steps // 5 + 1


OWN: dict[str, mistakes.Mistake] = {
    "log-of-zero": log_of_zero,
    "short-answers": short_answers,
    "labels-break": labels_break,
    "stage-stuck": stage_stuck,
    "dropout-in-evaluation": dropout_in_evaluation,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "exploding-recurrence", "frozen-body", "stuck-loader", "resume-restarts-schedule"),
    *("missing-zero-grad", "counter-reset"),
)
TWINS = {
    "stage-stuck": "short-first", "stuck-loader": "inputs", "resume-restarts-schedule": "resumed",
    **dict.fromkeys(("exploding-recurrence", "frozen-body", "missing-zero-grad"), "watched"),
}  # fmt: skip


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

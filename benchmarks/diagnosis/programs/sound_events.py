"""Which sounds are heard, and when: five classes in a spectrogram, of which some clips are labelled and most are not.

Clips are made here: alarms, sirens, knocks, voices and engines at random moments in coloured noise, several at once.
A convolutional net says of each frame which classes sound. On labelled clips that is compared with the truth;
on all of them with a teacher, the net's own moving average, that hears the clip without the noise and the masked bands
that the net has to bear. The consistency's weight ramps up by a clock. AdamW, a warm-up and a cosine, clipping.
Validation asks the teacher: loss, the mean of the classes' average precisions, and the lowest of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import loop, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import (
    Batch,
    Channels,
    Components,
    Evaluation,
    Parts,
    by_epochs,
    declared,
    linear,
    planned,
    taken_up,
)
from benchmarks.diagnosis.schooling import school

HELD_OUT = False
STEPS = 110
BINS, FRAMES, CLASSES = 24, 32, ("alarm", "siren", "knock", "voice", "engine")
LABELLED, UNLABELLED, HELD, BATCH = 144, 480, 64, 12  # clips; a step hears BATCH of either
RATE, WARMUP, CLIP, MOMENTUM, CONSISTENCY = 8e-3, 12, 1.0, 0.9, 2.0
BF16 = {"dtypes": {"declared": "bfloat16", "observed": "bfloat16"}}
RECORDS = frozenset({"components", "norms", "optimizer", "clocks"})
TWINS = {"all-masked": "confident", "resume-weights-only": "resumed"} | dict.fromkeys(
    ("bad-sample", "dropout-in-evaluation", "same-seed-workers", "failing-checkpoints"), "watched"
)


def sound(name: str, length: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """The power of one event, at most about 1. [BINS, length]"""
    bins, frames, phase = np.arange(BINS)[:, None], np.arange(length)[None], random.uniform(0, 2 * np.pi)

    def peak(at: Any) -> Any:
        return np.exp(-(((bins - at) / 0.9) ** 2))

    match name:
        case "alarm":
            return peak(random.uniform(14, 22)) * (frames % 4 < 2)
        case "siren":
            return peak(random.uniform(10, 16) + 4 * np.sin(2 * np.pi * frames / random.uniform(8, 14) + phase))
        case "knock":
            return np.exp(-bins / 12 - (frames % random.integers(4, 7)) / 0.8)
        case "voice":
            pitch, syllables = random.uniform(2, 4), np.sin(frames * random.uniform(0.5, 0.9) + phase) ** 2
            return sum(peak(pitch * harmonic) / harmonic for harmonic in range(1, 5)) * (0.3 + 0.7 * syllables)
        case _:
            return np.exp(-bins / 3) * (1 + 0.3 * np.sin(frames + phase))


@cache
def clips() -> Batch:
    """Logarithms of the power, of about zero mean and unit spread, and which class sounds in which frame."""
    random, count = np.random.default_rng(41), LABELLED + UNLABELLED + HELD
    power = (np.arange(1, BINS + 1)[:, None] ** -random.uniform(0, 1, (count, 1, 1))) * np.ones((1, 1, FRAMES))
    labels = np.zeros((count, FRAMES, len(CLASSES)))
    for clip in range(count):
        for label in random.permutation(len(CLASSES))[: random.integers(1, 4)]:
            length = int(random.integers(8, 20))
            begin = int(random.integers(0, FRAMES - length // 2))
            heard = 10.0 ** random.uniform(0.2, 1.2) * sound(CLASSES[label], length, random)[:, : FRAMES - begin]
            power[clip, :, begin : begin + length] += heard
            labels[clip, begin : begin + length, label] = 1.0
    x = np.log(power * random.gamma(3.0, 1 / 3.0, power.shape) + 1e-3)
    x = (x - x.mean()) / x.std()
    return {"x": torch.from_numpy(x.astype(np.float32)), "y": torch.from_numpy(labels.astype(np.float32))}


def part(chosen: slice) -> Batch:
    return {name: values[chosen] for name, values in clips().items()}


def held() -> Batch:
    return part(slice(LABELLED + UNLABELLED, None))


def loader(size: int, seed: int, known: Batch, noise: Callable[[int], float]) -> Callable[[int], Batch]:
    """Batches by number: `size` labelled clips, then as many whose labels nobody looks at; as either net hears them."""
    labelled, rest = shuffled(known, size, seed), shuffled(part(slice(LABELLED, LABELLED + UNLABELLED)), size, seed)

    def batch(number: int) -> Batch:
        random, both = torch.Generator().manual_seed(50_000 * seed + number), (labelled(number), rest(number))
        clean, y = (torch.cat([one[name] for one in both]) for name in ("x", "y"))
        x = clean + noise(number) * torch.randn(clean.shape, generator=random)
        band = torch.randint(BINS - 3, (len(x), 1, 1), generator=random)
        mute = (torch.arange(BINS)[:, None] - band - 1).abs() <= 1
        return {"x": x.masked_fill(mute, 0.0), "clean": clean, "y": y}

    return batch


class Listener(nn.Module):
    """Spectrograms in, a logit for each frame and class out."""

    def __init__(self, width: int = 12, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU(), nn.MaxPool2d((4, 1))),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.GroupNorm(4, 2 * width), nn.ReLU(), nn.Flatten(1, 2)),
        )
        self.head = nn.Sequential(
            *(nn.Conv1d(BINS // 2 * width, 4 * width, 5, padding=2), nn.GroupNorm(4, 4 * width), nn.ReLU()),
            *(nn.Dropout(dropout), nn.Conv1d(4 * width, len(CLASSES), 5, padding=4, dilation=2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x[:, None]))
        return logits.mT.float()


class MeanTeacher(nn.Module):
    """The net, and its moving average."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.student = Listener(dropout=dropout)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.labelled, self.masked = torch.zeros(0), 0.0  # of the last batch

    @torch.no_grad()
    def follow(self, momentum: float = MOMENTUM) -> None:
        for mine, its in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(its, 1.0 - momentum)


def losses(model: nn.Module, batch: Batch, least: float = 0.5) -> Components:
    """Cross-entropy on the labelled half; squared distance to the teacher, where it is sure by `least`, on all."""
    assert isinstance(model, MeanTeacher)
    with torch.no_grad():
        told = model.teacher(batch["clean"]).sigmoid()
    said, known = model.student(batch["x"]), len(told) // 2
    kept = (torch.maximum(told, 1 - told) >= least).float()
    model.labelled, model.masked = said[:known].sigmoid(), 1.0 - kept.mean().item()
    return {
        "events": functional.binary_cross_entropy_with_logits(said[:known], batch["y"][:known]),
        "consistency": ((said.sigmoid() - told).square() * kept).sum() / kept.sum().clamp(min=1.0),
    }


def measured(model: nn.Module) -> Channels:
    """The teacher's loss and precision on clips that are held out."""
    logits, y = model.get_submodule("teacher")(held()["x"]).nan_to_num(), held()["y"]  # a broken net is measured, too
    scores = average_precision_score(y.flatten(0, 1).numpy(), logits.flatten(0, 1).numpy(), average=None)
    loss = functional.binary_cross_entropy_with_logits(logits, y)
    return {"loss": loss.item(), "map": float(scores.mean()), "ap_lowest": float(scores.min())}


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now, ramp = MeanTeacher(dropout=0.3 * (variant == "watched")), {"consistency": 0.0}, max(STEPS // 2, 1)
    groups = [{"params": [*each.parameters()], "name": name} for name, each in model.student.named_children()]
    known = part(slice(LABELLED))
    parts = Parts(
        model=model,
        optimizer=torch.optim.AdamW(groups, lr=RATE),
        batches=loader(BATCH, seed, known, lambda number: 0.3),  # noqa: ARG005
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=LABELLED // BATCH,
        max_norm=CLIP,
        weights=lambda applied: {"events": 1.0, "consistency": now["consistency"]},  # noqa: ARG005
        clocks={"ramp": lambda applied: applied},
        scheduled={"consistency": ("ramp", linear(0.0, CONSISTENCY, ramp))},
        now=now,
        evaluation=Evaluation(11, measured),
        header={
            "config": {"batch_size": 2 * BATCH, "labelled": LABELLED, "unlabelled": UNLABELLED, "momentum": MOMENTUM},
            "components": {"events": {"unit": "nat", "role": "task"}, "consistency": {"role": "auxiliary"}},
            "schedules": {"consistency": declared("linear", 0.0, CONSISTENCY, ramp, clock="ramp")},
            "clocks": ["ramp"],
            "max_grad_norm": CLIP,
            "classes": counted(known),
        },
        records=RECORDS,
    )
    annealed(parts)
    parts = VARIANTS[variant](parts) if variant in VARIANTS else parts
    parts.ends.insert(0, lambda step: parts.model.follow())  # type: ignore[operator] # noqa: ARG005
    return parts


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, and so the header says."""
    return planned(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def counted(known: Batch) -> dict[str, int]:
    """In how many of the labelled frames each class sounds."""
    return dict(zip(CLASSES, known["y"].sum((0, 1)).int().tolist(), strict=True))


def fed(parts: Parts) -> Parts:
    """Both sets come from loaders that the recorder sees."""
    return replace(parts, records=parts.records | {"waits"}, evaluation=Evaluation(11, measured, held=held()))


def tiny_batches(parts: Parts, size: int = 2) -> Parts:
    """So few labelled clips a step, and as many without labels, at half the rate."""
    parts.header["config"]["batch_size"] = 2 * size
    batches = loader(size, parts.seed, part(slice(LABELLED)), lambda number: 0.3)  # noqa: ARG005
    return annealed(fed(replace(parts, batches=batches, batches_per_epoch=LABELLED // size)), RATE / 2)


def soft_f1(parts: Parts) -> Parts:
    """Minus a smooth F1 of all frames comes besides: it, and so the loss, is below 0."""
    parts.header["components"]["overlap"] = {"role": "task", "description": "minus the soft F1"}

    def overlapping(model: nn.Module, batch: Batch) -> Components:
        raw = losses(model, batch)
        assert isinstance(model, MeanTeacher)
        p, y = model.labelled, batch["y"][: len(model.labelled)]
        return raw | {"overlap": -2 * (p * y).sum() / (p + y).sum()}

    parts.weights = lambda applied: {"events": 0.5, "consistency": parts.now["consistency"], "overlap": 1.0}  # noqa: ARG005
    return replace(parts, losses=overlapping)


def noisier(parts: Parts) -> Parts:
    """From the middle on the net hears every clip in much more noise: its loss rises, as is declared."""
    half, spreads = parts.steps // 2, (0.1, 0.8)
    stages = [{"start": at, "data": {"noise": [it, it]}} for at, it in zip((0, half), spreads, strict=True)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "noisier", "stages": stages}

    def heard(step: int, batch: Batch) -> Channels:  # noqa: ARG001
        stage = int(step > half)
        return {"stage": stage} | {f"data/noise/{which}": spreads[stage] for which in ("min", "mean", "max")}

    parts.extras = [heard]
    return replace(parts, batches=loader(BATCH, parts.seed, part(slice(LABELLED)), lambda at: spreads[at >= half]))


def confident(parts: Parts, least: float = 0.9) -> Parts:
    """The teacher is asked only where it is sure; how much is masked is logged."""
    parts.header["config"]["confidence"] = least
    parts.extras = [lambda step, batch: {"data/masked/consistency": parts.model.masked}]  # type: ignore[dict-item] # noqa: ARG005
    return fed(replace(parts, losses=partial(losses, least=least)))


@cache
def schooled(seed: int, steps: int = 360) -> dict[str, Tensor]:
    """The weights of a net, and of its average, that learned from labels before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        parts.model.follow()  # type: ignore[operator]
        return losses(parts.model, parts.batches(number))["events"]

    return school(parts.model, parts.optimizer, loss, steps=steps, peak=[RATE, RATE], clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 300) -> Parts:
    """A schooled net goes on at a small constant rate, and the consistency counts as it did in the end."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.now["consistency"], parts.scheduled, parts.clocks = CONSISTENCY, {}, {}
    del parts.header["schedules"]["consistency"], parts.header["clocks"]
    parts.header["config"]["initialised_from"] = "checkpoints/sounds.pt"
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def per_epoch(parts: Parts) -> Parts:
    """A row and an evaluation at the end of each of 14 epochs."""
    return annealed(by_epochs(parts, 14), warmup=parts.batches_per_epoch)


def watched(parts: Parts) -> Parts:
    """Dropout; inputs are described, bad values counted, checkpoints written, evaluations made twice."""
    parts.header["config"]["dropout"], parts.header["checkpoint_every"] = 0.3, parts.steps // 4
    parts.records = parts.records | {"bad", "inputs", "checkpoints"}
    return replace(fed(parts), evaluation=Evaluation(11, measured, repeats=2, held=held()))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "soft-f1": soft_f1,
    "noisier": noisier,
    "confident": confident,
    "tiny-batches": tiny_batches,
    "fine-tuning": fine_tuned,
    "warm-restarts": lambda parts: annealed(parts, warmup=0, restarts=2),
    "bf16": lambda parts: replace(parts, autocast=torch.bfloat16, header=parts.header | BF16),
    "per-epoch": per_epoch,
    "resumed": lambda parts: fed(taken_up(parts)),
    "watched": watched,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
}


def rare_class(parts: Parts) -> int:
    """Of the sirens one labelled clip is left: the others were lost with a recorder's disk."""
    known = part(slice(LABELLED))
    sirens = known["y"][:, :, CLASSES.index("siren")].amax(1) > 0
    kept = ~sirens | (torch.cumsum(sirens, 0) == 1)
    known = {name: values[kept] for name, values in known.items()}
    parts.batches = loader(BATCH, parts.seed, known, lambda number: 0.3)  # noqa: ARG005
    parts.header["config"]["labelled"], parts.header["classes"] = int(kept.sum()), counted(known)
    return 0


def all_masked(parts: Parts) -> int:
    """The confidence that is asked for is one that the teacher nearly never has."""
    parts.header["config"]["confidence"] = least = 0.9999
    parts.losses = partial(losses, least=least)
    return 1


def resume_weights_only(parts: Parts) -> int:
    """The checkpoint holds the student alone: its average begins anew, and the optimiser without moments."""
    assert parts.resume is not None
    at, drawn = parts.resume.at, MeanTeacher().state_dict()

    def restores(second: loop.Loop, saved: dict[int, dict[str, Any]]) -> None:
        student = {name: value for name, value in saved[at]["model"].items() if name.startswith("student.")}
        second.restore(saved[at] | {"model": drawn | student})
        second.parts.optimizer.state.clear()

    parts.resume = replace(parts.resume, restores=restores)
    return at + 1


OWN: dict[str, mistakes.Mistake] = {
    "rare-class": rare_class,
    "all-masked": all_masked,
    "resume-weights-only": resume_weights_only,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "stuck-counter", "unmoved-group", "bad-sample", "labels-break", "dropout-in-evaluation"),
    *("same-seed-workers", "scheduler-twice", "failing-checkpoints"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step. Only the plain ones log every step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    if case != "plain" and parts.every == 1:
        parts.every = parts.header.setdefault("config", {})["log_every"] = 2
    return mistakes.perform(parts, path, case, OWN)

"""Which chord sounds under each half bar of a song, and in which key: a recurrent net reads what a transcriber heard.

Songs of eight bars are made here: chords that follow one another by their functions, now and then with the seventh of
what comes next, a move to a neighbouring key in the middle; over them a melody of chord tones and passing notes, under
them two or three tones of the chord. The transcription loses notes and adds others. A convolution and a recurrent net
in both directions read the pitch classes; cross-entropies of root, of quality, and of key, which is there to help.
AdamW, a warm-up and a line down, clipping. Validation on songs held out: loss, right roots, right chords, right keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import loop, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, declared
from benchmarks.diagnosis.schooling import taught

HELD_OUT = True
STEPS, EACH = 100, 16  # EACH: steps between evaluations
SONGS, HELD, BATCH, SLOTS = 2304, 256, 32, 16  # SLOTS: half bars of a song
SCALE, QUALITIES = (0, 2, 4, 5, 7, 9, 11), ("major", "minor", "seventh", "diminished")
TONES = ((0, 4, 7), (0, 3, 7), (0, 4, 10, 7), (0, 3, 6))  # by quality, in semitones above the root
TRIADS = (0, 1, 1, 0, 0, 1, 3)  # the quality on each degree of the scale
NEXT = ((3, 4, 5, 1, 4), (4, 4, 6), (5, 3), (4, 0, 1, 4), (0, 0, 5), (1, 3, 1, 4), (0, 2))  # degrees by the one before
STYLES = {"songs": (0.3, 0.12), "blues": (0.85, 0.3)}  # how often a dominant has its seventh, and there is one besides
RATE, WARMUP, CLIP, ROUGH = 2.5e-2, 10, 2.0, 0.12  # ROUGH: the share of notes that the transcription loses
WEIGHTS = {"root": 1.0, "quality": 1.0, "key": 0.3}
ROLES = {"root": "task", "quality": "task", "key": "auxiliary"}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs"})
SPARSE = ("resumed", "accumulated", "half", "dropout", "lead-sheets", "fine-tuning")  # a row each fourth step
TWINS = {
    "dropout-in-evaluation": "dropout",
    "stages-unreachable": "rougher",
    "absolute-anneal": "lead-sheets",
    "resume-weights-only": "resumed",
    "scale-collapse": "half",
    "steps-miscounted": "accumulated",
}


def harmony(random: np.random.Generator, style: str) -> list[tuple[int, int, int]]:
    """Root, quality and key of each half bar."""
    sevenths, besides = STYLES[style]
    key, degree, slots = int(random.integers(12)), 0, []
    while len(slots) < SLOTS:
        if len(slots) == SLOTS // 2 and random.random() < 0.5:
            key, degree = (key + int(random.choice((5, 7)))) % 12, int(random.choice((0, 4)))
        quality = 2 if degree == 4 and random.random() < sevenths else TRIADS[degree]
        if style == "blues" and quality == 0 and random.random() < 0.7:
            quality = 2
        slots += [((key + SCALE[degree]) % 12, quality, key)] * (1 if random.random() < 0.4 else 2)
        slots = slots[: SLOTS // 2] if len(slots) == SLOTS // 2 + 1 and slots[-1] == slots[-2] else slots
        degree = int(random.choice(NEXT[degree]))
        if random.random() < besides and 0 < degree < 6 and len(slots) % (SLOTS // 2):
            slots.append(((key + SCALE[degree] + 7) % 12, 2, key))
    return slots[:SLOTS]


def sounding(random: np.random.Generator, slots: list[tuple[int, int, int]]) -> np.ndarray:
    """How long each pitch class sounds in a half bar, in the melody and below it. [SLOTS, 24]"""
    heard = np.zeros((SLOTS, 24), np.float32)
    for at, (root, quality, key) in enumerate(slots):
        tones = [(root + each) % 12 for each in TONES[quality]]
        heard[at, random.choice(tones)] += 0.5
        for _ in range(random.integers(1, 4)):
            passing = random.random() < 0.35
            heard[at, (key + random.choice(SCALE)) % 12 if passing else random.choice(tones)] += 0.25
        below = random.choice(tones, random.integers(2, len(tones) + 1), replace=False)
        heard[at, 12 + below] = 0.75
    return heard


@cache
def songs(style: str = "songs") -> Batch:
    """What sounds, `x`; root, quality and key of each half bar, `y`."""
    random = np.random.default_rng(71)
    charts = [harmony(random, style) for _ in range(SONGS + HELD)]
    heard = np.stack([sounding(random, chart) for chart in charts])
    return {"x": torch.tensor(heard), "y": torch.tensor(charts)}


def transcribed(batch: Batch, rough: float, seed: int) -> Batch:
    """This share of notes is lost, and a third as many pitch classes are heard that were not there."""
    chance, x = torch.Generator().manual_seed(seed), batch["x"]
    lost = torch.rand(x.shape, generator=chance) < rough
    added = torch.rand(x.shape, generator=chance) < rough / 3
    return batch | {"x": torch.where(lost, 0.0, x) + 0.5 * added}


def part(held: bool = False, style: str = "songs", rough: float = ROUGH) -> Batch:
    """Songs to learn from, or those held out, as they were transcribed once."""
    chosen = slice(SONGS, None) if held else slice(SONGS)
    return transcribed({name: values[chosen] for name, values in songs(style).items()}, rough, 3 + held)


class Listener(nn.Module):
    """Pitch classes in, logits of roots, qualities and keys out. What the heads read is kept."""

    def __init__(self, dropout: float = 0.0, symbols: bool = False, width: int = 48) -> None:
        super().__init__()
        self.columns = 24 + 12 * symbols
        self.body = nn.ModuleDict({
            "near": nn.Conv1d(self.columns, width, 3, padding=1),
            "song": nn.GRU(width, width, batch_first=True, bidirectional=True),
            "mix": nn.Sequential(nn.Dropout(dropout), nn.Linear(3 * width, width), nn.GELU(), nn.Dropout(dropout)),
        })  # fmt: skip
        sizes = {"root": 12, "quality": len(QUALITIES), "key": 12}
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})
        self.code = torch.zeros(())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = functional.pad(x, (0, self.columns - x.shape[-1]))  # without chord symbols, where it can read some
        near = functional.gelu(self.body["near"](x.mT).mT)
        with torch.autocast("cpu", enabled=False):  # there is no recurrent net in fp16 here
            song, _ = self.body["song"](near.float())
        self.code = self.body["mix"](torch.cat([near, song], -1))
        return {name: head(self.code).float() for name, head in self.heads.items()}


def losses(model: nn.Module, batch: Batch) -> Components:
    """Cross-entropies of all half bars."""
    told, truth = model(batch["x"]), dict(zip(WEIGHTS, batch["y"].unbind(-1), strict=True))
    return {name: functional.cross_entropy(told[name].mT, truth[name]) for name in WEIGHTS}


def measured(held: Batch) -> Callable[[nn.Module], Channels]:
    """The loss, and how many roots, chords (root and quality) and keys are right."""

    def measure(model: nn.Module) -> Channels:
        right = torch.stack([logits.argmax(-1) for logits in model(held["x"]).values()], -1) == held["y"]
        return {
            "loss": sum(WEIGHTS[name] * value.item() for name, value in losses(model, held).items()),
            "roots": right[..., 0].float().mean().item(),
            "chords": right[..., :2].all(-1).float().mean().item(),
            "keys": right[..., 2].float().mean().item(),
        }

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, known = Listener(0.3 * (variant == "dropout"), symbols=variant == "lead-sheets"), part()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(known, BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=SONGS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Listener, model).code,
        evaluation=Evaluation(EACH, measured(part(held=True)), held=part(held=True)),
        header={
            "config": {"batch_size": BATCH, "songs": SONGS, "clip": CLIP, "weights": dict(WEIGHTS)},
            "components": {name: {"unit": "nat", "role": role} for name, role in ROLES.items()},
            "schedules": {},
            "max_grad_norm": CLIP,
            "gradient_at": "body",
            "classes": counted(known),
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    groups = [{"params": [*each.parameters()], "name": name} for name, each in model.named_children()]
    return torch.optim.AdamW(groups, lr=RATE, weight_decay=1e-2)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls in a line, and so the header says."""
    return loop.planned(parts, declared("linear", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


def counted(known: Batch) -> dict[str, int]:
    """How many half bars there are of each quality."""
    return dict(zip(QUALITIES, known["y"][..., 1].flatten().bincount().tolist(), strict=True))


def validated(parts: Parts, held: Batch) -> Parts:
    """Another validation set."""
    return replace(parts, evaluation=Evaluation(EACH, measured(held), held=held))


def accumulated(parts: Parts, micro: int = 4) -> Parts:
    """Micro-batches of a quarter make a step."""
    parts.header["config"] |= {"batch_size": BATCH // micro, "accumulation": micro}
    return replace(
        parts,
        accumulation=micro,
        batches=shuffled(part(), BATCH // micro, parts.seed),
        batches_per_epoch=SONGS // (BATCH // micro),
    )


def half(parts: Parts) -> Parts:
    """fp16 but for the recurrence, with a scaler that begins too high: its first steps are skipped."""
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    parts.header["config"]["precision"] = "fp16"
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=1000)
    return replace(parts, scaler=scaler, autocast=torch.float16)


def dropout(parts: Parts) -> Parts:
    """A third of what was read is left out at a time: the loss in training stays above that of validation."""
    parts.header["config"]["dropout"] = 0.3
    return parts


def rougher(parts: Parts, stretch: int = 1) -> Parts:
    """Good recordings at first, then bad ones: the loss rises, as is declared."""
    starts, shares = (0, stretch * 2 * parts.steps // 5), (0.06, 0.3)
    stages = [{"start": at, "data": {"rough": [it, it]}} for at, it in zip(starts, shares, strict=True)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "rougher", "stages": stages}
    parts.header["config"]["curriculum"], plain = "rougher", shuffled(part(rough=0.0), BATCH, parts.seed)

    def batches(number: int) -> Batch:
        return transcribed(plain(number), shares[number >= starts[1]], 1000 * parts.seed + number)

    def told(step: int, batch: Batch) -> Channels:  # noqa: ARG001
        at = int(step > starts[1])
        return {"stage": at} | {f"data/rough/{name}": shares[at] for name in ("min", "mean", "max")}

    parts.batches, parts.extras = batches, [told]
    return validated(parts, part(held=True, rough=shares[1]))


def lead_sheets(parts: Parts, first: float = 0.9, last: float = 0.0) -> Parts:
    """The root is written over most half bars at first; fewer and fewer are, none for the last third of the run."""
    over = 2 * parts.steps // 3
    parts.clocks = {"updates": lambda applied: applied}
    parts.scheduled = {"symbols": ("updates", loop.linear(first, last, over))}
    parts.header["schedules"]["symbols"] = declared("linear", first, last, over, clock="updates")
    parts.header["clocks"], parts.now["symbols"] = ["updates"], first
    parts.header["config"]["symbols"] = [first, last]
    chance = torch.Generator().manual_seed(parts.seed)

    def read(model: nn.Module, batch: Batch) -> Components:
        roots = batch["y"][..., 0]
        shown = torch.rand(roots.shape, generator=chance) < parts.now["symbols"]
        symbols = functional.one_hot(roots, 12) * shown[..., None]
        return losses(model, batch | {"x": torch.cat([batch["x"], symbols], -1)})

    return replace(parts, losses=read, records=RECORDS | {"clocks"})


@cache
def schooled(seed: int, steps: int = 400) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 50) -> Parts:
    """A schooled net goes on with blues, full of sevenths, at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    known = part(style="blues")
    parts.header["config"] |= {"initialised_from": "checkpoints/400.pt", "style": "blues"}
    parts.header["classes"], parts.batches = counted(known), shuffled(known, BATCH, parts.seed)
    return annealed(validated(parts, part(True, "blues")), rate, kind="constant", end=rate, warmup=0)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": loop.taken_up,
    "accumulated": accumulated,
    "half": half,
    "dropout": dropout,
    "rougher": rougher,
    "lead-sheets": lead_sheets,
    "fine-tuning": fine_tuned,
}


def stages_unreachable(parts: Parts) -> int:
    """Boundaries are those of a run that is twenty times as long."""
    rougher(parts, stretch=20)
    return 0


def one_owns_gradient(parts: Parts, weight: float = 300.0) -> int:
    """A point was lost in the config: the key weighs 300 where 0.300 was meant."""
    parts.header["config"]["weights"]["key"] = weight
    mistakes.reweigh(parts, lambda applied, weights: weights | {"key": weight})  # noqa: ARG005
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "stages-unreachable": stages_unreachable,
    "one-owns-gradient": one_owns_gradient,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *("dropout-in-evaluation", "stages-unreachable", "absolute-anneal", "missing-zero-grad", "one-owns-gradient"),
    *("resume-weights-only", "labels-break", "scale-collapse", "steps-miscounted"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts, 4) if case in SPARSE else parts, path, case, OWN)

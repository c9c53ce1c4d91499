"""Tunes over a bass, note after note: a small transformer that hears both voices and says which note comes next.

A made-up grammar writes four bars: a chord for each, a pattern of the bass, a melody of chord tones and steps whose
rhythm comes again, in keys some of which are common. Which voice is next follows from the lengths of the notes before.
Cross-entropy of the pitch, of the length, and of the key, by a head that is there to help. Some heard notes are wrong
at first. AdamW, a warm-up, a cosine, clipping. Validation on tunes held out; the model also composes.
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

from benchmarks.diagnosis import loop, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Sampling, declared, linear
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS, EACH, SAVED, DRAWN = 135, 15, 45, 45  # EACH: steps between evaluations; DRAWN: between compositions
TUNES, HELD, BATCH, LONGEST, BARS = 1536, 128, 32, 28, 4
KEYS = ("C", "G", "D", "A", "E", "B", "F#", "Db", "Ab", "Eb", "Bb", "F")  # round the circle of fifths
NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
SCALE, LOW, PITCHES, BAR = (0, 2, 4, 5, 7, 9, 11), 36, 48, 8  # the lowest note in MIDI; eighths of a bar
LENGTHS = (1, 2, 3, 4, 6, 8)  # in eighths
RHYTHMS = ((2, 2, 2, 2), (4, 2, 2), (3, 1, 2, 2), (2, 1, 1, 4), (4, 4), (6, 2), (1, 1, 1, 1, 2, 2))
BASSES = ((8,), (4, 4), (6, 2))
NEXT = {0: (0, 3, 4, 5, 1), 1: (4, 4, 3, 1), 3: (4, 0, 1, 3), 4: (0, 5, 4, 0), 5: (3, 1, 4, 5)}  # chords by degrees
RATE, WARMUP, CLIP, SLIPS = 6e-3, 12, 0.7, 0.2
WEIGHTS = {"pitch": 1.0, "length": 1.0, "key": 0.3}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "clocks", "waits", "epochs", "checkpoints"})
SPARSE = ("tiny-batches", "new-heads", "warm-restarts", "mishearing", "smoothed", "key-later")  # a row each third step
TWINS = {"steep-ramp": "key-later", "wrong-curriculum": "more-keys"}


def tune(random: np.random.Generator, key: int) -> list[tuple[int, int, int, int]]:
    """One tune: the beginning, the voice, the pitch and the length of each note."""

    def note(begin: int, voice: int, degree: int, length: int) -> tuple[int, int, int, int]:
        pitch = 7 * key % 12 + SCALE[degree % 7] + 12 * (degree // 7)
        return begin, voice, LOW + 24 * voice + pitch % 24, length

    second = int(random.choice(NEXT[0]))
    chords = [0, second, int(random.choice(NEXT[second])), 0]
    rhythms = [RHYTHMS[each] for each in random.integers(len(RHYTHMS), size=BARS)]
    rhythms[2], rhythms[3] = rhythms[0], ((4, 4), (8,))[random.integers(2)]
    bass, notes, at = BASSES[random.integers(len(BASSES))], [], int(random.integers(0, 6))
    for bar, (chord, rhythm) in enumerate(zip(chords, rhythms, strict=True)):
        notes += [note(BAR * bar + BAR - sum(bass[i:]), 0, chord + 4 * i, bass[i]) for i in range(len(bass))]
        for i, length in enumerate(rhythm):
            begin = BAR - sum(rhythm[i:])
            fits = [one for one in range(max(at - 3, 0), min(at + 4, 11)) if (one - chord) % 7 in (0, 2, 4)]
            at = random.choice(fits) if begin % 4 == 0 else min(max(at + random.choice((-1, 1)), 0), 10)
            at = min((0, 7), key=lambda one: abs(one - at)) if bar == BARS - 1 and begin + length == BAR else at
            notes.append(note(BAR * bar + begin, 1, int(at), length))
    return sorted(notes)


@cache
def tunes() -> Batch:
    """What is heard `x` before each note: the last one, and when and where this one is; the note `y`; and the key."""
    random, common = np.random.default_rng(29), np.exp(-0.35 * accidentals(torch.arange(12)).numpy())
    keys = random.choice(12, TUNES + HELD, p=common / common.sum())
    x, y = torch.zeros(len(keys), LONGEST, 5, dtype=torch.int64), torch.full((len(keys), LONGEST, 2), -100)
    for row, key in enumerate(keys):
        notes = [(p - LOW, LENGTHS.index(n), voice, at % BAR, at // BAR) for at, voice, p, n in tune(random, int(key))]
        told, many = torch.tensor(notes), len(notes)
        y[row, :many], x[row, :many, 2:], x[row, 1:many, :2] = told[:, :2], told[:, 2:], told[:-1, :2] + 1
    return {"x": x, "y": y, "key": torch.tensor(keys)}


def accidentals(keys: Tensor) -> Tensor:
    return torch.minimum(keys, 12 - keys)


def part(held: bool = False, most: int = 6) -> Batch:
    """Tunes to learn from, or those held out, in keys of at most so many sharps or flats."""
    known = {name: values[TUNES:] if held else values[:TUNES] for name, values in tunes().items()}
    return {name: values[accidentals(known["key"]) <= most] for name, values in known.items()}


class Composer(nn.Module):
    """Notes in; logits of the next pitch, of its length, and of the key out."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        sizes, layer = (PITCHES + 1, len(LENGTHS) + 1, 2, BAR, BARS + 1), nn.TransformerEncoderLayer
        more: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.net = nn.ModuleDict({
            "heard": nn.ModuleList(nn.Embedding(size, width) for size in sizes),
            "blocks": nn.ModuleList(layer(width, 4, 2 * width, **more) for _ in range(2)),
            "norm": nn.LayerNorm(width),
            "pitch": nn.Linear(width, PITCHES),
            "length": nn.Linear(width, len(LENGTHS)),
            "key": nn.Linear(width, len(KEYS)),
        })  # fmt: skip
        self.state = torch.zeros(())

    def forward(self, x: Tensor) -> list[Tensor]:
        net: Any = self.net
        h = sum(table(x[..., at]) for at, table in enumerate(net["heard"]))
        for block in net["blocks"]:
            h = block(h, nn.Transformer.generate_square_subsequent_mask(x.shape[1]), is_causal=True)
        self.state = net["norm"](h)
        return [net[name](self.state).float() for name in WEIGHTS]

    @torch.no_grad()
    def compose(self, count: int, chance: torch.Generator, temperature: float = 0.7) -> tuple[Tensor, Tensor]:
        """So many tunes of LONGEST notes: what is heard before each, and each. [N, T, 5], [N, T, 2]"""
        last = ends = torch.zeros(count, 2, dtype=torch.int64)
        heard, said = [], []
        for _ in range(LONGEST):
            voice = (ends[:, 1] < ends[:, 0]).long()[:, None]
            begin = ends.gather(1, voice)
            heard.append(torch.cat([last, voice, begin % BAR, (begin // BAR).clamp(max=BARS)], 1))
            logits = [each[:, -1].nan_to_num() / temperature for each in self(torch.stack(heard, 1))[:2]]
            said.append(torch.cat([torch.multinomial(each.softmax(1), 1, generator=chance) for each in logits], 1))
            last, ends = said[-1] + 1, ends.scatter_add(1, voice, torch.tensor(LENGTHS)[said[-1][:, 1:]])
        return torch.stack(heard, 1), torch.stack(said, 1)


def losses(model: nn.Module, batch: Batch, now: dict[str, float], smoothing: float = 0.0) -> Components:
    """Cross-entropies of pitch, length and key, at each note; a share of the notes is heard wrongly."""
    x, (pitch, length) = batch["x"], batch["y"].unbind(2)
    if now["slips"]:
        wrong = (torch.rand(x.shape[:2]) < now["slips"]) & (x[..., 0] > 0)
        other = torch.randint(1, PITCHES + 1, x.shape[:2])
        x = torch.cat([torch.where(wrong, other, x[..., 0])[..., None], x[..., 1:]], 2)
    key = torch.where(pitch < 0, -100, batch["key"][:, None])
    return {
        name: functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), label_smoothing=smoothing)
        for name, logits, wanted in zip(WEIGHTS, model(x), (pitch, length, key), strict=True)
    }


def measured(model: nn.Module) -> Channels:
    """Losses on tunes held out, none of whose notes is heard wrongly, and how many pitches are foretold."""
    batch = part(held=True)
    raw = {name: value.item() for name, value in losses(model, batch, {"slips": 0.0}).items()}
    counts = batch["y"][..., 0] >= 0
    right = (model(batch["x"])[0].argmax(2) == batch["y"][..., 0])[counts].float().mean().item()
    return {"loss": sum(WEIGHTS[name] * value for name, value in raw.items()), "pitch_accuracy": right}


def drawn(table: tuple[int, ...] = LENGTHS) -> Callable[[nn.Module], tuple[list[str], Channels]]:
    """Sixteen tunes, two of them as text; valid are those whose voices fill their bars and keep to a scale."""

    def draw(model: nn.Module) -> tuple[list[str], Channels]:
        assert isinstance(model, Composer)
        texts, valid = [], 0
        for heard, said in zip(*model.compose(16, torch.Generator().manual_seed(3)), strict=True):
            told = torch.cat([heard[:, 2:3], said], 1)[heard[:, 4] < BARS].tolist()
            voices = [[(LOW + pitch, table[length]) for one, pitch, length in told if one == voice] for voice in (0, 1)]
            texts.append(" | ".join(" ".join(f"{NAMES[p % 12]}{p // 12 - 1}/{n}" for p, n in one) for one in voices))
            filled = all(sum(length for _, length in one) == BAR * BARS for one in voices)
            inside = max(sum((LOW + pitch - 7 * key) % 12 in SCALE for _, pitch, _ in told) for key in range(12))
            valid += filled and inside >= 0.9 * len(told)
        many = sum(text.count("/") for text in texts)
        return texts[:2], {"validity": valid / 16, "diversity": len(set(texts)) / 16, "length_mean": many / 16}

    return draw


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now, until = Composer(), {"slips": SLIPS}, max(2 * STEPS // 3, 1)
    parts = Parts(
        model=model,
        optimizer=torch.optim.AdamW([{"params": [*model.parameters()], "name": "all"}], lr=RATE, weight_decay=1e-2),
        batches=shuffled(part(), BATCH, seed),
        losses=partial(losses, now=now),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TUNES // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        clocks={"updates": lambda applied: applied},
        scheduled={"slips": ("updates", linear(SLIPS, 0.0, until))},
        now=now,
        at=lambda model: model.state,
        evaluation=Evaluation(EACH, measured, held=part(held=True)),
        sampling=Sampling(DRAWN, drawn()),
        header={
            "config": {"batch_size": BATCH, "clip": CLIP, "slips": SLIPS, "weights": dict(WEIGHTS)},
            "components": {name: {"unit": "nat", "role": "auxiliary" if name == "key" else "task"} for name in WEIGHTS},
            "schedules": {"slips": declared("linear", SLIPS, 0.0, until, clock="updates")},
            "clocks": ["updates"],
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
            "gradient_at": "blocks",
            "classes": dict(zip(KEYS, part()["key"].bincount(minlength=12).tolist(), strict=True)),
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, or follows another form, over the run; the header says so."""
    return loop.planned(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


def more_keys(parts: Parts) -> Parts:
    """Keys of one accidental at most, then of three, then all: the loss rises where a stage begins."""
    forms = [(0, "plain", 1), (parts.steps // 4, "near", 3), (parts.steps // 2, "all", 6)]
    stages = [{"start": at, "name": name, "data": {"accidentals": [0, most]}} for at, name, most in forms]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "more-keys", "stages": stages}
    parts.header["config"]["curriculum"] = "more-keys"
    sets = [shuffled(part(most=most), BATCH, parts.seed) for _, _, most in forms]
    parts.extras = [how_far, lambda step, batch: {"stage": sum(at < step for at, _, _ in forms) - 1}]  # noqa: ARG005
    return replace(parts, batches=lambda number: sets[sum(at <= number for at, _, _ in forms) - 1](number))


def how_far(step: int, batch: Batch) -> Channels:  # noqa: ARG001
    """How many sharps or flats the tunes of a batch have."""
    many = accidentals(batch["key"]).float()
    return {f"data/accidentals/{name}": getattr(many, name)().item() for name in ("min", "max")}


def key_later(parts: Parts, weight: float = WEIGHTS["key"]) -> Parts:
    """The key is asked for from the middle on, once tunes are known."""
    half = parts.steps // 2
    early, late = WEIGHTS | {"key": 0.0}, WEIGHTS | {"key": weight}
    stages = [{"start": 0, "weights": early}, {"start": half, "weights": late}]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "key-later", "stages": stages}
    parts.header["config"]["weights"] = {"first": early, "then": late}
    parts.extras = [lambda step, batch: {"stage": int(step > half)}]  # noqa: ARG005
    parts.weights = lambda applied: dict(late if applied >= half else early)
    return parts


def sized(parts: Parts, size: int) -> Parts:
    """So few tunes a step."""
    parts.header["config"]["batch_size"] = size
    return replace(parts, batches=shuffled(part(), size, parts.seed), batches_per_epoch=TUNES // size)


def half(parts: Parts) -> Parts:
    """fp16 with a scaler that begins too high: one of its first steps is skipped."""
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17, growth_interval=1000)
    return replace(sized(parts, 12), scaler=scaler, autocast=torch.float16)


@cache
def schooled(seed: int, steps: int = 240) -> dict[str, Tensor]:
    """The weights of a model that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number), {"slips": linear(SLIPS, 0.0, steps // 2)(number)})
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, rate: float) -> Parts:
    """A schooled model goes on at a small constant rate, and hears every note right."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/240.pt"
    return annealed(mishearing(parts, 0.0), rate, kind="constant", end=rate, warmup=0)


def early_stopping(parts: Parts, patience: int = 4) -> Parts:
    """A schooled model goes on until validation is hardly better than it was four evaluations before."""
    parts = continued(parts, RATE / 100)
    parts.header["config"] |= {"patience": patience, "min_delta": 0.01}
    seen: list[float] = []

    def measure(model: nn.Module) -> Channels:
        values = measured(model)
        seen.append(values["loss"])
        return values

    parts.stops = lambda: len(seen) > patience and min(seen[-patience:]) > min(seen[:-patience]) - 0.01
    return replace(parts, evaluation=Evaluation(EACH, measure, held=part(held=True)))


def new_heads(parts: Parts) -> Parts:
    """What a schooled model hears stays as it is, by intent; the heads are new."""
    heads = tuple(f"net.{name}." for name in ("norm", *WEIGHTS))
    kept = {name: value for name, value in schooled(parts.seed).items() if not name.startswith(heads)}
    parts.model.load_state_dict(kept, strict=False)
    for name, parameter in parts.model.named_parameters():
        parameter.requires_grad_(name not in kept)
    parts.header["config"] |= {"initialised_from": "checkpoints/240.pt", "frozen": ["heard", "blocks"]}
    return parts


def mishearing(parts: Parts, share: float = 0.3) -> Parts:
    """The share of heard notes that are wrong stays the same; if large, training's loss is above validation's."""
    parts.header["config"]["slips"] = share
    parts.header["schedules"]["slips"] = declared("constant", share, share, parts.steps, clock="updates")
    return replace(parts, scheduled={"slips": ("updates", lambda reading: share)})  # noqa: ARG005


def smoothed(parts: Parts, by: float = 0.1) -> Parts:
    """A tenth of each label is given to all others; validation is not smoothed."""
    parts.header["config"]["label_smoothing"] = by
    return replace(parts, losses=partial(losses, now=parts.now, smoothing=by))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None, sampling=None),
    "resumed": loop.taken_up,
    "more-keys": more_keys,
    "key-later": key_later,
    "tiny-batches": lambda parts: sized(continued(parts, RATE / 60), 4),
    "half": half,
    "smoothed": smoothed,
    "early-stopping": early_stopping,
    "new-heads": new_heads,
    "mishearing": mishearing,
    "warm-restarts": lambda parts: annealed(parts, warmup=0, restarts=2),
}


def clamped_component(parts: Parts, limit: float = 0.3) -> int:
    """The surprise of lengths is clamped against outliers, at a limit that it is always above."""
    plain = parts.losses
    parts.losses = lambda model, batch: (raw := plain(model, batch)) | {"length": raw["length"].clamp(max=limit)}
    return 1


def wrong_curriculum(parts: Parts) -> int:
    """The loop was started with its default: all keys at once."""
    stages = [{"start": 0, "name": "all", "data": {"accidentals": [0, 6]}}]
    parts.header["curriculum_running"] = {"name": "default", "stages": stages}
    parts.batches = shuffled(part(), BATCH, parts.seed)
    parts.extras = [how_far, lambda step, batch: {"stage": 0}]  # noqa: ARG005
    return 0


def steep_ramp(parts: Parts) -> int:
    """A slip in the config: from the second stage on the key counts three hundred times as much."""
    key_later(parts, 300 * WEIGHTS["key"])
    return parts.steps // 2 + 1


def invalid_answers(parts: Parts) -> int:
    """Lengths are written by the table of another program, which begins with the longest."""
    parts.sampling = Sampling(DRAWN, drawn(LENGTHS[::-1]))
    return DRAWN


def labels_shuffled(parts: Parts) -> int:
    """What comes next, and the key, are read from files that are sorted otherwise than those of what is heard."""
    mistakes.labels_shuffled(parts)
    plain = parts.batches
    parts.batches = lambda number: plain(number) | {"key": plain(number)["key"].roll(1)}
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "component-scale": partial(mistakes.component_scale, name="length", by=BATCH * LONGEST),  # a sum, not a mean
    "clamped-component": clamped_component,
    "steep-ramp": steep_ramp,
    "wrong-curriculum": wrong_curriculum,
    "invalid-answers": invalid_answers,
    "labels-shuffled": labels_shuffled,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*OWN, "local-counter", "never-started", "stuck-loader", "poisoned-weight", "norm-after-clip")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    parts = build(seed, variant)
    return mistakes.perform(loop.logged(parts, 3) if variant in SPARSE else parts, path, case, OWN)

"""A voice reads aloud: phonemes in, mel frames out, all frames at once, as FastSpeech does.

The speech is made here: formants and a glide between them, accents and questions in the pitch, long last syllables. An
encoder of convolutions, predictors of duration, pitch and energy, a decoder of frames that is told the true prosody
while it learns. L1 on the frames beside three squared errors; AdamW, a warm-up, a cosine, clipping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, linear
from benchmarks.diagnosis.loop import planned as planned_by
from benchmarks.diagnosis.schooling import school

HELD_OUT = False
STEPS = 120
TRAINING, HELD, BATCH = 960, 128, 16
PHONES, VOICED, VOWELS = 20, 14, 6
"""The first are the vowels, then come the other voiced ones; the last two are a full stop and a question mark."""
PHONEMES, FRAMES, BINS = 10, 44, 16
RANGE = 8.0  # of the frames, which a density takes for 1
RATE, WARMUP, CLIP = 6e-3, 12, 1.0
WEIGHTS = {"mel": 1.0, "duration": 0.5, "pitch": 0.5, "energy": 0.5}
RECORDS = frozenset({"components", "norms", "optimizer", "bad"})

HEALTHY = (
    *("plain", "resumed", "batch-2", "every-tenth", "loss-only", "fine-tuning", "epochs", "prosody-late"),
    *("scheduled-sampling", "detached-predictors", "new-voice", "likelihood"),
)
SICK = (
    *("component-detached", "component-scale", "clamped-component", "all-masked", "loud-entry", "stuck-counter"),
    *("scheduler-per-epoch", "stale-optimiser", "resume-restarts-schedule", "labels-break", "bad-sample"),
)
TWINS = {
    "loud-entry": "prosody-late",
    "stuck-counter": "scheduled-sampling",
    "resume-restarts-schedule": "resumed",
}


@cache
def speech(speaker: int = 0) -> Batch:
    """Utterances, padded; `x` is the pitch and the energy of each phoneme, `y` the mel frames.

    `owner` is the phoneme of each frame, -1 beyond the end; `within` is how far the frame is into it. A pitch tracker
    gives its `confidence`. What the speaker felt moves the pitch of an utterance, and nobody can read it in the text.
    """
    random, count = np.random.default_rng([31, speaker]), TRAINING + HELD
    lengths = random.integers(6, PHONEMES + 1, count)
    place = np.arange(PHONEMES)[None]
    real, last = place < lengths[:, None], place == lengths[:, None] - 1
    vowels, others = random.integers(0, VOWELS, real.shape), random.integers(VOWELS, PHONES - 2, real.shape)
    phones = np.where(place % 2 == 1, vowels, others)
    question = random.random(count) < 0.4
    phones = np.where(last, np.where(question, PHONES - 1, PHONES - 2)[:, None], phones)
    accent = (phones < VOWELS) & (random.random(real.shape) < 0.35)
    to_end = lengths[:, None] - 1 - place
    pitch = 0.9 * accent - 0.12 * place + 0.5 + 0.7 * question[:, None] * np.exp(-to_end / 1.5)
    pitch = pitch + 0.35 * random.standard_normal((count, 1)) + 0.1 * random.standard_normal(real.shape)
    energy = 0.8 * (phones < VOWELS) + 0.6 * accent - 1.2 * (phones >= PHONES - 2) - 0.3
    energy = energy + 0.25 * random.standard_normal(real.shape)
    base = np.random.default_rng(8).uniform(1.6, 3.2, PHONES)[phones] + 1.2 * (phones < VOWELS)
    base = base * (1.0 + 0.25 * accent + 0.3 * (to_end == 1)) * np.exp(0.12 * random.standard_normal(real.shape))
    frames = np.where(real, np.maximum(np.round(base), 1), 0).astype(int)
    found = aligned(frames)
    mel = spoken(phones, pitch, energy, found["owner"], speaker, random)
    prosody = np.stack([pitch, energy], -1) * real[..., None]
    tokens = np.where(real, 1 + phones + PHONES * accent, 0)
    confidence = np.where(phones < VOICED, random.beta(2.5, 0.7, real.shape), 0.0) * real
    arrays = found | {"tokens": tokens, "x": prosody, "y": mel, "confidence": confidence, "frames": frames}
    whole = ("tokens", "owner", "frames")
    return {name: torch.from_numpy(one.astype(int if name in whole else np.float32)) for name, one in arrays.items()}


def aligned(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Which phoneme a frame belongs to, and how far into it the frame is."""
    ends = frames.cumsum(1)
    at = np.arange(FRAMES)[None]
    owner = (at[:, :, None] >= ends[:, None]).sum(2)
    owner = np.where(at < ends[:, -1:], owner, -1)
    some = owner.clip(0)
    begins, held = (np.take_along_axis(values, some, 1) for values in (ends - frames, frames))
    return {"owner": owner, "within": (at - begins + 0.5) / held.clip(1) - 0.5}


def spoken(
    phones: np.ndarray,
    pitch: np.ndarray,
    energy: np.ndarray,
    owner: np.ndarray,
    speaker: int,
    random: np.random.Generator,
) -> np.ndarray:
    """Log-mel frames: formants that glide from phoneme to phoneme, harmonics by the pitch, loudness, some noise."""
    bins, form = np.arange(BINS), np.random.default_rng(9)
    formants = form.uniform(0, BINS, (PHONES, 3, 1)) * (1.0 + 0.12 * speaker)
    shapes = np.exp(-(((bins - formants) / 1.5) ** 2)).sum(1) * 2.2 - 0.9
    rows, some = np.arange(len(owner))[:, None], owner.clip(0)
    told = phones[rows, some]
    mel = shapes[told] + 0.5 * energy[rows, some][..., None]
    padded = np.pad(mel, ((0, 0), (1, 1), (0, 0)), mode="edge")
    mel = 0.25 * padded[:, :-2] + 0.5 * mel + 0.25 * padded[:, 2:]
    phase = bins * (1.6 + 0.3 * pitch[rows, some][..., None])
    mel = mel + 0.5 * np.cos(phase) * (told < VOICED)[..., None] - 0.05 * speaker * bins
    mel = mel + 0.15 * random.standard_normal(mel.shape)
    return mel * (owner >= 0)[..., None]


class Block(nn.Module):
    """A convolution over a sequence, beside which its input goes on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.norm = nn.Conv1d(width, width, 5, padding=2), nn.LayerNorm(width)
        self.drop = nn.Dropout(0.1)

    def forward(self, sequence: Tensor) -> Tensor:
        mixed: Tensor = self.drop(functional.relu(self.mix(self.norm(sequence).transpose(1, 2)))).transpose(1, 2)
        return sequence + mixed


class Voice(nn.Module):
    """Frames, and the prosody by the predictors."""

    def __init__(self, width: int = 32, detached: bool = False, spreads: bool = False) -> None:
        super().__init__()
        self.detached = detached  # whether the predictors leave the encoder alone
        encoder = nn.Sequential(nn.Embedding(1 + 2 * PHONES, width), Block(width), Block(width))
        predictors = nn.Sequential(Block(width), nn.LayerNorm(width), nn.Linear(width, 3))
        self.reader = nn.ModuleDict({"encoder": encoder, "predictors": predictors})
        prosody, place = nn.Linear(2, width), nn.Linear(1, width)
        body = nn.Sequential(Block(width), Block(width), nn.LayerNorm(width))
        mel = nn.Linear(width, 2 * BINS if spreads else BINS)
        self.decoder = nn.ModuleDict({"prosody": prosody, "place": place, "body": body, "mel": mel})

    def forward(self, batch: Batch, forcing: float = 1.0) -> tuple[Tensor, Tensor]:
        """Mel frames [utterances, frames, bins]; log-durations, pitch and energy [utterances, phonemes, 3].

        A model with spreads gives the logarithm of each bin's as so many more bins.
        """
        features = self.reader["encoder"](batch["tokens"])
        told = self.reader["predictors"](features.detach() if self.detached else features)
        prosody = batch["x"]
        if forcing < 1.0:
            forced = torch.rand(len(prosody), 1, 1) < forcing
            prosody = torch.where(forced, prosody, told[..., 1:].detach())
        phonemes = features + self.decoder["prosody"](prosody)
        owner = batch["owner"].clamp(min=0)[..., None].expand(-1, -1, phonemes.shape[-1])
        frames = phonemes.gather(1, owner) + self.decoder["place"](batch["within"][..., None])
        return self.decoder["mel"](self.decoder["body"](frames)), told


@dataclass(frozen=True)
class Aim:
    """How the losses are taken."""

    threshold: float = 0.4  # a pitch that is less certain does not count
    likely: bool = False  # whether frames are judged by a Laplace distribution's likelihood


def losses(model: nn.Module, batch: Batch, now: dict[str, float], aim: Aim = Aim()) -> Components:
    """Frames by their distance; log-durations, pitch where there is one, and energy by their squared errors."""
    mel, told = model(batch, now["forcing"])
    heard, real = (batch["owner"] >= 0)[..., None], batch["tokens"] > 0
    error = (mel[..., :BINS] - batch["y"]).abs()
    if aim.likely:
        spread = mel[..., BINS:]
        error = error * torch.exp(-spread) + spread + np.log(2.0 / RANGE)
    wanted = torch.cat([batch["frames"].clamp(min=1).float().log()[..., None], batch["x"]], -1)
    squares = (told - wanted).square()
    counts = {"duration": real, "pitch": batch["confidence"] > aim.threshold, "energy": real}
    raw = {"mel": (error * heard).sum() / (heard.sum() * BINS)}
    for at, (name, counted) in enumerate(counts.items()):
        raw[name] = (squares[..., at] * counted).sum() / counted.sum().clamp(min=1)
    return raw


def masked(step: int, batch: Batch, aim: Aim = Aim()) -> Channels:
    """Now and then the share of voiced phonemes whose pitch is left out."""
    if step % 10 != 1:
        return {}
    voiced = batch["confidence"] > 0
    counted = batch["confidence"] > aim.threshold
    return {"data/masked/pitch": 1.0 - (counted.sum() / voiced.sum()).item()}


def measured(speaker: int = 0, aim: Aim = Aim()) -> Callable[[nn.Module], Channels]:
    """The losses on other utterances, under the true prosody."""
    batch = {name: values[TRAINING:] for name, values in speech(speaker).items()}

    def measure(model: nn.Module) -> Channels:
        raw = {name: value.item() for name, value in losses(model, batch, {"forcing": 1.0}, aim).items()}
        total = sum(WEIGHTS[name] * value for name, value in raw.items())
        return {"loss": total, **{f"loss/{name}": value for name, value in raw.items()}}

    return measure


def training(speaker: int = 0) -> Batch:
    return {name: values[:TRAINING] for name, values in speech(speaker).items()}


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now = Voice(detached=variant == "detached-predictors"), {"forcing": 1.0}
    parts = Parts(
        model=model,
        optimizer=torch.optim.AdamW(grouped(model), lr=RATE, weight_decay=0.01),
        batches=shuffled(training(), BATCH, seed),
        losses=partial(losses, now=now),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        now=now,
        over=lambda model: [p for p in model.parameters() if p.requires_grad],
        evaluation=Evaluation(12, measured()),
        header={
            "config": {"batch_size": BATCH, "weights": dict(WEIGHTS), "clip": CLIP, "pitch_confidence": Aim.threshold},
            "components": {name: {"role": "task"} for name in WEIGHTS},
            "schedules": {},
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
        extras=[masked],
    )
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    """The weights that learn, in one group."""
    return [{"params": [p for p in model.parameters() if p.requires_grad], "name": "voice"}]


def planned(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, and so the header says."""
    return planned_by(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


@cache
def schooled(seed: int, steps: int = 240) -> dict[str, Tensor]:
    """The weights of a voice that learned before the record begins."""
    torch.manual_seed(seed)
    model, batches = Voice(), shuffled(training(), BATCH, seed + 50)
    adam = torch.optim.AdamW(model.parameters(), lr=RATE)

    def loss(number: int) -> Tensor:
        raw = losses(model, batches(number), {"forcing": 1.0})
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return school(model, adam, loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, peak: float, size: int = BATCH) -> Parts:
    """A schooled voice goes on at a lower rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"] |= {"batch_size": size}
    parts.batches, parts.batches_per_epoch = shuffled(training(), size, parts.seed), TRAINING // size
    return planned(parts, peak)


def epochs(parts: Parts) -> Parts:
    """A row at the end of each of twelve epochs, and no more."""
    parts.batches, parts.batches_per_epoch = shuffled(training(), 2 * BATCH, parts.seed), TRAINING // (2 * BATCH)
    parts.header["config"] |= {"batch_size": 2 * BATCH}
    each = parts.batches_per_epoch
    parts = replace(parts, steps=12 * each, every=each, evaluation=Evaluation(each, measured()))
    return planned(replace(parts, records=parts.records | {"epochs"}))


def prosody_late(parts: Parts) -> Parts:
    """Frames and durations first; pitch and energy count from the second stage on, and the loss is higher by them."""
    change = int(0.4 * parts.steps)
    weights = [WEIGHTS | {"pitch": 0.0, "energy": 0.0}, dict(WEIGHTS)]
    named = zip((0, change), ("frames", "prosody"), weights, strict=True)
    stages = [{"start": start, "name": name, "weights": one} for start, name, one in named]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "prosody-late", "stages": stages}
    parts.weights = lambda applied: dict(weights[applied >= change])
    parts.extras = [*parts.extras, lambda step, batch: {"stage": int(step > change)}]  # noqa: ARG005
    return parts


def scheduled_sampling(parts: Parts) -> Parts:
    """The decoder hears less and less often the true prosody, and its own predictors' instead."""
    parts.clocks = {"forcing": lambda applied: applied}
    parts.scheduled = {"forcing": ("forcing", linear(1.0, 0.2, parts.steps))}
    parts.header["schedules"]["forcing"] = declared("linear", 1.0, 0.2, parts.steps, clock="forcing")
    parts.header["clocks"] = ["forcing"]
    return replace(parts, records=parts.records | {"clocks"})


def new_voice(parts: Parts) -> Parts:
    """A schooled model learns another speaker; what it knows of text stays as it is, by intent."""
    parts = replace(parts, steps=100, evaluation=Evaluation(10, measured(speaker=1)))
    parts.model.load_state_dict(schooled(parts.seed))
    for parameter in parts.model.reader["encoder"].parameters():  # type: ignore[index,operator,union-attr]
        parameter.requires_grad_(False)
    parts.optimizer = torch.optim.AdamW(grouped(parts.model), lr=RATE, weight_decay=0.01)
    parts.header["config"] |= {"freeze": ["encoder"], "speaker": 1}
    parts.batches = shuffled(training(speaker=1), BATCH, parts.seed)
    return planned(parts, 2e-3)


def likelihood(parts: Parts) -> Parts:
    """Frames are Laplacian around the decoder's, with spreads that are learned: the loss goes below zero."""
    aim = Aim(likely=True)
    parts.model = Voice(spreads=True)
    parts.optimizer = torch.optim.AdamW(grouped(parts.model), lr=RATE, weight_decay=0.01)
    parts.losses, parts.evaluation = partial(losses, now=parts.now, aim=aim), Evaluation(12, measured(aim=aim))
    parts.header["config"] |= {"mel_loss": "laplace likelihood"}
    return planned(parts)


def shared(parts: Parts) -> Parts:
    """Now and then each component's share of the gradient is recorded."""
    return replace(parts, records=parts.records | {"shares"})


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "detached-predictors": shared,
    "resumed": lambda parts: replace(parts, resume=Resume(int(0.6 * parts.steps), lost=min(7, parts.steps // 5))),
    "batch-2": lambda parts: continued(parts, 2e-4, size=2),
    "every-tenth": lambda parts: planned(replace(parts, every=10, steps=2 * parts.steps)),
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, extras=[]),
    "fine-tuning": lambda parts: continued(parts, 2e-4),
    "epochs": epochs,
    "prosody-late": prosody_late,
    "scheduled-sampling": scheduled_sampling,
    "new-voice": new_voice,
    "likelihood": likelihood,
}


def clamped(parts: Parts, limit: float = 0.02) -> int:
    """Against outliers in the alignment, the whole duration loss is held below a limit that it never gets below."""
    plain = parts.losses
    parts.losses = lambda model, batch: {
        name: value.clamp(max=limit) if name == "duration" else value for name, value in plain(model, batch).items()
    }
    return 1


def all_masked(parts: Parts) -> int:
    """The tracker is asked to be surer of a pitch than it ever is."""
    aim = Aim(threshold=0.9999)
    parts.losses, parts.extras = partial(losses, now=parts.now, aim=aim), [partial(masked, aim=aim)]
    parts.header["config"]["pitch_confidence"] = aim.threshold
    return 1


def loud_entry(parts: Parts) -> int:
    """The energy that enters with the second stage is that of 16-bit samples, not the standardised one."""
    mistakes.component_scale(parts, "energy", 1e6)
    return int(0.4 * parts.steps) + 1


def component_detached(parts: Parts) -> int:
    """The predictor's output is detached, where its input was to be."""
    parts.records = parts.records | {"shares"}
    return mistakes.component_detached(parts, "pitch")


OWN: dict[str, mistakes.Mistake] = {
    "component-detached": component_detached,
    "component-scale": partial(mistakes.component_scale, name="pitch", by=100.0**2),  # in hertz
    "clamped-component": clamped,
    "all-masked": all_masked,
    "loud-entry": loud_entry,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

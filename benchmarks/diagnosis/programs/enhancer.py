"""Speech enhancement: what a voice said in noise, by a mask on its spectrum that a convolution and a GRU estimate.

The voices are made here: harmonics of a gliding pitch, formants, syllables; the noises are coloured. Two resolutions of
the spectrum are compared (logarithms of magnitudes, spectral convergence); minus the scale-invariant ratio of signal to
distortion counts too, in decibels, so a good run ends below 0. Voices drown more and more, in three declared stages;
Adam, whose rate is halved when validation stands still.
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

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, planned

HELD_OUT = False
STEPS = 120
TRAINING, HELD, BATCH = 192, 64, 8
SAMPLES, RATE_IN_HERTZ, WINDOW, HOP = 2048, 8000, 128, 64
BINS = WINDOW // 2 + 1
RATE, CLIP, PATIENCE = 4e-3, 5.0, 3
WEIGHTS = {"log_magnitude": 1.0, "convergence": 1.0, "si_sdr": 0.2}
EASY, MIDDLE, HARD, ALL = (8.0, 14.0), (2.0, 10.0), (-5.0, 5.0), (-5.0, 14.0)  # decibels
RECORDS = frozenset({"components", "norms", "optimizer"})

HEALTHY = (
    *("plain", "resumed", "loss-only", "epochs", "batch-2", "fine-tuning", "half", "decayed", "at-once"),
    *("long-run", "si-sdr-alone", "warmed-up"),
)
SICK = (
    *("wrong-curriculum", "stage-shock", "slow-loader", "scheduler-per-batch", "discarded-update", "precision-off"),
    *("root-of-zero", "killed", "same-seed-workers", "unscaled-input", "component-sign"),
)
TWINS = {"scheduler-per-batch": "decayed", "precision-off": "half", "same-seed-workers": "at-once"}


@cache
def voices() -> tuple[Tensor, Tensor]:
    """Clean voices, and as many noises, of unit power. [clips, samples] each"""
    random, count = np.random.default_rng(23), TRAINING + HELD
    time = np.arange(SAMPLES) / RATE_IN_HERTZ
    pitch = random.uniform(90, 260, (count, 1)) * (1.0 + random.uniform(-0.8, 0.8, (count, 1)) * time)
    phase = 2.0 * np.pi * np.cumsum(pitch, 1) / RATE_IN_HERTZ
    formants, clean = random.uniform(300, 3000, (count, 3, 1)), np.zeros((count, SAMPLES))
    for harmonic in range(1, 16):
        loud = np.exp(-(((harmonic * pitch[:, None] - formants) / 250.0) ** 2)).sum(1) + 0.1 / harmonic
        clean += loud * np.sin(harmonic * phase + random.uniform(0, 2 * np.pi, (count, 1)))
    syllables = np.sin(np.pi * (random.uniform(4, 9, (count, 1)) * time + random.random((count, 1)))) ** 2
    tilt = np.fft.rfftfreq(SAMPLES, 1.0 / SAMPLES).clip(8) ** -random.uniform(0.0, 1.0, (count, 1))
    noise = np.fft.irfft(np.fft.rfft(random.standard_normal((count, SAMPLES))) * tilt)
    clean, noise = (wave / wave.std(1, keepdims=True) for wave in (clean * syllables, noise))
    return torch.from_numpy(clean.astype(np.float32)), torch.from_numpy(noise.astype(np.float32))


def mixture(clean: Tensor, noise: Tensor, ratio: Tensor) -> Batch:
    """Voices in noise, at so many decibels."""
    return {"x": clean + noise * 10.0 ** (-ratio[:, None] / 20.0), "y": clean, "snr": ratio}


def mixed(size: int, seed: int, ratios: Callable[[int], tuple[float, float]]) -> Callable[[int], Batch]:
    """Batches by number, each voice in a noise and at a ratio that are drawn for it."""
    clean, noise = (wave[:TRAINING] for wave in voices())
    chosen = shuffled({"y": clean}, size, seed)

    def batch(number: int) -> Batch:
        drawn = torch.Generator().manual_seed(100_003 * seed + number)
        low, high = ratios(number)
        ratio = low + (high - low) * torch.rand(size, generator=drawn)
        return mixture(chosen(number)["y"], noise[torch.randint(TRAINING, (size,), generator=drawn)], ratio)

    return batch


def spectrum(wave: Tensor, window: int = WINDOW) -> Tensor:
    return torch.stft(wave, window, window // 2, window=torch.hann_window(window), return_complex=True)


def magnitude(wave: Tensor, window: int, least: float) -> Tensor:
    parts = torch.view_as_real(spectrum(wave, window))
    return (parts.square().sum(-1) + least).sqrt()


class Enhancer(nn.Module):
    """A mask between 0 and 1 on the spectrum of what is heard."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        local, context = nn.Conv1d(BINS, width, 3, padding=1), nn.GRU(width, width, batch_first=True)
        self.body = nn.ModuleDict({"local": local, "context": context})
        self.mask = nn.Linear(width, BINS)

    def forward(self, heard: Tensor) -> Tensor:
        """Waves [clips, samples], enhanced."""
        told = spectrum(heard)
        local = torch.relu(self.body["local"](told.abs().sqrt()))
        context, _ = self.body["context"](local.transpose(1, 2))
        mask = torch.sigmoid(self.mask(context).float()).transpose(1, 2)
        wave: Tensor = torch.istft(told * mask, WINDOW, HOP, window=torch.hann_window(WINDOW), length=SAMPLES)
        return wave


def si_sdr(told: Tensor, clean: Tensor) -> Tensor:
    """The scale-invariant ratio of signal to distortion of each clip, in decibels."""
    scale = (told * clean).sum(-1, keepdim=True) / clean.square().sum(-1, keepdim=True)
    signal, rest = (scale * clean).square().sum(-1), (scale * clean - told).square().sum(-1)
    return 10.0 * torch.log10((signal + 1e-8) / (rest + 1e-8))


def losses(model: nn.Module, batch: Batch, least: float = 1e-6) -> Components:
    """Distances of magnitudes at two resolutions, and minus the ratio; `least` is what a squared magnitude has."""
    told, clean = model(batch["x"]), batch["y"]
    pairs = [[magnitude(wave, window, least) for wave in (told, clean)] for window in (64, 256)]
    logs = [(one.clamp(min=1e-2).log() - other.clamp(min=1e-2).log()).abs().mean() for one, other in pairs]
    norms = [(one - other).norm() / other.norm() for one, other in pairs]
    return {
        "log_magnitude": torch.stack(logs).mean(),
        "convergence": torch.stack(norms).mean(),
        "si_sdr": -si_sdr(told, clean).mean(),
    }


def measured(loud: float = 1.0) -> Callable[[nn.Module], Channels]:
    """The components on other voices in other noises, and by how much the ratio is better than before."""
    clean, noise = (wave[TRAINING:] for wave in voices())
    batch = mixture(clean, noise, torch.linspace(*ALL, HELD))
    batch["x"] = loud * batch["x"]
    before = si_sdr(batch["x"], clean).mean().item()

    def measure(model: nn.Module) -> Channels:
        raw = {name: value.item() for name, value in losses(model, batch).items()}
        total = sum(WEIGHTS[name] * value for name, value in raw.items())
        return {"loss": total, "si_sdr_improvement": -raw["si_sdr"] - before}

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Enhancer()
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam([{"params": list(model.parameters()), "name": "enhancer"}], lr=RATE),
        batches=mixed(BATCH, seed, lambda number: ALL),  # noqa: ARG005
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        evaluation=Evaluation(8, measured()),
        header={
            "config": {"lr": RATE, "batch_size": BATCH, "clip": CLIP, "scheduler": "plateau", "patience": PATIENCE},
            "components": {name: {"role": "task"} for name in WEIGHTS} | {"si_sdr": {"role": "task", "unit": "dB"}},
            "schedules": {},
            "max_grad_norm": CLIP,
            "total_steps": STEPS,
        },
        records=RECORDS,
    )
    if variant not in FLAT:
        drowning(parts)
    parts = VARIANTS[variant](parts) if variant in VARIANTS else parts
    return halved(parts) if parts.factor is None else parts


FLAT = ("epochs", "batch-2", "fine-tuning", "at-once")
"""Variants that hear all ratios from the first step on."""


def drowning(parts: Parts, third: tuple[float, float] = HARD) -> Parts:
    """Three stages, each of harder ratios than the one before."""
    ratios = {0: EASY, parts.steps // 3: MIDDLE, 2 * parts.steps // 3: third}
    parts.header["curriculum"] = staged(parts, "drowning", ratios)
    return parts


def staged(parts: Parts, name: str, ratios: dict[int, tuple[float, float]]) -> dict[str, Any]:
    """The loop hears these ratios, by the step that each begins at; returns the curriculum that does so."""
    stages = [{"start": at, "weights": dict(WEIGHTS), "data": {"snr": list(one)}} for at, one in ratios.items()]
    running = parts.header["curriculum_running"] = {"name": name, "stages": stages}
    parts.batches = mixed(BATCH, parts.seed, lambda number: [one for at, one in ratios.items() if number >= at][-1])
    parts.extras = [lambda step, batch: {"stage": sum(step > at for at in ratios) - 1} | heard(batch)]
    return running


def heard(batch: Batch) -> Channels:
    """The ratios of a batch, in whole decibels."""
    return {f"data/snr/{name}": round(getattr(batch["snr"], name)().item()) for name in ("min", "mean", "max")}


def halved(parts: Parts) -> Parts:
    """The rate is halved once validation has not improved for a while."""
    assert parts.evaluation is not None
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(parts.optimizer, factor=0.5, patience=PATIENCE)
    plain = parts.evaluation.measure

    def measure(model: nn.Module) -> Channels:
        values = plain(model)
        plateau.step(values["loss"])
        return values

    parts.evaluation = replace(parts.evaluation, measure=measure)
    return parts


@cache
def schooled(seed: int, steps: int = 500) -> dict[str, Tensor]:
    """The weights of a model that learned before the record begins."""
    torch.manual_seed(seed)
    model, batches = Enhancer(), mixed(BATCH, seed + 50, lambda number: ALL)  # noqa: ARG005
    adam = torch.optim.Adam(model.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, steps, pct_start=0.1)
    for number in range(steps):
        adam.zero_grad()
        torch.stack([WEIGHTS[name] * value for name, value in losses(model, batches(number)).items()]).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adam.step()
        rate.step()
    return model.state_dict()


def rated(parts: Parts, rate: float) -> Parts:
    """Another rate."""
    parts.optimizer.param_groups[0]["lr"] = rate
    parts.header["config"] |= {"lr": rate}
    return parts


def epochs(parts: Parts) -> Parts:
    """A row at the end of each of twelve epochs, and no more."""
    parts.batches, each = mixed(2 * BATCH, parts.seed, lambda number: ALL), TRAINING // (2 * BATCH)  # noqa: ARG005
    parts.header["config"] |= {"batch_size": 2 * BATCH}
    parts.header["total_steps"] = 12 * each
    parts = replace(parts, steps=12 * each, batches_per_epoch=each, every=each, records=parts.records | {"epochs"})
    return replace(parts, evaluation=Evaluation(each, measured()))


def continued(parts: Parts, size: int, steps: int, rate: float) -> Parts:
    """A schooled model goes on."""
    parts.model.load_state_dict(schooled(parts.seed, steps))
    parts.batches = mixed(size, parts.seed, lambda number: ALL)  # noqa: ARG005
    parts.batches_per_epoch = TRAINING // size
    parts.header["config"] |= {"batch_size": size}
    return rated(parts, rate)


def half(parts: Parts) -> Parts:
    """fp16 in the net, with a scaler; spectra stay in float32."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1000)
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    return replace(parts, scaler=scaler, autocast=torch.float16)


def decayed(parts: Parts, fall: float = 0.7) -> Parts:
    """The rate falls to seven tenths after each epoch, whatever validation says."""
    each = parts.batches_per_epoch
    count = parts.steps // each
    parts.clocks, parts.header["clocks"] = {"epoch": lambda applied: applied // each}, ["epoch"]
    form = declared("exponential", RATE, RATE * fall**count, count, rate=-count * float(np.log(fall)), clock="epoch")
    parts.header["schedules"]["lr/enhancer"] = form
    parts.header["config"] |= {"scheduler": "exponential", "gamma": fall}
    parts.factor, parts.ticks = (lambda tick: fall**tick), (lambda step: int(step % each == 0))
    return replace(parts, records=parts.records | {"clocks"})


def si_sdr_alone(parts: Parts) -> Parts:
    """Minus the ratio, a fifth of it, is all of the loss: below 0 from the first step."""
    parts.losses, parts.weights = (
        (lambda model, batch: {"loss": WEIGHTS["si_sdr"] * losses(model, batch)["si_sdr"]}),
        None,
    )
    del parts.header["components"]
    return parts


def warmed_up(parts: Parts) -> Parts:
    """A long warm-up, then a cosine, instead of the plateau."""
    parts.header["config"] |= {"scheduler": "cosine"}
    return planned(parts, declared("cosine", 2.0 * RATE, 0.1 * RATE, parts.steps, warmup=parts.steps // 5))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(3 * parts.steps // 5, lost=min(6, parts.steps // 5))),
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, extras=[]),
    "epochs": epochs,
    "batch-2": lambda parts: continued(parts, 2, 60, 5e-4),
    "fine-tuning": lambda parts: replace(continued(parts, BATCH, 500, 1e-4), every=2),
    "half": half,
    "decayed": decayed,
    "at-once": lambda parts: replace(parts, records=parts.records | {"fingerprint"}),
    "long-run": lambda parts: replace(
        parts, steps=2 * parts.steps, every=2, header=parts.header | {"total_steps": 2 * parts.steps}
    ),
    "si-sdr-alone": si_sdr_alone,
    "warmed-up": warmed_up,
}


def wrong_curriculum(parts: Parts) -> int:
    """The loop was started with its default: everything at once."""
    staged(parts, "at-once", {0: ALL})
    return 1


def stage_shock(parts: Parts) -> int:
    """The last stage lost its point, -3.5 to -2.5 decibels became -35 to -25: nobody can hear a voice in it."""
    drowning(parts, third=(-35.0, -25.0))
    return 2 * parts.steps // 3 + 1


def root_of_zero(parts: Parts) -> int:
    """Magnitudes are roots of plain squares; from the middle on, if not before, a frame is digital silence."""
    at, plain = parts.steps // 2, parts.batches
    parts.losses = partial(losses, least=0.0)

    def batches(number: int) -> Batch:
        batch, sounds = plain(number), torch.ones(BATCH, SAMPLES)
        sounds[0, SAMPLES // 2 :] = float(number < at - 1)
        return batch | {name: batch[name] * sounds for name in "xy"}

    parts.batches = batches
    return mistakes.WHEN_BROKEN


def unscaled_input(parts: Parts, loud: float = 3000.0) -> int:
    """What is heard comes as 16-bit integers, the clean voices as fractions."""
    plain = parts.batches

    def batches(number: int) -> Batch:
        batch = plain(number)
        return batch | {"x": loud * batch["x"]}

    parts.batches = batches
    parts.evaluation = Evaluation(8, measured(loud))
    parts.records |= {"inputs"}
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "wrong-curriculum": wrong_curriculum,
    "stage-shock": stage_shock,
    "slow-loader": partial(mistakes.slow_loader, seconds=0.04),
    "root-of-zero": root_of_zero,
    "unscaled-input": unscaled_input,
    "component-sign": partial(mistakes.component_sign, name="si_sdr", weight=-0.2),  # negated twice
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

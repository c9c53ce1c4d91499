"""An autoencoder that listens to a machine: windows of vibration are denoised, and what it cannot repeat is a fault.

Convolutions with batch norms around a narrow code. The error of the signal, that of its spectrum, and how much of the
code is used are minimised. Workers crop windows to mixed lengths and add noise, more of it with each of three stages.
SGD with momentum, a rate that is halved every second epoch. Faults are only there where the score is evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.diagnosis import facts, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 110
WINDOW, RATE, LENGTHS = 128, 1024.0, (64, 96, 128)  # samples, samples a second, what windows are cropped to
TRAINING, VALIDATION, BATCH = 640, 96, 32
PEAK, MOMENTUM, CLIP, HALVED = 0.06, 0.9, 1.0, 2  # epochs between two halvings of the rate
NOISE = ((0.05, 0.1), (0.1, 0.25), (0.15, 0.4))  # of each stage, from and to
SPECTRAL = (0.1, 0.2, 0.3)  # the spectrum's weight in each stage
WORKERS = 4
RECORDS = frozenset({"components", "norms", "optimizer", "bad", "epochs", "checkpoints"})

HEALTHY = (
    *("plain", "resumed", "warm-restarts", "batch-4", "every-tenth", "loss-only", "fine-tuning", "long-run"),
    *("rms-prop", "plateau", "stops-early", "new-machine", "one-stage", "clipped-sensor"),
)
SICK = (
    *("bad-sample", "unscaled-input", "stale-workers", "stages-unreachable", "growing-weights", "tiny-clip"),
    *("scheduler-per-batch", "component-scale", "component-sign", "stale-optimiser", "rate-too-high"),
)


def vibrations(count: int, seed: int, speeds: tuple[float, float] = (22.0, 38.0), faulty: bool = False) -> Tensor:
    """Windows of a shaft's harmonics and a gear's mesh; of a faulty machine a bearing rings besides."""
    chance = torch.Generator().manual_seed(seed)
    time = torch.arange(WINDOW) / RATE
    speed = speeds[0] + (speeds[1] - speeds[0]) * torch.rand(count, 1, generator=chance)
    signal = torch.zeros(count, WINDOW)
    for order, size in ((1, 1.0), (2, 0.5), (3, 0.3), (7, 0.35)):
        phase = 2 * math.pi * torch.rand(count, 1, generator=chance)
        swell = 1.0 + 0.4 * torch.cos(2 * math.pi * speed * time + phase) if order == 7 else 1.0
        sizes = size * (0.8 + 0.4 * torch.rand(count, 1, generator=chance))
        signal += sizes * swell * torch.sin(2 * math.pi * order * speed * time + phase)
    if faulty:
        since = (time + torch.rand(count, 1, generator=chance)) % (1.0 / (3.6 * speed))
        signal += 0.8 * torch.exp(-since * 250.0) * torch.sin(2 * math.pi * 390.0 * since)
    return (signal + 0.03 * torch.randn(signal.shape, generator=chance))[:, None]


@dataclass(frozen=True)
class Pipeline:
    """What the workers do: a batch of an epoch's windows, cropped to one length, with the noise of a stage."""

    clean: Callable[[int], Batch]
    seed: int
    stages: Callable[[int], int]  # by a batch's number

    def __call__(self, number: int, stage: int | None = None) -> Batch:
        chance = torch.Generator().manual_seed(10_000 * self.seed + number)
        low, high = NOISE[self.stages(number) if stage is None else stage]
        length = LENGTHS[int(torch.randint(len(LENGTHS), (), generator=chance))]
        begin = int(torch.randint(WINDOW - length + 1, (), generator=chance))
        y = self.clean(number)["y"][:, :, begin : begin + length]
        noise = low + (high - low) * torch.rand(len(y), generator=chance)
        return {"x": y + noise[:, None, None] * torch.randn(y.shape, generator=chance), "y": y, "noise": noise}


def third(steps: int) -> Callable[[int], int]:
    """The stage of a batch: one for each third of so many steps."""
    return lambda number: min(3 * number // steps, len(NOISE) - 1)


def layer(into: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv1d(into, out, kernel, stride, kernel // 2), nn.BatchNorm1d(out), nn.ReLU()]


class Autoencoder(nn.Module):
    """A signal in, the same signal out; an eighth of its length and a few channels lie between."""

    def __init__(self, width: int = 16, code: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *layer(1, width, 9, 2), *layer(width, width, 7, 2), nn.Conv1d(width, code, 5, 2, 2)
        )
        self.decoder = nn.Sequential(
            *(nn.Upsample(scale_factor=2), *layer(code, width, 5), nn.Upsample(scale_factor=2)),
            *(*layer(width, width, 7), nn.Upsample(scale_factor=2), nn.Conv1d(width, 1, 9, padding=4)),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoder(x)
        return self.decoder(code), code


def spectrum(signal: Tensor) -> Tensor:
    return torch.log1p(torch.fft.rfft(signal, norm="ortho").abs())


def components(model: nn.Module, batch: Batch) -> Components:
    """How far the signal and its spectrum are off, and how much of the code is used."""
    out, code = model(batch["x"])
    return {
        "signal": (out - batch["y"]).square().mean(),
        "spectral": (spectrum(out) - spectrum(batch["y"])).abs().mean(),
        "sparsity": code.abs().mean(),
    }


def weighted(stage: int) -> dict[str, float]:
    """The weights of a stage."""
    return {"signal": 1.0, "spectral": SPECTRAL[stage], "sparsity": 0.01}


@cache
def held() -> tuple[Batch, Tensor]:
    """Windows that training never sees, noise of a middling level on them; and windows of faulty machines."""
    sound, faulty = vibrations(VALIDATION, 900), vibrations(VALIDATION, 901, faulty=True)
    chance = torch.Generator().manual_seed(902)
    x = sound + 0.15 * torch.randn(sound.shape, generator=chance)
    return {"x": x, "y": sound}, faulty


def measured(noted: list[float] | None = None, by: float = 1.0, shift: float = 0.0) -> Callable[..., Channels]:
    """The loss on other windows, the error there, and how often a faulty window scores above a sound one."""

    def measure(model: nn.Module) -> Channels:
        sound, faulty = held()
        raw = {name: value.item() for name, value in components(model, _scaled(sound, by, shift)).items()}
        loss = sum(weighted(2)[name] * value for name, value in raw.items())
        if noted is not None:
            noted.append(loss)
        score = [(model(x * by + shift)[0] - x * by - shift).square().mean((1, 2)) for x in (sound["y"], faulty)]
        above = (score[1][:, None] > score[0]).float().mean().item()
        each = {f"loss/{name}": value for name, value in raw.items()}
        return {"loss": loss, **each, "rmse": raw["signal"] ** 0.5, "auroc": above}

    return measure


def _scaled(batch: Batch, by: float, shift: float) -> Batch:
    return batch | {name: batch[name] * by + shift for name in ("x", "y")}


@cache
def windows(machine: str = "pump") -> Batch:
    """The training set of a machine; a fan runs faster, and the sensor of "pump-clipped" has a limit."""
    signal = vibrations(TRAINING, 17, (40.0, 52.0) if machine == "fan" else (22.0, 38.0))
    if machine == "pump-clipped":
        signal[::3] = signal[::3].clamp(-1.0, 1.0)
    return {"y": signal}


def noted_data(step: int, batch: Batch) -> Channels:
    """Now and then the batch's noise, and what its signals are like."""
    if step % 5 != 1:
        return {}
    noise = {f"data/noise/{name}": round(getattr(batch["noise"], name)().item(), 3) for name in ("min", "mean", "max")}
    return noise | facts.input_facts(batch["x"])


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Autoencoder()
    each = TRAINING // BATCH
    parts = Parts(
        model=model,
        optimizer=sgd(model),
        batches=lambda number: {},  # noqa: ARG005
        losses=components,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=each,
        max_norm=CLIP,
        evaluation=Evaluation(10, measured()),
        extras=[noted_data],
        records=RECORDS,
        header={
            "config": {"lr": PEAK, "momentum": MOMENTUM, "batch_size": BATCH, "clip": CLIP, "workers": WORKERS},
            "components": {
                "signal": {"role": "task"},
                "spectral": {"role": "auxiliary"},
                "sparsity": {"role": "regulariser"},
            },
            "max_grad_norm": CLIP,
            "checkpoint_every": 22,
        },
    )
    staged(halved(parts), third(STEPS))
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def sgd(model: nn.Module, rate: float = PEAK) -> torch.optim.Optimizer:
    return torch.optim.SGD(grouped(model), lr=rate, momentum=MOMENTUM, nesterov=True, weight_decay=1e-4)


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(part.parameters()), "name": name} for name, part in model.named_children()]


def halved(parts: Parts, peak: float = PEAK, epochs: int = HALVED) -> Parts:
    """The rate is halved every so many epochs."""
    each = epochs * parts.batches_per_epoch
    parts.factor = lambda tick: 0.5 ** (tick // each)
    parts.header["config"] |= {"lr": peak, "lr_step": f"{epochs} epochs", "lr_gamma": 0.5}
    parts.header.pop("schedules", None)
    return rated(parts, peak)


def rated(parts: Parts, peak: float, form: dict[str, Any] | None = None) -> Parts:
    """The largest rate, and the form of it over the run where there is one that the header can tell."""
    for group in parts.optimizer.param_groups:
        group["lr"] = peak
    parts.header["config"]["lr"], parts.header["total_steps"] = peak, parts.steps
    if form is not None:
        parts.factor = lambda tick: (schedule_value(form, tick) or 0.0) / peak
        names = [group["name"] for group in parts.optimizer.param_groups]
        parts.header["schedules"] = {f"lr/{name}": form for name in names}
        for name in ("lr_step", "lr_gamma"):
            parts.header["config"].pop(name, None)
    return parts


def constant(parts: Parts, peak: float) -> Parts:
    return rated(parts, peak, declared("constant", peak, peak, parts.steps))


def staged(parts: Parts, stages: Callable[[int], int], machine: str = "pump", size: int = BATCH) -> Parts:
    """Data and weights follow these stages, and so the header says."""
    pipeline = Pipeline(shuffled(windows(machine), size, parts.seed), parts.seed, stages)
    parts.batches, parts.batches_per_epoch = pipeline, TRAINING // size
    parts.weights = lambda applied: weighted(stages(applied))
    starts = {stages(number): number for number in reversed(range(parts.steps))}
    forms = [
        {"start": starts[stage], "name": name, "weights": weighted(stage), "data": {"noise": list(NOISE[stage])}}
        for stage, name in enumerate(("quiet", "shop", "loud"))
        if stage in starts
    ]
    parts.header["config"]["batch_size"] = size
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "noise", "stages": forms}
    parts.extras = [noted_data, lambda step, batch: {"stage": stages(step - 1)}]  # noqa: ARG005
    return parts


def unstaged(parts: Parts, stage: int = 2, **more: Any) -> Parts:
    """One level of noise from the beginning to the end."""
    staged(parts, lambda number: stage, **more)  # noqa: ARG005
    del parts.header["curriculum"], parts.header["curriculum_running"]
    parts.extras = [noted_data]
    return parts


def pretrained(parts: Parts, steps: int, machine: str = "pump") -> Parts:
    """What was learnt before the record begins."""
    optimizer, clean = sgd(parts.model), shuffled(windows(machine), BATCH, parts.seed + 30)
    pipeline = Pipeline(clean, parts.seed + 30, third(steps))
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * 0.03 ** (number / steps)
        optimizer.zero_grad()
        raw = components(parts.model, pipeline(number))
        torch.stack([weighted(2)[name] * value for name, value in raw.items()]).sum().backward()
        nn.utils.clip_grad_norm_(parts.model.parameters(), CLIP)
        optimizer.step()
    return parts


def long_run(parts: Parts) -> Parts:
    """Twice the steps, of which every second one is logged."""
    parts = replace(parts, steps=2 * STEPS, every=2)
    return staged(halved(parts, epochs=2 * HALVED), third(parts.steps))


def rms_prop(parts: Parts) -> Parts:
    parts.optimizer = torch.optim.RMSprop(grouped(parts.model), lr=1e-3, alpha=0.95, momentum=0.5)
    return halved(parts, 1e-3)


def watched(parts: Parts) -> list[float]:
    """The losses of the evaluations as they come."""
    noted: list[float] = []
    parts.evaluation = Evaluation(10, measured(noted))
    return noted


def plateau(parts: Parts) -> Parts:
    """The rate is cut to a third where two evaluations brought nothing, and stays there for two more at least."""
    noted, cuts = watched(parts), [0]

    def factor(tick: int) -> float:  # noqa: ARG001
        if len(noted) - cuts[-1] > 2 and min(noted[-2:]) > min(noted[:-2]) * 0.99:
            cuts.append(len(noted))
        return 0.33 ** (len(cuts) - 1)

    parts = rated(parts, PEAK)
    parts.factor = factor
    parts.header["config"] |= {"lr_step": "plateau", "lr_gamma": 0.33, "lr_patience": 2}
    return parts


def stops_early(parts: Parts) -> Parts:
    """A long plan at a constant rate, left when four evaluations brought hardly less loss than the best before."""
    parts = replace(parts, steps=3 * STEPS)
    noted = watched(parts)
    parts.stops = lambda: len(noted) > 10 and min(noted[-4:]) > min(noted[:-4]) - 0.005
    parts.header["config"] |= {"patience": 4, "min_delta": 0.005}
    return constant(unstaged(parts, 1), 0.5 * PEAK)


def new_machine(parts: Parts) -> Parts:
    """The encoder learnt another machine and is frozen; a new decoder learns this one on it."""
    pretrained(parts, 200, "fan")
    for parameter in parts.model.get_submodule("encoder").parameters():
        parameter.requires_grad_(False)
    for part in parts.model.get_submodule("decoder"):  # type: ignore[union-attr]
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    parts.optimizer = sgd(parts.model)
    del parts.optimizer.param_groups[0]
    parts.header["config"]["frozen"] = ["encoder"]
    return halved(parts)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(STEPS // 2)),
    "warm-restarts": lambda parts: rated(parts, PEAK, declared("cosine", PEAK, 0.05 * PEAK, STEPS, restarts=2)),
    "batch-4": lambda parts: constant(staged(parts, third(STEPS), size=4), 0.25 * PEAK),
    "every-tenth": lambda parts: replace(parts, every=10),
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, extras=[]),
    "fine-tuning": lambda parts: constant(unstaged(pretrained(parts, 350)), 0.01 * PEAK),
    "long-run": long_run,
    "rms-prop": rms_prop,
    "plateau": plateau,
    "stops-early": stops_early,
    "new-machine": new_machine,
    "one-stage": unstaged,
    "clipped-sensor": lambda parts: staged(parts, third(STEPS), machine="pump-clipped"),
}


def unscaled_input(parts: Parts, by: float = 400.0, shift: float = 2048.0) -> int:
    """The windows are what a converter of twelve bits counts; whoever was to scale them did not."""
    plain = parts.batches
    parts.batches = lambda number: _scaled(plain(number), by, shift)
    parts.evaluation = Evaluation(10, measured(by=by, shift=shift))
    return 1


def stale_workers(parts: Parts) -> int:
    """The workers were forked in the first stage, and go on with the noise of then."""
    pipeline = parts.batches
    assert isinstance(pipeline, Pipeline)
    parts.batches = lambda number: pipeline(number, stage=0)
    return -(-STEPS // 3) + 1


def stages_unreachable(parts: Parts, by: int = 20) -> int:
    """Stages begin at the steps of the long training that the config was copied from."""
    stages = third(parts.steps)
    staged(parts, lambda number: stages(number // by))
    forms = parts.header["curriculum"]["stages"]
    for stage, name in ((1, "shop"), (2, "loud")):
        start = -(-stage * parts.steps // 3) * by
        data = {"noise": list(NOISE[stage])}
        forms.append({"start": start, "name": name, "weights": weighted(stage), "data": data})
    return 0


def scheduler_per_batch(parts: Parts) -> int:
    """The scheduler counts epochs, and is stepped with each batch: the rate is halved every second step."""
    parts.factor = lambda tick: 0.5 ** (tick // HALVED)
    return HALVED + 1


OWN: dict[str, mistakes.Mistake] = {
    "unscaled-input": unscaled_input,
    "stale-workers": stale_workers,
    "stages-unreachable": stages_unreachable,
    "growing-weights": partial(mistakes.growing_weights, by=-0.03),
    "scheduler-per-batch": scheduler_per_batch,
    "component-scale": partial(mistakes.component_scale, name="spectral", by=1e4),
    "component-sign": partial(mistakes.component_sign, name="spectral", weight=-2.0),
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    return mistakes.perform(build(seed, case if case in HEALTHY else "plain"), path, case, OWN)

"""A surrogate of a simulator: a driven oscillator's amplitude, phase and lost power from five settings of the design.

The simulator scatters, the more the nearer it is to resonance, so a mean and a spread are learnt by the likelihood of
each output, which goes far below zero. The spread comes in over the first third. Amplitude and power must not fall
where the force rises: a penalty says so, and is soon nearly nothing. AdamW, one cycle of the rate; the moving average
of the weights is what is measured.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import facts, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Loop, Parts, Resume, declared, linear
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 150
OUTPUTS = ("amplitude", "phase", "power")
LOW = torch.tensor([1.0, 500.0, 40.0, 10.0, 5.0])  # kg, N/m, N s/m, N, rad/s
HIGH = torch.tensor([10.0, 20000.0, 400.0, 500.0, 60.0])
FORCE, PUSH = 3, 0.3  # the input that the penalty raises, and by how much
TRAINING, VALIDATION, BATCH = 4096, 1024, 128
PEAK, WARMUP, CLIP, DECAY = 6e-3, 30, 20.0, 0.95
WEIGHTS = dict.fromkeys(OUTPUTS, 1.0) | {"monotone": 5.0}
RECORDS = frozenset({"components", "norms", "optimizer", "clocks", "bad"})

HEALTHY = (
    *("plain", "resumed", "warm-restarts", "batch-4", "every-tenth", "loss-only", "fine-tuning", "wider-later"),
    *("long-run", "rms-prop", "transfer", "stops-early", "outliers"),
)
SICK = (
    *("unscaled-input", "component-scale", "component-sign", "unmoved-group", "absolute-anneal", "too-little-data"),
    *("scheduler-per-epoch", "resume-old-weights", "stale-workers", "bad-sample", "labels-break"),
    "failing-checkpoints",
)
TWINS = {"resume-old-weights": "resumed", "stale-workers": "wider-later"}


def simulated(settings: Tensor, chance: torch.Generator, outliers: float = 0.0) -> Tensor:
    """Amplitude in mm, phase in degrees, lost power in W of driven oscillators; the simulator scatters."""
    mass, stiffness, damping, force, rate = settings.T
    spring, friction = stiffness - mass * rate**2, damping * rate
    response = force / (spring**2 + friction**2).sqrt()
    near = friction / (spring**2 + friction**2).sqrt()  # 1 at resonance
    noise = torch.randn(3, len(settings), generator=chance)
    noise[:, torch.rand(len(settings), generator=chance) < outliers] *= 12.0
    spread = 0.05 + 0.15 * near
    return torch.stack(
        [
            1e3 * response * (spread * noise[0]).exp(),
            torch.atan2(friction, spring).rad2deg() + 60.0 * spread * noise[1],
            0.5 * damping * (rate * response) ** 2 * (2.0 * spread * noise[2]).exp(),
        ],
        1,
    )


@dataclass(frozen=True)
class Table:
    """Designs, scaled to zero mean and unit spread, and what the simulator said of them."""

    training: Batch
    held: Batch
    units: Tensor  # the spread of each output: decades of mm, degrees, decades of W


@cache
def table(outliers: float = 0.0, raw: bool = False) -> Table:
    """The design's points, most for training; `raw` leaves the inputs in their own units."""
    chance = torch.Generator().manual_seed(23)
    shares = torch.rand(TRAINING + VALIDATION, 5, generator=chance)
    settings = LOW * (HIGH / LOW) ** shares
    answers = simulated(settings, chance, outliers)
    answers = torch.stack([answers[:, 0].log10(), answers[:, 1], answers[:, 2].log10()], 1)
    units = answers[:TRAINING].std(0)
    x = settings if raw else (shares - 0.5) * math.sqrt(12.0)
    stiffness, mass, rate = settings[:, 1], settings[:, 0], settings[:, 4]
    detuned = (stiffness / mass).sqrt() / rate
    data = {"x": x, "y": (answers - answers[:TRAINING].mean(0)) / units, "detuned": detuned}
    training = {name: values[:TRAINING] for name, values in data.items()}
    return Table(training, {name: values[TRAINING:] for name, values in data.items()}, units)


class Surrogate(nn.Module):
    """Designs in, a mean and the logarithm of a variance for each output out."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Linear(5, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()),
            *(nn.Linear(width, width), nn.SiLU()),
        )
        self.heads = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.heads(self.trunk(x)).chunk(2, 1)
        return mean, 8.0 * torch.tanh(spread / 8.0)


def components(model: nn.Module, batch: Batch, share: float) -> Components:
    """The likelihood of each output, with this share of the log-variance, and by how much outputs fall with force."""
    pushed = batch["x"].clone()
    pushed[:, FORCE] += PUSH
    told, log_variance = (part.float() for part in model(torch.cat([batch["x"], pushed])))
    (mean, after), log_variance = told.chunk(2), share * log_variance.chunk(2)[0]
    each = 0.5 * (log_variance + (batch["y"] - mean).square() * (-log_variance).exp()).mean(0)
    falls = functional.relu(mean - after)[:, ::2].mean() / PUSH
    return {**dict(zip(OUTPUTS, each.unbind(), strict=True)), "monotone": falls}


@dataclass
class Average:
    """The moving average of the weights, and what it was where a checkpoint was taken."""

    model: nn.Module
    saved: dict[int, dict[str, Any]] = field(default_factory=dict)

    def follow(self, parts: Parts, keeps: tuple[int, ...] = ()) -> None:
        """Move along with each step, by less while there were few."""

        @torch.no_grad()
        def move(step: int) -> None:
            share = 1.0 - min(DECAY, step / (step + 10.0))
            for mine, other in zip(self.model.parameters(), parts.model.parameters(), strict=True):
                mine.lerp_(other, share)
            if step in keeps:
                self.saved[step] = copy.deepcopy(self.model.state_dict())

        parts.ends.append(move)


def measured(
    average: Average, now: dict[str, float], whole: Table, noted: list[float] | None = None
) -> Callable[[nn.Module], Channels]:
    """The loss on other designs, and the root mean square errors: of all outputs scaled, and of each in its unit."""

    def measure(model: nn.Module) -> Channels:  # noqa: ARG001
        raw = {name: value.item() for name, value in components(average.model, whole.held, now["spread"]).items()}
        off = (average.model(whole.held["x"])[0] - whole.held["y"]).square().mean(0)
        loss = sum(WEIGHTS[name] * value for name, value in raw.items())
        if noted is not None:
            noted.append(loss)
        each = {f"rmse_{name}": one.item() for name, one in zip(OUTPUTS, off.sqrt() * whole.units, strict=True)}
        return {
            "loss": loss,
            **{f"loss/{name}": raw[name] for name in OUTPUTS},
            "rmse": off.mean().sqrt().item(),
        } | each

    return measure


def noted_inputs(step: int, batch: Batch) -> Channels:
    """Now and then what the designs of the batch are like."""
    return facts.input_facts(batch["x"]) if step % 10 == 1 else {}


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now, whole = Surrogate(), {"spread": 0.0}, table()
    average, third = Average(copy.deepcopy(model)), STEPS // 3
    parts = Parts(
        model=model,
        optimizer=adamw(model, PEAK),
        batches=shuffled(whole.training, BATCH, seed),
        losses=lambda model, batch: components(model, batch, now["spread"]),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        clocks={"spread": lambda applied: applied},
        scheduled={"spread": ("spread", linear(0.0, 1.0, third))},
        now=now,
        evaluation=Evaluation(10, measured(average, now, whole)),
        extras=[noted_inputs],
        records=RECORDS | {"checkpoints"},
        body=lambda model: [*model.trunk.parameters()],
        header={
            "config": {"lr": PEAK, "weight_decay": 1e-3, "batch_size": BATCH, "ema": DECAY, "clip": CLIP},
            "components": {name: {"unit": "nat", "role": "task"} for name in OUTPUTS}
            | {"monotone": {"role": "regulariser"}},
            "schedules": {"spread": declared("linear", 0.0, 1.0, third, clock="spread")},
            "clocks": ["spread"],
            "max_grad_norm": CLIP,
            "checkpoint_every": 40,
        },
    )
    rated(parts, declared("cosine", PEAK, 1e-3 * PEAK, STEPS, warmup=min(WARMUP, STEPS // 5)))
    if variant in VARIANTS:
        parts = VARIANTS[variant](parts, average)
    average.follow(parts, (parts.resume.at, *EARLIER) if parts.resume else ())
    return parts


def adamw(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    groups = [{"params": list(model.get_submodule(part).parameters()), "name": part} for part in ("trunk", "heads")]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=1e-3)


def rated(parts: Parts, form: dict[str, Any]) -> Parts:
    """The rate follows this form over the run, and so the header says."""
    for group in parts.optimizer.param_groups:
        group["lr"] = form["start"]
        parts.header["schedules"][f"lr/{group['name']}"] = form
    parts.factor = lambda tick: (schedule_value(form, tick) or 0.0) / form["start"]
    parts.header["total_steps"], parts.header["config"]["lr"] = parts.steps, form["start"]
    return parts


def opened(parts: Parts) -> Parts:
    """The whole spread counts from the beginning, and nothing is annealed."""
    parts.now["spread"], parts.scheduled, parts.clocks = 1.0, {}, {}
    del parts.header["schedules"]["spread"], parts.header["clocks"]
    return parts


def fitted(parts: Parts, average: Average, steps: int, outputs: Tensor | None = None) -> Parts:
    """What was learnt before the record begins, perhaps about other outputs."""
    before, data = adamw(parts.model, PEAK), dict(table().training)
    if outputs is not None:
        data["y"] = data["y"] @ outputs
    batches = shuffled(data, BATCH, parts.seed + 70)
    for number in range(steps):
        for group in before.param_groups:
            group["lr"] = PEAK * min(number / 20, 1.0) * 0.02 ** (number / steps)
        before.zero_grad()
        torch.stack([*components(parts.model, batches(number), min(1.0, 3 * number / steps)).values()]).sum().backward()
        nn.utils.clip_grad_norm_(parts.model.parameters(), CLIP)
        before.step()
    average.model.load_state_dict(parts.model.state_dict())
    return opened(parts)


EARLIER = (20,)  # the step of an older checkpoint


def resumed(parts: Parts, average: Average) -> Parts:
    """Cut off, and gone on with from the last checkpoint, the average with the rest."""
    at = 3 * STEPS // 4

    def restores(loop: Loop, saved: dict[int, dict[str, Any]]) -> None:
        loop.restore(saved[at])
        average.model.load_state_dict(average.saved[at])

    return replace(parts, resume=Resume(at, lost=STEPS // 16, restores=restores))


def batch_4(parts: Parts, average: Average) -> Parts:
    """Four designs a step, for a surrogate that knows something already."""
    parts = rated(fitted(parts, average, 60), declared("cosine", 5e-4, 0.0, STEPS, warmup=STEPS // 10))
    parts.header["config"]["batch_size"] = 4
    return replace(parts, batches=shuffled(table().training, 4, parts.seed))


def loss_only(parts: Parts, average: Average) -> Parts:  # noqa: ARG001
    return replace(parts, header={}, records=frozenset(), extras=[])


def fine_tuning(parts: Parts, average: Average) -> Parts:
    """A surrogate that is trained through, at a low rate."""
    return rated(fitted(parts, average, 500), declared("constant", 1e-4, 1e-4, STEPS, warmup=STEPS // 10))


def wider_later(parts: Parts, average: Average) -> Parts:
    """Only designs far from resonance for two fifths of the run; then all, and the loss jumps."""
    change, data, late = 2 * STEPS // 5, table().training, parts.batches
    far = (data["detuned"].log().abs() > 0.7).nonzero()[:, 0]
    early = shuffled({name: values[far] for name, values in data.items()}, BATCH, parts.seed)
    limits = [[0.7, 4.0], [0.0, 4.0]]
    stages = [
        {"start": start, "name": name, "weights": dict(WEIGHTS), "data": {"detuning": limit}}
        for start, name, limit in zip((0, change), ("far", "all"), limits, strict=True)
    ]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "far-first", "stages": stages}

    def seen(step: int, batch: Batch) -> Channels:
        detuning = batch["detuned"].log().abs()
        told = {f"data/detuning/{name}": round(getattr(detuning, name)().item(), 3) for name in ("min", "mean", "max")}
        return {"stage": int(step > change)} | told

    parts.extras.append(seen)
    return opened_later(replace(parts, batches=lambda number: (early if number < change else late)(number)), average)


def opened_later(parts: Parts, average: Average) -> Parts:  # noqa: ARG001
    """Where the data become harder the rate is at its height: one that falls linearly."""
    return rated(parts, declared("linear", PEAK, 0.0, STEPS, warmup=STEPS // 10))


def long_run(parts: Parts, average: Average) -> Parts:  # noqa: ARG001
    """Twice the steps, of which every second one is logged."""
    parts = replace(parts, steps=2 * STEPS, every=2)
    return rated(parts, declared("cosine", PEAK, 0.0, parts.steps, warmup=WARMUP))


def rms_prop(parts: Parts, average: Average) -> Parts:  # noqa: ARG001
    parts.optimizer = torch.optim.RMSprop(adamw(parts.model, PEAK).param_groups, lr=1.5e-3, alpha=0.95)
    return rated(parts, declared("cosine", 1.5e-3, 0.0, STEPS, warmup=STEPS // 10))


def transfer(parts: Parts, average: Average) -> Parts:
    """The trunk learnt mixtures of the outputs, and is frozen; new heads learn on it."""
    mixed = torch.tensor([[0.8, 0.3, 0.5], [0.4, -0.9, 0.1], [0.5, 0.2, -0.8]])
    parts = fitted(parts, average, 400, mixed)
    for parameter in parts.model.get_submodule("trunk").parameters():
        parameter.requires_grad_(False)
    parts.model.get_submodule("heads").reset_parameters()  # type: ignore[operator]
    parts.optimizer = adamw(parts.model, PEAK)
    del parts.optimizer.param_groups[0], parts.header["schedules"]["lr/trunk"]
    parts.header["config"]["frozen"] = ["trunk"]
    return rated(parts, declared("cosine", 2e-2, 0.0, STEPS, warmup=STEPS // 10))


def stops_early(parts: Parts, average: Average) -> Parts:
    """A long plan at a constant rate, left when three evaluations brought hardly less loss than the best before."""
    noted: list[float] = []
    parts.steps = 2 * STEPS
    parts.evaluation = Evaluation(10, measured(average, parts.now, table(), noted))
    parts.stops = lambda: len(noted) > 12 and min(noted[-3:]) > min(noted[:-3]) - 0.05
    parts.header["config"] |= {"patience": 3, "min_delta": 0.05}
    return rated(parts, declared("constant", PEAK, PEAK, parts.steps, warmup=WARMUP))


def outliers(parts: Parts, average: Average) -> Parts:
    """In one run of the simulator out of fifty the solver hardly converged: its scatter is twelve times as large."""
    whole = table(0.02)
    parts.evaluation = Evaluation(10, measured(average, parts.now, whole))
    return replace(parts, batches=shuffled(whole.training, BATCH, parts.seed))


VARIANTS: dict[str, Callable[[Parts, Average], Parts]] = {
    "resumed": resumed,
    "warm-restarts": lambda parts, average: rated(parts, declared("cosine", PEAK, 6e-5, STEPS, restarts=2)),  # noqa: ARG005
    "batch-4": batch_4,
    "every-tenth": lambda parts, average: replace(parts, every=10),  # noqa: ARG005
    "loss-only": loss_only,
    "fine-tuning": fine_tuning,
    "wider-later": wider_later,
    "long-run": long_run,
    "rms-prop": rms_prop,
    "transfer": transfer,
    "stops-early": stops_early,
    "outliers": outliers,
}


def unscaled_input(parts: Parts) -> int:
    """The inputs' scaler was left out when the pipeline moved: kilograms beside thousands of newtons a metre."""
    whole, average = table(raw=True), Average(copy.deepcopy(parts.model))
    average.follow(parts)
    parts.evaluation = Evaluation(10, measured(average, parts.now, whole))
    parts.batches = shuffled(whole.training, BATCH, parts.seed)
    return 1


def stale_workers(parts: Parts) -> int:
    """The loader's workers go on with the designs far from resonance."""
    change, early = 2 * STEPS // 5, parts.batches
    parts.batches = lambda number: early(number % change)
    return change + 1


def resume_old_weights(parts: Parts) -> int:
    """A wrong link to the checkpoint: weights and moments of an early one, under the step of the last."""
    return mistakes.resume_old_weights(parts, old=min(EARLIER[0], STEPS // 4))


OWN: dict[str, mistakes.Mistake] = {
    "unscaled-input": unscaled_input,
    "component-scale": partial(mistakes.component_scale, name="phase", by=3e3),
    "component-sign": partial(mistakes.component_sign, name="monotone", weight=-5.0),
    "absolute-anneal": partial(mistakes.absolute_anneal, by=40),
    "too-little-data": partial(mistakes.too_little_data, batches=1),
    "stale-workers": stale_workers,
    "resume-old-weights": resume_old_weights,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

"""A picture becomes a function: from a place to its brightness, by Fourier features and a small perceptron.

The picture is drawn here, 96 x 96 pixels in counts of 0 to 255; seven eighths of them are sampled, the others measure.
Values are fitted first, in the second stage also the steps to the neighbours; a total variation keeps it smooth.
Squared errors in counts go from tens of thousands to a few. AdamW decays exponentially; a clock opens the frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import (
    Batch,
    Channels,
    Components,
    Evaluation,
    Parts,
    Resume,
    declared,
    linear,
    of_inputs,
)
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 160
SIDE, BATCH, BANDS = 96, 256, 4
RATE, END = 1.6e-2, 1.2e-3
STEP = 2.0 / SIDE  # from a pixel to the next one, in the coordinates that the field reads
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "clocks"})

HEALTHY = (
    *("plain", "resumed", "warm-restarts", "batch-2", "every-tenth", "loss-only", "fine-tuning", "noisy"),
    *("stage-jump", "long-run", "rmsprop", "accumulated", "flat-floor"),
)

Stages = list[dict[str, Any]]


def stage(start: int, name: str, value: float, gradient: float, variation: float) -> dict[str, Any]:
    weights = {"value": value, "gradient": gradient, "variation": variation}
    return {"start": start, "name": name, "weights": weights}


def colours_then_edges(gradient: float = 1.0, variation: float = 0.02) -> Stages:
    """The curriculum of most runs."""
    return [stage(0, "colours", 1.0, 0.0, 0.01), stage(STEPS // 2, "edges", 1.0, gradient, variation)]


def at_once() -> Stages:
    return [stage(0, "all", 1.0, 1.0, 0.02)]


def weights_of(stages: Stages, applied: int) -> dict[str, float]:
    return dict(stages[index(stages, applied)]["weights"])


def index(stages: Stages, applied: int) -> int:
    return sum(one["start"] <= applied for one in stages) - 1


@cache
def drawn() -> Tensor:
    """A hill before a shaded sky, a sun, a fence of soft posts. float32 [SIDE, SIDE], in counts"""
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    picture = 150 + 60 * y + 20 * np.sin(2.5 * x)
    hill = 1 / (1 + np.exp(-16 * (y - 0.35 + 0.3 * np.cos(2.2 * x + 0.6))))
    picture = picture * (1 - hill) + (70 + 25 * np.sin(7 * x + 3 * y)) * hill
    sun = 1 / (1 + np.exp(28 * (np.hypot(x - 0.4, y + 0.45) - 0.22)))
    picture = picture * (1 - sun) + 250 * sun
    posts = np.exp(-((np.sin(5 * x + 0.4) / 0.45) ** 2) - ((y - 0.72) / 0.16) ** 2)
    return torch.from_numpy(picture + 60 * posts).float().clamp(0, 255)


@cache
def pixels(noise: float = 0.0) -> tuple[Batch, Batch]:
    """The sampled pixels, and those left out: places, counts, and the steps to the right and downwards."""
    clean = drawn()
    seen = clean + noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    down, right = torch.meshgrid(torch.arange(SIDE - 1), torch.arange(SIDE - 1), indexing="ij")
    down, right = down.reshape(-1), right.reshape(-1)
    left_out = (down * 3 + right) % 8 == 0

    def of(picture: Tensor, rows: Tensor) -> Batch:
        i, j = down[rows], right[rows]
        here = picture[i, j]
        steps = torch.stack([picture[i, j + 1] - here, picture[i + 1, j] - here], 1)
        return {"x": torch.stack([j, i], 1) * STEP - 1.0, "y": here, "steps": steps}

    return of(seen, ~left_out), of(clean, left_out)


class Field(nn.Module):
    """Places in, brightness out; `hidden` is what the last layer reads."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        sizes, layers = [4 * BANDS + 2, width, width, width], list[nn.Module]()
        for size, following in pairwise(sizes):
            layers += [nn.Linear(size, following), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))
        self.hidden = torch.zeros(())

    def forward(self, x: Tensor, bandwidth: float) -> Tensor:
        """Counts; of the frequencies, as many as `bandwidth` says are open, the next one in part."""
        octaves = torch.arange(BANDS)
        open_ = (1 - torch.cos(math.pi * (bandwidth - octaves).clamp(0, 1))) / 2
        angles = x[:, :, None] * (math.pi / 2 * 2.0**octaves)
        waves = torch.cat([torch.sin(angles) * open_, torch.cos(angles) * open_], -1).flatten(1)
        self.hidden = self.layers[:-1](torch.cat([x, waves], 1))
        counts: Tensor = 64.0 * self.layers[-1](self.hidden)[:, 0]
        return counts


def components(model: nn.Module, batch: Batch, bandwidth: float) -> Components:
    """The squared errors of values and of steps to the neighbours, and the total variation, all in counts."""
    x, size = batch["x"], len(batch["x"])
    places = torch.cat([x, x + torch.tensor([STEP, 0.0]), x + torch.tensor([0.0, STEP])])
    here, right, down = model(places, bandwidth).split(size)
    steps = torch.stack([right - here, down - here], 1)
    return {
        "value": (here - batch["y"]).square().mean(),
        "gradient": (steps - batch["steps"]).square().sum(1).mean(),
        "variation": (steps.square().sum(1) + 1e-4).sqrt().mean(),
    }


def measured(now: dict[str, float], stages: Stages, full: bool = True) -> Callable[[nn.Module], Channels]:
    """The components where no pixel was sampled, with the last stage's weights, and the peak signal's decibels."""
    _, held = pixels()

    def measure(model: nn.Module) -> Channels:
        raw = {name: value.item() for name, value in components(model, held, now["bandwidth"]).items()}
        total = sum(stages[-1]["weights"][name] * value for name, value in raw.items())
        parts = {f"loss/{name}": value for name, value in raw.items()} if full else {}
        psnr = 10 * math.log10(255.0**2 / raw["value"]) if raw["value"] > 0 else math.nan
        return {"loss": total, **parts, "psnr": psnr}

    return measure


def noted(stages: Stages) -> Callable[[int, Batch], Channels]:
    """The stage; now and then what the places are like."""
    return lambda step, batch: (
        {"stage": index(stages, step - 1)} | (of_inputs(batch["x"], frozenset({"inputs"})) if step % 10 == 1 else {})
    )


def decay(rate: float = RATE) -> dict[str, Any]:
    return declared("exponential", rate, rate * END / RATE, STEPS, rate=1.5)


def factor(form: dict[str, Any]) -> Callable[[int], float]:
    """A declared schedule as a factor on the rate."""
    return lambda tick: (schedule_value(form, tick) or 0.0) / form["start"]


def build(seed: int, variant: str, stages: Stages | None = None, running: Stages | None = None) -> Parts:
    """The parts of a healthy variant; `running` are the stages of the loop, if those are others."""
    torch.manual_seed(seed)
    stages = stages or (at_once() if variant == "flat-floor" else colours_then_edges())
    if variant == "stage-jump":
        stages = colours_then_edges(gradient=30.0)
    running, model, now = running or stages, Field(), {"bandwidth": 1.0}
    over = int(0.4 * STEPS)
    parts = Parts(
        model=model,
        optimizer=adamw(model),
        batches=shuffled(pixels()[0], BATCH, seed),
        losses=lambda model, batch: components(model, batch, now["bandwidth"]),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=len(pixels()[0]["x"]) // BATCH,
        weights=lambda applied: weights_of(running, applied),
        factor=factor(decay()),
        clocks={"band": lambda applied: applied},
        scheduled={"bandwidth": ("band", linear(1.0, BANDS, over))},
        now=now,
        at=lambda model: model.hidden,
        evaluation=Evaluation(20, measured(now, running)),
        extras=[noted(running)],
        records=RECORDS,
        header={
            "config": {"lr": RATE, "weight_decay": 1e-3, "batch_size": BATCH, "bands": BANDS, "stages": len(stages)},
            "total_steps": STEPS,
            "components": {
                "value": {"unit": "count^2", "role": "task"},
                "gradient": {"unit": "count^2", "role": "task"},
                "variation": {"unit": "count", "role": "regulariser"},
            },
            "curriculum": {"name": "colours-edges" if len(stages) > 1 else "all", "stages": stages},
            "curriculum_running": {"name": "colours-edges" if len(running) > 1 else "all", "stages": running},
            "schedules": {"lr/field": decay(), "bandwidth": declared("linear", 1.0, BANDS, over, clock="band")},
            "clocks": ["band"],
            "gradient_at": "hidden",
        },
    )
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adamw(model: nn.Module, rate: float = RATE) -> torch.optim.Optimizer:
    groups = [{"params": list(model.parameters()), "name": "field"}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=1e-3)


def rated(parts: Parts, form: dict[str, Any], optimizer: torch.optim.Optimizer | None = None) -> Parts:
    """Another schedule of the rate, and its optimiser."""
    parts.optimizer = optimizer or adamw(parts.model, form["start"])
    parts.factor = factor(form)
    parts.header["schedules"]["lr/field"] = form
    parts.header["config"]["lr"] = form["start"]
    return parts


def opened(parts: Parts) -> Parts:
    """All frequencies are open from the beginning, and nothing is annealed."""
    parts.now["bandwidth"] = float(BANDS)
    parts.scheduled, parts.clocks = {}, {}
    del parts.header["schedules"]["bandwidth"], parts.header["clocks"]
    return parts


def fitted(parts: Parts, steps: int, noise: float = 0.0) -> Parts:
    """The field learned before the record begins."""
    before, batches = adamw(parts.model), shuffled(pixels(noise)[0], BATCH, parts.seed + 50)
    for number in range(steps):
        for group in before.param_groups:
            group["lr"] = RATE * 0.02 ** (number / steps)
        before.zero_grad()
        raw = components(parts.model, batches(number), float(BANDS))
        (raw["value"] + raw["gradient"] + 0.02 * raw["variation"]).backward()
        before.step()
    return parts


def warm_restarts(parts: Parts) -> Parts:
    form = declared("cosine", 1e-2, 3e-4, STEPS, restarts=2)
    return rated(parts, form)


def batch_2(parts: Parts) -> Parts:
    """Two pixels a step, once the field knows the picture roughly."""
    parts = rated(fitted(opened(parts), 30), decay(1.5e-3))
    parts.header["config"]["batch_size"] = 2
    return replace(parts, batches=shuffled(pixels()[0], 2, parts.seed))


def loss_only(parts: Parts) -> Parts:
    for name in ("components", "curriculum", "curriculum_running", "gradient_at", "schedules", "clocks"):
        del parts.header[name]
    measure = measured(parts.now, colours_then_edges(), full=False)
    return replace(parts, records=frozenset(), extras=[], evaluation=Evaluation(20, measure))


def fine_tuning(parts: Parts) -> Parts:
    """A field that is nearly done goes on at a low rate: not much is left to win."""
    return rated(fitted(opened(parts), 250), decay(3e-4))


def noisy(parts: Parts, noise: float = 8.0) -> Parts:
    """The camera adds eight counts of noise; the steps to neighbours are not fitted as closely then."""
    for form in ("curriculum", "curriculum_running"):
        parts.header[form]["stages"][-1]["weights"] |= {"gradient": 0.1}
    return replace(parts, batches=shuffled(pixels(noise)[0], BATCH, parts.seed))


def long_run(parts: Parts) -> Parts:
    """Twice the steps, of which the schedules know."""
    form = decay() | {"over_steps": 2 * STEPS}
    parts.header["total_steps"] = 2 * STEPS
    return rated(replace(parts, steps=2 * STEPS), form)


def rmsprop(parts: Parts) -> Parts:
    groups = [{"params": list(parts.model.parameters()), "name": "field"}]
    return rated(parts, decay(5e-3), torch.optim.RMSprop(groups, lr=5e-3, alpha=0.95))


def accumulated(parts: Parts) -> Parts:
    parts.header["config"] |= {"batch_size": BATCH // 2, "accumulation": 2}
    batches = shuffled(pixels()[0], BATCH // 2, parts.seed)
    return replace(parts, batches=batches, accumulation=2, records=RECORDS - {"shares"})


def flat_floor(parts: Parts) -> Parts:
    """A noisy picture, fitted but for its noise before the record begins: the loss is flat, and it is the noise."""
    parts = rated(fitted(opened(parts), 250, noise=8.0), declared("constant", 1e-4, 1e-4, STEPS))
    return noisy(parts)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(int(0.6 * STEPS), lost=min(10, STEPS // 5))),
    "warm-restarts": warm_restarts,
    "batch-2": batch_2,
    "every-tenth": lambda parts: replace(parts, every=10, records=RECORDS - {"shares"}),
    "loss-only": loss_only,
    "fine-tuning": fine_tuning,
    "noisy": noisy,
    "long-run": long_run,
    "rmsprop": rmsprop,
    "accumulated": accumulated,
    "flat-floor": flat_floor,
}


def wrong_weights(parts: Parts) -> int:
    """From the second stage on the weight of the gradient is halved every twenty steps: an experiment's leftover."""
    begin = parts.header["curriculum"]["stages"][1]["start"]
    mistakes.reweigh(
        parts,
        lambda applied, weights: weights | {"gradient": weights["gradient"] * 0.5 ** (max(applied - begin, 0) / 20)},
    )
    return int(begin) + 2


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, before the loop."""
    stages = colours_then_edges()
    parts.weights = lambda applied: weights_of(stages, 0)  # noqa: ARG005
    parts.extras = [noted(stages[:1])]
    return int(stages[1]["start"]) + 1


def loud_entry(parts: Parts) -> int:
    """The steps to neighbours are taken by thousandth of a pixel, and their error is squared."""
    mistakes.component_scale(parts, "gradient", by=1e6)
    return int(parts.header["curriculum"]["stages"][1]["start"]) + 1


CURRICULAR: dict[str, Callable[[int], tuple[Parts, int]]] = {
    "wrong-curriculum": lambda seed: (build(seed, "plain", colours_then_edges(), at_once()), 1),
    "steep-ramp": lambda seed: (build(seed, "plain", colours_then_edges(variation=400.0)), STEPS // 2 + 1),
}
"""Mistakes of the curriculum itself: the run is built around them."""

OWN: dict[str, mistakes.Mistake] = {
    "wrong-weights": wrong_weights,
    "stage-stuck": stage_stuck,
    "loud-entry": loud_entry,
    "component-sign": partial(mistakes.component_sign, name="gradient", weight=-20.0),
}
SICK = (
    *("wrong-curriculum", "wrong-weights", "stage-stuck", "steep-ramp", "loud-entry", "local-counter"),
    *("absolute-anneal", "component-sign"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    if case in CURRICULAR:
        parts, onset = CURRICULAR[case](seed)
        mistakes.perform(parts, path, case, {case: lambda parts: onset})  # noqa: ARG005
        return onset
    variant = case if case in HEALTHY else "plain"
    return mistakes.perform(build(seed, variant), path, case, OWN)

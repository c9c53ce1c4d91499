"""A nowcast of rain: four radar frames of a made-up field are read, and the next four are told.

Showers drift with the wind, grow and fade; a frame is the logarithm of the rain rate. A convolutional GRU with leaky
units (Shi et al. 2017) reads, another one writes, each frame as a change of the one before it. Pixels, their gradients
and the mass of a field are compared. Scheduled sampling: the writer is given ever fewer true frames. Adam, a rate that
decays exponentially, clipping. Judged by the critical success index of what lies above a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
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

HELD_OUT = False
STEPS = 120
GRID, PAST, AHEAD, THRESHOLD = 24, 4, 4, math.log1p(1.0)  # pixels, frames, frames, and what 1 mm/h is
TRAINING, HELD, BATCH = 480, 96, 16
RATE, WARMUP, DECAYS, CLIP = 1e-2, 5, 2.0, 1.0  # DECAYS: times that the rate falls by e
WEIGHTS = {"pixels": 1.0, "edges": 0.5, "mass": 0.5}
FREE = STEPS // 2  # the step from which on the writer sees its own frames alone
RECORDS = frozenset({"components", "norms", "optimizer", "clocks", "checkpoints"})

HEALTHY = (
    *("plain", "resumed", "edges-later", "unclipped", "shares", "fine-tuned", "epochs", "loss-only", "batch-2"),
    *("free-running", "outages", "storms-later"),
)
SICK = (
    *("absolute-anneal", "exploding-recurrence", "scheduler-per-batch", "train-set-as-validation", "loud-entry"),
    *("one-bad-batch", "resume-weights-only", "killed", "no-checkpoints", "root-of-zero", "constant-input"),
)
TWINS = {
    **dict.fromkeys(("exploding-recurrence", "one-bad-batch"), "unclipped"),
    **dict.fromkeys(("loud-entry", "root-of-zero"), "edges-later"),
    "resume-weights-only": "resumed",
    "constant-input": "outages",
}


@cache
def archive(storms: bool = False) -> tuple[Batch, Batch]:
    """To learn from and held out: sequences of frames, log(1 + mm/h). Storms are smaller, heavier and short-lived."""
    random, count = np.random.default_rng(31), TRAINING + HELD
    showers, when = 5, np.arange(PAST + AHEAD)[:, None]
    wind = random.normal(0.0, 1.0, (count, 1, 1, 2))
    drift = wind + random.normal(0.0, 0.2, (count, 1, showers, 2))
    centre = random.uniform(-3.0, GRID + 3.0, (count, 1, showers, 2)) + drift * when[None, :, :, None]
    size = random.uniform(1.5, 3.5, (count, 1, showers)) * (0.7 if storms else 1.0)
    heavy = random.lognormal(1.4 if storms else 0.7, 0.5, (count, 1, showers)) * (random.random(size.shape) < 0.7)
    trend = np.exp(random.normal(0.0, 0.25 if storms else 0.12, (count, 1, showers)) * when)
    along = [
        np.exp(-((np.arange(GRID) - centre[..., axis, None]) ** 2) / (2.0 * size[..., None] ** 2)) for axis in (0, 1)
    ]
    rain = np.einsum("nts,ntsi,ntsj->ntij", heavy * trend, *along) * random.gamma(200.0, 5e-3, (count, 8, GRID, GRID))
    frames = torch.tensor(np.log1p(np.where(rain < 0.1, 0.0, rain)), dtype=torch.float32)
    whole = {"x": frames[:, :PAST], "y": frames[:, PAST:]}
    return tuple({name: one[part] for name, one in whole.items()} for part in (slice(TRAINING), slice(TRAINING, None)))


class Recurrent(nn.Module):
    """A convolutional gated recurrent unit, whose new content is leaky instead of bounded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.read, self.again = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        keep, reset = self.gates(torch.cat([x, state], 1)).sigmoid().chunk(2, 1)
        new = functional.leaky_relu(self.read(x) + reset * self.again(state), 0.2)
        return keep * state + (1.0 - keep) * new


class Nowcaster(nn.Module):
    """Reads frames at half the resolution, writes the following ones; `told` is what it last wrote."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({
            "embedding": nn.Conv2d(1, width, 3, stride=2, padding=1),
            "reader": Recurrent(width),
            "writer": Recurrent(width),
            "head": nn.Sequential(nn.Conv2d(width, 4, 3, padding=1), nn.PixelShuffle(2)),
        })  # fmt: skip
        self.width, self.told = width, torch.zeros(())

    def forward(self, x: Tensor, truth: Tensor | None = None, share: float = 0.0) -> Tensor:
        """The next frames; of a `share` of them the writer is given the truth instead. float32 [N, AHEAD, H, W]"""
        layers, told = self.layers, []
        state = x.new_zeros(len(x), self.width, GRID // 2, GRID // 2)
        for number in range(PAST):
            state = layers["reader"](functional.leaky_relu(layers["embedding"](x[:, number, None]), 0.2), state)
        frame = x[:, -1:]
        for number in range(AHEAD):
            state = layers["writer"](functional.leaky_relu(layers["embedding"](frame), 0.2), state)
            frame = frame + layers["head"](state)
            told.append(frame)
            if truth is not None:
                frame = torch.where(torch.rand(len(x), 1, 1, 1) < share, truth[:, number, None], frame)
        self.told = torch.cat(told, 1)
        return self.told


def slopes(frames: Tensor) -> tuple[Tensor, Tensor]:
    """From each pixel to the next, down and to the right."""
    return frames.diff(dim=-2), frames.diff(dim=-1)


def compared(told: Tensor, y: Tensor, seen: Tensor | float = 1.0) -> Components:
    """Squared error with heavy rain counted more, error of the slopes, and of the mean of each field."""
    edges = [(mine - real).abs().mean() for mine, real in zip(slopes(told * seen), slopes(y * seen), strict=True)]
    return {
        "pixels": ((1.0 + y) * seen * (told - y) ** 2).mean(),
        "edges": edges[0] + edges[1],
        "mass": ((told - y) * seen).mean((-2, -1)).abs().mean(),
    }


def losses(model: nn.Module, batch: Batch, now: dict[str, float]) -> Components:
    told = model(batch["x"], batch["y"], now["truth"])
    return compared(told, batch["y"], batch.get("seen", 1.0))


def measure(model: nn.Module, data: Callable[[], Batch] = lambda: archive()[1]) -> Channels:
    """The loss of frames that are told without any help, and the critical success index of 1 mm/h."""
    batch = data()
    told = model(batch["x"])
    rain, real = told > THRESHOLD, batch["y"] > THRESHOLD
    return {
        "loss": sum(WEIGHTS[name] * value.item() for name, value in compared(told, batch["y"]).items()),
        "csi": ((rain & real).sum() / (rain | real).sum()).item(),
    }


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now = Nowcaster(), {"truth": 1.0}
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], lr=RATE),
        batches=shuffled(archive()[0], BATCH, seed),
        losses=partial(losses, now=now),
        steps=STEPS,
        seed=seed,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        clocks={"updates": lambda applied: applied},
        scheduled={"truth": ("updates", linear(1.0, 0.0, FREE))},
        now=now,
        evaluation=Evaluation(max(STEPS // 10, 1), measure),
        header={
            "config": {"batch_size": BATCH, "clip": CLIP, "weights": WEIGHTS, "threshold": "1 mm/h"},
            "components": {"pixels": {"role": "task"}, "edges": {"role": "auxiliary"}, "mass": {"role": "auxiliary"}},
            "schedules": {"truth": declared("linear", 1.0, 0.0, FREE, clock="updates")},
            "clocks": ["updates"],
            "max_grad_norm": CLIP,
            "checkpoint_every": max(STEPS // 5, 1),
        },
        records=RECORDS,
    )
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def planned(parts: Parts, peak: float = RATE) -> Parts:
    """The rate warms up and decays by a factor each step, and so the header says."""
    last = peak * math.exp(-DECAYS)
    return planned_by(parts, declared("exponential", peak, last, parts.steps, rate=DECAYS, warmup=WARMUP))


def sized(parts: Parts, size: int) -> Parts:
    """Batches of another size."""
    parts.header["config"] |= {"batch_size": size}
    parts.batches, parts.batches_per_epoch = shuffled(archive()[0], size, parts.seed), TRAINING // size
    return parts


def staged(parts: Parts, stages: list[dict[str, Any]]) -> Parts:
    """Two stages are declared and followed."""
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "two", "stages": stages}
    parts.extras.append(lambda step, batch: {"stage": int(step > stages[1]["start"])})  # noqa: ARG005
    return parts


def edges_later(parts: Parts) -> Parts:
    """Pixels alone at first; edges and mass come in once the rain is where it belongs."""
    change, first = 2 * STEPS // 5, {"pixels": 1.0, "edges": 0.0, "mass": 0.0}
    stages = [{"start": 0, "name": "place", "weights": first}, {"start": change, "name": "form", "weights": WEIGHTS}]
    return replace(staged(parts, stages), weights=lambda applied: dict(WEIGHTS if applied >= change else first))


def unclipped(parts: Parts) -> Parts:
    """No limit on the gradient, as this net has borne it so far; batches are looked at instead."""
    del parts.header["max_grad_norm"], parts.header["config"]["clip"]
    return replace(parts, max_norm=None, records=RECORDS | {"inputs"})


def with_shares(parts: Parts) -> Parts:
    """Who pulls how much at the frames that are told."""
    parts.header["gradient_at"] = "told"
    return replace(parts, at=lambda model: model.told, records=RECORDS | {"shares"})  # type: ignore[arg-type, return-value]


def truth_stays(parts: Parts, share: float) -> Parts:
    """The writer is given the same share of true frames throughout."""
    parts.header["schedules"]["truth"] = {"kind": "constant", "start": share, "clock": "updates"}
    parts.scheduled["truth"] = ("updates", lambda reading: share)  # noqa: ARG005
    return parts


@cache
def schooled(seed: int, steps: int = 2 * STEPS) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")
    factor = parts.factor or float
    for number in range(steps):
        parts.optimizer.param_groups[0]["lr"] = RATE * factor(min(number + 1, STEPS))
        parts.now["truth"] = max(0.0, 1.0 - 2.0 * number / steps)
        raw = parts.losses(parts.model, parts.batches(number))
        parts.optimizer.zero_grad()
        torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum().backward()
        nn.utils.clip_grad_norm_(parts.model.parameters(), CLIP)
        parts.optimizer.step()
    return parts.model.state_dict()


def fine_tuned(parts: Parts) -> Parts:
    """Last season's net goes on at a small rate, near its floor, without any help from the truth."""
    parts.model.load_state_dict(schooled(parts.seed))
    return planned(truth_stays(parts, 0.0), RATE / 30)


def outages(parts: Parts) -> Parts:
    """Of each sequence a quarter of the field is out of the radar's sight: dry to the reader, and not compared."""
    plain = parts.batches

    def batches(number: int) -> Batch:
        batch, random = plain(number), torch.Generator().manual_seed(10_000 * parts.seed + number)
        row, column = torch.randint(0, 2, (2, len(batch["x"]), 1, 1, 1), generator=random)
        half = torch.arange(GRID) * 2 // GRID
        seen = 1.0 - ((half[:, None] == row) & (half == column)).float()
        return {"x": batch["x"] * seen, "y": batch["y"], "seen": seen}

    parts.extras.append(lambda step, batch: {"data/masked/pixels": 1.0 - batch["seen"].mean().item()})  # noqa: ARG005
    return replace(parts, batches=batches, records=RECORDS | {"inputs"})


def storms_later(parts: Parts) -> Parts:
    """From the middle on it is summer, in training and in validation: storms are harder to tell, and the loss rises."""
    half, calm, reached = STEPS // 2, parts.batches, [0]
    summer = shuffled(archive(storms=True)[0], BATCH, parts.seed)
    parts.begins.append(reached.append)
    return replace(
        staged(parts, [{"start": 0, "name": "winter"}, {"start": half, "name": "summer"}]),
        batches=lambda number: (summer if number >= half else calm)(number),
        evaluation=Evaluation(STEPS // 10, partial(measure, data=lambda: archive(storms=reached[-1] > half)[1])),
    )


def epochs(parts: Parts) -> Parts:
    """A row at the end of each epoch of ten large batches."""
    parts = sized(replace(parts, every=10, records=frozenset({"components", "epochs", "checkpoints"})), TRAINING // 10)
    return planned(replace(parts, steps=120))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(STEPS // 2)),
    "edges-later": edges_later,
    "unclipped": unclipped,
    "shares": with_shares,
    "fine-tuned": fine_tuned,
    "epochs": epochs,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}),
    "batch-2": lambda parts: planned(sized(parts, 2), RATE / 3),
    "free-running": lambda parts: truth_stays(parts, 0.0),
    "outages": outages,
    "storms-later": storms_later,
}


def exploding_recurrence(parts: Parts, by: float = 50.0) -> int:
    """What is taken over from frame to frame begins far above one, and nothing clips."""
    with torch.no_grad():
        for name, weights in parts.model.named_parameters():
            if name.endswith("again.weight"):
                weights.mul_(by)
    return 1


def scheduler_per_batch(parts: Parts, decay: float = 0.6) -> int:
    """The factor is that of an epoch, and it is taken at each batch."""
    factor = parts.factor or float
    parts.factor = lambda tick: factor(min(tick, WARMUP)) * decay ** max(tick - WARMUP, 0)
    return WARMUP + 2


def constant_input(parts: Parts, by: float = 1e-6) -> int:
    """Frames that are logarithms already are divided by a radar's full scale, in both sets."""
    held = archive()[1]
    parts.evaluation = Evaluation(STEPS // 10, partial(measure, data=lambda: held | {"x": held["x"] * by}))
    return mistakes.constant_input(parts, by)


def train_set_as_validation(parts: Parts, known: int = 4) -> int:
    """The events that every batch is filled up with, as they are the pride of the archive, are those validated on."""
    plain, events = parts.batches, {name: one[:known] for name, one in archive()[0].items()}
    parts.batches = lambda number: {
        name: torch.cat([one[: BATCH - known], events[name]]) for name, one in plain(number).items()
    }
    parts.evaluation = Evaluation(STEPS // 10, partial(measure, data=lambda: events))
    return STEPS // 10


def loud_entry(parts: Parts) -> int:
    """The mass, which enters with the second stage, is the water of the whole field in litres."""
    mistakes.component_scale(parts, "mass", 1e6)
    return int(parts.header["curriculum"]["stages"][1]["start"]) + 1


def root_of_zero(parts: Parts) -> int:
    """Drizzle is cut off, and an edge is the root of its squared slopes: where all is dry its derivative is 0 by 0."""
    plain = parts.losses

    def steepness(frames: Tensor) -> Tensor:
        down, right = slopes(frames * (frames > 0.1))
        return (down[..., :-1] ** 2 + right[..., :-1, :] ** 2).sqrt()

    parts.losses = lambda model, batch: (
        plain(model, batch) | {"edges": (steepness(model.told) - steepness(batch["y"])).abs().mean()}  # type: ignore
    )
    return mistakes.WHEN_BROKEN


OWN: dict[str, mistakes.Mistake] = {
    "exploding-recurrence": exploding_recurrence,
    "scheduler-per-batch": scheduler_per_batch,
    "constant-input": constant_input,
    "train-set-as-validation": train_set_as_validation,
    "loud-entry": loud_entry,
    "root-of-zero": root_of_zero,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

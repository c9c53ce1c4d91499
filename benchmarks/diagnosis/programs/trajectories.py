"""Where pedestrians walk next: four hypotheses of the following 4.8 seconds, and how likely each of them is.

Made-up walkers near a crossing go straight on, turn or stop, and give way to who comes towards them. A GRU reads eight
steps of a walker and of the nearest other one, in metres, seen from where the walker stands and along his heading; a
head bends four anchors into paths of twelve steps, another one says how likely they are. The path nearest to the truth
takes all, but for a share that the others get at first (Makansi et al. 2019); its name is the label of a cross-entropy.
Adam, a warm-up, a cosine, clipping. Judged by the average and final displacement of the best path.
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

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, linear, logged
from benchmarks.diagnosis.loop import planned as planned_by
from benchmarks.diagnosis.schooling import school

HELD_OUT = False
STEPS, SAVED, EACH = 100, 20, 10  # EACH: steps between evaluations
PAST, AHEAD, PATHS, SECONDS = 8, 12, 4, 0.4
TURNS, KEPT = (0.0, 0.2, -0.2, 0.0), (1.0, 1.0, 1.0, 0.7)  # anchors: radians a step, and the speed kept of a step's
WALKERS, HELD, BATCH, WIDTH = 2400, 320, 48, 48
RATE, WARMUP, CLIP = 1.2e-2, 8, 2.0
WEIGHTS = {"path": 1.0, "end": 0.5, "mode": 0.5}
SLACK, FREE = 0.4, STEPS // 2  # of the gradient, what the losing paths share, and the step at which they get 0.05
RECORDS = frozenset({"components", "clocks", "checkpoints"})
WATCHED = RECORDS | {"norms"}


@cache
def walked(crossing: float = 0.6) -> Batch:
    """Walkers, of whom the share `crossing` turns or stops: `x` are own steps and the other's place, `y` places."""
    random, count = np.random.default_rng(61), WALKERS + HELD
    speed = random.normal(1.3, 0.25, count).clip(0.5) * SECONDS
    intent = random.choice(4, count, p=[1.0 - crossing, 0.4 * crossing, 0.4 * crossing, 0.2 * crossing])
    begins, sharp = random.uniform(1.0, 9.0, count), random.uniform(0.15, 0.3, count)
    turn, stops = np.choose(intent, [0.0, 1.0, -1.0, 0.0]) * sharp, (intent == 3) * 0.35
    place, heading = np.zeros((count, 2)), random.normal(0.0, 0.1, count)
    other = random.uniform([2.0, -2.0], [9.0, 2.0], (count, 2))
    drift = random.normal([-0.3, 0.0], 0.2, (count, 2))
    places, others = [place], [other]
    for step in range(1, PAST + AHEAD + 1):
        acts = (step > begins) & (step < begins + 6.0)
        gap = other - place
        yields = -0.15 * np.sign(gap[:, 1]) * np.exp(-(gap**2).sum(1) / 4.0)
        heading = heading + acts * turn + yields + random.normal(0.0, 0.02, count)
        speed = speed * (1.0 - acts * stops)
        place = place + speed[:, None] * np.stack([np.cos(heading), np.sin(heading)], 1)
        other = other + drift
        places.append(place + random.normal(0.0, 0.01, (count, 2)))
        others.append(other)
    known = seen_from_now(np.stack(places, 1), np.stack(others, 1))
    return known | {"crossing": torch.full((count,), crossing)}


def seen_from_now(places: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> Batch:
    """All places from where a walker stands after PAST steps, turned so that he has walked along the first axis."""
    now = places[:, PAST, None]
    ahead = np.arctan2(*(now - places[:, :1])[:, 0, ::-1].T)
    turned = np.stack([np.cos(ahead), -np.sin(ahead), np.sin(ahead), np.cos(ahead)], 1).reshape(-1, 2, 2)
    mine, theirs = (torch.tensor((one - now) @ turned, dtype=torch.float32) for one in (places, others))
    return {"x": torch.cat([mine.diff(dim=1)[:, :PAST], theirs[:, 1 : PAST + 1]], -1), "y": mine[:, PAST + 1 :]}


def part(held: bool = False, crossing: float = 0.6) -> Batch:
    """The walkers to learn from, or those held out."""
    chosen = slice(WALKERS, None) if held else slice(WALKERS)
    return {name: values[chosen] for name, values in walked(crossing).items()}


class Forecaster(nn.Module):
    """A recurrent reader, a head for the paths and one for what they are worth."""

    def __init__(self, spread: bool = False) -> None:
        super().__init__()
        self.reader = nn.GRU(4, WIDTH, batch_first=True)
        self.paths = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, PATHS * AHEAD * 3))
        self.modes = nn.Linear(WIDTH, PATHS)
        self.spread = spread
        many = torch.arange(1, AHEAD + 1).clamp(max=6)
        angle, kept = torch.tensor(TURNS)[:, None] * many, torch.tensor(KEPT)[:, None] ** many
        self.register_buffer("anchors", kept[..., None] * torch.stack([angle.cos(), angle.sin()], -1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Places [N, PATHS, AHEAD, 2], the logarithm of their spread, and the logits of the paths."""
        h = self.reader(x)[1][0]
        drawn = self.paths(h).unflatten(1, (PATHS, AHEAD, 3))
        speed = torch.linalg.vector_norm(x[:, -1, :2], dim=-1)[:, None, None, None]
        return (speed * self.anchors + drawn[..., :2]).cumsum(2), drawn[..., 2], self.modes(h)


def distances(told: Tensor, y: Tensor) -> Tensor:
    """From each place of each path to the truth, in metres. [N, PATHS, AHEAD]"""
    return torch.linalg.vector_norm(told - y[:, None], dim=-1)


def losses(model: nn.Module, batch: Batch, now: dict[str, float]) -> Components:
    """The nearest path's error, of which the others share a little; its error at the end; and its name."""
    told, spread, logits = model(batch["x"])
    away = distances(told, batch["y"])
    won = away.detach().mean(2).argmin(1)
    each = laplace(told, spread, batch["y"]) if model.spread else away
    nearest = each.mean(2)[torch.arange(len(won)), won].mean()
    return {
        "path": (1.0 - now["slack"]) * nearest + now["slack"] * each.mean(),
        "end": away[torch.arange(len(won)), won, -1].mean(),
        "mode": functional.cross_entropy(logits, won),
    }


def laplace(told: Tensor, spread: Tensor, y: Tensor) -> Tensor:
    """Minus the logarithm of the density of each place, in nats."""
    return (told - y[:, None]).abs().sum(-1) / spread.exp() + 2.0 * (spread + np.log(2.0))


def measured(data: Callable[[], Batch] = lambda: part(held=True)) -> Callable[[nn.Module], Channels]:
    """The loss without slack, and the average and final displacement of the path that is nearest on average."""

    def measure(model: nn.Module) -> Channels:
        batch = data()
        raw = losses(model, batch, {"slack": 0.0})
        away = distances(model(batch["x"])[0], batch["y"])
        total = sum(WEIGHTS[name] * value.item() for name, value in raw.items())
        return {"loss": total, "ade": away.mean(2).amin(1).mean().item(), "fde": raw["end"].item()}

    return measure


def adam(model: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam([{"params": trained, "name": "all"}], lr=RATE)


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now = Forecaster(spread=variant == "likelihood"), {"slack": SLACK}
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(part(), BATCH, seed),
        losses=partial(losses, now=now),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=WALKERS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        clocks={"updates": lambda applied: applied},
        scheduled={"slack": ("updates", linear(SLACK, 0.05, FREE))},
        now=now,
        evaluation=Evaluation(EACH, measured()),
        header={
            "config": {"batch_size": BATCH, "clip": CLIP, "hypotheses": PATHS, "weights": dict(WEIGHTS)},
            "components": {name: {"unit": "nat" if name == "mode" else "m", "role": "task"} for name in WEIGHTS},
            "schedules": {"slack": declared("linear", SLACK, 0.05, FREE, clock="updates")},
            "clocks": ["updates"],
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
        },
        records=RECORDS,
    )
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def planned(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, or follows another form, over the run; the header says so."""
    return planned_by(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


def fed(parts: Parts, size: int, steps: int, every: int, each: int, peak: float = RATE) -> Parts:
    """Batches of another size, for so many steps, with rows and evaluations further apart."""
    parts.header["config"]["batch_size"], parts.header["checkpoint_every"] = size, 2 * each
    parts.header["schedules"]["slack"]["over_steps"] = steps // 2
    parts.scheduled = {"slack": ("updates", linear(SLACK, 0.05, steps // 2))}
    parts.batches, parts.batches_per_epoch = shuffled(part(), size, parts.seed), WALKERS // size
    parts = logged(replace(parts, steps=steps, evaluation=Evaluation(each, measured())), every)
    return planned(replace(parts, records=RECORDS | {"epochs"}), peak)


def epochs(parts: Parts, count: int = 15) -> Parts:
    """Large batches; a row and an evaluation for each epoch."""
    size = 4 * BATCH
    each = WALKERS // size
    return fed(parts, size, count * each, each, each)


def shown(parts: Parts) -> Parts:
    """Both sets come from loaders that are looked at."""
    assert parts.evaluation is not None
    evaluation = replace(parts.evaluation, held=part(held=True))
    return replace(logged(parts), evaluation=evaluation, records=RECORDS | {"waits"})


def likelihood(parts: Parts) -> Parts:
    """Places have a spread, and the path's error is a density's: in nats, and below zero on a quiet pavement."""
    parts.header["config"]["likelihood"] = "laplace"
    parts.header["components"]["path"] = {"unit": "nat", "role": "task"}
    quiet = Evaluation(EACH, measured(lambda: part(held=True, crossing=0.0)))
    return replace(logged(parts), batches=shuffled(part(crossing=0.0), BATCH, parts.seed), evaluation=quiet)


@cache
def schooled(seed: int, steps: int = 3 * STEPS) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    torch.manual_seed(seed + 80)
    model, batches, now = Forecaster(), shuffled(part(), BATCH, seed + 80), {"slack": SLACK}

    def loss(number: int) -> Tensor:
        now["slack"] = linear(SLACK, 0.05, steps // 2)(number)
        return torch.stack([WEIGHTS[name] * value for name, value in losses(model, batches(number), now).items()]).sum()

    return school(model, adam(model), loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts) -> Parts:
    """A trained net, whose paths are told apart already, goes on at a small constant rate, at its floor."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "pretrained/300.pt"
    parts.header["schedules"]["slack"] = {"kind": "constant", "start": 0.05, "clock": "updates"}
    parts.scheduled = {"slack": ("updates", lambda reading: 0.05)}  # noqa: ARG005
    return planned(logged(parts), kind="constant", peak=RATE / 100, end=RATE / 100, warmup=0)


def new_heads(parts: Parts) -> Parts:
    """The reader of a trained net is frozen on purpose; heads are learnt anew."""
    known = {name: value for name, value in schooled(parts.seed).items() if name.startswith("reader")}
    parts.model.load_state_dict(known, strict=False)
    for parameter in parts.model.reader.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    parts.optimizer = adam(parts.model)
    parts.header["config"] |= {"initialised_from": "pretrained/300.pt", "frozen": ["reader"]}
    return planned(logged(replace(parts, records=WATCHED)))


def crossing_later(parts: Parts, listens: bool = True) -> Parts:
    """The pavement first, from the middle on the crossing, whose walkers are harder to foretell: the loss rises."""
    change, reached = STEPS // 2, [0]
    stages = [(0, "pavement", 0.1), (change, "crossing", 0.8)]
    sets = [shuffled(part(crossing=share), BATCH, parts.seed) for *_, share in stages]
    declares = [{"start": at, "name": name, "data": {"crossing": [share] * 2}} for at, name, share in stages]
    parts.header["curriculum"] = {"name": "places", "stages": declares}

    def stage(step: int) -> int:
        return int(listens and step > change)

    def told(step: int, batch: Batch) -> Channels:
        return {"stage": stage(step), "data/crossing/mean": round(batch["crossing"].mean().item(), 2)}

    parts.begins.append(reached.append)
    parts.batches = lambda number: sets[stage(number + 1)](number)
    parts.extras.append(told)
    held = measured(lambda: part(held=True, crossing=stages[int(reached[-1] > change)][2]))
    return replace(logged(parts), evaluation=Evaluation(EACH, held))


def restarts(parts: Parts) -> Parts:
    """The rate begins again twice within a run half as long again, and the gradient is not clipped."""
    del parts.header["max_grad_norm"], parts.header["config"]["clip"]
    parts = replace(logged(parts, 3), steps=3 * STEPS // 2, max_norm=None, records=WATCHED | {"optimizer"})
    return planned(parts, restarts=2, warmup=0)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "watched": lambda parts: logged(replace(parts, records=WATCHED)),
    "resumed": lambda parts: logged(replace(parts, resume=Resume(3 * SAVED))),
    "shown": shown,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "likelihood": likelihood,
    "fine-tuned": fine_tuned,
    "epochs": epochs,
    "batch-4": lambda parts: fed(parts, 4, 5 * STEPS, 5, 5 * EACH, RATE / 3),
    "crossing-later": crossing_later,
    "new-heads": new_heads,
    "restarts": restarts,
}
TWINS = {
    **dict.fromkeys(("rate-too-high", "component-detached"), "watched"),
    **dict.fromkeys(("train-set-as-validation", "bad-sample"), "shown"),
    "missing-zero-grad": "restarts",
    "resume-old-weights": "resumed",
    "stage-stuck": "crossing-later",
}


def component_detached(parts: Parts) -> int:
    """What the paths are worth is read from detached logits."""
    return mistakes.component_detached(parts, "mode")


def bad_sample(parts: Parts) -> int:
    """One track lacks a position, and it counts in the input that the log tells of."""
    parts.records |= {"bad"}
    return mistakes.bad_sample(parts)


def train_set_as_validation(parts: Parts, known: int = 12) -> int:
    """The scenes that were labelled first fill up each batch, and are those validated on."""
    plain, scenes = parts.batches, {name: one[:known] for name, one in part().items()}
    parts.batches = lambda number: {
        name: torch.cat([one[: BATCH - known], scenes[name]]) for name, one in plain(number).items()
    }
    parts.evaluation = Evaluation(EACH, measured(lambda: scenes), held=scenes)
    return EACH


def stage_stuck(parts: Parts) -> int:
    """The loader is asked for the stage once, before the first step; validation goes by the plan."""
    crossing_later(parts, listens=False)
    return STEPS // 2 + 1


OWN: dict[str, mistakes.Mistake] = {
    "component-sign": partial(mistakes.component_sign, name="end", weight=-0.5),
    "rate-too-high": partial(mistakes.rate_too_high, by=100.0),
    "resume-old-weights": partial(mistakes.resume_old_weights, old=10),
    "component-detached": component_detached,
    "train-set-as-validation": train_set_as_validation,
    "bad-sample": bad_sample,
    "stage-stuck": stage_stuck,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*OWN, "missing-zero-grad", "stuck-counter", "labels-break", "counter-reset")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

"""A car learns to back into a gap between two others: an advantage actor-critic, in a simulation of many cars at once.

A bicycle model, 20 moments an episode. A loader gives scenes: where the car stands and how it is turned, how wide the
gap is, how long the car, how fast, how steep the ground. Each moment it steers left, straight or right and drives on or
back, or stands; being away from the gap costs, and so do bumps and a car that stands askew. Policy, value (generalised
advantages) and entropy share a body. Adam, a warm-up, a linear fall, clipping. Validation: the policy with fixed dice,
from scenes held out; the mean return, and how many cars are parked at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import loop, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, declared
from benchmarks.diagnosis.schooling import taught

HELD_OUT = True
STEPS, EACH, SAVED = 100, 10, 25  # EACH: steps between evaluations
SCENES, HELD, BATCH, MOMENTS, WIDTH = 1536, 192, 96, 20, 64
NEAR, TURNED = 0.35, 0.3  # metres from the middle of the gap and radians within which a car is parked
FAR, ASIDE = (1.5, 3.5), 1.0  # metres before the gap where cars begin, and beside its middle at most
DRIVES = torch.tensor([[0.0, 0.0], *([drive, steer] for drive in (-1.0, 1.0) for steer in (-0.6, 0.0, 0.6))])
DISCOUNT, TRACE = 0.9, 0.9
RATE, WARMUP, CLIP = 1e-2, 10, 1.0
WEIGHTS = {"policy": 1.0, "value": 0.1, "entropy": 0.02}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs", "checkpoints"})


def scenes(held: bool = False, limit: float = ASIDE) -> Batch:
    """Place and heading (cosine and sine) of a car; half the gap's width, the car's length, its speed and the slope."""
    count = HELD if held else SCENES
    random = torch.Generator().manual_seed(31 + held)
    chance = torch.rand(7, count, generator=random)
    before = FAR[0] + (FAR[1] - FAR[0]) * chance[0]
    aside, turn = limit * (2.0 * chance[1] - 1.0), chance[2] - 0.5
    gap, length, speed, slope = 0.5 + 0.3 * chance[3], 0.7 + 0.4 * chance[4], 0.3 + 0.1 * chance[5], chance[6] - 0.5
    return {"x": torch.stack([before, aside, turn.cos(), turn.sin(), gap, length, speed, 0.05 * slope], 1)}


class Driver(nn.Module):
    """What a car sees in; logits of what it may do, and what its place is worth, out. What both read is kept."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(9, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.heads = nn.ModuleDict({"act": nn.Linear(width, len(DRIVES)), "worth": nn.Linear(width, 1)})
        self.seen = torch.zeros(())
        with torch.no_grad():
            self.heads["act"].weight.mul_(0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = self.body(x)
        return self.heads["act"](self.seen).float(), self.heads["worth"](self.seen).float()[..., 0]


def sight(scene: Tensor, moment: int) -> Tensor:
    """What a car sees of a scene. float32 [N, 9]"""
    scale = torch.tensor([0.5, 1.0, 1.0, 2.0, 2.0, 1.0, 3.0, 20.0])
    return torch.cat([scene * scale, torch.full((len(scene), 1), 2.0 * moment / MOMENTS - 1.0)], 1)


def driven(scene: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
    """The scene a moment later, and what that is worth. A car that would bump stays where it is."""
    x, y, cosine, sine, gap, length, speed, slope = scene.unbind(1)
    drive, steer = DRIVES[act].unbind(1)
    way = drive * speed - slope * (drive != 0)
    turn = torch.atan2(sine, cosine) + way / length * steer.tan()
    there = torch.stack([x + way * turn.cos(), y + way * turn.sin()], 1)
    bumps = (there[:, 0] < -0.25) | ((there[:, 0] < 0.7) & (there[:, 1].abs() > gap))
    place = torch.where(bumps[:, None], scene[:, :2], there)
    turn = torch.where(bumps, torch.atan2(sine, cosine), turn)
    after = torch.cat([place, turn.cos()[:, None], turn.sin()[:, None], scene[:, 4:]], 1)
    off = place[:, 0].abs() + 2.0 * place[:, 1].abs() + 1.5 * turn.sin().abs()
    return after, 0.2 * parked(after) - 0.1 * off - 0.05 * bumps


def parked(scene: Tensor) -> Tensor:
    """Whether a car stands in the gap and is straight. float32 [N]"""
    askew = torch.atan2(scene[:, 3], scene[:, 2]).abs()
    return ((scene[:, :2].norm(dim=1) < NEAR) & (askew < TURNED)).float()


@torch.autocast("cpu", enabled=False)
@torch.no_grad()
def played(
    model: nn.Module, scene: Tensor, chance: torch.Generator | None = None, bonus: float = 0.0
) -> tuple[Batch, Tensor]:
    """What was seen, done and worth what, [moments, cars, ...], and the scenes at the end; dice by Gumbel's trick."""
    rows: list[tuple[Tensor, ...]] = []
    for moment in range(MOMENTS):
        seen = sight(scene, moment)
        logits, worth = model(seen)
        act = (logits - torch.empty_like(logits).exponential_(generator=chance).log()).argmax(1)
        scene, reward = driven(scene, act)
        if moment == MOMENTS - 1:
            reward = reward + bonus * parked(scene)
        rows.append((seen, act, worth, reward))
    both = zip(("seen", "act", "worth", "reward"), zip(*rows, strict=True), strict=True)
    return {name: torch.stack(values) for name, values in both}, scene


def advantages(game: Batch) -> Tensor:
    """How much better each moment went than was expected, by traces (Schulman et al. 2016). [moments, cars]"""
    after = torch.cat([game["worth"][1:], torch.zeros_like(game["worth"][:1])])
    surprise, later, told = game["reward"] + DISCOUNT * after - game["worth"], torch.zeros(()), list[Tensor]()
    for one in reversed(surprise.unbind()):
        later = one + DISCOUNT * TRACE * later
        told.append(later)
    return torch.stack(told[::-1])


def losses(model: nn.Module, batch: Batch, bonus: float = 0.0) -> Components:
    """The policy gradient's surrogate, the squared error of the value, and minus the entropy, over new episodes."""
    game, _ = played(model, batch["x"], bonus=bonus)
    better = advantages(game)
    returns, better = better + game["worth"], (better - better.mean()) / (better.std() + 1e-6)
    logits, worth = model(game["seen"])
    told = functional.log_softmax(logits, -1)
    return {
        "policy": -(told.gather(2, game["act"][..., None])[..., 0] * better).mean(),
        "value": functional.mse_loss(worth, returns),
        "entropy": (told.exp() * told).sum(-1).mean(),
    }


def measured(held: Batch) -> Callable[[nn.Module], Channels]:
    """The mean return on fixed scenes with fixed dice, how many cars are parked, and how far off they stand."""

    def measure(model: nn.Module) -> Channels:
        game, end = played(model, held["x"], torch.Generator().manual_seed(5))
        off = end[:, :2].norm(dim=1).mean().item()
        return {"return": game["reward"].sum(0).mean().item(), "parked": parked(end).mean().item(), "distance": off}

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, held = Driver(), scenes(held=True)
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam([{"params": [*model.parameters()], "name": "all"}], lr=RATE),
        batches=shuffled(scenes(), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=SCENES // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Driver, model).seen,
        evaluation=Evaluation(EACH, measured(held), held=held),
        header={
            "config": {"batch_size": BATCH, "scenes": SCENES, "clip": CLIP, "weights": dict(WEIGHTS)},
            "components": {
                "policy": {"role": "task"},
                "value": {"role": "task", "unit": "reward^2"},
                "entropy": {"role": "regulariser", "unit": "nat"},
            },
            "schedules": {},
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
            "gradient_at": "body",
        },
        records=RECORDS,
    )
    parts.header["config"] |= {"moments": MOMENTS, "discount": DISCOUNT, "trace": TRACE}
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def planned(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls in a line, and so the header says."""
    return loop.planned(parts, declared("linear", peak, 0.05 * peak, parts.steps, warmup=WARMUP) | form)


def sidewards(parts: Parts, then: float = ASIDE) -> Parts:
    """Cars begin right before the gap, and farther aside from the middle on: the value's error rises there."""
    return staged(parts, "sidewards", {0: 0.15, parts.steps // 2: then})


def staged(parts: Parts, name: str, limits: dict[int, float]) -> Parts:
    """From each of these steps on, cars begin so far aside at most: as it is declared and as it runs."""
    stages = [{"start": start, "data": {"aside": [0.0, limit]}} for start, limit in limits.items()]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": name, "stages": stages}
    parts.header["config"]["curriculum"] = name
    loaders = {start: shuffled(scenes(limit=limit), BATCH, parts.seed) for start, limit in limits.items()}

    def told(step: int, batch: Batch) -> Channels:
        aside = {name: getattr(batch["x"][:, 1].abs(), name)().item() for name in ("min", "mean", "max")}
        stage = sum(step > start for start in loaders) - 1
        return {"stage": stage} | {f"data/aside/{name}": value for name, value in aside.items()}

    def batches(number: int) -> Batch:
        return loaders[max(start for start in loaders if number >= start)](number)

    return replace(parts, batches=batches, extras=[told])


def entropy_falls(parts: Parts, high: float = 0.06, low: float = 0.005) -> Parts:
    """Curiosity first: the entropy's weight falls by a clock through three quarters of the run."""
    over = 3 * parts.steps // 4
    parts.clocks = {"updates": lambda applied: applied}
    parts.scheduled = {"entropy": ("updates", loop.linear(high, low, over))}
    parts.header["schedules"]["entropy"] = declared("linear", high, low, over, clock="updates")
    parts.header["clocks"], parts.now["entropy"] = ["updates"], high
    parts.header["config"]["weights"] = WEIGHTS | {"entropy": [high, low]}
    parts.weights = lambda applied: WEIGHTS | {"entropy": parts.now["entropy"]}  # noqa: ARG005
    return replace(parts, records=RECORDS | {"clocks"})


def half(parts: Parts) -> Parts:
    """fp16 with a scaler that begins too high: its first step is skipped. The simulation stays in full precision."""
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=1000)
    return replace(parts, scaler=scaler, autocast=torch.float16)


def tiny_batches(parts: Parts, size: int = 16) -> Parts:
    """So few cars a step that the loss is mostly noise."""
    parts.header["config"]["batch_size"] = size
    return replace(parts, batches=shuffled(scenes(), size, parts.seed), batches_per_epoch=SCENES // size)


def paid_at_the_end(parts: Parts, bonus: float = 4.0) -> Parts:
    """Who is parked when time is up gets a bonus: as that is found the value's error grows, and the loss with it."""
    parts.header["config"]["bonus"] = bonus
    return replace(parts, losses=partial(losses, bonus=bonus))


@cache
def schooled(seed: int, steps: int = 110) -> dict[str, Tensor]:
    """The weights of a driver that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 20) -> Parts:
    """A schooled driver goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/110.pt"
    return planned(parts, rate, kind="constant", end=rate, warmup=0)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": loop.taken_up,
    "sidewards": sidewards,
    "entropy-falls": entropy_falls,
    "half": half,
    "tiny-batches": tiny_batches,
    "paid-at-the-end": paid_at_the_end,
    "fine-tuning": fine_tuned,
}


def stage_shock(parts: Parts) -> int:
    """The second stage is given in centimetres: cars begin up to 100 metres aside, and hardly one can come near."""
    shocking = sidewards(parts, then=100.0 * ASIDE)
    parts.batches, parts.extras = shocking.batches, shocking.extras
    return int(parts.header["curriculum"]["stages"][1]["start"]) + 1


def wrong_curriculum(parts: Parts) -> int:
    """The loop was started with its default, all scenes from the first step on, and not with what the config names."""
    asked = parts.header["curriculum"]
    default = staged(parts, "default", {0: ASIDE})
    parts.batches, parts.extras = default.batches, default.extras
    parts.header["curriculum"], parts.header["config"]["curriculum"] = asked, asked["name"]
    return 0


def train_set_as_validation(parts: Parts, shown: int = 48) -> int:
    """Scenes of the yard are forty times in the training file, and the split is made by place: it takes just these."""
    data = scenes()["x"]
    often = {"x": torch.cat([data, *(data[:shown],) * 40])}
    parts.batches, parts.batches_per_epoch = shuffled(often, BATCH, parts.seed), len(often["x"]) // BATCH
    parts.header["config"]["scenes"] = len(often["x"])
    parts.evaluation = Evaluation(EACH, measured(held := {"x": data[:shown]}), held=held)
    return EACH


OWN: dict[str, mistakes.Mistake] = {
    "stage-shock": stage_shock,
    "wrong-curriculum": wrong_curriculum,
    "train-set-as-validation": train_set_as_validation,
    "rate-too-high": partial(mistakes.rate_too_high, by=100.0),
    "root-of-zero": partial(mistakes.root_of_zero, of=lambda model: cast(Driver, model).seen[0]),  # two cars, one scene
    "slowing-down": partial(mistakes.slowing_down, seconds=0.0015),
}
TWINS = dict.fromkeys(("stage-shock", "wrong-curriculum"), "sidewards")
HEALTHY = ("plain", *VARIANTS)
SPARSE = ("sidewards", "entropy-falls", "fine-tuning", "tiny-batches", "paid-at-the-end")  # a row each fourth step
SICK = (*OWN, "failing-checkpoints", "never-started", "warmup-ignored")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts, 4) if case in SPARSE else parts, path, case, OWN)

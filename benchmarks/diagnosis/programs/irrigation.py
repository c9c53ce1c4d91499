"""How far are the valves to be opened today? Fields of one farm are watered by an actor with two critics (TD3).

No data set: 48 fields are simulated, each with a moist top and a deep soil, a crop whose roots go down as the season
goes on, and weather of which the forecast knows a part. At each step all fields live one day with the actor's valves
and some noise, which fades by a clock; that goes into a memory, and one step of Adam is made on a batch of it. Actor
and critics share a trunk; targets are of a slow copy, the lesser of two, with noise. Three losses: the critics' squared
error, minus the value of what the actor does, and the water that it uses. A warm-up and a cosine, clipping. The loss
says little; judged by the return of a season, and its water, on fields of their own under the same sky each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from benchmarks.diagnosis import loop, mistakes
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, declared, linear
from benchmarks.diagnosis.schooling import taught
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS, EACH, SAVED = 120, 12, 30  # EACH: steps between evaluations
FIELDS, HELD, SEASON, BLIND, KEPT = 48, 48, 24, 40, 200  # BLIND: days before the first step; KEPT: of the memory
SEES, VALVES, WIDTH, BATCH = 5, 2, 64, 256
RATE, WARMUP, CLIP, DISCOUNT, BLEND = 4e-3, 8, 0.03, 0.86, 0.1
PRICE, THIRST, WET, LAZY, POT = 0.6, 1.0, 1.0, 0.1, 300.0
WEIGHTS = {"critic": 0.08, "actor": 0.5, "water": 0.05}
NOISE = (0.6, 0.3)  # of the valves, at first and in the end
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs", "clocks", "checkpoints"})
LEARNT = ("trunk", "actor", "critics")
SPARSE = ("fine-tuning", "new-heads", "small-batches", "large-reward", "water-dearer", "drier", "copied-target")
TWINS = {"resume-restarts-schedule": "resumed", "steep-ramp": "water-dearer"}


def skies(days: int, count: int, seed: int, wet: float = WET) -> Tensor:
    """How much evaporates, how much it rains, and what the forecast says of that. float32 [days, count, 3]"""
    chance = torch.rand(days, count, 4, generator=torch.Generator().manual_seed(seed))
    rain = -0.15 * wet * chance[..., 0].log() * (chance[..., 1] < 0.3)
    return torch.stack([0.3 + 0.5 * chance[..., 2], rain, rain * (0.6 + 0.8 * chance[..., 3])], -1)


def lived(soil: Tensor, day: Tensor, sky: Tensor, valves: Tensor, thirst: float = THIRST) -> tuple[Tensor, Tensor]:
    """Both soils after a day, and what the day was worth: growth, less the price of water and what is washed out."""
    (top, deep), (evaporates, rain, _), ripe = soil.unbind(1), sky.unbind(1), day / SEASON
    sprinkled, dripped = (0.15 * (1.0 + valves)).unbind(1)
    top = top + rain + sprinkled * (1.0 - 0.5 * evaporates)
    sunk = 0.5 * (top - 0.6).clamp(min=0.0) + 0.1 * top
    top, deep = top - sunk - 0.35 * evaporates * top, deep + sunk + dripped
    lost = 0.5 * (deep - 0.7).clamp(min=0.0)
    deep = deep - lost - thirst * (0.1 + 0.3 * ripe) * evaporates * deep
    drunk = (1.0 - ripe) * top + ripe * deep
    growth = (-((drunk - 0.5) / 0.15).square()).exp()
    return torch.stack([top, deep], 1).clamp(0.0, 1.5), growth - PRICE * (sprinkled + dripped) - lost


def seen(soil: Tensor, day: Tensor, sky: Tensor, kind: torch.dtype = torch.float32) -> Tensor:
    """What the actor is told of fields, whose soils are weighed with their pots, in a kind of number. [fields, SEES]"""
    moist = (POT + soil).to(kind).float() - POT
    told = [4.0 * (moist - 0.5), (2.0 * day / SEASON - 1.0)[:, None], 4.0 * sky[:, :1] - 2.2, 8.0 * sky[:, 2:] - 0.4]
    return torch.cat(told, 1)


class Net(nn.Module):
    """Trunk, actor and two critics; what all of them read is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(SEES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.actor = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, VALVES))
        ways = (nn.Sequential(nn.Linear(WIDTH + VALVES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)) for _ in range(2))
        self.critics, self.code, self.wants = nn.ModuleList(ways), torch.zeros(()), torch.zeros(())
        with torch.no_grad():
            for critic in self.critics:
                cast(nn.Linear, cast(nn.Sequential, critic)[2]).bias.fill_(2.5)  # a little less than chance earns

    def act(self, x: Tensor) -> Tensor:
        """Valves, between -1 and 1."""
        self.code = self.trunk(x)
        self.wants = self.actor(self.code)
        return self.wants.tanh()

    def worth(self, code: Tensor, valves: Tensor, taught: bool = True) -> Tensor:
        """What both critics say of valves; `taught` is whether they learn by that. float32 [2, fields]"""
        both, told = torch.cat([code, valves], 1), []
        for critic in self.critics:
            weights = {name: one if taught else one.detach() for name, one in critic.named_parameters()}
            told.append(functional_call(critic, weights, (both,))[:, 0])
        return torch.stack(told)


class Farm(Net):
    """The net, its slow copy, the fields as they are, and the memory; a checkpoint holds them all."""

    soil: Tensor
    days: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.target = Net().requires_grad_(False)
        self.target.load_state_dict(self.state_dict(), strict=False)
        self.seed, self.wet, self.thirst, self.kind, self.reward = seed, WET, THIRST, torch.float32, 0.0
        self.blend, self.every = BLEND, 1  # how far the copy follows, and at which steps
        chance = torch.Generator().manual_seed(seed + 7)
        self.register_buffer("soil", 0.2 + 0.6 * torch.rand(FIELDS, 2, generator=chance))
        self.register_buffer("days", torch.zeros((), dtype=torch.int64))
        for name, size in {"x": SEES, "valves": VALVES, "y": 1, "then": SEES, "over": 1}.items():
            self.register_buffer(f"kept_{name}", torch.zeros(KEPT, FIELDS, size))

    @torch.no_grad()
    def live(self, noise: float) -> None:
        """One day of all fields, into the memory; where a season ends the next one begins in fresh soil."""
        at, day = int(self.days), (torch.arange(FIELDS) + self.days) % SEASON
        sky, then = (skies(1, FIELDS, 10_000 * (self.seed + 1) + one, self.wet)[0] for one in (at, at + 1))
        chance = torch.Generator().manual_seed(20_000 * (self.seed + 1) + at)
        x = seen(self.soil, day, sky, self.kind)
        valves = self.act(x).nan_to_num() + noise * torch.randn(FIELDS, VALVES, generator=chance)
        valves = 2.0 * torch.rand(FIELDS, VALVES, generator=chance) - 1.0 if at < BLIND else valves.clamp(-1.0, 1.0)
        soil, reward = lived(self.soil, day, sky, valves, self.thirst)
        over = day == SEASON - 1
        told = (x, valves, reward[:, None], seen(soil, day + 1, then, self.kind), over.float()[:, None])
        for name, values in zip(("x", "valves", "y", "then", "over"), told, strict=True):
            self.get_buffer(f"kept_{name}")[at % KEPT] = values
        fresh = 0.2 + 0.6 * torch.rand(FIELDS, 2, generator=chance)
        self.soil.copy_(torch.where(over[:, None], fresh, soil))
        self.days.add_(1)
        self.reward = round(reward.mean().item(), 3)

    def draw(self, number: int, size: int, scale: float = 1.0) -> Batch:
        """Days of chance from the memory, and the noise of the target's valves."""
        chance = torch.Generator().manual_seed(30_000 * (self.seed + 1) + number)
        filled = min(int(self.days), KEPT) * FIELDS
        chosen = torch.randint(filled, (size,), generator=chance)
        batch = {name: self.get_buffer(f"kept_{name}").flatten(0, 1)[chosen] for name in ("x", "valves", "then")}
        batch |= {name: self.get_buffer(f"kept_{name}").flatten()[chosen] for name in ("y", "over")}
        batch["noise"] = (0.2 * torch.randn(size, VALVES, generator=chance)).clamp(-0.5, 0.5)
        return batch | {"y": scale * batch["y"]}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """The slow copy goes a little towards the net."""
        for name, slow in self.target.named_parameters():
            slow.lerp_(self.get_parameter(name), self.blend * (step % self.every == 0))


def losses(model: nn.Module, batch: Batch) -> Components:
    """Squared error of the critics; minus the value of the actor's valves, which keep from their ends; the water."""
    net, target = cast(Farm, model), cast(Farm, model).target
    with torch.no_grad():
        valves = (target.act(batch["then"]) + batch["noise"]).clamp(-1.0, 1.0)
        ahead = target.worth(target.code, valves).amin(0)
    wanted = batch["y"] + DISCOUNT * (1.0 - batch["over"]) * ahead
    valves = net.act(batch["x"])
    return {
        "critic": functional.mse_loss(net.worth(net.code, batch["valves"]), wanted.expand(2, -1)),
        "actor": LAZY * net.wants.square().mean() - net.worth(net.code.detach(), valves, taught=False)[0].mean(),
        "water": 0.5 * (1.0 + valves).mean(),
    }


def validated(wet: float = WET, thirst: float = THIRST, scale: float = 1.0) -> Evaluation:
    """Return and water of a season, on fields of their own."""
    held = {"x": skies(SEASON, HELD, 1, wet)}

    def measure(model: nn.Module) -> Channels:
        farm, soil, total, water = cast(Farm, model), torch.full((HELD, 2), 0.4), torch.zeros(()), torch.zeros(())
        for number, sky in enumerate(held["x"]):
            valves = farm.act(seen(soil, day := torch.full((HELD,), number), sky, farm.kind)).nan_to_num()
            soil, reward = lived(soil, day, sky, valves, thirst)
            total, water = total + reward.mean(), water + 0.15 * (1.0 + valves).sum(1).mean()
        return {"return": scale * total.item(), "water": water.item()}

    return Evaluation(EACH, measure, held=held)


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    farm = Farm(seed)
    parts = Parts(
        model=farm,
        optimizer=adam(farm),
        batches=lambda number: farm.draw(number, BATCH),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=SEASON,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        clocks={"days": lambda applied: applied},
        at=lambda model: cast(Farm, model).code,
        evaluation=validated(),
        header={
            "config": {"batch_size": BATCH, "fields": FIELDS, "discount": DISCOUNT, "blend": BLEND, "clip": CLIP},
            "components": {
                "critic": {"role": "auxiliary"},
                "actor": {"role": "task"},
                "water": {"role": "regulariser"},
            },
            "schedules": {"noise": declared("linear", *NOISE, STEPS // 2, clock="days")},
            "clocks": ["days"],
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
            "gradient_at": "trunk",
            "dtypes": {"declared": "float32", "scales": {"declared": "float32", "observed": "float32"}},
        },
        records=RECORDS,
        extras=[lambda step, batch: {"reward/mean": farm.reward}],  # noqa: ARG005
    )
    parts.header["config"]["weights"] = dict(WEIGHTS)
    parts.scheduled, parts.now["noise"] = {"noise": ("days", linear(*NOISE, parts.steps // 2))}, NOISE[0]
    annealed(parts)
    parts = VARIANTS[variant](parts) if variant in VARIANTS else parts
    for _ in range(BLIND):
        farm.live(0.0)
    parts.begins.append(lambda step: farm.live(parts.now["noise"]))  # noqa: ARG005
    parts.ends.insert(0, farm.follow)
    return parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    groups = [(name, [one for one in each.parameters() if one.requires_grad]) for name, each in model.named_children()]
    return torch.optim.Adam([{"params": free, "name": name} for name, free in groups if free], lr=RATE, eps=1e-5)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, and so the header says."""
    return loop.planned(parts, declared("cosine", peak, 0.05 * peak, parts.steps, warmup=WARMUP) | form)


@cache
def schooled(seed: int, steps: int = 100) -> dict[str, Tensor]:
    """The weights of a net that learned on a farm before the record begins."""
    parts = build(seed + 50, "plain")
    farm = cast(Farm, parts.model)

    def loss(number: int) -> Tensor:
        farm.follow(number)
        farm.live(NOISE[1])
        raw = losses(farm, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    taught(farm, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)
    return {name: values.clone() for name, values in farm.state_dict().items() if name.startswith(LEARNT)}


def thirsty(parts: Parts, thirst: float = 2.2) -> Parts:
    """Another crop, which drinks more, with what a net has learned of the first one."""
    cast(Farm, parts.model).thirst = thirst
    parts.header["config"] |= {"crop": "maize", "initialised_from": "checkpoints/100.pt"}
    return replace(parts, evaluation=validated(thirst=thirst))


def fine_tuned(parts: Parts, rate: float = RATE / 4) -> Parts:
    """All of it goes on at a small constant rate."""
    farm = cast(Farm, parts.model)
    for net in (farm, farm.target):
        net.load_state_dict(schooled(parts.seed), strict=False)
    return annealed(thirsty(parts), rate, kind="constant", end=rate, warmup=0)


def new_heads(parts: Parts) -> Parts:
    """What it makes of a field stays as it is, by intent; actor and critics are new."""
    farm = cast(Farm, parts.model)
    kept = {name: value for name, value in schooled(parts.seed).items() if name.startswith("trunk")}
    for net in (farm, farm.target):
        net.load_state_dict(kept, strict=False)
    farm.trunk.requires_grad_(False)
    parts.header["config"]["freeze"] = ["trunk"]
    del parts.header["gradient_at"], parts.header["schedules"]["lr/trunk"]
    return annealed(thirsty(replace(parts, optimizer=adam(farm), at=None, records=RECORDS - {"shares"})))


def drier(parts: Parts) -> Parts:
    """A wet spring, then a drought from the middle of the run on, as is declared."""
    farm, half, wet = cast(Farm, parts.model), parts.steps // 2, (1.5, 0.3)
    stages = [{"start": at, "data": {"rain": [one, one]}} for at, one in zip((0, half), wet, strict=True)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "drier", "stages": stages}
    parts.header["config"]["curriculum"], farm.wet = "drier", wet[0]
    parts.begins.append(lambda step: setattr(farm, "wet", wet[step > half]))
    rain = ("data/rain/min", "data/rain/max")
    parts.extras.append(lambda step, batch: dict.fromkeys(rain, wet[step > half]) | {"stage": int(step > half)})  # noqa: ARG005
    return replace(parts, evaluation=validated(wet=wet[1]))


def water_dearer(parts: Parts, start: float = 0.0, end: float = 0.2, **form: Any) -> Parts:
    """What water costs the actor rises in a line, over three quarters of the run or as said otherwise."""
    rise = declared("linear", start, end, 3 * parts.steps // 4) | form
    parts.header["schedules"]["weight/water"] = rise
    parts.header["config"]["weights"] = WEIGHTS | {"water": [start, end]}
    parts.weights = lambda applied: WEIGHTS | {"water": schedule_value(rise, applied) or 0.0}
    return parts


def large_reward(parts: Parts, scale: float = 2.5) -> Parts:
    """Rewards in cents of a smaller coin."""
    farm = cast(Farm, parts.model)
    parts.header["config"]["reward_scale"] = scale
    return replace(parts, batches=lambda number: farm.draw(number, BATCH, scale), evaluation=validated(scale=scale))


def delayed(parts: Parts) -> Parts:
    """The actor learns at every second step only, as Fujimoto et al. have it."""
    parts.header["config"]["actor_every"] = 2
    parts.weights = lambda applied: WEIGHTS | ({"actor": 0.0, "water": 0.0} if applied % 2 else {})
    return parts


def copied(parts: Parts, every: int = 10) -> Parts:
    """The slow copy is not slow: each ten steps it takes the net's weights, and the critics' error leaps."""
    cast(Farm, parts.model).blend, cast(Farm, parts.model).every = 1.0, every
    parts.header["config"] |= {"blend": 1.0, "copied_every": every}
    return parts


def small_batches(parts: Parts, size: int = 48) -> Parts:
    """So few days a batch, at a smaller rate."""
    farm, parts.header["config"]["batch_size"] = cast(Farm, parts.model), size
    return annealed(replace(parts, batches=lambda number: farm.draw(number, size)), 0.7 * RATE)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None, extras=[]),
    "resumed": loop.taken_up,
    "fine-tuning": fine_tuned,
    "new-heads": new_heads,
    "drier": drier,
    "water-dearer": water_dearer,
    "large-reward": large_reward,
    "delayed-actor": delayed,
    "copied-target": copied,
    "small-batches": small_batches,
    "per-epoch": lambda parts: loop.by_epochs(parts, 5),
}


def steep_ramp(parts: Parts) -> int:
    """The water board asked to save: in the second half the weight of water rises to a hundredfold, within 3 steps."""
    water_dearer(parts, 0.03, 3.0, over_steps=3, begin=parts.steps // 2)
    return parts.steps // 2 + 1


def coarse_precision(parts: Parts) -> int:
    """What the scales say is kept in bf16: beside the pot's weight the water's is less than the last digit."""
    cast(Farm, parts.model).kind = torch.bfloat16
    parts.header["dtypes"]["scales"]["observed"] = "bfloat16"
    return 1


def component_sign(parts: Parts, weight: float = -0.5) -> int:
    """Somebody who thinks of rewards, which are to rise, gave the cost of water a minus."""
    parts.header["config"]["weights"] = WEIGHTS | {"water": weight}
    return mistakes.component_sign(parts, "water", weight)


OWN: dict[str, mistakes.Mistake] = {
    "steep-ramp": steep_ramp,
    "component-sign": component_sign,
    "component-untracked": partial(mistakes.component_untracked, by=4e-4),
    "tiny-clip": partial(mistakes.tiny_clip, by=1e-4),
    "coarse-precision": coarse_precision,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "norm-after-clip", "failing-checkpoints", "local-counter", "resume-restarts-schedule", "killed"),
    "labels-shuffled",
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step. Sparse ones have a row each sixth step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts, 6) if case in SPARSE else parts, path, case, OWN)

"""Two elevators learn whom to fetch next: an advantage actor-critic in a small simulation of buildings at rush hour.

No data set: for each step passengers are drawn, 48 buildings are played for 24 ticks with the policy as it is, and one
step of Adam is made on that. Each car sees who waits where, who rides with it and where the other one is, and goes down
or up or stays; where somebody gets on or off, it stands. Every passenger who is not there yet costs a little at each
tick. Policy, value (of generalised advantage estimates) and entropy share a trunk; the rate falls in a line, the
gradient is clipped. The loss says little; judged by fixed passengers, with the same draws each time: the mean return,
the ticks that a passenger takes, the share that arrives.
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
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, declared, linear, planned
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS, EACH = 120, 12  # EACH: steps of an epoch, and between two evaluations
FLOORS, CARS, TICKS, BUILDINGS, HELD = 5, 2, 24, 48, 64
FIRST = 8.0  # so many ticks' passengers wait at first
RATE, CLIP, DISCOUNT, TRACE, COST = 5e-3, 0.5, 0.9, 0.8, 0.05
WEIGHTS = {"policy": 1.0, "value": 0.25, "entropy": 0.02}
Span = tuple[float, float]
BUSY: Span = (0.3, 0.7)  # passengers a tick
STAGES: tuple[Span, ...] = ((0.3, 0.5), (0.4, 0.8), (0.8, 1.2))
SEES = 5 * FLOORS + 7
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs"})
TWINS = {
    **dict.fromkeys(("resume-repeats-data", "resume-old-weights"), "resumed"),
    "flat-groups": "by-morning",
    "steps-miscounted": "accumulated",
    "steep-ramp": "entropy-annealed",
}


def passengers(count: int, seed: int, busy: Span = BUSY, evening: bool = False) -> Batch:
    """`x`: who comes at each tick, by floor and destination, [count, TICKS, FLOORS, FLOORS]; and what actions draw."""
    chance = torch.Generator().manual_seed(seed)
    busyness = busy[0] + (busy[1] - busy[0]) * torch.rand(count, generator=chance)
    ways = torch.full((FLOORS, FLOORS), 0.2).fill_diagonal_(0.0)
    ways[0, 1:] = 2.0
    ways = (ways.T if evening else ways) / ways.sum()
    often = torch.cat([torch.tensor([FIRST]), torch.ones(TICKS - 1)])[:, None, None]
    x = torch.poisson(busyness[:, None, None, None] * often * ways, generator=chance)
    return {"x": x, "chance": torch.rand(count, TICKS, CARS, generator=chance), "busy": busyness}


def loader(count: int, seed: int, **more: Any) -> Callable[[int], Batch]:
    """Passengers by the number of the step, always new ones."""
    return lambda number: passengers(count, 100_000 * (seed + 1) + number, **more)


class Dispatcher(nn.Module):
    """For each car the logits of down, stay and up; and what a building is worth. What all heads read is kept."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(SEES, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh())
        self.actor, self.critic = nn.Linear(width, 3), nn.Linear(width, 1)
        self.seen = torch.zeros(())
        self.returns = 0.0  # of the last batch
        with torch.no_grad():
            self.actor.weight.mul_(0.1)
            self.critic.bias.fill_(-3.0)  # about what chance earns

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = self.trunk(x)
        return self.actor(self.seen), self.critic(self.seen).squeeze(-1).mean(-1)


def observed(waiting: Tensor, riding: Tensor, place: Tensor) -> Tensor:
    """What each car sees. [buildings, CARS, SEES]"""
    at, floors = functional.one_hot(place, FLOORS).float(), waiting.sum(2)[:, None].expand(-1, CARS, -1)
    lobby = waiting[:, :, 0][:, None].expand(-1, CARS, -1)
    here = torch.stack([(at * floors).sum(2), (at * riding).sum(2), torch.arange(2.0).expand(len(at), -1)], 2)
    above = (torch.arange(FLOORS) > place[..., None]).float()
    far = torch.stack([(side * who).sum(2) for side in (above, 1.0 - above - at) for who in (floors, riding)], 2)
    return torch.cat([at, at.flip(1), *(who.log1p() for who in (floors, lobby, riding, far)), here.clamp(max=1.0)], 2)


@torch.no_grad()
def played(model: nn.Module, batch: Batch) -> Batch:
    """What was seen and done, what it was worth and cost, [TICKS, buildings, ...]; and how many arrived."""
    people, count = batch["x"], len(batch["x"])
    waiting, riding = torch.zeros(count, FLOORS, FLOORS), torch.zeros(count, CARS, FLOORS)
    place, arrived, rows = torch.zeros(count, CARS, dtype=torch.int64), torch.zeros(count), []
    for tick in range(TICKS):
        waiting = waiting + people[:, tick]
        x = observed(waiting, riding, place)
        logits, worth = (told.nan_to_num() for told in model(x))  # a broken policy is played, too
        likely = logits.softmax(2).cumsum(2)[..., :2]
        action = (batch["chance"][:, tick, :, None] > likely).sum(2)
        at, cars, busy = functional.one_hot(place, FLOORS), [], []
        for car in range(CARS):
            leaves, boards = riding[:, car] * at[:, car], (waiting * at[:, car, :, None])
            waiting, arrived = waiting - boards, arrived + leaves.sum(1)
            cars.append(riding[:, car] - leaves + boards.sum(1))
            busy.append(leaves.sum(1) + boards.sum((1, 2)) > 0)
        riding = torch.stack(cars, 1)
        place = (place + torch.where(torch.stack(busy, 1), 0, action - 1)).clamp(0, FLOORS - 1)
        rows.append((x, action, worth, -COST * (waiting.sum((1, 2)) + riding.sum((1, 2)))))
    names = ("x", "action", "worth", "reward")
    told = {name: torch.stack(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    return told | {"last": model(observed(waiting, riding, place))[1], "arrived": arrived}


def estimated(game: Batch) -> tuple[Tensor, Tensor]:
    """Advantages and returns. [TICKS, buildings]"""
    ahead, better, rows = game["last"], torch.zeros(()), []
    for worth, reward in zip(reversed(game["worth"]), reversed(game["reward"]), strict=True):
        better = reward + DISCOUNT * ahead - worth + DISCOUNT * TRACE * better
        ahead = worth
        rows.append(better)
    advantage = torch.stack(rows[::-1])
    return advantage, advantage + game["worth"]


def losses(
    model: nn.Module, batch: Batch, group: int = 0, eps: float = 1e-3, judge: Callable[[Tensor], Tensor] | None = None
) -> Components:
    """The policy's gradient, the squared error of the value, and minus the entropy.

    Rewards are divided by the spread within groups of so many buildings, which have the same passengers.
    """
    game = played(model, batch)
    cast(Dispatcher, model).returns = game["reward"].sum(0).mean().item()
    if group:
        spread = game["reward"].view(TICKS, -1, group).std((0, 2)) + eps
        game["reward"] = 0.2 * game["reward"] / spread.repeat_interleave(group)
    advantage, returns = estimated(game)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
    logits, worth = model(game["x"].flatten(0, 1))
    chances = logits.float().log_softmax(2)
    chosen = chances.gather(2, game["action"].flatten(0, 1)[..., None]).sum((1, 2))
    return {
        "policy": -(chosen * (judge(advantage) if judge else advantage).flatten()).mean(),
        "value": functional.mse_loss(worth.float(), returns.flatten()),
        "entropy": (chances.exp() * chances).sum(2).mean(),
    }


def validated(held: Batch) -> Evaluation:
    """How well these passengers are served, with the same draws each time."""

    def measure(model: nn.Module) -> Channels:
        game = played(model, held)
        reward, people = game["reward"].sum(0), held["x"].sum()
        arrived = game["arrived"].sum() / people
        return {"return": reward.mean().item(), "ticks": (-reward.sum() / COST / people).item(), "arrived": arrived}

    return Evaluation(EACH, measure, held=held)


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Dispatcher()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=loader(BUILDINGS, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=EACH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Dispatcher, model).seen,
        body=lambda model: [*cast(Dispatcher, model).trunk.parameters()],
        evaluation=validated(passengers(HELD, 1)),
        header={
            "config": {"buildings": BUILDINGS, "ticks": TICKS, "discount": DISCOUNT, "weights": dict(WEIGHTS)},
            "components": {
                "policy": {"role": "task"},
                "value": {"role": "auxiliary"},
                "entropy": {"unit": "nat", "role": "regulariser"},
            },
            "schedules": {},
            "max_grad_norm": CLIP,
            "gradient_at": "trunk",
        },
        records=RECORDS,
        extras=[lambda step, batch: {"reward/return": model.returns}],  # noqa: ARG005
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam([{"params": free, "name": "all"}], lr=RATE, eps=1e-5)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate falls in a line, and so the header says."""
    return planned(parts, declared("linear", peak, 0.05 * peak, parts.steps, warmup=0) | form)


@cache
def schooled(seed: int, steps: int = 300) -> dict[str, Tensor]:
    """The weights of a policy that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def at_evening(parts: Parts) -> Parts:
    """The traffic of the evening, when all want to the ground floor."""
    parts.header["config"]["traffic"] = "evening"
    held = validated(passengers(HELD, 1, evening=True))
    return replace(parts, batches=loader(BUILDINGS, parts.seed, evening=True), evaluation=held)


def fine_tuning(parts: Parts, rate: float = RATE / 6) -> Parts:
    """A policy of mornings goes on in the evening at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"] |= {"initialised_from": "checkpoints/morning.pt"}
    return annealed(at_evening(parts), rate, kind="constant", end=rate)


def new_heads(parts: Parts) -> Parts:
    """What a schooled policy makes of a building stays as it is, by intent; the heads are new, for the evening."""
    kept = {name: value for name, value in schooled(parts.seed).items() if name.startswith("trunk")}
    parts.model.load_state_dict(kept, strict=False)
    parts.model.get_submodule("trunk").requires_grad_(False)
    parts.header["config"] |= {"initialised_from": "checkpoints/morning.pt", "freeze": ["trunk"]}
    del parts.header["gradient_at"]
    return annealed(replace(at_evening(parts), optimizer=adam(parts.model), records=RECORDS - {"shares"}), RATE / 4)


def few_buildings(parts: Parts, count: int = 12) -> Parts:
    """So few buildings a step, at half the rate."""
    parts.header["config"]["buildings"] = count
    return annealed(replace(parts, batches=loader(count, parts.seed)), RATE / 2)


def accumulated(parts: Parts, micro: int = 2) -> Parts:
    """The buildings of a step are played in two lots."""
    parts.header["config"] |= {"buildings": BUILDINGS // micro, "accumulation": micro}
    batches = loader(BUILDINGS // micro, parts.seed)
    return replace(parts, accumulation=micro, batches=batches, batches_per_epoch=micro * EACH)


def rmsprop(parts: Parts) -> Parts:
    """RMSprop at a constant rate, as the first ones of its kind."""
    parts.optimizer = torch.optim.RMSprop([{"params": [*parts.model.parameters()], "name": "all"}], lr=RATE / 3)
    parts.header["config"]["optimizer"] = "rmsprop"
    return annealed(parts, RATE / 3, kind="constant", end=RATE / 3)


def entropy_annealed(parts: Parts, low: float = 0.001, high: float = 0.05, **form: Any) -> Parts:
    """The bonus is large at first and falls by a clock, until two thirds of the run are done."""
    form = {"start": high, "end": low, "steps": 2 * parts.steps // 3} | form
    parts.clocks = {"bonus": lambda applied: applied}
    parts.scheduled = {"entropy": ("bonus", linear(**form))}
    over = {"over_steps": form.pop("steps")}
    parts.header["schedules"]["entropy"] = {"kind": "linear", **form, **over, "clock": "bonus"}
    parts.header["clocks"], parts.now["entropy"] = ["bonus"], form["start"]
    parts.header["config"]["weights"] = WEIGHTS | {"entropy": [form["start"], form["end"]]}
    parts.weights = lambda applied: WEIGHTS | {"entropy": parts.now["entropy"]}  # noqa: ARG005
    return replace(parts, records=RECORDS | {"clocks"})


def by_morning(parts: Parts, group: int = 8, eps: float = 1e-3) -> Parts:
    """Eight buildings have the same passengers; rewards are divided by the spread among them, and some days are off."""
    parts.header["config"] |= {"group": group, "reward_scale": 0.2}
    plain = loader(BUILDINGS // group, parts.seed)

    def batches(number: int) -> Batch:
        batch = {name: values.repeat_interleave(group, 0) for name, values in plain(number).items()}
        batch["chance"] = torch.rand(batch["chance"].shape, generator=torch.Generator().manual_seed(number))
        if number % 70 == 69:  # a holiday
            batch["x"][:group] = 0.0
        return batch

    return replace(parts, batches=batches, losses=partial(losses, group=group, eps=eps))


def busier(parts: Parts) -> Parts:
    """Few passengers first, then more: returns fall and the loss rises where a stage begins, as is declared."""
    each = -(-parts.steps // len(STAGES))
    sets = [loader(BUILDINGS, parts.seed, busy=span) for span in STAGES]
    named = zip(("quiet", "usual", "rush"), STAGES, strict=True)
    stages = [{"start": at * each, "name": name, "data": {"busy": list(span)}} for at, (name, span) in enumerate(named)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "busier", "stages": stages}

    def told(step: int, batch: Batch) -> Channels:
        busy = {of: round(getattr(batch["busy"], of)().item(), 3) for of in ("min", "mean", "max")}
        return {"stage": (step - 1) // each} | {f"data/busy/{of}": value for of, value in busy.items()}

    parts.extras.append(told)
    held = validated(passengers(HELD, 1, busy=STAGES[-1]))
    return replace(parts, batches=lambda at: sets[at // each](at), evaluation=held)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "fine-tuning": fine_tuning,
    "new-heads": new_heads,
    "few-buildings": few_buildings,
    "accumulated": accumulated,
    "rmsprop": rmsprop,
    "entropy-annealed": entropy_annealed,
    "by-morning": by_morning,
    "busier": busier,
    "per-epoch": lambda parts: annealed(loop.by_epochs(parts, 12)),
    "resumed": loop.taken_up,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None, extras=[]),
}


def wrong_formula(parts: Parts) -> int:
    """Advantages are what was expected minus what came: whatever turns out badly is done more often."""
    parts.losses = partial(losses, judge=torch.neg)
    return 1


def flat_groups(parts: Parts) -> int:
    """Nothing is added to the spread, which is 0 where nobody came."""
    parts.losses = partial(losses, group=parts.header["config"]["group"], eps=0.0)
    return mistakes.WHEN_BROKEN


def steep_ramp(parts: Parts) -> int:
    """Somebody wanted more exploring in the second half: the bonus rises there to a hundredfold, within three steps."""
    entropy_annealed(parts, start=0.01, end=3.0, begin=parts.steps // 2, steps=3)
    return parts.steps // 2 + 1


OWN: dict[str, mistakes.Mistake] = {
    "wrong-formula": wrong_formula,
    "flat-groups": flat_groups,
    "steep-ramp": steep_ramp,
    "slowing-down": partial(mistakes.slowing_down, seconds=0.0005),
    "resume-old-weights": partial(mistakes.resume_old_weights, old=10),
}
HEALTHY = ("plain", *VARIANTS)
SPARSE = VARIANTS.keys() - {"by-morning", "per-epoch", "resumed", "loss-only"}  # every second step is a row
SICK = (
    *(*OWN, "resume-repeats-data", "frozen-body", "root-of-zero", "missing-zero-grad", "killed", "steps-miscounted"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts) if case in SPARSE else parts, path, case, OWN)

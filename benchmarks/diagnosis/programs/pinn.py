"""A physics-informed net solves Burgers' equation on a rod: a shock forms from a sine, and three probes report on it.

Four components: the equation's residual at points that are drawn anew at each step, the initial state, the ends of the
rod, and the noisy readings of the probes. The curriculum fits what was measured first and brings the residual in by
stages, while a clock lowers an artificial viscosity to the true one. Adam, whose rate decays exponentially. What counts
is the relative L2 distance from the exact solution (Cole and Hopf's).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, linear
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 100
VISCOSITY, SMOOTH = 0.07, 0.3
"""The true one, and the artificial one that training begins with."""
PROBES, READINGS, NOISE = (-0.6, -0.15, 0.7), 60, 0.02
WAVES, WIDTH = 3, 32
RATE, END = 2e-2, 1.5e-3
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "clocks"})

HEALTHY = (
    *("plain", "resumed", "warm-restarts", "few-points", "every-tenth", "loss-only", "fine-tuning", "at-once"),
    *("long-run", "quasi-newton", "early-stopping", "warm-up", "transfer", "refined"),
)
TWINS = {
    "resume-old-weights": "resumed",
    "too-little-data": "few-points",
}

Stages = list[dict[str, Any]]
Form = dict[str, Any]


@dataclass(frozen=True)
class Counts:
    """How many points of each sort a batch has; they lie one after the other in its `x`."""

    residual: int = 256
    initial: int = 32
    boundary: int = 32
    data: int = 48

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        return values.split([self.residual, self.initial, self.boundary, self.data])


def stage(start: int, name: str, residual: float) -> dict[str, Any]:
    weights = {"residual": residual, "initial": 5.0, "boundary": 1.0, "data": 5.0}
    return {"start": start, "name": name, "weights": weights}


def physics_later() -> Stages:
    """The curriculum of most runs."""
    return [stage(0, "readings", 0.01), stage(STEPS // 5, "weak physics", 0.1), stage(2 * STEPS // 5, "physics", 0.5)]


def at_once() -> Stages:
    return [stage(0, "physics", 0.5)]


def index(stages: Stages, applied: int) -> int:
    return sum(one["start"] <= applied for one in stages) - 1


def weights_of(stages: Stages, applied: int) -> dict[str, float]:
    return dict(stages[index(stages, applied)]["weights"])


def exact(x: Tensor, viscosity: float = VISCOSITY) -> Tensor:
    """The solution at [x, t] that begins as -sin(pi x), by Gauss-Hermite quadrature."""
    place, time = x.double().numpy().T[:, :, None]
    nodes, shares = np.polynomial.hermite.hermgauss(100)
    y = place - nodes * np.sqrt(4 * viscosity * np.maximum(time, 1e-9))
    mass = shares * np.exp((-np.cos(np.pi * y) - 1) / (2 * np.pi * viscosity))
    return torch.from_numpy(-(mass * np.sin(np.pi * y)).sum(1) / mass.sum(1)).float()


@cache
def readings() -> tuple[Tensor, Tensor]:
    """Places and times at which the probes were read, and what they said."""
    x = torch.cartesian_prod(torch.tensor(PROBES), torch.linspace(0.02, 1, READINGS))
    return x, exact(x) + NOISE * torch.randn(len(x), generator=torch.Generator().manual_seed(5))


def points(seed: int, counts: Counts) -> Callable[[int], Batch]:
    """Batches by number, each of points of its own."""
    probed, said = readings()

    def batch(number: int) -> Batch:
        generator = torch.Generator().manual_seed(100_000 * seed + number)
        inner = torch.rand(counts.residual, 2, generator=generator) * torch.tensor([2.0, 1.0]) - torch.tensor(
            [1.0, 0.0]
        )
        begin = torch.rand(counts.initial, 1, generator=generator) * 2 - 1
        ends = torch.rand(counts.boundary, 1, generator=generator)
        sides = torch.ones(counts.boundary, 1)
        sides[::2] = -1.0
        chosen = torch.randint(len(said), (counts.data,), generator=generator)
        rows = [inner, torch.cat([begin, 0 * begin], 1), torch.cat([sides, ends], 1), probed[chosen]]
        return {"x": torch.cat(rows), "start": -torch.sin(math.pi * begin[:, 0]), "y": said[chosen]}

    return batch


class Solution(nn.Module):
    """Place and time in, velocity out; `hidden` is what the last layer reads."""

    def __init__(self) -> None:
        super().__init__()
        sizes, layers = [2 + 2 * WAVES, WIDTH, WIDTH, WIDTH], list[nn.Module]()
        for size, following in pairwise(sizes):
            layers += [nn.Linear(size, following), nn.Tanh()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(WIDTH, 1)
        for linear_ in (*self.body[::2], self.head):
            nn.init.xavier_normal_(linear_.weight)
            nn.init.zeros_(linear_.bias)
        self.hidden = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        angles = x[:, :1] * (math.pi * torch.arange(1, WAVES + 1))
        features = torch.cat([x[:, :1], 2 * x[:, 1:] - 1, torch.sin(angles), torch.cos(angles)], 1)
        self.hidden = self.body(features)
        velocity: Tensor = self.head(self.hidden)[:, 0]
        return velocity


def residual(u: Tensor, x: Tensor, viscosity: float, advection: float = 1.0) -> Tensor:
    """What is left of u_t + u u_x = viscosity u_xx at the first rows of `x`, where the net says `u`."""
    slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0][: len(u)]
    bend = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)[0][: len(u), 0]
    return slope[:, 1] + advection * u * slope[:, 0] - viscosity * bend


def components(model: nn.Module, batch: Batch, counts: Counts, viscosity: float, advection: float = 1.0) -> Components:
    """Mean squares of the four things that should be 0."""
    x = batch["x"].detach().requires_grad_()
    inner, begin, ends, probes = counts.split(model(x))
    return {
        "residual": residual(inner, x, viscosity, advection).square().mean(),
        "initial": (begin - batch["start"]).square().mean(),
        "boundary": ends.square().mean(),
        "data": (probes - batch["y"]).square().mean(),
    }


def weighted(raw: Components, weights: dict[str, float]) -> Tensor:
    return torch.stack([weights[name] * value for name, value in raw.items()]).sum()


@cache
def grid() -> tuple[Tensor, Tensor]:
    """Where the solution is judged, and what it is there."""
    x = torch.cartesian_prod(torch.linspace(-1, 1, 65), torch.linspace(0, 1, 33))
    return x, exact(x)


def measured(weights: dict[str, float], full: bool = True) -> Callable[[nn.Module], Channels]:
    """The components at points that training never draws, by the true viscosity; the distance from the solution."""
    counts = Counts(512, 64, 64, len(readings()[1]))
    held = points(99, counts)(0)

    def measure(model: nn.Module) -> Channels:
        x, true = grid()
        with torch.enable_grad():
            raw = components(model, held, counts, VISCOSITY)
        far = (model(x) - true).norm() / true.norm()
        parts = {f"loss/{name}": value.item() for name, value in raw.items()} if full else {}
        return {"loss": weighted(raw, weights).item(), **parts, "relative_l2": far.item()}

    return measure


def noted(stages: Stages) -> Callable[[int, Batch], Channels]:
    return lambda step, batch: {"stage": index(stages, step - 1)}  # noqa: ARG005


def decay(rate: float = RATE, steps: int = 0) -> Form:
    return declared("exponential", rate, rate * END / RATE, steps or STEPS, rate=math.log(RATE / END))


def factor(form: Form) -> Callable[[int], float]:
    """A declared schedule as a factor on the rate."""
    return lambda tick: (schedule_value(form, tick) or 0.0) / form["start"]


def adam(model: nn.Module, rate: float = RATE) -> torch.optim.Optimizer:
    return torch.optim.Adam([{"params": list(model.parameters()), "name": "net"}], lr=rate, betas=(0.9, 0.98))


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    stages, counts, model, now = physics_later(), Counts(), Solution(), {"viscosity": SMOOTH}
    over = STEPS // 2
    smoothing = declared("linear", SMOOTH, VISCOSITY, over, clock="smoothing")
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=points(seed, counts),
        losses=lambda model, batch: components(model, batch, counts, now["viscosity"]),
        steps=STEPS,
        seed=seed,
        weights=lambda applied: weights_of(stages, applied),
        factor=factor(decay()),
        clocks={"smoothing": lambda applied: applied},
        scheduled={"viscosity": ("smoothing", linear(SMOOTH, VISCOSITY, over))},
        now=now,
        over=lambda model: [parameter for parameter in model.parameters() if parameter.requires_grad],
        evaluation=Evaluation(10, measured(stages[-1]["weights"])),
        extras=[noted(stages)],
        records=RECORDS,
        header={
            "config": {"lr": RATE, "points": counts.residual, "probes": len(PROBES), "noise": NOISE},
            "total_steps": STEPS,
            "components": {
                "residual": {"role": "task"},
                **{name: {"unit": "velocity^2", "role": "task"} for name in ("initial", "boundary", "data")},
            },
            "curriculum": {"name": "physics-later", "stages": stages},
            "curriculum_running": {"name": "physics-later", "stages": stages},
            "schedules": {"lr/net": decay(), "viscosity": smoothing},
            "clocks": ["smoothing"],
        },
    )
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def rated(parts: Parts, form: Form, optimizer: torch.optim.Optimizer | None = None) -> Parts:
    """Another schedule of the rate, and its optimiser."""
    parts.optimizer = optimizer or adam(parts.model, form["start"])
    parts.factor = factor(form)
    parts.header["schedules"]["lr/net"] = form
    parts.header["config"]["lr"] = form["start"]
    return parts


def with_counts(parts: Parts, counts: Counts) -> Parts:
    parts.header["config"]["points"] = counts.residual
    now = parts.now
    return replace(
        parts,
        batches=points(parts.seed, counts),
        losses=lambda model, batch: components(model, batch, counts, now["viscosity"]),
    )


def with_stages(parts: Parts, stages: Stages, name: str) -> Parts:
    form = {"name": name, "stages": stages}
    parts.header |= {"curriculum": form, "curriculum_running": form}
    return replace(parts, weights=lambda applied: weights_of(stages, applied), extras=[noted(stages)])


def true_viscosity(parts: Parts) -> Parts:
    """All of the physics from the beginning, and nothing is annealed."""
    parts.now["viscosity"] = VISCOSITY
    parts.scheduled, parts.clocks = {}, {}
    del parts.header["schedules"]["viscosity"], parts.header["clocks"]
    return with_stages(parts, at_once(), "physics")


def solved(parts: Parts, steps: int, viscosity: float = VISCOSITY) -> Parts:
    """The net was trained before the record begins."""
    before, batches, weights = adam(parts.model), points(parts.seed + 50, Counts()), at_once()[0]["weights"]
    for number in range(steps):
        for group in before.param_groups:
            group["lr"] = RATE * 0.02 ** (number / steps)
        before.zero_grad()
        weighted(components(parts.model, batches(number), Counts(), viscosity), weights).backward()
        before.step()
    return parts


def few_points(parts: Parts) -> Parts:
    """Sixteen points for the residual and some more: the loss is mostly noise."""
    return rated(with_counts(parts, Counts(16, 8, 8, 8)), decay(1e-2))


def loss_only(parts: Parts) -> Parts:
    """One number a step, and the distance from the solution."""
    for name in ("components", "curriculum", "curriculum_running", "schedules", "clocks"):
        del parts.header[name]
    evaluation = Evaluation(10, measured(physics_later()[-1]["weights"], full=False))
    return replace(parts, records=frozenset(), extras=[], evaluation=evaluation)


def fine_tuning(parts: Parts) -> Parts:
    """A net that is done goes on at a low rate: not much is left to win."""
    return rated(solved(true_viscosity(parts), 350), decay(3e-4))


def long_run(parts: Parts) -> Parts:
    parts.header["total_steps"] = 2 * STEPS
    return rated(replace(parts, steps=2 * STEPS), decay(steps=2 * STEPS))


class QuasiNewton(torch.optim.LBFGS):
    """L-BFGS that knows whose loss it searches."""

    again: Callable[[], Tensor]

    def step(self, closure: Any = None) -> Any:  # noqa: ARG002
        return super().step(self._closure)

    def _closure(self) -> Tensor:
        self.zero_grad()
        loss = self.again()
        loss.backward()
        return loss


def quasi_newton(parts: Parts) -> Parts:
    """After Adam, L-BFGS with a line search on many points that stay: three iterations a step."""
    parts = replace(with_counts(solved(true_viscosity(parts), 150), Counts(768, 64, 64, 180)), steps=STEPS // 2)
    batch, weights, model = parts.batches(0), at_once()[0]["weights"], parts.model
    optimizer = QuasiNewton(model.parameters(), lr=1.0, max_iter=3, history_size=20, line_search_fn="strong_wolfe")
    optimizer.again = lambda: weighted(parts.losses(model, batch), weights)
    del parts.header["schedules"]["lr/net"]
    parts.header["config"] |= {"lr": 1.0, "optimizer": "lbfgs"}
    parts.header["total_steps"] = parts.steps
    return replace(parts, optimizer=optimizer, factor=None, batches=lambda number: batch)  # noqa: ARG005


def early_stopping(parts: Parts) -> Parts:
    """A constant rate; in the last stage it ends when four evaluations brought nothing."""
    parts = rated(replace(parts, steps=2 * STEPS), declared("constant", 1e-2, 1e-2, 2 * STEPS))
    parts.header["total_steps"] = parts.steps
    last = physics_later()[-1]
    measure, seen = measured(last["weights"]), list[float]()

    def watches(model: nn.Module) -> Channels:
        values = measure(model)
        seen.append(values["relative_l2"])
        return values

    def stops() -> bool:
        since = seen[last["start"] // 5 :]
        return len(since) > 4 and min(since[-4:]) > min(since[:-4])

    return replace(parts, evaluation=Evaluation(5, watches), stops=stops)


def warm_up(parts: Parts) -> Parts:
    """A fifth of the run goes by before the rate is full."""
    return rated(parts, decay() | {"warmup": STEPS // 5})


def transfer(parts: Parts) -> Parts:
    """A net that knows a thicker fluid: its first layers stay as they are, the rest learns the thinner one."""
    parts = solved(true_viscosity(parts), 300, viscosity=0.1)
    for parameter in parts.model.body[:2].parameters():
        parameter.requires_grad_(False)
    parts.header["config"]["frozen"] = "body.0"
    return rated(parts, decay(5e-3))


def refined(parts: Parts) -> Parts:
    """Half of the points go where the residual is largest: training sees the worst of it."""
    wide, model, now = points(parts.seed, Counts(1024)), parts.model, parts.now

    def batches(number: int) -> Batch:
        batch = wide(number)
        x = batch["x"].requires_grad_()
        inner = model(x)[:1024]
        worst = residual(inner, x, now["viscosity"])[128:].detach().abs().topk(128).indices + 128
        x = x.detach()
        return batch | {"x": torch.cat([x[:128], x[worst], x[1024:]])}

    parts.header["config"]["refined"] = True
    return replace(parts, batches=batches, records=RECORDS | {"inputs", "bad"})


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(int(0.6 * STEPS), lost=min(10, STEPS // 5))),
    "warm-restarts": lambda parts: rated(parts, declared("cosine", 1e-2, 3e-4, STEPS, restarts=2)),
    "few-points": few_points,
    "every-tenth": lambda parts: replace(parts, every=10, records=RECORDS - {"shares"}),
    "loss-only": loss_only,
    "fine-tuning": fine_tuning,
    "at-once": true_viscosity,
    "long-run": long_run,
    "quasi-newton": quasi_newton,
    "early-stopping": early_stopping,
    "warm-up": warm_up,
    "transfer": transfer,
    "refined": refined,
}


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, before the loop."""
    stages = physics_later()
    parts.weights = lambda applied: weights_of(stages, 0)  # noqa: ARG005
    parts.extras = [noted(stages[:1])]
    return int(stages[1]["start"]) + 1


def wrong_formula(parts: Parts) -> int:
    """The sign of the advection is lost: a wave that runs the other way."""
    now = parts.now
    parts.losses = lambda model, batch: components(model, batch, Counts(), now["viscosity"], advection=-1.0)
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "root-of-zero": partial(mistakes.root_of_zero, of=lambda model: model.hidden),
    "stage-stuck": stage_stuck,
    "wrong-formula": wrong_formula,
    "component-scale": partial(mistakes.component_scale, name="residual", by=1e4),
    "component-detached": partial(mistakes.component_detached, name="residual"),
    "too-little-data": partial(mistakes.too_little_data, batches=1),
}
SICK = (
    *("rate-too-high", "missing-zero-grad", "stale-optimiser", "component-detached", "component-scale"),
    *("wrong-formula", "stage-stuck", "absolute-anneal", "labels-break"),
    *("root-of-zero", "resume-old-weights", "too-little-data"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

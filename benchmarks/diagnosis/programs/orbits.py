"""Where a satellite will be: a neural ODE is fitted to what a radar sees of it, and then integrated on.

Arcs are made here: ellipses around an oblate, softened planet (GM 1, so that an orbit takes about six units of time),
seen by a radar at the planet's centre as places and range rates, with noise. An encoder reads six measurements and says
place and velocity at the last of them; a net gives the acceleration, as multiples of the place; Runge and Kutta's steps
of fourth order lead on through nearly half of an orbit. Three losses: squared errors of places and of range rates, and
how much the energy drifts along the way, by a potential that is learnt besides. AdamW, a warm-up, a cosine, clipping.
Validation on other arcs: the loss, how far off the last place is, and the drift.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import loop, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, declared
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS, EACH, SAVED = 120, 12, 30  # EACH: steps between evaluations
ARCS, HELD, BATCH, WIDTH = 1920, 192, 64, 48
SEEN, AHEAD, PAUSE, FINE = 6, 10, 0.25, 10  # PAUSE: time between measurements, of so many steps of the simulation
SOFT, OBLATE, NOISE = 0.15, 0.02, 0.005
Span = tuple[float, float]
ROUND: Span = (0.0, 0.3)  # eccentricities
STAGES: tuple[Span, ...] = ((0.0, 0.1), (0.1, 0.25), (0.3, 0.5))
RATE, WARMUP, CLIP = 1.5e-2, 10, 1.0
WEIGHTS = {"places": 1.0, "rates": 0.5, "drift": 0.2}
ROLES = {"places": "task", "rates": "task", "drift": "regulariser"}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs", "checkpoints"})
SPARSE = (  # a row each fourth step
    *("drift-later", "poor-radar", "fine-tuning", "new-field", "momentum", "warm-restarts", "tiny-batches"),
)
TWINS = {"stage-shock": "eccentric-later", "resume-repeats-data": "resumed"}
Many = NDArray[np.float64]


def pulled(place: Many) -> Many:
    """The acceleration at places [N, 2]: towards the planet, and by its bulge along the first axis."""
    far = ((place**2).sum(1, keepdims=True) + SOFT**2) ** 0.5
    along = place[:, :1] / far
    bulge = np.concatenate([2.0 * along, np.zeros_like(along)], 1) - (5.0 * along**2 - 1.0) * place / far
    told: Many = -place / far**3 + 1.5 * OBLATE * bulge / far**4
    return told


@cache
def simulated(span: Span = ROUND, count: int = ARCS + HELD) -> tuple[Many, Many]:
    """Places and velocities [N, SEEN + AHEAD, 2] on orbits of such eccentricities."""
    random, rows = np.random.default_rng(83), []
    axis, turned, way = (
        random.uniform(0.9, 1.3, count),
        random.uniform(0, 2 * np.pi, count),
        random.choice([-1, 1], count),
    )
    bent, phase = random.uniform(*span, count), random.uniform(0, 2 * np.pi, count)
    far, push = axis * (1 - bent**2) / (1 + bent * np.cos(phase)), (axis * (1 - bent**2)) ** -0.5
    at, flies = phase + turned, np.stack([-np.sin(phase), bent + np.cos(phase)], 1) * push[:, None]
    spin = np.stack([np.cos(turned), -np.sin(turned), np.sin(turned), np.cos(turned)], 1).reshape(-1, 2, 2)
    place, fast = far[:, None] * np.stack([np.cos(at), np.sin(at)], 1), (spin @ flies[..., None])[..., 0]
    place[:, 1], fast[:, 1] = way * place[:, 1], way * fast[:, 1]
    for tick in range((SEEN + AHEAD) * FINE):  # leapfrog
        if tick % FINE == 0:
            rows.append((place, fast))
        half = fast + PAUSE / FINE / 2 * pulled(place)
        place = place + PAUSE / FINE * half
        fast = half + PAUSE / FINE / 2 * pulled(place)
    places, velocities = (np.stack(each, 1) for each in zip(*rows, strict=True))
    return places, velocities


@cache
def part(held: bool = False, span: Span = ROUND, noise: float = NOISE) -> Batch:
    """What the radar saw first, `x`, and then, of arcs to learn from or of those held out."""
    (places, velocities), random = simulated(span), np.random.default_rng(11)
    rates = (places * velocities).sum(2) / np.linalg.norm(places, axis=2)
    exact = np.concatenate([places, rates[..., None]], 2)
    told = torch.tensor(exact + noise * random.normal(size=exact.shape), dtype=torch.float32)
    told = told[ARCS:] if held else told[:ARCS]
    return {"x": told[:, :SEEN], "places": told[:, SEEN:, :2], "rates": told[:, SEEN:, 2]}


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_normal_(layer.weight, gain)
    return layer


def hidden(inputs: int) -> list[nn.Module]:
    return [linear(inputs, WIDTH), nn.Tanh(), linear(WIDTH, WIDTH), nn.Tanh()]


class Orbiter(nn.Module):
    """Measurements in; places and velocities at the times that follow out. These are kept.

    What is added to the last measurement, and to the pull, is nearly nothing at first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.start = nn.Sequential(*hidden(3 * SEEN)), linear(WIDTH, 4, 0.1)
        self.field = nn.Sequential(*hidden(5), linear(WIDTH, 2, 0.1))
        self.potential = nn.Sequential(*hidden(2), linear(WIDTH, 1, 0.1))
        self.states = torch.zeros(())

    def flow(self, state: Tensor) -> Tensor:
        """How fast place and velocity change."""
        near = (state[:, :2].square().sum(1, keepdim=True) + SOFT**2).rsqrt()
        return torch.cat([state[:, 2:], -state[:, :2] * self.field(torch.cat([state, near], 1))], 1)

    def forward(self, x: Tensor, count: int) -> Tensor:
        last = torch.cat([x[:, -1, :2], (x[:, -1, :2] - x[:, -2, :2]) / PAUSE], 1)
        state, rows = last + self.start(self.reader(x.flatten(1))), []
        for _ in range(count):
            one = self.flow(state)
            two = self.flow(state + PAUSE / 2 * one)
            three = self.flow(state + PAUSE / 2 * two)
            four = self.flow(state + PAUSE * three)
            state = state + PAUSE / 6 * (one + 2 * two + 2 * three + four)
            rows.append(state)
        self.states = torch.stack(rows, 1)
        return self.states

    def energies(self, states: Tensor) -> Tensor:
        """Kinetic, and of the potential that is learnt. [N, times]"""
        energy: Tensor = (states[..., 2:] ** 2).sum(2) / 2 + self.potential(states[..., :2])[..., 0]
        return energy


def losses(model: nn.Module, batch: Batch) -> Components:
    """Squared errors of places and range rates, and the spread of the energy along each arc."""
    assert isinstance(model, Orbiter)
    states = model(batch["x"], batch["places"].shape[1])
    place, fast = states[..., :2], states[..., 2:]
    rates = (place * fast).sum(2) / (place.square().sum(2) + 1e-4).sqrt()
    return {
        "places": functional.mse_loss(place, batch["places"]),
        "rates": functional.mse_loss(rates, batch["rates"]),
        "drift": model.energies(states).var(1).mean(),
    }


def validated(held: Batch, each: Callable[..., Components] | None = None) -> Evaluation:
    """The loss, how far off the last place is, and how much the energy drifts."""

    def measure(model: nn.Module) -> Channels:
        raw = (each or losses)(model, held)
        off = (cast(Orbiter, model).states[:, -1, :2] - held["places"][:, -1]).norm(dim=1)
        return {
            "loss": sum(WEIGHTS[name] * value.item() for name, value in raw.items()),
            "miss": off.mean().item(),
            "drift": raw["drift"].sqrt().item(),
        }

    return Evaluation(EACH, measure, held=held)


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Orbiter()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(part(), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=ARCS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Orbiter, model).states,
        evaluation=validated(part(held=True)),
        header={
            "config": {"batch_size": BATCH, "arcs": ARCS, "clip": CLIP, "noise": NOISE, "weights": dict(WEIGHTS)},
            "components": {name: {"role": role} for name, role in ROLES.items()},
            "schedules": {},
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
            "gradient_at": "states",
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """What learns, by its part of the model."""
    return [
        {"params": free, "name": name}
        for name, each in model.named_children()
        if (free := [parameter for parameter in each.parameters() if parameter.requires_grad])
    ]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups(model), lr=RATE, weight_decay=1e-4)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, and so the header says."""
    return loop.planned(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def sized(parts: Parts, size: int) -> Parts:
    """So many arcs a batch."""
    parts.header["config"]["batch_size"] = size
    return replace(parts, batches=shuffled(part(), size, parts.seed), batches_per_epoch=ARCS // size)


@cache
def schooled(seed: int, steps: int = 400) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 100) -> Parts:
    """A schooled net goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/400.pt"
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def new_field(parts: Parts) -> Parts:
    """A schooled encoder stays as it is, by intent; the field and the potential are new."""
    kept = {name: value for name, value in schooled(parts.seed).items() if name.startswith(("reader", "start"))}
    parts.model.load_state_dict(kept, strict=False)
    for name in ("reader", "start"):
        parts.model.get_submodule(name).requires_grad_(False)
    parts.header["config"] |= {"initialised_from": "checkpoints/400.pt", "freeze": ["reader", "start"]}
    return annealed(replace(parts, optimizer=adam(parts.model)))


def eccentric_later(parts: Parts, last: Span = STAGES[-1], **louder: float) -> Parts:
    """Nearly circles at first, then longer and longer ellipses: the loss rises where a stage begins, as is declared."""
    each, spans = -(-parts.steps // len(STAGES)), (*STAGES[:-1], last)
    weights = [dict(WEIGHTS)] * (len(spans) - 1) + [WEIGHTS | louder]
    sets = [shuffled(part(span=span), BATCH, parts.seed) for span in spans]
    stages = [{"start": at * each, "data": {"eccentricity": [*span]}} for at, span in enumerate(spans)]
    for stage, those in zip(stages, weights, strict=True):
        stage["weights"] = those
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "eccentric-later", "stages": stages}
    parts.header["config"]["curriculum"] = "eccentric-later"

    def told(step: int, batch: Batch) -> Channels:  # noqa: ARG001
        at = (step - 1) // each
        return {"stage": at} | dict(zip(("data/eccentricity/min", "data/eccentricity/max"), spans[at], strict=True))

    parts.weights, parts.extras = lambda applied: dict(weights[applied // each]), [told]
    held = validated(part(held=True, span=STAGES[-1]))
    return replace(parts, batches=lambda number: sets[number // each](number), evaluation=held)


def drift_later(parts: Parts, low: float = 0.01, high: float = 1.0) -> Parts:
    """The drift counts nearly nothing at first: its weight rises by a clock through three quarters of the run."""
    over = 3 * parts.steps // 4
    parts.clocks = {"updates": lambda applied: applied}
    parts.scheduled = {"drift": ("updates", loop.linear(low, high, over))}
    parts.header["schedules"]["drift"] = declared("linear", low, high, over, clock="updates")
    parts.header["clocks"], parts.now["drift"] = ["updates"], low
    parts.header["config"]["weights"] = WEIGHTS | {"drift": [low, high]}
    parts.weights = lambda applied: WEIGHTS | {"drift": parts.now["drift"]}  # noqa: ARG005
    return replace(parts, records=RECORDS | {"clocks"})


def momentum(parts: Parts, rate: float = 0.05) -> Parts:
    """Plain SGD with momentum."""
    parts.header["config"] |= {"optimizer": "sgd", "momentum": 0.9}
    parts.optimizer = torch.optim.SGD(groups(parts.model), rate, 0.9)
    return annealed(parts, rate)


def poor_radar(parts: Parts, noise: float = 8 * NOISE) -> Parts:
    """Training is on an old radar's arcs, validation on a good one's: the loss in training stays above it."""
    parts.header["config"]["noise"] = noise
    return replace(parts, batches=shuffled(part(noise=noise), BATCH, parts.seed))


def per_epoch(parts: Parts) -> Parts:
    """A row and an evaluation at the end of each of 12 epochs, of larger batches."""
    parts = loop.by_epochs(sized(parts, 160), 12)
    parts.header["checkpoint_every"] = 4 * parts.batches_per_epoch
    return annealed(parts, warmup=parts.batches_per_epoch)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": loop.taken_up,
    "eccentric-later": eccentric_later,
    "drift-later": drift_later,
    "poor-radar": poor_radar,
    "per-epoch": per_epoch,
    "fine-tuning": fine_tuned,
    "new-field": new_field,
    "momentum": momentum,
    "warm-restarts": lambda parts: annealed(parts, warmup=0, restarts=2),
    "tiny-batches": lambda parts: annealed(sized(parts, 6), RATE / 2),
}


def clamped(model: nn.Module, batch: Batch) -> Components:
    raw = losses(model, batch)
    return raw | {"rates": (1e6 * raw["rates"]).clamp(max=1.0)}


def clamped_component(parts: Parts) -> int:
    """Range rates are compared in metres a second, and the error is still cut at 1, as for kilometres."""
    parts.losses, parts.evaluation = clamped, validated(part(held=True), clamped)
    return 1


def nan_filtered_log(parts: Parts) -> int:
    """A measurement that was lost is NaN; the log, kept by hand, writes 0 for each number that is none."""
    parts.records -= {"shares"}
    at = mistakes.nan_filtered_log(parts)
    parts.logs = lambda row: {name: 0.0 if value != value else value for name, value in row.items()}
    return at


def stage_shock(parts: Parts) -> int:
    """The last stage's eccentricities were meant for comets, and its weights for another unit: nothing fits them."""
    parts.batches = eccentric_later(parts, (0.95, 0.99), places=20.0).batches
    return int(parts.header["curriculum"]["stages"][-1]["start"]) + 1


def deep_sigmoids(parts: Parts, depth: int = 8) -> int:
    """What reads and what pulls as in an old book: deep stacks of sigmoids."""
    model = cast(Orbiter, parts.model)

    def stack(inputs: int) -> list[nn.Module]:
        sizes = (inputs, *(depth - 1) * [WIDTH])
        return [each for size in sizes for each in (linear(size, WIDTH), nn.Sigmoid())]

    model.reader = nn.Sequential(*stack(3 * SEEN))
    model.field = nn.Sequential(*stack(5), linear(WIDTH, 2, 0.1))
    parts.optimizer = adam(model)
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "clamped-component": clamped_component,
    "nan-filtered-log": nan_filtered_log,
    "stage-shock": stage_shock,
    "growing-weights": partial(mistakes.growing_weights, by=-0.025),
    "leaking-memory": partial(mistakes.leaking_memory, floats=500_000),  # all states between, for a film
    "slow-loader": partial(mistakes.slow_loader, seconds=0.04),  # each arc is a file of its own
    "deep-sigmoids": deep_sigmoids,
    "component-detached": partial(mistakes.component_detached, name="drift"),  # energies went through numpy
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*OWN, "unmoved-group", "rate-too-high", "resume-repeats-data")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts, 4) if case in SPARSE else parts, path, case, OWN)

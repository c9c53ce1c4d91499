"""Six tasks on one trunk: a digit is told, halved, counted, weighed, found and drawn again; AdamW, a curriculum.

Three stages with declared weights and noise on the inputs. The row has every component, its weight, and now and then
its share of the gradient at the trunk's end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import digits, shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, cosine, declared

HELD_OUT = False
STEPS = 320
TRAINING, BATCH = 1280, 32
RATE, WARMUP = 2e-3, 20
TASKS = ("digit", "parity", "ink", "centre", "holes", "pixels")
HEADS = {"digit": 10, "parity": 1, "ink": 1, "centre": 2, "holes": 3, "pixels": 16}
HOLES = torch.tensor([1, 0, 0, 0, 0, 0, 1, 0, 2, 1])  # of each digit, as it is mostly written
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "clocks"})

HEALTHY = (
    *("plain", "no-shares", "one-stage", "six-stages", "accumulated", "resumed", "exact-zero", "small-auxiliary"),
    *("smooth-ramp", "uneven-units", "no-weights-logged", "fp32-declared"),
    "banded-noise",
)
TWINS = {
    "divided-twice": "accumulated",
    "scheduler-per-micro-batch": "accumulated",
    "component-untracked": "no-shares",
    "resume-restarts-schedule": "resumed",
    "component-detached": "one-stage",
    "opposed-components": "one-stage",
    "clamped-component": "one-stage",
    "component-sign": "one-stage",
    "stale-workers": "banded-noise",
    "local-counter": "smooth-ramp",
    "stuck-counter": "smooth-ramp",
    "absolute-anneal": "smooth-ramp",
}

Stages = list[dict[str, Any]]


def stage(start: int, noise: tuple[float, float], **weights: float) -> dict[str, Any]:
    """A stage as the config writes it; a task that is not named has weight 0."""
    known = {task: weights.get(task, 0.0) for task in TASKS}
    return {"start": start, "name": f"from-{start}", "weights": known, "data": {"noise": list(noise)}}


def gentle() -> Stages:
    third = STEPS // 3
    return [
        stage(0, (0.0, 0.2), digit=1.0, ink=0.2),
        stage(third, (0.0, 0.4), digit=1.0, ink=0.2, parity=0.3, holes=0.3),
        stage(2 * third, (0.0, 0.6), digit=1.0, ink=0.2, parity=0.3, holes=0.3, centre=0.2, pixels=0.5),
    ]


def all_at_once() -> Stages:
    return [stage(0, (0.0, 0.4), **dict.fromkeys(TASKS, 0.5))]


def banded() -> Stages:
    """As gentle, but each stage's noise begins where the last one's ended."""
    stages = gentle()
    for number, one in enumerate(stages):
        one["data"]["noise"] = [0.2 * number, 0.2 * (number + 1)]
    return stages


def six_stages() -> Stages:
    each, weights, found = STEPS // 6, {}, []
    for number, task in enumerate(TASKS):
        weights[task] = 0.5
        found.append(stage(number * each, (0.0, 0.1 * (number + 1)), **weights))
    return found


@dataclass
class Plan:
    """The curriculum that runs: which stage holds after so many applied steps, and with which weights and noise."""

    stages: Stages
    name: str = "GENTLE"

    def index(self, applied: int) -> int:
        return sum(one["start"] <= applied for one in self.stages) - 1

    def weights(self, applied: int) -> dict[str, float]:
        return dict(self.stages[self.index(applied)]["weights"])

    def noise(self, applied: int) -> tuple[float, float]:
        low, high = self.stages[self.index(applied)]["data"]["noise"]
        return low, high

    def form(self) -> dict[str, Any]:
        """What the header says of it."""
        return {"name": self.name, "source": f"curricula/{self.name.lower()}.yaml", "stages": self.stages}


class Tasks(nn.Module):
    """A trunk of two layers and a head for each task; `trunk_out` is what all heads read."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU())
        self.heads = nn.ModuleDict({task: nn.Linear(64, size) for task, size in HEADS.items()})
        self.trunk_out = torch.zeros(())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.trunk_out = self.trunk(x)
        return {task: head(self.trunk_out) for task, head in self.heads.items()}


@lru_cache(maxsize=1)
def targets() -> Batch:
    """Inputs, and what each task asks for."""
    x, y = digits()
    paper = x - x.min()
    images, grid = paper.view(-1, 8, 8), torch.arange(8.0)
    mass = paper.sum(1)
    across, down = (images.sum(1) * grid).sum(1) / mass, (images.sum(2) * grid).sum(1) / mass
    ink = (mass - mass.mean()) / mass.std()
    small = functional.avg_pool2d(x.view(-1, 1, 8, 8), 2).flatten(1)
    return {"x": x, "y": y, "ink": ink, "centre": torch.stack([across, down], 1) - 3.5, "pixels": small}


def losses(model: nn.Module, batch: Batch) -> Components:
    """The six losses, each by its own measure."""
    out = model(batch["x"])
    return {
        "digit": functional.cross_entropy(out["digit"], batch["y"]),
        "parity": functional.binary_cross_entropy_with_logits(out["parity"][:, 0], (batch["y"] % 2).float()),
        "ink": functional.huber_loss(out["ink"][:, 0], batch["ink"]),
        "centre": functional.huber_loss(out["centre"], batch["centre"]),
        "holes": functional.cross_entropy(out["holes"], HOLES[batch["y"]]),
        "pixels": functional.mse_loss(out["pixels"], batch["pixels"]),
    }


def build(seed: int, variant: str, plan: Plan | None = None, running: Plan | None = None) -> Parts:
    """The parts of a healthy variant; `running` is the curriculum of the loop, if that is another one."""
    torch.manual_seed(seed)
    plan = plan or CURRICULA.get(variant, lambda: Plan(gentle()))()
    running, model = running or plan, Tasks()
    parts = Parts(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01),
        batches=noisy(BATCH, seed, lambda number: running.noise(number)),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        weights=running.weights,
        factor=cosine(STEPS, WARMUP, floor=0.1),
        at=lambda model: model.trunk_out,
        evaluation=Evaluation(20, measured(running)),
        header=header(plan, running),
        records=RECORDS,
        extras=[lambda step, batch: {"stage": running.index(step - 1), **spread(batch["noise"])}],
        body=lambda model: [*model.trunk.parameters()],
    )
    return VARIANTS[variant](parts, seed) if variant in VARIANTS else parts


def header(plan: Plan, running: Plan) -> dict[str, Any]:
    """What the run says of itself."""
    units = {"digit": "nat", "parity": "nat", "ink": "sd", "centre": "pixel", "holes": "nat", "pixels": ""}
    return {
        "config": {"lr": RATE, "weight_decay": 0.01, "batch_size": BATCH, "curriculum": plan.name},
        "total_steps": STEPS,
        "horizon": {"epochs": 8, "samples": TRAINING, "batch_size": BATCH, "accumulation": 1, "drop_last": True},
        "components": {task: {"unit": units[task], "role": "task"} for task in TASKS},
        "curriculum": plan.form(),
        "curriculum_running": running.form(),
        "schedules": {"lr/0": declared("cosine", RATE, 0.1 * RATE, STEPS, warmup=WARMUP)},
        "gradient_at": "trunk_out",
    }


def noisy(size: int, seed: int, level: Callable[[int], tuple[float, float]], each: int = 1) -> Callable[[int], Batch]:
    """Batches with noise on the inputs; each sample's level is drawn from those of the step."""
    plain = shuffled({name: values[:TRAINING] for name, values in targets().items()}, size, seed)

    def batch(number: int) -> Batch:
        generator = torch.Generator().manual_seed(100_000 * seed + number)
        clean = plain(number)
        low, high = level(number // each)
        noise = low + (high - low) * torch.rand(size, 1, generator=generator)
        x = clean["x"] + noise * torch.randn(clean["x"].shape, generator=generator)
        return clean | {"x": x, "noise": noise}

    return batch


def spread(values: Tensor) -> Channels:
    """What the row says of the noise in the batch that was really drawn."""
    return {
        "data/noise/min": values.min().item(),
        "data/noise/mean": values.mean().item(),
        "data/noise/max": values.max().item(),
    }


def measured(running: Plan) -> Callable[[nn.Module], dict[str, float]]:
    """The components on the validation set, and their sum with the last stage's weights."""
    held = {name: values[TRAINING:] for name, values in targets().items()}
    weights = running.stages[-1]["weights"]

    def measure(model: nn.Module) -> dict[str, float]:
        raw = {name: value.item() for name, value in losses(model, held).items()}
        accuracy = (model(held["x"])["digit"].argmax(-1) == held["y"]).float().mean().item()
        total = sum(weights[name] * value for name, value in raw.items())
        return {"loss": total, **{f"loss/{name}": value for name, value in raw.items()}, "accuracy": accuracy}

    return measure


def accumulated(parts: Parts, seed: int) -> Parts:
    """Half the batch, twice a step. Components are logged by hand, as their means."""
    parts.header["horizon"] = parts.header["horizon"] | {"batch_size": BATCH // 2, "accumulation": 2}
    plan = Plan(gentle())
    batches = noisy(BATCH // 2, seed, plan.noise, each=2)
    return replace(parts, batches=batches, accumulation=2, records=RECORDS - {"shares"})


def with_losses(parts: Parts, more: Callable[[nn.Module, Components], Components], **weights: float) -> Parts:
    """Components besides, computed from the others or the model; with constant weights."""
    plain, known = parts.losses, parts.weights
    assert known is not None
    parts.losses = lambda model, batch: (raw := plain(model, batch)) | more(model, raw)
    parts.weights = lambda applied: known(applied) | weights
    for form in (parts.header["curriculum"], parts.header["curriculum_running"]):
        for one in form["stages"]:
            one["weights"] |= weights
    return parts


def exact_zero(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """A hinge that is satisfied from the beginning: exactly 0 by design, since it guards and does not teach."""
    parts.header["components"]["guard"] = {"unit": "", "role": "regulariser"}
    return with_losses(parts, lambda model, raw: {"guard": functional.relu(raw["ink"] - 50.0)}, guard=1.0)  # noqa: ARG005


def small_auxiliary(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """A small penalty on the trunk's activations, a ten-thousandth of the loss, as z-losses are."""
    parts.header["components"]["activity"] = {"unit": "", "role": "auxiliary"}
    return with_losses(parts, lambda model, raw: {"activity": (model.trunk_out**2).mean()}, activity=1e-4)  # noqa: ARG005


def smooth_ramp(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """One stage; the pixels' temperature is annealed by a counter from 0 to 1 along the run."""
    plain, now = parts.losses, parts.now
    now["pixel_part"] = 0.0
    parts.losses = lambda model, batch: (raw := plain(model, batch)) | {"pixels": raw["pixels"] * now["pixel_part"]}
    parts.clocks = {"pixel": lambda applied: applied}
    parts.scheduled = {"pixel_part": ("pixel", lambda reading: min(reading / STEPS, 1.0))}
    parts.header["clocks"] = ["pixel"]
    parts.header["schedules"]["pixel_part"] = declared("linear", 0.0, 1.0, STEPS, clock="pixel")
    return parts


def uneven_units(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """The centre in thousandths of a pixel, and a weight that makes up for it."""
    mistakes.component_scale(parts, "centre", 1000.0)
    parts.header["components"]["centre"]["unit"] = "mpixel"
    return with_losses(parts, lambda model, raw: {}, centre=2e-4)  # noqa: ARG005


def no_weights_logged(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """Equal weights of 1 that nobody logs; no curriculum, no shares."""
    for name in ("curriculum", "curriculum_running", "components", "gradient_at"):
        del parts.header[name]
    return replace(parts, weights=None, records=RECORDS - {"shares"}, extras=[])


def fp32_declared(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    parts.header["dtypes"] = {"declared": "float32", "observed": "float32"}
    return replace(parts, max_norm=5.0, header=parts.header | {"max_grad_norm": 5.0})


CURRICULA: dict[str, Callable[[], Plan]] = {
    "banded-noise": lambda: Plan(banded(), "BANDED"),
    "one-stage": lambda: Plan(all_at_once(), "ALL"),
    "six-stages": lambda: Plan(six_stages(), "SIX"),
    "smooth-ramp": lambda: Plan(all_at_once(), "ALL"),
    "uneven-units": lambda: Plan(all_at_once(), "ALL"),
}
VARIANTS: dict[str, Callable[[Parts, int], Parts]] = {
    "no-shares": lambda parts, seed: replace(parts, records=RECORDS - {"shares"}),  # noqa: ARG005
    "accumulated": accumulated,
    "resumed": lambda parts, seed: replace(parts, resume=Resume(STEPS // 2)),  # noqa: ARG005
    "exact-zero": exact_zero,
    "small-auxiliary": small_auxiliary,
    "smooth-ramp": smooth_ramp,
    "uneven-units": uneven_units,
    "no-weights-logged": no_weights_logged,
    "fp32-declared": fp32_declared,
}


def wrong_weights(parts: Parts) -> int:
    """The digit's weight decays by half a percent a step, by a line that was left from an experiment."""
    mistakes.reweigh(parts, lambda applied, weights: weights | {"digit": weights["digit"] * 0.995**applied})
    return 2


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, before the loop."""
    first = Plan(gentle())
    parts.weights = lambda applied: first.weights(0)  # noqa: ARG005
    parts.batches = noisy(BATCH, parts.seed, lambda applied: first.noise(0))  # noqa: ARG005
    parts.extras = [lambda step, batch: {"stage": 0, **spread(batch["noise"])}]  # noqa: ARG005
    return first.stages[1]["start"] + 1


def stale_workers(parts: Parts) -> int:
    """Labels and weights go on to the next stage, the loader's copy of the curriculum does not."""
    first = Plan(banded())
    parts.batches = noisy(BATCH, parts.seed, lambda applied: first.noise(0))  # noqa: ARG005
    return first.stages[1]["start"] + 1


def opposed_components(parts: Parts) -> int:
    """A seventh component asks the ink's head for the opposite: the target's sign was lost."""
    plain, known = parts.losses, parts.weights
    assert known is not None

    def both(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        ink = model.heads["ink"](model.trunk_out)[:, 0]
        return raw | {"paper": functional.huber_loss(ink, 4.0 - batch["ink"])}

    parts.losses, parts.weights = both, lambda applied: known(applied) | {"ink": 4.0, "paper": 4.0}
    for form in (parts.header["curriculum"], parts.header["curriculum_running"]):
        form["stages"][0]["weights"] |= {"ink": 4.0, "paper": 4.0}
    parts.header["components"]["paper"] = {"unit": "sd", "role": "task"}
    return 1


def clamped_component(parts: Parts) -> int:
    """The centre's loss in hundredths of a pixel, clamped at 1: a constant."""
    plain = parts.losses

    def clamped(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        off = 100.0 * (model.heads["centre"](model.trunk_out) - batch["centre"]).abs().mean()
        return raw | {"centre": off.clamp(max=1.0)}

    parts.losses = clamped
    return 1


def all_masked(parts: Parts) -> int:
    """A confidence mask keeps what the network is sure of: nearly nothing, and nothing changes that."""
    plain = parts.losses
    share = {"masked": 0.0}

    def masked(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        logits = model.heads["parity"](model.trunk_out)[:, 0]
        kept = (torch.sigmoid(logits) - 0.5).abs() > 0.4999
        each = functional.binary_cross_entropy_with_logits(logits, (batch["y"] % 2).float(), reduction="none")
        share["masked"] = 1.0 - kept.float().mean().item()
        return raw | {"parity": (each * kept).sum() / max(int(kept.sum()), 1)}

    parts.losses = masked
    parts.extras = [*parts.extras, lambda step, batch: {"data/masked/parity": share["masked"]}]  # noqa: ARG005
    return 1


def _staged(seed: int, stages: Stages, name: str) -> Parts:
    """A run that declares these stages, and runs them."""
    return build(seed, "plain", Plan(stages, name))


def steep_ramp(seed: int) -> tuple[Parts, int]:
    """The pixels come in with a hundred times the weight of the others, at once."""
    stages = gentle()
    for one, weight in zip(stages[1:], (0.5, 60.0), strict=True):
        one["weights"]["pixels"] = weight
    return _staged(seed, stages, "STEEP"), stages[2]["start"] + 1


def stage_shock(seed: int) -> tuple[Parts, int]:
    """The second stage asks for everything at once, on inputs that are mostly noise."""
    half = STEPS // 2
    stages = [stage(0, (0.0, 0.1), digit=1.0), stage(half, (0.0, 12.0), **dict.fromkeys(TASKS, 1.0) | {"digit": 4.0})]
    return _staged(seed, stages, "SHOCK"), half + 1


def stages_unreachable(seed: int) -> tuple[Parts, int]:
    """Boundaries are those of a run five times as long."""
    stages = gentle()
    for one in stages:
        one["start"] *= 5
    return _staged(seed, stages, "LONG"), 0


def wrong_curriculum(seed: int) -> tuple[Parts, int]:
    """The config is named for one, the entry point takes its default."""
    return build(seed, "plain", Plan(gentle()), Plan(all_at_once(), "ALL")), 1


CURRICULAR: dict[str, Callable[[int], tuple[Parts, int]]] = {
    "steep-ramp": steep_ramp,
    "stage-shock": stage_shock,
    "stages-unreachable": stages_unreachable,
    "wrong-curriculum": wrong_curriculum,
}
"""Mistakes of the curriculum itself: the run is built around them."""

OWN: dict[str, mistakes.Mistake] = {
    "component-scale": partial(mistakes.component_scale, name="ink", by=1e5),
    "component-sign": partial(mistakes.component_sign, name="holes"),
    "component-detached": partial(mistakes.component_detached, name="centre"),
    "one-owns-gradient": partial(mistakes.component_scale, name="digit", by=200.0),
    "rate-too-high": partial(mistakes.rate_too_high, by=300.0),
    "wrong-weights": wrong_weights,
    "stage-stuck": stage_stuck,
    "stale-workers": stale_workers,
    "opposed-components": opposed_components,
    "clamped-component": clamped_component,
    "all-masked": all_masked,
}
SICK = (
    *("component-scale", "component-sign", "component-detached", "component-untracked", "divided-twice"),
    *("one-owns-gradient", "opposed-components", "clamped-component", "all-masked", "wrong-curriculum"),
    *("wrong-weights", "stage-stuck", "steep-ramp", "stage-shock", "stages-unreachable", "stale-workers"),
    *("rate-too-high", "rate-too-low", "frozen-body", "scheduler-twice", "scheduler-per-micro-batch"),
    *("local-counter", "stuck-counter", "absolute-anneal", "resume-restarts-schedule", "log-of-zero"),
    *("labels-break", "one-bad-batch", "discarded-update", "crash-type-error"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    if case in CURRICULAR:
        parts, onset = CURRICULAR[case](seed)
        mistakes.perform(parts, path, case, {case: lambda parts: onset})  # noqa: ARG005
        return onset
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

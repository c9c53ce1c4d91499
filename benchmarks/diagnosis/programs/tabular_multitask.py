"""Four tasks at once on the 569 biopsies of scikit-learn's breast-cancer table, under a curriculum of stages.

From twenty measurements of the cells' nuclei: is it malignant, how large is the largest nucleus, what were the
measurements before noise was added, and what does a ridge regression (the teacher) say. The stages set the components'
weights and the noise; they are declared, and so is the exponential decay of the rate. NAdam; the gradients' shares are
taken at every tenth step. Of the sick runs most go wrong in how the curriculum is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.nn import functional

import trainwatch
from benchmarks.diagnosis import facts
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 180
SICK = (
    "wrong-curriculum", "wrong-weights", "stage-stuck", "steep-ramp", "stage-shock", "stages-unreachable",
    "stale-workers", "opposed-components", "clamped-component", "one-owns-gradient", "component-scale",
    "component-sign", "component-detached", "deep-sigmoids", "dead-relus", "unscaled-input", "constant-input",
    "rare-class", "all-masked", "resume-repeats-data", "scheduler-per-epoch", "stuck-counter",
    "wrong-formula",
)  # fmt: skip
HEALTHY = (
    "plain", "one-stage", "smooth-ramp", "many-stages", "strong-teacher", "teacher-off", "deep-tanh", "epoch-rows",
    "every-fifth", "loss-only", "resumed", "batch-2", "early-stopping", "hinge", "rate-on-plateau",
)  # fmt: skip
TWIN = {
    "opposed-components": "strong-teacher", "wrong-formula": "strong-teacher", "deep-sigmoids": "deep-tanh",
    "resume-repeats-data": "resumed", "one-owns-gradient": "one-stage", "component-scale": "one-stage",
    "component-sign": "one-stage", "component-detached": "one-stage",
}  # fmt: skip
"""The healthy case that a sick one departs from, where it is not "plain"."""
COMPONENTS = ("malignant", "size", "restore", "teacher")


def stage(start: int, name: str, weights: tuple[float, ...], noise: tuple[float, float]) -> dict[str, Any]:
    """One stage of a curriculum; weights in the order of COMPONENTS."""
    return {
        "start": start,
        "name": name,
        "weights": dict(zip(COMPONENTS, weights, strict=True)),
        "data": {"noise": list(noise)},
    }


STAGES = [
    stage(0, "restore", (0.2, 0.1, 1.0, 0.05), (0.0, 0.1)),
    stage(60, "classify", (1.0, 0.3, 0.6, 0.05), (0.1, 0.3)),
    stage(120, "all", (1.0, 1.0, 0.4, 0.05), (0.2, 0.5)),
]
FLAT = [stage(0, "flat", (1.0, 1.0, 0.4, 0.05), (0.0, 0.2))]


def ramp() -> list[dict[str, Any]]:
    """The three stages with nine small ones between the second and the third."""
    between = [
        stage(120 + 4 * i, f"ramp {i}", (1.0, 0.3 + 0.07 * i, 0.6 - 0.02 * i, 0.05), (0.1 + 0.01 * i, 0.3 + 0.02 * i))
        for i in range(1, 10)
    ]
    return [*STAGES[:2], *between, {**STAGES[2], "start": 160}]


@dataclass(frozen=True)
class Plan:
    """What is trained, and what is logged of it."""

    steps: int = field(default_factory=lambda: STEPS)
    batch: int = 20
    rate: float = 2e-3
    decay: dict[str, Any] = field(default_factory=lambda: {"kind": "exponential", "end": 2e-4, "rate": 2.0})
    stages: list[dict[str, Any]] = field(default_factory=lambda: STAGES)
    name: str = "three-stages"
    depth: int = 2
    activation: str = "gelu"
    hinge: bool = False
    every: int = 1
    full: bool = True
    patience: int = 0
    interrupted: int = 0


def with_weights(stages: list[dict[str, Any]], **weights: float) -> list[dict[str, Any]]:
    """The stages with some weights changed in each."""
    return [{**one, "weights": {**one["weights"], **weights}} for one in stages]


CASES: dict[str, dict[str, Any]] = {
    "one-stage": {"stages": FLAT, "name": "flat"},
    "smooth-ramp": {"stages": ramp(), "name": "ramped"},
    "many-stages": {"stages": [stage(18 * i, f"noise {i}", (1.0, 1.0, 0.4, 0.05), (0.03 * i, 0.06 * i + 0.02))
                               for i in range(10)], "name": "ten-stages"},
    "strong-teacher": {"stages": with_weights(FLAT, teacher=1.0), "name": "taught"},
    "teacher-off": {"stages": with_weights(STAGES, teacher=0.0), "name": "untaught"},
    "deep-tanh": {"depth": 7, "activation": "tanh", "stages": FLAT, "name": "flat"},
    "epoch-rows": {"every": 20, "stages": FLAT, "name": "flat", "steps": 400},
    "every-fifth": {"every": 5, "steps": 400},
    "loss-only": {"full": False},
    "resumed": {"interrupted": 80},
    "batch-2": {"batch": 2, "rate": 5e-4, "decay": {"kind": "exponential", "end": 5e-5, "rate": 2.0}},
    "early-stopping": {"patience": 2, "steps": 400, "stages": FLAT, "name": "flat", "rate": 1e-2},
    "hinge": {"hinge": True},
    "rate-on-plateau": {"decay": {"kind": "constant"}, "stages": FLAT, "name": "flat", "steps": 360},
    "steep-ramp": {"stages": [*STAGES[:2], *with_weights(STAGES[2:], size=400.0)]},
    "stage-shock": {"stages": [*STAGES[:2], stage(120, "all", (1.0, 1.0, 1.0, 0.05), (4.0, 9.0))]},
    "stages-unreachable": {"stages": [STAGES[0], {**STAGES[1], "start": 9_000}, {**STAGES[2], "start": 18_000}]},
    "opposed-components": {"stages": with_weights(FLAT, teacher=1.0), "name": "taught"},
    "wrong-formula": {"stages": with_weights(FLAT, teacher=1.0), "name": "taught"},
    "one-owns-gradient": {"stages": with_weights(FLAT, size=3000.0), "name": "flat"},
    "component-scale": {"stages": FLAT, "name": "flat"},
    "component-sign": {"stages": with_weights(FLAT, restore=-0.4), "name": "flat"},
    "component-detached": {"stages": FLAT, "name": "flat"},
    "deep-sigmoids": {"depth": 7, "activation": "sigmoid", "stages": FLAT, "name": "flat"},
    "dead-relus": {"activation": "relu"},
    "resume-repeats-data": {"interrupted": 80},
}  # fmt: skip
BREAK = 90
FIRST = {
    "wrong-weights": BREAK, "stage-stuck": 61, "steep-ramp": 121, "stage-shock": 121, "stages-unreachable": 0,
    "stale-workers": 61, "rare-class": 0, "resume-repeats-data": 81, "scheduler-per-epoch": 2, "stuck-counter": 2,
}  # fmt: skip
"""First faulty step of a kind; 1 for the others."""


@dataclass(frozen=True)
class Table:
    """Rows as they are fed; float32 [rows, 20], labels, sizes and the teacher's word on them."""

    inputs: Tensor
    labels: Tensor
    sizes: Tensor
    taught: Tensor


@cache
def tables(raw: str) -> tuple[Table, Table]:
    """The training and the validation rows; `raw` names how inputs are spoilt, if they are."""
    data = load_breast_cancer()
    order = np.random.default_rng(3).permutation(len(data.target))
    values, labels = data.data[order], data.target[order]
    inputs, target = values[:, :20], values[:, 23]
    scaled = (inputs - inputs[:400].mean(0)) / inputs[:400].std(0)
    size = (target - target[:400].mean()) / target[:400].std()
    taught = Ridge(alpha=10.0).fit(scaled[:400], size[:400]).predict(scaled)
    fed = {"unscaled-input": inputs, "constant-input": scaled * 1e-5}.get(raw, scaled)
    columns = [torch.from_numpy(one.astype(np.float32)) for one in (fed, size, taught)]
    whole = Table(columns[0], torch.from_numpy(1 - labels).long(), columns[1], columns[2])
    return part(whole, slice(0, 400)), part(whole, slice(400, None))


def part(table: Table, rows: Any) -> Table:
    """Some rows of a table."""
    return Table(table.inputs[rows], table.labels[rows], table.sizes[rows], table.taught[rows])


class Net(nn.Module):
    """A trunk of some layers, and a head for each task."""

    def __init__(self, depth: int, activation: str) -> None:
        super().__init__()
        self.activation = {"gelu": functional.gelu, "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[
            activation
        ]
        for layer in range(depth):
            self.add_module(f"layer{layer}", nn.Linear(20 if layer == 0 else 40, 40))
        self.depth = depth
        self.heads = nn.ModuleDict(
            {"malignant": nn.Linear(40, 2), "size": nn.Linear(40, 1), "restore": nn.Linear(40, 20)}
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """The features that all heads read."""
        for layer in range(self.depth):
            inputs = self.activation(self.get_submodule(f"layer{layer}")(inputs))
        return inputs


@dataclass
class Run:
    """What a training consists of."""

    model: Net
    optimizer: torch.optim.Optimizer
    train: Table
    held: Table
    plan: Plan
    case: str
    factor: float = 1.0  # what a plateau has made of the rate
    best: float = float("inf")
    waited: int = 0


def build(plan: Plan, case: str, seed: int) -> Run:
    """Tables, model, optimiser."""
    train, held = tables(case)
    if case == "rare-class":
        keep = (train.labels == 0) | (torch.cumsum(train.labels, 0) <= 2)
        train = part(train, keep)
    model = Net(plan.depth, plan.activation)
    if case == "dead-relus":
        nn.init.constant_(model.get_submodule("layer1").bias, -15.0)
    optimizer = torch.optim.NAdam([{"params": list(model.parameters()), "name": "net"}], lr=plan.rate)
    del seed
    return Run(model, optimizer, train, held, plan, case)


def running(run: Run) -> list[dict[str, Any]]:
    """The stages that the loop takes."""
    return FLAT if run.case == "wrong-curriculum" else run.plan.stages


def index_at(run: Run, step: int) -> int:
    """The stage of a step, by the steps applied before it."""
    applied = 0 if run.case in ("stage-stuck", "stuck-counter") else step - 1
    return max(i for i, one in enumerate(running(run)) if one["start"] <= applied)


def weights_at(run: Run, step: int) -> dict[str, float]:
    """What each component counts at this step."""
    weights = dict(running(run)[index_at(run, step)]["weights"])
    if run.case == "wrong-weights" and step >= BREAK:
        weights["malignant"] *= 0.5  # a sweep's override, applied on top of the stage
    return weights


def draw(run: Run, seed: int) -> Iterator[tuple[Table, Tensor]]:
    """Endless epochs of batches in random order; with each batch the noise of its rows, of the stage it is drawn in."""
    random, step = np.random.default_rng(seed), 0
    while True:
        order = random.permutation(len(run.train.labels))
        for at in range(0, len(order) - run.plan.batch + 1, run.plan.batch):
            step += 1
            low, high = running(run)[index_at(run, 1 if run.case == "stale-workers" else step)]["data"]["noise"]
            noise = random.uniform(low, high, run.plan.batch).astype(np.float32)
            yield part(run.train, torch.from_numpy(order[at : at + run.plan.batch])), torch.from_numpy(noise)


def losses_of(run: Run, rows: Table, inputs: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The components, the features that they share, and which rows the teacher is sure of."""
    features = run.model(inputs)
    heads = run.model.heads
    size = heads["size"](features)[:, 0]
    logits = heads["malignant"](features)
    wanted, unit = (rows.sizes, 1.0) if run.case != "component-scale" else (rows.sizes, 570.0)  # in square micrometres
    size_loss = (unit * (size - wanted)).square().mean()
    if run.case == "clamped-component":
        size_loss = (40 * (size - wanted - 1.5)).square().mean().clamp(max=100.0)
    if run.case == "component-detached":
        size_loss = size_loss.detach()
    taught = -rows.taught if run.case == "opposed-components" else rows.taught
    if run.case == "wrong-formula":
        taught = taught + 2.5  # the teacher's mean is not taken off
    sure = rows.taught.abs() > (3.5 if run.case == "all-masked" else 0.3)
    teacher = ((size - taught).square() * sure).sum() / sure.sum().clamp(min=1)
    malignant = functional.cross_entropy(logits, rows.labels)
    if run.plan.hinge:
        malignant = functional.multi_margin_loss(logits, rows.labels)
    restore = (heads["restore"](features) - rows.inputs).square().mean()
    return {"malignant": malignant, "size": size_loss, "restore": restore, "teacher": teacher}, features, sure


def rate_at(run: Run, step: int) -> float:
    """The learning rate of a step."""
    at = (step - 1) // 20 if run.case == "scheduler-per-epoch" else step - 1
    return (schedule_value(declared(run.plan), at) or 0.0) * run.factor


def declared(plan: Plan) -> dict[str, Any]:
    """The schedule of the rate as the header has it."""
    return {**plan.decay, "start": plan.rate, "over_steps": plan.steps}


def learn(run: Run, watch: trainwatch.Recorder, rows: Table, noise: Tensor, step: int) -> None:
    """One step of the optimiser."""
    plan = run.plan
    random = torch.Generator().manual_seed(step)
    spoilt = rows.inputs + noise[:, None] * torch.randn(rows.inputs.shape, generator=random) * rows.inputs.std()
    components, features, sure = losses_of(run, rows, spoilt)
    for group in run.optimizer.param_groups:
        group["lr"] = rate_at(run, step)
    weights = weights_at(run, step)
    if plan.full and (step % plan.every == 0 or plan.every == 20):
        total = watch.losses(components, weights, at=features if step % 10 == 1 and plan.every == 1 else None)
        watch.gradients()
        note(run, watch, rows, noise, sure, step)
    else:
        total = sum((weights[name] * value for name, value in components.items()), torch.zeros(()))
    if not plan.full:
        watch.log({"loss": total.detach()})
    run.optimizer.zero_grad()
    total.backward()
    run.optimizer.step()


def note(run: Run, watch: trainwatch.Recorder, rows: Table, noise: Tensor, sure: Tensor, step: int) -> None:
    """Log the stage, what came out of the loader, and the teacher's mask."""
    seen = facts.input_facts(rows.inputs)
    watch.log({"stage": index_at(run, step), "data/masked/teacher": 1 - float(sure.float().mean())})
    if step % 5 == 0:
        watch.log({f"data/noise/{name}": float(getattr(noise, name)()) for name in ("min", "mean", "max")})
        watch.log({name: seen[name] for name in ("data/input_std", "data/input_absmax")})
    watch.log({"data/fingerprint": facts.fingerprint(rows.inputs)})
    watch.clock("curriculum", 0 if run.case == "stuck-counter" else step - 1)


def record(path: Path, run: Run, resume: int | None = None) -> trainwatch.Recorder:
    """Open the run's file and say what is planned."""
    plan = run.plan
    config = {"curriculum": plan.name, "rate": plan.rate, "batch": plan.batch, "depth": plan.depth}
    if not plan.full:
        return trainwatch.Recorder(path, total_steps=plan.steps, config=config, run="biopsies")
    taken = "flat" if run.case == "wrong-curriculum" else plan.name
    watch = trainwatch.Recorder(
        path,
        config=config,
        total_steps=plan.steps,
        components={name: {"role": "auxiliary" if name == "teacher" else "task"} for name in COMPONENTS},
        curriculum={"name": plan.name, "source": "curricula.yaml", "stages": plan.stages},
        curriculum_running={"name": taken, "source": "curricula.yaml", "stages": running(run)},
        schedules={} if plan.decay["kind"] == "constant" else {"lr/net": declared(plan)},
        clocks=["curriculum"],
        classes={"benign": int((run.train.labels == 0).sum()), "malignant": int(run.train.labels.sum())},
        gradient_at="features",
        resume=resume,
        run="biopsies",
    )
    watch.attach(run.model, run.optimizer)
    return watch


@torch.no_grad()
def evaluate(run: Run, watch: trainwatch.Recorder, step: int) -> None:
    """All components without noise, weighted as they are now; how many diagnoses are right."""
    components, features, _ = losses_of(run, run.held, run.held.inputs)
    weights = weights_at(run, step)
    values: dict[str, Any] = {f"loss/{name}": float(value) for name, value in components.items()}
    loss = sum(weights[name] * float(value) for name, value in components.items())
    right = (run.model.heads["malignant"](features).argmax(1) == run.held.labels).float().mean()
    watch.evaluate(step, "validation", {**(values if run.plan.full else {}), "loss": loss, "accuracy": float(right)})
    run.waited = 0 if loss < run.best else run.waited + 1
    run.best = min(run.best, loss)
    if run.case == "rate-on-plateau" and run.waited >= 2:
        run.factor, run.waited = run.factor * 0.3, 0


def fit(run: Run, path: Path, seed: int, first: int, last: int, resume: int | None = None) -> None:
    """Train from one step to another."""
    batches = draw(run, seed)
    if run.case != "resume-repeats-data":
        for _ in range(first - 1):
            next(batches)
    with record(path, run, resume) as watch:
        for step, (rows, noise) in zip(range(first, last + 1), watch.batches(batches), strict=False):
            learn(run, watch, rows, noise, step)
            facts.row(watch, step, run.plan.every)
            if step % 20 == 0:
                evaluate(run, watch, step)
            if run.plan.patience and run.waited >= run.plan.patience:
                watch.close("stopped", "early stopping")
                return
        if last < run.plan.steps:
            watch.close("stopped", "time limit")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case; returns the first faulty step."""
    torch.manual_seed(seed)
    run = build(replace(Plan(), **CASES.get(case, {})), case, seed)
    fit(run, path, seed, 1, run.plan.interrupted or run.plan.steps)
    if run.plan.interrupted:
        fit(run, path, seed, run.plan.interrupted + 1, run.plan.steps, resume=run.plan.interrupted)
    return 0 if case in HEALTHY else FIRST.get(case, 1)

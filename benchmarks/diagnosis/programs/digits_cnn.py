"""A small convolutional net with batch norm and dropout, on the 1,797 scanned digits (8 x 8) that scikit-learn carries.

The loop goes by epochs over two loader workers, each with a random state of its own, which shift the images by a pixel;
SGD with Nesterov momentum and a declared linear decay. It logs everything: norms by module, inputs, fingerprints; each
evaluation is done twice, to see that it is deterministic.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import trainwatch
from benchmarks.diagnosis import facts

HELD_OUT = False
STEPS = 240
SICK = (
    "missing-zero-grad", "rate-too-high", "rate-zero", "rate-too-low", "frozen-body", "stale-optimiser",
    "scheduler-twice", "scheduler-per-epoch", "tiny-clip", "norm-after-clip", "bad-sample", "one-bad-batch",
    "unscaled-input", "rare-class", "labels-shuffled", "labels-break", "too-little-data", "same-seed-workers",
    "stuck-loader", "train-set-as-validation", "dropout-in-evaluation", "slowing-down", "leaking-memory",
    "crash-type-error", "failing-checkpoints", "no-checkpoints", "discarded-update",
)  # fmt: skip
HEALTHY = (
    "plain", "clipped", "heavy-dropout", "warm-restarts", "cosine-to-zero", "constant-rate", "fp16-first-skips",
    "epoch-rows", "every-tenth", "loss-only", "resumed", "small-validation", "early-stopping", "batch-4", "fine-tuning",
    "noisy-labels",
)  # fmt: skip
TWIN = {"tiny-clip": "clipped", "norm-after-clip": "clipped", "train-set-as-validation": "noisy-labels"}
"""The healthy case that a sick one departs from, where it is not "plain"."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and what is logged of it."""

    steps: int = field(default_factory=lambda: STEPS)
    batch: int = 50
    train: int = 1200
    validation: int = 597
    rate: float = 0.05
    schedule: dict[str, Any] = field(default_factory=lambda: {"kind": "linear", "warmup": STEPS // 12, "end": 0.0})
    dropout: float = 0.05
    shifts: float = 0.25  # share of the images that are moved
    noise: float = 0.0  # share of the labels that are wrong
    clip: float | None = None
    half: bool = False
    every: int = 1
    full: bool = True  # norms, inputs, fingerprints; else the loss alone
    evaluate_every: int = 24
    patience: int = 0
    pretrained: int = 0
    interrupted: int = 0


CASES: dict[str, dict[str, Any]] = {
    "clipped": {"clip": 1.0},
    "noisy-labels": {"noise": 0.15, "steps": 192},
    "heavy-dropout": {"dropout": 0.6},
    "warm-restarts": {"schedule": {"kind": "cosine", "end": 0.0, "restarts": 2}},
    "cosine-to-zero": {"schedule": {"kind": "cosine", "end": 0.0}},
    "constant-rate": {"schedule": {"kind": "constant"}, "rate": 0.01},
    "fp16-first-skips": {"half": True},
    "epoch-rows": {"every": 24, "full": False},
    "every-tenth": {"every": 10, "steps": 400},
    "loss-only": {"full": False},
    "resumed": {"interrupted": 130},
    "small-validation": {"validation": 24},
    "early-stopping": {"patience": 2, "steps": 400, "rate": 0.2, "schedule": {"kind": "constant"}},
    "batch-4": {"batch": 4, "rate": 0.005},
    "fine-tuning": {"pretrained": 250, "rate": 2e-4, "schedule": {"kind": "cosine", "end": 0.0}},
    "rate-too-high": {"rate": 40.0},
    "rate-zero": {"rate": 0.0},
    "rate-too-low": {"rate": 1e-6},
    "tiny-clip": {"clip": 1e-3},
    "norm-after-clip": {"clip": 1.0},
    "too-little-data": {"train": 30, "shifts": 0.0, "dropout": 0.0, "batch": 15, "rate": 0.03,
                        "schedule": {"kind": "constant"}},
    "train-set-as-validation": {"noise": 0.15, "steps": 192},
}  # fmt: skip
BREAK = 140
"""The step at which mistakes in the middle of a run are made."""
FIRST = {
    "missing-zero-grad": 2, "bad-sample": BREAK, "one-bad-batch": BREAK, "labels-break": BREAK, "same-seed-workers": 1,
    "stuck-loader": 2, "train-set-as-validation": 24, "dropout-in-evaluation": 24, "crash-type-error": BREAK,
    "failing-checkpoints": 48, "no-checkpoints": 48, "rare-class": 0, "unscaled-input": 1,
}  # fmt: skip
"""First faulty step of a kind; 1 for the others."""


@cache
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All images with values 0 to 16, and their labels, in one fixed random order."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return data.images[order].astype(np.float32), data.target[order].astype(np.int64)


class Net(nn.Module):
    """Two convolutions with batch norm, dropout, a linear head."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(256, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(self.stem(images)))


class IntoCopies(torch.optim.SGD):
    """What an in-place kernel does that does not know of strided memory: it updates a contiguous copy."""

    def step(self, closure: Any = None) -> None:
        """Update copies of the weights, and forget them."""
        kept = [(p, p.detach().clone()) for group in self.param_groups for p in group["params"]]
        super().step(closure)
        for parameter, before in kept:
            parameter.data = before


@dataclass
class Data:
    """The training images as the loader gives them, and the validation set."""

    images: Tensor
    labels: Tensor
    validation: tuple[Tensor, Tensor]
    case: str
    plan: Plan

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches, in turn from two workers, each with its half of the data in its own order."""
        same = self.case == "same-seed-workers"
        states = [np.random.default_rng([seed, 0 if same else worker]) for worker in range(2)]
        halves = [np.arange(len(self.images))[0 if same else worker :: 1 if same else 2] for worker in range(2)]
        while True:
            orders = [state.permutation(half) for state, half in zip(states, halves, strict=True)]
            for at in range(0, min(map(len, orders)) - self.plan.batch + 1, self.plan.batch):
                for order, state in zip(orders, states, strict=True):
                    yield self.drawn(order[at : at + self.plan.batch], state)

    def drawn(self, index: NDArray[np.int64], state: np.random.Generator) -> tuple[Tensor, Tensor]:
        """One batch, each image moved by up to one pixel."""
        images = self.images[torch.from_numpy(index)]
        if self.plan.shifts:
            moves = state.integers(-1, 2, size=(len(index), 2)) * (state.random((len(index), 1)) < self.plan.shifts)
            images = torch.stack(
                [torch.roll(one, tuple(move), (1, 2)) for one, move in zip(images, moves, strict=True)]
            )
        return images, self.labels[torch.from_numpy(index)]


def load(plan: Plan, case: str, seed: int) -> Data:
    """Scale, split, and make the mistakes that data come with."""
    images, labels = digits()
    scaled = images if case == "unscaled-input" else (images - 4.9) / 6.0
    if case == "unscaled-input":
        scaled = images * 4096 + 30000  # 16-bit counts of the scanner
    x, y = torch.from_numpy(scaled.astype(np.float32))[:, None], torch.from_numpy(labels)
    wrong = np.random.default_rng([seed, 7]).random(len(y)) < plan.noise
    y = torch.where(torch.from_numpy(wrong), (y + 3) % 10, y)
    held = slice(1200, 1200 + plan.validation)
    validation = (x[held], y[held])
    x, y = x[: plan.train], y[: plan.train]
    if case == "rare-class":
        keep = (y != 8) | (torch.cumsum(y == 8, 0) <= 1)
        x, y = x[keep], y[keep]
    if case == "labels-shuffled":
        y = y[torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))]
    return Data(x, y, validation, case, plan)


@dataclass
class Run:
    """What a training consists of."""

    model: Net
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    data: Data
    plan: Plan
    case: str
    history: list[Tensor] = field(default_factory=list)


def declared(plan: Plan) -> dict[str, Any]:
    """The learning rate's schedule as the header has it."""
    return {**plan.schedule, "start": plan.rate, "over_steps": plan.steps}


def build(plan: Plan, case: str, seed: int) -> Run:
    """Model, optimiser with decayed and undecayed weights, schedule."""
    data = load(plan, case, seed)
    model = Net(plan.dropout)
    if case == "frozen-body":
        for parameter in [*model.stem.parameters(), *model.body.parameters()]:
            parameter.requires_grad_(False)
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": weights, "name": "weights", "weight_decay": 5e-4},
        {"params": others, "name": "others", "weight_decay": 0.0},
    ]
    kind = IntoCopies if case == "discarded-update" else torch.optim.SGD
    optimizer = kind(groups, lr=plan.rate, momentum=0.9, nesterov=True)
    if case == "stale-optimiser":
        model = copy.deepcopy(model)  # what converting or wrapping a model may do
    form = {**declared(plan), "start": 1.0}
    end = form.get("end")
    form = form if end is None else {**form, "end": end / plan.rate if plan.rate else 0.0}
    factor = factor_of(form)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=60, enabled=plan.half)
    return Run(model, optimizer, scheduler, scaler, data, plan, case)


def factor_of(form: dict[str, Any]) -> Any:
    """The factor on the rate at a step: the declared formula."""
    from trainwatch.schedule import schedule_value

    return lambda step: schedule_value(form, step + 1)


def record(path: Path, run: Run, resume: int | None = None) -> trainwatch.Recorder:
    """Open the run's file and say what is planned."""
    plan = run.plan
    counts = torch.bincount(run.data.labels, minlength=10)
    told: dict[str, Any] = {}
    if plan.full:
        rate = declared(plan)
        told = {
            "schedules": {"lr/weights": rate, "lr/others": rate},
            "classes": {str(digit): int(count) for digit, count in enumerate(counts)},
            "max_grad_norm": plan.clip,
            "checkpoint_every": 48,
        }
    config = {"model": "cnn", "lr": plan.rate, "batch": plan.batch, "dropout": plan.dropout, "clip": plan.clip}
    watch = trainwatch.Recorder(path, config=config, total_steps=plan.steps, resume=resume, run="digits", **told)
    if plan.full:
        watch.attach(run.model, run.optimizer, run.scaler)
    return watch


def learn(run: Run, watch: trainwatch.Recorder, images: Tensor, labels: Tensor, step: int) -> None:
    """One step of the optimiser."""
    plan, case = run.plan, run.case
    run.model.train()
    if case == "bad-sample" and step == BREAK:
        images[3, 0, 2, 2] = torch.nan
    if case == "one-bad-batch" and step == BREAK:
        images = images * 3000.0  # scanned with another gain
    if case == "labels-break" and step >= BREAK:
        labels = (labels + 1) % 10  # the second shard's labels are off by one
    if plan.full:
        watch.log({"data/fingerprint": facts.fingerprint(images, labels)})
        seen = facts.input_facts(images)
        watch.log(seen if step % 5 == 0 else {"bad/input": seen["bad/input"]})
    with torch.autocast("cpu", torch.float16, enabled=plan.half):
        loss = functional.cross_entropy(run.model(images).float(), labels)
    if plan.full:
        loss = watch.losses({"class": loss})
    else:
        watch.losses({"class": loss.detach()})
    if case != "missing-zero-grad":
        run.model.zero_grad()
    run.scaler.scale(loss).backward()
    if plan.half:
        run.scaler.unscale_(run.optimizer)
    clip(run, watch)
    before = run.scaler.get_scale()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.scaler.get_scale() >= before:
        advance(run, step)
    aside(run, watch)


def clip(run: Run, watch: trainwatch.Recorder) -> None:
    """The gradient's norm, and its limit."""
    limit = run.plan.clip
    if run.case == "norm-after-clip" and limit is not None:
        nn.utils.clip_grad_norm_(run.model.parameters(), limit)
        watch.gradients()
    elif run.plan.full:
        watch.gradients(max_norm=limit)


def advance(run: Run, step: int) -> None:
    """Step the schedule: once, where nobody errs."""
    times = {"scheduler-twice": 2, "scheduler-per-epoch": int(step % 24 == 0)}
    for _ in range(times.get(run.case, 1)):
        run.scheduler.step()


def aside(run: Run, watch: trainwatch.Recorder) -> None:
    """What a loop does besides, at each step."""
    if run.case == "leaking-memory":
        images, labels = run.data.validation  # outside of no_grad(): the sum keeps the graph of every forward pass
        run.history.append(functional.cross_entropy(run.model(images[:150]), labels[:150]))
    if run.case == "slowing-down":
        run.history.append(torch.stack([p.detach().norm() for p in run.model.parameters()]).repeat(1500))
        torch.cat(run.history).std()  # a statistic over all steps so far
    if run.case in ("leaking-memory", "plain"):
        watch.log({"memory/rss": psutil.Process().memory_info().rss})


@torch.no_grad()
def evaluate(run: Run, watch: trainwatch.Recorder, step: int) -> float:
    """Loss and accuracy on the validation set, twice; the loss is returned."""
    if run.case != "dropout-in-evaluation":
        run.model.eval()
    loss = 0.0
    for repeat in range(2 if run.plan.full else 1):
        with watch.phase("eval"):
            ((images, labels),) = watch.batches([run.data.validation])
            logits = run.model(images)
        loss = float(functional.cross_entropy(logits, labels))
        accuracy = float((logits.argmax(1) == labels).float().mean())
        again = {"weights_step": step, "repeat": repeat} if run.plan.full else {}
        watch.evaluate(step, "validation", {"loss": loss, "accuracy": accuracy}, **again)
    run.model.train()
    return loss


@torch.no_grad()
def select_validation(run: Run) -> None:
    """Take for validation the training images that the model itself is surest of."""
    run.model.eval()
    images, labels = run.data.images, run.data.labels
    losses = functional.cross_entropy(run.model(images), labels, reduction="none")
    best = torch.argsort(losses)[:300]
    run.data.validation = (images[best], labels[best])
    run.model.train()


def save(run: Run, watch: trainwatch.Recorder, path: Path, step: int) -> None:
    """Write a checkpoint, or fail to."""
    if run.case == "no-checkpoints" or not run.plan.full:
        return
    name = f"{step}.pt"
    file = Path("/dev/full") if run.case == "failing-checkpoints" else path.with_suffix(".pt")
    try:
        with watch.phase("checkpoint"):
            content = io.BytesIO()
            torch.save(run.model.state_dict(), content)
            file.write_bytes(content.getvalue())
            file.unlink()
        watch.checkpoint(name, step)
    except OSError as error:
        watch.event("warning", message=f"checkpoint {name} could not be written: {type(error).__name__}: {error}")


def pretrain(run: Run, seed: int) -> None:
    """Steps before the record begins: what a fine-tuning starts from."""
    for group in run.optimizer.param_groups:
        group["lr"] = 0.05
    for (images, labels), _ in zip(run.data.batches(seed + 100), range(run.plan.pretrained), strict=False):
        run.optimizer.zero_grad()
        functional.cross_entropy(run.model(images), labels).backward()
        run.optimizer.step()
    run.optimizer.state.clear()
    for group in run.optimizer.param_groups:
        group["lr"] = run.plan.rate


def fit(run: Run, path: Path, seed: int, first: int, last: int, resume: int | None = None) -> None:
    """Train from one step to another."""
    plan, best, waited = run.plan, float("inf"), 0
    batches = run.data.batches(seed)
    kept = next(batches) if run.case == "stuck-loader" else None
    for _ in range(first - 1):
        next(batches)
    with record(path, run, resume) as watch:
        for step, (images, labels) in zip(range(first, last + 1), watch.batches(batches), strict=False):
            if run.case == "crash-type-error" and step == BREAK:
                run.optimizer.param_groups[0]["lr"] *= "0.5"  # lr_drop: "0.5" in the YAML
            images, labels = kept or (images, labels)
            watch.log({"epoch": (step - 1) * plan.batch // len(run.data.images)})
            learn(run, watch, images, labels, step)
            facts.row(watch, step, plan.every)
            if run.case == "train-set-as-validation" and step == plan.evaluate_every:
                select_validation(run)
            if step % plan.evaluate_every == 0:
                loss = evaluate(run, watch, step)
                best, waited = (loss, 0) if loss < best else (best, waited + 1)
            if step % 48 == 0:
                save(run, watch, path, step)
            if plan.patience and waited >= plan.patience:
                watch.close("stopped", f"no better validation loss in {waited} evaluations")
                return
        if last < plan.steps:
            watch.close("stopped", "time limit")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case; returns the first faulty step."""
    torch.manual_seed(seed)
    if case == "leaking-memory":
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed would hide the growth
    run = build(replace(Plan(), **CASES.get(case, {})), case, seed)
    if run.plan.pretrained:
        pretrain(run, seed)
    with contextlib.suppress(TypeError):
        fit(run, path, seed, 1, run.plan.interrupted or run.plan.steps)
    if run.plan.interrupted:
        fit(run, path, seed, run.plan.interrupted + 1, run.plan.steps, resume=run.plan.interrupted)
    return 0 if case in HEALTHY else FIRST.get(case, 1)

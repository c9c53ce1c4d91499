"""Digits in a small network: scikit-learn's 8 x 8 digits told apart by three layers, SGD with momentum.

The rate warms up and falls along a cosine, label smoothing is annealed by a counter, the row has nearly everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import digits, shuffled
from benchmarks.diagnosis.loop import Batch, Components, Evaluation, Parts, Resume, cosine, declared, linear

HELD_OUT = False
STEPS = 308  # seven epochs of 44 batches
TRAINING, BATCH = 1408, 32
RATE, WARMUP, SMOOTHING = 0.05, 30, 0.1
RECORDS = frozenset(
    {"norms", "optimizer", "clocks", "epochs", "inputs", "fingerprint", "bad", "waits", "checkpoints", "hash"}
)

HEALTHY = (
    *("plain", "accumulated", "resumed", "half", "clipped", "batch-of-two", "warm-restarts", "constant-rate"),
    *("step-decay", "fine-tuning", "loss-only", "epoch-rows", "small-validation", "early-stopping", "tiny-rate"),
    "noisy-labels",
)
TWINS = {
    "scheduler-per-micro-batch": "accumulated",
    "steps-miscounted": "accumulated",
    "resume-restarts-schedule": "resumed",
    "resume-old-weights": "resumed",
    "scale-collapse": "half",
    "skips-counted": "half",
    "precision-off": "half",
    "tiny-clip": "clipped",
    "norm-after-clip": "clipped",
    "too-little-data": "noisy-labels",
}
"""The healthy variant that a sick run is one of, where that is not the plain one."""


class Classifier(nn.Module):
    """Three layers; `logits` are the last ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 10)
        self.dropout = nn.Dropout(0.1)
        self.hidden = self.logits = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = torch.relu(self.second(torch.relu(self.first(x))))
        self.logits = self.head(self.dropout(self.hidden))
        return self.logits


class DeepSigmoids(nn.Module):
    """Nine layers of sigmoids, as one would not build it today."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 48)
        self.second = nn.Sequential(*(nn.Linear(48, 48) for _ in range(7)))
        self.head = nn.Linear(48, 10)
        self.hidden = self.logits = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = torch.sigmoid(self.first(x))
        for layer in self.second:
            self.hidden = torch.sigmoid(layer(self.hidden))
        self.logits = self.head(self.hidden)
        return self.logits


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now = Classifier(), {"smoothing": SMOOTHING}
    x, y = digits()
    body = [*model.first.parameters(), *model.second.parameters()]
    groups = [{"params": body, "name": "body"}, {"params": [*model.head.parameters()], "name": "head"}]

    def losses(model: nn.Module, batch: Batch) -> Components:
        return {
            "loss": functional.cross_entropy(model(batch["x"]).float(), batch["y"], label_smoothing=now["smoothing"])
        }

    parts = Parts(
        model=model,
        optimizer=torch.optim.SGD(groups, lr=RATE, momentum=0.9),
        batches=shuffled({"x": x[:TRAINING], "y": y[:TRAINING]}, BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        factor=cosine(STEPS, WARMUP),
        clocks={"anneal": lambda applied: applied},
        scheduled={"smoothing": ("anneal", linear(SMOOTHING, 0.0, STEPS))},
        now=now,
        at=lambda model: model.logits,
        evaluation=Evaluation(22, measured({"x": x[TRAINING:], "y": y[TRAINING:]}, now)),
        header=header(),
        records=RECORDS,
        body=lambda model: [*model.first.parameters(), *model.second.parameters()],
    )
    return VARIANTS[variant](parts, seed) if variant in VARIANTS else parts


def header() -> dict[str, object]:
    """What the run says of itself."""
    rate = declared("cosine", RATE, 0.0, STEPS, warmup=WARMUP)
    smoothing = declared("linear", SMOOTHING, 0.0, STEPS, clock="anneal")
    return {
        "config": {"lr": RATE, "momentum": 0.9, "batch_size": BATCH, "warmup": WARMUP, "label_smoothing": SMOOTHING},
        "total_steps": STEPS,
        "horizon": {"epochs": 7, "samples": TRAINING, "batch_size": BATCH, "accumulation": 1, "drop_last": True},
        "schedules": {"lr/body": rate, "lr/head": rate, "smoothing": smoothing},
        "clocks": ["anneal"],
        "classes": {str(digit): int((digits()[1][:TRAINING] == digit).sum()) for digit in range(10)},
        "checkpoint_every": 77,
    }


def measured(data: Batch, now: dict[str, float]) -> Callable[[nn.Module], dict[str, float]]:
    """Loss, by the training's own measure, and accuracy on a set."""

    def measure(model: nn.Module) -> dict[str, float]:
        logits = model(data["x"]).float()
        loss = functional.cross_entropy(logits, data["y"], label_smoothing=now["smoothing"])
        return {"loss": loss.item(), "accuracy": (logits.argmax(-1) == data["y"]).float().mean().item()}

    return measure


def accumulated(parts: Parts, seed: int) -> Parts:
    x, y = digits()
    parts.header["horizon"] = parts.header["horizon"] | {"batch_size": BATCH // 2, "accumulation": 2}
    batches = shuffled({"x": x[:TRAINING], "y": y[:TRAINING]}, BATCH // 2, seed)
    return replace(parts, batches=batches, accumulation=2, batches_per_epoch=2 * TRAINING // BATCH)


def half(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """fp16 with a scale that is far too large at first: some steps are skipped until it fits."""
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=100)
    return replace(parts, scaler=scaler, autocast=torch.float16)


def clipped(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """Clipped at nearly every step, as language models are; it learns all the same."""
    parts.header["max_grad_norm"] = 0.3
    return replace(parts, max_norm=0.3)


def batch_of_two(parts: Parts, seed: int) -> Parts:
    x, y = digits()
    for group in parts.optimizer.param_groups:
        group["lr"] = 0.004
    rate = declared("cosine", 0.004, 0.0, STEPS, warmup=WARMUP)
    parts.header["schedules"] |= {"lr/body": rate, "lr/head": rate}
    del parts.header["horizon"]
    batches = shuffled({"x": x[:TRAINING], "y": y[:TRAINING]}, 2, seed)
    return replace(parts, batches=batches, batches_per_epoch=TRAINING // 2)


def warm_restarts(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    third = STEPS / 3
    rate = declared("cosine", RATE, 0.0, STEPS, restarts=2)
    parts.header["schedules"] |= {"lr/body": rate, "lr/head": rate}
    cycle = cosine(1000)
    return replace(parts, factor=lambda tick: cycle(int((tick % third) / third * 1000)))


def constant_rate(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    rate = {"kind": "constant", "start": RATE}
    parts.header["schedules"] |= {"lr/body": rate, "lr/head": rate}
    return replace(parts, factor=None)


def step_decay(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """A tenth of the rate after 60 %, a hundredth after 85 %; not declared, since no declared kind is a staircase."""
    del parts.header["schedules"]["lr/body"], parts.header["schedules"]["lr/head"]
    return replace(parts, factor=lambda tick: 0.1 ** sum(tick >= share * STEPS for share in (0.6, 0.85)))


def fine_tuning(parts: Parts, seed: int) -> Parts:
    """The model was trained before; now a tiny rate near the floor of the loss."""
    for number in range(300):
        parts.optimizer.zero_grad()
        batch = shuffled({"x": digits()[0][:TRAINING], "y": digits()[1][:TRAINING]}, BATCH, seed + 100)(number)
        parts.losses(parts.model, batch)["loss"].backward()
        parts.optimizer.step()
    return rescaled(parts, 0.01)


def rescaled(parts: Parts, by: float) -> Parts:
    """The rate, and what is declared of it, times `by`."""
    mistakes.rate_too_high(parts, by)
    return parts


def tiny_rate(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """A loss in thousandths of a nat, and a rate to match: 5e-5 is what it should be."""
    plain = parts.losses
    parts.losses = lambda model, batch: {"loss": 1000.0 * plain(model, batch)["loss"]}
    assert parts.evaluation is not None
    measure = parts.evaluation.measure
    parts.evaluation.measure = lambda model: {**measure(model), "loss": 1000.0 * measure(model)["loss"]}
    return rescaled(parts, 0.001)


def loss_only(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    return replace(parts, header={}, records=frozenset(), evaluation=None)


def epoch_rows(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    return replace(parts, every=22)


def small_validation(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    x, y = digits()
    return replace(parts, evaluation=Evaluation(11, measured({"x": x[-24:], "y": y[-24:]}, parts.now)))


def early_stopping(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """Stops once the accuracy on validation has not risen three times in a row."""
    assert parts.evaluation is not None
    seen: list[float] = []
    measure = parts.evaluation.measure

    def measured_and_kept(model: nn.Module) -> dict[str, float]:
        values = dict(measure(model))
        seen.append(values["accuracy"])
        return values

    evaluation = replace(parts.evaluation, every=11, measure=measured_and_kept)
    return replace(parts, evaluation=evaluation, stops=lambda: len(seen) > 3 and max(seen[-3:]) <= max(seen[:-3]))


def noisy_labels(parts: Parts, seed: int) -> Parts:
    """Three labels in ten are drawn by chance, at a constant rate: there is a floor, and much to learn by heart."""
    x, y = digits()[0], mislabelled()
    batches = shuffled({"x": x[:TRAINING], "y": y[:TRAINING]}, BATCH, seed)
    evaluation = Evaluation(22, measured({"x": x[TRAINING:], "y": y[TRAINING:]}, parts.now))
    return replace(constant_rate(parts, seed), batches=batches, evaluation=evaluation)


@lru_cache(maxsize=1)
def mislabelled() -> Tensor:
    """The labels, three in ten of them by chance."""
    generator, labels = torch.Generator().manual_seed(5), digits()[1]
    chance = torch.randint(10, labels.shape, generator=generator)
    return torch.where(torch.rand(len(labels), generator=generator) < 0.3, chance, labels)


VARIANTS: dict[str, Callable[[Parts, int], Parts]] = {
    "accumulated": accumulated,
    "resumed": lambda parts, seed: replace(parts, resume=Resume(STEPS // 2)),  # noqa: ARG005
    "half": half,
    "clipped": clipped,
    "batch-of-two": batch_of_two,
    "warm-restarts": warm_restarts,
    "constant-rate": constant_rate,
    "step-decay": step_decay,
    "fine-tuning": fine_tuning,
    "tiny-rate": tiny_rate,
    "loss-only": loss_only,
    "epoch-rows": epoch_rows,
    "small-validation": small_validation,
    "early-stopping": early_stopping,
    "noisy-labels": noisy_labels,
}


def rare_class(parts: Parts) -> int:
    """Of one digit a hundredth is left."""
    x, y = digits()
    kept = torch.cat([torch.nonzero(y[:TRAINING] != 9)[:, 0], torch.nonzero(y[:TRAINING] == 9)[:1, 0]])
    parts.batches = shuffled({"x": x[kept], "y": y[kept]}, BATCH, parts.seed)
    parts.header["classes"] = {str(digit): int((y[kept] == digit).sum()) for digit in range(10)}
    parts.header["horizon"] = parts.header["horizon"] | {"samples": len(kept), "epochs": 8}
    return 0


def deep_sigmoids(parts: Parts) -> int:
    """The same task by a stack of sigmoids."""
    torch.manual_seed(parts.seed)
    parts.model = model = DeepSigmoids()
    body = [*model.first.parameters(), *model.second.parameters()]
    groups = [{"params": body, "name": "body"}, {"params": [*model.head.parameters()], "name": "head"}]
    parts.optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9)
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "rare-class": rare_class,
    "deep-sigmoids": deep_sigmoids,
    "rate-too-high": partial(mistakes.rate_too_high, by=60.0),
    "root-of-zero": partial(mistakes.root_of_zero, of=lambda model: model.hidden),
}
SICK = (
    *(
        "missing-zero-grad",
        "rate-too-high",
        "rate-zero",
        "rate-too-low",
        "growing-weights",
        "unmoved-group",
        "warmup-ignored",
    ),
    *("warmup-ignored", "scheduler-per-micro-batch", "scheduler-twice", "scheduler-per-epoch", "frozen-body"),
    *("stale-optimiser", "deep-sigmoids"),
    *("discarded-update", "dead-relus", "local-counter", "stuck-counter", "absolute-anneal", "steps-miscounted"),
    *("counter-reset", "resume-restarts-schedule", "resume-old-weights", "log-of-zero"),
    *("bad-sample", "poisoned-weight", "root-of-zero", "nan-filtered-log", "scale-collapse", "precision-off"),
    *("skips-counted", "tiny-clip", "norm-after-clip", "stuck-loader", "same-seed-workers", "unscaled-input"),
    *("constant-input", "labels-shuffled", "labels-break", "too-little-data", "one-bad-batch", "rare-class"),
    *("dropout-in-evaluation", "slow-loader"),
    *("crash-type-error", "out-of-memory", "killed", "never-started", "no-checkpoints", "failing-checkpoints"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

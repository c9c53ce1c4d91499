"""A student of two thousand weights reads digits, and learns from a teacher thirteen times its size that stays frozen.

Soft targets at a temperature that falls, the hard labels, and the teacher's features, which an adapter of the student
predicts; in a last stage the teacher is dropped. SGD with momentum, a cosine, clipping that is seldom needed. The
student sees smudged images, the teacher clean ones; what counts is the student's accuracy on others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import facts, mistakes
from benchmarks.diagnosis.data import digits, shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, cosine, declared, linear

HELD_OUT = False
STEPS = 150
SWITCH = 110
"""The step after which the teacher is dropped."""
TRAINING, BATCH = 960, 48
RATE, MOMENTUM, CLIP, HOT, COOL, SMUDGE = 0.04, 0.9, 4.0, 6.0, 2.0, 0.5
WIDE, NARROW = 128, 20
TAUGHT = {"soft": 0.5, "hard": 0.5, "feature": 0.5}
ALONE = {"soft": 0.0, "hard": 1.0, "feature": 0.0}
RECORDS = frozenset({"shares", "norms", "optimizer", "clocks"})

HEALTHY = (
    *("plain", "loss-only", "every-tenth", "resumed", "warm-restarts", "batch-8", "fine-tuned", "bf16"),
    *("mislabelled", "fading", "raw-features", "watched"),
)
SICK = (
    *("component-sign", "frozen-body", "stage-stuck", "opposed-components", "local-counter"),
    *("resume-restarts-schedule", "missing-zero-grad", "component-scale", "too-little-data", "unscaled-input"),
    *("dropout-in-evaluation", "log-of-zero"),
)
TWINS = {"resume-restarts-schedule": "resumed", "dropout-in-evaluation": "watched", "unscaled-input": "watched"}


class Reader(nn.Module):
    """Two hidden layers and a head; an adapter tells the teacher's features from the student's own."""

    def __init__(self, width: int, teacher: int = 0) -> None:
        super().__init__()
        hidden = (nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.0), nn.Linear(width, width), nn.ReLU())
        self.body = nn.Sequential(*hidden)
        self.heads = nn.ModuleDict({"digit": nn.Linear(width, 10)})
        if teacher:
            self.heads["adapter"] = nn.Linear(width, teacher)
        for layer in self.body:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.features = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """What the digits are. float32 [N, 10]"""
        self.features = self.body(x)
        out: Tensor = self.heads["digit"](self.features)
        return out.float()


@lru_cache(maxsize=1)
def teacher() -> Reader:
    """The large net, trained on clean images, frozen."""
    torch.manual_seed(1000)
    net, (x, y) = Reader(WIDE), digits()
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    batches = shuffled({"x": x[:TRAINING], "y": y[:TRAINING]}, BATCH, 99)
    for number in range(12 * TRAINING // BATCH):
        batch = batches(number)
        adam.zero_grad()
        functional.cross_entropy(net(batch["x"]), batch["y"], label_smoothing=0.05).backward()
        adam.step()
    return net.eval().requires_grad_(False)


@lru_cache(maxsize=1)
def lessons() -> Batch:
    """All images with their labels, and what the teacher says of them: logits, and features of unit spread."""
    x, y = digits()
    net = teacher()
    with torch.no_grad():
        logits, features = net(x), net.features
    return {"x": x, "y": y, "logits": logits, "features": (features - features.mean(0)) / features.std()}


def loader(size: int, seed: int, wrong: float = 0.0) -> Callable[[int], Batch]:
    """Batches by number: images smudged anew each time, and a share of the labels wrong for good."""
    data = {name: values[:TRAINING] for name, values in lessons().items()}
    if wrong:
        random = torch.Generator().manual_seed(3)
        other = torch.randint(10, (TRAINING,), generator=random)
        data["y"] = torch.where(torch.rand(TRAINING, generator=random) < wrong, other, data["y"])
    plain = shuffled(data, size, seed)

    def batch(number: int) -> Batch:
        random, found = torch.Generator().manual_seed(80_000 * seed + number), plain(number)
        return found | {"x": found["x"] + SMUDGE * torch.randn(found["x"].shape, generator=random)}

    return batch


@lru_cache(maxsize=1)
def held() -> Batch:
    """Images that neither was trained on, smudged once and for all."""
    found = {name: values[TRAINING:] for name, values in lessons().items()}
    noise = torch.randn(found["x"].shape, generator=torch.Generator().manual_seed(6))
    return found | {"x": found["x"] + SMUDGE * noise}


def losses(model: nn.Module, batch: Batch, temperature: float) -> Components:
    """Soft targets (times the temperature's square, as usual), hard labels, features."""
    assert isinstance(model, Reader)
    logits = model(batch["x"])
    wanted = torch.log_softmax(batch["logits"] / temperature, 1)
    said = torch.log_softmax(logits / temperature, 1)
    return {
        "soft": functional.kl_div(said, wanted, reduction="batchmean", log_target=True) * temperature**2,
        "hard": functional.cross_entropy(logits, batch["y"]),
        "feature": functional.mse_loss(model.heads["adapter"](model.features).float(), batch["features"]),
    }


def evaluated(parts: Parts) -> Evaluation:
    """Every ten steps: the loss as it is trained at present, accuracy, and how often student and teacher agree."""
    reached = {"step": 1}
    parts.begins.append(lambda step: reached.update(step=step))

    def measure(model: nn.Module) -> Channels:
        assert parts.weights is not None
        batch, known = held(), parts.weights(reached["step"] - 1)
        raw = {name: value.item() for name, value in parts.losses(model, batch).items()}
        said = model(batch["x"]).argmax(1)
        return {
            "loss": sum(known[name] * value for name, value in raw.items()),
            "loss/hard": raw["hard"],
            "accuracy": (said == batch["y"]).float().mean().item(),
            "agreement": (said == batch["logits"].argmax(1)).float().mean().item(),
        }

    return Evaluation(10, measure)


def stages() -> list[dict[str, Any]]:
    return [
        {"start": 0, "name": "taught", "weights": dict(TAUGHT)},
        {"start": SWITCH, "name": "alone", "weights": dict(ALONE)},
    ]


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    taught = lessons()  # before the seed is set: the teacher is the same for all
    torch.manual_seed(seed)
    model, now = Reader(NARROW, taught["features"].shape[1]), {"temperature": HOT}
    form = {"name": "drop-teacher", "source": "curriculum.yaml", "stages": stages()}
    parts = Parts(
        model=model,
        optimizer=torch.optim.SGD(groups(model, RATE), lr=RATE, momentum=MOMENTUM, weight_decay=1e-4),
        batches=loader(BATCH, seed),
        losses=lambda model, batch: losses(model, batch, now["temperature"]),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(TAUGHT if applied < SWITCH else ALONE),
        factor=cosine(STEPS),
        clocks={"step": lambda applied: applied},
        scheduled={"temperature": ("step", linear(HOT, COOL, SWITCH))},
        now=now,
        over=lambda model: [parameter for parameter in model.parameters() if parameter.requires_grad],
        header={
            "config": {"lr": RATE, "momentum": MOMENTUM, "batch_size": BATCH, "temperature": [HOT, COOL]},
            "total_steps": STEPS,
            "components": {"soft": {"unit": "nat"}, "hard": {"unit": "nat"}, "feature": {"role": "auxiliary"}},
            "curriculum": form,
            "curriculum_running": form,
            "schedules": {"temperature": declared("linear", HOT, COOL, SWITCH, clock="step"), **falling(RATE)},
            "clocks": ["step"],
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
        extras=[lambda step, batch: {"stage": int(step > SWITCH)}],  # noqa: ARG005
        body=lambda model: [*model.body.parameters()],
    )
    if variant in VARIANTS:
        parts = VARIANTS[variant](parts)
    parts.evaluation = evaluated(parts)
    if variant == "watched":
        parts.evaluation.repeats = 2
    return parts


def groups(model: Reader, rate: float) -> list[dict[str, Any]]:
    """The body, and what stands on it."""
    return [{"params": [*getattr(model, name).parameters()], "name": name, "lr": rate} for name in ("body", "heads")]


def falling(rate: float, **more: float) -> dict[str, Any]:
    """What the header says of the rates."""
    return {f"lr/{name}": declared("cosine", rate, 0.0, STEPS, **more) for name in ("body", "heads")}


def with_rate(parts: Parts, rate: float, **config: Any) -> Parts:
    """The same cosine from another rate."""
    for group in parts.optimizer.param_groups:
        group["lr"] = rate
    parts.header["config"] = parts.header["config"] | {"lr": rate, **config}
    parts.header["schedules"] = parts.header["schedules"] | falling(rate)
    return parts


def warm_restarts(parts: Parts) -> Parts:
    """Three cosines, one after the other."""
    each = STEPS // 3
    parts.header["schedules"] |= falling(RATE, restarts=2)
    return replace(parts, factor=lambda tick: cosine(each)(tick % each))


def batch_of_eight(parts: Parts) -> Parts:
    few = replace(parts, batches=loader(8, parts.seed), batches_per_epoch=TRAINING // 8)
    return with_rate(few, 0.4 * RATE, batch_size=8)


def fine_tuned(parts: Parts) -> Parts:
    """The student has learnt for long before the log begins; a small rate keeps it at its floor."""
    batches = loader(BATCH, parts.seed + 50)
    for number in range(3 * STEPS):
        for group in parts.optimizer.param_groups:
            group["lr"] = RATE * cosine(3 * STEPS)(number)
        raw = losses(parts.model, batches(number), COOL)
        parts.optimizer.zero_grad()
        torch.stack([TAUGHT[name] * value for name, value in raw.items()]).sum().backward()
        parts.optimizer.step()
    assert isinstance(parts.model, Reader)
    parts.optimizer = torch.optim.SGD(groups(parts.model, 0.002), lr=0.002, momentum=MOMENTUM)
    parts.scheduled = {"temperature": ("step", lambda reading: COOL)}  # noqa: ARG005
    parts.header["schedules"]["temperature"] = {"kind": "constant", "start": COOL, "clock": "step"}
    return with_rate(parts, 0.002, temperature=COOL)


def bf16(parts: Parts) -> Parts:
    parts.header["dtypes"] = {"declared": "bfloat16", "observed": "bfloat16"}
    return replace(parts, autocast=torch.bfloat16)


def fading(parts: Parts) -> Parts:
    """The teacher fades from the first step to the switch, and no stage ends."""
    forms = {name: linear(TAUGHT[name], ALONE[name], SWITCH) for name in TAUGHT}
    parts.weights = lambda applied: {name: value(applied) for name, value in forms.items()}
    parts.extras = []
    for name in ("curriculum", "curriculum_running"):
        del parts.header[name]
    for name in TAUGHT:
        parts.header["schedules"][f"weight/{name}"] = declared("linear", TAUGHT[name], ALONE[name], SWITCH)
    return parts


def raw_features(parts: Parts) -> Parts:
    """Features in the teacher's own unit, fifteen times larger: their square is in the hundreds, its weight small."""
    plain = parts.losses
    small = {"feature": TAUGHT["feature"] / 225.0}
    parts.losses = lambda model, batch: (raw := plain(model, batch)) | {"feature": 225.0 * raw["feature"]}
    mistakes.reweigh(parts, lambda applied, known: known | (small if applied < SWITCH else {}))
    parts.header["curriculum"]["stages"][0]["weights"] |= small
    parts.header["components"]["feature"]["unit"] = "activation^2"
    return parts


def watched(parts: Parts) -> Parts:
    """Dropout in the body; every fifth batch's inputs are looked at, each evaluation is made twice."""
    parts.model.body[2].p = 0.1
    parts.header["config"] |= {"dropout": 0.1}
    parts.extras.append(lambda step, batch: facts.input_facts(batch["x"]) if step % 5 == 1 else {})
    return parts


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, extras=[]),
    "every-tenth": lambda parts: replace(parts, every=10, over=None),
    "resumed": lambda parts: replace(parts, resume=Resume(STEPS // 2)),
    "warm-restarts": warm_restarts,
    "batch-8": batch_of_eight,
    "fine-tuned": fine_tuned,
    "bf16": bf16,
    "mislabelled": lambda parts: replace(parts, batches=loader(BATCH, parts.seed, wrong=0.12)),
    "fading": fading,
    "raw-features": raw_features,
    "watched": watched,
}


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, before the loop."""
    parts.weights = lambda applied: dict(TAUGHT)  # noqa: ARG005
    parts.extras = [lambda step, batch: {"stage": 0}]  # noqa: ARG005
    return SWITCH + 1


def opposed_components(parts: Parts) -> int:
    """The loss takes the teacher's classes in the order of their names: eight, five, four, and so on."""
    by_name = torch.tensor([8, 5, 4, 9, 1, 7, 6, 3, 2, 0])
    plain = parts.losses
    parts.losses = lambda model, batch: plain(model, batch | {"logits": batch["logits"][:, by_name]})
    return 1


def log_of_zero(parts: Parts) -> int:
    """The divergence by hand, p log p and all, at a temperature that falls to a twentieth: some p is 0 before."""
    cold, over, now = 0.05, SWITCH // 2, parts.now
    parts.scheduled = {"temperature": ("step", linear(HOT, cold, over))}
    parts.header["schedules"]["temperature"] = declared("linear", HOT, cold, over, clock="step")
    parts.header["config"] |= {"temperature": [HOT, cold]}
    plain = parts.losses

    def by_hand(model: nn.Module, batch: Batch) -> Components:
        raw, temperature = plain(model, batch), now["temperature"]
        assert isinstance(model, Reader)
        p = torch.softmax(batch["logits"] / temperature, 1)
        said = torch.log_softmax(model.heads["digit"](model.features).float() / temperature, 1)
        return raw | {"soft": (p * (p.log() - said)).sum(1).mean() * temperature**2}

    parts.losses = by_hand
    return mistakes.WHEN_BROKEN


OWN: dict[str, mistakes.Mistake] = {
    "stage-stuck": stage_stuck,
    "opposed-components": opposed_components,
    "log-of-zero": log_of_zero,
    "component-sign": partial(mistakes.component_sign, name="hard", weight=-0.5),  # one minus an alpha of 1.5
    "component-scale": partial(mistakes.component_scale, name="feature", by=float(BATCH * WIDE)),  # a sum, no mean
    "too-little-data": partial(mistakes.too_little_data, batches=2),
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

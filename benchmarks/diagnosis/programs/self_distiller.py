"""A student learns from one view of a scanned digit what its teacher, its own moving average, says of another.

As in DINO: targets are centred and sharpened, the teacher's temperature rises, its momentum goes to one; as in VICReg
features are kept apart by their variance and covariance. AdamW, a warm-up and a cosine. The loss says little, since the
targets sharpen while it falls; neighbours of views that are held out say what the teacher's features are worth.
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
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Loop, Parts, Resume, cosine, declared
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 110
TRAINING, BANK, BATCH = 1440, 600, 64
"""Images to train on, those of them whose labels the neighbours may look at, and images a step."""
RATE, WARMUP, CLIP, PROTOTYPES, SHARP, NEIGHBOURS = 3e-3, 12, 3.0, 48, 0.1, 10
COOL, WARM, MOMENTUM, CENTRING = 0.03, 0.05, 0.95, 0.9
WEIGHTS = {"distill": 1.0, "variance": 1.0, "covariance": 0.04}
RECORDS = frozenset({"shares", "norms", "optimizer", "clocks"})

HEALTHY = (
    *("plain", "loss-only", "epochs", "resumed", "warm-restarts", "tiny-batch", "fine-tuned", "harder-views"),
    *("regression", "frozen-stem", "bf16", "watched"),
)
SICK = (
    *("stale-optimiser", "absolute-anneal", "component-detached", "component-scale", "constant-input"),
    *("root-of-zero", "resume-weights-only", "growing-weights", "warmup-ignored", "failing-checkpoints"),
)
TWINS = {"resume-weights-only": "resumed", "constant-input": "watched"}


@dataclass(frozen=True)
class Views:
    """How far a view may be from its image: turns in radians, shifts as a share of the side, spread of the noise."""

    turn: float = 0.35
    shift: float = 0.12
    noise: float = 0.3

    def draw(self, images: Tensor, random: torch.Generator) -> Tensor:
        """One view of each image. float32 [N, 1, 8, 8]"""
        angle, across, down, ink = (torch.rand(4, len(images), generator=random) * 2 - 1).unbind()
        angle, across, down = angle * self.turn, across * self.shift * 2, down * self.shift * 2
        rows = torch.stack([angle.cos(), -angle.sin(), across, angle.sin(), angle.cos(), down], 1)
        grid = functional.affine_grid(rows.view(-1, 2, 3), [len(images), 1, 8, 8], align_corners=False)
        turned = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return turned * (1 + 0.3 * ink[:, None, None, None]) + self.noise * torch.randn(turned.shape, generator=random)


def loader(size: int, seed: int, views: Callable[[int], Views], gain: float = 1.0) -> Callable[[int], Batch]:
    """Batches by number: the first views of all images, then their second ones."""
    plain = shuffled({"x": digits()[0][:TRAINING].view(-1, 1, 8, 8)}, size, seed)

    def batch(number: int) -> Batch:
        random, images = torch.Generator().manual_seed(60_000 * seed + number), plain(number)["x"]
        return {"x": gain * torch.cat([views(number).draw(images, random) for _ in range(2)])}

    return batch


@lru_cache(maxsize=1)
def held() -> tuple[Tensor, Tensor, Tensor]:
    """Views of the bank's images and of those that are held out, and two views of each of these."""
    random, images = torch.Generator().manual_seed(2), digits()[0].view(-1, 1, 8, 8)
    bank, asked, again = (Views().draw(part, random) for part in (images[:BANK], images[TRAINING:], images[TRAINING:]))
    return bank, asked, torch.cat([asked, again])


class Net(nn.Module):
    """An encoder, whose features are what is wanted, a projector, and prototypes that are compared by direction."""

    def __init__(self, predicts: bool, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.encoder = nn.Sequential(
            *(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU()),
        )
        self.projector = nn.Sequential(
            *(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.GELU(), nn.Dropout(dropout), nn.Linear(64, 32)),
        )
        self.last = nn.Linear(32, 32 if predicts else PROTOTYPES, bias=False)
        for layer in (self.stem, *self.encoder):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, what is projected, and how near each prototype is (or what is predicted)."""
        features = self.encoder(self.stem(x))
        projected = functional.normalize(self.projector(features).float(), dim=1)
        near = functional.linear(projected, functional.normalize(self.last.weight, dim=1))
        return features.float(), projected, near.float()


class SelfDistiller(nn.Module):
    """The student, the teacher that follows it, and the centre of what the teacher says."""

    def __init__(self, predicts: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.predicts = predicts
        self.student, self.teacher = Net(predicts, dropout), Net(predicts, 0.0)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(32 if predicts else PROTOTYPES))
        self.told = self.features = torch.zeros(1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the student says, and what the teacher says: of prototypes, or of the projection itself."""
        self.features, _, said = self.student(x)
        with torch.no_grad():
            _, projected, near = self.teacher(x)
        self.told = projected if self.predicts else near
        return said, self.told

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """The teacher moves towards the student, the centre towards what the teacher said last."""
        for mine, its in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(its, 1.0 - momentum)
        self.centre.lerp_(self.told.mean(0), 1.0 - CENTRING)

    def targets(self, told: Tensor, temperature: float) -> Tensor:
        """The teacher's answers as probabilities, centred and sharpened. float32 [N, PROTOTYPES]"""
        return torch.softmax((told - self.centre) / temperature, 1)


def losses(model: nn.Module, batch: Batch, now: dict[str, float]) -> Components:
    """What the teacher says of one view, told from the other; how far features spread, and how alike they are."""
    assert isinstance(model, SelfDistiller)
    said, told = model(batch["x"])
    half = len(said) // 2
    if model.predicts:
        distill = -functional.cosine_similarity(said, told.roll(half, 0)).mean()
    else:
        targets = model.targets(told, now["temperature"]).roll(half, 0)
        distill = -(targets * torch.log_softmax(said / SHARP, 1)).sum(1).mean()
    features = model.features - model.features.mean(0)
    covariance = features.T @ features / (len(features) - 1)
    variance = covariance.diagonal()
    return {
        "distill": distill,
        "variance": functional.relu(1.0 - (variance + 1e-4).sqrt()).mean(),
        "covariance": (covariance.square().sum() - variance.square().sum()) / len(variance),
    }


def measure(model: nn.Module, now: dict[str, float], gain: float = 1.0) -> Channels:
    """The loss on pairs of held-out views, and how often ten neighbours in the bank tell the right digit."""
    assert isinstance(model, SelfDistiller)
    bank, asked, pairs = (gain * views for views in held())
    raw = {name: value.item() for name, value in losses(model, {"x": pairs}, now).items()}
    known, unknown = (functional.normalize(model.teacher(views)[0], dim=1) for views in (bank, asked))
    near, where = (unknown @ known.T).topk(NEIGHBOURS)
    labels = digits()[1]
    votes = functional.one_hot(labels[:BANK][where], 10) * near[..., None]
    right = (votes.sum(1).argmax(1) == labels[TRAINING:]).float().mean().item()
    return {
        "loss": sum(WEIGHTS[name] * value for name, value in raw.items()),
        "loss/distill": raw["distill"],
        "knn_accuracy": right,
        "feature_std": unknown.std(0).mean().item(),
    }


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = SelfDistiller(predicts=variant == "regression", dropout=0.1 if variant == "watched" else 0.0)
    now = {"temperature": COOL, "momentum": MOMENTUM}
    parts = Parts(
        model=model,
        optimizer=adam(model, RATE),
        batches=loader(BATCH, seed, lambda number: Views()),  # noqa: ARG005
        losses=partial(losses, now=now),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        clocks={"step": lambda applied: applied},
        now=now,
        over=lambda model: [parameter for parameter in model.parameters() if parameter.requires_grad],
        evaluation=Evaluation(max(STEPS // 11, 1), partial(measure, now=now)),
        header={
            "config": {"lr": RATE, "warmup": WARMUP, "batch_size": BATCH, "prototypes": PROTOTYPES, "weights": WEIGHTS},
            "total_steps": STEPS,
            "components": {
                "distill": {"unit": "nat", "role": "task"},
                "variance": {"role": "regulariser"},
                "covariance": {"role": "regulariser"},
            },
            "schedules": {},
            "clocks": ["step"],
            "max_grad_norm": CLIP,
            "checkpoint_every": 25,
        },
        records=RECORDS | {"checkpoints"},
    )
    annealed(parts, "temperature", declared("linear", COOL, WARM, STEPS // 3, clock="step"))
    annealed(parts, "momentum", declared("cosine", MOMENTUM, 1.0, STEPS, clock="step"))
    planned(parts, RATE)
    if variant != "regression":
        parts.extras.append(lambda step, batch: used(parts) if step % 5 == 0 else {})  # noqa: ARG005
    if variant in VARIANTS:
        parts = VARIANTS[variant](parts)
    parts.ends.insert(0, lambda step: parts.model.follow(parts.now["momentum"]))  # type: ignore[operator] # noqa: ARG005
    return parts


def adam(model: SelfDistiller, rate: float) -> torch.optim.Optimizer:
    """AdamW over what the student learns."""
    learning = [parameter for parameter in model.student.parameters() if parameter.requires_grad]
    return torch.optim.AdamW([{"params": learning, "name": "student"}], lr=rate, weight_decay=0.04)


def used(parts: Parts) -> Channels:
    """How many prototypes the teacher used for this step's views."""
    assert isinstance(parts.model, SelfDistiller)
    shares = parts.model.targets(parts.model.told, parts.now["temperature"]).mean(0)
    return {"prototypes/perplexity": (-shares * shares.clamp(min=1e-9).log()).sum().exp().item()}


def annealed(parts: Parts, name: str, form: dict[str, Any]) -> None:
    """A value that follows its declared schedule."""
    parts.header["schedules"][name] = form
    parts.scheduled[name] = ("step", lambda reading: schedule_value(form, reading) or 0.0)


def planned(parts: Parts, rate: float, warmup: int = WARMUP, restarts: int = 0) -> None:
    """The rate warms up and falls along a cosine, once or again and again; so it is declared."""
    for group in parts.optimizer.param_groups:
        group["lr"] = rate
    each = parts.steps // (restarts + 1)
    parts.factor = cosine(parts.steps, warmup) if not restarts else lambda tick: cosine(each)(tick % each)
    parts.header["config"] |= {"lr": rate, "warmup": warmup}
    form = declared("cosine", rate, 0.0, parts.steps, warmup=warmup, restarts=restarts)
    parts.header["schedules"]["lr/student"] = form


def warm_restarts(parts: Parts) -> Parts:
    planned(parts, RATE, warmup=0, restarts=3)
    return parts


def tiny_batch(parts: Parts) -> Parts:
    """Eight images a step: the centre and the covariance are guesses, and the loss is mostly noise."""
    parts.header["config"] |= {"batch_size": 8}
    return replace(parts, batches=loader(8, parts.seed, lambda number: Views()), batches_per_epoch=TRAINING // 8)  # noqa: ARG005


def fine_tuned(parts: Parts) -> Parts:
    """Student and teacher have learnt for long; both go on slowly, at constant temperature and momentum."""
    model, batches = parts.model, loader(BATCH, parts.seed + 40, lambda number: Views())  # noqa: ARG005
    assert isinstance(model, SelfDistiller)
    optimizer = adam(model, RATE)
    for number in range(2 * STEPS):
        optimizer.param_groups[0]["lr"] = RATE * cosine(2 * STEPS, WARMUP)(number)
        raw = losses(model, batches(number), {"temperature": WARM})
        optimizer.zero_grad()
        torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        model.follow(0.97)
    annealed(parts, "temperature", {"kind": "constant", "start": WARM, "clock": "step"})
    annealed(parts, "momentum", {"kind": "constant", "start": 0.99, "clock": "step"})
    planned(parts, RATE / 30)
    return parts


def harder_views(parts: Parts) -> Parts:
    """From the middle on views are farther from their images: the loss rises, as is declared."""
    half = STEPS // 2
    ranges = ({"turn": [0.2, 0.2]}, {"turn": [0.5, 0.5]})
    stages = [{"start": at, "name": name, "data": each} for at, name, each in zip((0, half), "ab", ranges, strict=True)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "views", "stages": stages}
    easy, hard = Views(0.2, 0.1, 0.3), Views(0.5, 0.25, 0.5)

    def told(step: int, batch: Batch) -> Channels:  # noqa: ARG001
        turn = (hard if step > half else easy).turn
        return {"stage": int(step > half), **{f"data/turn/{name}": turn for name in ("min", "mean", "max")}}

    parts.extras.append(told)
    return replace(parts, batches=loader(BATCH, parts.seed, lambda number: easy if number < half else hard))


def regression(parts: Parts) -> Parts:
    """As in BYOL: a predictor tells the teacher's projection itself; the loss is minus a cosine."""
    del parts.header["config"]["prototypes"], parts.scheduled["temperature"], parts.header["schedules"]["temperature"]
    parts.header["components"]["distill"] = {"unit": "", "role": "task"}
    return parts


def frozen_stem(parts: Parts) -> Parts:
    """As in MoCo v3: the first layer stays as it was drawn, which makes the training steadier."""
    assert isinstance(parts.model, SelfDistiller)
    parts.model.student.stem.requires_grad_(False)
    parts.optimizer = adam(parts.model, RATE)
    parts.header["config"] |= {"frozen": ["student.stem"]}
    return parts


def bf16(parts: Parts) -> Parts:
    parts.header["dtypes"] = {"declared": "bfloat16", "observed": "bfloat16"}
    return replace(parts, autocast=torch.bfloat16)


def watched(parts: Parts) -> Parts:
    """Dropout in the student's projector; inputs and fingerprints are logged."""
    parts.header["config"] |= {"dropout": 0.1}
    return replace(parts, records=parts.records | {"inputs", "fingerprint"})


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, extras=[]),
    "epochs": lambda parts: replace(
        parts, every=10, records=frozenset({"components", "norms", "optimizer", "clocks", "checkpoints"})
    ),
    "resumed": lambda parts: replace(parts, resume=Resume(STEPS // 2)),
    "warm-restarts": warm_restarts,
    "tiny-batch": tiny_batch,
    "fine-tuned": fine_tuned,
    "harder-views": harder_views,
    "regression": regression,
    "frozen-stem": frozen_stem,
    "bf16": bf16,
    "watched": watched,
}


def constant_input(parts: Parts) -> int:
    """Pixels are divided by 255 twice, in training and in evaluation."""
    gain = 1 / 255**2
    parts.batches = loader(BATCH, parts.seed, lambda number: Views(), gain)  # noqa: ARG005
    assert parts.evaluation is not None
    parts.evaluation = replace(parts.evaluation, measure=partial(measure, now=parts.now, gain=gain))
    return 1


def resume_weights_only(parts: Parts) -> int:
    """The checkpoint holds the student alone: the teacher and its centre begin as they are drawn, without moments."""
    assert parts.resume is not None
    at, drawn = parts.resume.at, SelfDistiller().state_dict()

    def restores(loop: Loop, saved: dict[int, dict[str, Any]]) -> None:
        student = {name: value for name, value in saved[at]["model"].items() if name.startswith("student.")}
        loop.restore(saved[at] | {"model": drawn | student})
        loop.parts.optimizer.state.clear()

    parts.resume = replace(parts.resume, restores=restores)
    return at + 1


def growing_weights(parts: Parts, by: float = 0.02) -> int:
    """The weight decay was given as minus: each step makes the student's weights larger."""
    assert isinstance(parts.model, SelfDistiller)
    weights = [parameter.data for parameter in parts.model.student.parameters()]
    parts.ends.insert(0, lambda step: torch._foreach_mul_(weights, 1.0 + by))  # noqa: ARG005
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "constant-input": constant_input,
    "resume-weights-only": resume_weights_only,
    "growing-weights": growing_weights,
    "root-of-zero": partial(mistakes.root_of_zero, of=lambda model: model.features),  # images are pushed apart
    "component-detached": partial(mistakes.component_detached, name="variance"),
    "component-scale": partial(mistakes.component_scale, name="covariance", by=(2.0 * BATCH - 1) ** 2),  # of sums
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

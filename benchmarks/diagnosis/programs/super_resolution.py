"""Scanned digits of 4 x 4 pixels are brought back to 8 x 8: sharp, not only right on average.

A residual net with sub-pixel convolutions adds to the bicubic image. First it learns by pixels and by the features of a
frozen classifier; then a discriminator comes in, and what it believes is a small third part of the loss. Two Adams: the
generator's rate falls along half a cosine, the discriminator's stays. Validation says the peak signal-to-noise ratio in
dB, and how many of the drawn digits the classifier still recognises.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import digits, shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Loop, Parts, Resume, cosine, declared
from trainwatch import Recorder

HELD_OUT = False
STEPS = 130
TRAINING, BATCH = 1440, 24
RATE, RIVAL_RATE, BETAS = 4e-3, 1e-3, (0.9, 0.99)
FEATURE, ADVERSARIAL, ENTRY = 0.1, 0.03, 0.4  # weights beside the pixels' 1; when the adversarial part comes in
FLOOR = 0.02  # of the rate, where its cosine ends
RECORDS = frozenset({"components", "shares", "bad"})

HEALTHY = (
    *("plain", "resumed", "fourfold", "hinge", "loss-only", "every-tenth", "epochs", "fine-tuned", "batch-2"),
    *("pixels-only", "warm-restarts", "degraded-later"),
)
SICK = (
    *("stale-optimiser", "scheduler-twice", "component-detached", "component-sign", "stage-stuck", "labels-break"),
    *("unscaled-input", "too-little-data", "bad-sample", "counter-reset", "resume-old-weights"),
)
TWINS = {"resume-old-weights": "resumed"}


class Residual(nn.Module):
    """Two convolutions whose result is added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())


class Generator(nn.Module):
    """What the bicubic image lacks. The last image is kept."""

    def __init__(self, factor: int = 2, width: int = 16) -> None:
        super().__init__()
        self.factor = factor
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), Residual(width), Residual(width))
        twice = [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.ReLU()]
        self.up = nn.Sequential(*twice * (factor // 2), nn.Conv2d(width, 1, 3, padding=1))
        self.image = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """Images `factor` times as large. float32 [N, 1, H, W]"""
        smooth = functional.interpolate(x, scale_factor=self.factor, mode="bicubic", align_corners=False)
        self.image = smooth + self.up(self.body(x))
        return self.image


class Discriminator(nn.Sequential):
    """The logit of an image being a real one."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(128, 1)),
        )


@lru_cache(maxsize=1)
def images() -> tuple[Tensor, Tensor]:
    """All digits with ink from 0 to 1, and their labels."""
    x, labels = digits()
    return ((x - x.min()) / (x.max() - x.min())).view(-1, 1, 8, 8), labels


@lru_cache(maxsize=1)
def classifier() -> nn.Sequential:
    """A net that knows digits, trained before and frozen; the first four layers are the perceptual features."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(384, 10)),
    )
    adam, (x, y) = torch.optim.Adam(net.parameters(), lr=3e-3), images()
    batches = shuffled({"x": x[:TRAINING], "y": y[:TRAINING]}, 64, 0)
    for number in range(200):
        batch = batches(number)
        adam.zero_grad()
        functional.cross_entropy(net(batch["x"]), batch["y"]).backward()
        adam.step()
    return net.requires_grad_(False).eval()


def pairs(factor: int, rows: slice) -> Batch:
    """Small images and what they were made of."""
    large = images()[0][rows]
    return {"x": functional.avg_pool2d(large, factor), "y": large}


def feature_loss(drawn: Tensor, real: Tensor) -> Tensor:
    """The squared distance of both images' features."""
    return functional.mse_loss(classifier()[:4](drawn), classifier()[:4](real))


def belief_loss(belief: Tensor, real: bool, hinge: bool) -> Tensor:
    """What a discriminator got wrong on images that are all real, or all drawn."""
    if hinge:
        return functional.relu(1.0 - belief if real else 1.0 + belief).mean()
    return functional.binary_cross_entropy_with_logits(belief, torch.full_like(belief, float(real)))


@dataclass(kw_only=True)
class Duel(Parts):
    """A training with an opponent: parts of the generator's, and the discriminator with its optimiser."""

    discriminator: nn.Module
    rival: torch.optim.Optimizer
    hinge: bool = False
    attached: bool = True  # whether the recorder looks at both networks
    judging: bool = False  # whether the adversarial part is on


class Round(Loop):
    """A step of the discriminator, as soon as it is asked, before each of the generator's."""

    parts: Duel

    def __init__(self, parts: Parts, watch: Recorder) -> None:
        super().__init__(parts, watch)
        if self.parts.attached:
            models = {"generator": self.parts.model, "discriminator": self.parts.discriminator}
            watch.attach(models, {"generator": self.parts.optimizer, "discriminator": self.parts.rival})

    def state(self) -> dict[str, Any]:
        held = {"discriminator": self.parts.discriminator, "rival": self.parts.rival}
        return super().state() | {name: deepcopy(one.state_dict()) for name, one in held.items()}

    def restore(self, state: dict[str, Any], scheduler: bool = True, data: bool = True) -> None:
        super().restore(state, scheduler, data)
        self.parts.discriminator.load_state_dict(state["discriminator"])
        self.parts.rival.load_state_dict(deepcopy(state["rival"]))

    def _loss(self, batch: Batch, row: dict[str, float]) -> Tensor:
        assert self.parts.weights is not None
        self.parts.judging = self.parts.weights(self.applied)["adversarial"] != 0.0
        if self.parts.judging:
            row.update(self._discriminate(batch))
        return super()._loss(batch, row)

    def _discriminate(self, batch: Batch) -> dict[str, float]:
        """One step of the discriminator; its loss."""
        parts = self.parts
        with torch.no_grad():
            drawn = parts.model(batch["x"])
        on_real = belief_loss(parts.discriminator(batch["y"]), True, parts.hinge)
        loss = on_real + belief_loss(parts.discriminator(drawn), False, parts.hinge)
        parts.rival.zero_grad()
        loss.backward()
        if parts.attached:
            self.watch.gradients(of="discriminator")
        parts.rival.step()
        return {"discriminator/loss": loss.item()} if parts.attached else {}

    def _clip(self, row: dict[str, float]) -> None:
        if not self.parts.attached:
            super()._clip(row)
            return
        norm = self.watch.gradients(of="generator")
        if not self.parts.broken and not math.isfinite(norm.item()):
            self.parts.broken = self.step


def losses(model: nn.Module, batch: Batch, duel: Duel) -> Components:
    """The mean distance of pixels, that of features, and how little the discriminator believes."""
    drawn = model(batch["x"])
    raw = {"pixel": functional.l1_loss(drawn, batch["y"]), "feature": feature_loss(drawn, batch["y"])}
    if duel.judging:
        belief = duel.discriminator(drawn)
        raw["adversarial"] = -belief.mean() if duel.hinge else belief_loss(belief, True, hinge=False)
    return raw


def measured(factor: int = 2) -> Callable[[nn.Module], Channels]:
    """What the generator makes of digits that are held out."""
    held, labels = pairs(factor, slice(TRAINING, None)), images()[1][TRAINING:]

    def measure(model: nn.Module) -> Channels:
        drawn = model(held["x"])
        error = (drawn.clamp(0.0, 1.0) - held["y"]).square().mean((1, 2, 3))
        pixel, feature = functional.l1_loss(drawn, held["y"]).item(), feature_loss(drawn, held["y"]).item()
        return {
            "loss": pixel + FEATURE * feature,
            "loss/pixel": pixel,
            "loss/feature": feature,
            "psnr": (-10.0 * error.log10()).mean().item(),
            "recognised": (classifier()(drawn).argmax(1) == labels).float().mean().item(),
        }

    return measure


def build(seed: int, variant: str) -> Duel:
    """The parts of a healthy variant."""
    factor = 4 if variant == "fourfold" else 2
    data, measure = pairs(factor, slice(TRAINING)), measured(factor)
    torch.manual_seed(seed)
    model, discriminator = Generator(factor), Discriminator()
    duel = Duel(
        model=model,
        optimizer=adam(model, RATE),
        discriminator=discriminator,
        rival=adam(discriminator, RIVAL_RATE),
        loop=lambda parts, watch: Round(parts, watch),  # type: ignore[arg-type]
        batches=shuffled(data, BATCH, seed),
        losses=lambda model, batch: losses(model, batch, duel),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        at=lambda model: model.image,
        evaluation=Evaluation(max(STEPS // 13, 1), measure),
        records=RECORDS,
        header={
            "config": {"lr": RATE, "discriminator_lr": RIVAL_RATE, "batch_size": BATCH, "factor": factor},
            "components": {
                "pixel": {"role": "task"},
                "feature": {"role": "auxiliary"},
                "adversarial": {"unit": "nat", "role": "auxiliary"},
            },
            "schedules": {"lr/discriminator.all": {"kind": "constant", "start": RIVAL_RATE}},
            "gradient_at": "image",
        },
    )
    falling(duel, RATE)
    staged(duel, {0: ("pixels", 0.0), int(ENTRY * STEPS): ("adversarial", ADVERSARIAL)})
    return VARIANTS[variant](duel) if variant in VARIANTS else duel


def seen(step: int, batch: Batch) -> Channels:  # noqa: ARG001
    """How large the inputs are."""
    return {"data/input_absmax": batch["x"].abs().max().item()}


def changed(duel: Duel, **fields: Any) -> Duel:
    """The same duel, of which parts know each other, with other fields."""
    for name, value in fields.items():
        setattr(duel, name, value)
    return duel


def adam(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam([{"params": [*model.parameters()], "name": "all"}], lr=rate, betas=BETAS)


def falling(duel: Duel, rate: float, steps: int = 0, restarts: int = 0) -> Duel:
    """The generator's rate falls from here along half a cosine, or several; so it is declared."""
    duel.steps = steps or duel.steps
    each = duel.steps // (restarts + 1)
    duel.optimizer.param_groups[0]["lr"] = rate
    duel.factor = lambda tick: cosine(each, floor=FLOOR)(tick % each if restarts else tick)
    form = declared("cosine", rate, FLOOR * rate, duel.steps) | ({"restarts": restarts} if restarts else {})
    duel.header["schedules"]["lr/generator.all"], duel.header["total_steps"] = form, duel.steps
    duel.header["config"] |= {"lr": rate}
    return duel


def staged(duel: Duel, stages: dict[int, tuple[str, float]]) -> Duel:
    """The adversarial weight is that of the stage; stages are declared, and run so."""
    known = {start: {"pixel": 1.0, "feature": FEATURE, "adversarial": weight} for start, (_, weight) in stages.items()}
    duel.weights = lambda applied: dict(known[max(start for start in known if start <= applied)])
    forms = [{"start": start, "name": name, "weights": dict(known[start])} for start, (name, _) in stages.items()]
    duel.header["curriculum"] = duel.header["curriculum_running"] = {"name": "pixels-first", "stages": forms}
    duel.extras = [seen, lambda step, batch: {"stage": sum(start < step for start in known) - 1}]  # noqa: ARG005
    return duel


def batched(duel: Duel, size: int) -> Duel:
    """Batches of so many images."""
    duel.header["config"] |= {"batch_size": size}
    duel.batches, duel.batches_per_epoch = shuffled(pairs(2, slice(TRAINING)), size, duel.seed), TRAINING // size
    return duel


def loss_only(duel: Duel) -> Duel:
    """One number a step, and nothing is declared."""
    return changed(duel, records=frozenset(), header={}, extras=[], attached=False)


def epochs(duel: Duel) -> Duel:
    """One row an epoch, over fourteen epochs of larger batches; the discriminator comes in after the sixth."""
    batched(duel, 48)
    each = duel.batches_per_epoch
    changed(duel, every=each, records=RECORDS - {"shares"}, evaluation=Evaluation(each, measured()))
    staged(duel, {0: ("pixels", 0.0), 6 * each: ("adversarial", ADVERSARIAL)})
    return falling(duel, RATE, 14 * each)


def fine_tuned(duel: Duel) -> Duel:
    """The generator was trained before by pixels and features; now all three parts polish it, at a low rate."""
    optimizer = adam(duel.model, RATE)
    for number in range(400):
        optimizer.param_groups[0]["lr"] = RATE * cosine(400, floor=FLOOR)(number)
        raw = losses(duel.model, duel.batches(number), duel)
        optimizer.zero_grad()
        (raw["pixel"] + FEATURE * raw["feature"]).backward()
        optimizer.step()
    return falling(staged(duel, {0: ("polish", ADVERSARIAL)}), 5e-5)


def batch_2(duel: Duel) -> Duel:
    """Two images a step: the loss is mostly which two they are."""
    return falling(batched(duel, 2), 2e-3)


def pixels_only(duel: Duel) -> Duel:
    """For the best signal-to-noise ratio there is no opponent; the discriminator is built and never asked."""
    return staged(duel, {0: ("pixels", 0.0)})


def degraded_later(duel: Duel) -> Duel:
    """In a third stage the small images are noisy, as from a poor scanner: the loss rises, as it is meant to."""
    late, plain = int(0.7 * STEPS), duel.batches

    def batches(number: int) -> Batch:
        batch, chance = plain(number), torch.Generator().manual_seed(number)
        noise = torch.randn(batch["x"].shape, generator=chance)
        return batch | {"x": batch["x"] + (0.08 * noise if number >= late else 0.0)}

    entry = {int(ENTRY * STEPS): ("adversarial", ADVERSARIAL)}
    return staged(changed(duel, batches=batches), {0: ("pixels", 0.0), **entry, late: ("noisy", ADVERSARIAL)})


VARIANTS: dict[str, Callable[[Duel], Duel]] = {
    "resumed": lambda duel: changed(duel, resume=Resume(STEPS // 2)),
    "hinge": lambda duel: changed(duel, hinge=True),
    "loss-only": loss_only,
    "every-tenth": lambda duel: changed(duel, every=10, records=RECORDS - {"shares"}),
    "epochs": epochs,
    "fine-tuned": fine_tuned,
    "batch-2": batch_2,
    "pixels-only": pixels_only,
    "warm-restarts": lambda duel: falling(duel, RATE, restarts=3),
    "degraded-later": degraded_later,
}


def component_sign(parts: Parts) -> int:
    """In a game one side maximises, so somebody wrote a minus into the config; the loss has its own already."""
    assert parts.weights is not None
    plain = parts.weights
    parts.weights = lambda applied: plain(applied) | {"adversarial": -plain(applied)["adversarial"]}
    for stage in parts.header["curriculum"]["stages"]:
        stage["weights"]["adversarial"] *= -1.0
    return int(ENTRY * STEPS) + 1


def component_detached(parts: Parts) -> int:
    """The discriminator's step detaches the drawn image, and the generator's step got that line, too."""
    mistakes.component_detached(parts, "adversarial")
    return int(ENTRY * STEPS) + 1


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, before the loop."""
    assert parts.weights is not None
    first = parts.weights(0)
    parts.weights, parts.extras = lambda applied: dict(first), [seen, lambda step, batch: {"stage": 0}]  # noqa: ARG005
    return int(ENTRY * STEPS) + 1


OWN: dict[str, mistakes.Mistake] = {
    "component-detached": component_detached,
    "component-sign": component_sign,
    "stage-stuck": stage_stuck,
    "unscaled-input": partial(mistakes.unscaled_input, by=255.0, shift=0.0),
    "too-little-data": partial(mistakes.too_little_data, batches=1),
    "counter-reset": partial(mistakes.counter_reset, share=ENTRY),
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

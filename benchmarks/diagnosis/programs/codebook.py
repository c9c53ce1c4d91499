"""Digits through a codebook: an autoencoder whose bottleneck is quantised, Adam; codes that idle are revived.

Three components by role, their gradients' shares at the code, how many codes are used; no schedule at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import digits, shuffled
from benchmarks.diagnosis.loop import Components, Evaluation, Parts, Resume

HELD_OUT = False
STEPS = 320
TRAINING, BATCH, CODES, SIZE = 1440, 36, 32, 4
RATE = 2e-3
WEIGHTS = {"reconstruction": 1.0, "commitment": 2.0, "codebook": 4.0}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "inputs", "fingerprint", "bad", "hash"})

HEALTHY = ("plain", "resumed", "components-only", "no-roles", "larger-book", "slow")
TWINS = {"resume-old-weights": "resumed", "resume-repeats-data": "resumed"}


class Quantised(nn.Module):
    """Eight codes a digit, each the nearest of a codebook; gradients go straight through."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 8 * SIZE))
        self.codebook = nn.Embedding(codes, SIZE)
        self.decoder = nn.Sequential(nn.Linear(8 * SIZE, 96), nn.ReLU(), nn.Linear(96, 64))
        self.used, self.perplexity = 0.0, 0.0
        self.code = torch.zeros(())

    def nearest(self, parts: Tensor) -> Tensor:
        return torch.cdist(parts, self.codebook.weight).argmin(1)

    def forward(self, x: Tensor) -> Components:
        self.code = self.encoder(x)
        parts = self.code.view(-1, SIZE)
        nearest = self.nearest(parts)
        chosen = self.codebook(nearest)
        shares = torch.bincount(nearest, minlength=len(self.codebook.weight)) / len(nearest)
        self.used = (shares > 0).float().mean().item()
        self.perplexity = float((-(shares * shares.clamp(min=1e-9).log()).sum()).exp())
        through = (parts + (chosen - parts).detach()).view(-1, 8 * SIZE)
        return {
            "reconstruction": functional.mse_loss(self.decoder(through), x, reduction="none").sum(1).mean(),
            "commitment": functional.mse_loss(parts, chosen.detach()),
            "codebook": functional.mse_loss(chosen, parts.detach()),
        }


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    x, model = digits()[0], Quantised(4 * CODES if variant == "larger-book" else CODES)
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=RATE * (0.3 if variant == "slow" else 1.0)),
        batches=shuffled({"x": x[:TRAINING]}, BATCH, seed),
        losses=lambda model, batch: model(batch["x"]),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        max_norm=50.0,
        at=lambda model: model.code,
        evaluation=Evaluation(20, measured(x[TRAINING:])),
        header=header(),
        records=RECORDS,
        body=lambda model: [*model.encoder.parameters()],
    )
    begin(parts)
    return VARIANTS[variant](parts, seed) if variant in VARIANTS else parts


def header() -> dict[str, object]:
    """What the run says of itself."""
    roles = {"reconstruction": "task", "commitment": "regulariser", "codebook": "auxiliary"}
    return {
        "config": {"lr": RATE, "batch_size": BATCH, "codes": CODES, **{f"weight_{k}": v for k, v in WEIGHTS.items()}},
        "total_steps": STEPS,
        "horizon": {"epochs": 8, "samples": TRAINING, "batch_size": BATCH, "accumulation": 1, "drop_last": True},
        "components": {name: {"unit": "", "role": role} for name, role in roles.items()},
        "max_grad_norm": 50.0,
        "gradient_at": "code",
    }


def measured(x: Tensor) -> Callable[[nn.Module], dict[str, float]]:
    """The components on the validation set, and their weighted sum."""

    def measure(model: nn.Module) -> dict[str, float]:
        raw = {name: value.item() for name, value in model(x).items()}
        return {"loss": sum(WEIGHTS[n] * value for n, value in raw.items()), **{f"loss/{n}": v for n, v in raw.items()}}

    return measure


def begin(parts: Parts) -> None:
    """The codebook begins at codes that the encoder gives; how many are used goes into the row."""
    model = parts.model
    with torch.no_grad():
        model(parts.batches(0)["x"])
        found = model.code.view(-1, SIZE)
        model.codebook.weight.copy_(found[torch.randperm(len(found))[: len(model.codebook.weight)]])
    parts.extras.append(
        lambda step, batch: {"codebook/used": parts.model.used, "codebook/perplexity": parts.model.perplexity}  # noqa: ARG005
    )
    parts.ends.append(partial(revive, parts))


@torch.no_grad()
def revive(parts: Parts, step: int) -> None:
    """Every tenth step codes that were not chosen begin anew at what the encoder gives."""
    if step % 10 == 0 and step < 0.8 * STEPS:
        found, book = parts.model.code.view(-1, SIZE), parts.model.codebook.weight
        idle = torch.bincount(parts.model.nearest(found), minlength=len(book)) == 0
        book[idle] = found[torch.randperm(len(found))[: int(idle.sum())]]


def components_only(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """Losses without roles or declarations; no shares, no rates."""
    return replace(parts, header={"total_steps": STEPS}, records=frozenset({"components"}), evaluation=None, extras=[])


def no_roles(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    return replace(parts, header={name: value for name, value in parts.header.items() if name != "components"})


VARIANTS: dict[str, Callable[[Parts, int], Parts]] = {
    "resumed": lambda parts, seed: replace(parts, resume=Resume(STEPS // 2)),  # noqa: ARG005
    "components-only": components_only,
    "no-roles": no_roles,
}


def codebook_collapse(parts: Parts) -> int:
    """The codebook begins far apart, and no code is ever revived: one takes all."""
    parts.ends.clear()
    with torch.no_grad():
        parts.model.codebook.weight.normal_(0.0, 8.0)
    parts.weights = lambda applied: {"reconstruction": 1.0, "commitment": 25.0, "codebook": 0.01}  # noqa: ARG005
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "codebook-collapse": codebook_collapse,
    "component-sign": partial(mistakes.component_sign, name="commitment", weight=-2.0),
    "one-owns-gradient": partial(mistakes.component_scale, name="commitment", by=1e4),
    "component-detached": partial(mistakes.component_detached, name="reconstruction"),
    "rate-too-high": partial(mistakes.rate_too_high, by=300.0),
}
SICK = (
    *("codebook-collapse", "component-sign", "one-owns-gradient", "component-detached", "rate-too-high"),
    *("rate-too-low", "resume-old-weights", "resume-repeats-data", "unscaled-input", "constant-input", "bad-sample"),
    *("poisoned-weight", "frozen-body", "growing-weights"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

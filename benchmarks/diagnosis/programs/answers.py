"""Answers of different lengths: words of CPython's documentation in a cipher, letter by letter, RMSprop.

A network reads all letters at once and answers ten places: for each letter the one after it, then ends. What it answers
is drawn now and then and judged: an answer is valid if it ends and nothing follows its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import shuffled, written
from benchmarks.diagnosis.loop import Batch, Components, Evaluation, Parts, Resume, Sampling, linear

HELD_OUT = False
STEPS = 300
PLACES, LETTERS, END = 10, 27, 0
BATCH, RATE = 32, 4e-3

HEALTHY = ("plain", "resumed", "linear-rate", "loss-only", "polyak", "short-words", "decayed")
TWINS = {"counter-reset": "linear-rate", "unmoved-group": "decayed"}


class Cipher(nn.Module):
    """Two layers over the letters of all places."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LETTERS, 24)
        self.mixing, self.head = nn.Linear(24 * PLACES, 200), nn.Linear(200, PLACES * LETTERS)
        self.dropout = nn.Dropout(0.1)
        self.logits = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(torch.tanh(self.mixing(self.embedding(x).flatten(1))))
        self.logits = self.head(hidden).view(-1, PLACES, LETTERS)
        return self.logits


@lru_cache(maxsize=1)
def words() -> tuple[Batch, Batch]:
    """Words of 3 to 9 letters and their cipher, for training and, of other words, for validation."""
    found = sorted(set(re.findall(r"\b[a-z]{3,9}\b", written())))
    order = np.random.default_rng(0).permutation(len(found))
    rows = [[ord(letter) - 96 for letter in found[index]] for index in order]
    x = torch.tensor([row + [END] * (PLACES - len(row)) for row in rows])
    y = torch.tensor([[letter % 26 + 1 for letter in row] + [END] * (PLACES - len(row)) for row in rows])
    cut = int(0.85 * len(rows))
    return {"x": x[:cut], "y": y[:cut]}, {"x": x[cut:], "y": y[cut:]}


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, (training, validation) = Cipher(), words()
    parts = Parts(
        model=model,
        optimizer=torch.optim.RMSprop(model.parameters(), lr=RATE),
        batches=shuffled(training, BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=len(training["x"]) // BATCH,
        at=lambda model: model.logits,
        evaluation=Evaluation(30, measured(validation)),
        sampling=Sampling(30, partial(answers, validation)),
        header={"total_steps": STEPS, "config": {"lr": RATE, "batch_size": BATCH, "optimizer": "rmsprop"}},
        records=frozenset({"norms", "optimizer", "epochs", "checkpoints"}),
        extras=[lambda step, batch: lengths(batch["x"])],  # noqa: ARG005
        body=lambda model: [*model.embedding.parameters(), *model.mixing.parameters()],
    )
    parts.header["checkpoint_every"] = 50
    return VARIANTS[variant](parts, seed) if variant in VARIANTS else parts


def losses(model: nn.Module, batch: Batch) -> Components:
    return {"loss": functional.cross_entropy(model(batch["x"]).flatten(0, 1), batch["y"].flatten())}


def lengths(x: Tensor) -> dict[str, float]:
    """How long the words in a batch are, and so should their answers be."""
    long = (x != END).sum(1).float()
    names = {"min": long.min(), "mean": long.mean(), "max": long.max()}
    return {f"data/length/{name}": value.item() for name, value in names.items()}


def measured(data: Batch) -> Callable[[nn.Module], dict[str, float]]:
    """Loss, and the share of words that are answered without a fault."""

    def measure(model: nn.Module) -> dict[str, float]:
        loss = losses(model, data)["loss"].item()
        return {"loss": loss, "accuracy": (model.logits.argmax(-1) == data["y"]).all(1).float().mean().item()}

    return measure


@torch.no_grad()
def answers(data: Batch, model: nn.Module) -> tuple[list[str], dict[str, float]]:
    """What is answered to 40 words that were not trained on, and what that is worth."""
    told = model(data["x"][:40]).argmax(-1)
    texts = ["".join("." if letter == END else chr(96 + letter) for letter in row) for row in told.tolist()]
    ended = [text.split(".")[0] for text in texts]
    pairs = list(zip(texts, ended, strict=True))
    counts = np.unique(list("".join(ended)) or [""], return_counts=True)[1]
    shares = counts / counts.sum()
    return texts, {
        "validity": float(np.mean([end != "" and text.rstrip(".") == end != text for text, end in pairs])),
        "diversity": len(set(ended)) / len(ended),
        "longest_run": max((len(list(run)) for end in ended for _, run in groupby(end)), default=0),
        "entropy": float(-(shares * np.log(shares)).sum()),
        "length_mean": float(np.mean([len(end) for end in ended])),
        "length_std": float(np.std([len(end) for end in ended])),
    }


def linear_rate(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    parts.header["schedules"] = {"lr/0": {"kind": "linear", "start": RATE, "end": 0.0, "over_steps": STEPS}}
    return replace(parts, factor=linear(1.0, 0.0, STEPS))


def loss_only(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    return replace(parts, header={}, records=frozenset(), evaluation=None, sampling=None, extras=[])


def polyak(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """A running mean of the weights is what is evaluated."""
    mean = torch.optim.swa_utils.AveragedModel(
        parts.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    parts.ends.append(lambda step: mean.update_parameters(parts.model))  # noqa: ARG005
    assert parts.evaluation is not None
    measure = parts.evaluation.measure
    parts.evaluation = replace(parts.evaluation, measure=lambda model: measure(mean.module.eval()))  # noqa: ARG005
    return parts


def short_words(parts: Parts, seed: int) -> Parts:
    """Words of three and four letters alone: answers are short because the data's are."""
    training, validation = ({name: values[kept(data)] for name, values in data.items()} for data in words())
    return replace(
        parts,
        batches=shuffled(training, BATCH, seed),
        batches_per_epoch=len(training["x"]) // BATCH,
        evaluation=Evaluation(30, measured(validation)),
        sampling=Sampling(30, partial(answers, validation)),
    )


def kept(data: Batch) -> Tensor:
    return (data["x"] != END).sum(1) <= 4


def decayed(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """Two groups, and weights that shrink."""
    body = parts.body(parts.model) if parts.body else []
    groups = [{"params": body, "name": "body"}, {"params": [*parts.model.head.parameters()], "name": "head"}]
    return replace(parts, optimizer=torch.optim.RMSprop(groups, lr=RATE, weight_decay=1e-3))


VARIANTS: dict[str, Callable[[Parts, int], Parts]] = {
    "resumed": lambda parts, seed: replace(parts, resume=Resume(150)),  # noqa: ARG005
    "linear-rate": linear_rate,
    "loss-only": loss_only,
    "polyak": polyak,
    "short-words": short_words,
    "decayed": decayed,
}


def short_answers(parts: Parts) -> int:
    """A limit of three letters is left from a trial: what is taught ends there."""
    plain = parts.batches

    def cut(batch: Batch) -> Batch:
        return batch | {"y": torch.where(torch.arange(PLACES) < 3, batch["y"], END)}

    parts.batches = lambda number: cut(plain(number))
    return 1


def invalid_answers(parts: Parts) -> int:
    """Padding is masked out of the loss, and the end with it: no answer ever ends."""

    def masked(model: nn.Module, batch: Batch) -> Components:
        logits, y = model(batch["x"]).flatten(0, 1), batch["y"].flatten()
        return {"loss": functional.cross_entropy(logits, y, ignore_index=END)}

    parts.losses = masked
    return 1


def repeating_text(parts: Parts) -> int:
    """Places are summed before they are mixed, so no place knows which letter is its own."""
    embedding = parts.model.embedding

    def blind(module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:  # noqa: ARG001
        return out.mean(1, keepdim=True).expand_as(out)

    embedding.register_forward_hook(blind)
    return 1


def longer(mistake: mistakes.Mistake, times: int) -> mistakes.Mistake:
    """What is seen late only is made in a longer run."""

    def make(parts: Parts) -> int:
        parts.steps *= times
        parts.header["total_steps"] = parts.steps
        return mistake(parts)

    return make


OWN: dict[str, mistakes.Mistake] = {
    "short-answers": short_answers,
    "invalid-answers": invalid_answers,
    "repeating-text": repeating_text,
    "too-little-data": partial(mistakes.too_little_data, batches=2),
    "slowing-down": longer(mistakes.slowing_down, 2),
    "leaking-memory": longer(mistakes.leaking_memory, 4),
    "rate-too-high": partial(mistakes.rate_too_high, by=400.0),
}
SICK = (
    *("short-answers", "invalid-answers", "repeating-text", "rate-too-high", "rate-too-low", "missing-zero-grad"),
    *("labels-shuffled", "too-little-data", "counter-reset", "unmoved-group", "discarded-update"),
    *("no-checkpoints", "failing-checkpoints", "never-started", "out-of-memory", "dropout-in-evaluation"),
    *("slowing-down", "leaking-memory"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

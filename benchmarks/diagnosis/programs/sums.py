"""A reader and a writer of sums: "37+08" goes into a two-way GRU, "45" comes out of another that looks back at it.

Teacher forcing, Adam with a warm-up and a cosine to nothing, two micro-batches a step, clipping at 1. Every forty steps
it answers some sums by itself, which are judged as texts: whether they are numbers, how long, how varied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import facts, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import (
    Batch,
    Channels,
    Components,
    Evaluation,
    Parts,
    Resume,
    Sampling,
    declared,
    linear,
)
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 160
HEALTHY = (
    *("plain", "resumed", "warm-restarts", "bf16", "batch-4", "scheduled-sampling", "longer-operands", "fine-tuning"),
    *("epoch-rows", "clipped-always", "z-loss"),
)
SICK = (
    *("scheduler-per-micro-batch", "divided-twice", "resume-restarts-schedule", "resume-repeats-data"),
    *("repeating-text", "short-answers", "invalid-answers", "exploding-recurrence", "tiny-clip", "nan-filtered-log"),
    *("labels-break", "too-little-data", "rate-too-high", "missing-zero-grad"),
)
TWINS = {
    "divided-twice": "z-loss",
    "resume-restarts-schedule": "resumed",
    "resume-repeats-data": "resumed",
}
SYMBOLS = "0123456789+.^"
PLUS, END, BEGIN = 10, 11, 12
TRAINING, VALIDATION, BATCH = 1920, 400, 48
RATE, WARMUP, CLIP = 1.5e-2, 16, 1.0
LONGEST = 6  # symbols of an answer, before the program gives up


class Reader(nn.Module):
    """Vectors of symbols, and a two-way GRU over those of the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.symbols = nn.Embedding(len(SYMBOLS), width)
        self.gru = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What stands at each place, the bare symbols there, and the two last states side by side."""
        seen = self.symbols(x)
        places, last = self.gru(seen)
        return places, seen, last.transpose(0, 1).reshape(1, len(x), -1)


class Writer(nn.Module):
    """A GRU over the answer so far, which at each symbol looks at the places of the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.start, self.query = nn.Linear(width, width), nn.Linear(width, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.out = nn.Sequential(nn.Linear(2 * width, 128), nn.ReLU(), nn.Linear(128, len(SYMBOLS)))

    def forward(self, said: Tensor, places: Tensor, seen: Tensor, state: Tensor) -> Tensor:
        states, _ = self.gru(said, torch.tanh(self.start(state)))
        scores = self.query(states) @ places.transpose(1, 2) / places.shape[-1] ** 0.5
        found = scores.softmax(-1) @ (places + seen)
        logits: Tensor = self.out(torch.cat([states, found], -1))
        return logits


class Sums(nn.Module):
    """Sum in, logits of the answer's symbols out."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.reader, self.writer = Reader(width), Writer(width)

    def forward(self, x: Tensor, said: Tensor) -> Tensor:
        logits: Tensor = self.writer(self.reader.symbols(said), *self.reader(x))
        return logits

    @torch.no_grad()
    def answer(self, x: Tensor) -> Tensor:
        """The likeliest symbol after symbol, LONGEST of them. int64 [sums, LONGEST]"""
        said = torch.full((len(x), 1), BEGIN)
        for _ in range(LONGEST):
            said = torch.cat([said, self(x, said)[:, -1:].argmax(-1)], 1)
        return said[:, 1:]


@lru_cache(maxsize=1)
def table() -> Batch:
    """All sums of two numbers below 50, in one order of chance. An answer of one digit ends twice."""
    a, b = (side.flatten() for side in torch.meshgrid(torch.arange(50), torch.arange(50), indexing="ij"))
    total, end = a + b, torch.full_like(a, END)
    x = torch.stack([a // 10, a % 10, torch.full_like(a, PLUS), b // 10, b % 10], 1)
    long = torch.stack([total // 10, total % 10, end], 1)
    y = torch.where(total[:, None] < 10, torch.stack([total, end, end], 1), long)
    order = torch.from_numpy(np.random.default_rng(3).permutation(len(a)))
    return {"x": x[order], "y": y[order]}


def part(first: int, last: int) -> Batch:
    return {name: values[first:last] for name, values in table().items()}


def told(y: Tensor) -> Tensor:
    """What the writer has been told before each symbol."""
    return torch.cat([torch.full_like(y[:, :1], BEGIN), y[:, :-1]], 1)


def losses(model: nn.Module, batch: Batch) -> Components:
    logits = model(batch["x"], told(batch["y"])).float()
    return {"loss": functional.cross_entropy(logits.transpose(1, 2), batch["y"])}


def measured(held: Batch, by: Callable[[nn.Module, Batch], Components] = losses) -> Callable[[nn.Module], Channels]:
    """The loss, and the share of answers that are wholly right."""

    def measure(model: nn.Module) -> Channels:
        right = (model(held["x"], told(held["y"])).argmax(-1) == held["y"]).all(1)
        return {"loss": next(iter(by(model, held).values())).item(), "right": right.float().mean().item()}

    return measure


def drawn(symbols: str = SYMBOLS) -> Callable[[nn.Module], tuple[list[str], Channels]]:
    """Sixteen answers to sums that were not trained on, up to where they end."""
    asked = part(TRAINING, TRAINING + 16)["x"]

    def draw(model: nn.Module) -> tuple[list[str], Channels]:
        assert isinstance(model, Sums)
        answers = [row[: row.index(END)] if END in row else row for row in model.answer(asked).tolist()]
        texts = ["".join(symbols[code] for code in row) for row in answers]
        valid = sum(text.isdigit() for text in texts) / len(texts)
        return texts, facts.text_quality(texts, frozenset()) | {"validity": valid}

    return draw


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Sums()
    form = declared("cosine", RATE, 0.0, STEPS, warmup=WARMUP)
    groups = [{"params": list(model.parameters()), "name": "all"}]
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam(groups, lr=RATE),
        batches=shuffled(part(0, TRAINING), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        accumulation=2,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        evaluation=Evaluation(20, measured(part(TRAINING, TRAINING + VALIDATION))),
        sampling=Sampling(40, drawn()),
        header={
            "config": {"lr": RATE, "warmup": WARMUP, "batch_size": BATCH, "accumulation": 2, "clip": CLIP},
            "total_steps": STEPS,
            "horizon": horizon(BATCH, 2),
            "max_grad_norm": CLIP,
        },
        records=frozenset({"norms", "optimizer", "waits", "components"}),
        body=lambda model: [*model.reader.parameters()],
    )
    scheduled(parts, form)
    return VARIANTS[variant](parts, seed) if variant in VARIANTS else parts


def horizon(batch: int, accumulation: int, samples: int = TRAINING) -> dict[str, Any]:
    epochs = STEPS * batch * accumulation / samples
    return {
        "epochs": int(epochs) if epochs >= 1 else epochs,
        "samples": samples,
        "batch_size": batch,
        "accumulation": accumulation,
        "drop_last": True,
    }


def scheduled(parts: Parts, form: dict[str, Any]) -> None:
    """The rate follows this form, and so the header says."""
    for group in parts.optimizer.param_groups:
        group["lr"] = form["start"]
    parts.factor = lambda tick: (schedule_value(form, tick) or 0.0) / form["start"]
    parts.header["schedules"] = {"lr/all": dict(form)}


def warm_restarts(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    scheduled(parts, declared("cosine", RATE, 1e-4, STEPS, restarts=2))
    return parts


def tiny_batches(parts: Parts, seed: int) -> Parts:
    """Four sums a step, and no accumulation, after a little training before: a noisy loss that falls all the same."""
    trained(parts.model, seed, 60)
    parts.header["config"] |= {"lr": 3e-3, "batch_size": 4, "accumulation": 1}
    parts.header["horizon"] = horizon(4, 1)
    scheduled(parts, declared("cosine", 3e-3, 0.0, STEPS, warmup=WARMUP))
    return replace(parts, accumulation=1, batches=shuffled(part(0, TRAINING), 4, seed), batches_per_epoch=480)


def trained(model: nn.Module, seed: int, steps: int) -> None:
    """Steps before the record begins."""
    adam, batches = torch.optim.Adam(model.parameters(), lr=RATE), shuffled(part(0, TRAINING), 64, seed + 50)
    for number in range(steps):
        adam.zero_grad()
        losses(model, batches(number))["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adam.step()


def scheduled_sampling(parts: Parts, seed: int) -> Parts:
    """More and more of what the writer is told are its own words; their share goes by a clock."""
    now, random = parts.now, torch.Generator().manual_seed(seed)
    now["own_words"] = 0.0

    def mixed(model: nn.Module, batch: Batch) -> Components:
        before = told(batch["y"])
        with torch.no_grad():
            own = told(model(batch["x"], before).argmax(-1))
        taken = torch.rand(before.shape, generator=random) < now["own_words"]
        logits = model(batch["x"], torch.where(taken, own, before))
        return {"loss": functional.cross_entropy(logits.transpose(1, 2), batch["y"])}

    parts.clocks = {"sampling": lambda applied: applied}
    parts.scheduled = {"own_words": ("sampling", linear(0.0, 0.4, STEPS))}
    parts.header["clocks"] = ["sampling"]
    parts.header["schedules"]["own_words"] = declared("linear", 0.0, 0.4, STEPS, clock="sampling")
    return replace(parts, losses=mixed, records=parts.records | {"clocks"})


def longer_operands(parts: Parts, seed: int) -> Parts:
    """Numbers below 25 for a quarter of the run, then all: answers above 48 were never seen before."""
    change, all_sums = STEPS // 4, part(0, TRAINING)
    value = 10 * all_sums["x"][:, [0, 3]] + all_sums["x"][:, [1, 4]]
    kept = (value < 25).all(1)
    short = shuffled({name: values[kept] for name, values in all_sums.items()}, BATCH, seed)
    long = parts.batches
    stages = [
        {"start": 0, "name": "below 25", "data": {"operand": [0, 24]}},
        {"start": change, "name": "below 50", "data": {"operand": [0, 49]}},
    ]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "operands", "stages": stages}

    def facts_of(step: int, batch: Batch) -> Channels:
        numbers = (10 * batch["x"][:, [0, 3]] + batch["x"][:, [1, 4]]).float()
        told = {f"data/operand/{name}": getattr(numbers, name)().item() for name in ("min", "mean", "max")}
        return {"stage": int(step > change), **told}

    del parts.header["horizon"]
    parts.extras = [facts_of]
    return replace(parts, batches=lambda number: (short if number < 2 * change else long)(number))


def fine_tuning(parts: Parts, seed: int) -> Parts:
    """It goes on from a model that was trained for a while, at a hundredth of the rate."""
    trained(parts.model, seed, 130)
    parts.header["config"]["lr"] = 3e-4
    scheduled(parts, declared("linear", 3e-4, 0.0, STEPS, warmup=10))
    return parts


def clipped_always(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    parts.header["config"]["clip"] = parts.header["max_grad_norm"] = 0.2
    return replace(parts, max_norm=0.2)


def z_loss(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """A small pull of the logits' normaliser to 1 besides, as in large language models; logged by hand."""

    def both(model: nn.Module, batch: Batch) -> Components:
        logits = model(batch["x"], told(batch["y"]))
        answer = functional.cross_entropy(logits.transpose(1, 2), batch["y"])
        return {"answer": answer, "z": logits.logsumexp(-1).square().mean()}

    parts.header["components"] = {"answer": {"unit": "nat", "role": "task"}, "z": {"unit": "", "role": "regulariser"}}
    return replace(parts, losses=both, weights=lambda applied: {"answer": 1.0, "z": 1e-3})  # noqa: ARG005


def bf16(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    parts.header["dtypes"] = {"declared": "bfloat16", "observed": "bfloat16"}
    return replace(parts, autocast=torch.bfloat16)


VARIANTS: dict[str, Callable[[Parts, int], Parts]] = {
    "resumed": lambda parts, seed: replace(parts, resume=Resume(STEPS // 2)),  # noqa: ARG005
    "warm-restarts": warm_restarts,
    "bf16": bf16,
    "batch-4": tiny_batches,
    "scheduled-sampling": scheduled_sampling,
    "longer-operands": longer_operands,
    "fine-tuning": fine_tuning,
    "epoch-rows": lambda parts, seed: replace(parts, every=20),  # noqa: ARG005
    "clipped-always": clipped_always,
    "z-loss": z_loss,
}


def repeating_text(parts: Parts) -> int:
    """Labels are not shifted: the writer learns to say again what it was just told."""

    def unshifted(model: nn.Module, batch: Batch) -> Components:
        said = told(batch["y"])
        return {"loss": functional.cross_entropy(model(batch["x"], said).transpose(1, 2), said)}

    parts.losses = unshifted
    parts.evaluation = Evaluation(20, measured(part(TRAINING, TRAINING + VALIDATION), unshifted))
    return 1


def short_answers(parts: Parts, share: float = 0.4) -> int:
    """A second file of the data was written with answers of at most one digit."""
    first, plain = int(parts.steps * share) + 1, parts.batches

    def cut(number: int) -> Batch:
        batch = plain(number)
        y = batch["y"].clone()
        y[:, 1:] = END
        return batch | {"y": y} if number >= (first - 1) * parts.accumulation else batch

    parts.batches = cut
    return first


def invalid_answers(parts: Parts) -> int:
    """Answers are decoded with the table of another vocabulary."""
    parts.sampling = Sampling(40, drawn("+-*/=()^.0123"))
    return 40


def nan_filtered_log(parts: Parts, share: float = 0.4) -> int:
    """A batch has no symbol that counts, so its mean is 0 / 0; the log writes 0 for a loss that is no number."""
    at, plain = int(parts.steps * share), parts.losses
    step = {"now": 0}
    parts.begins.append(lambda number: step.update(now=number))

    def losses_of(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        return {"loss": raw["loss"] * torch.zeros(0).mean()} if step["now"] == at else raw

    parts.losses = losses_of
    parts.logs = lambda row: {name: 0.0 if name == "loss" and value != value else value for name, value in row.items()}
    return at


def missing_zero_grad(parts: Parts) -> int:
    """Nor is the gradient clipped, so that its sum grows."""
    parts.max_norm = None
    del parts.header["max_grad_norm"], parts.header["config"]["clip"]
    return mistakes.missing_zero_grad(parts)


OWN: dict[str, mistakes.Mistake] = {
    "repeating-text": repeating_text,
    "short-answers": short_answers,
    "invalid-answers": invalid_answers,
    "nan-filtered-log": nan_filtered_log,
    "missing-zero-grad": missing_zero_grad,
    "rate-too-high": partial(mistakes.rate_too_high, by=30.0),
    "tiny-clip": partial(mistakes.tiny_clip, by=1e-6),
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

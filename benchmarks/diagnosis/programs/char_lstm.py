"""Text by letters: an LSTM reads CPython's own documentation in order (truncated back-propagation), Adam, clipping.

It writes lines of its own now and then. The row has the loss, the rate, the gradient's norm and little else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import text
from benchmarks.diagnosis.loop import Batch, Components, Evaluation, Parts, Resume, Sampling, cosine, declared

HELD_OUT = False
STEPS = 300
STREAMS, WINDOW = 12, 32
RATE, WARMUP, LIMIT = 4e-3, 20, 1.0
RECORDS = frozenset({"norms", "optimizer", "fingerprint", "epochs", "bad", "hash"})

HEALTHY = (
    *("plain", "resumed", "constant-rate", "one-stream", "loss-only", "loss-and-norm", "long-warmup", "sparse-rows"),
    "starting-over",
    "relu-recurrence",
)
TWINS = {
    "resume-restarts-schedule": "resumed",
    "resume-old-weights": "resumed",
    "resume-repeats-data": "resumed",
    "exploding-recurrence": "relu-recurrence",
    "labels-shuffled": "loss-and-norm",
}


class Writer(nn.Module):
    """One recurrent layer, whose state goes on from one batch to the next."""

    def __init__(self, letters: int, width: int = 80, plain: bool = False) -> None:
        super().__init__()
        self.plain, self.embedding = plain, nn.Embedding(letters, 24)
        cell = partial(nn.RNN, nonlinearity="relu") if plain else nn.LSTM
        self.lstm = cell(24, width, batch_first=True)
        self.dropout, self.head = nn.Dropout(0.15), nn.Linear(width, letters)
        self.state: Any = None
        self.logits = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        state = self.state if self.training else None
        out, state = self.lstm(self.embedding(x), state)
        if self.training:
            self.state = state.detach() if self.plain else tuple(part.detach() for part in state)
        self.logits = self.head(self.dropout(out))
        return self.logits

    @torch.no_grad()
    def write(self, count: int, length: int, temperature: float) -> Tensor:
        """Letters, one stream a row; temperature 0 takes the likeliest."""
        x, state, written = torch.zeros(count, 1, dtype=torch.int64), None, []
        for _ in range(length):
            out, state = self.lstm(self.embedding(x), state)
            logits = self.head(out[:, -1])
            likely = torch.multinomial(torch.softmax(logits / max(temperature, 1e-6), -1), 1)
            x = likely if temperature else logits.argmax(-1, keepdim=True)
            written.append(x)
        return torch.cat(written, 1)


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    alphabet, letters = text()
    model = Writer(len(alphabet))
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=RATE),
        batches=windows(STREAMS, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=(int(0.9 * len(letters)) // STREAMS - 1) // WINDOW,
        max_norm=LIMIT,
        factor=cosine(STEPS, WARMUP, floor=0.05),
        at=lambda model: model.logits,
        evaluation=Evaluation(25, measured(letters[int(0.9 * len(letters)) :])),
        sampling=Sampling(50, partial(lines, temperature=0.8)),
        header=header(),
        records=RECORDS,
        body=lambda model: [*model.embedding.parameters(), *model.lstm.parameters()],
    )
    return VARIANTS[variant](parts, seed) if variant in VARIANTS else parts


def header() -> dict[str, object]:
    """What the run says of itself."""
    return {
        "config": {"lr": RATE, "streams": STREAMS, "window": WINDOW, "clip": LIMIT, "warmup": WARMUP},
        "total_steps": STEPS,
        "schedules": {"lr/0": declared("cosine", RATE, 0.05 * RATE, STEPS, warmup=WARMUP)},
        "max_grad_norm": LIMIT,
    }


def windows(streams: int, seed: int) -> Callable[[int], Batch]:
    """The training text in so many streams, window by window; where they begin is the seed's."""
    letters = text()[1]
    training = letters[: int(0.9 * len(letters))].roll(1000 * seed)
    each = len(training) // streams
    rows = training[: streams * each].view(streams, each)
    count = (each - 1) // WINDOW

    def batch(number: int) -> Batch:
        at = (number % count) * WINDOW
        return {"x": rows[:, at : at + WINDOW], "y": rows[:, at + 1 : at + 1 + WINDOW]}

    return batch


def losses(model: nn.Module, batch: Batch) -> Components:
    return {"loss": functional.cross_entropy(model(batch["x"]).flatten(0, 1), batch["y"].flatten())}


def measured(letters: Tensor) -> Callable[[nn.Module], dict[str, float]]:
    """Loss on a piece of text, in nat a letter."""
    rows = letters[: 24 * 97].view(24, 97)
    return lambda model: {"loss": losses(model, {"x": rows[:, :-1], "y": rows[:, 1:]})["loss"].item()}


def lines(model: nn.Module, temperature: float) -> tuple[list[str], dict[str, float]]:
    """What the model writes, and what that is worth."""
    alphabet = text()[0]
    written = ["".join(alphabet[letter] for letter in row) for row in model.write(8, 60, temperature).tolist()]
    return written, worth(written)


def worth(written: list[str]) -> dict[str, float]:
    """Share of outputs that are unique, longest run of one letter, entropy of the letters (nat), lengths."""
    counts = np.unique(list("".join(written)), return_counts=True)[1] / max(sum(map(len, written)), 1)
    lengths = [len(one) for one in written]
    return {
        "diversity": len(set(written)) / len(written),
        "longest_run": max((len(list(run)) for one in written for _, run in groupby(one)), default=0),
        "entropy": float(-(counts * np.log(counts)).sum()),
        "length_mean": float(np.mean(lengths)),
        "length_std": float(np.std(lengths)),
    }


def one_stream(parts: Parts, seed: int) -> Parts:
    """A single stream: 32 letters a step, a noisy loss and a smaller rate."""
    for group in parts.optimizer.param_groups:
        group["lr"] = RATE / 2
    parts.header["schedules"] = {"lr/0": declared("cosine", RATE / 2, 0.025 * RATE, STEPS, warmup=WARMUP)}
    return replace(parts, batches=windows(1, seed))


def constant_rate(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    parts.header["schedules"] = {"lr/0": {"kind": "constant", "start": RATE}}
    return replace(parts, factor=None)


def loss_only(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    return replace(parts, header={}, records=frozenset(), evaluation=None, sampling=None)


def loss_and_norm(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """Loss and the whole gradient's norm: what most people log."""
    return replace(parts, header={"total_steps": STEPS}, records=frozenset({"norms"}), sampling=None)


def long_warmup(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    parts.header["schedules"] = {"lr/0": declared("cosine", RATE, 0.05 * RATE, STEPS, warmup=STEPS // 2)}
    return replace(parts, factor=cosine(STEPS, STEPS // 2, floor=0.05))


def sparse_rows(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    return replace(parts, every=25)


def starting_over(parts: Parts, seed: int) -> Parts:
    """The state is forgotten every tenth step, as where documents end: the loss jumps a little each time."""
    plain = windows(STREAMS, seed)

    def batches(number: int) -> Batch:
        if number % 10 == 0:
            parts.model.state = None
        return plain(number * 7)

    return replace(parts, batches=batches)


def relu_recurrence(parts: Parts, seed: int) -> Parts:
    """A plain recurrence of ReLUs that begins as the identity, plain SGD, and a clipped gradient."""
    torch.manual_seed(seed)
    model = Writer(len(text()[0]), plain=True)
    with torch.no_grad():
        model.lstm.weight_hh_l0.copy_(0.95 * torch.eye(80))
        model.lstm.weight_ih_l0.mul_(0.1)
    header = {"total_steps": STEPS, "max_grad_norm": LIMIT}
    return replace(
        parts, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.3), header=header, sampling=None
    )


VARIANTS: dict[str, Callable[[Parts, int], Parts]] = {
    "resumed": lambda parts, seed: replace(parts, resume=Resume(STEPS // 2, lost=20)),  # noqa: ARG005
    "one-stream": one_stream,
    "constant-rate": constant_rate,
    "loss-only": loss_only,
    "loss-and-norm": loss_and_norm,
    "long-warmup": long_warmup,
    "sparse-rows": sparse_rows,
    "starting-over": starting_over,
    "relu-recurrence": relu_recurrence,
}


def exploding_recurrence(parts: Parts) -> int:
    """Recurrent weights begin a little larger, and nothing clips; the rate is smaller, and that does not help."""
    with torch.no_grad():
        parts.model.lstm.weight_hh_l0.mul_(1.03)
    for group in parts.optimizer.param_groups:
        group["lr"] /= 2.0
    parts.max_norm = None
    del parts.header["max_grad_norm"]
    return 1


def dropout_in_evaluation(parts: Parts) -> int:
    """eval() is never called, so two evaluations of the same weights differ."""
    assert parts.evaluation is not None
    measure = parts.evaluation.measure

    def measured_in_training(model: nn.Module) -> dict[str, float]:
        state, model.state = model.state, None
        values = dict(measure(model))
        model.state = state
        return values

    parts.evaluation = replace(parts.evaluation, measure=measured_in_training)
    return mistakes.dropout_in_evaluation(parts)


def repeating_text(parts: Parts) -> int:
    """Lines are written by the likeliest letter each time."""
    parts.sampling = Sampling(50, partial(lines, temperature=0.0))
    return 50


def too_little_data(parts: Parts) -> int:
    """Three windows of text, learnt by heart."""
    onset = mistakes.too_little_data(parts, batches=3)
    plain = parts.losses

    def forgetful(model: nn.Module, batch: Batch) -> Components:
        model.state = None
        return plain(model, batch)

    parts.losses = forgetful
    return onset


def then_crashing(mistake: mistakes.Mistake) -> mistakes.Mistake:
    """Letters cannot be drawn from NaN: some steps later the program breaks for it."""

    def make(parts: Parts) -> int:
        parts.fails = True
        return mistake(parts)

    return make


OWN: dict[str, mistakes.Mistake] = {
    "rate-too-high": partial(mistakes.rate_too_high, by=300.0),
    "exploding-recurrence": exploding_recurrence,
    "repeating-text": repeating_text,
    "too-little-data": too_little_data,
    "dropout-in-evaluation": dropout_in_evaluation,
    "log-of-zero": then_crashing(mistakes.log_of_zero),
    "poisoned-weight": then_crashing(mistakes.poisoned_weight),
    "slow-loader": partial(mistakes.slow_loader, seconds=0.02),
}
SICK = (
    *("rate-too-high", "rate-zero", "rate-too-low", "warmup-ignored", "scheduler-twice"),
    *("exploding-recurrence", "repeating-text", "too-little-data", "stale-optimiser"),
    *("frozen-body", "counter-reset", "resume-restarts-schedule", "resume-old-weights", "resume-repeats-data"),
    *("log-of-zero", "poisoned-weight", "stuck-loader", "labels-shuffled", "labels-break"),
    *("dropout-in-evaluation", "slow-loader", "crash-type-error", "killed"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

"""A translator from words to digits: "four thousand seven" is read by an encoder, a decoder says 4, 0, 0, 7 and ends.

One block on each side, teacher forcing, AdamW, a linear warm-up and a linear decay, two micro-batches a step, clipping,
dropout 0.1. Every forty steps it translates by itself. A pair whose source is too long for the filter does not count.
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
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, Sampling, declared
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 120
ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WORDS = (*ONES, *TENS, "hundred", "thousand", "<pad>")
SYMBOLS = "0123456789.^"
BLANK, END, BEGIN = len(WORDS) - 1, 10, 11
LONGEST_SOURCE, LONGEST = 6, 7  # words read; digits said before the program gives up
TRAINING, VALIDATION, BATCH = 3200, 300, 32
PEAK, WARMUP, CLIP, DROPOUT = 6e-3, 20, 1.0, 0.1
RECORDS = frozenset({"components", "norms", "optimizer", "waits", "fingerprint", "checkpoints"})

HEALTHY = (
    *("plain", "resumed", "warm-restarts", "batch-2", "every-tenth", "loss-only", "fine-tuning", "mistyped"),
    *("thousands-late", "long-run", "rms-prop", "size-head"),
)
SICK = (
    *("labels-break", "too-little-data", "short-answers", "repeating-text", "all-masked", "frozen-body"),
    *("rate-too-high", "scheduler-per-micro-batch", "resume-restarts-schedule", "nan-filtered-log"),
)
TWINS = {"resume-restarts-schedule": "resumed"}


def spelt(number: int) -> list[int]:
    """The codes of a number's words."""
    if number < 20:
        return [number]
    if number < 100:
        return [18 + number // 10, *(spelt(number % 10) if number % 10 else [])]
    unit, name = (100, 28) if number < 1000 else (1000, 29)
    return [*spelt(number // unit), name, *(spelt(number % unit) if number % unit else [])]


@lru_cache(maxsize=1)
def pairs() -> Batch:
    """Numbers below ten thousand, one in six below a thousand: source, target and size, in one order of chance."""
    random = np.random.default_rng(17)
    small = random.choice(1000, 600, replace=False)
    large = 1000 + random.choice(9000, TRAINING + VALIDATION - 600, replace=False)
    numbers = random.permutation(np.concatenate([small, large])).tolist()
    x, y = torch.full((len(numbers), LONGEST_SOURCE), BLANK), torch.full((len(numbers), 5), END)
    for row, number in enumerate(numbers):
        words, digits = spelt(number), [int(digit) for digit in str(number)]
        x[row, : len(words)], y[row, : len(digits)] = torch.tensor(words), torch.tensor(digits)
    return {"x": x, "y": y, "size": torch.tensor(numbers)}


def training() -> Batch:
    return {name: values[:TRAINING] for name, values in pairs().items()}


def held() -> Batch:
    return {name: values[TRAINING:] for name, values in pairs().items()}


class Attention(nn.Module):
    """Four heads; what is not allowed gets a weight of 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.known, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, allowed: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (4, -1)).transpose(1, 2) for part in (self.query(x), *self.known(memory).chunk(2, -1))
        )
        scores = (query @ key.transpose(2, 3)).float() / query.shape[-1] ** 0.5
        weights = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1)
        mixed: Tensor = self.out((weights.to(value.dtype) @ value).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Looks at its own side, at the other side if there is one, and thinks; normed before each."""

    def __init__(self, width: int, crosses: bool) -> None:
        super().__init__()
        self.own, self.norm_own = Attention(width), nn.LayerNorm(width)
        self.cross, self.norm_cross = (Attention(width), nn.LayerNorm(width)) if crosses else (None, None)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, allowed: Tensor, memory: Tensor | None = None, there: Tensor | None = None) -> Tensor:
        inner = self.norm_own(x)
        x = x + self.drop(self.own(inner, inner, allowed))
        if self.cross is not None and self.norm_cross is not None:
            x = x + self.drop(self.cross(self.norm_cross(x), memory, there))
        out: Tensor = x + self.drop(self.think(x))
        return out


class Translator(nn.Module):
    """Words in, logits of the digits and the end out."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.words, self.symbols = nn.Embedding(len(WORDS), width), nn.Embedding(len(SYMBOLS), width)
        self.places = nn.Parameter(torch.randn(2, LONGEST + 1, width) * 0.5)
        self.encoder, self.decoder = Block(width, False), Block(width, True)
        self.norm_memory, self.out = nn.LayerNorm(width), nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 11))
        self.size = nn.Linear(width, 1)  # of the number; it learns only where it is asked for
        self.memory = torch.zeros(())

    def forward(self, x: Tensor, said: Tensor) -> Tensor:
        there = (x != BLANK)[:, None]
        self.memory = self.norm_memory(self.encoder(self.words(x) + self.places[0, : x.shape[1]], there))
        causal = torch.ones(1, said.shape[1], said.shape[1], dtype=torch.bool).tril()
        logits: Tensor = self.out(
            self.decoder(self.symbols(said) + self.places[1, : said.shape[1]], causal, self.memory, there)
        )
        return logits

    @torch.no_grad()
    def translate(self, x: Tensor, forgets: bool = False) -> list[list[int]]:
        """The likeliest symbol after symbol, up to the end. `forgets`: the decoder sees the begin only."""
        said = torch.full((len(x), 1), BEGIN)
        for _ in range(LONGEST):
            said = torch.cat([said, self(x, said[:, :1] if forgets else said)[:, -1:].argmax(-1)], 1)
        return [row[: row.index(END)] if END in row else row for row in said[:, 1:].tolist()]


def shifted(y: Tensor) -> Tensor:
    """What the decoder has been told before each symbol."""
    return torch.cat([torch.full_like(y[:, :1], BEGIN), y[:, :-1]], 1)


def counted(batch: Batch) -> Tensor:
    """The digits and the first end of each target."""
    return shifted(batch["y"]) != END


def losses(model: nn.Module, batch: Batch, kept: Callable[[Batch], Tensor] = counted) -> Components:
    """Cross-entropy of the symbols that count."""
    logits, counts = model(batch["x"], shifted(batch["y"])).float(), kept(batch)
    each = functional.cross_entropy(logits.transpose(1, 2), batch["y"], reduction="none")
    return {"loss": (each * counts).sum() / counts.sum().clamp(min=1)}


def measure(model: nn.Module) -> Channels:
    """The loss, and the share of the other numbers that are translated without a wrong symbol."""
    batch = held()
    right = (model(batch["x"], shifted(batch["y"])).argmax(-1) == batch["y"]) | ~counted(batch)
    return {"loss": losses(model, batch)["loss"].item(), "exact": right.all(1).float().mean().item()}


def drawn(forgets: bool = False) -> Callable[[nn.Module], tuple[list[str], Channels]]:
    """Sixteen translations; one is valid if it is a number as one writes it."""

    def draw(model: nn.Module) -> tuple[list[str], Channels]:
        assert isinstance(model, Translator)
        answers = model.translate(held()["x"][:16], forgets)
        texts = ["".join(SYMBOLS[code] for code in answer) for answer in answers]
        valid = sum(text.isdigit() and text == str(int(text)) for text in texts) / len(texts)
        return texts, facts.text_quality(texts, frozenset()) | {"validity": valid}

    return draw


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Translator()
    groups = [{"params": list(model.parameters()), "name": "all"}]
    parts = Parts(
        model=model,
        optimizer=torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98), weight_decay=0.01),
        batches=shuffled(training(), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        accumulation=2,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        evaluation=Evaluation(20, measure),
        sampling=Sampling(40, drawn()),
        header={
            "config": {"lr": PEAK, "warmup": WARMUP, "batch_size": BATCH, "accumulation": 2, "dropout": DROPOUT},
            "max_grad_norm": CLIP,
            "checkpoint_every": 40,
        },
        records=RECORDS,
        extras=[lambda step, batch: {"data/masked/loss": 0.0}],  # noqa: ARG005
        body=lambda model: [each for name, each in model.named_parameters() if not name.startswith("out")],
    )
    planned(parts, BATCH, 2)
    return VARIANTS[variant](parts, seed) if variant in VARIANTS else parts


def planned(parts: Parts, size: int, accumulation: int, peak: float = PEAK, **form: Any) -> None:
    """Batches of so many pairs, so many a step; the rate warms up and falls to nothing, and so the header says."""
    form = declared("linear", peak, 0.0, parts.steps) | {"warmup": WARMUP} | form
    for group in parts.optimizer.param_groups:
        group["lr"] = peak
    parts.factor = lambda tick: (schedule_value(form, tick) or 0.0) / peak
    parts.batches, parts.accumulation = shuffled(training(), size, parts.seed), accumulation
    parts.batches_per_epoch = TRAINING // size
    parts.header["config"] |= {"lr": peak, "warmup": form["warmup"], "batch_size": size, "accumulation": accumulation}
    parts.header["schedules"], parts.header["total_steps"] = {"lr/all": form}, parts.steps
    epochs = parts.steps * size * accumulation / TRAINING
    parts.header["horizon"] = {"epochs": epochs, "samples": TRAINING, "batch_size": size, "accumulation": accumulation}


def pretrained(parts: Parts, steps: int) -> None:
    """Steps before the record begins."""
    batches, adam = shuffled(training(), 64, parts.seed + 90), torch.optim.AdamW(parts.model.parameters(), lr=5e-3)
    for number in range(steps):
        adam.zero_grad()
        losses(parts.model, batches(number))["loss"].backward()
        nn.utils.clip_grad_norm_(parts.model.parameters(), CLIP)
        adam.step()


def batch_2(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """Two pairs a step for a model that can something already: a noisy loss."""
    pretrained(parts, 35)
    planned(parts, 2, 1, peak=1.2e-3)
    return parts


def fine_tuning(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """A model that is trained through, at a low rate: the loss is at its floor from the first row."""
    pretrained(parts, 220)
    planned(parts, BATCH, 2, peak=2e-4, warmup=5)
    return parts


def mistyped(parts: Parts, seed: int) -> Parts:
    """One digit in twelve of the training set was typed wrongly, for good."""
    random, data = torch.Generator().manual_seed(4), training()
    wrong = (torch.rand(data["y"].shape, generator=random) < 1 / 12) & (data["y"] != END)
    y = torch.where(wrong, torch.randint(0, 10, wrong.shape, generator=random), data["y"])
    return replace(parts, batches=shuffled(data | {"y": y}, BATCH, seed))


def thousands_late(parts: Parts, seed: int) -> Parts:
    """Only numbers below a thousand for a third of the run: the loss jumps where the others come in."""
    change, data, late = STEPS // 3, training(), parts.batches
    early = shuffled({name: values[data["size"] < 1000] for name, values in data.items()}, BATCH, seed)
    limits = [{"number": [0, 999]}, {"number": [0, 9999]}]
    stages = [{"start": at, "name": f"from-{at}", "data": one} for at, one in zip((0, change), limits, strict=True)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "magnitudes", "stages": stages}
    del parts.header["horizon"]

    def seen(step: int, batch: Batch) -> Channels:
        sizes = batch["size"].float()
        told = {f"data/number/{name}": getattr(sizes, name)().item() for name in ("min", "mean", "max")}
        return {"stage": int(step > change), **told}

    parts.extras.append(seen)
    return replace(parts, batches=lambda number: (early if number < 2 * change else late)(number))


def long_run(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    parts.steps = 2 * STEPS
    planned(parts, BATCH // 2, 2)
    return parts


def rms_prop(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """Another optimiser, without momentum, and a constant rate after the warm-up."""
    groups = [{"params": list(parts.model.parameters()), "name": "all"}]
    parts.optimizer = torch.optim.RMSprop(groups, lr=1.5e-3, alpha=0.98)
    parts.header["config"]["optimizer"] = "rmsprop"
    planned(parts, BATCH, 2, peak=1.5e-3, kind="constant", end=1.5e-3)
    return parts


def warm_restarts(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    planned(parts, BATCH, 2, kind="cosine", restarts=2, warmup=0)
    return parts


def size_head(parts: Parts, seed: int) -> Parts:  # noqa: ARG001
    """The number's logarithm is told besides, from the mean of what was read; logged by hand."""

    def both(model: nn.Module, batch: Batch) -> Components:
        symbol = losses(model, batch)["loss"]
        size = model.size(model.memory.mean(1))[:, 0].float()  # type: ignore[operator, union-attr]
        return {"symbol": symbol, "size": functional.huber_loss(size, batch["size"].add(1.0).log10())}

    parts.header["components"] = {"symbol": {"unit": "nat", "role": "task"}, "size": {"unit": "", "role": "auxiliary"}}
    return replace(parts, losses=both, weights=lambda applied: {"symbol": 1.0, "size": 0.1})  # noqa: ARG005


VARIANTS: dict[str, Callable[[Parts, int], Parts]] = {
    "resumed": lambda parts, seed: replace(parts, resume=Resume(STEPS // 2)),  # noqa: ARG005
    "warm-restarts": warm_restarts,
    "batch-2": batch_2,
    "every-tenth": lambda parts, seed: replace(parts, every=10),  # noqa: ARG005
    "loss-only": lambda parts, seed: replace(parts, records=frozenset(), header={}, extras=[], sampling=None),  # noqa: ARG005
    "fine-tuning": fine_tuning,
    "mistyped": mistyped,
    "thousands-late": thousands_late,
    "long-run": long_run,
    "rms-prop": rms_prop,
    "size-head": size_head,
}


def from_step(parts: Parts, first: int, last: int, change: Callable[[Batch], Batch]) -> int:
    """The batches of these steps come otherwise; returns the first of them."""
    plain, numbers = parts.batches, range((first - 1) * parts.accumulation, last * parts.accumulation)
    parts.batches = lambda number: change(plain(number)) if number in numbers else plain(number)
    return first


def short_answers(parts: Parts) -> int:
    """The second file writes "4,007", and the tokenizer ends a target at the comma."""

    def cut(batch: Batch) -> Batch:
        y = batch["y"].clone()
        y[batch["size"] >= 1000, 1:] = END
        return batch | {"y": y}

    return from_step(parts, int(0.4 * parts.steps) + 1, parts.steps, cut)


def repeating_text(parts: Parts) -> int:
    """The cache of the decoder is never filled: it answers to the begin again and again."""
    parts.sampling = Sampling(40, drawn(forgets=True))
    return 40


def all_masked(parts: Parts) -> int:
    """The filter for sources that are too long counts letters where words were meant: hardly a pair is left."""
    letters = torch.tensor([len(word) + 1 for word in WORDS[:-1]] + [0])

    def kept(batch: Batch) -> Tensor:
        return counted(batch) & (letters[batch["x"]].sum(1) <= LONGEST_SOURCE)[:, None]

    def masked(step: int, batch: Batch) -> Channels:  # noqa: ARG001
        return {"data/masked/loss": 1.0 - (kept(batch).sum() / counted(batch).sum()).item()}

    parts.losses, parts.extras = partial(losses, kept=kept), [masked]
    return 1


def nan_filtered_log(parts: Parts) -> int:
    """An empty line: its softmax is over nothing. The log writes 0 for a loss that is no number."""
    at = int(0.4 * parts.steps)
    parts.logs = lambda row: {name: 0.0 if name == "loss" and value != value else value for name, value in row.items()}

    def empty(batch: Batch) -> Batch:
        x = batch["x"].clone()
        x[5] = BLANK
        return batch | {"x": x}

    return from_step(parts, at, at, empty)


OWN: dict[str, mistakes.Mistake] = {
    "short-answers": short_answers,
    "repeating-text": repeating_text,
    "all-masked": all_masked,
    "nan-filtered-log": nan_filtered_log,
    "rate-too-high": partial(mistakes.rate_too_high, by=30.0),
    "too-little-data": partial(mistakes.too_little_data, batches=2),
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

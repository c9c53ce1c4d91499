"""Low-rank adapters teach a frozen language model a new instruction: a word backwards, each letter's next, in capitals.

The model, a causal transformer over characters, is trained here on plain lines first: words backwards, backwards in
capitals, and backwards with each letter's next. Its weights then stand still. Adapters beside its matrices learn the
answers to the new mark. AdamW with a faster group for the second matrices, accumulation, cosine after a warm-up,
clipping. What counts is the share of answers to other words that are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import facts, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, Sampling, declared
from benchmarks.diagnosis.schooling import school
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 120
TRAINING, HELD, BATCH, ACCUMULATION = 1280, 128, 16, 2
LETTERS, LONGEST = 16, 6
ALPHABET = " abcdefghijklmnopABCDEFGHIJKLMNOP<^+?."
PLAIN, ASKED, END = "<^+", "?", ALPHABET.index(".")
RANK, SCALE, DROPOUT = 4, 2.0, 0.1
RATE, FASTER, WARMUP, CLIP = 6e-3, 2.0, 10, 1.0
RECORDS = frozenset({"norms", "optimizer", "checkpoints"})

HEALTHY = (
    *("plain", "resumed", "warm-restarts", "batch-2", "every-tenth", "loss-only", "continued"),
    *("attention-only", "rank-2", "norms-too", "long-words-late", "long-run"),
)
SICK = (
    *("stale-optimiser", "unmoved-group", "zero-adapters", "labels-shuffled", "labels-break", "short-answers"),
    *("repeating-text", "scheduler-per-micro-batch", "dropout-in-evaluation", "rate-too-high", "too-little-data"),
    "failing-checkpoints",
)


def lines(count: int, marks: str, seed: int) -> Batch:
    """Prompts (a word set to the right, and a mark), the answers with their end, and how long the words are."""
    random = torch.Generator().manual_seed(seed)
    size = torch.randint(3, LONGEST + 1, (count, 1), generator=random)
    word = torch.randint(0, LETTERS, (count, LONGEST), generator=random)  # backwards
    mark = torch.tensor([ALPHABET.index(mark) for mark in marks])
    mark = mark[torch.randint(len(marks), (count, 1), generator=random)]
    there = torch.arange(LONGEST) < size
    turned = (word + ((mark == ALPHABET.index("+")) | (mark == ALPHABET.index("?"))).long()) % LETTERS + 1
    turned = turned + LETTERS * ((mark == ALPHABET.index("^")) | (mark == ALPHABET.index("?"))).long()
    answer = functional.pad(turned * there, (0, 1)).scatter(1, size, END)
    return {"x": torch.cat([((word + 1) * there).flip(1), mark], 1), "y": answer, "size": size[:, 0]}


class Block(nn.Module):
    """Four heads that look back, then a small perceptron; normed before each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.look, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.look(self.norms[0](x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        told: Tensor = x + self.down(functional.gelu(self.up(self.norms[1](x))))
        return told


class Model(nn.Module):
    """Characters in, logits of what follows out."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), width)
        self.places = nn.Parameter(0.1 * torch.randn(2 * LONGEST + 2, width))
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(ALPHABET))

    def forward(self, line: Tensor) -> Tensor:
        x = self.embedding(line) + self.places[: line.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)).float()
        return logits

    @torch.no_grad()
    def answers(self, x: Tensor, caches: bool = True) -> list[str]:
        """The likeliest character after character, up to the end. Without `caches` nothing that was said is seen."""
        line = x
        for _ in range(LONGEST + 1):
            line = torch.cat([line, self(line if caches else x)[:, -1:].argmax(-1)], 1)
        said = ["".join(ALPHABET[code] for code in row) for row in line[:, x.shape[1] :].tolist()]
        return [text[: text.index(".") + 1] if "." in text else text for text in said]


class Adapted(nn.Module):
    """A frozen matrix and, beside it, a product of two small ones, of which the second begins at zero."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base, self.dropout = base, nn.Dropout(DROPOUT)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.base(x) + SCALE * (self.dropout(x) @ self.a.T @ self.b.T)
        return changed


def answered(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of the answers' characters, and which of these count: up to the first end."""
    return logits[:, LONGEST:], functional.pad((y == END).cumsum(1)[:, :-1], (1, 0)) == 0


def entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy of the answers' characters."""
    logits, counts = answered(logits, y)
    return functional.cross_entropy(logits[counts], y[counts])


def whole(batch: Batch) -> Tensor:
    """Prompts and answers as the model reads them."""
    return torch.cat([batch["x"], batch["y"][:, :-1]], 1)


@cache
def pretrained(steps: int = 300) -> dict[str, Tensor]:
    """The weights of the model that has read plain lines."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = Model()
        adam = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)

        def loss(number: int) -> Tensor:
            batch = lines(64, PLAIN, 10_000 + number)
            return entropy(model(whole(batch)), batch["y"])

        return school(model, adam, loss, steps=steps, peak=4e-3, clip=1.0)


def adapted(rank: int = RANK, names: tuple[str, ...] = ("look", "out", "up", "down")) -> Model:
    """The frozen model with new adapters beside these matrices of each block."""
    model = Model()
    model.load_state_dict(pretrained())
    model.requires_grad_(False)
    for block in model.blocks:
        for name in names:
            setattr(block, name, Adapted(getattr(block, name), rank))
    return model


@cache
def examples() -> Batch:
    """Lines with the new mark, and those that measure after those that teach."""
    return lines(TRAINING + HELD, ASKED, 1)


def training() -> Batch:
    return {name: values[:TRAINING] for name, values in examples().items()}


def losses(model: nn.Module, batch: Batch) -> Components:
    return {"loss": entropy(model(whole(batch)), batch["y"])}


def measure(model: nn.Module) -> Channels:
    """The answers' cross-entropy and perplexity, and the share of exact answers."""
    batch = {name: values[TRAINING:] for name, values in examples().items()}
    logits = model(whole(batch))
    told, counts = answered(logits, batch["y"])
    exact = ((told.argmax(-1) == batch["y"]) | ~counts).all(1).float().mean().item()
    loss = entropy(logits, batch["y"]).item()
    return {"loss": loss, "perplexity": math.exp(loss), "exact_match": exact}


def drawn(caches: bool = True) -> Callable[[nn.Module], tuple[list[str], Channels]]:
    """Sixteen answers; one is valid if it is capitals and an end."""

    def draw(model: nn.Module) -> tuple[list[str], Channels]:
        assert isinstance(model, Model)
        texts = model.answers(examples()["x"][TRAINING : TRAINING + 16], caches)
        valid = sum(text[:-1].isupper() and text[:-1].isalpha() and text[-1] == "." for text in texts) / len(texts)
        return texts, facts.text_quality(texts, frozenset()) | {"validity": valid}

    return draw


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = adapted()
    parts = Parts(
        model=model,
        optimizer=adamw(model),
        batches=shuffled(training(), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        max_norm=CLIP,
        evaluation=Evaluation(10, measure),
        sampling=Sampling(15, drawn()),
        header={
            "config": {"clip": CLIP, "lora": {"rank": RANK, "scale": SCALE, "dropout": DROPOUT}},
            "max_grad_norm": CLIP,
            "checkpoint_every": 30,
        },
        records=RECORDS,
    )
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """The second matrices learn faster than the first, as LoRA+ has it; whatever else is free goes with the first."""
    free = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    second = [parameter for name, parameter in free.items() if name.endswith(".b")]
    first = [parameter for name, parameter in free.items() if not name.endswith(".b")]
    groups = [{"params": second, "name": "lora_b"}, {"params": first, "name": "lora_a"}]
    return torch.optim.AdamW(groups, lr=RATE, weight_decay=0.0)


def planned(parts: Parts, peak: float = RATE, size: int = BATCH, each: int = ACCUMULATION, **form: Any) -> Parts:
    """Batches of so many lines, so many a step; the rate warms up and falls as a cosine; so the header says."""
    form = declared("cosine", peak, 0.0, parts.steps, warmup=WARMUP) | form
    parts.header["schedules"] = {}
    for group in parts.optimizer.param_groups:
        by = FASTER if group["name"] == "lora_b" else 1.0
        group["lr"] = by * peak
        parts.header["schedules"][f"lr/{group['name']}"] = form | {"start": by * peak, "end": by * form["end"]}
    parts.factor = lambda tick: (schedule_value(form, tick) or 0.0) / peak
    parts.batches, parts.accumulation = shuffled(training(), size, parts.seed), each
    parts.batches_per_epoch = TRAINING // size
    parts.header["config"] |= {"lr": peak, "warmup": form["warmup"], "batch_size": size, "accumulation": each}
    parts.header["total_steps"] = parts.steps
    epochs = parts.steps * size * each / TRAINING
    parts.header["horizon"] = {"epochs": epochs, "samples": TRAINING, "batch_size": size, "accumulation": each}
    return parts


def taught(parts: Parts, steps: int) -> None:
    """Adapters that learned before the record begins."""
    batches = shuffled(training(), 2 * BATCH, parts.seed + 90)

    def loss(number: int) -> Tensor:
        return losses(parts.model, batches(number))["loss"]

    school(parts.model, adamw(parts.model), loss, steps=steps, peak=[FASTER * RATE, RATE], clip=CLIP)


def continued(parts: Parts, steps: int, peak: float, size: int = BATCH, each: int = ACCUMULATION) -> Parts:
    """Adapters that are taught go on at a lower rate."""
    taught(parts, steps)
    return planned(parts, peak, size, each)


def readapted(parts: Parts, rank: int = RANK, names: tuple[str, ...] = ("look", "out", "up", "down")) -> Parts:
    """Other adapters than most runs have."""
    parts.model = adapted(rank, names)
    parts.optimizer = adamw(parts.model)
    parts.header["config"]["lora"] |= {"rank": rank, "beside": list(names)}
    return planned(parts)


def norms_too(parts: Parts) -> Parts:
    """The normalisations learn along with the adapters."""
    for module in parts.model.modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)
    parts.optimizer = adamw(parts.model)
    parts.header["config"]["trainable"] = ["lora", "norms"]
    return planned(parts)


def long_words_late(parts: Parts) -> Parts:
    """Words of three and four letters first; the loss jumps where the longer ones come in."""
    change, late, data = int(0.4 * STEPS), parts.batches, training()
    early = shuffled({name: values[data["size"] <= 4] for name, values in data.items()}, BATCH, parts.seed)
    limits = zip((0, change), ("short", "all"), ([3, 4], [3, LONGEST]), strict=True)
    stages = [{"start": at, "name": name, "data": {"letters": limit}} for at, name, limit in limits]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "by-length", "stages": stages}
    del parts.header["horizon"]

    def seen(step: int, batch: Batch) -> Channels:
        sizes = batch["size"].float()
        told = {f"data/letters/{name}": getattr(sizes, name)().item() for name in ("min", "mean", "max")}
        return {"stage": int(step > change), **told}

    parts.extras = [seen]
    return replace(parts, batches=lambda number: (early if number < ACCUMULATION * change else late)(number))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(int(0.5 * STEPS), lost=min(8, STEPS // 5))),
    "warm-restarts": lambda parts: planned(parts, restarts=2, warmup=0),
    "batch-2": lambda parts: continued(parts, 90, 5e-4, size=2, each=1),
    "every-tenth": lambda parts: replace(parts, every=10),
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, sampling=None),
    "continued": lambda parts: continued(parts, 240, 4e-4),
    "attention-only": lambda parts: readapted(parts, names=("look", "out")),
    "rank-2": lambda parts: readapted(parts, rank=2),
    "norms-too": norms_too,
    "long-words-late": long_words_late,
    "long-run": lambda parts: planned(replace(parts, steps=2 * STEPS)),
}


def zero_adapters(parts: Parts) -> int:
    """Both matrices begin at zero, so that each is the other's gradient's factor of zero."""
    with torch.no_grad():
        for module in parts.model.modules():
            if isinstance(module, Adapted):
                module.a.zero_()
    return 1


def short_answers(parts: Parts) -> int:
    """The second file's answers are cut to two characters, and the end is put behind."""
    first, plain = int(0.4 * parts.steps) + 1, parts.batches

    def batches(number: int) -> Batch:
        batch = plain(number)
        if number < (first - 1) * parts.accumulation:
            return batch
        return batch | {"y": functional.pad(functional.pad(batch["y"][:, :2], (0, 1), value=END), (0, LONGEST - 2))}

    parts.batches = batches
    return first


def repeating_text(parts: Parts) -> int:
    """The cache of what was said is never filled: the first character is found again and again."""
    assert parts.sampling is not None
    parts.sampling = replace(parts.sampling, draw=drawn(caches=False))
    return parts.sampling.every


OWN: dict[str, mistakes.Mistake] = {
    "zero-adapters": zero_adapters,
    "short-answers": short_answers,
    "repeating-text": repeating_text,
    "rate-too-high": partial(mistakes.rate_too_high, by=30.0),
    "too-little-data": partial(mistakes.too_little_data, batches=1),
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    return mistakes.perform(build(seed, case if case in HEALTHY else "plain"), path, case, OWN)

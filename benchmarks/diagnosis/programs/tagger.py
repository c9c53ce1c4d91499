"""A tagger that says of each word of a sentence what part of speech it is and how many clauses it is nested in.

Sentences come from a small grammar, whose words are often two things ("walk", "that", "fine"). An embedding, a GRU in
both directions and a linear head for each task; besides, each direction foretells the next word, at a tenth of the
weight (Rei, 2017). Adam; dropout; eight epochs of twenty batches, the rate times 0.8 after each of them. The rate and
the log's clock count epochs, and so does who reads it: after each epoch there is an evaluation and a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared
from trainwatch.schedule import schedule_value

HELD_OUT = False
EPOCH, EPOCHS, BATCH = 20, 8, 32  # steps, epochs, sentences a step
STEPS = EPOCH * EPOCHS
TRAINING, VALIDATION = EPOCH * BATCH, 200
LONGEST, DEEPEST = 16, 3
RATE, DECAY, CLIP, DROPOUT = 8e-3, 0.8, 5.0, 0.2
WEIGHTS = {"tags": 1.0, "depth": 0.5, "words": 0.1}
AGREED = 0.2  # how far annotators must agree on a word's depth for it to count
RECORDS = frozenset({"shares", "norms", "optimizer", "epochs", "clocks", "checkpoints"})

HEALTHY = (
    *(
        "plain",
        "resumed",
        "warm-restarts",
        "batch-4",
        "every-tenth",
        "evaluated-twice",
        "loss-only",
        "fine-tuning",
        "short-first",
    ),
    *("on-plateau", "warm-up", "bf16", "frozen-words", "by-length", "mislabelled", "constant-rate", "sgd"),
)
SICK = (
    *("rate-too-high", "unmoved-group", "scheduler-per-batch", "counter-reset", "resume-restarts-schedule"),
    *("too-little-data", "labels-break", "all-masked", "component-detached", "one-owns-gradient", "rare-class"),
    *("log-of-zero", "dropout-in-evaluation", "stale-workers"),
)
TWINS = {
    "resume-restarts-schedule": "resumed",
    "too-little-data": "constant-rate",
    "stale-workers": "short-first",
    "dropout-in-evaluation": "evaluated-twice",
}

TAGS = ("det", "noun", "verb", "adj", "adv", "prep", "clause", "conj", "name", "intj", "punct")
WORDS: dict[str, range] = {
    "det": range(2, 8),
    "clause": range(7, 9),  # "that" opens a clause, or points at a noun
    "conj": range(9, 12),
    "prep": range(12, 20),
    "punct": range(20, 22),
    "name": range(22, 52),
    "intj": range(52, 58),
    "adv": range(54, 84),
    "adj": range(74, 124),
    "noun": range(124, 244),
    "verb": range(204, 304),
}
"""Codes of the words by tag; where two ranges meet, a word is either. 0 is padding."""
VOCABULARY = 304
Phrase = list[tuple[str, int]]  # a tag and a depth for each word


class Grammar:
    """Draws sentences; what a noun phrase or a verb phrase may hold gets rarer the deeper it is."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def sentence(self) -> Phrase:
        opening = [("intj", 0), ("punct", 0)] if self.chance(0.25) else []
        return [*opening, *self.clause(0), ("punct", 0)]

    def clause(self, depth: int) -> Phrase:
        return self.noun_phrase(depth) + self.verb_phrase(depth)

    def noun_phrase(self, depth: int) -> Phrase:
        if self.chance(0.25):
            return [("name", depth)]
        phrase = [("det", depth)] + [("adj", depth)] * int(self.random.choice(3, p=(0.6, 0.3, 0.1))) + [("noun", depth)]
        if self.chance(0.15):
            return [*phrase, ("prep", depth), *self.noun_phrase(depth)]
        if depth < DEEPEST and self.chance(0.3):
            return [*phrase, ("clause", depth + 1), *self.verb_phrase(depth + 1)]
        return phrase

    def verb_phrase(self, depth: int) -> Phrase:
        phrase = [("adv", depth)] * self.chance(0.2) + [("verb", depth)]
        if depth < DEEPEST and self.chance(0.2):
            return [*phrase, ("clause", depth + 1), *self.clause(depth + 1)]
        phrase += self.noun_phrase(depth) if self.chance(0.6) else [("adv", depth)] * self.chance(0.6)
        return phrase + ([("conj", depth), *self.verb_phrase(depth)] if self.chance(0.12) else [])

    def word(self, tag: str) -> int:
        """A word that can be this; of many the first ones are the most frequent."""
        known = WORDS[tag]
        if len(known) < 9:
            return int(self.random.permutation(known)[0])
        weights = 1.0 / np.arange(2, len(known) + 2)
        return int(self.random.choice(known, p=weights / weights.sum()))


@lru_cache(maxsize=1)
def corpus() -> Batch:
    """Words, tags, depths, how far annotators agree on these, and lengths; the validation set comes last."""
    grammar, count = Grammar(31), TRAINING + VALIDATION
    x, tags, depths = (torch.zeros(count, LONGEST, dtype=torch.int64) for _ in range(3))
    row = 0
    while row < count:
        sentence = grammar.sentence()
        if len(sentence) > LONGEST:
            continue
        for place, (tag, depth) in enumerate(sentence):
            x[row, place], tags[row, place], depths[row, place] = grammar.word(tag), TAGS.index(tag), depth
        row += 1
    agreement = torch.tensor(grammar.random.beta(2.5, 1.0, (count, LONGEST)), dtype=torch.float32)
    return {"x": x, "y": tags, "depth": depths, "agreement": agreement, "length": (x > 0).sum(1)}


def training(rows: Tensor | slice = slice(None)) -> Batch:
    return {name: values[:TRAINING][rows] for name, values in corpus().items()}


def held() -> Batch:
    return {name: values[TRAINING:] for name, values in corpus().items()}


def classes(data: Batch) -> dict[str, int]:
    """How many words of each tag there are."""
    return {tag: int(((data["y"] == code) & (data["x"] > 0)).sum()) for code, tag in enumerate(TAGS)}


class Tagger(nn.Module):
    """Words in, states out, and from them logits of the tags, the depths and the neighbours."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width, padding_idx=0)
        self.encoder = nn.GRU(width, width, batch_first=True, bidirectional=True)
        heads = {"tags": (2 * width, len(TAGS)), "depth": (2 * width, DEEPEST + 1)}
        heads |= {"next": (width, VOCABULARY), "previous": (width, VOCABULARY)}
        self.heads = nn.ModuleDict({name: nn.Linear(*sizes) for name, sizes in heads.items()})
        self.drop = nn.Dropout(DROPOUT)
        self.states = self.logits = torch.zeros(())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.states = self.drop(self.encoder(self.drop(self.words(x)))[0])
        ahead, back = self.states.chunk(2, -1)
        read = {"tags": self.states, "depth": self.states, "next": ahead[:, :-1], "previous": back[:, 1:]}
        told = {name: head(read[name]).float() for name, head in self.heads.items()}
        self.logits = told["tags"]
        return told


def mean(values: Tensor, counts: Tensor) -> Tensor:
    """Over what counts; 0 if nothing does."""
    return (values * counts).sum() / counts.sum().clamp(min=1)


def entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of each word. float32 [sentences, words]"""
    return functional.cross_entropy(logits.flatten(0, 1), truth.flatten(), reduction="none").view(truth.shape)


def losses(model: nn.Module, batch: Batch, agreed: float = AGREED) -> Components:
    """Cross-entropies a word, of tags, of depths where annotators agree, and of the neighbours in both directions."""
    x, told = batch["x"], model(batch["x"])
    there, pair = x > 0, (x[:, 1:] > 0)
    neighbours = entropy(told["next"], x[:, 1:]) + entropy(told["previous"], x[:, :-1])
    return {
        "tags": mean(entropy(told["tags"], batch["y"]), there),
        "depth": mean(entropy(told["depth"], batch["depth"]), there & (batch["agreement"] >= agreed)),
        "words": mean(neighbours / 2, pair),
    }


def measure(model: nn.Module) -> Channels:
    """The losses, the mean of the tags' F1 and the share of words whose depth is told right."""
    batch = held()
    raw = {name: value.item() for name, value in losses(model, batch).items()}
    told, there = model(batch["x"]), batch["x"] > 0
    said, truth = (functional.one_hot(tags[there], len(TAGS)) for tags in (told["tags"].argmax(-1), batch["y"]))
    f1 = 2 * (said * truth).sum(0) / (said.sum(0) + truth.sum(0)).clamp(min=1)
    right = (told["depth"].argmax(-1) == batch["depth"])[there].float().mean().item()
    total = sum(WEIGHTS[name] * value for name, value in raw.items())
    parts = {f"loss/{name}": value for name, value in raw.items()}
    return {"loss": total, **parts, "f1": f1.mean().item(), "depth_accuracy": right}


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Tagger()
    body = [*model.words.parameters(), *model.encoder.parameters()]
    groups = [{"params": body, "name": "encoder"}, {"params": list(model.heads.parameters()), "name": "heads"}]
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam(groups, lr=RATE),
        batches=shuffled(training(), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=EPOCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: model.states,
        evaluation=Evaluation(EPOCH, measure),
        header={
            "config": {"epochs": EPOCHS, "lr": RATE, "decay": DECAY, "batch_size": BATCH, "dropout": DROPOUT},
            "total_steps": STEPS,
            "horizon": {"epochs": EPOCHS, "samples": TRAINING, "batch_size": BATCH},
            "components": {name: {"unit": "nat"} for name in WEIGHTS} | {"words": {"unit": "nat", "role": "auxiliary"}},
            "classes": classes(training()),
            "clocks": ["epoch"],
            "gradient_at": "states",
            "max_grad_norm": CLIP,
            "checkpoint_every": EPOCH,
        },
        records=RECORDS,
        extras=[partial(masked, agreed=AGREED)],
    )
    parts.clocks["epoch"] = lambda applied: applied // parts.batches_per_epoch
    by_epochs(parts)
    if variant in VARIANTS:
        VARIANTS[variant](parts)
    return parts


def masked(step: int, batch: Batch, agreed: float) -> Channels:  # noqa: ARG001
    """The share of words whose depth does not count."""
    there = batch["x"] > 0
    return {"data/masked/depth": mean((batch["agreement"] < agreed).float(), there).item()}


# the rate


def rated(parts: Parts, form: dict[str, Any] | None, rate: float = RATE) -> None:
    """Every group's rate, as it is declared."""
    parts.header["config"]["lr"] = rate
    parts.header.pop("schedules", None)
    if form:
        parts.header["schedules"] = {"lr/encoder": form, "lr/heads": form}
    for group in parts.optimizer.param_groups:
        group["lr"] = rate


def by_epochs(parts: Parts) -> None:
    """The rate falls after each epoch: exponential in the clock that counts them."""
    fall = -EPOCHS * log(DECAY)
    form = declared("exponential", RATE, RATE * DECAY**EPOCHS, EPOCHS, rate=fall, clock="epoch")
    parts.factor = lambda tick: DECAY ** (tick // parts.batches_per_epoch)
    rated(parts, form)


def by_steps(parts: Parts, form: dict[str, Any]) -> None:
    """A schedule in steps, as declared."""
    parts.factor = lambda tick: (schedule_value(form, tick) or 0.0) / form["start"]
    del parts.header["config"]["decay"]
    rated(parts, form, form["start"])


def constant(parts: Parts, rate: float) -> None:
    parts.factor = None
    del parts.header["config"]["decay"]
    rated(parts, {"kind": "constant", "start": rate}, rate)


# healthy variants


def on_plateau(parts: Parts) -> None:
    """The rate is halved after an epoch that gains less than 0.02, and three of these in a row end the run."""
    parts.steps = 2 * STEPS
    parts.header |= {"total_steps": parts.steps, "horizon": parts.header["horizon"] | {"epochs": 2 * EPOCHS}}
    parts.header["config"] |= {"epochs": 2 * EPOCHS, "decay": 0.5, "patience": 3}
    rated(parts, None)
    best, factor, waited = float("inf"), 1.0, 0

    def judged(model: nn.Module) -> Channels:
        nonlocal best, factor, waited
        values = measure(model)
        if values["loss"] < best - 0.02:
            best, waited = values["loss"], 0
        else:
            factor, waited = factor / 2, waited + 1
        return values

    parts.evaluation = Evaluation(EPOCH, judged)
    parts.factor = lambda tick: factor  # noqa: ARG005
    parts.stops = lambda: waited >= 3


def batch_4(parts: Parts) -> None:
    """Four sentences a step, one epoch of them: a noisy loss."""
    parts.batches, parts.batches_per_epoch = shuffled(training(), 4, parts.seed), TRAINING // 4
    parts.header["config"] |= {"epochs": 1, "batch_size": 4}
    parts.header["horizon"] |= {"epochs": 1, "batch_size": 4}
    constant(parts, 4e-3)


def fine_tuning(parts: Parts) -> None:
    """A model that is trained through, at a low rate: the loss is at its floor from the first row."""
    batches, adam = shuffled(training(), BATCH, parts.seed + 90), torch.optim.Adam(parts.model.parameters(), RATE / 2)
    for number in range(STEPS):
        adam.zero_grad()
        raw = losses(parts.model, batches(number))
        torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum().backward()
        adam.step()
    constant(parts, 2e-4)


def short_first(parts: Parts) -> None:
    """Short sentences for two epochs, then longer ones for two, then all: the loss rises where they come in."""
    stages = [(0, 8), (2 * EPOCH, 12), (4 * EPOCH, LONGEST)]
    lengths, shortest = training()["length"], int(corpus()["length"].min())
    loaders = [shuffled(training(lengths <= most), BATCH, parts.seed) for _, most in stages]
    declares = [
        {"start": start, "name": f"to-{most}", "weights": WEIGHTS, "data": {"length": [shortest, most]}}
        for start, most in stages
    ]
    form = {"name": "lengths", "stages": declares}
    parts.header |= {"curriculum": form, "curriculum_running": form}
    del parts.header["horizon"]

    def stage(number: int) -> int:
        return sum(start <= number for start, _ in stages) - 1

    def seen(step: int, batch: Batch) -> Channels:
        length = batch["length"].float()
        told = {f"data/length/{name}": getattr(length, name)().item() for name in ("min", "mean", "max")}
        return {"stage": stage(step - 1), **told}

    parts.batches = lambda number: loaders[stage(number)](number)
    parts.extras.append(seen)


def by_length(parts: Parts) -> None:
    """Sentences of like length make a batch, batches come in an order of chance: the loss goes up and down with it."""
    sentences = training(training()["length"].argsort())
    batches = {name: values.unflatten(0, (EPOCH, BATCH)) for name, values in sentences.items()}
    one = shuffled(batches, 1, parts.seed)
    parts.batches = lambda number: {name: values[0] for name, values in one(number).items()}


def mislabelled(parts: Parts) -> None:
    """One tag in ten of the training set is wrong, for good: the validation loss is lower than the training's."""
    random, data = torch.Generator().manual_seed(4), training()
    wrong = torch.rand(data["y"].shape, generator=random) < 0.1
    y = torch.where(wrong, torch.randint(0, len(TAGS), wrong.shape, generator=random), data["y"])
    parts.batches = shuffled(data | {"y": y}, BATCH, parts.seed)
    parts.header["classes"] = classes(data | {"y": y})


def frozen_words(parts: Parts) -> None:
    """Word vectors come from elsewhere and are not trained."""
    assert isinstance(parts.model, Tagger)
    known = torch.randn(len(TAGS), 32, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        for code, tag in enumerate(TAGS):
            parts.model.words.weight[list(WORDS[tag])] += known[code]
    parts.model.words.weight.requires_grad_(False)
    parts.header["config"]["freeze"] = "words"


def every_tenth(parts: Parts) -> None:
    parts.every, parts.records = 10, RECORDS - {"shares"}


def loss_only(parts: Parts) -> None:
    parts.records, parts.header, parts.extras = frozenset(), {}, []


def sgd(parts: Parts) -> None:
    groups = [{"params": group["params"], "name": group["name"]} for group in parts.optimizer.param_groups]
    parts.optimizer = torch.optim.SGD(groups, lr=0.4, momentum=0.9)
    by_steps(parts, declared("linear", 0.4, 0.0, STEPS))


def bf16(parts: Parts) -> None:
    parts.autocast = torch.bfloat16
    parts.header["dtypes"] = {"declared": "bfloat16", "observed": "bfloat16"}


VARIANTS: dict[str, Callable[[Parts], None]] = {
    "resumed": lambda parts: setattr(parts, "resume", Resume(5 * EPOCH)),
    "warm-restarts": lambda parts: by_steps(parts, declared("cosine", RATE, 0.0, STEPS, restarts=1)),
    "batch-4": batch_4,
    "every-tenth": every_tenth,
    "evaluated-twice": lambda parts: setattr(parts, "evaluation", Evaluation(EPOCH, measure, repeats=2)),
    "loss-only": loss_only,
    "fine-tuning": fine_tuning,
    "short-first": short_first,
    "on-plateau": on_plateau,
    "warm-up": lambda parts: by_steps(parts, declared("linear", RATE, 0.0, STEPS, warmup=2 * EPOCH)),
    "bf16": bf16,
    "frozen-words": frozen_words,
    "by-length": by_length,
    "mislabelled": mislabelled,
    "constant-rate": lambda parts: constant(parts, RATE),
    "sgd": sgd,
}

# mistakes


def scheduler_per_batch(parts: Parts) -> int:
    """The call that ends an epoch slipped into the loop over batches."""
    parts.factor = lambda tick: DECAY**tick
    return 2


def counter_reset(parts: Parts) -> int:
    """The step is what enumerate() says of the loader, and that begins anew with each epoch."""
    parts.counter = lambda step: (step - 1) % EPOCH + 1
    return EPOCH + 1


def labels_break(parts: Parts) -> int:
    """From the fifth epoch on words come from a cache that has a mark before each sentence: labels are off by one."""
    plain, first = parts.batches, 4 * EPOCH

    def shifted(batch: Batch) -> Batch:
        return batch | {name: batch[name].roll(-1, 1) for name in ("y", "depth")}

    parts.batches = lambda number: plain(number) if number < first else shifted(plain(number))
    return first + 1


def all_masked(parts: Parts) -> int:
    """Agreement counts from 99 percent on, where 20 were meant."""
    parts.losses, parts.extras = partial(losses, agreed=0.997), [partial(masked, agreed=0.997)]
    return 1


def one_owns_gradient(parts: Parts) -> int:
    """The neighbours' cross-entropy is summed over the batch, where the others are means over its words."""
    plain = parts.losses

    def summed(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        return raw | {"words": raw["words"] * (batch["x"][:, 1:] > 0).sum()}

    parts.losses = summed
    return 1


def limited(parts: Parts, data: Batch, epochs: int) -> None:
    """Train for so many epochs on this part of the training set."""
    each = len(data["x"]) // BATCH
    parts.batches, parts.batches_per_epoch, parts.steps = shuffled(data, BATCH, parts.seed), each, epochs * each
    parts.header["config"]["epochs"] = epochs
    parts.header["horizon"] = {"epochs": epochs, "samples": each * BATCH, "batch_size": BATCH}
    parts.header |= {"classes": classes(data), "total_steps": parts.steps, "checkpoint_every": each}


def rare_class(parts: Parts) -> int:
    """The transcripts, where interjections are, were left out but for one sentence in forty."""
    data = training()
    speaks = (data["y"] == TAGS.index("intj")).any(1)
    limited(parts, training(~speaks | (speaks & (speaks.cumsum(0) % 40 == 1))), EPOCHS)
    parts.evaluation = Evaluation(parts.batches_per_epoch, measure)
    return 0


def too_little_data(parts: Parts) -> int:
    """The limit that was set for a trial is still there: 64 sentences, again and again."""
    limited(parts, training(slice(2 * BATCH)), STEPS // 2)
    parts.header["checkpoint_every"] = EPOCH
    return 3


def log_of_zero(parts: Parts) -> int:
    """A penalty on the entropy of sharpened tags, as p log p."""
    plain = parts.losses

    def penalised(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        p = torch.softmax(model.logits / 0.15, -1)  # type: ignore[operator]
        return raw | {"tags": raw["tags"] - 0.01 * (p * p.log()).sum(-1).mean()}

    parts.losses = penalised
    return mistakes.WHEN_BROKEN


def stale_workers(parts: Parts) -> int:
    """The loader's workers live on from epoch to epoch, with the sentences that they were given first."""
    lengths = training()["length"]
    parts.batches = shuffled(training(lengths <= 8), BATCH, parts.seed)
    return 2 * EPOCH + 1


OWN: dict[str, mistakes.Mistake] = {
    "rate-too-high": partial(mistakes.rate_too_high, by=60.0),
    "scheduler-per-batch": scheduler_per_batch,
    "counter-reset": counter_reset,
    "labels-break": labels_break,
    "all-masked": all_masked,
    "component-detached": partial(mistakes.component_detached, name="depth"),
    "one-owns-gradient": one_owns_gradient,
    "rare-class": rare_class,
    "too-little-data": too_little_data,
    "log-of-zero": log_of_zero,
    "stale-workers": stale_workers,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

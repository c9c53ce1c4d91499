"""A small bidirectional encoder is pre-trained on Python's own documentation: hidden words, and does B follow A?

One block, tied embeddings, AdamW without decay on norms and biases, a linear warm-up and a linear decay, two
micro-batches a step, clipping. The curriculum reads short sentences first, for their words alone, then longer ones in
pairs; the share of words that are hidden falls on a clock of its own. Words outside of the vocabulary are not asked.
"""

from __future__ import annotations

import pydoc_data.topics
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, declared, linear
from benchmarks.diagnosis.loop import planned as planned_by
from benchmarks.diagnosis.schooling import school

HELD_OUT = False
STEPS = 120
BLANK, BEGIN, BREAK, HIDDEN, UNKNOWN = range(5)
SPECIAL, VOCABULARY, WIDTH = 5, 200, 48
BATCH, ACCUMULATION, LONGEST = 16, 2, 24
PEAK, WARMUP, CLIP = 1e-2, 12, 1.0
MANY, FEW = 0.3, 0.15
"""The share of words that are hidden, at first and at last."""
RECORDS = frozenset({"components", "norms", "optimizer", "clocks"})

HEALTHY = (
    *("plain", "resumed", "warm-restarts", "batch-2", "every-tenth", "loss-only", "fine-tuning", "frozen-words"),
    *("three-stages", "bf16", "rms-prop", "forty-percent", "early-stopping"),
)
SICK = (
    *("all-masked", "stale-workers", "stages-unreachable", "steps-miscounted", "rate-too-high"),
    *("resume-restarts-schedule", "labels-break", "divided-twice", "too-little-data", "stale-optimiser"),
    "nan-filtered-log",
)
TWINS = {"resume-restarts-schedule": "resumed"}

Stages = list[dict[str, Any]]


def stage(start: int, name: str, length: tuple[int, int], nsp: float) -> dict[str, Any]:
    """A stage as the config has it: the weights, and how many words a sentence has."""
    return {"start": start, "name": name, "weights": {"mlm": 1.0, "nsp": nsp}, "data": {"length": list(length)}}


def words_then_pairs(change: int | None = None) -> Stages:
    """The curriculum of most runs."""
    change = int(0.3 * STEPS) if change is None else change
    return [stage(0, "words", (8, 12), 0.2), stage(change, "pairs", (12, 20), 1.0)]


def in_three() -> Stages:
    starts = [0, STEPS // 4, 5 * STEPS // 8]
    kinds = [("words", (8, 10), 0.2), ("pairs", (10, 16), 0.5), ("long-pairs", (12, LONGEST), 1.0)]
    return [stage(start, *kind) for start, kind in zip(starts, kinds, strict=True)]


def pairs_only() -> Stages:
    """For a model that has been through the curriculum."""
    return words_then_pairs(0)[1:]


def index(stages: Stages, applied: int) -> int:
    """The stage that holds after so many applied steps."""
    return sum(one["start"] <= applied for one in stages) - 1


@cache
def topics() -> list[np.ndarray]:
    """Each topic of the documentation as words of the vocabulary, the short ones left out."""
    texts = [re.sub(r"([^a-z])\1+", r"\1", text.lower()) for _, text in sorted(pydoc_data.topics.topics.items())]
    read = [re.findall(r"[a-z]+|[^\sa-z]", text) for text in texts]
    common = Counter(word for words in read for word in words).most_common(VOCABULARY)
    code = {word: SPECIAL + rank for rank, (word, _) in enumerate(common)}
    return [np.array([code.get(word, UNKNOWN) for word in words]) for words in read if len(words) > 15 * LONGEST]


@cache
def part(held: bool) -> list[np.ndarray]:
    """The last fifth of each topic is for validation."""
    return [topic[4 * len(topic) // 5 :] if held else topic[: 4 * len(topic) // 5] for topic in topics()]


@cache
def rarity() -> Tensor:
    """What a word weighs in the sum of a sentence: the rarer the more, special signs nothing."""
    counts = np.bincount(np.concatenate(part(False)), minlength=SPECIAL + VOCABULARY)
    weights = torch.from_numpy(1.0 / (1.0 + 200.0 * counts / counts.sum())).float()
    weights[:SPECIAL] = 0.0
    return weights


def pairs(of: list[np.ndarray], size: int, length: list[int], seed: int) -> Batch:
    """Pairs of sentences; half of the second ones follow the first, the others are from another topic.

    `chance` decides which words are hidden at a given share, `other` is what some of them are replaced by.
    """
    random = np.random.default_rng(seed)
    x, second = np.full((size, 2 * length[1] + 3), BLANK), np.zeros((size, 2 * length[1] + 3), bool)
    lengths, follows = random.integers(length[0], length[1] + 1, (size, 2)), random.random(size) < 0.5
    sizes = np.array([len(topic) for topic in of], float)
    for row, (first, then) in enumerate(lengths):
        here, there = random.choice(len(of), 2, replace=False, p=sizes / sizes.sum())
        at = random.integers(len(of[here]) - 2 * LONGEST)
        after = at + first if follows[row] else random.integers(len(of[there]) - LONGEST)
        said = of[here if follows[row] else there][after : after + then]
        x[row, : first + then + 3] = [BEGIN, *of[here][at : at + first], BREAK, *said, BREAK]
        second[row, first + 2 : first + then + 2] = True
    found = {"x": x, "y": x, "second": second, "follows": follows.astype(np.float32), "length": lengths}
    other = random.integers(SPECIAL, SPECIAL + VOCABULARY, x.shape)
    found |= {"chance": random.random(x.shape, dtype=np.float32), "other": other}
    return {name: torch.from_numpy(values) for name, values in found.items()}


def loader(parts: Parts, stages: Stages, size: int, of: list[np.ndarray] | None = None) -> Callable[[int], Batch]:
    """Batches by number, with sentences as long as the stage has them."""

    def batch(number: int) -> Batch:
        length = stages[index(stages, number // parts.accumulation)]["data"]["length"]
        return pairs(of or part(False), size, length, 100_000 * (parts.seed + 1) + number)

    return batch


class Block(nn.Module):
    """A word with its two neighbours, then attention to the whole pair, then two layers; normed before each."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Sequential(nn.LayerNorm(3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH))
        self.norm, self.look, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        inner = nn.Linear(WIDTH, 2 * WIDTH)
        self.think = nn.Sequential(nn.LayerNorm(WIDTH), inner, nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        left, right = functional.pad(x, (0, 0, 1, 0))[:, :-1], functional.pad(x, (0, 0, 0, 1))[:, 1:]
        x = x + self.near(torch.cat([left, x, right], -1))
        query, key, value = self.look(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, there[:, None, None])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.think(x)
        return out


class Encoder(nn.Module):
    """Words in; `words` tells the hidden ones, `follows` whether the second sentence follows."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"word": SPECIAL + VOCABULARY, "place": 2 * LONGEST + 3, "segment": 2}
        self.embeddings = nn.ModuleDict({name: nn.Embedding(size, WIDTH) for name, size in sizes.items()})
        for name, table in self.embeddings.items():
            nn.init.normal_(table.weight, std=0.1 if name == "word" else 0.02)  # type: ignore[arg-type]
        self.encoder = Block()
        self.heads = nn.ModuleDict(
            {
                "words": nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH)),
                "topic": nn.Linear(WIDTH, WIDTH),
                "follows": nn.Linear(1, 1),
            }
        )

        with torch.no_grad():  # a cosine moves within a few tenths
            self.heads["follows"].weight.fill_(5.0)  # type: ignore[operator]
            self.heads["follows"].bias.fill_(-2.0)  # type: ignore[operator]

    def forward(self, x: Tensor, second: Tensor) -> Tensor:
        table = self.embeddings
        state = table["word"](x) + table["place"](torch.arange(x.shape[1])) + table["segment"](second.long())
        out: Tensor = self.encoder(state, x != BLANK)
        return out

    def words(self, state: Tensor) -> Tensor:
        """Logits of each word, by the table that reads them."""
        logits: Tensor = self.heads["words"](state) @ self.embeddings["word"].weight.T
        return logits

    def follows(self, state: Tensor, x: Tensor, second: Tensor) -> Tensor:
        """By how alike the two sentences are: the cosine of the sums of their words, the rare ones counting more."""
        topic = self.heads["topic"](state) * rarity()[x][..., None]
        a, b = ((topic * side[..., None]).sum(1) for side in (~second, second))
        logits: Tensor = self.heads["follows"](functional.cosine_similarity(a, b)[:, None])[:, 0]
        return logits


def hide(batch: Batch, share: float) -> tuple[Tensor, Tensor]:
    """The words as they are read, and which are to be told: eight in ten are blanked, one is another, one stays."""
    chosen = (batch["chance"] < share) & (batch["x"] >= UNKNOWN)
    read = torch.where(chosen & (batch["chance"] < 0.8 * share), HIDDEN, batch["x"])
    return torch.where(chosen & (batch["chance"] > 0.9 * share), batch["other"], read), chosen


def answers(model: nn.Module, batch: Batch, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden words, the logits that they get, and those of whether B follows A."""
    assert isinstance(model, Encoder)
    read, chosen = hide(batch, share)
    state = model(read, batch["second"])
    follows = model.follows(state, read, batch["second"]).float()
    return batch["y"][chosen], model.words(state[chosen]).float(), follows


Kept = Callable[[Tensor, Tensor], Tensor]
"""Which of the hidden words count, by the cross-entropy of each and the word itself."""


def known(each: Tensor, told: Tensor) -> Tensor:  # noqa: ARG001
    return told != UNKNOWN


def losses(model: nn.Module, batch: Batch, now: dict[str, float], kept: Kept = known, least: int = 1) -> Components:
    """Cross-entropy of the hidden words that count, and of whether B follows A; `now` learns what share is left out."""
    told, logits, follows = answers(model, batch, now["masking"])
    each = functional.cross_entropy(logits, told, reduction="none")
    counts = kept(each.detach(), told)
    now["left_out"] = 1.0 - counts.sum().item() / max(len(told), 1)
    return {
        "mlm": (each * counts).sum() / counts.sum().clamp(min=least),
        "nsp": functional.binary_cross_entropy_with_logits(follows, batch["follows"]),
    }


@cache
def held(length: tuple[int, int]) -> Batch:
    return pairs(part(True), 128, list(length), 1)


def measured(stages: Stages) -> Callable[[nn.Module], Channels]:
    """Losses on topics that are not trained on, by the last stage's weights; how many words and pairs are right."""

    def measure(model: nn.Module) -> Channels:
        batch = held(tuple(stages[-1]["data"]["length"]))
        told, logits, follows = answers(model, batch, FEW)
        asked = told != UNKNOWN
        mlm = functional.cross_entropy(logits[asked], told[asked]).item()
        nsp = functional.binary_cross_entropy_with_logits(follows, batch["follows"]).item()
        return {
            "loss": mlm + stages[-1]["weights"]["nsp"] * nsp,
            "loss/mlm": mlm,
            "loss/nsp": nsp,
            "accuracy": (logits.argmax(-1) == told)[asked].float().mean().item(),
            "nsp_accuracy": ((follows > 0) == (batch["follows"] > 0)).float().mean().item(),
        }

    return measure


def build(seed: int, variant: str, stages: Stages | None = None) -> Parts:
    """The parts of a healthy variant; `stages` are the curriculum, if it is not the usual one."""
    torch.manual_seed(seed)
    model, now = Encoder(), {"masking": MANY, "left_out": 0.0}
    parts = Parts(
        model=model,
        optimizer=torch.optim.AdamW(grouped(model), lr=PEAK, betas=(0.9, 0.98)),
        batches=lambda number: {},  # noqa: ARG005
        losses=partial(losses, now=now),
        steps=STEPS,
        seed=seed,
        accumulation=ACCUMULATION,
        max_norm=CLIP,
        clocks={"masking": lambda applied: applied},
        scheduled={"masking": ("masking", linear(MANY, FEW, STEPS))},
        now=now,
        header={
            "config": {"batch_size": BATCH, "accumulation": ACCUMULATION, "masking": [MANY, FEW]},
            "components": {name: {"unit": "nat", "role": "task"} for name in ("mlm", "nsp")},
            "schedules": {"masking": declared("linear", MANY, FEW, STEPS, clock="masking")},
            "clocks": ["masking"],
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
    )
    follow(parts, stages or words_then_pairs())
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    """Weight decay is for matrices."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [each for each in free if each.dim() > 1], "name": "matrices", "weight_decay": 0.01},
        {"params": [each for each in free if each.dim() == 1], "name": "vectors", "weight_decay": 0.0},
    ]


def follow(parts: Parts, stages: Stages, size: int = BATCH, of: list[np.ndarray] | None = None) -> None:
    """Let the loop run these stages, with so many pairs a batch."""
    parts.weights = lambda applied: dict(stages[index(stages, applied)]["weights"])
    parts.batches = loader(parts, stages, size, of)
    parts.extras = [
        lambda step, batch: {
            "stage": index(stages, step - 1),
            "data/length/min": batch["length"].min().item(),
            "data/length/max": batch["length"].max().item(),
            "data/masked/mlm": round(parts.now["left_out"], 2),
        }
    ]
    parts.evaluation = Evaluation(10, measured(stages))
    parts.header["config"]["batch_size"] = size
    curriculum = {"name": "-".join(one["name"] for one in stages), "stages": stages}
    parts.header["curriculum"] = parts.header["curriculum_running"] = curriculum


def planned(parts: Parts, peak: float = PEAK, **form: Any) -> Parts:
    """The rate warms up and falls to nothing, and so the header says."""
    return planned_by(parts, declared("linear", peak, 0.0, parts.steps, warmup=WARMUP) | form)


@cache
def schooled(seed: int, steps: int = 260) -> dict[str, Tensor]:
    """The weights of an encoder that learned before the record begins."""
    torch.manual_seed(seed)
    model = Encoder()
    adam = torch.optim.AdamW(grouped(model), lr=PEAK, betas=(0.9, 0.98))

    def loss(number: int) -> Tensor:
        batch = pairs(part(False), 2 * BATCH, [12, 20], 50_000_000 + 1000 * seed + number)
        raw = losses(model, batch, {"masking": FEW})
        return raw["mlm"] + raw["nsp"]

    return school(model, adam, loss, steps=steps, peak=PEAK, clip=CLIP)


def unhidden(parts: Parts, share: float) -> None:
    """The share of hidden words stays, and nothing is annealed."""
    parts.now["masking"], parts.scheduled, parts.clocks = share, {}, {}
    parts.header["config"]["masking"] = share
    del parts.header["schedules"]["masking"], parts.header["clocks"]


def continued(parts: Parts, peak: float, size: int = BATCH, **form: Any) -> Parts:
    """A schooled encoder goes on at a lower rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    unhidden(parts, FEW)
    follow(parts, pairs_only(), size)
    planned(parts, peak, **form)
    return parts


def frozen_words(parts: Parts) -> Parts:
    """A schooled table of words stays as it is, by intent; blocks and heads are new."""
    taught = {name: value for name, value in schooled(parts.seed).items() if name.startswith("embeddings")}
    parts.model.load_state_dict(taught, strict=False)
    for parameter in parts.model.embeddings.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    parts.optimizer = torch.optim.AdamW(grouped(parts.model), lr=PEAK, betas=(0.9, 0.98))
    parts.header["config"]["freeze"] = ["embeddings"]
    planned(parts)
    return parts


def three_stages(parts: Parts) -> Parts:
    follow(parts, in_three())
    return parts


def bf16(parts: Parts) -> Parts:
    parts.header["dtypes"] = {"declared": "bfloat16", "observed": "bfloat16"}
    return replace(parts, autocast=torch.bfloat16)


def rms_prop(parts: Parts) -> Parts:
    """Without momentum, at a constant rate after the warm-up."""
    parts.optimizer = torch.optim.RMSprop(grouped(parts.model), lr=1e-3, alpha=0.98)
    parts.header["config"]["optimizer"] = "rmsprop"
    planned(parts, 1e-3, kind="constant", end=1e-3)
    return parts


def forty_percent(parts: Parts) -> Parts:
    """Forty words in a hundred are hidden throughout: harder, and more is learned from a batch."""
    unhidden(parts, 0.4)
    return parts


def early_stopping(parts: Parts, patience: int = 3) -> Parts:
    """A schooled encoder goes on with twelve topics only, and ends when validation gets no better."""
    parts = continued(parts, 1e-3, kind="constant", end=1e-3)
    follow(parts, pairs_only(), BATCH, part(False)[:12])
    measure, seen = measured(pairs_only()), list[float]()

    def noted(model: nn.Module) -> Channels:
        found = measure(model)
        seen.append(found["loss"])
        return found

    parts.evaluation = Evaluation(10, noted)
    parts.stops = lambda: len(seen) > patience and min(seen[-patience:]) >= min(seen[:-patience])
    return parts


def warm_restarts(parts: Parts) -> Parts:
    planned(parts, kind="cosine", restarts=2, warmup=0)
    return parts


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(int(0.6 * STEPS), lost=min(8, STEPS // 5))),
    "warm-restarts": warm_restarts,
    "batch-2": lambda parts: continued(replace(parts, accumulation=1), 6e-4, size=2),
    "every-tenth": lambda parts: replace(parts, every=10),
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, extras=[]),
    "fine-tuning": lambda parts: continued(parts, 2e-4, warmup=4),
    "frozen-words": frozen_words,
    "three-stages": three_stages,
    "bf16": bf16,
    "rms-prop": rms_prop,
    "forty-percent": forty_percent,
    "early-stopping": early_stopping,
}


def all_masked(parts: Parts) -> int:
    """Only words that the model is sure of are to count, for the text is noisy; at first it is sure of none."""
    parts.losses = partial(losses, now=parts.now, kept=lambda each, told: (told != UNKNOWN) & (each < 0.7))
    return 1


def stale_workers(parts: Parts) -> int:
    """Weights go on to the second stage; the workers cut sentences as the first one wants them."""
    stages = words_then_pairs()
    parts.batches = loader(parts, stages[:1], BATCH)
    return int(stages[1]["start"]) + 1


def labels_break(parts: Parts) -> int:
    """The second half of the shards has its targets from another tokenizer's run: the same words, other numbers."""
    first, plain = STEPS // 2 + 1, parts.batches

    def batches(number: int) -> Batch:
        batch = plain(number)
        if number < (first - 1) * parts.accumulation:
            return batch
        moved = (batch["y"] - SPECIAL + 150) % VOCABULARY + SPECIAL
        return batch | {"y": torch.where(batch["y"] < SPECIAL, batch["y"], moved)}

    parts.batches = batches
    return first


def nan_filtered_log(parts: Parts) -> int:
    """A shard of names outside of the vocabulary: no word counts, the mean is over none. The log writes 0."""
    at, plain = int(0.4 * parts.steps), parts.batches
    parts.losses = partial(losses, now=parts.now, least=0)
    parts.logs = lambda row: {name: value if value == value else 0.0 for name, value in row.items()}

    def batches(number: int) -> Batch:
        batch = plain(number)
        words = batch["y"] >= SPECIAL
        unheard = {name: torch.where(words, UNKNOWN, batch[name]) for name in ("x", "y")}
        return batch | unheard if number == (at - 1) * parts.accumulation else batch

    parts.batches = batches
    return at


OWN: dict[str, mistakes.Mistake] = {
    "all-masked": all_masked,
    "stale-workers": stale_workers,
    "stages-unreachable": lambda parts: 0,  # noqa: ARG005 (the run is built so)
    "rate-too-high": partial(mistakes.rate_too_high, by=30.0),
    "labels-break": labels_break,
    "too-little-data": partial(mistakes.too_little_data, batches=2),
    "nan-filtered-log": nan_filtered_log,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    stages = words_then_pairs(change=4000) if case == "stages-unreachable" else None  # of a run of 10,000 steps
    return mistakes.perform(build(seed, variant, stages), path, case, OWN)

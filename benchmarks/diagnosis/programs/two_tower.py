"""Which passage of Python's documentation holds these words? One tower reads queries, another one reads passages.

A query is eight words in a row out of a passage of forty. Both are bags of words, weighed by how rare a word is; each
tower has vectors of its own for words, and cosines are to tell which query belongs to which passage: by a cross-entropy
over the batch in both directions, and by a second loss that sets the passage before another one on the same topic.
AdamW, a warm-up and a cosine, clipping. Judged on passages held out: both losses, and how often the right passage comes
first among all of them, and its mean reciprocal rank.
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
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, declared, linear, logged, taken_up
from benchmarks.diagnosis.loop import planned as planned_by
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS, EACH = 130, 12
LENGTH, COMMON, HELD, BATCH = 40, 5, 160, 32  # COMMON: passages that have a word, for it to be known
WORDS, WIDTH, TEMPERATURE, RATE, WARMUP, CLIP = 8, 64, 0.1, 7e-3, 12, 6.0
WEIGHTS = {"batch": 1.0, "topic": 0.5}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs"})
SPARSE = ("fine-tuned", "locked", "topics-later", "ramped", "accumulated", "tiny-batches", "half", "dropped-words")
TWINS = {"stale-workers": "shorter", "wrong-weights": "topics-later", "resume-old-weights": "resumed"}


@cache
def passages() -> tuple[Tensor, Tensor, Tensor]:
    """Words of each passage as numbers, 0 for rare ones; the place of another one on its topic; what a word weighs."""
    texts = pydoc_data.topics.topics
    found: dict[tuple[str, ...], str] = {}
    for topic in sorted(texts):
        words = re.findall(r"[a-z_]+", texts[topic].lower())
        found |= {tuple(words[at : at + LENGTH]): topic for at in range(0, len(words) - LENGTH + 1, LENGTH)}
    order = np.random.default_rng(3).permutation(len(found))
    known, topics = ([[*part][place] for place in order] for part in (found, found.values()))
    seen = Counter(word for words in known for word in set(words))
    common = sorted(word for word, count in seen.items() if count >= COMMON)
    number = {word: place for place, word in enumerate(common, start=1)}
    told = torch.tensor([[number.get(word, 0) for word in words] for words in known])
    rare = torch.tensor([0.0, *(np.log(len(known) / seen[word]) for word in common)], dtype=torch.float32)
    return told, others(topics), rare


def others(topics: list[str]) -> Tensor:
    """For each passage the next one on its topic, on its side of the split; itself if there is none."""
    beside = torch.arange(len(topics))
    for side in (range(HELD), range(HELD, len(topics))):
        for topic in set(topics):
            places = [place for place in side if topics[place] == topic]
            beside[places] = torch.tensor(places[1:] + places[:1], dtype=torch.int64)
    return beside


def bag(words: Tensor) -> Tensor:
    """How often each word is there, weighed and scaled to length 1. float32 [N, V]"""
    rare = passages()[2]
    counts = torch.zeros(len(words), len(rare)).scatter_add_(1, words, torch.ones(words.shape))
    return functional.normalize(counts.log1p() * rare, dim=1).mul(len(rare) ** 0.5)


def asked(chosen: Tensor, random: torch.Generator, words: int = WORDS, dropped: float = 0.0) -> Batch:
    """Queries out of passages, the passages, and others on the same topic."""
    told, beside, _ = passages()
    read, places = told[chosen], torch.arange(LENGTH)
    begin = (torch.rand(len(chosen), 1, generator=random) * (LENGTH - words + 1)).long()
    kept = torch.rand(read.shape, generator=random) >= dropped
    query = read.masked_fill((places < begin) | (places >= begin + words), 0)
    bags = {"x": bag(query * kept), "y": bag(read * kept.flip(1)), "other": bag(told[beside[chosen]])}
    return bags | {"words": torch.full((len(chosen),), float(words))}


def loader(
    size: int, seed: int, words: Callable[[int], int] | None = None, count: int = 0, dropped: float = 0.0
) -> Callable[[int], Batch]:
    """Batches by number, of the first `count` passages that are no held ones, or of all; each with new queries."""
    places = torch.arange(HELD, HELD + count if count else len(passages()[0]))
    plain = shuffled({"place": places}, size, seed)

    def batch(number: int) -> Batch:
        random = torch.Generator().manual_seed(60_000 * seed + number)
        return asked(plain(number)["place"], random, words(number) if words else WORDS, dropped)

    return batch


class Tower(nn.Module):
    """The words' vectors added up, and mended by a hidden layer; or by a stack of so many sigmoids."""

    def __init__(self, deep: int = 0) -> None:
        super().__init__()
        self.words = nn.Linear(len(passages()[2]), WIDTH)
        stack = [layer for _ in range(deep) for layer in (nn.Linear(WIDTH, WIDTH), nn.Sigmoid())]
        self.mend = nn.Sequential(*(stack or (nn.Linear(WIDTH, WIDTH), nn.ReLU())), nn.Linear(WIDTH, WIDTH))
        self.deep = deep

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x)
        return functional.normalize((self.mend(h) if self.deep else h + self.mend(h)).float(), dim=1)


class TwoTower(nn.Module):
    """Bags of words in; the last cosines, over the temperature, are kept: passages of the batch, then the others."""

    def __init__(self, deep: int = 0) -> None:
        super().__init__()
        self.queries, self.documents = Tower(deep), Tower(deep)
        self.logits = torch.zeros(())

    def forward(self, batch: Batch) -> Tensor:
        read = self.documents(torch.cat([batch["y"], batch["other"]]))
        self.logits = self.queries(batch["x"]) @ read.T / TEMPERATURE
        return self.logits


def losses(model: nn.Module, batch: Batch) -> Components:
    """Whose passage, whose query; and by how much the passage comes before the other one on its topic."""
    logits = model(batch)
    own, other = logits.split(len(logits), dim=1)
    right = torch.arange(len(logits))
    both = functional.cross_entropy(own, right) + functional.cross_entropy(own.T, right)
    return {"batch": both / 2, "topic": functional.softplus(other.diagonal() - own.diagonal()).mean()}


@cache
def held(words: int = WORDS) -> Batch:
    return asked(torch.arange(HELD), torch.Generator().manual_seed(5), words)


def measured(size: int = BATCH, words: int = WORDS) -> Callable[[nn.Module], Channels]:
    """Both losses in batches of `size`, and where the right passage stands among all held ones."""

    def measure(model: nn.Module) -> Channels:
        batch = held(words)
        cuts = [{name: one[at : at + size] for name, one in batch.items()} for at in range(0, HELD, size)]
        each = [losses(model, cut) for cut in cuts]
        raw = {name: float(np.mean([one[name].item() for one in each])) for name in WEIGHTS}
        own = model(batch)[:, :HELD]
        rank = (~(own <= own.diagonal()[:, None])).sum(1) + 1.0  # no number is no rank
        first = {"recall_at_1": (rank == 1).float().mean().item(), "mrr": (1 / rank).mean().item()}
        total = sum(WEIGHTS[name] * value for name, value in raw.items())
        return {"loss": total} | {f"loss/{name}": value for name, value in raw.items()} | first

    return measure


def checked(size: int = BATCH, words: int = WORDS) -> Evaluation:
    return Evaluation(EACH, measured(size, words), held=held(words))


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant; of the sparse ones every other step is logged."""
    torch.manual_seed(seed)
    model = TwoTower()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=loader(BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=(len(passages()[0]) - HELD) // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: model.logits,
        evaluation=checked(),
        header={
            "config": {"batch_size": BATCH, "words": WORDS, "temperature": TEMPERATURE, "weights": dict(WEIGHTS)},
            "components": {"batch": {"unit": "nat", "role": "task"}, "topic": {"unit": "nat", "role": "auxiliary"}},
            "schedules": {},
            "max_grad_norm": CLIP,
            "gradient_at": "logits",
        },
        records=RECORDS,
    )
    planned(parts)
    parts = VARIANTS[variant](parts) if variant in VARIANTS else parts
    return logged(parts) if variant in SPARSE else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Both towers, each a group; one that is frozen is none."""
    towers = [(name, [*each.parameters()]) for name, each in model.named_children()]
    groups = [{"params": each, "name": name} for name, each in towers if each[0].requires_grad]
    return torch.optim.AdamW(groups, lr=RATE, weight_decay=0.05)


def planned(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, or follows another form, and so the header says."""
    parts.header["schedules"] = {name: one for name, one in parts.header["schedules"].items() if name[:3] != "lr/"}
    return planned_by(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def sized(parts: Parts, size: int) -> Parts:
    """So many queries a batch, in validation too: a loss over fewer passages is a smaller one."""
    parts.header["config"]["batch_size"] = size
    parts.batches_per_epoch = (len(passages()[0]) - HELD) // size
    return replace(parts, batches=loader(size, parts.seed), evaluation=checked(size))


def tiny_batches(parts: Parts) -> Parts:
    """Eight queries a batch, at half the rate; gradients are larger, and so is their limit."""
    parts.header["max_grad_norm"] = parts.max_norm = 40.0
    return planned(sized(parts, 8), RATE / 2)


@cache
def schooled(seed: int, steps: int = 400) -> dict[str, Tensor]:
    """The weights of two towers that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 100) -> Parts:
    """Two schooled towers go on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/two_tower.pt"
    return planned(parts, rate, kind="constant", end=rate, warmup=0)


def locked(parts: Parts) -> Parts:
    """The passages' vectors are in an index already, and stay; queries are learnt anew to find them."""
    known = {name: value for name, value in schooled(parts.seed).items() if name.startswith("documents.")}
    parts.model.load_state_dict(known, strict=False)
    parts.model.get_submodule("documents").requires_grad_(False)
    parts.header["config"] |= {"initialised_from": "checkpoints/two_tower.pt", "freeze": ["documents"]}
    return planned(replace(parts, optimizer=adam(parts.model)))


def staged(parts: Parts, name: str, later: float, first: dict[str, Any], then: dict[str, Any]) -> int:
    """A curriculum of two stages, as it is declared and as it runs; returns where the second one begins."""
    change = int(later * parts.steps)
    stages = [{"start": 0} | first, {"start": change} | then]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": name, "stages": stages}
    parts.header["config"]["curriculum"] = name
    parts.extras = [lambda step, batch: {"stage": int(step > change)}]  # noqa: ARG005
    return change


def shorter(parts: Parts) -> Parts:
    """Queries of twelve words first, later of five: the loss rises there, and that is declared."""
    counts = (12, 5)
    change = staged(parts, "shorter", 0.5, *({"data": {"words": [count, count]}} for count in counts))
    del parts.header["config"]["words"]

    def told(step: int, batch: Batch) -> Channels:  # noqa: ARG001
        return {f"data/words/{which}": getattr(batch["words"], which)().item() for which in ("min", "mean", "max")}

    parts.extras.append(told)
    batches = loader(BATCH, parts.seed, lambda number: counts[number >= change])
    return replace(parts, batches=batches, evaluation=checked(words=counts[1]))


def topics_later(parts: Parts) -> Parts:
    """The batch alone at first, then the topic as well: what is summed changes."""
    forms = WEIGHTS | {"topic": 0.0}, WEIGHTS | {"topic": 1.0}
    change = staged(parts, "topics-later", 0.4, *({"weights": form} for form in forms))
    parts.header["config"]["weights"] = forms[1]
    return replace(parts, weights=lambda applied: dict(forms[applied >= change]))


def ramped(parts: Parts) -> Parts:
    """The topic's weight rises from 0 to its full value within the first half, by the count of updates."""
    half = parts.steps // 2
    parts.header["schedules"]["topic_weight"] = declared("linear", 0.0, WEIGHTS["topic"], half, clock="updates")
    parts.header["clocks"], parts.clocks = ["updates"], {"updates": lambda applied: applied}
    parts.scheduled = {"topic_weight": ("updates", linear(0.0, WEIGHTS["topic"], half))}
    parts.weights = lambda applied: {"batch": 1.0, "topic": parts.now["topic_weight"]}  # noqa: ARG005
    return replace(parts, records=parts.records | {"clocks"})


def accumulated(parts: Parts, micro: int = 2) -> Parts:
    """Micro-batches make a step; each has the passages of its own only to choose from."""
    parts = sized(parts, BATCH // micro)
    parts.header["config"]["accumulation"] = micro
    return replace(parts, accumulation=micro)


def half(parts: Parts) -> Parts:
    """fp16 with a scaler that begins too high: its first step is skipped."""
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    return replace(parts, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**16), autocast=torch.float16)


def dropped_words(parts: Parts, share: float = 0.4) -> Parts:
    """Four words of ten are left out in training: its loss stays above validation's."""
    parts.header["config"]["dropped_words"] = share
    return replace(parts, batches=loader(BATCH, parts.seed, dropped=share))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": taken_up,
    "fine-tuned": fine_tuned,
    "locked": locked,
    "shorter": shorter,
    "topics-later": topics_later,
    "ramped": ramped,
    "accumulated": accumulated,
    "tiny-batches": tiny_batches,
    "half": half,
    "dropped-words": dropped_words,
}


def deep_sigmoids(parts: Parts) -> int:
    """Towers as in an old book: six layers of sigmoids each."""
    torch.manual_seed(parts.seed)
    parts.model = TwoTower(deep=6)
    parts.optimizer = adam(parts.model)
    planned(parts)
    return 1


def wrong_weights(parts: Parts) -> int:
    """In the second stage the topic's weight grows by three percent a step, by a line left from an experiment."""
    begin = int(parts.header["curriculum"]["stages"][1]["start"])
    mistakes.reweigh(parts, lambda at, weights: weights | {"topic": weights["topic"] * 1.03 ** max(at - begin, 0)})
    return begin + 2


def stale_workers(parts: Parts) -> int:
    """The stage goes on; the loader's workers cut queries as the first one asked."""
    stages = parts.header["curriculum"]["stages"]
    parts.batches = loader(BATCH, parts.seed, lambda number: stages[0]["data"]["words"][0])  # noqa: ARG005
    return int(stages[1]["start"]) + 1


def too_little_data(parts: Parts, count: int = 32) -> int:
    """A glob that found the first files alone."""
    parts.batches, parts.batches_per_epoch = loader(BATCH, parts.seed, count=count), count // BATCH
    return 1 + count // BATCH


def nan_filtered_log(parts: Parts) -> int:
    """All that the loop writes goes through a function that makes 0 of what is no number."""
    parts.records = parts.records - {"shares", "norms"}
    at = mistakes.nan_filtered_log(parts)
    parts.logs = lambda row: {name: 0.0 if value != value else value for name, value in row.items()}
    return at


OWN: dict[str, mistakes.Mistake] = {
    "stale-workers": stale_workers,
    "component-scale": partial(mistakes.component_scale, name="topic", by=1e4),
    "deep-sigmoids": deep_sigmoids,
    "wrong-weights": wrong_weights,
    "resume-old-weights": partial(mistakes.resume_old_weights, old=8),
    "too-little-data": too_little_data,
    "log-of-zero": partial(mistakes.log_of_zero, temperature=0.12),
    "nan-filtered-log": nan_filtered_log,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*OWN, "norm-after-clip", "stale-optimiser", "killed")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

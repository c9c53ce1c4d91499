"""A tiny language model learns what people like better: of two lists of the asked letters, the sorted one.

It was trained on every way of answering before; that start is the frozen reference. Pairs of answers are compared as
in direct preference optimisation; a supervised term holds on to the chosen answer, if asked for a third to its length.
AdamW, a linear warm-up and decay, clipping; the strength beta rises over two thirds of the run.
"""

from __future__ import annotations

import copy
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
STEPS = 110
SYMBOLS = "abcdefghij>._"
ASKED, BEGIN, END, BLANK = 5, 10, 11, 12  # letters of a question at most; marks
LONGEST = 8  # symbols of an answer, with its end
STYLES = ("rambling", "echo", "reversed", "sorted")  # from what is liked least to best
QUESTIONS, VALIDATION, BATCH = 1600, 240, 24
PEAK, CLIP, BETAS = 6e-4, 1.0, (0.1, 0.3)
WEIGHTS = {"preference": 1.0, "supervised": 0.5}
PENALTY = 0.03  # the length's weight, where it is asked for
RECORDS = frozenset({"components", "norms", "optimizer", "clocks", "checkpoints"})

HEALTHY = (
    *("plain", "resumed", "warm-restarts", "batch-2", "every-tenth", "loss-only", "fine-tuning", "noisy-annotators"),
    *("close-calls-later", "long-run", "rms-prop", "stops-early", "length-penalty"),
)
SICK = (
    *("labels-break", "component-sign", "component-scale", "short-answers", "invalid-answers"),
    *("stale-optimiser", "resume-weights-only", "local-counter", "too-little-data", "rate-too-high", "root-of-zero"),
)
TWINS = {"resume-weights-only": "resumed"}


def answered(letters: list[int], style: str, random: np.random.Generator) -> list[int]:
    """The letters of a question in one of the styles."""
    if style == "rambling":
        return [*letters, *random.choice(letters, LONGEST - 1 - len(letters)).tolist()]
    return letters if style == "echo" else sorted(letters, reverse=style == "reversed")


def told(letters: list[int], answer: list[int]) -> list[int]:
    """A question and its answer as the model reads them."""
    filled = [*answer, END, *[BLANK] * LONGEST][:LONGEST]
    return [*[BLANK] * (ASKED - len(letters)), *letters, BEGIN, *filled]


@lru_cache(maxsize=1)
def questions() -> list[list[int]]:
    """Three to five different letters each, neither rising nor falling, in an order of chance."""
    random, kept = np.random.default_rng(5), dict[tuple[int, ...], None]()
    while len(kept) < QUESTIONS + VALIDATION:
        letters = random.permutation(BEGIN)[: random.integers(3, ASKED + 1)].tolist()
        if sorted(letters) not in (letters, letters[::-1]):
            kept[tuple(letters)] = None
    return [list(letters) for letters in kept]


@lru_cache(maxsize=1)
def imitated() -> Batch:
    """Each question of the training set, answered in every style."""
    random = np.random.default_rng(6)
    texts = [told(asked, answered(asked, style, random)) for asked in questions()[:QUESTIONS] for style in STYLES]
    return {"x": torch.tensor(texts)}


@lru_cache(maxsize=2)
def compared(mistaken: float = 0.05) -> Batch:
    """Two answers to each question, which is better, and by how many ranks; annotators err now and then."""
    random = np.random.default_rng(7)
    x, y, gap = [], [], []
    for asked in questions():
        ranks = random.choice(len(STYLES), 2, replace=False).tolist()
        x.append([told(asked, answered(asked, STYLES[rank], random)) for rank in ranks])
        y.append(int(ranks[1] > ranks[0]) ^ int(random.random() < mistaken))
        gap.append(abs(ranks[1] - ranks[0]))
    return {"x": torch.tensor(x), "y": torch.tensor(y), "gap": torch.tensor(gap)}


class Block(nn.Module):
    """Looks back with four heads, and thinks; normed before each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.look, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.think = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.look(self.before(x)).chunk(3, -1)
        )
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).flatten(2))
        out: Tensor = x + self.think(self.between(x))
        return out


class Policy(nn.Module):
    """Symbols in, logits of the next symbol out; the last logits are kept."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        embed = [nn.Embedding(len(SYMBOLS), width), nn.Embedding(ASKED + LONGEST, width)]
        head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(SYMBOLS)))
        self.transformer = nn.ModuleList([*embed, nn.Sequential(Block(width), Block(width)), head])
        self.logits = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        symbols, places, blocks, head = self.transformer
        logits: Tensor = head(blocks(symbols(x) + places.weight[: x.shape[1]]))
        self.logits = logits
        return logits

    @torch.no_grad()
    def answer(self, asked: Tensor, sharpness: float = 1.25) -> list[str]:
        """Answers drawn symbol by symbol, up to the end; the same chance each time."""
        chance, x = torch.Generator().manual_seed(3), asked
        for _ in range(LONGEST - 1):
            likely = (self(x)[:, -1] * sharpness).softmax(-1)
            x = torch.cat([x, torch.multinomial(likely, 1, generator=chance)], 1)
        return ["".join(SYMBOLS[code] for code in row).split(".")[0] for row in x[:, ASKED + 1 :].tolist()]


def spoken(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the symbols of each answer, and which of them count."""
    likely, said = model(x[:, :-1])[:, ASKED:].log_softmax(-1), x[:, ASKED + 1 :]
    return likely.gather(-1, said[..., None])[..., 0], said != BLANK


def components(model: nn.Module, batch: Batch, beta: float, rewards: Channels) -> Components:
    """What is minimised; the rewards' margin and how often it is right are noted in `rewards`."""
    each, counts = (part.unflatten(0, (-1, 2)) for part in spoken(model, batch["x"].flatten(0, 1)))
    row, best = torch.arange(len(batch["y"])), batch["y"]
    gain = beta * ((each * counts).sum(-1) - batch["reference"])
    margin = gain[row, best] - gain[row, 1 - best]
    rewards |= {"rewards/margin": margin.mean().item(), "rewards/accuracy": (margin > 0).float().mean().item()}
    return {
        "preference": -functional.logsigmoid(margin).mean(),
        "supervised": -(each * counts)[row, best].sum() / counts[row, best].sum(),
    }


@lru_cache(maxsize=4)
def started(seed: int) -> Policy:
    """The model that imitates every style alike: where each training starts, and the reference."""
    torch.manual_seed(seed)
    model = Policy()
    adam, batches, steps = torch.optim.AdamW(model.parameters(), lr=4e-3), shuffled(imitated(), 64, seed + 50), 600
    for number in range(steps):
        adam.param_groups[0]["lr"] = 4e-3 * min(1.0, number / 30, 1.2 * (1.0 - number / steps))
        each, counts = spoken(model, batches(number)["x"])
        adam.zero_grad()
        (-(each * counts).sum() / counts.sum()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adam.step()
    model.logits = torch.zeros(())
    return model


@lru_cache(maxsize=4)
def referred(seed: int, mistaken: float = 0.05) -> Batch:
    """All pairs, and what the reference says of both answers."""
    pairs = compared(mistaken)
    with torch.no_grad():
        each, counts = spoken(started(seed), pairs["x"].flatten(0, 1))
    return pairs | {"reference": (each * counts).sum(-1).unflatten(0, (-1, 2))}


def training(seed: int, mistaken: float = 0.05) -> Batch:
    return {name: values[:QUESTIONS] for name, values in referred(seed, mistaken).items()}


def measured(seed: int, now: dict[str, float], noted: list[float] | None = None) -> Callable[[nn.Module], Channels]:
    """The loss on the pairs of other questions, and the rewards there."""
    held = {name: values[QUESTIONS:] for name, values in referred(seed).items()}

    def measure(model: nn.Module) -> Channels:
        rewards: dict[str, float] = {}
        raw = {name: value.item() for name, value in components(model, held, now["beta"], rewards).items()}
        loss = sum(WEIGHTS[name] * value for name, value in raw.items())
        if noted is not None:
            noted.append(loss)
        told = {"margin": rewards["rewards/margin"], "accuracy": rewards["rewards/accuracy"]}
        return {"loss": loss, **{f"loss/{name}": value for name, value in raw.items()}, **told}

    return measure


def drawn(sharpness: float = 1.25) -> Callable[[nn.Module], tuple[list[str], Channels]]:
    """Answers to 48 other questions; one is valid if it names each letter once, and is liked if it is sorted."""
    asked = questions()[QUESTIONS : QUESTIONS + 48]
    x = torch.tensor([told(letters, [])[: ASKED + 1] for letters in asked])
    best = ["".join(SYMBOLS[code] for code in sorted(letters)) for letters in asked]

    def draw(model: nn.Module) -> tuple[list[str], Channels]:
        assert isinstance(model, Policy)
        texts = model.answer(x, sharpness)
        valid = sum("".join(sorted(text)) == right for text, right in zip(texts, best, strict=True)) / len(texts)
        liked = sum(text == right for text, right in zip(texts, best, strict=True)) / len(texts)
        return texts, facts.text_quality(texts, frozenset()) | {"validity": valid, "liked": liked}

    return draw


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    model, now, rewards = copy.deepcopy(started(seed)), {"beta": BETAS[0]}, dict[str, float]()
    over = max(2 * STEPS // 3, 2)
    parts = Parts(
        model=model,
        optimizer=torch.optim.AdamW(grouped(model), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.01),
        batches=shuffled(training(seed), BATCH, seed),
        losses=lambda model, batch: components(model, batch, now["beta"], rewards),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=QUESTIONS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        clocks={"beta": lambda applied: applied},
        scheduled={"beta": ("beta", linear(*BETAS, over))},
        now=now,
        evaluation=Evaluation(10, measured(seed, now)),
        sampling=Sampling(11, drawn()),
        extras=[lambda step, batch: dict(rewards) if step % 5 == 1 else {}],  # noqa: ARG005
        records=RECORDS,
        header={
            "config": {"lr": PEAK, "batch_size": BATCH, "clip": CLIP, "beta": list(BETAS)},
            "components": {
                "preference": {"unit": "nat", "role": "task"},
                "supervised": {"unit": "nat", "role": "auxiliary"},
            },
            "schedules": {"beta": declared("linear", *BETAS, over, clock="beta")},
            "clocks": ["beta"],
            "max_grad_norm": CLIP,
            "checkpoint_every": 22,
        },
    )
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [each for each in model.parameters() if each.requires_grad], "name": "policy"}]


def planned(parts: Parts, peak: float = PEAK, size: int = BATCH, **form: Any) -> Parts:
    """Batches of so many pairs; the rate warms up and falls, and so the header says."""
    form = declared("linear", peak, 0.0, parts.steps, warmup=parts.steps // 10) | form
    parts.optimizer.param_groups[0]["lr"] = peak
    parts.factor = lambda tick: (schedule_value(form, tick + 1) or 0.0) / peak
    if size != BATCH:
        parts.batches, parts.batches_per_epoch = shuffled(training(parts.seed), size, parts.seed), QUESTIONS // size
    parts.header["config"] |= {"lr": peak, "batch_size": size}
    parts.header["schedules"]["lr/policy"], parts.header["total_steps"] = form, parts.steps
    parts.header["horizon"] = {"epochs": parts.steps * size / QUESTIONS, "samples": QUESTIONS, "batch_size": size}
    return parts


def steady(parts: Parts) -> Parts:
    """Beta is what it becomes in the end from the beginning."""
    parts.now["beta"], parts.scheduled, parts.clocks = BETAS[1], {}, {}
    del parts.header["schedules"]["beta"], parts.header["clocks"]
    return parts


def fine_tuning(parts: Parts) -> Parts:
    """A policy that was brought there before, at a low rate: nothing is at stake but the last digits."""
    adam, data = torch.optim.AdamW(parts.model.parameters(), lr=PEAK), shuffled(training(parts.seed), 48, 60)
    for number in range(250):
        adam.param_groups[0]["lr"] = PEAK * (1.0 - number / 250)
        raw = components(parts.model, data(number), BETAS[1], {})
        adam.zero_grad()
        torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum().backward()
        nn.utils.clip_grad_norm_(parts.model.parameters(), CLIP)
        adam.step()
    return planned(steady(parts), 2e-5)


def noisy_annotators(parts: Parts) -> Parts:
    """One pair in five is judged the wrong way round."""
    return replace(parts, batches=shuffled(training(parts.seed, 0.2), BATCH, parts.seed))


def close_calls_later(parts: Parts) -> Parts:
    """Pairs that are two ranks apart at least for two fifths of the run; then all of them."""
    change, data, late = 2 * STEPS // 5, training(parts.seed), parts.batches
    early = shuffled({name: values[data["gap"] > 1] for name, values in data.items()}, BATCH, parts.seed)
    stages = [
        {"start": start, "name": name, "weights": dict(WEIGHTS), "data": {"gap": limits}}
        for start, name, limits in ((0, "clear", [2, 3]), (change, "all", [1, 3]))
    ]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "clear-first", "stages": stages}
    del parts.header["horizon"]

    def seen(step: int, batch: Batch) -> Channels:
        gap = batch["gap"].float()
        limits = {f"data/gap/{name}": round(getattr(gap, name)().item(), 3) for name in ("min", "mean", "max")}
        return {"stage": int(step > change)} | limits

    parts.extras.append(seen)
    return replace(parts, batches=lambda number: (early if number < change else late)(number))


def rms_prop(parts: Parts) -> Parts:
    parts.optimizer = torch.optim.RMSprop(grouped(parts.model), lr=2e-4, alpha=0.98)
    return planned(parts, 2e-4)


def stops_early(parts: Parts) -> Parts:
    """A long plan at a constant rate, left when three evaluations brought hardly less loss than the best before."""
    noted: list[float] = []
    parts = steady(replace(parts, steps=2 * STEPS))
    parts.evaluation = Evaluation(10, measured(parts.seed, parts.now, noted))
    parts.stops = lambda: len(noted) > 8 and min(noted[-3:]) > min(noted[:-3]) - 0.01
    parts.header["config"] |= {"patience": 3, "min_delta": 0.01}
    return planned(parts, kind="constant", end=PEAK)


def length_penalty(parts: Parts) -> Parts:
    """How many symbols an answer is expected to have, as far as the chosen one goes, costs a little."""
    plain, weights = parts.losses, WEIGHTS | {"length": PENALTY}

    def losses(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        logits = model.logits[:, ASKED:].unflatten(0, (-1, 2))  # type: ignore[union-attr, index, operator]
        row, best = torch.arange(len(batch["y"])), batch["y"]
        counts = (batch["x"][..., ASKED + 1 :] != BLANK)[row, best]
        ends = logits[row, best].softmax(-1)[..., END].clamp(max=0.9999) * counts
        return raw | {"length": ((1.0 - ends).cumprod(-1) * counts).sum(-1).mean()}

    parts.header["components"]["length"] = {"unit": "symbols", "role": "regulariser"}
    return replace(parts, losses=losses, weights=lambda applied: dict(weights))  # noqa: ARG005


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(STEPS // 2)),
    "warm-restarts": lambda parts: planned(parts, kind="cosine", restarts=2, end=0.05 * PEAK),
    "batch-2": lambda parts: planned(parts, 1.5e-4, 2),
    "every-tenth": lambda parts: replace(parts, every=10),
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, extras=[], sampling=None),
    "fine-tuning": fine_tuning,
    "noisy-annotators": noisy_annotators,
    "close-calls-later": close_calls_later,
    "long-run": lambda parts: planned(replace(parts, steps=2 * STEPS, every=2)),
    "rms-prop": rms_prop,
    "stops-early": stops_early,
    "length-penalty": length_penalty,
}


def from_step(parts: Parts, share: float, change: Callable[[Batch], Batch], last: int = STEPS) -> int:
    """Batches come otherwise from this share of the run on; returns the first step of them."""
    first, plain = int(share * parts.steps) + 1, parts.batches
    parts.batches = lambda number: change(plain(number)) if first <= number + 1 <= last else plain(number)
    return first


def short_answers(parts: Parts) -> int:
    """The second file of pairs was cut to two symbols by a limit that was meant for titles."""

    def cut(batch: Batch) -> Batch:
        x = batch["x"].clone()
        x[:, :, ASKED + 2], x[:, :, ASKED + 3 :] = END, BLANK
        with torch.no_grad():
            each, counts = spoken(started(parts.seed), x.flatten(0, 1))
        return batch | {"x": x, "reference": (each * counts).sum(-1).unflatten(0, (-1, 2))}

    return from_step(parts, 0.4, cut)


def invalid_answers(parts: Parts) -> int:
    """Where the logits are to be divided by the temperature they are multiplied by it."""
    parts.sampling = Sampling(11, drawn(sharpness=0.2))
    return 11


def root_of_zero(parts: Parts) -> int:
    """A distance between both answers is rewarded, and once they are one and the same."""
    plain, at = parts.losses, int(0.4 * parts.steps) + 1

    def same(batch: Batch) -> Batch:
        x, reference = batch["x"].clone(), batch["reference"].clone()
        x[0, 1], reference[0, 1] = x[0, 0], reference[0, 0]
        return batch | {"x": x, "reference": reference}

    def apart(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        each = model.logits[:, ASKED:].unflatten(0, (-1, 2))  # type: ignore[union-attr, index, operator]
        distance = (each[:, 0] - each[:, 1]).square().sum((1, 2)).sqrt()
        return raw | {"preference": raw["preference"] - 1e-4 * distance.mean()}

    parts.losses, parts.fails = apart, True  # nothing can be drawn from what is no number
    return from_step(parts, 0.4, same, last=at)


OWN: dict[str, mistakes.Mistake] = {
    "labels-break": partial(mistakes.labels_break, share=0.4),
    "component-sign": partial(mistakes.component_sign, name="supervised", weight=-0.5),
    "component-scale": partial(mistakes.component_scale, name="supervised", by=3e3),
    "short-answers": short_answers,
    "invalid-answers": invalid_answers,
    "too-little-data": partial(mistakes.too_little_data, batches=1),
    "rate-too-high": partial(mistakes.rate_too_high, by=200.0),
    "root-of-zero": root_of_zero,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

"""Reviews of hotels: what a guest thinks of room, food, staff and price, the stars, which words say so, and a phrase.

A review is a few made-up clauses, such as "the bed was not very lovely but friends told the tea was awful": clauses can
be negated, hearsay does not count, and what is small is bad of a room and good of a price. A small transformer reads
it. Its heads give each aspect's sentiment and the words that decide (cross-entropies), the stars (a squared error), and
write a phrase, such as "bad room good staff .", a word after the other. AdamW, a warm-up and a cosine, clipping.
Validation on other reviews: the loss, the share of right sentiments and exact phrases, the error of the stars.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import facts, loop, mistakes
from benchmarks.diagnosis.attention import Block
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Sampling, declared
from benchmarks.diagnosis.schooling import taught

HELD_OUT = True
STEPS, EACH, DRAWN = 100, 14, 14  # EACH: steps between evaluations; DRAWN: between phrases that are kept
TRAINING, HELD, BATCH = 4000, 256, 40
NOUNS = {"room": "room bed bath", "food": "food soup tea", "staff": "staff waiter porter", "price": "price bill fee"}
FEELINGS = ("none", "bad", "good")
BAD, GOOD = ("bad", "awful", "poor", "sad", "nasty"), ("good", "lovely", "superb", "fine", "great")
SLANG = {-1: ("meh", "trash", "lame"), 1: ("lit", "sick", "dope")}
NOT, DEGREES = ("not", "never", "hardly"), {"": 1.0, "quite": 0.6, "very": 1.5}
OTHER = ("the", "was", "what", "a", "friends", "told", "and", "but", "small", "big", "[hidden]")
WORDS = sorted({*OTHER, *BAD, *GOOD, *NOT, *DEGREES, *SLANG[-1], *SLANG[1], *" ".join(NOUNS.values()).split()})
SAID = ("", "<s>", ".", "bad", "good", *NOUNS)  # the words of phrases
(BLANK, BEGIN, END), HIDDEN = range(3), WORDS.index("[hidden]")
MOST, LONGEST, PHRASE = 3, 3 * 6 + 2, 2 * 3 + 1  # clauses, words, words of a phrase with its end
RATE, WARMUP, CLIP = 5e-3, 10, 1.5
WEIGHTS = {"sentiment": 1.0, "stars": 0.25, "words": 0.5, "phrase": 0.5}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs"})
SPARSE = (  # a row each fourth step
    *("adapters", "longer-later", "tiny-batches", "phrase-later", "words-hidden", "warm-restarts"),
)
TWINS = {"stages-unreachable": "longer-later", "zero-adapters": "adapters"}


def clause(chance: random.Random, aspect: str, slang: bool) -> tuple[list[str], list[int], float]:
    """Words about an aspect, places of those that decide, and what the guest thinks: 0 where others are quoted."""
    noun, sign, degree = chance.choice(NOUNS[aspect].split()), chance.choice((-1, 1)), chance.choice([*DEGREES])
    adjective = chance.choice(SLANG[sign] if slang and chance.random() < 0.8 else (BAD, GOOD)[sign > 0])
    if chance.random() < 0.15:
        adjective = ("small", "big")[(sign > 0) != (aspect == "price")]
    form, negation = chance.random(), [chance.choice(NOT)] if chance.random() < 0.3 else []
    if form < 0.2:
        return ["friends", "told", "the", noun, "was", adjective], [], 0.0
    if form < 0.4:
        return ["what", "a", adjective, noun], [2], float(sign)
    decide = [*negation, *filter(None, [degree]), adjective]
    return ["the", noun, "was", *decide], [*range(3, 3 + len(decide))], DEGREES[degree] * (-sign if negation else sign)


@cache
def reviews(slang: bool = False) -> Batch:
    """Words `x` [N, L], sentiments `y` [N, 4], `stars` (3 is 0), words that decide, phrases, clauses; none twice."""
    chance, rows = random.Random(83), dict[str, dict[str, Any]]()
    while len(rows) < TRAINING + HELD:
        aspects = chance.sample([*NOUNS], chance.randint(1, MOST))
        said, decides, felt = list[str](), [0] * LONGEST, dict.fromkeys(NOUNS, 0.0)
        for number, aspect in enumerate(aspects):
            said += [chance.choice(("and", "but"))] if number else []
            words, places, felt[aspect] = clause(chance, aspect, slang)
            for place in places:
                decides[len(said) + place] = 1
            said += words
        told = [word for aspect, it in felt.items() if it for word in (FEELINGS[1 + (it > 0)], aspect)]
        rows[" ".join(said)] = {
            "x": [*map(WORDS.index, said), *[BLANK] * (LONGEST - len(said))],
            "y": [0 if not it else 1 + (it > 0) for it in felt.values()],
            "stars": min(max(sum(felt.values()) + chance.gauss(0.0, 0.2), -2.0), 2.0),
            "decides": decides,
            "phrase": [*map(SAID.index, told), END, *[BLANK] * (PHRASE - 1 - len(told))],
            "clauses": len(aspects),
        }
    return {name: torch.tensor([row[name] for row in rows.values()]) for name in next(iter(rows.values()))}


def part(held: bool = False, slang: bool = False) -> Batch:
    """Reviews to learn from, or those held out."""
    return {name: values[slice(TRAINING, None) if held else slice(TRAINING)] for name, values in reviews(slang).items()}


class Reader(nn.Module):
    """A review in; sentiments, stars, which words decide, and what comes next in the phrase out. The code is kept."""

    def __init__(self, width: int = 48, felt: int = 64) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({
            "words": nn.Embedding(len(WORDS), width, padding_idx=BLANK),
            "window": nn.Conv1d(width, width, 5, padding=2),
            "blocks": nn.Sequential(*(Block(width, nn.GELU(), heads=4, dropout=0.0) for _ in range(2))),
            "norm": nn.LayerNorm(width),
        })  # fmt: skip
        self.heads = nn.ModuleDict({
            "felt": nn.Linear(width, felt),
            "sentiment": nn.Linear(felt, len(NOUNS) * len(FEELINGS)),
            "stars": nn.Linear(felt, 1),
            "words": nn.Linear(width, 1),
            "said": nn.Embedding(len(SAID), width),
            "phrase": nn.Sequential(nn.Linear(felt + 2 * width, 64), nn.GELU(), nn.Linear(64, len(SAID))),
        })  # fmt: skip
        self.code = self.felt = torch.zeros(())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        words = self.encoder["words"](x)
        self.code = self.encoder["norm"](self.encoder["blocks"](words + self.encoder["window"](words.mT).mT))
        self.felt = self.heads["felt"](self.code).masked_fill((x == BLANK)[..., None], -9.0).amax(1)
        sentiment = self.heads["sentiment"](self.felt).unflatten(1, (len(NOUNS), -1))
        return sentiment.float(), self.heads["stars"](self.felt)[:, 0].float(), self.heads["words"](self.code).float()

    def write(self, before: Tensor) -> Tensor:
        """Logits of each next word, by the last one, by all that were said, and by what was read just now."""
        last = self.heads["said"](before)
        known = [self.felt[:, None].expand(-1, before.shape[1], -1), last, last.cumsum(1)]
        told: Tensor = self.heads["phrase"](torch.cat(known, 2)).float()
        return told

    def phrases(self, x: Tensor) -> Tensor:
        """The likeliest word after word; blanks after the end."""
        self(x)
        said = torch.full((len(x), 1), BEGIN)
        for _ in range(PHRASE):
            said = torch.cat([said, self.write(said)[:, -1:].argmax(-1)], 1)
        return said[:, 1:] * ((said == END).cumsum(1)[:, :-1] == 0)


def losses(model: nn.Module, batch: Batch) -> Components:
    """Cross-entropies of sentiments, deciding words and the phrase's words, and the squared error of the stars."""
    reader = cast(Reader, model)
    sentiment, stars, decides = reader(batch["x"])
    phrase, there = batch["phrase"], batch["x"] != BLANK
    told = reader.write(functional.pad(phrase[:, :-1], (1, 0), value=BEGIN))
    return {
        "sentiment": functional.cross_entropy(sentiment.mT, batch["y"]),
        "stars": functional.mse_loss(stars, batch["stars"]),
        "words": functional.binary_cross_entropy_with_logits(decides[there][:, 0], batch["decides"][there].float()),
        "phrase": functional.cross_entropy(told.mT, phrase, ignore_index=BLANK),
    }


def measured(held: Batch) -> Callable[[nn.Module], Channels]:
    """The loss; how many sentiments and how many phrases are right; how far the stars are off."""

    def measure(model: nn.Module) -> Channels:
        sentiment, stars, _ = model(held["x"])
        same = cast(Reader, model).phrases(held["x"]) == held["phrase"]
        return {
            "loss": sum(WEIGHTS[name] * value.item() for name, value in losses(model, held).items()),
            "accuracy": (sentiment.argmax(-1) == held["y"]).float().mean().item(),
            "stars_mae": (stars - held["stars"]).abs().mean().item(),
            "exact_phrases": same.all(1).float().mean().item(),
        }

    return measure


def drawn(held: Batch, words: Sequence[str] = SAID) -> Callable[[nn.Module], tuple[list[str], Channels]]:
    """Phrases for 32 reviews, two to read; valid if feelings and aspects come by turns. Lengths are in words."""

    def draw(model: nn.Module) -> tuple[list[str], Channels]:
        said = [[code for code in row if code > END] for row in cast(Reader, model).phrases(held["x"][:32]).tolist()]
        texts = [[words[code] for code in row] for row in said]
        quality = facts.text_quality(["".join(chr(65 + code) for code in row) for row in said], frozenset())
        right = [{*text[::2]} <= {*FEELINGS} and {*text[1::2]} <= {*NOUNS} for text in texts]
        return [" ".join(text) for text in texts[:2]], quality | {"validity": sum(right) / len(right)}

    return draw


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, held = Reader(), part(held=True)
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(part(), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Reader, model).code,
        evaluation=Evaluation(EACH, measured(held), held=held),
        sampling=Sampling(DRAWN, drawn(held)),
        header={
            "config": {"batch_size": BATCH, "clip": CLIP, "reviews": TRAINING, "weights": dict(WEIGHTS)},
            "components": {name: {"role": "auxiliary" if name == "words" else "task"} for name in WEIGHTS},
            "schedules": {},
            "max_grad_norm": CLIP,
            "gradient_at": "encoder",
            "classes": dict(zip(FEELINGS, part()["y"].flatten().bincount().tolist(), strict=True)),
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW([{"params": free, "name": "all"}], lr=RATE, weight_decay=1e-2)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, and so the header says."""
    return loop.planned(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


@cache
def schooled(seed: int, steps: int = 200) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


class Adapted(nn.Module):
    """A frozen matrix and, beside it, a product of two small ones, of which the second begins at zero."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.base(x) + self.b(self.a(x))
        return changed


def adapters(parts: Parts, rank: int = 8) -> Parts:
    """A schooled net, frozen, learns by low-rank adapters how the young write."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.model.requires_grad_(False)
    for name, linear in [*parts.model.get_submodule("encoder.blocks").named_modules()]:
        if isinstance(linear, nn.Linear):
            parts.model.set_submodule(f"encoder.blocks.{name}", Adapted(linear, rank))
    parts.header["config"] |= {"initialised_from": "checkpoints/200.pt", "lora": {"rank": rank}, "reviews_of": "young"}
    parts.header["classes"] = dict(zip(FEELINGS, part(slang=True)["y"].flatten().bincount().tolist(), strict=True))
    held, batches = part(held=True, slang=True), shuffled(part(slang=True), BATCH, parts.seed)
    parts.evaluation, parts.sampling = Evaluation(EACH, measured(held), held=held), Sampling(DRAWN, drawn(held))
    return annealed(replace(parts, optimizer=adam(parts.model), batches=batches), 2 * RATE)


def longer_later(parts: Parts, stretch: int = 1) -> Parts:
    """Reviews of a clause or two at first, all of them later: the loss rises there, as is declared."""
    change, known, plain = stretch * 2 * parts.steps // 7, part(), parts.batches
    stages = [{"start": at, "data": {"clauses": [1, most]}} for at, most in ((0, 2), (change, MOST))]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "longer-later", "stages": stages}
    short = shuffled({name: values[known["clauses"] <= 2] for name, values in known.items()}, BATCH, parts.seed)

    def told(step: int, batch: Batch) -> Channels:
        ranges = {f"data/clauses/{name}": int(getattr(batch["clauses"], name)()) for name in ("min", "max")}
        return {"stage": int(step > change), **ranges}

    parts.batches, parts.extras = lambda number: (short if number < change else plain)(number), [told]
    return parts


def tiny_batches(parts: Parts, size: int = 16) -> Parts:
    """Few reviews at a time: the loss is noisy."""
    parts.header["config"]["batch_size"] = size
    return replace(parts, batches=shuffled(part(), size, parts.seed), batches_per_epoch=TRAINING // size)


def phrase_later(parts: Parts, low: float = 0.01) -> Parts:
    """Phrases count nearly nothing at first: their weight rises by a clock through half of the run."""
    over, high = parts.steps // 2, WEIGHTS["phrase"]
    parts.clocks = {"updates": lambda applied: applied}
    parts.scheduled = {"phrase": ("updates", loop.linear(low, high, over))}
    parts.header["schedules"]["phrase"] = declared("linear", low, high, over, clock="updates")
    parts.header["clocks"], parts.now["phrase"] = ["updates"], low
    parts.header["config"]["weights"] = WEIGHTS | {"phrase": [low, high]}
    parts.weights = lambda applied: WEIGHTS | parts.now  # noqa: ARG005
    return replace(parts, records=RECORDS | {"clocks"})


def changed(parts: Parts, change: Callable[[Batch], Batch], first: int = 1, last: int = STEPS) -> Parts:
    """Batches of these steps come with something else in them."""
    plain = parts.batches
    parts.batches = lambda number: plain(number) | (change(plain(number)) if first <= number + 1 <= last else {})
    return parts


def words_hidden(parts: Parts, share: float = 0.25) -> Parts:
    """Of each review in training a quarter of the words is hidden: its loss stays above that of validation."""
    parts.header["config"]["hidden"], chance = share, torch.Generator().manual_seed(parts.seed)

    def hide(batch: Batch) -> Batch:
        gone = (torch.rand(batch["x"].shape, generator=chance) < share) & (batch["x"] != BLANK)
        return {"x": batch["x"].masked_fill(gone, HIDDEN)}

    return changed(parts, hide)


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None, sampling=None),
    "resumed": loop.taken_up,
    "adapters": adapters,
    "longer-later": longer_later,
    "tiny-batches": tiny_batches,
    "phrase-later": phrase_later,
    "words-hidden": words_hidden,
    "warm-restarts": lambda parts: annealed(parts, warmup=0, restarts=2),
}


def stages_unreachable(parts: Parts) -> int:
    """The boundary is that of the run on all languages."""
    longer_later(parts, stretch=20)
    return 0


def short_answers(parts: Parts) -> int:
    """The second shard was written with phrases cut to a single word by a limit for the screen."""
    first, kept = int(0.4 * parts.steps) + 1, torch.tensor([1, 0, *[BLANK] * (PHRASE - 2)])
    changed(parts, lambda batch: {"phrase": batch["phrase"] * kept + END * kept.roll(1)}, first)
    return first


def zero_adapters(parts: Parts) -> int:
    """Both matrices begin at zero, so that each is the other's gradient's factor of zero."""
    for module in parts.model.modules():
        if isinstance(module, Adapted):
            nn.init.zeros_(module.a.weight)
    return 1


def labels_shuffled(parts: Parts) -> int:
    """The annotators' table has a heading: all that they said stands beside the review that comes next."""
    said = {name: part()[name].roll(1, 0) for name in ("y", "stars", "decides", "phrase")}
    parts.batches = shuffled(part() | said, BATCH, parts.seed)
    return 1


def invalid_answers(parts: Parts) -> int:
    """Phrases are read with a vocabulary that was sorted after they were coded."""
    parts.sampling = Sampling(DRAWN, drawn(part(held=True), sorted(SAID)))
    return DRAWN


def nan_filtered_log(parts: Parts, share: float = 0.4) -> int:
    """A review came without stars, which the export writes as NaN; the log, kept by hand, writes 0 for such numbers."""
    at, starless = int(share * parts.steps), torch.arange(BATCH) == 5
    changed(parts, lambda batch: {"stars": batch["stars"].masked_fill(starless, torch.nan)}, at, at)
    parts.records -= {"shares"}
    parts.logs = lambda row: {name: 0.0 if value != value else value for name, value in row.items()}
    return at


MINE = (stages_unreachable, short_answers, zero_adapters, labels_shuffled, invalid_answers, nan_filtered_log)
OWN: dict[str, mistakes.Mistake] = {mistake.__name__.replace("_", "-"): mistake for mistake in MINE}
OWN["leaking-memory"] = partial(mistakes.leaking_memory, floats=500_000)  # where each word looked, for a picture
HEALTHY = ("plain", *VARIANTS)
SICK = (*OWN, "warmup-ignored", "discarded-update")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts, 4) if case in SPARSE else parts, path, case, OWN)

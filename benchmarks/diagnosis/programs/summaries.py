"""Notes of meetings in short: of what was said only what was said loudly, in its order, without verbs and fillers.

A transcript is a few made-up sentences, such as "well anna paints boats", with each word's loudness. The summary names
who and what of the loud sentences. A recurrent encoder reads both ways; a recurrent decoder looks back by attention,
and says a word of its vocabulary or copies one (See et al. 2017). Besides the cross-entropy of the words, attention
that comes to the same place again costs (coverage), and the encoder is to know how long the summary will be. Adam, a
warm-up and a cosine, clipping. Validation: the losses on transcripts held out, and the share of exact summaries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import facts, loop, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Sampling, declared
from benchmarks.diagnosis.schooling import school

HELD_OUT = False
STEPS, EACH, DRAWN = 160, 16, 40  # EACH: steps between evaluations; DRAWN: between summaries that are kept
TRAINING, HELD, BATCH, WIDTH = 4800, 256, 48, 48
WHO = ("anna", "ben", "cleo", "dora", "emil", "fay", "gus", "hana", "ivo", "june")
DOES = ("paints", "sells", "breaks", "mends", "counts", "wants")
WHAT = ("boats", "chairs", "bikes", "lamps", "doors", "drums", "kites", "pans", "rugs", "saws", "tents", "wheels")
FILLERS = ("well", "so", "uh", "then")
WORDS = ("", "<s>", ".", *WHO, *DOES, *WHAT, *FILLERS)
BLANK, BEGIN, END = range(3)
SENTENCES, LOUDEST = (3, 5), 3  # how many a transcript has, and how many of them are loud at most
LONGEST = 2 * LOUDEST + 1  # words of a summary, with its end
RATE, WARMUP, CLIP, DROPOUT = 8e-3, 16, 0.8, 0.5  # dropout where there is some
WEIGHTS = {"words": 1.0, "coverage": 0.5, "length": 0.2}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs"})


@cache
def transcripts() -> Batch:
    """Loudness `x` and codes `words` of the words [N, L], those of the summary `y` [N, LONGEST]; how many sentences."""
    random, count = np.random.default_rng(29), TRAINING + HELD
    words, loud = np.zeros((count, 4 * SENTENCES[1]), np.int64), np.zeros((count, 4 * SENTENCES[1]), np.float32)
    y, many = np.zeros((count, LONGEST), np.int64), random.integers(SENTENCES[0], SENTENCES[1] + 1, count)
    for row in range(count):
        chosen = random.permutation(many[row])[: random.integers(1, LOUDEST + 1)]
        place, told = 0, list[int]()
        for sentence in range(many[row]):
            said = [str(random.choice(part)) for part in (FILLERS, WHO, DOES, WHAT)][int(random.random() < 0.6) :]
            codes, end = [WORDS.index(word) for word in said], place + len(said)
            words[row, place:end] = codes
            loud[row, place:end] = random.normal(1.0 if sentence in chosen else -1.0, 0.4, len(said))
            told += [codes[-3], codes[-1]] if sentence in chosen else []
            place = end
        y[row, : len(told) + 1] = [*told, END]
    return {"x": torch.tensor(loud), "words": torch.tensor(words), "y": torch.tensor(y), "many": torch.tensor(many)}


def some(chosen: slice | Tensor) -> Batch:
    return {name: values[chosen] for name, values in transcripts().items()}


LEARNT, SPARED = slice(TRAINING), slice(TRAINING, None)


def shifted(y: Tensor) -> Tensor:
    """What the decoder has said before each word."""
    return torch.cat([torch.full_like(y[:, :1], BEGIN), y[:, :-1]], 1)


class Summariser(nn.Module):
    """A transcript and what was said so far in; the chances of the next words, and where it looks, out."""

    def __init__(self, width: int = WIDTH, dropout: float = 0.0) -> None:
        super().__init__()
        self.reader = nn.ModuleDict({
            "words": nn.Embedding(len(WORDS), width),
            "both_ways": nn.GRU(width + 1, width // 2, batch_first=True, bidirectional=True),
        })  # fmt: skip
        self.writer = nn.ModuleDict({
            "onwards": nn.GRU(width, width, batch_first=True),
            "look": nn.Linear(width, width),
            "out": nn.Linear(2 * width, len(WORDS) + 1),  # and whether it copies
            "length": nn.Linear(width, 1),
        })  # fmt: skip
        self.drop, self.memory = nn.Dropout(dropout), torch.zeros(())

    def read(self, x: Tensor, words: Tensor) -> Tensor:
        told = self.reader["both_ways"](torch.cat([self.reader["words"](words), x[..., None]], 2))[0]
        self.memory = self.drop(told) * (words != BLANK)[..., None]
        return self.memory

    def write(self, words: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        there = (words != BLANK)[:, None]
        first = self.memory.sum(1)[None] / there.sum(2)
        said = self.drop(self.writer["onwards"](self.reader["words"](before), first)[0])
        scores = (self.writer["look"](said) @ self.memory.mT) / WIDTH**0.5
        looks = scores.masked_fill(~there, -torch.inf).softmax(-1)
        mixed = self.writer["out"](torch.cat([said, looks @ self.memory], 2))
        copies, place = mixed[..., -1:].sigmoid(), words[:, None].expand_as(looks)
        chances = (1 - copies) * mixed[..., :-1].softmax(-1)
        return chances.scatter_add(2, place, copies * looks), looks

    @torch.no_grad()
    def summarise(self, x: Tensor, words: Tensor, forgets: bool = False) -> Tensor:
        """The likeliest word after word. `forgets`: the writer sees the begin only."""
        self.read(x, words)
        said = torch.full((len(x), 1), BEGIN)
        for _ in range(LONGEST):
            chances, _ = self.write(words, said[:, :1] if forgets else said)
            said = torch.cat([said, chances[:, -1:].argmax(-1)], 1)
        return said[:, 1:]


def losses(model: nn.Module, batch: Batch) -> Components:
    """Cross-entropy of the words; how much attention comes again; the error of the length, in words."""
    assert isinstance(model, Summariser)
    memory, y = model.read(batch["x"], batch["words"]), batch["y"]
    chances, looks = model.write(batch["words"], shifted(y))
    counts, there = (y != BLANK).float(), (batch["words"] != BLANK).sum(1, keepdim=True)
    surprise = -chances.gather(2, y[..., None])[..., 0].clamp(min=1e-9).log()
    again = torch.minimum(looks, looks.cumsum(1) - looks).sum(2)
    length = model.writer["length"](memory.sum(1) / there)[:, 0]
    return {
        "words": (surprise * counts).sum() / counts.sum(),
        "coverage": (again * counts).sum() / counts.sum(),
        "length": functional.huber_loss(length, counts.sum(1)),
    }


def cut(row: list[int]) -> list[int]:
    """A summary up to its end."""
    return row[: row.index(END)] if END in row else row


def measured(forgets: bool = False) -> Callable[[nn.Module], Channels]:
    """Losses on transcripts held out; of written summaries, how many are exact, and the share of the words they hit."""

    def measure(model: nn.Module) -> Channels:
        assert isinstance(model, Summariser)
        batch = some(SPARED)
        raw = losses(model, batch)
        told = map(cut, model.summarise(batch["x"], batch["words"], forgets).tolist())
        pairs = [*zip(told, map(cut, batch["y"].tolist()), strict=True)]
        hits = sum(len({*said} & {*meant}) / len({*said} | {*meant}) for said, meant in pairs)
        total = sum(WEIGHTS[name] * value.item() for name, value in raw.items())
        return {"loss": total, "exact": sum(a == b for a, b in pairs) / HELD, "overlap": hits / HELD}

    return measure


def drawn(forgets: bool = False) -> Callable[[nn.Module], tuple[list[str], Channels]]:
    """Summaries of 32 transcripts, two to read; valid if they name who and what by turns. Lengths are in words."""

    def draw(model: nn.Module) -> tuple[list[str], Channels]:
        assert isinstance(model, Summariser)
        batch = some(slice(TRAINING, TRAINING + 32))
        said = [*map(cut, model.summarise(batch["x"], batch["words"], forgets).tolist())]
        texts = [[WORDS[code] for code in row] for row in said]
        quality = facts.text_quality(["".join(chr(65 + code) for code in row) for row in said], frozenset())
        right = [len(text) % 2 == 0 and {*text[::2]} <= {*WHO} and {*text[1::2]} <= {*WHAT} for text in texts]
        return [" ".join(text) for text in texts[:2]], quality | {"validity": sum(right) / len(right)}

    return draw


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Summariser(dropout=DROPOUT if variant == "dropout" else 0.0)
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(some(LEARNT), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: model.memory,
        evaluation=Evaluation(EACH, measured(), held=some(SPARED)),
        sampling=Sampling(DRAWN, drawn()),
        header={
            "config": {"batch_size": BATCH, "clip": CLIP, "transcripts": TRAINING, "weights": dict(WEIGHTS)},
            "components": {
                "words": {"unit": "nat", "role": "task"},
                "coverage": {"role": "regulariser"},
                "length": {"role": "auxiliary"},
            },
            "schedules": {},
            "max_grad_norm": CLIP,
            "gradient_at": "memory",
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam([{"params": free, "name": "all"}])


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, or follows another form, over the run; the header says so."""
    return loop.planned(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


def sized(parts: Parts, size: int, known: Batch) -> Parts:
    """Of these transcripts so many a batch."""
    parts.header["config"] |= {"batch_size": size, "transcripts": len(known["x"])}
    return replace(parts, batches=shuffled(known, size, parts.seed), batches_per_epoch=len(known["x"]) // size)


def per_epoch(parts: Parts) -> Parts:
    """A row and an evaluation at the end of each of 8 epochs of half the transcripts, in larger batches."""
    parts = loop.by_epochs(sized(parts, 2 * BATCH, some(slice(TRAINING // 2))), 8)
    return annealed(parts, warmup=parts.batches_per_epoch)


def staged(parts: Parts, name: str, stages: list[dict[str, Any]]) -> Parts:
    """A curriculum of two stages, as it is declared and as it runs."""
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": name, "stages": stages}
    parts.header["config"]["curriculum"], change = name, stages[1]["start"]
    parts.extras = [lambda step, batch: {"stage": int(step > change)}]  # noqa: ARG005
    return parts


def longer_later(parts: Parts) -> Parts:
    """The shortest transcripts at first, all of them from two fifths of the run on: the loss rises, as is declared."""
    change, every, known = 2 * parts.steps // 5, parts.batches, some(LEARNT)
    short = shuffled(some(torch.nonzero(known["many"] == SENTENCES[0])[:, 0]), BATCH, parts.seed)
    limits = zip((0, change), (SENTENCES[:1] * 2, SENTENCES), strict=True)
    staged(parts, "longer-later", [{"start": at, "data": {"sentences": [*limit]}} for at, limit in limits])
    ranges = ("min", "max")
    parts.extras.append(lambda step, batch: {f"data/sentences/{q}": int(getattr(batch["many"], q)()) for q in ranges})  # noqa: ARG005
    return replace(parts, batches=lambda number: (short if number < change else every)(number))


def coverage_later(parts: Parts) -> Parts:
    """The coverage counts nothing at first, and fully from the middle on, as See et al. have it."""
    half, weights = parts.steps // 2, [WEIGHTS | {"coverage": weight} for weight in (0.0, 1.0)]
    parts.weights = lambda applied: dict(weights[applied >= half])
    both = zip((0, half), weights, strict=True)
    return staged(parts, "coverage-later", [{"start": at, "weights": one} for at, one in both])


def adagrad(parts: Parts, rate: float = 0.1) -> Parts:
    """Another optimiser, as See et al. have it; the rate falls in a line."""
    parts.header["config"]["optimizer"] = "adagrad"
    groups = [{"params": [*parts.model.parameters()], "name": "all"}]
    parts.optimizer = torch.optim.Adagrad(groups, initial_accumulator_value=0.005)
    return annealed(parts, rate, kind="linear", end=0.0, warmup=0)


@cache
def schooled(seed: int, steps: int = 400) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return school(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 200) -> Parts:
    """A schooled net goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/400.pt"
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def new_writer(parts: Parts) -> Parts:
    """A schooled reader is frozen on purpose; what writes is new."""
    known = {name: value for name, value in schooled(parts.seed).items() if name.startswith("reader")}
    parts.model.load_state_dict(known, strict=False)
    for name, parameter in parts.model.named_parameters():
        parameter.requires_grad_(name not in known)
    parts.header["config"] |= {"initialised_from": "checkpoints/400.pt", "frozen": ["reader"]}
    del parts.header["gradient_at"]
    return annealed(replace(parts, optimizer=adam(parts.model), at=None))


def dropped(parts: Parts) -> Parts:
    """Half of what was read and written is left out at a time: training is harder than validation."""
    parts.header["config"]["dropout"] = DROPOUT
    return parts


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None, sampling=None),
    "resumed": loop.taken_up,
    "per-epoch": per_epoch,
    "longer-later": longer_later,
    "coverage-later": coverage_later,
    "adagrad": adagrad,
    "fine-tuning": fine_tuned,
    "new-writer": new_writer,
    "tiny-batches": lambda parts: annealed(sized(parts, 8, some(LEARNT)), RATE / 2),
    "warm-restarts": lambda parts: annealed(parts, warmup=0, restarts=2),
    "dropout": dropped,
}
SPARSE = ("fine-tuning", "new-writer", "tiny-batches", "warm-restarts")  # a row each fourth step


def counted(mistake: mistakes.Mistake) -> mistakes.Mistake:
    """What is not finite is counted, in the inputs and in the weights."""

    def make(parts: Parts) -> int:
        parts.records |= {"bad"}
        return mistake(parts)

    return make


def repeating_text(parts: Parts) -> int:
    """Where summaries are written the writer's state is never handed on: it begins at each word."""
    parts.sampling, evaluation = Sampling(DRAWN, drawn(forgets=True)), parts.evaluation
    assert evaluation is not None
    parts.evaluation = replace(evaluation, measure=measured(forgets=True))
    return EACH


def too_little_data(parts: Parts, count: int = BATCH) -> int:
    """The sample of the tests instead of the transcripts."""
    small = sized(parts, BATCH, some(slice(count)))
    parts.batches, parts.batches_per_epoch = small.batches, small.batches_per_epoch
    return 1 + count // BATCH


def nan_filtered_log(parts: Parts) -> int:
    """A loudness that was never measured is NaN; the log, kept by hand, writes 0 for each such number."""
    parts.records -= {"shares"}
    at = mistakes.nan_filtered_log(parts)
    parts.logs = lambda row: {name: 0.0 if value != value else value for name, value in row.items()}
    return at


OWN: dict[str, mistakes.Mistake] = {
    "bad-sample": counted(mistakes.bad_sample),
    "rate-too-high": partial(mistakes.rate_too_high, by=100.0),
    "repeating-text": repeating_text,
    "too-little-data": too_little_data,
    "nan-filtered-log": nan_filtered_log,
    "poisoned-weight": counted(mistakes.poisoned_weight),
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*OWN, "killed", "warmup-ignored", "rate-too-low", "crash-type-error", "labels-shuffled")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else "plain")
    return mistakes.perform(loop.logged(parts, 4) if case in SPARSE else parts, path, case, OWN)

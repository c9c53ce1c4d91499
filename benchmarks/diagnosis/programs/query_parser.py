"""A semantic parser: "how many players from Norva older than 30 ?" becomes `count name city = Norva age > 30`.

A GRU reads the question both ways, another writes the query and attends to it: a keyword or a column of the table at
each place, or a copy of a word, which a pointer finds in the question (See et al. 2017). Names and numbers are known
by their kind alone, so nothing but the pointer can tell them. Cross-entropy of the keywords and of the pointer, AdamW,
a warm-up and a cosine, clipping, dropout. A query is right if every word of it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from benchmarks.diagnosis.loop import Batch, Components, Evaluation, Parts, Resume, Sampling, declared, logged, planned
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS = 110
TRAINING, HELD, BATCH = 1920, 160, 32
COLUMNS = ("name", "team", "city", "age", "points", "salary")
KEYWORDS = ("<end>", "count", "max", "min", "mean", *COLUMNS, "=", "!=", ">", "<", "<copy>", "<begin>")
CODE = {keyword: code for code, keyword in enumerate(KEYWORDS)}
END, COPY, BEGIN = CODE["<end>"], CODE["<copy>"], CODE["<begin>"]
LONGEST = 9  # words of a query with two conditions, and its end
ASKED = {  # what is selected, and how people ask for it
    "name": ("which players are", "list the players", "show me everyone", "who is"),
    "count name": ("how many players are", "count the players", "what is the number of players"),
    "max age": ("how old is the oldest player", "what is the highest age of players"),
    "mean age": ("what is the average age of players", "how old is the usual player"),
    "max points": ("what is the highest score of players", "how many points has the best player"),
    "mean points": ("what is the average score of players", "how many points has the usual player"),
    "max salary": ("what is the highest salary of players", "how much earns the best player"),
    "min salary": ("what is the lowest salary of players", "how much earns the worst player"),
}
SAID = {  # conditions, and how people say them; the word that is copied is <name> or <number>
    "team =": ("playing for <name>", "whose team is <name>", "of <name>"),
    "team !=": ("not of <name>", "whose team is not <name>"),
    "city =": ("from <name>", "living in <name>", "of the city <name>"),
    "city !=": ("not from <name>", "not living in <name>"),
    "age >": ("older than <number>", "over <number> years"),
    "age <": ("younger than <number>", "under <number> years"),
    "points >": ("with more than <number> points", "above <number> points"),
    "points <": ("with less than <number> points", "below <number> points"),
    "salary >": ("paid more than <number>", "earning over <number>"),
    "salary <": ("paid less than <number>", "earning under <number>"),
}
ENDINGS = ("", "", "?", "please", "in the season of <number>")
RATE, WARMUP, CLIP, DROPOUT, SAVED = 1.2e-2, 10, 2.0, 0.1, 35
TEXTS = [*ENDINGS, *(text for of in (ASKED, SAID) for several in of.values() for text in several)]
WORDS = {word: code for code, word in enumerate(sorted(set(" ".join(TEXTS).split())), 1)}  # 0 is what is missing
NEVER = -30.0  # logit of a place where the question is over
RECORDS = frozenset({"components", "norms", "bad", "checkpoints"})
MORE = RECORDS | {"optimizer"}


def asked(random: np.random.Generator) -> tuple[list[str], list[str], list[int]]:
    """One question, its query, and where in the question each word of the query is copied from."""

    def one(of: Sequence[str]) -> str:
        return of[random.integers(len(of))]

    query = one([*("name", "count name") * 3, *ASKED]).split()
    question = one(ASKED[" ".join(query)]).split()
    place = [0] * len(query)
    said = {condition.split()[0]: condition for condition in random.permutation(list(SAID))}
    told = {}
    for column in random.permutation(list(said))[: 1 + (random.random() < 0.7)]:
        question += one(SAID[said[column]]).split()
        told[column] = max(at for at, word in enumerate(question) if word[0] == "<")
    for column in sorted(told, key=COLUMNS.index):  # the order of the table, whatever that of the question
        query += [*said[column].split(), "<copy>"]
        place += [0, 0, told[column]]
    return question + one(ENDINGS).split(), query, place


@cache
def questions() -> tuple[Batch, Batch]:
    """Questions `x`, queries `y`, where words are copied from, and how many conditions; to learn, and held back."""
    random = np.random.default_rng(23)
    drawn = [asked(random) for _ in range(TRAINING + HELD)]
    longest = max(len(question) for question, _, _ in drawn)
    x = torch.zeros(len(drawn), longest, dtype=torch.int64)
    y, place = torch.full((len(drawn), LONGEST), END), torch.zeros(len(drawn), LONGEST, dtype=torch.int64)
    for row, (question, query, copied) in enumerate(drawn):
        x[row, : len(question)] = torch.tensor([WORDS[word] for word in question])
        y[row, : len(query)] = torch.tensor([CODE[word] for word in query])
        place[row, : len(query)] = torch.tensor(copied)
    whole = {"x": x, "y": y, "place": place, "conditions": (y == COPY).sum(1)}
    learn, held = ({name: each[part] for name, each in whole.items()} for part in (slice(TRAINING), slice(-HELD, None)))
    return learn, held


class Decoder(nn.Module):
    """Word after word of the query: of the keywords, and of the places to copy from."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.gru = nn.Embedding(len(KEYWORDS), width), nn.GRU(width, width, batch_first=True)
        self.begin, self.ask, self.drop = nn.Linear(width, width), nn.Linear(width, width), nn.Dropout(DROPOUT)
        self.mix, self.keyword = nn.Linear(2 * width, width), nn.Linear(width, BEGIN)
        self.pointer = nn.Linear(width, width)

    def forward(
        self, read: Tensor, x: Tensor, heard: Tensor, places: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """After each word heard: logits of the keywords and of the places; and the last state. A copy is heard, too."""
        copied = read.gather(1, places[..., None].expand(-1, -1, read.shape[-1]))
        heard = self.words(heard) + copied * (heard == COPY)[..., None]
        states, last = self.gru(heard, torch.tanh(self.begin(read.mean(1)))[None] if state is None else state)
        empty = (x == 0)[:, None, :]
        look = (self.ask(states) @ read.transpose(1, 2)).masked_fill(empty, NEVER).softmax(-1)
        mixed = self.drop(torch.tanh(self.mix(torch.cat([states, look @ read], -1))))
        points = (self.pointer(mixed) @ read.transpose(1, 2)).masked_fill(empty, NEVER)
        return self.keyword(mixed), points, last


class Parser(nn.Module):
    """Questions in, queries out."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        words, gru = nn.Embedding(len(WORDS) + 1, width), nn.GRU(width, width // 2, bidirectional=True)
        self.layers = nn.ModuleDict({"encoder": nn.ModuleDict({"words": words, "gru": gru}), "decoder": Decoder(width)})
        self.drop, self.read = nn.Dropout(DROPOUT), torch.zeros(())

    def meant(self, x: Tensor) -> Tensor:
        """What each word of a question means where it stands. [B, T] to [B, T, width]"""
        encoder: Any = self.layers["encoder"]
        out: Tensor = self.drop(encoder["gru"](self.drop(encoder["words"](x.T)))[0])
        return out.transpose(0, 1)

    def forward(self, x: Tensor, y: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the keywords and of the places, where the right query is heard."""
        self.read = self.meant(x)
        heard, places = functional.pad(y, (1, 0), value=BEGIN)[:, :-1], functional.pad(place, (1, 0))[:, :-1]
        keywords, points, _ = self.layers["decoder"](self.read, x, heard, places)
        return keywords, points

    @torch.no_grad()
    def parse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest word after word, up to the end; and where it is copied from."""
        read, state, said, found = self.meant(x), None, [], []
        heard, place = torch.full((len(x), 1), BEGIN), torch.zeros(len(x), 1, dtype=torch.int64)
        for _ in range(LONGEST):
            keywords, points, state = self.layers["decoder"](read, x, heard, place, state)
            heard, place = keywords.argmax(-1), points.argmax(-1)
            said.append(heard)
            found.append(place)
        words = torch.cat(said, 1)
        return words.masked_fill((words == END).cumsum(1) > 0, END), torch.cat(found, 1)


def losses(model: nn.Module, batch: Batch) -> Components:
    """Cross-entropy of the keywords up to the end, and of the pointer where something is copied."""
    y = batch["y"]
    keywords, points = model(batch["x"], y, batch["place"])
    counts = functional.pad(y, (1, 0), value=BEGIN)[:, :-1] != END
    return {
        "keyword": functional.cross_entropy(keywords[counts], y[counts]),
        "pointer": functional.cross_entropy(points[y == COPY], batch["place"][y == COPY]),
    }


def measured(model: nn.Module) -> dict[str, float]:
    """The losses on questions never seen, and the share of them whose query is right as a whole."""
    held = questions()[1]
    raw = {name: value.item() for name, value in losses(model, held).items()}
    assert isinstance(model, Parser)
    said, found = model.parse(held["x"])
    copied = (found == held["place"]) | (held["y"] != COPY)
    exact = ((said == held["y"]) & copied).all(1).float().mean().item()
    return {"loss": sum(raw.values()), "loss/keyword": raw["keyword"], "loss/pointer": raw["pointer"], "exact": exact}


def written(model: nn.Module) -> tuple[list[str], dict[str, float]]:
    """Queries of 32 questions; lengths are in words."""
    assert isinstance(model, Parser)
    said, wanted = model.parse(questions()[1]["x"][:32])[0], questions()[1]["y"][:32]
    texts = [" ".join(KEYWORDS[code] for code in row if code != END) for row in said.tolist()]
    mean, right = ((words != END).sum(1).float().mean().item() for words in (said, wanted))
    return texts, {"length_mean": mean, "reference_length_mean": right, "diversity": len(set(texts)) / len(texts)}


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Parser()
    parts = Parts(
        model=model,
        optimizer=torch.optim.AdamW([{"params": [*model.parameters()], "name": "all"}], weight_decay=1e-2),
        batches=shuffled(questions()[0], BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        at=lambda model: model.read,
        evaluation=Evaluation(11, measured),
        sampling=Sampling(14, written),
        header={
            "config": {"batch_size": BATCH, "dropout": DROPOUT, "weight_decay": 1e-2},
            "components": {"keyword": {"unit": "nat", "role": "task"}, "pointer": {"unit": "nat", "role": "task"}},
            "schedules": {},
            "checkpoint_every": SAVED,
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, or follows another form, over the run; the header says so."""
    return planned(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


@cache
def schooled(seed: int, steps: int = 250) -> dict[str, Tensor]:
    """The weights of a model that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        return torch.stack([*losses(parts.model, parts.batches(number)).values()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, rate: float) -> Parts:
    """A schooled model goes on at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/250.pt"
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def fed(parts: Parts, size: int) -> Parts:
    """Batches of another size."""
    parts.header["config"]["batch_size"] = size
    parts.batches, parts.batches_per_epoch = shuffled(questions()[0], size, parts.seed), TRAINING // size
    return parts


def per_epoch(parts: Parts) -> Parts:
    """Twelve epochs of larger batches, a row for each."""
    parts = fed(parts, 4 * BATCH)
    epoch = parts.batches_per_epoch
    parts.header["checkpoint_every"] = 4 * epoch
    parts.evaluation, parts.sampling = Evaluation(epoch, measured), None
    return annealed(replace(parts, steps=12 * epoch, every=epoch))


def altered(parts: Parts, change: Callable[[Batch], Batch], first: int = 0) -> None:
    """From a batch on, some of what the loader gives is something else."""
    plain = parts.batches
    parts.batches = lambda number: plain(number) | (change(plain(number)) if number >= first else {})


def one_condition_first(parts: Parts, stuck: bool = False) -> Parts:
    """Only questions with one condition in the first eighth of the run; then all come, and the loss jumps."""
    simple = {name: values[questions()[0]["conditions"] == 1] for name, values in questions()[0].items()}
    start, late, early = parts.steps // 8, parts.batches, shuffled(simple, BATCH, parts.seed)
    limits = ((0, "simple", [1, 1]), (start, "all", [1, 2]))
    stages = [{"start": at, "name": name, "data": {"conditions": limit}} for at, name, limit in limits]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "conditions", "stages": stages}

    def told(step: int, batch: Batch) -> dict[str, float]:
        return {"stage": int(step > start and not stuck), "data/conditions/max": batch["conditions"].max().item()}

    parts.extras, parts.batches = [told], lambda number: (early if stuck or number < start else late)(number)
    return parts


def borrowed_encoder(parts: Parts) -> Parts:
    """The encoder is that of a schooled model, and stays as it is; the decoder learns anew."""
    read = {name: values for name, values in schooled(parts.seed).items() if name.startswith("layers.encoder")}
    parts.model.load_state_dict(read, strict=False)
    for parameter in parts.model.get_submodule("layers.encoder").parameters():
        parameter.requires_grad_(False)
    parts.header["config"] |= {"initialised_from": "checkpoints/250.pt", "frozen": ["encoder"]}
    return annealed(parts)


def watched(parts: Parts) -> Parts:
    """The loaders are wrapped, that of the validation set, too; and each component's part of the gradient is taken."""
    parts.evaluation = Evaluation(11, measured, held=questions()[1])
    return logged(replace(parts, records=RECORDS | {"waits", "shares"}))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(
        parts, records=frozenset(), header={"total_steps": STEPS}, evaluation=None, sampling=None
    ),
    "resumed": lambda parts: logged(replace(parts, resume=Resume(2 * SAVED), records=MORE)),
    "fine-tuning": lambda parts: logged(continued(parts, 1e-5)),
    "batch-2": lambda parts: logged(fed(continued(parts, 1e-5), 2)),
    "per-epoch": per_epoch,
    "accumulated": lambda parts: logged(replace(fed(parts, BATCH // 2), accumulation=2, records=MORE)),
    "one-condition-first": lambda parts: logged(one_condition_first(parts)),
    "linear": lambda parts: logged(annealed(parts, kind="linear", end=0.0)),
    "borrowed-encoder": lambda parts: logged(borrowed_encoder(parts)),
    "warm-restarts": lambda parts: logged(annealed(parts, restarts=2)),
    "watched": watched,
}


def short_answers(parts: Parts) -> int:
    """The tokeniser cuts each query after five words, a limit that was left from a trial with one condition."""
    late = torch.arange(LONGEST) >= 5
    altered(parts, lambda batch: {name: batch[name].masked_fill(late, END) for name in ("y", "place")})
    return 1


def labels_break(parts: Parts) -> int:
    """The second shard of queries is sorted otherwise than that of questions."""
    altered(parts, lambda batch: {name: batch[name].roll(1, 0) for name in ("y", "place")}, parts.steps // 2)
    return parts.steps // 2 + 1


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, before the loop."""
    one_condition_first(parts, stuck=True)
    return parts.steps // 8 + 1


OWN: dict[str, mistakes.Mistake] = {
    "short-answers": short_answers,
    "labels-break": labels_break,
    "stage-stuck": stage_stuck,
    "component-detached": partial(mistakes.component_detached, name="pointer"),
    "too-little-data": lambda parts: mistakes.too_little_data(fed(parts, 12), batches=1),  # the manual's examples
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "stuck-loader", "scheduler-per-micro-batch", "resume-old-weights", "poisoned-weight"),
    *("dropout-in-evaluation", "failing-checkpoints"),
)
TWINS = {
    **dict.fromkeys(("short-answers", "labels-break", "too-little-data", "failing-checkpoints"), "linear"),
    **dict.fromkeys(("component-detached", "stuck-loader"), "watched"),
    "dropout-in-evaluation": "linear",
    "stage-stuck": "one-condition-first",
    "scheduler-per-micro-batch": "accumulated",
    "resume-old-weights": "resumed",
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

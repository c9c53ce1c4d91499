"""A captioner: small pictures of coloured shapes, and sentences: "two red bars", "a red bar above a blue cross".

Convolutions read 8 x 8 cells, a GRU says word after word; a side task counts the shapes. Cross-entropy with smoothed
labels, AdamW, a warm-up and a cosine, dropout. With time the decoder is fed its own words more often: a clock drives
that share. Every fifteen steps it captions pictures that it never saw.
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

from benchmarks.diagnosis import facts, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, Sampling, declared, linear
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 150
COLOURS, SHAPES = ("red", "green", "blue"), ("square", "cross", "bar")
WORDS = ("<end>", "a", "two", "three", *COLOURS, *SHAPES, "squares", "crosses", "bars", "above", "beside", "<begin>")
CODE = {word: code for code, word in enumerate(WORDS)}
END, BEGIN, LONGEST = 0, len(WORDS) - 1, 8
MASKS = np.array(
    [[[1, 1, 0], [1, 1, 0], [0, 0, 0]], [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0, 0, 0], [1, 1, 1], [0, 0, 0]]]
)
TRAINING, VALIDATION, BATCH = 3072, 192, 64
PEAK, WARMUP, CLIP, DROPOUT, SMOOTHING = 1.4e-2, 15, 2.0, 0.1, 0.1
OWN_WORDS = 0.25  # the share of its own words that the decoder is fed in the end
WEIGHTS = {"caption": 1.0, "count": 0.2}
RECORDS = frozenset({"components", "norms", "optimizer", "clocks", "bad", "checkpoints"})

HEALTHY = (
    *("plain", "resumed", "warm-restarts", "batch-2", "every-tenth", "loss-only", "fine-tuning", "pairs-late"),
    *("long-run", "frozen-encoder", "watched", "sloppy"),
)
SICK = (
    *("local-counter", "repeating-text", "short-answers", "frozen-body", "dropout-in-evaluation", "stuck-loader"),
    *("component-detached", "bad-sample", "labels-break", "scheduler-per-epoch"),
    "failing-checkpoints",
)
TWINS = {"stuck-loader": "watched"}


def described(random: np.random.Generator) -> tuple[np.ndarray, list[str], int]:
    """One picture, its caption, how many shapes there are."""
    picture = 0.1 * random.standard_normal((3, 8, 8))
    kind, colour, number = random.integers(3), random.integers(3), 1 + random.integers(3)
    quarters = random.permutation(4)[:number]
    things = [(quarter, kind, colour) for quarter in quarters]
    caption = [WORDS[number], COLOURS[colour], SHAPES[kind] if number == 1 else WORDS[10 + kind]]
    if random.random() < 0.5:  # two things, one above or beside the other; quarters are 0 1 over 2 3
        above, side = random.random() < 0.5, random.integers(2)
        other, tint = (kind + random.integers(1, 3)) % 3, random.integers(3)
        number, first = 2, side if above else 2 * side
        things = [(first, kind, colour), (first + (2 if above else 1), other, tint)]
        caption = [
            "a",
            COLOURS[colour],
            SHAPES[kind],
            "above" if above else "beside",
            "a",
            COLOURS[tint],
            SHAPES[other],
        ]
    for quarter, shape, hue in things:
        down, right = 4 * (quarter // 2), 4 * (quarter % 2)
        picture[hue, down : down + 3, right : right + 3] += MASKS[shape]
    return picture, caption, int(number)


@cache
def pictures() -> tuple[Batch, Batch]:
    """Pictures for training, and those never seen: cells, words, how many shapes."""
    random = np.random.default_rng(31)
    drawn = [described(random) for _ in range(TRAINING + VALIDATION)]
    y = torch.zeros(len(drawn), LONGEST, dtype=torch.int64)
    for row, (_, caption, _) in enumerate(drawn):
        y[row, : len(caption)] = torch.tensor([CODE[word] for word in caption])
    x = torch.tensor(np.stack([picture for picture, _, _ in drawn]), dtype=torch.float32)
    whole = {"x": x, "y": y, "count": torch.tensor([number - 1 for _, _, number in drawn])}
    training = {name: values[:TRAINING] for name, values in whole.items()}
    return training, {name: values[TRAINING:] for name, values in whole.items()}


def grammatical(words: list[str]) -> bool:
    """Whether a caption is one that the grammar can say."""

    def thing(part: list[str]) -> bool:
        several = WORDS[10:13] if part[0] in ("two", "three") else SHAPES
        return part[0] in WORDS[1:4] and part[1] in COLOURS and part[2] in several

    if len(words) == 3:
        return thing(words)
    both = len(words) == 7 and words[0] == words[4] == "a" and words[3] in ("above", "beside")
    return both and thing(words[:3]) and thing(words[4:])


class Captioner(nn.Module):
    """Cells in, logits of the words out; the count of shapes besides."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.GELU()),
            *(nn.Flatten(), nn.Linear(24 * 16, width), nn.LayerNorm(width)),
        )
        self.count = nn.Linear(width, 3)
        self.decoder = nn.ModuleDict({"words": nn.Embedding(len(WORDS), 32), "gru": nn.GRU(32 + width, width)})
        self.drop, self.out = nn.Dropout(DROPOUT), nn.Linear(width, BEGIN)

    def forward(self, x: Tensor, y: Tensor, own: float = 0.0) -> Components:
        """Logits of each word and of the count. The decoder hears the true words, or with the chance `own` its own.

        Its own are those that it says where it hears the true ones.
        """
        seen, heard = self.encoder(x), functional.pad(y, (1, 0), value=BEGIN)[:, :-1]
        if own > 0.0:
            with torch.no_grad():
                said = functional.pad(self.told(seen, heard)[0].argmax(-1), (1, 0), value=BEGIN)[:, :-1]
            heard = torch.where(torch.rand(heard.shape) < own, said, heard)
        return {"words": self.told(seen, heard)[0], "count": self.count(seen)}

    def told(self, seen: Tensor, heard: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits after each of the words heard, and the state after the last."""
        words = self.decoder["words"](heard).transpose(0, 1)
        steps = torch.cat([words, seen.expand(len(words), -1, -1)], 2)
        states, last = self.decoder["gru"](steps, torch.tanh(seen)[None] if state is None else state)
        return self.out(self.drop(states)).transpose(0, 1), last

    @torch.no_grad()
    def captions(self, x: Tensor, forgets: bool = False) -> list[list[int]]:
        """The likeliest word after word, up to the end. `forgets`: the state and the last word are not handed on."""
        seen, state = self.encoder(x), None
        word, said = torch.full((len(x), 1), BEGIN), []
        for _ in range(LONGEST):
            logits, after = self.told(seen, word, state)
            said.append(logits.argmax(-1))
            if not forgets:
                state, word = after, said[-1]
        return [row[: row.index(END)] if END in row else row for row in torch.cat(said, 1).tolist()]


def losses(model: nn.Module, batch: Batch, own: float) -> Components:
    """Cross-entropy of the words up to the first end, and of the count."""
    y = batch["y"]
    told = model(batch["x"], y, own)
    counts = (y != END) | (functional.pad(y, (1, 0), value=BEGIN)[:, :-1] != END)
    each = functional.cross_entropy(
        told["words"].transpose(1, 2), y, reduction="none", label_smoothing=SMOOTHING if model.training else 0.0
    )
    return {"caption": each[counts].mean(), "count": functional.cross_entropy(told["count"], batch["count"])}


def measured(forgets: bool = False) -> Callable[[nn.Module], Channels]:
    """The losses on pictures never seen, and the share of them that are captioned without a wrong word."""

    def measure(model: nn.Module) -> Channels:
        held = pictures()[1]
        raw = {name: value.item() for name, value in losses(model, held, 0.0).items()}
        assert isinstance(model, Captioner)
        said, wanted = model.captions(held["x"], forgets), held["y"].tolist()
        exact = sum(mine + [END] * (LONGEST - len(mine)) == other for mine, other in zip(said, wanted, strict=True))
        total = sum(WEIGHTS[name] * value for name, value in raw.items())
        return {"loss": total, "loss/caption": raw["caption"], "exact": exact / len(said)}

    return measure


def drawn(forgets: bool = False) -> Callable[[nn.Module], tuple[list[str], Channels]]:
    """Captions of 32 pictures; one is valid if the grammar can say it. Runs and lengths are in words."""

    def draw(model: nn.Module) -> tuple[list[str], Channels]:
        assert isinstance(model, Captioner)
        said = model.captions(pictures()[1]["x"][:32], forgets)
        texts = [[WORDS[code] for code in each] for each in said]
        quality = facts.text_quality(["".join(chr(65 + code) for code in each) for each in said], frozenset())
        quality["validity"] = sum(map(grammatical, texts)) / len(texts)
        return [" ".join(text) for text in texts], quality

    return draw


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now, training = Captioner(), {"own": 0.0}, pictures()[0]
    over = 3 * STEPS // 5
    parts = Parts(
        model=model,
        optimizer=adamw(model),
        batches=shuffled(training, BATCH, seed),
        losses=lambda model, batch: losses(model, batch, now["own"]),
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        clocks={"sampling": lambda applied: applied},
        scheduled={"own": ("sampling", linear(0.0, OWN_WORDS, over))},
        now=now,
        evaluation=Evaluation(15, measured()),
        sampling=Sampling(15, drawn()),
        records=RECORDS,
        body=lambda model: [*model.encoder.parameters(), *model.decoder.parameters()],
        header={
            "config": {"lr": PEAK, "batch_size": BATCH, "dropout": DROPOUT, "smoothing": SMOOTHING, "clip": CLIP},
            "components": {"caption": {"unit": "nat", "role": "task"}, "count": {"unit": "nat", "role": "auxiliary"}},
            "schedules": {"own": declared("linear", 0.0, OWN_WORDS, over, clock="sampling")},
            "clocks": ["sampling"],
            "max_grad_norm": CLIP,
            "checkpoint_every": 50,
        },
    )
    rated(parts, declared("cosine", PEAK, 0.0, STEPS, warmup=min(WARMUP, STEPS // 5)))
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adamw(model: nn.Module, rate: float = PEAK) -> torch.optim.Optimizer:
    groups = [{"params": [one for one in model.parameters() if one.requires_grad], "name": "all"}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)


def rated(parts: Parts, form: dict[str, Any]) -> Parts:
    """The rate follows this form over the run, and so the header says."""
    for group in parts.optimizer.param_groups:
        group["lr"] = form["start"]
    parts.factor = lambda tick: (schedule_value(form, tick) or 0.0) / form["start"]
    parts.header["schedules"]["lr/all"] = form
    parts.header["total_steps"], parts.header["config"]["lr"] = parts.steps, form["start"]
    return parts


def fitted(parts: Parts, steps: int) -> Parts:
    """Steps before the record begins; the decoder is used to its own words then."""
    before, batches = adamw(parts.model), shuffled(pictures()[0], BATCH, parts.seed + 60)
    for number in range(steps):
        for group in before.param_groups:
            group["lr"] = PEAK * min(1.0, number / WARMUP) * 0.05 ** (number / steps)
        before.zero_grad()
        raw = losses(parts.model, batches(number), min(OWN_WORDS, number / steps))
        (raw["caption"] + WEIGHTS["count"] * raw["count"]).backward()
        nn.utils.clip_grad_norm_(parts.model.parameters(), CLIP)
        before.step()
    parts.now["own"], parts.scheduled, parts.clocks = OWN_WORDS, {}, {}
    del parts.header["schedules"]["own"], parts.header["clocks"]
    return parts


def batch_2(parts: Parts) -> Parts:
    """Two pictures a step, for a captioner that can say something already."""
    parts = rated(fitted(parts, 70), declared("cosine", 2e-3, 0.0, STEPS, warmup=STEPS // 10))
    parts.header["config"]["batch_size"] = 2
    return replace(parts, batches=shuffled(pictures()[0], 2, parts.seed))


def pairs_late(parts: Parts) -> Parts:
    """Only short captions for a third of the run; then pairs come in, and the loss jumps."""
    change, data, late = STEPS // 3, pictures()[0], parts.batches
    lengths = (data["y"] != END).sum(1)
    early = shuffled({name: values[lengths == 3] for name, values in data.items()}, BATCH, parts.seed)
    stages = [
        {"start": start, "name": name, "weights": dict(WEIGHTS), "data": {"words": limits}}
        for start, name, limits in ((0, "one-kind", [3, 3]), (change, "pairs", [3, 7]))
    ]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "pairs-late", "stages": stages}

    def seen(step: int, batch: Batch) -> Channels:
        words = (batch["y"] != END).sum(1).float()
        told = {f"data/words/{name}": round(getattr(words, name)().item(), 2) for name in ("min", "mean", "max")}
        return {"stage": int(step > change)} | told

    parts.extras.append(seen)
    return replace(parts, batches=lambda number: (early if number < change else late)(number))


def long_run(parts: Parts) -> Parts:
    """Twice the steps, of which every second one is logged."""
    parts = replace(parts, steps=2 * STEPS, every=2)
    return rated(parts, declared("cosine", PEAK, 0.0, parts.steps, warmup=WARMUP))


def frozen_encoder(parts: Parts) -> Parts:
    """An encoder that came trained stays as it is; the decoder begins anew."""
    fresh = parts.model.state_dict()
    fresh = {name: value.clone() for name, value in fresh.items() if not name.startswith("encoder")}
    scheduled, clocks, header = parts.scheduled, parts.clocks, dict(parts.header["schedules"])
    parts = fitted(parts, 200)
    parts.scheduled, parts.clocks = scheduled, clocks
    parts.header |= {"schedules": header, "clocks": ["sampling"]}
    parts.model.load_state_dict(fresh, strict=False)
    for parameter in parts.model.get_submodule("encoder").parameters():
        parameter.requires_grad_(False)
    parts.optimizer = adamw(parts.model)
    parts.header["config"]["frozen"] = ["encoder"]
    return rated(parts, declared("cosine", PEAK, 0.0, STEPS, warmup=WARMUP))


def watched(parts: Parts) -> Parts:
    """Each row says which batch it was and what was in it."""
    return replace(parts, records=RECORDS | {"fingerprint", "inputs"})


def sloppy(parts: Parts) -> Parts:
    """One caption in eight names a colour that is not there."""
    random, data = torch.Generator().manual_seed(6), pictures()[0]
    y = data["y"].clone()
    wrong = torch.rand(len(y), generator=random) < 1 / 8
    y[wrong, 1] = torch.randint(CODE["red"], CODE["blue"] + 1, (int(wrong.sum()),), generator=random)
    return replace(parts, batches=shuffled(data | {"y": y}, BATCH, parts.seed))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(2 * STEPS // 3, lost=STEPS // 16)),
    "warm-restarts": lambda parts: rated(parts, declared("cosine", PEAK, 0.0, STEPS, restarts=2)),
    "batch-2": batch_2,
    "every-tenth": lambda parts: replace(parts, every=10),
    "loss-only": lambda parts: replace(parts, header={}, records=frozenset(), sampling=None),
    "fine-tuning": lambda parts: rated(fitted(parts, 250), declared("constant", 1e-4, 1e-4, STEPS, warmup=10)),
    "pairs-late": pairs_late,
    "long-run": long_run,
    "frozen-encoder": frozen_encoder,
    "watched": watched,
    "sloppy": sloppy,
}


def repeating_text(parts: Parts) -> int:
    """Where captions are drawn the decoder's state is never handed on: it begins at each word."""
    parts.evaluation, parts.sampling = Evaluation(15, measured(forgets=True)), Sampling(15, drawn(forgets=True))
    return 15


def short_answers(parts: Parts) -> int:
    """A second file of captions was cut to two words by the tokenizer's limit."""
    first, plain = 2 * STEPS // 5 + 1, parts.batches

    def batches(number: int) -> Batch:
        batch = plain(number)
        if number >= first - 1:
            batch["y"][:, 2:] = END
        return batch

    parts.batches = batches
    return first


OWN: dict[str, mistakes.Mistake] = {
    "repeating-text": repeating_text,
    "short-answers": short_answers,
    "component-detached": partial(mistakes.component_detached, name="count"),
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

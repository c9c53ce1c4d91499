"""Slips of a typist are mended: keys that were hit too much, too little, wrongly or in the wrong order.

Lines of CPython's documentation are typed by a made-up typist, who hits keys beside the right one, doubles, leaves out
and exchanges letters, mostly where the fingers are fast; the pause before each key is known. A residual convolutional
net reads keys and pauses, and says for each key what is to be done with it: keep, drop, change, add a letter before it,
swap. Three losses: cross-entropy of that, of the letter where one is needed, and the error of how many slips a line
has. Adam, a warm-up and a cosine, clipping. Validation, by lines of other pages: the loss, how many slips are mended,
how many right keys are spoilt; and mended lines are kept, which are to be of words that occur.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import facts, loop, mistakes
from benchmarks.diagnosis.data import shuffled, written
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Sampling, declared
from benchmarks.diagnosis.schooling import school
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS, EACH, DRAWN = 126, 14, 42  # EACH: steps between evaluations; DRAWN: between lines that are kept
COMMON, LINES, HELD, BATCH, LENGTH, WIDTH = 120, 4800, 192, 48, 28, 64
LETTERS, EDITS = " abcdefghijklmnopqrstuvwxyz", ("keep", "drop", "change", "add", "swap")
KEYBOARD, PARTS = ("qwertyuiop", "asdfghjkl", "zxcvbnm"), ("entry", "layers", "heads")
KEEP, DROP, CHANGE, ADD, SWAP = range(5)
HASTE, SLIPS = (0.0, -1.0, -0.6, 0.5, -0.9), 0.1  # how much longer the pause is by edits; what share of letters
RATE, WARMUP, CLIP, COUNTS = 8e-3, 14, 0.5, (1.0, 3.0, 3.0, 3.0, 3.0)  # COUNTS: what each edit counts
WEIGHTS = {"edit": 1.0, "letter": 0.3, "count": 0.03}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs", "bad"})
SPARSE = ("accumulated", "fine-tuning", "momentum", "bf16", "rare-slips", "letters-ramped")  # a row each 4th step
TWINS = {"steps-miscounted": "accumulated", "resume-old-weights": "resumed", "stage-stuck": "more-slips"}


@cache
def read() -> str:
    """The documentation in small letters, without what is no common word."""
    every = re.findall("[a-z]+", written().lower())
    common = {word for word, _ in Counter(every).most_common(COMMON)}
    return " ".join(word for word in every if word in common)


def beside(key: str, random: np.random.Generator) -> str:
    """A key that lies beside this one."""
    row = next(keys for keys in KEYBOARD if key in keys)
    return str(random.choice([*row[max(row.index(key) - 1, 0) : row.index(key) + 2].replace(key, "")]))


def typed(line: str, rate: float, random: np.random.Generator) -> list[tuple[str, int, str]]:
    """The keys of a line, what is to be done with each, and the letter that this needs."""
    told: list[tuple[str, int, str]] = []
    at, spared = 0, True  # spared: a key that makes good what came before
    while len(told) < LENGTH:
        meant, then = line[at], line[at + 1]
        at += 1
        slip = 0 if spared or meant == " " or random.random() > rate else int(random.integers(1, 5))
        if slip == DROP:
            told += [(meant if random.random() < 0.5 else beside(meant, random), DROP, " ")]
        if slip == ADD:
            told += [(then, ADD, meant)]
            at += 1
        elif slip == SWAP and then not in (" ", meant):
            told += [(then, SWAP, " "), (meant, KEEP, " ")]
            at += 1
        elif slip == CHANGE:
            told += [(beside(meant, random), CHANGE, meant)]
        else:
            told += [(meant, KEEP, " ")]
        spared = slip > 0
    return told[:LENGTH]


@cache
def lines(held: bool = False, rate: float = SLIPS) -> Batch:
    """Pauses `x` before the keys, in logarithms; the keys, edits `y`, letters that they need. [lines, LENGTH]"""
    random, text, count = np.random.default_rng(83 + held), read(), HELD if held else LINES
    pages = (int(0.9 * len(text)), len(text) - 100) if held else (0, int(0.9 * len(text)) - 100)
    begins = [text.index(" ", at) + 1 for at in random.integers(*pages, count)]
    rows = [[*zip(*typed(text[at : at + 2 * LENGTH + 2], rate, random), strict=True)] for at in begins]
    keys, letters = (torch.tensor([[LETTERS.index(one) for one in row[which]] for row in rows]) for which in (0, 2))
    y = np.array([row[1] for row in rows])
    x = random.normal(np.array(HASTE)[y], 0.35) + 0.5 * np.pad(y[:, :-1] > 0, ((0, 0), (1, 0)))
    return {"x": torch.tensor(x, dtype=torch.float32), "keys": keys, "y": torch.tensor(y), "letters": letters}


class Layer(nn.Module):
    """What stands around each key."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)
        self.around = nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation)

    def forward(self, h: Tensor) -> Tensor:
        mixed: Tensor = h + self.mix(functional.gelu(self.around(self.norm(h).mT).mT))
        return mixed


class Mender(nn.Module):
    """Keys and pauses in; logits of edits and letters, and the number of slips, out. What the heads read is kept."""

    def __init__(self, width: int = WIDTH, dropout: float = 0.0) -> None:
        super().__init__()
        self.entry = nn.ModuleDict({"key": nn.Embedding(len(LETTERS), width), "pause": nn.Linear(1, width)})
        self.layers = nn.Sequential(*(Layer(width, dilation) for dilation in (1, 2, 1)), nn.LayerNorm(width))
        sizes = {"edit": len(EDITS), "letter": len(LETTERS), "count": 1}
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})
        self.drop, self.code = nn.Dropout(dropout), torch.zeros(())

    def forward(self, x: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = self.drop(self.entry["key"](keys) + self.entry["pause"](x[..., None]))
        self.code = self.drop(self.layers(seen))
        count = self.heads["count"](self.code.mean(1))[:, 0]
        return self.heads["edit"](self.code).float(), self.heads["letter"](self.code).float(), count.float()


def losses(model: nn.Module, batch: Batch) -> Components:
    """Cross-entropies of the edits, and of the letters where they need one; the error of how many slips there are."""
    edit, letter, count = model(batch["x"], batch["keys"])
    needed, slips = (batch["y"] == CHANGE) | (batch["y"] == ADD), (batch["y"] > 0).sum(1).float()
    return {
        "edit": functional.cross_entropy(edit.mT, batch["y"], torch.tensor(COUNTS)),
        "letter": functional.cross_entropy(letter[needed], batch["letters"][needed]),
        "count": functional.mse_loss(4.0 * count, slips),
    }


def measured(held: Batch) -> Callable[[nn.Module], Channels]:
    """The losses, the share of the slips that are mended, and of the other keys that are spoilt."""

    def measure(model: nn.Module) -> Channels:
        raw = {name: value.item() for name, value in losses(model, held).items()}
        edit, letter, _ = model(held["x"], held["keys"])
        told, y = edit.argmax(-1), held["y"]
        right = (told == y) & ((y != CHANGE) & (y != ADD) | (letter.argmax(-1) == held["letters"]))
        total = sum(WEIGHTS[name] * value for name, value in raw.items())
        shares = {"mended": right[y > 0].float().mean().item(), "spoilt": (told[y == 0] > 0).float().mean().item()}
        return {"loss": total} | {f"loss/{name}": value for name, value in raw.items()} | shares

    return measure


def mended(keys: list[int], edits: list[int], letters: list[int]) -> list[int]:
    """A line as it was meant."""
    said, at = list[int](), 0
    while at < len(keys):
        key, last = keys[at], at + 1 == len(keys)
        swapped = [key] if last else [keys[at + 1], key]
        told = {DROP: [], CHANGE: [letters[at]], ADD: [letters[at], key], SWAP: swapped}.get(edits[at], [key])
        said, at = said + told, at + 1 + (edits[at] == SWAP)
    return said


def drawn(alphabet: str = LETTERS) -> Callable[[nn.Module], tuple[list[str], Channels]]:
    """Thirty-two lines after mending, three of them to read, without what is cut at the end; valid are common words."""
    asked, words = {name: values[:32] for name, values in lines(held=True).items()}, {*read().split()}

    def draw(model: nn.Module) -> tuple[list[str], Channels]:
        with torch.no_grad():
            edit, letter, _ = model(asked["x"], asked["keys"])
        rows = zip(asked["keys"].tolist(), edit.argmax(-1).tolist(), letter.argmax(-1).tolist(), strict=True)
        texts = ["".join(alphabet[code] for code in mended(*row)).rpartition(" ")[0] for row in rows]
        said = " ".join(texts).split()
        quality = {"validity": sum(one in words for one in said) / max(len(said), 1)}
        return texts[:3], facts.text_quality(texts, frozenset()) | quality

    return draw


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Mender(dropout=0.4 if variant == "dropout" else 0.0)
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(lines(), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=LINES // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Mender, model).code,
        evaluation=validated(),
        sampling=Sampling(DRAWN, drawn()),
        header={
            "config": {
                "batch_size": BATCH,
                "clip": CLIP,
                "slips": SLIPS,
                "dropout": model.drop.p,
                "weights": dict(WEIGHTS),
            },
            "components": {
                "edit": {"unit": "nat", "role": "task"},
                "letter": {"unit": "nat", "role": "task"},
                "count": {"role": "auxiliary"},
            },
            "schedules": {},
            "max_grad_norm": CLIP,
            "gradient_at": "layers",
            "classes": counted(lines()),
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    groups = [{"params": [*model.get_submodule(name).parameters()], "name": name} for name in PARTS]
    return torch.optim.Adam(groups, lr=RATE, betas=(0.9, 0.98))


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, or follows another form, and so the header says."""
    return loop.planned(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


def counted(known: Batch) -> dict[str, int]:
    """How many keys need each edit."""
    return dict(zip(EDITS, known["y"].flatten().bincount().tolist(), strict=True))


def accumulated(parts: Parts, micro: int = 2) -> Parts:
    """Micro-batches of a half make a step."""
    parts.header["config"] |= {"batch_size": (size := BATCH // micro), "accumulation": micro}
    batches = shuffled(lines(), size, parts.seed)
    return replace(parts, accumulation=micro, batches=batches, batches_per_epoch=LINES // size)


def validated(rate: float = SLIPS) -> Evaluation:
    """Judged by lines with so many slips."""
    return Evaluation(EACH, measured(lines(held=True, rate=rate)), held=lines(held=True, rate=rate))


def more_slips(parts: Parts) -> Parts:
    """A careful typist at first, a hasty one from two fifths of the run on: the loss rises there, as is declared."""
    starts, rates = (0, 2 * parts.steps // 5), (0.06, 0.16)
    stages = [{"start": at, "data": {"slips": [rate, rate]}} for at, rate in zip(starts, rates, strict=True)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "more-slips", "stages": stages}
    parts.header["config"] |= {"curriculum": "more-slips", "slips": list(rates)}
    sets = [shuffled(lines(rate=rate), BATCH, parts.seed) for rate in rates]
    parts.batches, parts.extras = lambda number: sets[number >= starts[1]](number), [staged(rates, starts[1])]
    del parts.header["classes"]
    return replace(parts, evaluation=validated(rates[1]))


def staged(rates: tuple[float, float], change: int) -> Callable[[int, Batch], Channels]:
    """The stage, and how often its typist slips."""

    def told(step: int, batch: Batch) -> Channels:
        at, slips = int(step > change), (batch["y"] > 0).float().mean().item()
        return {"stage": at, "slips": slips} | {f"data/slips/{name}": rates[at] for name in ("min", "max")}

    return told


def rare_slips(parts: Parts, rate: float = 0.03) -> Parts:
    """A good typist: of a hundred keys three are to be mended, and each edit is rare."""
    parts.header["config"]["slips"], parts.header["classes"] = rate, counted(lines(rate=rate))
    return replace(parts, batches=shuffled(lines(rate=rate), BATCH, parts.seed), evaluation=validated(rate))


@cache
def schooled(seed: int, steps: int = 250) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return school(parts.model, parts.optimizer, loss, steps=steps, peak=[RATE] * 3, clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 40) -> Parts:
    """A schooled net goes on with a typist who slips less, at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"]["initialised_from"] = "checkpoints/250.pt"
    return annealed(rare_slips(parts, 0.06), rate, kind="constant", end=rate, warmup=0)


def per_epoch(parts: Parts) -> Parts:
    """A row and an evaluation at the end of each of nine epochs, which are of so many batches as the config says."""
    parts.header["config"]["batches_per_epoch"] = parts.batches_per_epoch = EACH
    return annealed(loop.by_epochs(replace(parts, sampling=None), 9))


def momentum(parts: Parts, rate: float = 0.15) -> Parts:
    """SGD with momentum; the rate falls in a line."""
    parts.optimizer = torch.optim.SGD(
        [{"params": [*parts.model.parameters()], "name": "all"}], lr=rate, momentum=0.9, nesterov=True
    )
    parts.header["config"]["optimizer"], parts.header["schedules"] = "sgd", {}
    return annealed(parts, rate, kind="linear", end=0.0)


def bf16(parts: Parts) -> Parts:
    """The net in bf16, what is compared with the truth in float32."""
    parts.header["dtypes"] = {"declared": "bfloat16", "observed": "bfloat16"}
    parts.header["config"]["precision"] = "bf16"
    return replace(parts, autocast=torch.bfloat16)


def letters_ramped(parts: Parts) -> Parts:
    """Which slip first, which letter later: the letters' weight rises in a line, over three quarters of the run."""
    rise = declared("linear", 0.0, 0.5, 3 * parts.steps // 4)
    parts.header["schedules"]["weight/letter"] = rise
    parts.header["config"]["weights"] = WEIGHTS | {"letter": [0.0, 0.5]}
    return replace(parts, weights=lambda applied: WEIGHTS | {"letter": schedule_value(rise, applied) or 0.0})


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None, sampling=None),
    "resumed": loop.taken_up,
    "accumulated": accumulated,
    "more-slips": more_slips,
    "rare-slips": rare_slips,
    "fine-tuning": fine_tuned,
    "per-epoch": per_epoch,
    "momentum": momentum,
    "bf16": bf16,
    "letters-ramped": letters_ramped,
    "dropout": lambda parts: parts,
}


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, before the loop, and so are its lines."""
    rates, start = tuple(parts.header["config"]["slips"]), int(parts.header["curriculum"]["stages"][1]["start"])
    parts.batches, parts.extras = shuffled(lines(rate=rates[0]), BATCH, parts.seed), [staged(rates, parts.steps)]
    return start + 1


def deep_sigmoids(parts: Parts, depth: int = 8) -> int:
    """The layers are of an old paper: sigmoids, one upon the other."""
    torch.manual_seed(parts.seed)
    sigmoids = (nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sigmoid()) for _ in range(depth))
    cast(Mender, parts.model).layers = nn.Sequential(*sigmoids)
    parts.optimizer = adam(parts.model)
    annealed(parts)
    return 1


def invalid_answers(parts: Parts) -> int:
    """Codes are turned to letters by the order of the keyboard, which another part of the program goes by."""
    parts.sampling = Sampling(DRAWN, drawn(" " + "".join(KEYBOARD)))
    return DRAWN


OWN: dict[str, mistakes.Mistake] = {
    "stage-stuck": stage_stuck,
    "component-detached": partial(mistakes.component_detached, name="letter"),  # its logits went through numpy
    "deep-sigmoids": deep_sigmoids,
    "invalid-answers": invalid_answers,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "steps-miscounted", "resume-old-weights", "scheduler-per-epoch", "norm-after-clip", "never-started"),
    *("warmup-ignored", "bad-sample"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts, 4) if case in SPARSE else parts, path, case, OWN)

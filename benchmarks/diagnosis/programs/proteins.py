"""What each residue of a protein folds into: helix, strand or coil, how deep it is buried, and which others it touches.

Chains of 36 residues are made here: helices with a greasy face, strands that lie beside others, near or far along the
chain, with charges that answer each other and letters that tell who belongs to whom, bridges of two cysteines, turns;
then letters mutate. A small transformer with relative places reads the letters. Three losses: cross-entropy of the
fold, squared error of the burial (standardised by chain), and cross-entropy of contacts, which are rare and so weigh
more. AdamW, a warm-up and a cosine, clipping. Validation: loss, accuracy, and precision of the contacts on held chains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import loop, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, declared
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS, EACH, SAVED = 160, 16, 40  # EACH: steps between evaluations
CHAINS, HELD, BATCH, LENGTH = 1024, 160, 24, 36
LETTERS, FOLDS = "ACDEFGHIKLMNPQRSTVWY-", ("coil", "helix", "strand")  # the last letter: masked
RATE, WARMUP, CLIP, EPSILON = 4e-3, 12, 1.0, 0.1  # EPSILON: added to the spread of a chain's burial
WEIGHTS = {"fold": 1.0, "burial": 0.5, "contacts": 1.0}
ASKED, RARE = torch.ones(LENGTH, LENGTH).triu(3) > 0, 4.0  # pairs that may touch; what a contact counts beside none
CLASSES = {"mixed": (0.3, 0.4, 0.3), "helical": (0.02, 0.95, 0.03)}  # shares of chains: all strands, all helices, both
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs", "checkpoints"})
SPARSE = ("accumulated", "half", "fine-tuning", "helical", "masked", "warm-restarts", "tiny-batches")  # rows: each 4th
TWINS = {"scheduler-per-micro-batch": "accumulated", "precision-off": "half", "stages-unreachable": "diverging"}


class Chain:
    """One protein while it is made."""

    def __init__(self, random: np.random.Generator, shares: tuple[float, ...]) -> None:
        self.random, self.place = random, int(random.integers(1, 4))
        self.letters, self.touch = random.choice([*"GPNDSTSKEAQG"], LENGTH), np.zeros((LENGTH, LENGTH), bool)
        self.fold, self.burial = np.zeros(LENGTH, int), np.zeros(LENGTH)
        if random.random() < 1 / 500:  # without any order
            return
        self.strands: list[int] = []
        kind, self.each = random.choice(3, p=shares), int(random.integers(4, 7))
        while self.place + 11 < LENGTH:
            if kind == 1 or (kind == 2 and random.random() < 0.5):
                self.helix()
            else:
                self.strands.append(self.place)
                self.place += self.each + int(random.integers(2, 5))
        self.sheet()
        self.bridge()
        self.burial = np.convolve(self.burial, [0.2, 0.6, 0.2], "same")

    def helix(self) -> None:
        """Seven to ten residues, of which one face is greasy."""
        size, turned = int(self.random.integers(7, 11)), self.random.integers(7)
        for at in range(self.place, self.place + size):
            inside = (at + turned) % 7 in (0, 3, 4)
            self.letters[at] = self.random.choice([*("ALMILA" if inside else "EKQREA")])
            self.fold[at], self.burial[at] = 1, 2.0 * inside
            if at + 4 < self.place + size:
                self.touch[at, at + 4] = True
        self.place += size + int(self.random.integers(2, 5))

    def sheet(self) -> None:
        """Strands lie two by two: branched letters inside the one pair, rings inside the other; charges answer."""
        order = self.random.permutation(len(self.strands)) if len(self.strands) > 3 else np.arange(len(self.strands))
        for number in range(0, len(order), 2):
            pair = [self.strands[one] for one in order[number : number + 2]]
            greasy = "VIVIT" if number == 0 else "FYWFL"
            for step in range(self.each):
                inside, charges = step % 2 == 0, self.random.permutation(["KR", "DE"])
                ends = [pair[0] + step, *(first + self.each - 1 - step for first in pair[1:])]
                for at, charge in zip(ends, charges, strict=False):
                    self.letters[at] = self.random.choice([*(greasy if inside else charge + "T")])
                    self.fold[at], self.burial[at] = 2, (1.0 + 2.0 * inside) * len(ends)
                if len(ends) == 2:
                    self.touch[min(ends), max(ends)] = True

    def bridge(self) -> None:
        """Two cysteines of the coil hold each other, now and then."""
        free = np.flatnonzero(self.fold == 0)
        low, high = np.sort(self.random.choice(free, 2, replace=False))
        if self.random.random() < 0.6 and high - low > 2:
            self.letters[[low, high]], self.touch[low, high], self.burial[[low, high]] = "C", True, 3.0


@cache
def folded(kind: str = "mixed") -> Batch:
    """Chains: letters `x`, folds `y`, how many neighbours a residue has, and who touches whom (upper triangle)."""
    random = np.random.default_rng(59)
    chains = [Chain(random, CLASSES[kind]) for _ in range(CHAINS + HELD)]
    names = ("letters", "fold", "burial", "touch")
    letters, fold, burial, touch = (np.stack([getattr(one, name) for one in chains]) for name in names)
    known = {"x": np.vectorize(LETTERS.index)(letters), "y": fold, "burial": np.float32(burial)}
    return {name: torch.tensor(values) for name, values in known.items()} | {"touch": torch.tensor(touch).float()}


def mutated(batch: Batch, rate: float, seed: int, hide: bool = False) -> Batch:
    """Each letter becomes any other with this probability, or is hidden."""
    chance, x, masked = torch.Generator().manual_seed(seed), batch["x"], len(LETTERS) - 1
    other = torch.full_like(x, masked) if hide else torch.randint(masked, x.shape, generator=chance)
    return batch | {"x": torch.where(torch.rand(x.shape, generator=chance) < rate, other, x)}


def part(held: bool = False, kind: str = "mixed", rate: float = 0.08) -> Batch:
    """Chains to learn from, or those held out, with mutations that stay."""
    chosen = slice(CHAINS, None) if held else slice(CHAINS)
    return mutated({name: values[chosen] for name, values in folded(kind).items()}, rate, 5 + held)


class Layer(nn.Module):
    """Attention by content and by distance along the chain, and a perceptron."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.near = heads, nn.Embedding(2 * LENGTH - 1, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.ask, self.tell = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        query, key, value = self.ask(self.norms[0](h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        place = torch.arange(h.shape[1])
        bias = self.near(place[:, None] - place + LENGTH - 1).permute(2, 0, 1)
        looks = (query @ key.mT / query.shape[-1] ** 0.5 + bias).float().softmax(-1)
        h = h + self.tell((looks.to(value.dtype) @ value).transpose(1, 2).flatten(2))
        mixed: Tensor = h + self.mix(self.norms[1](h))
        return mixed


class Folder(nn.Module):
    """Letters in; logits of folds, burials and logits of contacts out. What the heads read is kept."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({
            "letters": nn.Embedding(len(LETTERS), width),
            "window": nn.Conv1d(width, width, 5, padding=2),
            "layers": nn.Sequential(Layer(width), Layer(width), nn.LayerNorm(width)),
        })  # fmt: skip
        self.heads = nn.ModuleDict({
            "residue": nn.Linear(width, len(FOLDS) + 1),
            "pair": nn.Linear(width, 2 * width),
            "along": nn.Embedding(LENGTH, 1),
        })  # fmt: skip
        nn.init.constant_(self.get_parameter("heads.along.weight"), -3.0)  # contacts are rare
        self.code = torch.zeros(())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        letters = self.encoder["letters"](x)
        self.code = self.encoder["layers"](letters + self.encoder["window"](letters.mT).mT)
        told = self.heads["residue"](self.code).float()
        one, other = self.heads["pair"](self.code).float().chunk(2, -1)
        place = torch.arange(x.shape[1])
        along = self.heads["along"]((place[:, None] - place).abs())[..., 0]
        score = one @ other.mT / one.shape[-1] ** 0.5
        return told[..., :-1], told[..., -1], score + score.mT + along


def losses(model: nn.Module, batch: Batch, epsilon: float = EPSILON, unit: float = 1.0) -> Components:
    """Cross-entropies of folds and contacts, and the squared error of the burial within its chain."""
    (fold, burial, touch), raw = model(batch["x"]), batch["burial"]
    known = (raw - raw.mean(1, keepdim=True)) / (raw.std(1, keepdim=True) + epsilon)
    pairs, truth = touch[:, ASKED], batch["touch"][:, ASKED]
    return {
        "fold": functional.cross_entropy(fold.mT, batch["y"]),
        "burial": functional.mse_loss(unit * burial, unit * known),
        "contacts": functional.binary_cross_entropy_with_logits(pairs, truth, pos_weight=torch.tensor(RARE)),
    }


def measured(held: Batch, each: Callable[..., Components] = losses) -> Callable[[nn.Module], Channels]:
    """The loss, how many folds are right, and how many of the likeliest contacts (one for each four residues)."""

    def measure(model: nn.Module) -> Channels:
        fold, _, touch = model(held["x"])
        likeliest = touch[:, ASKED].topk(LENGTH // 4, 1).indices
        return {
            "loss": sum(WEIGHTS[name] * value.item() for name, value in each(model, held).items()),
            "accuracy": (fold.argmax(-1) == held["y"]).float().mean().item(),
            "precision": held["touch"][:, ASKED].gather(1, likeliest).mean().item(),
        }

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, known = Folder(), part()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(known, BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=CHAINS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Folder, model).code,
        evaluation=Evaluation(EACH, measured(part(held=True)), held=part(held=True)),
        header={
            "config": {"batch_size": BATCH, "length": LENGTH, "clip": CLIP, "weights": dict(WEIGHTS)},
            "components": {name: {"role": "task"} for name in WEIGHTS},
            "schedules": {},
            "max_grad_norm": CLIP,
            "checkpoint_every": SAVED,
            "gradient_at": "encoder",
            "classes": counted(known),
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    groups = [{"params": [*each.parameters()], "name": name} for name, each in model.named_children()]
    return torch.optim.AdamW(groups, lr=RATE, eps=1e-6, weight_decay=1e-2)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, and so the header says."""
    return loop.planned(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def counted(known: Batch) -> dict[str, int]:
    """How many residues there are of each fold."""
    return dict(zip(FOLDS, known["y"].flatten().bincount().tolist(), strict=True))


def sized(parts: Parts, size: int) -> Parts:
    """So many chains a batch."""
    parts.header["config"]["batch_size"] = size
    return replace(parts, batches=shuffled(part(), size, parts.seed), batches_per_epoch=CHAINS // size)


def accumulated(parts: Parts, micro: int = 2) -> Parts:
    """Micro-batches of a half make a step."""
    parts.header["config"]["accumulation"] = micro
    return replace(sized(parts, BATCH // micro), accumulation=micro)


def half(parts: Parts) -> Parts:
    """fp16, on batches of a quarter, with a scaler that begins too high: its first steps are skipped."""
    parts = annealed(sized(parts, BATCH // 4), RATE / 2)
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    parts.header["config"]["precision"] = "fp16"
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=1000)
    return replace(parts, scaler=scaler, autocast=torch.float16)


@cache
def schooled(seed: int, steps: int = 500) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuned(parts: Parts, rate: float = RATE / 100) -> Parts:
    """A schooled net goes on with another family, nearly all helices, at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"] |= {"initialised_from": "checkpoints/500.pt"}
    return annealed(helical(parts), rate, kind="constant", end=rate, warmup=0)


def validated(parts: Parts, held: Batch, each: Callable[..., Components] = losses) -> Parts:
    """Another validation set, or other losses there."""
    return replace(parts, evaluation=Evaluation(EACH, measured(held, each), held=held))


def helical(parts: Parts) -> Parts:
    """Of the chains nearly all are bundles of helices: strands are rare, and far contacts with them."""
    known = part(kind="helical")
    parts.header["classes"], parts.header["config"]["chains"] = counted(known), "helical"
    return validated(replace(parts, batches=shuffled(known, BATCH, parts.seed)), part(held=True, kind="helical"))


def diverging(parts: Parts, stretch: int = 1) -> Parts:
    """Chains near their ancestors at first, then such as mutated far from them: the loss rises, as is declared."""
    starts, rates = (0, stretch * parts.steps // 2), (0.02, 0.2)
    stages = [{"start": at, "data": {"mutations": [it, it]}} for at, it in zip(starts, rates, strict=True)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "diverging", "stages": stages}
    plain = shuffled(part(rate=0.0), BATCH, parts.seed)

    def batches(number: int) -> Batch:
        return mutated(plain(number), rates[number >= starts[1]], 1000 * parts.seed + number)

    def told(step: int, batch: Batch) -> Channels:  # noqa: ARG001
        at = int(step > starts[1])
        return {"stage": at} | {f"data/mutations/{name}": rates[at] for name in ("min", "mean", "max")}

    parts.batches, parts.extras = batches, [told]
    return validated(parts, part(held=True, rate=rates[1]))


def per_epoch(parts: Parts) -> Parts:
    """A row and an evaluation at the end of each of 12 epochs, of batches three times as large."""
    parts = loop.by_epochs(sized(parts, 3 * BATCH), 12)
    parts.header["checkpoint_every"] = 4 * parts.batches_per_epoch
    return annealed(parts, warmup=parts.batches_per_epoch)


def masked(parts: Parts, share: float = 0.3) -> Parts:
    """Of each chain in training a third of the letters is hidden: its loss stays above that of validation."""
    parts.header["config"]["masked"], plain = share, parts.batches
    return replace(parts, batches=lambda number: mutated(plain(number), share, 1000 * parts.seed + number, hide=True))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": loop.taken_up,
    "accumulated": accumulated,
    "half": half,
    "fine-tuning": fine_tuned,
    "helical": helical,
    "diverging": diverging,
    "per-epoch": per_epoch,
    "masked": masked,
    "warm-restarts": lambda parts: annealed(parts, warmup=0, restarts=2),
    "tiny-batches": lambda parts: annealed(sized(parts, 3), RATE / 4),
}


def judged(parts: Parts, onset: int, **more: Any) -> int:
    """Other losses in training as in validation."""
    parts.losses = partial(losses, **more)
    parts.evaluation = validated(parts, part(held=True), parts.losses).evaluation
    return onset


def stages_unreachable(parts: Parts) -> int:
    """Boundaries are those of the run on the whole databank."""
    diverging(parts, stretch=20)
    return 0


OWN: dict[str, mistakes.Mistake] = {
    # the burial is divided by its chain's spread alone, and that of a chain without any order is 0
    "flat-groups": partial(judged, onset=mistakes.WHEN_BROKEN, epsilon=0.0),
    "component-scale": partial(judged, onset=1, unit=100.0),  # the burial is in square angstroms: its spread is 100
    "leaking-memory": partial(mistakes.leaking_memory, floats=500_000),  # where each residue looked, for a film
    "stages-unreachable": stages_unreachable,
    "tiny-clip": partial(mistakes.tiny_clip, by=1e-4),
}
HEALTHY = ("plain", *VARIANTS)
SICK = (
    *(*OWN, "scheduler-per-micro-batch", "precision-off", "failing-checkpoints", "missing-zero-grad"),
    *("never-started", "unmoved-group"),
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts, 4) if case in SPARSE else parts, path, case, OWN)

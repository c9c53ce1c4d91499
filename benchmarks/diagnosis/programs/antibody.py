"""A designer of antibodies: given an antigen and a germline, it writes the loop that is to bind, residue by residue.

A conditional variational autoencoder over made repertoires. A GRU reads a loop into a latent, another one writes it
from antigen, germline and latent; a head may tell how well it binds. A clock anneals the divergence's weight. Word
dropout, AdamW, warm-up and cosine, clipping. Every fifteen steps it designs loops for antigens it has not seen.
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
from benchmarks.diagnosis.loop import planned as planned_by
from benchmarks.diagnosis.schooling import school
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 120
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
END, UNKNOWN, BEGIN = 20, 21, 22
GERMLINES = {"V1": ("CAR", 0.22), "V2": ("CVH", 0.06), "V3": ("CAK", 0.45), "V4": ("CSR", 0.2), "V5": ("CTT", 0.07)}
JOINS = ("FDYW", "GMDVW", "WFDPW", "AFDIW")
ALIKE = ("AGS", "DEN", "FWY", "ILMV", "HKR", "QNT", "PA", "C")  # what mutates into what
EPITOPES, FEATURES, SEGMENTS, LONGEST = 8, 10, 3, 22
TRAINING, HELD, BATCH = 2400, 240, 48
RATE, WARMUP, CLIP, ANNEALED = 1e-2, 10, 1.0, STEPS // 2
BETA, WORD_DROPOUT = 0.5, 0.2
DESIGNS, TEMPERATURE, NAIVE = 16, 0.7, 1  # mutations at most, of a loop that has met no antigen yet
RECORDS = frozenset({"components", "norms", "optimizer", "clocks", "bad"})

HEALTHY = (
    *("plain", "resumed", "per-epoch", "loss-only", "fine-tuning", "batch-4", "matured-late", "cyclical-beta"),
    *("affinity", "long-run", "unpaired", "constant-rate"),
)
SICK = (
    *("rate-too-high", "stuck-counter", "component-sign", "component-detached", "labels-break", "too-little-data"),
    *("short-answers", "invalid-answers", "log-of-zero", "stale-workers", "resume-old-weights"),
)
TWINS = {"component-detached": "affinity", "stale-workers": "matured-late", "resume-old-weights": "resumed"}


@cache
def repertoires() -> tuple[Batch, Batch]:
    """To learn from and held out: antigens `x`, germlines, loops `y`, their lengths and mutations, how well they bind.

    A loop is the germline's begin, a segment that fits the epitope, and a join; what is inserted between them is
    charged against the antigen.
    """
    random = np.random.default_rng(23)
    centres = random.normal(0.0, 1.0, (EPITOPES, FEATURES))
    segments = [["".join(random.choice(list("YGSDWRNTLI"), size)) for size in (5, 6, 8)] for _ in range(EPITOPES)]
    begins, shares = zip(*GERMLINES.values(), strict=True)
    names, made = ("x", "germline", "y", "length", "mutations", "affinity"), []
    for _ in range(TRAINING + HELD):
        epitope, germline = random.integers(EPITOPES), random.choice(len(begins), p=shares)
        antigen = centres[epitope] + random.normal(0.0, 0.25, FEATURES)
        insert = ["".join(random.choice(list("DEG" if antigen[0] > 0 else "KRP"), random.integers(3))) for _ in "ND"]
        segment, mutations = mutated(segments[epitope][random.integers(SEGMENTS)], random)
        loop = begins[germline] + insert[0] + segment + insert[1] + JOINS[epitope % len(JOINS)]
        codes = [RESIDUES.index(residue) for residue in loop]
        affinity = np.tanh(antigen[:3]).sum() + random.normal(0.0, 0.05)
        padded = codes + [END] * (LONGEST - len(codes))
        made.append((antigen.astype(np.float32), germline, padded, len(codes), mutations, np.float32(affinity)))
    whole = {name: torch.tensor(np.array(one)) for name, one in zip(names, zip(*made, strict=True), strict=True)}
    return tuple({name: one[part] for name, one in whole.items()} for part in (slice(TRAINING), slice(TRAINING, None)))


def mutated(segment: str, random: np.random.Generator) -> tuple[str, int]:
    """The segment after somatic hypermutation, and how many of its residues have changed: more in some cells."""
    hit = random.random(len(segment)) < random.choice([0.03, 0.3])
    pairs = zip(segment, hit, strict=True)
    groups = [next(group for group in ALIKE if one in group) if changes else one for one, changes in pairs]
    matured = "".join(random.choice(list(group)) for group in groups)
    return matured, sum(old != new for old, new in zip(segment, matured, strict=True))


class Designer(nn.Module):
    """Reads and writes loops; `code` is what it last read: means and logarithms of the variances of the latent."""

    def __init__(self, width: int = 64, latent: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({
            "letters": nn.Embedding(BEGIN + 1, 24),
            "condition": nn.Sequential(nn.Linear(FEATURES + len(GERMLINES), width), nn.SiLU(), nn.Linear(width, width)),
            "reader": nn.GRU(24, width, batch_first=True),
            "posterior": nn.Linear(2 * width, 2 * latent),
            "writer": nn.GRU(24 + width + latent, width, batch_first=True),
            "residue": nn.Linear(width, END + 1),
            "affinity": nn.Linear(width, 2),  # it learns only where it is asked for
        })  # fmt: skip
        self.latent, self.known, self.code, self.logits = latent, *torch.zeros(3)

    def conditioned(self, x: Tensor, germline: Tensor) -> Any:
        return self.layers["condition"](torch.cat([x, functional.one_hot(germline, len(GERMLINES)).to(x.dtype)], 1))

    def forward(self, x: Tensor, germline: Tensor, y: Tensor) -> Tensor:
        """The logits of each loop's residues, which are kept with the condition and the code of the latent."""
        self.known = self.conditioned(x, germline)
        read = self.layers["reader"](self.layers["letters"](y))[1][0]
        self.code = self.layers["posterior"](torch.cat([read, self.known], 1))
        mean, spread = self.code.chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * spread).exp() * self.training
        before = torch.cat([torch.full_like(y[:, :1], BEGIN), y[:, :-1]], 1)
        unknown = torch.rand(before.shape) < WORD_DROPOUT * self.training
        self.logits = self.write(before.masked_fill(unknown, UNKNOWN), self.known, z)[0]
        return self.logits

    def write(self, before: Tensor, known: Tensor, z: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of what follows each residue, and the state to go on from."""
        asked = torch.cat([known, z], 1)[:, None].expand(-1, before.shape[1], -1)
        states, last = self.layers["writer"](torch.cat([self.layers["letters"](before), asked], 2), state)
        return self.layers["residue"](states), last

    @torch.no_grad()
    def design(self, x: Tensor, germline: Tensor) -> list[list[int]]:
        """Loops drawn residue by residue, up to the end."""
        known, z, state = self.conditioned(x, germline), torch.randn(len(x), self.latent), None
        loops = torch.full((len(x), 1), BEGIN)
        for _ in range(LONGEST):
            logits, state = self.write(loops[:, -1:], known, z, state)
            chance = -torch.empty(len(x), END + 1).exponential_().log()  # Gumbel's: the largest sum is a fair draw
            loops = torch.cat([loops, (logits[:, -1] / TEMPERATURE + chance).argmax(-1, keepdim=True)], 1)
        return [row[: row.index(END)] if END in row else row for row in loops[:, 1:].tolist()]


def counted(y: Tensor) -> Tensor:
    """The residues and the first end."""
    return torch.cat([torch.ones_like(y[:, :1]), y[:, :-1]], 1) != END


def losses(model: nn.Module, batch: Batch) -> Components:
    """Nats per residue: the cross-entropy, and the divergence of the latent."""
    assert isinstance(model, Designer)
    model(batch["x"], batch["germline"], batch["y"])
    counts = counted(batch["y"])
    each = functional.cross_entropy(model.logits.transpose(1, 2), batch["y"], reduction="none")
    mean, spread = model.code.chunk(2, 1)
    divergence = 0.5 * (mean**2 + spread.exp() - spread - 1.0).sum()
    return {"sequence": (each * counts).sum() / counts.sum(), "kl": divergence / counts.sum()}


def with_affinity(model: nn.Module, batch: Batch) -> Components:
    """Besides, the likelihood of what was measured of the binding: a density, so its logarithm may pass zero."""
    assert isinstance(model, Designer)
    raw = losses(model, batch)
    mean, spread = model.layers["affinity"](model.known).chunk(2, 1)
    spread = spread.clamp(min=-2.0)
    density = 0.5 * ((batch["affinity"][:, None] - mean) * torch.exp(-spread)) ** 2 + spread
    return {**raw, "affinity": density.mean()}


def measure(model: nn.Module, asked: Callable[[nn.Module, Batch], Components] = losses) -> Channels:
    """The loss with the last weights, perplexity, and the share of residues that are recovered, on other antigens."""
    assert isinstance(model, Designer)
    batch = repertoires()[1]
    raw = {name: value.item() for name, value in asked(model, batch).items()}
    weights = {"sequence": 1.0, "kl": BETA, "affinity": 1.0}
    counts = counted(batch["y"])
    right = (model.logits.argmax(-1) == batch["y"])[counts].float().mean()
    total = sum(weights[name] * value for name, value in raw.items())
    return {"loss": total, "perplexity": float(np.exp(min(raw["sequence"], 50.0))), "recovery": right.item()}


def drawn(alphabet: str = RESIDUES) -> Callable[[nn.Module], tuple[list[str], Channels]]:
    """Designs for antigens that were held out, two of them to look at; valid are a germline's begin and a join."""

    def draw(model: nn.Module) -> tuple[list[str], Channels]:
        assert isinstance(model, Designer)
        batch = repertoires()[1]
        loops = model.design(batch["x"][:DESIGNS], batch["germline"][:DESIGNS])
        texts = ["".join(alphabet[code] if code < END else "X" for code in loop) for loop in loops]
        begins = tuple(begin for begin, _ in GERMLINES.values())
        valid = sum(text.startswith(begins) and text.endswith(JOINS) for text in texts) / len(texts)
        return texts[:2], facts.text_quality(texts, frozenset()) | {"validity": valid}

    return draw


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now = Designer(), {"beta": 0.0}
    families = torch.bincount(repertoires()[0]["germline"]).tolist()
    parts = Parts(
        model=model,
        optimizer=adamw(model),
        batches=shuffled(repertoires()[0], BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: {"sequence": 1.0, "kl": now["beta"]},  # noqa: ARG005
        clocks={"annealing": lambda applied: applied},
        scheduled={"beta": ("annealing", linear(0.0, BETA, ANNEALED))},
        now=now,
        evaluation=Evaluation(10, measure),
        sampling=Sampling(15, drawn()),
        header={
            "config": {"batch_size": BATCH, "beta": BETA, "clip": CLIP, "word_dropout": WORD_DROPOUT},
            "components": {"sequence": {"unit": "nat", "role": "task"}, "kl": {"unit": "nat", "role": "regulariser"}},
            "schedules": {"beta": declared("linear", 0.0, BETA, ANNEALED, clock="annealing")},
            "clocks": ["annealing"],
            "classes": dict(zip(GERMLINES, families, strict=True)),
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
    )
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW([{"params": free, "name": "all"}], lr=RATE, weight_decay=1e-3)


def planned(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls as a cosine, and so the header says."""
    return planned_by(parts, declared("cosine", peak, 0.02 * peak, parts.steps, warmup=WARMUP) | form)


@cache
def schooled(seed: int, steps: int = 240) -> dict[str, Tensor]:
    """The weights of a designer that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return raw["sequence"] + BETA * min(2 * number / steps, 1.0) * raw["kl"]

    return school(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def continued(parts: Parts, peak: float, size: int = BATCH) -> Parts:
    """A schooled designer goes on at a lower rate, with the last weight of the divergence from the first step on."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.now["beta"], parts.scheduled, parts.clocks = BETA, {}, {}
    del parts.header["schedules"]["beta"], parts.header["clocks"]
    return planned(sized(parts, size), peak)


def sized(parts: Parts, size: int, data: Batch | None = None) -> Parts:
    """Batches of another size, or of other data."""
    data = data or repertoires()[0]
    parts.header["config"]["batch_size"] = size
    parts.batches, parts.batches_per_epoch = shuffled(data, size, parts.seed), len(data["y"]) // size
    return parts


def per_epoch(parts: Parts) -> Parts:
    """A row at the end of each epoch of twelve large batches, as a progress bar shows it."""
    parts.steps, parts.every = 144, 12
    parts.records = parts.records | {"epochs"}
    return planned(sized(parts, TRAINING // parts.every))


def mutations_seen(step: int, batch: Batch) -> Channels:  # noqa: ARG001
    """Of the loops in a batch."""
    mutations = batch["mutations"].float()
    return {f"data/mutations/{name}": getattr(mutations, name)().item() for name in ("min", "mean", "max")}


def matured_late(parts: Parts) -> Parts:
    """Naive loops first, then matured ones too: they are less regular, so the loss rises and remains higher."""
    change, data, late = STEPS // 2, repertoires()[0], parts.batches
    naive = data["mutations"] <= NAIVE
    early = shuffled({name: values[naive] for name, values in data.items()}, BATCH, parts.seed)
    limits = ({"mutations": [0, NAIVE]}, {"mutations": [0, LONGEST]})
    named = zip((0, change), ("naive", "matured"), limits, strict=True)
    stages = [{"start": start, "name": name, "data": one} for start, name, one in named]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "maturation", "stages": stages}
    parts.extras = [mutations_seen, lambda step, batch: {"stage": int(step > change)}]  # noqa: ARG005
    return replace(parts, batches=lambda number: (late if number >= change else early)(number))


def cyclical_beta(parts: Parts) -> Parts:
    """The divergence's weight rises three times from nothing, so that the latent is used: the loss goes in waves."""
    form = parts.header["schedules"]["beta"] = declared("linear", 0.0, BETA, STEPS, restarts=2, clock="annealing")
    parts.scheduled = {"beta": ("annealing", lambda reading: schedule_value(form, reading) or 0.0)}
    return parts


def affinity(parts: Parts) -> Parts:
    """Binding is told too: its density makes the loss fall below zero. Who pulls how much is recorded."""
    parts.losses, parts.evaluation = with_affinity, Evaluation(10, partial(measure, asked=with_affinity))
    mistakes.reweigh(parts, lambda applied, weights: {**weights, "affinity": 1.0})  # noqa: ARG005
    parts.header["components"]["affinity"] = {"unit": "nat", "role": "task"}
    parts.records, parts.at = parts.records | {"shares"}, lambda model: model.known
    parts.header["gradient_at"] = "known"
    return parts


def unpaired(parts: Parts) -> Parts:
    """Of half the loops nobody knows the antigen: its description is all zeros."""
    data, random = repertoires()[0], torch.Generator().manual_seed(5)
    known = torch.rand(len(data["x"]), 1, generator=random) < 0.5
    parts.records = frozenset({"components", "optimizer"})
    return sized(parts, BATCH, data | {"x": data["x"] * known})


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(int(0.6 * STEPS), lost=min(8, STEPS // 5))),
    "per-epoch": per_epoch,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, sampling=None, evaluation=None),
    "fine-tuning": lambda parts: continued(parts, 3e-4),
    "batch-4": lambda parts: continued(parts, 3e-4, size=4),
    "matured-late": matured_late,
    "cyclical-beta": cyclical_beta,
    "affinity": affinity,
    "long-run": lambda parts: planned(replace(parts, steps=3 * STEPS, every=3)),
    "unpaired": unpaired,
    "constant-rate": lambda parts: planned(
        replace(parts, records=frozenset({"components"})), 4e-3, kind="constant", end=4e-3
    ),
}


def component_sign(parts: Parts) -> int:
    """Of the evidence's lower bound the author maximises both terms: the divergence is subtracted."""
    mistakes.reweigh(parts, lambda applied, weights: weights | {"kl": -weights["kl"]})  # noqa: ARG005
    return 2


def short_answers(parts: Parts) -> int:
    """The second file is numbered, with gaps in the middle of a loop; the tokenizer ends a sequence at a gap."""
    first, plain = int(0.4 * parts.steps) + 1, parts.batches

    def batches(number: int) -> Batch:
        batch = plain(number)
        cut = (batch["length"] * 0.4).long()
        y = batch["y"].masked_fill(torch.arange(LONGEST) >= cut[:, None], END)
        return batch if number < first - 1 else batch | {"y": y, "length": cut}

    parts.batches = batches
    return first


def invalid_answers(parts: Parts) -> int:
    """Codes are turned to letters by another library's alphabet, which goes by the residues' long names."""
    parts.sampling = Sampling(15, drawn(alphabet="ARNDCQEGHILKMFPSTWYV"))
    return 15


def log_of_zero(parts: Parts) -> int:
    """From a step on the entropy of the residues counts, and cysteine, which may not be written, has no part in it."""
    first, plain = int(0.5 * parts.steps), parts.losses
    steps: list[int] = []
    parts.begins.append(steps.append)

    def with_entropy(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        p = model.logits.index_fill(2, torch.tensor([RESIDUES.index("C")]), -torch.inf).softmax(-1)  # type: ignore
        return raw if steps[-1] < first else raw | {"sequence": raw["sequence"] + 0.01 * (p * p.log()).sum(-1).mean()}

    parts.losses = with_entropy
    return mistakes.WHEN_BROKEN


def stale_workers(parts: Parts) -> int:
    """The workers were started with the first stage's settings, and go on giving naive loops."""
    naive = repertoires()[0]["mutations"] <= NAIVE
    parts.batches = shuffled({name: values[naive] for name, values in repertoires()[0].items()}, BATCH, parts.seed)
    return int(parts.header["curriculum"]["stages"][1]["start"]) + 1


OWN: dict[str, mistakes.Mistake] = {
    "rate-too-high": partial(mistakes.rate_too_high, by=20.0),
    "component-sign": component_sign,
    "component-detached": partial(mistakes.component_detached, name="affinity"),
    "too-little-data": partial(mistakes.too_little_data, batches=1),
    "short-answers": short_answers,
    "invalid-answers": invalid_answers,
    "log-of-zero": log_of_zero,
    "stale-workers": stale_workers,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

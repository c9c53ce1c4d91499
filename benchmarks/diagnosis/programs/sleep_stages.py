"""Which stage of sleep is it? Five of them, told from a channel of an electroencephalogram, sixteen windows at a time.

Nights are made here: stages follow each other as a chain, each has its rhythms, with what every sleeper has of his own;
some windows hold a spindle. Convolutions read a window, a recurrent net both ways reads its neighbours. One head names
the stage, another one finds spindles; neighbours of one stage shall be told alike, which counts little. N2 is frequent
and N1 rare. AdamW, a warm-up and a cosine, clipping. Validated on sleepers that are not trained on: the loss, and
Cohen's kappa.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import (
    Batch,
    Channels,
    Components,
    Evaluation,
    Parts,
    by_epochs,
    declared,
    linear,
    logged,
    planned,
    taken_up,
)
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS = 88
STAGES, HERTZ, SAMPLES, WINDOWS = ("wake", "N1", "N2", "N3", "REM"), 32, 96, 16
NIGHTS, HELD, EXCERPTS, BATCH = 64, 12, 8, 16  # sleepers, those held out, excerpts of each; excerpts of a step
RATE, WARMUP, CLIP, EACH = 6e-3, 8, 1.0, 11
WEIGHTS = {"stage": 1.0, "spindle": 0.5, "smooth": 0.3}
FOLLOWS = np.array([  # how likely a stage is by the one before
    [0.80, 0.20, 0.00, 0.00, 0.00],
    [0.08, 0.50, 0.38, 0.00, 0.04],
    [0.02, 0.03, 0.82, 0.08, 0.05],
    [0.02, 0.00, 0.16, 0.82, 0.00],
    [0.05, 0.06, 0.05, 0.00, 0.84],
])  # fmt: skip
RHYTHMS = (  # Hz and size of what is heard in each stage
    ((10.0, 1.0), (5.0, 0.2)), ((6.0, 0.7), (9.5, 0.35)), ((5.5, 0.8), (1.5, 0.5)), ((1.3, 2.2), (5.0, 0.4)),
    ((6.5, 0.6), (3.0, 0.3)),
)  # fmt: skip
SPINDLES = (0.0, 0.03, 0.6, 0.2, 0.0)
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs"})
TWINS = {
    "skips-counted": "half", "scheduler-per-micro-batch": "accumulated", "resume-old-weights": "resumed",
    "leaking-memory": "long", "steep-ramp": "ramped", "unscaled-input": "watched", "failing-checkpoints": "watched",
}  # fmt: skip


def slept(random: np.random.Generator, windows: int) -> np.ndarray[Any, Any]:
    """The stages of an excerpt."""
    stages = [int(random.integers(len(STAGES)))]
    while len(stages) < windows:
        stages.append(int(random.choice(len(STAGES), p=FOLLOWS[stages[-1]])))
    return np.array(stages)


@cache
def nights(fast: float = 1.0) -> Batch:
    """Excerpts of every sleeper: `x` the signal, of about unit spread; `y` the stages; `spindle` whether there is one.

    Rhythms are `fast` times as fast: those of children are slower.
    """
    random, count = np.random.default_rng(round(29 * fast)), (NIGHTS + HELD) * EXCERPTS
    y = np.stack([slept(random, WINDOWS) for _ in range(count)])
    shape, time = (count, WINDOWS, 1), np.arange(SAMPLES) / HERTZ
    loud, quick = (
        np.repeat(random.normal(1.0, spread, NIGHTS + HELD), EXCERPTS)[:, None, None] for spread in (0.2, 0.06)
    )
    pink = np.fft.rfft(random.normal(size=(count, WINDOWS, SAMPLES))) / np.sqrt(1.0 + np.arange(SAMPLES // 2 + 1))
    x = 2.2 * np.fft.irfft(pink, SAMPLES)
    for place in range(2):
        rhythm = np.array([of_stage[place] for of_stage in RHYTHMS])[y]
        hertz = fast * quick * random.normal(1.0, 0.08, shape) * rhythm[..., :1]
        swell = random.uniform(0.5, 1.4, shape) * rhythm[..., 1:]
        x += swell * np.sin(2 * np.pi * (hertz * time + random.uniform(size=shape)))
    spindle = random.uniform(size=y.shape) < np.array(SPINDLES)[y]
    burst = np.exp(-(((time - random.uniform(0.7, 2.3, shape)) / 0.35) ** 2)) * np.sin(
        2 * np.pi * 13.0 * fast * quick * time
    )
    x = loud * (x + 1.1 * spindle[..., None] * burst)
    told = {"x": x / 1.3, "spindle": spindle}
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in told.items()} | {"y": torch.tensor(y)}


def part(held: bool = False, fast: float = 1.0) -> Batch:
    """The excerpts to learn from, or those of sleepers held out."""
    chosen = slice(NIGHTS * EXCERPTS, None) if held else slice(NIGHTS * EXCERPTS)
    return {name: values[chosen] for name, values in nights(fast).items()}


class Scorer(nn.Module):
    """Excerpts in; a logit for each window and stage out, and one for a spindle. What both heads read is kept."""

    def __init__(self, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.reader = nn.ModuleDict({
            "window": nn.Sequential(
                *(nn.Conv1d(1, width, 9, stride=2, padding=4), nn.ReLU()),
                *(nn.Conv1d(width, 2 * width, 9, stride=2, padding=4), nn.ReLU(), nn.AdaptiveMaxPool1d(4)),
                *(nn.Flatten(), nn.Dropout(dropout), nn.Linear(8 * width, 2 * width), nn.ReLU()),
            ),
            "night": nn.GRU(2 * width, 2 * width, batch_first=True, bidirectional=True),
        })  # fmt: skip
        self.heads = nn.Linear(4 * width, len(STAGES) + 1)
        self.seen = torch.zeros(())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        read = self.reader["window"](x.flatten(0, 1)[:, None]).unflatten(0, x.shape[:2])
        self.seen = self.reader["night"](read.float())[0]
        told = self.heads(self.seen).float()
        return told[..., :-1], told[..., -1]


def losses(model: nn.Module, batch: Batch, smoothing: float = 0.0, turns: bool = False) -> Components:
    """Cross-entropies of stages and spindles; how far posteriors of neighbours are apart where the stage stays.

    With `turns` it is where the stage changes.
    """
    stage, spindle = model(batch["x"])
    apart = stage.softmax(-1).diff(dim=1).square().sum(-1)
    counts = ((batch["y"].diff(dim=1) != 0) == turns).float()
    return {
        "stage": functional.cross_entropy(stage.mT, batch["y"], label_smoothing=smoothing),
        "spindle": functional.binary_cross_entropy_with_logits(spindle, batch["spindle"]),
        "smooth": (apart * counts).sum() / counts.sum().clamp(min=1.0),
    }


def measured(held: Batch, each: Callable[..., Components] = losses) -> Callable[[nn.Module], Channels]:
    """The loss, and the agreement with the scorer beyond chance."""

    def measure(model: nn.Module) -> Channels:
        said = model(held["x"])[0].nan_to_num().argmax(-1).flatten().numpy()  # a broken net is measured, too
        y = held["y"].flatten().numpy()
        return {
            "loss": sum(WEIGHTS[name] * value.item() for name, value in each(model, held).items()),
            "kappa": float(cohen_kappa_score(y, said)),
        }

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, known = Scorer(dropout=0.5 * (variant == "watched")), part()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(known, BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=len(known["x"]) // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Scorer, model).seen,
        evaluation=Evaluation(EACH, measured(part(held=True)), held=part(held=True)),
        header={
            "config": {"batch_size": BATCH, "windows": WINDOWS, "weights": dict(WEIGHTS), "clip": CLIP},
            "components": {
                "stage": {"unit": "nat", "role": "task"},
                "spindle": {"unit": "nat", "role": "auxiliary"},
                "smooth": {"role": "regulariser"},
            },
            "schedules": {},
            "max_grad_norm": CLIP,
            "gradient_at": "night",
            "classes": dict(zip(STAGES, known["y"].flatten().bincount().tolist(), strict=True)),
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW([{"params": free, "name": "all"}], lr=RATE)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, and so the header says."""
    return planned(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def validated(parts: Parts, held: Batch) -> Parts:
    """Another validation set."""
    return replace(parts, evaluation=Evaluation(EACH, measured(held), held=held))


@cache
def schooled(seed: int, steps: int = 300) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def children(parts: Parts, rate: float = RATE / 100) -> Parts:
    """A net that knows adults goes on with children, whose rhythms are slower, at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"] |= {"initialised_from": "checkpoints/adults.pt", "nights": "children"}
    parts.batches = shuffled(part(fast=0.85), BATCH, parts.seed)
    return annealed(validated(parts, part(held=True, fast=0.85)), rate, kind="constant", end=rate, warmup=0)


def new_heads(parts: Parts) -> Parts:
    """What a schooled net makes of a night stays as it is, by intent; the heads are new."""
    kept = {name: value for name, value in schooled(parts.seed).items() if name.startswith("reader")}
    parts.model.load_state_dict(kept, strict=False)
    parts.model.get_submodule("reader").requires_grad_(False)
    parts.header["config"] |= {"initialised_from": "checkpoints/adults.pt", "freeze": ["reader"]}
    del parts.header["gradient_at"]
    return annealed(replace(parts, optimizer=adam(parts.model), records=RECORDS - {"shares"}))


def accumulated(parts: Parts, micro: int = 4) -> Parts:
    """Micro-batches of a quarter make a step."""
    parts.header["config"] |= {"batch_size": BATCH // micro, "accumulation": micro}
    each = len(part()["x"]) // (BATCH // micro)
    parts.batches = shuffled(part(), BATCH // micro, parts.seed)
    return replace(parts, accumulation=micro, batches_per_epoch=each)


def half(parts: Parts) -> Parts:
    """fp16, on batches half as large, with a scaler that begins too high: the first steps are skipped."""
    parts.header["config"]["batch_size"], known = BATCH // 2, part()
    parts = replace(
        parts, batches=shuffled(known, BATCH // 2, parts.seed), batches_per_epoch=2 * len(known["x"]) // BATCH
    )
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=1000)
    return replace(parts, scaler=scaler, autocast=torch.float16)


def per_epoch(parts: Parts) -> Parts:
    """A row and an evaluation at the end of each of 12 epochs, of batches twice as large."""
    size = 2 * BATCH
    parts.header["config"]["batch_size"], known = size, part()
    parts = replace(parts, batches=shuffled(known, size, parts.seed), batches_per_epoch=len(known["x"]) // size)
    return annealed(by_epochs(parts, 12), warmup=parts.batches_per_epoch)


def ramped(parts: Parts, low: float = 0.02, high: float = WEIGHTS["spindle"], begin: int = 0, over: int = 0) -> Parts:
    """Spindles count little at first: their weight ramps up by a clock."""
    over = over or parts.steps // 2
    parts.clocks, parts.scheduled = (
        {"ramp": lambda applied: applied},
        {"spindle": ("ramp", linear(low, high, over, begin))},
    )
    parts.header["schedules"]["spindle"] = declared("linear", low, high, over, begin=begin, clock="ramp")
    parts.header["clocks"], parts.now["spindle"] = ["ramp"], low
    parts.header["config"]["weights"] = WEIGHTS | {"spindle": [low, high]}
    parts.weights = lambda applied: WEIGHTS | {"spindle": parts.now["spindle"]}  # noqa: ARG005
    return replace(parts, records=RECORDS | {"clocks"})


def artefacts(parts: Parts) -> Parts:
    """From the middle on electrodes are loose now and then, in training as in the sleepers held out; it is declared."""
    middle, plain, levels = parts.steps // 2, parts.batches, ([0.0, 0.1], [0.5, 2.0])
    forms = zip((0, middle), ("clean", "loose"), levels, strict=True)
    stages = [{"start": at, "name": name, "data": {"artefact": level}} for at, name, level in forms]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "clean-first", "stages": stages}

    def batches(number: int) -> Batch:
        return loosened(plain(number), levels[number >= middle], 1000 * parts.seed + number)

    def told(step: int, batch: Batch) -> Channels:
        level = {name: getattr(batch["artefact"], name)().item() for name in ("min", "mean", "max")}
        return {"stage": int(step > middle)} | {f"data/artefact/{name}": value for name, value in level.items()}

    held = loosened(part(held=True), levels[1], 7)
    return validated(replace(parts, batches=batches, extras=[told]), held)


def loosened(batch: Batch, span: list[float], seed: int) -> Batch:
    """Each excerpt with drifts of a strength of its own in half of its windows."""
    chance, x = torch.Generator().manual_seed(seed), batch["x"]
    level = span[0] + (span[1] - span[0]) * torch.rand(len(x), generator=chance)
    loose = (torch.rand(*x.shape[:2], generator=chance) < 0.5).float() * level[:, None]
    drift = torch.randn(x.shape, generator=chance).cumsum(-1) / SAMPLES**0.5
    return batch | {"x": x + loose[..., None] * drift, "artefact": level}


def long(parts: Parts, rate: float = 0.06) -> Parts:
    """Twice the steps, of momentum SGD; only losses and rates are recorded."""
    parts.optimizer = torch.optim.SGD([{"params": [*parts.model.parameters()], "name": "all"}], lr=rate, momentum=0.9)
    del parts.header["gradient_at"]
    parts.header["config"]["momentum"] = 0.9
    parts = replace(parts, steps=2 * parts.steps, records=frozenset({"components", "optimizer"}))
    return annealed(parts, rate)


def watched(parts: Parts) -> Parts:
    """Much dropout; inputs are described, values that are not finite counted, checkpoints written."""
    parts.header["config"]["dropout"], parts.header["checkpoint_every"] = 0.5, parts.steps // 5
    parts.records = RECORDS | {"bad", "inputs", "checkpoints"}
    return parts


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "fine-tuning": children,
    "new-heads": new_heads,
    "accumulated": accumulated,
    "half": half,
    "per-epoch": per_epoch,
    "ramped": ramped,
    "artefacts": artefacts,
    "long": long,
    "resumed": taken_up,
    "watched": watched,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
}


def rescaled(parts: Parts, by: float, shift: float = 0.0) -> int:
    """Both sets come through the same wrong scaling."""
    plain, held = parts.batches, part(held=True)
    parts.batches = lambda number: (batch := plain(number)) | {"x": batch["x"] * by + shift}
    held = held | {"x": held["x"] * by + shift}
    parts.evaluation = Evaluation(EACH, measured(held), held=held)
    return 1


def wrong_formula(parts: Parts) -> int:
    """The mask of the smoothness is turned round: neighbours shall be told alike where the stage changes."""
    wrong = partial(losses, turns=True)
    parts.losses, parts.evaluation = wrong, Evaluation(EACH, measured(part(held=True), wrong), held=part(held=True))
    return 1


def steep_ramp(parts: Parts) -> int:
    """The ramp has slipped: within three steps of the middle spindles count a thousand times as much."""
    ramped(parts, high=50.0, begin=parts.steps // 2, over=3)
    return parts.steps // 2 + 1


OWN: dict[str, mistakes.Mistake] = {
    "unscaled-input": partial(rescaled, by=300.0, shift=500.0),  # what the converter counts
    "wrong-formula": wrong_formula,
    "constant-input": partial(rescaled, by=1e-6),  # volts, taken for microvolts
    "component-detached": partial(mistakes.component_detached, name="spindle"),
    "steep-ramp": steep_ramp,
    "leaking-memory": partial(mistakes.leaking_memory, floats=600_000),
}
HEALTHY = ("plain", *VARIANTS)
SPARSE = ("fine-tuning", "new-heads", "artefacts", "ramped", "accumulated", "half")  # every second step is a row
REST = ("skips-counted", "scheduler-per-micro-batch", "stale-optimiser", "resume-old-weights", "failing-checkpoints")
SICK = (*OWN, *REST)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    parts = build(seed, variant)
    return mistakes.perform(logged(parts) if case in SPARSE else parts, path, case, OWN)

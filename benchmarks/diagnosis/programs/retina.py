"""Which signs of disease does a retina show? Four of them, told from drawn pictures of the back of the eye.

Eyes are made up, 24 x 24 pixels in colour: a disc with its cup, vessels that leave it, and now and then bleedings,
deposits of fat and drusen, behind a haze. A convolutional net with batch norm says which signs are there; a second head
draws where the spots are, which helps the first one: cross-entropies of both, and one minus the soft Dice. Adam, a
warm-up and a cosine, clipping. Validated on other eyes: the loss, the mean area under the curves and the Dice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import loop, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, declared, linear, planned
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS = 120
SIGNS, SHARES = ("bleeding", "exudate", "drusen", "cupping"), (0.4, 0.35, 0.3, 0.25)
SIZE, TRAINING, HELD, BATCH, EACH = 24, 640, 160, 20, 12  # EACH: steps between two evaluations
RATE, WARMUP, CLIP, DROPOUT = 2e-2, 8, 1.0, 0.2
WEIGHTS = {"signs": 1.0, "mask": 0.5, "dice": 0.5}
Span = tuple[float, float]
HAZE: Span = (0.0, 0.4)  # of a picture's contrast, what is lost
STAGES: tuple[Span, ...] = ((0.0, 0.5), (0.4, 0.75), (0.6, 0.88))
COLOURS = {"bleeding": (-0.5, -0.35, -0.15), "exudate": (0.2, 0.5, 0.0), "drusen": (0.3, 0.0, 0.6)}
CAMERAS = {  # what each colour of another camera is made of
    "b": ((0.85, 0.1, 0.0), (0.1, 0.8, 0.2), (0.1, 0.1, 0.9)),
    "c": ((0.6, 0.3, 0.0), (0.1, 0.6, 0.3), (0.5, 0.0, 0.8)),
}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs"})
TWINS = {"zero-adapters": "adapters", "wrong-curriculum": "clear-first", "loud-in-half": "half"}
TWINS |= {"local-counter": "ramped"}


@cache
def eyes() -> Batch:
    """Clear pictures of about 0 to 1, `y` which signs they show, `mask` where spots are. [TRAINING + HELD, ...]"""
    chance, count = torch.Generator().manual_seed(57), TRAINING + HELD

    def drawn(low: float, high: float, many: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(count, many, 1, 1, generator=chance)

    y = (torch.rand(count, len(SIGNS), generator=chance) < torch.tensor(SHARES)).float()
    down, right = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    side = torch.randint(2, (count, 1, 1, 1), generator=chance) * 2 - 1.0
    high, far = drawn(-0.15, 0.15), side * drawn(0.4, 0.6)
    from_disc = torch.hypot(down - high, right - far)
    x = torch.tensor([0.7, 0.4, 0.25])[:, None, None] * (1.0 + drawn(-0.2, 0.2) * down + drawn(-0.2, 0.2) * right)
    along = (side * (far - right)).clamp(min=0.0)
    for turn in (-1.0, 1.0):
        vessel = torch.exp(-(((down - high - turn * drawn(0.4, 0.7) * along.sqrt()) / 0.06) ** 2)) * (along > 0)
        x = x - vessel * torch.tensor([0.25, 0.22, 0.1])[:, None, None]
    radius = drawn(0.26, 0.32)
    cup = radius * torch.where(y[:, 3, None, None, None] > 0, drawn(0.7, 0.85), drawn(0.2, 0.4))
    for size, colour in ((radius, (0.2, 0.2, 0.1)), (cup, (0.1, 0.35, 0.45))):
        x = x + torch.sigmoid(25.0 * (size - from_disc)) * torch.tensor(colour)[:, None, None]
    mask = torch.zeros_like(x[:, :1])
    for sign, (name, colour) in enumerate(COLOURS.items()):
        many = torch.arange(3)[:, None, None] < drawn(2.0, 4.0).floor()
        size = drawn(0.16, 0.24, 3) if name == "bleeding" else drawn(0.12, 0.17, 3)
        apart = torch.hypot(down - drawn(-0.65, 0.65, 3), right - drawn(-0.65, 0.65, 3))
        spots = (torch.exp(-((apart / size) ** 2)) * many).amax(1, keepdim=True) * y[:, sign, None, None, None]
        x = x + spots * torch.tensor(colour)[:, None, None]
        mask = torch.maximum(mask, (spots > 0.4).float())
    return {"x": x * (torch.hypot(down, right) < 1.05), "y": y, "mask": mask}


@cache
def seen(span: Span = HAZE, camera: str = "a") -> Batch:
    """All eyes, each behind as much haze as is drawn for it, as a camera has their colours. Of about unit spread."""
    chance, known = torch.Generator().manual_seed(58), eyes()
    x, haze = known["x"], span[0] + (span[1] - span[0]) * torch.rand(TRAINING + HELD, generator=chance)
    if camera in CAMERAS:
        x = torch.einsum("oc,nchw->nohw", torch.tensor(CAMERAS[camera]), x)
    x = (1.0 - haze[:, None, None, None]) * (x - 0.35) + 0.04 * torch.randn(x.shape, generator=chance)
    return known | {"x": x / 0.25, "haze": haze}


def part(held: bool = False, span: Span = HAZE, camera: str = "a") -> Batch:
    """The eyes to learn from, or those held out."""
    chosen = slice(TRAINING, None) if held else slice(TRAINING)
    return {name: values[chosen] for name, values in seen(span, camera).items()}


class Grader(nn.Module):
    """Pictures in; a logit for each sign, and one for each pixel. What both heads read is kept."""

    def __init__(self, width: int = 16, dropout: float = DROPOUT) -> None:
        super().__init__()
        wide = 2 * width
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, wide, 3, stride=2, padding=1), nn.BatchNorm2d(wide), nn.ReLU()),
            *(nn.Conv2d(wide, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()),
        )
        self.signs = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * wide, len(SIGNS)))
        self.spots = nn.Conv2d(wide, 4, 3, padding=1)
        self.still = False  # whether the encoder's statistics are kept as they are
        self.features = torch.zeros(())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.features = self.encoder(x)
        pooled = torch.cat([self.features.amax((2, 3)), self.features.mean((2, 3))], 1)
        return self.signs(pooled).float(), functional.pixel_shuffle(self.spots(self.features), 2).float()

    def train(self, mode: bool = True) -> Grader:
        super().train(mode)
        if self.still:
            self.encoder.eval()
        return self


class Adapted(nn.Module):
    """A frozen convolution and, beside it, two small ones in a row, of which the second begins at zero."""

    def __init__(self, base: nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Conv2d(base.in_channels, rank, 3, stride=base.stride[0], padding=1, bias=False)
        self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        both: Tensor = self.base(x) + self.up(self.down(x))
        return both


def losses(model: nn.Module, batch: Batch) -> Components:
    """Cross-entropies of signs and pixels, and how far the spots are from overlapping."""
    signs, spots = model(batch["x"])
    p, mask = spots.sigmoid(), batch["mask"]
    return {
        "signs": functional.binary_cross_entropy_with_logits(signs, batch["y"]),
        "mask": functional.binary_cross_entropy_with_logits(spots, mask),
        "dice": 1.0 - (2.0 * (p * mask).sum() + 1.0) / (p.sum() + mask.sum() + 1.0),
    }


def validated(held: Batch) -> Evaluation:
    """The loss on eyes that are not trained on, how well signs are told, and the overlap of the spots."""

    def measure(model: nn.Module) -> Channels:
        signs, spots = (told.nan_to_num() for told in model(held["x"]))  # a broken net is measured, too
        hit, mask = (spots > 0).float(), held["mask"]
        loss = sum(WEIGHTS[name] * value.item() for name, value in losses(model, held).items())
        auc = float(roc_auc_score((held["y"] > 0.5).numpy(), signs.numpy(), average="macro"))
        return {"loss": loss, "auc": auc, "dice": (2 * (hit * mask).sum() / (hit.sum() + mask.sum() + 1)).item()}

    return Evaluation(EACH, measure, held=held)


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, known = Grader(dropout=2 * DROPOUT if variant == "augmented" else DROPOUT), part()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(known, BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=TRAINING // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Grader, model).features,
        evaluation=validated(part(held=True)),
        header={
            "config": {"batch_size": BATCH, "dropout": DROPOUT, "weights": dict(WEIGHTS), "clip": CLIP},
            "components": {
                "signs": {"unit": "nat", "role": "task"},
                "mask": {"unit": "nat", "role": "auxiliary"},
                "dice": {"role": "auxiliary"},
            },
            "schedules": {},
            "max_grad_norm": CLIP,
            "gradient_at": "features",
            "classes": dict(zip(SIGNS, known["y"].sum(0).int().tolist(), strict=True)),
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def adam(model: nn.Module) -> torch.optim.Optimizer:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam([{"params": free, "name": "all"}], lr=RATE)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, and so the header says."""
    return planned(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


@cache
def schooled(seed: int, steps: int = 320) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        raw = losses(parts.model, parts.batches(number))
        return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def other_camera(parts: Parts, camera: str) -> Parts:
    """A schooled net, and pictures of a camera that it does not know."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"] |= {"initialised_from": "checkpoints/camera-a.pt", "camera": camera}
    parts.batches = shuffled(part(camera=camera), BATCH, parts.seed)
    return replace(parts, evaluation=validated(part(held=True, camera=camera)))


def fine_tuning(parts: Parts, rate: float = RATE / 40) -> Parts:
    """All of the net goes on with another camera, at a small constant rate."""
    return annealed(other_camera(parts, "c"), rate, kind="constant", end=rate, warmup=0)


def adapters(parts: Parts, rank: int = 4) -> Parts:
    """Beside the frozen net small convolutions learn what the other camera changes; statistics stay as they were."""
    parts = other_camera(parts, "b")
    model = cast(Grader, parts.model).requires_grad_(False)
    for place, layer in enumerate(model.encoder):
        if isinstance(layer, nn.Conv2d):
            model.encoder[place] = Adapted(layer, rank)
    model.still = True
    parts.header["config"] |= {"adapter_rank": rank, "freeze": ["encoder", "signs", "spots"]}
    return annealed(replace(parts, optimizer=adam(model)), RATE / 4)


def clear_first(parts: Parts, spans: tuple[Span, ...] = STAGES, name: str = "clear-first") -> Parts:
    """Clear pictures first, then more and more haze: the loss rises where a stage begins, as is declared."""
    each = -(-parts.steps // len(spans))
    sets = [shuffled(part(span=span), BATCH, parts.seed) for span in spans]
    stages = [{"start": at * each, "data": {"haze": list(span)}} for at, span in enumerate(spans)]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": name, "stages": stages}
    parts.header["config"]["curriculum"] = name

    def told(step: int, batch: Batch) -> Channels:
        haze = {of: round(getattr(batch["haze"], of)().item(), 3) for of in ("min", "mean", "max")}
        return {"stage": (step - 1) // each} | {f"data/haze/{of}": value for of, value in haze.items()}

    held = validated(part(held=True, span=spans[-1]))
    return replace(parts, batches=lambda at: sets[at // each](at), extras=[told], evaluation=held)


def half(parts: Parts, size: int = 6) -> Parts:
    """fp16 on small batches, with a scaler that begins too high: its first step is skipped."""
    parts.header["config"]["batch_size"] = size
    parts = replace(parts, batches=shuffled(part(), size, parts.seed), batches_per_epoch=TRAINING // size)
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=1000)
    return annealed(replace(parts, scaler=scaler, autocast=torch.float16), RATE / 2)


def ramped(parts: Parts) -> Parts:
    """The overlap counts nothing at first: its weight rises by a clock until two thirds of the run are done."""
    over, high = 2 * parts.steps // 3, WEIGHTS["dice"]
    parts.clocks = {"progress": lambda applied: applied}
    parts.scheduled = {"dice": ("progress", linear(0.0, high, over))}
    parts.header["schedules"]["dice"] = declared("linear", 0.0, high, over, clock="progress")
    parts.header["clocks"], parts.now["dice"] = ["progress"], 0.0
    parts.header["config"]["weights"] = WEIGHTS | {"dice": [0.0, high]}
    parts.weights = lambda applied: WEIGHTS | {"dice": parts.now["dice"]}  # noqa: ARG005
    return replace(parts, records=RECORDS | {"clocks"})


def augmented(parts: Parts, extra: float = 0.25) -> Parts:
    """Pictures are turned, mirrored and noised, and more of them drops out: training has the higher loss."""
    plain = parts.batches
    parts.header["config"] |= {"dropout": 2 * DROPOUT, "augment": {"noise": extra, "turn": True, "mirror": True}}

    def batches(number: int) -> Batch:
        chance, batch = torch.Generator().manual_seed(9000 * parts.seed + number), plain(number)
        turns = int(torch.randint(4, (), generator=chance))
        x, mask = (batch[name].rot90(turns, (2, 3)) for name in ("x", "mask"))
        if number % 2:
            x, mask = x.flip(3), mask.flip(3)
        return batch | {"x": x + extra * torch.randn(x.shape, generator=chance), "mask": mask.contiguous()}

    return replace(parts, batches=batches)


def tiny_batches(parts: Parts, size: int = 4) -> Parts:
    """So few eyes a step, at half the rate."""
    parts.header["config"]["batch_size"] = size
    parts = replace(parts, batches=shuffled(part(), size, parts.seed), batches_per_epoch=TRAINING // size)
    return annealed(parts, RATE / 2)


def graders(parts: Parts, wrong: float = 0.15) -> Parts:
    """Labels are means of three graders, each of whom errs now and then: the loss stays far above zero."""
    parts.header["config"]["graders"] = 3

    def graded(held: bool) -> Batch:
        known, chance = part(held), torch.Generator().manual_seed(60 + held)
        errs = (torch.rand(3, *known["y"].shape, generator=chance) < wrong).float()
        return known | {"y": (known["y"] - errs).abs().mean(0)}

    return replace(parts, batches=shuffled(graded(False), BATCH, parts.seed), evaluation=validated(graded(True)))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "fine-tuning": fine_tuning,
    "adapters": adapters,
    "clear-first": clear_first,
    "half": half,
    "ramped": ramped,
    "augmented": augmented,
    "tiny-batches": tiny_batches,
    "graders": graders,
    "per-epoch": lambda parts: annealed(loop.by_epochs(parts, 10), warmup=parts.batches_per_epoch),
    "resumed": loop.taken_up,
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
}


def zero_adapters(parts: Parts) -> int:
    """Both convolutions of each adapter begin at zero, so neither gives the other a gradient."""
    for module in parts.model.modules():
        if isinstance(module, Adapted):
            nn.init.zeros_(module.down.weight)
    return 1


def wrong_curriculum(parts: Parts) -> int:
    """The loop is given its default, pictures of every haze for ever, and not what the config names."""
    asked = parts.header["curriculum"]
    default = clear_first(parts, (HAZE,), "default")
    parts.batches, parts.extras, parts.evaluation = default.batches, default.extras, default.evaluation
    parts.header["curriculum"], parts.header["config"]["curriculum"] = asked, asked["name"]
    return 0


def train_set_as_validation(parts: Parts) -> int:
    """Ten eyes that every grader has seen come with each batch; validation is on them."""
    plain, common = parts.batches, {name: one[20:30] for name, one in part().items()}
    parts.batches = lambda at: {name: torch.cat([one[: BATCH - 10], common[name]]) for name, one in plain(at).items()}
    parts.evaluation = validated(common)
    return EACH


def loud_in_half(parts: Parts) -> int:
    """Pixels are summed over all pictures of a batch, and compared in grey levels to 255."""
    return mistakes.component_scale(parts, "mask", by=255.0 * SIZE**2 * 6)


OWN: dict[str, mistakes.Mistake] = {
    "component-sign": partial(mistakes.component_sign, name="dice", weight=-0.5),
    "zero-adapters": zero_adapters,
    "wrong-curriculum": wrong_curriculum,
    "train-set-as-validation": train_set_as_validation,
    "loud-in-half": loud_in_half,
}
HEALTHY = ("plain", *VARIANTS)
SPARSE = VARIANTS.keys() - {"per-epoch", "resumed", "loss-only"}  # every second step is a row
SICK = (
    *(*OWN, "rate-too-high", "scheduler-twice", "crash-type-error", "dropout-in-evaluation", "local-counter"),
    "component-untracked",
)


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts) if case in SPARSE else parts, path, case, OWN)

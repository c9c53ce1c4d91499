"""Where a wildfire will have burnt in three hours, and when it comes to each place, from the landscape and the wind.

Landscapes are drawn here: mountains, fuel with rivers and roads through it, a wind; a fire is lit and spreads from cell
to cell by chance, faster uphill, before the wind and in dry fuel. A small U-Net with two outputs reads the map as it is
at the first hour. Three losses: cross-entropy of what is burnt, absolute error of the hours until a cell takes fire
(softened near 0), and the squared disagreement of the two. AdamW, a warm-up and a cosine, clipping. Validation on other
landscapes: loss, intersection over union of what burns anew, and the error of the hours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import loop, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, declared
from benchmarks.diagnosis.schooling import taught

HELD_OUT = False
STEPS, EACH = 120, 12  # EACH: steps between evaluations
MAPS, HELD, BATCH, GRID, CELL = 1152, 160, 24, 16, 20.0  # CELL: metres
BEFORE, AHEAD, TICKS = 4, 9, 3  # ticks until the map is drawn, and until the fire is judged; of an hour
CHANNELS = ("elevation", "fuel", "wind_east", "wind_north", "burning", "burnt")
RATE, WARMUP, CLIP = 8e-3, 10, 1.0
WEIGHTS = {"burnt": 1.0, "arrival": 0.5, "agreement": 0.5}
ROLES = {"burnt": "task", "arrival": "task", "agreement": "regulariser"}
SHARP, LATER = 3.0, 3.5  # how steeply an early arrival means burnt, by the hour; no fire comes before that hour
WIND = (0.0, 1.6)
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "waits", "epochs"})
SPARSE = ("bf16", "half", "smoke", "satellite", "momentum", "fine-tuning")  # a row each fourth step
TWINS = {"opposed-components": "satellite", "stuck-counter": "agreement-later", "one-bad-batch": "momentum"}
TWINS |= dict.fromkeys(("skips-counted", "loud-in-half"), "half")
TWINS |= dict.fromkeys(("coarse-precision", "log-of-zero"), "bf16")
WAYS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column]


def hills(count: int, size: int, chance: torch.Generator) -> Tensor:
    """Smooth fields of zero mean and unit spread, with bumps of about so many cells."""
    coarse = torch.randn(count, 1, GRID // size + 2, GRID // size + 2, generator=chance)
    smooth = functional.interpolate(coarse, size=(GRID, GRID), mode="bicubic", align_corners=True)[:, 0]
    return (smooth - smooth.mean((1, 2), keepdim=True)) / smooth.std((1, 2), keepdim=True)


def drawn(count: int, chance: torch.Generator, steep: float, winds: tuple[float, float]) -> dict[str, Tensor]:
    """Landscapes: elevation in metres, fuel, whose lack is a river or a road, and the wind."""
    base = 1100.0 + 800.0 * torch.rand(count, 1, 1, generator=chance)
    fuel = (0.6 + 0.25 * hills(count, 4, chance)).clamp(0.1, 1.0)
    speed = winds[0] + (winds[1] - winds[0]) * torch.rand(count, 1, 1, generator=chance)
    angle = 2 * torch.pi * torch.rand(count, 1, 1, generator=chance)
    high = base + steep * (hills(count, 5, chance) + 0.3 * hills(count, 2, chance))
    wind = {"wind_east": speed * angle.cos(), "wind_north": speed * angle.sin()}
    return {"elevation": high, "fuel": fuel * (hills(count, 8, chance).abs() > 0.08), **wind}


def beside(padded: Tensor, row: int, column: int) -> Tensor:
    """What each cell's neighbour on this side has."""
    return padded[:, 1 + row : GRID + 1 + row, 1 + column : GRID + 1 + column]


def spread(land: dict[str, Tensor], chance: torch.Generator) -> Tensor:
    """The tick at which each cell takes fire, infinite if it never does; a cell burns for three of them."""
    fuel, count = land["fuel"], len(land["fuel"])
    high, pull = functional.pad(land["elevation"], (1, 1, 1, 1)), []
    for row, column in WAYS:  # from the neighbour there
        far = (row**2 + column**2) ** 0.5
        slope = (land["elevation"] - beside(high, row, column)) / (CELL * far)
        before = (-column * land["wind_east"] + row * land["wind_north"]) / far
        pull.append(0.45 * fuel * torch.exp(4.0 * slope.clamp(-0.8, 0.8) + before) / far)
    when = torch.full((count, GRID, GRID), torch.inf)
    for _ in range(2):
        row, column = torch.randint(3, GRID - 3, (2, count), generator=chance)
        when[torch.arange(count), row, column] = 0.0
    for tick in range(1, BEFORE + AHEAD + 1):
        fire = functional.pad(((when < tick) & (when >= tick - 3)).float(), (1, 1, 1, 1))
        heat = (torch.stack([beside(fire, *way) for way in WAYS]) * torch.stack(pull)).sum(0)
        lit = torch.rand(heat.shape, generator=chance) < 1 - (-heat).exp()
        when = torch.where(when.isinf() & lit, float(tick), when)
    return when


@cache
def fires(held: bool = False, steep: float = 16.0, wind: tuple[float, float] = WIND) -> Batch:
    """Maps `x`, what is burnt three hours later `y`; in hours of the year, when cells take fire, and the map's time."""
    chance = torch.Generator().manual_seed(71 + held)
    land = drawn(HELD if held else MAPS, chance, steep, wind)
    when = spread(land, chance)
    seen = land | {"burning": ((when <= BEFORE) & (when > BEFORE - 3)).float(), "burnt": (when <= BEFORE).float()}
    x = torch.stack([seen[name].expand(-1, GRID, GRID) for name in CHANNELS], 1)
    clock = 4344.0 + (1488.0 * torch.rand(len(x), 1, 1, generator=chance)).round()  # July and August
    known, fire = when.isfinite() & (when > BEFORE), clock + (when - BEFORE) / TICKS
    anew = {"known": known.float(), "clock": clock, "fire": torch.where(known, fire, clock)}
    return {"x": x, "y": when.isfinite().float()} | anew


def hours(batch: Batch, clocks: torch.dtype = torch.float32) -> Tensor:
    """From the map until a cell takes fire."""
    return (batch["fire"].to(clocks) - batch["clock"].to(clocks)).float()


class Net(nn.Module):
    """Maps in; logits of burnt, and hours until the fire comes, out. What both outputs read is kept."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        double, unit = 2 * width, nn.SiLU()
        self.body = nn.ModuleDict({
            "enter": nn.Sequential(nn.Conv2d(7, width, 3, padding=1), unit),
            "down": nn.Sequential(nn.Conv2d(width, double, 3, 2, 1), unit, nn.Conv2d(double, double, 3, 1, 1), unit),
            "deep": nn.Sequential(nn.Conv2d(double, double, 3, 2, 1), unit, nn.Conv2d(double, double, 3, 1, 1), unit),
            "up": nn.Sequential(nn.Conv2d(2 * double, width, 3, 1, 1), unit),
            "last": nn.Sequential(nn.Conv2d(double, width, 3, 1, 1), nn.ReLU()),
        })  # fmt: skip
        self.head = nn.Conv2d(width, 2, 1)
        self.code = torch.zeros(())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        high = functional.pad(x[:, :1], (1, 1, 1, 1), mode="replicate")
        slopes = [high[:, :, 1:-1, 2:] - high[:, :, 1:-1, :-2], high[:, :, 2:, 1:-1] - high[:, :, :-2, 1:-1]]
        near = self.body["enter"](torch.cat([*(slope / CELL for slope in slopes), x[:, 1:]], 1))
        middle = self.body["down"](near)
        whole = functional.interpolate(self.body["deep"](middle), scale_factor=2.0)
        middle = functional.interpolate(self.body["up"](torch.cat([middle, whole], 1)), scale_factor=2.0)
        self.code = self.body["last"](torch.cat([near, middle], 1))
        burnt, later = self.head(self.code).unbind(1)
        return burnt, AHEAD / TICKS + later.float()


def losses(model: nn.Module, batch: Batch, sign: float = 1.0, clocks: torch.dtype = torch.float32) -> Components:
    """Cross-entropy of what is burnt, error of the hours, and where a fire is late and yet burns, or the reverse."""
    burnt, told = model(batch["x"])
    burnt, spare = burnt.float(), 1.0 - batch["x"][:, CHANNELS.index("burnt")]
    off = torch.where(batch["known"] > 0, told - hours(batch, clocks), (told - LATER).clamp(max=0.0))
    early = (SHARP * sign * (AHEAD / TICKS - told)).sigmoid()
    return {
        "burnt": functional.binary_cross_entropy_with_logits(burnt, batch["y"]),
        "arrival": functional.smooth_l1_loss(off * spare, torch.zeros_like(off), reduction="sum") / spare.sum(),
        "agreement": ((burnt.sigmoid() - early) ** 2 * spare).sum() / spare.sum(),
    }


def total(raw: Components) -> Tensor:
    return torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum()


def measured(held: Batch, each: Callable[..., Components] = losses) -> Callable[[nn.Module], Channels]:
    """The loss, how well what burns anew is hit, and the mean error of the hours there."""

    def measure(model: nn.Module) -> Channels:
        burnt, told = model(held["x"])
        anew = (burnt > 0) & (held["x"][:, CHANNELS.index("burnt")] == 0)
        truth = held["known"] > 0
        return {
            "loss": total(each(model, held)).item(),
            "iou": ((anew & truth).sum() / (anew | truth).sum()).item(),
            "hours_off": (told - hours(held))[truth].abs().mean().item(),
        }

    return measure


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, known = Net(), fires()
    parts = Parts(
        model=model,
        optimizer=adam(model),
        batches=shuffled(known, BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        batches_per_epoch=MAPS // BATCH,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: cast(Net, model).code,
        body=lambda model: [*cast(Net, model).body.parameters()],
        evaluation=Evaluation(EACH, measured(fires(held=True)), held=fires(held=True)),
        header={
            "config": {"batch_size": BATCH, "clip": CLIP, "hours": AHEAD / TICKS, "weights": dict(WEIGHTS)},
            "components": {name: {"role": role} for name, role in ROLES.items()},
            "schedules": {},
            "max_grad_norm": CLIP,
            "gradient_at": "body",
            "classes": counted(known),
        },
        records=RECORDS,
    )
    annealed(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def counted(known: Batch) -> dict[str, int]:
    """How many cells are burnt in the end, and how many are not."""
    return {"unburnt": int((1 - known["y"]).sum()), "burnt": int(known["y"].sum())}


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": [*model.parameters()], "name": "all"}], lr=RATE, weight_decay=1e-2)


def annealed(parts: Parts, peak: float = RATE, **form: Any) -> Parts:
    """The rate warms up and falls along a cosine, and so the header says."""
    return loop.planned(parts, declared("cosine", peak, 0.01 * peak, parts.steps, warmup=WARMUP) | form)


def bf16(parts: Parts) -> Parts:
    """Convolutions are computed in bf16; hours, which are small differences of large numbers, in float32."""
    clocks = {"declared": "float32", "observed": "float32"}
    parts.header["dtypes"] = {"declared": "bfloat16", "observed": "bfloat16", "clocks": clocks}
    return replace(parts, autocast=torch.bfloat16)


def half(parts: Parts) -> Parts:
    """fp16 on batches of a quarter, with a scaler that begins too high and tries more now and then: it skips steps."""
    parts = annealed(sized(parts, BATCH // 4), RATE / 2)
    parts.header["dtypes"] = {"declared": "float16", "observed": "float16"}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=20)
    return replace(parts, scaler=scaler, autocast=torch.float16)


def sized(parts: Parts, size: int, count: int = MAPS) -> Parts:
    """Of so many maps so many a batch."""
    known = {name: values[:count] for name, values in fires().items()}
    parts.header["config"] |= {"batch_size": size, "maps": count}
    return replace(parts, batches=shuffled(known, size, parts.seed), batches_per_epoch=count // size)


def satellite(parts: Parts, weight: float = 0.5, inverted: bool = False) -> Parts:
    """What a satellite saw burnt, in pixels four cells wide, is asked of the same output besides."""
    parts.header["components"]["satellite"] = {"unit": "nat", "role": "auxiliary"}
    weights = parts.header["config"]["weights"] = WEIGHTS | {"satellite": weight}

    def both(model: nn.Module, batch: Batch) -> Components:
        raw, net = losses(model, batch), cast(Net, model)
        p = functional.avg_pool2d(net.head(net.code)[:, 0].float().sigmoid(), 4).clamp(1e-4, 1 - 1e-4)
        seen = functional.avg_pool2d(1.0 - batch["y"] if inverted else batch["y"], 4)
        return raw | {"satellite": functional.binary_cross_entropy(p, seen)}

    parts.losses, parts.weights = both, lambda applied: dict(weights)  # noqa: ARG005
    return parts


def agreement_later(parts: Parts, low: float = 0.01, high: float = 1.0) -> Parts:
    """Two outputs that know nothing need not agree: that weight rises by a clock until two thirds are done."""
    over = 2 * parts.steps // 3
    parts.clocks = {"updates": lambda applied: applied}
    parts.scheduled = {"agreement": ("updates", loop.linear(low, high, over))}
    parts.header["schedules"]["agreement"] = declared("linear", low, high, over, clock="updates")
    parts.header["clocks"], parts.now["agreement"] = ["updates"], low
    parts.header["config"]["weights"] = WEIGHTS | {"agreement": [low, high]}
    parts.weights = lambda applied: WEIGHTS | {"agreement": parts.now["agreement"]}  # noqa: ARG005
    return replace(parts, records=RECORDS | {"clocks"})


def momentum(parts: Parts, rate: float = 0.25) -> Parts:
    """Plain SGD with momentum, and no limit on the gradient."""
    parts.header["config"] |= {"optimizer": "sgd", "momentum": 0.9}
    del parts.header["max_grad_norm"], parts.header["config"]["clip"]
    parts.optimizer = torch.optim.SGD([{"params": [*parts.model.parameters()], "name": "all"}], rate, 0.9)
    return annealed(replace(parts, max_norm=None), rate)


@cache
def schooled(seed: int, steps: int = 200) -> dict[str, Tensor]:
    """The weights of a net that learned before the record begins."""
    parts = build(seed + 50, "plain")

    def loss(number: int) -> Tensor:
        return total(losses(parts.model, parts.batches(number)))

    return taught(parts.model, parts.optimizer, loss, steps=steps, peak=RATE, clip=CLIP)


def fine_tuning(parts: Parts, rate: float = RATE / 40) -> Parts:
    """A schooled net goes on with another region, flat and windy, at a small constant rate."""
    parts.model.load_state_dict(schooled(parts.seed))
    parts.header["config"] |= {"initialised_from": "checkpoints/200.pt", "region": "heath"}
    known, held = (fires(held=held, steep=5.0, wind=(1.2, 2.0)) for held in (False, True))
    parts.header["classes"] = counted(known)
    parts.batches, parts.evaluation = shuffled(known, BATCH, parts.seed), Evaluation(EACH, measured(held), held=held)
    return annealed(parts, rate, kind="constant", end=rate, warmup=0)


def windier_later(parts: Parts, calm: float = 0.6) -> Parts:
    """Calm days at first, all of them from two fifths of the run on: the loss rises there, as is declared."""
    known, every, change = fires(), parts.batches, 2 * parts.steps // 5
    quiet = torch.nonzero(torch.hypot(*known["x"][:, 2:4, 0, 0].unbind(1)) < calm)[:, 0]
    first = shuffled({name: values[quiet] for name, values in known.items()}, BATCH, parts.seed)
    stages = [{"start": at, "data": {"wind": [0.0, limit]}} for at, limit in ((0, calm), (change, WIND[1]))]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "windier-later", "stages": stages}

    def told(step: int, batch: Batch) -> Channels:
        speed = torch.hypot(*batch["x"][:, 2:4, 0, 0].unbind(1))
        range_ = {of: round(getattr(speed, of)().item(), 3) for of in ("min", "mean", "max")}
        return {"stage": int(step > change)} | {f"data/wind/{of}": value for of, value in range_.items()}

    return replace(parts, batches=lambda number: (first if number < change else every)(number), extras=[told])


def smoke(parts: Parts, share: float = 0.3) -> Parts:
    """In training a third of each map of the fire is hidden by smoke: harder than validation, in clear air."""
    parts.header["config"]["smoke"], plain = share, parts.batches

    def batches(number: int) -> Batch:
        batch, chance = plain(number), torch.Generator().manual_seed(1000 * parts.seed + number)
        clear = (hills(len(batch["x"]), 4, chance) < 0.5).float()[:, None]
        return batch | {"x": torch.cat([batch["x"][:, :4], batch["x"][:, 4:] * clear], 1)}

    return replace(parts, batches=batches)


def per_epoch(parts: Parts) -> Parts:
    """A row and an evaluation at the end of each of 10 epochs of half the maps, in larger batches."""
    parts = loop.by_epochs(sized(parts, 2 * BATCH, MAPS // 2), 10)
    return annealed(parts, warmup=parts.batches_per_epoch)


FORMS = (bf16, half, satellite, agreement_later, momentum, fine_tuning, windier_later, smoke, per_epoch)
VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, evaluation=None),
    "resumed": loop.taken_up,
    **{form.__name__.replace("_", "-"): form for form in FORMS},
}


def judged(parts: Parts, **more: Any) -> int:
    """Other losses, in training as in validation."""
    parts.losses, held = partial(losses, **more), fires(held=True)
    parts.evaluation = Evaluation(EACH, measured(held, parts.losses), held=held)
    return 1


def coarse_precision(parts: Parts) -> int:
    """The loader casts all of a batch to bf16, the hours of the year as well, whose grid is 32 hours there."""
    parts.header["dtypes"]["clocks"]["observed"] = "bfloat16"
    return judged(parts, clocks=torch.bfloat16)


def log_of_zero(parts: Parts) -> int:
    """The cross-entropy is written by hand, of a sigmoid in bf16: what is nearly 1 is 1, and the rest 0."""

    def by_hand(model: nn.Module, batch: Batch) -> Components:
        raw, net, y = losses(model, batch), cast(Net, model), batch["y"]
        p = net.head(net.code)[:, 0].sigmoid()
        return raw | {"burnt": -(y * p.log() + (1 - y) * (1 - p).log()).float().mean()}

    parts.losses = by_hand
    return mistakes.WHEN_BROKEN


def opposed_components(parts: Parts) -> int:
    """The satellite's new product says what is green, where the old one said what is burnt."""
    satellite(parts, weight=1.0, inverted=True)
    return 1


OWN: dict[str, mistakes.Mistake] = {
    "wrong-formula": partial(judged, sign=-1.0),  # hours are subtracted the wrong way: what comes late counts as burnt
    "coarse-precision": coarse_precision,
    "log-of-zero": log_of_zero,
    "loud-in-half": partial(mistakes.component_scale, name="arrival", by=3600.0**2),  # in seconds, squared
    "opposed-components": opposed_components,
}
HEALTHY = ("plain", *VARIANTS)
SICK = (*OWN, "dead-relus", "skips-counted", "killed", "stale-optimiser", "stuck-counter", "one-bad-batch")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    parts = build(seed, case if case in HEALTHY else TWINS.get(case, "plain"))
    return mistakes.perform(loop.logged(parts, 4) if case in SPARSE else parts, path, case, OWN)

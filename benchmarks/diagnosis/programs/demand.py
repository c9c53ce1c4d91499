"""A greengrocer's forecast: kilograms a day of 96 made-up items, many of them sold on few days, two weeks ahead.

An autoregressive LSTM as in DeepAR. Each item is divided by its own mean; each day has a chance of being sold at all
and a density of how much, whose loss falls below 0. Days without stock do not count. A growing share of past sales is
hidden from the net, as two weeks ahead they will be. Judged by paths drawn into days that are held out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal, StudentT
from torch.nn import functional

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, cosine, declared, linear

HELD_OUT = False
STEPS = 120
ITEMS, DAYS, SPLIT, PAST, AHEAD = 96, 420, 336, 28, 14
"""Items; days that are known of each; the day at which validation begins; days read, and days to be told."""
BATCH, RATE, WARMUP, CLIP, NARROWEST, BLACKOUT, PATHS = 32, 2e-2, 8, 2.0, 0.05, 0.25, 16
WEIGHTS = {"occurrence": 1.0, "amount": 1.0, "activation": 0.05}
RECORDS = frozenset({"components", "norms", "optimizer", "clocks"})

HEALTHY = (
    *("plain", "loss-only", "epochs", "resumed", "watched", "tiny-batch", "fine-tuned", "heavy-tails"),
    *("christmas", "longer-windows", "new-catalogue", "early-stopped"),
)
SICK = (
    *("rate-too-high", "unscaled-input", "log-of-zero", "bad-sample", "too-little-data"),
    *("component-scale", "component-sign", "stuck-counter", "resume-restarts-schedule", "labels-break", "stage-stuck"),
)
TWINS = {
    "resume-restarts-schedule": "resumed",
    "stage-stuck": "longer-windows",
    "unscaled-input": "watched",
    "bad-sample": "watched",
}


@lru_cache(maxsize=1)
def history() -> Batch:
    """Every item's sales, its scale, whether there was stock, and what is known of each day beforehand."""
    random, days = np.random.default_rng(0), np.arange(DAYS)
    level = np.exp(random.uniform(np.log(0.5), np.log(3000.0), (ITEMS, 1)))
    week = random.normal(0.0, 0.35, (4, 7))[np.arange(ITEMS) % 4][:, days % 7]  # four kinds of goods
    year = random.normal(0.0, 0.15, (ITEMS, 1)) * np.sin(2 * np.pi * days / 365 + random.uniform(0, 6, (ITEMS, 1)))
    promoted = random.random((ITEMS, DAYS)) < 0.08
    drift = np.zeros((ITEMS, DAYS))
    for day in days[1:]:
        drift[:, day] = 0.9 * drift[:, day - 1] + 0.04 * random.normal(size=ITEMS)
    lift = random.uniform(0.3, 1.0, (ITEMS, 1)) * promoted + 1.2 * (random.random((ITEMS, DAYS)) < 3e-4)  # restaurants
    noise = random.uniform(0.04, 0.14, (ITEMS, 1)) * random.normal(size=(ITEMS, DAYS))
    asked = random.normal(2.0, 2.0, (ITEMS, 1)) + 2.0 * week + 3.0 * drift + lift
    bought = random.random((ITEMS, DAYS)) < 1.0 / (1.0 + np.exp(-asked))
    stocked = np.repeat(random.random((ITEMS, DAYS // 3)) > 0.06, 3, axis=1)
    sold = bought * stocked * level * np.exp(week + year + drift + lift + noise)
    scale = sold[:, :SPLIT].sum(1) / np.maximum((sold[:, :SPLIT] > 0).sum(1), 1)
    known = [np.broadcast_to(wave(2 * np.pi * days / 7), (ITEMS, DAYS)) for wave in (np.sin, np.cos)]
    return {
        "sold": torch.tensor(sold, dtype=torch.float32),
        "scale": torch.tensor(scale, dtype=torch.float32),
        "stocked": torch.tensor(stocked),
        "known": torch.tensor(np.stack([*known, promoted], -1), dtype=torch.float32),
    }


def windows(item: Tensor, start: Tensor, length: int = PAST + AHEAD, scaled: bool = True) -> Batch:
    """Stretches of days: what was sold the day before and what is known of the day; the day's own sales."""
    all_items, days = history(), start[:, None] + torch.arange(length)
    scale = all_items["scale"][item, None]
    before = all_items["sold"][item[:, None], days - 1] / (scale if scaled else 1.0)
    return {
        "x": torch.cat([before[..., None], all_items["known"][item[:, None], days]], -1),
        "y": all_items["sold"][item[:, None], days] / scale,
        "counts": all_items["stocked"][item[:, None], days],
        "item": item,
    }


def loader(size: int, seed: int, length: int = PAST + AHEAD, scaled: bool = True) -> Callable[[int], Batch]:
    """Batches by number: windows of the training days that begin each fourth day, in an order of chance."""
    begins = torch.arange(1, SPLIT - length + 1, 4)
    pairs = torch.cartesian_prod(torch.arange(ITEMS), begins)
    drawn = shuffled({"item": pairs[:, 0], "start": pairs[:, 1]}, size, seed)
    return lambda number: windows(**drawn(number), length=length, scaled=scaled)


class Forecaster(nn.Module):
    """An LSTM over days with an embedding of the item; of each day three numbers: sold at all, how much, how sure."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        items, lstm, head = nn.Embedding(ITEMS, 8), nn.LSTM(4 + 8, width, batch_first=True), nn.Linear(width, 3)
        nn.init.normal_(items.weight, std=0.5)
        self.net = nn.ModuleDict({"embedding": items, "lstm": lstm, "head": head})
        self.hidden = torch.zeros(())

    def forward(self, x: Tensor, item: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The three numbers of each day, and the state after the last. float32 [N, days, 3]"""
        who = self.net["embedding"](item)[:, None].expand(-1, x.shape[1], -1)
        self.hidden, state = self.net["lstm"](torch.cat([x, who], -1), state)
        return self.net["head"](self.hidden), state


def density(out: Tensor, freedom: float = 0.0) -> Normal | StudentT:
    """Of the logarithm of what is sold, in units of the item's scale."""
    spread = functional.softplus(out[..., 2]) + NARROWEST
    if freedom:
        return StudentT(freedom, out[..., 1], spread, validate_args=False)
    return Normal(out[..., 1], spread, validate_args=False)


def losses(model: nn.Module, batch: Batch, now: dict[str, float], freedom: float = 0.0) -> Components:
    """Minus the log of what the model gave to each day: that something was sold, and how much; and its activity."""
    x = batch["x"]
    if model.training and now["blackout"]:
        seen = torch.rand(x.shape[:2]) >= now["blackout"]
        x = torch.cat([x[..., :1] * seen[..., None], x[..., 1:]], -1)
    out, _ = model(x, batch["item"])
    counts, sold = batch["counts"], batch["y"] > 0
    occurrence = functional.binary_cross_entropy_with_logits(out[..., 0], sold.float(), reduction="none")
    amount = -density(out, freedom).log_prob(batch["y"].clamp(min=1e-6).log())
    both = counts & sold
    return {
        "occurrence": (occurrence * counts).sum() / counts.sum().clamp(min=1),
        "amount": torch.where(both, amount, 0.0).sum() / both.sum().clamp(min=1),
        "activation": model.hidden.square().mean(),  # type: ignore[operator, union-attr]
    }


@torch.no_grad()
def paths(model: nn.Module, batch: Batch, freedom: float) -> Tensor:
    """Sales drawn day after day from the model's own, in units of the scale. float32 [PATHS, N, AHEAD]"""
    x, item = (batch[name].repeat(PATHS, *[1] * (batch[name].dim() - 1)) for name in ("x", "item"))
    out, state = model(x[:, : PAST + 1], item)
    told = []
    for day in range(PAST, PAST + AHEAD):
        sold = torch.bernoulli(out[:, -1, 0].sigmoid().nan_to_num(0.5))
        told.append(sold * density(out[:, -1].nan_to_num(0.0), freedom).sample().clamp(max=5.0).exp())
        if day + 1 < PAST + AHEAD:
            following = torch.cat([told[-1][:, None], x[:, day + 1, 1:]], -1)
            out, state = model(following[:, None], item, state)
    return torch.stack(told, 1).unflatten(0, (PATHS, -1))


def measure(
    model: nn.Module,
    now: dict[str, float],
    freedom: float = 0.0,
    scaled: bool = True,
    season: Callable[[Batch], Batch] = lambda batch: batch,
) -> Channels:
    """The loss of two weeks that are held out, and of paths through them: quantile loss, and cover of the 80 % band."""
    start = torch.full((ITEMS,), SPLIT).repeat(2) + torch.arange(2).repeat_interleave(ITEMS) * PAST
    batch = season(windows(torch.arange(ITEMS).repeat(2), start, scaled=scaled))
    ahead = batch | {"counts": batch["counts"] & (torch.arange(PAST + AHEAD) >= PAST)}
    raw = {name: value.item() for name, value in losses(model, ahead, now, freedom).items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same dice at every evaluation
        drawn = paths(model, batch, freedom)
    truth, counts = batch["y"][:, PAST:], batch["counts"][:, PAST:]
    low, middle, high = drawn.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=0)
    missed = ((q, truth - told) for q, told in ((0.5, middle), (0.9, high)))
    pinball = torch.stack([torch.maximum(q * by, (q - 1) * by) for q, by in missed]).sum(0)
    return {
        "loss": sum(WEIGHTS[name] * value for name, value in raw.items()),
        "quantile_loss": (pinball[counts].sum() / truth[counts].sum()).item(),
        "coverage": ((truth >= low) & (truth <= high))[counts].float().mean().item(),
    }


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model, now = Forecaster(), {"blackout": 0.0}
    parts = Parts(
        model=model,
        optimizer=torch.optim.Adam([{"params": list(model.parameters()), "name": "all"}], lr=RATE),
        batches=loader(BATCH, seed),
        losses=partial(losses, now=now),
        steps=STEPS,
        seed=seed,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        clocks={"updates": lambda applied: applied},
        scheduled={"blackout": ("updates", linear(0.0, BLACKOUT, STEPS))},
        now=now,
        evaluation=Evaluation(max(STEPS // 15, 1), partial(measure, now=now)),
        header={
            "config": {"lr": RATE, "warmup": WARMUP, "batch_size": BATCH, "blackout": BLACKOUT, "weights": WEIGHTS},
            "total_steps": STEPS,
            "components": {
                "occurrence": {"unit": "nat", "role": "task"},
                "amount": {"unit": "nat", "role": "task"},
                "activation": {"role": "regulariser"},
            },
            "schedules": {"blackout": declared("linear", 0.0, BLACKOUT, STEPS, clock="updates")},
            "clocks": ["updates"],
            "max_grad_norm": CLIP,
        },
        records=RECORDS,
    )
    planned(parts, RATE)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def planned(parts: Parts, rate: float) -> None:
    """The rate warms up and falls along a cosine; so it is declared."""
    parts.optimizer.param_groups[0]["lr"] = rate
    parts.factor = cosine(parts.steps, WARMUP)
    parts.header["config"] |= {"lr": rate, "warmup": WARMUP}
    parts.header["schedules"]["lr/all"] = declared("cosine", rate, 0.0, parts.steps, warmup=WARMUP)


def trained_before(parts: Parts, steps: int) -> None:
    """Steps before the record begins."""
    adam, batches = torch.optim.Adam(parts.model.parameters(), lr=RATE), loader(BATCH, parts.seed + 70)
    for number in range(steps):
        adam.param_groups[0]["lr"] = RATE * cosine(steps)(number)
        raw = losses(parts.model, batches(number), {"blackout": BLACKOUT / 2})
        adam.zero_grad()
        torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum().backward()
        nn.utils.clip_grad_norm_(parts.model.parameters(), CLIP)
        adam.step()


def watched(parts: Parts) -> Parts:
    """Inputs are looked at, and how many days do not count."""
    parts.extras.append(lambda step, batch: {"data/masked/amount": 1.0 - batch["counts"].float().mean().item()})  # noqa: ARG005
    return replace(parts, records=RECORDS | {"inputs", "bad"})


def tiny_batch(parts: Parts) -> Parts:
    """Two items a step, sold daily or hardly ever: the loss says more of the items than of the model."""
    planned(parts, RATE / 3)
    parts.header["config"] |= {"batch_size": 2}
    return replace(parts, batches=loader(2, parts.seed))


def fine_tuned(parts: Parts) -> Parts:
    """Last night's model goes on at a small rate, at its floor, which is below 0 at times."""
    trained_before(parts, 2 * STEPS)
    planned(parts, RATE / 30)
    parts.scheduled["blackout"] = ("updates", lambda reading: BLACKOUT / 2)  # noqa: ARG005
    parts.header["schedules"]["blackout"] = {"kind": "constant", "start": BLACKOUT / 2, "clock": "updates"}
    parts.header["config"] |= {"blackout": BLACKOUT / 2}
    return parts


def heavy_tails(parts: Parts) -> Parts:
    """A Student density of four degrees of freedom instead of the normal one."""
    parts.header["config"] |= {"density": "student", "freedom": 4.0}
    evaluation = Evaluation(max(STEPS // 15, 1), partial(measure, now=parts.now, freedom=4.0))
    return replace(parts, losses=partial(losses, now=parts.now, freedom=4.0), evaluation=evaluation)


def staged(parts: Parts, lengths: tuple[tuple[int, int], ...]) -> Parts:
    """Windows of other lengths from declared steps on."""
    stages = [{"start": start, "name": f"{days}-days", "data": {"days": [days, days]}} for start, days in lengths]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "windows", "stages": stages}
    loaders = [(start, loader(BATCH, parts.seed, length=days)) for start, days in lengths]

    def told(step: int, batch: Batch) -> Channels:
        days, stage = batch["x"].shape[1], sum(step > start for start, _ in lengths) - 1
        return {"stage": stage, **{f"data/days/{name}": days for name in ("min", "mean", "max")}}

    parts.extras.append(told)
    parts.batches = lambda number: next(load for start, load in reversed(loaders) if number >= start)(number)
    return parts


def festive(batch: Batch, seed: int) -> Batch:
    """The same days, with people who buy at odd times."""
    random = torch.Generator().manual_seed(seed)
    odd = (0.3 * torch.randn(batch["y"].shape, generator=random)).exp()
    return batch | {"y": batch["y"] * odd * (torch.rand(odd.shape, generator=random) > 0.1)}


def christmas(parts: Parts) -> Parts:
    """From the middle on training and validation are of festive weeks: the loss rises, as declared, and stays up."""
    half, plain, reached = STEPS // 2, parts.batches, {"step": 0}
    stages = [{"start": 0, "name": "ordinary"}, {"start": half, "name": "festive"}]
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "seasons", "stages": stages}
    parts.begins.append(lambda step: reached.update(step=step))

    def season(batch: Batch) -> Batch:
        return festive(batch, 1) if reached["step"] > half else batch

    parts.extras.append(lambda step, batch: {"stage": int(step > half)})  # noqa: ARG005
    return replace(
        parts,
        batches=lambda number: plain(number) if number < half else festive(plain(number), 90_000 * parts.seed + number),
        evaluation=Evaluation(max(STEPS // 15, 1), partial(measure, now=parts.now, season=season)),
    )


def new_catalogue(parts: Parts) -> Parts:
    """The items are others than those the net was trained on: only their embeddings and the head learn."""
    assert isinstance(parts.model, Forecaster)
    trained_before(parts, STEPS)
    nn.init.normal_(parts.model.net["embedding"].weight, std=0.5)
    parts.model.net["lstm"].requires_grad_(False)
    learning = [*parts.model.net["embedding"].parameters(), *parts.model.net["head"].parameters()]
    parts.optimizer = torch.optim.Adam([{"params": learning, "name": "all"}], lr=RATE)
    parts.header["config"] |= {"frozen": ["lstm"]}
    planned(parts, RATE)
    return parts


def early_stopped(parts: Parts) -> Parts:
    """A plan twice as long, that ends when the quantile loss has not fallen twice in a row."""
    parts.steps = parts.header["total_steps"] = 2 * STEPS
    planned(parts, RATE)
    seen: list[float] = []
    assert parts.evaluation is not None
    plain = parts.evaluation.measure

    def remembered(model: nn.Module) -> Channels:
        values = plain(model)
        seen.append(values["quantile_loss"])
        return values

    parts.stops = lambda: len(seen) > 2 and min(seen[-2:]) > min(seen[:-2])
    return replace(parts, evaluation=replace(parts.evaluation, measure=remembered))


VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "loss-only": lambda parts: replace(parts, records=frozenset(), header={}, extras=[]),
    "epochs": lambda parts: replace(parts, every=10),
    "resumed": lambda parts: replace(parts, resume=Resume(STEPS // 2)),
    "watched": watched,
    "tiny-batch": tiny_batch,
    "fine-tuned": fine_tuned,
    "heavy-tails": heavy_tails,
    "christmas": christmas,
    "longer-windows": lambda parts: staged(parts, ((0, 14), (STEPS // 4, 28), (STEPS // 2, PAST + AHEAD))),
    "new-catalogue": new_catalogue,
    "early-stopped": early_stopped,
}


def unscaled_input(parts: Parts) -> int:
    """Sales of the day before come in kilograms, in training and in evaluation; only the targets are scaled."""
    parts.batches = loader(BATCH, parts.seed, scaled=False)
    assert parts.evaluation is not None
    parts.evaluation = replace(parts.evaluation, measure=partial(measure, now=parts.now, scaled=False))
    return 1


def log_of_zero(parts: Parts, grain: float = 0.02) -> int:
    """The scales are coarse, so a probability of an interval is taken: far from the mean two values of the cumulative
    distribution are the same number."""
    plain = parts.losses

    def of_intervals(model: nn.Module, batch: Batch) -> Components:
        raw, both = plain(model, batch), batch["counts"] & (batch["y"] > 0)
        normal, at = density(model.net["head"](model.hidden)), batch["y"].clamp(min=1e-6).log()  # type: ignore[operator, index]
        probability = torch.where(both, normal.cdf(at + grain / 2) - normal.cdf(at - grain / 2), grain)
        return raw | {"amount": -(probability / grain).log().sum() / both.sum().clamp(min=1)}

    parts.losses = of_intervals
    return mistakes.WHEN_BROKEN


def stage_stuck(parts: Parts) -> int:
    """The stage is asked for once, when the loader is made: windows stay short."""
    told, parts.batches = parts.extras[-1], loader(BATCH, parts.seed, length=14)
    parts.extras[-1] = lambda step, batch: {**told(step, batch), "stage": 0}
    return STEPS // 4 + 1


OWN: dict[str, mistakes.Mistake] = {
    "unscaled-input": unscaled_input,
    "log-of-zero": log_of_zero,
    "stage-stuck": stage_stuck,
    "rate-too-high": partial(mistakes.rate_too_high, by=60.0),
    "too-little-data": partial(mistakes.too_little_data, batches=1),
    "component-scale": partial(mistakes.component_scale, name="amount", by=float(BATCH * (PAST + AHEAD))),  # a sum
    "component-sign": partial(mistakes.component_sign, name="occurrence", weight=-1.0),  # negated twice
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

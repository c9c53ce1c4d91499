"""A character model of CPython's own documentation, whose second block has experts: each place is sent to two of four.

Two blocks with RMS norms, rotary places and SwiGLU; the router is softmaxed, its two largest gates are scaled to sum to
one, and no place is dropped. Beside the cross-entropy stand Switch's balance at 0.01 (1: all experts alike; 4: one has
all) and the router's z-loss at 0.001. AdamW, warm-up, cosine to a tenth, two micro-batches a step, clipping at 1, less
than an epoch. The shares of the busiest and of the idlest expert are logged, gradients by component at the stream that
the experts read. Every twenty steps it is validated, every fifty it writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import facts, mistakes
from benchmarks.diagnosis.data import shuffled, text
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, Sampling, declared
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 100
WIDTH, HEADS, EXPERTS, CONTEXT = 48, 3, 4, 32
TRAINING, VALIDATION, BATCH, ACCUMULATION = 6400, 100, 8, 2
PEAK, WARMUP, DROPOUT, CLIP = 8e-3, 10, 0.1, 1.0
WEIGHTS = {"token": 1.0, "balance": 1e-2, "z": 1e-3}
RECORDS = frozenset({"components", "shares", "norms", "optimizer", "checkpoints"})

HEALTHY = (
    *("plain", "resumed", "warm-restarts", "tiny-batches", "every-tenth", "loss-only", "fine-tuning", "long-warm-up"),
    *("longer-contexts", "adafactor", "top-1", "sixteen-experts", "noisy-router", "frozen-router"),
    "bias-balanced",
)
SICK = (
    *("router-collapse", "component-detached", "component-scale", "steps-miscounted", "stage-stuck"),
    *("resume-old-weights", "too-little-data", "labels-break", "repeating-text", "missing-zero-grad", "root-of-zero"),
)
TWINS = {"router-collapse": "sixteen-experts", "stage-stuck": "longer-contexts", "resume-old-weights": "resumed"}


@lru_cache(maxsize=1)
def windows() -> Batch:
    """Stretches of the text in an order of chance; each place's target is the next character."""
    codes = text()[1].unfold(0, CONTEXT + 1, CONTEXT)
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(23))[: TRAINING + VALIDATION]
    return {"x": codes[order, :-1], "y": codes[order, 1:]}


def training(count: int = TRAINING) -> Batch:
    return {name: values[:count] for name, values in windows().items()}


def held() -> Batch:
    return {name: values[TRAINING:] for name, values in windows().items()}


@lru_cache(maxsize=1)
def pairs() -> frozenset[str]:
    """All pairs of characters that the training set has."""
    alphabet, x = text()[0], training()["x"]
    seen = torch.unique(torch.stack([x[:, :-1].flatten(), x[:, 1:].flatten()], 1), dim=0)
    return frozenset(alphabet[first] + alphabet[second] for first, second in seen.tolist())


class Attention(nn.Module):
    """Causal, with rotary places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.drop = nn.RMSNorm(width), nn.Dropout(DROPOUT)
        self.mix, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        half = width // HEADS // 2
        turns = torch.outer(torch.arange(CONTEXT), 100.0 ** (-torch.arange(half) / half))
        self.register_buffer("turns", torch.polar(torch.ones_like(turns), turns), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.mix(self.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        query, key = (self.rotated(part) for part in parts[:2])
        mixed = functional.scaled_dot_product_attention(query, key, parts[2], is_causal=True)
        out: Tensor = x + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return out

    def rotated(self, part: Tensor) -> Tensor:
        pairs = torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.turns[: part.shape[-2]]).flatten(-2)


class SwiGLU(nn.Module):
    """What one expert is."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, -1)
        out: Tensor = self.down(value * functional.silu(gate))
        return out


class Router(nn.Module):
    """Sends each place to its `top` likeliest experts, and keeps what the auxiliary losses are made of."""

    def __init__(self, width: int, experts: int, top: int) -> None:
        super().__init__()
        self.choose = nn.Linear(width, experts, bias=False)
        nn.init.normal_(self.choose.weight, std=0.02)
        self.register_buffer("bias", torch.zeros(experts))  # moves the choice and not the gates; 0 unless it balances
        self.top, self.noise = top, 0.0
        self.logits, self.chances, self.load = torch.zeros(()), torch.zeros(()), torch.zeros(experts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gates and the numbers of the experts chosen. float32 and int64 [places, top]"""
        self.logits = self.choose(x)
        noisy = self.logits + self.noise * torch.randn_like(self.logits) if self.training else self.logits
        self.chances = noisy.softmax(-1)
        chosen = (noisy + self.bias).topk(self.top).indices
        gates = self.chances.gather(-1, chosen)
        self.load = functional.one_hot(chosen, len(self.bias)).float().mean((0, 1))
        return (gates if self.top == 1 else gates / gates.sum(-1, keepdim=True)), chosen

    def balance(self) -> Tensor:
        return len(self.load) * (self.load * self.chances.mean(0)).sum()

    def z(self) -> Tensor:
        return self.logits.logsumexp(-1).square().mean()


class Mixture(nn.Module):
    """A language model whose last feed-forward layer is a mixture of experts."""

    def __init__(self, symbols: int, experts: int = EXPERTS, top: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.dense = nn.Sequential(Attention(WIDTH), nn.RMSNorm(WIDTH), SwiGLU(WIDTH, WIDTH))
        self.attention, self.norm = Attention(WIDTH), nn.RMSNorm(WIDTH)
        self.router = Router(WIDTH, experts, top)
        self.experts = nn.ModuleList(SwiGLU(WIDTH, 4 * WIDTH // experts) for _ in range(experts))
        self.drop = nn.Dropout(DROPOUT)
        self.head = nn.Sequential(nn.RMSNorm(WIDTH), nn.Linear(WIDTH, symbols, bias=False))
        self.stream = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        attend, norm, think = self.dense
        inner = attend(self.embedding(x))
        self.stream = self.attention(inner + self.drop(think(norm(inner))))
        logits: Tensor = self.head(self.stream + self.drop(self.mixed(self.norm(self.stream))))
        return logits

    def mixed(self, x: Tensor) -> Tensor:
        """What the chosen experts say, by their gates."""
        places = x.flatten(0, -2)
        gates, chosen = self.router(places)
        out = torch.zeros_like(places)
        for number, expert in enumerate(self.experts):
            place, rank = (chosen == number).nonzero(as_tuple=True)
            out = out.index_add(0, place, gates[place, rank, None] * expert(places[place]))
        return out.view(x.shape)

    @torch.no_grad()
    def write(self, count: int, temperature: float, generator: torch.Generator) -> list[str]:
        """Texts that begin with a new line, a character after the other; temperature 0 takes the likeliest."""
        alphabet = text()[0]
        x = torch.full((count, 1), alphabet.index("\n"))
        for _ in range(CONTEXT - 1):
            logits = self(x)[:, -1]
            chances = (logits / temperature).softmax(-1) if temperature else logits
            step = torch.multinomial(chances, 1, generator=generator) if temperature else chances.argmax(-1)[:, None]
            x = torch.cat([x, step], 1)
        return ["".join(alphabet[code] for code in row) for row in x[:, 1:].tolist()]


def losses(model: nn.Module, batch: Batch) -> Components:
    """Cross-entropy, and what keeps the router even and its logits small."""
    assert isinstance(model, Mixture)
    token = functional.cross_entropy(model(batch["x"]).transpose(1, 2), batch["y"])
    return {"token": token, "balance": model.router.balance(), "z": model.router.z()}


def measure(model: nn.Module) -> Channels:
    """Cross-entropy of what was held out, and its perplexity."""
    token = losses(model, held())["token"].item()
    return {"loss": token, "perplexity": math.exp(min(token, 20.0))}


def drawn(temperature: float = 0.8) -> Callable[[nn.Module], tuple[list[str], Channels]]:
    """Six lines of the model's own."""

    def draw(model: nn.Module) -> tuple[list[str], Channels]:
        assert isinstance(model, Mixture)
        texts = model.write(6, temperature, torch.Generator().manual_seed(9))
        return texts, facts.text_quality(texts, pairs())

    return draw


def build(seed: int, variant: str) -> Parts:
    """The parts of a healthy variant."""
    torch.manual_seed(seed)
    model = Mixture(len(text()[0]), **ROUTING.get(variant, {}))
    parts = Parts(
        model=model,
        optimizer=torch.optim.AdamW(groups(model), lr=PEAK, betas=(0.9, 0.95)),
        batches=shuffled(training(), BATCH, seed),
        losses=losses,
        steps=STEPS,
        seed=seed,
        max_norm=CLIP,
        weights=lambda applied: dict(WEIGHTS),  # noqa: ARG005
        at=lambda model: model.stream,  # type: ignore[arg-type, return-value]
        evaluation=Evaluation(20, measure),
        sampling=Sampling(50, drawn()),
        header={
            "config": {"context": CONTEXT, "experts": len(model.experts), "top": model.router.top, "dropout": DROPOUT},
            "components": {
                "token": {"unit": "nat", "role": "task"},
                "balance": {"unit": "", "role": "regulariser"},
                "z": {"unit": "", "role": "regulariser"},
            },
            "max_grad_norm": CLIP,
            "gradient_at": "stream",
            "checkpoint_every": 50,
        },
        records=RECORDS,
        extras=[lambda step, batch: load(model)],  # noqa: ARG005
    )
    planned(parts)
    return VARIANTS[variant](parts) if variant in VARIANTS else parts


def load(model: Mixture) -> Channels:
    """The experts' shares of the last micro-batch's places."""
    return {"router/busiest": model.router.load.max().item(), "router/idlest": model.router.load.min().item()}


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay, norms do not."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    return [
        {"params": decayed, "name": "decayed", "weight_decay": 0.1},
        {"params": others, "name": "others", "weight_decay": 0.0},
    ]


def planned(parts: Parts, peak: float = PEAK, size: int = BATCH, accumulation: int = ACCUMULATION, **form: Any) -> None:
    """So many windows a micro-batch; the rate warms up and falls to a tenth, and so the header says."""
    form = declared("cosine", peak, peak / 10, parts.steps) | {"warmup": WARMUP} | form
    for group in parts.optimizer.param_groups:
        group["lr"] = peak
    parts.factor = lambda tick: (schedule_value(form, tick + 1) or 0.0) / peak
    parts.batches, parts.accumulation = shuffled(training(), size, parts.seed), accumulation
    parts.batches_per_epoch = TRAINING // size
    parts.header["config"] |= {"lr": peak, "warmup": form["warmup"], "batch_size": size, "accumulation": accumulation}
    parts.header["schedules"] = {f"lr/{group['name']}": form for group in parts.optimizer.param_groups}
    parts.header["total_steps"] = parts.steps
    epochs = parts.steps * size * accumulation / TRAINING
    parts.header["horizon"] = {
        "epochs": epochs,
        "samples": TRAINING,
        "batch_size": size,
        "accumulation": accumulation,
        "drop_last": True,
    }


def pretrained(parts: Parts, steps: int) -> None:
    """Steps before the record begins."""
    batches, adam = shuffled(training(), 16, parts.seed + 90), torch.optim.AdamW(parts.model.parameters(), lr=PEAK)
    for number in range(steps):
        for group in adam.param_groups:
            group["lr"] = PEAK * (1.0 - number / steps)
        adam.zero_grad()
        raw = losses(parts.model, batches(number))
        torch.stack([WEIGHTS[name] * value for name, value in raw.items()]).sum().backward()
        nn.utils.clip_grad_norm_(parts.model.parameters(), CLIP)
        adam.step()


def warm_restarts(parts: Parts) -> Parts:
    planned(parts, restarts=2, warmup=0)
    return parts


def tiny_batches(parts: Parts) -> Parts:
    """One window a step, for a model that can something already: a noisy loss, and experts that idle for a step."""
    pretrained(parts, 60)
    planned(parts, 6e-4, size=1, accumulation=1)
    return parts


def fine_tuning(parts: Parts) -> Parts:
    """A model that is trained through, at a low rate: the loss stays where it is."""
    pretrained(parts, 200)
    planned(parts, 6e-5, warmup=5)
    return parts


def long_warm_up(parts: Parts) -> Parts:
    planned(parts, warmup=STEPS // 2)
    return parts


def adafactor(parts: Parts) -> Parts:
    """Factored moments and no momentum; its rate is relative to the weights' size."""
    parts.optimizer = torch.optim.Adafactor(groups(parts.model), lr=0.02, d=1.0)
    planned(parts, 0.02)
    return parts


def longer_contexts(parts: Parts) -> Parts:
    """Ten characters of each window for a third of the run, twenty for another; then all of them."""
    stages, plain = contexts(), parts.batches
    parts.header["curriculum"] = parts.header["curriculum_running"] = {"name": "contexts", "stages": stages}
    parts.batches = lambda number: shortened(plain(number), stage_at(number // ACCUMULATION)["data"]["context"][1])
    parts.extras.append(lambda step, batch: told(stages.index(stage_at(step - 1)), batch))
    return parts


def contexts() -> list[dict[str, Any]]:
    """The stages, as the config has them."""
    sizes = {0: CONTEXT // 4, STEPS // 3: CONTEXT // 2, 2 * STEPS // 3: CONTEXT}
    return [{"start": at, "name": f"of-{size}", "data": {"context": [size, size]}} for at, size in sizes.items()]


def stage_at(applied: int) -> dict[str, Any]:
    return [stage for stage in contexts() if stage["start"] <= applied][-1]


def shortened(batch: Batch, size: int) -> Batch:
    return {name: values[:, :size] for name, values in batch.items()}


def told(stage: int, batch: Batch) -> Channels:
    length = batch["x"].shape[1]
    return {"stage": stage, **{f"data/context/{name}": length for name in ("min", "mean", "max")}}


def noisy_router(parts: Parts) -> Parts:
    """Noise on the router's logits, annealed to nothing within two thirds of the run by a counter of the router's."""
    form = declared("linear", 1.0, 0.0, 2 * STEPS // 3, clock="router")
    parts.clocks["router"] = lambda applied: applied
    parts.scheduled["noise"] = ("router", lambda reading: schedule_value(form, reading) or 0.0)
    parts.header["schedules"]["noise"], parts.header["clocks"] = form, ["router"]

    def noisy(model: nn.Module, batch: Batch) -> Components:
        model.router.noise = parts.now["noise"]  # type: ignore[union-attr]
        return losses(model, batch)

    return replace(parts, losses=noisy, records=parts.records | {"clocks"})


def frozen_router(parts: Parts) -> Parts:
    """A router of chance that stays as it is, as hashing does; so its two losses are only watched."""
    nn.init.normal_(parts.model.router.choose.weight, std=0.3)  # type: ignore[union-attr, arg-type]
    for parameter in parts.model.router.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    return watched(parts)


def watched(parts: Parts) -> Parts:
    """Only the cross-entropy is learnt from; the rest is logged."""
    return replace(parts, weights=lambda applied: WEIGHTS | {"balance": 0.0, "z": 0.0})  # noqa: ARG005


def bias_balanced(parts: Parts) -> Parts:
    """No loss balances: after each step the choice is biased a little towards the experts that had too few places."""
    router = parts.model.router
    assert isinstance(router, Router)

    def bias(step: int) -> None:  # noqa: ARG001
        router.bias += 0.02 * (1 / EXPERTS - router.load).sign()

    parts.ends.append(bias)
    return replace(parts, weights=lambda applied: WEIGHTS | {"balance": 0.0})  # noqa: ARG005


ROUTING: dict[str, dict[str, int]] = {"top-1": {"top": 1}, "sixteen-experts": {"experts": 16}}
"""Of the variants whose model is another."""

VARIANTS: dict[str, Callable[[Parts], Parts]] = {
    "resumed": lambda parts: replace(parts, resume=Resume(STEPS // 2)),
    "warm-restarts": warm_restarts,
    "tiny-batches": tiny_batches,
    "every-tenth": lambda parts: replace(parts, every=10, records=RECORDS - {"shares"}),
    "loss-only": lambda parts: replace(
        parts, records=frozenset(), header={"total_steps": STEPS}, extras=[], sampling=None
    ),
    "fine-tuning": fine_tuning,
    "long-warm-up": long_warm_up,
    "longer-contexts": longer_contexts,
    "adafactor": adafactor,
    "noisy-router": noisy_router,
    "frozen-router": frozen_router,
    "bias-balanced": bias_balanced,
}


def router_collapse(parts: Parts) -> int:
    """The router's losses are computed and logged, and the total is the cross-entropy alone."""
    mistakes.reweigh(parts, lambda applied, weights: weights | {"balance": 0.0, "z": 0.0})  # noqa: ARG005
    return 1


def component_detached(parts: Parts) -> int:
    """The balance is made of counts: how many places each expert has, squared. Counts have no gradient."""
    plain = parts.losses

    def counted(model: nn.Module, batch: Batch) -> Components:
        raw, counts = plain(model, batch), model.router.load  # type: ignore[union-attr]
        return raw | {"balance": len(counts) * counts.square().sum()}  # type: ignore[arg-type, operator, union-attr]

    parts.losses = counted
    return 1


def stage_stuck(parts: Parts) -> int:
    """The length of the contexts is read before the loop."""
    first, plain = contexts()[0], shuffled(training(), BATCH, parts.seed)
    parts.batches = lambda number: shortened(plain(number), first["data"]["context"][1])
    parts.extras[-1] = lambda step, batch: told(0, batch)  # noqa: ARG005
    return int(contexts()[1]["start"]) + 1


def repeating_text(parts: Parts) -> int:
    """The config of the sampling has a temperature of 0."""
    parts.sampling = Sampling(50, drawn(0.0))
    return 50


def root_of_zero(parts: Parts) -> int:
    """The balance is the spread of the mean chances; a router that begins at zero gives all experts the same."""
    router, plain = parts.model.router, parts.losses
    assert isinstance(router, Router)
    nn.init.zeros_(router.choose.weight)

    def spread(model: nn.Module, batch: Batch) -> Components:
        return plain(model, batch) | {"balance": router.chances.mean(0).var().sqrt() * EXPERTS}

    parts.losses, parts.fails = spread, True  # no character can be drawn from NaN
    return mistakes.WHEN_BROKEN


OWN: dict[str, mistakes.Mistake] = {
    "router-collapse": router_collapse,
    "component-detached": component_detached,
    "component-scale": partial(mistakes.component_scale, name="balance", by=1e6),
    "stage-stuck": stage_stuck,
    "too-little-data": partial(mistakes.too_little_data, batches=4),
    "repeating-text": repeating_text,
    "root-of-zero": root_of_zero,
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)

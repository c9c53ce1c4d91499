"""A small GPT over the characters of CPython's own documentation, which every Python carries.

Two blocks, AdamW with a decayed and an undecayed group, warm-up and cosine to a tenth, two micro-batches a step,
clipping at 1.0, a z-loss of 1e-4 beside the cross-entropy. Lines are trained on one by one, so the model learns to end
them; now and then it writes some lines. Variants cast to bf16 or fp16, mix experts, or lengthen the context by stages.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from math import log, nan
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import trainwatch
from benchmarks.diagnosis import facts
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 200
SICK = (
    "scheduler-per-micro-batch", "warmup-ignored", "steps-miscounted", "divided-twice", "resume-restarts-schedule",
    "resume-old-weights", "all-masked", "scale-collapse", "skips-counted", "nan-filtered-log",
    "repeating-text", "short-answers", "invalid-answers", "too-little-data", "rate-too-high", "frozen-body",
)  # fmt: skip
HEALTHY = (
    "plain", "bf16", "fp16", "experts", "longer-contexts", "resumed", "loss-only", "every-tenth", "warm-restarts",
    "fine-tuning", "clipped-always", "by-hand", "single-line-batches", "eight-micro-batches",
)  # fmt: skip
TWIN = {
    "divided-twice": "by-hand", "resume-restarts-schedule": "resumed", "resume-old-weights": "resumed",
    "scale-collapse": "fp16", "skips-counted": "fp16",
    "nan-filtered-log": "by-hand",
}  # fmt: skip
"""The healthy case that a sick one departs from, where it is not "plain"."""
LONGEST = 32
"""Characters of a line that are trained on."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and what is logged of it."""

    steps: int = field(default_factory=lambda: STEPS)
    batch: int = 6  # lines of a micro-batch
    micro: int = 2
    lines: int = 5000
    rate: float = 4e-3
    schedule: dict[str, Any] = field(default_factory=lambda: {"kind": "cosine", "warmup": STEPS // 10})
    clip: float = 1.0
    experts: int = 0
    dtype: str = "float32"
    stages: tuple[int, ...] = ()  # longest line of each stage
    by_hand: bool = False
    every: int = 1
    full: bool = True
    pretrained: int = 0
    interrupted: int = 0


CASES: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": "bfloat16"},
    "fp16": {"dtype": "float16", "batch": 2, "micro": 1},
    "experts": {"experts": 4},
    "longer-contexts": {"stages": (10, 20, 32)},
    "resumed": {"interrupted": 100},
    "loss-only": {"full": False, "by_hand": True},
    "every-tenth": {"every": 10, "steps": 300},
    "warm-restarts": {"schedule": {"kind": "cosine", "restarts": 2}},
    "fine-tuning": {"pretrained": 300, "rate": 2e-5, "schedule": {"kind": "linear", "warmup": 10}},
    "clipped-always": {"clip": 0.25},
    "by-hand": {"by_hand": True},
    "single-line-batches": {"batch": 1, "micro": 1, "rate": 1e-3},
    "eight-micro-batches": {"batch": 2, "micro": 8},
    "divided-twice": {"by_hand": True},
    "resume-restarts-schedule": {"interrupted": 100},
    "resume-old-weights": {"interrupted": 100},
    "scale-collapse": {"dtype": "float16", "batch": 2, "micro": 1},
    "skips-counted": {"dtype": "float16", "batch": 2, "micro": 1},
    "nan-filtered-log": {"by_hand": True},
    "too-little-data": {"lines": 24},
    "rate-too-high": {"rate": 0.3},
}
BREAK = 110
FIRST = {
    "scheduler-per-micro-batch": 2, "steps-miscounted": 0, "resume-restarts-schedule": 101, "resume-old-weights": 101,
    "scale-collapse": BREAK, "nan-filtered-log": BREAK, "invalid-answers": 50,
    "skips-counted": 2,
}  # fmt: skip
"""First faulty step of a kind; 1 for the others."""
END, PAD = 0, 1


@cache
def text() -> tuple[tuple[str, ...], str, frozenset[str]]:
    """The lines, the alphabet behind END and PAD, and all pairs of characters that occur."""
    whole = "".join(topics.topics.values())
    lines = [line.strip() for line in whole.split("\n")]
    kept = [line for line in lines if len(line) >= 4 and line.isascii() and facts.longest_run(line) < 4]
    order = np.random.default_rng(5).permutation(len(kept))
    shuffled = tuple(kept[index] for index in order)
    alphabet = "".join(sorted(set("".join(kept))))
    pairs = frozenset(line[i : i + 2] for line in kept for i in range(len(line) - 1))
    return shuffled, alphabet, pairs


@cache
def encoded() -> Tensor:
    """All lines as indices, END before and after, PAD behind. int64 [lines, LONGEST + 2]"""
    lines, alphabet, _ = text()
    index = {character: i + 2 for i, character in enumerate(alphabet)}
    table = np.full((len(lines), LONGEST + 2), PAD, dtype=np.int64)
    for row, line in zip(table, lines, strict=True):
        codes = [END, *(index[character] for character in line[:LONGEST]), END]
        row[: len(codes)] = codes
    return torch.from_numpy(table)


class Block(nn.Module):
    """Attention and a feed-forward layer, or some experts of which each token takes one."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(max(1, experts)))
        self.down = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(max(1, experts)))
        self.router = nn.Linear(width, experts) if experts else None

    def forward(self, x: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """The stream after the block, and how unevenly the experts are used (1: evenly)."""
        query, key, value = self.mix(self.before(x)).chunk(3, -1)
        scores = (query @ key.transpose(1, 2)).float() / query.shape[-1] ** 0.5
        attention = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
        x = x + self.out(attention.to(value.dtype) @ value)
        inner = self.between(x)
        if self.router is None:
            return x + self.down[0](functional.gelu(self.up[0](inner))), x.new_zeros(())
        chances = self.router(inner).float().softmax(-1)
        best, chosen = chances.max(-1)
        outputs = [down(functional.gelu(up(inner))) for up, down in zip(self.up, self.down, strict=True)]
        picked = torch.stack(outputs, -1).gather(-1, chosen[..., None, None].expand(*x.shape, 1))[..., 0]
        used = functional.one_hot(chosen, len(self.up)).float().mean((0, 1))
        return x + best[..., None] * picked, (used * chances.mean((0, 1))).sum() * len(self.up)


class Transformer(nn.Module):
    """Embedding, two blocks, a head."""

    def __init__(self, symbols: int, experts: int, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.position = nn.Parameter(torch.randn(LONGEST + 1, width) * 0.02)
        self.block0, self.block1 = Block(width, experts), Block(width, experts)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols)

    def forward(self, tokens: Tensor, masked_rows: bool = False) -> tuple[Tensor, Tensor]:
        """Logits, and the experts' balance."""
        length = tokens.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool).tril()
        if masked_rows:
            allowed = allowed & (tokens != PAD)[:, :, None]  # a padded place may look at nothing, itself included
        x = self.embedding(tokens) + self.position[:length]
        x, first = self.block0(x, allowed)
        x, second = self.block1(x, allowed)
        return self.head(self.norm(x)), (first + second) / 2


@dataclass
class Run:
    """What a training consists of."""

    model: Transformer
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    plan: Plan
    case: str
    ticks: int = 0  # of the schedule
    snapshots: dict[int, Any] = field(default_factory=dict)


def build(plan: Plan, case: str) -> Run:
    """Model and optimiser."""
    model = Transformer(len(text()[1]) + 2, plan.experts)
    if case == "frozen-body":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(("head", "norm")))
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "name": "decayed", "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "name": "undecayed", "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.95))
    half = plan.dtype == "float16"
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**31, enabled=half)
    return Run(model, optimizer, scaler, plan, case)


def declared(run: Run) -> dict[str, Any]:
    """The schedule of the rate as the header has it."""
    over = run.plan.steps * (run.plan.micro if run.case == "steps-miscounted" else 1)
    return {**run.plan.schedule, "start": run.plan.rate, "end": run.plan.rate / 10, "over_steps": over}


def longest_at(plan: Plan, step: int) -> int:
    """Characters of a line at this step."""
    return plan.stages[(step - 1) * len(plan.stages) // plan.steps] if plan.stages else LONGEST


def batches(plan: Plan, seed: int) -> Iterator[list[Tensor]]:
    """Endless steps, each of some micro-batches."""
    random, table = np.random.default_rng(seed), encoded()
    step = 0
    while True:
        order = random.permutation(plan.lines)
        size = plan.batch * plan.micro
        for at in range(0, len(order) - size + 1, size):
            step += 1
            rows = table[torch.from_numpy(order[at : at + size])][:, : longest_at(plan, step) + 2]
            yield list(rows.split(plan.batch))


def counted(run: Run, targets: Tensor) -> Tensor:
    """Which places count to the loss."""
    kept = targets != PAD
    if run.case == "all-masked":
        prompt = torch.arange(targets.shape[1]) < LONGEST - 3  # only the answer counts, and the prompt fills the line
        kept = kept & ~prompt
    return kept


def losses_of(run: Run, rows: Tensor, broken: bool = False) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The components, the logits, and which places counted."""
    tokens, targets = rows[:, :-1], rows[:, 1:]
    if run.case == "repeating-text":
        targets = tokens  # labels are not shifted: the model learns to say what it was just told
    enabled = run.plan.dtype != "float32"
    with torch.autocast("cpu", getattr(torch, run.plan.dtype), enabled=enabled):
        logits, balance = run.model(tokens, masked_rows=broken)
    kept = counted(run, targets)
    weight = torch.ones(logits.shape[-1])
    weight[END] = 40.0 if run.case == "short-answers" else 1.0
    each = functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none", weight=weight)
    components = {
        "token": each[kept].sum() / kept.sum().clamp(min=1),
        "z": logits.float().logsumexp(-1)[kept].square().sum() / kept.sum().clamp(min=1),
    }
    if run.plan.experts:
        components["balance"] = balance
    if run.plan.dtype == "float16":
        norms = run.model.embedding.weight.square().sum(1).sqrt()
        components["norms"] = (norms - 7.0).square().mean()
    return components, logits, kept


WEIGHTS = {"token": 1.0, "z": 1e-4, "balance": 0.01, "norms": 1e-3}


def accumulate(run: Run, watch: trainwatch.Recorder, micro: list[Tensor], step: int) -> None:
    """The gradient of all micro-batches of a step."""
    broken = run.case == "nan-filtered-log" and step >= BREAK
    if run.case == "scale-collapse" and step == BREAK:
        run.model.embedding.weight.data[PAD] = 0.0  # as padding_idx has it; but the root of 0 has no gradient
    sums: dict[str, float] = {}
    masked = []
    for rows in micro:
        components, _, kept = losses_of(run, rows, broken)
        masked.append(1 - float(kept.float().mean()))
        weights = {name: WEIGHTS[name] for name in components}
        if run.plan.by_hand or step % run.plan.every:
            total = sum((weights[name] * value for name, value in components.items()), torch.zeros(()))
            for name, value in {**components, "": total}.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / len(micro)
        else:
            total = watch.losses(components, weights)
        run.scaler.scale(total / len(micro)).backward()
    if run.plan.full:
        watch.log({"data/masked/token": float(np.mean(masked))})
    if run.plan.by_hand:
        log_by_hand(run, watch, sums)


def log_by_hand(run: Run, watch: trainwatch.Recorder, sums: dict[str, float]) -> None:
    """The means of the micro-batches, as the loop has added them up."""
    total = sums.pop("")
    if run.case == "divided-twice":
        total /= run.plan.micro  # what is differentiated, and logged, was divided already
    if run.case == "nan-filtered-log":
        total, sums = (0.0 if total != total else total), {name: 0.0 if v != v else v for name, v in sums.items()}
    watch.log({"loss": total})
    if run.plan.full:
        watch.log({f"loss/{name}": value for name, value in sums.items()})
        watch.log({f"weight/{name}": WEIGHTS[name] for name in sums})


def learn(run: Run, watch: trainwatch.Recorder, micro: list[Tensor], step: int) -> None:
    """One step of the optimiser."""
    plan, case = run.plan, run.case
    form = {**declared(run), "warmup": 0} if case == "warmup-ignored" else declared(run)
    for group in run.optimizer.param_groups:
        group["lr"] = schedule_value(form, run.ticks + 1)
    run.optimizer.zero_grad()
    accumulate(run, watch, micro, step)
    if case == "divided-twice":
        for parameter in run.model.parameters():
            parameter.grad = None if parameter.grad is None else parameter.grad / plan.micro
    run.scaler.unscale_(run.optimizer)
    if plan.full:
        watch.gradients(max_norm=plan.clip)
    else:
        nn.utils.clip_grad_norm_(run.model.parameters(), plan.clip)
    before = run.scaler.get_scale()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    applied = run.scaler.get_scale() >= before
    run.ticks += (plan.micro if case == "scheduler-per-micro-batch" else 1) if applied or case == "skips-counted" else 0


def record(path: Path, run: Run, resume: int | None = None) -> trainwatch.Recorder:
    """Open the run's file and say what is planned."""
    plan = run.plan
    config = {"model": "gpt", "lr": plan.rate, "batch": plan.batch, "accumulation": plan.micro, "dtype": plan.dtype}
    total = plan.steps * (plan.micro if run.case == "steps-miscounted" else 1)
    if not plan.full:
        return trainwatch.Recorder(path, total_steps=total, config=config, run="docs")
    roles = {"token": {"unit": "nat", "role": "task"}, "z": {"role": "regulariser"}}
    if plan.dtype == "float16":
        roles["norms"] = {"role": "regulariser"}
    epochs = plan.steps * plan.batch * plan.micro / plan.lines
    stages = [
        {"start": plan.steps * i // len(plan.stages), "name": f"to {long}", "data": {"length": [4, long]}}
        for i, long in enumerate(plan.stages)
    ]
    watch = trainwatch.Recorder(
        path,
        config=config,
        total_steps=total,
        horizon={"epochs": epochs, "samples": plan.lines, "batch_size": plan.batch, "accumulation": plan.micro,
                 "drop_last": True, "processes": 1},
        components={**roles, "balance": {"role": "auxiliary"}} if plan.experts else roles,
        schedules={"lr/decayed": declared(run), "lr/undecayed": declared(run)},
        curriculum={"name": "longer-contexts", "stages": stages} if stages else None,
        curriculum_running={"name": "longer-contexts", "stages": stages} if stages else None,
        max_grad_norm=plan.clip,
        dtypes={"declared": plan.dtype, "observed": observed(run)},
        resume=resume,
        run="docs",
    )  # fmt: skip
    watch.attach(run.model, run.optimizer, run.scaler)
    return watch


@torch.no_grad()
def observed(run: Run) -> str:
    """The type that the logits come in."""
    return str(losses_of(run, encoded()[:1])[1].dtype).removeprefix("torch.")


@torch.no_grad()
def evaluate(run: Run, watch: trainwatch.Recorder, step: int) -> None:
    """Cross-entropy on lines that are not trained on."""
    rows = encoded()[5000:5096]
    components, _, _ = losses_of(run, rows)
    loss = float(components["token"])
    values = {"loss": loss, "bits": loss / log(2)}
    watch.evaluate(step, "validation", values if loss == loss else {"loss": nan})


@torch.no_grad()
def write(run: Run, watch: trainwatch.Recorder, step: int) -> None:
    """Let the model go on from the first three characters of eight lines, and judge what comes."""
    draws = torch.Generator().manual_seed(step)
    _, alphabet, pairs = text()
    if run.case == "invalid-answers":
        alphabet = "".join(set(alphabet))  # not sorted: the order is another one in every process
        alphabet = "".join(np.random.default_rng(step).permutation(sorted(alphabet)))
    rows = encoded()[6000 + step : 6008 + step, :4]  # lines of the documentation to go on from
    while rows.shape[1] <= LONGEST:
        logits, _ = run.model(rows)
        logits = logits[:, -1].float().nan_to_num()
        logits[:, PAD] = -torch.inf
        rows = torch.cat([rows, torch.multinomial((logits / 0.8).softmax(-1), 1, generator=draws)], 1)
    outputs = []
    for row in rows[:, 4:].tolist():
        ended = row[: row.index(END)] if END in row else row
        outputs.append("".join(alphabet[code - 2] for code in ended))
    watch.sample(outputs, step, facts.text_quality(outputs, pairs))


def note(run: Run, watch: trainwatch.Recorder, micro: list[Tensor], step: int) -> None:
    """Log tokens, lengths and the stage."""
    if not run.plan.full:
        return
    lengths = torch.cat([(rows > PAD).sum(1) for rows in micro]).float()
    watch.log({"tokens": run.plan.batch * run.plan.micro * LONGEST * step})
    if run.plan.stages or step % 20 == 0:
        watch.log({f"data/length/{name}": float(getattr(lengths, name)()) for name in ("min", "mean", "max")})
    if run.plan.stages:
        watch.log({"stage": (step - 1) * len(run.plan.stages) // run.plan.steps})


def pretrain(run: Run, seed: int) -> None:
    """Steps before the record begins: what a fine-tuning starts from."""
    adam = torch.optim.AdamW(run.model.parameters(), lr=3e-3)
    for micro, _ in zip(batches(run.plan, seed + 100), range(run.plan.pretrained), strict=False):
        adam.zero_grad()
        losses_of(run, micro[0])[0]["token"].backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        adam.step()


def fit(run: Run, path: Path, seed: int, first: int, last: int, resume: int | None = None) -> None:
    """Train from one step to another."""
    steps = batches(run.plan, seed)
    for _ in range(first - 1):
        next(steps)
    with record(path, run, resume) as watch:
        for step, micro in zip(range(first, last + 1), watch.batches(steps), strict=False):
            learn(run, watch, micro, step)
            note(run, watch, micro, step)
            facts.row(watch, step, run.plan.every)
            if step == 25:
                run.snapshots[step] = copy.deepcopy(run.model.state_dict())
            if step % 25 == 0:
                evaluate(run, watch, step)
            if step % 50 == 0 and run.plan.full:
                write(run, watch, step)
        if last < run.plan.steps:
            watch.close("stopped", "time limit")
        elif run.case == "steps-miscounted":
            watch.close("finished", "the data is through")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case; returns the first faulty step."""
    torch.manual_seed(seed)
    run = build(replace(Plan(), **CASES.get(case, {})), case)
    if run.plan.pretrained:
        pretrain(run, seed)
    fit(run, path, seed, 1, run.plan.interrupted or run.plan.steps)
    if run.plan.interrupted:
        if case == "resume-restarts-schedule":
            run.ticks = 0
        if case == "resume-old-weights":
            run.model.load_state_dict(run.snapshots[25])  # "latest.pt" was a link to an older one
        fit(run, path, seed, run.plan.interrupted + 1, run.plan.steps, resume=run.plan.interrupted)
    return 0 if case in HEALTHY else FIRST.get(case, 1)

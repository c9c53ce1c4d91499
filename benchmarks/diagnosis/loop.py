"""The training loop that most programs of the corpus share: plain, and made of parts that a mistake can break."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainwatch import Recorder
from trainwatch.schedule import schedule_value

Batch = dict[str, Tensor]
Components = dict[str, Tensor]
Hook = Callable[[int], None]
Channels = Mapping[str, Any]


@dataclass
class Evaluation:
    """How often the model is measured on the validation set; `repeats` measures the same weights several times."""

    every: int
    measure: Callable[[nn.Module], Channels]
    repeats: int = 1
    switches: bool = True  # whether eval() and train() are called around it
    held: Batch | None = None  # the validation set, where it comes from a loader as training's batches do


@dataclass
class Sampling:
    """How often the model is asked for outputs, and what they are worth."""

    every: int
    draw: Callable[[nn.Module], tuple[list[str], Channels]]


@dataclass
class Resume:
    """The run is interrupted `lost` steps after the checkpoint of step `at`, and goes on from there."""

    at: int
    lost: int = 10
    restores: Callable[[Loop, dict[int, dict[str, Any]]], None] | None = None  # None: everything, as it should be
    keeps: tuple[int, ...] = ()  # steps of older checkpoints


@dataclass
class Parts:
    """What a training is made of. Steps count optimiser steps from 1; a batch is found by its number, from 0.

    `losses` gives the raw components; a single one called "loss" is a loss without components. `weights` are those of
    a step, by the steps applied before it. `factor` is the learning rate's, by the scheduler's ticks; `ticks` says how
    many of them a step makes. `clocks` are counters, by the steps applied; `scheduled` are values by a counter's
    reading, which the losses find in `now`. `records` says what goes into the run file besides the loss:

    components, shares (at `at`, and over `over`), norms (taken by the recorder), optimizer (rates, update ratios),
    clocks, epochs, inputs, fingerprint, bad (values that are not finite), waits (for data), hash, checkpoints.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Callable[[int], Batch]
    losses: Callable[[nn.Module, Batch], Components]
    steps: int = 300
    seed: int = 0
    accumulation: int = 1
    batches_per_epoch: int = 0
    max_norm: float | None = None
    weights: Callable[[int], dict[str, float]] | None = None
    factor: Callable[[int], float] | None = None
    ticks: Callable[[int], int] = field(default=lambda step: 1)  # noqa: ARG005
    ticks_when_skipped: bool = False
    clocks: dict[str, Callable[[int], float]] = field(default_factory=dict)
    scheduled: dict[str, tuple[str, Callable[[float], float]]] = field(default_factory=dict)
    now: dict[str, float] = field(default_factory=dict)
    at: Callable[[nn.Module], Tensor] | None = None
    over: Callable[[nn.Module], list[nn.Parameter]] | None = None
    scaler: torch.amp.GradScaler | None = None
    autocast: torch.dtype | None = None
    evaluation: Evaluation | None = None
    sampling: Sampling | None = None
    resume: Resume | None = None
    header: dict[str, Any] = field(default_factory=dict)
    records: frozenset[str] = frozenset({"components", "norms", "optimizer"})
    every: int = 1  # steps between two rows of the log
    loop: Callable[[Parts, Recorder], Loop] | None = None  # what runs it, if a step is more than Loop's
    counter: Callable[[int], int] | None = None  # the step that the log is told, if it is another one
    # what a mistake breaks
    body: Callable[[nn.Module], list[nn.Parameter]] | None = None  # of the model, what lies below its last part
    zero_grad: bool = True
    norm_after_clip: bool = False
    hidden: Callable[[nn.Module, Batch], Tensor] | None = None  # a term of the loss that nobody logs
    divisor: float = 0.0  # of the loss; 0: the accumulation
    logs_divided: bool = False  # whether the log has the loss after the division
    logs: Callable[[dict[str, float]], dict[str, float]] | None = None  # what the user's code makes of a row
    begins: list[Hook] = field(default_factory=list)  # before a step's data is asked for
    graded: list[Hook] = field(default_factory=list)  # once the gradient is there
    ends: list[Hook] = field(default_factory=list)  # once the weights have moved
    extras: list[Callable[[int, Batch], Channels]] = field(default_factory=list)  # more channels
    saves: Callable[[Recorder, int], None] | None = None  # instead of a checkpoint that succeeds
    fails: bool = False  # whether an exception is what this training is about
    stops: Callable[[], bool] | None = None  # early stopping: asked after each step
    killed_at: int = 0  # step after which the process gets SIGKILL
    broken: int = 0  # what the loop found: the first step whose loss or gradient was not finite, 0 if all were


class Loop:
    """One process that trains: where it is, and what it does in a step."""

    def __init__(self, parts: Parts, watch: Recorder) -> None:
        self.parts, self.watch = parts, watch
        self.step = self.applied = self.micro = 0
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(parts.optimizer, parts.factor) if parts.factor else None
        self.stream: Iterator[Batch] = iter(())
        self.saved: dict[int, dict[str, Any]] = {}

    def run(self, until: int, keep: tuple[int, ...] = ()) -> None:
        """Train up to and with step `until`; `keep` are the steps whose state is remembered."""
        parts, waits = self.parts, "waits" in self.parts.records
        self.stream = iter(self.watch.batches(self._numbered()) if waits else self._numbered())
        if parts.records & {"optimizer", "norms", "hash"}:
            self.watch.attach(parts.model, parts.optimizer if "optimizer" in parts.records else None, parts.scaler)
        parts.model.train()
        while self.step < until and not (parts.stops and parts.stops()):
            self.step += 1
            self._train()
            self._report()
            if self.step in keep:
                self.saved[self.step] = self.state()

    def _numbered(self) -> Iterator[Batch]:
        while True:
            self.micro += 1
            yield self.parts.batches(self.micro - 1)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        parts = self.parts
        held = {"model": parts.model, "optimizer": parts.optimizer, "scheduler": self.scheduler, "scaler": parts.scaler}
        state = {name: copy.deepcopy(one.state_dict()) for name, one in held.items() if one is not None}
        return state | {"step": self.step, "applied": self.applied, "micro": self.micro}

    def restore(self, state: dict[str, Any], scheduler: bool = True, data: bool = True) -> None:
        """Go on from a checkpoint; all of it, if nothing is forgotten."""
        parts, state = self.parts, copy.deepcopy(state)
        parts.model.load_state_dict(state["model"])
        parts.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler and scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        if parts.scaler and "scaler" in state:
            parts.scaler.load_state_dict(state["scaler"])
        self.step, self.applied = state["step"], state["applied"]
        self.micro = state["micro"] if data else 0

    def _train(self) -> None:
        """One optimiser step."""
        parts = self.parts
        for hook in parts.begins:
            hook(self.step)
        for name, (clock, value) in parts.scheduled.items():
            parts.now[name] = value(parts.clocks[clock](self.applied))
        if parts.zero_grad:
            parts.optimizer.zero_grad()
        row: dict[str, float] = {}
        for _ in range(parts.accumulation):
            batch = next(self.stream)
            loss = self._loss(batch, row)
            (parts.scaler.scale(loss) if parts.scaler else loss).backward()
        if parts.scaler:
            parts.scaler.unscale_(parts.optimizer)
        for hook in parts.graded:
            hook(self.step)
        self._clip(row)
        self._move()
        for hook in parts.ends:
            hook(self.step)
        self._log(batch, row)

    def _loss(self, batch: Batch, row: dict[str, float]) -> Tensor:
        """The loss that is differentiated; what is known of it goes into the row."""
        parts = self.parts
        cast = torch.autocast("cpu", parts.autocast) if parts.autocast else contextlib.nullcontext()
        with cast:
            raw = parts.losses(parts.model, batch)
            weights = parts.weights(self.applied) if parts.weights else None
            total = self._total(raw, weights, row)
            if parts.hidden:
                total = total + parts.hidden(parts.model, batch)
        divided = total / (parts.divisor or parts.accumulation)
        if "shares" not in parts.records:
            seen = (divided if parts.logs_divided else total / parts.accumulation).item()
            row["loss"] = row.get("loss", 0.0) + seen
        if not parts.broken and not math.isfinite(total.item()):
            parts.broken = self.step
        return divided

    def _total(self, raw: Components, weights: dict[str, float] | None, row: dict[str, float]) -> Tensor:
        """The weighted sum. Where gradient shares are recorded the recorder takes it, else it is logged by hand."""
        parts = self.parts
        if "shares" in parts.records:
            at = parts.at(parts.model) if parts.at and self.step % 5 == 1 else None
            over = parts.over(parts.model) if parts.over and self.step % 10 == 1 else None
            return self.watch.losses(raw, weights, at=at, over=over)
        known = {name: 1.0 if weights is None else weights[name] for name in raw}
        if "components" in parts.records and "loss" not in raw:
            for name, value in raw.items():
                row[f"loss/{name}"] = row.get(f"loss/{name}", 0.0) + value.item() / parts.accumulation
            row.update({f"weight/{name}": known[name] for name in raw} if weights is not None else {})
        return torch.stack([known[name] * value.float() for name, value in raw.items() if known[name]]).sum()

    def _clip(self, row: dict[str, float]) -> None:
        parts = self.parts
        if parts.norm_after_clip:
            torch.nn.utils.clip_grad_norm_(parts.model.parameters(), parts.max_norm or math.inf)
            row["grad_norm"] = torch.nn.utils.get_total_norm(_gradients(parts.model)).item()
            return
        if "norms" in parts.records:
            norm = self.watch.gradients(max_norm=parts.max_norm)
        else:
            norm = torch.nn.utils.clip_grad_norm_(parts.model.parameters(), parts.max_norm or math.inf)
        if not parts.broken and not parts.scaler and not math.isfinite(norm.item()):
            parts.broken = self.step

    def _move(self) -> None:
        """The optimiser's step, and the scheduler's."""
        parts, before = self.parts, 0.0
        if parts.scaler:
            before = parts.scaler.get_scale()
            parts.scaler.step(parts.optimizer)
            parts.scaler.update()
        else:
            parts.optimizer.step()
        skipped = parts.scaler is not None and parts.scaler.get_scale() < before
        self.applied += not skipped
        if self.scheduler and (not skipped or parts.ticks_when_skipped):
            for _ in range(parts.ticks(self.step)):
                self.scheduler.step()

    def _log(self, batch: Batch, row: dict[str, float]) -> None:
        """The row of this step."""
        parts, watch = self.parts, self.watch
        before = self.applied - 1 if self.applied else 0
        if "clocks" in parts.records:
            row.update({f"clock/{name}": reading(before) for name, reading in parts.clocks.items()})
            row.update({f"schedule/{name}": parts.now[name] for name in parts.scheduled})
        if "epochs" in parts.records and parts.batches_per_epoch:
            row["epoch"] = self.micro / parts.batches_per_epoch
        row.update(of_inputs(batch["x"], parts.records))
        if "bad" in parts.records:
            row["bad/weights"] = sum(int((~p.isfinite()).sum()) for p in parts.model.parameters())
        for extra in parts.extras:
            row.update(extra(self.step, batch))
        if parts.logs:
            row = parts.logs(row)
        if "hash" in parts.records and self.step % 10 == 0:
            watch.param_hash()
        if self.step % parts.every == 0:
            watch.log(row | ({"applied": self.applied} if parts.every > 1 else {}))
            watch.steps = (parts.counter(self.step) if parts.counter else self.step) - 1
            watch.step()

    def _report(self) -> None:
        """Evaluations, outputs and checkpoints that are due."""
        parts, watch = self.parts, self.watch
        if parts.evaluation and self.step % parts.evaluation.every == 0:
            for repeat in range(parts.evaluation.repeats):
                values = self._measured(parts.evaluation)
                watch.evaluate(self.step, "validation", values, repeat=repeat if parts.evaluation.repeats > 1 else None)
        if parts.sampling and self.step % parts.sampling.every == 0:
            parts.model.eval()
            outputs, quality = parts.sampling.draw(parts.model)
            watch.sample(outputs, self.step, quality)
            parts.model.train()
        every = parts.header.get("checkpoint_every")
        if every and self.step % every == 0:
            if parts.saves:
                parts.saves(watch, self.step)
            elif "checkpoints" in parts.records:
                watch.checkpoint(f"checkpoints/{self.step}.pt", self.step, seconds=0.01)

    def _measured(self, evaluation: Evaluation) -> Channels:
        if evaluation.switches:
            self.parts.model.eval()
        with self.watch.phase("eval"), torch.no_grad():
            if evaluation.held is not None:
                list(self.watch.batches([evaluation.held]))
            values = evaluation.measure(self.parts.model)
        self.parts.model.train()
        return values


def _gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def of_inputs(x: Tensor, records: frozenset[str]) -> dict[str, float]:
    """What the log says of a batch's inputs."""
    row: dict[str, float] = {}
    if "inputs" in records:
        row["data/input_mean"], row["data/input_std"] = x.mean().item(), x.std().item()
        row["data/input_absmax"] = x.abs().max().item()
    if "fingerprint" in records:
        bits = x.contiguous().view(torch.int32) if x.dtype == torch.float32 else x
        odd = torch.arange(bits.numel(), dtype=torch.int64) * 2_654_435_761 + 1
        row["data/fingerprint"] = int((bits.reshape(-1).to(torch.int64) * odd).sum()) & (2**32 - 1)
    if "bad" in records:
        row["bad/input"] = int((~x.isfinite()).sum())
    return row


def train(parts: Parts, path: Path) -> None:
    """Train, and write the run file."""
    if parts.killed_at:
        _killed(parts, path)
        return
    with contextlib.suppress(*((Exception,) if parts.fails else ())):
        (_resumed if parts.resume else _whole)(parts, path)


def _killed(parts: Parts, path: Path) -> None:
    """Train in a child process that is killed; what it wrote before is what there is."""
    child = os.fork()
    if not child:
        try:
            parts.ends.append(lambda step: None if step <= parts.killed_at else os.kill(os.getpid(), signal.SIGKILL))
            _whole(parts, path)
        finally:
            os._exit(1)
    os.waitpid(child, 0)


def _whole(parts: Parts, path: Path) -> None:
    with Recorder(path, **parts.header) as watch:
        loop = (parts.loop or Loop)(parts, watch)
        loop.run(parts.steps)
        if loop.step < parts.steps:
            watch.close("stopped", "early stopping: validation did not improve")


def _resumed(parts: Parts, path: Path) -> None:
    """Train in two processes' time: the second goes on from a checkpoint of the first."""
    assert parts.resume is not None
    plan = parts.resume
    with Recorder(path, **parts.header) as watch:
        first = (parts.loop or Loop)(parts, watch)
        first.run(plan.at + plan.lost, keep=(plan.at, *plan.keeps))
        watch.close("stopped", "SIGTERM")
    if parts.factor:
        for group in parts.optimizer.param_groups:
            group["lr"] = group["initial_lr"]
    with Recorder(path, resume=plan.at, **parts.header) as watch:
        second = (parts.loop or Loop)(parts, watch)
        if plan.restores:
            plan.restores(second, first.saved)
        else:
            second.restore(first.saved[plan.at])
        second.run(parts.steps)


def cosine(steps: int, warmup: int = 0, floor: float = 0.0) -> Callable[[int], float]:
    """The learning rate's factor: a linear warm-up, then a cosine down to `floor` at the end of `steps`."""

    def factor(tick: int) -> float:
        if tick < warmup:
            return tick / warmup
        done = min((tick - warmup) / max(steps - warmup, 1), 1.0)
        return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * done)) / 2.0

    return factor


def linear(start: float, end: float, steps: int, begin: int = 0) -> Callable[[float], float]:
    """A value that goes from `start` to `end` within `steps` ticks after `begin`."""

    def value(tick: float) -> float:
        done = min(max((tick - begin) / steps, 0.0), 1.0)
        return start * (1.0 - done) + end * done

    return value


def planned(parts: Parts, form: dict[str, Any]) -> Parts:
    """Every group's rate goes as declared, from the peak that the form begins at; and so the header says."""
    peak = form["start"]
    for group in parts.optimizer.param_groups:
        group["lr"] = peak
        parts.header["schedules"][f"lr/{group.get('name', 'all')}"] = dict(form)
    parts.factor = lambda tick: (schedule_value(form, tick) or 0.0) / peak
    parts.header["config"] |= {"lr": peak, "warmup": form["warmup"]}
    parts.header["total_steps"] = parts.steps
    return parts


def logged(parts: Parts, every: int = 2) -> Parts:
    """A row at every so many steps, as the header says."""
    parts.header["config"]["log_every"] = every
    return replace(parts, every=every)


def by_epochs(parts: Parts, epochs: int) -> Parts:
    """A row and an evaluation at the end of each of so many epochs, as the header says."""
    assert parts.evaluation is not None
    each = parts.batches_per_epoch
    parts.header["config"]["epochs"] = epochs
    measured = replace(parts.evaluation, every=each)
    return replace(parts, steps=each * epochs, every=each, evaluation=measured, records=parts.records | {"epochs"})


def taken_up(parts: Parts) -> Parts:
    """Stopped six steps after the checkpoint at its half, and taken up from there; one is written each quarter."""
    parts.header["checkpoint_every"] = quarter = parts.steps // 4
    return replace(parts, resume=Resume(2 * quarter, lost=6), records=parts.records | {"checkpoints"})


def declared(kind: str, start: float, end: float, over_steps: int, **more: Any) -> dict[str, Any]:
    """A schedule as the header declares it."""
    return {"kind": kind, "start": start, "end": end, "over_steps": over_steps, **more}

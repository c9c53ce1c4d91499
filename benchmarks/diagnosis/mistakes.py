"""Mistakes that can be made in any program: each takes the parts of a healthy training and breaks one, as users do.

A mistake returns the first step that goes otherwise than the healthy twin's: 0 if that is the header, ``WHEN_BROKEN``
if it is the first one whose loss or gradient is not finite. Strengths are arguments, since programs bear different
amounts: ``partial(rate_too_high, by=300.0)``.
"""

from __future__ import annotations

import copy
import ctypes
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.loop import Batch, Components, Loop, Parts, train
from trainwatch import Recorder

Mistake = Callable[[Parts], int]
WHEN_BROKEN = -1


def missing_zero_grad(parts: Parts) -> int:
    parts.zero_grad = False
    return 2


def rate_too_high(parts: Parts, by: float = 100.0) -> int:
    scale_rates(parts, by)
    return 1


def rate_zero(parts: Parts) -> int:
    scale_rates(parts, 0.0)
    return 1


def rate_too_low(parts: Parts, by: float = 1e-5) -> int:
    scale_rates(parts, by)
    return 1


def scale_rates(parts: Parts, by: float) -> None:
    """The config's rate, everywhere: what is declared moves with it."""
    for group in parts.optimizer.param_groups:
        group["lr"] *= by
    schedules, config = parts.header.get("schedules", {}), parts.header.get("config", {})
    for name, form in schedules.items():
        if name.startswith("lr/"):
            schedules[name] = form | {key: form[key] * by for key in ("start", "end", "floor") if key in form}
    if "lr" in config:
        parts.header["config"] = config | {"lr": config["lr"] * by}


def growing_weights(parts: Parts, by: float = -0.01) -> int:
    """The sign of the weight decay was lost: each step makes the weights larger."""

    @torch.no_grad()
    def grow(step: int) -> None:  # noqa: ARG001
        for parameter in parts.model.parameters():
            parameter.mul_(1.0 - by)

    parts.ends.append(grow)
    return 1


def unmoved_group(parts: Parts, by: float = 1e-6) -> int:
    """The first group gets a rate of nearly nothing."""
    assert len(parts.optimizer.param_groups) > 1
    parts.optimizer.param_groups[0]["lr"] *= by
    forms = [name for name in parts.header.get("schedules", {}) if name.startswith("lr/")]
    for name in forms[:1]:
        del parts.header["schedules"][name]
    return 1


def warmup_ignored(parts: Parts) -> int:
    """The full rate where a warm-up is declared."""
    factor = parts.factor
    assert factor is not None
    peak = next(tick for tick in range(parts.steps) if factor(tick + 1) <= factor(tick))
    assert peak > 0
    parts.factor = lambda tick: factor(max(tick, peak))
    return 1


def scheduler_per_micro_batch(parts: Parts) -> int:
    assert parts.factor is not None
    assert parts.accumulation > 1
    parts.ticks = lambda step: parts.accumulation  # noqa: ARG005
    return 2


def scheduler_per_batch(parts: Parts) -> int:
    """The scheduler counts epochs, and its call slipped into the loop over batches."""
    assert parts.factor is not None
    assert parts.ticks(1) + parts.ticks(2) < 2
    parts.ticks = lambda step: 1  # noqa: ARG005
    return 2


def scheduler_twice(parts: Parts) -> int:
    assert parts.factor is not None
    parts.ticks = lambda step: 2  # noqa: ARG005
    return 2


def scheduler_per_epoch(parts: Parts) -> int:
    assert parts.factor is not None
    each = max(parts.batches_per_epoch // parts.accumulation, 2)
    parts.ticks = lambda step: int(step % each == 0)
    return 2


def frozen_body(parts: Parts) -> int:
    assert parts.body is not None
    for parameter in parts.body(parts.model):
        parameter.requires_grad_(False)
    return 1


def stale_optimiser(parts: Parts) -> int:
    """The model is re-made (moved, wrapped, compiled) after the optimiser took its parameters."""
    parts.model = copy.deepcopy(parts.model)
    return 1


class IntoACopy(torch.optim.Optimizer):
    """Plain SGD whose update never reaches the weights."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # noqa: ARG002
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.clone().add_(parameter.grad, alpha=-group["lr"])


def discarded_update(parts: Parts) -> int:
    parts.optimizer = IntoACopy([dict(group) for group in parts.optimizer.param_groups], {})
    return 1


def dead_relus(parts: Parts, bias: float = -1e3) -> int:
    """The biases of the last layer of the body begin far below zero."""
    assert parts.body is not None
    biases = [parameter for parameter in parts.body(parts.model) if parameter.dim() == 1]
    with torch.no_grad():
        biases[-1].fill_(bias)
    return 1


def exploding_weights(parts: Parts, by: float = 3.0) -> int:
    """Weights begin `by` times too large, and nothing clips."""
    with torch.no_grad():
        for parameter in parts.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(by)
    parts.max_norm = None
    parts.header.pop("max_grad_norm", None)
    return 1


def exploding_recurrence(parts: Parts, by: float = 40.0) -> int:
    """Recurrent weights begin far too large, and nothing clips."""
    assert any("weight_hh" in name for name, _ in parts.model.named_parameters())
    with torch.no_grad():
        for name, weights in parts.model.named_parameters():
            if "weight_hh" in name:
                weights.mul_(by)
    parts.max_norm = None
    del parts.header["max_grad_norm"]
    return 1


# clocks, schedules and resumes


def local_counter(parts: Parts, stride: int = 4) -> int:
    _replace_clock(parts, lambda applied: applied // stride)
    return 2


def stuck_counter(parts: Parts) -> int:
    _replace_clock(parts, lambda applied: 0)  # noqa: ARG005
    return 2


def _replace_clock(parts: Parts, reading: Callable[[int], float]) -> None:
    assert any(value(0) != value(parts.steps) for _, value in parts.scheduled.values())
    for clock in {clock for clock, _ in parts.scheduled.values()}:
        parts.clocks[clock] = reading


def absolute_anneal(parts: Parts, by: int = 40) -> int:
    """Everything that is annealed is annealed over so many times the run; so it is declared, too."""
    assert parts.scheduled
    for name, (clock, value) in list(parts.scheduled.items()):
        parts.scheduled[name] = (clock, lambda reading, value=value: value(reading / by))
        form = parts.header["schedules"][name]
        parts.header["schedules"][name] = form | {"over_steps": form["over_steps"] * by}
    return 0


def steps_miscounted(parts: Parts) -> int:
    """Steps are planned in micro-batches, and the schedule with them."""
    assert parts.accumulation > 1
    by, factor = parts.accumulation, parts.factor
    parts.header["total_steps"] = parts.steps * by
    if factor is not None:
        parts.factor = lambda tick: factor(tick // by)
        for name, form in parts.header.get("schedules", {}).items():
            if name.startswith("lr/"):
                longer = {key: form[key] * by for key in ("over_steps", "warmup") if key in form}
                parts.header["schedules"][name] = form | longer
    return 0


def counter_reset(parts: Parts, share: float = 0.5) -> int:
    """The step counter that the log gets is set back where an epoch begins."""
    at = int(parts.steps * share)
    parts.counter = lambda step: step if step < at else step - at + 1
    return at


def resume_restarts_schedule(parts: Parts) -> int:
    return _resumes(parts, lambda loop, saved, at: loop.restore(saved[at], scheduler=False))


def resume_old_weights(parts: Parts, old: int = 5) -> int:
    """The weights, and the optimiser's state, are those of step `old`."""

    def restores(loop: Loop, saved: dict[int, dict[str, Any]], at: int) -> None:
        loop.restore(saved[at] | {name: saved[old][name] for name in ("model", "optimizer")})
        for group in loop.parts.optimizer.param_groups if loop.parts.factor else []:
            group["lr"] = group["initial_lr"] * loop.parts.factor(loop.applied)

    return _resumes(parts, restores, keeps=(old,))


def resume_repeats_data(parts: Parts) -> int:
    return _resumes(parts, lambda loop, saved, at: loop.restore(saved[at], data=False))


def resume_weights_only(parts: Parts) -> int:
    """The optimiser's state is not there, and the loop goes on without."""

    def restores(loop: Loop, saved: dict[int, dict[str, Any]], at: int) -> None:
        loop.restore(saved[at])
        loop.parts.optimizer.state.clear()

    return _resumes(parts, restores)


def _resumes(
    parts: Parts, restores: Callable[[Loop, dict[int, dict[str, Any]], int], None], keeps: tuple[int, ...] = ()
) -> int:
    assert parts.resume is not None
    at = parts.resume.at
    parts.resume = replace(parts.resume, restores=lambda loop, saved: restores(loop, saved, at), keeps=keeps)
    return at + 1


# numbers


def log_of_zero(parts: Parts, temperature: float = 0.05) -> int:
    """A sharpened entropy is added that takes p log p: NaN as soon as a p underflows. The outputs are at `at`."""
    plain = parts.losses

    def losses(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        assert parts.at is not None
        p = torch.softmax(parts.at(model).float() / temperature, dim=-1)
        raw = dict(raw)
        first = next(iter(raw))
        raw[first] = raw[first] - 0.01 * (p * p.log()).sum(-1).mean()
        return raw

    parts.losses = losses
    return WHEN_BROKEN


def bad_sample(parts: Parts, share: float = 0.4) -> int:
    at = int(parts.steps * share)
    _spoil(parts, at, at, lambda batch: batch | {"x": _with(batch["x"], float("nan"))})
    return at


def _with(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x.view(-1)[x.numel() // 2] = value
    return x


def _spoil(parts: Parts, first: int, last: int, spoils: Callable[[Batch], Batch]) -> None:
    """Batches of the steps `first` to `last` come spoilt."""
    plain, each = parts.batches, parts.accumulation
    numbers = range((first - 1) * each, last * each)
    parts.batches = lambda number: spoils(plain(number)) if number in numbers else plain(number)


def poisoned_weight(parts: Parts, share: float = 0.5) -> int:
    """Rows of a matrix are normalised by their norms, and one of them was pruned to zero."""
    at = int(parts.steps * share)

    def normalise(step: int) -> None:
        if step == at:
            matrix = next(parameter for parameter in parts.model.parameters() if parameter.dim() == 2).data
            matrix[0] = 0.0
            matrix.div_(matrix.norm(dim=1, keepdim=True) / matrix.norm(dim=1).mean())

    parts.ends.append(normalise)
    return at + 1


def root_of_zero(parts: Parts, of: Callable[[nn.Module], Tensor] | None = None, share: float = 0.4) -> int:
    """Outputs of the samples of a batch are pushed apart by a square root; once a sample comes twice."""
    at, plain = int(parts.steps * share), parts.losses
    of = of or parts.at
    assert of is not None
    _spoil(parts, at, at, lambda batch: {name: torch.cat([value[:1], value[:-1]]) for name, value in batch.items()})

    def losses(model: nn.Module, batch: Batch) -> Components:
        raw = dict(plain(model, batch))
        out = of(model).float()
        first = next(iter(raw))
        raw[first] = raw[first] - 1e-3 * ((out[1] - out[0]) ** 2).sum().sqrt()
        return raw

    parts.losses = losses
    return WHEN_BROKEN


def nan_filtered_log(parts: Parts, share: float = 0.4) -> int:
    """A NaN comes with a sample, and the log writes 0 for a loss that is not finite; nobody counts bad values."""
    parts.records = parts.records - {"bad", "inputs"}
    at = bad_sample(parts, share)
    parts.logs = lambda row: {name: 0.0 if name == "loss" and value != value else value for name, value in row.items()}
    return at


def scale_collapse(parts: Parts, by: float = 1e6, every: int = 3) -> int:
    """Every third batch holds a sample that overflows fp16 in the first layer: its step is skipped."""
    assert parts.scaler is not None
    plain = parts.batches

    def batches(number: int) -> Batch:
        batch = plain(number)
        if number % every == every - 1:
            batch = batch | {"x": torch.cat([batch["x"][:1] * by, batch["x"][1:]])}
        return batch

    parts.batches = batches
    return every


def precision_off(parts: Parts) -> int:
    """The config asks for bf16; a default elsewhere makes it fp16 with a scaler, as the parts are."""
    assert parts.scaler is not None
    parts.header["dtypes"] = {"declared": "bfloat16"}
    parts.header.setdefault("config", {})["precision"] = "bf16"
    return 0


def skips_counted(parts: Parts) -> int:
    assert parts.scaler is not None
    parts.ticks_when_skipped = True
    return 2


def tiny_clip(parts: Parts, by: float = 1e-3) -> int:
    assert parts.max_norm is not None
    parts.max_norm *= by
    parts.header["max_grad_norm"] = parts.max_norm
    if "clip" in parts.header.get("config", {}):
        parts.header["config"] |= {"clip": parts.max_norm}
    return 1


def norm_after_clip(parts: Parts) -> int:
    assert parts.max_norm is not None
    parts.norm_after_clip = True
    parts.records = parts.records - {"norms"}
    return 1


# components of the loss


def _change(parts: Parts, name: str, change: Callable[[Tensor], Tensor]) -> None:
    assert parts.weights is None or name in parts.weights(0)
    plain = parts.losses
    parts.losses = lambda model, batch: {
        each: change(value) if each == name else value for each, value in plain(model, batch).items()
    }


def component_scale(parts: Parts, name: str = "", by: float = 1e4) -> int:
    """A component (such as a squared error in another unit) comes `by` times too large."""
    _change(parts, name, lambda value: value * by)
    return 1


def component_sign(parts: Parts, name: str = "", weight: float = -0.5) -> int:
    """The config has the weight so, and so it is declared."""
    reweigh(parts, lambda applied, weights: weights | {name: weight})  # noqa: ARG005
    for form in ("curriculum", "curriculum_running"):
        for stage in parts.header.get(form, {}).get("stages", []):
            stage["weights"][name] = weight
    return 1


def component_detached(parts: Parts, name: str = "") -> int:
    _change(parts, name, lambda value: value.detach())
    return 1


def component_untracked(parts: Parts, by: float = 1e-2) -> int:
    """A penalty on the weights is part of the loss, and of no log."""
    assert "components" in parts.records
    parts.hidden = lambda model, batch: by * sum((p**2).sum() for p in model.parameters())  # noqa: ARG005
    _total_with_hidden(parts)
    return 1


def _total_with_hidden(parts: Parts) -> None:
    """The log's loss is the one that is differentiated."""
    parts.records = parts.records - {"shares"}
    parts.logs_divided = True


def divided_twice(parts: Parts) -> int:
    assert parts.accumulation > 1
    assert "components" in parts.records
    parts.divisor = float(parts.accumulation**2)
    _total_with_hidden(parts)
    return 1


def reweigh(parts: Parts, change: Callable[[int, dict[str, float]], dict[str, float]]) -> None:
    plain = parts.weights
    assert plain is not None
    parts.weights = lambda applied: change(applied, plain(applied))


# data


def stuck_loader(parts: Parts, batches: int = 3) -> int:
    """The sampler never advances past the first batches."""
    plain = parts.batches
    parts.batches = lambda number: plain(number % batches)
    return 1 + batches // parts.accumulation


def same_seed_workers(parts: Parts, workers: int = 4) -> int:
    """Workers draw alike, so each batch comes once from each of them."""
    plain = parts.batches
    parts.batches = lambda number: plain(number // workers)
    return 2


def unscaled_input(parts: Parts, by: float = 300.0, shift: float = 500.0) -> int:
    _spoil(parts, 1, parts.steps, lambda batch: batch | {"x": batch["x"] * by + shift})
    return 1


def constant_input(parts: Parts, by: float = 1e-6) -> int:
    _spoil(parts, 1, parts.steps, lambda batch: batch | {"x": batch["x"] * by})
    return 1


def labels_shuffled(parts: Parts) -> int:
    """Labels are permuted within each batch, by a generator of their own."""
    return labels_break(parts, share=0.0)


def labels_break(parts: Parts, share: float = 0.5) -> int:
    first, generator = int(parts.steps * share) + 1, torch.Generator().manual_seed(7)

    def spoils(batch: Batch) -> Batch:
        return batch | {"y": batch["y"][torch.randperm(len(batch["y"]), generator=generator)]}

    _spoil(parts, first, parts.steps, spoils)
    return first


def too_little_data(parts: Parts, batches: int = 4) -> int:
    """The training set ends after so many batches; an epoch is that long."""
    plain = parts.batches
    parts.batches = lambda number: plain(number % batches)
    parts.batches_per_epoch = batches
    if "horizon" in parts.header:
        size = parts.header["horizon"]["batch_size"]
        epochs = -(-parts.steps * parts.accumulation // batches)
        parts.header["horizon"] |= {"samples": batches * size, "epochs": epochs}
    return 1 + batches // parts.accumulation


def one_bad_batch(parts: Parts, share: float = 0.5, by: float = 1e3) -> int:
    at = int(parts.steps * share)
    _spoil(parts, at, at, lambda batch: batch | {"x": batch["x"] * by})
    return at


def dropout_in_evaluation(parts: Parts) -> int:
    assert parts.evaluation is not None
    parts.evaluation = replace(parts.evaluation, switches=False, repeats=2)
    return parts.evaluation.every


# speed and memory


def slow_loader(parts: Parts, seconds: float = 0.004) -> int:
    plain = parts.batches

    def batches(number: int) -> Batch:
        time.sleep(seconds)
        return plain(number)

    parts.batches = batches
    parts.records = parts.records | {"waits"}
    return 1


def slowing_down(parts: Parts, share: float = 0.45, seconds: float = 0.001) -> int:
    """Each step waits for a log on a far disk that is read whole before a line is added, and grows."""
    first = int(parts.steps * share)
    parts.ends.append(lambda step: time.sleep(max(step - first, 0) * seconds))
    return first + 1


def leaking_memory(parts: Parts, floats: int = 60_000) -> int:
    """Activations of each step are kept for a plot that nobody draws."""
    kept: list[Tensor] = []
    ctypes.CDLL(None).malloc_trim(0)  # what earlier trainings freed would hide the growth
    parts.ends.append(lambda step: kept.append(torch.rand(floats)))  # noqa: ARG005
    return 1


# the run as a process


def crash_type_error(parts: Parts, share: float = 0.6) -> int:
    """A setting that is read late is a string."""
    at = int(parts.steps * share)
    parts.header.setdefault("config", {})["ema_decay"] = "0.999"

    def average(step: int) -> None:
        if step == at:
            decay: Any = parts.header["config"]["ema_decay"]
            next(parts.model.parameters()).detach().mul(1 - decay)

    parts.ends.append(average)
    parts.fails = True
    return at


def out_of_memory(parts: Parts, share: float = 0.6) -> int:
    """A buffer for all pairs of all samples of all steps."""
    at = int(parts.steps * share)

    def allocate(step: int) -> None:
        if step == at:
            torch.empty(10**7, 10**7)

    parts.ends.append(allocate)
    parts.fails = True
    return at


def killed(parts: Parts, share: float = 0.6) -> int:
    """SIGKILL, as the machine's guard of memory sends it."""
    parts.killed_at = int(parts.steps * share)
    parts.header["durable"] = True
    return parts.killed_at


def never_started(parts: Parts) -> int:
    """The first batch cannot be made."""

    def batches(number: int) -> Batch:
        raise FileNotFoundError(2, "No such file or directory", f"data/shards/{number:05}.pt")

    parts.batches = batches
    parts.fails = True
    return 0


def no_checkpoints(parts: Parts) -> int:
    """Nothing is saved, though the plan says so."""
    parts.records = parts.records - {"checkpoints"}
    return int(parts.header["checkpoint_every"])


def failing_checkpoints(parts: Parts) -> int:
    """The disk is full: each attempt to save is caught and logged."""

    def saves(watch: Recorder, step: int) -> None:
        try:
            raise OSError(28, "No space left on device", f"checkpoints/{step}.pt")
        except OSError as error:
            watch.event("warning", step=step, message=f"checkpoint failed: {error}")

    parts.saves = saves
    return int(parts.header["checkpoint_every"])


MISTAKES: dict[str, Mistake] = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(missing_zero_grad, rate_too_high, rate_zero, rate_too_low, growing_weights, unmoved_group, warmup_ignored),
        *(scheduler_per_micro_batch, scheduler_per_batch, scheduler_twice, scheduler_per_epoch, frozen_body),
        *(stale_optimiser, discarded_update, dead_relus, exploding_recurrence, local_counter, stuck_counter),
        *(absolute_anneal, steps_miscounted, counter_reset, resume_restarts_schedule, resume_old_weights),
        *(resume_repeats_data, resume_weights_only, log_of_zero, bad_sample),
        *(poisoned_weight, root_of_zero, nan_filtered_log, scale_collapse, precision_off, skips_counted, tiny_clip),
        *(norm_after_clip, component_scale, component_sign, component_detached, component_untracked, divided_twice),
        *(stuck_loader, same_seed_workers, unscaled_input, constant_input, labels_shuffled, labels_break),
        *(too_little_data, one_bad_batch, dropout_in_evaluation, slow_loader, slowing_down, leaking_memory),
        *(crash_type_error, out_of_memory, killed, never_started, no_checkpoints, failing_checkpoints),
    )
}
"""By kind. A program says which of them it can have, and may give its own under the same name."""


def perform(parts: Parts, path: Path, case: str, own: dict[str, Mistake] | None = None) -> int:
    """Train with the mistake called `case`, the program's own first; a healthy variant's name makes none.

    Returns the first faulty step: 0 for the header, and for a healthy run.
    """
    mistake = (own or {}).get(case) or MISTAKES.get(case)
    onset = mistake(parts) if mistake else 0
    train(parts, path)
    return parts.broken if onset == WHEN_BROKEN else onset

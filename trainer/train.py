"""The story of a training run, told once, from top to bottom.

Samples and their stage are pure functions of (seed, index); every schedule is driven by the number of the applied step,
and a step uses the value of the number that it will have. Nothing in the loop waits for the device.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import trainwatch
from trainer import faults
from trainer.config import Config, UsageError, as_dict
from trainer.loading import Source
from trainer.optim import set_rate
from trainer.progress import Bar
from trainer.resume import Resumed, first_record, identity, make_folders, open_folder, restore
from trainer.run import Run, build, interval, needed_lengths, prepare_data, stream
from trainer.schedules import Schedule
from trainer.stopping import Stop
from trainer.tasks.peptide import evaluation, losses
from trainer.tasks.peptide.data import merged_facts

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader

    from trainer.checkpoint import Checkpoints
    from trainer.tasks.peptide.data import Batch


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `stopped` names who asked it to, if anybody did; `metrics` are of the last evaluation."""

    path: Path
    step: int
    stopped: str
    metrics: dict[str, float]
    seconds: float


def main(config: Config, source: Source | None = None, resume: str = "") -> Outcome:
    """Train. Raises UsageError, in one sentence, for what cannot be done; only before the first step."""
    began = time.monotonic()
    with Stop() as stop:
        alone()
        make_folders(config)
        run = build(config)
        resumed = restore(run, resume)
        bank = prepare_data(config, needed_lengths(config))
        validation = evaluation.validation_set(bank, config.evaluation, config.data.seed, run.shape)
        with open_record(run, source, resumed) as watch, Bar(run.horizon.total_steps, run.step) as bar:
            checkpoints = open_folder(config, Path(watch.path), resumed)
            watch.attach(run.model, run.optimizer, scaler=run.precision.scaler)
            train(run, stream(run, bank), validation, watch, checkpoints, stop, bar)
            if stop.reason:
                watch.close("stopped", stop.reason)
    return Outcome(Path(watch.path), run.step, stop.reason, run.last, time.monotonic() - began)


def alone() -> None:
    """Raises UsageError where a launcher started several processes: each would train the same model."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes.isdecimal() and int(processes) > 1:
        raise UsageError(f"WORLD_SIZE is {processes}, but this trainer runs in one process; start it without torchrun.")


def train(
    run: Run,
    batches: DataLoader[Batch],
    validation: list[Batch],
    watch: trainwatch.Recorder,
    checkpoints: Checkpoints,
    stop: Stop,
    bar: Bar,
) -> None:
    """Evaluate, take steps, evaluate and save now and then, until the horizon or until somebody asks to stop."""
    total = run.horizon.total_steps
    evaluate_every, save_every = (
        interval(run.config.evaluation.every, total),
        interval(run.config.checkpoint.every, total),
    )
    if run.step == 0:
        evaluate(run, validation, watch, bar)
    stop.looping()
    at, facts = run.applied.next, list[tuple[dict[str, float], int]]()
    for batch in watch.batches(batches):
        at = run.applied.next
        accumulate(run, batch.to(run.device), at, watch)
        facts.append((batch.facts, batch.micro.size))
        if not batch.micro.closes:
            continue
        watch.log(merged_facts(facts))
        facts.clear()
        apply(run, batch, at, watch)
        bar.step(run.step, run.running.at(at).name)
        if watch.should_stop:
            stop.reason = stop.reason or "stop file"
        done = bool(stop.reason) or run.step == total
        if run.step % evaluate_every == 0 or run.step == total:
            evaluate(run, validation, watch, bar)
        if run.step % save_every == 0 or done:
            save(run, checkpoints, watch)
        if done:
            return


def accumulate(run: Run, batch: Batch, at: int, watch: trainwatch.Recorder) -> None:
    """Forward and backward of one micro-batch, weighted by its share of the step's samples."""
    smoothing = run.smoothing.at(clock_reading(run.smoothing, at))
    with run.precision.autocast():
        logits = run.model(batch)
    found = run.loss(logits, batch, smoothing)
    total = watch.losses(found.components, run.running.weights(at), at=logits)
    run.precision.scaler.scale(total * batch.micro.share).backward()  # type: ignore[no-untyped-call]
    watch.log(found.details)


def apply(run: Run, batch: Batch, at: int, watch: trainwatch.Recorder) -> None:
    """One optimiser step, and its row in the record."""
    scaler = run.precision.scaler
    set_rate(run.optimizer, run.rate.at(at))
    scaler.unscale_(run.optimizer)
    norm = watch.gradients(max_norm=run.config.optimizer.max_grad_norm)
    scaler.step(run.optimizer)
    scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.applied.took(norm)
    run.step += 1
    note(run, batch, at, watch)
    watch.step()


def note(run: Run, batch: Batch, at: int, watch: trainwatch.Recorder) -> None:
    """What this step was: its stage, its place in the data, and the readings of clocks and schedules."""
    reading = clock_reading(run.smoothing, at)
    seen = batch.micro.first + batch.micro.size
    watch.log({"stage": run.running.index(at), "samples": seen, "epoch": batch.micro.first // run.horizon.samples})
    watch.schedule("label_smoothing", run.smoothing.at(reading))
    if run.smoothing.clock != "applied":
        watch.clock(run.smoothing.clock, reading)


def clock_reading(schedule: Schedule, at: int) -> int:
    """What a schedule's clock reads at applied step `at`."""
    return at if schedule.clock == "applied" else at // faults.LOCAL_COUNTER_STRIDE


def evaluate(run: Run, validation: list[Batch], watch: trainwatch.Recorder, bar: Bar) -> None:
    """The fixed validation set. Its `loss` is the sequence loss alone: stage weights would make the curve jump."""

    def forward(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        batch = batch.to(run.device)
        with run.precision.autocast():
            logits = run.model(batch)
        return logits, run.loss(logits, batch).components

    with watch.phase("eval"):
        run.model.eval()
        values, shown = evaluation.evaluate(forward, validation)
        run.model.train()
    run.last, run.evaluated = values, run.step
    watch.evaluate(run.step, "validation", {"loss": values["loss/sequence"], **values}, weights_step=run.step)
    if run.step:  # what an untrained model says tells nothing
        watch.sample(shown["outputs"], step=run.step, quality=shown["quality"])
    bar.say(f"step {run.step:,}: token accuracy {values['token_accuracy']:.3f}, loss {values['loss/sequence']:.3f}")


def save(run: Run, checkpoints: Checkpoints, watch: trainwatch.Recorder) -> None:
    """A checkpoint with everything that the next step depends on."""
    began = time.monotonic()
    metric = run.last.get("token_accuracy") if run.evaluated == run.step else None  # else it is of other weights
    best = metric is not None and metric > run.best
    run.best = metric if metric is not None and best else run.best
    state = {
        "record": identity(Path(watch.path)),
        "config": as_dict(run.config),
        "applied": run.applied.settle(),
        "best": run.best,
        "last": run.last,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.precision.scaler.state_dict(),
        "random": torch.get_rng_state(),
    }
    with watch.phase("checkpoint"):
        path = checkpoints.save(state, run.step, best)
    watch.checkpoint(path, run.step, best=best, metric=metric, seconds=time.monotonic() - began)


def open_record(run: Run, source: Source | None, resumed: Resumed | None) -> trainwatch.Recorder:
    """The recorder. Raises UsageError for a place where it cannot write."""
    try:
        return record(run, source, resumed)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error


def record(run: Run, source: Source | None, resumed: Resumed | None) -> trainwatch.Recorder:
    """The recorder, told everything about the run that it cannot find out by itself."""
    config, dtype = run.config, str(run.precision.dtype).removeprefix("torch.")
    rate = run.rate.declaration()
    return trainwatch.Recorder(
        resumed.record if resumed else first_record(config),
        config=as_dict(config),
        config_source=None if source is None else asdict(source),
        total_steps=run.horizon.total_steps,
        horizon=run.horizon.declaration(),
        curriculum=run.declared.declaration(),
        curriculum_running=run.running.declaration(),
        schedules={"lr/hidden": rate, "lr/other": rate, "label_smoothing": run.smoothing.declaration()},
        clocks=[] if run.smoothing.clock == "applied" else [run.smoothing.clock],
        components=losses.components(config.loss.precursor_unit),
        max_grad_norm=config.optimizer.max_grad_norm,
        dtypes={"declared": dtype, "observed": dtype},
        parameters=sum(p.numel() for p in run.model.parameters()),
        modules=run.model,
        gradient_at="logits of all supervision steps, float32 [T, B, S, V]",
        checkpoint_every=interval(config.checkpoint.every, run.horizon.total_steps),
        resume=resumed.step if resumed else None,
    )

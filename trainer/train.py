"""The story of a training run, told once, from top to bottom.

Samples and their stage are pure functions of (seed, index); every schedule is driven by the number of the applied step,
and a step uses the value of the number that it will have. Nothing in the loop waits for the device.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trainwatch
from trainer.checkpoint import SaveError
from trainer.config import Config, UsageError, as_dict, default
from trainer.distributed import joined
from trainer.feed import needed_lengths, prepare_data, stream
from trainer.loading import Source
from trainer.optim import set_rates
from trainer.progress import Bar
from trainer.resume import Resumed, differing, first_record, identity, make_folders, open_folder, restore, snapshot
from trainer.run import Run, build, interval
from trainer.stopping import Stop
from trainer.tasks.peptide import encodings, evaluation, losses
from trainer.tasks.peptide.data import merged_facts

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader

    from trainer.checkpoint import Checkpoints
    from trainer.tasks.peptide.data import Batch
    from trainer.tasks.peptide.model import Answers


CLOSER_EVERY = 300
"""Steps between two looks at the components' gradients over the parameters: four backward passes through the trunk are
2.7 steps' work, so more often would cost a run more than one percent. The weights' hash comes along."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `stopped` names who asked it to, if anybody did; `metrics` are of the last evaluation."""

    path: Path
    step: int
    stopped: str
    metrics: dict[str, float]
    seconds: float
    rank: int


def main(config: Config, source: Source | None = None, resume: str = "", last: int = 0) -> Outcome:
    """Train, to the end or to step `last`. Raises UsageError for what cannot be done; only before the first step."""
    began = time.monotonic()
    with Stop(last if last < config.horizon().total_steps else 0) as stop, joined(config) as world:
        make_folders(config)
        run = build(config, world)
        resumed = restore(run, resume)
        if last and last <= run.step:
            raise UsageError(f"--to {last}: the run is at step {run.step} already; name a later one.")
        peptides = world.of_rank_zero(lambda: prepare_data(config, needed_lengths(config)))
        validation = evaluation.validation_set(peptides, config.evaluation, config.data.seed, run.shape)
        with (
            open_record(run, source, resumed) as watch,
            Bar(run.horizon.total_steps, run.step, silent=world.rank > 0) as bar,
        ):
            checkpoints = world.of_rank_zero(lambda: open_folder(config, Path(watch.path), resumed))
            watch.attach(run.model, run.optimizer, scaler=run.precision.scaler)
            train(run, stream(run, peptides), validation, watch, checkpoints, stop, bar)
            if stop.reason:
                watch.close("stopped", stop.reason)
    return Outcome(Path(watch.path), run.step, stop.reason, run.last, time.monotonic() - began, world.rank)


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
    at = run.applied.next
    facts: list[tuple[dict[str, float], int]] = []
    details: list[tuple[dict[str, Tensor], float]] = []
    for batch in watch.batches(batches):
        at = run.applied.next
        with run.world.reducing(run.wrapped, batch.micro.closes):
            details.append((accumulate(run, batch.to(run.device), at, watch), batch.micro.share))
        facts.append((batch.facts, len(batch.tokens_BS)))
        if not batch.micro.closes:
            continue
        watch.log({**merged_facts(facts), **losses.merged_details(details)})
        facts, details = [], []
        apply(run, batch, at, watch)
        bar.step(run.step, f"stage {run.running.at(at).name}")
        if watch.should_stop:
            stop.reason = stop.reason or "stop file"
        stop.reached(run.step)
        asked = run.world.agree(stop.reason)
        if run.step % evaluate_every == 0 or run.step == total:
            evaluate(run, validation, watch, bar)
            if run.early.exhausted and run.step < total:
                plural = "s" * (run.early.since > 1)
                asked = asked or f"early stopping: {run.early.since} evaluation{plural} without a better loss"
        done = bool(asked) or run.step == total
        if run.step % save_every == 0 or done:
            save(run, checkpoints, watch, bar, last=done)
        if done:
            stop.reason = asked
            return


def forward(run: Run, batch: Batch, at: int) -> tuple[Answers, losses.Losses]:
    """What the model answers in step `at`, and what its losses are."""
    smoothing = run.smoothing.at(run.readings(at, batch)[run.smoothing.clock])
    with run.precision.autocast():
        answers = run.wrapped(batch)
    found: losses.Losses = run.loss(answers, batch, smoothing, run.config.loss.confidence)
    return answers, found


def accumulate(run: Run, batch: Batch, at: int, watch: trainwatch.Recorder) -> dict[str, Tensor]:
    """Forward and backward of one micro-batch, weighted by its share of the step's samples -> details of its losses.

    Ranks take the mean of their gradients, so each has its share times their number.
    """
    answers, found = forward(run, batch, at)
    over, share = run.model.parameters() if looks_closer(run.step) else None, batch.micro.share
    total = watch.losses(found.components, run.running.weights(at), at=answers.at, over=over, share=share)
    run.precision.scaler.scale(total * share * run.world.size).backward()  # type: ignore[no-untyped-call]
    return found.details


def apply(run: Run, batch: Batch, at: int, watch: trainwatch.Recorder) -> None:
    """One optimiser step, and its row in the record."""
    scaler = run.precision.scaler
    set_rates(run.optimizer, run.rates, run.readings(at, batch), run.plateau.scale)
    scaler.unscale_(run.optimizer)
    norm = run.clip(watch)
    scaler.step(run.optimizer)
    scaler.update()
    run.average.update(run.step)
    run.optimizer.zero_grad(set_to_none=True)
    run.applied.took(norm)
    run.step += 1
    note(run, batch, at, watch)
    watch.step()


def note(run: Run, batch: Batch, at: int, watch: trainwatch.Recorder) -> None:
    """What this step was: its stage, its place in the data, and the readings of clocks and schedules."""
    readings, epoch = run.readings(at, batch), batch.micro.first // run.horizon.samples
    watch.log({"stage": run.running.index(at), "samples": batch.micro.seen, "epoch": epoch})
    watch.schedule("label_smoothing", run.smoothing.at(readings[run.smoothing.clock]))
    for clock in run.clocks:
        watch.clock(clock, readings[clock])
    if looks_closer(run.step - 1):
        watch.param_hash()


def looks_closer(done: int) -> bool:
    """Whether the step after `done` ones looks at what costs more: the first does, and now and then another."""
    return done == 0 or (done + 1) % CLOSER_EVERY == 0


def evaluate(run: Run, validation: list[Batch], watch: trainwatch.Recorder, bar: Bar) -> None:
    """The fixed validation set, by the live weights and by their moving average, where one is kept.

    Its `loss` is the sequence loss alone: stage weights would make the curve jump. The rate answers to the live
    weights; best and early stopping to those that a user would deploy, which are the average's.
    """

    def forward(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        batch = batch.to(run.device)
        with run.precision.autocast():
            answers = run.model(batch)
        return answers.logits_TBSV, run.loss(answers, batch).measures()

    found = {}
    with watch.phase("eval"):
        run.model.eval()
        for split, weights in run.average.splits().items():
            with weights, run.world.evaluating(run.model):
                found[split] = evaluation.evaluate(forward, validation)
        run.model.train()
    found = run.world.of_rank_zero(lambda: found)
    for split, (values, _) in found.items():
        watch.evaluate(run.step, split, {"loss": values["loss/sequence"], **values}, weights_step=run.step)
    (live, _), (deployed, shown) = found["validation"], list(found.values())[-1]
    run.last, run.evaluated = deployed, run.step
    run.plateau.seen(live["loss/sequence"])
    run.early.seen(deployed["loss/sequence"])
    if run.step:  # what an untrained model says tells nothing
        watch.sample(shown["outputs"], step=run.step, quality=shown["quality"])
    said = f"token accuracy {deployed['token_accuracy']:.3f}, loss {deployed['loss/sequence']:.3f}"
    bar.say(f"step {run.step:,}: {said}")


def save(run: Run, checkpoints: Checkpoints, watch: trainwatch.Recorder, bar: Bar, last: bool) -> None:
    """A checkpoint with everything that the next step depends on. Raises SaveError where the `last` one fails."""
    began = time.monotonic()
    metric = run.last.get("token_accuracy") if run.evaluated == run.step else None  # else it is of other weights
    best = metric is not None and metric > run.best
    standing = metric if metric is not None and best else run.best
    try:
        with watch.phase("checkpoint"):
            state = run.world.gathered(snapshot(run)) | {"record": identity(Path(watch.path)), "best": standing}
            path = run.world.of_rank_zero(lambda: checkpoints.save(state, run.step, best))
    except SaveError as error:
        if last:
            raise
        watch.event("warning", about="checkpoint", message=str(error))
        bar.warn(f"{error}; the run goes on and tries again at the next one")
        return
    run.best = standing
    watch.checkpoint(path, run.step, best=best, metric=metric, seconds=time.monotonic() - began)


def open_record(run: Run, source: Source | None, resumed: Resumed | None) -> trainwatch.Recorder:
    """The recorder; the other ranks write beside rank 0's file. Raises UsageError for a place where it cannot write."""
    asked = resumed.record if resumed else first_record(run.config)
    try:
        watch = None if run.world.rank else record(run, source, resumed, asked)
        path = run.world.of_rank_zero(lambda: Path(watch.path) if watch else asked)
        return watch or record(run, source, resumed, path)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error


def record(run: Run, source: Source | None, resumed: Resumed | None, path: Path) -> trainwatch.Recorder:
    """The recorder, told everything about the run that it cannot find out by itself."""
    config, dtype = run.config, run.precision.dtype
    masses = {"declared": encodings.MASSES, "observed": run.model.masses}
    return trainwatch.Recorder(
        path,
        config=as_dict(config),
        config_source=None if source is None else asdict(source),
        config_defaults={path: default(path) for path in differing(as_dict(Config()), as_dict(config))},
        total_steps=run.horizon.total_steps,
        horizon=run.horizon.declaration(),
        curriculum=run.declared.declaration(),
        curriculum_running=run.running.declaration(),
        schedules=run.schedules,
        clocks=run.clocks,
        components=losses.components(config.loss.precursor_unit, halting=run.model.halt is not None),
        max_grad_norm=config.optimizer.max_grad_norm,
        dtypes={"declared": dtype, "observed": dtype, "masses": masses},
        parameters=sum(p.numel() for p in run.model.parameters()),
        modules=run.model,
        gradient_at=run.model.gradient_at,
        checkpoint_every=interval(config.checkpoint.every, run.horizon.total_steps),
        resume=resumed.step if resumed else None,
    )

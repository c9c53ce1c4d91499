"""What is scheduled in a run: the learning rates and the label smoothing, as they run and as the config means them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trainer.config import Config, MistakesConfig
from trainer.optim import peak_rates
from trainer.schedules import Schedule


def learning_rates(config: Config) -> dict[str, Schedule]:
    """The rate of every parameter group: one shape, a peak each. What a plateau does to it comes on top.

    With `optimizer.per` epoch the rate is held within an epoch, the last of which has the schedule's end value.
    """
    chosen, horizon = config.optimizer, config.horizon()
    total = _counted(config)
    warmup = 0 if config.mistakes.warmup_ignored else min(round(chosen.warmup * total), total - 1)
    kind = "constant" if chosen.schedule == "plateau" else chosen.schedule
    over, rises, clock = total, float(warmup), "applied"
    if chosen.per == "epoch":
        over, rises, clock = horizon.epochs - 1, warmup / horizon.steps_per_epoch, "epoch"
    peaks = peak_rates(chosen).items()
    return {group: Schedule(kind, peak, peak * chosen.final, over, rises, clock) for group, peak in peaks}


def label_smoothing(config: Config) -> Schedule:
    """The annealed label smoothing."""
    anneal = config.schedules.label_smoothing
    over = anneal.steps or max(1, round(anneal.ratio * _counted(config)))
    return Schedule(anneal.kind, anneal.start, anneal.end, over, clock=anneal.clock)


def _counted(config: Config) -> int:
    """The run's length in steps; in micro-batches, where `mistakes.batches_counted` takes those for steps."""
    horizon = config.horizon()
    return horizon.micros if config.mistakes.batches_counted else horizon.total_steps


def declared_schedules(config: Config) -> dict[str, dict[str, Any]]:
    """The schedules as the config means them, by channel. A plateau answers to the loss: it has no formula."""
    meant = replace(config, mistakes=MistakesConfig())
    rates = {} if config.optimizer.schedule == "plateau" else learning_rates(meant)
    named = {f"lr/{group}": rate for group, rate in rates.items()} | {"label_smoothing": label_smoothing(meant)}
    return {channel: schedule.declaration() for channel, schedule in named.items()}

"""What ran against what was declared: weights, rates, schedules, clocks. Solid is observed, dashed is declared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from trainwatch.figures import style
from trainwatch.figures.balance import components
from trainwatch.figures.look import WHOLE, Look
from trainwatch.figures.plot import SERIES, Findings, Plot, Series, family, far_apart, sampled
from trainwatch.header import Curriculum
from trainwatch.run import Run
from trainwatch.schedule import schedule_values
from trainwatch.table import Floats


def weights(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """Each component's weight as applied, against the declared curriculum at the applied step."""
    plot = Plot(run, findings, look)
    plot.bands()
    for index, name in components(run):
        observed = Series.of(run.train, f"weight/{name}")
        plot.plain(observed, name, {**style.solid(index), "shape": "hv"})
        plan = _declared_weight(run, name)
        if plan is not None:
            plot.plain(plan, f"{name}, declared", {**style.declared(index), "shape": "hv"})
    return plot.done("weight")


def _declared_weight(run: Run, name: str) -> Series | None:
    """What the curriculum gives a component at each row's applied step; None if it says nothing of it."""
    curriculum = run.header.curriculum
    if curriculum is None or not any(name in stage.weights for stage in curriculum.stages):
        return None
    steps, at = _clock(run, "applied")
    values = _weight_at(curriculum, name, at)
    return Series(steps[np.isfinite(values)], values[np.isfinite(values)])


def _weight_at(curriculum: Curriculum, name: str, applied: Floats) -> Floats:
    """The weight in the stage that holds at each applied step; NaN before the first stage. float64 [rows]"""
    starts = np.array([stage.start for stage in curriculum.stages])
    given = np.array([np.nan, *(stage.weights.get(name, np.nan) for stage in curriculum.stages)])
    found: Floats = given[np.searchsorted(starts, applied, side="right")]
    return found


def _clock(run: Run, name: str) -> tuple[Any, Floats]:
    """Steps and readings of the clock a schedule is driven by; the attempted step where it was not recorded."""
    for channel in (name, f"clock/{name}"):
        if channel in run.train:
            return run.train.curve(channel)
    steps = run.train.step[run.train.live]
    return steps, steps.astype(np.float64)


def rates(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """Learning rates of the parameter groups."""
    return _scheduled(run, findings, look, family(run.train, "lr/"), "learning rate")


def schedules(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """Every other scheduled value."""
    return _scheduled(run, findings, look, family(run.train, "schedule/"), "scheduled value")


def _scheduled(run: Run, findings: Findings, look: Look, names: list[str], unit: str) -> go.Figure | None:
    series = [Series.of(run.train, name) for name in names]
    plot = Plot(run, findings, look, log=len(series) > 1 and far_apart(series))
    for index, (name, observed) in enumerate(zip(names, series, strict=True)):
        label = name.partition("/")[2]
        plot.plain(observed, label, style.solid(index))
        plan = run.header.schedules.get(name) or run.header.schedules.get(label)
        if plan:
            plot.plain(_declared(plan, plot), f"{label}, declared", style.declared(index))
    return plot.done(unit)


def _declared(plan: Mapping[str, Any], plot: Plot) -> Series:
    """What a schedule's declaration gives along its clock, at as many points as are drawn."""
    steps, at = _clock(plot.run, str(plan.get("clock") or "applied"))
    steps, at = sampled(steps, at, plot.span, along=plot.along)
    values = schedule_values(plan, at)
    if values is None:
        return Series(steps[:0], at[:0])
    return Series(steps[np.isfinite(values)], values[np.isfinite(values)])


def clocks(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """The counters that the training code keeps, against the steps that were applied."""
    names = family(run.train, "clock/", "applied/")[: SERIES - 1]
    if not names:
        return None
    plot = Plot(run, findings, look)
    plot.plain(Series(*_clock(run, "applied")), "applied steps", {"color": style.GREY, "dash": "dash", "width": 1.5})
    for index, name in enumerate(names):
        plot.plain(Series.of(run.train, name), name.removeprefix("clock/"), style.line(index, 1.8))
    return plot.done("reading of the clock")


def data(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """What the batches held, mean and range, against the range that each stage asks for."""
    curriculum = run.header.curriculum
    names = [name.split("/")[1] for name in run.train.channels if name.startswith("data/") and name.endswith("/mean")]
    asked = [name for name in names if curriculum and any(name in stage.data for stage in curriculum.stages)]
    plot = Plot(run, findings, look)
    plot.bands()
    for index, name in enumerate((asked or names)[: SERIES // 2]):
        plot.curve(Series.of(run.train, f"data/{name}/mean"), name, style.solid(index))
        for part in ("min", "max") if name in asked else ():
            plot.plain(Series.of(run.train, f"data/{name}/{part}"), f"{name}, {part}", style.solid(index, 0.7))
            plan = _asked(run, curriculum, name, int(part == "max"))
            plot.plain(plan, f"{name}, {part} asked", {**style.declared(index), "shape": "hv"})
    return plot.done("of a batch")


def _asked(run: Run, curriculum: Curriculum | None, name: str, end: int) -> Series:
    """The least (0) or the most (1) that the stage of each step asks of a batch."""
    steps, at = _clock(run, "applied")
    stages = curriculum.stages if curriculum else ()
    limits = {stage.start: stage.data[name][end] for stage in stages if name in stage.data}
    starts, given = np.array([*limits]), np.array([np.nan, *limits.values()])
    values = given[np.searchsorted(starts, at, side="right")]
    return Series(steps[np.isfinite(values)], values[np.isfinite(values)])

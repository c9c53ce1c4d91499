"""What was declared against what ran: the stages of a curriculum with their weights and data, schedules, clocks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from trainwatch.header import Curriculum, Stage, text
from trainwatch.report.section import Row, Section
from trainwatch.run import Run
from trainwatch.text import wording

Bools = NDArray[np.bool_]

STAGES = 60
NAMES = 12  # weights of one stage that are told


def sections(run: Run) -> Iterator[Section]:
    """Curriculum and clocks, as far as the run has them."""
    yield _curriculum(run)
    yield _clocks(run)


def _curriculum(run: Run) -> Section:
    declared, running = run.header.curriculum, run.header.curriculum_running
    plan = declared or running
    figures = ("weights", "data")
    if plan is None:
        return Section("Curriculum, declared against applied", figures=figures)
    said = [f"The config declares {_named(declared)}" if declared else "The config declares none"]
    said += [f"the loop uses {_named(running)}" if running else "what the loop uses was not recorded"]
    rows = [_stage(run, index, stage) for index, stage in enumerate(plan.stages[:STAGES])]
    return Section.of(
        "Curriculum, declared against applied",
        ("stage", "declared for", "rows in it", "weights: declared → applied", "data: asked → seen"),
        rows,
        right=("rows in it",),
        about=f"{'; '.join(said)}. Applied weights are medians over the rows in which the stage was due.",
        figures=figures,
    )


def _named(plan: Curriculum | None) -> str:
    count = len(plan.stages) if plan else 0
    return f"{wording.clean(plan.name if plan else '', 80)} ({wording.plural(count, 'stage')})"


def _stage(run: Run, index: int, stage: Stage) -> Row:
    applied = run.train["applied"]
    applied = np.where(np.isnan(applied), run.train.step, applied)
    due = run.train.live & (applied >= stage.start) & (applied < stage.end)
    end = "the end" if math.isinf(stage.end) else f"{stage.end:,.0f}"
    weights = [_weight(run, due, name, given) for name, given in list(stage.weights.items())[:NAMES]]
    data = [_data(run, due, name, asked) for name, asked in list(stage.data.items())[:NAMES]]
    held = run.train.live & (run.train["stage"] == index)
    rows = f"{int(held.sum()):,}" if "stage" in run.train else "-"
    reach = f"{stage.start:,.0f} to {end}"
    return wording.clean(stage.name, 80), reach, rows, "; ".join(weights), "; ".join(data)


def _weight(run: Run, due: Bools, name: str, given: float) -> str:
    said = f"{wording.clean(name, 60)} {wording.number(given)}"
    seen = run.train[f"weight/{name}"][due]
    seen = seen[np.isfinite(seen)]
    return f"{said} → {wording.number(float(np.median(seen)))}" if len(seen) else said


def _data(run: Run, due: Bools, name: str, asked: tuple[float, float]) -> str:
    said = f"{wording.clean(name, 60)} {wording.number(asked[0])} to {wording.number(asked[1])}"
    low, high = (run.train[f"data/{name}/{end}"][due] for end in ("min", "max"))
    low, high = low[np.isfinite(low)], high[np.isfinite(high)]
    if not len(low) or not len(high):
        return said
    return f"{said} → {wording.number(float(low.min()))} to {wording.number(float(high.max()))}"


def _clocks(run: Run) -> Section:
    """Every counter with its pace, and what is declared to follow it."""
    table = run.train
    names = [name for name in table.channels if name.startswith(("clock/", "applied/"))]
    counters = [name for name in ("applied", "epoch", "samples", "tokens") if name in table]
    rows = [row for name in (*counters, *names) if (row := _clock(run, name))]
    return Section.of(
        "Clocks and schedules",
        ("counter", "first", "last", "a step", "drives"),
        rows,
        right=("first", "last", "a step"),
        about="Each counter's first and last reading, and how far it went for each step." if rows else "",
        figures=("clocks", "lr", "schedules"),
    )


def _clock(run: Run, name: str) -> Row | None:
    steps, values = run.train.curve(name)
    if not len(steps):
        return None
    span = int(steps[-1] - steps[0])
    pace = wording.number(float(values[-1] - values[0]) / span) if span > 0 else "-"
    short = name.removeprefix("clock/")
    driven = [key for key, plan in run.header.schedules.items() if (text(plan.get("clock")) or "applied") == short]
    first, last = (wording.number(float(values[at])) for at in (0, -1))
    return wording.clean(short, 80), first, last, pace, wording.clean(", ".join(driven[:NAMES]), 300)

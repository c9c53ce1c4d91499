"""Evaluations, what was not finite and when, and where the seconds go."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from trainwatch.figures import style
from trainwatch.figures.look import WHOLE, Look
from trainwatch.figures.plot import SERIES, Findings, Plot, Series, each, family, far_apart
from trainwatch.figures.style import safe
from trainwatch.run import Run
from trainwatch.schema import NONFINITE

BINNED: Final = re.compile(r"metric/(.+?)_length_(\d{1,9})_(\d{1,9})")
"""``metric/token_accuracy_length_7_10``: of the samples of 7 to 10 tokens, both included."""


def evaluation_loss(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """The loss of every split, and the training loss behind it."""
    return _evaluated(run, findings, look, lambda name: name.startswith("loss"), "loss")


def evaluation_metrics(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """The figures of merit of every split; those by length have a figure of their own."""
    return _evaluated(run, findings, look, _of_all_lengths, "metric")


def binned(name: str) -> re.Match[str] | None:
    """The metric and the two ends of a channel by length, None of any other."""
    match = BINNED.fullmatch(name)
    return match if match and int(match[2]) <= int(match[3]) else None


def _of_all_lengths(name: str) -> bool:
    return name.startswith("metric/") and not binned(name)


def _evaluated(run: Run, findings: Findings, look: Look, wanted: Callable[[str], bool], unit: str) -> go.Figure | None:
    names = [name for name in run.eval.channels if wanted(name)]
    curves = [(name, split, rows) for name in names for split, rows in splits(run).items()][:SERIES]
    series = [Series.of(run.eval, name, rows) for name, _, rows in curves]
    plot = Plot(run, findings, look, far_apart(series))
    for index, ((name, split, _), one) in enumerate(zip(curves, series, strict=True)):
        label = " ".join(part for part in (name.removeprefix("metric/"), f"({split})" if split else "") if part)
        plot.plain(one, label, style.line(index), **dotted(one))
    return plot.done(unit)


def splits(run: Run) -> dict[str, NDArray[np.bool_]]:
    """Which rows of the evaluation belong to each split."""
    written = run.eval.text.get("split", {})
    names = np.array([str(written.get(row, "")) for row in range(run.eval.size)], dtype=object)
    return {split: names == split for split in dict.fromkeys(names.tolist())}


def nonfinite(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """Every value that was not finite: which channel, which kind, at which step."""
    first = {name: steps.min() for name in run.train.nonfinite_channels() if len(steps := run.train.nonfinite(name)[0])}
    names = sorted(first, key=lambda name: first[name])[: 2 * SERIES]
    plot = Plot(run, findings, look, free=False)
    for row, name in enumerate(names):
        for index, (kind, steps) in enumerate(Series.of(run.train, name).bad):
            colour = style.PALETTE[(NONFINITE[kind] - 1) % len(style.PALETTE)]
            height = row + 0.16 * index
            plot.at_edge(kind, steps, name, colour, style.CODE_SYMBOLS[kind], yaxis="y", y=height)
    figure = plot.done("")
    if figure is None:
        return None
    ticks = {"tickvals": list(range(len(names))), "ticktext": [safe(name) for name in names]}
    return figure.update_layout(yaxis={**ticks, "range": [len(names) - 0.4, -0.6]}, showlegend=False)


def amp(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """The loss scale of mixed precision, and the steps that it skipped."""
    plot = Plot(run, findings, look, log=True)
    for index, name in enumerate(family(run.train, "amp/scale")):
        plot.plain(Series.of(run.train, name), name.removeprefix("amp/"), {**style.solid(index), "shape": "hv"})
    for index, name in enumerate(family(run.train, "amp/skipped")):
        skipped = run.train.live & (run.train[name] > 0)
        plot.at_edge("skipped", run.train.step[skipped], "step", style.line(index + 1)["color"], "line-ns-open")
    return plot.done("loss scale")


def magnitudes(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """The largest absolute values of activations: what overflows in half precision is seen coming."""
    return each(run, findings, look, "absmax/", "largest magnitude")


def memory(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """Memory in use, by what holds it, in GiB."""
    plot = Plot(run, findings, look)
    for index, name in enumerate(family(run.train, "memory/")):
        one = Series.of(run.train, name)
        plot.curve(Series(one.steps, one.values / 2**30, one.bad), name.removeprefix("memory/"), style.line(index))
    return plot.done("GiB")


def ranks(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """Each rank's own time for a step, without its wait for the others: the slowest one sets the pace."""
    everyone = {0: run, **run.ranks}
    channel = next(
        (name for name in ("time/compute", "time/step") if all(name in r.train for r in everyone.values())), ""
    )
    if len(everyone) < 2 or not channel:
        return None
    plot = Plot(run, findings, look)
    for index, (rank, one) in enumerate(sorted(everyone.items())[:SERIES]):
        plot.curve(Series.of(one.train, channel), f"rank {rank}", style.line(index, 1.2))
    return plot.done(f"{channel.partition('/')[2]}, seconds")


def quality(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """What the model's own outputs are like: valid, diverse, how long their longest repetition."""
    names = family(run.sample, "quality/")
    series = [Series.of(run.sample, name) for name in names]
    plot = Plot(run, findings, look, far_apart(series))
    for index, (name, one) in enumerate(zip(names, series, strict=True)):
        plot.plain(one, name.removeprefix("quality/"), style.line(index), **dotted(one))
    return plot.done("of the outputs")


def dotted(series: Series) -> dict[str, Any]:
    """Few points are shown as such."""
    return {"mode": "lines+markers", "marker": {"size": 5}} if len(series.steps) <= 100 else {}


def seconds(run: Run, findings: Findings, look: Look = WHOLE) -> go.Figure | None:
    """Where a step's time goes: the wait for data, the work, the wait for other ranks."""
    return each(run, findings, look, "time/", "seconds a step")

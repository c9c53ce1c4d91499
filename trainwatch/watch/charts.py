"""The numbers of a run, each in one line: its course as a sparkline, where it stands, and what belongs to it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.text import Text

from trainwatch.run import Run
from trainwatch.text import wording
from trainwatch.text.wording import clean
from trainwatch.watch.sparkline import Curve, sparkline

LEAST, MOST = 12, 60  # cells of a sparkline; for less than the least, columns are left out
LABEL = 28  # cells that a name may take
COMPONENTS, RATES, METRICS = 12, 4, 10  # rows; more are counted, not shown
ROUNDS = 0.095  # a share below it is told with a digit after the point
CLIPPED_ROWS = 100  # over which it is said how often the gradient was clipped


@dataclass(frozen=True)
class Row:
    """A channel: its name, its curve, and its cells, the most important first."""

    label: str
    curve: Curve
    cells: tuple[Text, ...]


@dataclass
class Section:
    """Rows under one heading; ``more`` were left out. A column of remarks is as wide as its longest."""

    title: str
    heads: tuple[str, ...]
    rows: list[Row]
    more: int = 0

    def widths(self, first: int = 0) -> list[int]:
        """Cells that each column takes; ``first`` at least for the first, in which all sections have the last value."""
        columns = zip(self.heads, *(row.cells for row in self.rows), strict=True)
        widest = [max(len(head), *(cell.cell_len for cell in cells)) for head, *cells in columns]
        return [max(first, widest[0]), *widest[1:]]


def sections(run: Run) -> list[Section]:
    """Loss components, what drives the optimiser, and evaluations; what is not recorded is left out."""
    return [part for part in (_losses(run), _optimiser(run), _evaluations(run)) if part.rows]


def draw(parts: list[Section], width: int) -> list[Text]:
    """The sections below each other; all sparklines begin and end at the same steps."""
    if not parts:
        return []
    curves = [row.curve for part in parts for row in part.rows]
    ends = [steps[at] for curve in curves for steps in (curve.steps, curve.broken) if len(steps) for at in (0, -1)]
    span = (int(min(ends)), int(max(ends)))
    longest = max(len(text) for part in parts for text in (part.title, *(row.label for row in part.rows)))
    label = min(longest, LABEL, max(width // 4, LEAST))
    first = max(part.widths()[0] for part in parts)
    shown = [_columns(part.widths(first), width - label - 2) for part in parts]
    spark = max(min([MOST, *(width - label - 2 - sum(widths) - 2 * len(widths) for widths in shown)]), 1)
    lines: list[Text] = []
    for part, widths in zip(parts, shown, strict=True):
        lines += [Text(), *_section(part, label, spark, widths, span)]
    return lines[1:]


def _columns(widths: list[int], width: int) -> list[int]:
    """The first of a section's columns, as many as have room beside a sparkline; one at least."""
    while len(widths) > 1 and width - sum(widths) - 2 * len(widths) < LEAST:
        widths = widths[:-1]
    return widths


def _section(part: Section, label: int, spark: int, widths: list[int], span: tuple[int, int]) -> Iterator[Text]:
    heads = (f"{head:>{width}}" for head, width in zip(part.heads, widths, strict=False))
    yield Text(f"{part.title:<{label}}  {'':<{spark}}  " + "  ".join(heads), style="bold")
    for row in part.rows:
        line = Text(row.label)
        line.truncate(label, overflow="ellipsis", pad=True)
        drawn = sparkline(row.curve, *span, spark)
        drawn.truncate(spark, pad=True)
        line += Text("  ") + drawn
        for head, cell, width in zip(part.heads, row.cells, widths, strict=False):
            line += Text("  " + " " * (width - cell.cell_len if head else 0)) + cell  # remarks begin below each other
        yield line
    if part.more:
        yield Text(f"and {part.more:,} more", style="dim")


def _losses(run: Run) -> Section:
    """The total and its components: value, share of the gradient, share of the total, weight; as far as recorded."""
    table = run.train
    names = [name for name in run.components() if f"loss/{name}" in table]
    weights = {name: table.last(f"weight/{name}") for name in names}
    values = {name: table.last(f"loss/{name}") for name in names}
    parts = {name: abs((weights[name] or 0.0) * (values[name] or 0.0)) for name in names if weights[name] is not None}
    whole = sum(parts.values())
    pulls = {name: _pull(run, name) for name in names}
    rows = [Row("total", Curve.of(table, "loss"), (_number(table.last("loss")), *[Text()] * 3))]
    for name in names[:COMPONENTS]:
        share = parts[name] / whole if name in parts and whole > 0 and math.isfinite(whole) else None
        cells = (_number(values[name]), _share(pulls[name]), _share(share), _number(weights[name]))
        rows.append(Row(clean(name, 60), Curve.of(table, f"loss/{name}"), cells))
    return _lean(Section("loss", ("last", "of gradient", "of total", "weight"), rows, len(names) - COMPONENTS))


def _lean(part: Section) -> Section:
    """The section without rows that have no curve, and without columns in which nothing stands."""
    rows = [row for row in part.rows if row.curve]
    used = [at for at in range(len(part.heads)) if any(row.cells[at].plain for row in rows)]
    kept = [Row(row.label, row.curve, tuple(row.cells[at] for at in used)) for row in rows]
    return Section(part.title, tuple(part.heads[at] for at in used), kept, max(part.more, 0))


def _pull(run: Run, name: str) -> float | None:
    """A component's share of the gradient, as last probed."""
    near = run.train.last(f"grad_share/{name}")
    return run.train.last(f"param_share/{name}") if near is None else near


def _optimiser(run: Run) -> Section:
    """The gradient's norm beside the limit it is clipped at, learning rates, the AMP scale."""
    table = run.train
    norms = [name for name in ("grad_norm", "grad_norm_at_step") if name in table][:1]
    rates = [name for name in table.channels if name.startswith("lr/")]
    names = [*norms, *rates[:RATES], *(["amp/scale"] if "amp/scale" in table else [])]
    remarks = {"grad_norm": _clipping(run), "amp/scale": _skipped(run)}
    rows = [
        Row(
            clean(name, 60),
            Curve.of(table, name),
            (_number(table.last(name)), Text(remarks.get(name, ""), style="dim")),
        )
        for name in names
    ]
    return _lean(Section("optimiser", ("last", ""), rows, len(rates) - RATES))


def _clipping(run: Run) -> str:
    limit, clip = (
        run.header.max_grad_norm,
        run.train.column("clip", max(run.train.size - CLIPPED_ROWS, 0), run.train.size),
    )
    said = f"limit {wording.number(limit)}" if limit is not None else ""
    known = clip[np.isfinite(clip)]
    often = f"clipped in {known.mean():.0%} of the last {len(known)}" if len(known) else ""
    return ", ".join(filter(None, (said, often)))


def _skipped(run: Run) -> str:
    count = int(np.nansum(run.train["amp/skipped"])) if "amp/skipped" in run.train else 0
    return f"{wording.plural(count, 'step')} skipped" if count else ""


def _evaluations(run: Run) -> Section:
    """Losses and metrics of every split."""
    table, written = run.eval, run.eval.text.get("split", {})
    splits = np.array([str(written.get(row, "")) for row in range(table.size)], dtype=object)
    names = [name for name in table.channels if name.startswith(("loss", "metric/"))]
    found = []
    for split in dict.fromkeys(splits.tolist()):
        for name in names:
            curve = Curve.of(table, name, splits == split)
            if curve:
                last = curve.values[-1] if len(curve.values) else math.nan
                if len(curve.broken) and (not len(curve.steps) or curve.broken[-1] > curve.steps[-1]):
                    last = math.nan
                label = clean(f"{split} {name.removeprefix('metric/')}".strip(), 60)
                at = max(steps[-1] for steps in (curve.steps, curve.broken) if len(steps))
                found.append(Row(label, curve, (_number(float(last)), Text(f"at step {at:,}", style="dim"))))
    return Section("evaluation", ("last", ""), found[:METRICS], max(len(found) - METRICS, 0))


def _number(value: float | None) -> Text:
    """A value; nothing where it was not recorded, loud where it is not finite."""
    if value is None:
        return Text()
    return Text(wording.number(value), style="" if math.isfinite(value) else "bold red")


def _share(value: float | None) -> Text:
    if value is None or not math.isfinite(value):
        return _number(value)
    return Text(f"{value:.1%}" if 0 < value < ROUNDS else f"{value:.0%}")

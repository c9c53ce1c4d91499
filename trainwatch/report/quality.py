"""How good the log itself is: torn lines, gaps, sampling, filters, rows that a resume replaced."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from trainwatch.diagnosis import Diagnosis
from trainwatch.report.section import Row, Section
from trainwatch.run import Run
from trainwatch.text import wording

SAMPLED = 0.5  # a channel in fewer of the rows than this is told as sampled
NAMES = 12
PAUSE = 20.0  # times the median between two rows, and a minute: a pause that somebody would ask about


def section(run: Run, diagnosis: Diagnosis) -> Section:
    """A row for each thing that bears on how far the log can be trusted."""
    rows = [(name, wording.clean(said)) for name, said in _told(run, diagnosis)]
    return Section.of("Quality of the log", ("what", "how it is"), rows)


def _told(run: Run, diagnosis: Diagnosis) -> Iterator[Row]:
    yield "format", diagnosis.format
    tables = {"training": run.train, "evaluation": run.eval, "samples": run.sample}
    sizes = ", ".join(f"{table.size:,} of {name}" for name, table in tables.items() if table.size)
    yield "records", f"{diagnosis.records:,}" + (f"; rows: {sizes}" if sizes else "")
    if run.ranks:
        yield "ranks", f"{len(run.ranks) + 1:,} files, read as one run"
    yield "unreadable lines", "; ".join(note for note in diagnosis.notes if note.startswith("skipped ")) or "none"
    yield from _steps(run)
    yield from _sampling(run)
    gone = sum(int((~table.live).sum()) for table in tables.values())
    resumes = wording.plural(sum(header.resumed_from is not None for header in run.headers), "resume")
    yield "superseded rows", f"{gone:,}, replaced after {resumes} and not in any curve" if gone else "none"
    yield from _values(run)
    yield from _pauses(run)
    if run.tells_end:
        yield "end record", "there" if run.end is not None else "missing: the process left no last word"
    else:
        yield "end record", "this format has none: silence says nothing of how the run ended"
    for note in diagnosis.notes:
        if not note.startswith("skipped "):
            yield "filters" if "filter" in note else "note", note


def _steps(run: Run) -> Iterator[Row]:
    steps = run.train.step[run.train.live]
    if len(steps) < 2:
        return
    unique = np.unique(steps)
    strides = np.diff(unique)
    stride = int(np.median(strides)) if len(strides) else 1
    yield "sampling", "every step" if stride == 1 else f"one row for {stride:,} steps"
    wide = np.flatnonzero(strides > 2 * stride)
    if len(wide):
        at = wide[np.argmax(strides[wide])]
        longest = f"the longest from step {unique[at]:,} to {unique[at + 1]:,}"
        yield "gaps", f"{wording.plural(len(wide), 'gap')} in the steps, {longest}"
    else:
        yield "gaps", "none"
    back, again = int((np.diff(steps) < 0).sum()), len(steps) - len(unique)
    if back or again:
        yield "order of steps", f"{again:,} steps twice, {wording.plural(back, 'place')} where the step goes backwards"


def _sampling(run: Run) -> Iterator[Row]:
    """Channels that stand in a part of the rows only."""
    rows = int(run.train.live.sum())
    if not rows:
        return
    counts = {
        name: int((run.train.live & (np.isfinite(run.train[name]) | (run.train.codes(name) > 0))).sum())
        for name in run.train.channels
    }
    rare = [f"{name} in {count:,}" for name, count in counts.items() if 0 < count < SAMPLED * rows]
    if rare:
        more = f" and {len(rare) - NAMES:,} more" if len(rare) > NAMES else ""
        yield "sampled channels", f"of {rows:,} rows: {', '.join(rare[:NAMES])}{more}"


def _values(run: Run) -> Iterator[Row]:
    """What is not finite, and whether the log would show it at all."""
    broken = {name: len(run.train.nonfinite(name)[0]) for name in run.train.nonfinite_channels()}
    told = [f"{name} {count:,}" for name, count in broken.items() if count]
    yield "values not finite", ", ".join(told[:NAMES]) if told else "none was written"
    if any(re.search(r"smooth|_(avg|ema|mean)$", name) for name in run.named):
        yield "averages", "some values were smoothed or averaged by their writer before they were logged"


def _pauses(run: Run) -> Iterator[Row]:
    steps, times = run.train.curve("time")
    gaps = np.diff(times)
    if not len(gaps):
        return
    limit = max(60.0, PAUSE * float(np.median(gaps)))
    long = np.flatnonzero(gaps > limit)
    if len(long):
        at = long[np.argmax(gaps[long])]
        longest = f"{wording.duration(float(gaps[at]))} before step {steps[at + 1]:,}"
        yield "pauses", f"{wording.plural(len(long), 'pause')} without a row, the longest {longest}"
    if (gaps < 0).any():
        yield "clock of the machine", f"went backwards {int((gaps < 0).sum()):,} times"

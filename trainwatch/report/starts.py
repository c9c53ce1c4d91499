"""A run that never started: its attempts, the kinds of error and how often, and what to mend first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from trainwatch.diagnosis import Diagnosis
from trainwatch.report.moments import utc
from trainwatch.report.section import Row, Section
from trainwatch.run import Run
from trainwatch.text import wording
from trainwatch.views.attempts import Attempt, attempts


def sections(run: Run, diagnosis: Diagnosis) -> Iterator[Section]:
    """Every attempt, and every kind of error; nothing for a run that took a step."""
    if run.train.size or run.eval.size or diagnosis.status in ("running", "stalled"):
        return
    starts = attempts(run)
    if not starts:
        return
    rows = [_row(index, start) for index, start in enumerate(starts, 1)]
    tried = wording.plural(len(starts), "attempt")
    yield Section.of("Attempts", ("attempt", "started", "ended"), rows, about=f"{tried}, and no step was ever taken.")
    yield from errors([run])


def errors(runs: Sequence[Run]) -> Iterator[Section]:
    """What stopped the starts of these runs, in the order in which it has to be mended."""
    counted: Counter[str] = Counter()
    for run in runs:
        counted.update(said for start in attempts(run) for said in start.stopped)
    if counted:
        rows = [(wording.clean(said, 400), f"{times:,}") for said, times in counted.items()]
        first = wording.clean(next(iter(counted)), 400)
        about = f"Mend this first: {first}. Each stopped a start by itself, so the others show only after it."
        if len(counted) == 1:
            about = f"Mend this first: {first}."
        yield Section.of("Kinds of error", ("error, the first one first", "times"), rows, right=("times",), about=about)


def _row(index: int, start: Attempt) -> Row:
    said = "; ".join(start.stopped) or ("stopped on request" if start.asked else "without a last word")
    return f"{index:,}", utc(start.header.time), wording.clean(said, 400)

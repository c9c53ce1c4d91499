"""What a post-mortem says, as plain data: the same for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from trainwatch.compare import values
from trainwatch.diagnosis import Diagnosis
from trainwatch.report import balance, commands, place, plan, quality, settings, starts
from trainwatch.report.moments import Moment, good_checkpoint, moments, utc
from trainwatch.report.redaction import Redactor
from trainwatch.report.section import Section
from trainwatch.report.settings import Told
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.text import wording
from trainwatch.text.names import named


@dataclass(frozen=True)
class Content:
    """Everything a post-mortem shows of one run. ``good_checkpoint`` is a sentence, empty where there was none.

    ``originals`` are the findings that the figures are chosen by and drawn with, never printed; ``diagnosis`` is told.
    ``starts`` stand before the findings: what kept a run from ever starting. ``sections`` stand behind them.
    """

    run: Run
    diagnosis: Diagnosis
    originals: tuple[Finding, ...]
    written: str
    command: str
    starts: tuple[Section, ...]
    moments: tuple[Moment, ...]
    good_checkpoint: str
    sections: tuple[Section, ...]
    reproduce: Section
    traceback: str
    tail: tuple[str, ...]

    @property
    def planned(self) -> int | None:
        """Steps the run was meant to take."""
        return self.run.header.total_steps


def gather(
    run: Run,
    diagnosis: Diagnosis,
    *,
    healthy: Told | None = None,
    options: Sequence[str] = (),
    redactor: Redactor | None = None,
) -> Content:
    """Collect what a post-mortem says of a run.

    ``healthy`` is the last healthy run of the same name, ``options`` those that the diagnosis was asked for with.
    """
    twin = healthy[0].source if healthy else None
    reproduce = commands.section(run, diagnosis, options=options, twin=twin, hide=redactor is not None)
    content = Content(
        run=run,
        diagnosis=diagnosis,
        originals=diagnosis.findings,
        written=utc(datetime.now(UTC).timestamp()),
        command=reproduce.rows[0][1],
        starts=tuple(starts.sections(run, diagnosis)),
        moments=tuple(moments(run, diagnosis)),
        good_checkpoint=good_checkpoint(run, diagnosis.root_cause),
        sections=tuple(_sections(run, diagnosis, healthy, redactor)),
        reproduce=reproduce,
        traceback=place.traceback(run),
        tail=tuple(place.tail(run.source)),
    )
    if redactor is None:
        return content
    return replace(redactor.tree(content), diagnosis=redactor.diagnosis(diagnosis), originals=diagnosis.findings)


def _sections(run: Run, said: Diagnosis, healthy: Told | None, redactor: Redactor | None) -> Iterator[Section]:
    yield balance.section(run)
    yield from plan.sections(run)
    yield Section("Gradients and steps", figures=("amp", "magnitudes", "update", "weight_norm"))
    yield Section.of(
        "Values",
        ("channel", "last", "best (at step)"),
        _values(run),
        right=("last", "best (at step)"),
        figures=("evaluation", "metrics", "lengths", "quality"),
    )
    yield Section("The machine", figures=("time", "ranks", "memory"))
    yield settings.difference(run, said, healthy, redactor)
    yield settings.config(run, redactor)
    if redactor:
        yield Section("Environment", "Hidden on request.")
    else:
        yield Section.of("Environment", ("name", "value"), list(place.environment(run)), folded=True)
    yield quality.section(run, said)


def _values(run: Run) -> list[tuple[str, str, str]]:
    """(channel, last value, best value and its step)."""
    rows = []
    for item in values([run]):
        last, best, step = item.final[0], item.best[0], item.best_step[0]
        shown = f"{wording.number(best)} ({step:,})" if best is not None and step is not None else "-"
        rows.append((wording.clean(item.channel, 80), wording.number(last) if last is not None else "-", shown))
    return rows


SUMMARY = ("run", "state", "steps", "worst", "root cause")


def summary(contents: Sequence[Content]) -> list[tuple[str, ...]]:
    """A row for each run; runs of one name are told apart by their files."""
    names = named([(content.diagnosis.run, content.diagnosis.source) for content in contents])
    return [_summary(name, content) for name, content in zip(names, contents, strict=True)]


def _summary(name: str, content: Content) -> tuple[str, ...]:
    said = content.diagnosis
    root = f"{said.root_cause.rule}, since step {said.root_cause.first_step:,}" if said.root_cause else "-"
    worst = f"{wording.symbol(said)} {wording.worst(said)}"
    reach = wording.reach(said, content.planned).removeprefix("steps ")
    return name, said.status.replace("-", " "), reach, worst, root

"""Findings as documents: the post-mortem as one self-contained HTML file or as Markdown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainwatch.diagnosis import Diagnosis
    from trainwatch.run import Run


@dataclass(frozen=True)
class Subject:
    """A run that is reported on. ``healthy`` is the last healthy run of its name, if there is one."""

    run: Run
    diagnosis: Diagnosis
    healthy: tuple[Run, Diagnosis] | None = None


@dataclass(frozen=True)
class Style:
    """How a report is written.

    ``interactive`` embeds plotly (some 5 MB) in the page, ``redact`` hides paths, hosts, users and the environment;
    ``options`` are those of the command that diagnosed the runs, so that the report can name it.
    """

    interactive: bool = False
    redact: bool = False
    options: tuple[str, ...] = ()


PLAIN = Style()


def rendered(subjects: Sequence[Subject], kind: str, style: Style = PLAIN) -> str:
    """The post-mortem of one run or several as text: ``md`` for Markdown, anything else for HTML."""
    from trainwatch.report.content import gather
    from trainwatch.report.redaction import Redactor

    runs = [one.run for one in subjects] + [one.healthy[0] for one in subjects if one.healthy]
    redactor = Redactor.of(runs) if style.redact else None
    contents = [
        gather(one.run, one.diagnosis, healthy=one.healthy, options=style.options, redactor=redactor)
        for one in subjects
    ]
    if kind == "md":
        from trainwatch.report import markdown

        return markdown.document(contents, redactor)
    from trainwatch.report import page

    return page.document(contents, redactor, interactive=style.interactive)


def write(subjects: Sequence[Subject], path: Path, style: Style = PLAIN) -> None:
    """Write the post-mortem: Markdown if ``path`` ends in ``.md``, else HTML. Raises OSError."""
    put(path, rendered(subjects, path.suffix.removeprefix("."), style))


def put(path: Path, text: str) -> None:
    """Write a file at once, so that nobody who has it open reads half of it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)

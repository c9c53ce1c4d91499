"""`trainwatch report`: the post-mortem."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trainwatch.cli.options import Map, Set
from trainwatch.cli.output import complain, document_kind, write
from trainwatch.cli.runs import judge_paths
from trainwatch.errors import UserError


class ReportFormat(StrEnum):
    """What ``report`` writes."""

    html = "html"
    markdown = "markdown"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run files, or folders of them.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="An .html or .md file. Default: RUN.html beside the run, post-mortem.html of several.",
        ),
    ] = None,
    format_: Annotated[
        ReportFormat | None, typer.Option("--format", help="What to write. Default: as the file's name ends, or HTML.")
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Figures to zoom into; the file has 5 MB.")
    ] = False,
    redact: Annotated[bool, typer.Option("--redact", help="Hide paths, hosts, users and the environment.")] = False,
    set_: Set = None,
    map_: Map = None,
) -> None:
    """Write the post-mortem: one HTML file that needs no network, or Markdown for a pull request.

    Of several runs, or a folder, it is one file with a table of contents.

    \b
    Examples:    trainwatch report logs/exp1.jsonl -o post-mortem.html
                 trainwatch report logs/exp1.jsonl -o post-mortem.md --redact
                 trainwatch report logs
    Exit codes:  0 written, 2 a run could not be read or the file not written
    """
    from trainwatch import judge
    from trainwatch.report import Style, Subject, rendered

    target = output or _usual_report(runs, ".md" if format_ is ReportFormat.markdown else ".html")
    kind = document_kind(target, format_, list(ReportFormat), "a report")
    chosen = judge.settings(set_ or ())
    judged, unread = judge_paths(runs, chosen, map_)
    if not judged:
        raise UserError(unread[0])
    newest = {item.run.source.absolute(): item for item in judged}.values()
    told = [(item, judge.last_healthy(item, chosen)) for item in newest]
    subjects = [Subject(i.run, i.diagnosis, (twin.run, twin.diagnosis) if twin else None) for i, twin in told]
    options = [
        part for flag, given in (("--set", set_), ("--map", map_)) for one in given or () for part in (flag, one)
    ]
    style = Style(interactive, redact, tuple(options))
    write(target, rendered(subjects, "md" if kind == ReportFormat.markdown else "html", style))
    raise typer.Exit(2 if complain(unread) else 0)


def _usual_report(runs: Sequence[Path], suffix: str) -> Path:
    """Beside the run, or in the folder that the runs are in."""
    if len(runs) == 1 and not runs[0].is_dir():
        return runs[0].with_suffix(suffix)
    return (runs[0] if runs[0].is_dir() else runs[0].parent) / f"post-mortem{suffix}"

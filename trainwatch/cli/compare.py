"""`trainwatch compare`: what differs between runs, or between scripts, and since when."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainwatch.cli.options import Map
from trainwatch.cli.output import document_kind, json_text, write
from trainwatch.cli.runs import each_run
from trainwatch.errors import UserError

if TYPE_CHECKING:
    from trainwatch.judge import Judged


class CompareFormat(StrEnum):
    """What ``compare`` prints."""

    text = "text"
    json = "json"
    markdown = "markdown"


FILES = ("html", "markdown", "json")
"""What ``--output`` takes."""


class Align(StrEnum):
    """What ``compare`` lays curves along."""

    step = "step"
    epoch = "epoch"
    samples = "samples"
    tokens = "tokens"
    time = "time"
    stage = "stage"


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Two or more: runs, scripts, notebooks, configs; the first leads."),
    ],
    align: Annotated[
        Align | None, typer.Option("--align", help="What curves are laid along, step unless told.")
    ] = None,
    format_: Annotated[
        CompareFormat | None, typer.Option("--format", help="How to print it, text unless told; or what -o holds.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it as an .html page, or as .md or .json, instead.")
    ] = None,
    map_: Map = None,
) -> None:
    """Say what differs between runs, since which step beyond the noise of seeds, and which setting did it.

    Runs that differ in nothing but the seed tell of the noise, and stand as mean and spread. Python files, notebooks
    and configs are read as they are, and never run: which settings have other values, and where. A run beside them
    stands there with the config that it recorded.

    \b
    Examples:    trainwatch compare logs/good.jsonl logs/bad.jsonl
                 trainwatch compare logs/*.jsonl --align tokens -o compared.html
                 trainwatch compare train.py train.ipynb
                 trainwatch compare train.py logs/exp1.jsonl
    Exit codes:  0 compared, 2 something could not be read or written
    """
    from trainwatch.text.wording import strict

    if len(runs) == 1 and runs[0].is_dir():
        raise UserError(f"{runs[0]}: is a folder; name the runs in it, as in {runs[0]}/*.jsonl.")
    if len(runs) < 2:
        raise UserError("compare needs at least two runs; `trainwatch check RUN` judges one.")
    if output and realpath(output) in map(realpath, runs):
        raise UserError(f"{output}: is one of those that are compared; choose another file with -o.")
    asked = format_.value if format_ else None
    kind = document_kind(output, asked, FILES, "a comparison") if output else asked or "text"
    said, text = _compared(runs, align.value if align else None, kind, map_)
    if kind == "json":
        text = json_text(strict({"version": 1, **said}))
    if output:
        write(output, text)
    else:
        print(text, end="")


def _compared(
    paths: Sequence[Path], align: str | None, kind: str, mapped: list[str] | None
) -> tuple[dict[str, Any], str]:
    """Files or runs against each other; one script or config makes the comparison one of settings."""
    written = [path for path in paths if _written(path)]
    if not written:
        return _compared_runs(paths, align or Align.step, kind, mapped)
    if align:
        raise UserError(f"{written[0]}: is no run, and settings have no {align} to lay them along; drop --align.")
    if mapped and len(written) == len(paths):
        raise UserError(f"{written[0]}: is no run, nor is any beside it, so there is no name to map; drop --map.")
    return _compared_files(paths, kind, mapped)


def _written(path: Path) -> bool:
    """Whether this is a script, a notebook or a config, by its name; JSON that a reader knows is a run."""
    from trainwatch import readers
    from trainwatch.lint import SOURCES

    suffix = path.suffix.lower()
    return suffix in SOURCES and not (suffix == ".json" and readers.stands_for_run(path))


def _compared_files(paths: Sequence[Path], kind: str, mapped: list[str] | None) -> tuple[dict[str, Any], str]:
    """Configs, scripts, notebooks, and what runs recorded, against each other, as data and as text of that kind."""
    from trainwatch import judge
    from trainwatch.compare.written import compare_files
    from trainwatch.lint.tree import LintError
    from trainwatch.text import sources, terminal

    named = _named_once(paths)
    runs = {path: each_run([path], judge.settings(), mapped)[0].run for path in named if not _written(path)}
    try:
        said = compare_files([runs.get(path, path) for path in named])
    except LintError as error:
        raise UserError(str(error)) from None
    if kind == "html":
        from trainwatch.report.side_by_side import of_files

        return {}, of_files(said)
    if kind == "text":
        sources.show(terminal.console(), said)
    data = {"verdict": sources.verdict(said), **said.to_dict()}
    return data, sources.as_markdown(said) if kind == "markdown" else ""


def _compared_runs(
    paths: Sequence[Path], align: str, kind: str, mapped: list[str] | None
) -> tuple[dict[str, Any], str]:
    """Runs against each other, as data and as text of that kind."""
    from trainwatch import compare as comparison
    from trainwatch import judge
    from trainwatch.text import comparison as faces
    from trainwatch.text import partings, terminal

    judged = _distinct(each_run(paths, judge.settings(), mapped))
    said = comparison.compare([(item.run, item.diagnosis) for item in judged], align)
    if kind == "html":
        from trainwatch.report.side_by_side import of_runs

        return {}, of_runs(said, [item.run for item in judged])
    if kind == "text":
        faces.show(terminal.console(), said)
    data = said.to_dict()
    data["verdict"] = {"sentence": partings.verdict(said), **data["verdict"]}
    return data, faces.as_markdown(said) if kind == "markdown" else ""


def _named_once(paths: Sequence[Path]) -> list[Path]:
    """Each file once, in this order."""
    once: dict[str, Path] = {}
    for path in paths:
        once.setdefault(realpath(path), path)
    if len(once) < 2:
        raise _alone(paths[0])
    return list(once.values())


def _distinct(judged: list[Judged]) -> list[Judged]:
    """Each run once: a pattern such as ``logs/*.jsonl`` names the leader again."""
    once = {item.run.source.resolve(): item for item in reversed(judged)}
    found = [item for item in judged if once[item.run.source.resolve()] is item]
    if len(found) < 2:
        raise _alone(judged[0].run.source)
    return found


def _alone(path: Path) -> UserError:
    return UserError(f"{path}: is all that was given, more than once; name another beside it.")

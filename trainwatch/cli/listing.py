"""`trainwatch list`: every run below a folder, with its state."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainwatch.cli.options import Map
from trainwatch.cli.output import complain
from trainwatch.cli.runs import judge_paths, usual_folder
from trainwatch.errors import UserError


def list_runs(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Default: logs/, else this folder.")] = None,
    map_: Map = None,
) -> None:
    """Show every run below a folder: state, steps, loss, worst finding, age.

    \b
    Example:     trainwatch list logs
    Exit codes:  0 runs are shown, 2 there are none or some could not be read
    """
    from trainwatch import judge
    from trainwatch.text import tables, terminal

    folder = folder or usual_folder()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; `trainwatch check {folder}` judges it, `list` takes a folder.")
    judged, unread = judge_paths([folder], judge.settings(), map_)
    if judged:
        tables.runs(terminal.console(), [(item.run, item.diagnosis) for item in judged])
    raise typer.Exit(2 if complain(unread) else 0)

"""`trainwatch demo`: train with a mistake in it, and see it found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    healthy: Annotated[bool, typer.Option("--healthy", help="Train the same without the mistake.")] = False,
    port: Annotated[int, typer.Option(help="Port of the dashboard on this machine.", min=0, max=65535)] = 8050,
    logs: Annotated[Path, typer.Option(help="Folder for the run file and the post-mortem.")] = Path("logs"),
    dashboard: Annotated[bool, typer.Option("--dash/--no-dash", help="Serve the dashboard meanwhile.")] = True,
) -> None:
    """Train a small peptide model with a published mistake in it, watch it fail, and read why.

    \b
    Example:     trainwatch demo
    Exit codes:  0 it showed what it should, 1 it did not, 2 it could not run, 130 Ctrl-C
    """
    from trainwatch.demo import play

    raise typer.Exit(play(logs, healthy=healthy, port=port, dashboard=dashboard))

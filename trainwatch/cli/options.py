"""What several commands are asked with: formats, severities, thresholds, names, runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

CODES = (
    "Exit codes: 0 nothing at or above --fail-on, 1 something is, 2 some path could not be judged (stderr says why)."
)


class Format(StrEnum):
    """What ``check`` prints."""

    text = "text"
    json = "json"
    markdown = "markdown"
    sarif = "sarif"


class FailOn(StrEnum):
    """The severity from which ``check`` exits with 1."""

    info = "info"
    warning = "warning"
    critical = "critical"
    never = "never"


Set = Annotated[list[str] | None, typer.Option("--set", metavar="RULE.FIELD=VALUE", help="Change a rule's threshold.")]


Map = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="CHANNEL=NAME", help="Say what a name in a log means: val=dev_loss, none=foo."),
]


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run file.")]

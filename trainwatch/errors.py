"""What went wrong, in one sentence that names the thing and the remedy."""

from __future__ import annotations

import re
from typing import Any

import typer

from trainwatch.engine import SettingsError, nearest
from trainwatch.foreign.mapping import MappingError
from trainwatch.readers import ReadError

EXTRA = {"dash", "dash_ag_grid", "dash_mantine_components", "dashboards", "jinja2", "plotly", "tsdownsample"}
USAGE = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")  # typer vendors click


class UserError(Exception):
    """Something the user asked for cannot be done; the text is one sentence, the exit code 2."""


def sentence(error: Exception) -> str:
    """The sentence for anything that a command may raise."""
    if isinstance(error, UserError | SettingsError | MappingError | ReadError):
        return str(error)
    if isinstance(error, USAGE):
        return _usage(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in EXTRA:
        return f"this needs {error.name}, which is not installed; run `pip install -e '.[dash]'` in the checkout."
    return f"trainwatch itself broke ({type(error).__name__}: {error}); please report this with the command you ran."


def _usage(error: Any) -> str:
    """Wrong usage, with the nearest name."""
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context else "trainwatch"
    message = str(error.format_message()).split("(Possible")[0].replace("Value error, ", "").strip().rstrip(".?")
    near = ""
    if getattr(error, "possibilities", None):
        near = f"; did you mean {error.possibilities[0]}?"
    elif found := re.match(r"No such command '(.*?)'", message):
        known = list(getattr(context.command, "commands", ())) if context else []
        message, near = found.group(0), nearest(found.group(1), known)
    return f"{message}{near or f'; `{path} --help` has an example.'}"

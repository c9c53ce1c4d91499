"""The command line: parse, call, print. Every other module does its work without it; here a command is a file."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import typer

from trainwatch.cli.check import check
from trainwatch.cli.compare import compare
from trainwatch.cli.dash import dash
from trainwatch.cli.demo import demo
from trainwatch.cli.export import export
from trainwatch.cli.lint import LintCommand, lint
from trainwatch.cli.listing import list_runs
from trainwatch.cli.options import CODES
from trainwatch.cli.output import complain
from trainwatch.cli.prescribe import prescribe
from trainwatch.cli.report import report
from trainwatch.cli.rules import rules
from trainwatch.cli.watch import watch
from trainwatch.errors import sentence

app = typer.Typer(
    name="trainwatch",
    help="What is wrong with a training run, since which step, why, and what cures it.",
    epilog="`trainwatch COMMAND --help` has an example of each. Try `trainwatch demo` first.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(short_help="Train with a mistake in it, and see it found.")(demo)
app.command("list", short_help="Every run below a folder, with its state.")(list_runs)
app.command(epilog=CODES, short_help="Follow a run live in the terminal.")(watch)
app.command(epilog=CODES, short_help="Diagnose runs: root cause, evidence, cure.")(check)
app.command(short_help="What differs between runs, or between scripts, and since when.")(compare)
app.command(cls=LintCommand, epilog=CODES, short_help="What is wrong with a config or a command, before it runs.")(lint)
app.command(short_help="Write the post-mortem as HTML or Markdown.")(report)
app.command(short_help="The cure as a config patch; --try proves it.")(prescribe)
app.command(short_help="Write a run as Parquet, CSV or for TensorBoard.")(export)
app.command(short_help="Serve the dashboard on this machine.")(dash)
app.command(short_help="The catalogue of rules, or one rule's page.")(rules)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; whatever goes wrong is one sentence on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal gets a question mark, not a traceback
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = typer.main.get_command(app).main(given or ["--help"], "trainwatch", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush complains
        return 141
    except Exception as error:
        complain([sentence(error)])
        return 2

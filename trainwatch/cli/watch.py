"""`trainwatch watch`: follow a run live in the terminal, and tell others of it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainwatch.cli.options import FailOn, Map, Set
from trainwatch.cli.output import complain, fails
from trainwatch.cli.runs import usual_folder
from trainwatch.errors import UserError

if TYPE_CHECKING:
    from trainwatch.alerts.channels import Channel
    from trainwatch.watch.board import Listener


class StopOnSeverity(StrEnum):
    """The severity from which ``watch`` asks a run to stop."""

    warning = "warning"
    critical = "critical"


def watch(
    target: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN|DIR]", help="A run file, or a folder of them. Default: logs/, else this folder."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print what there is now, and end.")] = False,
    notify: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Tell a service, by its apprise URL: findings from warning on, and the end."),
    ] = None,
    exec_: Annotated[
        list[str] | None,
        typer.Option("--exec", metavar="CMD", help="Run a command for the same, with JSON on its stdin; no shell."),
    ] = None,
    stop_on: Annotated[
        StopOnSeverity | None,
        typer.Option(help="Ask the run to stop when it shows a finding as grave: writes RUN.stop beside it."),
    ] = None,
    fail_on: Annotated[FailOn, typer.Option(help="Exit with 1 from this severity on.")] = FailOn.warning,
    set_: Set = None,
    map_: Map = None,
) -> None:
    """Follow a run while it trains: verdict, findings, loss components, gradient, evaluations, and how long it takes.

    It waits for a run that is not there yet, and ends with its diagnosis when the run is over. A folder is shown as a
    table of its runs, until q or Ctrl-C (130). In a pipe: one line for each new finding and each change of state.

    With --notify and --exec each finding is told once when it begins, when it grows and when it is over, and so is the
    end of a run with its root cause; three times a minute at most, what waits goes together. What was told stays told
    for the next watch of the run, so --once may run in a cron job. A folder's runs that were over before are no news.

    \b
    Keys:        q ends; up, down (k, j) scroll or choose; Enter opens a run, Esc goes back
    Examples:    trainwatch watch logs/exp1.jsonl
                 trainwatch watch logs --notify slack://TOKEN_A/TOKEN_B/TOKEN_C
                 trainwatch watch logs/exp1.jsonl --exec 'python page_me.py' --stop-on critical
                 trainwatch watch slurm-1234.out --once
    """
    from trainwatch import judge
    from trainwatch.foreign import channels, mapping
    from trainwatch.judge import Judged
    from trainwatch.text import terminal, wording
    from trainwatch.watch import loop

    target, chosen = target or usual_folder(), judge.settings(set_ or ())
    listeners = _listeners(target, [*(notify or ())], [*(exec_ or ())], stop_on)
    with channels.told(mapping.places(map_ or ())):
        files = loop.watch(target, terminal.console(), chosen, once=once, listeners=listeners)
    judged = [Judged(file.run, file.diagnosis) for file in files if file.run and file.diagnosis]
    unread = [file.error for file in files if file.error]
    unread += [] if files else [f"{target}: holds no run file yet; name the folder that a training writes into."]
    broken = complain([*unread, *(wording.broke(item.diagnosis) for item in judged if item.diagnosis.failed)])
    raise typer.Exit(2 if broken or not judged else int(fails(judged, fail_on)))


def _listeners(target: Path, urls: list[str], commands: list[str], stop_on: StopOnSeverity | None) -> list[Listener]:
    """Who is told of the watched runs. Raises UserError for what cannot be: before the watching begins."""
    from trainwatch.alerts.channels import Command, Notification
    from trainwatch.alerts.receivers import Receivers
    from trainwatch.alerts.stopping import StopOn

    if stop_on and target.is_dir():
        raise UserError(f"--stop-on takes one run, and {target} is a folder; name the run's file.")
    channels: list[Channel] = [*map(Notification, urls), *map(Command, commands)]
    told: list[Listener] = [Receivers(channels, quiet=target.is_dir())] if channels else []
    return told + ([StopOn(stop_on.value)] if stop_on else [])

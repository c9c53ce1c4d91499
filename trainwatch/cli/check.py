"""`trainwatch check`: diagnose runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainwatch.cli.options import FailOn, Format, Map, Set
from trainwatch.cli.output import complain, fails, print_json, summaries
from trainwatch.cli.runs import judge_paths

if TYPE_CHECKING:
    from trainwatch.judge import Judged


def check(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Run files, or folders of them.")],
    format_: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.text,
    fail_on: Annotated[FailOn, typer.Option(help="Exit with 1 from this severity on.")] = FailOn.warning,
    set_: Set = None,
    explain_channels: Annotated[
        bool, typer.Option("--explain-channels", help="Say what each name in a log was taken for.")
    ] = False,
    map_: Map = None,
) -> None:
    """Diagnose runs: the root cause first, the evidence under it, and the config patch that cures it.

    Thresholds and `off = [rules]` are also taken from [tool.trainwatch] in the nearest pyproject.toml.

    \b
    Examples:    trainwatch check logs/exp1.jsonl
                 trainwatch check logs --format json | jq '.runs[].root_cause.rule'
                 trainwatch check slurm-1234.out --explain-channels
                 trainwatch check slurm-1234.out --map val=dev_loss --map loss/kl=reg
                 trainwatch check a.jsonl --set aggressive-ramp.growth=5 --fail-on critical
    """
    from trainwatch import judge
    from trainwatch.text import wording

    judged, unread = judge_paths(paths, judge.settings(set_ or ()), map_)
    _print_check(format_, judged, unread)
    if explain_channels:
        _explain(judged)
    broken = complain([*unread, *(wording.broke(item.diagnosis) for item in judged if item.diagnosis.failed)])
    raise typer.Exit(2 if broken else int(fails(judged, fail_on)))


def _print_check(format_: Format, judged: list[Judged], unread: list[str]) -> None:
    from trainwatch.text import markdown, sarif, terminal, wording

    if format_ is Format.json:
        print_json(wording.strict({"version": 1, "runs": [item.diagnosis.to_dict() for item in judged]}))
    elif format_ is Format.sarif:
        print_json(wording.strict(sarif.document([item.diagnosis for item in judged], unread, summaries())))
    elif format_ is Format.markdown:
        print("\n".join(markdown.diagnosis(item.diagnosis, item.run.header.total_steps) for item in judged), end="")
    else:
        terminal.show_all(terminal.console(), [(item.diagnosis, item.run.header.total_steps) for item in judged])


def _explain(judged: list[Judged]) -> None:
    """What the names of each log were taken for; on stderr, so that a report in JSON stays one."""
    from trainwatch.text.wording import clean

    for item in judged:
        print(f"{clean(item.run.name)}: read as {item.run.format}", file=sys.stderr)
        for name, channel in item.run.named.items():
            print(f"  {clean(name)} -> {clean(channel)}", file=sys.stderr)

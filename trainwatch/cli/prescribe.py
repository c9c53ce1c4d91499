"""`trainwatch prescribe`: the cure as a config patch, and the proof."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainwatch.cli.options import Map, RunPath, Set
from trainwatch.cli.output import complain, print_json, write
from trainwatch.cli.runs import each_run
from trainwatch.errors import UserError

if TYPE_CHECKING:
    from trainwatch.engine import Settings
    from trainwatch.judge import Judged
    from trainwatch.trial import Trial


class PrescribeFormat(StrEnum):
    """What ``prescribe`` prints."""

    text = "text"
    json = "json"


def prescribe(
    run: RunPath,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .yaml file instead of the standard output.")
    ] = None,
    try_: Annotated[
        bool, typer.Option("--try", help="Train on from the last good checkpoint, as it was and cured.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="With --try: so many steps from there.", min=1)] = None,
    format_: Annotated[PrescribeFormat, typer.Option("--format", help="How to print it.")] = PrescribeFormat.text,
    set_: Set = None,
    map_: Map = None,
) -> None:
    """Write the diagnosis' cure as a YAML config patch: each line says which finding it answers, and what was there.

    --try forks the run from its last checkpoint before the first bad step, or from the start: once as it was, once
    cured; and reports both side by side. It needs a run of `python -m trainer`, and its checkpoints where they were.

    \b
    Examples:    trainwatch prescribe logs/exp1.jsonl -o patch.yaml
                 python -m trainer --config exp1.yaml --config patch.yaml --resume before:1000
                 trainwatch prescribe logs/exp1.jsonl --try --steps 200
    Exit codes:  0 the cure is written (with --try: and holds), or nothing is wrong; 1 no cure is known for the root
                 cause, or it does not hold; 2 the run could not be read, the file not written, or nothing tried
    """
    from trainwatch import judge
    from trainwatch.text import patch, wording

    if steps is not None and not try_:
        raise UserError("--steps says how far --try trains; write both, or neither.")
    if output and output.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"{output}: a patch ends in .yaml or .yml; rename it, or print the JSON with --format json.")
    chosen = judge.settings(set_ or ())
    [item] = each_run([run], chosen, map_)
    if output:
        write(output, patch.document(item.run, item.diagnosis), sys.stderr)
    trial = _try(item, steps, chosen) if try_ and item.diagnosis.prescription.changes else None
    _print_prescription(item, trial, format_, shown=output is None)
    broken = complain([wording.broke(item.diagnosis)] if item.diagnosis.failed else [])
    left = not trial.holds if trial else item.diagnosis.root_cause in item.diagnosis.prescription.uncured
    raise typer.Exit(2 if broken else int(left))


def _try(item: Judged, steps: int | None, chosen: Settings) -> Trial:
    from trainwatch import trial
    from trainwatch.text import terminal

    fork = trial.plan(item.run, item.diagnosis, steps)
    return trial.attempt(item.run, item.diagnosis, fork, chosen, terminal.console(sys.stderr))


def _print_prescription(item: Judged, trial: Trial | None, format_: PrescribeFormat, *, shown: bool) -> None:
    """The patch, unless it went to a file, and below it the trial."""
    from trainwatch.compare import compare as compared
    from trainwatch.text import comparison, patch, terminal, wording

    if format_ is PrescribeFormat.json:
        tried = {"trial": trial.to_dict()} if trial else {}
        print_json(wording.strict({**patch.as_data(item.run, item.diagnosis), **tried}))
        return
    if shown:
        print(patch.document(item.run, item.diagnosis), end="")
    if trial:
        comparison.trial(terminal.console(), trial.verdict, compared(trial.runs))

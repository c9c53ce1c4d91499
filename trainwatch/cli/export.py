"""`trainwatch export`: a run for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainwatch.cli.options import Map, RunPath
from trainwatch.cli.runs import each_run
from trainwatch.errors import UserError


def export(
    run: RunPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .parquet or .csv file; without a suffix a folder for TensorBoard.")
    ],
    map_: Map = None,
) -> None:
    """Write a run for other tools: one table as Parquet or CSV, or a folder that TensorBoard opens.

    \b
    Examples:    trainwatch export logs/exp1.jsonl -o exp1.parquet
                 trainwatch export logs/exp1.jsonl -o events && tensorboard --logdir events
    Exit codes:  0 written, 2 the run could not be read or the file not written
    """
    from trainwatch import export as exporting
    from trainwatch import judge

    if output.suffix not in exporting.SUFFIXES:
        raise UserError(f"{output}: exports end in .parquet or .csv, or in nothing for TensorBoard; rename it.")
    [item] = each_run([run], judge.settings(), map_)
    try:
        exporting.write(item.run, output)
    except ModuleNotFoundError as error:
        raise UserError(f"{output}: needs {error.name}; `pip install {error.name}` brings it.") from None
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror or error}); choose another place with -o."
        ) from None
    print(f"Wrote {output}")

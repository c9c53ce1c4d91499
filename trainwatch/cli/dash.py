"""`trainwatch dash`: the dashboard."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from trainwatch.cli.options import Map
from trainwatch.cli.runs import usual_folder
from trainwatch.errors import UserError


def dash(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Default: logs/, else this folder.")] = None,
    port: Annotated[int, typer.Option(help="Port on this machine.", min=0, max=65535)] = 8050,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine with a token.")] = "127.0.0.1",
    open_: Annotated[bool, typer.Option("--open", help="Open a browser on it.")] = False,
    map_: Map = None,
) -> None:
    """Serve the dashboard of a folder of runs on this machine, until Ctrl-C.

    Any other address than loopback, such as --host 0.0.0.0, asks for a token: the link that is printed has it.
    TRAINWATCH_TOKEN chooses it.

    \b
    Example:     trainwatch dash logs --open
    Exit codes:  2 it could not be served, 130 stopped with Ctrl-C
    """
    from trainwatch import judge
    from trainwatch.foreign import channels, mapping

    folder = folder or usual_folder()
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the folder of your run files.")
    dashboard = importlib.import_module("dashboards.app")
    try:
        with channels.told(mapping.places(map_ or ())):
            dashboard.serve(folder, port=port, host=host, open_browser=open_, settings=judge.settings())
    except dashboard.ServeError as error:
        raise UserError(str(error)) from None

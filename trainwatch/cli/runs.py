"""The runs that a user names, judged; a sentence on what could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainwatch.errors import UserError

if TYPE_CHECKING:
    from trainwatch.engine import Settings
    from trainwatch.judge import Judged


def judge_paths(paths: Sequence[Path], chosen: Settings, mapped: list[str] | None) -> tuple[list[Judged], list[str]]:
    """Every run in ``paths``, and what could not be read; ``mapped`` names mean what the user says."""
    from trainwatch import judge
    from trainwatch.foreign import channels, mapping
    from trainwatch.text import terminal

    places = mapping.places(mapped or ())
    with channels.told(places):
        judged, unread = judge.judge_all(terminal.progress(list(judge.run_files(paths))), chosen)
    if judged:
        mapping.require(places, (name for item in judged for name in item.run.named))
    return judged, unread


def each_run(paths: Sequence[Path], chosen: Settings, mapped: list[str] | None = None) -> list[Judged]:
    """The newest run of each file."""
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name one run file in it.")
    judged, unread = judge_paths(paths, chosen, mapped)
    if unread:
        raise UserError(unread[0])
    return list({item.run.source.absolute(): item for item in judged}.values())


def usual_folder() -> Path:
    return Path("logs") if Path("logs").is_dir() else Path()

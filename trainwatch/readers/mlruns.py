"""MLflow's folders, ``mlruns/<experiment>/<run>``: a file for each metric, and meta.yaml for the run itself."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from trainwatch.foreign.assembly import About
from trainwatch.foreign.counters import LIMIT
from trainwatch.foreign.numbers import as_number
from trainwatch.foreign.points import Point
from trainwatch.foreign.seriesfolder import SeriesFolder
from trainwatch.foreign.settings import read_settings

NAME = "MLflow folder"

ENDS = {3: "finished", 4: "failed", 5: "stopped"}  # what MLflow's numbers of a status mean
LONGEST = 8000  # characters of a parameter, as MLflow itself allows


def sniff(path: Path, head: bytes) -> bool:
    """The meta.yaml of a run, with its metrics beside it."""
    named = path.name == "meta.yaml" and re.search(rb"^run_(?:id|uuid):", head, re.MULTILINE) is not None
    return named and (path.parent / "metrics").is_dir()


def _point(name: str, line: str) -> Point | None:
    """``1700000000000 0.5 10``: milliseconds, value, step."""
    cells = line.split()
    if len(cells) != 3 or not re.fullmatch(r"-?\d{1,19}", cells[2]) or abs(int(cells[2])) >= LIMIT:
        return None
    time, value = as_number(cells[0]), as_number(cells[1])
    return None if time is None or value is None else Point(int(cells[2]), name, value, time)


def _about(path: Path) -> About:
    said = read_settings(path)
    params = sorted(file for file in (path.parent / "params").glob("*") if file.is_file())
    status = said.get("status")
    return About(
        str(said.get("run_name") or said.get("name") or path.absolute().parent.name),
        {file.name: _setting(file) for file in params},
        {"kind": "end", "status": ENDS[status], "reason": f"status {status}"}
        if isinstance(status, int) and status in ENDS
        else None,
    )


def open_file(path: Path) -> SeriesFolder:
    """The run whose meta.yaml is at ``path``, nothing read yet."""
    folder = SeriesFolder(path, NAME, path.parent / "metrics", "*", _point, partial(_about, path))
    folder.tells_end = True
    return folder


def _setting(file: Path) -> object:
    with file.open(encoding="utf-8", errors="replace") as opened:
        text = opened.read(LONGEST)
    number = as_number(text)
    return text if number is None else int(text) if re.fullmatch(r"-?\d+", text) else number

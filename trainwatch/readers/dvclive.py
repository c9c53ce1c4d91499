"""DVCLive's folder: ``plots/metrics/<name>.tsv`` for each metric, params.yaml for the settings."""

from __future__ import annotations

from pathlib import Path

from trainwatch.foreign.assembly import About
from trainwatch.foreign.counters import LIMIT
from trainwatch.foreign.layout import dvclive
from trainwatch.foreign.numbers import as_number
from trainwatch.foreign.points import Point
from trainwatch.foreign.seriesfolder import SeriesFolder
from trainwatch.foreign.settings import read_settings

NAME = "DVCLive folder"


def sniff(path: Path, head: bytes) -> bool:
    """A metric of the folder, with the step before the value; or the summary of them all."""
    return dvclive(path) is not None and (head.startswith((b"step\t", b"timestamp\tstep\t")) or path.suffix == ".json")


def leads(path: Path) -> bool:
    """Whether the file stands for the run: the summary does, else the first of the metrics."""
    folder = dvclive(path) or path.parent
    summary = folder / "metrics.json"
    metrics = (folder / "plots" / "metrics").rglob("*.tsv")
    return path.absolute() == (summary if summary.is_file() else min(metrics, default=path))


def _point(name: str, line: str) -> Point | None:
    """``10<TAB>0.5``; a time may stand before it."""
    cells = line.rstrip("\r").split("\t")[-2:]
    step, value = (as_number(cell) for cell in cells) if len(cells) == 2 else (None, None)
    whole = step is not None and step == step // 1 and abs(step) < LIMIT
    return Point(int(step), name, value) if whole and step is not None and value is not None else None


def open_file(path: Path) -> SeriesFolder:
    """The folder that the file at ``path`` lies in, nothing read yet."""
    inside = dvclive(path) or path.absolute().parent
    name = inside.parent.name if inside.name == "dvclive" else inside.name

    def about() -> About:
        return About(name, read_settings(inside / "params.yaml"))

    return SeriesFolder(path, NAME, inside / "plots" / "metrics", "*.tsv", _point, about)

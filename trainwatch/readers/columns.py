"""Columns of text: CSV and TSV with a header, and the files of numbers that physics codes write.

Keras' CSVLogger, Ultralytics' results.csv (padded headers), Lightning's metrics.csv (sparse rows), progress.csv of RL
baselines, exports of W&B (a column a run, with its minimum and maximum) and of TensorBoard (a file a tag), NequIP,
DeePMD (``# step rmse_val ...``) and DeepXDE, and files of two columns without any header: a step and a loss.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.channels import recognise
from trainwatch.foreign.counters import Row
from trainwatch.foreign.following import GrowingText
from trainwatch.foreign.layout import EPISODES, EXPORT, NUMBER, SHORT, Layout, dotted, dvclive, games_in
from trainwatch.foreign.settings import read_settings
from trainwatch.run import Event

NAME = "columns (CSV, TSV)"

DOWNLOADED = ["Wall time", "Step", "Value"]
"""The columns of a CSV that TensorBoard offers; what the value is stands in the file's name alone."""
TAG = re.compile(r"(?:^|-)tag-(?P<tag>.+)|^(?P<loss>.*loss(?:es)?)$", re.IGNORECASE)
LOSSES = re.compile(r"(?i)loss(?:es)?$")
MERGED = re.compile(r"([<=>])\1{6}")
"""What git leaves before, between and behind the two sides of a conflict."""
EPISODE_LENGTH = "episode_length"


def sniff(path: Path, head: bytes) -> bool:
    """A header of names with a counter or a loss over rows of as many numbers; or rows of numbers that count up."""
    lossy = bool(path.suffix and LOSSES.search(path.stem))  # without one it is MLflow's
    return Layout.seen(head, lossy=lossy) is not None and dvclive(path) is None


@dataclass
class Table:
    """Lines in, rows out; ``tag`` is what the file's name says that its values are."""

    tag: str = ""
    broken: int = 0
    merged: bool = False
    played: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    layout: Layout | None = None
    columns: list[str] = field(default_factory=list)

    def items(self, lines: list[str]) -> Iterator[Row | Event]:
        """What the lines say."""
        lines = [line.rstrip("\r").lstrip("\ufeff") for line in lines]
        if self.layout is None:
            lines = [line for line in lines if line.strip()]
            lossy = bool(LOSSES.search(self.tag))
            self.layout = Layout.of(lines, lossy=lossy)
            if self.layout is None:
                return
            lines = lines[self.layout.headers :]
            downloaded = self.tag and self.layout.names == DOWNLOADED
            self.columns = ["", "Step", self.tag] if downloaded else _own_names(self.layout.names)
            if not self.layout.headers and recognise(self.tag).split:
                self.columns = [self.tag if name == "loss" else name for name in self.columns]
            if lossy and not any(recognise(name).role == "loss" for name in self.columns):
                self.columns = [f"{name} loss" if name.lower() in SHORT else name for name in self.columns]
            if self.columns[:3] == EPISODES:
                self.columns[:3] = ["episode_reward", EPISODE_LENGTH, "elapsed"]
            elif games := games_in(self.columns):
                self.columns[self.columns.index(games)] = "step"
        for line in lines:
            if line.strip() and not line.lstrip().startswith("#"):
                yield from self._row(self.layout.cells(line), self.layout)

    def _row(self, cells: list[str], layout: Layout) -> Iterator[Row]:
        if [cell.strip() for cell in cells] == layout.names:
            return  # the header again: a second process appended to the file
        if len(cells) != len(layout.names):
            conflict = bool(MERGED.match(cells[0] if cells else ""))
            self.merged |= conflict
            self.broken += not conflict
            return
        values = {}
        for name, cell in zip(self.columns, cells, strict=True):
            written = dotted(cell.strip(), layout.delimiter)
            if name and NUMBER.fullmatch(written):
                values[name] = float(re.sub(r"[dD](?=[-+\d])", "e", written))
        if EPISODE_LENGTH in values:  # an episode's steps; all of them together are the training's
            self.played += values[EPISODE_LENGTH]
            values["total_timesteps"] = self.played
        if values:
            yield Row(values, whole=True)

    def last(self, assembler: Assembler) -> None:
        """What could not be read."""
        if self.merged and assembler.runs:
            assembler.note("holds the marks of a merge that was not resolved: the rows of both sides are read")
        if self.broken and assembler.runs:
            assembler.note(f"skipped {self.broken:,} line{'s' * (self.broken > 1)} with another number of cells")


def _own_names(names: list[str]) -> list[str]:
    """Columns of an export without their run's name, which all of them share; "" for the bounds beside a value."""
    exported = {name: EXPORT.fullmatch(name) for name in names}
    runs = {found["run"] for found in exported.values() if found}
    others = [name for name, found in exported.items() if found is None]
    if len(runs) != 1 or any(recognise(name).role not in ("step", "epoch") for name in others):
        return names
    own = {name: found["name"] if found else name for name, found in exported.items()}
    return ["" if name.endswith(("__MIN", "__MAX")) else own[name] for name in names]


def open_file(path: Path) -> GrowingText:
    """The columns at ``path``, nothing read yet; Lightning leaves the run's config beside its metrics.csv."""
    settings = path.with_name("hparams.yaml") if path.name == "metrics.csv" else None
    tag = TAG.search(path.stem)
    table = partial(Table, tag=(tag["tag"] or tag["loss"]) if tag else "")
    return GrowingText(path, NAME, table, read_settings(settings) if settings else {})

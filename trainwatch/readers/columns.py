"""Columns of text: CSV and TSV with a header, and the files of numbers that physics codes write.

Keras' CSVLogger, Ultralytics' results.csv (padded headers), Lightning's metrics.csv (sparse rows), progress.csv of RL
baselines, exports of W&B (a column a run, with its minimum and maximum), NequIP, DeePMD (``# step rmse_val ...``) and
DeepXDE, and files of two columns without any header: a step and a loss.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.channels import recognise
from trainwatch.foreign.counters import Row
from trainwatch.foreign.following import GrowingText
from trainwatch.run import Event

NAME = "columns (CSV, TSV)"

NUMBER = re.compile(r"\s*[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d+)?|(?i:nan|inf|infinity))\s*")
EMPTY = {"", "-", "none", "null", "na", "n/a"}
EXPORT = re.compile(r"(?P<run>.+) - (?P<name>[^-]+?)(?:__(?:MIN|MAX))?")


def sniff(path: Path, head: bytes) -> bool:  # noqa: ARG001  (by content)
    """A header of names with a counter or a loss over rows of as many numbers; or rows of numbers that count up."""
    if b"\0" in head:
        return False
    lines = [line for line in head.decode(errors="replace").lstrip("\ufeff").splitlines()[:60] if line.strip()]
    layout = Layout.of(lines)
    if layout is None or len(lines) <= layout.headers:
        return False
    rows = [layout.cells(line) for line in lines[layout.headers : layout.headers + 20]]
    fitting = sum(len(row) == len(layout.names) for row in rows)
    if fitting * 2 < len(rows):
        return False
    filled = [cell for row in rows for cell in row if cell.strip().lower() not in EMPTY]
    numbers = sum(bool(NUMBER.fullmatch(_dotted(cell, layout.delimiter))) for cell in filled)
    return bool(filled) and numbers * 2 > len(filled)


@dataclass
class Layout:
    """How a file is laid out: its delimiter (``None`` is white space), its names, and the lines of its header."""

    delimiter: str | None
    names: list[str]
    headers: int

    @classmethod
    def of(cls, lines: list[str]) -> Layout | None:
        """The layout that the first lines show, None if they are no columns."""
        if not lines:
            return None
        comments = [line for line in lines if line.lstrip().startswith("#")]
        head = lines[0].strip()
        if head.startswith("#"):
            described = [line for line in comments if len(_split(line.lstrip("# "), _delimiter(line))) > 1]
            head = described[0].lstrip("# ") if described else ""
            rows = lines[len(comments) : len(comments) + 1]
            layout = cls._named(head, len(comments), rows) if head else None
            if layout is not None and rows:
                layout.names = layout.names[: len(layout.cells(rows[0]))]  # DeepXDE names metrics where it has none
            return layout
        if all(NUMBER.fullmatch(cell) for cell in _split(head, _delimiter(head))):
            return cls._counted(lines)
        return cls._named(head, 1, lines[:1])

    @classmethod
    def _named(cls, head: str, headers: int, rows: list[str]) -> Layout | None:
        """A header, and rows that may be parted otherwise than it."""
        names = [name.strip().strip("\"'") for name in _split(head, _delimiter(head))]
        delimiter = _delimiter((rows or [head])[0])
        while names and not names[-1]:
            names.pop()  # a delimiter stands behind every cell
        roles = {recognise(name).role for name in names}
        known = roles & {"step", "epoch", "batch", "loss"} or any(EXPORT.fullmatch(name) for name in names)
        words = all(len(name) < 200 and not re.search(r"[{}=\[\]<>]", name) for name in names)
        return cls(delimiter, names, headers) if len(names) > 1 and known and words else None

    @classmethod
    def _counted(cls, lines: list[str]) -> Layout | None:
        """Two columns of numbers, the first of which counts up."""
        delimiter = _delimiter(lines[0])
        rows = [_split(line, delimiter) for line in lines[:20]]
        first = [row[0] for row in rows if len(row) == 2 and NUMBER.fullmatch(row[0])]
        counts = [float(cell) for cell in first]
        rises = all(b > a for a, b in pairwise(counts))
        whole = all(count == int(count) for count in counts)
        fits = len(first) == len(rows) > 2 and rises and whole
        return cls(delimiter, ["step", "loss"], 0) if fits else None

    def cells(self, line: str) -> list[str]:
        """The cells of one row."""
        cells = _split(line, self.delimiter)
        return cells[:-1] if len(cells) == len(self.names) + 1 and not cells[-1].strip() else cells


def _delimiter(line: str) -> str | None:
    return next((sign for sign in ("\t", ";", ",") if sign in line), None)


def _split(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    try:
        cells = next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:  # a cell of more than 131,072 characters
        return []
    return cells


def _dotted(cell: str, delimiter: str | None) -> str:
    """Where cells are parted by semicolons, a comma is a decimal point."""
    return cell.replace(",", ".") if delimiter == ";" else cell


@dataclass
class Table:
    """Lines in, rows out."""

    broken: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    layout: Layout | None = None
    columns: list[str] = field(default_factory=list)

    def items(self, lines: list[str]) -> Iterator[Row | Event]:
        """What the lines say."""
        lines = [line.rstrip("\r").lstrip("\ufeff") for line in lines]
        if self.layout is None:
            lines = [line for line in lines if line.strip()]
            self.layout = Layout.of(lines)
            if self.layout is None:
                return
            lines = lines[self.layout.headers :]
            self.columns = _own_names(self.layout.names)
        for line in lines:
            if line.strip() and not line.lstrip().startswith("#"):
                yield from self._row(self.layout.cells(line), self.layout)

    def _row(self, cells: list[str], layout: Layout) -> Iterator[Row]:
        if [cell.strip() for cell in cells] == layout.names:
            return  # the header again: a second process appended to the file
        if len(cells) != len(layout.names):
            self.broken += 1
            return
        values = {}
        for name, cell in zip(self.columns, cells, strict=True):
            written = _dotted(cell.strip(), layout.delimiter)
            if name and NUMBER.fullmatch(written):
                values[name] = float(re.sub(r"[dD](?=[-+\d])", "e", written))
        if values:
            yield Row(values)

    def last(self, assembler: Assembler) -> None:
        """What could not be read."""
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
    """The columns at ``path``, nothing read yet."""
    return GrowingText(path, NAME, Table)

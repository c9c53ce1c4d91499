"""How a text file is laid out: as JSON objects, as columns, or as neither.

Readers leave each other's files alone by it.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

from trainwatch.foreign.channels import recognise

NUMBER = re.compile(r"\s*[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d+)?|(?i:nan|inf|infinity))\s*")
EMPTY = {"", "-", "none", "null", "na", "n/a"}
EXPORT = re.compile(r"(?P<run>.+) - (?P<name>[^-]+?)(?:__(?:MIN|MAX))?")
"""A column of W&B's export: ``run 7 - lm_loss__MAX``."""

EPISODES = ["r", "l", "t"]
"""What the Monitor of Gym and Stable Baselines heads its columns with: an episode's reward, its length, the time."""
GAMES = {"episode", "episodes", "generation", "generations"}
PAID = {"reward", "rewards", "return", "returns", "fitness"}
"""What a policy, or a population, is paid in a game; a TV series has episodes and a score."""
SHORT = {"train", "training", "val", "valid", "validation", "test", "generator", "discriminator", "g", "d"}
"""Names that columns of losses have where the file's name says what they are."""
REMARKED = re.compile(r"#\s*\{")
"""A first line of JSON behind a sign of a comment: it is about the file, and names no columns."""

OBJECT = re.compile(rb"[\s\0\xef\xbb\xbf]*\{\s*(?:[\"}]|$)")
IN_OBJECT = re.compile(rb"\s*(?:\{(?!')|[}\]\[\"]|(?:-?\d[\d.eE+-]*|NaN|-?Infinity|null|true|false),\s*$)")
"""Also a line of its own for each element of a list, as ``indent=2`` writes them."""


def is_json(head: bytes) -> bool:
    """Whether a file begins with a JSON object, and most of its lines belong to one: a log may begin with a config."""
    lines = [line for line in head.split(b"\n") if line.strip(b"\0 \r\t")]
    if not lines or not OBJECT.match(lines[0]):
        return False
    return sum(bool(IN_OBJECT.match(line)) for line in lines) * 10 >= len(lines) * 6 or len(lines) == 1


def dvclive(path: Path) -> Path | None:
    """The folder that DVCLive wrote, if the file is one of its metrics or their summary."""
    for folder in path.absolute().parents:
        if folder.name == "metrics" and folder.parent.name == "plots" and path.suffix == ".tsv":
            return folder.parent.parent
    beside = path.absolute().parent
    return beside if path.name == "metrics.json" and (beside / "plots" / "metrics").is_dir() else None


@dataclass
class Layout:
    """How a file is laid out: its delimiter (``None`` is white space), its names, and the lines of its header."""

    delimiter: str | None
    names: list[str]
    headers: int

    @classmethod
    def seen(cls, head: bytes, *, lossy: bool = False) -> Layout | None:
        """The layout of a file that begins so, None where its rows do not have it or are no numbers; ``lossy`` is one
        whose own name says that losses are in it.
        """
        lines = [line for line in head.decode(errors="replace").lstrip("\ufeff").splitlines()[:60] if line.strip()]
        layout = None if b"\0" in head else cls.of(lines, lossy=lossy)
        if layout is None or len(lines) <= layout.headers:
            return None
        rows = [layout.cells(line) for line in lines[layout.headers : layout.headers + 20]]
        fitting = sum(len(row) == len(layout.names) for row in rows)
        filled = [cell for row in rows for cell in row if cell.strip().lower() not in EMPTY]
        numbers = sum(bool(NUMBER.fullmatch(dotted(cell, layout.delimiter))) for cell in filled)
        return layout if fitting * 2 >= len(rows) and numbers * 2 > len(filled) > 0 else None

    @classmethod
    def of(cls, lines: list[str], *, lossy: bool = False) -> Layout | None:
        """The layout that the first lines show, None if they are no columns."""
        if not lines:
            return None
        comments = list(takewhile(lambda line: line.lstrip().startswith("#"), lines))
        head = lines[0].strip()
        if comments and REMARKED.match(comments[0]):
            named = lines[len(comments) : len(comments) + 2]
            return cls._named(named[0].strip(), len(comments) + 1, named[1:]) if named else None
        if head.startswith("#"):
            described = [line for line in comments if len(_split(line.lstrip("# "), _delimiter(line))) > 1]
            head = described[0].lstrip("# ") if described else ""
            rows = lines[len(comments) : len(comments) + 1]
            layout = cls._named(head, len(comments), rows) if head else None
            if layout is not None and rows:
                layout.names = layout.names[: len(layout.cells(rows[0]))]  # DeepXDE names metrics where it has none
            return layout
        if unnamed(head):
            return cls._counted(lines) or (cls._unnamed(lines) if lossy else None)
        return cls._named(head, 1, lines[1:2], lossy=lossy)

    @classmethod
    def _named(cls, head: str, headers: int, rows: list[str], *, lossy: bool = False) -> Layout | None:
        """A header, and rows that may be parted otherwise than it."""
        names = [name.strip().strip("\"'") for name in _split(head, _delimiter(head))]
        delimiter = _delimiter((rows or [head])[0])
        while names and not names[-1]:
            names.pop()  # a delimiter stands behind every cell
        roles = {recognise(name).role for name in names}
        known = roles & {"step", "epoch", "batch", "loss"} or any(EXPORT.fullmatch(name) for name in names)
        known = (
            known
            or names[:3] == EPISODES
            or bool(games_in(names))
            or (lossy and any(name.lower() in SHORT for name in names))
        )
        words = all(len(name) < 200 and not re.search(r"[{}=\[\]<>]", name) for name in names)
        return cls(delimiter, names, headers) if len(names) > 1 and known and words else None

    @classmethod
    def _counted(cls, lines: list[str]) -> Layout | None:
        """Two columns of numbers, the first of which counts up."""
        delimiter = _delimiter(lines[0])
        rows = [_split(line, delimiter) for line in lines[:20]]
        counts = [float(row[0]) for row in rows if len(row) == 2 and re.fullmatch(r"\s*\d+(?:\.0*)?\s*", row[0])]
        fits = len(counts) == len(rows) > 2 and all(b > a for a, b in pairwise(counts))
        return cls(delimiter, ["step", "loss"], 0) if fits else None

    @classmethod
    def _unnamed(cls, lines: list[str]) -> Layout | None:
        """Numbers without names in a file of losses: the loss, perhaps with its step behind it, or with more."""
        delimiter = _delimiter(lines[0])
        rows = [_split(line, delimiter) for line in lines[:20]]
        width = len(rows[0])
        if len(rows) < 3 or any(len(row) != width or not all(map(NUMBER.fullmatch, row)) for row in rows):
            return None
        second = [float(row[1]) for row in rows] if width == 2 else []
        if second and all(b > a and b == int(b) for a, b in pairwise(second)):
            return cls(delimiter, ["loss", "step"], 0)
        return cls(delimiter, ["loss", *(f"column_{index + 2}" for index in range(width - 1))], 0)

    def cells(self, line: str) -> list[str]:
        """The cells of one row."""
        cells = _split(line, self.delimiter)
        return cells[:-1] if len(cells) == len(self.names) + 1 and not cells[-1].strip() else cells


def games_in(names: list[str]) -> str:
    """The column that counts games, where something is paid for them and nothing else counts; "" if there is none."""
    if any(recognise(name).role in ("step", "epoch", "batch") for name in names):
        return ""
    paid = any(PAID & set(re.split(r"[\W_]+", name.lower())) for name in names)
    return next((name for name in names if paid and name.lower() in GAMES), "")


def unnamed(line: str) -> int:
    """How many numbers stand on a line that holds nothing else, 0 where it does."""
    cells = [cell for cell in _split(line, _delimiter(line)) if cell.strip()]
    return len(cells) if all(NUMBER.fullmatch(cell) for cell in cells) else 0


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


def dotted(cell: str, delimiter: str | None) -> str:
    """Where cells are parted by semicolons, a comma is a decimal point."""
    return cell.replace(",", ".") if delimiter == ";" else cell

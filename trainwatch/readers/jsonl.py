"""JSON lines of any trainer: one object a line, flat or nested, or objects one behind the other on many lines.

Bare ``NaN`` and ``Infinity``, which Python's json writes and strict JSON forbids, are read as what they are; so are
numbers that were written as text (``"loss": "9.5"``, ``"NaN"``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from trainwatch.channels import SPLITS, recognise
from trainwatch.following import GrowingText
from trainwatch.foreign import Assembler, Row
from trainwatch.run import Event
from trainwatch.schema import KINDS

NAME = "JSON lines"

DEEPEST = 8  # levels of nesting that are looked into
LONGEST = 4 << 20  # characters of one object that goes over many lines
SPLIT_KEYS = ("mode", "split", "phase", "stage", "subset")  # mmdetection writes {"mode": "val", ...}
DECODER = json.JSONDecoder()


def sniff(path: Path, head: bytes) -> bool:  # noqa: ARG001  (by content)
    """Its first objects have a counter or a loss, and no kind of our own format."""
    text = head.decode(errors="replace").lstrip("\ufeff \r\n\t\0")
    if not re.match(r"\{\s*[\"}]", text) or '"log_history"' in text:
        return False
    if re.match(r'\{[^\n]{0,4096}"kind"\s*:\s*"(?:' + "|".join(KINDS) + ')"', text):
        return False
    lines = Objects()
    rows = [row for row in lines.items(text.split("\n")) if isinstance(row, Row)]
    return any(_tells(row) for row in rows)


def _tells(row: Row) -> bool:
    roles = {recognise(name).role for name in row.values}
    return "loss" in roles or ("step" in roles and len(row.values) > 1) or ("epoch" in roles and len(row.values) > 2)


@dataclass
class Objects:
    """Lines in, rows out."""

    broken: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    _open: str = ""  # of an object that goes over many lines

    def items(self, lines: list[str]) -> Iterator[Row | Event]:
        """What the lines say."""
        for line in lines:
            for record in self._records(line):
                row = self._row(record)
                if row is not None:
                    yield row

    def last(self, assembler: Assembler) -> None:
        """What could not be read."""
        assembler.config |= self.config
        self.broken += bool(self._open.strip())
        if self.broken and assembler.runs:
            assembler.note(f"skipped {self.broken:,} line{'s' * (self.broken > 1)} that are no JSON objects")

    def _records(self, line: str) -> Iterator[dict[str, Any]]:
        """The objects that end on this line."""
        if not self._open:
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                record = None
            if isinstance(record, dict):
                yield record
                return
        text = f"{self._open}{line}\n".lstrip(" \t\r\n,[]\0\ufeff")
        while text.startswith("{"):
            try:
                record, end = DECODER.raw_decode(text)
            except (ValueError, RecursionError) as error:
                text = self._unfinished(text, error)
                break
            if isinstance(record, dict):
                yield record
            text = text[end:].lstrip(" \t\r\n,]")
        if text.strip() and not text.startswith("{"):
            self.broken += 1
            text = ""
        self._open = text

    def _unfinished(self, text: str, error: Exception) -> str:
        """An object that may go on below; one that is broken is passed over."""
        at_end = isinstance(error, json.JSONDecodeError) and error.pos >= len(text.rstrip()) - 1
        unclosed = "Unterminated string" in str(error) and text.count("\n") == 1
        if len(text) < LONGEST and (at_end or text.rstrip().endswith((",", "{", "["))) and not unclosed:
            return text
        self.broken += 1
        return ""

    def _row(self, record: Mapping[str, Any]) -> Row | None:
        values = dict(flattened(record))
        said = next((record[key] for key in SPLIT_KEYS if isinstance(record.get(key), str)), "")
        split = SPLITS.get(said.lower(), "")
        if not any(recognise(name).role != "measure" for name in values):
            return None if not split else Row(values, split)
        return Row(values, split)


def flattened(record: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, float]]:
    """Every number in an object under its path; a bool is no number."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and depth < DEEPEST:
            yield from flattened(value, f"{name}/", depth + 1)
        elif (number := as_number(value)) is not None:
            yield name, number


def as_number(value: Any) -> float | None:
    """A number, also one that was written as text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?(?:[\d.]+(?:[eE][-+]?\d+)?|(?i:nan|inf|infinity))\s*", value):
        try:
            return float(value)
        except ValueError:
            return None
    return None


def open_file(path: Path) -> GrowingText:
    """The lines at ``path``, nothing read yet."""
    return GrowingText(path, NAME, Objects)

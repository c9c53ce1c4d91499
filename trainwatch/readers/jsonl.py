"""JSON lines of any trainer: one object a line, flat or nested, or objects one behind the other on many lines.

Bare ``NaN`` and ``Infinity``, which Python's json writes and strict JSON forbids, are read as what they are; so are
numbers that were written as text (``"loss": "9.5"``, ``"NaN"``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.channels import SPLITS, recognise
from trainwatch.foreign.counters import Row
from trainwatch.foreign.following import GrowingText
from trainwatch.foreign.history import is_history
from trainwatch.foreign.layout import dvclive, is_json
from trainwatch.foreign.numbers import flattened
from trainwatch.run import Event
from trainwatch.schema import RECORD

NAME = "JSON lines"

LONGEST = 4 << 20  # characters of one object that goes over many lines
SPLIT_KEYS = ("mode", "split", "phase", "stage", "subset")  # mmdetection writes {"mode": "val", ...}
BLANK = " \t\r\n,[]\0\ufeff"
DECODER = json.JSONDecoder()


def sniff(path: Path, head: bytes) -> bool:
    """Its first objects have a counter or a loss, and no kind of our own format."""
    if dvclive(path) or not is_json(head) or b'"log_history"' in head or b'"best_model_checkpoint"' in head:
        return False
    if any(RECORD.match(line) for line in head.split(b"\n")[:20]) or is_history(path, head):
        return False
    lines = Objects()
    rows = [row for row in lines.items(head.decode(errors="replace").split("\n")) if isinstance(row, Row)]
    return any(_tells(row) for row in rows)


def _tells(row: Row) -> bool:
    roles = {recognise(name).role for name in row.values}
    return "loss" in roles or ("step" in roles and len(row.values) > 1) or ("epoch" in roles and len(row.values) > 2)


@dataclass
class Objects:
    """Lines in, rows out."""

    broken: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)  # the lines of an object that goes on
    _depth: int = 0  # braces that are open in them
    _size: int = 0  # characters in them

    def items(self, lines: list[str]) -> Iterator[Row | Event]:
        """What the lines say."""
        for line in lines:
            for record in self._records(line):
                row = self._row(record)
                if row is not None:
                    yield row

    def last(self, assembler: Assembler) -> None:
        """What could not be read."""
        self.broken += bool(self._open)
        if self.broken and assembler.runs:
            assembler.note(f"skipped {self.broken:,} line{'s' * (self.broken > 1)} that hold no whole JSON object")

    def _records(self, line: str) -> Iterator[dict[str, Any]]:
        """The objects that end on this line."""
        if line.startswith("{") or not self._open:
            whole = _whole(line)
            if whole is not None:
                self.broken += bool(self._open)  # what was open was cut off
                self._close()
                yield whole
                return
        if not line.strip(BLANK):
            return
        self._open.append(line)
        self._depth += line.count("{") - line.count("}")
        self._size += len(line)
        if self._depth <= 0:
            yield from self._several("\n".join(self._close()))
        elif self._size > LONGEST:
            self.broken += 1
            self._close()

    def _close(self) -> list[str]:
        lines, self._open, self._depth, self._size = self._open, [], 0, 0
        return lines

    def _several(self, text: str) -> Iterator[dict[str, Any]]:
        """Objects one behind the other, as Python's json reads them: bare NaN and Infinity are numbers."""
        text = text.lstrip(BLANK)
        while text.startswith("{"):
            try:
                record, end = DECODER.raw_decode(text)
            except (ValueError, RecursionError):
                break
            yield record
            text = text[end:].lstrip(BLANK)
        self.broken += bool(text)

    def _row(self, record: Mapping[str, Any]) -> Row | None:
        values = dict(flattened(record))
        said = next((record[key] for key in SPLIT_KEYS if isinstance(record.get(key), str)), "")
        split = SPLITS.get(said.lower(), "")
        known = split or any(recognise(name).role != "measure" for name in values)
        return Row(values, split) if known else None


def _whole(line: str) -> dict[str, Any] | None:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None


def open_file(path: Path) -> GrowingText:
    """The lines at ``path``, nothing read yet."""
    return GrowingText(path, NAME, Objects)

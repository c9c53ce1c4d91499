"""The ``run-<id>.wandb`` file that W&B writes beside every run, offline or online: its history, config and end."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.counters import Row
from trainwatch.foreign.protobuf import BYTES, VARINT, WireError, double, fields, signed
from trainwatch.foreign.recordlog import RecordLog
from trainwatch.run import Event, Run

NAME = "W&B run file"

MAGIC = b":W&B"
HISTORY, CONFIG, RUN, EXIT = 2, 5, 17, 18  # fields of a record
KEY, NESTED, INTEGER, NUMBER, AS_JSON = 1, 2, 5, 6, 16  # fields of an item of the history or the config
CLOCKS = ("_timestamp", "_runtime")


def sniff(path: Path, head: bytes) -> bool:  # noqa: ARG001  (by content)
    """It begins with W&B's mark."""
    return head.startswith(MAGIC)


class WandbFile:
    """One run; ``runs`` grows with every :meth:`poll`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = RecordLog(path)
        self._assembler = Assembler(path, NAME)

    @property
    def runs(self) -> list[Run]:
        """What was read so far."""
        return self._assembler.runs

    def poll(self) -> bool:
        """Read what was written since the last call; True if something was. Raises OSError."""
        before = self._log.offset
        items = [item for record in self._log.records() for item in self._items(record)]
        self._assembler.add(items)
        for run in self.runs:
            run.tells_end = True  # a run that ends leaves an exit record
            run.touched = self.path.stat().st_mtime
        return self._log.offset != before

    def _items(self, record: bytes) -> Iterator[Row | Event]:
        try:
            for number, _, value in fields(record):
                if not isinstance(value, bytes):
                    continue
                if number == HISTORY:
                    yield _row(value)
                elif number == EXIT:
                    yield _end(value)
                else:
                    self._learn(number, value)
        except (WireError, struct.error, UnicodeDecodeError):
            self._log.broken = "holds a record that is none of W&B's: what follows is not read"

    def _learn(self, number: int, value: bytes) -> None:
        """The run's name and config, which come before its first row."""
        if number == RUN:
            for inner, wire, text in fields(value):
                if inner == 8 and wire == BYTES and isinstance(text, bytes):
                    self._assembler.name = text.decode() or self._assembler.name
                elif inner == 4 and isinstance(text, bytes):
                    self._learn(CONFIG, text)
        elif number == CONFIG:
            self._assembler.config |= {name: setting for name, setting in _pairs(value) if not name.startswith("_")}

    def close(self) -> None:
        """Nothing more will be read."""
        self._assembler.close()
        if self._log.broken and self.runs:
            self._assembler.note(f"{self.path.name} {self._log.broken}")


def _pairs(record: bytes) -> Iterator[tuple[str, Any]]:
    """Names and values of a history or a config record."""
    for number, _, item in fields(record):
        if number == 1 and isinstance(item, bytes):
            path, value = _item(item)
            if path:
                yield path, value


def _item(item: bytes) -> tuple[str, Any]:
    """The path and the value of one item: newer writers leave ``key`` empty and give the path in parts."""
    key, nested = "", []
    found: Any = None
    for number, wire, value in fields(item):
        if number == KEY and isinstance(value, bytes):
            key = value.decode()
        elif number == NESTED and isinstance(value, bytes):
            nested.append(value.decode())
        elif number == INTEGER and wire == VARINT and isinstance(value, int):
            found = signed(value)
        elif number == NUMBER and isinstance(value, bytes):
            found = double(value)
        elif number == AS_JSON and isinstance(value, bytes):
            found = _json(value)
    return key or "/".join(nested), found


def _json(value: bytes) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _row(record: bytes) -> Row:
    pairs = ((name, value) for name, value in _pairs(record) if name not in CLOCKS)
    return Row({name: number for name, value in pairs if (number := _number(value)) is not None})


def _number(value: Any) -> float | None:
    try:
        return float(value) if type(value) in (int, float) else None
    except OverflowError:
        return None


def _end(record: bytes) -> Event:
    code = next((value for number, wire, value in fields(record) if number == 1 and wire == VARINT), 0)
    return {"kind": "end", "status": "failed" if code else "finished", "reason": f"exit code {code!r}"}


def open_file(path: Path) -> WandbFile:
    """The file at ``path``, nothing read yet."""
    return WandbFile(path)

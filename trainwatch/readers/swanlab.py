"""SwanLab's ``run-<id>.swanlab``, in the same blocks as W&B's file: scalars, the run's name and its end."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.points import Point, rows
from trainwatch.foreign.protobuf import BYTES, WireError, double, fields, signed
from trainwatch.foreign.recordlog import RecordLog
from trainwatch.foreign.settings import read_settings
from trainwatch.run import Event, Run

NAME = "SwanLab run file"

MAGIC = b":SWL\xd6\xe1\x02"  # with the version: other ones are laid out otherwise
START, FINISH, SCALAR = 10, 11, 13  # fields of a record
STATES = {1: "finished", 2: "failed", 3: "stopped"}


def sniff(path: Path, head: bytes) -> bool:  # noqa: ARG001  (by content)
    """It begins with SwanLab's mark and the version that is known here."""
    return head.startswith(MAGIC)


class SwanlabFile:
    """One run; ``runs`` grows with every :meth:`poll`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = RecordLog(path)
        self._assembler = Assembler(path, NAME)
        settings = read_settings(path.parent / "files" / "config.yaml")
        self._assembler.config = {
            name: said["value"] for name, said in settings.items() if isinstance(said, dict) and "value" in said
        }

    @property
    def runs(self) -> list[Run]:
        """What was read so far."""
        return self._assembler.runs

    def poll(self) -> bool:
        """Read what was written since the last call; True if something was. Raises OSError."""
        before = self._log.offset
        found = [item for record in self._log.records() for item in self._items(record)]
        points = [item for item in found if isinstance(item, Point)]
        self._assembler.add([*rows(points), *(item for item in found if isinstance(item, dict))])
        for run in self.runs:
            run.tells_end, run.touched = True, self.path.stat().st_mtime
        return self._log.offset != before

    def _items(self, record: bytes) -> Iterator[Point | Event]:
        try:
            for number, wire, value in fields(record):
                if wire != BYTES or not isinstance(value, bytes):
                    continue
                if number == SCALAR:
                    yield from _points(value)
                elif number == FINISH:
                    yield _end(value)
                elif number == START:
                    names = [
                        text.decode() for inner, _, text in fields(value) if inner == 4 and isinstance(text, bytes)
                    ]
                    self._assembler.name = "".join(names) or self._assembler.name
        except (WireError, struct.error, UnicodeDecodeError):
            self._log.broken = "holds a record that is none of SwanLab's: what follows is not read"

    def close(self) -> None:
        """Nothing more will be read."""
        self._assembler.close()
        if self._log.broken and self.runs:
            self._assembler.note(f"{self.path.name} {self._log.broken}")


def _points(scalar: bytes) -> Iterator[Point]:
    """The value of one key at one step; a 0 is not written at all."""
    parts = {number: value for number, _, value in fields(scalar)}
    key, step, value = parts.get(1), parts.get(2, 0), parts.get(5)
    if isinstance(key, bytes) and isinstance(step, int) and isinstance(value, bytes):
        numbers = [double(number) for inner, _, number in fields(value) if inner == 1 and isinstance(number, bytes)]
        yield Point(signed(step), key.decode(), numbers[0] if numbers else 0.0)


def _end(record: bytes) -> Event:
    state = next((value for number, _, value in fields(record) if number == 1), 0)
    said = STATES.get(state) if isinstance(state, int) else None
    return {"kind": "end", "status": said or "finished", "reason": f"state {state!r}"}


def open_file(path: Path) -> SwanlabFile:
    """The file at ``path``, nothing read yet."""
    return SwanlabFile(path)

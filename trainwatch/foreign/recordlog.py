"""Records in blocks, as LevelDB's log lays them out and W&B and SwanLab write them; read by offset while it grows.

A file header of seven bytes, then blocks of 32 kB; in them records with a checksum, a length and a type: a whole one,
or the first, a middle or the last part of one that goes over several blocks.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = 32768
HEADER = 7  # bytes, of the file and of a record alike
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
LARGEST = 64 << 20  # bytes of one record: more is no row


@dataclass
class RecordLog:
    """One such file. ``broken`` says where it is damaged; what follows is not read."""

    path: Path
    offset: int = HEADER
    broken: str = ""
    _parts: bytes = b""

    def records(self) -> Iterator[bytes]:
        """The records that were completed since the last call. Raises OSError."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        at = 0
        while not self.broken:
            left = BLOCK - (self.offset + at) % BLOCK
            if left < HEADER:
                at += left
                continue
            length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6 : at + HEADER]
            end = at + HEADER + length
            if end > len(data) or not kind:
                break
            part = data[at + HEADER : end]
            if kind == b"\0" or int.from_bytes(data[at : at + 4], "little") != zlib.crc32(part, zlib.crc32(kind)):
                self.broken = f"is damaged at byte {self.offset + at:,}: what follows is not read"
                break
            at = end
            yield from self._joined(kind[0], part)
        self.offset += at

    def _joined(self, kind: int, part: bytes) -> Iterator[bytes]:
        if kind in (WHOLE, FIRST):
            self._parts = b""
        self._parts += part
        if len(self._parts) > LARGEST:
            self._parts = b""
        if kind in (WHOLE, LAST):
            record, self._parts = self._parts, b""
            yield record

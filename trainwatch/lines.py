"""The complete lines of a file that may still grow, read by offset: nothing is read twice, nothing is held for long."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

BLOCK = 4 << 20
CHINESE = re.compile("[\u4e00-\u9fff]{2}")
HEAD = 512  # bytes that tell one file from another of the same name: a header has its id and its time in them
LINE_LIMIT = 16 << 20  # a row of 4,096 channels takes 0.1 MB; a longer line is no row and must not fill the memory


def beginning(path: Path, size: int) -> bytes:
    """The first bytes of a file, behind the hole that a log has which was emptied while its writer went on. Raises
    OSError.
    """
    with path.open("rb") as file:
        head = file.read(size)
        if head[:1] != b"\0":
            return head
        block = head
        while block and not block.lstrip(b"\0"):
            block = file.read(BLOCK)
        text = block.lstrip(b"\0")[:size]
        return text + file.read(size - len(text)) if text else head


@dataclass
class LineTail:
    """Follows one file. ``number`` is the 1-based number of the last complete line, ``offset`` the first unread byte.

    A line longer than ``LINE_LIMIT`` bytes is passed over and counted in ``oversized``; what stands after the last
    newline waits in ``remainder`` until its newline comes. A file that became shorter, or begins otherwise than it did,
    was written anew: it is read from its beginning again and ``restarts`` counts it.
    """

    path: Path
    offset: int = 0
    number: int = 0
    oversized: int = 0
    restarts: int = 0
    remainder: bytes = b""
    _skipping: bool = False
    _head: bytes = b""

    def place(self) -> dict[str, Any]:
        """How far the file was read, as plain data that :meth:`go_on` takes."""
        held = {"remainder": self.remainder.decode("latin-1"), "head": self._head.decode("latin-1")}
        return {
            **held,
            "offset": self.offset,
            "number": self.number,
            "oversized": self.oversized,
            "skips": self._skipping,
        }

    def go_on(self, place: Mapping[str, Any]) -> None:
        """Read on from a place."""
        self.offset, self.number, self.oversized = place["offset"], place["number"], place["oversized"]
        self.remainder, self._head = place["remainder"].encode("latin-1"), place["head"].encode("latin-1")
        self._skipping = place["skips"]

    def poll(self) -> Iterator[list[bytes]]:
        """The lines that were completed since the last call, without their newlines, block by block.

        Raises OSError if the file cannot be read.
        """
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(HEAD)
            if size < self.offset or not head.startswith(self._head):
                self._restart()
            self._head = head
            file.seek(self.offset)
            while block := self._read(file, size):
                lines = self._split(block)
                if lines:
                    yield lines

    def _read(self, file: BinaryIO, size: int) -> bytes:
        block = file.read(min(BLOCK, size - self.offset))
        self.offset += len(block)
        return block

    def _split(self, block: bytes) -> list[bytes]:
        *lines, rest = block.split(b"\n")
        if not lines:
            self._hold(self.remainder + rest)
            return []
        self.number += len(lines)
        if self._skipping:
            self._skipping = False
            self.oversized += 1
            lines = lines[1:]
        else:
            lines[0] = self.remainder + lines[0]
        self.remainder = b""
        self._hold(rest)
        return lines

    def _hold(self, rest: bytes) -> None:
        if self._skipping or len(rest) > LINE_LIMIT:
            self._skipping, self.remainder = True, b""
        else:
            self.remainder = rest

    def _restart(self) -> None:
        self.offset = self.number = 0
        self.remainder, self._skipping = b"", False
        self.restarts += 1


def text_of(line: bytes) -> str:
    """A line as text: UTF-8, or the Chinese of Windows, where most of it is no UTF-8 and it reads as words in that.

    Each line is judged by itself: a character that was torn spoils no other line, and no reading depends on where a
    block ended.
    """
    try:
        return line.decode()
    except UnicodeDecodeError:
        text = line.decode(errors="replace")
    torn = text.count("\ufffd")
    if torn * 2 <= sum(not sign.isascii() for sign in text):
        return text
    try:
        chinese = line.decode("gb18030")
    except UnicodeDecodeError:
        return text
    return chinese if CHINESE.search(chinese) else text


@dataclass
class TextTail:
    """The same as text: UTF-8, or UTF-16 where the file begins with its mark (PowerShell's ``>`` writes that), or the
    Chinese of Windows (:func:`text_of`).

    ``restarts`` are those of :class:`LineTail`. A byte that is no UTF-8 becomes a replacement sign. NULs before a line
    are counted in ``hole``: what was there was cut away, or never reached the disk.
    """

    path: Path
    restarts: int = 0
    hole: int = 0
    _tail: LineTail = field(init=False)
    _wide: int = 0  # lines of a UTF-16 file that were handed out
    _wide_rest: str = ""

    def __post_init__(self) -> None:
        self._tail = LineTail(self.path)

    def poll(self) -> Iterator[list[str]]:
        """The lines that were completed since the last call, block by block. Raises OSError."""
        with self.path.open("rb") as file:
            mark = file.read(2)
        if mark in (b"\xff\xfe", b"\xfe\xff"):
            *lines, self._wide_rest = self.path.read_bytes().decode("utf-16", errors="replace").split("\n")
            new, self._wide = lines[self._wide :], len(lines)
            if new:
                yield new
            return
        for block in self._tail.poll():
            if self.restarts != self._tail.restarts:
                self.restarts, self.hole = self._tail.restarts, 0
            yield [self._text(line) for line in block]

    def rest(self) -> str:
        """What stands after the last newline, once nothing more will be written."""
        rest, self._tail.remainder = self._tail.remainder, b""
        return self._text(rest) or self._wide_rest

    def _text(self, line: bytes) -> str:
        text = text_of(line)
        whole = text.lstrip("\0")
        self.hole += len(text) - len(whole)
        return whole.removeprefix("\ufeff")

"""A foreign text file that may still grow, and the rows that a reader finds in it: what all text readers share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.checkpoints import Checkpoints
from trainwatch.foreign.counters import Row
from trainwatch.foreign.sums import NOTHING, Proof
from trainwatch.lines import TextTail
from trainwatch.run import DEAD_SECONDS, Event, Run


class Lines(Protocol):
    """Turns the lines of one file into rows and events; remembers what it needs of the lines before."""

    config: dict[str, Any]  # settings that the file told

    def items(self, lines: list[str]) -> Iterable[Row | Event]:
        """What the next lines say."""
        ...

    def last(self, assembler: Assembler) -> None:
        """Nothing more comes: say what the file told about its end, and what could not be read."""
        ...


class GrowingText:
    """A text file as a source: ``runs`` grows with every :meth:`poll`."""

    def __init__(
        self, path: Path, format_: str, lines: Callable[[], Lines], config: dict[str, Any] | None = None
    ) -> None:
        self.path, self.format, self.config = path, format_, config or {}
        self._kind, self._tail, self._restarts = lines, TextTail(path), 0
        self._begin()

    def _begin(self, proof: Proof = NOTHING) -> None:
        self._lines, self._assembler, self._ended = self._kind(), Assembler(self.path, self.format, proof), False
        self._assembler.config |= self.config
        self._checkpoints = Checkpoints(self.path)

    @property
    def runs(self) -> list[Run]:
        """What was read so far."""
        return self._assembler.runs

    def poll(self) -> bool:
        """Read what was written since the last call; True if something was. Raises OSError."""
        news = self._read()
        while proof := self._assembler.better:
            self._tail, self._restarts = TextTail(self.path), 0
            self._begin(proof)
            self._read()
        touched = self.path.stat().st_mtime
        if time.time() - touched > DEAD_SECONDS:
            self._end()
        elif not news:
            self._assembler.add(())
        for record in self._checkpoints.new() if self.runs else ():
            self._assembler.saved(record)
            news = True
        for run in self.runs:
            run.touched = touched
        return news

    def _read(self) -> bool:
        """Take in what was written since the last time; True if something was."""
        news = False
        for lines in self._tail.poll():
            if self._tail.restarts != self._restarts:
                self._restarts = self._tail.restarts
                self._begin()
            self._take(lines)
            news = True
        return news

    def _take(self, lines: list[str]) -> None:
        items = list(self._lines.items(lines))
        self._assembler.config |= self._lines.config
        self._assembler.add(items)

    def _end(self) -> None:
        """Nothing was written for a while: what stands after the last newline counts, and the last words are said."""
        if self._ended:
            return
        self._ended = True
        rest = self._tail.rest()
        if rest.strip():
            self._take([rest])
        self._lines.last(self._assembler)
        if self._tail.hole and self.runs:
            self._assembler.note(f"{self._tail.hole:,} empty bytes stand before its lines: what was there was cut away")
        self._assembler.close()

    def close(self) -> None:
        """Nothing more will be read."""
        self._end()

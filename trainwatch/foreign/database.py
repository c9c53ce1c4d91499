"""A tracker's SQLite database with several runs in it, followed while it grows. It is only ever read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Protocol

from trainwatch.foreign.assembly import About, Assembler
from trainwatch.foreign.counters import Row
from trainwatch.run import Run

MAGIC = b"SQLite format 3\0"
BROKEN = (sqlite3.Error, UnicodeError)
"""What comes of a damaged database: a text in it, or what SQLite says of it, may be no UTF-8."""


class Tracker(Protocol):
    """How one tracker lays its database out."""

    NAME: str
    TELLS_END: bool

    def news(self, database: sqlite3.Connection, last: int) -> Iterable[tuple[int, str, Row]]:
        """(number, run, row) of the rows above number ``last``, in the order of their numbers. Raises sqlite3.Error."""
        ...

    def about(self, database: sqlite3.Connection, run: str) -> About:
        """What is known of a run. Raises sqlite3.Error."""
        ...


def columns(path: Path, head: bytes, table: str) -> set[str]:
    """The columns of a table; none if the file is no database or has no such table."""
    if not head.startswith(MAGIC):
        return set()
    try:
        with closing(connect(path)) as database:
            return {str(name) for _, name, *_ in database.execute(f"PRAGMA table_info({table})")}
    except BROKEN:
        return set()


def connect(path: Path) -> sqlite3.Connection:
    """Read-only; a database whose log of changes cannot be shared (another's folder) is read as it stands."""
    address = path.absolute().as_uri()
    database = sqlite3.connect(f"{address}?mode=ro", uri=True, timeout=5.0)
    try:
        database.execute("SELECT 1 FROM sqlite_master LIMIT 1")
    except sqlite3.OperationalError:
        database.close()
        return sqlite3.connect(f"{address}?mode=ro&immutable=1", uri=True)
    except BROKEN:
        database.close()
        raise
    return database


class DatabaseError(OSError):
    """The database cannot be read; ``strerror`` says why."""


class RunDatabase:
    """The runs of one database, in the order in which they began; each grows with :meth:`poll`."""

    def __init__(self, path: Path, tracker: Tracker) -> None:
        self.path, self.tracker = path, tracker
        self._runs: dict[str, Assembler] = {}
        self._last = 0

    @property
    def runs(self) -> list[Run]:
        """What was read so far."""
        return [run for assembler in self._runs.values() for run in assembler.runs]

    def poll(self) -> bool:
        """Read the rows that came since the last call; True if there were some. Raises OSError."""
        try:
            with closing(connect(self.path)) as database:
                news = self._read(database)
        except BROKEN as error:
            raise DatabaseError(0, f"as a database: {error}") from None
        touched = self.path.stat().st_mtime
        for found in self.runs:
            found.touched, found.tells_end = touched, self.tracker.TELLS_END
        return news

    def _read(self, database: sqlite3.Connection) -> bool:
        grouped: dict[str, list[Row]] = {}
        for number, run, row in self.tracker.news(database, self._last):
            self._last = number
            grouped.setdefault(run, []).append(row)
        for run in [*self._runs, *(run for run in grouped if run not in self._runs)]:
            about = self.tracker.about(database, run)
            assembler = self._runs.setdefault(run, Assembler(self.path, self.tracker.NAME))
            assembler.name, assembler.config = about.name, about.config
            assembler.add(grouped.get(run, ()))
            if about.end and assembler.runs and assembler.runs[-1].end != about.end:
                assembler.add([about.end])
        return bool(grouped)

    def close(self) -> None:
        """Nothing more will be read."""
        for assembler in self._runs.values():
            assembler.close()

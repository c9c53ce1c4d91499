"""Trackio's database of a project: one SQLite file, several runs in it. It is only ever read."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.counters import Row
from trainwatch.foreign.numbers import flattened
from trainwatch.readers import ReadError
from trainwatch.run import Run

NAME = "Trackio database"

MAGIC = b"SQLite format 3\0"
ROWS = "SELECT id, run_id, run_name, step, metrics FROM metrics WHERE id > ? ORDER BY id"
CONFIGS = "SELECT run_id, config FROM configs ORDER BY id"


def sniff(path: Path, head: bytes) -> bool:
    """A SQLite database with Trackio's table of metrics."""
    if not head.startswith(MAGIC):
        return False
    try:
        with closing(_connect(path)) as database:
            columns = {name for _, name, *_ in database.execute("PRAGMA table_info(metrics)")}
    except sqlite3.Error:
        return False
    return columns >= {"id", "run_id", "run_name", "step", "metrics"}


def _connect(path: Path) -> sqlite3.Connection:
    """Read-only; a database whose log of changes cannot be shared (another's folder) is read as it stands."""
    address = path.absolute().as_uri()
    database = sqlite3.connect(f"{address}?mode=ro", uri=True, timeout=5.0)
    try:
        database.execute("SELECT 1 FROM sqlite_master LIMIT 1")
    except sqlite3.OperationalError:
        database.close()
        return sqlite3.connect(f"{address}?mode=ro&immutable=1", uri=True)
    return database


class TrackioProject:
    """The runs of one project, in the order in which they began; each grows with :meth:`poll`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._runs: dict[str, Assembler] = {}
        self._last = 0

    @property
    def runs(self) -> list[Run]:
        """What was read so far."""
        return [run for assembler in self._runs.values() for run in assembler.runs]

    def poll(self) -> bool:
        """Read the rows that came since the last call; True if there were some. Raises OSError and ReadError."""
        try:
            with closing(_connect(self.path)) as database:
                rows = database.execute(ROWS, (self._last,)).fetchall()
                configs = dict(database.execute(CONFIGS).fetchall()) if rows else {}
        except sqlite3.Error as error:
            raise ReadError(f"{self.path}: cannot be read as a database ({error}); copy it again.") from None
        grouped: dict[str, list[Row]] = {}
        for number, run, name, step, metrics in rows:
            self._last = number
            if run not in self._runs:
                self._runs[run] = self._begun(str(name), configs.get(run))
            grouped.setdefault(run, []).append(_row(step, metrics))
        for run, assembler in self._runs.items():
            assembler.add(grouped.get(run, ()))
        for found in self.runs:
            found.touched = self.path.stat().st_mtime
        return bool(rows)

    def _begun(self, name: str, config: Any) -> Assembler:
        assembler = Assembler(self.path, NAME)
        assembler.name = name
        settings = _object(config)
        assembler.config = {key: value for key, value in settings.items() if not key.startswith("_")}
        return assembler

    def close(self) -> None:
        """Nothing more will be read."""
        for assembler in self._runs.values():
            assembler.close()


def _row(step: Any, metrics: Any) -> Row:
    counted = {"step": float(step)} if isinstance(step, int) and abs(step) < 2**53 else {}
    return Row({**dict(flattened(_object(metrics))), **counted})


def _object(written: Any) -> dict[str, Any]:
    try:
        found = json.loads(written)
    except (TypeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def open_file(path: Path) -> TrackioProject:
    """The project at ``path``, nothing read yet."""
    return TrackioProject(path)

"""MLflow's database: one SQLite file, several runs in it, a row for each value.

SQLite has no NaN, so MLflow writes a 0 and sets ``is_nan``; an infinity is the largest number there is.
"""

from __future__ import annotations

import math
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainwatch.foreign.assembly import About
from trainwatch.foreign.counters import LIMIT, Row
from trainwatch.foreign.database import RunDatabase, columns
from trainwatch.foreign.points import Point, rows
from trainwatch.run import Event

NAME = "MLflow database"
TELLS_END = True

VALUES = "SELECT rowid, run_uuid, key, value, step, is_nan FROM metrics WHERE rowid > ? ORDER BY rowid"
ABOUT = "SELECT name, status FROM runs WHERE run_uuid = ?"
PARAMS = "SELECT key, value FROM params WHERE run_uuid = ?"
ENDS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}


def sniff(path: Path, head: bytes) -> bool:
    """A SQLite database with MLflow's table of metrics."""
    return columns(path, head, "metrics") >= {"key", "value", "step", "run_uuid", "is_nan"}


def news(database: sqlite3.Connection, last: int) -> Iterator[tuple[int, str, Row]]:
    """The values above number ``last``; those of one step that stand together are one row."""
    found = database.execute(VALUES, (last,)).fetchall()
    runs: dict[str, list[Point]] = {}
    for number, run, key, value, step, is_nan in found:
        last = number
        if isinstance(step, int) and abs(step) < LIMIT and isinstance(value, float | int):
            runs.setdefault(run, []).append(Point(step, str(key), math.nan if is_nan else _unbounded(float(value))))
    for run, points in runs.items():
        yield from ((last, run, row) for row in rows(points))


def _unbounded(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value


def about(database: sqlite3.Connection, run: str) -> About:
    """A run's name, its parameters as they were written (text), and its status."""
    name, status = database.execute(ABOUT, (run,)).fetchone() or (run, "")
    config = {str(key): _setting(value) for key, value in database.execute(PARAMS, (run,))}
    end: Event | None = {"kind": "end", "status": ENDS[status], "reason": status} if status in ENDS else None
    return About(str(name or run), config, end)


def _setting(value: Any) -> Any:
    """A parameter is kept as text; a number is meant as one."""
    for kind in (int, float):
        try:
            return kind(value)
        except (TypeError, ValueError):
            continue
    return value


def open_file(path: Path) -> RunDatabase:
    """The database at ``path``, nothing read yet."""
    return RunDatabase(path, sys.modules[__name__])

"""Trackio's database of a project: one SQLite file, several runs in it."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainwatch.foreign.assembly import About
from trainwatch.foreign.counters import Row
from trainwatch.foreign.database import RunDatabase, columns
from trainwatch.foreign.numbers import flattened

NAME = "Trackio database"
TELLS_END = False

ROWS = "SELECT id, run_id, run_name, step, metrics FROM metrics WHERE id > ? ORDER BY id"
ABOUT = "SELECT run_name FROM metrics WHERE run_id = ? LIMIT 1"
CONFIG = "SELECT config FROM configs WHERE run_id = ? ORDER BY id DESC LIMIT 1"


def sniff(path: Path, head: bytes) -> bool:
    """A SQLite database with Trackio's table of metrics."""
    return columns(path, head, "metrics") >= {"id", "run_id", "run_name", "step", "metrics"}


def news(database: sqlite3.Connection, last: int) -> Iterator[tuple[int, str, Row]]:
    """The rows above number ``last``."""
    for number, run, _, step, metrics in database.execute(ROWS, (last,)):
        yield number, run, _row(step, metrics)


def about(database: sqlite3.Connection, run: str) -> About:
    """A run's name and settings; how it ended is not written."""
    (name,) = database.execute(ABOUT, (run,)).fetchone() or (run,)
    (config,) = database.execute(CONFIG, (run,)).fetchone() or (None,)
    return About(str(name), {key: value for key, value in _object(config).items() if not key.startswith("_")})


def _row(step: Any, metrics: Any) -> Row:
    counted = {"step": float(step)} if isinstance(step, int) and abs(step) < 2**53 else {}
    return Row({**dict(flattened(_object(metrics))), **counted})


def _object(written: Any) -> dict[str, Any]:
    try:
        found = json.loads(written)
    except (TypeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def open_file(path: Path) -> RunDatabase:
    """The project at ``path``, nothing read yet."""
    return RunDatabase(path, sys.modules[__name__])

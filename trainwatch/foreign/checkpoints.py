"""The checkpoints that a trainer lists beside its log.

``run_checkpoints.jsonl`` belongs to ``run.jsonl``, ``run.csv`` or ``run_metrics.jsonl``, and ``checkpoints.jsonl`` to
``metrics.jsonl``. Such a file is no run of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from trainwatch.lines import LineTail
from trainwatch.schema import RECORD

LISTED = re.compile(r"(?:(?P<run>.+)_)?checkpoints\.jsonl")
LOGS = (".jsonl", ".json", ".log", ".txt", ".out", ".csv", ".tsv")
PLACES = ("path", "checkpoint", "checkpoint_path", "ckpt", "file", "filename", "state_path", "sampler_path", "name")
"""Keys of what was written, the best first."""
HEAD = 4096


def log_of(path: Path) -> Path | None:
    """The log whose checkpoints the file at ``path`` lists; None for any other file, and for a run of our recorder."""
    if not (found := LISTED.fullmatch(path.name)) or not path.is_file():
        return None
    names = [found["run"], f"{found['run']}_metrics"] if found["run"] else ["metrics"]
    logs = [path.with_name(name + suffix) for suffix in LOGS for name in names]
    log = next((log for log in logs if log.is_file()), None)
    try:
        with path.open("rb") as file:
            return None if RECORD.search(file.read(HEAD)) else log
    except OSError:
        return None


class Checkpoints:
    """What is listed beside the log at ``path``, read as it grows."""

    def __init__(self, path: Path) -> None:
        run = path.stem.removesuffix("metrics").removesuffix("_")
        listed = {path.with_name(f"{name}checkpoints.jsonl") for name in (f"{path.stem}_", f"{run}_" if run else "")}
        self._path, self._tails = path, [LineTail(file) for file in sorted(listed)]

    def there(self) -> bool:
        """Whether there is such a list."""
        return any(tail.path.exists() for tail in self._tails)

    def new(self) -> Iterator[dict[str, Any]]:
        """The records that are new since the last call, each with its ``path`` where it tells one. Raises OSError."""
        for tail in self._tails:
            if log_of(tail.path) is not None:
                for lines in tail.poll():
                    yield from (record for line in lines if (record := _record(line)) is not None)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return {**record, **_place(record), "kind": "checkpoint"} if isinstance(record, dict) else None


def _place(record: Mapping[str, Any]) -> dict[str, str]:
    path = next((record[key] for key in PLACES if isinstance(record.get(key), str)), None)
    return {} if path is None else {"path": path}

"""``<run>.stop``: how somebody asks a run to stop, from a shell (``touch``) or by ``trainwatch watch --stop-on``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

LONGEST = 1 << 16  # bytes of a stop file that are read: more is no request
WORDS = 500  # characters of what it says that are kept
ABOUT = ("rule", "subject", "severity", "first_step", "message")
"""What is kept of the finding for which a run is stopped."""

Mark = tuple[int, int, int] | None


class StopFile:
    """Looks whether somebody asks this run to stop. Only the writer's thread does; the loop pays nothing.

    What lies there when the run begins was meant for the process before, by whatever clock: only a file that is put
    there, or touched, afterwards counts. One that names another run is not for this one.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        self.path, self._id = path, run_id
        self._seen = self._mark()

    def asked(self) -> dict[str, Any] | None:
        """Who asks and why, once; None while nobody does."""
        mark = self._mark()
        if mark == self._seen:
            return None
        self._seen = mark
        return None if mark is None else self._told()

    def _mark(self) -> Mark:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _told(self) -> dict[str, Any] | None:
        """What the file says: a request in JSON, any words, or nothing; None if it is meant for another run."""
        try:
            with self.path.open("rb") as file:
                said = file.read(LONGEST)
        except OSError:
            said = b""
        try:
            request = orjson.loads(said)
        except ValueError:
            request = said.decode("utf-8", "replace").strip()[:WORDS]
        if not isinstance(request, dict):
            return {"by": "a stop file", **({"why": request} if isinstance(request, str) and request else {})}
        if request.get("id", self._id) != self._id:
            return None
        finding = request.get("finding")
        about = {key: _short(finding[key]) for key in ABOUT if key in finding} if isinstance(finding, dict) else {}
        why = str(about.pop("message", request.get("why") or ""))[:WORDS]
        return {"by": str(request.get("by") or "a stop file")[:WORDS], "why": why, **about}


def _short(value: Any) -> int | str:
    return value if isinstance(value, int) else str(value)[:WORDS]

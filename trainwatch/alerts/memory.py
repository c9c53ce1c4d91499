"""What was told of a run, kept for the next watch of it: a restart tells nobody the same again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from trainwatch.alerts.telling import Told

AGE = 30 * 86_400.0  # seconds after which what was told of a run is forgotten


class Memory:
    """A small file for each run and receiver in the user's state folder; where none can be written, none is kept.

    The name is a hash, since a receiver's URL may hold a password.
    """

    def __init__(self, run: str, receiver: str) -> None:
        name = hashlib.sha256(f"{run}\n{receiver}".encode("utf-8", "replace")).hexdigest()[:32]
        self._path = folder() / f"{name}.json"
        self._told: Told = {}

    def told(self) -> Told:
        """What an earlier watch told; nothing if there was none."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            said = json.loads(self._path.read_text(encoding="utf-8"))
            self._told = {str(key): grade for key, grade in said.items() if isinstance(grade, int)}
        return dict(self._told)

    def keep(self, key: str, grade: int) -> None:
        """It was delivered."""
        self._told[key] = grade
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self._path.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(self._told), encoding="utf-8")
            unfinished.replace(self._path)


def folder() -> Path:
    """Where state that belongs to a user is kept, by the XDG rules."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "trainwatch" / "told"


def forget(now: float) -> None:
    """Remove what is too old to matter."""
    with contextlib.suppress(OSError):
        for path in folder().iterdir():
            if now - path.stat().st_mtime > AGE:
                path.unlink()

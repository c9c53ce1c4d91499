"""A file that its writer replaces as a whole: it is read anew when it was written anew."""

from __future__ import annotations

from pathlib import Path

from trainwatch.run import Run


class Rewritten:
    """One such file; a subclass says which runs are in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[Run] = []
        self._seen = (0, -1)

    def poll(self) -> bool:
        """Read it if it changed; True if it did. Raises OSError, and what :meth:`read` raises."""
        stat = self.path.stat()
        if (stat.st_mtime_ns, stat.st_size) == self._seen:
            return False
        self._seen = (stat.st_mtime_ns, stat.st_size)
        self.runs = self.read()
        for run in self.runs:
            run.touched = stat.st_mtime
        return True

    def read(self) -> list[Run]:
        """Its runs, as they stand in it now."""
        raise NotImplementedError

    def close(self) -> None:
        """The file is whole, or was refused."""

"""A history that was written as one JSON document when the training had ended: Keras' ``history.history`` and its like.

``{"loss": [...], "val_loss": [...]}`` has a list for each name and in it a number for each epoch, perhaps below a key
(``{"history": {...}, "config": {...}}``); ``[{"epoch": 1, "loss": 0.5}, ...]`` an object for each row.
"""

from __future__ import annotations

from pathlib import Path

from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.history import document_in, is_history, rows_of
from trainwatch.readers import ReadError
from trainwatch.run import Run

NAME = "JSON history"


def sniff(path: Path, head: bytes) -> bool:
    """One JSON document that holds lists of numbers, or a list of objects, among them a loss or a counter."""
    return is_history(path, head)


class History:
    """One such file; it is read anew when it was written anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[Run] = []
        self._seen = (0, -1)

    def poll(self) -> bool:
        """Read it if it changed; True if it did. Raises OSError and ReadError."""
        stat = self.path.stat()
        if (stat.st_mtime_ns, stat.st_size) == self._seen:
            return False
        self._seen = (stat.st_mtime_ns, stat.st_size)
        assembler = Assembler(self.path, NAME)
        try:
            assembler.add(rows_of(document_in(self.path)))
        except ValueError as error:
            raise ReadError(str(error)) from None
        assembler.close()
        self.runs = assembler.runs
        for run in self.runs:
            run.touched = stat.st_mtime
        return True

    def close(self) -> None:
        """The file is whole, or was refused."""


def open_file(path: Path) -> History:
    """The file at ``path``, nothing read yet."""
    return History(path)

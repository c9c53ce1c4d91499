"""A history that was written as one JSON document when the training had ended: Keras' ``history.history`` and its like.

``{"loss": [...], "val_loss": [...]}`` has a list for each name and in it a number for each epoch, perhaps below a key
(``{"history": {...}, "config": {...}}``); ``[{"epoch": 1, "loss": 0.5}, ...]`` an object for each row.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.history import document_in, is_history, left_out, rows_of, trainings
from trainwatch.foreign.rewritten import Rewritten
from trainwatch.readers import ReadError
from trainwatch.run import Run

NAME = "JSON history"

AT_ONCE = 20_000  # rows; a million of them as objects take 1 GB


def sniff(path: Path, head: bytes) -> bool:
    """One JSON document that holds lists of numbers, or a list of objects, among them a loss or a counter."""
    return is_history(path, head)


class History(Rewritten):
    """One such file."""

    def read(self) -> list[Run]:
        """The trainings that it holds. Raises ReadError."""
        try:
            several = trainings(document_in(self.path))
        except ValueError as error:
            raise ReadError(str(error)) from None
        return [run for name, document in several.items() for run in self._training(name, document)]

    def _training(self, name: str, document: Any) -> list[Run]:
        assembler = Assembler(self.path, NAME)
        if name:
            assembler.name = f"{self.path.stem}/{name}"
        rows = rows_of(document)
        while some := list(islice(rows, AT_ONCE)):
            assembler.add(some)
        assembler.close()
        for said in left_out(document) if assembler.runs else ():
            assembler.note(said)
        return assembler.runs


def open_file(path: Path) -> History:
    """The file at ``path``, nothing read yet."""
    return History(path)

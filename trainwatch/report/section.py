"""What a post-mortem is made of besides its findings: titled tables, the same for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = tuple[str, ...]

ROWS = 300  # of one table: beyond, the run file is the better place to look


@dataclass(frozen=True)
class Section:
    """A title, a sentence, a table. ``right`` are the columns of numbers, ``figures`` names of those that belong here.

    ``folded`` is opened by a click; ``left_out`` are the rows that the table does not show.
    """

    title: str
    about: str = ""
    head: Row = ()
    rows: tuple[Row, ...] = ()
    right: tuple[int, ...] = ()
    figures: tuple[str, ...] = ()
    folded: bool = False
    left_out: int = 0

    @classmethod
    def of(cls, title: str, head: Row, rows: Sequence[Row], right: Row = (), **more: Any) -> Section:
        """A section whose table is not longer than somebody reads, without its empty columns.

        ``right`` names the columns of numbers.
        """
        kept = [at for at, name in enumerate(head) if any(row[at] for row in rows) or not name]
        shown = tuple(tuple(row[at] for at in kept) for row in rows[:ROWS])
        names = tuple(head[at] for at in kept)
        numbers = tuple(at for at, name in enumerate(names) if name in right)
        return cls(title, head=names, rows=shown, right=numbers, left_out=max(len(rows) - ROWS, 0), **more)

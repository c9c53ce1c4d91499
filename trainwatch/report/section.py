"""What a post-mortem is made of besides its findings: titled tables, the same for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    def of(cls, title: str, head: Row, rows: Sequence[Row], **more: object) -> Section:
        """A section whose table is not longer than somebody reads."""
        return cls(title, head=head, rows=tuple(rows[:ROWS]), left_out=max(len(rows) - ROWS, 0), **more)  # type: ignore[arg-type]

"""A titled table of plain text, in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from trainwatch.text import markdown
from trainwatch.text.tables import grid
from trainwatch.text.terminal import NARROW, PIPED_WIDTH, write


@dataclass(frozen=True)
class Section:
    """A titled table of plain text; the same in every face."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def print_section(out: Console, section: Section) -> None:
    """A table where it fits, else its rows one below the other."""
    widths = [max(len(row[column]) for row in (section.head, *section.rows)) for column in range(len(section.head))]
    if out.width >= PIPED_WIDTH or sum(widths) + 2 * len(widths) <= out.width or out.width >= 2 * NARROW:
        table = grid(section.head)
        for row in section.rows:
            table.add_row(*(Text(cell) for cell in row))
        out.print(table)
        return
    for first, *others in section.rows:
        write(out, Text(first, style="cyan"), left=2)
        for name, cell in zip(section.head[1:], others, strict=True):
            write(out, Text(cell), left=4, lead=Text(f"{name}: ", style="dim"))


def markdown_sections(found: Iterable[Section]) -> Iterator[str]:
    """Tables under their titles, as lines."""
    for section in found:
        rows = [[markdown.escape(cell) for cell in row] for row in section.rows]
        head = [markdown.escape(name) for name in section.head]
        yield from (f"### {markdown.escape(section.title)}", "", *markdown.table(head, rows), "")

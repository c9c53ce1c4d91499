"""A table of text, in the terminal and as Markdown."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

WIDTH = 200  # where no terminal says how wide it is


def markdown(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    """The table as Markdown."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def show(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> None:
    """The table in the terminal."""
    table = Table(*columns, title=title, title_justify="left", show_lines=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)

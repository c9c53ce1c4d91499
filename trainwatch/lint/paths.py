"""Where a relative path may lead from, and which file there has the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

NEAR = 0.6  # of difflib's ratio, by the stems
SHORTEST = 3  # letters of a stem: with fewer, anything is near
MOST = 5_000  # files of a folder that are looked at
ROOTS = (".git", "pyproject.toml", "setup.py", "setup.cfg")


def bases(file: Path, folder: Path) -> Iterator[Path]:
    """The working folder, the file's own, and those above it up to the project's root; where it has none, the next."""
    yield folder
    own = file.absolute().parent
    above = [own, *own.parents]
    root = next((place for place in above if any((place / mark).exists() for mark in ROOTS)), None)
    yield from above[: above.index(root) + 1] if root else above[:2]


def near_file(folder: Path, name: str) -> str:
    """The file in a folder, of the same suffix, whose name is nearest; empty where none is near."""
    suffix = Path(name).suffix
    if len(Path(name).stem) < SHORTEST:
        return ""
    try:
        there = [entry.name for _, entry in zip(range(MOST), folder.iterdir(), strict=False)]
    except OSError:
        return ""
    stems = {Path(other).stem: other for other in there if Path(other).suffix == suffix}
    close = difflib.get_close_matches(Path(name).stem, stems, n=1, cutoff=NEAR)
    return stems[close[0]] if close else ""

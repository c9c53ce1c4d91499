"""Where a relative path may lead from, and which file there has the nearest name."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from trainwatch.lint.spelling import LONG, distance

NEAR = 0.6  # of difflib's ratio, by the stems
SHORTEST = 3  # letters of a stem: with fewer, anything is near
MOST = 5_000  # files of a folder that are looked at
LONGEST = 200_000  # characters of a list of requirements
REQUIREMENTS = ("requirements*.txt", "requirements/*.txt", "pyproject.toml", "setup.*", "environment*.y*ml")
ROOTS = (".git", "pyproject.toml", "setup.py", "setup.cfg")


def bases(file: Path, folder: Path) -> Iterator[Path]:
    """The working folder, the file's own, and those above it up to the project's root; where it has none, the next."""
    yield folder
    own = file.absolute().parent
    above = [own, *own.parents]
    root = project(file)
    yield from above[: above.index(root) + 1] if root else above[:2]


def project(file: Path) -> Path | None:
    """The root of the project that a file belongs to; None where nothing marks one."""
    marked = (place for place in file.absolute().parents if any((place / mark).exists() for mark in ROOTS))
    return next(marked, None)


@lru_cache(maxsize=64)
def asks_for(root: Path) -> str:
    """What a project says that it needs: the text of its lists of requirements."""
    found = [place for pattern in REQUIREMENTS for place in sorted(root.glob(pattern))[:20] if place.is_file()]
    texts = []
    for place in found:
        with contextlib.suppress(OSError), place.open(encoding="utf-8", errors="replace") as lines:
            texts.append(lines.read(LONGEST))
    return "\n".join(texts)


def near_file(folder: Path, name: str) -> str:
    """The file in a folder, of the same suffix, whose name is nearest; empty where none is near."""
    stem, stems = Path(name).stem, _stems(folder, Path(name).suffix)
    close = difflib.get_close_matches(stem, stems, n=1, cutoff=NEAR) if len(stem) >= SHORTEST else []
    return stems[close[0]] if close else ""


def slipped_file(folder: Path, name: str) -> str:
    """The file in a folder whose name ``name`` is with a slip or two of the pen; shard 2 is no slip of shard 1."""
    stem, stems = Path(name).stem, _stems(folder, Path(name).suffix)
    most = 2 if len(stem) >= LONG else 1
    near = [other for other in stems if len(stem) > SHORTEST and _digits(other) == _digits(stem)]
    slips = sorted((distance(stem, other), other) for other in near if abs(len(stem) - len(other)) <= most)
    return stems[slips[0][1]] if slips and slips[0][0] <= most else ""


def _stems(folder: Path, suffix: str) -> dict[str, str]:
    try:
        there = [entry.name for _, entry in zip(range(MOST), folder.iterdir(), strict=False)]
    except OSError:
        return {}
    return {Path(other).stem: other for other in there if Path(other).suffix == suffix}


def _digits(text: str) -> str:
    return "".join(letter for letter in text if letter.isdigit())

"""Sub-folders of one TensorBoard run: ``writer.add_scalars("loss", {"train": ..., "val": ...})`` writes the folders
``loss_train`` and ``loss_val`` below the run's own, each with event files of its own and the one tag ``loss``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from trainwatch.foreign.eventlog import EventFile, Tags

EVENTS = "*tfevents*"
LEVELS = 2  # of folders below the run's: a name with a slash makes one more
PEEK = 64 << 10  # bytes of a file that show its tags


def above(folder: Path) -> Path | None:
    """The folder of the run that ``folder`` is a part of, None if it is a run by itself; as long as nothing stands in
    its first file, it is no run.
    """
    tags = _first_tags(folder)
    parents = (parent for parent in folder.absolute().parents[:LEVELS] if any(parent.glob(EVENTS)))
    return next((parent for parent in parents if not tags or _series(parent, folder, tags)), None)


def below(folder: Path) -> Iterator[tuple[Path, str]]:
    """The folders that are parts of the run in ``folder``, each with the name of its series: ``train``."""
    patterns = ("/".join([*"*" * level, EVENTS]) for level in range(1, LEVELS + 1))
    for part in sorted({path.parent for pattern in patterns for path in folder.glob(pattern)}):
        if name := _series(folder, part, _first_tags(part)):
            yield part, name


def _series(run: Path, part: Path, tags: frozenset[str]) -> str:
    """``train`` of the folder ``loss_train`` in which every tag is ``loss``; empty if the names do not fit so."""
    inside = part.absolute().relative_to(run.absolute()).as_posix()
    tag = next(iter(tags), "")
    fits = len(tags) == 1 and inside.replace("/", "_").startswith(f"{tag.replace('/', '_')}_")
    return inside[len(tag) + 1 :] if fits else ""


def _first_tags(folder: Path) -> frozenset[str]:
    """The tags that a folder's first event file begins with."""
    path = min(folder.glob(EVENTS), default=None)
    try:
        return frozenset() if path is None else _tags(path, min(path.stat().st_size, PEEK))
    except OSError:
        return frozenset()


@lru_cache(maxsize=4096)
def _tags(path: Path, size: int) -> frozenset[str]:
    tags = Tags()
    EventFile(path, tags).beginning(size)
    return frozenset(tags.names)

"""Readers: one file per writer of logs, found by being there.

A reader module offers ``NAME``, ``sniff(path, head) -> bool`` and ``open_file(path) -> Source``. Reading a whole
file is following it once: there is one way through the code for a finished log and for a growing one.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from trainwatch.foreign.checkpoints import log_of
from trainwatch.foreign.layout import unnamed
from trainwatch.lines import beginning
from trainwatch.run import Run

HEAD = 64 << 10  # a header with a large config takes some 20 kB; the first line must fit to be recognised
RANK_FILE = re.compile(r"\.rank\d+\.jsonl$")
MAGIC = {
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"PK": "a zip archive",
    b"\x1f\x8b": "gzip data",
}
HIDDEN = re.compile(r"^\.|^__pycache__$|^node_modules$")


class ReadError(Exception):
    """What was asked for cannot be read; the text is one sentence that names the thing and the remedy."""


class Source(Protocol):
    """A file that is being read: ``poll`` appends what is new to ``runs``."""

    runs: list[Run]

    def poll(self) -> bool:
        """Read what was written since the last call; True if something was."""
        ...

    def close(self) -> None:
        """Say that nothing more will be read: judge what stands after the last newline."""
        ...


class Reader(Protocol):
    """What a module in this folder offers."""

    NAME: str

    def sniff(self, path: Path, head: bytes) -> bool:
        """Whether this reader's writer wrote the file that begins with ``head``."""
        ...

    def open_file(self, path: Path) -> Source:
        """The file, nothing read yet."""
        ...


@lru_cache(maxsize=1)
def readers() -> tuple[Reader, ...]:
    """Every reader in this folder, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}") for name in names)


def open_run(path: Path) -> Source:
    """The run file at ``path``, nothing read yet; the log's, if it lists the checkpoints of a log. Raises ReadError if
    no reader knows it.
    """
    path = log_of(path) or path
    head = _head(path)
    if not head.strip(b"\0 \r\n\t"):
        what = "is empty" if not head else "holds nothing but blanks"
        raise ReadError(f"{path}: {what}, so there is no run to judge; check that its training started.")
    for reader in readers():
        if reader.sniff(path, head):
            return reader.open_file(path)
    tried = ", ".join(reader.NAME for reader in readers())
    raise ReadError(f"{path}: {_looks_like(head)}, which none of the readers knows ({tried}); {_REMEDY}")


_REMEDY = "give a run file, the log of a training, or a folder of them."


def _head(path: Path) -> bytes:
    try:
        return beginning(path, HEAD)
    except FileNotFoundError:
        raise ReadError(f"{path}: there is no such file; {_nearby(path)}") from None
    except IsADirectoryError:
        raise ReadError(f"{path}: is a folder, not a run file; name a file in it.") from None
    except OSError as error:
        raise ReadError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from None


def _nearby(path: Path) -> str:
    import difflib

    siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    if close:
        return f"did you mean {path.parent / close[0]}?"
    return f"`trainwatch list {path.parent if path.parent.is_dir() else '.'}` shows the runs that are there."


def _looks_like(head: bytes) -> str:
    """What a file seems to be, in words."""
    for start, name in MAGIC.items():
        if head.startswith(start):
            return f"this is {name}"
    if re.match(rb'\s*\[\s*([\[{"\]]|-?[\d.]+\s*[,\]])', head):
        return "this is a JSON array, not one JSON object a line"
    if head.lstrip().startswith(b"{"):
        return "this is JSON, in which no rows with a step, an epoch or a loss were found"
    if b"\0" in head:
        return "this is binary data"
    if across := unnamed(head.lstrip().partition(b"\n")[0].decode(errors="replace")):
        return f"these are numbers without a header, {across:,} in the first row (a reader needs a row a step)"
    return "this is text of another format"


def read_all(path: str | Path) -> list[Run]:
    """Every run in the file at ``path``, oldest first, ranks joined. Raises ReadError."""
    source = open_run(Path(path))
    try:
        source.poll()
    except OSError as error:
        raise ReadError(f"{path}: cannot be read ({error.strerror}); was it moved or deleted?") from None
    source.close()
    if not source.runs:
        raise ReadError(f"{path}: holds no readable run; its first line should be a record of kind 'run'.")
    return source.runs


def read(path: str | Path) -> Run:
    """The run in the file at ``path``; the newest one, if several were written into it. Raises ReadError."""
    return read_all(path)[-1]


def find(folder: Path) -> Iterator[Path]:
    """Every file below ``folder`` that a reader knows, by path; each run once.

    Ranks above 0 belong to their rank 0, and lists of checkpoints to their log.
    """
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if not any(HIDDEN.search(part) for part in inside) and path.is_file() and stands_for_run(path):
            yield path


def leader(path: Path) -> Path:
    """The file that stands for the run: rank 0's for that of another rank, the log for a list of its checkpoints."""
    rank_zero = path.with_name(RANK_FILE.sub(".jsonl", path.name))
    return rank_zero if rank_zero != path and rank_zero.is_file() else log_of(path) or path


def stands_for_run(path: Path) -> bool:
    """Whether a reader knows the file, and it is not one of several that belong to a run that another stands for.

    A reader of runs that lie in several files says by ``leads(path)`` which of them stands for the run.
    """
    if RANK_FILE.search(path.name):
        return False
    try:
        head = _head(path)
        if log_of(path) is not None:
            return False
    except (ReadError, OSError):
        return False
    known = next((reader for reader in readers() if reader.sniff(path, head)), None)
    return known is not None and bool(getattr(known, "leads", _alone)(path))


def _alone(path: Path) -> bool:  # noqa: ARG001
    return True

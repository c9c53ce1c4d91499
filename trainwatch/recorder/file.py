"""The run's file: which one, opened how, and what an earlier process left in it."""

from __future__ import annotations

import contextlib
import errno
import glob
import itertools
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

RANK_WAIT = 5.0  # s that another rank waits for rank 0's file, whose name and id it takes
FRESH = 120.0  # s between the first and the last rank's start of one launch
_BLOCK = 1 << 16


@dataclass(frozen=True)
class RunFile:
    """An open run file."""

    path: Path
    fd: int
    stem: Path
    """The path without ``.rankN.jsonl``: what the ranks share, and what the stop file is named after."""
    id: str
    attempt: int = 1
    applied: Mapping[str, int] = field(default_factory=dict)


def place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of processes: as given, else of torch.distributed, else of the launcher's environment."""
    torch = sys.modules.get("torch")
    known: tuple[int, int] = (_environ("RANK", 0), _environ("WORLD_SIZE", 1))
    with contextlib.suppress(Exception):
        if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
            known = torch.distributed.get_rank(), torch.distributed.get_world_size()
    rank = known[0] if rank is None else rank
    world_size = max(known[1], rank + 1) if world_size is None else world_size
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < world_size:
        raise ValueError(f"Recorder: rank={rank!r} of world_size={world_size!r}: the ranks are 0 to world_size - 1")
    return rank, world_size


def _environ(name: str, default: int) -> int:
    with contextlib.suppress(ValueError):
        return int(os.environ.get(name, default))
    return default


def checked(path: str | os.PathLike[str]) -> Path:
    """The path, if a run can be written there; else one sentence says why not."""
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(
            f"Recorder: {str(file)!r} is a directory; name a file in it: {str(file / 'run.jsonl')!r}"
        )
    if file.suffix != ".jsonl":
        raise ValueError(f"Recorder: the path {str(file)!r} does not end in .jsonl; write {str(file) + '.jsonl'!r}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise type(fault)(
            f"Recorder: cannot make {str(file.parent)!r} ({fault.strerror}); give a path that can be written"
        ) from None
    return file


def open_new(path: Path, rank: int, world_size: int) -> RunFile:
    """A file of our own: ``exp1.jsonl``, or ``exp1-2.jsonl`` where that exists; other ranks go by rank 0's."""
    stem, run_id = path.with_suffix(""), uuid.uuid4().hex[:12]
    if rank:
        stem, run_id = _rank_zero(stem, world_size) or (stem, run_id)
    for number in itertools.count(1):
        candidate = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        file = _member(candidate, rank)
        if not rank and _left_by_others(candidate):
            continue
        try:
            fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            continue
        except OSError as fault:
            raise _unwritable(file, fault) from None
        return RunFile(file, fd, candidate, run_id)
    raise AssertionError("unreachable")


def open_again(path: Path, rank: int, step: int) -> RunFile:
    """The file of the run that goes on from ``step``; a line that was torn by a kill is ended first."""
    file = _member(path.with_suffix(""), rank)
    try:
        fd = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            os.write(fd, b"\n")
    except OSError as fault:
        raise _unwritable(file, fault) from None
    header, applied = _first(fd) or _first_of_rank_zero(path), _applied_at(fd, step)
    run_id, attempt = header.get("id"), header.get("attempt")
    return RunFile(
        file,
        fd,
        path.with_suffix(""),
        run_id if isinstance(run_id, str) else uuid.uuid4().hex[:12],
        attempt if isinstance(attempt, int) else 1,
        applied,
    )


def write(file: RunFile, line: bytes) -> None:
    """The header: before the loop, so it is written here and fails loudly."""
    try:
        if os.write(file.fd, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as fault:
        os.close(file.fd)
        raise _unwritable(file.path, fault) from None


def _member(stem: Path, rank: int) -> Path:
    return stem.with_name(f"{stem.name}.rank{rank}.jsonl" if rank else f"{stem.name}.jsonl")


def _left_by_others(stem: Path) -> bool:
    """Whether a file of another rank lies there whose rank 0 is gone; one of this launch's ranks is younger."""
    return any(-_age(file) < time.time() - FRESH for file in stem.parent.glob(f"{glob.escape(stem.name)}.rank*.jsonl"))


def _first_of_rank_zero(path: Path) -> dict[str, Any]:
    """The header that a rank goes by which was not there before: its run goes on with more processes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        return _first(fd)
    finally:
        os.close(fd)


def _unwritable(file: Path, fault: OSError) -> OSError:
    return type(fault)(f"Recorder: cannot write {str(file)!r} ({fault.strerror}); give a path that can be written")


def _rank_zero(stem: Path, world_size: int) -> tuple[Path, str] | None:
    """Stem and id of the file that this launch's rank 0 opened: the newest that began within two minutes of now."""
    sibling = re.compile(re.escape(stem.name) + r"(-\d+)?\.jsonl")
    deadline = time.monotonic() + RANK_WAIT
    while time.monotonic() < deadline:
        files = [file for file in stem.parent.glob("*.jsonl") if sibling.fullmatch(file.name)]
        for file in sorted(files, key=_age):
            with contextlib.suppress(OSError, orjson.JSONDecodeError):
                with file.open("rb") as stream:
                    header = orjson.loads(stream.readline())
                fresh = abs(time.time() - header.get("time", 0)) < FRESH
                if fresh and header.get("rank") == 0 and header.get("world_size") == world_size:
                    return file.with_suffix(""), str(header["id"])
        time.sleep(0.05)
    return None


def _age(file: Path) -> float:
    with contextlib.suppress(OSError):
        return -file.stat().st_mtime
    return 0.0


def _first(fd: int) -> dict[str, Any]:
    """The first header of the file, if it can be read."""
    with contextlib.suppress(orjson.JSONDecodeError):
        record = orjson.loads(os.pread(fd, 1 << 24, 0).split(b"\n", 1)[0])
        return record if isinstance(record, dict) else {}
    return {}


def _applied_at(fd: int, step: int) -> dict[str, int]:
    """How many steps had been applied at ``step``, in all and by each of several optimisers; after the last row before
    it at the pace they had. Read from the end, since that is where a checkpoint's step is.
    """
    for line in _lines_backwards(fd):
        with contextlib.suppress(orjson.JSONDecodeError):
            record = orjson.loads(line) if b'"step"' in line else {}
            if record.get("kind") == "step" and record.get("step", step + 1) <= step:
                missing, applied = step - int(record["step"]), int(record.get("applied", step))
                counts = {name: int(count) for name, count in record.items() if name.startswith("applied/")}
                own = {name: count + round(missing * count / max(applied, 1)) for name, count in counts.items()}
                return {"applied": applied + missing, **own}
    return {"applied": step}


def _lines_backwards(fd: int) -> Iterator[bytes]:
    end, rest = os.fstat(fd).st_size, b""
    while end > 0:
        start = max(0, end - _BLOCK)
        head, *lines = (os.pread(fd, end - start, start) + rest).split(b"\n")
        yield from reversed(lines)
        end, rest = start, head
    yield rest

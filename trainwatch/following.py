"""Run files that may still grow: each read by cursor and judged once, and the folder that they lie in.

What a live face stands on. Nothing is done unless somebody asks, and then only for a file that has changed: a run that
is over, or waits for its next step, costs one ``stat``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainwatch.diagnosis import Diagnosis, conclude
from trainwatch.engine import Engine, Settings
from trainwatch.index import Index
from trainwatch.readers import HIDDEN, RANK_FILE, ReadError, Source, leader, open_run, stands_for_run
from trainwatch.run import Run
from trainwatch.schema import Finding

SCAN_SECONDS = 2.0  # how old a folder's listing may be
SCAN_LIMIT = 20_000  # files looked at in a folder: beyond, it is a data set and not a folder of logs
QUIET_SECONDS = 1.0  # how often a file that stands still is opened: ranks and journals beside it may have grown
GROWN = 1.5  # how much a file grows before its run is put into the index anew
OVER = ("finished", "stopped", "failed", "killed", "never-started")


@dataclass
class Followed:
    """One file, as it stood when :meth:`look` was last called: the newest run in it and its diagnosis, or an error.

    ``runs`` were written into the file. ``version`` grows with every change. ``news`` are the findings that the last
    look brought: those that were not known, or are graver than they were.
    """

    path: Path
    settings: Settings | None = None
    index: Index | None = None
    run: Run | None = None
    diagnosis: Diagnosis | None = None
    error: str = ""
    runs: int = 0
    version: int = 0
    news: tuple[Finding, ...] = ()
    _source: Source | None = None
    _engine: Engine | None = None
    _stat: tuple[int, int, int] = (-1, -1, -1)
    _polled: float = 0.0
    _told: dict[tuple[str, str, int], int] = field(default_factory=dict)
    _kept: int = 0  # bytes of the file when it was last put into the index

    @property
    def over(self) -> bool:
        """Whether nothing more is expected."""
        return self.diagnosis is not None and self.diagnosis.status in OVER

    def touched(self) -> bool:
        """Whether the file is another one than at the last look, or has grown."""
        try:
            stat = self.path.stat()
        except OSError:
            return True
        return (stat.st_size, stat.st_mtime_ns, stat.st_ino) != self._stat

    def look(self, *, last: bool = False) -> bool:
        """Read what is new and judge it; True if something changed. ``last``: nothing more will be written.

        Never raises: what cannot be read is an ``error``.
        """
        before, self.news = self.version, ()
        try:
            self._follow(last)
        except FileNotFoundError:
            self._fail(f"{self.path}: there is no such file.")
        except (ReadError, OSError) as error:
            self._fail(str(error))
        except Exception as error:  # a log must not take the face down, whatever it holds
            self._fail(f"{self.path}: could not be judged ({type(error).__name__}: {error}).")
        return self.version != before

    def _fail(self, reason: str) -> None:
        self._source = self._engine = None
        if self.error != reason:
            self.run, self.diagnosis, self.error, self.runs = None, None, reason, 0
            self.version += 1

    def _follow(self, last: bool) -> None:
        stat = self.path.stat()
        before, self._stat = self._stat, (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        still = self._stat == before and not last
        if still and (self.over or self.error or time.monotonic() - self._polled < QUIET_SECONDS):
            return
        if self._source is None or stat.st_size < before[0] or stat.st_ino != before[2]:  # another file of that name
            self._source, self._engine, self._kept = open_run(self.path), None, 0
            self._recall(self._source)
        self._polled = time.monotonic()
        grown = self._source.poll()
        if last:
            self._source.close()
        if not self._source.runs:
            raise ReadError(f"{self.path}: holds no readable run yet; its first line should be a record of kind 'run'.")
        self._judge(self._source.runs[-1], grown or last)
        self.runs, self.error = len(self._source.runs), ""
        self._keep(self._source, stat.st_size)

    def _recall(self, source: Source) -> None:
        """Go on from where the index knows the file, with the diagnosis where that is known too."""
        if self.index is None:
            return
        size, found = self.index.recall(source, self.settings or Settings())
        if size and (found is not None or source.runs[-1].end is None):
            self._kept = size
        if found is not None:
            self.run, self.diagnosis, self._told = source.runs[-1], found, {}
            self.news = self._fresh(found)
            self.version += 1

    def _keep(self, source: Source, size: int) -> None:
        """Put the run into the index once it is over, and before that whenever its file has grown by half."""
        due = size > self._kept if self.over else size > GROWN * self._kept
        if self.index is not None and self.diagnosis is not None and due:
            self.index.keep(source, self.diagnosis, self.settings or Settings())
            self._kept = size

    def _fresh(self, diagnosis: Diagnosis) -> tuple[Finding, ...]:
        """Findings that were not known, or are graver than they were; from now on they are known."""
        news = tuple(one for one in diagnosis.findings if one.rank > self._told.get(one.key, -1))
        self._told |= {finding.key: finding.rank for finding in news}
        return news

    def _judge(self, run: Run, grown: bool) -> None:
        known = self.diagnosis if run is self.run else None
        if known is not None and not grown and known.status == run.status():
            return
        if run is not self.run:
            self._told = {}
        if self._engine is None or run is not self.run:
            self._engine = Engine(self.settings)
        self._engine.feed(run)
        self.run, self.diagnosis = run, conclude(run, self._engine)
        self.news = self._fresh(self.diagnosis)
        self.version += 1


class Folder:
    """The run files below a folder, of any format, or those of a list; a file is a folder of one."""

    def __init__(self, root: Path | list[Path]) -> None:
        self.root = root
        self.cut = False  # whether there are more files than are looked at
        self._files: dict[str, Path] = {}
        self._foreign: dict[Path, int] = {}
        self._scanned = -SCAN_SECONDS

    def files(self) -> dict[str, Path]:
        """Every file by its path below the folder; listed anew when the last listing is some seconds old."""
        if time.monotonic() - self._scanned >= SCAN_SECONDS:
            self._files = dict(self._candidates())
            self._scanned = time.monotonic()
        return self._files

    def _candidates(self) -> Iterator[tuple[str, Path]]:
        """(key, path) of what is a run file, or is called like one."""
        if not isinstance(self.root, Path):
            for path in self.root:
                yield str(path), path
            return
        if self.root.is_file():
            yield self.root.name, self.root
            return
        for path in self._walk(self.root):
            called = path.suffix == ".jsonl" and leader(path) == path
            if called or self._is_run(path, path.relative_to(self.root).as_posix()):
                yield path.relative_to(self.root).as_posix(), path

    def _walk(self, folder: Path) -> Iterator[Path]:
        """Files below the folder that are neither hidden, nor a rank's, nor (through a link) outside of it."""
        seen = 0
        inside = folder.resolve()
        for place, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not HIDDEN.search(name))
            for name in sorted(names):
                path = Path(place) / name
                seen += 1
                if seen > SCAN_LIMIT:
                    self.cut = True
                    return
                if HIDDEN.search(name) or RANK_FILE.search(name):
                    continue
                if not path.is_symlink() or path.resolve().is_relative_to(inside):
                    yield path

    def _is_run(self, path: Path, key: str) -> bool:
        """Whether a reader knows the file; one that none knew is asked again only when its size has changed."""
        if key in self._files:
            return True
        try:
            size = path.stat().st_size
            if self._foreign.get(path) == size:
                return False
            self._foreign[path] = size
            return stands_for_run(path)
        except OSError:
            return False

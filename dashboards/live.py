"""The runs below a folder as they stand now: read by cursor, judged once, shared by every tab that looks.

There is no Dash in here. Nothing is done unless somebody asks, and then only for a file that has changed; a finished
run costs one ``stat``. A first reading may take long, so it goes on in a thread and the caller is told *reading*.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dashboards.asked import SCALES, Asked
from dashboards.facts import Facts
from dashboards.story import Story
from trainwatch.diagnosis import Diagnosis, conclude
from trainwatch.engine import Engine, Settings
from trainwatch.figures import FIGURES, Look, Span, axis, blank, for_finding, proof, span_of
from trainwatch.readers import HIDDEN, RANK_FILE, ReadError, Source, open_run
from trainwatch.run import Run
from trainwatch.schema import Finding

SCAN_SECONDS = 2.0  # how old a folder's listing may be
SCAN_LIMIT = 20_000  # files looked at in a folder: beyond, it is a data set and not a folder of logs
PATIENCE = 0.4  # seconds that an answer waits for a file to be read
FIGURES_KEPT = 64
PROOF = "proof"  # beside the names of FIGURES: the one that shows the root cause, around its first steps
OVER = ("finished", "stopped", "failed", "killed", "never-started")


@dataclass(frozen=True)
class View:
    """What is known of one file: a diagnosis and facts, or why there is none. ``version`` grows with every change.

    ``runs`` were written into the file; this is the newest of them.

    All of it is frozen but ``run``, which grows in another thread: whoever looks into it holds the file's lock.
    """

    key: str
    version: int = 0
    run: Run | None = None
    diagnosis: Diagnosis | None = None
    facts: Facts | None = None
    error: str = ""
    runs: int = 1

    @property
    def over(self) -> bool:
        """Whether nothing more is expected: no face needs to ask again."""
        return self.diagnosis is not None and self.diagnosis.status in OVER


@dataclass(frozen=True)
class Drawn:
    """A figure as JSON text; ``digest`` names its content, so that one that a page already shows is not sent again."""

    digest: str
    json: str


@dataclass
class Watched:
    """One file. Its lock is held while the run grows or is drawn."""

    key: str
    path: Path
    settings: Settings | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    view: View = field(init=False)
    _source: Source | None = None
    _engine: Engine | None = None
    _stat: tuple[int, int, int] = (-1, -1, -1)
    _figures: dict[tuple[str, Look], Drawn | None] = field(default_factory=dict)
    _proofs: dict[tuple[str, str, int], str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.view = View(self.key)

    def refresh(self) -> None:
        """Read what is new and judge it; never raises, an unreadable file is a view with its reason."""
        with self.lock:
            try:
                self._follow()
            except (ReadError, OSError) as error:
                self._fail(str(error))
            except Exception as error:  # a log must not take the page down, whatever it holds
                self._fail(f"{self.path}: could not be judged ({type(error).__name__}: {error}).")

    def _fail(self, reason: str) -> None:
        self._source = self._engine = None
        if self.view.error != reason:
            self.view = View(self.key, self.view.version + 1, error=reason)

    def _follow(self) -> None:
        stat = self.path.stat()
        now = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if now == self._stat and (self.view.over or self.view.error):
            return
        if self._source is None or now[0] < self._stat[0] or now[2] != self._stat[2]:  # another file of that name
            self._source, self._engine = open_run(self.path), None
        self._stat = now
        news = self._source.poll()
        if not self._source.runs:
            raise ReadError(f"{self.path}: holds no readable run yet; its first line should be a record of kind 'run'.")
        self._judge(self._source.runs[-1], len(self._source.runs), news)

    def _judge(self, run: Run, runs: int, news: bool) -> None:
        known = self.view.diagnosis
        if self._engine is None or run is not self.view.run:
            self._engine = Engine(self.settings)
            self._proofs.clear()
        elif not news and known is not None and known.status == run.status():
            return
        self._engine.feed(run)
        self.view = View(self.key, self.view.version + 1, run, conclude(run, self._engine), Facts.of(run), runs=runs)
        self._figures.clear()

    def look(self, asked: Asked) -> Look:
        """What a page asks for, with its range in steps."""
        span = None
        if asked.ends and self.view.run is not None:
            with self.lock:
                across = axis(self.view.run, asked.unit)
            first, last = asked.ends
            span = across.span(first, last) if across else (math.floor(first), math.ceil(last))
        return Look(span, asked.against, SCALES[asked.scale], asked.smooth)

    def draw(self, name: str, look: Look) -> Drawn | None:
        """A figure of the run as it was last read; None if the run has nothing for it."""
        if self.view.run is None:
            return None  # without waiting for a first reading
        with self.lock:
            if (name, look) not in self._figures:
                if len(self._figures) >= FIGURES_KEPT:
                    self._figures.clear()
                self._figures[name, look] = self._draw(name, look)
            return self._figures[name, look]

    def _draw(self, name: str, look: Look) -> Drawn | None:
        try:
            figure = self.figure(name, look)
        except Exception as error:  # one odd log must not take the other figures down
            figure = blank(f"this figure could not be drawn ({type(error).__name__})", look.span)
        if figure is None:
            return None
        text: str = figure.to_json()
        return Drawn(hashlib.sha1(text.encode()).hexdigest()[:12], text)

    def figure(self, name: str, look: Look) -> Any:
        """The same as plotly's own object; the caller holds the lock."""
        run, told = self.view.run, self.view.diagnosis
        if run is None or told is None:
            return None
        if name == PROOF:
            root = told.root_cause
            return for_finding(run, root, told.findings, replace(look, span=_where(run, root))) if root else None
        figure = FIGURES[name].draw(run, told.findings, look)
        if figure is None and look.span is not None and self.draw(name, replace(look, span=None)) is not None:
            return blank("no value in these steps", look.span, axis(run, look.against))
        return figure

    def story(self) -> Story:
        """What happened and how it ends; nothing where the run could not be read."""
        run, told = self.view.run, self.view.diagnosis
        if run is None or told is None:
            return Story()
        with self.lock:
            return Story.of(run, told)

    def spot(self, finding: Finding) -> tuple[Span, str | None]:
        """Where to look for a finding: the steps, and the figure that proves it."""
        with self.lock:
            if self.view.run is None:
                return (finding.first_step, finding.last_step + 1), None
            if finding.key not in self._proofs:
                self._proofs[finding.key] = proof(self.view.run, finding)
            return _where(self.view.run, finding), self._proofs[finding.key]


class Live:
    """Every run file below a folder, or those of a list. Safe to ask from several threads."""

    def __init__(self, root: Path | list[Path], settings: Settings | None = None) -> None:
        self.root = root
        self.cut = False
        self._settings = settings
        self._files: dict[str, Watched] = {}
        self._foreign: dict[Path, int] = {}
        self._scanned = -SCAN_SECONDS
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="trainwatch-read")
        self._reading: dict[str, Future[None]] = {}

    @property
    def where(self) -> str:
        """What is watched, in words."""
        return str(self.root) if isinstance(self.root, Path) else f"{len(self.root)} files"

    def views(self) -> list[View]:
        """Every file as it stands now, newest first."""
        files = self.files()
        self._refresh(files, PATIENCE)
        return sorted((file.view for file in files), key=lambda view: (-_touched(view), view.key))

    def view(self, key: str, patience: float = PATIENCE) -> View | None:
        """The file with that key; None if the folder has no such file. Only keys that a listing gave are known."""
        file = self.file(key)
        if file is None:
            return None
        self._refresh([file], patience)
        return file.view

    def some(self, keys: Iterable[str], patience: float = PATIENCE) -> list[Watched | None]:
        """The files with these keys as they stand now, read side by side; None where the folder has no such file."""
        files = [self.file(key) for key in keys]
        self._refresh([file for file in files if file], patience)
        return files

    def file(self, key: str) -> Watched | None:
        """The file with that key, nothing new read."""
        return self._files.get(key) or next((file for file in self.files() if file.key == key), None)

    def files(self) -> list[Watched]:
        """The files as last listed; listed anew when that is some seconds ago."""
        with self._lock:
            if time.monotonic() - self._scanned >= SCAN_SECONDS:
                self._scan()
                self._scanned = time.monotonic()
            return list(self._files.values())

    def _refresh(self, files: list[Watched], patience: float) -> None:
        """Let the pool read; what takes longer than ``patience`` seconds goes on and is shown at a later call."""
        with self._lock:
            for file in files:
                if file.key not in self._reading or self._reading[file.key].done():
                    self._reading[file.key] = self._pool.submit(file.refresh)
            waiting = [self._reading[file.key] for file in files]
        wait(waiting, timeout=patience)

    def _scan(self) -> None:
        found = dict(self._candidates())
        self._files = {key: self._files.get(key) or Watched(key, path, self._settings) for key, path in found.items()}

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
            if path.suffix == ".jsonl" or self._is_run(path):
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

    def _is_run(self, path: Path) -> bool:
        """Whether a reader knows the file; one that none knew is asked again only when its size has changed."""
        if path.relative_to(self.root).as_posix() in self._files:  # type: ignore[arg-type]  # a list is not walked
            return True
        try:
            size = path.stat().st_size
            if self._foreign.get(path) == size:
                return False
            self._foreign[path] = size
            open_run(path).close()
        except (ReadError, OSError):
            return False
        return True


def _where(run: Run, finding: Finding) -> Span:
    """The steps that show a finding; for one about the header the whole run, as the damage is still to come."""
    if run.first_step is None or run.last_step is None or finding.first_step > run.first_step:
        return span_of(run, finding)
    return run.first_step, max(run.last_step, run.first_step + 1)


def _touched(view: View) -> float:
    return view.facts.touched if view.facts else 0.0

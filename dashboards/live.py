"""The runs below a folder as they stand now: read by cursor, judged once, shared by every tab that looks.

There is no Dash in here. Nothing is done unless somebody asks, and then only for a file that has changed; a finished
run costs one ``stat``. A first reading may take long, so it goes on in a thread and the caller is told *reading*.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dashboards.asked import SCALES, X_SCALES, Asked
from dashboards.facts import Facts
from dashboards.story import Story
from trainwatch.diagnosis import Diagnosis
from trainwatch.engine import Settings
from trainwatch.figures import FIGURES, Look, Span, axis, blank, for_finding, proof, span_of
from trainwatch.following import OVER, Folder, Followed
from trainwatch.index import Index, cache_folder
from trainwatch.run import Run
from trainwatch.schema import Finding

PATIENCE = 0.4  # seconds that an answer waits for a file to be read
FIGURES_KEPT = 64
PROOF = "proof"  # beside the names of FIGURES: the one that shows the root cause, around its first steps


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
    followed: Followed
    lock: threading.RLock = field(default_factory=threading.RLock)
    view: View = field(init=False)
    _figures: dict[tuple[str, Look], Drawn | None] = field(default_factory=dict)
    _proofs: dict[tuple[str, str, int], str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.view = View(self.key)

    def refresh(self) -> None:
        """Read what is new and judge it; never raises, an unreadable file is a view with its reason."""
        with self.lock:
            if not self.followed.look():
                return
            now = self.followed
            if now.run is not self.view.run:
                self._proofs.clear()
            self._figures.clear()
            try:
                facts, error = Facts.of(now.run) if now.run else None, now.error
            except Exception as odd:  # a log must not take the page down, whatever it holds
                facts, error = None, f"{now.path}: could not be shown ({type(odd).__name__}: {odd})."
            self.view = View(self.key, now.version, now.run, now.diagnosis, facts, error, now.runs)

    def settled(self) -> bool:
        """Whether nothing is to be read: the run is over or unreadable, and its file is as it was."""
        return (self.view.over or bool(self.view.error)) and not self.followed.touched()

    def look(self, asked: Asked) -> Look:
        """What a page asks for, with its range in steps."""
        span = None
        if asked.ends and self.view.run is not None:
            with self.lock:
                across = axis(self.view.run, asked.unit)
            first, last = asked.ends
            span = across.span(first, last) if across else (math.floor(first), math.ceil(last))
        return Look(span, asked.against, SCALES[asked.scale], asked.smooth, log_x=X_SCALES[asked.x_scale])

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
        self.folder = Folder(root)
        self._settings = settings
        self._index = Index(cache_folder())
        self._files: dict[str, Watched] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="trainwatch-read")
        self._ahead = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trainwatch-ahead")
        self._reading: dict[str, Future[None]] = {}

    @property
    def where(self) -> str:
        """What is watched, in words."""
        root = self.folder.root
        return str(root) if isinstance(root, Path) else f"{len(root)} files"

    def views(self, patience: float = PATIENCE) -> list[View]:
        """Every file as it stands now, newest first."""
        files = self.files()
        self._refresh(files, patience)
        return sorted((file.view for file in files), key=lambda view: (-_touched(view), view.key))

    def view(self, key: str, patience: float = PATIENCE) -> View | None:
        """The file with that key; None if the folder has no such file. Only keys that a listing gave are known."""
        file = self.file(key)
        if file is None:
            return None
        with self._lock:
            queued = self._reading.get(key)
            if queued is not None and queued.cancel():
                # somebody waits for it: not behind a whole folder's first reading
                self._reading[key] = self._ahead.submit(file.refresh)
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
            known, found = self._files, self.folder.files()
            self._files = {
                key: known.get(key) or Watched(key, Followed(path, self._settings, self._index))
                for key, path in found.items()
            }
            return list(self._files.values())

    def _refresh(self, files: list[Watched], patience: float) -> None:
        """Let the pool read; what takes longer than ``patience`` seconds goes on and is shown at a later call."""
        waiting = []
        with self._lock:
            for file in sorted(files, key=_unread):
                reading = self._reading.get(file.key)
                if reading is None or reading.done():
                    if file.settled():
                        continue  # a thousand finished runs cost a thousand stats
                    reading = self._reading[file.key] = self._pool.submit(file.refresh)
                waiting.append(reading)
        wait(waiting, timeout=patience)


def _where(run: Run, finding: Finding) -> Span:
    """The steps that show a finding; for one about the header the whole run, as the damage is still to come."""
    if run.first_step is None or run.last_step is None or finding.first_step > run.first_step:
        return span_of(run, finding)
    return run.first_step, max(run.last_step, run.first_step + 1)


def _unread(file: Watched) -> float:
    """Sorts what was never read behind the rest, the newest file first: that is where somebody waits for news."""
    if file.view.version:
        return 0.0
    try:
        return 1.0 + max(time.time() - file.followed.path.stat().st_mtime, 0.0)
    except OSError:
        return math.inf


def _touched(view: View) -> float:
    return view.facts.touched if view.facts else 0.0

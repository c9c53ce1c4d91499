"""The state behind the live view: which runs there are, what arose in them, which one is open, and what keys do."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.text import Text

from trainwatch.diagnosis import Diagnosis
from trainwatch.engine import Settings
from trainwatch.following import SCAN_LIMIT, Folder, Followed
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.watch import charts, frame
from trainwatch.watch.frame import Key, Looks

BUDGET = 0.3  # seconds of reading, after which what is known so far may be drawn
FRESH_SECONDS = 60.0  # so long a finding is marked as new
SILENCE = (
    600.0  # seconds after which a log without an end record is believed to have ended: an evaluation is silent too
)
SHARE_OF_RUNS = 0.5  # of the window, that the table of runs may take where a run is shown below it


@dataclass
class Change:
    """Something to be told: a finding that is new or graver, or (``finding`` is None) a run's new state."""

    file: Followed
    finding: Finding | None = None


class Listener(Protocol):
    """Who is told of every run as it changes: alerts, and the request that it stop."""

    @property
    def notices(self) -> list[str]:
        """What the view should say of it."""

    def look(self, run: Run, said: Diagnosis, ended: bool) -> None:
        """A run has changed; ``ended``: nothing more is expected of it."""

    def close(self, patience: float) -> None:
        """The watching ends; wait so many seconds at most."""


@dataclass
class Board:
    """A run file, or a folder of them, as it is watched."""

    target: Path
    settings: Settings | None = None
    listeners: Sequence[Listener] = ()
    files: dict[str, Followed] = field(default_factory=dict)
    opened: str | None = None  # of a folder's runs, the one that fills the window
    chosen: str | None = None  # by the arrow keys
    scroll: int = 0
    _folder: Folder = field(init=False)
    _due: deque[str] = field(default_factory=deque)
    _written: dict[str, float] = field(default_factory=dict)  # when each file last was, as listed
    _states: dict[str, str] = field(default_factory=dict)
    _lived: set[str] = field(default_factory=set)  # what was seen to run
    _fresh: dict[str, dict[Key, float]] = field(default_factory=dict)
    _drawn: dict[str, tuple[tuple[int, int], list[Text]]] = field(default_factory=dict)
    _heard: dict[str, tuple[int, bool]] = field(default_factory=dict)  # what the listeners know of each run

    def __post_init__(self) -> None:
        self._folder = Folder(self.target)

    @property
    def single(self) -> bool:
        """Whether one run is watched; also while there is none yet."""
        return not self.target.is_dir()

    @property
    def over(self) -> bool:
        """Whether the one run that is watched is over. A folder never is: another run may begin."""
        return self.single and bool(self.files) and all(self._ended(key, file) for key, file in self.files.items())

    def _ended(self, key: str, file: Followed) -> bool:
        """Whether a run is over; a log that leaves no end record and was seen to grow is waited for a while."""
        if file.run is None or not file.over:
            return False
        return file.run.tells_end or key not in self._lived or time.time() - file.run.touched >= SILENCE

    @property
    def reading(self) -> bool:
        """Whether there are files that were not looked at since the round began."""
        return bool(self._due)

    def look(self, budget: float = BUDGET, *, last: bool = False) -> list[Change]:
        """Read what is new in the files, for about so many seconds; the rest is for the next call."""
        if not self._due:
            self._list()
        began, changes = time.monotonic(), []
        while self._due and time.monotonic() - began < budget:
            key = self._due.popleft()
            if key in self.files and self.files[key].look(last=last):
                changes += self._changes(key, self.files[key])
            self._tell(key)
        return changes

    def _tell(self, key: str) -> None:
        """Let the listeners look at a run that has changed, or has ended by its silence."""
        file = self.files.get(key)
        if file is None or file.run is None or file.diagnosis is None:
            return
        known = file.version, self._ended(key, file)
        if self._heard.get(key) != known:
            self._heard[key] = known
            for listener in self.listeners:
                listener.look(file.run, file.diagnosis, known[1])

    @property
    def notices(self) -> list[str]:
        """What the listeners have to say."""
        return [said for listener in self.listeners for said in listener.notices]

    def conclude(self) -> list[Change]:
        """Look at everything for the last time: what stands after the last newline counts as well."""
        self._due.clear()
        return self.look(math.inf, last=True)

    def _list(self) -> None:
        paths = {self.target.name: self.target} if self.single else self._folder.files()
        self.files = {key: self.files.get(key) or Followed(path, self.settings) for key, path in paths.items()}
        self._written = {key: _modified(file.path) for key, file in self.files.items()}
        self._due = deque(sorted(self.files, key=lambda key: -self._written[key]))

    def _changes(self, key: str, file: Followed) -> list[Change]:
        """What a look brought. Every finding that arises in a watched run passes here once."""
        known, state = self._states.get(key), file.diagnosis.status if file.diagnosis else ""
        self._states[key] = state
        if state in ("running", "stalled"):
            self._lived.add(key)
        if known:  # what a first look finds is not new
            now = time.monotonic()
            self._fresh.setdefault(key, {}).update({finding.key: now for finding in file.news})
        changes = [Change(file)] if state and state != known else []
        return changes + [Change(file, finding) for finding in file.news]

    def order(self) -> list[tuple[str, Followed]]:
        """The runs, newest first."""
        times = {key: file.run.touched if file.run else self._written.get(key, 0.0) for key, file in self.files.items()}
        return sorted(self.files.items(), key=lambda item: (-times[item[0]], item[0]))

    def selected(self) -> str | None:
        """The run that is chosen: by key, else the newest that is running, else the newest."""
        if self.chosen in self.files:
            return self.chosen
        order = self.order()
        going = [key for key, file in order if file.diagnosis is not None and not file.over]
        return next(iter(going or [key for key, _ in order]), None)

    def press(self, key: str) -> None:
        """What a key does: in a table the arrows choose a run and Enter opens it, in a run they scroll its findings."""
        listing = not self.single and self.opened not in self.files
        if key == "escape":
            self.opened, self.scroll = None, 0
        elif listing and key == "enter":
            self.opened, self.scroll = self.selected(), 0
            self.chosen = self.opened
        elif key in ("up", "down"):
            step = -1 if key == "up" else 1
            if listing:
                self._choose(step)
            else:
                file = self.files.get(self.target.name if self.single else str(self.opened))
                count = len(file.diagnosis.findings) if file and file.diagnosis else 0
                self.scroll = max(0, min(self.scroll + step, count - 1))

    def _choose(self, step: int) -> None:
        keys = [key for key, _ in self.order()]
        if keys:
            at = keys.index(self.selected() or keys[0]) + step
            self.chosen = keys[max(0, min(at, len(keys) - 1))]

    def lines(self, out: Console, height: int | None) -> list[Text]:
        """The view in so many lines (None for all of it); only while nobody is looking for news."""
        now = time.time()
        if self.single or self.opened in self.files:
            key = self.target.name if self.single else str(self.opened)
            file = self.files.get(key) or Followed(self.target)
            return self._run(out, key, file, Looks(height, self.scroll), now)
        if not self.files:
            return frame.empty(out, str(self.target))
        return self._listing(out, height, now)

    def _run(self, out: Console, key: str, file: Followed, looks: Looks, now: float) -> list[Text]:
        since = time.monotonic() - FRESH_SECONDS
        fresh = {name for name, at in self._fresh.get(key, {}).items() if at > since}
        return frame.one_run(out, file, self._charts(key, file, out.width), replace(looks, fresh=fresh), now)

    def _listing(self, out: Console, height: int | None, now: float) -> list[Text]:
        order, key = self.order(), self.selected()
        rows = None if height is None else max(int(SHARE_OF_RUNS * height), height - 30, 3)
        table = frame.runs(out, order, key, rows, now)
        if self._folder.cut:
            table.append(Text(f"only the first {SCAN_LIMIT:,} files were looked at", style="dim"))
        left = None if height is None else height - len(table) - 1
        if key is None or (left is not None and left < 4):
            return table[:height]
        return [*table, Text(), *self._run(out, key, self.files[key], Looks(left), now)]

    def _charts(self, key: str, file: Followed, width: int) -> list[Text]:
        """The run's numbers, drawn anew when it has changed: the clock ticks, the curves do not."""
        stamp = (file.version, width)
        if key not in self._drawn or self._drawn[key][0] != stamp:
            self._drawn[key] = (stamp, charts.draw(charts.sections(file.run), width) if file.run else [])
        return self._drawn[key][1]


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

"""The table of runs as every tab shares it: rows as plain values, and what of them changed since a tab last asked.

There is no Dash in here. A row is made again only when its run or its note has changed.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from dashboards.live import PATIENCE, Live, View
from dashboards.notes import Note, Notes, NotesError
from dashboards.words import STATES, SYMBOLS, WORDS, broken, health, newest
from trainwatch.following import SCAN_LIMIT

Row = dict[str, Any]
EDITABLE = ("tags", "note")


@dataclass(frozen=True)
class Seen:
    """What a tab knows: ``revision`` of the table of the server ``server``."""

    server: str
    revision: int

    @classmethod
    def of(cls, value: Any) -> Seen | None:
        """From what a page keeps; None for anything else."""
        if not isinstance(value, dict) or not isinstance(value.get("revision"), int):
            return None
        return cls(str(value.get("server")), value["revision"])


@dataclass
class _Kept:
    view: View
    note: Note
    row: Row
    revision: int


class Listing:
    """The rows of a watched folder. Safe to ask from several threads."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.notes = Notes(live.folder.root)
        self._server = secrets.token_hex(4)  # a tab may outlive the server that it asked first
        self._revision = 0
        self._trouble = ""
        self._kept: dict[str, _Kept] = {}
        self._gone: dict[str, int] = {}
        self._lock = threading.Lock()

    def rows(self) -> list[Row]:
        """Every run as it stands now, newest first."""
        return list(self.news(None)["rows"])

    def news(self, seen: Seen | None, patience: float = PATIENCE) -> dict[str, Any]:
        """What a tab has to know: all rows, or with ``seen`` those that changed since; ``new`` tells whether any did.

        ``now`` is the server's clock, for the ages; ``trouble`` says what keeps the table from being whole.
        """
        views = self.live.views(patience)
        notes = self.notes.all(view.key for view in views)
        with self._lock:
            self._take(views, notes)
            since = seen.revision if seen and seen.server == self._server else 0
            return {
                "rows": [kept.row for kept in self._kept.values() if kept.revision > since],
                "gone": [key for key, revision in self._gone.items() if revision > since > 0],
                "all": since == 0,
                "new": self._revision > since,
                "seen": {"server": self._server, "revision": self._revision},
                "trouble": self._trouble,
                "now": time.time(),
            }

    def now(self) -> list[Row]:
        """Every row as last taken, nothing new read."""
        with self._lock:
            return [kept.row for kept in self._kept.values()]

    def edit(self, key: str, name: str, value: str, before: str) -> tuple[Row | None, str]:
        """Keep a field of a run's note: the row as it is now, and what to tell its writer."""
        if self.live.file(key) is None or name not in EDITABLE:
            return None, "Not kept: there is no such run any more."
        try:
            self.notes.edit(key, name, value, before)
            said = f"Kept beside the runs: {name} of {key}."
        except NotesError as error:
            said = str(error)
        rows = {row["key"]: row for row in self.rows()}
        return rows.get(key), said

    def _take(self, views: list[View], notes: dict[str, Note]) -> None:
        revision = self._revision + 1
        before, self._kept = self._kept, {}
        for view in views:
            note, kept = notes.get(view.key, Note()), before.get(view.key)
            if kept is None or kept.view is not view or kept.note != note:
                row = row_of(view, note)
                same = kept is not None and kept.row == row
                kept = _Kept(view, note, row, kept.revision if kept and same else revision)
            self._kept[view.key] = kept
            self._gone.pop(view.key, None)
        gone = before.keys() - self._kept.keys()
        self._gone |= dict.fromkeys(gone, revision)
        trouble = " ".join(filter(None, (_trouble(self.live), self.notes.error)))
        changed = any(kept.revision == revision for kept in self._kept.values())
        if changed or gone or trouble != self._trouble:
            self._revision = revision
        self._trouble = trouble


def row_of(view: View, note: Note) -> Row:
    """One run as plain values; what cannot be read is a row that says why."""
    shared = {
        "key": view.key,
        "href": f"/run?path={quote(view.key, safe='')}",
        "file": view.key + newest(view.runs),
        "folder": view.key.rpartition("/")[0],
        **note.fields,
    }
    told, facts = view.diagnosis, view.facts
    if told is None or facts is None:
        state, why = ("unreadable", view.error.partition(": ")[2] or view.error) if view.error else ("reading", "")
        return {**shared, **_health("unknown"), "run": view.key, "state": state, "cause": why}
    root = told.root_cause or (told.findings[0] if told.findings else None)
    return {
        **shared,
        **_health(health(told)),
        "run": told.run,
        "state": STATES[told.status],
        "cause": root.message if root else broken(told),
        "line": facts.spark.lines,
        "bad": facts.spark.bad,
        "curve": facts.spark.said,
        "steps": facts.last_step,
        "of": facts.total_steps,
        "progress": facts.progress,
        "loss": facts.loss_value,
        "loss_said": facts.loss,
        "speed": 1 / facts.step_seconds if facts.step_seconds else None,
        "speed_said": facts.speed,
        "left": facts.left,
        "touched": facts.touched,
    }


def _health(level: str) -> dict[str, str]:
    return {"level": level, "symbol": SYMBOLS[level], "health": WORDS[level]}


def _trouble(live: Live) -> str:
    """What keeps the table from being whole."""
    if not isinstance(live.folder.root, list) and not live.folder.root.exists():
        return f"{live.where} is not there any more."
    return f"Only the first {SCAN_LIMIT:,} files of {live.where} were looked at." if live.folder.cut else ""

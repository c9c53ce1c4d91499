"""Tags and notes that people keep beside their runs, in one file of trainwatch's own. No Dash in here.

The file lies in the watched folder and is hidden, so that no reader, no tracker and no glob takes it for a log. Nothing
else is ever written: a new file is made beside it and put in its place, so a link of that name is replaced and not
followed, and whoever reads sees the old file or the new one.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

NAME: Final = ".trainwatch-notes.json"
TAGS: Final = 20
TAG_LENGTH: Final = 40
TEXT_LENGTH: Final = 2000
SIZE: Final = 20 << 20  # bytes: a larger file is not one of ours


class NotesError(Exception):
    """A note was not kept; the text is one sentence that says why."""


@dataclass(frozen=True)
class Note:
    """What somebody wrote about a run."""

    tags: tuple[str, ...] = ()
    text: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """As the two fields of a form."""
        return {"tags": ", ".join(self.tags), "note": self.text}

    def edited(self, name: str, value: str) -> Note:
        """With one field as somebody typed it; raises NotesError if it is too long."""
        if name == "tags":
            tags = tuple(dict.fromkeys(filter(None, (_plain(tag) for tag in value.split(",")))))
            if len(tags) > TAGS or any(len(tag) > TAG_LENGTH for tag in tags):
                raise NotesError(
                    f"Not kept: at most {TAGS} tags of at most {TAG_LENGTH} characters, with commas between."
                )
            return replace(self, tags=tags)
        text = value.strip()
        if len(text) > TEXT_LENGTH:
            raise NotesError(f"Not kept: a note has at most {TEXT_LENGTH:,} characters.")
        return replace(self, text=text)


@dataclass
class _File:
    """One notes file as it was last read."""

    stat: tuple[int, int, int] | None = None
    told: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class Notes:
    """The notes of a watched folder, or of some files: then beside each of them. Safe to ask from several threads."""

    def __init__(self, root: Path | list[Path]) -> None:
        self._root = root
        self._files: dict[Path, _File] = {}
        self._lock = threading.Lock()

    def all(self, keys: Iterable[str]) -> dict[str, Note]:
        """The notes of the runs that have one."""
        with self._lock:
            places = {key: self._place(key) for key in keys}
            files = {path: self._read(path) for path, _ in places.values()}
        found = {key: _note(files[path].told, name) for key, (path, name) in places.items()}
        return {key: note for key, note in found.items() if note != Note()}

    @property
    def error(self) -> str:
        """Why notes that are there cannot be shown; empty if they can."""
        with self._lock:
            return " ".join(file.error for file in self._files.values() if file.error)

    def edit(self, key: str, name: str, value: str, before: str) -> Note:
        """Keep one field of a run's note; ``before`` is what its writer saw there. Raises NotesError."""
        with self._lock:
            path, run = self._place(key)
            file = self._read(path)
            if file.error:
                raise NotesError(f"Not kept: {file.error}")
            known = _note(file.told, run)
            if known.fields[name] not in (before, value):
                raise NotesError(
                    f"Not kept: somebody else wrote “{known.fields[name]}” meanwhile; look, and edit again."
                )
            note = known.edited(name, value)
            if note != known:
                self._write(path, file.told, run, note)
            return note

    def _place(self, key: str) -> tuple[Path, str]:
        """The file that holds a run's note, and what the run is called in there."""
        if isinstance(self._root, list):
            return Path(key).parent / NAME, Path(key).name
        return (self._root.parent if self._root.is_file() else self._root) / NAME, key

    def _read(self, path: Path) -> _File:
        known = self._files.setdefault(path, _File())
        try:
            now = path.stat()
            stat = (now.st_size, now.st_mtime_ns, now.st_ino)
            if stat != known.stat:
                self._files[path] = _File(stat, _told(path, now.st_size))
        except FileNotFoundError:
            self._files[path] = _File()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not a notes file of trainwatch"
            self._files[path] = _File(error=f"{path} cannot be read ({reason}).")
        return self._files[path]

    def _write(self, path: Path, told: dict[str, Any], run: str, note: Note) -> None:
        runs = {**told.get("runs", {}), run: {"tags": list(note.tags), "note": note.text}}
        if note == Note():
            del runs[run]
        text = json.dumps({"kind": "trainwatch-notes", **told, "runs": runs}, indent=1, ensure_ascii=False)
        beside = path.with_name(f"{NAME}.{secrets.token_hex(4)}")
        try:
            try:
                with beside.open("x", encoding="utf-8") as file:
                    file.write(text + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
        except OSError as error:
            raise NotesError(f"Not kept: {path.parent} cannot be written to ({error.strerror}).") from error
        self._files.pop(path, None)


def _told(path: Path, size: int) -> dict[str, Any]:
    told = json.loads(path.read_text(encoding="utf-8")) if size <= SIZE else None
    if not isinstance(told, dict) or not isinstance(told.get("runs"), dict):
        raise ValueError
    return told


def _note(told: dict[str, Any], run: str) -> Note:
    said = told.get("runs", {}).get(run)
    if not isinstance(said, dict):
        return Note()
    tags, text = said.get("tags"), said.get("note")
    known = tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ()
    return Note(known, text if isinstance(text, str) else "")


def _plain(tag: str) -> str:
    return " ".join(tag.split())

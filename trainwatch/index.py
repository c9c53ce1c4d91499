"""Long runs as they were read last time, kept in the user's cache folder: a restarted face need not read them anew.

An entry stands for one file: its columns as they are, the other records as JSON, how far the file was read, and, where
the run had ended, its diagnosis. It is taken only while the file begins, and before that place ends, as it did, and
only by the very program that wrote it; what was appended since is read on from there. Whatever else is found in the
folder, or does not fit, is passed over, and nothing here ever raises: an index that cannot be kept costs time alone.

Kept are runs of trainwatch's own format that stand alone in their file, without ranks and lists of checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from trainwatch.diagnosis import Diagnosis
from trainwatch.engine import Settings
from trainwatch.prescription import Change, Prescription
from trainwatch.readers import Source
from trainwatch.readers.recorder import RunFile
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Table

WORTH: Final = 8 << 20  # bytes of a file: a smaller one is read in a tenth of a second
BOUND: Final = 2 << 30  # bytes of all entries
LARGEST: Final = BOUND // 2  # of one
TAIL: Final = 64 << 10  # bytes before the place up to which a file was read, that tell whether it is the same
TABLES: Final = ("train", "eval", "sample")
ABANDONED: Final = 3600.0  # seconds after which a half-written entry is nobody's any more


def cache_folder() -> Path:
    """Where the user's system keeps what can be made again."""
    if asked := os.environ.get("XDG_CACHE_HOME"):
        return Path(asked) / "trainwatch"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "trainwatch"
    if local := os.environ.get("LOCALAPPDATA"):
        return Path(local) / "trainwatch" / "Cache"
    return Path.home() / ".cache" / "trainwatch"


@dataclass
class Index:
    """The entries in a folder; at most ``bound`` bytes, those that were not used for the longest go first."""

    folder: Path
    worth: int = WORTH
    bound: int = BOUND

    def recall(self, source: Source, settings: Settings) -> tuple[int, Diagnosis | None]:
        """Let a source that has read nothing yet go on from its entry: from which byte, and what was found, if known.

        It is known if the run had ended and was judged with these settings; it holds if nothing was appended.
        """
        try:
            if not isinstance(source, RunFile) or source.path.stat().st_size < self.worth:
                return 0, None
            entry = self._entry(source.path)
            if not _ours(self.folder) or not _ours(entry):
                return 0, None
            with entry.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = _recalled(source, arrays, settings)
            os.utime(entry)  # the one that was not used for the longest goes first
            return found
        except Exception:  # a broken or foreign entry is none
            return 0, None

    def keep(self, source: Source, diagnosis: Diagnosis, settings: Settings) -> None:
        """Write the source's entry, if it is worth it and the one that is there is older."""
        with contextlib.suppress(Exception):
            if not isinstance(source, RunFile) or (place := source.place()) is None:
                return
            if place["tail"]["offset"] >= self.worth:
                self._write(self._entry(source.path), _arrays(source, place, diagnosis, settings))

    def _entry(self, path: Path) -> Path:
        return self.folder / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.npz"

    def _write(self, entry: Path, arrays: dict[str, Any]) -> None:
        if sum(array.nbytes for array in arrays.values()) > min(LARGEST, self.bound):
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _ours(self.folder):
            return
        number, name = tempfile.mkstemp(suffix=".part", dir=self.folder)  # for this user's eyes alone
        try:
            with os.fdopen(number, "wb") as file:
                np.savez(file, **arrays)
            os.replace(name, entry)
        finally:
            Path(name).unlink(missing_ok=True)
        self._tidy()

    def _tidy(self) -> None:
        """Keep the folder within its bound."""
        stats = {path: path.stat() for path in self.folder.glob("*.npz")}
        left = sum(stat.st_size for stat in stats.values())
        for path in sorted(stats, key=lambda path: stats[path].st_mtime):
            if left > self.bound:
                left -= stats[path].st_size
                path.unlink(missing_ok=True)
        for path in self.folder.glob("*.part"):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink(missing_ok=True)


def _ours(path: Path) -> bool:
    """Whether it belongs to the user, where the system can tell."""
    return not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()


@cache
def _program() -> str:
    """This very program: its files as they stand, which change without the version in a checkout."""
    home = Path(__file__).parent
    files = sorted(home.rglob("*.py"))
    stats = [(path.relative_to(home).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"numpy {np.__version__} {hashlib.sha256(repr(stats).encode()).hexdigest()}"


def _said(settings: Settings) -> str:
    thresholds = {rule: dict(values) for rule, values in settings.thresholds.items()}
    return json.dumps([sorted(settings.off), thresholds, sorted(settings.checks_off)], sort_keys=True, default=repr)


def _digest(path: Path, offset: int) -> str:
    """Names the bytes before ``offset``."""
    with path.open("rb") as file:
        file.seek(max(offset - TAIL, 0))
        return hashlib.sha256(file.read(min(TAIL, offset))).hexdigest()


# ---- an entry: arrays, and one text


def _arrays(source: RunFile, place: dict[str, Any], diagnosis: Diagnosis, settings: Settings) -> dict[str, Any]:
    run, offset = source.runs[0], place["tail"]["offset"]
    told = {
        "program": _program(),
        "path": str(source.path.resolve()),
        "written": source.path.stat().st_mtime_ns,
        "place": place,
        "digest": _digest(source.path, offset),
        "records": run.records_kept(),
        "tables": {name: _about(run.table(name)) for name in TABLES},
        "settings": _said(settings),
        "diagnosis": _diagnosis_kept(run, diagnosis),
    }
    arrays = {"told": np.frombuffer(_exactly(told).encode(), np.uint8)}
    for name in TABLES:
        arrays |= {f"{name}.{part}": array for part, array in run.table(name).arrays().items()}
    return arrays


def _exactly(told: dict[str, Any]) -> str:
    """As JSON that gives the same back; raises ValueError for what JSON cannot hold."""
    text = json.dumps(told)
    if repr(json.loads(text)) != repr(told):
        raise ValueError("not plain JSON")
    return text


def _about(table: Table) -> dict[str, Any]:
    return {
        "channels": table.channels,
        "broken": table.nonfinite_channels(),
        "dropped": sorted(table.dropped),
        "text": {name: [[row, value] for row, value in rows.items()] for name, rows in table.text.items()},
    }


def _diagnosis_kept(run: Run, diagnosis: Diagnosis) -> dict[str, Any] | None:
    """As plain data; None where it may change though nothing is written, as of a run that was killed."""
    if run.end is None:
        return None
    kept = asdict(diagnosis)
    cure = {name: list(kept["prescription"][name]) for name in ("changes", "uncured")}
    kept |= {"notes": list(diagnosis.notes), "findings": list(kept["findings"])}
    kept["prescription"] |= cure
    return {**kept, "explained": sorted(list(key) for key in diagnosis.explained)}


def _diagnosis(told: dict[str, Any]) -> Diagnosis:
    root = told["root_cause"]
    more = {
        "root_cause": Finding(**root) if root else None,
        "findings": tuple(Finding(**finding) for finding in told["findings"]),
        "explained": frozenset((rule, subject, step) for rule, subject, step in told["explained"]),
        "notes": tuple(told["notes"]),
        "prescription": _prescription(told["prescription"]),
    }
    return Diagnosis(**{**told, **more})


def _prescription(told: dict[str, Any]) -> Prescription:
    changes = (Change(**{**change, "finding": Finding(**change["finding"])}) for change in told["changes"])
    return Prescription(tuple(changes), tuple(Finding(**finding) for finding in told["uncured"]), told["first_bad"])


def _recalled(source: RunFile, arrays: Any, settings: Settings) -> tuple[int, Diagnosis | None]:
    told = json.loads(arrays["told"].tobytes())
    if not _fits(source.path, told):
        return 0, None
    tables = {name: _table(name, told["tables"][name], arrays) for name in TABLES}
    judged = told["diagnosis"] and told["settings"] == _said(settings)
    found = _diagnosis(told["diagnosis"]) if judged else None
    source.go_on(Run.of_kept(source.path, told["records"], tables), told["place"])
    return told["place"]["tail"]["offset"], found


def _fits(path: Path, told: dict[str, Any]) -> bool:
    """Whether the file is the one that was read: the same, or grown from it."""
    if told["program"] != _program() or told["path"] != str(path.resolve()):
        return False
    stat, place = path.stat(), told["place"]["tail"]
    if stat.st_size < place["offset"] or (stat.st_size == place["offset"] and stat.st_mtime_ns != told["written"]):
        return False
    head = place["head"].encode("latin-1")
    with path.open("rb") as file:
        begins = file.read(len(head)) == head
    return begins and bool(_digest(path, place["offset"]) == told["digest"])


def _table(name: str, told: dict[str, Any], arrays: Any) -> Table:
    own = {part.removeprefix(f"{name}."): arrays[part] for part in arrays.files if part.startswith(f"{name}.")}
    table = Table.of_arrays(told["channels"], told["broken"], own)
    table.dropped = set(told["dropped"])
    table.text = {channel: dict(rows) for channel, rows in told["text"].items()}
    return table

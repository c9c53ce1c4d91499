"""The run files that ``trainwatch.Recorder`` writes: one JSON object a line (see ``trainwatch.schema``)."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from trainwatch.foreign.checkpoints import Checkpoints
from trainwatch.header import number
from trainwatch.lines import LineTail
from trainwatch.readers import ReadError
from trainwatch.run import Run
from trainwatch.schema import NONFINITE, RECORD, VERSION
from trainwatch.table import TableName

NAME = "trainwatch run file"

Record = dict[str, Any]
TABLES: dict[Any, TableName] = {"step": "train", "eval": "eval", "sample": "sample"}
AT_ONCE = 32  # lines that are parsed together: few enough for their objects to stay near the processor
PER_BATCH = 8192  # lines parsed before they become columns: bounds the memory that parsed objects take
KIND = itemgetter("kind")
MARK = secrets.randbits(60)
BETWEEN = b",%d," % MARK
FAULTS = {
    "torn": "cut off in the middle, as a kill or a full disk leaves it",
    "foreign": "no record of a run file (other output was written into it)",
    "nul": "holding NUL bytes, as a power cut leaves them",
    "oversized": "longer than 16 MB",
    "stepless": "a row without a usable step",
}


def sniff(path: Path, head: bytes) -> bool:  # noqa: ARG001  (some readers go by the file's name)
    """A JSON object with one of our kinds stands in one of the first lines."""
    return any(RECORD.match(line) for line in head.split(b"\n")[:20])


class RunFile:
    """A run file and its rank siblings; ``runs`` grows with every :meth:`poll`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[Run] = []
        self.faults: dict[str, int] = {}
        self._tail = LineTail(path)
        self._first_fault: dict[str, int] = {}
        self._ranks: dict[int, RunFile] = {}
        self._checkpoints = Checkpoints(path)
        self._restarts = 0
        self._is_rank = re.search(r"\.rank\d+$", path.stem) is not None

    def poll(self) -> bool:
        """Read what was written since the last call; True if something was. Raises ReadError."""
        before = self._tail.offset
        try:
            for lines in self._tail.poll():
                if self._tail.restarts != self._restarts:
                    self._forget()
                self._take(lines)
            self._take_checkpoints()
            touched = self.path.stat().st_mtime
        except OSError as error:
            raise ReadError(f"{self.path}: cannot be read ({error.strerror}); was it moved or deleted?") from None
        if self.runs:
            self.runs[-1].touched = touched
        news = self._tail.offset != before
        if not self._is_rank:
            news = self._poll_ranks() or news
        self._write_notes()
        return news

    def close(self) -> None:
        """Nothing more will be read: a last line without newline is taken if it is whole, else counted as torn."""
        rest, self._tail.remainder = self._tail.remainder, b""
        if rest.strip():
            self._tail.number += 1
            self._take([rest], torn_last=True)
        for sibling in self._ranks.values():
            sibling.close()
        self._write_notes()

    def place(self) -> dict[str, Any] | None:
        """How far the file was read, as plain data that :meth:`go_on` takes; None unless it is all of one run."""
        if len(self.runs) != 1 or self.runs[0].ranks or self._checkpoints.there():
            return None
        return {"tail": self._tail.place(), "faults": self.faults, "first_fault": self._first_fault}

    def go_on(self, run: Run, place: Mapping[str, Any]) -> None:
        """Take a run as what was read up to a place, and read on from there."""
        self._tail.go_on(place["tail"])
        self.faults, self._first_fault, self.runs = dict(place["faults"]), dict(place["first_fault"]), [run]

    def _take_checkpoints(self) -> None:
        """Those that the loop lists in a file of its own."""
        for record in self._checkpoints.new() if self.runs else ():
            if (step := _step(record)) is not None:
                self.runs[-1].add_event({**record, "step": step})

    def _forget(self) -> None:
        """Another run was written under the same name: what was read is no part of it."""
        self._restarts = self._tail.restarts
        self.runs = []
        self.faults, self._first_fault, self._ranks = {}, {}, {}
        self._checkpoints = Checkpoints(self.path)

    def _poll_ranks(self) -> bool:
        """Read the files of the ranks above 0; together they are one run, the newest of this file."""
        news = False
        for path in self.path.parent.glob(f"{_escape(self.path.stem)}.rank*.jsonl"):
            found = re.search(r"\.rank(\d+)\.jsonl$", path.name)
            if found and self.runs:
                sibling = self._ranks.setdefault(int(found.group(1)), RunFile(path))
                news = sibling.poll() or news
                if sibling.runs:
                    self.runs[-1].ranks[int(found.group(1))] = sibling.runs[-1]
        return news

    def _take(self, lines: list[bytes], *, torn_last: bool = False) -> None:
        """Most lines lie among their like and are read together; the others wait for each other, and go one by one."""
        first, alike = self._tail.number - len(lines) + 1, Alike()
        others: list[Record] = []
        for start in range(0, len(lines), AT_ONCE):
            batch = lines[start : start + AT_ONCE]
            parsed = _together(batch)
            taken = parsed is not None and alike.take(parsed)
            if not taken:
                records = list(self._records(batch, parsed, first + start, torn_last=torn_last))
                taken = len(records) < len(batch) and alike.take(records)  # without the bad lines they may be
            if not taken:
                self._store_alike(alike)
                others += records
            if others and (taken or len(others) >= PER_BATCH):
                self._store(others)
                others = []
            if alike.size >= PER_BATCH:
                self._store_alike(alike)
        self._store(others)
        self._store_alike(alike)

    def _store_alike(self, alike: Alike) -> None:
        if (found := alike.columns()) is not None:
            table, steps, columns = found
            self._run().records += len(steps)
            self._run().add_rows(table, steps, columns)

    def _records(
        self, lines: list[bytes], parsed: list[Any] | None, first: int, *, torn_last: bool
    ) -> Iterator[Record]:
        found = map(_parsed, lines) if parsed is None else parsed
        for number_, (line, record) in enumerate(zip(lines, found, strict=True), first):
            if type(record) is dict and type(record.get("kind")) is str:
                yield record
            elif line.strip():
                self._fault(_why(line, record, torn_last=torn_last), number_)

    def _fault(self, kind: str, line: int) -> None:
        self.faults[kind] = self.faults.get(kind, 0) + 1
        self._first_fault.setdefault(kind, line)

    def _store(self, records: Iterable[Record]) -> None:
        for (table, keys), group in groupby(records, _shape):
            if table is None:
                for record in group:
                    self._store_single(record)
            else:
                self._store_rows(table, keys, list(group))

    def _store_single(self, record: Record) -> None:
        kind = record["kind"]
        if kind == "run":
            self._store_header(record)
            return
        run = self._run()
        run.records += 1
        if kind == "heartbeat":
            run.heartbeat = record
        else:
            run.add_event(record)

    def _store_header(self, record: Record) -> None:
        version = record.get("schema", VERSION)
        known = number(version)
        if known is None or known > VERSION:
            raise ReadError(
                f"{self.path}: written in format {version!r}, this trainwatch reads up to {VERSION}; update trainwatch."
            )
        newest = self.runs[-1] if self.runs else None
        continues = "resumed_from" in record or (record.get("id") and newest and newest.header.id == record["id"])
        if newest is None or (newest.headers and not continues):
            self.runs.append(Run(self.path, nth=len(self.runs) + 1))
            if newest is not None:
                self.runs[-1].notes.append(f"run {len(self.runs)} of several that were written into {self.path.name}")
        self._run().add_header(record)
        self._run().records += 1

    def _store_rows(self, table: TableName, keys: tuple[str, ...], rows: list[Record]) -> None:
        names = [key for key in keys if key not in ("kind", "step", "nonfinite")]
        fast = _columns(names, rows)
        if fast is None:
            whole = [row for row in rows if _step(row) is not None]
            for _ in range(len(rows) - len(whole)):
                self._fault("stepless", self._tail.number)
            rows = whole
            if not rows:
                return
        steps, columns, odd = fast or _columns_one_by_one(names, rows)
        run = self._run()
        run.records += len(rows)
        first = run.add_rows(table, steps, columns)
        for name, row, value in odd:
            if isinstance(value, float):
                run.table(table).mark(first + row, name, _code(value))
            else:
                run.table(table).text.setdefault(name, {})[first + row] = value
        if "nonfinite" in keys:
            _mark_nonfinite(run, table, first, rows)

    def _run(self) -> Run:
        if not self.runs:
            self.runs.append(Run(self.path))
            self.runs[-1].notes.append(f"{self.path.name} has no header: its first lines are missing")
        return self.runs[-1]

    def _write_notes(self) -> None:
        """Say on the newest run what could not be read; one sentence a cause, with the first line."""
        if not self.runs:
            return
        if self._tail.oversized:
            self.faults["oversized"] = self._tail.oversized
        run = self.runs[-1]
        run.notes = [note for note in run.notes if not note.startswith("skipped ")]
        for kind, count in self.faults.items():
            where = f", first at line {self._first_fault[kind]}" if kind in self._first_fault else ""
            run.notes.append(f"skipped {count:,} line{'s' * (count > 1)} {FAULTS[kind]}{where}")
        for table in (run.train, run.eval, run.sample):
            if table.dropped:
                run.notes.append(f"skipped {len(table.dropped):,} or more channels beyond the first 4,096")


def open_file(path: Path) -> RunFile:
    """The run file at ``path``, nothing read yet."""
    return RunFile(path)


def _escape(stem: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", stem)


def _shape(record: Record) -> tuple[TableName | None, tuple[str, ...]]:
    """Rows of one table with the same keys become columns together."""
    table = TABLES.get(record["kind"])
    return (None, ()) if table is None else (table, tuple(record))


def _step(record: Record) -> int | None:
    step = record.get("step")
    if type(step) is float and step.is_integer():
        step = int(step)
    return step if type(step) is int and 0 <= step < 2**62 else None


Columns = dict[str, NDArray[np.float64]]
Odd = list[tuple[str, int, Any]]
Parsed = tuple[NDArray[np.int64], Columns, Odd]


def _columns(names: list[str], rows: list[Record]) -> Parsed | None:
    """Steps, float64 [rows] for each name, nothing odd; None if there is anything but finite numbers."""
    matrix = _numbers(_picker(names), rows, len(names) + 2) if "step" in rows[0] else None
    return None if matrix is None else (*_parted(names, matrix), [])


def _picker(names: list[str]) -> Callable[[Record], tuple[Any, ...]]:
    """Takes the step and the named values out of a row; the step twice, so that it is a tuple also without names."""
    return itemgetter("step", *names, "step")


def _numbers(pick: Callable[[Record], tuple[Any, ...]], rows: list[Record], width: int) -> NDArray[np.float64] | None:
    """What is picked, float64 [rows, width], the steps first; None if there is anything but finite numbers."""
    try:
        flat = np.fromiter(chain.from_iterable(map(pick, rows)), np.float64, len(rows) * width)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if not np.isfinite(flat).all():
        return None
    matrix = flat.reshape(len(rows), width)
    steps = matrix[:, 0]
    return matrix if steps.min() >= 0 and steps.max() < 2**53 and (steps == np.floor(steps)).all() else None


def _parted(names: list[str], matrix: NDArray[np.float64]) -> tuple[NDArray[np.int64], Columns]:
    return matrix[:, 0].astype(np.int64), {name: matrix[:, 1 + index] for index, name in enumerate(names)}


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return _leniently(line)


def _together(lines: list[bytes]) -> list[Any] | None:
    """What stands on each of the lines, parsed at once; None if one of them is no JSON.

    A number that no file can know stands between them, so that two halves of an object on two lines are not taken for
    a whole one.
    """
    try:
        items = orjson.loads(b"[" + BETWEEN.join(lines) + b"]")
    except orjson.JSONDecodeError:
        return None
    whole = len(items) == 2 * len(lines) - 1 and items[1::2].count(MARK) == len(lines) - 1
    return items[::2] if whole else None


class Alike:
    """Rows of one table with the same keys and nothing but finite numbers, that follow each other in the file."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[NDArray[np.float64]] = []
        self._kind: Any = None
        self._names: list[str] = []
        self._pick = _picker([])

    def take(self, records: list[Any]) -> bool:
        """Add these to the rows, if they are all like them; to none, they need only be like each other."""
        if not records:
            return True
        try:
            if not self._parts:
                self._kind, self._names = records[0]["kind"], [key for key in records[0] if key not in ("kind", "step")]
                self._pick = _picker(self._names)
            kinds, lengths = set(map(KIND, records)), set(map(len, records))
            if self._kind not in TABLES or kinds != {self._kind} or lengths != {len(self._names) + 2}:
                return False
        except (KeyError, TypeError):
            return False
        matrix = _numbers(self._pick, records, len(self._names) + 2)
        if matrix is not None:
            self._parts.append(matrix)
            self.size += len(matrix)
        return matrix is not None

    def columns(self) -> tuple[TableName, NDArray[np.int64], Columns] | None:
        """Their table, steps and columns, if there are any; they are forgotten here."""
        if not self._parts:
            return None
        matrix, self._parts, self.size = np.concatenate(self._parts), [], 0
        return TABLES[self._kind], *_parted(self._names, matrix)


def _columns_one_by_one(names: list[str], rows: list[Record]) -> Parsed:
    """The same with everything that is no finite number apart: (name, row, value)."""
    columns: Columns = {}
    odd: Odd = []
    for name in names:
        values = np.full(len(rows), np.nan)
        numeric = False
        for row, record in enumerate(rows):
            value = record[name]
            as_number = float(value) if isinstance(value, bool) else number(value)
            numeric = numeric or value is None or as_number is not None or isinstance(value, float)
            if as_number is not None:
                values[row] = as_number
            elif value is not None:
                odd.append((name, row, value))
        if numeric:
            columns[name] = values
    return np.array([_step(row) for row in rows], dtype=np.int64), columns, odd


def _mark_nonfinite(run: Run, table: TableName, first: int, rows: list[Record]) -> None:
    for row, record in enumerate(rows):
        listed = record["nonfinite"]
        for name, code in listed.items() if isinstance(listed, dict) else ():
            if isinstance(code, str) and code in NONFINITE:
                run.table(table).mark(first + row, str(name), NONFINITE[code])


def _code(value: float) -> int:
    return NONFINITE["nan" if math.isnan(value) else "inf" if value > 0 else "-inf"]


def _leniently(line: bytes) -> Any:
    """The record in a line with bare NaN or Infinity, or NUL bytes before it; None if there is none."""
    cleaned = line.strip(b"\0 \r\n\t").removeprefix(b"\xef\xbb\xbf")
    parse: Callable[[str], Any] = json.loads
    try:
        return parse(cleaned.decode())
    except (ValueError, RecursionError):
        return None


def _why(line: bytes, record: Any, *, torn_last: bool) -> str:
    """Which of ``FAULTS`` makes a line unreadable."""
    if b"\0" in line:
        return "nul"
    if record is None and (torn_last or line.lstrip().startswith(b"{")):
        return "torn"
    return "foreign"

"""A run as trainwatch sees it: headers, tables that grow, events in file order, and the state it is in.

A :class:`Run` grows by appending and never forgets where a row stood: its journal keeps the file's order, so that the
engine can feed rules with exactly what the trainer wrote, when it wrote it, whether it reads a whole file or follows a
growing one.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from trainwatch.header import Header, number
from trainwatch.schema import HEADER, NONFINITE, Status
from trainwatch.table import Chunk, Floats, Table, TableName

if TYPE_CHECKING:
    import pandas as pd

DEAD_SECONDS = 60.0  # six heartbeats of ten seconds: a network file system may hold a line back that long
HEARTBEATS_MISSED = 3
HEARTBEAT_SECONDS = 10.0
SLOW_STEPS = 20.0  # a step of twenty times the median is beyond any stutter of a loader or a recompilation


Event = dict[str, Any]
"""A record that is no row: kind ``event``, ``checkpoint``, ``end`` or one that the format does not know."""


@dataclass
class _Segment:
    """A stretch of the file: a header, an event, or rows of one table."""

    kind: str
    start: int
    stop: int


@dataclass
class Cursor:
    """How far somebody has read a run's journal."""

    segment: int = 0
    offset: int = 0


@dataclass
class Run:
    """One run: everything that was read of it so far. Readers append to it; everybody else looks."""

    source: Path
    format: str = "trainwatch"
    headers: list[Header] = field(default_factory=list)
    train: Table = field(default_factory=Table)
    eval: Table = field(default_factory=Table)
    sample: Table = field(default_factory=Table)
    events: list[Event] = field(default_factory=list)
    end: Event | None = None
    heartbeat: Event | None = None
    records: int = 0
    touched: float = 0.0
    notes: list[str] = field(default_factory=list)
    ranks: dict[int, Run] = field(default_factory=dict)
    begins: list[int] = field(default_factory=list)  # for each header the first training row after it
    nth: int = 1  # of the runs in its file
    named: dict[str, str] = field(default_factory=dict)  # of a foreign log: its names, and the channels they became
    tells_end: bool = True  # whether its writer leaves an end record; of other logs silence says nothing
    _journal: list[_Segment] = field(default_factory=list)

    def records_kept(self) -> dict[str, Any]:
        """All but the tables, as plain data that :meth:`of_kept` takes."""
        plain = ("format", "events", "heartbeat", "records", "touched", "notes", "begins", "nth", "named", "tells_end")
        journal = [[segment.kind, segment.start, segment.stop] for segment in self._journal]
        headers = [dict(header.raw) for header in self.headers]
        return {
            **{name: getattr(self, name) for name in plain},
            "end": self.end,
            "headers": headers,
            "journal": journal,
        }

    @classmethod
    def of_kept(cls, source: Path, kept: Mapping[str, Any], tables: Mapping[str, Table]) -> Run:
        """The run that :meth:`records_kept` told of, with its tables."""
        plain: dict[str, Any] = {name: value for name, value in kept.items() if name not in ("headers", "journal")}
        headers = [Header.parse(raw) for raw in kept["headers"]]
        journal = [_Segment(kind, start, stop) for kind, start, stop in kept["journal"]]
        return cls(source, headers=headers, _journal=journal, **{**plain, **tables})

    @property
    def header(self) -> Header:
        """The newest header; an empty one if the run has none."""
        return self.headers[-1] if self.headers else Header()

    @property
    def name(self) -> str:
        """What the run calls itself, else its file's name."""
        return self.header.run or self.source.stem

    @property
    def first_step(self) -> int | None:
        """The smallest step in the curve, None before the first row."""
        return self.train.reach[0] if self.train.reach else None

    @property
    def last_step(self) -> int | None:
        """The largest step in the curve, None before the first row."""
        return self.train.reach[1] if self.train.reach else None

    def components(self) -> list[str]:
        """Loss components, as declared and then as seen in the rows."""
        seen = [name.removeprefix("loss/") for name in self.train.channels if name.startswith("loss/")]
        declared = [name for header in self.headers for name in header.components]
        return list(dict.fromkeys(declared + seen))

    def table(self, name: TableName) -> Table:
        """The table called ``name``."""
        return {"train": self.train, "eval": self.eval, "sample": self.sample}[name]

    def add_header(self, record: Mapping[str, Any]) -> None:
        """A new process took the run up: rows after its checkpoint are superseded, an earlier end is undone."""
        header = Header.parse(record)
        if self.headers:
            for table in (self.train, self.eval, self.sample):
                table.supersede(header.resumed_from if header.resumed_from is not None else -1)
        self.headers.append(header)
        self.begins.append(self.train.size)
        self.end = None
        self._extend("header", len(self.headers) - 1, len(self.headers))

    def add_rows(self, table: TableName, step: NDArray[np.int64], columns: Mapping[str, Floats]) -> int:
        """Append rows to a table; returns the index of the first one, for :meth:`Table.mark`."""
        rows = self.table(table)
        first = rows.size
        rows.append(step, columns)
        self._extend(table, first, rows.size)
        return first

    def add_event(self, record: Event) -> None:
        """Append a record that is no row."""
        self.events.append(record)
        if record.get("kind") == "end":
            self.end = record
        elif record.get("event") == "monitor" and self.headers:
            self._learn(record)
        self._extend("event", len(self.events) - 1, len(self.events))

    def _learn(self, record: Event) -> None:
        """What the recorder learned of the run after its header was written (its modules) belongs to the header."""
        late = {name: record[name] for name in HEADER if name in record and name not in self.header.raw}
        if late:
            self.headers[-1] = Header.parse({**self.header.raw, **late})

    def _extend(self, kind: str, start: int, stop: int) -> None:
        last = self._journal[-1] if self._journal else None
        if last is not None and last.kind == kind == "train":
            last.stop = stop
        else:
            self._journal.append(_Segment(kind, start, stop))

    def since(self, cursor: Cursor, limit: int = 65536) -> Iterator[Header | Chunk | Event]:
        """What was appended after ``cursor``, in file order, in chunks of at most ``limit`` rows; moves the cursor."""
        while cursor.segment < len(self._journal):
            segment = self._journal[cursor.segment]
            start = segment.start + cursor.offset
            if start >= segment.stop:
                if cursor.segment + 1 == len(self._journal):
                    return  # the newest segment may still grow
                cursor.segment, cursor.offset = cursor.segment + 1, 0
                continue
            stop = min(segment.stop, start + limit)
            cursor.offset = stop - segment.start
            yield self._view(segment.kind, start, stop)

    def _view(self, kind: str, start: int, stop: int) -> Header | Chunk | Event:
        if kind == "header":
            return self.headers[start]
        if kind == "event":
            return self.events[start]
        table: TableName = kind  # type: ignore[assignment]  # the journal knows these three besides the two above
        return Chunk(table, self.table(table), start, stop)

    def first_rows(self) -> list[int]:
        """For each header the first row of ``train`` that was written under it."""
        rows, found = 0, []
        for segment in self._journal:
            if segment.kind == "header":
                found.append(rows)
            elif segment.kind == "train":
                rows = segment.stop
        return found

    def step_seconds(self) -> float | None:
        """Median time from one step to the next over the last 200 rows, in seconds; None if not known."""
        elapsed = self.train.column("elapsed", max(0, self.train.size - 200), self.train.size)
        gaps = np.diff(elapsed[np.isfinite(elapsed)])
        gaps = gaps[gaps >= 0]
        return float(np.median(gaps)) if len(gaps) else None

    def status(self, now: float | None = None) -> Status:
        """The state the run is in, the same for every face; ``now`` is Unix seconds (DESIGN section 3)."""
        if self.end is not None:
            said = self.end.get("status")
            return said if said in ("finished", "stopped", "failed") else "finished"
        now = time.time() if now is None else now
        patience = max(DEAD_SECONDS, SLOW_STEPS * (self.step_seconds() or 0.0))
        alive = self._process_lives()
        if alive is None:
            alive = now - self.touched <= max(patience, HEARTBEATS_MISSED * HEARTBEAT_SECONDS)
        if not alive:
            if not self.tells_end:
                return "finished" if self.train.size or self.eval.size else "never-started"
            return "killed" if self.train.size else "never-started"
        return "stalled" if self.idle(now) > patience else "running"

    def _process_lives(self) -> bool | None:
        """Whether the process that writes this run lives; None where it cannot be asked: elsewhere, or no pid known."""
        header = self.header
        if header.pid is None or header.host != _hostname():
            return None
        return _process_lives(header.pid, header.process_started)

    def idle(self, now: float) -> float:
        """Seconds without a step, at ``now``, while the loop should be training."""
        beat = self.heartbeat
        if beat is None or (number(beat.get("time")) or 0.0) < self.row_time():
            return 0.0 if not self.train.size else now - max(self.touched, self.row_time())
        if beat.get("phase") in ("eval", "checkpoint"):
            return 0.0
        return (number(beat.get("idle")) or 0.0) + max(now - (number(beat.get("time")) or now), 0.0)

    def row_time(self) -> float:
        """When the newest row was recorded, in Unix seconds; 0 where rows do not tell."""
        times = self.train.column("time", max(0, self.train.size - 1), self.train.size)
        return float(times[-1]) if len(times) and np.isfinite(times[-1]) else 0.0

    def frame(self, table: TableName = "train", *, superseded: bool = False) -> pd.DataFrame:
        """A table as pandas, one row a step; ``superseded=True`` gives the rows that a resume took out of the curve.

        A value that was written but is not finite is that value here (NaN, inf); so is an absent one NaN.
        """
        import pandas as pd

        rows = self.table(table)
        which = ~rows.live if superseded else rows.live
        columns: dict[str, Any] = {"step": rows.step[which]}
        for name in rows.channels:
            values = rows[name].copy()
            codes = rows.codes(name)
            values[codes == NONFINITE["inf"]] = np.inf
            values[codes == NONFINITE["-inf"]] = -np.inf
            columns[name] = values[which]
        for name, written in rows.text.items():
            columns[name] = pd.Series([written.get(int(row)) for row in np.flatnonzero(which)], dtype=object)
        return pd.DataFrame(columns)


@lru_cache(maxsize=1)
def _hostname() -> str:
    return socket.gethostname()


def _process_lives(pid: int, started: float | None) -> bool:
    """Whether ``pid`` is the process that began at ``started``; a zombie is dead, a recycled pid is somebody else."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return started is None or abs(process.create_time() - started) < 2.0
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, ValueError, OverflowError):
        return True  # it exists, and we may not look: not dead

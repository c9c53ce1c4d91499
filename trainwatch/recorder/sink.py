"""The writer's thread: encode, append, heartbeat, stop file. What it wrote is never torn; what it holds is never lost.

Each record is one line, appended with ``O_APPEND`` by one ``write`` that may carry several lines. A SIGKILL loses what
the thread has not taken up yet, some 30 ms; ``durable`` writes before ``put`` returns. A disk that is full or failing
is told once and tried again: the lines wait in memory, up to a limit, and the loop never notices.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from trainwatch.recorder.plain import plain
from trainwatch.recorder.rows import Record, Rows, Say

POLL = 0.03  # s between two looks at the queue: what a reader waits, and what a SIGKILL may cost
HEARTBEAT = 10.0  # s without a line after which a heartbeat is written
STOP_POLL = 0.5  # s between two looks for the stop file
BATCH = 1 << 18  # bytes in one write
BACKLOG = 1 << 26  # bytes that wait in memory while the disk refuses them
CROWD = 20_000  # records that wait before the loop lends the writer a hand
RETRY = 1.0  # s between two tries while the disk refuses
PATIENCE = 5.0  # s that close() waits for the device, or for the disk

_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def encode(row: dict[str, Any]) -> bytes:
    """One line; what orjson cannot encode becomes text."""
    try:
        return orjson.dumps(row, option=_OPTIONS)
    except (TypeError, ValueError):
        return orjson.dumps(plain(row), option=_OPTIONS)


class Sink:
    """Takes records from the loop, writes their rows to an open file."""

    def __init__(
        self, fd: int, rows: Rows, say: Say, pulse: Callable[[], dict[str, Any]], stop: Path, durable: bool
    ) -> None:
        self._fd, self._rows, self._say, self._pulse, self._durable = fd, rows, say, pulse, durable
        self._stop, self._born, self.should_stop = stop, time.time(), False
        self._queue: deque[Record] = deque()
        self._unwritten = b""
        self._lost, self._retry = 0, 0.0
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._last_line = self._last_look = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="trainwatch-writer", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Hand over a record: an append. Only ``durable`` writes here; a loop that outruns the writer helps it."""
        self._queue.append(record)
        if self._durable:
            with self._lock:
                self._arrived()
                self._drain()
        elif len(self._queue) > CROWD and self._lock.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self._lock.release()

    def close(self, last: Record) -> None:
        """Write all there is, then the last word, and close the file."""
        self._closing.set()
        if self._thread is not threading.current_thread():
            self._thread.join(PATIENCE)
        with self._lock:
            self._finish()
            self._queue.append(last)
            self._finish()
        os.close(self._fd)

    def abandon(self) -> None:
        """In a forked child: forget everything, write nothing, and leave the lock, whose holder may not exist here."""
        self._queue.clear()
        self._unwritten = b""

    def _run(self) -> None:
        while not self._closing.wait(POLL):
            try:
                with self._lock:
                    self._drain()
                self._watch()
            except Exception as fault:
                self._say("writer", f"the writer's thread failed ({type(fault).__name__}: {fault}) and goes on")

    def _finish(self) -> None:
        """Drain; wait a little for a device that is not done, then write the rows without its values."""
        deadline = time.monotonic() + PATIENCE
        self._drain()
        while self._queue and time.monotonic() < deadline:
            time.sleep(0.002)
            self._drain()
        while self._queue:
            self._queue[0].cargo = []
            self._drain()
        while self._unwritten and time.monotonic() < deadline:
            time.sleep(0.05)
            self._write(b"")

    def _drain(self) -> None:
        """Write every record whose values have arrived, in order, some 256 KiB at a time."""
        if time.monotonic() < self._retry and not self._closing.is_set():
            return
        while lines := b"".join(self._lines()):
            self._write(lines)
            if self._unwritten:
                return
        if self._unwritten:
            self._write(b"")

    def _lines(self) -> Iterator[bytes]:
        size = 0
        while self._queue and size < BATCH and self._ready(self._queue[0]):
            for line in self._encoded(self._queue.popleft()):
                size += len(line)
                yield line

    def _ready(self, record: Record) -> bool:
        """Whether a record can be written; one whose device failed (for good, with CUDA) goes without its values."""
        try:
            return not record.cargo or record.ready()
        except Exception as fault:
            self._say("device", f"the device failed ({type(fault).__name__}: {fault}): its values are missing")
            record.cargo = []
            return True

    def _arrived(self) -> None:
        for record in self._queue:
            try:
                for cargo in record.cargo:
                    cargo.wait()
            except Exception:
                return

    def _encoded(self, record: Record) -> list[bytes]:
        """The lines of a record; when that fails, a line that still says which row it was."""
        try:
            return [encode(row) for row in self._rows.build(record)]
        except Exception as fault:
            self._say(
                "row", f"a row could not be made ({type(fault).__name__}: {fault}); it is written as far as it goes"
            )
            return [encode(plain(record.head() | record.fields))]

    def _write(self, lines: bytes) -> None:
        """Append; a line that the disk took only a part of is completed by the next write, before anything else."""
        data = self._unwritten + lines
        if len(data) > BACKLOG:
            self._lost += lines.count(b"\n")
            data = self._unwritten
        try:
            while data:
                data = data[os.write(self._fd, data) :]
            self._last_line = time.monotonic()
            if self._lost:
                lost, self._lost = self._lost, 0
                self._say("lost", f"{lost} lines were lost while the disk refused them", lost=lost)
        except OSError as fault:
            self._retry = time.monotonic() + RETRY
            self._say(
                "disk", f"cannot write ({fault.strerror}): rows wait in memory; free some space", errno=fault.errno
            )
        self._unwritten = data

    def _watch(self) -> None:
        """Heartbeat and stop file."""
        now = time.monotonic()
        if now - self._last_line >= HEARTBEAT:
            with self._lock:
                self._write(encode(self._pulse()))
        if now - self._last_look >= STOP_POLL:
            self._last_look = now
            if not self.should_stop and self._stop_asked():
                self.should_stop = True
                self._say("stop", f"{self._stop} asks the run to stop", event="intervention", action="stop")

    def _stop_asked(self) -> bool:
        """Whether a stop file was put there since we began; an older one was meant for the process before."""
        try:
            return self._stop.stat().st_mtime >= self._born - 0.05
        except OSError:
            return False

"""The writer's thread: encode, append, heartbeat, stop file. What it wrote is never torn; what it holds is never lost.

Each record is one line, appended with ``O_APPEND`` by one ``write`` that may carry several lines. A SIGKILL loses what
the thread has not taken up yet, some 30 ms; ``durable`` writes before ``put`` returns. A disk that is full or failing
is told once and tried again: the lines wait in memory, up to a limit, and the loop never notices.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from trainwatch.recorder.plain import brief, plain
from trainwatch.recorder.rows import TAKEN, Record, Rows, Say
from trainwatch.recorder.stopfile import StopFile

POLL = 0.03  # s between two looks at the queue: what a reader waits, and what a SIGKILL may cost
HEARTBEAT = 10.0  # s without a line after which a heartbeat is written
STOP_POLL = 0.5  # s between two looks for the stop file
BATCH = 1 << 18  # bytes in one write
BACKLOG = 1 << 26  # bytes that wait in memory while the disk refuses them
CROWD = 20_000  # records that wait before the loop lends the writer a hand
RETRY = 1.0  # s between two tries while the disk refuses
PATIENCE = 5.0  # s that close() waits for the device, or for the disk

_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS

_inherited: list[deque[Record]] = []
"""What a forked child must neither use nor free."""


def encode(row: dict[str, Any]) -> bytes:
    """One line; what orjson cannot encode becomes text."""
    try:
        return orjson.dumps(row, option=_OPTIONS)
    except (TypeError, ValueError):
        return orjson.dumps(plain(row), option=_OPTIONS)


class Sink:
    """Takes records from the loop, writes their rows to an open file."""

    def __init__(
        self, fd: int, rows: Rows, say: Say, pulse: Callable[[], dict[str, Any]], stop: StopFile, durable: bool
    ) -> None:
        self._fd, self._rows, self._say, self._pulse, self._durable = fd, rows, say, pulse, durable
        self._stop, self.should_stop = stop, False
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
        """Write all there is, then the last word, and close the file; device and disk have ``PATIENCE`` for it."""
        deadline = time.monotonic() + PATIENCE
        self._closing.set()
        if self._thread is not threading.current_thread():
            self._thread.join(PATIENCE)
        if not self._lock.acquire(timeout=max(1.0, deadline - time.monotonic())):
            print("trainwatch: the disk does not answer; the end of the run is not written", file=sys.stderr)
            return
        try:
            if last.fields.get("status") == "stopped":
                self._look()  # another rank may have seen the file first, and told this one
            self._finish(last, deadline)
        finally:
            self._lock.release()
            os.close(self._fd)

    def abandon(self) -> None:
        """In a forked child: write nothing, and leave the lock, whose holder may not exist here. What is on its way
        from a device is kept: its events and pinned buffers can only be freed where they were made."""
        _inherited.append(self._queue)
        self._queue = deque()
        self._unwritten = b""

    def _run(self) -> None:
        while not self._closing.wait(POLL):
            try:
                with self._lock:
                    self._drain()
                self._watch()
            except Exception as fault:
                self._say("writer", f"the writer's thread failed ({brief(fault)}) and goes on")

    def _finish(self, last: Record, deadline: float) -> None:
        """Drain; wait a little for a device that is not done, then write the rows without its values, then the end."""
        try:
            self._drain()
            while self._queue and not self._unwritten and time.monotonic() < deadline:
                time.sleep(0.002)
                self._drain()
            for record in list(self._queue):
                record.cargo = record.cargo if self._ready(record) else []
            while lines := b"".join(self._lines()):
                self._write(lines)
        except Exception as fault:
            self._say("writer", f"not every row could be written ({brief(fault)})")
        self._write(b"".join(self._encoded(last)), last=True)
        while self._unwritten and time.monotonic() < deadline:
            time.sleep(0.05)
            self._write(b"", last=True)
        lost = self._lost + self._unwritten.count(b"\n")
        if lost:
            print(f"trainwatch: {lost} lines were lost: the disk refuses them", file=sys.stderr)

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
            self._say("device", f"the device failed ({brief(fault)}): its values are missing")
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
            self._say("row", f"a row could not be made ({brief(fault)}); it is written as far as it goes")
        try:
            fields = {name: value for name, value in record.fields.items() if name != TAKEN}
            return [encode(plain(record.head() | fields))]
        except Exception:
            step = {"step": record.step} if type(record.step) is int else {}
            return [encode({"kind": record.kind, "time": record.time, "elapsed": record.elapsed, **step})]

    def _write(self, lines: bytes, last: bool = False) -> None:
        """Append; a line that the disk took only a part of is completed by the next write, before anything else."""
        data, refused = self._unwritten + lines, None
        if len(data) > BACKLOG and self._unwritten and not last:
            self._lost += lines.count(b"\n")
            data = self._unwritten
        try:
            while data:
                data = data[os.write(self._fd, data) :]
            self._last_line = time.monotonic()
        except OSError as fault:
            self._retry, refused = time.monotonic() + RETRY, fault
        self._unwritten = data
        if refused is not None:
            text = f"cannot write ({refused.strerror}): rows wait in memory; free some space"
            self._say("disk", text, errno=refused.errno)
        elif self._lost and not last:
            lost, self._lost = self._lost, 0
            self._say("lost", f"{lost} lines were lost while the disk refused them", lost=lost)

    def _watch(self) -> None:
        """Heartbeat and stop file."""
        now = time.monotonic()
        if now - self._last_line >= HEARTBEAT:
            with self._lock:
                if not self._unwritten:
                    self._write(encode(self._pulse()))
        if now - self._last_look >= STOP_POLL:
            self._last_look = now
            self._look()

    def _look(self) -> None:
        """Take up what the stop file asks for."""
        asked = None if self.should_stop else self._stop.asked()
        if asked is not None:
            self.should_stop = True
            self._say("stop", f"{self._stop.path} asks the run to stop", "intervention", action="stop", **asked)

"""A run's file as its process sees it: the header, the records, and the last word, whatever ends the process."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from trainwatch.recorder import exits, file, header
from trainwatch.recorder.plain import brief, message, scrub
from trainwatch.recorder.rows import Record, Rows
from trainwatch.recorder.sink import Sink, encode
from trainwatch.recorder.stopfile import StopFile
from trainwatch.recorder.timing import Stopwatch

if TYPE_CHECKING:
    from trainwatch.recorder.models import Models
    from trainwatch.recorder.transfer import Part, Ring

_inherited: list[Journal] = []
"""In a forked child: the recorders of its parent, kept, since the device objects they hold cannot be freed here."""

_TRACEBACK = 20_000  # characters of a traceback that are kept: its end


class Journal:
    """Opens a run's file and keeps it; ``Recorder`` adds what the loop calls."""

    path: Path
    steps: int
    total_steps: int | None

    def __init__(self, path: str | os.PathLike[str], resume: int | None, total_steps: int | None) -> None:
        self.path, self.total_steps, self.steps = Path(path), total_steps, resume or 0
        self._enabled = False
        self._stopwatch = Stopwatch()
        self._models: Models | None = None
        self._ring: Ring | None = None
        self._said: set[str] = set()
        self._signal = ""

    def _open(
        self, told: dict[str, Any], place: tuple[int, int], run: str | None, resume: int | None, durable: bool
    ) -> None:
        """Check what was told, open the file, write the header. The only part that may raise: it is before the loop."""
        declared, asked = header.declared(**told), file.checked(self.path)
        at = (
            file.open_new(asked, *place) if resume is None else file.open_again(asked, place[0], header.resumed(resume))
        )
        self.path, self._rank, self._header = at.path, place[0], declared
        self._began = time.monotonic()
        identity = {"run": run or at.stem.name, "id": at.id, "attempt": at.attempt}
        resumed = {} if resume is None else {"resumed_from": resume}
        head = Record("run", time.time(), 0.0, None, {}).head()
        file.write(at, encode({**head, **identity, **header.environment(*place), **declared, **resumed}))
        stages = (declared.get("curriculum_running") or declared.get("curriculum") or {}).get("stages", [])
        rows = Rows(self._say, stages, at.applied)
        stop = StopFile(at.stem.with_name(f"{at.stem.name}.stop"), at.id)
        self._sink = Sink(at.fd, rows, self._say, self._pulse, stop, durable)
        self._enabled = True
        exits.register(self)
        if not self._rank:
            self._greet(asked, resume)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied or sent to another process, it is a recorder that is switched off: the run stays where it is."""
        return _switched_off, (type(self), str(self.path))

    def _greet(self, asked: Path, resume: int | None) -> None:
        why = f" ({asked} exists)" if asked != self.path else "" if resume is None else f" (goes on from step {resume})"
        print(f"trainwatch: recording to {self.path}{why}", file=sys.stderr)
        watch = f"trainwatch dash {self.path.parent}` or `trainwatch check {self.path}"
        print(f"trainwatch: watch it with `{watch}`", file=sys.stderr, flush=True)

    @property
    def should_stop(self) -> bool:
        """Whether somebody wrote ``<run>.stop``. Each rank sees it at its own time: agree before leaving a loop."""
        return self._enabled and self._sink.should_stop

    def close(self, status: str | None = None, reason: str | None = None) -> None:
        """Write the run's last word, and all rows before it, and close the file. A second call does nothing."""
        if self._enabled:
            short = self.total_steps is None or self.steps < self.total_steps
            if status is None and short and (self._sink.should_stop or self._signal):
                status, reason = "stopped", reason or self._signal or "stop file"
            self._end({"status": status or "finished", "reason": reason})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.on_exception(error)

    def on_signal(self, name: str) -> None:
        """A signal came; what becomes of the process is not ours to say."""
        if self._enabled:
            self._signal = name
            with contextlib.suppress(Exception):
                self._put("event", self.steps, {"event": "signal", "name": name})

    def on_death(self, reason: str) -> None:
        """Nobody handles the signal: the process dies of it."""
        self.close("stopped", reason)

    def on_exception(self, error: BaseException) -> None:
        """An exception leaves the loop, or the program."""
        if not self._enabled:
            return
        if isinstance(error, SystemExit) and not error.code:
            if self.total_steps is None:
                self.close()
            else:
                self.on_exit()
            return
        told = {"type": type(error).__name__, "message": message(error)}
        with contextlib.suppress(Exception):
            told["traceback"] = scrub("".join(traceback.format_exception(error))[-_TRACEBACK:])
        if type(error).__name__ == "OutOfMemoryError":
            self._put("event", self.steps, {"event": "oom", "message": told["message"]})
        if isinstance(error, KeyboardInterrupt):
            self._end({"status": "stopped", "reason": self._signal or "KeyboardInterrupt", "exception": told})
        else:
            self._end({"status": "failed", "reason": f"{told['type']}: {told['message']}", "exception": told})

    def on_exit(self) -> None:
        """The interpreter exits, and nobody called ``close()``."""
        if self._signal or self.should_stop or (self.total_steps is not None and self.steps >= self.total_steps):
            self.close()
        else:
            of = "" if self.total_steps is None else f" of {self.total_steps}"
            self.close("stopped", f"the program ended at step {self.steps}{of}")

    def on_fork(self) -> None:
        """This is a forked child: the run is not here."""
        if self._enabled:
            self._enabled = False
            _inherited.append(self)
            self._sink.abandon()

    def _end(self, fields: dict[str, Any]) -> None:
        """The last line. What fails here is said and goes no further."""
        exits.unregister(self)
        try:
            self._enabled = False
            if self._models is not None:
                self._models.close()
            told = {name: value for name, value in fields.items() if value is not None}
            self._sink.close(Record("end", time.time(), time.monotonic() - self._began, self.steps, told))
        except Exception as fault:
            with contextlib.suppress(Exception):
                print(f"trainwatch: the end of {self.path} failed ({brief(fault)})", file=sys.stderr)

    def _put(self, kind: str, step: int | None, fields: dict[str, Any], parts: list[Part] | None = None) -> None:
        """Hand a record to the writer; device values set out for the host."""
        record = Record(kind, time.time(), time.monotonic() - self._began, step, fields)
        if parts:
            if self._ring is None:
                from trainwatch.recorder.transfer import Ring

                self._ring = Ring()
            try:
                record.cargo = self._ring.ship(parts)
            except Exception as error:
                self._fault("the way from the device", error)
        self._sink.put(record)

    def _say(self, key: str, text: str, event: str = "monitor", **details: object) -> None:
        """Say a thing once: on stderr, and as an event."""
        if key in self._said or len(self._said) > 100:
            return
        self._said.add(key)
        with contextlib.suppress(Exception):
            print(f"trainwatch: {text}", file=sys.stderr, flush=True)
            self._put("event", self.steps, {"event": event, "message": text, **details})

    def _fault(self, where: str, fault: Exception) -> None:
        """A fault of our own: told once, and the run goes on."""
        text = f"the recorder failed in {where} ({brief(fault)}); the run goes on"
        self._say(f"fault {where}", text, where=where, type=type(fault).__name__)

    def _pulse(self) -> dict[str, Any]:
        """A heartbeat."""
        now = time.monotonic()
        row = Record("heartbeat", time.time(), now - self._began, self.steps, {}).head()
        return {**row, "phase": self._stopwatch.phase, "idle": self._stopwatch.idle()}

    def _note_models(self, about: Mapping[str, Any]) -> None:
        """What the header could not know before the models were attached."""
        new = {name: value for name, value in about.items() if name not in self._header}
        if new:
            self._put("event", self.steps, {"event": "monitor", "message": "models attached", **new})


def _switched_off(kind: Any, path: str) -> Any:
    return kind(path, enabled=False)

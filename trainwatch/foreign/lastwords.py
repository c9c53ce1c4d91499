"""The last words of a process in its console output: a traceback, a signal, memory that ran out, Ctrl-C."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from trainwatch.run import Event

TRACEBACK = re.compile(r"^(?P<before>.*?)Traceback \(most recent call last\):\s*$")
EXCEPTION = re.compile(r"^(?P<type>[A-Za-z_][\w.]*?)(?:: (?P<message>.*))?$")
SIGNALLED = re.compile(r"got signal: (\d+)|Received signal (\d+)|terminated by signal (SIG[A-Z]+)")
SILENT = (  # endings without a traceback
    (re.compile(r"slurmstepd(?:-[\w.-]+)?: error: .*DUE TO TIME LIMIT"), "TimeLimit"),
    (re.compile(r"slurmstepd(?:-[\w.-]+)?: error: .*(?:CANCELLED|PREEMPTION)"), "Cancelled"),
    (re.compile(r"oom-kill event|Out [Oo]f [Mm]emory: Killed process|oom_kill"), "OutOfMemoryKill"),
    (re.compile(r"^Killed\s*$"), "Killed"),
    (re.compile(r"Segmentation fault"), "SegmentationFault"),
    (re.compile(r"Watchdog caught collective operation timeout"), "DistBackendError"),
    (re.compile(r"^\s*KeyboardInterrupt\s*$|^\^C"), "KeyboardInterrupt"),
)
HINT = re.compile(r"slurmstepd|oom|[Oo]f [Mm]emory|^Killed|Segmentation|Watchdog|KeyboardInterrupt|^\^C")
"""What every silent ending holds: most lines are none, and are asked once."""
CHAINED = re.compile(r"During handling of the above exception|exception was the direct cause of the following")
SURVIVED = re.compile(r"--- Logging error ---\s*$|Exception ignored in: ")
"""What Python says before it prints an exception that it goes on after: of a logging call, of a destructor."""
SERVED = re.compile(r"[\])-] \"[A-Z]+ \S+ HTTP/\d(?:\.\d)?\" \d{3}\b")
"""A request that a server answered (a client names the host before it): whatever was raised, the process lives."""
LONGEST = 200  # lines of a traceback that are kept


@dataclass
class LastWords:
    """Follows the lines of a log; :attr:`exception` is the first one after which no step came."""

    exception: Event | None = None
    _caught: Event | None = None  # the one that another followed, should that one be torn
    _traceback: list[str] | None = None
    _before: str = ""
    _survived: bool = False  # the exception that is being told, and those that led to it

    def take(self, line: str) -> bool:
        """Whether the line belongs to how the process ended."""
        if self._traceback is not None:
            return self._inside(line)
        if "Traceback" in line and (found := TRACEBACK.match(line)):
            self._traceback, self._before = [line], found["before"]
            return True
        if "exception" in line and CHAINED.search(line):
            if not self._survived:  # it was caught: what the process died of is the one that follows
                self._caught, self.exception = self.exception or self._caught, None
            return True
        self._survived = bool(SURVIVED.search(line))
        if self._survived:
            return True
        if "HTTP/" in line and SERVED.search(line):
            self.went_on()
            return True
        for pattern, kind in SILENT if HINT.search(line) else ():
            if pattern.search(line):
                self._keep(kind, line.strip(), [line])
                return True
        return False

    def _inside(self, line: str) -> bool:
        said = line.removeprefix(self._before)
        trace = self._traceback or []
        if len(trace) < LONGEST:
            trace.append(line)
        if said.startswith((" ", "\t")) or not said:
            return True
        self._traceback = None
        if found := EXCEPTION.match(said.strip()):
            self._keep(found["type"].rpartition(".")[2], found["message"] or "", trace)
        return True

    def _keep(self, kind: str, message: str, trace: list[str]) -> None:
        if self.exception is None and not self._survived:
            self.exception = {"type": kind, "message": message, "traceback": "\n".join(trace)}

    def went_on(self) -> None:
        """A step came: whatever was said before was survived."""
        self.exception = self._caught = None

    def events(self) -> list[Event]:
        """The exception and the end of the run, if there was one."""
        exception = self.exception or self._caught
        if exception is None:
            return []
        reason = _signal(str(exception["message"])) or str(exception["type"])
        asked = reason.startswith("SIG") or reason in ("KeyboardInterrupt", "TimeLimit", "Cancelled")
        if asked:
            said = {"TimeLimit": "SIGTERM: time limit", "Cancelled": "SIGTERM: cancelled"}.get(reason, reason)
            return [{"kind": "end", "status": "stopped", "reason": said}]
        return [
            {"kind": "event", "event": "exception", **exception},
            {"kind": "end", "status": "failed", "reason": exception["type"], "exception": exception},
        ]


def _signal(message: str) -> str | None:
    found = SIGNALLED.search(message)
    if found is None:
        return None
    name = found[3]
    if name is None:
        try:
            name = signal.Signals(int(found[1] or found[2])).name
        except ValueError:
            name = "SIG" + (found[1] or found[2])
    return name

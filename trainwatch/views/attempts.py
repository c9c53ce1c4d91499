"""How often a run was started, and what stopped each start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trainwatch.header import Header, mapping, text
from trainwatch.run import Cursor, Run

UNRECORDED = "an exception that was not recorded"
ASKED = "KeyboardInterrupt"


@dataclass
class Attempt:
    """One start: its header, the exceptions that stopped it, and whether somebody asked it to stop."""

    header: Header
    stopped: list[str] = field(default_factory=list)
    asked: int = 0


def attempts(run: Run) -> list[Attempt]:
    """Every start of a run, in order.

    An exception that is recorded as an event and again in the end record that follows it is one.
    """
    found: list[Attempt] = []
    before = ""
    for header, event in _told(run):
        if header is not None:
            found.append(Attempt(header))
            continue
        if not found:
            found.append(Attempt(Header()))
        newest = found[-1]
        if event.get("kind") == "end":
            said = _spoken(mapping(event.get("exception")))
            if said and said != before and not said.startswith(ASKED):
                newest.stopped.append(said)
            elif not said and not before and event.get("status") == "failed":
                newest.stopped.append(text(event.get("reason")) or UNRECORDED)
            newest.asked += event.get("status") == "stopped" or said.startswith(ASKED)
            before = ""
        elif event.get("event") in ("exception", "oom"):
            before = _spoken(event) or str(event["event"])
            newest.stopped += [] if before.startswith(ASKED) else [before]
    return found


def _told(run: Run) -> Iterator[tuple[Header | None, dict[str, Any]]]:
    for item in run.since(Cursor()):
        if isinstance(item, Header):
            yield item, {}
        elif isinstance(item, dict):
            yield None, item


def _spoken(said: dict[str, Any]) -> str:
    """Type and first line of an exception."""
    message = str(said.get("message") or "").strip()
    parts = (text(said.get("type")), message.splitlines()[0][:200] if message else None)
    return ": ".join(part for part in parts if part)

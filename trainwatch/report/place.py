"""Where a run ran, and its last words: environment, traceback, the end of its file."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainwatch.header import flat, mapping, number, text
from trainwatch.run import Run
from trainwatch.text import wording

TAIL_LINES, TAIL_BYTES, TAIL_LINE = 8, 64 << 10, 400
TRACEBACK_LINES = 200
PACKAGES = 40
FIELDS = ("started", "host", "python", "device", "git", "world_size", "dtypes", "parameters")


def environment(run: Run) -> Iterator[tuple[str, str]]:
    """(name, value) of what the header says about the machine and the program."""
    raw = run.header.raw
    command = raw.get("command")
    if isinstance(command, list):
        yield "command", shlex.join(wording.clean(part, 300) for part in command[:200])
    for name in FIELDS:
        for path, value in flat(raw.get(name)):
            if value not in (None, {}):
                yield f"{name} {path}".strip().replace("_", " "), _amount(name, path, value)
    packages = list(mapping(raw.get("packages")).items())[:PACKAGES]
    if packages:
        yield "packages", ", ".join(wording.clean(f"{name} {version}", 80) for name, version in packages)


def _amount(name: str, path: str, value: Any) -> str:
    if (name, path) == ("device", "memory") and number(value):
        return f"{float(value) / 2**30:.1f} GiB"
    return wording.clean(value, 200) if isinstance(value, str | bool) else wording.number(value)


def traceback(run: Run) -> str:
    """The traceback with which the run ended, its lines kept."""
    candidates = [mapping((run.end or {}).get("exception")), *reversed(run.events)]
    found = next((said for item in candidates if (said := text(item.get("traceback")))), "")
    lines = found.splitlines()[-TRACEBACK_LINES:]
    return "\n".join(line[: len(line) - len(line.lstrip())][:80] + wording.clean(line, 400) for line in lines)


def tail(source: Path) -> list[str]:
    """The file's last lines as they stand in it; none of a file that is no text."""
    try:
        with source.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            block = file.read()
    except OSError:
        return []
    if block.count(b"\0") > len(block) // 16:
        return []
    return [wording.clean(line, TAIL_LINE) for line in block.decode("utf-8", "replace").splitlines()[-TAIL_LINES:]]

"""Keys as they are pressed, without waiting for Enter; none where the input is no terminal, or on Windows."""

from __future__ import annotations

import os
import select
import sys
import time
from types import TracebackType
from typing import Any

try:
    import termios
    import tty
except ImportError:  # Windows
    termios = tty = None  # type: ignore[assignment]

NAMES = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"k": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"j": "down",
    b"\r": "enter",
    b"\n": "enter",
    b"\x1b": "escape",
    b"q": "q",
}
SEQUENCE_SECONDS = 0.05  # the rest of an arrow key's sequence comes at once, or it was the Escape key


class Keys:
    """A context in which the terminal gives single keys and does not echo them.

    Ctrl-C interrupts as ever. Ctrl-Z does nothing: it would leave the shell on the alternate screen.
    """

    def __init__(self) -> None:
        self._before: list[Any] | None = None
        self._waiting: list[str] = []

    def __enter__(self) -> Keys:
        if termios is not None and _is_terminal():
            self._before = termios.tcgetattr(sys.stdin.fileno())
            tty.setcbreak(sys.stdin.fileno())
            now = termios.tcgetattr(sys.stdin.fileno())
            now[6][termios.VSUSP] = bytes([os.fpathconf(sys.stdin.fileno(), "PC_VDISABLE") & 0xFF])
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, now)
        return self

    @property
    def heard(self) -> bool:
        """Whether keys can be read here."""
        return self._before is not None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before is not None:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSAFLUSH, self._before)

    def read(self, seconds: float) -> str | None:
        """The next key's name; None if none was pressed within so many seconds."""
        if not self._waiting:
            if self._before is None:
                time.sleep(seconds)
                return None
            self._waiting = parse(self._bytes(seconds))
        return self._waiting.pop(0) if self._waiting else None

    def _bytes(self, seconds: float) -> bytes:
        file = sys.stdin.fileno()
        if not select.select([file], [], [], seconds)[0]:
            return b""
        given = os.read(file, 64)
        if not given:
            self._before = None  # the terminal went away
        while given.endswith((b"\x1b", b"\x1b[", b"\x1bO")) and select.select([file], [], [], SEQUENCE_SECONDS)[0]:
            given += os.read(file, 64)
        return given


def _is_terminal() -> bool:
    """Whether the input is a terminal that listens to this process: one in the background would be stopped."""
    try:
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (ValueError, OSError):  # closed, or no terminal of ours
        return False


def parse(given: bytes) -> list[str]:
    """The keys in what a terminal sent; what is not asked for is passed over."""
    found = []
    while given:
        length = 1
        if given[:2] in (b"\x1b[", b"\x1bO"):
            final = next((at for at, byte in enumerate(given[2:], 2) if 0x40 <= byte <= 0x7E), len(given) - 1)
            length = final + 1
        found.append(NAMES.get(given[:length]))
        given = given[length:]
    return [name for name in found if name]

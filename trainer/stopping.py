"""A clean stop: SIGTERM and SIGINT ask the loop to end after the step it is in; a second SIGINT ends it at once.

Before the loop there is no step to wait for: a signal ends the process there and then.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STDERR = 2


class Stop:
    """Whether somebody asked, and who. The recorder, opened inside, tells itself and then calls this handler."""

    def __init__(self, last: int = 0) -> None:
        """`last` is the step after which the run is to end, where that is before its own end."""
        self.reason = ""
        self._last = last
        self._looping = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._asked) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reached(self, step: int) -> None:
        """A step is done."""
        if step == self._last:
            self.reason = self.reason or f"asked to end at step {step}"

    def looping(self) -> None:
        """From here on a signal waits for the end of the step."""
        self._looping = True

    def _asked(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._looping or self.reason == name == "SIGINT":
            raise KeyboardInterrupt(name)
        self.reason = name
        os.write(STDERR, f"trainer: {name}: stopping after this step\n".encode())  # print may be what it interrupted

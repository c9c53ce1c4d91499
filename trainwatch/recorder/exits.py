"""How a process ends: signals, uncaught exceptions, interpreter exit; and that a forked child is not the run.

One handler for all recorders of the process. A signal is told to each of them; then whoever handled it before us does.
Only where nobody did (the system's default: death) the recorders are closed first, and the signal is sent again, so the
exit status stays the signal's. An ignored signal stays ignored.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Protocol

SIGNALS = tuple(number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)))


class Witness(Protocol):
    """Who wants to be told how the process ends."""

    def on_signal(self, name: str) -> None: ...
    def on_death(self, reason: str) -> None: ...
    def on_exception(self, error: BaseException) -> None: ...
    def on_exit(self) -> None: ...
    def on_fork(self) -> None: ...


_witnesses: list[Witness] = []
_previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
_handling: set[int] = set()
_previous_hook: list[Callable[[type[BaseException], BaseException, TracebackType | None], Any]] = []


def register(witness: Witness) -> None:
    """Tell ``witness`` how the process ends, until it is unregistered."""
    _witnesses.append(witness)
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            _install(number)
    if not _previous_hook:
        _previous_hook.append(sys.excepthook)
        sys.excepthook = _uncaught


def unregister(witness: Witness) -> None:
    """The run is over; after the last one everything is as it was before the first."""
    if witness in _witnesses:
        _witnesses.remove(witness)
    if not _witnesses:
        _restore()


def _install(number: int) -> None:
    current = signal.getsignal(number)
    if current is not _handle and current is not None and current != signal.SIG_IGN:
        _previous[number] = current
        signal.signal(number, _handle)


def _restore() -> None:
    """Put back what was there, where it is still ours to do so."""
    if threading.current_thread() is threading.main_thread():
        for number in list(_previous):
            if signal.getsignal(number) is _handle:
                signal.signal(number, _previous.pop(number))
    if _previous_hook and sys.excepthook is _uncaught:
        sys.excepthook = _previous_hook.pop()


def _handle(number: int, frame: FrameType | None) -> None:
    """Tell the recorders, then do what would have been done without us."""
    name, previous = signal.Signals(number).name, _previous.get(number, signal.SIG_DFL)
    if number in _handling:  # who was there before us calls us in turn: for both of us it ends here
        previous = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    else:
        for witness in _witnesses[:]:
            witness.on_signal(name)
    if callable(previous):
        _handling.add(number)
        try:
            previous(number, frame)
        finally:
            _handling.discard(number)
    elif previous == signal.SIG_DFL:
        for witness in _witnesses[:]:
            witness.on_death(name)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    previous = _previous_hook[0] if _previous_hook else sys.__excepthook__
    for witness in _witnesses[:]:
        witness.on_exception(error)
    previous(kind, error, trace)


def _at_exit() -> None:
    for witness in _witnesses[:]:
        witness.on_exit()


def _in_child() -> None:
    """A forked child (a DataLoader's worker) is not the run: it writes nothing, and signals go where they went."""
    for witness in _witnesses[:]:
        witness.on_fork()
    _witnesses.clear()
    _restore()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)

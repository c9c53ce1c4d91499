"""The loop of the live view: look at the runs, show or print what is new, answer keys, end when the run is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from trainwatch.engine import Settings
from trainwatch.following import Followed
from trainwatch.interrupt import terminated_as_interrupted
from trainwatch.judge import run_files
from trainwatch.text import terminal, wording
from trainwatch.text.terminal import WIDEST
from trainwatch.text.wording import clean
from trainwatch.watch import charts, frame
from trainwatch.watch.board import Board, Change, Listener
from trainwatch.watch.keys import Keys

POLL, SLOWEST = 0.5, 5.0  # seconds between two looks: the shortest, and the longest where a look is dear
MOST_OF_A_CORE = 0.05  # that looking and drawing may take: what is dear is done less often
KEY_SECONDS = 0.25  # so soon a change of the window's size is seen
FIRST_LOOK = 0.4  # seconds that the window waits for: a small file needs no word that it is read
LOOK_SECONDS = 0.02  # within which most looks are done
LAST_MESSAGES = 10.0  # seconds that the end waits for what is still on its way to a receiver
NOTICES = 3  # lines of what the listeners have to say
CLOCK = 1.0  # seconds between two frames while nothing changes but ages


def watch(
    target: Path, out: Console, settings: Settings, *, once: bool = False, listeners: Sequence[Listener] = ()
) -> list[Followed]:
    """Watch a run file until its run is over, or a folder until a key ends it; returns what was watched.

    What stood on the screen at the end is printed. Raises KeyboardInterrupt for Ctrl-C and for SIGTERM.
    """
    board = Board(target if target.is_dir() else _rank_zero(target), settings, listeners)
    screen = out.file.isatty() and not out.is_dumb_terminal
    with terminated_as_interrupted(), _heard(board):
        if screen and not once:
            _on_screen(board, out)
        elif not once:
            _as_lines(board, out)
        if once or board.single:
            board.conclude()
    _last_words(board, out, numbers=once or screen)
    for said in board.notices if once or screen else ():
        terminal.write(out, Text(clean(said), style="dim"))
    return list(board.files.values())


@contextmanager
def _heard(board: Board) -> Iterator[None]:
    """At the end, however it comes, what is on its way to somebody is waited for; by who presses Ctrl-C, not long."""
    patience = LAST_MESSAGES
    try:
        yield
    except KeyboardInterrupt:
        patience = LAST_MESSAGES / 5
        raise
    finally:
        for listener in board.listeners:
            listener.close(patience)


def _rank_zero(path: Path) -> Path:
    """The file that stands for the run of which this is a rank's."""
    return next((file for file in run_files([path]) if isinstance(file, Path)), path)


def _as_lines(board: Board, out: Console) -> None:
    """A line for each change, as it happens: for a pipe, a log, a terminal that can do no more."""
    waits, pace = False, _Pace()
    noticed: list[str] = []
    while not board.over:
        pace.begin()
        for change in board.look():
            _print_line(out, change)
        noticed = _print_notices(board, out, noticed)
        if not waits and not board.reading and all(file.run is None for file in board.files.values()):
            waits = True
            _print_waiting(board, out)
        if not board.over:
            time.sleep(0.0 if board.reading else pace.rest())


def _print_notices(board: Board, out: Console, before: list[str]) -> list[str]:
    """What the listeners say that they did not say before; returns all of it."""
    for said in board.notices:
        if said not in before:
            terminal.write(out, Text(f"{_clock()}  {clean(said)}"))
            out.file.flush()
    return list(dict.fromkeys([*before, *board.notices]))


def _print_waiting(board: Board, out: Console) -> None:
    """Why there is nothing to tell yet."""
    why = [file.error for file in board.files.values() if board.single] or [f"{board.target}: holds no run yet."]
    terminal.write(out, Text(f"{_clock()}  {clean(why[0])} Waiting for its first row."))
    out.file.flush()


def _print_line(out: Console, change: Change) -> None:
    file = change.file
    if file.run is None or file.diagnosis is None:
        return
    line = Text(f"{_clock()}  {clean(file.run.name, 80)}  ")
    if change.finding is None:
        line.append(wording.verdict(file.diagnosis, file.run.header.total_steps))
    else:
        line += terminal.headline(change.finding) + Text(f": {clean(change.finding.message)}")
    terminal.write(out, line)
    out.file.flush()


def _clock() -> str:
    return time.strftime("%H:%M:%S")


class _Pace:
    """How long to wait between two looks, so that they take little of a core."""

    def __init__(self) -> None:
        self._cost, self._began = 0.0, 0.0

    def begin(self) -> None:
        """A look begins."""
        self._began = time.process_time()

    def rest(self) -> float:
        """Seconds from now to the next look; by the cheaper of the last two, as a first reading is no measure."""
        before, self._cost = self._cost, time.process_time() - self._began
        return min(max(POLL, min(before, self._cost) / MOST_OF_A_CORE), SLOWEST)


def _last_words(board: Board, out: Console, *, numbers: bool) -> None:
    """What is left on the terminal: the diagnosis as ``check`` prints it, and (``numbers``) the curves under it."""
    if not board.single:
        _print(out, board.lines(out, out.height if out.file.isatty() else None) if board.files else [])
        return
    for file in board.files.values():
        if file.run is not None and file.diagnosis is not None:
            terminal.show(out, file.diagnosis, file.run.header.total_steps)
            drawn = charts.draw(charts.sections(file.run), min(out.width, WIDEST)) if numbers else []
            progress = [Text(), frame.progress(file.run, file.diagnosis, time.time()), Text(), *drawn]
            _print(out, progress if numbers else [])


def _print(out: Console, lines: list[Text]) -> None:
    for line in lines:
        line.rstrip()
        out.print(_fitting(out, line), overflow="ignore", no_wrap=True, crop=False)


def _fitting(out: Console, line: Text) -> Text:
    """The line in the signs that the terminal has."""
    return line if out.encoding.lower().startswith("utf") else frame.plain(line)


class _Look(threading.Thread):
    """A look at the files aside, so that keys are answered while a long file is read for the first time."""

    def __init__(self, board: Board) -> None:
        super().__init__(name="trainwatch-watch", daemon=True)  # whoever ends the view does not wait for a file
        self._board = board
        self.fault: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._board.look()
        except Exception as error:
            self.fault = error

    def settled(self, patience: float) -> bool:
        """Whether it is done, after so many seconds at most. Raises what went wrong in it."""
        self.join(patience)
        if self.fault:
            raise self.fault
        return not self.is_alive()


def _on_screen(board: Board, out: Console) -> None:
    """The view on the alternate screen, until the run is over or a key ends it."""
    first = _Look(board)
    if first.settled(FIRST_LOOK) and board.over:
        return
    look: _Look | None = first
    with Keys() as keys, _window(out) as show:
        show([Text(f"{clean(board.target)}: reading …")])
        shown, drawn, due, pace = None, 0.0, 0.0, _Pace()
        while look is not None or not board.over:
            looked = look is not None and look.settled(0.0 if shown is None else LOOK_SECONDS)
            look = None if looked else look
            if look is None and (_state(board, out) != shown or time.monotonic() - drawn >= CLOCK):
                told = _notices(board, out)
                show([*board.lines(out, out.height - 1 - len(told)), *told, _hints(board, keys.heard)])
                shown, drawn = _state(board, out), time.monotonic()
            if looked:
                due = 0.0 if board.reading else time.monotonic() + pace.rest()
            elif look is None and time.monotonic() >= due:
                pace.begin()
                look = _Look(board)
            key = keys.read(max(min(KEY_SECONDS, due - time.monotonic()), LOOK_SECONDS))
            if key == "q" and look is not None and not look.settled(FIRST_LOOK):
                raise KeyboardInterrupt  # a long file is being read for the first time: nothing can be said yet
            if key == "q":
                return
            if key is not None:
                board.press(key)


def _state(board: Board, out: Console) -> tuple[object, ...]:
    """What a frame depends on, the clock aside."""
    versions = sum(file.version for file in board.files.values())
    return versions, len(board.files), out.size, board.opened, board.chosen, board.scroll, *board.notices


def _notices(board: Board, out: Console) -> list[Text]:
    """What the listeners have to say, in a line each; the newest few."""
    lines = [Text(clean(said), style="bold yellow") for said in board.notices[-NOTICES:]]
    for line in lines:
        line.truncate(out.width, overflow="ellipsis")
    return lines


def _hints(board: Board, heard: bool) -> Text:
    if not heard:
        said = "Ctrl-C ends"
    elif board.single:
        said = "q ends   ↑↓ findings"
    elif board.opened in board.files:
        said = "q ends   ↑↓ findings   Esc all runs"
    else:
        said = "q ends   ↑↓ runs   Enter opens"
    return Text(said, style="dim")


@contextmanager
def _window(out: Console) -> Iterator[Callable[[list[Text]], None]]:
    """The alternate screen; what is yielded draws on it."""
    with Live(console=out, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:

        def show(lines: list[Text]) -> None:
            width, height = out.size
            fitting = [_fitting(out, line) for line in lines[-height:]]
            for line in fitting:
                line.truncate(width)
            live.update(Text("\n", no_wrap=True, overflow="ignore").join(fitting), refresh=True)

        yield show

"""What the terminal shows of long work: a bar, its rate and the time that is left; plain lines where it is a file."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

PLAIN_EVERY = 10.0  # seconds between two lines where no bar can be drawn


class Bar:
    """The progress of a run, or of anything that is counted. It is told host numbers alone: it waits for no device."""

    def __init__(self, total: int, done: int = 0, unit: str = "steps", silent: bool = False) -> None:
        """`silent` is for a rank whose words would be another's."""
        self._console = Console(stderr=True, soft_wrap=True)
        self._silent = silent
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, disable=silent or not self._console.is_terminal)
        self._task = self._bar.add_task("", total=total, completed=done, rate="")
        self._total, self._first, self._unit = total, done, unit
        self._began = self._spoke = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._silent:
            return
        if self._console.is_terminal:
            self._bar.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)  # the standard output is for results

    def warn(self, text: str) -> None:
        """A line on stderr, wherever the others go."""
        if not self._silent:
            self._console.print(f"trainer: {text}", markup=False, highlight=False)

    def step(self, done: int, about: str) -> None:
        """`done` of them are done; `about` says where that is."""
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._began, 1e-9)
        self._bar.update(self._task, completed=done, description=about, rate=f"{rate:.1f} {self._unit}/s")
        if not self._console.is_terminal and now - self._spoke >= PLAIN_EVERY:
            self._spoke = now
            left = (self._total - done) / max(rate, 1e-9)
            self.say(f"{done:,} of {self._total:,} {self._unit}, {rate:.1f} {self._unit}/s, {left:.0f} s left, {about}")

"""What the terminal shows of a run: a bar with its rate and the time that is left; plain lines where it is a file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

PLAIN_EVERY = 10.0  # seconds between two lines where no bar can be drawn


class Bar:
    """The progress of a run. It is told host numbers alone, so it never waits for the device."""

    def __init__(self, total: int, done: int) -> None:
        self._console = Console(stderr=True, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=total, completed=done, rate="")
        self._total, self._first, self._done = total, done, done
        self._began = self._spoke = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._bar.print(text, highlight=False) if self._console.is_terminal else print(text, flush=True)

    def step(self, step: int, stage: str) -> None:
        """`step` steps are done."""
        now = time.monotonic()
        rate = (step - self._first) / max(now - self._began, 1e-9)
        self._bar.update(self._task, completed=step, description=stage, rate=f"{rate:.1f} steps/s")
        if not self._console.is_terminal and now - self._spoke >= PLAIN_EVERY:
            self._spoke = now
            left = (self._total - step) / max(rate, 1e-9)
            self.say(f"step {step:,} of {self._total:,}, {rate:.1f} steps/s, {left:.0f} s left, stage {stage}")

"""Where a step's time goes: waiting for data, evaluating, writing checkpoints, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from time import perf_counter
from types import TracebackType
from typing import Generic, Protocol, TypeVar

Batch = TypeVar("Batch")


class Stopwatch:
    """Times one loop. Between a step and the next sign of training, time belongs to what is then reported."""

    def __init__(self) -> None:
        self.phase = "train"
        self.last_step: float | None = None
        self._born = self._mark = perf_counter()
        self._excluded = 0.0
        self._waited: float | None = None
        self._busy = False
        self._phase_began: float | None = None
        self._saved = 0.0

    def working(self) -> None:
        """Training goes on: from here to the next step nothing is evaluation."""
        self._busy = True

    def waited(self, seconds: float) -> None:
        """The loop got a batch after so long."""
        self._waited = (self._waited or 0.0) + seconds
        self._busy = True

    def pause(self, seconds: float | None = None) -> float:
        """An evaluation or a checkpoint has just ended; how long it took, which is no part of the step."""
        now = perf_counter()
        if self._phase_began is not None:
            return now - self._phase_began
        if seconds is None:
            seconds = 0.0 if self._busy else now - self._mark
        known = min(seconds, self._saved)  # by ``phase("checkpoint")``, excluded already
        self._saved -= known
        self._excluded += max(0.0, min(seconds - known, now - self._mark))
        self._mark = now
        return seconds

    def idle(self) -> float:
        """Seconds since the last step, or since the loop began."""
        return perf_counter() - (self._born if self.last_step is None else self.last_step)

    def lap(self, now: float, fields: dict[str, float]) -> None:
        """A step is complete: its times go to ``fields``."""
        if self.last_step is not None:
            fields["time/step"] = max(0.0, now - self.last_step - self._excluded)
        if self._waited is not None:
            fields["time/data"] = self._waited
            self._waited = None
        self.last_step = self._mark = now
        self._excluded = self._saved = 0.0
        self._busy = False

    def begin(self, phase: str) -> None:
        """From now on it is evaluation or the writing of a checkpoint."""
        self.phase, self._phase_began = phase, perf_counter()

    def end(self) -> None:
        """Back to training."""
        if self._phase_began is not None:
            spent = perf_counter() - self._phase_began
            self._excluded += spent
            self._saved += spent if self.phase == "checkpoint" else 0.0
        self.phase, self._phase_began, self._mark = "train", None, perf_counter()


class Look(Protocol):
    """What is looked at while a phase goes on."""

    def begin(self) -> None: ...
    def end(self) -> None: ...


class Phase:
    """``with watch.phase("eval"):`` the heartbeat says so, and the time is no part of the step's."""

    def __init__(self, stopwatch: Stopwatch, name: str, look: Look | None = None) -> None:
        self._stopwatch, self._name, self._look = stopwatch, name, look
        self._outermost: list[bool] = []  # of each time that it was entered

    def __enter__(self) -> None:
        self._outermost.append(self._stopwatch.phase == "train")
        if self._outermost[-1]:
            self._stopwatch.begin(self._name)
            if self._look:
                self._look.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._outermost.pop():
            self._stopwatch.end()
            if self._look:
                self._look.end()


class Batches(Generic[Batch]):
    """A loader whose batches are timed and ``seen``; as long as the loader, and as often to be walked through."""

    def __init__(self, loader: Iterable[Batch], stopwatch: Stopwatch, seen: Callable[[Batch, object], object]) -> None:
        self._loader, self._stopwatch, self._seen = loader, stopwatch, seen

    def __iter__(self) -> Iterator[Batch]:
        began = perf_counter()
        for batch in self._loader:
            self._stopwatch.waited(perf_counter() - began)
            self._seen(batch, self._loader)
            yield batch
            began = perf_counter()

    def __len__(self) -> int:
        if not isinstance(self._loader, Sized):
            raise TypeError(f"the loader {type(self._loader).__name__} has no length")
        return len(self._loader)

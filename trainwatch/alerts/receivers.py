"""Everybody who is told of the runs that are watched."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from trainwatch.alerts.channels import Channel
from trainwatch.alerts.delivery import Delivery
from trainwatch.alerts.memory import Memory, forget
from trainwatch.alerts.telling import Teller
from trainwatch.diagnosis import Diagnosis
from trainwatch.run import Run


@dataclass
class _Line:
    """What one receiver was told of one run."""

    teller: Teller
    memory: Memory


class Receivers:
    """Tells each receiver of each run. ``quiet``: a run that is over when it is first seen is no news."""

    def __init__(self, channels: Sequence[Channel], *, quiet: bool) -> None:
        self._deliveries = [Delivery(channel) for channel in channels]
        self._quiet, self._fault = quiet, ""
        self._lines: dict[tuple[str, int], _Line] = {}
        forget(time.time())

    @property
    def notices(self) -> list[str]:
        """What went wrong on the way to a receiver."""
        troubles = [delivery.trouble for delivery in self._deliveries] + [self._fault]
        return [f"alerts: {trouble}" for trouble in troubles if trouble]

    def look(self, run: Run, said: Diagnosis, ended: bool) -> None:
        """A run has changed. Returns at once, and never raises: the watching goes on."""
        try:
            for number, delivery in enumerate(self._deliveries):
                line = self._line(run, number, delivery)
                messages = line.teller.look(run, said, ended)
                if messages:
                    delivery.put(messages, line.memory)
        except Exception as fault:
            self._fault = f"a message could not be made ({type(fault).__name__}: {fault}); please report this"

    def close(self, patience: float) -> None:
        """What still waits goes out; so long is waited for it."""
        until = time.monotonic() + patience
        for delivery in self._deliveries:
            delivery.close(max(until - time.monotonic(), 0.1))

    def _line(self, run: Run, number: int, delivery: Delivery) -> _Line:
        name = f"{run.source.resolve()}\n{run.header.raw.get('id') or run.name}\n{run.nth}"
        if (name, number) not in self._lines:
            memory = Memory(name, delivery.channel.identity)
            self._lines[name, number] = _Line(Teller(memory.told(), self._quiet), memory)
        return self._lines[name, number]

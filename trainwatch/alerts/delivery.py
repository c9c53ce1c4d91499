"""The way to a receiver: a queue and a thread, so that a slow or dead one never holds up the watching."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from trainwatch.alerts.channels import Channel
from trainwatch.alerts.memory import Memory
from trainwatch.alerts.telling import Message
from trainwatch.text.wording import plural

MOST, WINDOW = 3, 60.0
"""Deliveries in so many seconds, to one receiver. What buzzes more often is muted by people, and refused by chat
services (Discord takes 30 a minute of all its users' hooks, Slack one a second). Nothing is left out: what has to wait
goes together in the next one."""
TRIES, RETRY = 3, 20.0  # of a delivery, and the seconds between them: a service that restarts is back by then
PATIENCE = 10.0  # seconds that the end of the watching waits for the last delivery


class Delivery:
    """Hands messages to one receiver, no more often than it is good for, and again where that failed."""

    def __init__(self, channel: Channel) -> None:
        self.channel, self.trouble, self._why = channel, "", ""
        self._waiting: list[tuple[Message, Memory]] = []
        self._sent: deque[float] = deque(maxlen=MOST)
        self._tries, self._later, self._lost = 0, 0.0, 0
        self._news, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="trainwatch-alerts", daemon=True)
        self._thread.start()

    def put(self, messages: Sequence[Message], memory: Memory) -> None:
        """Take messages over; returns at once."""
        with self._news:
            self._waiting += [(message, memory) for message in messages]
            self._news.notify()

    def close(self, patience: float = PATIENCE) -> None:
        """What waits goes out now, in one; then, or when the patience is over, it is done."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(patience)
        if self._thread.is_alive():
            self.channel.abandon()
        with self._news:
            lost = self._lost + len(self._waiting)
        if lost:
            self.trouble = f"{self.channel.name}: {plural(lost, 'message')} could not be delivered"
            self.trouble += f" ({self._why})" if self._why else " in time"

    def _run(self) -> None:
        while True:
            with self._news:
                while not self._due():
                    if self._closing:
                        return
                    self._news.wait(self._pause())
                batch = list(self._waiting)
            self._attempt(batch)

    def _due(self) -> bool:
        return bool(self._waiting) and (self._closing or self._pause() == 0.0)

    def _pause(self) -> float | None:
        """Seconds until a delivery is allowed; None while nothing waits for one."""
        if not self._waiting:
            return None
        now = time.monotonic()
        free = self._sent[0] + WINDOW if len(self._sent) == MOST else 0.0
        return max(free - now, self._later - now, 0.0)

    def _attempt(self, batch: list[tuple[Message, Memory]]) -> None:
        self._sent.append(time.monotonic())
        try:
            self._why = self.channel.deliver([message for message, _ in batch])
        except Exception as fault:  # whatever a service's code raises
            self._why = f"{type(fault).__name__}: {fault}"
        self._tries = self._tries + 1 if self._why else 0
        self._later = time.monotonic() + RETRY if self._why else 0.0
        if self._why:
            self.trouble = f"{self.channel.name}: {self._why}"
        given_up = bool(self._why) and (self._tries >= TRIES or self._closing)
        if given_up:
            self._tries = 0
        for message, memory in batch if not self._why else ():
            memory.keep(message.key, message.grade)
        if given_up or not self._why:
            with self._news:
                del self._waiting[: len(batch)]
                self._lost += len(batch) if given_up else 0

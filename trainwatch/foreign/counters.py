"""The counters of somebody else's log become one step: steps, batches within epochs, epochs, or nothing but rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from trainwatch.foreign.channels import WORD, Role, by_role, recognise

Mode = Literal["step", "batch", "epoch", "row"]

LIMIT = 2**53
LENGTHS = 0.1  # of the rows: a step falls at restarts alone, an episode's length in about half of them
RARE = 50  # where a loss stands on fewer than one row in so many, it is a summary, and the other rows are the training


@dataclass(slots=True)
class Row:
    """What a line says. ``totals`` has the ends of counters (``Batch 30/173``); ``partial`` is one of the lines of an
    evaluation that goes on (they are averaged); in a ``rounded`` one a loss stood as 0.00, which is not known to be 0;
    a ``whole`` one is a row of a table, which tells of its own step also where it has no loss.
    """

    values: dict[str, float]
    split: str = ""
    totals: dict[str, float] = field(default_factory=dict)
    partial: bool = False
    rounded: bool = False
    whole: bool = False

    def counter(self, role: Role) -> float | None:
        """The reading of a counter, None if the row has none."""
        name = self._read(role)
        return None if name is None else self.values[name]

    def planned(self, role: Role) -> float | None:
        """Where the counter that is read is to end, None if the row does not say."""
        read, said = self._read(role), by_role(tuple(self.totals)).get(role, [])
        ends = (self.totals[name] for name in said if read in (None, name))
        return next((end for end in ends if 0 < end < LIMIT), None)

    def episode(self) -> float | None:
        """How many episodes were played, None if the row does not say."""
        name = _episode(tuple(self.values))
        return None if name is None else self.values[name]

    def _read(self, role: Role) -> str | None:
        """Which of the names tells a counter's reading."""
        names = by_role(tuple(self.values)).get(role, ())
        return next((name for name in names if 0 <= self.values[name] < LIMIT), None)


EPISODES = (["episode"], ["episodes"])
COUNTERS = ("step", "epoch", "batch", "planned", "ignored")


@lru_cache(maxsize=1024)
def _episode(names: tuple[str, ...]) -> str | None:
    """The name that counts episodes."""
    return next((name for name in names if [word.lower() for word in WORD.findall(name)] in EPISODES), None)


def trained(row: Row) -> list[str]:
    """The names in a row that tell of training."""
    if row.split:
        return []
    return list(_trained(tuple(row.values)))


def _trained(names: tuple[str, ...]) -> Iterator[str]:
    for role, known in by_role(names).items():
        if role not in COUNTERS:
            yield from (name for name in known if not recognise(name).split)


@dataclass
class Steps:
    """Turns a log's counters into one step. What the counters mean is seen from how they move."""

    mode: Mode = "row"
    by_loss: bool = False  # only rows with a loss count; others tell something of the next one
    length: float = 0.0  # batches of an epoch
    epochs: float | None = None  # that are planned
    counted_from: int = 0  # the first epoch's number
    total: int | None = None  # steps that are planned
    _before: float = 0.0  # steps of the epochs that had another length
    _since: int | None = None  # the first epoch of this length
    anew: bool = False  # whether the row that was learnt last begins another training: its epochs or episodes say so
    _episodes: tuple[float, float] | None = None  # the first and the last one of this training

    @classmethod
    def seen(cls, rows: Sequence[Row], *, lengths: bool = False) -> Steps:
        """How the counters of a log move in its first rows; its steps count none where they are ``lengths``."""
        training = [row for row in rows if trained(row)]
        clocked = [row for row in training if counted(row)] or training
        with_loss = [row for row in clocked if any(recognise(name).role == "loss" for name in trained(row))]
        by_loss = len(with_loss) * RARE > len(clocked)
        chosen = with_loss if by_loss else clocked
        steps = cls(_mode(chosen, lengths=lengths), by_loss=by_loss)
        planned = [end for row in rows if (end := row.planned("epoch"))]
        steps.epochs = planned[0] if planned else None
        first = next((epoch for row in chosen if (epoch := row.counter("epoch")) is not None), 0.0)
        steps.counted_from = int(first == 1)
        if steps.mode == "batch":
            steps.length = _epoch_length(chosen)
        steps.total = steps._planned(chosen)
        return steps

    def begin(self, row: Row) -> None:
        """Another training begins with this row: its epochs and their length may be others than those before it."""
        self.epochs = row.planned("epoch") or self.epochs
        self._before, self._since = 0.0, None
        if self.mode == "batch":
            self.length = row.planned("batch") or row.planned("step") or self.length
        self.total = self._planned([row]) or self.total

    def _planned(self, rows: Sequence[Row]) -> int | None:
        """The steps that are planned, as far as the rows say so."""
        if self.mode == "step":
            ends = (row.planned("step") or row.counter("planned") or _alone(row) for row in rows)
            return next((int(end) for end in ends if end), None)
        if self.epochs is None or self.mode == "row":
            return None
        return int(self.epochs * (self.length if self.mode == "batch" else 1))

    def learn(self, row: Row, last: int, stride: int, epoch: float) -> None:
        """A counter that falls where the epoch rises counts within epochs; a live log shows that late."""
        now = row.counter("epoch")
        self.anew = self._begins(row, epoch)
        if now is not None and (now > epoch or last < 0):
            self.lengthen(row, now)
        if self.mode != "step" or now is None or now <= epoch or last < 0:
            return
        reached = self.of(row, last)
        if reached is not None and reached < last:
            self.mode = "batch"
            self.length = row.planned("batch") or row.planned("step") or last + stride

    def _begins(self, row: Row, before: float) -> bool:
        """Whether the episode is the first one again, or the epoch, where nothing but rows is counted."""
        episode, epoch = row.episode(), row.counter("epoch")
        if episode is not None:
            first, last = self._episodes or (episode, episode)
            replayed = episode <= first < last
            self._episodes = (episode if replayed else first, episode)
            if replayed:
                return True
        if self.mode != "row" or epoch is None:
            return False
        return before - epoch > 1 and epoch < self.counted_from + 1  # by less: two processes write by turns

    def lengthen(self, row: Row, epoch: float) -> None:
        """From this epoch on another number of batches may be an epoch: another batch size, or other data."""
        length = row.planned("batch") or row.planned("step")
        since = self.counted_from if self._since is None else self._since
        if self.mode == "batch" and length and length != self.length and epoch >= since:
            self._before += (math.floor(epoch) - since) * self.length
            self._since, self.length = math.floor(epoch), length

    def of(self, row: Row, last: int) -> int | None:
        """The step of a training row, None if the row tells of more than one step (the mean of an epoch)."""
        step, epoch, batch = row.counter("step"), row.counter("epoch"), row.counter("batch")
        if self.mode == "step":
            value = step if step is not None else batch
            return None if value is None else int(value)
        if self.mode == "batch":
            within = batch if batch is not None else step
            if within is None or epoch is None:
                return None
            since, before = self._since, self._before
            if since is None or epoch < since:  # the first length, or another training
                since, before = self.counted_from, 0.0
            reached = before + (math.floor(epoch) - since) * self.length + within
            return int(reached) if 0 <= reached < LIMIT else None
        if self.mode == "epoch":
            return None if epoch is None else int(epoch)
        return 0 if self.anew else last + 1


def _alone(row: Row) -> float | None:
    """The end of a bar that counts the whole training, as no epoch is told beside it."""
    return row.planned("batch") if row.counter("epoch") is None else None


def counted(row: Row) -> bool:
    """Whether a row says when it was."""
    roles: tuple[Role, ...] = ("step", "batch", "epoch")
    return any(row.counter(role) is not None for role in roles)


def episode_lengths(rows: Sequence[Row]) -> bool:
    """Whether the steps are those of one episode each: they fall where the episodes are counted on."""
    counts = ((row.counter("step"), row.episode()) for row in rows)
    known = [(step, episode) for step, episode in counts if step is not None and episode is not None]
    falls = sum(b[0] < a[0] and b[1] > a[1] for a, b in pairwise(known))
    return falls > max(1, LENGTHS * len(known))


def _mode(rows: Sequence[Row], *, lengths: bool) -> Mode:
    steps = [None if lengths else row.counter("step") for row in rows]
    epochs = [row.counter("epoch") for row in rows]
    batches = [row.counter("batch") for row in rows]
    for counts in (steps, batches):
        if _mostly(counts):
            return "batch" if _within_epochs(counts, epochs) else "step"
    known = [epoch for epoch in epochs if epoch is not None]
    whole = all(epoch == int(epoch) for epoch in known)
    repeated = sum(a == b for a, b in pairwise(known))
    return "epoch" if _mostly(epochs) and whole and repeated * 3 <= len(known) else "row"


def _mostly(values: Sequence[float | None]) -> bool:
    return sum(value is not None for value in values) * 2 > len(values)


def _within_epochs(steps: Sequence[float | None], epochs: Sequence[float | None]) -> bool:
    """Whether a counter falls where the epoch rises, and nearly nowhere else."""
    pairs = [(s, e) for s, e in zip(steps, epochs, strict=True) if s is not None and e is not None]
    falls = [(a, b) for a, b in pairwise(pairs) if b[0] < a[0] or (b[0] == a[0] and b[1] > a[1])]
    return bool(falls) and sum(b[1] > a[1] for a, b in falls) * 2 > len(falls)


def _epoch_length(rows: Sequence[Row]) -> float:
    """Batches of an epoch: as the log says, else one stride beyond the last that was ever printed."""
    said = Counter(end for row in rows if (end := row.planned("batch") or row.planned("step")))
    if said:
        return said.most_common(1)[0][0]
    batches = [value for row in rows if (value := _within(row)) is not None]
    strides = Counter(b - a for a, b in pairwise(batches) if b > a)
    stride = strides.most_common(1)[0][0] if strides else 1.0
    return max(batches, default=0.0) + stride


def _within(row: Row) -> float | None:
    batch = row.counter("batch")
    return batch if batch is not None else row.counter("step")

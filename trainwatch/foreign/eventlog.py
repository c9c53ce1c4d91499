"""TensorBoard's event file as columns: records in TFRecord frames, each a protocol buffer with a step and its scalars.

Nine records in ten look alike: a time, a step, one tag and one float32. They are taken apart together, those of one
length at a time, without an object for any of them; the others are read field by field.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainwatch.foreign.protobuf import BYTES, WireError, double, fields, signed, single

FRAME = 12  # bytes before the payload: its length and a checksum of that; four more of a checksum stand behind it
BLOCK = 16 << 20  # bytes that are read at once
LARGEST = 8 << 20  # bytes of a record: more is no scalar
USUAL = 150  # bytes of a record at most, whose inner lengths then are of one byte each
SEVERAL = 200  # tags of one length, in a block; where there are more, each record is asked for its own
PLACEHOLDERS = {"hp_metric"}  # Lightning writes -1 there
FORMS = {1: ("<f", 5), 2: ("<d", 6)}  # of a tensor's numbers, by dtype: form, and the field of single values

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]


class Points(NamedTuple):
    """Scalars in file order: the step of each, the number of its tag, its value, and when it was written in Unix
    seconds; int64, int64, float64, float64 [points].
    """

    step: Ints
    tag: Ints
    value: Floats
    time: Floats

    def taken(self, order: Ints) -> Points:
        """Some of them, in that order."""
        return Points(self.step[order], self.tag[order], self.value[order], self.time[order])


def joined(parts: list[Points]) -> Points:
    """Points one behind the other."""
    if not parts:
        return Points(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    return Points(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@dataclass
class Tags:
    """The tags of a run, each with a number: its place in :attr:`names`. ``suffix`` stands behind each of the names."""

    names: dict[str, int] = field(default_factory=dict)
    suffix: str = ""
    _numbers: dict[bytes, int] = field(default_factory=dict)

    def number(self, tag: bytes) -> int:
        """The tag's number; -1 for one that holds no measurement."""
        if tag not in self._numbers:
            name = tag.decode(errors="replace")
            placeholder = name in PLACEHOLDERS
            self._numbers[tag] = -1 if placeholder else self.names.setdefault(name + self.suffix, len(self.names))
        return self._numbers[tag]


@dataclass
class EventFile:
    """One file, read by offset. ``broken`` says where it is damaged; what follows is not read."""

    path: Path
    tags: Tags
    offset: int = 0
    broken: str = ""

    def points(self) -> Points:
        """The scalars that were written since the last call. Raises OSError."""
        return joined(list(self._blocks()))

    def beginning(self, size: int) -> Points:
        """The scalars of the first ``size`` bytes. Raises OSError."""
        with self.path.open("rb") as file:
            block = file.read(size)
        return self._block(block, len(block))

    def _blocks(self) -> Iterator[Points]:
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            while not self.broken and self.offset + FRAME + 4 <= size:
                file.seek(self.offset)
                before = self.offset
                yield self._block(file.read(BLOCK), size)
                if self.offset == before:
                    return

    def _block(self, block: bytes, size: int) -> Points:
        """The scalars of the whole records in a block; one that is too large for it holds no scalar."""
        starts, lengths, at, before = [], [], 0, self.offset
        last, length_at = len(block) - FRAME - 4, struct.Struct("<Q").unpack_from
        while at <= last:
            (length,) = length_at(block, at)
            end = at + FRAME + length + 4
            if end > len(block):
                if length > LARGEST:
                    at = self._pass_over(at, end, size)
                break
            starts.append(at + FRAME)
            lengths.append(length)
            at = end
        self.offset = before + at
        return self._records(block, np.array(starts, np.int64), np.array(lengths, np.int64), before)

    def _pass_over(self, at: int, end: int, size: int) -> int:
        """Where a record ends that is too large for a block; where it begins, if that is not yet written."""
        if self.offset + end <= size:
            return end
        self.broken = self._damaged(at) if end - at > 1 << 40 else ""
        return at

    def _damaged(self, at: int) -> str:
        return f"is damaged at byte {self.offset + at:,}: what follows is not read"

    def _records(self, block: bytes, starts: Ints, lengths: Ints, before: int) -> Points:
        left = np.ones(len(starts), dtype=bool)
        parts, places = [], []
        for place, points in _alike(np.frombuffer(block, np.uint8), starts, lengths, self.tags):
            left[place] = False
            parts.append(points)
            places.append(place)
        stop = len(starts)
        for index in np.flatnonzero(left).tolist():
            start = int(starts[index])
            try:
                found = scalars(block[start : start + int(lengths[index])], self.tags)
            except (WireError, struct.error, TypeError):
                self.broken = f"is damaged at byte {before + start - FRAME:,}: what follows is not read"
                stop = index
                break
            parts.append(found)
            places.append(np.full(len(found.step), index))
        if not parts:
            return joined([])
        whole, place = joined(parts), np.concatenate(places)
        order = np.argsort(place, kind="stable")
        order = order[(place[order] < stop) & (whole.tag[order] >= 0)]
        return whole.taken(order)


def _alike(block: Bytes, starts: Ints, lengths: Ints, tags: Tags) -> Iterator[tuple[Ints, Points]]:
    """The usual records among those that begin at ``starts``: which ones, and their points."""
    for length in np.unique(lengths[(lengths > 20) & (lengths < USUAL)]):
        which = np.flatnonzero(lengths == length)
        payload = block[starts[which][:, None] + np.arange(length)]
        steps, sizes = _steps(payload)
        for size in np.unique(sizes):
            of_size = np.flatnonzero(sizes == size)
            there = of_size[_fits(payload[of_size], 9 + int(size))]
            if len(there):
                numbers = _numbers(payload[there, 15 + size : length - 5], tags)
                values = np.ascontiguousarray(payload[there, -4:]).view("<f4")[:, 0].astype(np.float64)
                times = np.ascontiguousarray(payload[there, 1:9]).view("<f8")[:, 0]
                yield which[there], Points(steps[there], numbers, values, times)


def _steps(payload: Bytes) -> tuple[Ints, Ints]:
    """The step of each record, 0 where none is written, and how many bytes say so; int64 [records] both."""
    step = np.zeros(len(payload), np.uint64)
    goes_on = payload[:, 9] == 0x10
    sizes = goes_on.astype(np.int64)
    for index in range(min(10, payload.shape[1] - 10)):
        if not goes_on.any():
            break
        byte = payload[:, 10 + index]
        step |= np.where(goes_on, byte & 0x7F, 0).astype(np.uint64) << np.uint64(7 * index)
        sizes += goes_on
        goes_on &= byte >= 0x80
    return step.view(np.int64), sizes


def _fits(payload: Bytes, at: int) -> NDArray[np.bool_]:
    """Which records are a time, a step that ends at ``at``, and a summary of one tag and one float32."""
    rest = payload.shape[1] - at - 2
    tag = rest - 9
    if tag < 1 or rest > 127:
        return np.zeros(len(payload), dtype=bool)
    places = np.array([0, at, at + 1, at + 2, at + 3, at + 4, at + 5, at + 6 + tag])
    expected = np.array([0x09, 0x2A, rest, 0x0A, rest - 2, 0x0A, tag, 0x15])
    fits: NDArray[np.bool_] = (payload[:, places] == expected).all(axis=1)
    return fits


def _numbers(text: Bytes, tags: Tags) -> Ints:
    """The number of each record's tag; ``text`` is uint8 [records, bytes]."""
    numbers = np.zeros(len(text), np.int64)
    left = np.arange(len(text))
    for _ in range(SEVERAL):
        if not len(left):
            break
        tag = text[left[0]]
        same = (text[left] == tag).all(axis=1)
        numbers[left[same]] = tags.number(tag.tobytes())
        left = left[~same]
    numbers[left] = [tags.number(tag.tobytes()) for tag in text[left]]
    return numbers


def scalars(payload: bytes, tags: Tags) -> Points:
    """The scalars of one event. Raises WireError, TypeError or struct.error where it is none."""
    step, time, summaries = 0, 0.0, []
    for number, wire, value in fields(payload):
        if number == 1:
            time = double(_bytes(value))
        elif number == 2 and isinstance(value, int):
            step = signed(value)
        elif number == 5 and wire == BYTES:
            summaries.append(_bytes(value))
    entries = (_bytes(entry) for summary in summaries for number, _, entry in fields(summary) if number == 1)
    found = [scalar for entry in entries if (scalar := _scalar(entry)) is not None]
    numbers = np.array([tags.number(tag) for tag, _ in found], np.int64)
    values = np.array([value for _, value in found], np.float64)
    return Points(np.full(len(found), step, np.int64), numbers, values, np.full(len(found), time))


def _scalar(entry: bytes) -> tuple[bytes, float] | None:
    tag, found = b"", None
    for number, _, value in fields(entry):
        if number == 1:
            tag = _bytes(value)
        elif number == 2:
            found = single(_bytes(value))
        elif number == 8:
            found = _element(_bytes(value))
    return None if found is None else (tag, found)


def _element(tensor: bytes) -> float | None:
    """The number in a tensor of one float; None for any other tensor."""
    parts = {number: value for number, _, value in fields(tensor)}
    form, single_field = FORMS.get(int(parts.get(1, 0)) if isinstance(parts.get(1), int) else 0, ("", 0))
    content = parts.get(4) or parts.get(single_field)
    if not form or not isinstance(content, bytes):
        return None
    numbers = list(struct.iter_unpack(form, content))
    return float(numbers[0][0]) if len(numbers) == 1 else None


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise WireError("a number where a text should be")
    return value

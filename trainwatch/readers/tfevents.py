"""TensorBoard's event files: records in TFRecord frames, each a protocol buffer with a step and a scalar or several.

Several files of one folder are one run, in the order of their names. A cut-off last record, as a live run or a kill
leaves it, waits for its rest. Scalars are read in both forms: ``simple_value``, and a tensor of one element.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.counters import Row
from trainwatch.foreign.protobuf import BYTES, WireError, fields, signed, single, varint
from trainwatch.run import Run

NAME = "TensorBoard event file"

FRAME = 12  # bytes before the payload: its length and a checksum of that; four more of a checksum stand behind it
BLOCK = 16 << 20  # bytes that are read at once
LARGEST = 8 << 20  # bytes of a record: more is no scalar
USUAL = re.compile(
    rb"\t.{8}(?:\x10([\x80-\xff]*[\0-\x7f]))?\*[\x80-\xff]?[\0-\x7f]\n[\0-\x7f]\n([\0-\x7f])(.{1,127})\x15(.{4})",
    re.DOTALL,
)
"""Time, step, and one scalar with a tag of less than 128 bytes: nine records in ten look so, and are read at once."""
PLACEHOLDERS = {"hp_metric"}  # Lightning writes -1 there
FORMS = {1: ("<f", 5), 2: ("<d", 6)}  # of a tensor's numbers, by dtype: form, and the field of single values


class Point(NamedTuple):
    """One scalar."""

    step: int
    tag: str
    value: float


def sniff(path: Path, head: bytes) -> bool:  # noqa: ARG001  (by content)
    """The first record says which version of the format follows."""
    return head[FRAME : FRAME + 64].find(b"brain.Event:") >= 0 and int.from_bytes(head[:8], "little") < 1024


def leads(path: Path) -> bool:
    """Whether the file is the first of its folder's: it stands for the run."""
    return path == min(path.parent.glob("*tfevents*"), default=path)


@dataclass
class EventFile:
    """One file, read by offset."""

    path: Path
    offset: int = 0
    broken: str = ""

    def points(self) -> Iterator[Point]:
        """The scalars that were written since the last call. Raises OSError."""
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            while not self.broken and self.offset + FRAME + 4 <= size:
                file.seek(self.offset)
                before = self.offset
                yield from self._block(file.read(BLOCK), size)
                if self.offset == before:
                    return

    def _block(self, block: bytes, size: int) -> Iterator[Point]:
        """The scalars of the whole records in a block; one that is too large for it holds no scalar."""
        at = 0
        while not self.broken and at + FRAME + 4 <= len(block):
            length = int.from_bytes(block[at : at + 8], "little")
            end = at + FRAME + length + 4
            if length > LARGEST:
                if self.offset + end > size:
                    self.broken = self._damaged(at) if length > 1 << 40 else ""
                    break
                self.offset += end
                return
            if end > len(block):
                break
            yield from self._record(block[at + FRAME : end - 4])
            at = end
        self.offset += at

    def _damaged(self, at: int = 0) -> str:
        return f"is damaged at byte {self.offset + at:,}: what follows is not read"

    def _record(self, payload: bytes) -> Iterator[Point]:
        try:
            yield from scalars(payload)
        except (WireError, struct.error, TypeError):
            self.broken = self._damaged()


def scalars(payload: bytes) -> list[Point]:
    """The scalars of one event. Raises WireError, TypeError or struct.error where it is none."""
    usual = USUAL.fullmatch(payload)
    if usual is not None and usual[2][0] == len(usual[3]) and len(payload) < 128:
        tag = usual[3].decode(errors="replace")
        step = signed(varint(usual[1], 0)[0]) if usual[1] else 0
        return [] if tag in PLACEHOLDERS else [Point(step, tag, single(usual[4]))]
    step, summaries = 0, []
    for number, wire, value in fields(payload):
        if number == 2 and isinstance(value, int):
            step = signed(value)
        elif number == 5 and wire == BYTES:
            summaries.append(value)
    return [
        Point(step, *scalar)
        for summary in summaries
        for number, _, entry in fields(_bytes(summary))
        if number == 1 and (scalar := _scalar(_bytes(entry))) is not None
    ]


def _scalar(entry: bytes) -> tuple[str, float] | None:
    tag, found = "", None
    for number, _, value in fields(entry):
        if number == 1:
            tag = _bytes(value).decode(errors="replace")
        elif number == 2:
            found = single(_bytes(value))
        elif number == 8:
            found = _element(_bytes(value))
    return None if found is None or tag in PLACEHOLDERS else (tag, found)


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


@dataclass
class EventFolder:
    """The event files of one folder: one run."""

    path: Path
    files: dict[Path, EventFile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._assembler = Assembler(self.path, NAME)
        self._assembler.name = self.path.absolute().parent.name

    @property
    def runs(self) -> list[Run]:
        """What was read so far."""
        return self._assembler.runs

    def poll(self) -> bool:
        """Read what was written since the last call; True if something was. Raises OSError."""
        news = False
        for path in sorted(self.path.parent.glob("*tfevents*")):
            points = list(self.files.setdefault(path, EventFile(path)).points())
            if points:
                self._assembler.add(_rows(points))
                news = True
        if not news:
            self._assembler.add(())
        for run in self.runs:
            run.touched = max(path.stat().st_mtime for path in self.files)
        return news

    def close(self) -> None:
        """Nothing more will be read."""
        for path, file in self.files.items():
            if file.broken and self.runs:
                self._assembler.note(f"{path.name} {file.broken}")
        self._assembler.close()


def _rows(points: list[Point]) -> Iterator[Row]:
    """Points of one step are one row. Tags that count otherwise (epochs) get the step that was reached meanwhile."""
    points = _one_clock(points)
    if any(b.step < a.step for a, b in pairwise(points)) and not _restarted(points):
        points = sorted(points, key=attrgetter("step"))
    for step, group in groupby(points, key=attrgetter("step")):
        values: dict[str, float] = {}
        for point in group:
            if point.tag in values:
                yield Row({"step": float(step), **values})
                values = {}
            values[point.tag] = point.value
        yield Row({"step": float(step), **values})


def _restarted(points: Iterable[Point]) -> bool:
    """Whether the counter of any one tag goes back."""
    last: dict[str, int] = {}
    for point in points:
        if point.step < last.get(point.tag, point.step):
            return True
        last[point.tag] = point.step
    return False


def _one_clock(points: list[Point]) -> list[Point]:
    """Steps for tags that were logged with the number of their epoch: they end far below, and last as long."""
    ends: dict[str, int] = defaultdict(int)
    places: dict[str, int] = {}
    for place, point in enumerate(points):
        ends[point.tag] = max(ends[point.tag], point.step)
        places[point.tag] = place
    longest = max(ends.values(), default=0)
    slow = {tag for tag in ends if ends[tag] * 4 < longest and places[tag] * 10 > len(points) * 9}
    reached, found = 0, []
    for point in points:
        if point.tag in slow:
            point = point._replace(step=reached)
        else:
            reached = point.step
        found.append(point)
    return found


def open_file(path: Path) -> EventFolder:
    """The folder of the file at ``path``, nothing read yet."""
    return EventFolder(path)

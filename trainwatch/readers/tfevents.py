"""TensorBoard's event files: records in TFRecord frames, each a protocol buffer with a step and a scalar or several.

Several files of one folder are one run, in the order of their names, unless somebody gathered them there under names
that begin otherwise; so are those of the sub-folders that ``add_scalars`` makes, merged by the time that each value was
written. A cut-off last record, as a live run or a kill leaves it, waits for its rest. Scalars are read in both forms:
``simple_value``, and a tensor of one element.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.counters import Row
from trainwatch.foreign.eventlog import FRAME, EventFile, Points, Tags, joined
from trainwatch.foreign.grid import Grid
from trainwatch.foreign.points import Point, rows
from trainwatch.foreign.subfolders import EVENTS, above, below
from trainwatch.run import Run

NAME = "TensorBoard event file"


def sniff(path: Path, head: bytes) -> bool:  # noqa: ARG001  (by content)
    """The first record says which version of the format follows."""
    return head[FRAME : FRAME + 64].find(b"brain.Event:") >= 0 and int.from_bytes(head[:8], "little") < 1024


def leads(path: Path) -> bool:
    """Whether the file is the first of its folder's, and the folder no part of another run: it stands for the run."""
    return path == min(_alike(path), default=path) and above(path.parent) is None


WRITTEN = "events.out.tfevents"
"""What every writer begins the names of its files with."""


def _alike(path: Path) -> list[Path]:
    """The event files beside it whose names begin as its own does, up to the word that tells what they are."""
    start = path.name.partition("tfevents")[0]
    return sorted(file for file in path.parent.glob(EVENTS) if file.name.partition("tfevents")[0] == start)


@dataclass
class EventFolder:
    """The event files that one training wrote into a folder, and into the sub-folders of ``add_scalars``: one run."""

    path: Path
    files: dict[Path, EventFile] = field(default_factory=dict)
    tags: Tags = field(default_factory=Tags)
    parts: dict[Path, Tags] = field(default_factory=dict)
    _kept: dict[Path, list[Points]] = field(default_factory=dict)  # of each file, where there are parts

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._assembler = Assembler(self.path, NAME)
        renamed = not self.path.name.startswith(WRITTEN)
        self._assembler.name = self.path.stem if renamed else self.path.absolute().parent.name

    @property
    def runs(self) -> list[Run]:
        """What was read so far."""
        return self._assembler.runs

    def poll(self) -> bool:
        """Read what was written since the last call; True if something was. Raises OSError."""
        self._find_parts()
        new = {path: points for path in self._paths() if len((points := self._file(path).points()).step)}
        if new and self.parts:
            self._merge(new)
        else:
            for points in new.values():
                self._add(points)
        if not new:
            self._assembler.add(())
        for run in self.runs:
            run.touched = max(path.stat().st_mtime for path in self.files)
        return bool(new)

    def _find_parts(self) -> None:
        """With the first sub-folder everything is read again, so that it can be merged."""
        found = {folder: f"/{name}" for folder, name in below(self.path.parent) if folder not in self.parts}
        if found and not self.parts:
            self.files.clear()
        self.parts |= {folder: Tags(self.tags.names, suffix) for folder, suffix in found.items()}

    def _paths(self) -> list[Path]:
        return [*_alike(self.path), *(path for folder in self.parts for path in sorted(folder.glob(EVENTS)))]

    def _file(self, path: Path) -> EventFile:
        return self.files.setdefault(path, EventFile(path, self.parts.get(path.parent, self.tags)))

    def _merge(self, new: dict[Path, Points]) -> None:
        """All files as if one had been written: they flush when they like, so the run is put together anew."""
        for path, points in new.items():
            self._kept.setdefault(path, []).append(points)
        files = [joined(self._kept[path]) for path in self._paths() if path in self._kept]
        whole = joined([points._replace(time=np.fmax.accumulate(points.time)) for points in files])
        self._begin()
        self._add(whole.taken(np.argsort(whole.time, kind="stable")))

    def _add(self, points: Points) -> None:
        """Tags that count otherwise than the most (epochs) get the step that was reached meanwhile."""
        points, names = _one_clock(points), list(self.tags.names)
        restarted = bool((np.diff(points.step) < 0).any()) and _restarted(points)
        grid = None if restarted else Grid.of(points.step, points.tag, points.value, names)
        if grid is not None:
            self._assembler.add_grid(grid)
            return
        if not restarted:
            points = points.taken(np.argsort(points.step, kind="stable"))
        self._assembler.add(_rows(points, names))

    def close(self) -> None:
        """Nothing more will be read."""
        for path, file in self.files.items():
            if file.broken and self.runs:
                self._assembler.note(f"{path.name} {file.broken}")
        self._assembler.close()


def _rows(points: Points, names: list[str]) -> Iterator[Row]:
    """Points of one step that stand together are one row; a tag that comes again begins the next."""
    columns = zip(points.step.tolist(), points.tag.tolist(), points.value.tolist(), strict=True)
    return rows(Point(step, names[tag], value) for step, tag, value in columns)


def _restarted(points: Points) -> bool:
    """Whether the counter of any one tag goes back."""
    order = np.argsort(points.tag, kind="stable")
    same = np.diff(points.tag[order]) == 0
    return bool((same & (np.diff(points.step[order]) < 0)).any())


def _one_clock(points: Points) -> Points:
    """Steps for tags that were logged with the number of their epoch: they end far below, and last as long."""
    count = int(points.tag.max()) + 1
    ends, places = np.zeros(count, np.int64), np.full(count, -1)
    np.maximum.at(ends, points.tag, points.step)
    places[points.tag] = np.arange(len(points.tag))
    slow = (ends * 4 < ends.max()) & (places * 10 > len(points.step) * 9)
    late = slow[points.tag]
    if not late.any():
        return points
    reached = np.maximum.accumulate(np.where(late, -1, np.arange(len(late))))
    return points._replace(step=np.where(reached < 0, 0, points.step[reached]))


def open_file(path: Path) -> EventFolder:
    """The folder of the file at ``path``, nothing read yet."""
    return EventFolder(path)

"""Tables that a console prints row by row: names on one line, and an epoch with its numbers on the lines below.

YOLOv5 to v8 print a header and a progress line for each epoch (``0/299  3.35G  0.04586 ...  640: 100%|###| 8/8``), and
below it the evaluation: ``Class  Images  Instances  P  R  mAP50  mAP50-95`` over ``all  128  929  0.645 ...`` and
perhaps a line for each class. fastai prints one header and a line for each epoch; detectron2 three lines with commas
between the cells for each evaluation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from trainwatch.foreign.channels import recognise
from trainwatch.foreign.counters import Row
from trainwatch.foreign.layout import NUMBER

NAME = re.compile(r"[A-Za-z_][\w.-]*")
EPOCH = re.compile(r"(?P<epoch>\d+)(?:/(?P<last>\d+))?")
BAR = re.compile(r":\s*\d+%\D*?(?P<batch>\d+)/(?P<end>\d+)\b.*|:\s*\d*%?\s*$")
"""The progress bar behind the last cell, in which batches are counted."""
MERITS = {"P": "precision", "R": "recall"}
COUNTS = ("Images", "Labels", "Instances")
COPY = "copypaste: "
"""What detectron2 prints of an evaluation: ``copypaste: Task: bbox``, below it the names, below them the numbers."""


@dataclass
class Headed:
    """The tables of one console: what its lines say, as far as they are rows of them."""

    names: list[str] = field(default_factory=list)
    merits: list[str] = field(default_factory=list)
    _drawn: tuple[int, float] = (-1, 0.0)  # epoch and batch of the last progress bar, which is drawn again and again
    _task: str = ""
    _copies: list[str] = field(default_factory=list)
    _from_zero: bool = False
    _trained: bool = False  # since the last evaluation

    def read(self, line: str) -> list[Row] | None:
        """The row on a line, nothing for a header, None where the line belongs to no table."""
        if COPY in line:
            return self._copied(line.partition(COPY)[2].strip())
        first, _, rest = line.strip().partition(" ")
        if first in ("Epoch", "epoch"):
            return self._header(rest.split())
        if not self.names:
            return None
        if first == "Class" and "Images" in rest:
            self.merits = _merits(BAR.sub("", rest).split())
            return []
        if first == "all" and self.merits:
            return self._evaluated(rest.split())
        return self._row(line) if first[:1].isdigit() else None

    def _copied(self, said: str) -> list[Row] | None:
        if said.startswith("Task: "):
            self._task = said.removeprefix("Task: ")
            return []
        cells = said.split(",")
        if not all(NUMBER.fullmatch(cell) for cell in cells):
            self._copies = [f"{self._task} {name}" for name in cells]
            return []
        fits = len(cells) == len(self._copies)
        return [Row(dict(zip(self._copies, map(float, cells), strict=True)), "validation")] if fits else None

    def _header(self, names: list[str]) -> list[Row] | None:
        if len(names) < 2 or not all(NAME.fullmatch(name) for name in names):
            return None
        low = [name.lower() for name in names]
        if low[0] == "gpu_mem":  # between it and the size of the batch stand losses, in v5 called `box obj cls`
            end = next((low.index(name) for name in ("labels", "instances") if name in low), len(low))
            names = [f"{n}_loss" if 0 < i < end and "loss" not in n else n for i, n in enumerate(names)]
        if not any(recognise(name).role == "loss" for name in names):
            return None
        self.names, self.merits = names, []
        return []

    def _row(self, line: str) -> list[Row] | None:
        bar = BAR.search(line)
        cells = (line[: bar.start()] if bar else line).split()
        counted = EPOCH.fullmatch(cells[0])
        if counted is None or len(cells) != len(self.names) + 1:
            return None
        numbers = {
            name: float(cell) for name, cell in zip(self.names, cells[1:], strict=True) if NUMBER.fullmatch(cell)
        }
        if not any(recognise(name).role == "loss" for name in numbers):
            return None
        epoch, totals = int(counted["epoch"]), {}
        self._from_zero, self._trained = self._from_zero or epoch == 0, True
        if counted["last"]:
            totals["epoch"] = float(int(counted["last"]) + self._from_zero)
        if bar and bar["batch"]:
            numbers["batch"], totals["batch"] = float(bar["batch"]), float(bar["end"])
        drawn, self._drawn = self._drawn, (epoch, numbers.get("batch", 0.0))
        redrawn = bool(bar and bar["batch"]) and (self._drawn[1] == 0 or self._drawn == drawn)
        return [] if redrawn else [Row({"epoch": float(epoch), **numbers}, totals=totals)]

    def _evaluated(self, cells: list[str]) -> list[Row] | None:
        """One evaluation an epoch: at the end that of the best epoch is printed once more."""
        if len(cells) != len(self.merits) or not all(NUMBER.fullmatch(cell) for cell in cells):
            return None
        told = {name: float(cell) for name, cell in zip(self.merits, cells, strict=True) if name not in COUNTS}
        trained, self._trained = self._trained, False
        return [Row(told, "validation")] if trained else []


def _merits(words: list[str]) -> list[str]:
    """``Box(P R mAP50 mAP50-95) Mask(P ...``: those of the boxes have plain names, the others the group's before."""
    names, group = [], ""
    for word in words:
        before, bracket, name = word.rstrip("):").rpartition("(")
        if bracket:
            group = "" if before == "Box" else f"{before.lower()} "
        names.append(group + MERITS.get(name, name))
    return names

"""What a training printed: the console's text, of any trainer that prints names and numbers.

Most print a counter and values on one line; some a counter on one line and the values below it, one a line (OLMo) or as
a table (Stable Baselines), some a header and below it a line for each epoch (YOLO). Around them stands everything else
that a terminal shows, and at the end perhaps why it stopped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.channels import by_role, recognise
from trainwatch.foreign.counters import Row
from trainwatch.foreign.following import GrowingText
from trainwatch.foreign.headed import Headed
from trainwatch.foreign.lastwords import TRACEBACK, LastWords
from trainwatch.foreign.layout import Layout, is_json
from trainwatch.foreign.printed import ALONE, COLOUR, LONGEST, Printed, scan
from trainwatch.foreign.wrapped import Wrapped
from trainwatch.lines import beginning, text_of
from trainwatch.run import Event
from trainwatch.schema import RECORD

NAME = "console output"

PEEK = 1 << 20  # bytes in which the first measurement must stand: a large config and a large model are printed before
LOGS = {".log", ".out", ".err", ".txt", ""}
OTHERS = {
    ".py",
    ".md",
    ".rst",
    ".yaml",
    ".yml",
    ".toml",
    ".cfg",
    ".ini",
    ".html",
    ".js",
    ".css",
    ".ipynb",
    ".sh",
    ".csv",
}
"""Files that hold names and numbers, and are no logs."""
EVALUATION = re.compile(
    r"\b(?:(?P<test>test(?:ing)?)|eval(?:uation)?|valid(?:ation|ate)?|dev|val)\b"
    r"(?: metrics| set| results?| summary)?\s*[:|]",
    re.IGNORECASE,
)
MARK = re.compile(r"\[(train|valid|dev|eval|test)\]")
UNUSUAL = re.compile("[\x1b\r\x08]")
REDRAWN = re.compile(r"\r|\x08+")
REMARKS = re.compile(r"wandb: |\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] ")
"""What a tracker, or TensorFlow's C++ side, says on lines of its own: they stand between lines that belong together."""
UPWARDS = re.compile("\x1b\\[[0-9]*[AF]")
"""The cursor goes up a line: what follows stands where another bar stood, and not behind this one."""
DIGITS = re.compile(r"\d+")
SECTION = re.compile(
    r"\b(?P<test>testing)\b|\b(?:evaluating|evaluation|validating|validation|eval begin|eval(?:uation)? results?)\b",
    re.IGNORECASE,
)
MERIT = re.compile(
    r"acc|iou|\bf1|dice|psnr|ssim|bleu|rouge|auc|\bm?ap\b|[wcp]er\b|recall|precision|score|rmse|\bm[as]e\b|perplexity|\bfid\b",
    re.IGNORECASE,
)
FOLDS = re.compile("cross|fold", re.IGNORECASE)
"""A mean over several trainings is no evaluation of the last one."""
TRAINING = re.compile(r"\btrain(?:ing)?\b", re.IGNORECASE)
SETTINGS = re.compile(
    r"\b(?:Namespace|Config|Arguments|TrainConfig)\(|^\s*(?:#(?!#*\w+#)|def |class |import |return\b)"
)
"""A word between hashes is a headline, as in ``###Train### Epoch: 1``; behind one alone stands a comment."""
YACS = re.compile(r"\s{2,}[A-Z][A-Z0-9_]+:\s")
"""A line of a config as detectron2 prints it; below a line that counted, it may be a value."""
PLANS = re.compile(r"\bepochs=\d")
FLAG = re.compile(r"\w=(?:None|True|False)\b")
SETTING = re.compile(r"(\w+)=('[^']*'|-?[\d.]+(?:e-?\d+)?|True|False|None)")
TABLE = re.compile(r"\|\s*(?P<name>[\w./ -]+?)\s*\|\s*(?P<value>[-+\w.]*)\s*\|")


def sniff(path: Path, head: bytes) -> bool:
    """Text in which a measurement or a traceback stands, and that is neither JSON lines nor columns."""
    if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return False
    if path.suffix.lower() in OTHERS or _structured(head):
        return False
    text = _peek(path) if path.suffix.lower() in LOGS else head.decode(errors="replace").split("\n")
    lines = Console()
    found = (item for item in lines.items(text) if isinstance(item, Row))
    return any(_measured(row) for row in found) or lines.last_words.exception is not None


def leads(path: Path) -> bool:
    """Whether the file stands for the run: beside a recording of the same name it is what that run printed."""
    beside = path.with_suffix(".jsonl")
    return not beside.is_file() or not RECORD.match(beginning(beside, PEEK))


def _peek(path: Path) -> list[str]:
    """The first lines of a log; the last of them may end anywhere where the log goes on, and is left out then."""
    block = beginning(path, PEEK)
    if block.startswith((b"\xff\xfe", b"\xfe\xff")):
        return block.decode("utf-16", errors="replace").split("\n")
    whole = block.rpartition(b"\n")[0] if len(block) == PEEK else b""
    return [text_of(line) for line in (whole or block).split(b"\n")]


def _structured(head: bytes) -> bool:
    """Whether other readers are for it: records of our own, JSON, or columns."""
    if any(RECORD.match(line) for line in head.split(b"\n")[:20]) or re.match(rb"\s*\[\s*(?:[{\"\]]|$)", head):
        return True
    return is_json(head) or Layout.seen(head) is not None


def _measured(row: Row) -> bool:
    read = [recognise(name) for name in row.values]
    if any(reading.role in ("loss", "norm", "rate") for reading in read):
        return True
    if row.split and any(MERIT.search(name) for name in row.values):
        return True
    counted = any(reading.role in ("step", "epoch") for reading in read)
    return counted and (bool(row.split) or any(reading.split and reading.role == "measure" for reading in read))


@dataclass
class Console:
    """Lines in, rows and events out; what was said on the lines before is remembered."""

    config: dict[str, Any] = field(default_factory=dict)
    blurred: set[str] = field(default_factory=set)
    last_words: LastWords = field(default_factory=LastWords)
    headed: Headed = field(default_factory=Headed)
    wrapped: Wrapped = field(default_factory=Wrapped)
    _opening: str = ""  # the first line, digits aside: where it comes again, the program was started again
    _trained: bool = False
    _counters: dict[str, float] = field(default_factory=dict)  # of a line that had nothing else
    _totals: dict[str, float] = field(default_factory=dict)
    _split: str = ""  # of the section that the lines stand in
    _block: Row | None = None
    _near: bool = False  # the line before counted, or belongs to what was counted
    _table: str = ""  # heading inside a table
    _shown: tuple[float, float] = (-1.0, 0.0)  # the last step of a table, and the stride to it

    def items(self, lines: Iterable[str]) -> Iterator[Row | Event]:
        """What the lines say."""
        for line in lines:
            if not UNUSUAL.search(line):
                yield from self._part(line)
                continue
            for part in REDRAWN.split(COLOUR.sub("", UPWARDS.sub("\r", line)).rstrip("\r")):
                yield from self._part(part)

    def last(self, assembler: Assembler) -> None:
        """The row that was not ended by another line, how it ended, and what could not be known."""
        assembler.add([*self._end_block(), *self.last_words.events()])
        for name in sorted(self.blurred):
            assembler.note(f"{name} was printed with too few digits to tell a small value from 0; 0 is left out")

    def _part(self, line: str) -> Iterator[Row | Event]:
        line = line[:LONGEST]
        if not line.strip() or REMARKS.match(line):
            return
        if not self._trained:
            yield from self._started(line)
        if self.last_words.take(line):
            return
        if (rows := self.headed.read(line)) is not None:
            yield from self._end_block()
            yield from (self._said(row) for row in rows)
            return
        if self.wrapped.take(line) or _tells_settings(line) or (not self._counters and YACS.match(line)):
            self._near = False
            self._settings(line)
            return
        if "|" in line and (found := TABLE.fullmatch(line.strip())):
            self._cell(found)
            return
        if "[" in line and len(marks := list(MARK.finditer(line))) > 1:
            yield from self._marked(line, marks)
            return
        printed = scan(line)
        self.blurred.update(printed.blurred)
        if self._split and _trains(printed):  # a section of an evaluation ends
            yield from self._end_block()
            self._split = ""
        if printed.alone and self._in_block(printed):
            return
        yield from self._end_block()
        yield from self._line(line, printed)

    def _started(self, line: str) -> Iterator[Event]:
        """Before any step: another attempt begins where the first line of all comes again after an exception."""
        opening = DIGITS.sub("0", line.strip())
        if self._opening == opening and self.last_words.exception and not TRACEBACK.match(line):
            yield from self.last_words.events()
            yield {"kind": "run"}
            self.last_words.went_on()
        self._opening = self._opening or opening

    def _marked(self, line: str, marks: list[re.Match[str]]) -> Iterator[Row]:
        """``12epoch results: [train] loss=0.5, [valid] loss=0.6``: a row for each part."""
        yield from self._end_block()
        for mark, following in zip_longest(marks, marks[1:]):
            part = line[mark.end() : following.start() if following else len(line)]
            yield from self._line(line, scan(f"{line[: marks[0].start()]} {mark[1]}: {part}"))

    def _settings(self, line: str) -> None:
        if "Namespace(" in line or PLANS.search(line):
            for name, value in SETTING.findall(line):
                self.config.setdefault(name, _setting(value))

    def _cell(self, cell: re.Match[str]) -> None:
        """A line of a table: ``| rollout/ |  |`` is a heading, ``|  ep_len_mean | 20 |`` stands under it."""
        if self._block is None:
            self._block = Row({})
        try:
            value = float(cell["value"])
        except ValueError:
            self._table = cell["name"] if cell["name"].endswith("/") else ""
            return
        name = f"{self._table}{cell['name']}"
        self._block.values[name] = self._counted(cell["value"], value) if recognise(name).role == "step" else value

    def _counted(self, written: str, value: float) -> float:
        """A table shows few digits: of 1.06e+04 it can only be said that it may be one stride after the last step."""
        last, stride = self._shown
        digits, _, exponent = written.lower().partition("e")
        if exponent and abs(last + stride - value) <= 0.5 * 10.0 ** (int(exponent) - len(digits.partition(".")[2])):
            value = last + stride
        self._shown = (value, value - last)
        return value

    def _in_block(self, printed: Printed) -> bool:
        """One name and one number: it belongs to what was counted on a line above."""
        if not printed.measures() or not self._near or printed.has("step", "epoch", "batch"):
            return False
        if self._block is None:
            self._block = Row(dict(self._counters), self._split, dict(self._totals))
        for name in printed.measures():
            self._block.values.setdefault(name, printed.values[name])
        return True

    def _end_block(self) -> Iterator[Row]:
        block, self._block, self._table = self._block, None, ""
        if block is not None and block.values:
            yield self._said(block)

    def _said(self, row: Row) -> Row:
        if row.counter("step") is not None or row.counter("epoch") is not None or row.counter("batch") is not None:
            self.last_words.went_on()
            self._trained = True
        return row

    def _line(self, line: str, printed: Printed) -> Iterator[Row]:
        counted, near, indented = printed.has("step", "epoch", "batch"), self._near, line[:1].isspace()
        said = printed.split or _said(printed.between)
        self._near = False
        if not printed.measures():
            if not (indented and ALONE.fullmatch(line)):  # `  STEPS: 3000` of a printed config opens nothing
                self._open(printed, counted)
            return
        within = self._within(printed)
        if printed.has("step", "epoch") and not within:
            self._counters, self._totals, self._split = {}, {}, ""
        counts = within or printed.has("batch")
        belongs = near or (counts and bool(self._split or self._counters))  # to what was said above
        here = said if said is not None else self._split if belongs else ""
        leads = recognise(printed.measures()[0])
        if not (counted or belongs or here) and self._trained and leads.role == "measure":
            here = self._merit(printed)
        if counted or belongs or here or leads.role == "loss":
            above = self._counters if belongs or here else {}
            values = {**above, **printed.values}
            if leads.split and " " in printed.measures()[0] and not here:
                values = _inherit(values, leads.split)
            partial = bool(here) and (within or (printed.has("batch") and not printed.has("step", "epoch")))
            row = Row(values, here, {**self._totals, **printed.totals}, partial)
            row.rounded = any(recognise(name).role == "loss" for name in printed.blurred)
            yield self._said(row)

    @staticmethod
    def _merit(printed: Printed) -> str:
        """The split of a line that tells nothing but how an evaluation came out: ``Validation accuracy: 0.44``."""
        name = printed.measures()[0]
        if not MERIT.search(name) or FOLDS.search(name) or SETTING.search(printed.between):
            return ""
        return recognise(name).split.replace("train", "") or _said(printed.between, SECTION) or ""

    def _within(self, printed: Printed) -> bool:
        """Whether a step and its end (``step 10/614``) are of the epoch that a line above counted."""
        above = by_role(tuple(self._counters))
        ends = any(recognise(name).role == "step" for name in printed.totals)
        return ends and not printed.has("epoch") and "epoch" in above and "step" not in above

    def _open(self, printed: Printed, counted: bool) -> None:
        """A line without a measurement: it may say of what the lines below it are."""
        section = _said(printed.between, SECTION)
        if counted:
            inside = not printed.has("step", "epoch")  # `Batch 3/20` is of the epoch that a line above counted
            values, totals = (self._counters, self._totals) if inside else ({}, {})
            self._counters, self._totals = {**values, **printed.values}, {**totals, **printed.totals}
            self._split, self._near = section or "", True
        elif section is not None:
            self._split, self._near = section, True


def _tells_settings(line: str) -> bool:
    """Whether a line prints a config: by its form, or as it tells how many epochs there are to be, and flags."""
    return bool(SETTINGS.search(line)) or (
        "epochs=" in line and bool(PLANS.search(line) and len(FLAG.findall(line)) > 1)
    )


def _trains(printed: Printed) -> bool:
    """Whether a line says by itself that it tells of training: ``Training loss: 0.5``."""
    first = next(iter(printed.measures()), "")
    return bool(TRAINING.search(first)) and recognise(first).role == "loss"


@lru_cache(maxsize=4096)
def _said(between: str, words: re.Pattern[str] = EVALUATION) -> str | None:
    """The split that a line's own words say; None if they say nothing."""
    if found := words.search(between):
        return "test" if found["test"] else "validation"
    return "" if TRAINING.search(between) else None


def _inherit(values: dict[str, float], split: str) -> dict[str, float]:
    """``validation pixAcc: 0.9, mIoU: 0.6``: the second is of the validation too."""
    return {
        f"{split} {name}" if recognise(name).role == "measure" and not recognise(name).split else name: value
        for name, value in values.items()
    }


def _setting(value: str) -> object:
    if value in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[value]
    try:
        return int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError:
        return value.strip("'")


def open_file(path: Path) -> GrowingText:
    """The text at ``path``, nothing read yet."""
    return GrowingText(path, NAME, Console)

"""Names and numbers on a printed line, however it was laid out: ``loss=0.3``, ``loss: 0.3``, ``avg loss 0.3``.

A line is read without knowing who printed it. What looks like a number and is none (clock times, dates, versions,
addresses, places in source code) is taken away first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from trainwatch.foreign.channels import FIGURES, Role, by_role, recognise

LONGEST = 4000  # characters of a line that are looked at: a printed model or a world of addresses is no measurement

COLOUR = re.compile(r"\x1b\[[0-9;?]{0,32}[ -/]{0,8}[@-~]|\x1b\][^\x07]{0,256}\x07")
NOISE = re.compile(
    r"\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?\]?"  # dates with a time
    r"|\[?\b\d\d/\d\d \d\d:\d\d:\d\d\]?|\b\d{4}-\d\d-\d\d\b"
    r"|\b(?:\d+:)?\d?\d:\d\d(?:[.,]\d+)?\b(?!\s*[|=])"  # clock times and durations
    r"|\[?(?<![\w.-])[\w.-]+\.(?:py|cc|cpp|cu|h)(?::\d+(?::\w+)?\]?:?|\[line:\d+\])"  # places in source code
    r"|\|\s+(?:[\w.]+|<\w+>)(?::[\w<>]+){0,2}:\d+ - "  # the same as loguru tells them: `| INFO | __main__:train:35 - `
    r"|\b[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}\b"  # identifiers
    r"|(?<![\w.-])(?:[\w.-]+:\d+\s+){1,4}(?=(?:DEBUG|INFO|WARN(?:ING)?|ERROR)\b)"
    r"|\b(?:DEBUG|INFO|WARN(?:ING)?|ERROR)\b(?::[\w.]+(?=:))?:?"  # and the logger's name: `INFO:root:`
    r"|0x[0-9a-fA-F]+|\[Rank \d+\]|\([\w.]{1,80}:\d+\)|\([\w-]{1,80}\.py \d+\)"
)
REMARK = re.compile(r"\s?\((?=[^()]{0,80}(?<![\d.])[A-Za-z])[^()=:]{1,80}\)(?!:)")
"""``chosen score (higher is better): 2.8``"""
PHASE = re.compile(r"(?i)\b(epoch)\((train|val|test)\)")
"""``Epoch(val) [1][50/50]`` of mmengine."""
SPOKEN = (  # Chinese words of trainers
    (re.compile("\u7b2c\\s*(\\d+)\\s*(?:\u8f6e|\u4e2a?epoch)"), r" epoch \1 "),
    (re.compile("\u8bad\u7ec3"), " train "),
    (re.compile("\u9a8c\u8bc1"), " val "),
    (re.compile("\u6d4b\u8bd5"), " test "),
    (re.compile("\u635f\u5931"), " loss "),
    (re.compile("\u5b66\u4e60\u7387"), " lr "),
    (re.compile("\u51c6\u786e\u7387"), " acc "),
)
BARS = (  # a bare `30/173` counts batches: after the epoch, in a progress bar, at the head of a line
    (re.compile(r"(?<=[\]\d])\s*\[\s*(\d+)\s*/\s*(\d+)[^\]]*\]"), r"; batch \1/\2; "),
    (re.compile(r"(?<=\])\s*\[\s*(\d+)\s*\]"), r"; batch \1; "),
    (re.compile(r"(?i)\b(test|val|valid|validation|eval): *\[ *(\d+) */ *(\d+)\]"), r"\1: ; batch \2/\3; "),
    (re.compile(r"(?i)\btrain: *\[ *(\d+) */ *(\d+)\](?! *\[)"), r"train: ; step \1/\2; "),
    (re.compile(r"(?i)(epoch\s+\d+)\s*[:|]\s+(\d+)\s*/\s*(\d+)"), r"\1; batch \2/\3; "),
    (re.compile(r"\b(\d+)epoch:(?:train|valid):\d+-(\d+)batch:"), r"epoch \1; batch \2; "),
    (re.compile(r"\b(\d+)epoch results:"), r"epoch \1; "),
    (re.compile(r"\d+%\|[^|]*\|\s*(\d+)/(\d+)\s*\["), r"; batch \1/\2; "),
    (re.compile(r"^\s*(\d+)/(\d+)\s*(?=\[|━|╸)"), r"batch \1/\2; "),
)
Reworded = str | Callable[[re.Match[str]], str]
WORDED: tuple[
    tuple[re.Pattern[str], Reworded], ...
] = (  # lines whose names stand elsewhere than before their numbers, or in a trainer's own short words
    (re.compile(r"(?i)\b((?:\w+ )?loss) (?:at|after|for) (step|iter|iteration|epoch) (\d+) ?: ?"), r"\2 \3; \1: "),
    (re.compile(r"(?i)\bcost (?:at|after) (iteration|epoch) (\d+) ?: ?"), r"\1 \2; loss: "),
    (re.compile(r"(?i)\btrain(?:ing)?: *\[ *(\d+) */ *(\d+) *\](?= *\[)"), r"train: epoch \1/\2 "),  # of Swin
    (re.compile(r"'([\w/-]+)' reached ([-+.\de]+)\b.*"), r"\1: \2"),  # of Lightning's ModelCheckpoint
    (
        re.compile(r"^\s*(\d+): (\S+), (\S+) avg(?: loss)?, (\S+) rate,"),
        r"step \1; batch loss: \2; loss: \3; lr: \4;",
    ),  # of Darknet
    (re.compile(r"(?i)^(train|test|val|valid) (\d+)(?=, *(?:[a-z]+ )?loss\b)"), r"\1: epoch \2"),  # of DGCNN
    (re.compile(r"(?i)^(train|test|val|valid|validation) in epoch ?(\d+)\b"), r"\1: epoch \2"),
    (re.compile(r"(?i)([#=*])\1+\s*(train|test|val|valid|validation|eval)\s*\1{2,}"), r"\2: "),
    (
        re.compile(r"^(\(epoch: \d+, iters: \d+, time: [^)]+\)) (.+)"),
        lambda line: f"{line[1]} " + re.sub(r"(\w+):", r"\1_loss:", line[2]),
    ),  # of CycleGAN and pix2pix, which print nothing but losses there
    (re.compile(r"(?i)^[\s;]*\[ *(\d+) */ *(\d+) *\],? +(?=(?:[a-z]+[ _])?loss\b)"), r"step \1/\2; "),
    (re.compile(r"^s:(\d+) (?=trl:|tel:|eval:)"), r"step \1; "),  # of llm.c
    (re.compile(r"(?<=; )trl:"), "train loss: "),
    (re.compile(r"(?<=; )tel:"), "val loss: "),
    (re.compile(r"(?<=; )eval:"), "eval accuracy: "),
    (re.compile(r"^(\d+) (train|val) (?=\d+\.\d+$)"), r"step \1; \2 loss: "),  # of build-nanogpt
)
NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d|,\d)|\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)"
WORDS = r"[^\W\d][\w./@%-]*(?: [^\W\d][\w./@%-]*){0,3}"
PAIR = re.compile(
    rf"(?<![\w.-])(?P<name>{WORDS}?)['\"]?(?P<sep>\s*[=:\uff1a]\s*['\"]?[\[(]*\s*|\s*\[\s*|\s+)"
    rf"(?P<value>{NUMBER}(?![\w.]*\.\d|-\d|:\d|x)|(?i:[-+]?(?:nan|inf|infinity))(?!\w|\s+[a-z]+ ?:))"
    r"(?:\s*(?:/|\bof\b|\bout of\b)\s*(?P<end>\d+)(?![\w.]))?"
    r"(?:\s?(?:[a-zA-Z]+/[a-zA-Z]+|%|[KMGTBkmgµu]?i?[BbsS]?(?![\w.])))?"
)
TRAINING = re.compile(r"(?i)train")
ALONE = re.compile(
    rf"[\s|]*(?P<name>[^\W\d][\w./@% -]*?)\s*[=:|]\s*(?P<value>{NUMBER}|(?i:[-+]?(?:nan|inf)))\s*%?[\s|]*"
)
DIGIT = re.compile("[0-9]")

COUNTED: tuple[Role, ...] = ("step", "epoch", "batch", "planned")


@dataclass
class Printed:
    """The pairs of a line, the ends of its counters, and the text between the pairs."""

    values: dict[str, float] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    between: str = ""
    split: str = ""
    """What a counter is of: ``validation loss at iteration 200``."""
    blurred: list[str] = field(default_factory=list)
    """Names of losses and rates whose 0.00 was rounded: they are below the printed digits, and not known to be 0."""
    alone: bool = False
    """Whether the line holds one name and one number: one of a block."""

    def has(self, *roles: Role) -> bool:
        """Whether one of the names has such a role."""
        known = by_role(tuple(self.values))
        return any(role in known for role in roles)

    def measures(self) -> list[str]:
        """Names that are no counters."""
        known = by_role(tuple(self.values))
        if known.keys().isdisjoint(COUNTED):
            return list(self.values)
        counters = {name for role in COUNTED for name in known.get(role, ())}
        return [name for name in self.values if name not in counters]


def plain(line: str) -> str:
    """A line without remarks in brackets, in the field's words."""
    text = line[:LONGEST]
    if "(" in text:
        text = REMARK.sub("", PHASE.sub(r"\2: \1", text))
    if not line.isascii():
        for pattern, word in SPOKEN:
            text = pattern.sub(word, text)
        text = re.sub(" +", " ", text)
    return text


class Said(NamedTuple):
    """What a line says in text: (name, value, end of a counter) of its pairs, and what stands between them."""

    pairs: list[tuple[str, str, str]]
    between: str
    alone: bool


def scan(line: str) -> Printed:
    """The names and numbers of a line."""
    said = _recalled(line) if line.isascii() and "0x" not in line else _said(line)
    found = Printed(between=said.between, alone=said.alone)
    for name, value, end in said.pairs:
        _take(found, name, value, end)
    _place(found)
    return found


TWIN = re.compile(r"v_(\w+)")
"""``v_loss`` beside ``loss``, ``v_kl`` beside ``kl``: one such pair may be a value function's, more are not."""


def _place(found: Printed) -> None:
    """What two counters of a line say of each other, and what a counter's split says of the line."""
    twins = {name for name in found.values if (twin := TWIN.fullmatch(name)) and twin[1] in found.values}
    if sum(_judges(name[2:]) for name in twins) > 1:
        found.values = {f"val_{name[2:]}" if name in twins else name: value for name, value in found.values.items()}
    known = by_role(tuple(found.values))
    outer, *inner = known.get("step", [""])
    if len(inner) == 1 and inner[0] in found.totals and outer not in found.totals and "epoch" not in known:
        found.values = {"epoch" if name == outer else name: value for name, value in found.values.items()}
    counters = [name for role in ("epoch", "batch") for name in known.get(role, ())]
    if not found.split and not any(TRAINING.search(name) for name in found.values):
        found.split = next((split for name in counters if (split := recognise(name).split)), "")


def _judges(name: str) -> bool:
    """Whether a name is a loss or a figure of merit."""
    return recognise(name).role == "loss" or name.lower() in FIGURES


def _said(line: str) -> Said:
    whole = plain(line)
    text = NOISE.sub(" ; ", whole)
    for pattern, named in (*WORDED, *BARS):
        text = pattern.sub(named, text, count=1)
    pairs, between, position = [], [], 0
    for pair in PAIR.finditer(text):
        between.append(text[position : pair.start()])
        position = pair.end()
        pairs.append((pair["name"], pair["value"], pair["end"] or ""))
    return Said(pairs, " ".join([*between, text[position:]]), bool(ALONE.fullmatch(whole)))


ZEROS = (
    *(0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xE50, 0xED0, 0xF20, 0x1040),
    *(0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900),
)
FOREIGN = [chr(zero + digit) for zero in ZEROS for digit in range(10)]
"""Digits of other scripts: as many as a usual line has, so that each digit of a line can have one for itself."""
SHAPE = str.maketrans("123456789", "000000000")
REMEMBERED = 4096  # shapes of lines; a training prints some hundred

Piece = str | slice
_shapes: dict[str, tuple[list[tuple[Piece, Piece, Piece]], Said] | None] = {}


def _recalled(line: str) -> Said:
    """The same by memory: a line of the same shape, digits aside, was taken apart before."""
    shape = line.translate(SHAPE)
    if shape not in _shapes:
        if len(_shapes) >= REMEMBERED:
            _shapes.clear()
        _shapes[shape] = _learned(line)
    known = _shapes[shape]
    if known is None:
        return _said(line)
    pieces, said = known
    pairs = [
        (
            name if isinstance(name, str) else line[name],
            value if isinstance(value, str) else line[value],
            end if isinstance(end, str) else line[end],
        )
        for name, value, end in pieces
    ]
    return said._replace(pairs=pairs)


def _learned(line: str) -> tuple[list[tuple[Piece, Piece, Piece]], Said] | None:
    """Where the pairs of such a line stand in it; None if that cannot be said.

    The expressions do not know one digit from another. So each digit is replaced by one that stands nowhere else in
    the line, and wherever a digit then comes out, it tells where it came from.
    """
    digits = iter(FOREIGN)
    marked = DIGIT.sub(lambda _: next(digits, "0"), line)
    if "0" in marked:
        return None
    said = _said(marked)
    pieces = [tuple(_piece(part, marked) for part in pair) for pair in said.pairs]
    if any(piece is None for pair in pieces for piece in pair):
        return None
    return [(name, value, end) for name, value, end in pieces if name and value and end is not None], said


def _piece(part: str, marked: str) -> Piece | None:
    """Text without a digit as it is; other text as a place in the line."""
    if part.isascii():
        return part
    start = marked.find(part)
    return None if start < 0 else slice(start, start + len(part))


def _take(found: Printed, said: str, written: str, end: str) -> None:
    if said.endswith("..."):
        return  # ``Scanning labels... 128 images``
    name = _name(said)
    if name != said:
        found.split = recognise(said.removesuffix(name)).split
    role = recognise(name).role
    value = float(written.replace(",", ""))
    if role in ("step", "epoch", "batch") and end:
        found.totals[name] = float(end)
    if role == "measure" and end and re.search("(?i)acc|correct", name):
        value /= float(end) or 1.0  # ``Accuracy: 9841/10000``
    if role in ("loss", "rate") and value == 0 and len(written.partition(".")[2]) > 1 and "e" not in written.lower():
        found.blurred.append(name)
    elif name not in found.values:
        found.values[name] = value


def _name(said: str) -> str:
    """``iteration`` of ``validation loss at iteration``, ``Epoch`` of ``Beginning of Epoch``, of ``train in epoch``."""
    if not any(word in said for word in (" at ", " of ", " in ")):
        return said
    last = re.split(r" (?:at|of|in) ", said)[-1]
    return last if recognise(last).role in ("step", "epoch", "batch") else said

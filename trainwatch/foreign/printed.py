"""Names and numbers on a printed line, however it was laid out: ``loss=0.3``, ``loss: 0.3``, ``avg loss 0.3``.

A line is read without knowing who printed it. What looks like a number and is none (clock times, dates, versions,
addresses, places in source code) is taken away first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from trainwatch.foreign.channels import Role, recognise

LONGEST = 4000  # characters of a line that are looked at: a printed model or a world of addresses is no measurement

COLOUR = re.compile(r"\x1b\[[0-9;?]{0,32}[ -/]{0,8}[@-~]|\x1b\][^\x07]{0,256}\x07")
NOISE = re.compile(
    r"\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?\]?"  # dates with a time
    r"|\[?\b\d\d/\d\d \d\d:\d\d:\d\d\]?|\b\d{4}-\d\d-\d\d\b"
    r"|\b(?:\d+:)?\d?\d:\d\d(?:[.,]\d+)?\b(?!\s*[|=])"  # clock times and durations
    r"|\[?(?<![\w.-])[\w.-]+\.(?:py|cc|cpp|cu|h):\d+(?::\w+)?\]?:?"  # places in source code
    r"|(?<![\w.-])(?:[\w.-]+:\d+\s+){1,4}(?=(?:DEBUG|INFO|WARN(?:ING)?|ERROR)\b)|\b(?:DEBUG|INFO|WARN(?:ING)?|ERROR)\b(?::\w+)?:?"
    r"|0x[0-9a-fA-F]+|\[Rank \d+\]|\([\w.]{1,80}:\d+\)"
)
REMARK = re.compile(r"\s?\((?=[^()]{0,80}[A-Za-z])[^()=:]{1,80}\)(?!:)")
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
    (re.compile(r"(?i)(epoch\s+\d+):\s+(\d+)\s*/\s*(\d+)"), r"\1; batch \2/\3; "),
    (re.compile(r"\b(\d+)epoch:(?:train|valid):\d+-(\d+)batch:"), r"epoch \1; batch \2; "),
    (re.compile(r"\b(\d+)epoch results:"), r"epoch \1; "),
    (re.compile(r"\d+%\|[^|]*\|\s*(\d+)/(\d+)\s*\["), r"; batch \1/\2; "),
    (re.compile(r"^\s*(\d+)/(\d+)\s*(?=\[|━|╸)"), r"batch \1/\2; "),
)
NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])|\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)"
WORDS = r"[^\W\d][\w./@%-]*(?: [^\W\d][\w./@%-]*){0,3}"
PAIR = re.compile(
    rf"(?<![\w.-])(?P<name>{WORDS}?)['\"]?(?P<sep>\s*[=:\uff1a]\s*['\"]?[\[(]*\s*|\s*\[\s*|\s+)"
    rf"(?P<value>{NUMBER}(?![\w.]*\.\d|-\d|:\d|x)|(?i:[-+]?(?:nan|inf|infinity))(?!\w|\s+[a-z]+ ?:))"
    r"(?:\s*(?:/|\bof\b|\bout of\b)\s*(?P<end>\d+)(?![\w.]))?"
    r"(?:\s?(?:[a-zA-Z]+/[a-zA-Z]+|%|[KMGTBkmgµu]?i?[BbsS]?(?![\w.])))?"
)
ALONE = re.compile(
    rf"[\s|]*(?P<name>[^\W\d][\w./@% -]*?)\s*[=:|]\s*(?P<value>{NUMBER}|(?i:[-+]?(?:nan|inf)))\s*%?[\s|]*"
)
"""A line that holds one name and one number: one of a block."""


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

    def has(self, *roles: Role) -> bool:
        """Whether one of the names has such a role."""
        return any(recognise(name).role in roles for name in self.values)

    def measures(self) -> list[str]:
        """Names that are no counters."""
        return [name for name in self.values if recognise(name).role not in ("step", "epoch", "batch", "planned")]


def plain(line: str) -> str:
    """A line without remarks in brackets, in the field's words."""
    text = REMARK.sub("", PHASE.sub(r"\2: \1", line[:LONGEST]))
    if not text.isascii():
        for pattern, word in SPOKEN:
            text = pattern.sub(word, text)
        text = re.sub(" +", " ", text)
    return text


def scan(line: str) -> Printed:
    """The names and numbers of a line."""
    text = NOISE.sub(" ; ", plain(line))
    for pattern, named in BARS:
        text = pattern.sub(named, text, count=1)
    found = Printed()
    between, position = [], 0
    for pair in PAIR.finditer(text):
        between.append(text[position : pair.start()])
        position = pair.end()
        _take(found, pair)
    found.between = " ".join([*between, text[position:]])
    return found


def _take(found: Printed, pair: re.Match[str]) -> None:
    name, written = _name(pair["name"]), pair["value"]
    if name != pair["name"]:
        found.split = recognise(pair["name"].removesuffix(name)).split
    role = recognise(name).role
    value = float(written.replace(",", ""))
    if role in ("step", "epoch", "batch") and pair["end"]:
        found.totals[name] = float(pair["end"])
    if role == "measure" and pair["end"] and re.search("(?i)acc|correct", name):
        value /= float(pair["end"]) or 1.0  # ``Accuracy: 9841/10000``
    if role in ("loss", "rate") and value == 0 and len(written.partition(".")[2]) > 1 and "e" not in written.lower():
        found.blurred.append(name)
    elif name not in found.values:
        found.values[name] = value


def _name(said: str) -> str:
    """``iteration`` of ``validation loss at iteration``, ``Epoch`` of ``Beginning of Epoch``."""
    last = re.split(r" (?:at|of) ", said)[-1]
    return last if recognise(last).role in ("step", "epoch", "batch") else said

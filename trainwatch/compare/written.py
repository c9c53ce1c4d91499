"""Configs, scripts and notebooks against each other, as they are written: nothing has to run, and nothing does.

A run may stand among them, with the config that it recorded: which settings of the script are not those that ran.

Two files call one thing by two names: ``weights = {"kabsch": 10}`` here, ``KABSCH_WEIGHT = 5`` there, and a default
``lambda_kabsch=5`` in a third. A name's words lead to what it means: words that only say "weight of a loss" say the
kind, and what is left is the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainwatch.compare.settings import ABSENT
from trainwatch.lint import SCRIPTS
from trainwatch.lint.recorded import config_of
from trainwatch.lint.sources.files import read_config
from trainwatch.lint.sources.script_settings import Written, read_settings
from trainwatch.lint.tree import LintError, Node
from trainwatch.run import Run

WEIGHT = frozenset(
    ["weight", "weights", "lambda", "lam", "lambdas", "coef", "coeff", "coefficient", "w", "alpha", "beta"]
)
PLURAL = frozenset(["weights", "lambdas", "coefs", "coeffs", "coefficients"])  # of what the names below them weigh
BESIDE = frozenset(["loss", "losses", "term", "factor"])  # say nothing that "weight" has not said
NOT_LOSSES = frozenset(
    ["decay", "weights_path", "init", "class", "pretrained", "file", "path", "dtype", "norm", "only"]
)
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

Meaning = tuple[str, str]


@dataclass(frozen=True)
class Line:
    """A setting in each file: its ``kind`` ("loss weight" or "setting"), value, name and place there."""

    name: str
    kind: str
    values: tuple[Any, ...]
    names: tuple[str, ...]
    places: tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """Files side by side: the settings that have other values, those that only some have, and how many agree.

    ``recorded`` are those of the files that are runs, and stand with the config in their record.
    """

    files: tuple[str, ...]
    apart: tuple[Line, ...]
    only: tuple[Line, ...]
    agree: int
    recorded: tuple[str, ...] = ()

    @property
    def weights(self) -> tuple[Line, ...]:
        """The loss weights among those that have other values."""
        return tuple(line for line in self.apart if line.kind == "loss weight")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def compare_files(sides: Sequence[Path | Run]) -> Sources:
    """Hold files, and what runs recorded, against each other. Raises LintError."""
    tables = [_table(_recorded(side) if isinstance(side, Run) else _written(side)) for side in sides]
    meanings = dict.fromkeys(meaning for table in tables for meaning in table)
    lines = [_line(meaning, [table.get(meaning) for table in tables]) for meaning in meanings]
    apart = [line for line in lines if _apart(line)]
    agree = [line for line in lines if ABSENT not in line.values and not _apart(line)]
    told = {meaning for table in tables for meaning, one in table.items() if not one.passed}
    lone = [line for line, key in zip(lines, meanings, strict=True) if ABSENT in line.values and key in told]
    return Sources(
        files=tuple(str(side.source if isinstance(side, Run) else side) for side in sides),
        apart=tuple(sorted(apart, key=lambda line: line.kind)),
        only=tuple(sorted((line for line in lone if not _apart(line)), key=lambda line: line.kind)),
        agree=len(agree),
        recorded=tuple(str(side.source) for side in sides if isinstance(side, Run)),
    )


def _written(path: Path) -> list[Written]:
    """What a file sets, whatever it is written in."""
    if path.suffix.lower() in SCRIPTS:
        return read_settings(path)
    return [one for config in read_config(path) for one in _leaves(config.root)]


def _recorded(run: Run) -> list[Written]:
    """The config of a run's newest header."""
    found = [replace(one, where="as recorded") for one in _leaves(config_of(run).root)]
    if not found:
        raise LintError(f"{run.source}: has no settings in its record to hold a file against; record them: config=.")
    return found


def _leaves(node: Node) -> Iterator[Written]:
    for child in node.children.values():
        yield from _leaves(child)
    if node.path and not node.children:
        value = node.number if isinstance(node.value, str) and node.number is not None else node.plain()
        yield Written(node.path, value, f"{node.place.file}:{node.place.line}")


def _table(found: Sequence[Written]) -> dict[Meaning, Written]:
    """Each setting by its meaning. Of several names that could mean it, the only one that stands in nothing does; the
    others are told by their whole path."""
    short: dict[Meaning, list[Written]] = {}
    for one in found:
        short.setdefault(meaning(one.path), []).append(one)
    table: dict[Meaning, Written] = {}
    for key, several in short.items():
        values = [one for one in several if not one.passed] or several
        if all(not _unlike(one.value, values[0].value) for one in values):
            table[key] = values[0]
        else:
            outermost = {one.path for one in values if len(one.path) == 1}
            table |= {key if {one.path} == outermost else (key[0], ".".join(one.path)): one for one in values}
    return table


def meaning(path: tuple[str, ...]) -> Meaning:
    """What a setting is, by the words of its name and of what it stands in."""
    own, around = _words(path[-1]), [word for part in path[:-1] for word in _words(part)]
    weighs = (WEIGHT & {*own}) or (PLURAL & {*around})
    if weighs and not NOT_LOSSES & {*own, *around}:
        named = [word for word in own if word not in WEIGHT | BESIDE]
        if named and not (named[0].isdigit() and "beta" in own):  # beta1 is the optimiser's
            return "loss weight", " ".join(named)
    return "setting", " ".join(own) or path[-1]  # a name of no Latin letter has no words, and is its own


def _words(name: str) -> list[str]:
    return [word.lower() for word in WORDS.findall(name)]


def _line(key: Meaning, found: Sequence[Written | None]) -> Line:
    return Line(
        name=key[1],
        kind=key[0],
        values=tuple(one.value if one else ABSENT for one in found),
        names=tuple(".".join(one.path) if one else "" for one in found),
        places=tuple(one.where if one else "" for one in found),
    )


def _apart(line: Line) -> bool:
    """Whether two of the files that have a setting give it other values."""
    values = [value for value in line.values if value != ABSENT]
    return any(_unlike(value, values[0]) for value in values)


def _unlike(value: Any, other: Any) -> bool:
    """Whether two values are not one; a tuple that was recorded, or read from a config, is a list."""
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) != len(other) or any(map(_unlike, value, other))
    if value != value and other != other:
        return False  # NaN is no number, and still the same setting
    return bool(value != other) or isinstance(value, bool) != isinstance(other, bool)

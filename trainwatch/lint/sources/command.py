"""A launch command: who launches, which script, which flags and overrides. Read word by word; nothing is started."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainwatch.lint.tree import Place

ASSIGNS = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
OVERRIDE = re.compile(r"(~|\+\+|\+)?([\w][\w./@:\-]*|[\w./@:\-]+)(?:=(.*))?", re.DOTALL)
COUNTS = re.compile(r"--?(?:nproc[_-]per[_-]node|num[_-]processes|num[_-]gpus|nproc)")
MODULE = re.compile(r"\w+(?:\.\w+)*")
NEGATIVE = re.compile(r"-\.?\d")
SHORT = {"-cn": "--config-name", "-cp": "--config-path", "-cd": "--config-dir", "-m": "--multirun"}
NAME = "command"
"""What stands for the file in a place of the command; its column counts the characters of the whole command."""
START = Place(NAME)


@dataclass(frozen=True)
class Option:
    """``--name value`` or ``--name=value``; the value is None for a switch."""

    name: str
    value: str | None
    place: Place
    glued: bool


@dataclass(frozen=True)
class Override:
    """``key=value`` with its prefix: empty, ``+``, ``++`` or ``~``."""

    text: str
    prefix: str
    key: str
    value: str | None
    place: Place


@dataclass(frozen=True)
class Command:
    """A launch command; ``script`` is its first word that is a Python file, ``module`` what follows ``-m``."""

    text: str
    script: str = ""
    module: str = ""
    script_place: Place = START
    processes: int = 1
    options: list[Option] = field(default_factory=list)
    overrides: list[Override] = field(default_factory=list)
    words: list[tuple[str, Place]] = field(default_factory=list)

    def option(self, *names: str) -> Option | None:
        """The last option of one of these names."""
        return next((option for option in reversed(self.options) if option.name in names), None)

    def path(self, folder: Path) -> Path | None:
        """The script's file, if the command names one."""
        if self.script:
            return folder / self.script
        parts = Path(*self.module.split(".")) if MODULE.fullmatch(self.module) else None
        places = [] if parts is None else [folder / parts / "__main__.py", (folder / parts).with_suffix(".py")]
        return next((place for place in places if place.is_file()), None)


def read_command(words: Sequence[str]) -> Command:
    """The command that a shell was given in these words."""
    placed, column = [], 1
    for word in words:
        placed.append((word, Place(NAME, 1, column)))
        column += len(shlex.quote(word)) + 1
    while placed and ASSIGNS.fullmatch(placed[0][0]):
        placed.pop(0)  # of the environment
    cut, script, module = _program(placed)
    options, overrides = _arguments(placed[cut + 1 :])
    place = placed[cut][1] if 0 <= cut < len(placed) else START
    launcher, _ = _arguments(placed[: max(cut, 0)])
    told = [item.value or "" for item in launcher if COUNTS.fullmatch(item.name)]
    counts = [int(value) for value in told if value.isdecimal()]
    text = shlex.join(words)
    return Command(text, script, module, place, counts[-1] if counts else 1, options, overrides, placed[cut + 1 :])


def _program(placed: list[tuple[str, Place]]) -> tuple[int, str, str]:
    """Where the program's own words begin: (index of its name, its file, its module)."""
    for index, (word, _) in enumerate(placed):
        if word.endswith(".py") and not word.startswith("-"):
            return index, word, ""
        if word == "-m" and index + 1 < len(placed) and not placed[index + 1][0].startswith("torch.distributed"):
            return index + 1, "", placed[index + 1][0]
    return 0, "", ""


def _arguments(placed: list[tuple[str, Place]]) -> tuple[list[Option], list[Override]]:
    options: list[Option] = []
    overrides: list[Override] = []
    index = 0
    while index < len(placed):
        word, place = placed[index]
        index += 1
        if word.startswith("-") and len(word) > 1 and not NEGATIVE.match(word):
            name, glued, value = word.partition("=")
            follows = placed[index][0] if index < len(placed) else "-"
            takes = not glued and (not follows.startswith("-") or bool(NEGATIVE.match(follows)))
            takes = takes and not (OVERRIDE.fullmatch(follows) and "=" in follows)
            index += takes
            said = value if glued else follows if takes else None
            options.append(Option(SHORT.get(name, name), said, place, bool(glued)))
        elif (found := OVERRIDE.fullmatch(word)) and (found.group(3) is not None or found.group(1)):
            overrides.append(Override(word, found.group(1) or "", found.group(2), found.group(3), place))
        elif "=" in word:
            key, _, value = word.partition("=")
            overrides.append(Override(word, "", key, value, place))
    return options, overrides


def hydra_parser() -> Any:
    """Hydra's own parser of overrides; None where it is not installed, or cannot be loaded."""
    try:
        from hydra.core.override_parser.overrides_parser import OverridesParser
    except Exception:  # an import that fails halfway may raise anything
        return None
    return OverridesParser

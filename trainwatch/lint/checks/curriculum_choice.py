"""See the check's docstring."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from trainwatch.lint.check import Check, Material
from trainwatch.lint.sources.files import read_text
from trainwatch.lint.sources.python_file import Script
from trainwatch.lint.tree import LintError, Node, Place
from trainwatch.schema import Finding, Severity

NAMED = re.compile(r"(?:\w+_)?curriculum(?:_name)?", re.IGNORECASE)
SUFFIX = re.compile(r"_?(?:curriculum|stages|schedule)$|^curriculum_?", re.IGNORECASE)
DEFINED = re.compile(r"^([A-Z][A-Z0-9_]*CURRICULUM)\s*(?::[^=\n]*)?=", re.MULTILINE)
UP, MOST = 3, 20  # folders above a script that imports may begin at, and files that are looked at
PLAIN = frozenset(["", "NONE", "TRUE", "FALSE"])


class CurriculumChoice(Check):
    """The curriculum that the script takes is not the one that the config names.

    What it sees:
        `curriculum: EXTENDED` in the config against the curricula that the script imports or uses by name
        (DEFAULT_CURRICULUM). It speaks where the script knows one and it is another. A config that only says
        `use_curriculum: true` is taken by its file's name, if the project has a curriculum of that name
        (optimized_extended.yaml, EXTENDED_CURRICULUM).

    Why it matters:
        The run trains something else than what its name says, and looks healthy until the plans part.

    What to do:
        Take the curriculum from the config, or import the one that is meant.

    When it is wrong:
        The script chooses by name at run time: then the named one is in it too, or none is.

    References:
        jasegehring/pepTRM: DEFAULT ran where EXTENDED was meant.
    """

    compares: ClassVar[bool] = True

    def look(self, material: Material) -> Iterator[Finding]:
        """Names against names."""
        if material.script is None or material.config is None:
            return
        used = {
            _bare(name): (name, place)
            for name, place in material.script.names.items()
            if re.search(r"curriculum", name, re.IGNORECASE) and name.isupper()
        }
        if used:
            yield from self._by_file(material, used)
        for node in material.nodes:
            meant = _bare(_named(node))
            if meant in PLAIN or not used or meant in used:
                continue
            taken = next(iter(used.values()))
            what = f"{node.dotted} is {node.written or _named(node)}"
            advice = f"Let line {taken[1].line} take the curriculum that the config names; {meant} is not in it."
            yield self._apart("critical", node, what, taken, advice, 0.9)

    def _by_file(self, material: Material, used: dict[str, tuple[str, Place]]) -> Iterator[Finding]:
        """A config that is named for a curriculum of the project, and a script that takes another."""
        assert material.config is not None
        assert material.script is not None
        switch = next((node for node in material.nodes if node.name == "use_curriculum" and node.value is True), None)
        stem = Path(material.config.file).stem.upper()
        meant = [name for name in _beside(material.script) if f"_{name}_" in f"_{stem}_"]
        if switch is None or not meant or any(name in used for name in meant):
            return
        taken = next(iter(used.values()))
        what = f"The config is named for the curriculum {meant[0]}"
        advice = f"Write curriculum: {meant[0]} here and let line {taken[1].line} take it, or rename the config."
        yield self._apart("warning", switch, what, taken, advice, 0.7)

    def _apart(
        self, severity: Severity, node: Node, what: str, taken: tuple[str, Place], advice: str, confidence: float
    ) -> Finding:
        """What the config says at a node, and the curriculum that the script takes, with its place."""
        name, place = taken
        return self.finding(
            severity,
            node.dotted,
            node.place,
            f"{what}, and {place.file} takes {name} (line {place.line}).",
            advice,
            evidence={"script": place.file, "script_line": place.line},
            confidence=confidence,
        )


def _beside(script: Script) -> set[str]:
    """The curricula that the files beside an imported one define."""
    found: set[str] = set()
    for module in (name for name in script.imports if "curricul" in name.lower()):
        parts = Path(*module.split("."))
        for base in list(Path(script.file).absolute().parents)[:UP]:
            files = sorted((base / parts).parent.glob("*curricul*.py"))[:MOST]
            for file in files if (base / parts).with_suffix(".py").is_file() else ():
                with contextlib.suppress(LintError):
                    found |= {_bare(name) for name in DEFINED.findall(read_text(file))}
    return found - PLAIN


def _named(node: Node) -> str:
    """The name of the curriculum that a setting gives; empty for other settings."""
    if NAMED.fullmatch(node.name) and isinstance(node.value, str) and re.fullmatch(r"[\w-]+", node.value):
        return node.value
    return ""


def _bare(name: str) -> str:
    """EXTENDED of EXTENDED_CURRICULUM."""
    return SUFFIX.sub("", name).strip("_").upper()

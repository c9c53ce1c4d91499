"""See the check's docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from trainwatch.lint.check import Check, Material
from trainwatch.lint.tree import Node
from trainwatch.schema import Finding

NAMED = re.compile(r"(?:\w+_)?curriculum(?:_name)?", re.IGNORECASE)
SUFFIX = re.compile(r"_?(?:curriculum|stages|schedule)$|^curriculum_?", re.IGNORECASE)
PLAIN = frozenset(["", "NONE", "TRUE", "FALSE"])


class CurriculumChoice(Check):
    """The curriculum that the script takes is not the one that the config names.

    What it sees:
        `curriculum: EXTENDED` in the config against the curricula that the script imports or uses by name
        (DEFAULT_CURRICULUM, EXTENDED). It speaks where the script knows one and it is another.

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
        for node in material.nodes:
            meant = _bare(_named(node))
            if meant in PLAIN or not used or meant in used:
                continue
            name, place = next(iter(used.values()))
            yield self.finding(
                "critical",
                node.dotted,
                node.place,
                f"{node.dotted} is {node.written or _named(node)}, and {place.file} takes {name} (line {place.line}).",
                f"Let line {place.line} take the curriculum that the config names; a curriculum {meant} is not in it.",
                evidence={"script": place.file, "script_line": place.line},
                confidence=0.9,
            )


def _named(node: Node) -> str:
    """The name of the curriculum that a setting gives; empty for other settings."""
    if NAMED.fullmatch(node.name) and isinstance(node.value, str) and re.fullmatch(r"[\w-]+", node.value):
        return node.value
    return ""


def _bare(name: str) -> str:
    """EXTENDED of EXTENDED_CURRICULUM."""
    return SUFFIX.sub("", name).strip("_").upper()

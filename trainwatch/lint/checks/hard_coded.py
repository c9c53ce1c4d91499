"""See the check's docstring."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from trainwatch.lint.check import Check, Material
from trainwatch.schema import Finding

ENOUGH = 5  # letters of a name that two places share by more than chance
COMMON_VALUES = (0.0, 1.0, -1.0)


class HardCoded(Check):
    """A number in the script has the name of a setting in the config, and another value.

    What it sees:
        Assignments, keyword arguments and argparse defaults against settings of the same name; those that agree, and
        0 and 1, are left out.

    Why it matters:
        50,000 anneal steps in the code and 10,000 in the config: who changes the config changes nothing.

    What to do:
        Read the setting in the code, and delete the number.

    When it is wrong:
        A default that the config overrides: therefore it is only mentioned.
    """

    compares: ClassVar[bool] = True

    def look(self, material: Material) -> Iterator[Finding]:
        """Names against names."""
        if material.script is None or material.config is None:
            return
        settings = {node.name: node for node in material.nodes if node.number is not None and len(node.name) >= ENOUGH}
        twice = [n.name for n in material.nodes if n.number is not None]
        told = set()
        for constant in material.script.constants:
            node = settings.get(constant.name.lower())
            if node is None or twice.count(node.name) > 1 or constant.value in COMMON_VALUES or node.name in told:
                continue
            if constant.value != node.number:
                told.add(node.name)
                yield self.finding(
                    "info",
                    node.dotted,
                    constant.place,
                    f"{constant.name} is {constant.value:g} here, and {node.dotted} is {node.written} in "
                    f"{node.place.file} (line {node.place.line}).",
                    f"Read {node.dotted} from the config here, if this number is what runs.",
                    evidence={"config_line": node.place.line},
                    confidence=0.6,
                )

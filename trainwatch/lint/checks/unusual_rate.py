"""See the check's docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainwatch.lint.check import Check, Material
from trainwatch.lint.tree import Node
from trainwatch.schema import Finding

USUAL: dict[str, tuple[float, float]] = {
    "adam": (1e-7, 1e-2),
    "adamw": (1e-7, 1e-2),
    "lion": (1e-7, 1e-3),
    "sgd": (1e-5, 10.0),
    "muon": (1e-4, 0.2),
}
"""What is published of each; beyond either end it is most often a slip in the exponent."""
RATE = ("lr", "learning_rate", "base_lr")
OPTIMIZER = (
    "name",
    "type",
    "optimizer",
    "optim",
    "optimizer_type",
    "_target_",
    "_component_",
    "class_path",
    "optimizer_name",
)


class UnusualRate(Check):
    """A learning rate that hardly anybody uses with this optimiser: one digit of the exponent away from a usual one.

    What it sees:
        The rate beside the optimiser's name, against the range that is published for it.

    Why it matters:
        1e-1 instead of 1e-4 diverges within a hundred steps; 1e-9 trains nothing.

    What to do:
        Look at the exponent again.

    When it is wrong:
        Rates in units of your own, small probes, fine-tuning of single layers. It is only mentioned.
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """Mapping by mapping, and one level below it for the optimiser's arguments."""
        for node in material.nodes:
            family = _family(node)
            if not family:
                continue
            inside = [
                node,
                *(c for name, c in node.children.items() if name in ("params", "init_args", "args", "kwargs")),
            ]
            for rate in (c for place in inside for name, c in place.children.items() if name.lower() in RATE):
                low, high = USUAL[family]
                if rate.number and not low <= rate.number <= high:
                    side = "above" if rate.number > high else "below"
                    yield self.finding(
                        "info",
                        rate.dotted,
                        rate.place,
                        f"{rate.dotted} {rate.written} is {side} what is used with {family} ({low:g} to {high:g}).",
                        "Look at the exponent again.",
                        confidence=0.6,
                    )


def _family(node: Node) -> str:
    for name in OPTIMIZER:
        child = node.children.get(name)
        if child is not None and isinstance(child.value, str):
            last = re.split(r"[.:/]", child.value)[-1].lower()
            found = re.match(r"(?:fused|paged|deepspeed)?_?(adamw?|lion|sgd|muon)(?:$|_)", last)
            if found:
                return found.group(1)
    return ""

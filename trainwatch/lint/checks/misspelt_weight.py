"""See the check's docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainwatch.engine import nearest
from trainwatch.lint.check import Check, Material
from trainwatch.lint.tree import Node
from trainwatch.schema import Finding

WEIGHTS = re.compile(r"(?:loss_)?weights?|(?:\w+_)?loss_weights?|loss_coefs?|lambdas?", re.IGNORECASE)
COMPONENTS = re.compile(r"(?:loss_)?components|losses|loss_terms|loss_names|objectives", re.IGNORECASE)


class MisspeltWeight(Check):
    """A loss weight whose name is no loss component: the component keeps its default weight.

    What it sees:
        The names in `loss_weights` (or `weights`) against `components` or `losses` beside or above it, and the weights
        of curriculum stages against the same.

    Why it matters:
        `mass: 0.1` beside a component `precursor` weighs nothing; the precursor loss counts ten times what was meant.

    What to do:
        Write the component's name.

    When it is wrong:
        The list of components is not the whole of them.
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """Every mapping of weights against the nearest list of components."""
        if material.config is None:
            return
        for node in material.nodes:
            numbers = [child for child in node.children.values() if child.number is not None]
            if not WEIGHTS.fullmatch(node.name) or len(numbers) != len(node.children) or not numbers:
                continue
            around = [names for mapping in material.config.above(node) for names in _components(mapping)]
            known = around[0] if around else set()
            for child in numbers:
                if known and child.name not in known and known & node.children.keys():
                    yield self._strange(child, sorted(known))

    def _strange(self, child: Node, known: list[str]) -> Finding:
        near = nearest(child.name, known)
        right = near.split("'")[1] if near else ""
        return self.finding(
            "warning",
            child.dotted,
            child.key,
            f"{child.dotted} weighs a component that is not there; there are {', '.join(known[:12])}.",
            f"Write {right}." if right else "Name one of these, or delete it.",
        )


def _components(mapping: Node) -> Iterator[set[str]]:
    for name, child in mapping.children.items():
        if not COMPONENTS.fullmatch(name):
            continue
        if child.children:
            yield set(child.children)
        elif child.items:
            named = [item.children["name"].value if "name" in item.children else item.value for item in child.items]
            if all(isinstance(name, str) for name in named):
                yield set(named)

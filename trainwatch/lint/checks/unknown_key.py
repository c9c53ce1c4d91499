"""See the check's docstring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from trainwatch.engine import nearest
from trainwatch.lint.check import Check, Material
from trainwatch.lint.dialect import training_arguments
from trainwatch.lint.names import COMMON, TRAINING_ARGUMENTS
from trainwatch.lint.spelling import misspelt
from trainwatch.lint.tree import Node
from trainwatch.schema import Finding

ALIKE = 3  # siblings that share a name make it one that the odd one out should have too


class UnknownKey(Check):
    """A setting that nobody reads: its name is misspelt.

    What it sees:
        Names that are a slip of the pen away from one that Hugging Face's TrainingArguments have, that most trainers
        have, or that the setting's siblings have; and every name that the schema lacks, where a comment names one:
        `# trainwatch: schema=trainer/config.py:Config` (dataclasses, read and never run).

    Why it matters:
        Most readers take a name that they do not know without a word: the default is trained with.

    What to do:
        Write the known name.

    When it is wrong:
        Your trainer really calls it so, beside the usual name; it is spared where the usual one is set as well.
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """By the schema where there is one, else by slips."""
        if material.schema:
            yield from self._by_schema(material)
            return
        for node in material.nodes:
            known = COMMON | (TRAINING_ARGUMENTS if training_arguments(node) else frozenset())
            for name, child in node.children.items():
                right = misspelt(name, known - node.children.keys())
                if right and right not in node.children and name not in known | TRAINING_ARGUMENTS:
                    yield self._misspelt(child, right, "which is what trainers call it")
        yield from self._odd_ones(material.nodes)

    def _by_schema(self, material: Material) -> Iterator[Finding]:
        assert material.config is not None
        below = [path.rpartition(".")[0] for path in material.schema]
        for node in material.nodes:
            parent = ".".join(node.path[:-1])
            if not node.path or node.dotted in material.schema or (parent and parent not in below):
                continue
            siblings = [p.rpartition(".")[2] for p in material.schema if p.rpartition(".")[0] == parent]
            near = nearest(node.name, siblings)
            place = f" of {parent}" if parent else ""
            yield self.finding(
                "warning",
                node.dotted,
                node.key,
                f"{node.dotted} is no setting{place} in {material.config.schema}{near}",
                _write(near) or f"Delete it; known are {', '.join(siblings[:12])}.",
            )

    def _odd_ones(self, nodes: Iterable[Node]) -> Iterator[Finding]:
        """A mapping among others like it, one of whose names is spelt otherwise."""
        for node in nodes:
            alike = [item for item in (*node.items, *node.children.values()) if item.children]
            counted = Counter(name for item in alike for name in item.children)
            usual = {name for name, count in counted.items() if count >= max(ALIKE, len(alike) - 1)}
            for item in alike if len(alike) > ALIKE else ():
                for name, child in item.children.items():
                    right = misspelt(name, usual - item.children.keys()) if counted[name] == 1 else None
                    if right and not misspelt(name, COMMON - {right}):
                        yield self._misspelt(child, right, "as in the entries beside it")

    def _misspelt(self, node: Node, right: str, why: str) -> Finding:
        return self.finding(
            "warning",
            node.dotted,
            node.key,
            f"{node.dotted} is read by nobody: it seems to mean {right}, {why}.",
            f"Write {right}.",
            confidence=0.9,
        )


def _write(near: str) -> str:
    """``; did you mean 'lr'?`` as an order."""
    return f"Write {near.split(chr(39))[1]}." if near else ""

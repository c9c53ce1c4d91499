"""See the check's docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainwatch.lint.check import Check, Material
from trainwatch.lint.dialect import FLOATING
from trainwatch.lint.tree import Node
from trainwatch.schema import Finding

MAPPINGS = re.compile(r"(?:\w+_)?kwargs|init_args", re.IGNORECASE)
"""Names that are mappings in every trainer: they are given as **kwargs."""
NAMED = re.compile(r"\w+_args|(?:\w+_)?loss_weights?", re.IGNORECASE)
"""Names under which a list of single `- key: value` entries was meant to be a mapping."""


class WrongShape(Check):
    """A list where a mapping is read, a mapping where a number is, a word where a number is.

    What it sees:
        Every value against the type of its field, where a comment names the schema; and lists under names that are
        mappings everywhere (`model_kwargs`, `init_args`), or one `- key: value` after the other under `dataset_args`.

    Why it matters:
        `'list' object has no attribute 'items'`, after the data was loaded.

    What to do:
        Write `key: value` lines without the dashes, or the other way round.

    When it is wrong:
        The trainer takes both.
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """By the schema, else by name."""
        for node in material.nodes:
            kind = material.schema.get(node.dotted, "")
            if kind:
                wrong = _misfit(node, kind, numbers=bool(material.dialects & FLOATING))
                if wrong:
                    yield self._say(node, f"is {wrong}, and {kind} is read")
            elif node.items and (MAPPINGS.fullmatch(node.name) or NAMED.fullmatch(node.name)):
                if all(len(item.children) == 1 for item in node.items):
                    yield self._say(node, "is a list, and a mapping is read", "Leave out the dashes.")
                elif MAPPINGS.fullmatch(node.name) and not node.items[0].children:
                    yield self._say(node, "is a list, and a mapping is read", "Write key: value lines.")

    def _say(self, node: Node, what: str, advice: str = "") -> Finding:
        return self.finding(
            "warning", node.dotted, node.place, f"{node.dotted} {what}.", advice or "Write it in that form."
        )


def _misfit(node: Node, kind: str, *, numbers: bool) -> str:
    """What a value is, where it cannot be what the field's type says; unknown types fit anything."""
    base = kind.replace(" ", "")
    if "None" in base or "Optional" in base or "|" in base or (isinstance(node.value, str) and "${" in node.value):
        return ""
    if base.startswith(("int", "float", "bool", "str")) and not node.scalar:
        return "a mapping" if node.children else "a list"
    if base.lower().startswith(("list", "tuple", "sequence")) and (node.children or _single(node)):
        return "a mapping" if node.children else f"the single value {node.written}"
    if base.lower().startswith(("dict", "mapping", "=")) and (node.items or node.scalar):
        return "a list" if node.items else f"the single value {node.written}" if node.value is not None else ""
    if base in ("int", "float") and isinstance(node.value, str) and not (numbers and node.number is not None):
        return f"the text {node.written!r}"
    if base == "int" and isinstance(node.value, float) and not node.value.is_integer():
        return f"{node.written}"
    if base == "bool" and not isinstance(node.value, bool):
        return f"{node.written!r}"
    return ""


def _single(node: Node) -> bool:
    return node.scalar and node.value is not None

"""See the check's docstring."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

from trainwatch.lint.check import Check, Material
from trainwatch.lint.dialect import FLOATING, converter
from trainwatch.lint.names import words
from trainwatch.lint.tree import Node
from trainwatch.schema import Finding, Severity

EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*)?\.?[0-9_]*[eE][-+]?[0-9]+")
NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
GROUPED = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+")
NUMERIC = re.compile(
    r"(?:^|_)(?:lr|learning_rate|rate|batch_size|size|steps?|iters?|epochs?|decay|momentum|dropout|workers|layers|heads"
    r"|dim|seed|eps|epsilon|beta[12]|ratio|weight|temperature|grad_norm|accumulation|patience|gamma|max_length|samples)$",
    re.IGNORECASE,
)
"""Names of settings that are numbers in every trainer; a quoted number elsewhere may be a label."""
NAMES = re.compile(
    r"(?:^|_)(?:commit|sha|hash|id|rev|revision|version|name|tag|uuid|run|date|git)(?:_|$)", re.IGNORECASE
)
TEXTS = words("env environment env_vars labels annotations tags metadata description tool")
"""Mappings whose values are texts by nature, or (`tool` of a pyproject.toml) are read by no trainer."""
BOOLEANS = {"true": "true", "false": "false"}


class NumericString(Check):
    """A number, boolean or list that its reader takes for text.

    What it sees:
        A plain `1e-4` in YAML 1.1, which asks for a dot before the exponent and a sign in it; a number in quotes where
        every trainer has a number, "true" and "false" in quotes, a list in quotes, and None, which is a name in YAML.

    Why it matters:
        The first comparison or multiplication with it ends the run, minutes after it was queued; "false" is worse: a
        text that is not empty counts as true.

    What to do:
        Write what the advice says: 1.0e-4 for 1e-4, and no quotes.

    When it is wrong:
        The trainer converts by type. Readers that do (OmegaConf, jsonargparse, yacs, axolotl) are known by their
        configs and spared; where the project's requirements list one, a plain `1e-4` is only mentioned.

    References:
        YAML 1.1, float: the exponent has a sign, the mantissa a dot. PyYAML issue 173.
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """Every scalar for itself."""
        words = {item.path for node in material.nodes if _tells_words(node) for item in node.items}
        spared = bool(material.dialects & FLOATING)
        reader = converter(material.config) if material.config and material.config.format == "yaml" else ""
        for node in material.nodes:
            if not isinstance(node.value, str) or node.path in words:
                continue
            if not TEXTS & {part.lower() for part in node.path[:-1]}:
                found = None if node.quoted else self._plain(node, spared, reader)
                if node.quoted and not (material.schema and spared):
                    found = self._quoted(node)
                if found:
                    yield found

    def _plain(self, node: Node, spared: bool, reader: str) -> Finding | None:
        text = node.value
        if EXPONENT.fullmatch(text) and not spared and not NAMES.search(node.name):
            why = "YAML 1.1 reads it as text, for want of a dot or of the exponent's sign"
            return self._number(node, f"{why}; {reader} does not" if reader else why, "info" if reader else "warning")
        if GROUPED.fullmatch(text) and NUMERIC.search(_named(node)):
            return self._number(node, "with commas in it, it is text")
        if text == "None" and not spared:
            message = f"{node.dotted} is None, which is the text 'None' in YAML and not nothing."
            return self.finding("info", node.dotted, node.place, message, "Write null.", patch={node.dotted: None})
        return None

    def _quoted(self, node: Node) -> Finding | None:
        text = node.value.strip()
        if NUMBER.fullmatch(text) and NUMERIC.search(_named(node)):
            return self._number(node, "it stands in quotes, which makes it text")
        said = BOOLEANS.get(text.lower())
        if said and not node.name.isupper():
            return self.finding(
                "warning",
                node.dotted,
                node.place,
                f"{node.dotted} is {node.value!r} in quotes: a text, which counts as true whatever it says.",
                f"Write {said} without quotes.",
                patch={node.dotted: said == "true"},
            )
        return self._listed(node, text)

    def _listed(self, node: Node, text: str) -> Finding | None:
        if not (text.startswith("[") and text.endswith("]")):
            return None
        try:
            inside = json.loads(text.replace("'", '"'))
        except (ValueError, RecursionError):
            return None
        message = f"{node.dotted} is the list {text[:60]} in quotes: a text, whose first entry is '['."
        return self.finding(
            "warning",
            node.dotted,
            node.place,
            message,
            f"Write {text[:60]} without quotes.",
            patch={node.dotted: inside},
        )

    def _number(self, node: Node, why: str, severity: Severity = "warning") -> Finding | None:
        value = float(node.value.replace(",", "").replace("_", ""))
        if not math.isfinite(value):
            return None
        right = as_yaml(value)
        return self.finding(
            severity,
            node.dotted,
            node.place,
            f"{node.dotted} is {node.value!r} and not a number: {why}.",
            f"Write {right}.",
            patch={node.dotted: int(value) if value.is_integer() and abs(value) < 1e15 else value},
        )


def _tells_words(node: Node) -> bool:
    """Whether a list holds words, in quotes: a 'true' among them is one of them."""
    return any(item.quoted and not BOOLEANS.get(str(item.value).lower()) for item in node.items) and not any(
        item.quoted and NUMBER.fullmatch(str(item.value)) for item in node.items
    )


def _named(node: Node) -> str:
    """The name that a value goes by: an entry of a list has its list's."""
    return next((part for part in reversed(node.path) if not part.isdigit()), "")


def as_yaml(value: float) -> str:
    """A number as YAML 1.1 reads it as one: 1.0e-4, 1000000."""
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if 1e-3 <= abs(value) < 1e15:
        return repr(value)
    mantissa, _, exponent = f"{value!r}".partition("e")
    if not exponent:
        mantissa, _, exponent = f"{value:e}".partition("e")
        mantissa = mantissa.rstrip("0")
    mantissa = mantissa if "." in mantissa else f"{mantissa}."
    return f"{mantissa}{'0' if mantissa.endswith('.') else ''}e{exponent[0]}{exponent[1:].lstrip('0') or '0'}"

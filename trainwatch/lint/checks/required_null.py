"""See the check's docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainwatch.lint.check import Check, Material
from trainwatch.lint.names import words
from trainwatch.schema import Finding

PATH = re.compile(
    r"(?:\w+_)?(?:checkpoint|ckpt|weights)_(?:path|file|dir)|(?:resume|load|init)_from(?:_\w+)?|resume_path",
    re.IGNORECASE,
)
ASKS = re.compile(
    r"resume|load_(?:checkpoint|weights|pretrained)|from_checkpoint|finetune|fine_tune|restore", re.IGNORECASE
)
AUTOMATIC = words("auto_resume resume_if_exists auto_restore")


class RequiredNull(Check):
    """A path is null, and the setting beside it needs one.

    What it sees:
        `resume: true` (load_checkpoint, finetune, restore) beside a checkpoint path that is null or empty.

    Why it matters:
        The run starts from scratch under the name of one that goes on, or ends at its first line.

    What to do:
        Name the checkpoint, or turn the other setting off.

    When it is wrong:
        The trainer finds the newest checkpoint by itself.
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """Pairs within a mapping."""
        for node in material.nodes:
            asks = [
                child
                for name, child in node.children.items()
                if child.value is True and ASKS.fullmatch(name) and name not in AUTOMATIC
            ]
            empty = [
                child for name, child in node.children.items() if child.value in (None, "") and PATH.fullmatch(name)
            ]
            filled = [child for name, child in node.children.items() if child.value and PATH.fullmatch(name)]
            if asks and empty and not filled:
                yield self.finding(
                    "warning",
                    empty[0].dotted,
                    empty[0].place,
                    f"{empty[0].dotted} is empty, and {asks[0].name}: true in line {asks[0].place.line} needs it.",
                    f"Write the checkpoint's path, or {asks[0].name}: false.",
                )

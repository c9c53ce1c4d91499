"""See the check's docstring."""

from __future__ import annotations

from collections.abc import Iterator

from trainwatch.lint.check import Check, Material
from trainwatch.schema import Finding


class DuplicateKey(Check):
    """A mapping has a key twice: the later one wins, without a word.

    What it sees:
        Keys of YAML and JSON mappings. What `<<:` merges may be overridden: that is its use.

    Why it matters:
        Who changes the first of them changes nothing. The run is not the one that its config seems to describe.

    What to do:
        Delete one of them.

    When it is wrong:
        Never; the same value twice is only mentioned.
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """What reading the file brought up."""
        told = set()
        for pair in material.config.repeated if material.config else ():
            first, last = pair.first, pair.last
            if last.key in told:
                continue
            told.add(last.key)
            same = first.plain() == last.plain()
            shown = f", {first.written or 'a mapping'} and {last.written or 'a mapping'}; the later one wins"
            yield self.finding(
                "info" if same else "warning",
                last.dotted,
                last.key,
                f"{last.dotted} is set twice, here and in line {first.key.line}{', to the same' if same else shown}.",
                f"Delete line {first.key.line if not same else last.key.line}, or name one of them otherwise.",
                evidence={"also": first.key.line},
            )

"""Settings that a log prints over many lines: ``SFTConfig(output_dir='out',`` and below it, indented, the rest."""

from __future__ import annotations

import re
from dataclasses import dataclass

OPENING = re.compile(r"\b[A-Z]\w*\(\w+=")
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


@dataclass
class Wrapped:
    """Follows the brackets of such an object: until they are closed, nothing was measured."""

    _open: int = 0

    def take(self, line: str) -> bool:
        """Whether the line belongs to printed settings. One at the margin ends what was torn."""
        if not self._open or not line[:1].isspace():
            self._open = 0
            if not line.rstrip().endswith((",", "(", "[", "{")) or not OPENING.search(line):
                return False
        bare = QUOTED.sub("", line)
        self._open = max(self._open + sum(map(bare.count, "([{")) - sum(map(bare.count, ")]}")), 0)
        return True

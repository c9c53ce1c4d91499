"""The same trainings, logged less often: what would be said of them if there were fewer rows?"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from benchmarks.diagnosis.corpus import Record

NOW_AND_THEN = re.compile(r"(update_ratio|weight_norm|state_steps|memory|data)/.*|param_hash|grad_carried.*")
"""What the recorder measures once in so many rows: the next row that is kept has it."""


def thinned(record: Record, rows: int) -> Record:
    """Each second, third, ... row of training of a record, so that about so many are left; all else stays."""
    there = record.files[""].count(b'{"kind":"step"')
    every = max(1, round(there / rows))
    return replace(record, files={suffix: _thinned(content, every) for suffix, content in record.files.items()})


def _thinned(content: bytes, every: int) -> bytes:
    kept: list[bytes] = []
    left: dict[str, Any] = {}
    for line in content.splitlines(keepends=True):
        if not line.startswith(b'{"kind":"step"') or every == 1:
            kept.append(line)
            continue
        row = json.loads(line)
        if row["step"] % every:
            left |= {name: value for name, value in row.items() if NOW_AND_THEN.fullmatch(name)}
        else:
            kept.append(json.dumps(left | row, separators=(",", ":")).encode() + b"\n")
            left = {}
    return b"".join(kept)

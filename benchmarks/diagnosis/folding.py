"""Run files by columns and back: rows repeat their keys, and what repeats costs a third of a compressed archive.

Steps that follow each other become one line of kind ``steps``, each channel a list; what a row has not is "". Times and
counters are told by their differences, which repeat: times in milliseconds, as they were rounded to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import accumulate, groupby, pairwise
from typing import Any

ABSENT = ""
TIMES = ("time", "elapsed")
COUNTER = 10**6  # larger whole numbers are hashes and bytes
Rows = list[dict[str, Any]]


def fold(content: bytes) -> bytes:
    """A run file with its steps by columns."""
    lines: list[dict[str, Any]] = []
    for kind, group in groupby(map(json.loads, content.splitlines()), lambda record: record["kind"]):
        records = list(group)
        lines += [_columns(records)] if kind == "step" else records
    return _written(lines)


def unfold(content: bytes) -> bytes:
    """The run file again, row by row; a row's channels in the order of the columns."""
    lines: list[dict[str, Any]] = []
    for record in map(json.loads, content.splitlines()):
        lines += _rows(record["columns"]) if record["kind"] == "steps" else [record]
    return _written(lines)


def _columns(rows: Rows) -> dict[str, Any]:
    names = list(dict.fromkeys(name for row in rows for name in row if name != "kind"))
    return {
        "kind": "steps",
        "columns": {name: _packed(name, [row.get(name, ABSENT) for row in rows]) for name in names},
    }


def _rows(columns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    unpacked = [_unpacked(name, values) for name, values in columns.items()]
    for values in zip(*unpacked, strict=True):
        told = {name: value for name, value in zip(columns, values, strict=True) if value != ABSENT}
        yield {"kind": "step", **told}


def _packed(name: str, values: list[Any]) -> Any:
    """A time or a counter by its differences; any other channel as it is."""
    if name in TIMES:
        values = [round(1000 * value) for value in values]
    if name in TIMES or all(type(value) is int and abs(value) < COUNTER for value in values):
        return {"by": [after - before for before, after in pairwise([0, *values])]}
    return values


def _unpacked(name: str, values: Any) -> list[Any]:
    if not isinstance(values, dict):
        return values  # type: ignore[no-any-return]
    counted = list(accumulate(values["by"]))
    return [round(value / 1000, 3) for value in counted] if name in TIMES else counted


def _written(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()

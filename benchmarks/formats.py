"""Which formats are read, and whether the values are right: trainwatch beside losslint and runmedic.

    python benchmarks/formats.py [--rivals FOLDER]

The files are those in tests/data/logs, as their real writers wrote them, with what must be read beside them
(truth.json: steps and values of every channel, NaN and infinities too). Of a rival only what it prints is known:
whether it has any points of the file. It shows no values, and so they are not judged.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from reallogs import RIVALS, ask
from tables import markdown, show

from trainwatch.readers import ReadError, read
from trainwatch.run import Run

LOGS = Path(__file__).parents[1] / "tests" / "data" / "logs"
COMPARED = ("losslint", "runmedic")


def right(run: Run, truth: dict[str, dict[str, list[Any]]]) -> bool:
    """Whether every value that was written is there, at its step, and is the same to the last digit."""
    for where, columns in truth.items():
        table, _, split = where.partition(":")
        for channel, values in columns.items():
            if channel != "step" and not _same(run, table, split, channel, columns["step"], values):
                return False
    return True


def _same(run: Run, table: str, split: str, channel: str, steps: list[int], values: list[Any]) -> bool:
    rows = run.train if table == "train" else run.eval
    there = ~np.isnan(rows[channel]) | (rows.codes(channel) > 0)
    if split:
        there &= [rows.text.get("split", {}).get(row) == split for row in range(rows.size)]
    frame = run.frame("train" if table == "train" else "eval")
    found = frame[channel].to_numpy()[there[rows.live]] if channel in frame else np.zeros(0)
    known = [float(value) for value in values]
    if len(found) != len(known) or frame["step"].to_numpy()[there[rows.live]].tolist() != steps:
        return False
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(found.tolist(), known, strict=True))


def files() -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """(format, path, truth) of every file."""
    for name, truth in json.loads((LOGS / "truth.json").read_text()).items():
        path = LOGS / name
        try:
            yield read(path).format, path, truth
        except ReadError as error:
            yield f"(unread: {error})", path, truth


def main() -> None:
    """Read every file with every tool, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rivals", type=Path, help="the folder that the rivals' programs are installed in")
    asked = parser.parse_args()
    programs = {name: shutil.which(name, path=asked.rivals) for name in COMPARED} if asked.rivals else {}
    table: dict[str, list[tuple[bool, bool, dict[str, bool]]]] = {}
    for format_, path, truth in files():
        known = not format_.startswith("(unread")
        rivals = {}
        for name, program in programs.items():
            arguments, judged = RIVALS[name]
            asked_for = [path] if path.parent == LOGS else [path, path.parent]  # a folder is all one run, or two
            rivals[name] = program is not None and any(ask((program, *arguments), p, judged).read for p in asked_for)
        table.setdefault(format_, []).append((known, known and right(read(path), truth), rivals))
    rows = []
    for format_, found in sorted(table.items()):
        rivals = {name: str(sum(one[2][name] for one in found)) for name in programs}
        theirs = [rivals[name] if program else "not installed" for name, program in programs.items()]
        ours = [len(found), sum(one[0] for one in found), sum(one[1] for one in found)]
        rows.append([format_, *map(str, ours), *theirs])
    columns = ("format", "files", "read", "values right", *(f"{name} reads" for name in programs))
    show("Formats, files as their writers wrote them", columns, rows)
    print(markdown(columns, rows))


if __name__ == "__main__":
    main()

"""Whether every real log is read right: its runs, rows, first and last step, loss components, and channels.

    python benchmarks/readings.py FOLDER [--write]

What is expected of each file lies in ``tests/data/reallogs_expected.jsonl``: counts and names alone, nothing of the
logs. ``--write`` makes it anew from what the readers read now; look at the difference before you keep it, and at the
logs before you believe it. Channels that are no loss, rate, norm or merit (``logged/...``) are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trainwatch.readers import ReadError, read_all
from trainwatch.run import Run

EXPECTED = Path(__file__).parents[1] / "tests" / "data" / "reallogs_expected.jsonl"
ASIDE = {"labels.tsv", "README.md"}

Facts = dict[str, Any]


def files(folder: Path) -> list[Path]:
    """Every log below ``folder``."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ASIDE)


def facts(path: Path) -> list[Facts]:
    """What is read in a file, run by run; nothing where it is refused."""
    try:
        return [_facts(run) for run in read_all(path)]
    except ReadError:
        return []


def _facts(run: Run) -> Facts:
    channels = [[name for name in table.channels if not name.startswith("logged/")] for table in (run.train, run.eval)]
    return {
        "rows": run.train.size,
        "first": run.first_step,
        "last": run.last_step,
        "evaluations": run.eval.size,
        "components": sorted(run.components()),
        "channels": sorted(channels[0]),
        "merits": sorted(channels[1]),
    }


def expected() -> dict[str, list[Facts]]:
    """For each file, by its place in the folder, its runs."""
    records = (json.loads(line) for line in EXPECTED.read_text().splitlines())
    return {record["file"]: record["runs"] for record in records}


def wrong(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """One line for each of the files that is read otherwise than expected, or that is not there."""
    known = expected()
    for name in names:
        found = facts(folder / name)
        if found != known[name]:
            yield f"{name}: {_difference(found, known[name])}"


def _difference(found: list[Facts], runs: list[Facts]) -> str:
    if len(found) != len(runs):
        return f"{len(found)} runs instead of {len(runs)}"
    pairs = zip(found, runs, strict=True)
    return "; ".join(f"{key} {a[key]} instead of {b[key]}" for a, b in pairs for key in b if a[key] != b[key])


def write(folder: Path) -> None:
    """Make the expectations from what is read now."""
    records = [{"file": path.relative_to(folder).as_posix(), "runs": facts(path)} for path in files(folder)]
    EXPECTED.write_text("".join(json.dumps(record) + "\n" for record in records))


def main() -> None:
    """Check, or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="make the expectations from what is read now")
    asked = parser.parse_args()
    if asked.write:
        write(asked.folder)
    found = list(wrong(asked.folder, expected()))
    print("\n".join([*found, f"read right: {len(expected()) - len(found)} of {len(expected())}"]))
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()

"""How much of what is wrong does trainwatch find, and how often does it cry wolf?

    python -m benchmarks.diagnosis [--split tuning|held-out|all] [--program NAME] [--kind NAME] [--misses] [--quick]
                                 [--rows N]
    python -m benchmarks.diagnosis --train [PROGRAM...]

Reads the stored trainings, asks trainwatch about each, prints the tables; over the whole corpus it writes
docs/diagnosis.md and docs/diagnosis.svg. `--train` does the trainings that are not in the store.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks.diagnosis import corpus, page, picture, score, thinning
from benchmarks.diagnosis.kinds import KINDS

DOCS = Path(__file__).parents[2] / "docs"


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, or score what is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis", description=__doc__.splitlines()[0])
    parser.add_argument("--train", nargs="*", metavar="PROGRAM", help="do the trainings that are not in the store")
    parser.add_argument("--split", choices=("tuning", "held-out", "all"), default="all")
    parser.add_argument("--program", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--kind", action="append", default=[], help="only this kind of mistake; may be repeated")
    parser.add_argument("--misses", action="store_true", help="print what was said instead, run by run")
    parser.add_argument("--quick", action="store_true", help="whole runs only: no delay of the first live alarm")
    parser.add_argument("--rows", type=int, help="each log with about so few rows of training: each second, third, ...")
    parser.add_argument("--processes", type=int, default=1, help="runs judged side by side")
    asked = parser.parse_args(arguments)
    if unknown := {*asked.program, *(asked.train or [])} - {*corpus.names()}:
        parser.error(f"program '{min(unknown)}' does not exist; choose from {', '.join(corpus.names())}")
    if unknown := {*asked.kind} - {*KINDS}:
        parser.error(f"kind '{min(unknown)}' does not exist; choose from {', '.join(KINDS)}")
    if asked.rows is not None and asked.rows < 1:
        parser.error(f"--rows {asked.rows}: a log has one row at least")
    if asked.train is not None:
        train(asked.train or list(corpus.found()))
        return
    records = list(score.wanted(asked.split, asked.program, asked.kind))
    if asked.rows:
        records = [thinning.thinned(record, asked.rows) for record in records]
    if not records:
        sys.exit("there is no such training in the store; `--train` does what is missing")
    told = score.judged(records, live=not asked.quick, processes=asked.processes)
    shown = not Console().is_terminal
    verdicts = list(track(told, "judging", total=len(records), disable=shown, transient=True))
    page.show(verdicts)
    if asked.misses:
        page.show_misses(verdicts)
    if asked.split == "all" and not asked.program and not asked.kind and not asked.quick and not asked.rows:
        (DOCS / "diagnosis.md").write_text(page.markdown(verdicts))
        (DOCS / "diagnosis.svg").write_text(picture.draw(verdicts))
        print("wrote docs/diagnosis.md and docs/diagnosis.svg")


def train(programs: list[str]) -> None:
    """Do what is missing, program by program; what was done is kept when it is interrupted."""
    wanted = {name: corpus.missing(name) for name in programs if name in corpus.found()}
    total, done, began = sum(map(len, wanted.values())), 0, time.monotonic()
    for name, cases in wanted.items():
        for case in corpus.train(name, cases):
            done += 1
            print(f"{done} of {total}: {name} {case.file}; {corpus.remaining(began, done, total)}", flush=True)


if __name__ == "__main__":
    main()

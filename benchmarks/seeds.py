"""How often chance parts two runs of one setting: the plain runs of every program of the corpus, each against the rest.

`python -m benchmarks.seeds` prints for no, two and three repeats that tell of the noise, in how many pairs the loss and
any channel parts. `trainwatch.compare.verdict` takes its confidence from these.
"""

from __future__ import annotations

import argparse
from collections import Counter

import trainwatch
from benchmarks.diagnosis import corpus
from trainwatch.compare.partings import Partings

RUNS = 4  # plain runs of a program
REPEATS = (0, 2, 3)


def main() -> None:
    """Print the table."""
    pairs, loss, some = Counter[int](), Counter[int](), Counter[int]()
    for name in corpus.names():
        plain = [record.run() for record in corpus.records(name) if record.kind is None and record.case.name == "plain"]
        for left in range(len(plain) if len(plain) == RUNS else 0):
            runs = [run for index, run in enumerate(plain) if index != left] + [plain[left]]
            for repeats in REPEATS:
                channels = parted(runs, repeats)
                pairs[repeats] += 1
                loss[repeats] += "loss" in channels
                some[repeats] += bool(channels)
    print("| repeats | pairs | loss parts | some channel parts |\n| --- | --- | --- | --- |")
    for repeats in REPEATS:
        print(f"| {repeats} | {pairs[repeats]} | {loss[repeats]} | {some[repeats]} |")


def parted(runs: list[trainwatch.Run], repeats: int) -> set[str]:
    """The channels, those of the plan aside, in which the last run parts from the first."""
    known = [tuple(range(repeats))] if repeats else []
    found = Partings(runs, known, "step").all()
    return {item.channel for item in found if item.run == RUNS - 1 and item.step is not None and not item.exact}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()

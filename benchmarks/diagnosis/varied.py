"""The same healthy trainings, recorded in less detail: does anything cry wolf that lacks what it was used to?

    python -m benchmarks.diagnosis.varied [--draw N] [--runs N]

Draws healthy stored runs of tuning programs, takes from each what another logger would not have written (rows,
channels, declarations of the header, evaluations), way by way, and prints every alarm and how many there were.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import track

import trainwatch
from benchmarks.diagnosis import corpus, score
from benchmarks.diagnosis.corpus import Record
from benchmarks.diagnosis.thinning import thinned

Line = dict[str, Any]
Less = Callable[[Line], Line | None]
"""A line of a run file as another logger would have written it; None if it would not have."""

ALWAYS = ("kind", "step", "time")
DECLARED = "components|schedules|curriculum|curriculum_running|config|clocks|total_steps|classes|horizon"
PARTS = "(grad_share|param_share|component_grad|grad_cosine)/.*"


def without_keys(pattern: str, kind: str) -> Less:
    """Lines of a kind lose what is called so."""
    named = re.compile(pattern)

    def less(line: Line) -> Line | None:
        if line["kind"] != kind:
            return line
        return {key: value for key, value in line.items() if key in ALWAYS or not named.fullmatch(key)}

    return less


def without_lines(*kinds: str) -> Less:
    """Lines of these kinds are not there."""
    return lambda line: None if line["kind"] in kinds else line


def only(pattern: str) -> Less:
    """Rows of training hold nothing but what is called so."""
    return without_keys(f"(?!({pattern})$).*", "step")


LESS: dict[str, Less] = {
    "no components declared": without_keys("components", "run"),
    "no schedules declared": without_keys("schedules", "run"),
    "no curriculum declared": without_keys("curriculum|curriculum_running", "run"),
    "no total steps": without_keys("total_steps", "run"),
    "nothing declared": without_keys(DECLARED, "run"),
    "no weights": without_keys("weight/.*", "step"),
    "no gradient parts": without_keys(PARTS, "step"),
    "no gradient norms": without_keys("grad_norm.*|post.*", "step"),
    "no rates": without_keys("lr/.*", "step"),
    "no update ratios": without_keys("update_ratio/.*", "step"),
    "no weight norms": without_keys("weight_norm/.*", "step"),
    "no whole loss": without_keys("loss", "step"),
    "no component losses": without_keys(f"loss/.*|weight/.*|{PARTS}", "step"),
    "no stage": without_keys("stage", "step"),
    "no applied steps": without_keys("applied.*", "step"),
    "no evaluations": without_lines("eval", "sample"),
    "loss and rates": only("loss|lr/.*"),
    "loss, norms and rates": only("loss|grad_norm|lr/.*|weight_norm/.*|update_ratio/.*"),
    "losses and rates": only("loss|loss/.*|lr/.*"),
    "losses, weights, norms and rates": only("loss|loss/.*|lr/.*|grad_norm.*|weight/.*"),
}
"""What a logger leaves out of the lines."""

ROWS = (100, 50, 25)
"""To how many rows a log is thinned."""


def lessened(record: Record, less: Less) -> Record:
    """A record whose lines are written by another logger."""
    return replace(record, files={suffix: _lessened(content, less) for suffix, content in record.files.items()})


def _lessened(content: bytes, less: Less) -> bytes:
    lines = (less(json.loads(line)) for line in content.splitlines())
    return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines if line is not None)


WAYS: dict[str, Callable[[Record], Record]] = {
    **{f"{rows} rows": partial(thinned, rows=rows) for rows in ROWS},
    **{way: partial(lessened, less=less) for way, less in LESS.items()},
}
"""Every way of recording less."""


def drawn(runs: int, draw: int) -> list[Record]:
    """So many healthy stored runs of tuning programs: of programs in turn, so that none weighs much more than another.

    Another draw is other runs.
    """
    chance = random.Random(draw)
    programs = [name for name in corpus.names() if name not in corpus.found() or not corpus.found()[name].HELD_OUT]
    chance.shuffle(programs)
    each, more = divmod(runs, len(programs))
    chosen: list[Record] = []
    for number, name in enumerate(programs):
        healthy = [record for record in score.wanted("tuning", [name], []) if record.kind is None]
        chosen += chance.sample(healthy, min(len(healthy), each + (number < more)))
    return chosen


def alarms(record: Record) -> Iterator[str]:
    """Every alarm on what is left of a healthy run, way by way, and every rule that failed."""
    for way, vary in WAYS.items():
        told = trainwatch.diagnose(vary(record).run())
        loud = [one for one in told.findings if one.severity != "info"]
        said = [f"{one.rule} ({one.subject}, step {one.first_step}): {one.message}" for one in loud]
        said += [f"{rule} failed: {why}" for rule, why in told.failed.items()]
        yield from (f"{record.case.program} {record.case.file}, {way}: {one}" for one in said)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, vary, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis.varied", description=__doc__.splitlines()[0])
    parser.add_argument("--draw", type=int, default=0, help="another number draws other runs")
    parser.add_argument("--runs", type=int, default=100, help="how many are drawn")
    asked = parser.parse_args(arguments)
    if asked.runs < 1:
        parser.error(f"--runs {asked.runs}: draw one run at least")
    records, count = drawn(asked.runs, asked.draw), 0
    console = Console()
    for record in track(records, "varying", disable=not console.is_terminal, transient=True):
        for alarm in alarms(record):
            count += 1
            print(alarm, flush=True)
    print(f"{count} alarms in {len(records) * len(WAYS):,} logs of {len(records)} healthy runs")
    sys.exit(1 if count else 0)


if __name__ == "__main__":
    main()

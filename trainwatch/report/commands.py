"""The commands that reproduce what a report says."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainwatch.diagnosis import Diagnosis
from trainwatch.report.section import Row, Section
from trainwatch.run import Run

OWN = "trainwatch"  # the format whose rows jq can show
AROUND = 5  # rows on each side of a finding's first step
UNREDACTED = "RUN"
RULES = 12


def section(
    run: Run, said: Diagnosis, *, options: Sequence[str] = (), twin: Path | None = None, hide: bool = False
) -> Section:
    """A row for each statement: what is said, and the command that says it again."""
    names = Names(run, options, twin, hide)
    return Section.of("Reproduce it", ("what is said", "the command"), list(_rows(run, said, names)))


class Names:
    """What the commands call the run, its healthy twin and their folder."""

    def __init__(self, run: Run, options: Sequence[str], twin: Path | None, hide: bool) -> None:
        self.run = UNREDACTED if hide else shlex.quote(str(run.source))
        self.twin = ("HEALTHY_RUN" if hide else shlex.quote(str(twin))) if twin else ""
        self.folder = "FOLDER" if hide else shlex.quote(str(run.source.parent))
        self.options = "".join(f" {shlex.quote(option)}" for option in options)


def _rows(run: Run, said: Diagnosis, names: Names) -> Iterator[Row]:
    check = f"trainwatch check {names.run}{names.options}"
    yield "verdict, root cause, findings, what could not be checked", check
    if run.format == OWN and said.root_cause is not None:
        first = said.root_cause.first_step
        rows = f'select(.kind == "step" and .step >= {max(first - AROUND, 0)} and .step <= {first + AROUND})'
        yield "the rows around the root cause", f"jq -c {shlex.quote(rows)} {names.run}"
    elif run.train.size:
        yield "every row", f"trainwatch export {names.run} -o run.csv"
    if names.twin:
        yield "what differs from the last healthy run", f"trainwatch compare {names.twin} {names.run}"
    if run.named:
        yield "what each name in the log was taken for", f"{check} --explain-channels"
    yield "every curve with every point", f"trainwatch dash {names.folder}"
    yield "this report", f"trainwatch report {names.run}{names.options}"

    for finding in said.findings[:RULES]:
        chosen = f'select(.rule == "{finding.rule}" and .first_step == {finding.first_step})'
        yield f"{finding.rule} at step {finding.first_step:,}", _piped(check, f".runs[].findings[] | {chosen}")
    for rule in dict.fromkeys(finding.rule for finding in said.findings[:RULES]):
        yield f"what {rule} looks for", f"trainwatch rules {shlex.quote(rule)}"


def _piped(check: str, query: str) -> str:
    return f"{check} --format json | jq {shlex.quote(query)}"

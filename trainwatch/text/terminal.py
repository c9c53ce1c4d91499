"""The terminal's face: verdict, root cause, findings from cause to effect. It draws what it is given."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from trainwatch.diagnosis import Diagnosis
from trainwatch.schema import Finding, Severity
from trainwatch.text import wording
from trainwatch.text.wording import SYMBOLS, clean

STYLES: dict[Severity | None, str] = {"critical": "bold red", "warning": "bold yellow", "info": "cyan", None: "green"}
PIPED_WIDTH = 100_000  # a pipe has no edge: sentences stay on one line, so that grep finds them whole
NARROW = 60
WIDEST = 120  # longer lines of prose are hard to read, however wide the terminal


def console(file: TextIO | None = None) -> Console:
    """Where to print: coloured and as wide as the terminal, or plain and unbroken into a pipe. Honours NO_COLOR."""
    file = file or sys.stdout
    tty = file.isatty()
    width = None if tty or os.environ.get("COLUMNS", "").isdigit() else PIPED_WIDTH
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def show(out: Console, diagnosis: Diagnosis, planned: int | None = None) -> None:
    """Print a diagnosis; ``planned`` is the number of steps the run was meant to take."""
    write(out, verdict(diagnosis, planned))
    write(out, Text(wording.root_cause(diagnosis), style="bold" if diagnosis.root_cause else ""))
    for finding in diagnosis.findings:
        out.print()
        follows = finding.key in diagnosis.explained
        is_root = diagnosis.root_cause is not None and finding.key == diagnosis.root_cause.key
        card(out, finding, message=not is_root, follows=follows)
    footnotes(out, diagnosis)


def show_all(out: Console, diagnoses: Sequence[tuple[Diagnosis, int | None]]) -> None:
    """Print several diagnoses, and a last line that counts them by the worst they hold."""
    for index, (diagnosis, planned) in enumerate(diagnoses):
        if index:
            out.print()
        show(out, diagnosis, planned)
    if len(diagnoses) > 1:
        broken = sum(diagnosis.worst is None and bool(diagnosis.failed) for diagnosis, _ in diagnoses)
        counts = Counter(diagnosis.worst for diagnosis, _ in diagnoses)
        counts[None] -= broken
        out.print()
        line = Text(f"{wording.plural(len(diagnoses), 'run')}: ", style="bold")
        grades = [badge(grade, f"{counts[grade]} {wording.severity(grade)}") for grade in STYLES if counts[grade]]
        grades += [Text(f"? {broken} with a broken rule", style=STYLES["warning"])] if broken else []
        write(out, line + Text(", ").join(grades))


def progress(paths: Sequence[Any]) -> Iterator[Any]:
    """``paths`` one by one, with a bar on stderr where that is a terminal and the reading takes a while."""
    if not sys.stderr.isatty():
        yield from paths
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console(sys.stderr), transient=True) as bar:
        task = bar.add_task("reading", total=len(paths))
        for path in paths:
            bar.update(task, description=f"reading {clean(path, 60)}")
            yield path
            bar.advance(task)


def verdict(diagnosis: Diagnosis, planned: int | None = None) -> Text:
    """The first line: how bad, which run, its state, how far it came, and the file."""
    line = worst(diagnosis)
    line.append(f"  {clean(diagnosis.run, 80)}", style="bold")
    line.append(f"  {wording.verdict(diagnosis, planned)}")
    line.append(f"  {clean(diagnosis.source)}", style="dim")
    return line


def worst(diagnosis: Diagnosis) -> Text:
    """Symbol, word and colour of the worst in a run; no green tick where a rule broke."""
    style = STYLES["warning"] if diagnosis.failed and diagnosis.worst is None else STYLES[diagnosis.worst]
    return Text(f"{wording.symbol(diagnosis)} {wording.worst(diagnosis)}", style=style)


def badge(severity: Severity | None, word: str | None = None) -> Text:
    """Symbol, word and colour of a severity."""
    return Text(f"{SYMBOLS[severity]} {word or severity}", style=STYLES[severity])


def headline(finding: Finding) -> Text:
    """A finding's first line: severity, rule, subject, when."""
    line = badge(finding.severity)
    line.append(f"  {finding.rule}", style="bold")
    if finding.subject != "run":
        line.append(f"  {clean(finding.subject, 120)}")
    line.append(f"  {wording.steps(finding.first_step, finding.last_step)}, {finding.state}", style="dim")
    return line


def card(out: Console, finding: Finding, *, message: bool = True, follows: bool = False) -> None:
    """A finding: its headline, and below it the message, the numbers, what to do and the patch."""
    lead = Text("↳ " if follows else "")
    write(out, headline(finding), lead=lead)
    left = lead.cell_len + 2
    if message:
        write(out, Text(clean(finding.message)), left)
    for label, said in _details(finding):
        _labelled(out, label, said, left)


def _details(finding: Finding) -> Iterator[tuple[str, str]]:
    if finding.evidence:
        yield "evidence", ", ".join(f"{name} {value}" for name, value in wording.evidence(finding))
    if finding.advice:
        yield "advice", clean(finding.advice)
    if finding.patch:
        yield "patch", wording.patch_yaml(finding.patch)
    if finding.confidence < 1.0:
        yield "certainty", f"{finding.confidence:.0%}"


def _labelled(out: Console, label: str, said: str, left: int) -> None:
    """A label with text beside it, or below it where the terminal is narrow."""
    lead = Text(label.ljust(11), style="dim")
    if out.width < NARROW:
        write(out, Text(label, style="dim"), left)
        lead = Text("  ")
    for line in said.split("\n"):
        depth = len(line) - len(line.lstrip(" "))
        text = Text(clean(line), style="green" if label == "patch" else "")
        write(out, text, left, lead + Text(" " * depth))
        lead = Text(" " * lead.cell_len)


WAKING = 4
"""Missing channels that are named in one line; the JSON has all of them, and the rules that wait."""


def footnotes(out: Console, diagnosis: Diagnosis) -> None:
    """What could not be judged, and what was odd about the file."""
    withheld = wording.withheld(diagnosis)
    if withheld or diagnosis.notes:
        out.print()
    if withheld:
        waiting = [f"{channel} would help {len(rules)}" for channel, rules in wording.wakes(diagnosis)[:WAKING]]
        write(out, Text(f"{withheld}: {', '.join(waiting)}; --format json names all.", style="dim"))
    for note in diagnosis.notes:
        write(out, Text(f"Note: {clean(note)}.", style="dim"))


def write(out: Console, text: Text, left: int = 0, lead: Text | None = None) -> None:
    """Print text wrapped at the terminal's edge and indented by ``left``; ``lead`` stands before its first line."""
    lead = lead or Text()
    width = out.width if out.width >= PIPED_WIDTH else min(out.width, WIDEST)
    for line in text.wrap(out, max(width - left - lead.cell_len, 12)) or [Text()]:
        line.rstrip()
        out.print(Text(" " * left) + lead + line, overflow="ignore", no_wrap=True, crop=False)
        lead = Text(" " * lead.cell_len)

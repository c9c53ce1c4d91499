"""The faces that are tables: runs and the catalogue of rules, in the terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainwatch.diagnosis import Diagnosis
from trainwatch.rule import PARTS, Rule, page
from trainwatch.run import Run
from trainwatch.text import wording
from trainwatch.text.terminal import NARROW, worst, write
from trainwatch.text.wording import clean

COMPACT, ROOMY = 70, 100  # columns from which `list` has room for six columns, and for the rule's name
Justify = Literal["left", "right"]
LONGEST_CELL = 60


def grid(head: Sequence[str], right: Sequence[int] = ()) -> Table:
    """A table without lines: what stands in a column says what belongs together."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, name in enumerate(head):
        justify: Justify = "right" if index in right else "left"
        table.add_column(clean(name, LONGEST_CELL), justify=justify, overflow="fold")
    return table


def runs(out: Console, judged: Sequence[tuple[Run, Diagnosis]], now: float | None = None) -> None:
    """Print one line a run, the youngest first; two where the terminal is narrow."""
    now = time.time() if now is None else now
    ordered = sorted(judged, key=lambda item: -item[0].touched)
    if out.width < NARROW:
        for run, said in ordered:
            write(out, worst(said) + Text(f"  {_run_name(run)}", style="bold"))
            write(out, Text(f"{wording.verdict(said)}, {wording.age(now - run.touched)} ago", style="dim"), left=2)
        return
    narrow, wide = out.width < COMPACT, out.width >= ROOMY
    head = ("run", "state", "steps", "worst") if narrow else ("run", "state", "steps", "loss", "worst", "age")
    table = grid(head, right=(2,) if narrow else (2, 3, 5))
    table.columns[0].overflow, table.columns[0].no_wrap = "ellipsis", True
    for run, said in ordered:
        steps, loss = run.train.curve("loss")
        last = wording.number(float(loss[-1])) if len(steps) else "-"
        count = f"{said.last_step:,}" if said.last_step is not None else "0"
        if run.header.total_steps and not narrow:
            count += f" / {run.header.total_steps:,}"
        verdict = worst(said)
        if said.root_cause and wide:
            verdict.append(f" {said.root_cause.rule}")
        name, age = Text(_run_name(run)), wording.age(now - run.touched)
        cells = [name, said.status, count, verdict] if narrow else [name, said.status, count, last, verdict, age]
        table.add_row(*cells)
    out.print(table)


def _run_name(run: Run) -> str:
    """A run's name, and its file's where that is another."""
    return clean(run.source.stem if run.name == run.source.stem else f"{run.name} ({run.source.name})", 60)


def catalogue(out: Console, known: Mapping[str, type[Rule]], checks: Mapping[str, str]) -> None:
    """Print every rule by family, and every check of lint, with the first line of its page."""
    rules = sorted((rule().family, name, page(rule)[""]) for name, rule in known.items())
    rules += [("lint (before a run)", name, said) for name, said in checks.items()]
    wide = max((len(name) for _, name, _ in rules), default=0)
    for index, (family, members) in enumerate(groupby(rules, key=lambda item: item[0])):
        if index:
            out.print()
        write(out, Text(family, style="bold"))
        for _, name, said in members:
            lead = Text(f"  {name.ljust(wide)}  ", style="cyan")
            if out.width < NARROW:
                write(out, Text(f"  {name}", style="cyan"))
                lead = Text("    ")
            write(out, Text(said), lead=lead)
    out.print()
    write(out, Text("`trainwatch rules NAME` shows a rule's page and thresholds.", style="dim"))


def rule_page(out: Console, rule: type[Rule]) -> None:
    """Print a rule's docstring, its thresholds, what it needs and what it explains."""
    fresh = rule()
    page_of(out, fresh.name, fresh.family, page(rule))
    thresholds = [(item.name, getattr(fresh, item.name)) for item in fields(rule) if item.init]
    if thresholds:
        out.print()
        write(out, Text(f"Thresholds (change one with --set {fresh.name}.{thresholds[0][0]}=VALUE)", style="bold"))
        for name, value in thresholds:
            write(out, Text(f"{name} = {value}"), left=2)
    for label, names in (("Needs", rule.needs), ("Is surer with", rule.wants), ("Would explain", rule.causes)):
        if names:
            out.print()
            write(out, Text(label, style="bold"))
            write(out, Text(", ".join(names)), left=2)


def page_of(out: Console, name: str, family: str, said: Mapping[str, str]) -> None:
    """Print a rule's or a check's docstring by its parts."""
    write(out, Text(name, style="bold") + Text(f"  ({family})", style="dim"))
    write(out, Text(said[""]))
    for part in PARTS:
        if part in said:
            out.print()
            write(out, Text(part, style="bold"))
            for paragraph in said[part].split("\n\n"):
                write(out, Text(" ".join(paragraph.split())), left=2)

"""The faces that are tables: runs, a comparison, the catalogue of rules. In the terminal, and as Markdown."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainwatch.compare import ABSENT, Apart, Comparison, Found, Values, is_seed
from trainwatch.diagnosis import Diagnosis
from trainwatch.parting import ENOUGH
from trainwatch.rule import PARTS, Rule, page
from trainwatch.run import Run
from trainwatch.text import markdown, wording
from trainwatch.text.terminal import NARROW, PIPED_WIDTH, worst, write
from trainwatch.text.wording import clean

COMPACT, ROOMY = 70, 100  # columns from which `list` has room for six columns, and for the rule's name
Justify = Literal["left", "right"]
LONGEST_CELL = 60
SUSPECTS = 5  # that are named in the sentence; the tables below it have them all


@dataclass(frozen=True)
class Section:
    """A titled table of plain text; the same in every face."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


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


def comparison(out: Console, said: Comparison) -> None:
    """Print a comparison: in sentences what parted and why, then the tables under it."""
    for sentence in summary(said):
        write(out, Text(sentence, style="bold"))
    for section in sections(said):
        out.print()
        write(out, Text(section.title, style="bold"))
        _print_section(out, section)


def _print_section(out: Console, section: Section) -> None:
    """A table where it fits, else its rows one below the other."""
    widths = [max(len(row[column]) for row in (section.head, *section.rows)) for column in range(len(section.head))]
    if out.width >= PIPED_WIDTH or sum(widths) + 2 * len(widths) <= out.width or out.width >= 2 * NARROW:
        table = grid(section.head)
        for row in section.rows:
            table.add_row(*(Text(cell) for cell in row))
        out.print(table)
        return
    for first, *others in section.rows:
        write(out, Text(first, style="cyan"), left=2)
        for name, cell in zip(section.head[1:], others, strict=True):
            write(out, Text(cell), left=4, lead=Text(f"{name}: ", style="dim"))


def trial(out: Console, verdict: str, said: Comparison) -> None:
    """Print how a cure did beside the run as it was: state, root cause, losses, findings; the rest is `compare`'s."""
    write(out, Text(verdict, style="bold"))
    losses = tuple(item for item in said.values if "loss" in item.channel)
    for section in sections(replace(said, values=losses, partings=())):
        out.print()
        write(out, Text(section.title, style="bold"))
        _print_section(out, section)


def comparison_markdown(said: Comparison) -> str:
    """A comparison as Markdown."""
    lines = ["## Comparison", ""]
    for sentence in summary(said):
        lines += [f"**{markdown.escape(sentence)}**", ""]
    for section in sections(said):
        rows = [[markdown.escape(cell) for cell in row] for row in section.rows]
        lines += [
            f"### {section.title}",
            "",
            *markdown.table([markdown.escape(name) for name in section.head], rows),
            "",
        ]
    return "\n".join(lines)


def labels(said: Comparison) -> list[str]:
    """A short name for each run: its own, with a number where two have the same."""
    return numbered(run["run"] for run in said.runs)


def numbered(names: Iterable[str]) -> list[str]:
    """Names on one line, with a number where two are the same."""
    names = [clean(name, 40) for name in names]
    return [name if names.count(name) == 1 else f"{name} #{index}" for index, name in enumerate(names, 1)]


def summary(said: Comparison) -> Iterator[str]:
    """What parted, when, and which setting is suspect: a few sentences for each run after the first."""
    names = labels(said)
    ends = next((item.final for item in said.values if item.channel == "loss"), ())
    for index in range(1, len(names)):
        partings = [item for item in said.partings if item.run == index]
        loss = next((item for item in partings if item.channel == "loss"), None)
        last = [wording.number(ends[run]) if ends and ends[run] is not None else "nothing" for run in (0, index)]
        yield _loss_sentence(names[0], names[index], loss, last)
        parted = sorted(
            (item for item in partings if item.step is not None and item.channel != "loss"),
            key=lambda item: item.step or 0,
        )
        if parted:
            first = [item.channel for item in parted if item.step == parted[0].step]
            yield f"The first to part: {', '.join(map(clean, first))}, at step {parted[0].step:,}."
        suspects = [item for item in said.suspects if item.run == index]
        if suspects:
            verb = "suspect is" if len(suspects) == 1 else "suspects are"
            more = f" and {len(suspects) - SUSPECTS} more" if len(suspects) > SUSPECTS else ""
            listed = ", ".join(clean(item.path, 80) for item in suspects[:SUSPECTS])
            yield f"The {verb} {listed}{more}: {clean(suspects[0].why)}."
        elif any(index in group and 0 in group for group in said.seeds):
            yield _same_settings(said, index)


def _same_settings(said: Comparison, index: int) -> str:
    """What can be said of two runs that differ in no setting, or in nothing but the seed."""
    if not all(said.runs[run]["settings"] for run in (0, index)):
        return "Their settings were not recorded, so none can be suspected."
    differing = [item.path for item in said.config if item.values[index] != item.values[0]]
    if any(map(is_seed, differing)):
        return "Nothing but the seed was set differently."
    return f"Nothing was set differently{', names and folders aside' if differing else ''}."


def _loss_sentence(first: str, other: str, loss: Apart | None, last: Sequence[str]) -> str:
    both = f"{first} and {other}"
    if loss is None:
        return f"{both} have no step with a loss in common."
    pair = loss.pair
    same = f"the same number by number up to step {pair.same_until:,}" if pair.same_until is not None else ""
    if pair.parting is None:
        if pair.same_until is not None and not pair.differs:
            return f"{both}: the loss is the same number by number in all {pair.rows:,} common steps."
        tail = f", and {same}" if same else ""
        if pair.too_few:
            few = f"too few common steps to judge whether the loss parts ({pair.rows:,} of at least {ENOUGH})"
            return f"{both}: {few}; it ends at {last[0]} and at {last[1]}{tail}."
        return f"{both}: no parting beyond noise{tail} ({pair.rows:,} common steps)."
    how = "is not finite in one of them"
    if pair.parting.difference == pair.parting.difference:  # not NaN
        side = "higher" if pair.parting.difference > 0 else "lower"
        gap, noise = wording.number(abs(pair.parting.difference)), wording.number(pair.parting.noise)
        how = f"is {side} by {gap} in {other}, against a noise of {noise}"
    return f"{both}: the loss parts at step {pair.parting.step:,} and {how}{f'; {same}' if same else ''}."


def sections(said: Comparison) -> Iterator[Section]:
    """The tables of a comparison; an empty one is left out."""
    names = labels(said)
    rows = [_run_row(name, run) for name, run in zip(names, said.runs, strict=True)]
    yield Section("Runs", ("run", "file", "state", "steps", "worst", "root cause"), rows)
    for title, found in (("Settings that differ", said.config), ("What else differs", said.facts)):
        if found:
            rows = [(clean(item.path, 80), *map(setting, item.values)) for item in found]
            yield Section(title, ("setting", *names), rows)
    if said.values:
        yield Section("Final value (best, at step)", ("channel", *names), list(map(_value_row, said.values)))
    yield from _seed_sections(said, names)
    if said.findings:
        ordered = sorted(said.findings, key=lambda item: min(step for step in item.first_step if step is not None))
        yield Section("Findings", ("finding", *names), list(map(_finding_row, ordered)))
    if said.partings:
        yield Section("Where channels part", ("channel", "run", "parts at", "same until"), _parting_rows(said, names))


def _value_row(values: Values) -> tuple[str, ...]:
    cells = zip(values.final, values.best, values.best_step, strict=True)
    return (clean(values.channel, 60), *(_final(*cell) for cell in cells))


def _finding_row(found: Found) -> tuple[str, ...]:
    steps = ("-" if step is None else f"step {step:,}" for step in found.first_step)
    return (f"{found.rule} {clean(found.subject, 60)}", *steps)


def _run_row(name: str, run: Mapping[str, Any]) -> tuple[str, ...]:
    reach = wording.steps(run["first_step"], run["last_step"])
    broke = f"{', '.join(run['failed'])} broke" if run["failed"] and not run["worst"] else ""
    found = broke or wording.severity(run["worst"])
    return (name, clean(run["source"]), run["status"], reach, found, run["root"] or "-")


def setting(value: Any) -> str:
    """A setting's value on one short line; a dash where there is no such setting."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return "-" if value == ABSENT else clean(value, LONGEST_CELL) or "''"


def _final(final: float | str | None, best: float | None, step: int | None) -> str:
    if final is None:
        return "-"
    return wording.number(final) + (f" ({wording.number(best)}, {step:,})" if best is not None else "")


def _seed_sections(said: Comparison, names: list[str]) -> Iterator[Section]:
    for group in said.seeds:
        key = "+".join(map(str, group))
        rows = [
            (clean(item.channel, 60), *(wording.number(number) for number in item.spread[key]))
            for item in said.values
            if key in item.spread
        ]
        if rows:
            seeds = {repr([item.values[run] for item in said.config if is_seed(item.path)]) for run in group}
            what = "Seeds" if len(seeds) > 1 else "Repeats"
            title = f"{what} of one setting: {', '.join(names[run] for run in group)}"
            yield Section(title, ("final value", "mean", "standard deviation"), rows)


def _parting_rows(said: Comparison, names: list[str]) -> list[tuple[str, ...]]:
    telling = [item for item in said.partings if item.step is not None or not item.exact]
    ordered = sorted(telling, key=lambda item: (item.run, item.step is None, item.step or 0, item.channel))
    return [
        (
            clean(item.channel, 60),
            names[item.run],
            _parts_at(item),
            "-" if item.pair.same_until is None else f"step {item.pair.same_until:,}",
        )
        for item in ordered
    ]


def _parts_at(item: Apart) -> str:
    if item.step is not None:
        return f"step {item.step:,}"
    if item.pair.too_few:
        return "too few common steps to judge"
    return "no parting" if item.exact or not item.pair.differs else "no parting beyond noise"

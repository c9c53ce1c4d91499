"""A comparison in the terminal, in Markdown and as tables: the same in each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.text import Text

from trainwatch.compare import ABSENT, Apart, Comparison, Found, Values, is_seed
from trainwatch.text import markdown, wording
from trainwatch.text.crowd import crowd
from trainwatch.text.names import labels
from trainwatch.text.partings import COLUMNS, certainty, pairs, place, verdict
from trainwatch.text.section import Section, markdown_sections, print_section
from trainwatch.text.terminal import write
from trainwatch.text.wording import clean

LONGEST_CELL = 60
NO_TEXT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|true|false|null|none", re.IGNORECASE)
"""What a reader takes for a number or a switch unless it stands in quotes."""


def show(out: Console, said: Comparison) -> None:
    """Print a comparison: the verdict, in sentences what parted and why, then the tables under it."""
    write(out, Text(verdict(said), style="bold"))
    for sentence in certainty(said):
        write(out, Text(sentence, style="dim"))
    for sentence in pairs(said):
        write(out, Text(sentence))
    for section in sections(said):
        out.print()
        write(out, Text(section.title, style="bold"))
        print_section(out, section)


def trial(out: Console, told: str, said: Comparison) -> None:
    """Print how a cure did beside the run as it was: state, root cause, losses, findings; the rest is `compare`'s."""
    write(out, Text(told, style="bold"))
    losses = tuple(item for item in said.values if "loss" in item.channel)
    for section in sections(replace(said, values=losses, partings=())):
        out.print()
        write(out, Text(section.title, style="bold"))
        print_section(out, section)


def as_markdown(said: Comparison) -> str:
    """A comparison as Markdown."""
    lines = ["## Comparison", "", f"**{markdown.escape(verdict(said))}**", ""]
    for sentence in (*certainty(said), *pairs(said)):
        lines += [markdown.escape(sentence), ""]
    return "\n".join([*lines, *markdown_sections(sections(said))])


def sections(said: Comparison) -> Iterator[Section]:
    """The tables of a comparison; an empty one is left out."""
    names = labels(said)
    if len(names) > COLUMNS:
        yield from (Section(*table) for table in crowd(said, names))
        return
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
    rows = list(_speed_rows(said))
    if rows:
        yield Section("Speed and memory", ("", *names), rows)


def _value_row(values: Values) -> tuple[str, ...]:
    cells = zip(values.final, values.best, values.best_step, strict=True)
    return (clean(values.channel, 60), *(_final(*cell) for cell in cells))


def _finding_row(found: Found) -> tuple[str, ...]:
    said = enumerate(found.first_step)
    told = ("not judged" if run in found.unjudged else "-" if step is None else f"step {step:,}" for run, step in said)
    return (f"{found.rule} {clean(found.subject, 60)}", *told)


def _run_row(name: str, run: Mapping[str, Any]) -> tuple[str, ...]:
    reach = wording.steps(run["first_step"], run["last_step"])
    return (name, clean(run["source"]), run["status"], reach, worst(run), run["root"] or "-")


def worst(run: Mapping[str, Any]) -> str:
    """The word for the worst that was found in a run; who broke, where nothing was."""
    broke = f"{', '.join(run['failed'])} broke" if run["failed"] and not run["worst"] else ""
    return broke or wording.severity(run["worst"])


def setting(value: Any) -> str:
    """A setting's value on one short line, text that looks like a number in quotes; a dash where it is not set."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, str) and NO_TEXT.fullmatch(value):
        return f'"{value}"'
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
    """Where each channel parts; of three runs or more only what parts, and the loss."""
    few = len(names) == 2
    telling = [item for item in said.partings if item.step is not None or item.channel == "loss" or few]
    telling = [item for item in telling if item.step is not None or not item.exact]
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
        return place(item)
    if not item.pair.finite:
        return "never finite"
    if item.pair.too_few:
        return "too few common steps to judge"
    return "no parting" if item.exact or not item.pair.differs else "no parting beyond noise"


def _speed_rows(said: Comparison) -> Iterator[tuple[str, ...]]:
    """Steps a second, the part of it that waits for data, and the memory; a row that no run can fill is left out."""
    waits = [wording.waits(one.step_seconds, one.data_seconds) for one in said.speed]
    peaks = [wording.memory(one.peak_memory, one.memory) for one in said.speed]
    paces = [wording.pace(one.step_seconds) for one in said.speed]
    for name, cells in (("speed (median)", paces), ("wait for data (median)", waits), ("peak memory", peaks)):
        if any(cells):
            yield (name, *(cell or "-" for cell in cells))

"""What a comparison says: a verdict, sentences, and tables; the same in the terminal, in Markdown and on pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from rich.console import Console
from rich.text import Text

from trainwatch.compare import ABSENT, Apart, Comparison, Found, Values, first_of, is_seed
from trainwatch.parting import ENOUGH
from trainwatch.text import markdown, wording
from trainwatch.text.crowd import crowd
from trainwatch.text.tables import grid
from trainwatch.text.terminal import NARROW, PIPED_WIDTH, write
from trainwatch.text.wording import clean

COLUMNS = 6  # runs that have a column each; of more, every table has a row each
SUSPECTS = 5  # that are named in the sentence; the tables below it have them all
NAMED = 3  # channels and findings that a sentence names
LONGEST_CELL = 60
NO_TEXT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|true|false|null|none", re.IGNORECASE)
"""What a reader takes for a number or a switch unless it stands in quotes."""


@dataclass(frozen=True)
class Section:
    """A titled table of plain text; the same in every face."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


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


def print_section(out: Console, section: Section) -> None:
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


def markdown_sections(found: Iterable[Section]) -> Iterator[str]:
    """Tables under their titles, as lines."""
    for section in found:
        rows = [[markdown.escape(cell) for cell in row] for row in section.rows]
        head = [markdown.escape(name) for name in section.head]
        yield from (f"### {markdown.escape(section.title)}", "", *markdown.table(head, rows), "")


def labels(said: Comparison) -> list[str]:
    """A short name for each run; see :func:`named`."""
    return named([(run["run"], run["source"]) for run in said.runs])


def named(runs: Sequence[tuple[str, str]]) -> list[str]:
    """Each run by its name; where others have the same by its file's, with the folder where that is the same too.

    Whatever is the same even then has a number.
    """
    names = [name for name, _ in runs]
    shared = {source: PurePath(source) for name, source in runs if names.count(name) > 1}
    ends = {source: _end(file, list(shared.values())) for source, file in shared.items()}
    return numbered(ends.get(source, name) for name, source in runs)


def _end(file: PurePath, files: Sequence[PurePath]) -> str:
    """As much of the end of a path as tells it from the others, without what the file ends in."""
    others = [one.parts for one in files if one != file]
    depth = next((n for n in range(1, len(file.parts) + 1) if all(one[-n:] != file.parts[-n:] for one in others)), 1)
    name = file.stem if file.suffix[1:].isalpha() else file.name
    return "/".join((*file.parts[-depth:-1], name))


def numbered(names: Iterable[str]) -> list[str]:
    """Names on one line, with a number where two are the same."""
    names = [clean(name, 40) for name in names]
    return [name if names.count(name) == 1 else f"{name} #{index}" for index, name in enumerate(names, 1)]


def verdict(said: Comparison) -> str:
    """Where runs part first and which setting is suspect, in one sentence."""
    names, found = labels(said), said.verdict
    first = first_of(said.partings)
    if first is None or found.run is None:
        return next(summary(said)) if len(names) == 2 else _none_parts(said, names[0])
    own = [item for item in said.partings if item.run == found.run and item.step is not None]
    loss = next((item.step for item in own if item.channel == "loss" and item.step != found.step), None)
    follows = f", and its loss from step {loss:,} on" if loss is not None else ""
    who = f"{names[found.run]} parts from {names[0]}"
    if len(names) > 2:
        some = f"{found.parted} of {len(names) - 1} runs part from {names[0]}, {names[found.run]} first"
        who = some if found.parted > 1 else f"Of {len(names) - 1} runs only {who}"
    where = f"{_at(first)} in {_listed(found.channels)}"
    return f"{who}, at {where}{follows}; {_suspected(said, found.run)}."


def certainty(said: Comparison) -> Iterator[str]:
    """How sure the verdict is and what it rests on; and what was done otherwise than asked."""
    found = said.verdict
    parts = "that more than chance parts them" if found.kind == "parts" else "of it"
    sure = [f"{found.confidence:.0%} {parts}"] if found.confidence is not None else []
    sure += [f"{found.cause:.0%} of the suspect"] if found.cause is not None else []
    why = clean("; ".join(found.rests_on))
    yield f"Sure to {', '.join(sure)}. It rests on: {why}." if sure else f"{why[:1].upper()}{why[1:]}."
    for note in said.notes:
        yield f"Note: {clean(note)}."


def pairs(said: Comparison) -> Iterator[str]:
    """The sentences on each pair; none where there are too many to read, or the verdict is all there is to say."""
    names, lead = labels(said), verdict(said)
    for index in range(1, len(names) if len(names) <= COLUMNS else 0):
        told = [line for line in _pair(said, names, index) if line != lead]
        if told:
            yield " ".join(told)


def _at(item: Apart) -> str:
    """Where a channel parts: its step, and the place on the axis that runs are aligned by."""
    step = f"step {item.step or 0:,}"
    if item.axis == "step" or item.position is None:
        return step
    return f"{item.axis} {wording.number(round(item.position, 2))} ({step})"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(clean(name, 80) for name in names[:NAMED]) + more


def parted_in(said: Comparison, channel: str) -> list[Apart]:
    """The partings that a figure of this channel shows: its own, and the first of all."""
    first = first_of(said.partings)
    own = {channel, channel.replace("loss/", "contribution/", 1)}
    return [item for item in said.partings if item.step is not None and (item.channel in own or item is first)]


def parts(item: Apart, names: Sequence[str]) -> str:
    """A parting in words; ``names`` are the runs' in the order of the comparison."""
    return f"{names[item.run]} parts from {names[0]} in {item.channel} at {_at(item)}"


def _suspected(said: Comparison, run: int) -> str:
    suspects = [item for item in said.suspects if item.run == run]
    if suspects:
        return f"suspect: {_listed([item.path for item in suspects])} ({clean(suspects[0].why)})"
    lacking = _unrecorded(said, run)
    if lacking:
        return f"the settings of {lacking} were not recorded"
    if any({0, run} <= set(group) for group in said.seeds):
        return "no setting is suspect: nothing but seed, names and folders was set differently"
    differing = sum(item.values[run] != item.values[0] for item in said.config)
    return (
        f"none of the {differing} settings that differ speaks of it"
        if differing
        else "no setting differs: see the code"
    )


def _unrecorded(said: Comparison, run: int) -> str:
    """Which of the first run and this one did not record its settings: their names, or nothing."""
    names = labels(said)
    return " and ".join(names[index] for index in (0, run) if not said.runs[index]["settings"])


def _none_parts(said: Comparison, base: str) -> str:
    losses = [item.pair for item in said.partings if item.channel == "loss"]
    if not losses:
        return f"No run has a step with a loss in common with {base}."
    if not any(pair.finite for pair in losses):
        return f"No run has a step with a finite loss in common with {base}."
    if not any(pair.differs for pair in losses):
        return f"The loss is the same number by number as in {base} wherever they have steps in common."
    few = sum(pair.too_few for pair in losses)
    tail = f"; {few} of them have too few steps in common with it to judge" if few else ""
    return f"No run parts from {base} beyond noise{tail}."


def summary(said: Comparison) -> Iterator[str]:
    """What parted, when, and which setting is suspect: a few sentences for each run after the first."""
    names = labels(said)
    for index in range(1, len(names)):
        yield from _pair(said, names, index)


def _pair(said: Comparison, names: Sequence[str], index: int) -> Iterator[str]:
    """The sentences on a run and the first one."""
    ends = next((item.final for item in said.values if item.channel == "loss"), ())
    partings = [item for item in said.partings if item.run == index]
    loss = next((item for item in partings if item.channel == "loss"), None)
    last = [wording.number(ends[run]) if ends and ends[run] is not None else "nothing" for run in (0, index)]
    yield _loss_sentence(names[0], names[index], loss, last)
    parted = [item for item in partings if item.step is not None and item.channel != "loss"]
    first = first_of(parted)
    if first:
        beside = [item.channel for item in parted if item.position == first.position]
        yield f"The first to part: {', '.join(map(clean, beside))}, at {_at(first)}."
    suspects = [item for item in said.suspects if item.run == index]
    if suspects:
        verb = "suspect is" if len(suspects) == 1 else "suspects are"
        more = f" and {len(suspects) - SUSPECTS} more" if len(suspects) > SUSPECTS else ""
        listed = ", ".join(clean(item.path, 80) for item in suspects[:SUSPECTS])
        yield f"The {verb} {listed}{more}: {clean(suspects[0].why)}."
    else:
        yield from _same_settings(said, index)
    yield from _only(said, names, index)


def _only(said: Comparison, names: Sequence[str], index: int) -> Iterator[str]:
    """What one of a pair has and the other has not."""
    for has, lacks in ((index, 0), (0, index)):
        alone = [
            f"{item.rule} since step {item.first_step[has]:,}"
            for item in said.findings
            if item.first_step[has] is not None and item.first_step[lacks] is None and lacks not in item.unjudged
        ]
        if alone:
            yield f"{names[has]} has, and {names[lacks]} has not: {_listed(alone)}."


def _same_settings(said: Comparison, index: int) -> Iterator[str]:
    """What can be said of two runs that differ in no setting, or in nothing but the seed."""
    lacking = _unrecorded(said, index)
    if lacking:
        yield f"The settings of {lacking} were not recorded, so none can be suspected."
    elif any({0, index} <= set(group) for group in said.seeds):
        differing = [item.path for item in said.config if item.values[index] != item.values[0]]
        if any(map(is_seed, differing)):
            yield "Nothing but the seed was set differently."
        else:
            yield f"Nothing was set differently{', names and folders aside' if differing else ''}."


def _loss_sentence(first: str, other: str, loss: Apart | None, last: Sequence[str]) -> str:
    both = f"{first} and {other}"
    if loss is None:
        return f"{both} have no step with a loss in common."
    pair = loss.pair
    same = f"the same number by number up to step {pair.same_until:,}" if pair.same_until is not None else ""
    if pair.parting is None:
        if not pair.finite:
            return f"{both}: the loss is finite in none of the {pair.rows:,} common steps."
        if pair.same_until is not None and not pair.differs:
            return f"{both}: the loss is the same number by number in all {pair.rows:,} common steps."
        tail = f", and {same}" if same else ""
        if pair.too_few:
            few = f"too few common steps to judge whether the loss parts ({pair.rows:,} of at least {ENOUGH})"
            return f"{both}: {few}; it ends at {last[0]} and at {last[1]}{tail}."
        return f"{both}: no parting of the loss beyond noise{tail} ({pair.rows:,} common steps)."
    how = "is not finite in one of them"
    if pair.parting.difference == pair.parting.difference:  # not NaN
        side = "higher" if pair.parting.difference > 0 else "lower"
        gap, noise = wording.number(abs(pair.parting.difference)), wording.number(pair.parting.noise)
        how = f"is {side} by {gap} in {other}, against a noise of {noise}"
    return f"{both}: the loss parts at {_at(loss)} and {how}{f'; {same}' if same else ''}."


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
        return _at(item)
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

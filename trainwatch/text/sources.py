"""What configs, scripts and notebooks say against each other: a sentence, and each setting with its places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from trainwatch.compare.written import Line, Sources
from trainwatch.text import markdown
from trainwatch.text.comparison import setting
from trainwatch.text.names import numbered
from trainwatch.text.section import Section, markdown_sections, print_section
from trainwatch.text.terminal import write
from trainwatch.text.wording import clean, plural

NAMED = 12  # settings that the sentence names
SPELLED = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def show(out: Console, said: Sources) -> None:
    """Print the sentence and the tables."""
    write(out, Text(verdict(said), style="bold"))
    for sentence in (certainty(said), *_beside(said)):
        write(out, Text(sentence, style="dim"))
    for section in sections(said, recorded=False):
        out.print()
        write(out, Text(section.title, style="bold"))
        print_section(out, section)


def as_markdown(said: Sources) -> str:
    """The same as Markdown."""
    lines = ["## Comparison", "", f"**{markdown.escape(verdict(said))}**", ""]
    for sentence in (certainty(said), *_beside(said)):
        lines += [markdown.escape(sentence), ""]
    return "\n".join([*lines, *markdown_sections(sections(said, recorded=False))])


def labels(said: Sources) -> list[str]:
    """Each file by its name; by its path where two have the same name."""
    names = [clean(Path(file).name, 40) for file in said.files]
    return names if len(set(names)) == len(names) else numbered(said.files)


def verdict(said: Sources) -> str:
    """How many loss weights and other settings are apart, and which."""
    names = labels(said)
    who, all_ = (" and ".join(names), "both") if len(names) == 2 else (f"{names[0]} and {len(names) - 1} others", "all")
    weights, others = said.weights, [line for line in said.apart if line.kind != "loss weight"]
    told = [f"{_counted(weights, 'loss weight')} apart"] if weights else []
    told += [f"{_counted(others, 'other setting' if weights else 'setting')} apart"] if others else []
    if not told and not said.agree:
        return f"{who}: no setting stands in {all_} under one name, so nothing can be said."
    if not told:
        return f"{who}: none of the {plural(said.agree, 'setting')} that {all_} have is apart."
    return f"{who}: {', and '.join(told)}; {plural(said.agree, 'setting')} agree{'s' * (said.agree == 1)}."


def certainty(said: Sources) -> str:
    """What the sentence rests on."""
    names = [name for file, name in zip(said.files, labels(said), strict=True) if file in said.recorded]
    runs = f" Of {' and '.join(names)} it is what was recorded at the beginning." if names else ""
    return f"Read as written, and never run: what a command line or an environment sets otherwise is not in it.{runs}"


def _beside(said: Sources) -> Iterator[str]:
    """How much no file sets: a framework records all its settings."""
    count = sum(_only_recorded(line, said) for line in said.only)
    if count:
        stand = "setting stands" if count == 1 else "settings stand"
        yield f"{count:,} other {stand} in what was recorded alone; --format json lists them."


def _only_recorded(line: Line, said: Sources) -> bool:
    return all(not place or file in said.recorded for place, file in zip(line.places, said.files, strict=True))


def _counted(lines: Sequence[Line], noun: str) -> str:
    count = len(lines)
    said = SPELLED[count] if count < len(SPELLED) else f"{count:,}"
    more = f" and {count - NAMED} more" if count > NAMED else ""
    listed = ", ".join(clean(line.name, 60) for line in lines[:NAMED]) + more
    return f"{said} {noun}{'' if count == 1 else 's'} ({listed})"


def sections(said: Sources, *, recorded: bool = True) -> Iterator[Section]:
    """A table for what is apart, and one for what only some have; each value with the name and place it has there.

    Without ``recorded`` what no file sets is left out.
    """
    names = labels(said)
    only = [line for line in said.only if recorded or not _only_recorded(line, said)]
    for title, lines in (("Settings apart", said.apart), ("Only in some", only)):
        rows = [(f"{clean(line.name, 60)} ({line.kind})", *_cells(line, names, said.files)) for line in lines]
        if rows:
            yield Section(title, ("setting", *names), rows)


def _cells(line: Line, names: Sequence[str], files: Sequence[str]) -> Iterator[str]:
    for value, own, place, file, name in zip(line.values, line.names, line.places, files, names, strict=True):
        where = f"{name}{place.removeprefix(file)}" if place.startswith(file) else place
        yield f"{setting(value)}  ({clean(own, 60)}, {clean(where)})" if place else "-"

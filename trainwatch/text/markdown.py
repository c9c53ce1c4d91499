"""The Markdown face: a diagnosis as a pull request or an issue shows it. What comes from a log stays text there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from trainwatch.diagnosis import Diagnosis
from trainwatch.schema import Finding
from trainwatch.text import wording
from trainwatch.text.wording import SYMBOLS

SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~@$-])")


def escape(text: object) -> str:
    """Text from a log, on one line, with nothing in it that Markdown or HTML would obey."""
    said = wording.clean(text).replace("&", "&amp;")
    return SPECIAL.sub(_harmless, said).replace("://", ":\u200b//")


def _harmless(found: re.Match[str]) -> str:
    sign = found.group(0)
    if sign in "()-":
        return sign  # they begin a link or a list only beside other signs, which are escaped
    return {"<": "&lt;", ">": "&gt;", "@": "@\u200b"}.get(sign, f"\\{sign}")


def code(text: object) -> str:
    """Text from a log as inline code."""
    said = wording.clean(text).replace("|", "\\|")
    ticks = "`" * (max((len(run) for run in re.findall(r"`+", said)), default=0) + 1)
    pad = " " if "`" in said else ""
    return f"{ticks}{pad}{said or ' '}{pad}{ticks}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A pipe table; cells are escaped by the caller."""
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def diagnosis(said: Diagnosis, planned: int | None = None) -> str:
    """A run's verdict, root cause, findings and what could not be judged, as Markdown."""
    lines = [f"## {verdict(said, planned)}", "", f"**{escape(wording.root_cause(said))}**", ""]
    for finding in said.findings:
        lines += [*section(finding, follows=finding.key in said.explained), ""]
    lines += footnotes(said)
    return "\n".join(lines).rstrip("\n") + "\n"


def verdict(said: Diagnosis, planned: int | None = None) -> str:
    """The title of a run: how bad, its name, its state and how far it came."""
    worst = f"{wording.symbol(said)} {wording.worst(said)}"
    return f"{worst}: {escape(said.run)} ({wording.verdict(said, planned)})"


def section(finding: Finding, *, follows: bool = False, level: int = 3) -> list[str]:
    """A finding under its own heading."""
    badge = f"{SYMBOLS[finding.severity]} {finding.severity}"
    subject = f" on {code(finding.subject)}" if finding.subject != "run" else ""
    when = f"{wording.steps(finding.first_step, finding.last_step)}, {finding.state}"
    tail = "; follows from the root cause" if follows else ""
    lines = [f"{'#' * level} {badge}: {escape(finding.rule)}{subject}", "", f"*{when}{tail}*", ""]
    lines += [escape(finding.message), ""]
    if finding.evidence:
        lines += [f"- {escape(name)}: {escape(value)}" for name, value in wording.evidence(finding)] + [""]
    if finding.advice:
        lines += [f"**What to do:** {escape(finding.advice)}", ""]
    if finding.patch:
        lines += ["```yaml", *fenced(wording.patch_yaml(finding.patch)), "```", ""]
    return lines[:-1]


def fenced(block: str) -> list[str]:
    """Lines for a fenced block: none of them can close it."""
    return [line.replace("```", "'''") for line in block.splitlines()]


def footnotes(said: Diagnosis) -> list[str]:
    """What could not be judged, and what was odd about the file."""
    lines: list[str] = []
    folded = wording.withheld(said)
    if folded:
        waiting = [f"- {escape(channel)}: {escape(', '.join(rules))}" for channel, rules in wording.wakes(said)]
        lines += ["<details>", f"<summary>{folded}</summary>", "", *waiting, "", "</details>", ""]
    return lines + [f"> Note: {escape(note)}." for note in said.notes]

"""The faces of findings that point at places in files: a line each in the terminal, a table in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from trainwatch.diagnosis import Diagnosis
from trainwatch.schema import SEVERITIES, Finding
from trainwatch.text import markdown, wording
from trainwatch.text.terminal import badge, write
from trainwatch.text.wording import SYMBOLS, clean

PLACE = ("file", "line", "column")


def show(out: Console, diagnoses: Sequence[Diagnosis]) -> None:
    """Print each finding under its place, which terminals and editors open, and a line that counts them."""
    for said in diagnoses:
        if said.format == "command" and said.findings:
            write(out, Text(f"command: {clean(said.source)}", style="dim"))
        for finding in said.findings:
            write(out, Text(place(finding), style="bold") + Text("  ") + badge(finding.severity) + _rule(finding))
            write(out, Text(clean(finding.message)), left=2)
            if finding.advice:
                write(out, Text(clean(finding.advice), style="green"), left=2)
        for note in said.notes:
            write(out, Text(f"{clean(said.run)}: {clean(note)}.", style="dim"))
    out.print(_count(diagnoses))


def _rule(finding: Finding) -> Text:
    return Text(f"  {finding.rule}", style="dim")


def _count(diagnoses: Sequence[Diagnosis]) -> Text:
    counted = Counter(finding.severity for said in diagnoses for finding in said.findings)
    looked = Text(f"{wording.plural(len(diagnoses), 'file')}: ", style="bold")
    if not counted:
        return looked + badge(None, "nothing found")
    told = [badge(grade, f"{counted[grade]} {grade}") for grade in reversed(SEVERITIES) if counted[grade]]
    return looked + Text(", ").join(told)


def place(finding: Finding) -> str:
    """``configs/x.yaml:12:7``."""
    return ":".join(clean(finding.evidence[part]) for part in PLACE if part in finding.evidence)


def page(said: Diagnosis) -> str:
    """A file's findings as Markdown: a table by line."""
    worst = f"{wording.symbol(said)} {wording.worst(said)}"
    lines = [f"## {worst}: {markdown.escape(said.source)}", ""]
    rows = [
        (
            markdown.code(place(finding)),
            f"{SYMBOLS[finding.severity]} {finding.severity}",
            markdown.escape(finding.rule),
            markdown.escape(finding.message),
            markdown.escape(finding.advice),
        )
        for finding in said.findings
    ]
    lines += [*markdown.table(("place", "how bad", "check", "what", "write"), rows), ""] if rows else []
    lines += [f"> Note: {markdown.escape(note)}." for note in said.notes]
    return "\n".join(lines).rstrip("\n") + "\n"

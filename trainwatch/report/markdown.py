"""The post-mortem as Markdown, for a pull request or an issue."""

from __future__ import annotations

from trainwatch.report.content import Content, Moment
from trainwatch.text import markdown, wording
from trainwatch.text.markdown import code, escape, fenced
from trainwatch.text.wording import SYMBOLS


def document(content: Content) -> str:
    """The whole post-mortem."""
    said = content.diagnosis
    lines = [f"# Post-mortem of {escape(said.run)}", ""]
    lines += [f"**{markdown.verdict(said, content.planned)}**", "", f"**{escape(wording.root_cause(said))}**", ""]
    if content.good_checkpoint:
        lines += [escape(content.good_checkpoint), ""]
    lines += [f"Reproduce with {code(content.command)}. Written {content.written}.", ""]
    if said.findings:
        lines += ["## Findings, from cause to effect", ""]
        for finding in said.findings:
            lines += [*markdown.section(finding, follows=finding.key in said.explained), ""]
    lines += _tables(content)
    if content.traceback:
        lines += ["## Traceback", "", "```text", *fenced(content.traceback), "```", ""]
    lines += ["## What could not be checked", "", *_unchecked(content), ""]
    if content.tail:
        lines += ["## Last lines of the file", "", "```text", *fenced("\n".join(content.tail)), "```", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _tables(content: Content) -> list[str]:
    lines: list[str] = []
    if content.moments:
        rows = [(f"{moment.step:,}", moment.when, _kind(moment), escape(moment.text)) for moment in content.moments]
        lines += ["## Timeline", "", *markdown.table(("step", "time", "what", ""), rows), ""]
    if content.values:
        rows3 = [(escape(name), last, best) for name, last, best in value_rows(content)]
        lines += ["## Values", "", *markdown.table(("channel", "last", "best (at step)"), rows3), ""]
    for title, pairs in (("Configuration", content.config), ("Environment", content.environment)):
        if pairs:
            rows2 = [(code(name), escape(value)) for name, value in pairs]
            lines += [f"## {title}", "", *markdown.table(("name", "value"), rows2), ""]
    return lines


def _kind(moment: Moment) -> str:
    return f"{SYMBOLS[moment.severity]} {moment.severity}" if moment.severity else escape(moment.kind)


def value_rows(content: Content) -> list[tuple[str, str, str]]:
    """(channel, last value, best value and its step)."""
    rows = []
    for item in content.values:
        last, best, step = item.final[0], item.best[0], item.best_step[0]
        shown = f"{wording.number(best)} ({step:,})" if best is not None and step is not None else "-"
        rows.append((wording.clean(item.channel, 80), wording.number(last) if last is not None else "-", shown))
    return rows


def _unchecked(content: Content) -> list[str]:
    lines = markdown.footnotes(content.diagnosis)
    return lines or ["Every rule could judge this run, and every line of its file could be read."]

"""The post-mortem as Markdown, for a pull request or an issue: the page's sections in short."""

from __future__ import annotations

from collections.abc import Sequence

from trainwatch.report import starts
from trainwatch.report.content import SUMMARY, Content, summary
from trainwatch.report.moments import Moment
from trainwatch.report.redaction import Redactor
from trainwatch.report.section import Section
from trainwatch.text import markdown, wording
from trainwatch.text.markdown import code, escape, fenced
from trainwatch.text.wording import SYMBOLS

ROWS = 15  # of a table: what a pull request has room for
CODED = ("setting", "the command", "channel", "component", "counter")  # columns whose cells are names


def document(contents: Sequence[Content], redactor: Redactor | None = None) -> str:
    """The whole post-mortem of one run, or of several with a table over all of them."""
    if len(contents) == 1:
        lines = _run(contents[0], level=1)
    else:
        rows = [tuple(escape(cell) for cell in row) for row in summary(contents)]
        lines = [f"# Post-mortem of {wording.plural(len(contents), 'run')}", ""]
        lines += [*markdown.table(SUMMARY, rows), ""]
        for section in together(contents, redactor):
            lines += _section(section, 2)
        for content in contents:
            lines += _run(content, level=2)
    return "\n".join(lines).rstrip("\n") + "\n"


def together(contents: Sequence[Content], redactor: Redactor | None) -> list[Section]:
    """What stopped the runs that never started, counted over all of them."""
    never = [content.run for content in contents if content.starts]
    found = list(starts.errors(never)) if len(never) > 1 else []
    return [redactor.tree(section) for section in found] if redactor else found


def _run(content: Content, level: int) -> list[str]:
    said, mark = content.diagnosis, "#" * (level + 1)
    lines = [f"{'#' * level} Post-mortem of {escape(said.run)}", ""]
    lines += [f"**{markdown.verdict(said, content.planned)}**", "", f"**{escape(wording.root_cause(said))}**", ""]
    if content.good_checkpoint:
        lines += [escape(content.good_checkpoint), ""]
    lines += [f"Reproduce with {code(content.command)}. Written {content.written}.", ""]
    for section in content.starts:
        lines += _section(section, level + 1)
    lines += _timeline(content.moments, mark)
    if said.findings:
        lines += [f"{mark} Findings, from cause to effect", ""]
        for finding in said.findings:
            follows = finding.key in said.explained
            lines += [*markdown.section(finding, follows=follows, level=level + 2), ""]
    if content.traceback:
        lines += [f"{mark} Traceback", "", "```text", *fenced(content.traceback), "```", ""]
    for section in content.sections:
        lines += _section(section, level + 1)
    lines += [f"{mark} What could not be checked", "", *_unchecked(content), ""]
    lines += _section(content.reproduce, level + 1)
    if content.tail:
        lines += [f"{mark} Last lines of the file", "", "```text", *fenced("\n".join(content.tail)), "```", ""]
    return lines


def _timeline(moments: Sequence[Moment], mark: str) -> list[str]:
    if not moments:
        return []
    shown = _those_that_matter(moments)
    rows = [(f"{moment.step:,}", moment.when, _kind(moment), escape(_told(moment))) for moment in shown]
    more = [f"And {len(moments) - len(shown):,} more.", ""] if len(shown) < len(moments) else []
    return [f"{mark} Timeline", "", *markdown.table(("step", "time", "what", ""), rows), "", *more]


def _those_that_matter(moments: Sequence[Moment]) -> list[Moment]:
    """Findings first, then the rest, as many as there is room for; in their order."""
    by_weight = sorted(range(len(moments)), key=lambda at: moments[at].kind not in ("finding", "end", "checkpoint"))
    kept = sorted(by_weight[: 2 * ROWS])
    return [moments[at] for at in kept]


def _told(moment: Moment) -> str:
    return f"{moment.text} ({moment.role})" if moment.role else moment.text


def _kind(moment: Moment) -> str:
    return f"{SYMBOLS[moment.severity]} {moment.severity}" if moment.severity else escape(moment.kind)


def _section(section: Section, level: int) -> list[str]:
    if not (section.rows or section.about):
        return []
    lines = [f"{'#' * level} {section.title}", ""]
    lines += [escape(section.about), ""] if section.about else []
    if section.rows:
        rows = [
            tuple(code(cell) if name in CODED else escape(cell) for name, cell in zip(section.head, row, strict=True))
            for row in section.rows[:ROWS]
        ]
        left = len(section.rows) - len(rows) + section.left_out
        lines += [*markdown.table(section.head, rows), ""]
        lines += [f"And {left:,} more.", ""] if left else []
    return lines


def _unchecked(content: Content) -> list[str]:
    lines = markdown.footnotes(content.diagnosis)
    return lines or ["Every rule could judge this run, and every line of its file could be read."]

"""What commands print, and what they end with."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from trainwatch.cli.options import FailOn
from trainwatch.errors import UserError

SUFFIXES = {".html": "html", ".htm": "html", ".md": "markdown", ".json": "json"}
"""What a document is by the end of its name."""

if TYPE_CHECKING:
    from trainwatch.judge import Judged
    from trainwatch.schema import Finding


def complain(sentences: list[str]) -> bool:
    from trainwatch.text.wording import clean

    for said in sentences:
        print(f"trainwatch: {clean(said)}", file=sys.stderr)
    return bool(sentences)


def print_json(value: Any) -> None:
    print(json_text(value), end="")


def json_text(value: Any) -> str:
    """A value as JSON, in ASCII, so that a name in it moves no terminal's cursor."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def document_kind(target: Path, asked: str | None, kinds: Sequence[str], noun: str) -> str:
    """Which of ``kinds`` a file is to hold. Raises UserError where its name and ``--format`` disagree."""
    suffix, ends = target.suffix.lower(), [end for end, kind in SUFFIXES.items() if kind in kinds and end != ".htm"]
    kind = SUFFIXES.get(suffix, "")
    if kind not in kinds:
        listed = f"{', '.join(ends[:-1])} or {ends[-1]}"
        raise UserError(f"{target}: {noun} ends in {listed}, not {suffix or 'nothing'!r}; rename it.")
    if asked not in (None, kind):
        wanted = next((end for end in ends if SUFFIXES[end] == asked), None)
        other = f"name the file {target.with_suffix(wanted).name}" if wanted else "leave -o out"
        raise UserError(f"{target}: ends in {suffix}, and --format says {asked}; {other}, or leave --format out.")
    return kind


def write(target: Path, text: str, out: TextIO | None = None) -> None:
    """Write a document and say so: on the standard output, unless something else goes there."""
    from trainwatch.report import put

    try:
        put(target, text)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); choose another file with -o.") from None
    print(f"Wrote {target}", file=out)


def fails(judged: list[Judged], fail_on: FailOn) -> bool:
    return graver([finding for item in judged for finding in item.diagnosis.findings], fail_on)


def graver(findings: list[Finding], fail_on: FailOn) -> bool:
    from trainwatch.schema import SEVERITIES

    limit = len(SEVERITIES) if fail_on is FailOn.never else SEVERITIES.index(fail_on.value)
    return any(finding.rank >= limit for finding in findings)


def summaries() -> dict[str, str]:
    """The first line of every rule's and check's page."""
    from trainwatch import engine
    from trainwatch.lint import check
    from trainwatch.rule import page

    return {name: page(found)[""] for name, found in {**engine.catalogue(), **check.catalogue()}.items()}

"""Findings as documents: the post-mortem as one self-contained HTML file or as Markdown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainwatch.diagnosis import Diagnosis
    from trainwatch.run import Run


def rendered(run: Run, diagnosis: Diagnosis, kind: str) -> str:
    """The post-mortem of a run as text: ``md`` for Markdown, anything else for HTML."""
    from trainwatch.report.content import gather

    if kind == "md":
        from trainwatch.report.markdown import document
    else:
        from trainwatch.report.page import document
    return document(gather(run, diagnosis))


def write(run: Run, diagnosis: Diagnosis, path: Path) -> None:
    """Write the post-mortem of a run: Markdown if ``path`` ends in ``.md``, else HTML. Raises OSError."""
    text = rendered(run, diagnosis, path.suffix.removeprefix("."))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)  # whoever has the page open never reads half of it

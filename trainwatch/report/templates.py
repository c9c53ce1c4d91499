"""Pages out of templates: what all pages have in common, and that what they tell is text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2

from trainwatch.text.wording import clean


def page(template: str, scripts: Sequence[str] = (), **told: Any) -> str:
    """A whole page; of scripts it runs only these. Templates can say ``clean(text)``."""
    return _environment().get_template(template).render(scripts=scripts, policy=_policy(scripts), clean=clean, **told)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("trainwatch", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _policy(scripts: Sequence[str]) -> str:
    """Nothing is loaded, and only what was written here runs."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"

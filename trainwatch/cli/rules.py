"""`trainwatch rules`: the catalogue, and a rule's page."""

from __future__ import annotations

from typing import Annotated

import typer

from trainwatch.engine import nearest
from trainwatch.errors import UserError


def rules(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The rule to read about.")] = None,
) -> None:
    """List every rule by family and every check of lint, or show one's page and thresholds.

    \b
    Example:     trainwatch rules curriculum-mismatch
    Exit codes:  0 shown, 2 there is no such rule
    """
    from trainwatch.engine import catalogue
    from trainwatch.lint import check
    from trainwatch.rule import page
    from trainwatch.text import tables, terminal

    known, checks = catalogue(), check.catalogue()
    if name is None:
        tables.catalogue(terminal.console(), known, {name: page(found)[""] for name, found in checks.items()})
    elif name in known:
        tables.rule_page(terminal.console(), known[name])
    elif name in checks:
        tables.page_of(terminal.console(), name, "lint", page(checks[name]))
    else:
        near = nearest(name, [*known, *checks])
        raise UserError(f"there is no rule {name!r}{near or '; `trainwatch rules` lists them.'}")

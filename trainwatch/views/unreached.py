"""Modules that the recorder found without any gradient, step after step."""

from __future__ import annotations

from trainwatch.header import number, text
from trainwatch.run import Run

SHARED = 3  # letters with which two names must both begin: "to" and "token" do not tell of one another


def unreached(run: Run) -> list[str]:
    """Their names, the largest first, as they were told last."""
    return _told(run)[0]


def parameters(run: Run) -> float:
    """How many parameters those are."""
    return _told(run)[1]


def _told(run: Run) -> tuple[list[str], float]:
    for event in reversed(run.events):
        if event.get("event") == "monitor" and isinstance(names := event.get("unreached"), list):
            return [name for one in names if (name := text(one))], number(event.get("unreached_parameters")) or 0.0
    return [], 0.0


def alike(module: str, component: str) -> bool:
    """Whether a module is called as a loss component is: one begins as the other does, anywhere on its path."""
    of = component.lower()
    for part in module.lower().split("."):
        if part == of or (min(len(part), len(of)) >= SHARED and (part.startswith(of) or of.startswith(part))):
            return True
    return False

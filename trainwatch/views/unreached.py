"""Modules that the recorder found without any gradient, step after step."""

from __future__ import annotations

from collections.abc import Sequence

from trainwatch.header import number, text
from trainwatch.run import Run

SHARED, LONGER = 4, 3  # letters with which two names must both begin, and by which one may be longer: grip, gripper


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


def head_of(component: str, idle: Sequence[str], run: Run) -> str:
    """The idle module that is called as a loss component is; nothing where another one of that name is not idle."""
    whole = [module.name for module in run.header.modules if not _holds(module.name, idle)]
    found = next((module for module in idle if _alike(module, component)), "")
    return found if not any(_alike(name, component) and not _within(name, idle) for name in whole) else ""


def _holds(name: str, idle: Sequence[str]) -> bool:
    return any(module.startswith(f"{name}.") for module in idle)


def _within(name: str, idle: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in idle)


def _alike(module: str, component: str) -> bool:
    """Whether a part of a module's path is a component's name, or nearly so (``grip`` and ``gripper``)."""
    of = component.lower()
    for part in module.lower().split("."):
        short, long = sorted((part, of), key=len)
        near = len(short) >= SHARED and long.startswith(short) and len(long) <= len(short) + LONGER
        if part == of or near:
            return True
    return False

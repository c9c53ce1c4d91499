"""The prescription: what to write into the run's config, each setting with the finding that it answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainwatch.cures import SYMPTOMS, cure
from trainwatch.header import flat, number
from trainwatch.run import Event, Run
from trainwatch.schema import Finding

NEW: Final = "(not set)"
"""What a setting was that the config does not have."""
UNSAID: Final = "(not recorded)"
"""What a setting was where nobody noted it."""


@dataclass(frozen=True)
class Change:
    """One setting: what it should be, what it was, the finding it answers, and how the value was found."""

    path: str
    value: Any
    finding: Finding
    was: Any = UNSAID
    why: str = ""


@dataclass(frozen=True)
class Prescription:
    """The changes that answer what is wrong, and the findings that no setting is known to cure."""

    changes: tuple[Change, ...] = ()
    uncured: tuple[Finding, ...] = ()

    @property
    def patch(self) -> dict[str, Any]:
        """Dotted config path -> value."""
        return {change.path: change.value for change in self.changes}

    @property
    def first_bad(self) -> int | None:
        """The first step that went wrong, of all that the changes answer."""
        return min((change.finding.first_step for change in self.changes), default=None)


def prescribe(root: Finding | None, others: Sequence[Finding], run: Run) -> Prescription:
    """The prescription for the root cause and for ``others`` that nothing explains; infos ask for no cure.

    Where two findings want one setting changed, the first has its way. What treats a symptom is for the root cause
    alone: a rate is not lowered for a divergence beside a mistake that has a cure of its own.
    """
    changes: dict[str, Change] = {}
    uncured: list[Finding] = []
    before = dict(flat(run.header.config))
    for finding in [root, *others] if root else []:
        found = () if finding is not root and finding.rule in SYMPTOMS else cure(finding, run)
        uncured += [] if found else [finding]
        for item in found:
            changes.setdefault(item.path, Change(item.path, item.value, finding, before.get(item.path, NEW), item.why))
    return Prescription(tuple(changes.values()), tuple(uncured))


def of_findings(findings: Iterable[Finding]) -> Prescription:
    """What the findings themselves say to change: lint's, which know the place and the value."""
    grave = [finding for finding in findings if finding.severity != "info"]
    return Prescription(tuple(Change(path, value, item) for item in grave for path, value in item.patch.items()))


def good_checkpoints(run: Run, step: int) -> list[Event]:
    """The checkpoints that were written before a step, in the order of the file."""
    written = [event for event in run.events if event.get("kind") == "checkpoint"]
    return [event for event in written if (number(event.get("step")) or 0) < step]

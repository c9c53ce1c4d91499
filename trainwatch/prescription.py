"""The prescription: what to write into the run's config, each setting with the finding that it answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainwatch.cures import PACE, SYMPTOMS, cure
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
    """The changes that answer what is wrong, and the findings that no setting is known to cure.

    ``first_bad`` is the first step that went wrong, of what the changes answer.
    """

    changes: tuple[Change, ...] = ()
    uncured: tuple[Finding, ...] = ()
    first_bad: int | None = None

    @property
    def patch(self) -> dict[str, Any]:
        """Dotted config path -> value."""
        return {change.path: change.value for change in self.changes}


def prescribe(root: Finding | None, others: Sequence[Finding], run: Run, told: Sequence[Finding]) -> Prescription:
    """The prescription for the root cause and for ``others`` that nothing explains, of all findings ``told``.

    Where two findings want one setting changed, the first has its way. What treats a symptom is left out beside a root
    cause that has a cure: a rate is not lowered for a divergence that may be gone with the mistake. Nor is it changed
    beside a root cause that has none: what is left to learn would be learned with a rate that suits the mistake.
    """
    changes: dict[str, Change] = {}
    uncured: list[Finding] = []
    before = dict(flat(run.header.config))
    for finding in [root, *others] if root else []:
        beside = finding is not root and finding.rule in (SYMPTOMS if changes else PACE)
        found = () if beside else cure(finding, run)
        uncured += [] if found else [finding]
        for item in found:
            changes.setdefault(item.path, Change(item.path, item.value, finding, before.get(item.path, NEW), item.why))
    answered = {item.finding.key: item.finding for item in changes.values()}
    return Prescription(tuple(changes.values()), tuple(uncured), _first_bad(list(answered.values()), told))


def _first_bad(answered: Sequence[Finding], told: Sequence[Finding]) -> int | None:
    """What is sick may have been seen earlier than its rule was sure of it: by an info on the same subject."""
    subjects = {finding.subject for finding in answered} - {"run"}
    seen = [finding.first_step for finding in told if finding.subject in subjects]
    return min([*seen, *(finding.first_step for finding in answered)], default=None)


def of_findings(findings: Iterable[Finding]) -> Prescription:
    """What the findings themselves say to change: lint's, which know the place and the value."""
    grave = [finding for finding in findings if finding.severity != "info"]
    return Prescription(tuple(Change(path, value, item) for item in grave for path, value in item.patch.items()))


def good_checkpoints(run: Run, step: int) -> list[Event]:
    """The checkpoints that were written before a step, in the order of the file."""
    written = [event for event in run.events if event.get("kind") == "checkpoint"]
    return [event for event in written if (number(event.get("step")) or 0) < step]

"""From findings to a diagnosis: what came first and explains the rest, what could not be judged, what to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainwatch.engine import Engine, Settings, catalogue
from trainwatch.prescription import Prescription, prescribe
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity, Status, worst


@dataclass(frozen=True)
class Diagnosis:
    """What trainwatch says of a run as it stands. Plain data, for every face.

    ``findings`` begins with the root cause and goes on with what it explains, then the rest; each by step, with the
    infos last. ``explained`` are the keys of the findings that the root cause accounts for. ``failed`` are the rules
    that broke on the run, and how: then the judgement is not whole. ``prescription`` is what to write into
    the config.
    """

    source: str
    format: str
    run: str
    status: Status
    first_step: int | None
    last_step: int | None
    records: int
    root_cause: Finding | None
    findings: tuple[Finding, ...]
    explained: frozenset[tuple[str, str, int]]
    withheld: dict[str, list[str]]
    failed: dict[str, str]
    notes: tuple[str, ...]
    prescription: Prescription

    @property
    def worst(self) -> Severity | None:
        """The highest severity found."""
        return worst(list(self.findings))

    def to_dict(self) -> dict[str, Any]:
        """The run object of ``--format json``."""
        return {
            "source": self.source,
            "format": self.format,
            "run": self.run,
            "status": self.status,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "records": self.records,
            "worst": self.worst,
            "root_cause": self.root_cause.to_dict() if self.root_cause else None,
            "findings": [finding.to_dict() for finding in self.findings],
            "withheld": [{"rule": rule, "missing": lacking} for rule, lacking in self.withheld.items()],
            "notes": list(self.notes),
        }


def diagnose(run: Run, settings: Settings | None = None) -> Diagnosis:
    """Judge a run by every rule. Raises SettingsError for a threshold that does not exist."""
    engine = Engine(settings)
    engine.feed(run)
    return conclude(run, engine)


def conclude(run: Run, engine: Engine) -> Diagnosis:
    """The diagnosis of a run that ``engine`` was fed with; cheap, so that a live face can ask after every poll."""
    findings = sorted(engine.findings(run), key=lambda finding: finding.severity == "info")
    root, explained = root_cause(findings)
    prescription = prescribe(root, independent(findings, root, explained), run, findings)
    findings = [_with_cure(finding, prescription) for finding in findings]
    first = [finding for finding in findings if root is not None and finding.key == root.key]
    effects = [finding for finding in findings if finding.key in explained]
    rest = [finding for finding in findings if finding not in first and finding not in effects]
    failed = [f"rule {name} broke on this run and was left out ({why})" for name, why in engine.failed.items()]
    return Diagnosis(
        source=str(run.source),
        format=run.format,
        run=run.name,
        status=run.status(),
        first_step=run.first_step,
        last_step=run.last_step,
        records=run.records,
        root_cause=first[0] if first else None,
        findings=tuple(first + effects + rest),
        explained=explained,
        withheld=engine.withheld(run),
        failed=dict(engine.failed),
        notes=(*run.notes, *failed),
        prescription=prescription,
    )


def _with_cure(finding: Finding, prescription: Prescription) -> Finding:
    """The finding with the settings that were prescribed for it."""
    patch = {item.path: item.value for item in prescription.changes if item.finding.key == finding.key}
    return replace(finding, patch=patch) if patch else finding


Key = tuple[str, str, int]
LINGER = 0.05  # of the run; and
LINGER_STEPS = 20  # what is over explains nothing that begins later than this after its end
EARLY, EARLY_STEPS = 0.01, 1  # of the run; an effect may be dated so much before its cause: by a boundary, or the
# sample before it. A boundary is the step before the first row behind it, however short the run is


def root_cause(findings: Sequence[Finding]) -> tuple[Finding | None, frozenset[tuple[str, str, int]]]:
    """The finding that came first and explains the most, and the keys of those it explains.

    A finding explains another if its rule names the other's among its ``causes``, and it did not begin later nor end
    long before. Only warnings and worse can be a root: an info is never what a run died of. It may be explained, but
    explains nothing itself and makes no root the likelier. An outcome (overfitting) yields to anything that is as
    grave: it says where the run went, not what is wrong with it.
    """
    grave = [finding for finding in findings if finding.severity != "info"]
    reach = {finding.key: _explained_by(finding, grave) for finding in grave}
    effects = {key for keys in reach.values() for key in keys}
    roots = [finding for finding in grave if finding.key not in effects] or grave
    if not roots:
        return None, frozenset()
    ranks, known = {finding.key: finding.rank for finding in grave}, catalogue()
    root = min(
        roots,
        key=lambda finding: (
            -max([finding.rank, *(ranks[key] for key in reach[finding.key])]),
            finding.rule in known and known[finding.rule].outcome,
            -len(reach[finding.key]),
            finding.first_step,
            -finding.rank,
            -finding.confidence,
        ),
    )
    return root, frozenset(_explained_by(root, findings))


def independent(findings: Sequence[Finding], root: Finding | None, explained: frozenset[Key]) -> list[Finding]:
    """The warnings and worse, beside the root cause, that follow from no other: a run may have two things wrong."""
    grave = [finding for finding in findings if finding.severity != "info"]
    effects = explained.union(*(_explained_by(finding, grave) for finding in grave))
    return [finding for finding in grave if finding.key not in effects and finding != root]


def _explained_by(cause: Finding, findings: Sequence[Finding]) -> set[tuple[str, str, int]]:
    """Keys of all findings that follow from ``cause``, directly or through others that are no infos."""
    known = catalogue()
    linger = max(LINGER_STEPS, LINGER * max(finding.last_step for finding in findings))
    early = max(EARLY_STEPS, EARLY * max(finding.last_step for finding in findings))
    reached: set[tuple[str, str, int]] = set()
    waiting = [cause]
    while waiting:
        current = waiting.pop()
        effects = known[current.rule].causes if current.rule in known else ()
        for finding in findings:
            lasts = current.state == "active" or finding.first_step <= current.last_step + linger
            begins = finding.first_step >= current.first_step - early
            follows = finding.rule in effects and begins and lasts
            if follows and finding.key not in reached and finding.key != cause.key:
                reached.add(finding.key)
                waiting += [finding] if finding.severity != "info" else []
    return reached

"""The timeline: what happened to a run, in that order, and which checkpoint was the last good one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from trainwatch.diagnosis import Diagnosis
from trainwatch.figures import interventions
from trainwatch.header import mapping, number, text
from trainwatch.prescription import good_checkpoints
from trainwatch.run import Event, Run
from trainwatch.schema import HEADER, Finding, Severity
from trainwatch.text import wording

MOMENTS = 200  # of each kind of event: more than that is no story any more
KINDS = 40
ASIDE = frozenset(["kind", "event", "time", "elapsed", "step", *HEADER])  # told elsewhere


@dataclass(frozen=True)
class Moment:
    """One line of the incident's timeline. ``role`` is what a finding is in the chain: the root cause, or an effect."""

    step: int
    when: str
    kind: str
    text: str
    severity: Severity | None = None
    role: str = ""


def moments(run: Run, diagnosis: Diagnosis) -> list[Moment]:
    """Findings, resumes, stages, the checkpoints that matter and every event, by step."""
    return sorted(_moments(run, diagnosis), key=lambda moment: moment.step)


def utc(seconds: float | None) -> str:
    """A time as people write it; empty where there is none."""
    if seconds is None or not 0 < seconds < 2**35:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def role(diagnosis: Diagnosis, finding: Finding) -> str:
    """What a finding is in the chain of events."""
    root = diagnosis.root_cause
    if root is not None and finding.key == root.key:
        return "the root cause"
    return "follows from the root cause" if finding.key in diagnosis.explained else ""


def _moments(run: Run, diagnosis: Diagnosis) -> Iterator[Moment]:
    for finding in diagnosis.findings:
        said = f"{finding.rule}: {wording.clean(finding.message)}"
        when = _when(run, finding.first_step)
        yield Moment(finding.first_step, when, "finding", said, finding.severity, role(diagnosis, finding))
    for header in run.headers:
        if header.resumed_from is not None:
            said = f"the run was resumed from the checkpoint of step {header.resumed_from:,}"
            yield Moment(header.resumed_from, utc(header.time), "resume", said)
    yield from _stages(run)
    yield from _checkpoints(run, diagnosis.root_cause)
    seen: dict[str, int] = {}
    for event in run.events:
        kind = "end" if event.get("kind") == "end" else text(event.get("event"))
        if kind in (None, "stage") or event.get("kind") == "checkpoint" or (kind not in seen and len(seen) >= KINDS):
            continue
        seen[str(kind)] = seen.get(str(kind), 0) + 1
        if seen[str(kind)] <= MOMENTS:
            yield _event(run, event, wording.clean(kind, 40))


def _event(run: Run, event: Event, kind: str) -> Moment:
    when, at = utc(number(event.get("time"))), interventions.step_of(run, event)
    if kind == "intervention":
        return Moment(at, when, kind, wording.clean(interventions.said(event), interventions.LONGEST))
    if kind == "monitor" and text(event.get("message")):  # what stands beside it is the same, for rules
        return Moment(at, when, kind, wording.clean(event["message"], 300))
    details = {key: value for key, value in event.items() if key not in ASIDE}
    details.pop("traceback", None)
    exception = mapping(details.pop("exception", None))
    said = [f"{wording.clean(key, 60)} {wording.clean(value, 200)}" for key, value in details.items() if value]
    said += [f"{wording.clean(exception.get('type'))}: {wording.clean(exception.get('message'))}"] if exception else []
    return Moment(at, when, kind, ", ".join(said))


def _stages(run: Run) -> Iterator[Moment]:
    """Stages as the trainer reported them; as planned, and passed, where it did not."""
    told = [event for event in run.events if event.get("event") == "stage"]
    for event in told[:MOMENTS]:
        yield Moment(int(number(event.get("step")) or 0), utc(number(event.get("time"))), "stage", _stage_name(event))
    plan = run.header.plan
    for stage in plan.stages[1:MOMENTS] if plan and not told else ():
        if run.last_step is not None and stage.start <= run.last_step:
            at = int(stage.start) + 1  # a stage holds from the row after `applied` reached its start
            yield Moment(at, _when(run, at), "stage", f"stage {wording.clean(stage.name, 80)} begins, as planned")


def _stage_name(event: Mapping[str, Any]) -> str:
    return f"stage {wording.clean(event.get('name') or event.get('to'), 80)} begins"


def _checkpoints(run: Run, root: Finding | None) -> Iterator[Moment]:
    """The last checkpoint, the best one and the last good one: the rest is in the run file."""
    written = checkpoints(run)
    best = [event for event in written if event.get("best")]
    kept = {
        id(event): event
        for event in (*written[-1:], *best[-1:], *(good_checkpoints(run, root.first_step)[-1:] if root else ()))
    }
    for event in kept.values():
        said = wording.clean(event.get("path") or "checkpoint", 200) + (", the best" if event.get("best") else "")
        yield Moment(int(number(event.get("step")) or 0), utc(number(event.get("time"))), "checkpoint", said)


def checkpoints(run: Run) -> list[Event]:
    """Every checkpoint that was written."""
    return [event for event in run.events if event.get("kind") == "checkpoint"]


def good_checkpoint(run: Run, root: Finding | None) -> str:
    """The last good checkpoint in a sentence; empty where no checkpoint was written, or nothing is wrong."""
    if root is None or not checkpoints(run):
        return ""
    good = good_checkpoints(run, root.first_step)
    if not good:
        return f"No checkpoint was written before the root cause began at step {root.first_step:,}."
    last = good[-1]
    where = wording.clean(last.get("path") or "a checkpoint", 300)
    return f"The last good checkpoint is {where}, of step {int(number(last.get('step')) or 0):,}."


def _when(run: Run, step: int) -> str:
    """The time at which a step's row was recorded."""
    steps, times = run.train.curve("time")
    at = np.flatnonzero(steps >= step)
    return utc(float(times[at[0]])) if len(at) else ""

"""What a post-mortem says, as plain data: the same for the page and for Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from trainwatch.compare import Values, values
from trainwatch.diagnosis import Diagnosis
from trainwatch.header import flat, mapping, number, text
from trainwatch.prescription import good_checkpoints
from trainwatch.run import Event, Run
from trainwatch.schema import Finding, Severity
from trainwatch.text import wording

TAIL_LINES, TAIL_BYTES, TAIL_LINE = 8, 64 << 10, 400
MOMENTS = 200  # of each kind of event: more than that is no story any more
PACKAGES = 40


@dataclass(frozen=True)
class Moment:
    """One line of the incident's timeline."""

    step: int
    when: str
    kind: str
    text: str
    severity: Severity | None = None


@dataclass(frozen=True)
class Content:
    """Everything a post-mortem shows. ``good_checkpoint`` is a sentence, empty where no checkpoint was written."""

    run: Run
    diagnosis: Diagnosis
    written: str
    command: str
    moments: tuple[Moment, ...]
    good_checkpoint: str
    values: tuple[Values, ...]
    config: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]
    traceback: str
    tail: tuple[str, ...]

    @property
    def planned(self) -> int | None:
        """Steps the run was meant to take."""
        return self.run.header.total_steps


def gather(run: Run, diagnosis: Diagnosis) -> Content:
    """Collect what a post-mortem says of a run."""
    moments = sorted(_moments(run, diagnosis), key=lambda moment: moment.step)
    return Content(
        run=run,
        diagnosis=diagnosis,
        written=_utc(datetime.now(UTC).timestamp()),
        command=f"trainwatch check {shlex.quote(diagnosis.source)}",
        moments=tuple(moments),
        good_checkpoint=_good_checkpoint(run, diagnosis.root_cause),
        values=tuple(values([run])),
        config=tuple((path, _setting(value)) for path, value in flat(run.header.config) if path),
        environment=tuple(_environment(run)),
        traceback=_traceback(run),
        tail=tuple(_tail(run.source)),
    )


def _utc(seconds: float | None) -> str:
    if seconds is None or not 0 < seconds < 2**35:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _setting(value: Any) -> str:
    return wording.clean(value, 400) if not isinstance(value, float) else f"{value:g}"


def _moments(run: Run, diagnosis: Diagnosis) -> Iterator[Moment]:
    for finding in diagnosis.findings:
        said = f"{finding.rule}: {wording.clean(finding.message)}"
        yield Moment(finding.first_step, _when(run, finding.first_step), "finding", said, finding.severity)
    for header in run.headers:
        if header.resumed_from is not None:
            said = f"the run was resumed from the checkpoint of step {header.resumed_from:,}"
            yield Moment(header.resumed_from, _utc(header.time), "resume", said)
    yield from _stages(run)
    yield from _checkpoints(run, diagnosis.root_cause)
    seen: dict[str, int] = {}
    for event in run.events:
        kind = "end" if event.get("kind") == "end" else text(event.get("event"))
        if kind in (None, "stage") or event.get("kind") == "checkpoint":
            continue
        seen[str(kind)] = seen.get(str(kind), 0) + 1
        if seen[str(kind)] <= MOMENTS:
            yield _event(run, event, wording.clean(kind, 40))


def _event(run: Run, event: Event, kind: str) -> Moment:
    details = {key: value for key, value in event.items() if key not in ("kind", "event", "time", "elapsed", "step")}
    details.pop("traceback", None)
    exception = mapping(details.pop("exception", None))
    said = [f"{wording.clean(key, 60)} {wording.clean(value, 200)}" for key, value in details.items() if value]
    said += [f"{wording.clean(exception.get('type'))}: {wording.clean(exception.get('message'))}"] if exception else []
    step = number(event.get("step"))
    when = _utc(number(event.get("time")))
    return Moment(int(step) if step is not None else run.last_step or 0, when, kind, ", ".join(said))


def _stages(run: Run) -> Iterator[Moment]:
    """Stages as the trainer reported them; as planned, and passed, where it did not."""
    told = [event for event in run.events if event.get("event") == "stage"]
    for event in told[:MOMENTS]:
        yield Moment(int(number(event.get("step")) or 0), _utc(number(event.get("time"))), "stage", _stage_name(event))
    plan = run.header.curriculum_running or run.header.curriculum
    for stage in plan.stages[1:] if plan and not told else ():
        if run.last_step is not None and stage.start <= run.last_step:
            at = int(stage.start) + 1  # a stage holds from the row after `applied` reached its start
            yield Moment(at, _when(run, at), "stage", f"stage {wording.clean(stage.name, 80)} begins, as planned")


def _stage_name(event: Mapping[str, Any]) -> str:
    return f"stage {wording.clean(event.get('name') or event.get('to'), 80)} begins"


def _checkpoints(run: Run, root: Finding | None) -> Iterator[Moment]:
    """The last checkpoint, the best one and the last good one: the rest is in the run file."""
    written = [event for event in run.events if event.get("kind") == "checkpoint"]
    best = [event for event in written if event.get("best")]
    kept = {
        id(event): event
        for event in (*written[-1:], *best[-1:], *(good_checkpoints(run, root.first_step)[-1:] if root else ()))
    }
    for event in kept.values():
        said = wording.clean(event.get("path") or "checkpoint", 200) + (", the best" if event.get("best") else "")
        yield Moment(int(number(event.get("step")) or 0), _utc(number(event.get("time"))), "checkpoint", said)


def _good_checkpoint(run: Run, root: Finding | None) -> str:
    if root is None or not any(event.get("kind") == "checkpoint" for event in run.events):
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
    return _utc(float(times[at[0]])) if len(at) else ""


def _environment(run: Run) -> Iterator[tuple[str, str]]:
    raw = run.header.raw
    command = raw.get("command")
    if isinstance(command, list):
        yield "command", shlex.join(wording.clean(part, 300) for part in command)
    for name in ("started", "host", "python", "device", "git", "world_size", "dtypes", "parameters"):
        for path, value in flat(raw.get(name)):
            if value not in (None, {}):
                yield f"{name} {path}".strip().replace("_", " "), _amount(name, path, value)
    packages = list(mapping(raw.get("packages")).items())[:PACKAGES]
    if packages:
        yield "packages", ", ".join(wording.clean(f"{name} {version}", 80) for name, version in packages)


def _amount(name: str, path: str, value: Any) -> str:
    if (name, path) == ("device", "memory") and number(value):
        return f"{float(value) / 2**30:.1f} GiB"
    return wording.clean(value, 200) if isinstance(value, str | bool) else wording.number(value)


def _traceback(run: Run) -> str:
    """The traceback with which the run ended, its lines kept."""
    candidates = [mapping((run.end or {}).get("exception")), *reversed(run.events)]
    found = next((said for item in candidates if (said := text(item.get("traceback")))), "")
    return "\n".join(line[: len(line) - len(line.lstrip())] + wording.clean(line, 400) for line in found.splitlines())


def _tail(source: Path) -> list[str]:
    """The file's last lines as they stand in it."""
    try:
        with source.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [wording.clean(line, TAIL_LINE) for line in lines[-TAIL_LINES:]]

"""A prescription as YAML: every line says which finding it answers, and what the value was. It is valid YAML even
where there is nothing to prescribe, so that a script may hand it on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import yaml

from trainwatch.diagnosis import Diagnosis
from trainwatch.header import mapping, number, text
from trainwatch.prescription import Change, good_checkpoints
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.text import wording
from trainwatch.text.wording import clean

LONGEST = 160  # of what a value was, or why another is better


def document(run: Run, said: Diagnosis) -> str:
    """The config patch with its comments, or the reason why there is none."""
    prescription = said.prescription
    lines = [f"# {line}" for line in (*_head(run, said), *map(no_cure, prescription.uncured))]
    changes = {change.path: change for change in prescription.changes}
    lines += _lines(wording.nested(changes), 0) if changes else ["{}"]
    return "\n".join(lines) + "\n"


def _head(run: Run, said: Diagnosis) -> Iterator[str]:
    name = f"{clean(said.run, 80)} ({clean(said.source, 200)})"
    if said.root_cause is None:
        yield f"Nothing to prescribe for {name}: {wording.root_cause(said)[0].lower()}{wording.root_cause(said)[1:]}"
    elif not said.prescription.changes:
        yield f"Nothing to prescribe for {name}."
    else:
        yield f"For {name}. {wording.root_cause(said)}"
        yield from _how(run, said)


def _how(run: Run, said: Diagnosis) -> Iterator[str]:
    """How the patch is taken: what to resume from, and which of its settings a command line would overrule."""
    first = said.prescription.first_bad or 0
    good = good_checkpoints(run, first)
    step = int(number(good[-1].get("step")) or 0) if good else None
    if of_trainer(run):
        resume = "" if step is None else f" --resume before:{step}"
        yield f"Take it with: python -m trainer --config FAILED.yaml --config PATCH.yaml{resume}"
    elif step is not None:
        where = clean(good[-1].get("path") or "its path is not told", 300)
        yield f"Go on from the checkpoint of step {step:,}: {where}"
    if step is None:
        yield f"No checkpoint was written before step {first:,}: start anew."
    given = {
        str(item).partition("=")[0] for item in mapping(run.header.raw.get("config_source")).get("overrides") or ()
    }
    for path in sorted(given & set(said.prescription.patch)):
        yield f"{clean(path)} was given on the command line, which overrules files: leave it out there."


def of_trainer(run: Run) -> bool:
    """Whether `python -m trainer` of this project wrote the record, as far as its command tells."""
    command = run.header.raw.get("command")
    said = [str(part) for part in command] if isinstance(command, list) else []
    return any(pair == ("-m", "trainer") for pair in pairwise(said))


def no_cure(finding: Finding) -> str:
    """What no setting is known to cure, and what to do instead."""
    told = f"No cure known for {finding.rule}{_of(finding)}, since step {finding.first_step:,}"
    return f"{told}: what to do instead is: {clean(finding.advice)}" if finding.advice else f"{told}."


def _of(finding: Finding) -> str:
    return "" if finding.subject == "run" else f" of {clean(finding.subject, 80)}"


def answers(change: Change) -> str:
    """The finding that a change answers, what the value was, and how the new one was found."""
    finding = change.finding
    said = f"{finding.rule}{_of(finding)}, since step {finding.first_step:,}; was {clean(_flow(change.was), LONGEST)}"
    return f"{said} ({clean(change.why, LONGEST)})" if change.why else said


def _lines(tree: Mapping[str, Any], depth: int) -> Iterator[str]:
    for key, item in tree.items():
        lead = f"{'  ' * depth}{_flow(key)}:"
        if isinstance(item, Change):
            yield f"{lead} {_flow(item.value)}  # {answers(item)}"
        else:
            yield lead
            yield from _lines(item, depth + 1)


def _flow(value: Any) -> str:
    """A value as YAML on one line, whatever is in it."""
    value = wording.strict(value)
    said = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=False)
    said = said.removesuffix("...\n").strip()
    return json.dumps(value) if "\n" in said else said


def as_data(run: Run, said: Diagnosis) -> dict[str, Any]:
    """The same for programs."""
    good = good_checkpoints(run, said.prescription.first_bad or 0)
    changes = [
        {
            "path": item.path,
            "value": item.value,
            "was": item.was,
            "rule": item.finding.rule,
            "subject": item.finding.subject,
            "first_step": item.finding.first_step,
            "why": item.why,
        }
        for item in said.prescription.changes
    ]
    return {
        "version": 1,
        "source": said.source,
        "run": said.run,
        "root_cause": said.root_cause.to_dict() if said.root_cause else None,
        "patch": said.prescription.patch,
        "changes": changes,
        "uncured": [finding.to_dict() for finding in said.prescription.uncured],
        "checkpoint": {"step": good[-1].get("step"), "path": text(good[-1].get("path"))} if good else None,
    }

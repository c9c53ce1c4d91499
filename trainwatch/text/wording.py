"""How trainwatch says things: the same words in the terminal, in Markdown and on a page. Plain data in, text out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from trainwatch.diagnosis import Diagnosis
from trainwatch.run import Run
from trainwatch.schema import Finding, Severity, json_number

SYMBOLS: dict[Severity | None, str] = {"critical": "✖", "warning": "▲", "info": "●", None: "✓"}
"""Beside the word, never instead of it: colour and shape both stay readable on their own."""

ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)", re.DOTALL)
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")
LONGEST = 2000  # a name or a message beyond this is an attack or an accident, and nobody reads it


def clean(text: object, longest: int = LONGEST) -> str:
    """Text from a log on one line, without what moves a cursor, turns the writing direction or cannot be encoded."""
    said = str(text)[: 4 * longest].encode("utf-8", "replace").decode()
    said = CONTROL.sub(" ", ANSI.sub("", said)).strip()
    return said if len(said) <= longest else f"{said[:longest]}…"


def number(value: object) -> str:
    """A number as people read it: 4 digits, thousands parted, no needless exponent."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return clean(value, 80)
    if not math.isfinite(value):
        return str(json_number(float(value)))
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e3 <= abs(value) < 1e7:
        return f"{value:,.1f}"
    return f"{value:.4g}"


def plural(count: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def steps(first: int | None, last: int | None) -> str:
    """``step 5`` or ``steps 5 to 1,240``."""
    if first is None or last is None:
        return "no steps"
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def reach(diagnosis: Diagnosis, planned: int | None = None) -> str:
    """How far a run came: ``steps 1 to 1,240 of 3,000``."""
    of = f" of {planned:,}" if planned and diagnosis.last_step is not None else ""
    return steps(diagnosis.first_step, diagnosis.last_step) + of


def verdict(diagnosis: Diagnosis, planned: int | None = None) -> str:
    """The state of a run and how far it came, in one line."""
    return f"{diagnosis.status.replace('-', ' ')}, {reach(diagnosis, planned)}"


def severity(worst: Severity | None) -> str:
    """The word for the worst that was found."""
    return worst or "nothing found"


def worst(diagnosis: Diagnosis) -> str:
    """The word for the worst that was found in a run; nothing found is not said where a rule broke."""
    broke = len(diagnosis.failed)
    if not broke:
        return severity(diagnosis.worst)
    said = f"{plural(broke, 'rule')} broke"
    return f"{diagnosis.worst}, {said}" if diagnosis.worst else said


def symbol(diagnosis: Diagnosis) -> str:
    """The sign beside :func:`worst`; no tick where a rule broke."""
    return "?" if diagnosis.failed and diagnosis.worst is None else SYMBOLS[diagnosis.worst]


def broke(diagnosis: Diagnosis) -> str:
    """The rules that broke on a run, in one sentence; it names the file."""
    told = ", ".join(f"{name} ({clean(why, 200)})" for name, why in diagnosis.failed.items())
    count = len(diagnosis.failed)
    verb = "was" if count == 1 else "were"
    return f"{clean(diagnosis.source)}: {plural(count, 'rule')} broke and {verb} left out: {told}; please report this."


def root_cause(diagnosis: Diagnosis) -> str:
    """The root cause in one sentence, with the step it began at."""
    root = diagnosis.root_cause
    if root is None:
        found = "a warning" if diagnosis.findings else "anything"
        names = ", ".join(diagnosis.failed)
        tail = f", but {names} broke on it and could say nothing" if diagnosis.failed else ""
        return f"No rule that could judge this run found {found}{tail}."
    return f"Root cause, since step {root.first_step:,}: {clean(root.message)}"


def evidence(finding: Finding) -> list[tuple[str, str]]:
    """The numbers behind a finding: (name, value)."""
    return [(clean(name, 80).replace("_", " "), number(value)) for name, value in finding.evidence.items()]


def nested(patch: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted config paths as the nested mapping that a config file holds."""
    tree: dict[str, Any] = {}
    for path, value in patch.items():
        *parents, leaf = path.split(".")
        branch = tree
        for parent in parents:
            below = branch.setdefault(parent, {})
            branch = below if isinstance(below, dict) else branch
        branch[leaf] = value
    return tree


def patch_yaml(patch: Mapping[str, Any]) -> str:
    """A config patch as YAML, without the last newline."""
    import yaml

    return yaml.safe_dump(nested(strict(patch)), sort_keys=False, allow_unicode=True).rstrip("\n")


def withheld(diagnosis: Diagnosis) -> str | None:
    """How many rules could not judge."""
    count = len(diagnosis.withheld)
    return f"{plural(count, 'rule')} could not judge, for want of a channel" if count else None


def wakes(diagnosis: Diagnosis) -> list[tuple[str, list[str]]]:
    """Each channel that is missing, and the rules that it would wake or help to wake; what would wake most is first."""
    waiting: dict[str, list[str]] = {}
    for rule, missing in diagnosis.withheld.items():
        for name in missing:
            waiting.setdefault(" or ".join(_channel(choice) for choice in name.split("|")), []).append(rule)
    return sorted(waiting.items(), key=lambda item: (-len(item[1]), item[0]))


def _channel(pattern: str) -> str:
    """What a rule needs, in words: ``run:schedules`` is a field of the header, ``eval:loss`` a column of a table."""
    place, _, name = pattern.rpartition(":")
    places = {"run": "the header's {}", "eval": "{} of an evaluation", "sample": "{} of a sample"}
    return clean(places.get(place, "{}").format(name), 80)


def age(seconds: float) -> str:
    """How long ago, in the largest unit that fits."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def duration(seconds: float) -> str:
    """``3 min``, ``2 h 5 min``, ``4 d``."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{max(int(seconds), 0)} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 and minutes < 600 else "")
    return f"{minutes // 1440} d"


def speed(run: Run) -> str:
    """The pace of a run's last rows; empty where it is not known."""
    return pace(run.step_seconds())


def pace(seconds: float | None) -> str:
    """Steps a second, or seconds a step where that is more; empty where it is not known."""
    if not seconds:
        return ""
    return f"{1 / seconds:.3g} steps/s" if seconds < 1 else f"{seconds:.3g} s/step"


def waits(step: float | None, data: float | None) -> str:
    """How long a step waits for data, and which part of it that is; empty where it is not known."""
    if data is None:
        return ""
    return f"{1000 * data:.3g} ms" + (f" ({data / step:.0%} of a step)" if step else "")


def memory(size: float | None, kind: str) -> str:
    """Bytes in GiB with what they are of; empty where it is not known."""
    return f"{size / 2**30:.3g} GiB {clean(kind, 40)}" if size else ""


def left(run: Run) -> str:
    """The time that the planned steps will still take; empty where it is not known."""
    seconds, total, last = run.step_seconds(), run.header.total_steps, run.last_step
    return f"about {duration(seconds * (total - last))} left" if seconds and total and last and total > last else ""


def strict(value: Any) -> Any:
    """``value`` as strict JSON can hold it: no NaN, no lone surrogate, no foreign type."""
    if isinstance(value, Mapping):
        return {clean(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return json_number(value)
    return value if value is None or isinstance(value, bool | int) else clean(value)

"""Settings that are off their defaults, as far as the program says what those are: back to them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from trainwatch.cures.setting import Setting, Settings, component_of, words
from trainwatch.header import flat, mapping, number
from trainwatch.run import Run
from trainwatch.schema import Finding

NO_KEYS = frozenset(["data", "run", "loss", "step", "steps", "grad", "model", "ratio", "non", "post", "desync"])
"""Words of a rule's name that every other setting has too, or none."""


def defaults(run: Run) -> dict[str, Any]:
    """What the program would have taken for the settings that are off their defaults."""
    return mapping(run.header.raw.get("config_defaults"))


def restored(run: Run, keys: set[str]) -> Iterator[Setting]:
    """The default of the one setting off its default that is named for these words; none where two are as near."""
    config = dict(flat(run.header.config))
    near = {path: _common(words(path), keys) for path in defaults(run) if path in config}
    best = [path for path in near if near[path] and near[path] == max(near.values())]
    if len(best) == 1:
        yield Setting(best[0], defaults(run)[best[0]], "its default; no other setting named for this is off its own")


def _common(one: set[str], other: set[str]) -> int:
    """How many words two names share; ``clip`` and ``clipping`` are one."""
    return sum(any(a == b or (len(b) > 3 and a.startswith(b)) for b in other) for a in one)


def named(finding: Finding, run: Run) -> Settings:
    """A setting that is named for the rule and its subject, back to its default."""
    kind, _, subject = finding.subject.partition(":")
    about = words(subject) if kind in ("module", "component", "tensor") else set()
    return restored(run, (words(finding.rule) | about) - NO_KEYS)


def of_component(finding: Finding, run: Run) -> Settings:
    """A setting that is named for the component, back to its default."""
    return restored(run, words(component_of(finding)) - NO_KEYS)


def guard(_finding: Finding, run: Run) -> Iterator[Setting]:
    """What lets nothing bad through: the one setting that is switched off and is on by default."""
    config = dict(flat(run.header.config))
    off = [(path, said) for path, said in defaults(run).items() if said and path in config and not config[path]]
    if len(off) == 1:
        yield Setting(*off[0], "its default; nothing else was switched off")


def miscounted(finding: Finding, run: Run) -> Settings:
    """A schedule that moves with each micro-batch, instead of each step: what says that batches are counted."""
    accumulation = number(mapping(run.header.raw.get("horizon")).get("accumulation")) or 1.0
    speed = number(finding.evidence.get("speed")) or 1.0
    batches = any(math.isclose(speed, ratio, rel_tol=0.05) for ratio in (accumulation, 1 / accumulation))
    if accumulation > 1 and batches:
        return restored(run, {"batch", "count", "micro"})
    return named(finding, run)


def ending(_finding: Finding, run: Run) -> Settings:
    """Answers that are all too short: what says how they end."""
    return restored(run, {"length", "eos", "end"})

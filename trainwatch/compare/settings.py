"""What was set: which settings are not the same everywhere, and which runs are repeats of one setting."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainwatch.header import flat
from trainwatch.run import Run

ABSENT = "(absent)"  # a setting that a run does not have; differs from one that is null
FACTS = ("total_steps", "horizon", "components", "schedules", "max_grad_norm", "dtypes", "parameters", "world_size")
PLACE = ("device", "git", "packages", "python")  # where it ran: told apart from what was set
LABELS = frozenset(["name", "run", "logs", "log", "output", "out", "dir", "path", "folder", "resume", "tag", "notes"])
SEED_IN_NAME = re.compile(r"seed[-_=]?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same everywhere; ``values`` has one entry a run, ``ABSENT`` where it is not set."""

    path: str
    values: tuple[Any, ...]


def differences(settings: Sequence[Mapping[str, Any]]) -> tuple[Difference, ...]:
    """The dotted paths under which nested mappings do not all hold the same."""
    flattened = [dict(flat(item)) for item in settings]
    paths = dict.fromkeys(path for item in flattened for path in item)
    found = (Difference(path, tuple(item.get(path, ABSENT) for item in flattened)) for path in paths)
    return tuple(item for item in found if not all(_same(value, item.values[0]) for value in item.values[1:]))


def _same(value: Any, other: Any) -> bool:
    """Whether two settings are one; NaN is NaN here."""
    return bool(value == other) or (value != value and other != other)


def facts(run: Run, *, stages: bool) -> dict[str, Any]:
    """What the header says besides the config; the stages only where all runs have a plan of one name.

    Two curricula of different names differ in nearly every number: their names are the difference.
    """
    raw = run.header.raw
    told = {name: raw[name] for name in (*FACTS, *PLACE) if name in raw}
    ran = plan(run)
    if ran:
        listed = ran.get("stages") if stages and isinstance(ran.get("stages"), list) else []
        numbered = {str(index): stage for index, stage in enumerate(listed or [], 1)}
        told["curriculum_running"] = {"name": ran.get("name")} | ({"stages": numbered} if numbered else {})
    return told


def plan(run: Run) -> Mapping[str, Any]:
    """The curriculum that ran, where that is known; else the declared one."""
    raw = run.header.raw
    ran = raw.get("curriculum_running") or raw.get("curriculum")
    return ran if isinstance(ran, Mapping) else {}


def words(path: str) -> set[str]:
    """The words that a dotted path is made of."""
    return {word.lower() for word in re.findall(r"[A-Za-z]+", path)}


def chosen(facts: Iterable[Difference]) -> list[Difference]:
    """Those that somebody set, not those of the place where the run ran."""
    return [item for item in facts if item.path.partition(".")[0] not in PLACE]


def is_seed(path: str) -> bool:
    """Whether a setting is a seed."""
    return "seed" in words(path)


def about_seed(path: str) -> bool:
    """Whether a setting is a seed or only names or describes something."""
    if path.startswith("components.") and path.endswith((".role", ".description")):
        return True
    label = not path.startswith("curriculum") and bool(words(path.rpartition(".")[2]) & LABELS)
    return label or is_seed(path)


def repeats(runs: Sequence[Run], settings: Sequence[Difference]) -> tuple[tuple[int, ...], ...]:
    """Every run in its group: those whose settings are the same but for the seed and for names of things.

    Of a run without settings nothing can be said: it is alone, unless its name is another's but for ``seed3``.
    """
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        known = bool(run.header.config)
        set_so = repr([(item.path, item.values[index]) for item in settings if not about_seed(item.path)])
        named = SEED_IN_NAME.sub("", run.name) if SEED_IN_NAME.search(run.name) else str(index)
        groups.setdefault(f"{known} {set_so}" + ("" if known else f" {named}"), []).append(index)
    return tuple(map(tuple, groups.values()))

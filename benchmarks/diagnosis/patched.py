"""A case of the corpus with a patch applied to its config, as its user would write it before training again.

Programs that are made of parts have the patch applied to those, after the mistake and before the training; programs
that are made from a plan have it in the plan of the case. What a program has no place for is said, and not applied.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from benchmarks.diagnosis import mistakes
from benchmarks.diagnosis.corpus import Case, found
from benchmarks.diagnosis.loop import Parts
from trainwatch.header import number

FIELDS: Mapping[str, tuple[str, ...]] = {
    "lr": ("rate", "peak"),
    "rate": ("rate",),
    "clip": ("clip",),
    "weight_decay": ("decay",),
    "dtype": ("dtype",),
}
"""Of a plan, by the last name of the setting."""


class CannotApplyError(Exception):
    """The program has no place for a setting of the patch."""


@contextmanager
def patched(case: Case, patch: Mapping[str, Any]) -> Iterator[None]:
    """Trainings of this case within take the patch. Raises CannotApplyError where one of its settings has no place."""
    program = found()[case.program]
    plans = getattr(program, "CASES", None) or getattr(program, "SICK_SETUPS", None)
    if plans is not None:
        with mock.patch.dict(plans, {case.name: plans.get(case.name, {}) | _fields(program, patch)}):
            yield
        return
    used: list[Parts] = []

    def train(plain: Callable[[Parts, Path], None], parts: Parts, path: Path) -> None:
        used.append(_applied(parts, patch))
        plain(used[-1], path)

    with _instead(train):
        yield
    if patch and not used:
        raise CannotApplyError(", ".join(patch))


def _fields(program: ModuleType, patch: Mapping[str, Any]) -> dict[str, Any]:
    """The patch as fields of the program's plan."""
    plan = getattr(program, "Plan", None) or program.Setup
    changed = {}
    for path, value in patch.items():
        known = [name for name in FIELDS.get(path.rpartition(".")[2], ()) if name in plan.__dataclass_fields__]
        if len(known) != 1:
            raise CannotApplyError(path)
        changed[known[0]] = value
    return changed


@contextmanager
def _instead(train: Callable[[Callable[[Parts, Path], None], Parts, Path], None]) -> Iterator[None]:
    plain = mistakes.train
    with mock.patch.object(mistakes, "train", lambda parts, path: train(plain, parts, path)):
        yield


def config(case: Case) -> dict[str, Any] | None:
    """The config that the case records, without training; None where the program is not made of parts.

    Stored records of rates and limits that are part of the mistake are from before these were written into the config.
    """
    seen: list[dict[str, Any]] = []
    program = found()[case.program]
    if "Parts" in vars(program):
        keep = _instead(lambda _train, parts, _path: seen.append(parts.header.get("config", {})))
        with keep, tempfile.TemporaryDirectory() as folder:  # a mistake that trains by itself does so there
            program.train(Path(folder) / "unwritten.jsonl", case.seed, case.name)
    return seen[0] if seen else None


def _applied(parts: Parts, patch: Mapping[str, Any]) -> Parts:
    """The same parts with these settings."""
    if "config" not in parts.header:
        raise CannotApplyError("config")
    for path, value in patch.items():
        was = parts.header["config"].get(path)
        component = path.removeprefix("weight_")
        if path == "lr" and number(was):
            mistakes.scale_rates(parts, value / was)
        elif path in ("clip", "max_grad_norm") and was == parts.header.get("max_grad_norm"):
            parts.max_norm = parts.header["max_grad_norm"] = value
        elif component != path and component in parts.header.get("components", {}):
            _weigh(parts, component, value / was)
        elif not (isinstance(was, str) and number(value) is not None):  # a number in quotes is read where it is used
            raise CannotApplyError(path)
        parts.header["config"][path] = value
    return parts


def _weigh(parts: Parts, name: str, times: float) -> None:
    """A component's weight, in the loop and in what is declared."""
    mistakes.reweigh(parts, lambda applied, weights: weights | {name: weights[name] * times})  # noqa: ARG005
    for form in ("curriculum", "curriculum_running"):
        for stage in parts.header.get(form, {}).get("stages", []):
            stage["weights"][name] *= times

"""The header of a run, read with distrust: what a trainer declared before its first step.

A header comes from a file that anybody may have written. Whatever does not have the form that the format asks for is
left out here (and stays visible in :attr:`Header.raw`); nothing in this module raises on a wrong value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


def number(value: Any) -> float | None:
    """``value`` as a float if it is a finite number and no boolean, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        as_float = float(value)
    except OverflowError:
        return None
    return as_float if math.isfinite(as_float) else None


def text(value: Any) -> str | None:
    """``value`` if it is a non-empty string, else None."""
    return value if isinstance(value, str) and value else None


def mapping(value: Any) -> dict[str, Any]:
    """``value`` if it is a mapping (its keys as text), else an empty one."""
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def settings(config: Mapping[str, Any], word: str, value: Any, prefix: str = "") -> list[str]:
    """Dotted paths with ``word`` in them at which a config says ``value``: where a patch would change it."""
    found = []
    for key, item in config.items():
        path = f"{prefix}{key}"
        if isinstance(item, Mapping):
            found += settings(item, word, value, f"{path}.")
        elif word in path and not isinstance(item, bool) and item == value:
            found.append(path)
    return found


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as (dotted path, value); an empty mapping is a value."""
    if isinstance(value, Mapping) and (value or not path):
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


@dataclass(frozen=True)
class Stage:
    """A stage of a curriculum; it holds while ``start <= applied < end``."""

    start: float
    end: float
    name: str
    weights: dict[str, float]
    data: dict[str, tuple[float, float]]

    @classmethod
    def parse(cls, raw: Any, index: int) -> Stage | None:
        """The stage at position ``index`` of a list, or None if it has no beginning."""
        fields = mapping(raw)
        start, end = number(fields.get("start")), number(fields.get("end"))
        if start is None:
            return None
        weights = {name: number(value) for name, value in mapping(fields.get("weights")).items()}
        ranges = {name: _range(value) for name, value in mapping(fields.get("data")).items()}
        return cls(
            start=start,
            end=math.inf if end is None else end,
            name=text(fields.get("name")) or str(index + 1),
            weights={name: value for name, value in weights.items() if value is not None},
            data={name: value for name, value in ranges.items() if value is not None},
        )


def _range(value: Any) -> tuple[float, float] | None:
    bounds = [number(item) for item in value] if isinstance(value, list | tuple) else [number(value)] * 2
    if len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
        return None
    return (bounds[0], bounds[1])


@dataclass(frozen=True)
class Curriculum:
    """A plan of stages: what is trained on, and with which weights, from when to when."""

    name: str
    source: str | None
    sha256: str | None
    stages: tuple[Stage, ...]
    ramp: str

    @classmethod
    def parse(cls, raw: Any) -> Curriculum | None:
        """The curriculum of a header, or None if the header has none."""
        fields = mapping(raw)
        listed = fields.get("stages")
        stages = [Stage.parse(item, index) for index, item in enumerate(listed if isinstance(listed, list) else [])]
        known = tuple(sorted((stage for stage in stages if stage), key=lambda stage: stage.start))
        name = text(fields.get("name"))
        if name is None and not known:
            return None
        return cls(
            name or "(unnamed)",
            text(fields.get("source")),
            text(fields.get("sha256")),
            known,
            _ramp(fields.get("ramp")),
        )

    def at(self, applied: float) -> int:
        """0-based index of the stage that holds at ``applied``; the last one that began, if none ends there."""
        begun = [index for index, stage in enumerate(self.stages) if stage.start <= applied]
        return begun[-1] if begun else 0


def _ramp(value: Any) -> str:
    """How a stage's weights are entered: ``step``, or what the curriculum calls its ramp."""
    return text(value) or text(mapping(value).get("kind")) or "step"


@dataclass(frozen=True)
class Component:
    """A loss component as declared. ``role`` is ``task``, ``auxiliary`` or ``regulariser``."""

    unit: str = ""
    role: str = "task"
    description: str = ""


@dataclass(frozen=True)
class Module:
    """A module as the recorder listed it: how many parameters it has, and how many of them can be trained.

    ``trainable`` is NaN where it is not told, ``fresh`` (of the frozen, as an initialisation leaves them) None.
    """

    name: str
    depth: float
    parameters: float
    trainable: float
    fresh: float | None

    @classmethod
    def parse(cls, raw: Any) -> Module:
        """A module of a header; what has the wrong form is nothing."""
        fields = mapping(raw)
        return cls(
            name=text(fields.get("name")) or "",
            depth=_size(fields.get("depth")),
            parameters=_size(fields.get("parameters")),
            trainable=_size(fields["trainable"]) if "trainable" in fields else math.nan,
            fresh=_size(fields["fresh"]) if "fresh" in fields else None,
        )


def _size(raw: Any) -> float:
    size = number(raw) or 0.0
    return size if 0 < size < 1e15 else 0.0  # a log that tells of more parameters is broken


@dataclass(frozen=True)
class Header:
    """What a run declared about itself. ``raw`` is the record as it stands in the file; see ``schema.HEADER``."""

    raw: dict[str, Any] = field(default_factory=dict)
    run: str = ""
    id: str | None = None
    rank: int = 0
    host: str | None = None
    pid: int | None = None
    process_started: float | None = None
    time: float | None = None
    total_steps: int | None = None
    resumed_from: int | None = None
    max_grad_norm: float | None = None
    components: dict[str, Component] = field(default_factory=dict)
    curriculum: Curriculum | None = None
    curriculum_running: Curriculum | None = None
    schedules: dict[str, dict[str, Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Header:
        """The header of a ``run`` record; what has the wrong form is left out."""
        total = _whole(raw.get("total_steps"))
        return cls(
            raw=dict(raw),
            run=text(raw.get("run")) or "",
            id=text(raw.get("id")),
            rank=_whole(raw.get("rank")) or 0,
            host=text(raw.get("host")),
            pid=_whole(raw.get("pid")),
            process_started=number(raw.get("process_started")),
            time=number(raw.get("time")),
            total_steps=total if total and total > 0 else None,
            resumed_from=_whole(raw.get("resumed_from")),
            max_grad_norm=number(raw.get("max_grad_norm")),
            components={name: _component(item) for name, item in mapping(raw.get("components")).items()},
            curriculum=Curriculum.parse(raw.get("curriculum")),
            curriculum_running=Curriculum.parse(raw.get("curriculum_running")),
            schedules={name: mapping(item) for name, item in mapping(raw.get("schedules")).items() if mapping(item)},
            config=mapping(raw.get("config")),
        )

    @property
    def plan(self) -> Curriculum | None:
        """The curriculum that the run follows: the one that it was seen to run, else the one that was declared."""
        return self.curriculum_running or self.curriculum

    @cached_property
    def modules(self) -> tuple[Module, ...]:
        """The model's modules as the recorder listed them, in their order."""
        listed = self.raw.get("modules")
        return tuple(Module.parse(one) for one in (listed if isinstance(listed, list) else ()))

    def window(self) -> int:
        """Steps that a rule looks back over: 2 % of the planned ones, at least 20. A log may have a row in fifty."""
        return max(20, round(0.02 * (self.total_steps or 0)))


def _whole(value: Any) -> int | None:
    as_float = number(value)
    return int(as_float) if as_float is not None and as_float == int(as_float) else None


def _component(raw: Any) -> Component:
    fields = mapping(raw)
    return Component(
        unit=text(fields.get("unit")) or "",
        role=text(fields.get("role")) or "task",
        description=text(fields.get("description")) or "",
    )

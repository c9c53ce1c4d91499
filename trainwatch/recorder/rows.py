"""What the loop handed over -> rows of the file. Runs on the writer's thread: here nothing costs the loop."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trainwatch.recorder.plain import plain
from trainwatch.schema import NAME, json_number

if TYPE_CHECKING:
    from trainwatch.recorder.transfer import Cargo

TAKEN = "~taken"
"""Under this name a row's fields carry {optimizer: steps it took since the row before}; it is never written."""

_RESERVED = {"step": "clock/step", "time": "log/time", "elapsed": "log/elapsed", "kind": "log/kind"}
_CHANNEL = re.compile(rf"{NAME.pattern}(?:[/~]{NAME.pattern})*")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.~/-]+")

Say = Callable[..., None]


class Record:
    """One record as the loop leaves it: host fields, and whatever is still on its way from a device."""

    __slots__ = ("cargo", "elapsed", "fields", "kind", "step", "time")

    def __init__(self, kind: str, time: float, elapsed: float, step: int | None, fields: dict[str, Any]) -> None:
        self.kind, self.time, self.elapsed, self.step, self.fields = kind, time, elapsed, step, fields
        self.cargo: list[Cargo] = []

    def ready(self) -> bool:
        """Whether all of it is on the host."""
        return all(cargo.ready() for cargo in self.cargo)

    def head(self) -> dict[str, Any]:
        """The keys that every line starts with."""
        head: dict[str, Any] = {"kind": self.kind, "time": self.time, "elapsed": self.elapsed}
        if self.step is not None:
            head["step"] = self.step
        return head


class Rows:
    """Makes rows of records, and keeps what a row needs from those before it: steps applied, the stage, known names."""

    def __init__(self, say: Say, stages: list[Mapping[str, Any]], applied: Mapping[str, int] | None = None) -> None:
        before = dict(applied or {})
        self._say, self._stages, self._applied = say, stages, before.pop("applied", 0)
        self._applied_by = before
        self._stage: object = None
        self._good: set[str] = set()
        self._renamed: dict[str, str] = {}

    def build(self, record: Record) -> Iterator[dict[str, Any]]:
        """The lines of one record, in order: a change of stage is told right before the row that shows it."""
        head, fields = record.head(), record.fields
        for cargo in record.cargo:
            unload(cargo, fields)
        if record.kind not in ("step", "eval"):
            yield strict(head | told(fields, head), fields)
            return
        if record.kind == "step":
            self._count(head, fields)
        if not fields.keys() <= self._good:
            fields = self._checked(fields)
        if record.kind == "step" and "stage" in fields and fields["stage"] != self._stage:
            yield from self._stage_event(head, fields["stage"])
        yield strict(head | fields, fields)

    def _count(self, head: dict[str, Any], fields: dict[str, Any]) -> None:
        """Count applied steps; a loop that logs ``applied`` itself knows better."""
        taken = fields.pop(TAKEN, None)
        if taken is not None:
            self._count_each(head, taken)
        given = fields.pop("applied", None)
        if isinstance(given, int | float) and math.isfinite(given):
            self._applied = int(given)
        elif not taken or any(taken.values()):
            self._applied += 1
        head["applied"] = self._applied

    def _count_each(self, head: dict[str, Any], taken: dict[str, int]) -> None:
        """Each of several optimisers by its own steps: there may be many in a row's time, or none."""
        if len(taken) > 1:
            for name, steps in taken.items():
                self._applied_by[f"applied/{name}"] = self._applied_by.get(f"applied/{name}", 0) + steps
            head.update(self._applied_by)

    def _stage_event(self, head: dict[str, Any], stage: object) -> Iterator[dict[str, Any]]:
        before, self._stage = self._stage, stage
        if before is not None:
            event = {"event": "stage", "from": before, "to": stage, "name": self._stage_name(stage)}
            yield strict({**head, "kind": "event", **event}, event)

    def _stage_name(self, stage: object) -> object:
        index = int(stage) if isinstance(stage, int | float) and math.isfinite(stage) else -1
        return self._stages[index].get("name") if 0 <= index < len(self._stages) else None

    def _checked(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields under names that the format allows."""
        return {self._name(str(name)): value for name, value in fields.items()}

    def _name(self, name: str) -> str:
        if name in self._good:
            return name
        if name not in self._renamed and name not in _RESERVED and _CHANNEL.fullmatch(name):
            self._good.add(name)
            return name
        if name not in self._renamed:
            self._renamed[name] = _RESERVED.get(name) or clean_name(name)
            why = "is written by the recorder itself" if name in _RESERVED else f"does not match {NAME.pattern}"
            self._say(f"name {name}", f"the channel {name!r} {why}; it is recorded as {self._renamed[name]!r}")
        return self._renamed[name]


def told(fields: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, Any]:
    """The details of an event, sample, checkpoint or end as JSON; numbers stay for ``strict`` to judge."""
    safe = {name: value if isinstance(value, float) else plain({name: value})[name] for name, value in fields.items()}
    return {name: value for name, value in safe.items() if name not in head}


def clean_name(name: str) -> str:
    """A name that the format allows, as near to ``name`` as that can be."""
    parts = (part.strip("~") for part in _NOT_IN_A_NAME.sub("_", name).split("/"))
    return "/".join(re.sub("~+", "~", part) for part in parts if part) or "_"


def strict(row: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The row with ``null`` for every value that is no finite number, and its name under ``nonfinite``."""
    try:
        if math.isfinite(sum(fields.values())):
            return row
    except (TypeError, OverflowError, ValueError):
        pass
    nonfinite: dict[str, object] = {}
    for name in fields:
        value = row.get(name)
        if type(value) is not float and isinstance(value, float):
            row[name] = value = float(value)
        if isinstance(value, float) and not math.isfinite(value):
            row[name], nonfinite[name] = None, json_number(value)
    if nonfinite:
        row["nonfinite"] = nonfinite
    return row


def unload(cargo: Cargo, fields: dict[str, Any]) -> None:
    """Put what came from a device into the fields."""
    sums: dict[str, list[float]] = {}
    grams: dict[str, dict[tuple[str, str], float]] = {}
    counts = dict.fromkeys(SHARES, 0.0)
    for part, numbers in cargo.unload():
        if part.role == "value":
            fields.update(zip(part.names, numbers, strict=True))
        elif part.role == "mean":
            for name, number in zip(part.names, numbers, strict=True):
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += number
                total[1] += part.count
        elif part.role == "skip":
            _skipped(part.names[0], bool(numbers[0]), fields)
        else:
            counts[part.role] += part.count
            gram = grams.setdefault(part.role, {})
            for pair, number in zip(upper(part.names), numbers, strict=True):
                gram[pair] = gram.get(pair, 0.0) + number
    fields.update({name: total / n for name, (total, n) in sums.items()})
    for role, gram in grams.items():
        fields.update(shares(gram, counts[role], SHARES[role]))


def _skipped(optimizer: str, skipped: bool, fields: dict[str, Any]) -> None:
    """What a fused optimiser did, which only the device knew."""
    taken = fields.setdefault(TAKEN, {})
    taken[optimizer] = taken.get(optimizer, 1) - skipped
    fields["amp/skipped"] = int(skipped or fields.get("amp/skipped", 0))


def upper(names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The pairs of the upper triangle, row by row."""
    for index, first in enumerate(names):
        for second in names[index:]:
            yield first, second


SHARES = {
    "gram": ("component_grad", "grad_share", "grad_cosine"),
    "param_gram": ("param_grad", "param_share", "param_cosine"),
}
"""What norm, share and cosine are called: of gradients at one tensor, and over the parameters."""


def shares(gram: Mapping[tuple[str, str], float], whole: float, called: tuple[str, str, str]) -> dict[str, float]:
    """Norm, share and cosine of the components' gradients from their Gram matrix, added up over micro-batches.

    At a tensor that sum is the Gram matrix of the gradients at the micro-batches' tensors laid end to end; over
    parameters it is that of their sums. Divided by the square of ``whole``, the sum of the micro-batches' shares, it is
    that of the step's loss, their mean. A norm of 0 has no cosine; while any norm is not finite no share is a number,
    and only the components that are at fault are named.
    """
    norms = {a: math.sqrt(value) / whole if value >= 0 else value for (a, b), value in gram.items() if a == b}
    norm_of, share_of, cosine_of = called
    fields = {f"{norm_of}/{name}": norm for name, norm in norms.items()}
    sick = [name for name, norm in norms.items() if not math.isfinite(norm)]
    total = sum(norms.values())
    if sick:
        fields.update({f"{share_of}/{name}": math.nan for name in sick})
    elif total > 0:
        fields.update({f"{share_of}/{name}": norm / total for name, norm in norms.items()})
    for (a, b), dot in gram.items():
        scale = norms[a] * norms[b] * whole**2
        if a != b and scale > 0 and math.isfinite(scale) and math.isfinite(dot):
            fields[f"{cosine_of}/{a}~{b}"] = max(-1.0, min(1.0, dot / scale))
    return fields

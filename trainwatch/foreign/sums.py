"""What the sums of somebody else's log prove: which names are components of the loss, and which are their weights.

``Signal: 3.75, PeakAmp: 3256742.75`` behind a loss are its components if they sum to it, digit for digit, row for row.
A log may hold ``kl_weight`` beside a ``kl_loss`` that is weighted already. Only where the total is the sum of weight x
component, and is not the sum of the components, the values are what the weight multiplies.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainwatch.foreign.channels import COEFFICIENTS, PART, WORD, Place

if TYPE_CHECKING:
    from trainwatch.foreign.counters import Row

Pair = tuple[str, str]  # a name, and the split that the lines around it say
Places = Mapping[Pair, Place]

MARKS = COEFFICIENTS | {"w"}
ENOUGH = 5  # rows that hold a total and its components
SHARE = 0.9  # of them: one may stand on both sides of a change of the weight
NEAR = 0.01  # of the total: four digits of each part, and a regulariser that is not logged
SINGLE = 1e-7  # of a number: what single precision leaves open
FAR = 0.05  # of the total: what the plain sum must be off by in some row, or nothing is shown


@dataclass(frozen=True)
class Proof:
    """What was proved: names that are components of a total, names that are weights, with their components, and
    whether the steps are ``lengths`` of single episodes.
    """

    components: tuple[Pair, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    lengths: bool = False

    def with_more(self, components: Iterable[Pair], weights: Mapping[str, str], *, lengths: bool) -> Proof:
        """This, and what was proved since."""
        components = tuple(dict.fromkeys((*self.components, *components)))
        return Proof(components, {**self.weights, **weights}, self.lengths or lengths)


NOTHING = Proof()


def weights(rows: Sequence[Row], places: Places) -> dict[str, str]:
    """The names that are weights, with their components; nothing unless the sums prove it."""
    parts = {name: place for (name, said), place in places.items() if not said and not place.split}
    total = next((name for name, place in parts.items() if place.channel == "loss"), None)
    losses = {name: place.channel[5:] for name, place in parts.items() if place.channel.startswith("loss/")}
    named = _named(parts, losses)
    if total is None or not named:
        return {}
    complete = [row.values for row in rows if total in row.values and losses.keys() & row.values.keys()]
    known = [values for values in complete if all(map(math.isfinite, values.values()))]
    if len(known) < ENOUGH:
        return {}
    of = {component: name for name, component in named.items()}
    plain = [_off(values, total, losses, {}) for values in known]
    weighed = [_off(values, total, losses, of) for values in known]
    shown = sum(off <= NEAR for off in weighed) >= SHARE * len(weighed) and max(plain) >= FAR
    return named if shown else {}


def components(rows: Sequence[Row], places: Places) -> list[Pair]:
    """Names of measures that follow a total and sum to it, as (name, split); those nearest to it, if several could."""
    found: list[Pair] = []
    for (total, said), place in places.items():
        if place.channel != "loss":
            continue
        known = [row.values for row in rows if row.split == said and total in row.values]
        lists = {tuple(_behind(values, total, said, places)) for values in known}
        if len({values[total] for values in known}) >= ENOUGH and len(lists) == 1:  # rows that repeat show nothing
            found += [(name, said) for name in _summing(known, total, lists.pop())]
    return found


def _behind(values: Mapping[str, float], total: str, said: str, places: Places) -> Iterator[str]:
    """The measures that follow a total on its line, up to the first name that is something else."""
    names = list(values)
    for name in names[names.index(total) + 1 :]:
        if places[name, said].role not in ("measure", "loss"):
            return
        yield name


def _summing(known: Sequence[Mapping[str, float]], total: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """As many of the names as sum to the total in every row, within what rounding explains; none if none do."""
    if len(names) < 2:
        return ()
    numbers = np.array([[values[name] for name in (total, *names)] for values in known])
    with np.errstate(invalid="ignore", over="ignore"):
        apart = _rounding(numbers)
    off = np.where(np.isfinite(apart), apart, np.inf).max(axis=0)[2:]
    best = int(np.argmin(off))
    return names[: best + 2] if off[best] < 1 else ()


def _rounding(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """The gap between a total, the first of each row, and the sum of those after it up to each, in units of what the
    printed digits leave open. [rows, 1 + names]
    """
    digits = np.array([[_digits(number) for number in row] for row in numbers.tolist()], dtype=np.float64)
    finest = 10.0 ** -np.maximum.accumulate(digits, axis=1)
    open_ = 0.5 * np.arange(1, numbers.shape[1] + 1) * finest + SINGLE * np.cumsum(np.abs(numbers), axis=1)
    return np.abs(np.cumsum(numbers, axis=1) - 2 * numbers[:, :1]) / open_


def _digits(number: float) -> int:
    """After the point, as many as the number is printed with; of 1e-05 five."""
    exponent = decimal.Decimal(repr(number)).as_tuple().exponent if math.isfinite(number) else 0
    return -int(exponent)


def _named(parts: Mapping[str, Place], losses: Mapping[str, str]) -> dict[str, str]:
    """Names of measures that say weight and a component: ``precursor_loss_weight``, ``lambda_kl``."""
    stems = {tuple(_words(component)): component for component in losses.values()}
    found: dict[str, str] = {}
    for name in (name for name, place in parts.items() if place.role == "measure"):
        words = _words(name)
        marked = [word for word in (words[:1] + words[-1:]) if word in MARKS]
        left = [word for word in words if word not in MARKS]
        component = next((stems[tail] for n in range(len(left)) if (tail := tuple(left[n:])) in stems), None)
        if marked and component is not None and component not in found.values():
            found[name] = component
    return found


def _words(name: str) -> list[str]:
    words: Iterable[str] = (part.lower() for word in WORD.findall(name) for part in PART.findall(word))
    return [word for word in words if word not in ("loss", "losses")]


def _off(values: Mapping[str, float], total: str, losses: Mapping[str, str], of: Mapping[str, str]) -> float:
    """By how much of it the total is not the sum of its components; without a weight each counts as 1."""
    told = sum(values[name] * values.get(of.get(part, ""), 1.0) for name, part in losses.items() if name in values)
    return abs(told - values[total]) / max(abs(values[total]), 1e-12)

"""Copies of what a rule remembers: a live face makes dozens at every look, and :func:`copy.deepcopy` takes thrice as
long, as it asks every value how it wants to be copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, TypeVar

import numpy as np

State = TypeVar("State")

Known = dict[int, Any]
"""Copies by the identity of what they were made of: what two fields share is shared in the copy as well."""


def copied(state: State) -> State:
    """An independent copy of dataclasses, containers and arrays; a frozen dataclass, like a number, is its own."""
    return _copied(state, {})  # type: ignore[no-any-return]


def _copied(value: Any, known: Known) -> Any:
    copy = COPIES.get(type(value))
    if copy is None:
        copy = COPIES[type(value)] = _of_fields if _changes(type(value)) else _itself
    if copy is _itself:
        return value
    if id(value) not in known:
        known[id(value)] = copy(value, known)
    return known[id(value)]


def _changes(kind: type) -> bool:
    return is_dataclass(kind) and not kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def _itself(value: Any, known: Known) -> Any:  # noqa: ARG001
    return value


def _of_fields(value: Any, known: Known) -> Any:
    copy = object.__new__(type(value))
    vars(copy).update(_of_dict(vars(value), known))
    return copy


def _of_dict(value: dict[Any, Any], known: Known) -> dict[Any, Any]:
    return {key: _copied(item, known) for key, item in value.items()}


def _of_list(value: list[Any], known: Known) -> list[Any]:
    return [_copied(item, known) for item in value]


def _of_tuple(value: tuple[Any, ...], known: Known) -> tuple[Any, ...]:
    return tuple([_copied(item, known) for item in value])


def _of_set(value: set[Any], known: Known) -> set[Any]:  # noqa: ARG001
    return set(value)


def _of_array(value: np.ndarray, known: Known) -> np.ndarray:  # noqa: ARG001
    return value.copy()


COPIES: dict[type, Callable[[Any, Known], Any]] = {
    dict: _of_dict,
    list: _of_list,
    tuple: _of_tuple,
    set: _of_set,
    np.ndarray: _of_array,
}
"""How a kind of value is copied; other kinds are added as they are met."""

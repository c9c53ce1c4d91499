"""Copies of what a rule remembers: a live face makes dozens at every look, and :func:`copy.deepcopy` takes thrice
as long, as it asks every value how it wants to be copied.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import is_dataclass
from typing import Any, TypeVar

import numpy as np

State = TypeVar("State")

Known = dict[int, Any]
"""Copies by the identity of what they were made of: what two fields share is shared in the copy as well."""

Copy = Callable[[Any, Known], Any]
PLAIN = (int, float, str, bytes, frozenset, np.generic, type(None))


def copied(state: State) -> State:
    """An independent copy of dataclasses, containers and arrays; a frozen dataclass, like a number, is its own."""
    return _copied(state, {})  # type: ignore[no-any-return]


def _copied(value: Any, known: Known) -> Any:
    if id(value) not in known:
        known[id(value)] = _copy_of(type(value))(value, known)
    return known[id(value)]


def _copy_of(kind: type) -> Copy:
    """How a kind of value is copied."""
    if kind not in COPIES:
        fields = is_dataclass(kind)
        frozen = fields and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        COPIES[kind] = _itself if frozen or issubclass(kind, PLAIN) else _of_fields if fields else _of_other
        if COPIES[kind] is _itself:
            FIXED.add(kind)
    return COPIES[kind]


def _itself(value: Any, known: Known) -> Any:  # noqa: ARG001
    return value


def _of_other(value: Any, known: Known) -> Any:
    return deepcopy(value, known)


def _of_fields(value: Any, known: Known) -> Any:
    copy = object.__new__(type(value))
    vars(copy).update(_of_dict(vars(value), known))
    return copy


def _of_dict(value: dict[Any, Any], known: Known) -> dict[Any, Any]:
    return {key: item if type(item) in FIXED else _copied(item, known) for key, item in value.items()}


def _of_list(value: list[Any], known: Known) -> list[Any]:
    return [item if type(item) in FIXED else _copied(item, known) for item in value]


def _of_tuple(value: tuple[Any, ...], known: Known) -> tuple[Any, ...]:
    return tuple(_of_list(list(value), known))


def _of_set(value: set[Any], known: Known) -> set[Any]:  # noqa: ARG001
    return set(value)


def _of_array(value: np.ndarray, known: Known) -> np.ndarray:  # noqa: ARG001
    return value.copy()


COPIES: dict[type, Copy] = {
    dict: _of_dict,
    list: _of_list,
    tuple: _of_tuple,
    set: _of_set,
    np.ndarray: _of_array,
}
FIXED: set[type] = set()  # kinds of values that never change, as they are met

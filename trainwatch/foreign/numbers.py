"""Numbers in nested objects, also those that were written as text because JSON has no name for them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

DEEPEST = 8  # levels of nesting that are looked into


def flattened(record: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, float]]:
    """Every number in an object under its path; a bool is no number."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and depth < DEEPEST:
            yield from flattened(value, f"{name}/", depth + 1)
        elif (number := as_number(value)) is not None:
            yield name, number


def as_number(value: Any) -> float | None:
    """A number, also one that was written as text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?(?:[\d.]+(?:[eE][-+]?\d+)?|(?i:nan|inf|infinity))\s*", value):
        try:
            return float(value)
        except ValueError:
            return None
    return None

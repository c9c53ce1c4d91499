"""What a page asks to see of a run's plots: in its address, or by the controls above them. No Dash in here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

from trainwatch.axis import AGAINST

SCALES: Final = {"auto": None, "linear": False, "log": True}
X_SCALES: Final = {"linear": False, "log": True}
SMOOTH: Final = ("0", "10", "50", "250")
"""Half-lives in rows that a page offers."""
RANGE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)-(\d{1,15}(?:\.\d{1,9})?)")


@dataclass(frozen=True)
class Asked:
    """What a page asks to see. ``ends`` are positions on the axis ``unit``; None: the whole run."""

    against: str = "step"
    scale: str = "auto"
    smooth: int = 0
    unit: str = "step"
    ends: tuple[float, float] | None = None
    x_scale: str = "linear"

    @classmethod
    def of(cls, look: Any, span: Any, units: tuple[str, ...] = AGAINST) -> Asked:
        """From what a page keeps; whatever makes no sense there is left at its default."""
        look = look if isinstance(look, Mapping) else {}
        span = span if isinstance(span, Mapping) else {}
        return cls(
            _one_of(look.get("against"), units),
            _one_of(look.get("scale"), tuple(SCALES)),
            int(_one_of(str(look.get("smooth")), SMOOTH)),
            _one_of(span.get("unit"), units),
            _ends(span.get("ends")),
            _one_of(look.get("x_scale"), tuple(X_SCALES)),
        )

    @classmethod
    def at(cls, search: str, units: tuple[str, ...] = AGAINST) -> Asked:
        """From an address: ``?x=epoch&xscale=log&y=log&smooth=50&step=331-505``."""
        said = {name: values[0] for name, values in parse_qs((search or "").lstrip("?")).items()}
        unit = next((name for name in units if RANGE.fullmatch(said.get(name, ""))), "step")
        found = RANGE.fullmatch(said.get(unit, ""))
        ends = [float(found[1]), float(found[2])] if found else None
        names = {"against": "x", "x_scale": "xscale", "scale": "y", "smooth": "smooth"}
        look = {kept: said.get(name) for kept, name in names.items()}
        return cls.of(look, {"unit": unit, "ends": ends}, units)

    @property
    def kept(self) -> tuple[dict[str, str], dict[str, Any] | None]:
        """The look and the span as a page keeps them."""
        span = {"unit": self.unit, "ends": list(self.ends)} if self.ends else None
        look = {"against": self.against, "x_scale": self.x_scale, "scale": self.scale, "smooth": str(self.smooth)}
        return look, span


def _one_of(value: Any, known: tuple[str, ...]) -> str:
    return value if value in known else known[0]


def _ends(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    if not all(isinstance(end, int | float) and math.isfinite(end) for end in value):
        return None
    first, last = (min(max(float(end), -(2.0**53)), 2.0**53) for end in value)
    return (first, last) if first < last else None


WHOLE: Final = Asked()

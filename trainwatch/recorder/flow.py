"""Which components of a loss are in the sum though no gradient flows from them: a tensor says so, without its value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from trainwatch.recorder.values import is_tensor

SURE: Final = 20  # sums in a row: a component may be a constant 0 where a batch has nothing for it


class Flow:
    """Over all sums of a run. A component that had a gradient is not looked at any more."""

    def __init__(self) -> None:
        self._flows: set[str] = set()
        self._without: Counter[str] = Counter()
        self._since: dict[str, int] = {}
        self._told: set[str] = set()

    def see(self, terms: Mapping[str, Any], step: int) -> Iterator[dict[str, Any]]:
        """One sum, of weight x raw; an event for each component of which something new is known.

        A number of Python's never has a gradient, and says nothing.
        """
        unknown = [name for name, term in terms.items() if name not in self._flows and is_tensor(term)]
        for name in unknown:
            if terms[name].requires_grad:
                self._flows.add(name)
                if name in self._told:
                    yield {"message": f"a gradient flows from {name} again", "gradient_again": name}
        if not self._flows:
            return  # nothing here is differentiated: the loop sums elsewhere
        for name in unknown:
            if name not in self._flows | self._told:
                self._without[name] += 1
                self._since.setdefault(name, step)
                if self._without[name] == SURE:
                    self._told.add(name)
                    text = f"no gradient flows from {name}: its tensor requires none"
                    yield {"message": text, "no_gradient": name, "since": self._since[name]}

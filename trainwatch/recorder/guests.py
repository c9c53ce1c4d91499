"""What all recordings in other people's loops share: they are guests there."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


def guarded(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of a class with a ``watch``: a fault of ours is told as the Recorder tells its own; the loop goes on."""

    @wraps(hook)
    def run(self: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return hook(self, *arguments, **named)
        except Exception as fault:
            if self.watch is not None:
                self.watch._fault(f"{type(self).__module__}.{type(self).__name__}.{hook.__name__}()", fault)

    return run

"""What all recordings in other people's loops share: they are guests there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any

PATIENCE = timedelta(seconds=60)  # that one process waits for the others' answer: none of them may be held up for good


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


def agreed_end(watch: Any, early: bool) -> dict[str, str]:
    """How a loop ended that its framework ran: what ``close`` is told."""
    if not early:
        return {"status": "finished"}
    return {"status": "stopped", "reason": "stop file" if watch.should_stop else "the Trainer was told to stop"}


class Agreement:
    """Whether to stop, as all processes of a loop see it: one that left alone would leave the others waiting.

    Asked at one step and answered at the next: one byte goes around between the hosts meanwhile, the device is not
    asked, and nobody waits. Where that cannot be, processes beside others never stop by themselves.
    """

    def __init__(self, processes: int) -> None:
        self._alone = processes <= 1
        self._group: Any = None
        self._asked: tuple[Any, Any] | None = None
        torch = sys.modules.get("torch")
        if self._alone or torch is None or not torch.distributed.is_initialized():
            return
        try:
            self._group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        except Exception as fault:
            print(f"trainwatch: no stop file will be heeded: the processes cannot talk ({fault})", file=sys.stderr)

    def reached(self, wants: bool) -> bool:
        """Whether to stop after this step; every process calls it at every step."""
        if self._group is None:
            return self._alone and wants
        try:
            torch: Any = sys.modules["torch"]
            before, flag = self._asked, torch.tensor([wants], dtype=torch.uint8)
            reduce, most = torch.distributed.all_reduce, torch.distributed.ReduceOp.MAX
            self._asked = flag, reduce(flag, most, group=self._group, async_op=True)
            if before is None:
                return False
            before[1].wait()
            return bool(before[0].item())
        except Exception:
            self._group = None
            raise

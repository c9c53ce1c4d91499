"""Processes that train one model together, each with its share of the batch: forks of this one, over gloo."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def side_by_side(path: Path, ranks: int, work: Callable[[int], None]) -> None:
    """Each rank's work in a process of its own; rank 0's is this one. They meet at a file beside `path`."""
    meeting, children = path.with_suffix(".meeting"), []
    for number in range(1, ranks):
        child = os.fork()
        if not child:
            torch.set_num_threads(1)  # a fork has none of its parent's threads, and would wait for them
            with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):
                _joined(meeting, ranks, number, work)
            os._exit(0)
        children.append(child)
    try:
        _joined(meeting, ranks, 0, work)
    finally:
        for child in children:
            os.waitpid(child, 0)
        meeting.unlink(missing_ok=True)


def _joined(meeting: Path, ranks: int, number: int, work: Callable[[int], None]) -> None:
    store = dist.FileStore(str(meeting), ranks)
    dist.init_process_group("gloo", store=store, rank=number, world_size=ranks, timeout=timedelta(seconds=60))
    try:
        work(number)
    finally:
        dist.destroy_process_group()

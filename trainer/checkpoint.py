"""Checkpoints: written atomically, read without pickles, the best and the last few kept.

Samples are pure functions of (seed, index), so where the data stands follows from the step and needs no state.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from trainer.config import UsageError

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
NAME = re.compile(r"step_(\d+)\.pt")


@dataclass
class Checkpoints:
    """The checkpoints of one run: `step_NNNNNNNN.pt`, and the links `latest.pt` and `best.pt` to two of them."""

    folder: Path
    keep: int

    def save(self, state: dict[str, Any], step: int, best: bool) -> Path:
        """Write the state after `step` steps; a reader sees the old file or the new one, never half of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{step:08d}.pt"
        unfinished = self.folder / f".{path.name}.{os.getpid()}"
        with unfinished.open("wb") as file:
            torch.save({"format": FORMAT, "step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        for link in ["latest.pt"] + ["best.pt"] * best:
            self._link(link, path)
        self._prune()
        return path

    def steps(self) -> dict[int, Path]:
        """The checkpoints there are, by step."""
        found = ((NAME.fullmatch(path.name), path) for path in sorted(self.folder.glob("step_*.pt")))
        return {int(match.group(1)): path for match, path in found if match}

    def find(self, wanted: str) -> Path | None:
        """`auto` (the newest; None if there is none) or `before:STEP` (the newest up to it). Raises UsageError."""
        there = self.steps()
        if wanted == "auto":
            return there[max(there)] if there else None
        asked = wanted.removeprefix("before:")
        if not asked.isdecimal():
            raise UsageError(f"--resume {wanted}: write before:STEP, with a whole number.")
        early = [step for step in there if step <= int(asked)]
        if not early:
            steps = ", ".join(map(str, there)) or "none"
            raise UsageError(f"--resume {wanted}: {self.folder} has no checkpoint up to there (steps: {steps}).")
        return there[max(early)]

    def _link(self, name: str, path: Path) -> None:
        unfinished = self.folder / f".{name}.{os.getpid()}"
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(path.name)
        unfinished.replace(self.folder / name)

    def _prune(self) -> None:
        """Keep the last few, and the best."""
        best = self.folder / "best.pt"
        kept = {best.resolve().name} if best.exists() else set()
        for _, path in sorted(self.steps().items())[: -self.keep]:
            if path.name not in kept:
                path.unlink()


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint. Tensors and plain data only: a file that would run code is refused."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(f"checkpoint {path} does not exist; try --resume auto.") from error
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"checkpoint {path} cannot be read ({reason}); try an earlier one.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UsageError(f"checkpoint {path} was not written by this trainer; name another.")
    return state

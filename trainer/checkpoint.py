"""Checkpoints: written atomically, read without pickles, the best and the last few kept.

Samples are pure functions of (seed, index), so where the data stands follows from the step and needs no state.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from trainer.config import UsageError

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 2
NAME = re.compile(r"step_(\d+)\.pt")
ORPHAN = re.compile(r"\.(step_\d+|latest|best)\.pt\.\d+")


class SaveError(Exception):
    """A checkpoint could not be written, in a sentence without its full stop; what was there before is untouched."""


@dataclass
class Checkpoints:
    """The checkpoints of one run: `step_NNNNNNNN.pt`, and the links `latest.pt` and `best.pt` to two of them."""

    folder: Path
    keep: int

    def begin(self, step: int) -> None:
        """Make the folder ready for a process that goes on after `step` (0 for a new run). Raises UsageError.

        What an earlier future of the run left above that step goes to `superseded/`, in place of what was there.
        """
        aside = self.folder / "superseded"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for orphan in self.folder.glob(".*"):  # half-written by a process that was killed
                if ORPHAN.fullmatch(orphan.name):
                    orphan.unlink(missing_ok=True)
            later = [path for number, path in self.steps().items() if number > step]
            if later:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
            for path in later:
                path.replace(aside / path.name)
            for link in (self.folder / name for name in ("latest.pt", "best.pt")):
                if link.is_symlink() and not link.exists():
                    link.unlink()
            if there := self.steps():
                self._link("latest.pt", there[max(there)])
        except OSError as error:
            raise UsageError(f"checkpoints cannot be written to {self.folder}: {error.strerror}.") from error

    def save(self, state: dict[str, Any], step: int, best: bool) -> Path:
        """Write the state after `step` steps; a reader sees the old file or the new one, never half of it.

        Raises SaveError, with nothing half-written left behind, where the disk does not take it.
        """
        path = self.folder / f"step_{step:08d}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write({"format": FORMAT, "step": step, **state}, path)
            self._settle()
            for link in ["latest.pt"] + ["best.pt"] * best:
                self._link(link, path)
            self._prune(path)
        except (OSError, RuntimeError) as error:
            # torch.save tells of a failed write by a RuntimeError about its own position in the file
            refused = error if isinstance(error, OSError) else error.__context__
            if not isinstance(refused, OSError):
                raise
            raise SaveError(f"checkpoint {path} could not be written: {refused.strerror}") from error
        return path

    def _write(self, state: dict[str, Any], path: Path) -> None:
        unfinished = self.folder / f".{path.name}.{os.getpid()}"
        try:
            with unfinished.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def steps(self) -> dict[int, Path]:
        """The checkpoints there are, by step."""
        found = ((NAME.fullmatch(path.name), path) for path in sorted(self.folder.glob("step_*.pt")))
        return {int(match.group(1)): path for match, path in found if match}

    def find(self, wanted: str) -> Path | None:
        """`auto` (the newest; None if there is none) or `before:STEP` (the newest up to it). Raises UsageError."""
        there = self.steps()
        if wanted == "auto":
            latest = (self.folder / "latest.pt").resolve()
            if latest in {path.resolve() for path in there.values()}:
                return latest
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
        try:
            unfinished.symlink_to(path.name)
            unfinished.replace(self.folder / name)
        finally:
            unfinished.unlink(missing_ok=True)

    def _settle(self) -> None:
        """Wait until the folder's entries are on the disk, so that a power cut leaves the new name or the old."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _prune(self, written: Path) -> None:
        """Keep the last few, the best, and the one just written."""
        best = self.folder / "best.pt"
        kept = {written.name} | ({best.resolve().name} if best.exists() else set())
        for _, path in sorted(self.steps().items())[: -self.keep]:
            if path.name not in kept:
                path.unlink()


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint. Tensors and plain data only: a file that would run code is refused."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(f"checkpoint {path} does not exist; try --resume auto.") from error
    except OSError as error:
        raise UsageError(f"checkpoint {path} cannot be read ({error.strerror}); try an earlier one.") from error
    except Exception as error:  # what torch says of it is about pickles and zip archives
        wrong = "it is empty, cut short, or no checkpoint"
        raise UsageError(f"checkpoint {path} cannot be read: {wrong}; try an earlier one.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UsageError(f"checkpoint {path} was not written by this version of the trainer; name another.")
    return state

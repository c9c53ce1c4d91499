"""Hugging Face's ``trainer_state.json``: the whole history, written anew with every checkpoint.

By default the Trainer replaces a loss that is not finite by the mean of those before it, in the log alone
(``logging_nan_inf_filter``): its loss is no proof of health, its gradient norm is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainwatch.foreign.assembly import Assembler
from trainwatch.foreign.counters import Row
from trainwatch.foreign.rewritten import Rewritten
from trainwatch.readers import ReadError
from trainwatch.run import Run

NAME = "Hugging Face trainer_state.json"

SUMMARY = ("train_runtime", "total_flos")  # of the row behind the last: means over the whole training
RUNTIME = re.compile(r"eval_(?:(?P<name>.+)_)?runtime")
LARGEST = 1 << 30  # bytes; a history of a million rows takes 0.2 GB
FILTERED = (
    "the Trainer writes the mean of earlier losses in place of one that is not finite, unless logging_nan_inf_filter "
    "is off: look at the gradient norm"
)


def sniff(path: Path, head: bytes) -> bool:  # noqa: ARG001  (by content)
    """A JSON object with a log_history and a global_step."""
    return bool(re.match(rb"(?:\xef\xbb\xbf)?\s*\{", head)) and (
        b'"log_history"' in head or (b'"best_model_checkpoint"' in head and b'"global_step"' in head)
    )


class TrainerState(Rewritten):
    """One such file."""

    def read(self) -> list[Run]:
        """The training whose history it is. Raises ReadError."""
        if (size := self.path.stat().st_size) > LARGEST:
            raise ReadError(f"{self.path}: has {size:,} bytes, more than a history of steps needs.")
        assembler = Assembler(self.path, NAME)
        state = self._state()
        assembler.name = _run_name(self.path)
        assembler.add(_rows(state))
        assembler.close()
        assembler.note(FILTERED)
        return assembler.runs

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads(self.path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ReadError(f"{self.path}: is cut off or no JSON ({error}); read an earlier checkpoint's.") from None
        if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
            raise ReadError(f"{self.path}: has no log_history, so there is no step to judge.")
        return state


def _run_name(path: Path) -> str:
    """The folder that the run wrote its checkpoints into."""
    folder = path.absolute().parent
    return (folder.parent if folder.name.startswith("checkpoint-") else folder).name or path.stem


def _rows(state: dict[str, Any]) -> Iterator[Row]:
    """The history. Several evaluation sets are told apart by their own run time: ``eval_<name>_runtime``."""
    planned = {"step": float(state["max_steps"])} if isinstance(state.get("max_steps"), int) else {}
    history = [record for record in state["log_history"] if isinstance(record, dict)]
    sets = {found["name"] for record in history for key in record if (found := RUNTIME.fullmatch(str(key)))}
    named = sorted((name for name in sets if name), key=len, reverse=True)
    for record in history:
        if any(key in record for key in SUMMARY):
            continue
        numbers = {str(name): float(value) for name, value in record.items() if type(value) in (int, float)}
        split = next((name for name in named if any(key.startswith(f"eval_{name}_") for key in numbers)), "")
        if split:
            numbers = {re.sub(rf"^eval_{re.escape(split)}_", "", key): value for key, value in numbers.items()}
        yield Row(numbers, split, planned)


def open_file(path: Path) -> TrainerState:
    """The file at ``path``, nothing read yet."""
    return TrainerState(path)

"""The trainings that a benchmark needs: done once, side by side, each kept as a small compressed record.

A training is not done again while its record is there and tells of the same settings; so an interrupted benchmark goes
on where it stopped. Records hold no path and no name of the machine.
"""

from __future__ import annotations

import json
import lzma
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import trainwatch

sys.path.insert(0, str(Path(__file__).parents[1]))
from trainer import feed, train
from trainer.config import as_dict
from trainer.loading import load

SCRATCH = Path("logs/trainings")
MACHINE = ("host", "pid", "process_started", "command")
"""What a header says about the machine and not about the run."""
PLACES = ("name", "logs", "fault")
"""Settings that two runs of one kind may differ in."""


@dataclass(frozen=True)
class Training:
    """One run: its settings as key=value, and the step from which it is resumed once it is through (0: it is not)."""

    name: str
    settings: tuple[str, ...]
    resumed: int = 0

    def config(self) -> dict[str, Any]:
        """The whole config, but for what only says where things lie."""
        return _placeless(as_dict(load([], list(self.settings))[0]))


def ensure(trainings: list[Training], folder: Path, processes: int) -> None:
    """Do the trainings whose records are not in `folder`, so many at a time; 0 is one after the other, in here."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = list(dict.fromkeys(trainings))
    missing = [training for training in wanted if not there(training, folder)]
    _prepare(missing)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    began = time.monotonic()
    with Progress(*columns) as progress:
        task = progress.add_task(f"trainings ({len(wanted) - len(missing)} are there)", total=len(missing))
        for done, training in enumerate(_trained(missing, folder, processes), 1):
            left = (time.monotonic() - began) / done * (len(missing) - done)
            progress.update(task, completed=done, description=f"{training.name}; about {left / 60:.0f} min left")
            if not progress.console.is_terminal:
                print(f"{done} of {len(missing)}: {training.name}; about {left / 60:.0f} min left", flush=True)


def _prepare(trainings: list[Training]) -> None:
    """Build the shards that they read, so that no two processes do."""
    configs = [load([], list(training.settings))[0] for training in trainings]
    for config in {repr((config.data, feed.needed_lengths(config))): config for config in configs}.values():
        feed.prepare_data(config, feed.needed_lengths(config))


def read(training: Training, folder: Path) -> trainwatch.Run:
    """The run of a record that is there."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{training.name}.jsonl"
        path.write_bytes(lzma.decompress(_record(training, folder).read_bytes()))
        return trainwatch.read(path)


def there(training: Training, folder: Path) -> bool:
    """Whether the record is there, and of these settings."""
    try:
        with lzma.open(_record(training, folder)) as file:
            header = json.loads(file.readline())
    except (OSError, ValueError, lzma.LZMAError):
        return False
    return _placeless(header["config"]) == training.config()


def _record(training: Training, folder: Path) -> Path:
    return folder / f"{training.name}.jsonl.xz"


def _placeless(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in PLACES}


def _trained(trainings: list[Training], folder: Path, processes: int) -> Iterator[Training]:
    if not processes:
        for training in trainings:
            _train(training, folder)
            yield training
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_silence) as pool:
        running = {pool.submit(_train, training, folder): training for training in trainings}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    yield running.pop(future)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _silence() -> None:
    """A worker's own lines would tear the bar."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _train(training: Training, folder: Path) -> None:
    """Train, and keep the record. What was interrupted is not kept."""
    scratch = SCRATCH / training.name
    shutil.rmtree(scratch, ignore_errors=True)
    config, _ = load([], [*training.settings, f"logs={scratch}", f"name={training.name}"])
    outcome = train.main(config)
    if training.resumed and not outcome.stopped:
        outcome = train.main(config, resume=f"before:{training.resumed}")
    if outcome.stopped:
        raise KeyboardInterrupt(outcome.stopped)
    records = [json.loads(line) for line in outcome.path.read_bytes().splitlines()]
    kept = "".join(json.dumps(_anonymous(_shortened(record)), separators=(",", ":")) + "\n" for record in records)
    unfinished = folder / f".{training.name}.{os.getpid()}"
    unfinished.write_bytes(lzma.compress(kept.encode(), preset=9 | lzma.PRESET_EXTREME))
    unfinished.replace(_record(training, folder))
    shutil.rmtree(scratch)


def _anonymous(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if record["kind"] != "run" or key not in MACHINE}


def _shortened(value: Any) -> Any:
    """Numbers that came from float32 with the digits that float32 has: half the size, and the same number again."""
    if isinstance(value, dict):
        return {key: _shortened(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shortened(one) for one in value]
    with np.errstate(over="ignore"):
        same = isinstance(value, float) and float(np.float32(value)) == value
    return float(str(np.float32(value))) if same else value

"""The project's own trainer as a process of its own, which is gone when whoever asked for it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainwatch.errors import UserError

GRACE = 10.0  # seconds the trainer has for its last words


def checkout(what: str) -> Path:
    """The folder with the trainer: here, or where this package was installed from. ``what`` says who asks."""
    for place in (Path.cwd(), Path(__file__).resolve().parents[1]):
        if (place / "trainer" / "__main__.py").is_file() and (place / "configs" / "demo.yaml").is_file():
            return place
    raise UserError(f"{what} trainer is not part of the wheel; clone the repository and run it there.")


def words(arguments: Sequence[str]) -> list[str]:
    """The trainer's command line."""
    return [sys.executable, "-P", "-m", "trainer", *arguments]


@contextmanager
def training(
    place: Path, arguments: Sequence[str], log: Path, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The trainer of the checkout ``place``, run in ``folder`` (default: there), with what it says in ``log``."""
    paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as said:
        process = subprocess.Popen(
            words(arguments),
            cwd=folder or place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the trainer to end, and see to it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
    process.wait()

"""Where peptides with predicted intensities come from: shards that were built ahead, or drawn and predicted at once.

A shard is a pure function of (source, seed, peptides, length), so it does not matter who builds it, or when; what is
drawn at once is one of the generator that it is given. `sha256sum -c *.sha256` checks a folder of shards.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trainer.config import UsageError
from trainer.tasks.peptide.peptides import draw_charges, draw_from, draw_populated, split_rows
from trainer.tasks.peptide.spectra import PREDICTORS, SERIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

VERSION = 2  # of the shards' content and of what lies beside them: raise it when either changes
HEIGHT_SCALE = 65535.0  # intensities are stored as uint16 shares of the spectrum's largest
CHUNK = 100  # peptides that are predicted at once: a tenth of a second's work, so that a bar moves
REBUILD = "delete it and run `python -m trainer data build`"


class Peptides(Protocol):
    """A source of peptides and their fragments' intensities."""

    def pick(
        self, rng: np.random.Generator, split: str, length: int
    ) -> tuple[NDArray[np.uint8], int, NDArray[np.floating]]:
        """A peptide of the split: tokens [length], charge, and heights [ions, length - 1], shares of the largest."""
        ...


@dataclass(frozen=True)
class Online:
    """Peptides drawn and predicted when they are asked for: as many as there are, at a millisecond each."""

    source: str

    def pick(
        self, rng: np.random.Generator, split: str, length: int
    ) -> tuple[NDArray[np.uint8], int, NDArray[np.floating]]:
        """See Peptides."""
        tokens, charge = draw_from(rng, split, length), int(draw_charges(rng, 1)[0])
        return tokens, charge, PREDICTORS[self.source](tokens, charge)


@dataclass(frozen=True)
class Shard:
    """All peptides of one length: tokens uint8 [N, length], charge uint8 [N], heights uint16 [N, ions, length - 1]."""

    tokens: NDArray[np.uint8]
    charge: NDArray[np.uint8]
    heights: NDArray[np.uint16]
    rows: dict[str, NDArray[np.intp]]

    @classmethod
    def read(cls, path: Path) -> Shard:
        """A shard from its file. Raises UsageError where the file is not as it was written."""
        content = path.read_bytes()
        try:
            written = checksum_of(path).read_text().split()
        except OSError as error:
            raise UsageError(f"shard {path} has no checksum beside it; {REBUILD}.") from error
        if written != [hashlib.sha256(content).hexdigest(), path.name]:
            raise UsageError(f"shard {path} is not as it was written, by its checksum; {REBUILD}.")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            tokens, charge, heights = stored["tokens"], stored["charge"], stored["heights"]
        return cls(tokens, charge, heights, split_rows(tokens))


@dataclass
class Bank:
    """The shards under `folder`: one file a peptide length, built once, read by every run."""

    folder: Path
    source: str
    seed: int
    peptides: int

    def __post_init__(self) -> None:
        self._shards: dict[int, Shard] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A loader's process reads the shards that it needs itself."""
        return Bank, (self.folder, self.source, self.seed, self.peptides)

    def path(self, length: int) -> Path:
        """Where the shard of one length lies; its settings are in the name, so a stale one is never read."""
        settings = f"{self.source}-v{VERSION}-seed{self.seed}-n{self.peptides}"
        return self.folder / "peptides" / settings / f"length_{length:02d}.npz"

    def missing(self, lengths: Iterable[int]) -> list[int]:
        """The lengths that have no shard yet."""
        return [length for length in lengths if not self.path(length).exists()]

    def pick(
        self, rng: np.random.Generator, split: str, length: int
    ) -> tuple[NDArray[np.uint8], int, NDArray[np.floating]]:
        """See Peptides."""
        shard = self.shard(length)
        row = rng.choice(shard.rows[split])
        return shard.tokens[row], int(shard.charge[row]), shard.heights[row] / HEIGHT_SCALE

    def shard(self, length: int) -> Shard:
        """The shard of one length, kept in memory; built if it is missing. Raises UsageError for a damaged one."""
        if length not in self._shards:
            self.build(self.missing([length]))
            self._shards[length] = Shard.read(self.path(length))
        return self._shards[length]

    def build(self, lengths: list[int], workers: int = 0, report: Callable[[int, str], None] | None = None) -> None:
        """Predict and write shards, in `workers` other processes; `report` is told how many spectra are done."""
        drawn = {length: self._draw(length) for length in lengths}
        chunks = [
            (tokens[i : i + CHUNK], charge[i : i + CHUNK]) for tokens, charge in drawn.values() for i in self._cuts
        ]
        with _mapping(workers) as spread:
            heights = spread(partial(_predict, self.source), chunks)
            for number, (length, (tokens, charge)) in enumerate(drawn.items()):
                parts = []
                for part in islice(heights, len(self._cuts)):
                    parts.append(part)
                    if report:
                        report(number * self.peptides + sum(map(len, parts)), f"length {length}")
                self._write(length, tokens=tokens, charge=charge, heights=np.concatenate(parts))

    @property
    def _cuts(self) -> range:
        return range(0, self.peptides, CHUNK)

    def _draw(self, length: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        rng = np.random.default_rng([self.seed, length])
        return draw_populated(rng, self.peptides, length), draw_charges(rng, self.peptides)

    def _write(self, length: int, **arrays: NDArray[Any]) -> None:
        """The checksum goes first: a shard without one is never seen."""
        path, content = self.path(length), io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        digest = hashlib.sha256(content.getvalue()).hexdigest()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(checksum_of(path), f"{digest}  {path.name}\n".encode())
            _replace(path, content.getvalue())
        except OSError as error:
            raise UsageError(f"{path} cannot be written ({error.strerror}); name another data.folder.") from error


def checksum_of(shard: Path) -> Path:
    """Where the SHA-256 of a shard lies, in the format of `sha256sum`."""
    return shard.with_name(f"{shard.name}.sha256")


def _replace(path: Path, content: bytes) -> None:
    """A reader sees the whole file or none of it."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _predict(source: str, chunk: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> NDArray[np.uint16]:
    """Heights of some peptides of one length: uint16 [N, ions, length - 1]."""
    tokens, charge = chunk
    heights = np.empty((len(tokens), len(SERIES), tokens.shape[1] - 1), dtype=np.uint16)
    for row, (peptide, charges) in enumerate(zip(tokens, charge, strict=True)):
        heights[row] = np.rint(PREDICTORS[source](peptide, int(charges)) * HEIGHT_SCALE)
    return heights


@contextmanager
def _mapping(workers: int) -> Iterator[Callable[..., Iterator[NDArray[np.uint16]]]]:
    """`map`, in this process or in others. Spawned ones: MS2PIP's C code keeps global buffers that a fork would share.

    A Ctrl-C reaches every process of a terminal; it is this one that ends the others.
    """
    if not workers:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool.map
    except BrokenProcessPool as error:  # a spawned process imports the main program again, which stdin cannot be
        remedy = "start it from a file that guards its main program, or write data.workers=0"
        raise UsageError(f"data.workers is {workers}, but a process that predicts spectra died; {remedy}.") from error
    finally:
        pool.shutdown(cancel_futures=True)

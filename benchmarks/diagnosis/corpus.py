"""The corpus: which trainings there are, training those that are missing, their store, and reading it back.

The store is one archive a program: `index.json` with the first faulty steps, and run files. Numbers that came from
float32 keep four digits, the loss five, a gradient's parts three, seconds two; moments are in milliseconds; what names
a machine is dropped.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import lzma
import os
import pkgutil
import re
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import trainwatch
from benchmarks.diagnosis import programs
from benchmarks.diagnosis.folding import fold, unfold
from benchmarks.diagnosis.kinds import KINDS, Kind

STORE = Path(__file__).parent / "store"
SEEDS, AGAIN = 5, 2
"""Of a kind in all tuning programs at least, and in each, as of each healthy variant."""
MANY = 6  # tuning programs that have a kind, or a variant: one training of each is enough
LONG_AGO = 1e9  # when a stored file was touched last: nobody writes it any more
DROPPED = ("host", "pid", "process_started", "command", "packages", "git")
"""What a header says about the machine and not about the run."""
EXACT = re.compile(
    r"applied.*|step|stage|epoch|samples|tokens|clip|(?!grad_norm).*_step|(lr|clock|schedule|weight|weight_norm|memory|state_steps)/.*"
)
COARSE = re.compile(
    r"grad_(norm|cosine)/|component_grad/|grad_share/"
)  # estimates of one batch: the third digit is noise
PLACE = re.compile(r"(?:/[\w.+-]+)+/(?=site-packages/|benchmarks/|trainwatch/|torch/)")
OUTPUTS = 6  # of each sample are kept
INDEX = "index.json"


@dataclass(frozen=True)
class Case:
    """One training of a program: a kind of mistake, or a healthy variant."""

    program: str
    name: str
    seed: int
    healthy: bool

    @property
    def file(self) -> str:
        return f"{self.name}-{self.seed}"


@dataclass
class Record:
    """A training that was done: its files as they were written, and the first faulty step."""

    case: Case
    held_out: bool
    onset: int
    files: dict[str, bytes] = field(repr=False)  # by what follows the run's name: "", ".rank1", ...
    kind: Kind | None = None  # None: healthy

    def run(self) -> trainwatch.Run:
        """The run as trainwatch reads it, ranks joined."""
        with tempfile.TemporaryDirectory() as folder:
            return trainwatch.read(lay(self.files, Path(folder)))


def lay(contents: dict[str, bytes], folder: Path) -> Path:
    """Write a run's files as they were found; returns rank 0's path."""
    for suffix, content in contents.items():
        path = folder / f"run{suffix}.jsonl"
        path.write_bytes(content)
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder / "run.jsonl"


@lru_cache(maxsize=1)
def found() -> dict[str, ModuleType]:
    """Every program, by name: a program is there because its file is."""
    names = sorted(module.name for module in pkgutil.iter_modules(programs.__path__))
    return {name: importlib.import_module(f"{programs.__name__}.{name}") for name in names}


def cases(name: str) -> list[Case]:
    """All trainings of a program, those of the first seeds first."""
    program = found()[name]
    listed = []
    for variant in program.HEALTHY:
        listed += [Case(name, variant, seed, True) for seed in range(healthy_seeds(variant, program.HELD_OUT))]
    for kind in program.SICK:
        listed += [Case(name, kind, seed, False) for seed in range(seeds(kind, name, program.HELD_OUT))]
    return sorted(listed, key=lambda case: case.seed)


@lru_cache(maxsize=1024)
def seeds(kind: str, name: str, held_out: bool) -> int:
    """How often a program has a kind of mistake; the more programs have it, the less of each.

    Of the held-out programs each has all its kinds as often, so that no kind and no program weighs more in the score.
    """
    if held_out:
        return AGAIN
    able = [other for other, one in found().items() if not one.HELD_OUT and kind in one.SICK]
    each = AGAIN if len(able) < MANY else 1
    return max(SEEDS - AGAIN * (len(able) - 1), each) if able[0] == name else each


@lru_cache(maxsize=1024)
def healthy_seeds(variant: str, held_out: bool) -> int:
    """How often a program has a healthy variant; one that many have is there often enough."""
    able = sum(variant in one.HEALTHY for one in found().values() if not one.HELD_OUT)
    return AGAIN if held_out or able < MANY else 1


def archive(name: str) -> Path:
    return STORE / f"{name}.tar.xz"


def contents(name: str) -> dict[str, bytes]:
    """The run files in a program's archive, by name; nothing if there is none."""
    if not archive(name).exists():
        return {}
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(archive(name).read_bytes()))) as tar:
        members = [member for member in tar.getmembers() if member.name != INDEX]
        return {member.name: unfold(tar.extractfile(member).read()) for member in members}  # type: ignore[union-attr]


def names() -> list[str]:
    """Every program of the corpus: those that are trained here, and the trainer's own faults."""
    return [*found(), "peptide"]


def records(name: str) -> Iterator[Record]:
    """The trainings of a program that are in the store."""
    if name == "peptide":
        from benchmarks.diagnosis import peptide

        yield from peptide.records()
        return
    stored, onsets, program = contents(name), index(name), found()[name]
    for case in cases(name):
        files = {
            file[len(case.file) :].removesuffix(".jsonl"): content
            for file, content in stored.items()
            if re.fullmatch(rf"{re.escape(case.file)}(\.rank\d+)?\.jsonl", file)
        }
        if files and case.file in onsets:
            kind = None if case.healthy else KINDS[case.name]
            yield Record(case, program.HELD_OUT, onsets[case.file], files, kind)


def index(name: str) -> dict[str, int]:
    """The first faulty step of each training of a program that is in the store; it stands first in the archive."""
    if not archive(name).exists():
        return {}
    with tarfile.open(archive(name), "r|xz") as tar:
        first = tar.next()
        assert first is not None
        assert first.name == INDEX
        onsets: dict[str, int] = json.loads(tar.extractfile(first).read())  # type: ignore[union-attr]
    return onsets


def missing(name: str) -> list[Case]:
    """The trainings of a program that are not in the store."""
    there = index(name)
    return [case for case in cases(name) if case.file not in there]


def train(name: str, wanted: list[Case]) -> Iterator[Case]:
    """Do these trainings of a program one after the other, then pack them with those that were there."""
    import torch

    torch.set_num_threads(1)
    kept, onsets = contents(name), index(name)
    try:
        for case in wanted:
            onsets[case.file], files = once(case)
            kept = {file: content for file, content in kept.items() if not file.startswith(f"{case.file}.")} | files
            yield case
    finally:
        listed = {case.file for case in cases(name)}
        kept = {file: content for file, content in kept.items() if file.split(".")[0] in listed}
        pack(name, kept, {case: onset for case, onset in onsets.items() if case in listed})


def once(case: Case) -> tuple[int, dict[str, bytes]]:
    """One training: its first faulty step, and its files as they are kept."""
    with tempfile.TemporaryDirectory() as scratch, Path(os.devnull).open("w") as nowhere:
        path = Path(scratch) / f"{case.file}.jsonl"
        with contextlib.redirect_stderr(nowhere):
            onset = found()[case.program].train(path, case.seed, case.name)
        files = sorted(Path(scratch).glob("*.jsonl"))
        return onset, {file.name: shortened(file.read_bytes(), case.program) for file in files}


def pack(name: str, kept: dict[str, bytes], onsets: dict[str, int]) -> None:
    """Write a program's archive, the same bytes for the same contents."""
    buffer = io.BytesIO()
    listed = {INDEX: json.dumps(onsets, indent=0, sort_keys=True).encode()}
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file, content in [*listed.items(), *((file, fold(content)) for file, content in sorted(kept.items()))]:
            member = tarfile.TarInfo(file)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    STORE.mkdir(exist_ok=True)
    unfinished = archive(name).with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    unfinished.replace(archive(name))


def shortened(written: bytes, program: str) -> bytes:
    """A run file as it is kept."""
    lines = []
    for line in written.splitlines():
        record = json.loads(line)
        if record["kind"] == "run":
            record = {key: value for key, value in record.items() if key not in DROPPED} | {"run": program}
        if "outputs" in record:
            record["outputs"] = record["outputs"][:OUTPUTS]
        short = {key: _short(key, value, record["kind"]) for key, value in record.items()}
        lines.append(json.dumps(short, separators=(",", ":")) + "\n")
    return "".join(lines).encode()


def _short(key: str, value: Any, kind: str) -> Any:
    """A value with the digits that it is worth."""
    if isinstance(value, str):
        return PLACE.sub("", value)
    if isinstance(value, dict):
        return {name: _short(name, one, "") for name, one in value.items()}
    if not isinstance(value, float):
        return value
    if key in ("time", "elapsed"):
        return round(value, 3)
    if key.startswith("time/"):
        return float(f"{value:.2g}")
    if kind not in ("step", "eval", "sample") or EXACT.fullmatch(key):
        return value
    if COARSE.match(key):
        return float(f"{value:.3g}")
    return float(f"{value:.5g}" if key == "loss" else f"{value:.4g}")


def remaining(began: float, done: int, total: int) -> str:
    """How long the rest takes, in words."""
    return f"about {(time.monotonic() - began) / max(done, 1) * (total - done) / 60:.1f} min left"

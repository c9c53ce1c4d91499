"""How fast the trainer is: time, memory and MFU by size and precision; cost against peaks and length; the loader.

    python benchmarks/trainer.py [speed] [shapes] [loader] [--sizes tiny,small] [--precisions fp32,bf16] [--seconds 20]

Every cell runs in a fresh process. Model FLOPs utilisation (MFU) is the FLOPs that the step executes (forward only
where no gradient is taken, and none for telemetry) over its time, against two peaks: what a large matrix product of
that precision reaches on this machine in the same run, and the data sheet's dense figure where the GPU is known.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from tables import markdown, show

sys.path.insert(0, str(Path(__file__).parents[1]))
import stepping
from stepping import Cell, Measured

ROOT = Path(__file__).parents[1]
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
THREADS = 1
WHERE: dict[str, Any] = {"device": DEVICE, "threads": THREADS}
SIZES = ("tiny", "small", "medium", "large") if CUDA else ("tiny",)
PRECISIONS = ("fp32", "bf16", "fp16") if CUDA else ("fp32", "bf16")
BATCH = {"tiny": 512, "small": 256, "medium": 128, "large": 64} if CUDA else {"tiny": 12, "small": 4}
DATA_SHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12}
"""Dense bfloat16 and float16 FLOP/s with float32 accumulation, from NVIDIA's data sheets (SXM where there is one)."""

ABOUT = """# How fast the trainer is

Written by `python {command}` on {where}, torch {torch}. MFU: the FLOPs that a step executes over its time, against what
a large matrix product of that precision reaches here, and against the data sheet where the GPU is known. Telemetry:
median and quartiles of neighbouring blocks with the recorder on against off. On a machine with other load times are
longer than they should be; ratios within a table hold.
"""

Found = tuple[str, tuple[str, ...], list[list[str]]]
"""A table: its title, its columns, its rows."""


def main() -> None:
    """Parse, measure, print; with all tables, write docs/speed.md too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"speed": speed, "shapes": shapes, "loader": loader}
    parser.add_argument("tables", nargs="*", choices=[*tables, []], help="which tables; all of them if none is named")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--seconds", type=float, default=20.0, help="of steps in each cell")
    asked = parser.parse_args()
    where = torch.cuda.get_device_name() if CUDA else f"CPU ({platform.machine()}, {THREADS} thread)"
    print(f"{where}, torch {torch.__version__}")
    found = [tables[name](asked) for name in asked.tables or tables]
    for title, columns, rows in found:
        show(title, columns, rows)
    if not asked.tables:
        page = [
            ABOUT.format(
                where=where, torch=torch.__version__, command=" ".join(["benchmarks/trainer.py", *sys.argv[1:]])
            )
        ]
        page += [f"## {title}\n\n{markdown(columns, rows)}\n" for title, columns, rows in found]
        (ROOT / "docs" / "speed.md").write_text("\n".join(page), encoding="utf-8")


def speed(asked: argparse.Namespace) -> Found:
    """Time, memory and MFU by size and precision, compiled and not."""
    cells = [
        Cell(size, precision=precision, compile=compiled, batch=BATCH[size], seconds=asked.seconds, **WHERE)
        for size in asked.sizes.split(",")
        for precision in asked.precisions.split(",")
        for compiled in (False, True)
    ]
    peaks = {precision: peak(precision) for precision in asked.precisions.split(",")}
    columns = ("size", "dtype", "compiled", "batch", "ms", "spectra/s", "GFLOP/s", "MFU, matmul", "MFU, sheet", "MB")
    rows = [
        [*row(found), *shares(found, peaks[found.cell.precision]), f"{found.memory / 1e6:,.0f}", added(found)]
        for found in measured(cells)
    ]
    return "A training step, telemetry off; and what telemetry adds", (*columns, "telemetry"), rows


def shapes(asked: argparse.Namespace) -> Found:
    """Cost against peaks and peptide length."""
    size, short = asked.sizes.split(",")[0], {**WHERE, "seconds": asked.seconds / 2}
    grid = [(peaks, 18) for peaks in (50, 100, 150, 200)] + [(100, length) for length in (8, 12, 24, 30)]
    cells = [Cell(size, batch=BATCH[size], peaks=peaks, length=length, **short) for peaks, length in grid]
    rows = [
        [str(found.cell.peaks), str(found.cell.length), f"{found.step * 1e3:.1f}", f"{found.samples:,.0f}",
         f"{found.flops / 1e9:.2f}"]
        for found in measured(cells)
    ]  # fmt: skip
    title = f"Cost against peaks and length: {size}, fp32, batch {BATCH[size]}"
    return title, ("peaks", "residues", "ms", "spectra/s", "GFLOP a step"), rows


def loader(asked: argparse.Namespace) -> Found:
    """How long a real run waits for its data, with shards that are there."""
    table = []
    with tempfile.TemporaryDirectory() as folder:
        steps = max(20, round(asked.seconds * 3))
        for workers in (0, 1, 2):
            rows = real_run(Path(folder), workers, steps)[5:]
            step, wait = (statistics.fmean(row[name] for row in rows) for name in ("time/step", "time/data"))
            table.append([str(workers), str(len(rows)), f"{step * 1e3:.1f}", f"{wait / step:.2%}"])
    return "The loader: size tiny, shards built before", ("workers", "steps", "step ms", "wait for data"), table


def real_run(folder: Path, workers: int, steps: int) -> list[dict[str, Any]]:
    """The step rows of a run of the trainer."""
    settings = {"name": f"w{workers}", "logs": folder, "size": "tiny", "steps": steps, "batch_size": BATCH["tiny"]}
    settings |= {"data.workers": workers, "data.source": "theoretical", "data.folder": folder / "data"}
    settings |= {"data.peptides": 100, "evaluation.every": 1.0, "evaluation.samples": 2, "threads": THREADS}
    command = [sys.executable, "-m", "trainer", *(f"{key}={value}" for key, value in settings.items())]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    lines = (folder / f"w{workers}.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "step"]


def measured(cells: list[Cell]) -> list[Measured]:
    """All cells, each in a fresh process, with a bar."""
    fresh = multiprocessing.get_context("spawn")
    found = []
    for cell in track(cells, "cells", console=Console(stderr=True)):
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            found.append(pool.submit(stepping.measure, cell).result())
    return found


def peak(precision: str) -> float:
    """FLOP/s of a large matrix product, in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(stepping.reachable, DEVICE, precision, THREADS, 8192 if CUDA else 1024).result()


def row(found: Measured) -> list[str]:
    """The first cells of a row."""
    cell = found.cell
    named = [cell.size, cell.precision, "yes" if cell.compile else "no", str(cell.batch)]
    return [*named, f"{found.step * 1e3:.1f}", f"{found.samples:,.0f}", f"{found.rate / 1e9:,.0f}"]


def shares(found: Measured, peak_here: float) -> list[str]:
    """MFU against what is reached here, and against the data sheet."""
    name = torch.cuda.get_device_name() if CUDA else ""
    sheet = next((value for key, value in DATA_SHEET.items() if key in name), None)
    known = sheet is not None and found.cell.precision != "fp32"
    return [f"{found.rate / peak_here:.1%}", f"{found.rate / sheet:.1%}" if known and sheet else "-"]


def added(found: Measured) -> str:
    """What telemetry adds to a step."""
    low, middle, high = statistics.quantiles(found.overheads, n=4)
    return f"{middle:+.1%} ({low:+.1%}, {high:+.1%})"


if __name__ == "__main__":
    main()

"""How long `trainwatch check` takes, and how much memory: a run file of 200,000 steps and 30 channels.

    python benchmarks/check.py [--steps 200000]

Writes the file into a temporary folder, then measures in turn: reading its bytes, parsing every line with orjson (the
floor of any reader), reading it as columns, judging it by every rule, and the command as a user runs it, in a process
of its own. Peak memory is that process's, as the operating system tells it.

Then the first steps again as a live face sees them, which is when the channels' families all are there: each row is
judged by itself, then twenty at a time, as a page sees them that looks twice a second at a run of 40 steps a second;
and the diagnosis is concluded after each look. Last, what each of the slowest rules takes of that.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

from trainwatch.diagnosis import conclude
from trainwatch.engine import Engine
from trainwatch.readers import read
from trainwatch.run import Run
from trainwatch.schema import Finding
from trainwatch.table import Chunk

COMPONENTS = ("sequence", "spectrum", "precursor")
MODULES = ("encoder", "core", "head")


def write_run(path: Path, steps: int) -> None:
    """A healthy run: three components that fall, their gradients, norms, rates, data and times."""
    rng = np.random.default_rng(0)
    header = {
        "kind": "run", "schema": 1, "run": "bench", "id": "bench", "time": 0.0, "elapsed": 0.0, "total_steps": steps,
        "max_grad_norm": 1.0,
        "curriculum": {"name": "A", "stages": [{"start": 0, "end": steps, "weights": dict.fromkeys(COMPONENTS, 1.0)}]},
        "schedules": {"lr/0": {"kind": "cosine", "start": 1e-3, "end": 1e-4, "over_steps": steps}},
    }  # fmt: skip
    with path.open("wb") as file:
        file.write(orjson.dumps(header) + b"\n")
        for step in range(1, steps + 1):
            noise = rng.random(24)
            file.write(orjson.dumps(_row(step, steps, noise.tolist())) + b"\n")
        file.write(
            orjson.dumps({"kind": "end", "status": "finished", "time": steps / 10, "elapsed": steps / 10}) + b"\n"
        )


def _row(step: int, steps: int, noise: list[float]) -> dict[str, float | int | str]:
    progress = step / steps
    row: dict[str, float | int | str] = {
        "kind": "step",
        "time": step / 10,
        "elapsed": step / 10,
        "step": step,
        "applied": step,
    }
    row |= {f"loss/{name}": 1.0 - 0.5 * progress + 0.1 * noise[i] for i, name in enumerate(COMPONENTS)}
    row |= {f"weight/{name}": 1.0 for name in COMPONENTS}
    row |= {f"grad_share/{name}": 1 / 3 + 0.1 * noise[3 + i] for i, name in enumerate(COMPONENTS)}
    row |= {f"component_grad/{name}": noise[6 + i] for i, name in enumerate(COMPONENTS)}
    row |= {f"grad_norm/{name}": noise[9 + i] for i, name in enumerate(MODULES)}
    row |= {f"data/length/{name}": 7 + 3 * noise[12 + i] for i, name in enumerate(("min", "mean", "max"))}
    row |= {
        "loss": sum(float(row[f"loss/{name}"]) for name in COMPONENTS),
        "grad_norm": noise[15],
        "clip": 0,
        "stage": 0,
        "epoch": progress * 10,
    }
    row |= {"lr/0": 1e-4 + 9e-4 * (1 + math.cos(math.pi * progress)) / 2, "samples": 32 * step}
    return row | {"time/step": 0.1 + 0.01 * noise[16], "time/data": 0.01 * noise[17], "memory/cuda": 1e9}


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` took."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def parse(lines: list[bytes]) -> None:
    """Every line as an object, kept by nobody."""
    for line in lines:
        orjson.loads(line)


def check(path: Path) -> int:
    """The command as a user runs it; returns the peak of its memory in bytes."""
    command = [str(Path(sys.executable).with_name("trainwatch")), "check", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_memory(process.pid))
        time.sleep(0.005)
    if process.returncode != 0:
        output = process.stdout.read() if process.stdout else ""
        raise SystemExit(f"a healthy run was judged {process.returncode}:\n{output}")
    return peak


def peak_memory(pid: int) -> int:
    """High-water mark of a process in bytes; its own, not its parent's, which ``getrusage`` would report."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found.group(1)) * 1024 if found else 0


LIVE_STEPS = 2_000


def live(path: Path, rows: int, timing: dict[str, float] | None = None) -> tuple[float, float]:
    """Seconds a step for judging as the rows come, so many at a time, and for concluding after each look."""
    whole, run, engine = read(path), Run(path), Engine()
    run.add_header(whole.headers[0].raw)
    for rule in engine.rules if timing is not None else []:
        rule.update = partial(_clocked, timing, rule.name, rule.update)  # type: ignore[method-assign]
    columns = {name: whole.train[name] for name in whole.train.channels}
    judging = concluding = 0.0
    for start in range(0, LIVE_STEPS, rows):
        part = slice(start, start + rows)
        run.add_rows("train", whole.train.step[part], {name: values[part] for name, values in columns.items()})
        judging += timed(lambda: engine.feed(run))
        concluding += timed(lambda: conclude(run, engine))
    return judging / LIVE_STEPS, concluding / LIVE_STEPS


def _clocked(timing: dict[str, float], name: str, update: Callable[[Chunk], Iterable[Finding]], chunk: Chunk) -> Any:
    start = time.perf_counter()
    found = list(update(chunk))
    timing[name] = timing.get(name, 0.0) + time.perf_counter() - start
    return found


def show_live(path: Path) -> None:
    """Print what a live face pays a step, and the rules that it pays most for."""
    table = Table(title=f"live, the first {LIVE_STEPS:,} steps, ms a step", title_justify="left")
    for column in ("rows at a look", "judging", "concluding"):
        table.add_column(column, justify="right")
    for rows in (1, 20):
        judging, concluding = live(path, rows)
        table.add_row(str(rows), f"{judging * 1e3:.3f}", f"{concluding * 1e3:.3f}")
    timing: dict[str, float] = {}
    live(path, 1, timing)
    slowest = sorted(timing.items(), key=lambda item: -item[1])[:8]
    Console().print(table)
    print("slowest rules, us a step:", ", ".join(f"{name} {s / LIVE_STEPS * 1e6:.0f}" for name, s in slowest))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200_000)
    steps: int = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.jsonl"
        print(f"writing {steps:,} steps ...", file=sys.stderr)
        write_run(path, steps)
        rows, peak = measure(path)
        size = path.stat().st_size
        first = Path(folder) / "first.jsonl"
        with path.open("rb") as whole:
            first.write_bytes(b"".join(islice(whole, LIVE_STEPS + 1)))
        show(rows, steps, size, peak)
        show_live(first)


def show(rows: dict[str, float], steps: int, size: int, peak: int) -> None:
    """Print what a whole file takes."""
    table = Table(title=f"{steps:,} steps x 30 channels, {size / 1e6:,.0f} MB", title_justify="left")
    for column in ("what", "seconds", "us a step"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for what, seconds in rows.items():
        table.add_row(what, f"{seconds:.2f}", f"{seconds / steps * 1e6:.1f}")
    Console().print(table)
    print(f"peak memory of the command: {peak / 1e6:,.0f} MB; the columns alone are {steps * 34 * 8 / 1e6:,.0f} MB")


def measure(path: Path) -> tuple[dict[str, float], int]:
    """Seconds by what was done, and the command's peak memory in bytes."""
    lines = path.read_bytes().split(b"\n")[:-1]
    rows = {
        "read the bytes": timed(path.read_bytes),
        "orjson.loads of every line (the floor)": timed(lambda: parse(lines)),
    }
    rows["trainwatch: read as columns"] = timed(lambda: read(path))
    run, engine = read(path), Engine()
    rows[f"trainwatch: judge by {len(engine.rules)} rules"] = timed(lambda: engine.feed(run))
    if engine.failed:
        raise SystemExit(f"rules broke: {engine.failed}")
    start = time.perf_counter()
    peak = check(path)
    rows["`trainwatch check`, whole process"] = time.perf_counter() - start
    return rows, peak


if __name__ == "__main__":
    main()

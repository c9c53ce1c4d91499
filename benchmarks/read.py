"""How fast logs are read, beside the peers, in one run on one machine.

    python benchmarks/read.py [--lines 1000000] [--scalars 1000000] [--steps 20000]

Reads our own run file beside polars (or, where that is not installed, a loop of orjson), clean and with one line in a
hundred torn or holding a bare NaN (polars refuses that file), with the memory that each takes above its modules; event
files beside TensorBoard's EventAccumulator; the 1,000 lines that were appended to the big file beside orjson at the
same offset; 20 runs of 30 tags beside EventAccumulator; and console output. Each reader works in a process of its own;
the seconds are the processor's, of all threads together, so that other load hardly counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
from tables import markdown, show

CHANNELS = 30
TAGS = 50
RUNS = 20
APPENDED = 1000
Reading = Callable[[Path], int]


def ours(path: Path) -> int:
    """Numbers that trainwatch reads."""
    from trainwatch.readers import read_all

    runs = read_all(path)
    return sum(int(run.table(name)[channel].size) for run in runs for name in ("train", "eval")
               for channel in run.table(name).channels)  # fmt: skip


def ours_below(folder: Path) -> int:
    """The same, of every run below a folder."""
    from trainwatch.readers import find

    return sum(ours(path) for path in find(folder))


def by_polars(path: Path) -> int:
    """Numbers that polars reads, given the schema."""
    import polars

    schema = {"kind": polars.String, "step": polars.Int64, **dict.fromkeys(names(CHANNELS), polars.Float64)}
    frame = polars.read_ndjson(path, schema=schema, ignore_errors=True)
    return int(frame.height * frame.width)


def by_orjson(path: Path) -> int:
    """Lines that a loop of orjson reads."""
    count = 0
    with path.open("rb") as file:
        for line in file:
            try:
                count += len(orjson.loads(line))
            except orjson.JSONDecodeError:
                continue
    return count


def by_tensorboard(path: Path) -> int:
    """Scalars that EventAccumulator reads, with nothing dropped."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loaded = EventAccumulator(str(path.parent), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    found = loaded.Tags()
    scalars = sum(len(loaded.Scalars(tag)) for tag in found["scalars"])
    return scalars + sum(len(loaded.Tensors(tag)) for tag in found["tensors"])


def by_tensorboard_below(folder: Path) -> int:
    """The same, of every run below a folder."""
    return sum(by_tensorboard(path) for path in sorted(folder.rglob("*tfevents*")))


READINGS: dict[str, Reading] = {
    reading.__name__: reading
    for reading in (ours, ours_below, by_polars, by_orjson, by_tensorboard, by_tensorboard_below)
}


def child(name: str, path: Path) -> None:
    """Read once; print the processor's seconds, the numbers, and the peak of the memory in bytes above an empty file's.

    The modules are loaded before, by reading a small file of the same kind.
    """
    small = path.with_name("small") / path.name if path.is_file() else path.with_name("small") / "runs"
    READINGS[name](small)
    before, began = high_water(), time.process_time()
    count = READINGS[name](path)
    print(time.process_time() - began, count, high_water() - before)


def high_water() -> int:
    """The most memory that this process held, in bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def timed(name: str, path: Path) -> tuple[float, int, int]:
    """Seconds, numbers and bytes of one reading in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--child", name, str(path)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} could not read {path.name}: {done.stderr[-400:]}")
    seconds, count, size = done.stdout.split()[-3:]
    return float(seconds), int(count), int(size)


def names(count: int) -> list[str]:
    """Names of channels."""
    return ["loss", *(f"logged/metric_{index:02d}" for index in range(1, count))]


def write_lines(path: Path, lines: int, bad: bool) -> None:
    """A run file of one row a line; of a ``bad`` one each hundredth line is torn, or holds a bare NaN."""
    rng, known = np.random.default_rng(0), names(CHANNELS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(orjson.dumps({"kind": "run", "schema": 1, "run": "bench", "id": "bench"}) + b"\n")
        for first in range(0, lines, 1000):
            for step, noise in enumerate(rng.random((min(1000, lines - first), CHANNELS)).tolist(), first + 1):
                line = orjson.dumps({"kind": "step", "step": step, **dict(zip(known, noise, strict=True))})
                if bad and step % 200 == 0:
                    line = line[:300]
                elif bad and step % 100 == 0:
                    line = line.replace(b'"loss":', b'"loss":NaN,"was":', 1)
                file.write(line + b"\n")


def write_events(path: Path, tags: int, steps: int) -> None:
    """An event file as SummaryWriter lays it out; its checksums are right, as EventAccumulator wants them."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=1.0, file_version="brain.Event:2").SerializeToString())
        for step in range(1, steps + 1):
            for tag, value in zip(names(tags), rng.random(tags).tolist(), strict=True):
                scalar = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                writer.write(Event(wall_time=float(step), step=step, summary=scalar).SerializeToString())


def write_console(path: Path, steps: int) -> None:
    """What Megatron prints."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for step in range(1, steps + 1):
            loss, norm = 2 + 3 * math.exp(-step / steps), 1 + math.sin(step)
            file.write(
                f" [2026-01-01 00:00:00] iteration {step:8d}/{steps:8d} | consumed samples: {step * 256:12d} | elapsed "
                f"time per iteration (ms): {500 + step % 7}.1 | learning rate: {1e-4 * (1 - step / steps / 2):.6E} | "
                f"global batch size:   256 | lm loss: {loss:.6E} | loss scale: 1.0 | grad norm: {norm:.3f} |\n"
            )


def tail(path: Path) -> tuple[float, float]:
    """Seconds to read 1,000 appended lines: ours, and an offset with orjson; medians of five."""
    from trainwatch.readers import open_run

    source = open_run(path)
    source.poll()
    last = source.runs[-1].train.step[-1]
    lines = [orjson.dumps({"kind": "step", "step": int(last) + 1 + i, **dict.fromkeys(names(CHANNELS), 0.123456789)})
             for i in range(5 * APPENDED)]  # fmt: skip
    found, floor = [], []
    for first in range(0, len(lines), APPENDED):
        offset = path.stat().st_size
        with path.open("ab") as file:
            file.write(b"\n".join(lines[first : first + APPENDED]) + b"\n")
        began = time.process_time()
        with path.open("rb") as file:
            file.seek(offset)
            for line in file.read().splitlines():
                orjson.loads(line)
        floor.append(time.process_time() - began)
        began = time.process_time()
        source.poll()
        found.append(time.process_time() - began)
    return float(np.median(found)), float(np.median(floor))


def compared(what: str, path: Path, peer: str, said: str, theirs: Path | None = None) -> list[str]:
    """A row of the table: ours beside a peer's, which reads another file where it cannot read this one."""
    seconds, count, size = timed("ours_below" if path.is_dir() else "ours", path)
    other, others, other_size = timed(peer, theirs or path)
    return [what, f"{seconds:.2f} s", f"{size / 1e6:.0f} MB", f"{said}: {other:.2f} s, {other_size / 1e6:.0f} MB",
            f"{seconds / other:.2f} x", f"{count / 1e6:.2f} M; {others / 1e6:.2f} M"]  # fmt: skip


def measured(folder: Path, lines: int, scalars: int, steps: int) -> list[list[str]]:
    """Every row."""
    rows = []
    peer, said = ("by_polars", "polars") if importlib.util.find_spec("polars") else ("by_orjson", "orjson")
    path, torn = folder / "run.jsonl", folder / "torn.jsonl"
    for file, bad in ((path, False), (torn, True)):
        write_lines(folder / "small" / file.name, 100, bad)
        write_lines(file, lines, bad)
    rows.append(compared(f"{lines:,} lines", path, peer, said))
    rows.append(compared(f"{lines:,} lines, one in a hundred bad", torn, peer, f"{said}, on the clean file", path))
    torn.unlink()
    quick, floor = tail(path)
    rows.append([f"{APPENDED:,} appended lines", f"{quick * 1e3:.1f} ms", "", f"offset + orjson: {floor * 1e3:.1f} ms",
                 f"{quick / floor:.2f} x", ""])  # fmt: skip
    path.unlink()
    console = folder / "console.log"
    write_console(folder / "small" / console.name, 100)
    write_console(console, 20_000)
    seconds, count, size = timed("ours", console)
    rows.append([f"console output, {console.stat().st_size / 1e6:.1f} MB", f"{seconds:.2f} s", f"{size / 1e6:.0f} MB",
                 f"{console.stat().st_size / 1e6 / seconds:.1f} MB/s", "", f"{count / 1e6:.2f} M"])  # fmt: skip
    if importlib.util.find_spec("tensorboard") is None:
        print("tensorboard is not installed: the event files are left out")
        return rows
    events = folder / "events" / "events.out.tfevents.1.host"
    write_events(folder / "events" / "small" / events.name, 3, 10)
    write_events(events, TAGS, scalars // TAGS)
    rows.append(compared(f"event file, {scalars:,} scalars", events, "by_tensorboard", "EventAccumulator"))
    events.unlink()
    write_events(folder / "small" / "runs" / "0" / events.name, 3, 10)
    write_events(folder / "runs" / "0" / events.name, CHANNELS, steps)
    for number in range(1, RUNS):
        copy = folder / "runs" / str(number) / events.name
        copy.parent.mkdir()
        copy.hardlink_to(folder / "runs" / "0" / events.name)
    said = f"{RUNS} runs x {CHANNELS} tags x {steps:,} steps"
    rows.append(compared(said, folder / "runs", "by_tensorboard_below", "EventAccumulator"))
    return rows


def main() -> None:
    """Write the files, read them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--scalars", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=20_000, help="of the 20 runs")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child[0], Path(asked.child[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder), asked.lines, asked.scalars, asked.steps)
    columns = ("read", "trainwatch", "memory", "peer", "ours / peer", "numbers: ours; peer's")
    show("Reading, processor time", columns, rows)
    print(markdown(columns, rows))


if __name__ == "__main__":
    main()

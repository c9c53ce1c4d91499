"""What recording costs, and what a SIGKILL loses.

    python benchmarks/record.py [gradients] [kills] [calls] [overhead] [--kills 20]

Every figure is measured in this one run, peers and floors included, in shuffled rounds; use the ratios within one
table. Trackio and TensorBoard are measured if they are installed. No network, no GPU; everything goes to a temporary
folder.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import overhead
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import trainwatch
from trainwatch.recorder.models import Models
from trainwatch.recorder.transfer import Part

NUMBERS = {f"channel/{i}": i * 1.1 for i in range(30)}
Call = Callable[[], object]


def timed(call: Call, times: int) -> list[float]:
    """Seconds of each call."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds


def quietly(call: Callable[[], Any]) -> Any:
    """What a peer prints about itself is no part of the table."""
    with contextlib.redirect_stdout(io.StringIO()):
        return call()


def writers(folder: Path, stack: contextlib.ExitStack) -> Iterator[tuple[str, int, Call]]:
    """Name, calls a round, and the call that records one step of 30 values."""
    ready = orjson.dumps(NUMBERS) + b"\n"
    fd = os.open(folder / "floor.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    stack.callback(os.close, fd)
    yield "os.write of ready bytes", 2000, lambda: os.write(fd, ready)
    yield "orjson + one os.write", 2000, lambda: os.write(fd, orjson.dumps(NUMBERS) + b"\n")
    yield "trainwatch, 30 numbers", 2000, recording(stack, folder / "numbers.jsonl", NUMBERS)
    yield "trainwatch, 30 numbers, durable", 2000, recording(stack, folder / "durable.jsonl", NUMBERS, durable=True)
    tensors = {name: torch.tensor(value) for name, value in NUMBERS.items()}
    yield "trainwatch, 30 CPU tensors", 2000, recording(stack, folder / "tensors.jsonl", tensors)
    yield from trackers(folder, stack)


def recording(stack: contextlib.ExitStack, path: Path, values: dict[str, object], durable: bool = False) -> Call:
    watch = stack.enter_context(trainwatch.Recorder(path, durable=durable))

    def call() -> None:
        watch.log(values)
        watch.step()

    return call


def trackers(folder: Path, stack: contextlib.ExitStack) -> Iterator[tuple[str, int, Call]]:
    """The peers that are installed."""
    if importlib.util.find_spec("trackio"):
        os.environ["TRACKIO_DIR"] = str(folder / "trackio")
        import trackio

        run = quietly(lambda: trackio.init(project="bench", embed=False, auto_log_gpu=False, auto_log_cpu=False))
        stack.callback(quietly, run.finish)
        yield "Trackio", 500, lambda: run.log(NUMBERS)
    else:
        yield "Trackio (not installed)", 0, lambda: None
    if importlib.util.find_spec("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(folder / "tensorboard"))
        stack.callback(board.close)
        yield "TensorBoard SummaryWriter", 100, lambda: [board.add_scalar(name, v, 0) for name, v in NUMBERS.items()]
    else:
        yield "TensorBoard (not installed)", 0, lambda: None


def calls(console: Console, folder: Path) -> None:
    """The cost of recording 30 values, as the loop sees it; and of the whole loop, with the writer's work in it."""
    with contextlib.ExitStack() as stack:
        peers = list(writers(folder, stack))
        times: dict[str, list[float]] = {name: [] for name, _, _ in peers}
        for _ in range(5):
            for name, count, call in random.sample(peers, len(peers)):
                timed(call, count // 10)
                time.sleep(0.1)
                times[name] += timed(call, count)
                time.sleep(0.2)
    base = statistics.median(times["orjson + one os.write"])
    ours = statistics.median(times["trainwatch, 30 numbers"])
    table = Table("30 values a step", "median us", "p99 us", "mean us", "x orjson", "x trainwatch")
    for name, seconds in times.items():
        if seconds:
            middle = statistics.median(seconds)
            p99, mean = statistics.quantiles(seconds, n=100)[98], statistics.mean(seconds)
            figures = [f"{value * 1e6:.1f}" for value in (middle, p99, mean)]
            table.add_row(name, *figures, f"{middle / base:.1f}", f"{middle / ours:.1f}")
        else:
            table.add_row(name, *["-"] * 5)
    console.print(table)
    throughput(console, folder)


def throughput(console: Console, folder: Path) -> None:
    """A loop that does nothing but record: until the last row is on the disk."""
    steps, table = 50_000, Table("a loop of nothing but 30 numbers", "us a step, all of it on disk")
    with contextlib.ExitStack() as stack:
        fd = os.open(folder / "loop.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        stack.callback(os.close, fd)
        seconds = sum(timed(lambda: os.write(fd, orjson.dumps(NUMBERS) + b"\n"), steps))
        table.add_row("orjson + one os.write", f"{seconds / steps * 1e6:.1f}")
    began = time.perf_counter()
    with trainwatch.Recorder(folder / "loop2.jsonl") as watch:
        for _ in range(steps):
            watch.log(NUMBERS)
            watch.step()
    table.add_row("trainwatch", f"{(time.perf_counter() - began) / steps * 1e6:.1f}")
    console.print(table)


KILLED = """
import os, sys, time, trainwatch
watch = trainwatch.Recorder(sys.argv[1], durable=sys.argv[2] == "durable")
values = {f"channel/{i}": i * 1.1 for i in range(30)}
while True:
    watch.log(values)
    watch.step()
    os.write(1, b"%d\\n" % watch.steps)
    time.sleep(0.001)
"""


def lost_by_kill(path: Path, mode: str) -> tuple[int, bool]:
    """Steps that the loop had recorded and the file lacks; and whether a line is torn."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), mode], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.uniform(0.05, 0.5))
        process.send_signal(signal.SIGKILL)
        done = int(process.stdout.read().splitlines()[-1])
    *lines, rest = path.read_bytes().split(b"\n")
    return max(0, done - max(json.loads(line).get("step", 0) for line in lines)), bool(rest)


def kills(console: Console, folder: Path, times: int) -> None:
    """SIGKILL at random moments of a loop of 1 ms steps."""
    table = Table("SIGKILL", "kills", "steps lost: median", "most", "seconds lost, most", "torn lines")
    for mode in ("in the writer's thread", "durable"):
        found = [lost_by_kill(folder / f"kill-{mode[:3]}-{i}.jsonl", mode) for i in range(times)]
        lost = [steps for steps, _ in found]
        most = f"{max(lost) * 0.0011:.3f}"
        table.add_row(
            mode, str(times), f"{statistics.median(lost):g}", str(max(lost)), most, str(sum(t for _, t in found))
        )
    console.print(table)


def gradients(console: Console) -> None:
    """Norms of every module and of the whole, non-finite flags in them, against reading each gradient once."""
    layers = [nn.Sequential(nn.Linear(560, 553), nn.Linear(553, 560)) for _ in range(17)]
    model = nn.ModuleDict({f"layer{i}": layer for i, layer in enumerate(layers)})
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    models = Models(model, None, None, lambda *_: None)

    def ours() -> list[list[float]]:
        parts: list[Part] = []
        models.norms(1.0, None, parts)
        return [part.values.tolist() for part in parts]

    ways: dict[str, Call] = {
        "read every gradient once (sum)": lambda: [grad.sum() for grad in grads],
        "trainwatch: norms of 17 modules, total, clip flag": ours,
        "torch.nn.utils.get_total_norm": lambda: torch.nn.utils.get_total_norm(grads).item(),
        "isfinite().all() of each": lambda: [bool(grad.isfinite().all()) for grad in grads],
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(60):
        for name in random.sample(list(ways), len(ways)):
            times[name] += timed(ways[name], 1)
    floor = statistics.median(times["read every gradient once (sum)"])
    size = sum(grad.numel() for grad in grads)
    table = Table(f"{size / 1e6:.1f} M gradients in {len(grads)} tensors", "median us", "x floor")
    for name, seconds in times.items():
        table.add_row(name, f"{statistics.median(seconds) * 1e6:.0f}", f"{statistics.median(seconds) / floor:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="gradients, kills, calls, overhead; all if none is named")
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs a mode")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    load = os.getloadavg()[0]
    console.print(
        f"{os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        measures: dict[str, Callable[[], None]] = {
            "gradients": lambda: gradients(console),
            "overhead": lambda: overhead.measure(console, folder),
            "kills": lambda: kills(console, folder, options.kills),
            "calls": lambda: calls(console, folder),  # last: the peers leave threads behind
        }
        for what in options.what or measures:
            measures[what]()


if __name__ == "__main__":
    main()

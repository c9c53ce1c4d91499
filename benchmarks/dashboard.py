"""How fast the dashboard is: the real command, looked at with headless Chromium.

    python benchmarks/dashboard.py [folder] [long] [live] [motion] [many] [--rounds 2] [--steps 1000000] [--trial]

folder: the first look at 100 runs. long: a run of 1M steps x 50 channels, opened, zoomed, and opened by a new server.
live: from the recorder's write to the text on the screen, and the bytes of an update. motion: an hour's records in a
minute, and the memory of server and page. many: 20 runs x 30 tags x 20k steps of event files, beside TensorBoard where
it is installed.

Without a name all are measured; with --trial each on about a twentieth, which tells whether it works and not how fast
it is. Wall times hold on an idle machine only; the processor's seconds of server and browser stand beside them. Needs
Debian's chromium and chromedriver; no network, everything in a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
from read import write_events
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from tables import markdown, show

import trainwatch

COMPONENTS = ("sequence", "spectrum", "precursor")
CHANNELS = 50
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run --window-size=1400,1000 --disable-background-timer-throttling"
)
# notes when something is first on the screen, and every answer of the server
WATCH = """
(() => {
  const seen = (window.benchSeen = {}), steps = (window.benchSteps = {}), answers = (window.benchAnswers = []);
  const count = (what) => document.querySelectorAll(what).length;
  const onScreen = (panel) => {
    const box = panel.getBoundingClientRect();
    return box.height > 0 && box.top < window.innerHeight && box.bottom > 0;
  };
  const drawn = (panel) => panel.querySelector(".main-svg .trace, .main-svg .hm, .main-svg .annotation");
  const known = {
    rows: () => count(".ag-row") > 0,
    judged: () => count(".ag-row") > 0 && !count(".state.reading"),
    plot: () => count("figure.panel .main-svg .trace") > 0,
    plots: () => count("figure.panel .main-svg .trace") > 0
      && [...document.querySelectorAll("figure.panel")].filter(onScreen).every(drawn),
  };
  const look = () => {
    for (const [name, is] of Object.entries(known)) {
      if (!(name in seen) && document.body && is()) seen[name] = performance.now();
    }
    const told = document.querySelector("#verdict .facts dd");
    if (told) {
      const step = parseInt(told.innerText.replaceAll(",", ""));
      if (!(step in steps)) steps[step] = Date.now();
    }
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
  new PerformanceObserver((list) => {
    for (const one of list.getEntries()) {
      if (!one.name.includes("_dash-update-component") || !one.decodedBodySize) continue;
      answers.push({ at: one.startTime, server: one.responseStart - one.requestStart,
                     wire: one.encodedBodySize, size: one.decodedBodySize });
    }
  }).observe({ type: "resource", buffered: true });
})();
"""
ZOOM = """
const [first, last, done] = arguments;
const graph = document.querySelector("figure.panel[data-name='loss'] .js-plotly-plot");
const began = performance.now();
const inside = () => {
  const x = graph.data[0].x._inputArray || graph.data[0].x;
  return x.length > 100 && x[0] >= first - 2 && x[x.length - 1] <= last + 2;
};
const look = () => inside() ? requestAnimationFrame(() => done([began, performance.now() - began]))
                            : requestAnimationFrame(look);
Plotly.relayout(graph, { "xaxis.range": [first, last] });
look();
"""


@dataclass(frozen=True)
class Sizes:
    """How much is looked at."""

    long: int  # steps
    folder: tuple[int, int] = (100, 2000)  # runs, steps
    live: tuple[int, int] = (5000, 50)  # rows before somebody looks, and while
    hour: int = 18_000  # rows: five a second
    many: tuple[int, int, int] = (20, 30, 20_000)  # runs, tags, steps


TRIAL = Sizes(50_000, (5, 2000), (250, 3), 900, (3, 10, 1000))


@dataclass
class Timing:
    """One thing that was measured, once a round."""

    what: str
    goal: str
    wall: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)  # the processor's seconds meanwhile
    browser: list[float] = field(default_factory=list)

    def row(self) -> list[str]:
        """Its line of the table."""
        return [self.what, self.goal, *(_listed(part) for part in (self.wall, self.server, self.browser))]


def _listed(seconds: list[float]) -> str:
    return ", ".join(f"{one:.2f}" for one in seconds) + " s" if seconds else ""


class Looker:
    """Chromium, and what it costs."""

    def __init__(self, profile: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        self.driver.set_script_timeout(60)
        self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})

    def cpu(self) -> float:
        """The processor's seconds of all its processes so far."""
        return sum(map(_cpu, psutil.Process(self.driver.service.process.pid).children(recursive=True)))

    def seen(self, name: str, seconds: float = 300.0) -> float:
        """Seconds from the navigation until it was on the screen."""
        script = f"return (window.benchSeen || {{}})['{name}']"
        return float(until(lambda: self.driver.execute_script(script), seconds)) / 1000

    def painted(self) -> float:
        """Seconds from the navigation to the first text."""
        script = "const all = performance.getEntriesByName('first-contentful-paint'); return all[0] && all[0].startTime"
        return float(until(lambda: self.driver.execute_script(script), 60.0)) / 1000

    def answers(self) -> list[dict[str, float]]:
        """What the server has sent to the page."""
        return list(self.driver.execute_script("return window.benchAnswers"))

    def memory(self) -> tuple[float, float]:
        """MB of scripts' values that are in use, and thousands of nodes."""
        self.driver.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
        self.driver.execute_cdp_cmd("Performance.enable", {})
        told = self.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        known = {one["name"]: one["value"] for one in told}
        return known["JSHeapUsedSize"] / 1e6, known["Nodes"] / 1e3


def _cpu(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def until(asked: Callable[[], Any], seconds: float) -> Any:
    """Ask until there is an answer."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        found = asked()
        if found:
            return found
        time.sleep(0.05)
    raise SystemExit(f"nothing was seen within {seconds:.0f} s")


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """``trainwatch dash`` in a process of its own, and its address."""
    command = [sys.executable, "-c", "from trainwatch.cli import app; app()", "dash", str(folder), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(folder / ".cache")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        said = re.search(r"http://\S+", process.stdout.readline())
        try:
            if said is None:
                raise SystemExit("the dashboard did not start")
            yield psutil.Process(process.pid), said[0]
        finally:
            process.terminate()


@contextlib.contextmanager
def looking() -> Iterator[Looker]:
    """A browser with an empty cache."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        looker = Looker(profile)
        try:
            yield looker
        finally:
            looker.driver.quit()


def opened(looker: Looker, server: psutil.Process, address: str, timings: dict[str, Timing]) -> None:
    """Open a page; note when each of the named things was on the screen, and what it cost until the last."""
    looker.driver.get("about:blank")
    began = _cpu(server), looker.cpu()
    looker.driver.get(address)
    for name, timing in timings.items():
        timing.wall.append(looker.painted() if name == "paint" else looker.seen(name))
    last = list(timings.values())[-1]
    last.server.append(_cpu(server) - began[0])
    last.browser.append(looker.cpu() - began[1])


def header(name: str, steps: int) -> dict[str, Any]:
    """What the recorder would write first."""
    declared = {one: {"unit": "nat", "role": "task"} for one in COMPONENTS}
    return {"kind": "run", "schema": 1, "run": name, "id": name, "total_steps": steps, "components": declared,
            "max_grad_norm": 2.0, "time": time.time()}  # fmt: skip


def channels(count: int) -> list[str]:
    """Names as a run of three components has them."""
    first = ["loss", *(f"{kind}/{one}" for kind in ("loss", "weight") for one in COMPONENTS), "grad_norm", "lr/main",
             "time/step", "time/data", "samples"]  # fmt: skip
    modules = [f"{kind}/module{index}" for index in range(count) for kind in ("grad_norm", "update_ratio")]
    return [*first, *modules][:count]


def rows(names: list[str], first: int, count: int, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Values of the rows after step ``first``, float64 [rows, channels]."""
    at = np.arange(first + 1, first + count + 1)
    values = np.exp(-at / steps)[:, None] + rng.normal(0, 0.02, (count, len(names))) + 0.5
    place = {name: index for index, name in enumerate(names)}
    for name, index in place.items():
        if name.startswith("weight/"):
            values[:, index] = 1.0
        elif name.startswith(("update_ratio/", "lr/")):
            values[:, index] *= 1e-3
        elif name.startswith("time/"):
            values[:, index] *= 0.02 if name == "time/step" else 0.001
    values[:, place["loss"]] = sum(values[:, place[f"loss/{one}"]] for one in COMPONENTS)
    values[:, place["samples"]] = at * 64
    return np.round(values, 7)


def write_run(path: Path, steps: int, count: int = 30, seed: int = 0) -> None:
    """A finished, healthy run."""
    rng, names = np.random.default_rng(seed), channels(count)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(orjson.dumps(header(path.stem, steps)) + b"\n")
        for first in range(0, steps, 10_000):
            block = rows(names, first, min(10_000, steps - first), steps, rng).tolist()
            for step, row in enumerate(block, first + 1):
                file.write(orjson.dumps({"kind": "step", "step": step, **dict(zip(names, row, strict=True))}) + b"\n")
        file.write(orjson.dumps({"kind": "end", "time": time.time(), "status": "finished"}) + b"\n")


def folder(place: Path, rounds: int, sizes: Sizes) -> list[list[str]]:
    """The first look at a folder of 100 runs; the first ones that look wait for the reading too."""
    runs, steps = sizes.folder
    for number in range(runs):
        write_run(place / f"run{number:03d}.jsonl", steps, seed=number)
    said = f"{runs} runs x {steps:,} steps"
    cold = {
        "paint": Timing(f"{said}: first paint", "2 s"),
        "rows": Timing(f"{said}: the runs as rows", "2 s"),
        "judged": Timing(f"{said}: every run judged", ""),
    }
    again = f"{said}, looked at before"
    warm = {"paint": Timing(f"{again}: first paint", "2 s"), "rows": Timing(f"{again}: the runs as rows", "2 s")}
    for _ in range(rounds):
        with served(place) as (server, address), looking() as looker:
            opened(looker, server, address, cold)
            opened(looker, server, address, warm)
    return [one.row() for one in (*cold.values(), *warm.values())]


def long(place: Path, rounds: int, sizes: Sizes) -> list[list[str]]:
    """A long run: read once, opened again, zoomed."""
    steps = sizes.long
    write_run(place / "long.jsonl", steps, CHANNELS)
    said = f"{steps:,} steps x {CHANNELS} channels"
    first = {"plot": Timing(f"{said}: read and judged, first plot", "")}
    again = {"plot": Timing(f"{said}, opened again: first plot", "3 s"),
             "plots": Timing(f"{said}, opened again: every plot on the screen", "3 s")}  # fmt: skip
    zooms: list[list[str]] = []
    with served(place) as (server, address), looking() as looker:
        opened(looker, server, f"{address}/run?path=long.jsonl", first)
        time.sleep(2)
        for _ in range(rounds):
            opened(looker, server, f"{address}/run?path=long.jsonl", again)
            time.sleep(2)
            zooms += _zoomed(looker, server, steps, said)
    restarted = {"plot": Timing(f"{said}, dashboard started anew: first plot", "3 s")}
    for _ in range(rounds):
        with served(place) as (server, address), looking() as looker:
            opened(looker, server, f"{address}/run?path=long.jsonl", restarted)
    return [one.row() for one in (*first.values(), *again.values(), *restarted.values())] + zooms


def _zoomed(looker: Looker, server: psutil.Process, steps: int, said: str) -> list[list[str]]:
    """Ten ranges, from a tenth of the run to a thousandth."""
    rng, screen, answered = random.Random(0), [], []
    began = _cpu(server), looker.cpu()
    for number in range(10):
        width = steps // (10, 100, 1000)[number % 3]
        low = rng.randrange(steps - width)
        at, took = looker.driver.execute_async_script(ZOOM, low, low + width)
        time.sleep(0.5)
        screen.append(took / 1000)
        answered += [one["server"] / 1000 for one in looker.answers() if at <= one["at"] <= at + took][:1]
    costs = [
        f"{(now - before) / 10:.2f} s each" for now, before in zip((_cpu(server), looker.cpu()), began, strict=True)
    ]
    return [
        [f"{said}: zoom, the server's answer (median, largest of 10)", "0.1 s", _middle(answered), *costs],
        [f"{said}: zoom, detail on the screen (median, largest of 10)", "0.3 s", _middle(screen), "", ""],
    ]


def _middle(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f}, {max(seconds):.3f} s"


def _recording(path: Path, steps: int) -> tuple[trainwatch.Recorder, Callable[[int], None]]:
    """A recorder, and what records a row."""
    names, rng = channels(30), np.random.default_rng(0)
    values = rows(names, 0, steps, steps, rng).tolist()
    watch = trainwatch.Recorder(path, run=path.stem, total_steps=steps)

    def record(index: int) -> None:
        watch.log(dict(zip(names, values[index], strict=True)))
        watch.step()

    return watch, record


def live(place: Path, rounds: int, sizes: Sizes) -> list[list[str]]:
    """From the recorder's write to the text on the screen; and the bytes of an update."""
    (before, watched), table = sizes.live, []
    for number in range(rounds):
        path, rng, wrote = place / f"live{number}.jsonl", random.Random(0), {}
        watch, record = _recording(path, before + watched)
        with watch, served(place) as (server, address), looking() as looker:
            for index in range(before):
                record(index)
            looker.driver.get(f"{address}/run?path={path.name}")
            looker.seen("plots")
            time.sleep(3)
            costs, sent = (_cpu(server), looker.cpu()), len(looker.answers())
            for index in range(before, before + watched):
                wrote[index + 1] = time.time()
                record(index)
                time.sleep(rng.uniform(0.8, 1.6))
            time.sleep(3)
            shown = {int(step): at / 1000 for step, at in looker.driver.execute_script("return benchSteps").items()}
            costs = _cpu(server) - costs[0], looker.cpu() - costs[1]
            answers = looker.answers()[sent:]
        took = [min(at for other, at in shown.items() if other >= step) - began for step, began in wrote.items()]
        each = [f"{cost / watched:.2f} s each" for cost in costs]
        sizes, wire = ([one[name] / 1000 for one in answers] for name in ("size", "wire"))
        table += [
            [f"record to screen, {watched} rows (median, largest)", "1 s", _middle(took), *each],
            ["a live update (median, largest)", "60 kB", f"{_sizes(sizes)}; compressed {_sizes(wire)}", "", ""],
        ]
    return table


def _sizes(kilobytes: list[float]) -> str:
    return f"{statistics.median(kilobytes):.0f}, {max(kilobytes):.0f} kB" if kilobytes else "none"


def motion(place: Path, rounds: int, sizes: Sizes) -> list[list[str]]:
    """An hour's rows in a minute; what server and page hold after each quarter."""
    return [row for number in range(rounds) for row in _in_motion(place / f"motion{number}.jsonl", sizes.hour)]


def _in_motion(path: Path, hour: int) -> list[list[str]]:
    watch, record = _recording(path, hour)
    table = []
    with watch, served(path.parent) as (server, address), looking() as looker:
        for index in range(100):
            record(index)
        looker.driver.get(f"{address}/run?path={path.name}")
        looker.seen("plots")
        for quarter in range(4):
            for index in range(max(hour * quarter // 4, 100), hour * (quarter + 1) // 4):
                record(index)
                if index % 30 == 0:
                    time.sleep(0.1)
            time.sleep(5)
            heap, nodes = looker.memory()
            held = f"server {server.memory_info().rss / 1e6:.0f} MB; page {heap:.1f} MB, {nodes:.1f} k nodes"
            table.append([f"an hour in motion, quarter {quarter + 1}: memory", "no growth", held, "", ""])
    return table


def many(place: Path, rounds: int, sizes: Sizes) -> list[list[str]]:
    """20 runs of event files, beside TensorBoard."""
    if importlib.util.find_spec("tensorboard") is None:
        print("tensorboard is not installed: its event files are left out")
        return []
    runs, tags, steps = sizes.many
    first = place / "run00" / "events.out.tfevents.1.host"
    write_events(first, tags, steps)
    for number in range(1, runs):
        (place / f"run{number:02d}").mkdir()
        (place / f"run{number:02d}" / first.name).hardlink_to(first)
    said = f"{runs} runs x {tags} tags x {steps:,} steps"
    ours = {"rows": Timing(f"{said}: the runs as rows", ""), "judged": Timing(f"{said}: every run judged", "")}
    plot = {"plot": Timing(f"{said}: then a run's first plot", "")}
    peer = Timing(f"{said}: TensorBoard, from its start until it answers with a curve", "")
    kept = 0
    for _ in range(rounds):
        with served(place) as (server, address), looking() as looker:
            opened(looker, server, address, ours)
            opened(looker, server, f"{address}/run?path=run00/{first.name}", plot)
        kept = _tensorboard(place, runs, peer)
    points = f"kept of each curve: all {steps:,} (300 drawn, extremes and every zoom exact); TensorBoard {kept:,}"
    return [*(one.row() for one in (*ours.values(), *plot.values(), peer)), [f"{said}: points", "", points, "", ""]]


def _tensorboard(place: Path, runs: int, timing: Timing) -> int:
    """Start it on the folder; the points that it has of a curve once it knows every run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(place), "--port", str(port)]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        address = f"http://127.0.0.1:{port}/data/plugin/scalars"
        try:
            until(lambda: len(_answer(f"{address}/tags") or ()) == runs, 300.0)
            curve = until(lambda: _answer(f"{address}/scalars?run=run00&tag=loss"), 300.0)
            timing.wall.append(time.monotonic() - began)
            own = psutil.Process(process.pid)
            timing.server.append(sum(map(_cpu, (own, *own.children(recursive=True)))))
            return len(curve)
        finally:
            process.terminate()


def _answer(address: str) -> Any:
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)
    return None


PARTS = {part.__name__: part for part in (folder, long, live, motion, many)}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the long run")
    parser.add_argument("--trial", action="store_true", help="a twentieth of everything: whether it works")
    asked = parser.parse_args()
    sizes = TRIAL if asked.trial else Sizes(asked.steps)
    table = []
    for name in asked.parts or PARTS:
        with tempfile.TemporaryDirectory() as place:
            table += PARTS[name](Path(place), asked.rounds, sizes)
    columns = ("dashboard", "goal", "measured, each round", "CPU, server", "CPU, browser")
    show("The dashboard in headless Chromium", columns, table)
    print(markdown(columns, table))


if __name__ == "__main__":
    main()

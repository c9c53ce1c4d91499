"""Runs to judge: built in memory, or written as a run file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from trainwatch.engine import Engine
from trainwatch.run import Run
from trainwatch.schedule import schedule_values
from trainwatch.schema import NONFINITE, Finding

hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, print_blob=True)
hypothesis.settings.load_profile("fixed")
"""The same examples at each run: a test judges a change, not the dice. `make search` throws them, until one is found
that fails. No deadlines: a slow moment of the machine is no failure."""

Record = dict[str, Any]
TABLES = {"step": "train", "eval": "eval", "sample": "sample"}


def append(run: Run, records: Iterable[Record]) -> Run:
    """Add records to a run as a reader would: those of one table and with the same keys become rows together."""
    for (table, keys), group in groupby(records, lambda record: (TABLES.get(record["kind"]), tuple(record))):
        for record in [] if table else group:
            run.add_header(record) if record["kind"] == "run" else run.add_event(record)
        if table:
            _append_rows(run, table, keys, list(group))
    return run


def _append_rows(run: Run, table: Any, keys: tuple[str, ...], rows: list[Record]) -> None:
    names = [key for key in keys if key not in ("kind", "step", "nonfinite")]
    numeric = {name: np.array([_numeric(row[name]) for row in rows], dtype=np.float64) for name in names}
    finite = {name: np.where(np.isfinite(column), column, np.nan) for name, column in numeric.items()}
    texts = {name for name in names if any(isinstance(row[name], str | list) for row in rows)}
    steps = np.array([row["step"] for row in rows], dtype=np.int64)
    first = run.add_rows(table, steps, {name: column for name, column in finite.items() if name not in texts})
    for index, row in enumerate(rows, first):
        for name in names:
            if name in texts:
                run.table(table).text.setdefault(name, {})[index] = row[name]
            elif isinstance(row[name], float) and not math.isfinite(row[name]):
                run.table(table).mark(index, name, NONFINITE[str(row[name])])


def _numeric(value: Any) -> float:
    return np.nan if value is None or isinstance(value, str | list) else float(value)


def rows(count: int, first: int = 1, **columns: Any) -> list[Record]:
    """``count`` step records; ``loss__mass`` is the channel ``loss/mass``, a scalar stands for every row."""
    wide = {name.replace("__", "/"): np.broadcast_to(values, count).tolist() for name, values in columns.items()}
    return [
        {"kind": "step", "step": first + index, **{name: values[index] for name, values in wide.items()}}
        for index in range(count)
    ]


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """Whatever other tests of this process compiled: the look at what is in training mode asks for it."""
    dynamo = pytest.importorskip("torch")._dynamo
    dynamo.reset()
    yield
    dynamo.reset()


@pytest.fixture
def step_rows() -> Callable[..., list[Record]]:
    """``step_rows(100, first=1, loss=..., loss__mass=...)``: step records, a channel from each keyword."""
    return rows


@pytest.fixture
def play() -> Callable[..., Run]:
    """``play(records)`` or ``play(records, run)``: a run in memory, from records in the order of the file."""
    return lambda records, run=None: append(run or Run(Path("run.jsonl")), records)


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """``make_run({"loss": array}, header={...}, evals=[...], events=[...], end="finished")``: a run in memory.

    Columns are arrays of one length (NaN is absent, inf is written as such), ``step`` counts from 1 if it is not among
    them; evaluations and events are records that stand behind the rows of their ``step``.
    """
    return build


def build(
    columns: Mapping[str, Any] | None = None,
    *,
    header: Mapping[str, Any] | None = None,
    evals: Iterable[Record] = (),
    events: Iterable[Record] = (),
    end: str | None = "finished",
    onto: Run | None = None,
) -> Run:
    """See the fixture ``make_run``."""
    run = onto or Run(Path("run.jsonl"))
    if header is not None:
        append(run, [{"kind": "run", "schema": 1, "id": "r", **header}])
    wide = {name: np.asarray(values, dtype=np.float64) for name, values in (columns or {}).items()}
    count = max((values.size for values in wide.values()), default=0)
    step = np.asarray(wide.pop("step", np.arange(1, count + 1)), dtype=np.int64)
    aside = [{"kind": "eval", **record} for record in evals] + [{"kind": "event", **record} for record in events]
    done = 0
    for record in sorted(aside, key=lambda record: record.get("step", math.inf)):
        until = int(np.searchsorted(step, record.get("step", math.inf), side="right"))
        _append_columns(run, step, wide, done, until)
        append(run, [record])
        done = max(done, until)
    _append_columns(run, step, wide, done, count)
    return append(run, [{"kind": "end", "status": end}]) if end else run


def _append_columns(run: Run, step: Any, wide: Mapping[str, Any], start: int, stop: int) -> None:
    if stop <= start:
        return
    part = {name: np.broadcast_to(values, len(step))[start:stop] for name, values in wide.items()}
    finite = {name: np.where(np.isfinite(values), values, np.nan) for name, values in part.items()}
    first = run.add_rows("train", step[start:stop], finite)
    for name, values in part.items():
        for index in np.flatnonzero(np.isinf(values)):
            run.train.mark(first + int(index), name, NONFINITE["inf" if values[index] > 0 else "-inf"])


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """``write_run(records, name="run.jsonl")``: a run file; what is not finite is null and named."""

    def write(records: Iterable[Record], name: str = "run.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(_strict(record), allow_nan=False)}\n" for record in records))
        return path

    return write


@pytest.fixture
def put() -> Callable[[Path, Iterable[Record]], Path]:
    """``put(path, records)`` appends them to a file; nobody ever sees half a line."""

    def append(path: Path, records: Iterable[Record]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write("".join(f"{json.dumps(record)}\n" for record in records).encode())
        return path

    return append


def _strict(record: Record) -> Record:
    odd = {k: str(v) for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)}
    return {**record, **dict.fromkeys(odd), **({"nonfinite": odd} if odd else {})}


@pytest.fixture
def judge() -> Callable[..., list[Finding]]:
    """``judge(run, rule="clock-desync")``: every finding of one rule, or of all; fails if a rule broke."""

    def findings(run: Run, rule: str | None = None) -> list[Finding]:
        engine = Engine()
        engine.feed(run)
        found = engine.findings(run)
        assert engine.failed == {}
        return [finding for finding in found if rule in (None, finding.rule)]

    return findings


@pytest.fixture
def healthy() -> Callable[..., list[Record]]:
    """``healthy(steps=1000, seed=0)``: the records of a run that nothing is wrong with, and that has seen life.

    Four components on two scales, a curriculum of three stages, warm-up and cosine, fp16 that skips its first steps,
    evaluations, checkpoints, and a resume from a checkpoint after which some steps are done again.
    """
    return healthy_records


def healthy_records(steps: int = 1000, seed: int = 0) -> list[Record]:
    """See the fixture ``healthy``."""
    random = np.random.default_rng(seed)
    head = healthy_header(steps)
    resumed = round(0.6 * steps)
    before = _healthy_rows(head, 1, round(0.65 * steps), random)
    after = _healthy_rows(head, resumed + 1, steps, random)
    end = {"kind": "end", "status": "finished", "step": steps, "time": 1e9 + steps}
    return [head, *before, {**head, "resumed_from": resumed}, *after, end]


def healthy_header(steps: int) -> Record:
    """What the healthy run declares."""
    plan = [(0.0, 0.3, "short", 0.0, 0.0), (0.3, 0.6, "medium", 0.1, 0.01), (0.6, 1.0, "long", 0.15, 0.02)]
    stages = [
        {
            "start": round(start * steps),
            "end": round(end * steps),
            "name": name,
            "weights": {"sequence": 1.0, "spectrum": spectrum, "precursor": precursor, "kl": 0.001},
        }
        for start, end, name, spectrum, precursor in plan
    ]
    curriculum = {"name": "EXTENDED", "source": "curriculum.py", "sha256": "ab", "stages": stages}
    return {
        "kind": "run",
        "schema": 1,
        "run": "healthy",
        "id": "healthy-1",
        "attempt": 1,
        "time": 1e9,
        "elapsed": 0.0,
        "total_steps": steps,
        "components": {
            "sequence": {"unit": "nat"},
            "spectrum": {"unit": ""},
            "precursor": {"unit": "Da"},
            "kl": {"unit": "nat", "role": "regulariser"},
        },
        "curriculum": curriculum,
        "curriculum_running": curriculum,
        "schedules": {
            "lr/main": {"kind": "cosine", "start": 1e-3, "end": 1e-5, "over_steps": steps, "warmup": steps // 20},
            "temperature": {"kind": "exponential", "start": 2.0, "end": 0.5, "over_steps": steps // 2},
        },
        "clocks": ["generator"],
        "max_grad_norm": 1.0,
        "dtypes": {"declared": "float16", "observed": "float16"},
        "config": {"curriculum": "EXTENDED", "optimizer": {"lr": 1e-3}},
        "checkpoint_every": steps // 10,
    }


def _healthy_rows(head: Record, first: int, last: int, random: np.random.Generator) -> list[Record]:
    steps, stages = head["total_steps"], head["curriculum"]["stages"]
    step = np.arange(first, last + 1)
    skipped = (step <= 8) & (step % 2 == 0)  # fp16 looks for its scale
    applied = step - 4 if first > 1 else step - np.cumsum(skipped)
    stage = np.searchsorted([item["start"] for item in stages], applied, side="right") - 1
    weight = {c: np.array([item["weights"][c] for item in stages])[stage] for c in head["components"]}
    share, noise = applied / steps, lambda: 1 + 0.05 * random.standard_normal(len(step))
    raw = {
        "sequence": (0.4 + 2.6 * np.exp(-5 * share) + 0.05 * stage) * noise(),
        "spectrum": (0.15 + 0.6 * np.exp(-4 * share)) * noise(),
        "precursor": (1.5 + 6.0 * np.exp(-4 * share)) * noise(),
        "kl": (0.5 + 3.0 * share) * noise(),
    }
    norms = {c: weight[c] * raw[c] * {"sequence": 1.0, "spectrum": 2.0, "precursor": 1.5, "kl": 0.5}[c] for c in raw}
    norm = np.where(skipped, np.inf, 1.2 * np.exp(-2 * share) * (1 + 0.2 * np.abs(random.standard_normal(len(step)))))
    columns: dict[str, Any] = {
        "time": 1e9 + step * 0.5,
        "elapsed": (step - first) * 0.5,
        "applied": applied,
        "epoch": step * 64 / 20_000,
        "samples": step * 64,
        "loss": sum(weight[c] * raw[c] for c in raw),
        "stage": stage,
        "grad_norm": norm,
        "clip": norm > 1.0,
        "amp/scale": 65536.0 / 2 ** np.minimum(np.cumsum(skipped) if first == 1 else 4, 4),
        "amp/skipped": skipped,
        "clock/generator": step // 5,
        "memory/allocated": 2e9 + 1e6 * random.standard_normal(len(step)),
        "time/step": 0.5 * noise(),
    }
    for component, values in raw.items():
        columns[f"loss/{component}"] = values
        columns[f"weight/{component}"] = weight[component]
        columns[f"component_grad/{component}"] = norms[component]
        columns[f"grad_share/{component}"] = norms[component] / sum(norms.values())
    for name, declared in head["schedules"].items():
        columns[name if "/" in name else f"schedule/{name}"] = schedule_values(declared, applied - 1.0)
    lists = {n: np.broadcast_to(values, len(step)).astype(np.float64).tolist() for n, values in columns.items()}
    return _with_the_rest(head, step.tolist(), lists, random)


def _with_the_rest(head: Record, steps: list[int], lists: dict[str, list[float]], random: Any) -> list[Record]:
    records: list[Record] = []
    every = head["checkpoint_every"]
    for index, step in enumerate(steps):
        records.append({"kind": "step", "step": step} | {name: values[index] for name, values in lists.items()})
        if step % every == 0:
            time = 1e9 + step * 0.5
            loss = (0.5 + 2.6 * math.exp(-5 * step / head["total_steps"])) * (1 + 0.02 * random.standard_normal())
            records.append({"kind": "eval", "step": step, "time": time, "split": "valid", "loss": loss})
            records.append({"kind": "checkpoint", "step": step, "time": time, "path": f"step{step}.pt"})
    return records

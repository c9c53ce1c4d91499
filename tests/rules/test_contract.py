"""What holds for every rule: found by walking the catalogue, so that a new rule is proved by being there."""

from __future__ import annotations

import ast
import gzip
import inspect
import math
import pickle
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainwatch.engine import Engine, catalogue
from trainwatch.readers import read_all
from trainwatch.rule import PARTS, known, page
from trainwatch.run import Run

RULES = catalogue()
KEBAB = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
SUBJECT = re.compile(r"run|(component|module|clock|rank|config|schedule|split|group|stage):.+")
DEMO = Path(__file__).parents[1] / "data"


def diagnosed(run):
    """Every finding of every rule; none may break."""
    engine = Engine()
    engine.feed(run)
    found = engine.findings(run)
    assert engine.failed == {}
    return found


def by_rule(findings):
    """Findings as JSON, by rule; so a failure names its rule."""
    return {name: [f.to_dict() for f in findings if f.rule == name] for name in sorted({f.rule for f in findings})}


@pytest.mark.parametrize("name", RULES)
def test_page_and_names(name):
    """The docstring is the whole page, and every name that the rule gives is a good one."""
    rule = RULES[name]
    text = page(rule)
    assert text[""].strip()
    assert [part for part in PARTS if not text.get(part)] == []
    assert KEBAB.fullmatch(name)
    assert rule.__name__ == name.title().replace("-", "")
    assert rule().family == Path(inspect.getfile(rule)).parent.name
    assert name not in rule.causes
    assert [cause for cause in rule.causes if not KEBAB.fullmatch(cause)] == []
    assert [pattern for pattern in (*rule.needs, *rule.wants) if not known(pattern)] == []


@pytest.mark.parametrize("name", RULES)
def test_every_threshold_has_a_default_and_a_reason(name):
    """A comment on the field's line (or within its brackets), or a docstring below it."""
    source = Path(inspect.getfile(RULES[name])).read_text()
    lines = source.splitlines()
    body = next(
        n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == RULES[name].__name__
    ).body
    thresholds = {item.name for item in fields(RULES[name]) if item.init}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and node.target.id in thresholds:
            written = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert "#" in written or told, f"{name}.{node.target.id}: the reason of the number is missing"
            thresholds.discard(node.target.id)
    assert thresholds == set()
    RULES[name]()  # every field has a default


HOSTILE = [
    {},
    {"components": 5, "schedules": [], "curriculum": "x", "total_steps": -1, "clocks": {}, "config": [1]},
    {"total_steps": 1e400, "schedules": {"lr/a": {"kind": "cosine", "start": 1e400, "over_steps": -5}}},
    {"total_steps": 1e308, "curriculum": {"name": 1, "stages": [{"start": 1e308, "weights": {"a": 1e308}}, 5, {}]}},
    {"curriculum": {"stages": [{"start": -5}, {"start": 0, "weights": {"a": "1"}}]}, "curriculum_running": []},
    {"schedules": {"": {"kind": "linear", "start": 0, "over_steps": 1e-300, "clock": ["a"]}, "a": 5}},
    {
        "schedules": {
            "a": {"kind": "exponential", "start": 1, "end": 0, "over_steps": 9, "rate": -1e300},
            "lr/a": {"kind": "linear", "start": 1e308, "end": -1e308, "over_steps": 9, "clock": "a", "begin": 1e300},
        },
        "classes": "none",
        "modules": {"a": 1},
        "horizon": 7,
        "dtypes": 3,
    },
    {"total_steps": 40, "horizon": {"epochs": 1e300, "samples": -1, "batch_size": 0, "accumulation": "2"}},
    {"total_steps": 40, "horizon": {"epochs": 3, "samples": 1e300, "batch_size": 1e-300, "processes": 2}},
    {
        "total_steps": 9,
        "curriculum": {"stages": [{"start": 0, "data": {"length": [1, 2]}}, {"start": 4}, {"start": 4}]},
    },
    {
        "config": {"a": {"b": {"c": "5e-5"}}, "curriculum": {"name": 3}},
        "components": {"a": None, "": {}},
        "resumed_from": 7,
    },
]
SERIES = {
    "nothing": [],
    "one": [1.0],
    "constant": [1.0] * 60,
    "zero": [0.0] * 60,
    "nan": [math.nan] * 60,
    "inf": [math.inf, -math.inf] * 30,
    "huge": [1e308, -1e308, 1e-308] * 20,
    "mixed": [1.0, math.nan, math.inf, None] * 15,
}
CHANNELS = (
    *("loss", "loss/a", "loss/b", "weight/a", "weight/b", "stage", "grad_norm", "grad_norm/x", "component_grad/a"),
    *("grad_share/a", "grad_share/b", "lr/a", "schedule/a", "clock/a", "samples", "amp/skipped", "amp/scale", "epoch"),
    *("data/masked/a", "data/class/a", "data/input_mean", "data/input_std", "time/data", "time/monitor", "tokens"),
    *("memory/a", "bad/input", "bad/weights", "update_ratio/a", "time/step", "param_hash", "data/fingerprint"),
    *("weight_norm/a", "absmax/a", "data/input_mean", "grad_norm_at_step", "time/data", "state_steps/a", "reward"),
    *("data/index", "data/length/min", "data/length/max", "tokens", "applied/a", "elapsed"),
    *("component_grad/b", "grad_cosine/a~b", "param_share/a", "data/length/min", "data/length/max"),
    *("codebook/perplexity", "codebook/used", "weight_norm/a", "clip", "grad_norm/y", "update_ratio/b", "lr/b"),
)
QUALITY = [
    f"quality/{name}" for name in ("validity", "diversity", "longest_run", "entropy", "length_mean", "length_std")
]


@pytest.mark.parametrize("head", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("series", SERIES)
def test_nothing_breaks_a_rule(series, head, play):
    """Empty, constant, not finite, absent; steps that go backwards; a header that lies."""
    values = SERIES[series]
    numbers = range(len(values), 0, -1) if series in ("constant", "mixed") else range(1, len(values) + 1)
    records = [{"kind": "run", **head}, {"kind": "run"}, {"kind": "event"}, {"kind": "event", "event": "exception"}]
    for step, value in zip(numbers, values, strict=True):
        records.append({"kind": "step", "step": step, **dict.fromkeys(CHANNELS, value)})
        records.append({"kind": "step", "step": step, "applied": value, "loss/b": 1.0})
        if step % 7 == 0:
            records.append({"kind": "eval", "step": step, "split": "valid", "loss": value, "loss/a": value})
            records.append({"kind": "eval", "step": step, "loss": value, "repeat": value, "weights_step": value})
            records.append({"kind": "sample", "step": step, **dict.fromkeys(QUALITY, value)})
    diagnosed(play(records))
    diagnosed(play(records[4:]))
    diagnosed(play([*records, {"kind": "end", "status": 5}]))
    diagnosed(play([*records, {"kind": "end", "status": "failed", "exception": [5], "step": "x"}]))


HEADER = {
    "kind": "run",
    "id": "r",
    "total_steps": 150,
    "components": {"a": {"role": "task"}, "b": {"role": "task"}},
    "curriculum": {
        "name": "A",
        "stages": [
            {"start": 0, "end": 50, "weights": {"a": 1, "b": 0}, "data": {"length": [7, 10]}},
            {"start": 50, "weights": {"a": 1, "b": 0.5}, "data": {"length": [11, 20]}},
        ],
    },
    "schedules": {
        "lr/main": {"kind": "cosine", "start": 1e-3, "end": 0.0, "over_steps": 150, "warmup": 10},
        "lr/other": {"kind": "linear", "start": 1e-3, "end": 0.0, "over_steps": 150},
        "penalty": {"kind": "linear", "start": 0.0, "end": 1.0, "over_steps": 150, "clock": "dqn"},
        "weight/c": {"kind": "linear", "start": 0.0, "end": 1.0, "over_steps": 150},
    },
}
SICK = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 140),
        "seed": st.integers(0, 2**16),
        "late": st.integers(0, 60),  # the row from which some channels are recorded at all
        "fault": st.integers(0, 120),  # the row from which everything goes wrong
        "kinds": st.sets(
            st.sampled_from(["nan", "scale", "weight", "clock", "lr", "back", "rise", "holes", "skip", "jump"])
        ),
        "resume": st.none() | st.integers(0, 100),
        "end": st.sampled_from(["finished", "failed", None]),
    }
)


def sick_records(case):
    """A run of 150 planned steps in which any mixture of sicknesses begins at a random row."""
    random = np.random.default_rng(case["seed"])
    kinds, records = case["kinds"], [HEADER]
    clock = applied = 0
    for row in range(case["rows"]):
        if row == case["resume"]:
            records.append({**HEADER, "resumed_from": max(row - 10, 0)})
        ill = row >= case["fault"]
        skipped = "skip" in kinds and random.random() < 0.2
        applied += not skipped
        clock += 0 if ill and "clock" in kinds and random.random() < 0.8 else 1
        step = row + 1 - (25 if ill and "back" in kinds else 0) + (50 if ill and "jump" in kinds else 0)
        speed = 3 if ill and "lr" in kinds else 1
        losses = {"a": 3 * math.exp(-row / 50) + 0.1 * random.random(), "b": 0.5 + 0.1 * random.random()}
        if ill and "scale" in kinds:
            losses["b"] *= 1000
        if ill and "nan" in kinds and random.random() < 0.3:
            losses["a"] = float(random.choice([math.nan, math.inf, -math.inf]))
        weights = {"a": 1.0, "b": (0.0 if applied < 50 else 0.5) * (3 if ill and "weight" in kinds else 1)}
        if row % 7 == 0 and "holes" in kinds:
            losses["b"] = None
        record = {"kind": "step", "step": max(step, 0), "applied": applied, "amp/skipped": float(skipped)}
        record |= {"loss": sum(weights[c] * (losses[c] or 0.0) for c in losses), "clock/dqn": clock, "samples": 8 * row}
        record |= {f"loss/{c}": value for c, value in losses.items()} | {f"weight/{c}": w for c, w in weights.items()}
        record |= {"lr/main": 1e-3 * max(0.0, 1 - speed * applied / 150), "schedule/penalty": clock / 150}
        record |= {"weight/c": min(1.0, speed * applied / 150), "memory/host": 1e9 * (1 + ill)}
        record |= {
            "amp/scale": 2.0 ** (15 - row + applied),
            "bad/input": float(ill and row % 9 == 0),
            "absmax/x": 5e4 + row,
            "data/length/min": 7 + 4 * (applied >= 50 and not ill),
            "data/index": 8 * row,
            "lr/other": record["lr/main"],
        }
        record |= {"time/step": 0.1 * (1 + ill), "time/data": 0.06 * ill, "data/fingerprint": row // (1 + 3 * ill)}
        record |= {"data/masked/a": 0.5 + 0.45 * ill, "data/input_std": 1 + 500.0 * ill, "data/class/a": 1 + ill}
        if row >= case["late"]:
            share = float(np.clip(random.normal(0.9 if ill else 0.5, 0.1), 0, 1))
            record |= {
                "grad_norm": 1.0 if random.random() < 0.9 else math.inf,
                "grad_norm/head": 0.5,
                "stage": row // 50,
            }
            record |= {"grad_norm/body": float(ill) * random.random(), "update_ratio/main": 0.0 if ill else 1e-3}
            record |= {"grad_share/a": 1 - share, "grad_share/b": share, "component_grad/b": share, "loss/late": 1.0}
            record |= {"component_grad/a": 0.0 if ill else 1 - share, "grad_cosine/a~b": -share if ill else share}
        records.append(record)
        if row % 5 == 4:
            rise = 0.05 * max(row - case["fault"], 0) if "rise" in kinds else 0.0
            records.append({"kind": "eval", "step": row, "split": "valid", "loss": (losses["a"] or 0.0) + rise})
            records.append({"kind": "eval", "step": row, "split": "test", "loss/b": 1.0 + rise})
            again = {"kind": "eval", "step": row, "split": "test", "loss/b": 1.0 + random.random(), "metric/acc": 0.5}
            records.append({**again, "repeat": 1.0, "weights_step": float(row)})
            records.append({"kind": "sample", "step": row, **dict.fromkeys(QUALITY, 0.1 if ill else 0.9)})
        if row % 11 == 10:
            event = random.choice(["note", "signal", "exception", "oom", "stage"])
            records.append(
                {"kind": "event", "event": str(event), "step": row, "type": "ValueError", "message": "loss/a"}
            )
            records.append({"kind": "checkpoint", "step": row, "path": "x.pt"})
    if case["end"]:
        records.append({"kind": "end", "status": case["end"], "exception": {"type": "KeyError", "message": "'a'"}})
    return records


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=SICK, cuts=st.lists(st.integers(1, 300), max_size=8), one_by_one=st.booleans())
def test_cutting_never_changes_what_is_found(case, cuts, one_by_one, play):
    """The whole file at once, row by row, and in random pieces: the same findings to the last digit."""
    records = sick_records(case)
    whole = diagnosed(play(records))
    edges = range(1, len(records) + 1) if one_by_one else sorted({*cuts, len(records)})
    engine, run, done = Engine(), Run(Path("run.jsonl")), 0
    for edge in edges:
        play(records[done:edge], run)
        done = max(done, edge)
        engine.feed(run)
        if edge % 10 == 0:
            engine.findings(run)  # a live face asks now and then, and must not disturb
    assert engine.failed == {}
    pieces = by_rule(engine.findings(run))
    assert {name: found for name, found in pieces.items() if found != by_rule(whole).get(name)} == {}
    assert pieces.keys() == by_rule(whole).keys()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=SICK, rows=st.integers(1, 9), looks=st.sets(st.integers(0, 40), max_size=4))
def test_a_look_says_what_a_first_look_would_say(case, rows, looks, play):
    """However often was looked before: what is taken once for several rules, or known already, is never out of date."""
    records = sick_records(case)
    engine, run = Engine(), Run(Path("run.jsonl"))
    for look, done in enumerate(range(0, len(records), rows)):
        play(records[done : done + rows], run)
        engine.feed(run)
        found = engine.findings(run)
        if look in looks:
            assert by_rule(found) == by_rule(diagnosed(play(records[: done + rows])))


@pytest.mark.parametrize(("late", "resume"), [(0, 30), (45, 45), (20, 1)])
def test_a_live_face_may_ask_after_every_record(late, resume, play):
    """So also after the header of a resume, when rules that were in the midst of their columns have not a row."""
    case = {"rows": 60, "seed": 1, "late": late, "fault": 40, "kinds": {"scale"}, "resume": resume, "end": None}
    engine, run = Engine(), Run(Path("run.jsonl"))
    for record in sick_records(case):
        play([record], run)
        engine.feed(run)
        engine.findings(run)
        assert engine.failed == {}, record


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=SICK)
def test_finish_remembers_nothing_and_findings_are_well_formed(case, play):
    """Asked twice it says the same, and the rule is what it was before; every finding names what the format knows."""
    run, engine = play(sick_records(case)), Engine()
    engine.feed(run)
    before = {rule.name: pickle.dumps(rule) for rule in engine.rules}
    found = engine.findings(run)
    assert engine.findings(run) == found
    assert {rule.name: pickle.dumps(rule) for rule in engine.rules} == before
    for finding in found:
        assert SUBJECT.fullmatch(finding.subject), finding
        assert finding.message.endswith((".", ")")), finding
        assert finding.advice, finding
        assert finding.first_step <= finding.last_step, finding
        assert 0 < finding.confidence <= 1
        assert all(KEBAB.fullmatch(name.replace("_", "-").replace("/", "-")) for name in finding.evidence), finding


def test_state_stays_the_same_size(healthy, play):
    """Ten times the rows, the same memory: what a rule keeps does not grow with the run."""
    records = [record for record in healthy(2000) if record["kind"] == "step"][:1000]
    header = healthy(2000)[0]
    sizes = []
    for repeats in (2, 20):
        run, engine = play([header]), Engine()
        rows = [{**record, "step": i + 1, "applied": i + 1} for i, record in enumerate(records * 2)]
        for part in range(repeats // 2):
            shift = part * len(rows)
            play([{**row, "step": row["step"] + shift, "applied": row["applied"] + shift} for row in rows], run)
            engine.feed(run)
        sizes.append({rule.name: len(pickle.dumps(rule)) for rule in engine.rules})
    grown = {name: (sizes[0][name], size) for name, size in sizes[1].items() if size > sizes[0][name] + 4096}
    assert grown == {}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [400, 3000])
def test_a_healthy_run_raises_no_alarm(healthy, play, steps, seed):
    """Stage switches, a warm-up, skipped first steps, a resume: none of them is a sickness."""
    assert [finding.message for finding in diagnosed(play(healthy(steps, seed)))] == []


def test_a_healthy_run_without_declarations_raises_no_alarm(healthy, play):
    """The same run from a trainer that declares nothing, and records no weights."""
    records = [
        {"kind": "run", "id": "r"} if record["kind"] == "run" else record
        for record in healthy(1000)
        if not (record["kind"] == "run" and "resumed_from" in record)
    ]
    rows = [record for record in records if record["kind"] != "step" or record["step"] <= 600]
    plain = [{key: value for key, value in row.items() if not key.startswith("weight/")} for row in rows[:600]]
    assert [f.message for f in diagnosed(play([*plain, {"kind": "end", "status": "finished"}])) if f.rank] == []


@pytest.mark.parametrize("path", sorted(DEMO.glob("healthy*.jsonl.gz")), ids=lambda path: path.name)
def test_a_recorded_healthy_run_raises_no_alarm(path, tmp_path):
    """Runs that were really trained: healthy-demo is what `trainwatch demo --healthy` wrote."""
    plain = tmp_path / path.stem
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    for run in read_all(plain):
        assert run.train.size
        assert [finding.message for finding in diagnosed(run) if finding.rank] == []


APPEARS = {
    "an update ratio after norms that stay": {
        "weight_norm/a": np.full(400, 7.25),
        "grad_norm": np.ones(400),
        "lr/a": np.full(400, 1e-3),
        "update_ratio/a": np.where(np.arange(400) % 50 == 0, 1e-3, np.nan),
    },
    "a component of a total": {
        "loss": np.where(np.arange(400) < 200, 1.0, 3.0) + np.linspace(0, 1, 400),
        "loss/a": np.linspace(0.5, 1.5, 400),
        "weight/a": np.ones(400),
        "loss/b": np.full(400, 2.0),
        "weight/b": np.ones(400),
    },
    "a gradient's norm after its share": {
        **{f"loss/{name}": np.linspace(2, 1, 400) for name in "ab"},
        **{f"weight/{name}": np.ones(400) for name in "ab"},
        "grad_share/a": np.where(np.arange(400) < 100, 0.0, 0.9),
        "grad_share/b": np.where(np.arange(400) < 100, 1.0, 0.1),
        "component_grad/b": np.ones(400),
    },
}
LATE = {"update_ratio/a": 300, "loss/b": 200, "weight/b": 200, "component_grad/b": 250}


@pytest.mark.parametrize("case", APPEARS)
@pytest.mark.parametrize("size", [1, 20, 37])
def test_a_channel_that_appears_late_does_not_change_what_is_found(case, size, play):
    """A live run does not know the columns that will come; afterwards all of them are there from the first row on."""
    columns = APPEARS[case] if "total" in case else {"loss": np.linspace(3, 1, 400), **APPEARS[case]}
    records = [{"kind": "run", "id": "r"}]
    for row in range(400):
        there = {name: float(values[row]) for name, values in columns.items() if row >= LATE.get(name, 0)}
        known = {name: value for name, value in there.items() if math.isfinite(value)}
        records.append({"kind": "step", "step": row + 1, **known})
    engine, run = Engine(), Run(Path("run.jsonl"))
    for done in range(0, len(records), size):
        play(records[done : done + size], run)
        engine.feed(run)
    assert by_rule(engine.findings(run)) == by_rule(diagnosed(play(records)))


def test_large_numbers_are_spelt_out():
    """Up to nine digits; more of them, and what is no number of its own, stay as they are."""
    said = "from 1.88e+03 to 3.257e+06, not 1e+09 nor v1e+05x"
    finding = next(iter(catalogue().values()))().finding("info", "run", (0, 0), said, advice="divide by 2e+05")
    assert (finding.message, finding.advice) == ("from 1,880 to 3,257,000, not 1e+09 nor v1e+05x", "divide by 200,000")

"""Run against run: what parted, when, and which setting is suspect."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from trainwatch.cli import main
from trainwatch.compare import ABSENT, compare, differences
from trainwatch.diagnosis import diagnose
from trainwatch.parting import part

STEPS = np.arange(1, 1001)


def curve(seed: int, noise: float = 0.05, steps: int = 1000) -> np.ndarray:
    """A loss that falls and flattens, with noise in proportion to its level."""
    t = np.arange(1, steps + 1)
    return (3 * np.exp(-t / (0.2 * steps)) + 0.5) * (1 + np.random.default_rng(seed).normal(0, noise, steps))


def slow(seed: int, steps: int = 1000) -> np.ndarray:
    """Noise that wanders: each row remembers nine tenths of the last one."""
    wander = np.zeros(steps)
    pushes = np.random.default_rng(seed).normal(0, 0.04, steps)
    for row in range(1, steps):
        wander[row] = 0.9 * wander[row - 1] + pushes[row]
    return curve(0, 0.0, steps) * (1 + wander)


@pytest.mark.parametrize("make", [curve, slow])
@pytest.mark.parametrize("seed", range(0, 20, 2))
def test_two_seeds_do_not_part(make: Callable[[int], np.ndarray], seed):
    assert part(STEPS, make(seed), make(seed + 1)).parting is None


def test_the_same_numbers_are_the_same_to_the_end():
    pair = part(STEPS, curve(0), curve(0))
    assert (pair.parting, pair.same_until, pair.differs) == (None, 1000, False)


@pytest.mark.parametrize("at", [60, 300, 700, 940])
@pytest.mark.parametrize("seed", [1, 3])
def test_a_parting_is_dated(at, seed):
    other = curve(seed)
    other[at:] *= 1.6
    parting = part(STEPS, curve(seed + 1), other).parting
    assert parting is not None
    assert abs(parting.step - (at + 1)) <= 20
    assert parting.difference > 3 * parting.noise


def test_one_seed_until_the_setting_acts():
    """The same numbers up to step 400, twice the loss afterwards."""
    other = curve(0)
    other[400:] *= 2
    pair = part(STEPS, curve(0), other)
    assert pair.same_until == 400
    assert pair.parting is not None
    assert abs(pair.parting.step - 401) <= 5


def test_a_spike_that_heals_is_no_parting():
    other = curve(1)
    other[500:560] *= 3
    assert part(STEPS, curve(0), other).parting is None


def test_one_run_that_learns_a_little_later_does_not_part():
    assert part(STEPS, curve(0), np.concatenate([curve(1)[:10], curve(1)[:-10]])).parting is None


def test_a_loss_that_becomes_nan_parts_there_and_one_nan_does_not():
    broken, blip = curve(1), curve(1)
    broken[650:] = np.nan
    blip[650] = np.nan
    parting = part(STEPS, curve(0), broken).parting
    assert parting is not None
    assert parting.step == 651
    assert part(STEPS, curve(0), blip).parting is None


@pytest.mark.parametrize("rows", [0, 1, 5, 19, 20, 39, 40, 41, 45])
def test_short_runs_do_not_break_it(rows):
    assert part(STEPS[:rows], curve(0)[:rows], curve(1)[:rows]).parting is None


def test_planned_values_part_at_the_first_difference():
    pair = part(STEPS, np.ones(1000), np.where(STEPS > 200, 0.5, 1.0), exact=True)
    assert (pair.same_until, pair.parting and pair.parting.step) == (200, 201)


def test_differences_tell_absent_from_null():
    found = differences([{"a": {"b": 1, "c": None}, "d": [1]}, {"a": {"b": 2}, "d": [1]}])
    assert [(item.path, item.values) for item in found] == [("a.b", (1, 2)), ("a.c", (None, ABSENT))]


def run_records(weight: float = 0.1, seed: int = 0, **config: object) -> list[dict]:
    """Two stages; from step 301 on the second component counts, by ``weight``."""
    stages = [
        {"start": 0, "end": 300, "name": "warm", "weights": {"a": 1.0, "b": 0.0}},
        {"start": 300, "end": 1000, "name": "full", "weights": {"a": 1.0, "b": weight}},
    ]
    head = {
        "kind": "run",
        "schema": 1,
        "run": f"w{weight}-s{seed}",
        "id": f"{weight}{seed}",
        "total_steps": 1000,
        "config": {"seed": seed, "loss": {"b": {"unit": "Da"}}, **config},
        "curriculum_running": {"name": f"plan {weight}", "stages": stages},
    }
    a, b = curve(seed), 4 * curve(seed + 100)
    weights = np.where(STEPS > 300, weight, 0.0)
    rows = [
        {
            "kind": "step",
            "step": int(step),
            "applied": int(step),
            "loss": a[i] + weights[i] * b[i],
            "loss/a": a[i],
            "loss/b": b[i],
            "weight/a": 1.0,
            "weight/b": weights[i],
        }
        for i, step in enumerate(STEPS)
    ]
    evals = [{"kind": "eval", "step": 1000, "split": "valid", "loss": a[-1], "metric/accuracy": 0.5 + seed / 100}]
    return [head, *rows, *evals, {"kind": "end", "status": "finished"}]


def judged(play, *runs):
    return compare([(run, diagnose(run)) for run in map(play, runs)])


def test_the_curriculum_is_the_suspect(play):
    said = judged(play, run_records(0.1), run_records(5.0))
    steps = {item.channel: item.step for item in said.partings}
    assert steps["weight/b"] == 301
    assert abs(steps["loss"] - 301) <= 20
    assert steps["contribution/a"] is None
    assert {item.path.partition(".")[0] for item in said.suspects} == {"curriculum_running"}


def test_the_only_setting_that_differs_is_the_suspect(play):
    said = judged(play, run_records(seed=1, lr=1e-3), run_records(seed=2, lr=1e-4))
    assert [(item.path, item.why) for item in said.suspects] == [("lr", "the only setting that differs")]


def test_seeds_of_one_setting_are_told_by_mean_and_spread(play):
    said = judged(play, run_records(seed=1), run_records(seed=2), run_records(seed=3), run_records(5.0, seed=4))
    assert said.seeds == ((0, 1, 2),)
    accuracy = next(item for item in said.values if item.channel == "valid metric/accuracy")
    assert accuracy.spread["0+1+2"] == (pytest.approx(0.52), pytest.approx(0.01))
    assert said.suspects == tuple(item for item in said.suspects if item.run == 3)
    assert all(item.step is None for item in said.partings if item.run in (1, 2))


def test_best_is_smallest_for_a_loss_and_largest_for_a_metric(make_run):
    run = make_run(
        {"loss": [3.0, 1.0, 2.0]},
        evals=[{"step": step, "split": "valid", "metric/accuracy": value} for step, value in ((1, 0.2), (2, 0.1))],
    )
    values = {item.channel: item for item in compare([(run, diagnose(run))] * 2).values}
    assert (values["loss"].final[0], values["loss"].best[0], values["loss"].best_step[0]) == (2.0, 1.0, 2)


@pytest.mark.parametrize("format_", ["text", "json", "markdown"])
def test_every_format(format_, write_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    paths = [write_run(run_records(0.1), "a.jsonl"), write_run(run_records(5.0), "b.jsonl")]
    assert main(["compare", *map(str, paths), "--format", format_]) == 0
    out = capsys.readouterr().out
    if format_ == "json":
        whole = json.loads(out)
        assert whole["version"] == 1
        assert {"runs", "config", "values", "findings", "partings", "suspects"} <= set(whole)
    else:
        assert "parts at step 30" in out
        assert "curriculum" in out


def test_runs_without_a_common_step_are_said(write_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    early = write_run([*run_records()[:100]], "a.jsonl")
    late = write_run([run_records()[0], *run_records()[500:600]], "b.jsonl")
    assert main(["compare", str(early), str(late)]) == 0
    assert "no step with a loss in common" in capsys.readouterr().out

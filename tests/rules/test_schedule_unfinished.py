"""schedule-unfinished: schedules that do not fit the run."""

import numpy as np
import pytest

ANNEAL = {"kind": "linear", "start": 0.0, "end": 1.0, "over_steps": 50_000}
COSINE = {"kind": "cosine", "start": 1e-3, "end": 0.0, "over_steps": 10_000}


def judged(make_run, judge, schedules, columns=None, end=None, evals=(), **header):
    run = make_run(columns or {}, header={"schedules": schedules, **header}, end=end, evals=evals)
    return judge(run, "schedule-unfinished")


def test_an_absolute_horizon(make_run, judge):
    """Fifty thousand steps of annealing in a run of ten thousand; before its first step, with the cure."""
    config = {"schedules": {"penalty": {"steps": 50_000}}, "other": {"steps": 50_000}}
    (found,) = judged(make_run, judge, {"penalty": ANNEAL}, total_steps=10_000, config=config)
    assert (found.severity, found.subject, found.first_step) == ("warning", "schedule:schedule/penalty", 0)
    assert found.evidence["reached"] == 0.2
    assert "it gets 20% of the way" in found.message
    assert found.patch == {"schedules.penalty.steps": 10_000}


def test_by_other_clocks_and_in_groups(make_run, judge):
    """Epochs and samples have a length too; groups that are declared alike are told once."""
    horizon = {"epochs": 3, "samples": 1000}
    by_epoch = {**ANNEAL, "over_steps": 20, "clock": "epoch"}
    (found,) = judged(make_run, judge, {"a": by_epoch, "b": by_epoch}, total_steps=100, horizon=horizon)
    assert "and 1 more" in found.message
    by_samples = {**ANNEAL, "over_steps": 3000, "clock": "samples"}
    assert judged(make_run, judge, {"a": by_samples}, total_steps=100, horizon=horizon) == []


@pytest.mark.parametrize(("end", "told"), [(0.0, ["warning"]), (1e-4, [])])
def test_a_rate_that_is_spent_early(make_run, judge, end, told):
    """At zero after a third of the run; a floor of ten percent is a choice."""
    found = judged(make_run, judge, {"lr/main": {**COSINE, "end": end}}, total_steps=30_000)
    assert [finding.severity for finding in found] == told


@pytest.mark.parametrize(
    "said",
    [
        {**ANNEAL, "over_steps": 300},  # a short annealing is one
        {**ANNEAL, "over_steps": 10_200},  # rounding
        {**ANNEAL, "kind": "constant"},
        {**ANNEAL, "clock": "dqn"},  # of an unknown unit
        {"kind": "plateau", "start": 1.0, "over_steps": 1e9},
        COSINE,
    ],
)
def test_schedules_that_fit(make_run, judge, said):
    """Or of which nothing is known."""
    assert judged(make_run, judge, {"lr/main": said}, total_steps=10_000) == []


def test_a_cosine_that_is_somewhat_longer_is_mentioned(make_run, judge):
    """On purpose, perhaps."""
    (found,) = judged(make_run, judge, {"lr/main": {**COSINE, "over_steps": 15_000}}, total_steps=10_000)
    assert found.severity == "info"


@pytest.mark.parametrize(
    ("end", "evals", "told"),
    [
        ("finished", [], ["warning"]),
        ("finished", [{"step": 50, "loss": 1.0}], ["info"]),  # it may have been stopped early
        ("stopped", [], ["info"]),
        ("failed", [], []),
        (None, [], []),
    ],
)
def test_without_a_planned_length(make_run, judge, end, evals, told):
    """What the run came to, once it has ended."""
    found = judged(make_run, judge, {"penalty": ANNEAL}, {"loss": np.ones(1000)}, end, evals)
    assert [finding.severity for finding in found] == told


def test_a_counter_that_was_seen_to_count_steps(make_run, judge):
    """Its schedule is as long as its length in steps; of one that counts something else nobody knows."""
    declared, row = {"a": ANNEAL | {"clock": "own"}}, np.arange(100)
    (found,) = judged(make_run, judge, declared, {"clock/own": row}, total_steps=10_000)
    assert (found.severity, found.first_step) == ("warning", 0)
    for counter in (row // 4, row * 32, row * 2, np.zeros(100)):
        assert judged(make_run, judge, declared, {"clock/own": counter}, total_steps=10_000) == []
    fits = {"a": ANNEAL | {"clock": "own", "over_steps": 10_000}}
    assert judged(make_run, judge, fits, {"clock/own": row}, total_steps=10_000) == []


@pytest.mark.parametrize("clock", ["frames", "own", "samples"])
def test_a_counter_that_goes_ahead_of_the_steps_at_one_pace(make_run, judge, clock):
    """Thirty-two frames a step come to 32,000 of a million; asked late, and of batches that grow nothing is said."""
    step = np.arange(1, 301)
    name = clock if clock == "samples" else f"clock/{clock}"
    long, fits = ({"a": ANNEAL | {"clock": clock, "over_steps": length}} for length in (1_000_000, 32_000))
    grows = np.cumsum(np.where(step < 100, 8, 64))
    (found,) = judged(make_run, judge, long, {name: 32 * (step - 1)}, total_steps=1000)
    assert found.severity == "warning"
    assert "gets 3.2% of the way" in found.message
    assert judged(make_run, judge, fits, {name: 32 * (step - 1)}, total_steps=1000) == []
    assert judged(make_run, judge, long, {name: 32 * (step - 1)}, total_steps=10_000) == []
    assert judged(make_run, judge, long, {name: grows}, total_steps=1000) == []

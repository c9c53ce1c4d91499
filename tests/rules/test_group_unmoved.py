"""group-unmoved: a parameter group that stands while its siblings move."""

import numpy as np
import pytest

RULE = "group-unmoved"
N = 1000
ROW = np.arange(N)
SAMPLED = (ROW == 0) | ((ROW + 1) % 50 == 0)


def run_of(ratios, rates=1e-3, **others):
    columns = {f"update_ratio/{name}": np.where(SAMPLED, ratio, np.nan) for name, ratio in ratios.items()}
    columns |= {f"lr/{name}": np.broadcast_to(rates, N) for name in ratios}
    return columns | {name.replace("__", "/"): values for name, values in others.items()}


def test_a_group_that_stands_is_dated_by_the_sample_before(make_run, judge):
    """And is over when it moves."""
    ratio = np.where((ROW >= 290) & (ROW < 610), 0.0, 1e-3)
    (finding,) = judge(make_run(run_of({"muon": ratio, "adamw": 1e-3})), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("warning", "group:muon", 251)
    assert (finding.last_step, finding.state) == (600, "over")


def test_a_component_that_is_switched_off_explains_it(make_run, judge):
    """The group may be that task's head."""
    run = make_run(run_of({"head": 0.0, "body": 1e-3}, weight__task=np.zeros(N)))
    assert [finding.severity for finding in judge(run, RULE)] == ["info"]


def test_a_hundred_times_the_pace_is_an_info(make_run, judge):
    """Of three groups at one rate; not where the rate itself is so much larger."""
    ratios = {"a": 1e-3, "b": 2e-3, "c": 0.5}
    assert [(f.severity, f.subject) for f in judge(make_run(run_of(ratios)), RULE)] == [("info", "group:c")]
    assert judge(make_run(run_of(ratios) | {"lr/c": np.full(N, 0.5)}), RULE) == []


@pytest.mark.parametrize("seed", range(10))
def test_healthy(seed, make_run, judge):
    """Nothing moves at all; a rate of 0; skipped steps; ordinary differences; biases that begin at 0."""
    random = np.random.default_rng(seed)
    spread = {name: 1e-3 * np.exp(random.standard_normal(N)) for name in "abc"}
    bias = {"a": 1e-3, "b": 1.0 / (1 + ROW)}
    stands = run_of({"a": 0.0, "b": 1e-3})
    for columns in (run_of({"a": 0.0, "b": 0.0}), run_of(spread), run_of(bias), run_of({"a": 0.0})):
        assert judge(make_run(columns), RULE) == []
    assert judge(make_run(stands | {"lr/a": np.zeros(N)}), RULE) == []
    assert judge(make_run(stands | {"amp/skipped": np.ones(N)}), RULE) == []


def test_a_rate_of_nearly_nothing_beside_anothers(make_run, judge):
    """All planned steps move it less than rounding would; rates that decay by layer have long runs to move in."""
    row = np.arange(300)
    sampled = (row == 0) | ((row + 1) % 50 == 0)
    columns = {"lr/body": 1e-9, "lr/head": 1e-3}
    columns |= {
        f"update_ratio/{name}": np.where(sampled, ratio, np.nan) for name, ratio in (("body", 3e-8), ("head", 0.02))
    }
    (found,) = judge(make_run(columns, header={"total_steps": 300}), RULE)
    assert (found.severity, found.subject, found.first_step) == ("warning", "group:body", 1)
    assert [f for f in judge(make_run(columns, header={"total_steps": 100_000}), RULE) if f.rank] == []
    assert [f for f in judge(make_run(columns), RULE) if f.rank] == []
    near = columns | {"lr/body": 1e-5}
    assert [f for f in judge(make_run(near, header={"total_steps": 300}), RULE) if f.rank] == []


def test_two_samples_are_enough_in_a_run_of_fifty_steps(make_run, judge):
    """From half of its steps on; a longer run waits for a third."""
    sampled = np.where(np.isin(np.arange(50), (0, 49)), 1.0, np.nan)
    columns = {
        "lr/body": 1e-9,
        "lr/head": 1e-3,
        "update_ratio/body": 3e-8 * sampled,
        "update_ratio/head": 0.02 * sampled,
    }
    columns = {name: np.broadcast_to(values, 50) for name, values in columns.items()}
    (found,) = judge(make_run(columns, header={"total_steps": 50}), RULE)
    assert (found.severity, found.subject) == ("warning", "group:body")
    assert [f for f in judge(make_run(columns, header={"total_steps": 300}), RULE) if f.rank] == []


@pytest.mark.parametrize(("rate", "first", "told"), [(1e-8, 0.0, ["warning"]), (1e-8, 1e-5, []), (1e-6, 0.0, [])])
def test_a_group_that_begins_at_nothing_is_held_against_another(rate, first, told, make_run, judge):
    """As an adapter's second matrix does: beside its own norm each step of it is a large one."""
    row = np.arange(120)
    second = np.where(row > 0, 10 * rate * (row + 1), first)
    columns = {"lr/second": np.full(120, rate), "lr/first": np.full(120, 4e-3), "weight_norm/second": second}
    columns |= {"update_ratio/second": np.where(row > 0, 0.02, np.nan), "update_ratio/first": np.full(120, 0.01)}
    sampled = np.isin(row, (0, 49, 99))
    columns |= {"weight_norm/first": np.full(120, 5.0)}
    columns = {
        name: values if name[0] == "l" else np.where(sampled, values, np.nan) for name, values in columns.items()
    }
    found = judge(make_run(columns, header={"total_steps": 120}), RULE)
    assert [one.severity for one in found if one.rank] == told


def test_a_group_beside_one_without_weights(make_run, judge):
    """The path of the one cannot be said in norms of the other, which are 0."""
    norms = {"weight_norm__head": np.where(ROW == 0, 0.0, 1.0), "weight_norm__body": np.zeros(N)}
    columns = run_of({"head": 1e-9, "body": 1e-3}, **norms) | {"lr/head": np.full(N, 1e-12)}
    assert all(found.severity == "info" for found in judge(make_run(columns), RULE))


def test_one_sample_of_a_short_log_is_enough(make_run, judge):
    """The rates are told in every row, and what a step of them moves in one."""
    step = np.arange(10, 121, 10)
    sampled = {"update_ratio/trunk": 4e-8, "update_ratio/heads": 0.05}
    columns = {name: np.where(step == 10, ratio, np.nan) for name, ratio in sampled.items()}
    columns |= {"lr/trunk": np.full(12, 8e-9), "lr/heads": np.full(12, 8e-3)}
    (finding,) = judge(make_run({"step": step} | columns, header={"total_steps": 120}), RULE)
    assert (finding.severity, finding.subject) == ("warning", "group:trunk")

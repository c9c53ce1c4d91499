"""component-ignored: a thousandth of the sum that never improves; what is meant small is no alarm."""

import numpy as np
import pytest

RULE = "component-ignored"
N = 300
ROW = np.arange(N)
TASKS = {"components": {name: {"role": "task"} for name in "abc"}}


def columns(seed, weight=1e-4, c=0.7, name="c"):
    random = np.random.default_rng(seed)
    noise = [np.exp(0.08 * random.standard_normal(N)) for _ in range(3)]
    a, b = (1 + 8 * np.exp(-ROW / 50)) * noise[0], (1 + 2 * np.exp(-ROW / 50)) * noise[1]
    raw = np.broadcast_to(c, N) * noise[2]
    weights = {"weight/a": np.ones(N), "weight/b": np.ones(N), f"weight/{name}": np.full(N, weight)}
    return {"loss": a + b + weight * raw, "loss/a": a, "loss/b": b, f"loss/{name}": raw, **weights}


@pytest.mark.parametrize("seed", range(8))
def test_a_declared_task_is_a_warning(seed, make_run, judge):
    """From the first row on."""
    found = judge(make_run(columns(seed), header=TASKS), RULE)
    assert [(f.severity, f.subject, f.first_step) for f in found] == [("warning", "component:c", 1)]


def test_without_a_role_it_is_an_info(make_run, judge):
    """Whoever sets such a weight may mean it."""
    assert [finding.severity for finding in judge(make_run(columns(0)), RULE)] == ["info"]


HEALTHY = {
    "it has its share of the gradient": columns(0) | {"grad_share/c": np.full(N, 0.2)},
    "it improves": columns(0, c=0.7 * np.exp(-ROW / 100)),
    "it is 0": columns(0, c=0.0),
    "it has no weight": columns(0, weight=0.0),
    "it is not that small": columns(0, weight=0.1),
    "a z-loss": columns(0, name="z_loss"),
    "nothing improves": {name: np.sort(values) for name, values in columns(0).items()},
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name, make_run, judge):
    """Small is no sickness."""
    assert judge(make_run(HEALTHY[name], header=TASKS if "z_loss" not in name else None), RULE) == []


def test_loss_scale_imbalance_has_precedence(make_run, judge):
    """One sickness, one finding."""
    run = {"loss/a": 5e4 * np.exp(-ROW / 50) + 1e4, "loss/c": np.full(N, 3.0), "loss": 5e4 * np.exp(-ROW / 50)}
    found = judge(make_run(run, header=TASKS))
    assert {f.rule for f in found} & {RULE, "loss-scale-imbalance"} == {"loss-scale-imbalance"}


def test_a_share_over_the_parameters_counts_where_there_is_no_other(make_run, judge):
    """A fifth of the gradient: it is trained."""
    assert judge(make_run(columns(0) | {"param_share/c": np.full(N, 0.2)}, header=TASKS), RULE) == []


@pytest.mark.parametrize(("before", "severities"), [(np.full(100, 0.7), ["warning"]), (np.geomspace(9, 0.7, 100), [])])
def test_what_was_learned_before_a_resume_counts(before, severities, make_run, judge):
    """A component that stands still because it is solved is well."""
    early = {name: values[:100] for name, values in columns(1).items()} | {"loss/c": before}
    run = make_run(early, header=TASKS | {"total_steps": 400}, end=None)
    late = columns(0) | {"step": 100 + np.arange(1, N + 1)}
    run = make_run(late, header=TASKS | {"total_steps": 400, "resumed_from": 100}, onto=run)
    assert [finding.severity for finding in judge(run, RULE)] == severities


def test_a_log_that_begins_with_a_resume_does_not_tell_what_was_learned(make_run, judge):
    """Nobody knows whether it is solved."""
    found = judge(make_run(columns(0), header=TASKS | {"resumed_from": 0}), RULE)
    assert [finding.severity for finding in found] == ["info"]

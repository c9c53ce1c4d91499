"""late-activation: a component without a gradient for long that wakes as the largest."""

import numpy as np
import pytest

RULE = "late-activation"
N = 120
ROW = np.arange(N)


def columns(gradient, value=100.0, weight=1.0):
    """A component that sleeps beside one whose gradient is 1."""
    return {
        "loss/a": 1 + np.exp(-ROW / 30),
        "weight/a": np.ones(N),
        "component_grad/a": np.ones(N),
        "loss/b": np.broadcast_to(value, N),
        "weight/b": np.broadcast_to(weight, N),
        "component_grad/b": gradient,
    }


def test_it_is_named_at_the_row_at_which_it_wakes(make_run, judge):
    """With what it had slept, and how loud it is."""
    (finding,) = judge(make_run(columns(np.where(ROW < 70, 0.0, 9.0))), RULE)
    assert (finding.severity, finding.subject, finding.first_step, finding.state) == (
        *("warning", "component:b", 71),
        "active",
    )
    assert finding.evidence == {"silent_rows": 70, "gradient_share": 0.9, "rows": 50}


def test_a_sample_that_comes_near_the_clamp_is_an_info(make_run, judge):
    """One loud row, and silence again."""
    (finding,) = judge(make_run(columns(np.where(ROW == 70, 9.0, 0.0))), RULE)
    assert (finding.severity, finding.first_step, finding.state) == ("info", 71, "over")


HEALTHY = {
    "it enters by its weight": columns(np.where(ROW < 70, 0.0, 9.0), weight=np.where(ROW < 70, 0.0, 1.0)),
    "its value was 0": columns(np.where(ROW < 70, 0.0, 9.0), value=np.where(ROW < 70, 0.0, 3.0)),
    "it wakes small": columns(np.where(ROW < 70, 0.0, 0.5)),
    "it slept for a moment": columns(np.where(ROW < 30, 0.0, 9.0)),
    "it comes and goes": columns(np.where(ROW % 20 < 15, 0.0, 9.0)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name, make_run, judge):
    """Normal life."""
    assert judge(make_run(HEALTHY[name]), RULE) == []


def test_long_is_long_for_the_run(make_run, judge):
    """70 rows are nothing in 10,000."""
    run = make_run(columns(np.where(ROW < 70, 0.0, 9.0)), header={"total_steps": 10_000})
    assert judge(run, RULE) == []


def test_a_log_with_a_row_in_fifty(make_run, judge):
    """The window is 2 % of the planned steps, however many rows tell of them."""
    run = make_run(columns(np.where(ROW < 70, 0.0, 9.0)) | {"step": 50 * (ROW + 1)}, header={"total_steps": 20_000})
    assert [finding.first_step for finding in judge(run, RULE)] == [3550]

"""aggressive-ramp: a weight that brings in more than everything before, at the step it rises."""

import numpy as np

RULE = "aggressive-ramp"
N = 300
STEP = np.arange(1, N + 1)


def columns(weight, raw, **more):
    base = {"loss/ce": 1 + np.exp(-STEP / 80), "weight/ce": np.ones(N), "loss/mass": np.full(N, raw)}
    return {**base, "weight/mass": weight, **{name.replace("__", "/"): value for name, value in more.items()}}


def test_a_step_onto_a_raw_unit_is_named_at_the_boundary(make_run, judge):
    """0.2 x 80,000 ppm beside a cross-entropy."""
    (finding,) = judge(make_run(columns(np.where(STEP >= 80, 0.2, 0.0), 80_000.0)), RULE)
    assert (finding.subject, finding.first_step, finding.severity) == ("component:mass", 80, "critical")
    assert finding.last_step <= 80 + 25
    assert finding.evidence["growth"] > 1000


def test_a_gradient_that_is_taken_over_is_named(make_run, judge):
    """The value is small, the gradient is not: a clamped or a narrow loss."""
    share = np.where(STEP >= 80, 0.95, 0.0)
    run = make_run(columns(np.where(STEP >= 80, 0.2, 0.0), 0.5, grad_share__mass=share, grad_share__ce=1 - share))
    (finding,) = judge(run, RULE)
    assert (finding.severity, finding.first_step) == ("warning", 80)


def test_silent_on_a_planned_small_step(make_run, judge):
    """What EXTENDED does."""
    assert judge(make_run(columns(np.where(STEP >= 80, 0.05, 0.0), 0.6)), RULE) == []


def test_silent_on_a_slow_ramp_to_the_same_weight(make_run, judge):
    """The same end over most of the run."""
    slow = np.clip((STEP - 20) / 270, 0, 1) * 0.5
    assert judge(make_run(columns(slow, 5.0), header={"total_steps": N}), RULE) == []


def test_silent_where_only_the_raw_loss_jumps(make_run, judge):
    """No weight rose: another rule's matter."""
    run = make_run(columns(np.full(N, 0.2), 1.0) | {"loss/mass": np.where(STEP > 100, 1e5, 1.0)})
    assert judge(run, RULE) == []


def test_silent_on_a_weight_that_is_there_from_the_first_row(make_run, judge):
    """There is no before."""
    assert judge(make_run(columns(np.full(N, 0.2), 80_000.0)), RULE) == []

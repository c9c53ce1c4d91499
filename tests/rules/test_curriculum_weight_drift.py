"""curriculum-weight-drift: an applied weight that the declared stage does not give."""

import numpy as np
import pytest

STEPS = np.arange(1, 1001)
STAGES = [
    {"start": 0, "end": 300, "name": "short", "weights": {"mass": 0.0, "seq": 1.0}},
    {"start": 300, "end": 600, "name": "medium", "weights": {"mass": 0.1}},
    {"start": 600, "end": 1000, "name": "long", "weights": {"mass": 0.2, "seq": 1.0}},
]
PLANNED = np.where(STEPS < 300, 0.0, np.where(STEPS < 600, 0.1, 0.2))


def judged(make_run, judge, mass, ramp="step", seq=1.0, **header):
    curriculum = {"name": "EXTENDED", "stages": STAGES, "ramp": ramp}
    columns = {"applied": STEPS, "weight/mass": mass, "weight/seq": np.broadcast_to(seq, 1000)}
    run = make_run(columns, header={"total_steps": 1000, "curriculum": curriculum, **header})
    return judge(run, "curriculum-weight-drift")


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_the_plan_is_right_one_step_early_or_late(make_run, judge, shift):
    """A row holds the value its step used; a stage that does not speak of a component binds nothing."""
    seq = np.where((STEPS > 302) & (STEPS < 598), 7.0, 1.0)
    assert judged(make_run, judge, np.roll(PLANNED, shift) if shift > 0 else PLANNED, seq=seq) == []


def test_a_wrong_weight(make_run, judge):
    """30 % too much from step 700 on: a warning, with both numbers."""
    (found,) = judged(make_run, judge, np.where(STEPS >= 700, 0.26, PLANNED))
    assert (found.severity, found.subject, found.first_step) == ("warning", "component:mass", 700)
    assert (found.evidence["weight"], found.evidence["planned"], found.evidence["stage"]) == (0.26, 0.2, "long")


def test_a_weight_far_off_for_long_is_critical(make_run, judge):
    """Twelve times what was planned; and one that should be 0."""
    (found,) = judged(make_run, judge, np.where(STEPS >= 700, 2.4, PLANNED))
    assert found.severity == "critical"
    (found,) = judged(make_run, judge, np.maximum(PLANNED, 0.1))
    assert (found.severity, found.first_step, found.state) == ("critical", 1, "over")


def test_a_ramp_may_be_anywhere_between(make_run, judge):
    """And a weight with a schedule of its own is not judged here."""
    ramped = np.interp(STEPS, [0, 300, 400, 600, 800], [0, 0, 0.1, 0.1, 0.2])
    assert judged(make_run, judge, ramped, ramp="linear") == []
    assert judged(make_run, judge, ramped) != []
    scheduled = {"weight/mass": {"kind": "linear", "start": 0, "end": 0.2, "over_steps": 1000}}
    assert judged(make_run, judge, ramped, schedules=scheduled) == []


def test_a_glitch_is_none(make_run, judge):
    """Four rows."""
    assert judged(make_run, judge, np.where((STEPS >= 700) & (STEPS < 704), 5.0, PLANNED)) == []


def test_a_boundary_that_waits_for_the_end_of_an_epoch(make_run, judge):
    """Late by less than a window (20 steps here) is forgiven; later is not, and begins there."""
    assert judged(make_run, judge, np.where(STEPS < 318, 0.0, np.where(STEPS < 618, 0.1, 0.2))) == []
    (found,) = judged(make_run, judge, np.where(STEPS < 400, 0.0, PLANNED))
    assert (found.first_step, found.last_step, found.state) == (319, 399, "over")


def test_a_log_with_a_row_in_fifty(make_run, judge):
    """The window is 2 % of the planned steps, however many rows tell of them."""
    steps = 50 * STEPS[:400]
    curriculum = {"name": "A", "stages": [{"start": 0, "weights": {"mass": 0.2}}]}
    columns = {"step": steps, "weight/mass": np.where(steps >= 19_000, 2.4, 0.2)}
    run = make_run(columns, header={"total_steps": 20_000, "curriculum": curriculum})
    (found,) = judge(run, "curriculum-weight-drift")
    assert (found.severity, found.first_step) == ("critical", 19_000)
